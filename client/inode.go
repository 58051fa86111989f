package client

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// maxOpenChunks bounds the chunks of an inode that take writes; one more seals all.
const maxOpenChunks = 64

// inode is what all handles of an inode share.
type inode struct {
	c      *Client
	ino    cfs.Ino
	refs   int // guarded by the table
	orphan atomic.Bool
	// registered: the leader was told that it is open, in this or, with the heartbeats, in any later epoch.
	registered atomic.Bool

	// order is held shared while bytes are added, alone while an operation needs
	// everything before it to be committed and nothing to come between.
	order sync.RWMutex
	// appending puts the writes at the end of the file in sequence: each is where
	// the one before it ends. It is taken after order.
	appending sync.Mutex

	mu         sync.Mutex
	attr       cfs.Attr // the newest known of the cluster
	chunks     []*chunk // not yet committed, oldest first: a later one covers an earlier
	seq        uint64   // of the newest chunk
	mtimeNS    int64    // of the last write
	fullEnd    uint64   // of the last chunk that was filled: a sequential writer goes on there
	err        error    // of the last put or commit that failed
	failures   uint64   // how many have
	told       bool     // some handle has told of err
	committing bool
	waiting    int           // flushes and surrenders that wait for the committer
	gone       bool          // it has no name, and a command of ours took it
	dropped    bool          // what was written to it has been dropped: it is gone, and nobody has it open
	wroteNS    int64         // the last write, whatever the times have been set to since
	moved      chan struct{} // closed and replaced when chunks or folded changes leave, or the ownership does
	extents    extentCache
	naming     naming
	owning
}

// extentCache is a run of an inode's extents: all that meet [lo, hi).
type extentCache struct {
	version uint64 // rises when the rows may have changed
	valid   bool
	era     uint64 // under whose leases they are what the cluster has; 0: none
	lo, hi  uint64
	rows    []cfs.Extent // never changed in place
}

// find is the shared state of an inode that is open or owned here, or nil.
func (c *Client) find(i cfs.Ino) *inode { return c.inodes.find(i) }

// observe takes note of attributes; later ones than those known void the extents.
func (n *inode) observe(a cfs.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.observeLocked(a)
}

func (n *inode) observeLocked(a cfs.Attr) {
	if a.Gen == n.attr.Gen {
		n.attr.AtimeNS = max(n.attr.AtimeNS, a.AtimeNS) // which reading alone leaves the generation
	}
	if a.Gen <= n.attr.Gen || n.naming.queued > 0 {
		return
	}
	n.attr = a
	n.dropExtentsLocked()
}

func (n *inode) dropExtents() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropExtentsLocked()
}

func (n *inode) dropExtentsLocked() {
	n.extents = extentCache{version: n.extents.version + 1}
}

// overlay is attributes with what is written here and not committed.
func (n *inode) overlay(a cfs.Attr) cfs.Attr {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.observeLocked(a)
	return n.overlayLocked()
}

func (n *inode) overlayLocked() cfs.Attr {
	a := n.attr
	n.naming.apply(&a)
	n.sent.apply(&a)
	n.pend.apply(&a)
	a.Size = n.sizeLocked()
	if len(n.chunks) > 0 {
		a.MtimeNS, a.CtimeNS = n.mtimeNS, max(a.CtimeNS, n.wroteNS)
		a.Blocks = max(a.Blocks, 1)
	}
	return a
}

func (n *inode) size() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sizeLocked()
}

func (n *inode) sizeLocked() uint64 {
	size := max(n.attr.Size, n.sent.size(), n.pend.size())
	for _, k := range n.chunks {
		size = max(size, k.end())
	}
	return size
}

// dirty reports that something written here is not committed.
func (n *inode) dirty() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dirtyLocked()
}

func (n *inode) dirtyLocked() bool {
	return len(n.chunks) > 0 || n.pend.mask|n.sent.mask != 0 || n.committing
}

// kept reports that the inode must stay known: it is owned, or something of it is not committed.
func (n *inode) kept() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own != ownNone || n.naming.queued > 0 || n.dirtyLocked()
}

// failedSince is the failure of a put or commit that a handle, which has told of
// those up to *seen, has not told of yet. As with Linux's errseq_t every handle
// tells once; no handle's telling keeps another from it.
func (n *inode) failedSince(seen *uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if *seen == n.failures {
		return nil
	}
	*seen = n.failures
	n.told = true
	return n.err
}

// toldUpTo is what a new handle need not tell of: nothing, while nobody has told
// of the last failure.
func (n *inode) toldUpTo() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.told {
		return 0
	}
	return n.failures
}

// untold is the last failure, if no handle has told of it.
func (n *inode) untold() error {
	seen := n.toldUpTo()
	return n.failedSince(&seen)
}

// write adds bytes at off, or at the end. It returns once they are in memory.
func (n *inode) write(ctx context.Context, p []byte, off uint64, atEnd bool) (int, error) {
	n.order.RLock()
	defer n.order.RUnlock()
	if atEnd {
		n.appending.Lock()
		defer n.appending.Unlock()
		off = n.size()
	}
	if off > cfs.MaxFileSize || uint64(len(p)) > cfs.MaxFileSize-off {
		return 0, cfs.E("write", cfs.TooLarge, nil)
	}
	limit := n.c.layout.get().stripeBytes()
	done := 0
	var spare *slab
	defer func() { n.c.memory.put(spare) }()
	for done < len(p) {
		took, want := n.fill(p[done:], off+uint64(done), limit, &spare)
		done += took
		if took > 0 {
			continue
		}
		n.c.memory.put(spare)
		var err error
		if spare, err = n.c.memory.get(ctx, want); err != nil {
			return done, err
		}
	}
	return done, nil
}

// fill puts the start of p into the chunk that takes it. It returns 0 and the
// size of the slab that it needs where spare is not enough for it.
func (n *inode) fill(p []byte, off uint64, limit int, spare **slab) (took, want int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.chunkFor(off, off+uint64(len(p)), limit)
	if k == nil {
		want = min(len(p), limit)
		if off == n.fullEnd && off > 0 {
			want = limit // a sequential writer goes on
		}
		if *spare == nil || (*spare).size() < want {
			return 0, want
		}
		if open := n.openChunks(); open >= maxOpenChunks {
			n.sealLocked(func(*chunk) bool { return true })
		}
		n.seq++
		k = &chunk{off: off, slab: *spare, born: time.Now(), seq: n.seq}
		*spare = nil
		n.chunks = append(n.chunks, k)
	}
	took = min(len(p), limit-int(off-k.off))
	if k.room(off) < took {
		if want = int(off-k.off) + took; *spare == nil || (*spare).size() < want {
			return 0, want
		}
		copy((*spare).b, k.data())
		k.slab, *spare = *spare, k.slab
	}
	k.fill(p[:took], off)
	n.mtimeNS = time.Now().UnixNano()
	k.mtimeNS, n.wroteNS = n.mtimeNS, n.mtimeNS
	n.pend.mask &^= cfs.SetMtime // this is later
	if k.n >= limit {
		n.fullEnd = k.end()
		// Older ones too: commits go in order.
		n.sealLocked(func(o *chunk) bool { return o.seq <= k.seq })
	}
	return took, 0
}

// chunkFor finds the open chunk that a write of [off, end) can go into: none that
// is newer may overlap the range.
func (n *inode) chunkFor(off, end uint64, limit int) *chunk {
	for i := len(n.chunks) - 1; i >= 0; i-- {
		k := n.chunks[i]
		if k.takes(off, limit) {
			return k
		}
		if k.overlaps(off, end) {
			return nil
		}
	}
	return nil
}

func (n *inode) openChunks() int {
	open := 0
	for _, k := range n.chunks {
		if k.state == chunkOpen {
			open++
		}
	}
	return open
}

// sealLocked ends the open chunks that which picks and sends them on their way.
func (n *inode) sealLocked(which func(*chunk) bool) {
	for _, k := range n.chunks {
		if k.state == chunkOpen && which(k) {
			k.state = chunkSealed
			n.c.wg.Add(1)
			go n.put(k)
		}
	}
}

func (n *inode) sealAll() { n.sealOlder(time.Now().Add(time.Hour)) }

func (n *inode) sealOlder(t time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sealLocked(func(k *chunk) bool { return k.born.Before(t) })
}

// flush waits until all that has been written so far is committed or has failed.
// Which it was the handles tell (failedSince); an error is ctx's.
func (n *inode) flush(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sealLocked(func(*chunk) bool { return true })
	n.dueLocked()
	upTo, folds := n.seq, n.folds
	return n.waitLocked(ctx, func() bool {
		return (len(n.chunks) == 0 || n.chunks[0].seq > upTo) && n.foldsDone >= folds
	})
}

// waitLocked waits for the committer until done.
func (n *inode) waitLocked(ctx context.Context, done func() bool) error {
	n.waiting++
	defer func() { n.waiting-- }()
	for !done() {
		moved := n.moved
		n.mu.Unlock()
		var err error
		select {
		case <-moved:
		case <-ctx.Done():
			err = ctxError("flush", ctx)
		}
		if n.mu.Lock(); err != nil {
			return err
		}
	}
	return nil
}

// settled carries out fn when all that was written is committed and before
// anything else is written.
func (n *inode) settled(ctx context.Context, fn func() error) error {
	n.order.Lock()
	defer n.order.Unlock()
	if err := n.flush(ctx); err != nil {
		return err
	}
	return fn()
}

// leaveLocked removes chunks that are done with; a failure is kept for the handles
// to tell.
func (n *inode) leaveLocked(gone func(*chunk) bool, err error) {
	kept := n.chunks[:0]
	for _, k := range n.chunks {
		if !gone(k) {
			kept = append(kept, k)
			continue
		}
		if k.state == chunkSealed || k.state == chunkCommitting {
			k.state = chunkDropped // its putter or committer has the slab
			continue
		}
		n.free(k)
	}
	clear(n.chunks[len(kept):])
	n.chunks = kept
	if err != nil {
		n.failLocked(err)
	}
	n.movedLocked()
}

// failLocked keeps a failure for the handles to tell. What happens to an inode that has gone is nobody's
// failure, but while handles are open it has not: they are all that it has.
func (n *inode) failLocked(err error) {
	if n.dropped {
		return
	}
	if n.err == nil || n.told {
		n.err = err
	}
	n.failures++
	n.told = false
}

func (n *inode) movedLocked() {
	close(n.moved)
	n.moved = make(chan struct{})
}

// free ends a chunk that nobody uses any more.
func (n *inode) free(k *chunk) {
	k.settle()
	n.c.memory.put(k.slab)
	k.slab = nil
}

// abandon gives up all that is not committed, and what the session, which has ended, owned.
func (n *inode) abandon(old *session, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	lost := n.pend.mask|n.sent.mask != 0
	if n.own != ownNone && n.ownSess == old {
		n.disownLocked()
	}
	n.pend = folded{} // what is sent has its own answer
	if n.sent.mask == 0 {
		n.foldsDone = n.folds
	}
	n.dropExtentsLocked()
	if len(n.chunks) > 0 {
		n.leaveLocked(func(*chunk) bool { return true }, err)
	} else if lost {
		n.failLocked(err)
		n.movedLocked()
	}
}

// extentsFor returns rows that meet [off, end) in order, and up to where they are
// complete: beyond it, ask again.
func (n *inode) extentsFor(ctx context.Context, off, end uint64) (rows []cfs.Extent, upTo uint64, err error) {
	st := n.c.leases.state.Load()
	doubtful := n.c.cache.inDoubt(n.ino)
	n.mu.Lock()
	x := n.extents
	until := st.until
	if n.own == ownHeld {
		until = st.alive
	}
	x.valid = x.valid && !doubtful && (n.own == ownHeld || x.era == st.era && x.era != 0)
	n.mu.Unlock()
	if !x.valid || off < x.lo || off >= x.hi || n.c.leases.boot() >= until {
		// Of an inode that is known to be open the leader need not be told again, which would wait for a command that takes
		// its name. That may wait for pages of the kernel, and those for this.
		if x, err = n.loadExtents(ctx, off, !n.registered.Load()); err != nil {
			return nil, 0, err
		}
	}
	return x.rows, min(end, x.hi), nil
}

// loadExtents asks the leader for the extents from off on, and with open tells it that the inode is open.
func (n *inode) loadExtents(ctx context.Context, off uint64, open bool) (extentCache, error) {
	n.mu.Lock()
	version := n.extents.version
	n.mu.Unlock()
	a, g, err := n.c.askExtents(ctx, n.ino, off, open)
	if err != nil {
		return extentCache{}, err
	}
	if open {
		n.registered.Store(true)
	}
	return n.install(a, g, off, version), nil
}

// askExtents asks the leader for the attributes of an inode and its extents from off on; open says that it is open here.
func (c *Client) askExtents(ctx context.Context, i cfs.Ino, off uint64, open bool) (*cfs.Answer, grant, error) {
	a, g, err := c.askLeased(ctx, &cfs.Query{Kind: cfs.QueryExtents, Ino: i, Off: off, End: math.MaxUint64, Open: open})
	if errors.Is(err, cfs.Stale) {
		c.cache.forgetAttr(i)
	}
	if err != nil {
		return nil, g, err
	}
	if a.More && (len(a.Extents) == 0 || a.Extents[len(a.Extents)-1].End() <= off) {
		return nil, g, cfs.Errorf("extents", cfs.BadRequest, "an answer that goes on without getting beyond %d", off)
	}
	return a, g, nil
}

// install makes an answer's extents the cached ones, if nothing has voided them
// since version.
func (n *inode) install(a *cfs.Answer, g grant, off, version uint64) extentCache {
	x := extentCache{valid: true, era: g.era, lo: off, hi: math.MaxUint64, rows: a.Extents}
	if a.More {
		x.hi = a.Extents[len(a.Extents)-1].End()
	}
	for i := range a.Extents {
		if a.Extents[i].Kind == cfs.ExtentInline {
			n.c.stats.inlineBytesFetched.Add(a.Extents[i].Len)
		}
	}
	n.c.cache.putAttr(&a.Attr, g)
	n.mu.Lock()
	defer n.mu.Unlock()
	current := n.extents.version == version
	n.observeLocked(a.Attr)
	if current {
		x.version = n.extents.version
		n.extents = x
	}
	return x
}
