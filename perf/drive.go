package perf

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// step does one operation, or a batch of them, and returns how many.
type step func() (int, error)

// drive calls each of the steps in a goroutine of its own, again and again for
// length, and measures: rates, latencies (of a batch: that of each in it), CPU time
// and allocations of the whole process. Each step is called once before the clock
// runs, and at least once while it does. The first error ends it.
func drive(ctx context.Context, steps []step, opBytes int, length time.Duration) (Values, error) {
	runtime.GC() // what lies about from before is not the load's
	d := driver{start: make(chan struct{}), hists: make([]Histogram, len(steps)), errs: make([]error, len(steps))}
	stop := context.AfterFunc(ctx, func() { d.stop.Store(true) })
	defer stop()
	var ready, ended sync.WaitGroup
	ready.Add(len(steps))
	for i, s := range steps {
		ended.Go(func() { d.work(i, s, length, &ready) })
	}
	ready.Wait()
	before := usageNow()
	d.begun = time.Now()
	close(d.start)
	ended.Wait()
	elapsed := time.Since(d.begun)
	used := usageNow().since(before)

	for _, err := range d.errs {
		if err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, cfs.E("measure", cfs.Canceled, context.Cause(ctx))
	}
	all := &d.hists[0]
	for i := range d.hists[1:] {
		all.Merge(&d.hists[i+1])
	}
	return loadValues(all, opBytes, elapsed, used), nil
}

// driver is one call of drive.
type driver struct {
	start chan struct{}
	begun time.Time
	stop  atomic.Bool
	hists []Histogram
	errs  []error
}

func (d *driver) work(i int, s step, length time.Duration, ready *sync.WaitGroup) {
	_, err := s()
	ready.Done()
	<-d.start
	h := &d.hists[i]
	// What one operation's end is, the next one's begin is: one look at the clock for each.
	last := time.Since(d.begun)
	for more := true; err == nil && more && !d.stop.Load(); {
		var n int
		if n, err = s(); err != nil {
			break
		}
		now := time.Since(d.begun)
		h.Record(now-last, n)
		last, more = now, now < length
	}
	if err != nil {
		d.errs[i] = err
		d.stop.Store(true)
	}
}

// loadValues are the numbers of a load that ended.
func loadValues(h *Histogram, opBytes int, elapsed time.Duration, used usage) Values {
	n := float64(h.Count())
	if n == 0 {
		return Values{}
	}
	return Values{
		IOPS:           n / elapsed.Seconds(),
		BytesPerSecond: n * float64(opBytes) / elapsed.Seconds(),
		P50:            micros(h.Quantile(0.5)),
		P99:            micros(h.Quantile(0.99)),
		P999:           micros(h.Quantile(0.999)),
		CPUPerOp:       micros(used.cpu) / n,
		AllocsPerOp:    round2(float64(used.allocs) / n),
	}
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// usage is what the process has used since it started.
type usage struct {
	cpu    time.Duration // user and system
	allocs uint64        // objects of the Go heap
}

// usageNow stops the world for a moment: it is called before and after a load, not in it.
func usageNow() usage {
	var u usage
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	u.allocs = mem.Mallocs
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		u.cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	return u
}

func (u usage) since(before usage) usage {
	return usage{cpu: u.cpu - before.cpu, allocs: u.allocs - before.allocs}
}
