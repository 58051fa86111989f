package perf

import (
	"math/rand/v2"
	"sync/atomic"
)

// offsets gives the workers of a job their places.
type offsets struct {
	job  *Job
	next atomic.Int64 // block, for jobs in order; shared by the workers
}

// worker is the source of offsets of one worker.
func (o *offsets) worker(i int) func() int64 {
	blocks, size, start := o.job.blocks(), int64(o.job.BlockBytes), o.job.OffsetBytes
	if o.job.random() {
		rng := rand.New(rand.NewPCG(o.job.Seed, uint64(i)))
		return func() int64 { return start + rng.Int64N(blocks)*size }
	}
	return func() int64 { return start + (o.next.Add(1)-1)%blocks*size }
}

// fill makes bytes that no device can store in less room.
func fill(p []byte, seed uint64) {
	rng := rand.NewPCG(seed, 0)
	for len(p) >= 8 {
		v := rng.Uint64()
		for i := range 8 {
			p[i] = byte(v >> (8 * i))
		}
		p = p[8:]
	}
}
