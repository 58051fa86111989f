// Package perf measures the mechanisms: the I/O engines beside fio, the log on a
// device, its start and its cleaner, and holds the results against targets.
//
// # What is measured, and how
//
// A bench compares rows (an engine, a record size, a number of goroutines). Its
// rows take turns, A B C A B C, so that a drift of the machine meets all of
// them; every round of a row gives a set of values ([Values]), medians count,
// and a ratio is the median of the ratios of each round. Ratios are what carries
// over from one machine to another.
//
//   - [BenchIO]: one job through each engine and through fio
//   - [BenchLog]: puts and gets through nvme.Log, beside fio
//   - [BenchOpen]: the start of a log, closed and killed
//   - [BenchClean]: what the cleaner writes for each byte that is put
//   - [BenchEC]: the arithmetic of stripes, on one goroutine over cold memory
//   - [BenchFile]: files in a mounted cluster, beside fio on the disk below it
//   - [BenchMeta]: the metadata service, three voters as processes, beside one log on the disk
//   - [BenchFio]: the disk alone
//
// Each returns a [Report], which prints as a table, as JSON and in Go's benchmark
// format. A [Gate] runs the benches that its [TargetFile]s ask for and gives a
// verdict on each target. Files that a bench makes are written once in full
// before the clock runs, and removed at the end; what exists is read, and is
// written only when the caller says so.
//
// BenchFile drives a cluster as a person would: it starts, breaks, mounts anew and
// removes it by `cfs demo`, and asks its servers over the wire. Reads are cold because
// the mount is a new one, and the counters of its client must agree; a read with a node
// dead must have reconstructed something. What a shape asks of a server that does not
// answer fails the bench.
//
// BenchMeta starts its servers itself: it counts their processor time and memory, and
// kills the one that leads. Their fdatasyncs are counted by the kernel (synccount.go):
// a voter that acknowledges without syncing its log fails the bench. Its large
// namespace is made as the voters' state by the caller, as a snapshot would be
// installed; lookups go over the wire without a client, whose caches would answer.
//
// # Numbers
//
// Latencies come from a [Histogram]: percentiles are at most 1/64 above the
// truth and never below. CPU time is the whole process's, collector and kernel
// threads of the ring included; fio's is what fio reports of its job.
// Allocations are those of the whole process too, rounded to a hundredth for
// each operation.
//
// # Reading order
//
// report.go (what comes out), drive.go (one round), rounds.go (turns), engines.go
// and io.go, logrig.go and logbench.go, openbench.go, cleanbench.go, ecbench.go, file.go (with
// filecluster.go, fileshapes.go, overwrite.go), meta.go (with voters.go, synccount.go,
// metashapes.go, metabulk.go), then targets.go and gate.go.
package perf
