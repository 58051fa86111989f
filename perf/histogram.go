package perf

import (
	"math/bits"
	"time"
)

const (
	// subBits gives each power of two 64 buckets, so a bucket is at most 1/64 as wide as its values.
	subBits = 6
	sub     = 1 << subBits
	// maxExponent bounds a latency to 2^40 ns, 18 minutes; what is longer counts as that.
	maxExponent = 40
	buckets     = (maxExponent - subBits + 1) * sub
)

// Histogram counts latencies in buckets of fixed number: exact below 64 ns, then
// 64 to each power of two. It allocates nothing after it is made, and is one
// goroutine's: give each its own and merge them.
type Histogram struct {
	counts [buckets]uint64
	n      uint64
}

// bucketOf is the bucket of a value in nanoseconds.
func bucketOf(v uint64) int {
	if v < sub {
		return int(v)
	}
	e := bits.Len64(v) - 1 // 2^e <= v
	if e >= maxExponent {
		return buckets - 1
	}
	shift := e - subBits
	return (shift+1)<<subBits + int(v>>shift) - sub
}

// upperBound is the largest value of a bucket.
func upperBound(b int) uint64 {
	if b < sub {
		return uint64(b)
	}
	shift := b>>subBits - 1
	return uint64(b&(sub-1)+sub+1)<<shift - 1
}

// Record counts one latency n times.
func (h *Histogram) Record(d time.Duration, n int) {
	h.counts[bucketOf(uint64(max(d, 0)))] += uint64(n)
	h.n += uint64(n)
}

// Merge adds what o has counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
}

// Count is how many latencies were recorded.
func (h *Histogram) Count() uint64 { return h.n }

// Quantile is the latency that a share q of the recorded ones (0 to 1) does not
// exceed: the exact order statistic or up to 1/64 above it, never below. 0 when
// nothing was recorded.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.n))
	if float64(rank) < q*float64(h.n) {
		rank++
	}
	rank = max(rank, 1)
	var seen uint64
	for b, c := range h.counts {
		if seen += c; seen >= rank {
			return time.Duration(upperBound(b))
		}
	}
	return 0
}
