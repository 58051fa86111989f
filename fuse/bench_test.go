package fuse

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The front end alone, over a file system in memory: what the kernel's round
// trip, go-fuse and this package cost.

// reportCPU tells the processor time of an operation, of asking and of answering: it differs
// less than the time with what else the machine does.
func reportCPU(b *testing.B) {
	var before, after unix.Rusage
	check(b, unix.Getrusage(unix.RUSAGE_SELF, &before))
	b.Cleanup(func() {
		check(b, unix.Getrusage(unix.RUSAGE_SELF, &after))
		spent := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		b.ReportMetric(float64(spent)/float64(b.N)/1e3, "cpu-us/op")
	})
}

func BenchmarkStat(b *testing.B) {
	m := newMemFS()
	m.ttl = 0 // every stat is a request
	dir, _ := mounted(b, m)
	check(b, os.WriteFile(dir+"/f", nil, 0o644))
	var st unix.Stat_t
	reportCPU(b)
	for b.Loop() {
		check(b, unix.Lstat(dir+"/f", &st))
	}
}

func BenchmarkCreateAndClose(b *testing.B) {
	dir, _ := mounted(b, newMemFS())
	n := 0
	reportCPU(b)
	for b.Loop() {
		fd, err := unix.Open(fmt.Sprintf("%s/%d", dir, n), unix.O_CREAT|unix.O_WRONLY, 0o644)
		check(b, err)
		unix.Close(fd)
		n++
	}
}

func BenchmarkWrite(b *testing.B) { benchmarkIO(b, unix.O_RDWR, unix.Pwrite) }

func BenchmarkReadDirect(b *testing.B) { benchmarkIO(b, unix.O_RDWR|unix.O_DIRECT, unix.Pread) }

func benchmarkIO(b *testing.B, flags int, io func(int, []byte, int64) (int, error)) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			dir, _ := mounted(b, newMemFS())
			check(b, os.WriteFile(dir+"/f", pattern(1, size), 0o644))
			fd, err := unix.Open(dir+"/f", flags, 0)
			check(b, err)
			defer unix.Close(fd)
			p := make([]byte, size)
			b.SetBytes(int64(size))
			reportCPU(b)
			for b.Loop() {
				_, err := io(fd, p, 0)
				check(b, err)
			}
		})
	}
}

// BenchmarkOpenAndClose is for reading: two requests, and a third at each close for the
// locks that the process may have.
func BenchmarkOpenAndClose(b *testing.B) {
	dir, _ := mounted(b, newMemFS())
	check(b, os.WriteFile(dir+"/f", nil, 0o644))
	reportCPU(b)
	for b.Loop() {
		fd, err := unix.Open(dir+"/f", unix.O_RDONLY, 0)
		check(b, err)
		unix.Close(fd)
	}
}
