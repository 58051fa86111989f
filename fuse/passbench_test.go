package fuse

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/fuse/filecache"
)

// turns are batches of the same work done in two ways by turns, so that what else the machine does meets both.
type turns struct {
	one, two       []time.Duration
	oneCPU, twoCPU time.Duration // of this thread
}

func threadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

func (t *turns) run(n int, one, two func(n int)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, way := range []struct {
		do   func(int)
		took *[]time.Duration
		cpu  *time.Duration
	}{{one, &t.one, &t.oneCPU}, {two, &t.two, &t.twoCPU}} {
		start, cpu := time.Now(), threadCPU()
		way.do(n)
		*way.took = append(*way.took, time.Since(start)/time.Duration(n))
		*way.cpu += threadCPU() - cpu
	}
}

// report gives the medians and how many times as fast the second way is, by the clock and by this thread's CPU time.
func (t *turns) report(b *testing.B, one, two string) {
	slices.Sort(t.one)
	slices.Sort(t.two)
	x, y := t.one[len(t.one)/2], t.two[len(t.two)/2]
	b.ReportMetric(float64(x.Nanoseconds()), one+"-ns")
	b.ReportMetric(float64(y.Nanoseconds()), two+"-ns")
	b.ReportMetric(float64(x)/float64(y), "ratio")
	b.ReportMetric(float64(t.oneCPU)/float64(t.twoCPU), "CPU-ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkPassthrough reads a file that is passed through, and the same file of the cache directory natively. The ratio is of
// the rates, passed through to native.
func BenchmarkPassthrough(b *testing.B) {
	const size = 64 << 20
	bed := newPassBed(b, 256<<20)
	bed.make("f", pattern(1, size))
	bed.idle("f")
	a := bed.attr("f")
	native, err := filepath.Glob(bed.keep + "/files/*")
	if check(b, err); len(native) != 1 || !bed.cache.Has(filecache.KeyOf(&a)) {
		b.Fatalf("%v", native)
	}
	for _, c := range []struct {
		name  string
		flags int
		size  int
		seq   bool
		batch int
	}{
		{"random/direct/4KiB", unix.O_DIRECT, 4 << 10, false, 10},
		{"random/buffered/4KiB", 0, 4 << 10, false, 100},
		{"sequential/direct/1MiB", unix.O_DIRECT, 1 << 20, true, 2},
		{"sequential/buffered/1MiB", 0, 1 << 20, true, 2},
	} {
		b.Run(c.name, func(b *testing.B) {
			p, err := unix.Mmap(-1, 0, c.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			check(b, err)
			defer unix.Munmap(p)
			reader := func(path string) func(int) {
				fd, err := unix.Open(path, unix.O_RDONLY|c.flags, 0)
				check(b, err)
				b.Cleanup(func() { unix.Close(fd) })
				off := 0
				return func(n int) {
					for range n {
						if off = (off + c.size) % size; !c.seq {
							off = rand.IntN(size/c.size) * c.size
						}
						_, err := unix.Pread(fd, p, int64(off))
						check(b, err)
					}
				}
			}
			one, two := reader(native[0]), reader(bed.path("f"))
			before := bed.m.count("read")
			var t turns
			for b.Loop() {
				t.run(c.batch, one, two)
			}
			t.report(b, "native", "passed")
			b.ReportMetric(float64(bed.m.count("read")-before), "READs")
		})
	}
}

// BenchmarkPassthroughSmall opens, reads and closes files of several sizes, by the kernel's pages, which are kept, and passed through.
func BenchmarkPassthroughSmall(b *testing.B) {
	for _, size := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			bed := newPassBed(b, 256<<20)
			bed.s.fs.pass.least = 1
			bed.make("passed", pattern(1, size))
			bed.idle("passed")
			check(b, os.WriteFile(bed.path("pages"), pattern(1, size), 0o644))
			held, err := os.Open(bed.path("pages")) // so it stays
			check(b, err)
			defer held.Close()
			p := make([]byte, size)
			reader := func(path string) func(int) {
				return func(n int) {
					for range n {
						fd, err := unix.Open(path, unix.O_RDONLY, 0)
						check(b, err)
						_, err = unix.Read(fd, p)
						check(b, err)
						check(b, unix.Close(fd))
					}
				}
			}
			before := bed.m.count("read")
			var t turns
			for b.Loop() {
				t.run(10, reader(bed.path("pages")), reader(bed.path("passed")))
			}
			t.report(b, "pages", "passed")
			b.ReportMetric(float64(bed.m.count("read")-before), "READs")
		})
	}
}
