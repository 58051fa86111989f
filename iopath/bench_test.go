package iopath

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	benchFileBytes = 512 << 20
	benchReadBytes = 4096
)

var (
	benchRounds = flag.Int("bench.rounds", 7, "rounds of BenchmarkRandomRead, of which the median counts")
	benchRound  = flag.Duration("bench.round", 300*time.Millisecond, "how long an engine runs in a round")
	benchPath   = flag.String("bench.path", "", "the file of 512 MiB or more, or the device, that is read; a new file when empty")
	benchOnly   = flag.String("bench.only", "", "the engines to measure, separated by commas; all when empty")
)

// benchResult is what one engine reached in one round.
type benchResult struct {
	iops   float64
	cpuUS  float64 // of all threads, for an operation
	allocs float64 // for an operation
}

// contender is something that reads 4 KiB blocks at random, depth at once.
type contender struct {
	name string
	run  func(b *testing.B, path string, depth int) benchResult
}

// BenchmarkRandomRead reads a file on disk (O_DIRECT) at random through every
// engine and through fio, interleaved, and reports the medians as ratios to fio's.
//
//	go test -run '^$' -bench RandomRead -benchtime 1x ./iopath
func BenchmarkRandomRead(b *testing.B) {
	path := benchFile(b)
	for _, depth := range []int{1, 32, 128} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			for b.Loop() {
				benchDepth(b, path, depth)
			}
		})
	}
}

// benchDepth compares every contender with the runs of fio before and behind it,
// because a machine's speed drifts.
func benchDepth(b *testing.B, path string, depth int) {
	iops, cpu, own, allocs := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	all := contenders()
	before := runFio(b, path, depth)
	for range *benchRounds {
		for _, c := range all {
			r := c.run(b, path, depth)
			after := runFio(b, path, depth)
			iops[c.name] = append(iops[c.name], r.iops/((before.iops+after.iops)/2))
			cpu[c.name] = append(cpu[c.name], r.cpuUS/((before.cpuUS+after.cpuUS)/2))
			own[c.name], own["fio"] = append(own[c.name], r.cpuUS), append(own["fio"], after.cpuUS)
			allocs[c.name] = append(allocs[c.name], r.allocs)
			before = after
		}
	}
	b.ReportMetric(median(own["fio"]), "fio-cpu-us/op")
	for _, c := range all {
		b.ReportMetric(median(iops[c.name]), c.name+"-iops/fio")
		b.ReportMetric(median(cpu[c.name]), c.name+"-cpu/fio")
		b.ReportMetric(median(own[c.name]), c.name+"-cpu-us/op")
		b.ReportMetric(median(allocs[c.name]), c.name+"-allocs/op")
		b.Logf("%-12s iops/fio %.2f %.2f  cpu/fio %.2f %.2f  cpu %.1f us  allocs %.2f", c.name,
			median(iops[c.name]), iops[c.name], median(cpu[c.name]), cpu[c.name], median(own[c.name]), median(allocs[c.name]))
	}
}

func median(x []float64) float64 {
	x = slices.Clone(x)
	slices.Sort(x)
	return x[len(x)/2]
}

func contenders() []contender {
	all := []contender{
		{"shared", goroutines(ring(RingConfig{}))},
		{"shared-batch", batches(RingConfig{})},
		{"issuer", goroutines(ring(RingConfig{SingleIssuer: true}))},
		{"issuer-batch", batches(RingConfig{SingleIssuer: true})},
		{"shards2", goroutines(func(a *Arena, _ int) (Engine, error) { return NewShards(2, RingConfig{Arena: a}) })},
		{"pread", runPread},
	}
	all = append(all, taggedContenders()...)
	only := strings.Split(*benchOnly, ",")
	return slices.DeleteFunc(all, func(c contender) bool { return *benchOnly != "" && !slices.Contains(only, c.name) })
}

// benchFile is what is read: by default a file that is written once in full.
func benchFile(b *testing.B) string {
	if *benchPath != "" {
		return *benchPath
	}
	path := filepath.Join(b.TempDir(), "data")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		b.Skipf("no direct I/O here: %v", err)
	}
	defer f.Close()
	a := testArena(b, 4<<20)
	buf := mustGet(b, a, 1<<20)
	defer buf.Release()
	fillRandom(buf.Bytes(), 1)
	for range benchFileBytes / len(buf.Bytes()) {
		if _, err := f.Write(buf.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
	return path
}

func openDirect(b *testing.B, path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// measure runs workers for a round. Each calls read, for one or more blocks
// chosen by next, and returns how many it has read.
func measure(b *testing.B, workers int, read func(worker int, next func() int64) (int, error)) benchResult {
	counts := make([]int, workers)
	var wg sync.WaitGroup
	var before, after unix.Rusage
	var memBefore, memAfter runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memBefore)
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	start := time.Now()
	end := start.Add(*benchRound)
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), uint64(start.UnixNano())))
			next := func() int64 { return rng.Int64N(benchFileBytes/benchReadBytes) * benchReadBytes }
			for calls := 0; calls%16 != 0 || time.Now().Before(end); calls++ {
				n, err := read(w, next)
				if counts[w] += n; err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	runtime.ReadMemStats(&memAfter)
	total := 0
	for _, n := range counts {
		total += n
	}
	cpu := float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano()) / 1e3
	return benchResult{iops: float64(total) / took.Seconds(), cpuUS: cpu / float64(total), allocs: float64(memAfter.Mallocs-memBefore.Mallocs) / float64(total)}
}

// opener makes an engine for so many operations at once.
type opener func(a *Arena, depth int) (Engine, error)

func ring(cfg RingConfig) opener {
	return func(a *Arena, _ int) (Engine, error) {
		cfg.Arena = a
		return NewRing(cfg)
	}
}

// rig is what a contender needs: an engine, the file, and depth Bufs.
type rig struct {
	Engine
	arena *Arena
	file  File
	bufs  []*Buf
}

func newRig(b *testing.B, open opener, path string, depth int) *rig {
	g := &rig{arena: testArenaNow(b)}
	var err error
	if g.Engine, err = open(g.arena, depth); err != nil {
		b.Fatal(err)
	}
	f := openDirect(b, path)
	defer f.Close()
	g.file = mustRegister(b, g, f)
	for range depth {
		g.bufs = append(g.bufs, mustGet(b, g.arena, benchReadBytes))
	}
	return g
}

func (g *rig) close(b *testing.B) {
	for _, buf := range g.bufs {
		buf.Release()
	}
	if err := errors.Join(g.Close(), g.arena.Close()); err != nil {
		b.Error(err)
	}
}

// goroutines reads from depth goroutines through one engine, a block at a time.
func goroutines(open opener) func(*testing.B, string, int) benchResult {
	return func(b *testing.B, path string, depth int) benchResult {
		g := newRig(b, open, path, depth)
		defer g.close(b)
		return measure(b, depth, func(w int, next func() int64) (int, error) {
			_, err := g.Read(g.file, g.bufs[w].Bytes(), next())
			return 1, err
		})
	}
}

// batches reads from one goroutine, in batches that keep a ring of depth
// entries full nearly all the time.
func batches(cfg RingConfig) func(*testing.B, string, int) benchResult {
	return func(b *testing.B, path string, depth int) benchResult {
		cfg.Entries = depth
		g := newRig(b, ring(cfg), path, depth)
		defer g.close(b)
		ops := make([]ReadOp, 32*depth)
		return measure(b, 1, func(_ int, next func() int64) (int, error) {
			for i := range ops {
				ops[i] = ReadOp{P: g.bufs[i%depth].Bytes(), Off: next()}
			}
			return len(ops), g.ReadMany(g.file, ops)
		})
	}
}

func testArenaNow(b *testing.B) *Arena {
	a, err := NewArena(4 << 20)
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// runPread is what Go does without an engine.
func runPread(b *testing.B, path string, depth int) benchResult {
	a := testArenaNow(b)
	defer a.Close()
	f := openDirect(b, path)
	defer f.Close()
	bufs := make([]*Buf, depth)
	for i := range bufs {
		bufs[i] = mustGet(b, a, benchReadBytes)
		defer bufs[i].Release()
	}
	return measure(b, depth, func(w int, next func() int64) (int, error) {
		_, err := f.ReadAt(bufs[w].Bytes(), next())
		return 1, err
	})
}

// runFio is the same job by fio's io_uring engine.
func runFio(b *testing.B, path string, depth int) benchResult {
	program, err := exec.LookPath("fio")
	if err != nil {
		b.Skip("fio is not installed")
	}
	cmd := exec.CommandContext(context.Background(), program, "--name=job", "--filename="+path, "--ioengine=io_uring", "--direct=1",
		"--fixedbufs=1", "--registerfiles=1", "--rw=randread", "--bs=4096", fmt.Sprintf("--iodepth=%d", depth), "--norandommap", "--randrepeat=0",
		"--time_based", fmt.Sprintf("--runtime=%dms", benchRound.Milliseconds()), "--output-format=json")
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	var report struct {
		Jobs []struct {
			Read struct {
				TotalIOs  float64 `json:"total_ios"`
				RuntimeMS float64 `json:"runtime"`
			}
			UsrCPU  float64 `json:"usr_cpu"` // percent of the job's run time
			SysCPU  float64 `json:"sys_cpu"`
			Runtime float64 `json:"job_runtime"`
		}
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		b.Fatalf("fio's report: %v\n%s", err, out)
	}
	j := report.Jobs[0]
	return benchResult{
		iops:  j.Read.TotalIOs / j.Read.RuntimeMS * 1e3,
		cpuUS: (j.UsrCPU + j.SysCPU) / 100 * j.Runtime * 1e3 / j.Read.TotalIOs,
	}
}

// BenchmarkHugePages registers an arena and reads a cached file into it all, with
// huge pages and without.
func BenchmarkHugePages(b *testing.B) {
	path := benchFile(b)
	f, err := os.Open(path) // through the page cache: the copy is what counts
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for _, huge := range []bool{true, false} {
		b.Run(fmt.Sprintf("huge=%t", huge), func(b *testing.B) {
			var registered, reading time.Duration
			for b.Loop() {
				a, err := NewArena(benchFileBytes)
				if err != nil {
					b.Fatal(err)
				}
				if !huge {
					_ = unix.Madvise(a.mem, unix.MADV_NOHUGEPAGE)
				}
				clear(a.mem) // faults, and what a hypervisor does at them, come first
				start := time.Now()
				r := mustRing(b, RingConfig{Arena: a})
				registered += time.Since(start)
				file := mustRegister(b, r, f)
				for pass := range 2 { // the first fills the page cache
					start = time.Now()
					for off := 0; off < benchFileBytes; off += 1 << 20 {
						if _, err := r.Read(file, a.mem[off:off+1<<20], int64(off)); err != nil {
							b.Fatal(err)
						}
					}
					if pass == 1 {
						reading += time.Since(start)
					}
				}
				r.Close()
				a.Close()
			}
			const gib = benchFileBytes / float64(1<<30)
			b.ReportMetric(registered.Seconds()*1e3/float64(b.N)/gib, "register-ms/GiB")
			b.ReportMetric(reading.Seconds()*1e3/float64(b.N)/gib, "read-ms/GiB")
		})
	}
}
