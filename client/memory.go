package client

import (
	"context"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// memory bounds the bytes of written data that are held until they are committed.
type memory struct {
	limit    int64
	pressure chan struct{} // a writer waits: seal what is open
	mu       sync.Mutex
	used     int64
	freed    chan struct{} // closed and replaced when memory comes back
	pools    [len(slabSizes)]sync.Pool
}

// slabSizes are the sizes that a chunk's buffer grows through, in bytes: most
// files fit the first, a full stripe of 4+2 the last.
var slabSizes = [...]int{16 << 10, 128 << 10, 1 << 20, 4 * cfs.MaxShardSize}

// pressAgain is how often a writer that waits for memory asks for open chunks to
// be sealed: others may have opened some since.
const pressAgain = 100 * time.Millisecond

// slabPad is room after a slab's data for the zeros that fill its last blocks:
// each of at most K shards is rounded up to a block.
const slabPad = 5 * cfs.BlockSize

// slab is the buffer of a chunk.
type slab struct {
	class int
	b     []byte // slabSizes[class] + slabPad
}

func (s *slab) size() int { return slabSizes[s.class] }

func newMemory(limit int64) *memory {
	return &memory{limit: limit, pressure: make(chan struct{}, 1), freed: make(chan struct{})}
}

// get waits for memory for a slab of at least n bytes.
func (m *memory) get(ctx context.Context, n int) (*slab, error) {
	class := 0
	for class < len(slabSizes)-1 && slabSizes[class] < n {
		class++
	}
	want := int64(slabSizes[class])
	for {
		m.mu.Lock()
		freed := m.freed
		if m.used+want <= m.limit {
			m.used += want
			m.mu.Unlock()
			if s, ok := m.pools[class].Get().(*slab); ok {
				return s, nil
			}
			return &slab{class, make([]byte, slabSizes[class]+slabPad)}, nil
		}
		m.mu.Unlock()
		select {
		case m.pressure <- struct{}{}:
		default:
		}
		select {
		case <-freed:
		case <-time.After(pressAgain):
		case <-ctx.Done():
			return nil, ctxError("write", ctx)
		}
	}
}

func (m *memory) put(s *slab) {
	if s == nil {
		return
	}
	m.pools[s.class].Put(s)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= int64(s.size())
	close(m.freed)
	m.freed = make(chan struct{})
}
