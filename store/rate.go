package store

import (
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// rates bounds the bytes that this node moves for each job.
type rates struct {
	mu  sync.Mutex
	job map[cfs.DeviceID]*bucket // as many as there are devices
}

// of is the bucket of a device's job.
func (r *rates) of(job cfs.DeviceID) *bucket {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.job[job]
	if b == nil {
		if r.job == nil {
			r.job = map[cfs.DeviceID]*bucket{}
		}
		b = &bucket{}
		r.job[job] = b
	}
	return b
}

// bucket bounds a rate: who takes runs into debt, and others wait until it is paid off.
// The debt is in bytes, so that a rate which is raised counts at once.
type bucket struct {
	mu   sync.Mutex
	debt float64 // bytes
	at   time.Time
}

// take takes n bytes at now, if what was taken before is paid off at the rate; a rate of 0 is no bound.
func (b *bucket) take(now time.Time, n, rateBytes uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if rateBytes == 0 {
		b.debt, b.at = 0, now
		return true
	}
	if b.debt > 0 {
		b.debt = max(0, b.debt-now.Sub(b.at).Seconds()*float64(rateBytes))
	}
	b.at = now
	if b.debt > 0 {
		return false
	}
	b.debt = float64(n)
	return true
}
