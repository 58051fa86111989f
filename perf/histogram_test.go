package perf

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsCoverEveryValueInOrder(t *testing.T) {
	last := -1
	for _, v := range []uint64{0, 1, 63, 64, 65, 127, 128, 130, 191, 1000, 4095, 4096, 1e6, 1e9, 1<<40 - 1} {
		b := bucketOf(v)
		if b <= last {
			t.Errorf("%d is in bucket %d, a smaller value in %d", v, b, last)
		}
		last = b
		if top := upperBound(b); top < v || float64(top-v) > float64(v)/sub {
			t.Errorf("%d is in bucket %d, which ends at %d", v, b, top)
		}
	}
	for b := range buckets {
		top := upperBound(b)
		if bucketOf(top) != b || b+1 < buckets && bucketOf(top+1) != b+1 {
			t.Fatalf("bucket %d ends at %d, which is in %d; the next value is in %d", b, top, bucketOf(top), bucketOf(top+1))
		}
	}
	if got := bucketOf(math.MaxUint64); got != buckets-1 {
		t.Errorf("the largest value is in bucket %d of %d", got, buckets)
	}
}

// exactly is the order statistic that Quantile stands for.
func exactly(sorted []time.Duration, q float64) time.Duration {
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

func TestQuantilesAgainstSortedSamples(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var whole Histogram
		parts := make([]Histogram, 1+rng.IntN(4))
		var samples []time.Duration
		for range 1 + rng.IntN(5000) {
			// Any magnitude, as often.
			d := time.Duration(math.Exp(rng.Float64() * math.Log(1e11)))
			samples = append(samples, d)
			parts[rng.IntN(len(parts))].Record(d, 1)
		}
		for i := range parts {
			whole.Merge(&parts[i])
		}
		if whole.Count() != uint64(len(samples)) {
			t.Fatalf("seed %d: %d of %d samples", seed, whole.Count(), len(samples))
		}
		slices.Sort(samples)
		for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
			got, want := whole.Quantile(q), exactly(samples, q)
			if got < want || got-want > want/sub+1 {
				t.Errorf("seed %d: quantile %g is %d, want %d to %d", seed, q, got, want, want+want/sub+1)
			}
		}
	}
}

func TestQuantileOfNothingAndOfBatches(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %s", got)
	}
	h.Record(10, 99)
	h.Record(50, 1)
	h.Record(-5, 1) // a clock that went backwards
	if h.Count() != 101 || h.Quantile(0.5) != 10 || h.Quantile(1) != 50 || h.Quantile(0) != 0 {
		t.Errorf("%d samples, median %d, largest %d, least %d", h.Count(), h.Quantile(0.5), h.Quantile(1), h.Quantile(0))
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	var h Histogram
	if n := testing.AllocsPerRun(100, func() { h.Record(12345, 1); h.Quantile(0.99) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
