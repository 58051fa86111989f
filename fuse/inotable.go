package fuse

import (
	"sync"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxInoTable bounds the inodes that each table remembers something of.
	maxInoTable    = 1 << 16
	inoTableShards = 16
)

// inoTable remembers a number for each of the inodes that were put last, more or
// less: a full table forgets any one. What is forgotten costs a question.
type inoTable struct {
	shard [inoTableShards]struct {
		sync.Mutex
		value map[cfs.Ino]uint64
	}
}

// swap remembers v for ino and returns what was remembered before.
func (t *inoTable) swap(ino cfs.Ino, v uint64) (old uint64, known bool) {
	s := &t.shard[uint64(ino)%inoTableShards]
	s.Lock()
	defer s.Unlock()
	if s.value == nil {
		s.value = make(map[cfs.Ino]uint64)
	}
	old, known = s.value[ino]
	if !known && len(s.value) >= maxInoTable/inoTableShards {
		for victim := range s.value {
			delete(s.value, victim)
			break
		}
	}
	s.value[ino] = v
	return old, known
}

// get is what is remembered of ino.
func (t *inoTable) get(ino cfs.Ino) (v uint64, known bool) {
	s := &t.shard[uint64(ino)%inoTableShards]
	s.Lock()
	defer s.Unlock()
	v, known = s.value[ino]
	return v, known
}

// forget drops what is remembered of ino.
func (t *inoTable) forget(ino cfs.Ino) {
	s := &t.shard[uint64(ino)%inoTableShards]
	s.Lock()
	defer s.Unlock()
	delete(s.value, ino)
}
