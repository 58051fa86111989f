package iopath

import (
	"os"
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
)

// maxShards bounds the rings of Shards.
const maxShards = 64

// Shards is an engine over several like rings. A call goes to the ring of the
// core that it is made on, so that cores do not meet on one ring's lock. It pays
// where the lock is contended: a device fast enough for several cores.
type Shards struct {
	rings []*Ring
	next  atomic.Uint32 // the ring of the next core to come
	cores sync.Pool     // of *Ring; keeps one for each of Go's processors

	mu sync.Mutex // serialises the registration of files, so that they get the same slot in every ring
}

var (
	_ Engine    = (*Shards)(nil)
	_ Commander = (*Shards)(nil)
)

// NewShards makes n rings, 1 to 64, each as NewRing would with cfg.
func NewShards(n int, cfg RingConfig) (*Shards, error) {
	if n < 1 || n > maxShards {
		return nil, cfs.Errorf("make io_urings", cfs.Invalid, "%d of them, want 1 to %d", n, maxShards)
	}
	s := &Shards{}
	s.cores.New = func() any { return s.rings[int(s.next.Add(1))%len(s.rings)] }
	for range n {
		r, err := NewRing(cfg)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.rings = append(s.rings, r)
	}
	return s, nil
}

// ring is this core's. A sync.Pool keeps what is put into it with the processor
// that put it there, which is as near to the core's number as Go lets us come.
func (s *Shards) ring() *Ring {
	r := s.cores.Get().(*Ring)
	s.cores.Put(r)
	return r
}

// RegisterFile registers f with every ring; see Engine.
func (s *Shards) RegisterFile(f *os.File) (File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var file File
	for i, r := range s.rings {
		one, err := r.RegisterFile(f)
		if err == nil && i > 0 && one != file {
			err = cfs.Errorf("register "+f.Name(), cfs.IO, "the rings differ in their slots: %d and %d", file.slot, one.slot)
			_ = r.UnregisterFile(one)
		}
		if err != nil {
			for _, done := range s.rings[:i] {
				_ = done.UnregisterFile(file)
			}
			return File{}, err
		}
		file = one
	}
	return file, nil
}

// UnregisterFile frees f's slots; see Engine.
func (s *Shards) UnregisterFile(f File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first(func(r *Ring) error { return r.UnregisterFile(f) })
}

// Read reads through this core's ring; see Engine.
func (s *Shards) Read(f File, p []byte, off int64) (int, error) { return s.ring().Read(f, p, off) }

// ReadMany reads a batch through this core's ring; see Engine.
func (s *Shards) ReadMany(f File, ops []ReadOp) error { return s.ring().ReadMany(f, ops) }

// WriteMany writes a batch through this core's ring; see Engine.
func (s *Shards) WriteMany(f File, ops []WriteOp) error { return s.ring().WriteMany(f, ops) }

// Fdatasync flushes f, whichever rings wrote; see Engine.
func (s *Shards) Fdatasync(f File) error { return s.ring().Fdatasync(f) }

// Commands sends a batch through this core's ring; see Commander.
func (s *Shards) Commands(f File, set CommandSet, cmds []Command) error {
	return s.ring().Commands(f, set, cmds)
}

// Cancel ends what is running on f; see Ring.Cancel.
func (s *Shards) Cancel(f File) {
	for _, r := range s.rings {
		r.Cancel(f)
	}
}

// Close closes every ring; see Engine.
func (s *Shards) Close() error { return s.first((*Ring).Close) }

// first does something to every ring and returns the first error.
func (s *Shards) first(do func(*Ring) error) error {
	var first error
	for _, r := range s.rings {
		if err := do(r); first == nil {
			first = err
		}
	}
	return first
}
