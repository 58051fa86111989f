package fuse

import (
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxHandles bounds the open files, and separately the open directories, of a mount.
	maxHandles = 1 << 20
	// handleShards keeps unrelated files off each other's lock. A power of two.
	handleShards = 64
)

// handles maps the numbers that the kernel holds to what is open. Numbers are
// given out in order and never used twice.
type handles[T any] struct {
	last  atomic.Uint64
	count atomic.Int64
	shard [handleShards]struct {
		sync.RWMutex
		open map[uint64]T
	}
}

// add gives v a number; cfs.Overloaded when there are too many.
func (h *handles[T]) add(v T) (uint64, error) {
	if h.count.Add(1) > maxHandles {
		h.count.Add(-1)
		return 0, cfs.Errorf("open", cfs.Overloaded, "%d handles are open", maxHandles)
	}
	fh := h.last.Add(1)
	s := &h.shard[fh%handleShards]
	s.Lock()
	if s.open == nil {
		s.open = make(map[uint64]T)
	}
	s.open[fh] = v
	s.Unlock()
	return fh, nil
}

// get finds what has number fh.
func (h *handles[T]) get(fh uint64) (T, bool) {
	s := &h.shard[fh%handleShards]
	s.RLock()
	v, ok := s.open[fh]
	s.RUnlock()
	return v, ok
}

// remove forgets number fh and returns what had it.
func (h *handles[T]) remove(fh uint64) (T, bool) {
	s := &h.shard[fh%handleShards]
	s.Lock()
	v, ok := s.open[fh]
	delete(s.open, fh)
	s.Unlock()
	if ok {
		h.count.Add(-1)
	}
	return v, ok
}

// each calls fn with all that is open.
func (h *handles[T]) each(fn func(T)) {
	for i := range h.shard {
		s := &h.shard[i]
		s.RLock()
		for _, v := range s.open {
			fn(v)
		}
		s.RUnlock()
	}
}

// drain forgets all and returns them.
func (h *handles[T]) drain() []T {
	var all []T
	for i := range h.shard {
		s := &h.shard[i]
		s.Lock()
		for _, v := range s.open {
			all = append(all, v)
		}
		s.open = nil
		s.Unlock()
	}
	h.count.Add(-int64(len(all)))
	return all
}
