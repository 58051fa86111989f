// Package test holds the tests of whole clusters: real processes of the real
// binaries, started and broken by package cluster, with a kernel mount in front.
// They need root and /dev/fuse and say so where they are skipped.
//
//	cluster_test.go   every size of file, each node killed in turn, all killed at once
//	corrupt_test.go   bytes of live shards flipped on the devices
//	mounts_test.go    two mounts; the leader killed under writes
//	coherence_test.go what one mount changes the other sees at once: every pair of a change and a look
//	stress_test.go    two mounts work in the same directories, and none comes to a halt
//	model_test.go     random operations; versions_test.go is what they may leave behind
//	chaos_test.go     the model while nodes, devices and mounts die; the life of devices
//	bits_test.go      bits flipped all over a device
//	semantics_test.go what POSIX and Linux promise, on two mounts; handles_test.go file handles
//	fsx_test.go       one file at random, by one mount and by two
//	verify_test.go    fio and programs that people use
//	nospace_test.go   one device full, all full
//	transport_test.go puts and commands late, cut off, unanswered, sent twice
//	sleeper_test.go   a mount that sleeps longer than its session lives
//	silence_test.go   all servers stand still: operations wait, or end by --timeout
//	launcher_test.go  namespaces, proxies, clocks; demo up and down
package test
