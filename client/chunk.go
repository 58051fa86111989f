package client

import (
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// chunkState is how far a chunk has come.
type chunkState uint8

const (
	chunkOpen       chunkState = iota // takes writes
	chunkSealed                       // is being put
	chunkPut                          // its bytes are durable (or inline): to be committed
	chunkCommitting                   // is in the commit on its way
	chunkDropped                      // given up: its putter or committer frees it
)

// chunk is a run of written bytes on its way to the cluster. Only an open chunk
// changes; inode.mu guards its fields until it is sealed, then its putter has them
// until it is put, then the committer.
type chunk struct {
	off     uint64
	n       int // bytes
	slab    *slab
	state   chunkState
	born    time.Time
	mtimeNS int64
	seq     uint64 // of the inode's chunks

	sess    *session
	extents []cfs.Extent  // where the bytes are, once put
	epochs  []cfs.PGEpoch // under which they were put
}

func (k *chunk) end() uint64 { return k.off + uint64(k.n) }

func (k *chunk) data() []byte { return k.slab.b[:k.n] }

func (k *chunk) overlaps(off, end uint64) bool { return k.off < end && off < k.end() }

// takes reports that a write at off can go into the chunk, whose bytes stay one
// run of at most limit bytes.
func (k *chunk) takes(off uint64, limit int) bool {
	return k.state == chunkOpen && off >= k.off && off <= k.end() && off-k.off < uint64(limit)
}

// room is how many bytes of the slab lie at and after off.
func (k *chunk) room(off uint64) int { return k.slab.size() - int(off-k.off) }

// fill copies p to the chunk at off.
func (k *chunk) fill(p []byte, off uint64) {
	at := int(off - k.off)
	copy(k.slab.b[at:], p)
	k.n = max(k.n, at+len(p))
}

// settle says that the chunk's stripes are committed or abandoned.
func (k *chunk) settle() {
	for i := range k.extents {
		if k.extents[i].Kind == cfs.ExtentStripe {
			k.sess.stripes.settle(k.extents[i].Stripe.Counter)
		}
	}
	k.extents, k.epochs = nil, nil
}
