package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
)

const (
	// maxWholes bounds the whole stripes in memory: 64 MiB of 4+2.
	maxWholes = 16
	// keepWhole is how long one is kept that nobody reads.
	keepWhole = 5 * time.Second
	// wholeShare is the part of a stripe that a read must want to be served so.
	wholeShare = 4
)

// wholes are stripes that cannot be read as they are, since a data shard is lost, in
// memory whole. A sequential reader, whose reads of a stripe come one by one or at the
// same time, else fetches most shards twice: for themselves and for the lost one. A
// stripe never changes, so neither does what is kept here. The zero value is ready.
type wholes struct {
	mu   sync.Mutex
	set  map[cfs.StripeID]*whole
	bufs bufPool
}

// whole is a stripe in memory, or on its way there.
type whole struct {
	ready chan struct{} // closed when b or err is there
	b     []byte        // the data shards end to end
	err   error

	// Guarded by wholes.mu:
	users   int // readers, and the one that loads it
	dropped bool
	used    time.Time
}

// take finds a stripe for a reader, who gives it back. fresh says that the caller must
// load it. nil when as many as there may be are in use.
func (w *wholes) take(id cfs.StripeID) (s *whole, fresh bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s = w.set[id]; s == nil {
		if len(w.set) >= maxWholes && !w.dropOldest() {
			return nil, false
		}
		if w.set == nil {
			w.set = map[cfs.StripeID]*whole{}
		}
		s, fresh = &whole{ready: make(chan struct{})}, true
		s.users++
		w.set[id] = s
	}
	s.users++
	if s.err == nil { // a failure is not kept for longer because somebody meets it
		s.used = time.Now()
	}
	return s, fresh
}

// dropOldest makes room; false when all are in use. The caller holds mu.
func (w *wholes) dropOldest() bool {
	var oldest cfs.StripeID
	var found *whole
	for id, s := range w.set {
		if s.users == 0 && (found == nil || s.used.Before(found.used)) {
			oldest, found = id, s
		}
	}
	if found != nil {
		w.drop(oldest, found)
	}
	return found != nil
}

// drop forgets a stripe; whoever uses it last frees it. The caller holds mu.
func (w *wholes) drop(id cfs.StripeID, s *whole) {
	delete(w.set, id)
	s.dropped = true
	w.free(s)
}

func (w *wholes) free(s *whole) {
	if s.dropped && s.users == 0 && s.b != nil {
		w.bufs.put(s.b)
		s.b = nil
	}
}

func (w *wholes) give(s *whole) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.users--
	w.free(s)
}

// forget drops what nobody has used since t.
func (w *wholes) forget(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, s := range w.set {
		if s.users == 0 && s.used.Before(t) {
			w.drop(id, s)
		}
	}
}

// loaded ends the loading of a stripe. A failure is kept for a while, in which its reads
// are done one by one at once; not that of a stripe that is gone or has moved, which the
// next read finds elsewhere.
func (w *wholes) loaded(id cfs.StripeID, s *whole, b []byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.b, s.err = b, err
	s.users--
	if errors.Is(err, errGone) {
		w.drop(id, s)
	}
	close(s.ready)
}

// readsWhole reports that reads of one stripe, part of a read of total bytes, are best
// served from the whole stripe: it is degraded, they want a good part of it and not all.
func (c *Client) readsWhole(jobs []shardRead, total int, final bool) bool {
	j := &jobs[0]
	if final || j.g == nil || j.x.StripeLen <= cfs.SmallStripe || total < int(j.x.StripeLen)/wholeShare {
		return false
	}
	want := 0
	for i := range jobs {
		want += len(jobs[i].p)
	}
	return want < int(j.x.StripeLen) && c.degraded(c.layout.get(), j.g)
}

// readWhole does reads of one stripe from the whole of it; false when they are to be
// done one by one.
func (c *Client) readWhole(ctx context.Context, jobs []shardRead) bool {
	j := &jobs[0]
	s, fresh := c.wholes.take(j.x.Stripe)
	if s == nil {
		return false
	}
	defer c.wholes.give(s)
	if fresh {
		x, g := *j.x, j.g
		// Not in the first reader's context: others wait too.
		c.wg.Go(func() { c.loadWhole(&x, g, s) })
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		j.err = ctxError("read", ctx)
		return true
	}
	if s.err != nil {
		j.err = s.err
		return errors.Is(s.err, errGone) // or the reads may do better by themselves
	}
	size := j.g.Geometry.ShardSize(j.x.StripeLen)
	for i := range jobs {
		r := &jobs[i].r
		copy(jobs[i].p, s.b[uint32(r.Shard)*size+r.DataOff:][:r.DataLen])
	}
	return true
}

// loadWhole reads x's stripe into memory, in one attempt: the shards that are wanted may
// be there though others are not.
func (c *Client) loadWhole(x *cfs.Extent, g *cfs.PG, s *whole) {
	b := c.wholes.bufs.get(ec.StripeBytes(g.Geometry, x.StripeLen))
	size := g.Geometry.ShardSize(x.StripeLen)
	var jobs []shardRead
	for _, r := range ec.Cover(g.Geometry, x.StripeLen, 0, x.StripeLen) {
		r.DataOff, r.DataLen = 0, r.Len // to the end of the last block, in place
		jobs = append(jobs, shardRead{x: x, pg: x.PG, g: g, r: r, p: b[uint32(r.Shard)*size:][:r.Len], once: true})
	}
	err := c.readShards(c.ctx, jobs, false)
	if err != nil {
		c.wholes.bufs.put(b)
		b = nil
	}
	if err == nil {
		c.stats.wholeStripes.Add(1)
	}
	c.wholes.loaded(x.Stripe, s, b, err)
}
