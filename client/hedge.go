package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// A read that waits for a slow shard longer than nearly all reads take computes it from
// others meanwhile, and takes what comes first.
const (
	// hedgeMin is the least time that a shard is given: hedges cost K times its bytes.
	// A fetch of a block takes as long in a cluster that is at rest, and a timer is good to
	// a third of it.
	hedgeMin = 300 * time.Microsecond
	// hedgeStart is what a shard is given before it is known how long others take.
	hedgeStart = 50 * time.Millisecond
	// hedgeSamples is how many of the last fetches the time is taken from, hedgeEvery after
	// how many it is taken anew.
	hedgeSamples, hedgeEvery = 512, 64
	// hedgeSmall is the largest range, in bytes, that counts as small: the time of larger
	// ones is that of their bytes.
	hedgeSmall = 64 << 10
	// hedgeAtOnce is how often in a row a device must have lost for its hedges to begin
	// with its fetches. It is asked all the same, and by winning once is as good as any.
	hedgeAtOnce = 3
	// maxHedges bounds the hedges in flight; above it reads wait for slow shards.
	maxHedges = 32
)

// hedging is what hedges have in common.
type hedging struct {
	small, large latencies
	running      chan struct{}
	pool         sync.Pool // *hedge
}

func newHedging() *hedging {
	h := &hedging{running: make(chan struct{}, maxHedges)}
	h.small.delayNS.Store(int64(hedgeStart))
	h.large.delayNS.Store(int64(hedgeStart))
	return h
}

// class is the times of fetches of n bytes.
func (h *hedging) class(n uint32) *latencies {
	if n <= hedgeSmall {
		return &h.small
	}
	return &h.large
}

// latencies are how long the last fetches of a class took that were not overtaken. One that
// won after its hedge had begun counts too: so the time adapts to a cluster that is slow as a whole.
type latencies struct {
	delayNS atomic.Int64 // the 99th percentile, at least hedgeMin

	mu     sync.Mutex
	n      uint64
	ring   [hedgeSamples]int64 // ns
	sorted [hedgeSamples]int64
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring[l.n%hedgeSamples] = int64(d)
	l.n++
	if l.n%hedgeEvery != 0 {
		return
	}
	all := l.sorted[:copy(l.sorted[:], l.ring[:min(l.n, hedgeSamples)])]
	slices.Sort(all)
	l.delayNS.Store(max(all[(len(all)*99-1)/100], int64(hedgeMin)))
}

// hedge watches one fetch. It is used again for others.
type hedge struct {
	timer *time.Timer // calls run
	begun bool        // run needed no timer
	done  chan struct{}
	over  atomic.Bool // the fetch has ended well: nobody needs the hedge

	c     *Client
	ctx   context.Context
	j     *shardRead
	abort context.CancelFunc // of the fetch

	mu  sync.Mutex // guards j.stripe while the fetch and the hedge go on
	buf []byte     // what the hedge computed, if err is nil
	err error
}

var errNotHedged = errors.New("not hedged")

// watch has a hedge begin unless j's fetch, which abort ends, has ended in time; at once
// if after is 0.
func (c *Client) watch(ctx context.Context, j *shardRead, abort context.CancelFunc, after time.Duration) *hedge {
	h, ok := c.hedging.pool.Get().(*hedge)
	if !ok {
		h = &hedge{done: make(chan struct{}, 1)}
	}
	h.c, h.ctx, h.j, h.abort, h.err = c, ctx, j, abort, errNotHedged
	h.over.Store(false)
	switch h.begun = after <= 0; {
	case h.begun:
		go h.run()
	case h.timer == nil:
		h.timer = time.AfterFunc(after, h.run)
	default:
		h.timer.Reset(after)
	}
	return h
}

func (h *hedge) run() {
	h.err = h.attempt()
	if h.err == nil {
		h.abort()
	}
	h.done <- struct{}{}
}

func (h *hedge) attempt() error {
	j := h.j
	if !h.join() {
		return errOver
	}
	j.stripe.late(&j.part)
	select {
	case h.c.hedging.running <- struct{}{}:
	default:
		return errNotHedged
	}
	defer func() { <-h.c.hedging.running }()
	h.c.stats.hedges.Add(1)
	h.buf = h.c.scratch.get(int(j.r.Len))
	return h.c.tryReconstruct(j, h.buf, source{over: &h.over})
}

// join makes a read that is alone one that others can help; false when it is over.
func (h *hedge) join() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over.Load() {
		return false
	}
	if h.j.stripe == nil {
		newStripeRead(h.ctx, h.c, nil).adopt(h.j)
	}
	return true
}

// end ends the watch over a fetch that came out as err, because the hedge aborted it or
// by itself, and reports how it is then: a hedge that has computed the bytes makes up for it. The fetch has returned, so
// that nobody writes to its memory any more; neither does the hedge after this.
func (h *hedge) end(err error, aborted bool) error {
	if h.begun || !h.timer.Stop() {
		if err == nil {
			h.callOff()
		} else if !aborted {
			h.lose(err)
		}
		<-h.done
		if err != nil && h.err == nil {
			copy(h.j.part.b, h.buf)
			if aborted {
				h.c.stats.hedgeWins.Add(1)
			} else {
				h.c.stats.shardsReconstructed.Add(1)
			}
			err = nil
		}
		if h.buf != nil {
			h.c.scratch.put(h.buf)
		}
	}
	c := h.c
	h.c, h.ctx, h.j, h.abort, h.buf = nil, nil, nil, nil, nil
	c.hedging.pool.Put(h)
	return err
}

// lose has nobody wait for the part any more: the fetch is over, and what comes of the
// hedge, which may itself wait for others, is its own affair.
func (h *hedge) lose(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.j.settle(partLost, err)
}

// callOff tells the hedge that nobody needs it.
func (h *hedge) callOff() {
	h.mu.Lock()
	h.over.Store(true)
	s := h.j.stripe
	h.mu.Unlock()
	if s != nil {
		s.wake()
	}
}

// fetchHedged reads j's blocks from where they are or, where that takes long, from the
// other shards. A device that is not likely to answer is not asked.
func (c *Client) fetchHedged(ctx context.Context, j *shardRead, certain bool) error {
	slot := j.g.Slots[j.r.Shard]
	device := holder(slot)
	if c.reach(c.layout.get(), device) > reachSlow {
		return cfs.Errorf("get shard", cfs.Unavailable, "device %v is not up", device)
	}
	attempt, cancel := attemptGet(ctx)
	defer cancel()
	times := c.hedging.class(j.r.Len)
	start := time.Now()
	after := time.Duration(times.delayNS.Load())
	if c.slow.losses(device) >= hedgeAtOnce {
		after = 0
	}
	h := c.watch(ctx, j, cancel, after)
	err := c.fetchFrom(attempt, device, j.x.Stripe, &j.part, certain && !slot.Filling)
	if err == nil {
		times.add(time.Since(start))
		c.slow.won(device)
		return h.end(nil, false)
	}
	aborted := errors.Is(attempt.Err(), context.Canceled) && ctx.Err() == nil
	err = h.end(err, aborted)
	if err == nil && aborted {
		c.slow.lost(device)
	}
	return err
}

// laggards are devices that have just lost against hedges. The zero value is ready.
type laggards struct {
	mu sync.Mutex
	by map[cfs.DeviceID]lag
	n  atomic.Int32
}

type lag struct {
	losses int // in a row
	until  time.Time
}

func (l *laggards) lost(d cfs.DeviceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = map[cfs.DeviceID]lag{}
	}
	l.by[d] = lag{l.by[d].losses + 1, time.Now().Add(suspectFor)}
	l.n.Store(int32(len(l.by)))
}

func (l *laggards) won(d cfs.DeviceID) {
	if l.n.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.by, d)
	l.n.Store(int32(len(l.by)))
}

// losses is how often in a row a device has lost, the last time not long ago.
func (l *laggards) losses(d cfs.DeviceID) int {
	if l.n.Load() == 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.by[d]
	if x.losses > 0 && time.Now().After(x.until) {
		delete(l.by, d)
		l.n.Store(int32(len(l.by)))
		return 0
	}
	return x.losses
}
