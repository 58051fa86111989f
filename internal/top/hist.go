package top

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets is how many a Hist has: bucket i counts what took less than 1<<i microseconds and
// not less than half of that; the last one takes the rest.
const Buckets = 32

// Hist counts durations by powers of two. Its zero value is ready for any number of goroutines.
type Hist struct {
	count, totalNS atomic.Uint64
	buckets        [Buckets]atomic.Uint64
}

// Figures are what a Hist has counted.
type Figures struct {
	Count   uint64
	TotalNS uint64
	Buckets []uint64 // without those at the end that are 0
}

// Observe counts one; a negative duration counts as none.
func (h *Hist) Observe(d time.Duration) {
	d = max(d, 0)
	h.count.Add(1)
	h.totalNS.Add(uint64(d))
	h.buckets[min(bits.Len64(uint64(d/time.Microsecond)), Buckets-1)].Add(1)
}

// Read is what was counted so far. What is counted meanwhile may be in some of it.
func (h *Hist) Read() Figures {
	f := Figures{Count: h.count.Load(), TotalNS: h.totalNS.Load()}
	for i := range h.buckets {
		f.Buckets = append(f.Buckets, h.buckets[i].Load())
	}
	f.trim()
	return f
}

func (f *Figures) trim() {
	for len(f.Buckets) > 0 && f.Buckets[len(f.Buckets)-1] == 0 {
		f.Buckets = f.Buckets[:len(f.Buckets)-1]
	}
}

// Since is what was counted after earlier figures of the same. Those of another time, of before
// a restart, are as none.
func (f Figures) Since(old Figures) Figures {
	if old.Count > f.Count || old.TotalNS > f.TotalNS || len(old.Buckets) > len(f.Buckets) {
		return f
	}
	d := Figures{Count: f.Count - old.Count, TotalNS: f.TotalNS - old.TotalNS, Buckets: append([]uint64(nil), f.Buckets...)}
	for i, n := range old.Buckets {
		d.Buckets[i] -= min(n, d.Buckets[i])
	}
	d.trim()
	return d
}

// Plus is what both have counted.
func (f Figures) Plus(o Figures) Figures {
	f.Count, f.TotalNS = f.Count+o.Count, f.TotalNS+o.TotalNS
	if len(f.Buckets) < len(o.Buckets) {
		f, o = Figures{f.Count, f.TotalNS, o.Buckets}, f
	}
	f.Buckets = append([]uint64(nil), f.Buckets...)
	for i, n := range o.Buckets {
		f.Buckets[i] += n
	}
	return f
}

// Mean is the mean duration.
func (f Figures) Mean() time.Duration {
	if f.Count == 0 {
		return 0
	}
	return time.Duration(f.TotalNS / f.Count)
}

// Quantile is the upper end of the bucket that the share q of all durations ends in, 0 for none.
func (f Figures) Quantile(q float64) time.Duration {
	total := uint64(0)
	for _, n := range f.Buckets {
		total += n
	}
	want, seen := max(uint64(q*float64(total)+0.5), 1), uint64(0)
	for i, n := range f.Buckets {
		if seen += n; seen >= want {
			return time.Microsecond << i
		}
	}
	return 0
}
