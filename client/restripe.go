package client

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// DefaultRestripeAge is how long a file must not have changed where RestripeConfig does not say.
	DefaultRestripeAge = 15 * time.Second
	// DefaultRestripeIdle is the rest after a pass that changed nothing where RestripeConfig does not say.
	DefaultRestripeIdle = 5 * time.Second
	// restripeWorkers bounds the windows in work at a time; each has a slab of a full stripe at most.
	restripeWorkers = 3
	// restripePage bounds the windows of one answer.
	restripePage = 64
	// restripeShare is which part of the time a pass may keep the leader busy while it changes
	// nothing: 1 in so many.
	restripeShare = 10
)

// RestripeConfig says how much Restripe may do.
type RestripeConfig struct {
	RateBytes int64         // bound of the bytes read and written in a second, parity too; 0: none
	MinAge    time.Duration // a file is left alone until it has not changed for so long; 0: DefaultRestripeAge
	Idle      time.Duration // rest after a pass that changed nothing; 0: DefaultRestripeIdle
	Logger    *slog.Logger  // nil: the client's
}

// Restripe writes anew, until ctx ends, what the cluster finds worth it: small
// extents become large ones, three copies become full stripes, and what was written
// while devices were missing, or lies on one that leaves, goes to whole groups. No
// byte and no time of a file changes. It is in nobody's way: who writes at the same
// time wins, and the range waits for a later pass. The error is nil unless the client
// is closed first.
func (c *Client) Restripe(ctx context.Context, cfg RestripeConfig) error {
	if cfg.MinAge == 0 {
		cfg.MinAge = DefaultRestripeAge
	}
	if cfg.Idle == 0 {
		cfg.Idle = DefaultRestripeIdle
	}
	if cfg.Logger == nil {
		cfg.Logger = c.log
	}
	r := &restriper{c: c, cfg: cfg, log: cfg.Logger, pace: pace{rateBytes: cfg.RateBytes}, told: map[cfs.Kind]bool{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	for {
		rewritten, err := r.pass(ctx)
		switch {
		case c.ctx.Err() != nil:
			return cfs.E("restripe", cfs.Closed, nil)
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.failed(err)
		}
		if rewritten == 0 || err != nil {
			sleep(ctx, cfg.Idle)
		}
	}
}

// restriper is a run of Restripe.
type restriper struct {
	c    *Client
	cfg  RestripeConfig
	log  *slog.Logger
	pace pace

	mu   sync.Mutex
	told map[cfs.Kind]bool // kinds of failures that the log has
}

// pass goes through the namespace once and returns how many windows it has
// rewritten. It ends early when the cluster does not answer or has no space.
func (r *restriper) pass(ctx context.Context) (rewritten int, err error) {
	q := &cfs.Query{Kind: cfs.QueryWindows, BeforeNS: time.Now().Add(-r.cfg.MinAge).UnixNano(), Limit: restripePage}
	for {
		start := time.Now()
		a, err := r.c.ask(ctx, q)
		if err != nil {
			return rewritten, err
		}
		n, err := r.work(ctx, a.Windows)
		rewritten += n
		if err != nil || !a.More {
			return rewritten, err
		}
		if a.Next.Ino < q.Ino || a.Next.Ino == q.Ino && a.Next.Off <= q.Off {
			return rewritten, cfs.Errorf("restripe", cfs.BadRequest, "an answer that goes on without getting beyond inode %d at %d", uint64(q.Ino), q.Off)
		}
		q.Ino, q.Off = a.Next.Ino, a.Next.Off
		if n == 0 {
			sleep(ctx, min((restripeShare-1)*time.Since(start), r.cfg.Idle))
		}
		if ctx.Err() != nil {
			return rewritten, ctxError("restripe", ctx)
		}
	}
}

// work rewrites windows, some at a time, and returns how many it has. The error is
// that the cluster has no space: the windows after it are left for later.
func (r *restriper) work(ctx context.Context, windows []cfs.Window) (rewritten int, err error) {
	workers := make(chan struct{}, restripeWorkers)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, w := range windows {
		workers <- struct{}{}
		mu.Lock()
		stop := err != nil
		mu.Unlock()
		if stop || ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-workers }()
			ok, failure := r.window(ctx, w)
			mu.Lock()
			defer mu.Unlock()
			if ok {
				rewritten++
			}
			if errors.Is(failure, cfs.NoSpace) {
				err = failure
			}
		})
	}
	wg.Wait()
	return rewritten, err
}

// window rewrites a window and counts what came of it.
func (r *restriper) window(ctx context.Context, w cfs.Window) (rewritten bool, err error) {
	bytes, err := r.c.restripeWindow(ctx, w, &r.pace)
	stats := &r.c.stats
	switch cfs.KindOf(err) {
	case cfs.KindOK:
		if bytes > 0 {
			stats.restripedWindows.Add(1)
			stats.restripedBytes.Add(bytes)
		}
		return bytes > 0, nil
	case cfs.Conflict, cfs.BelowFloor, cfs.StaleEpoch, cfs.NoSession, cfs.Stale:
		// Somebody has written there or deleted the file, a group has changed, or our session has ended.
		stats.restripeConflicts.Add(1)
		r.log.Debug("not restriped", "ino", uint64(w.Ino), "off", w.Off, "err", err)
		return false, nil
	case cfs.NoSpace: // the pass reports it
		return false, err
	}
	if ctx.Err() == nil {
		r.failed(err)
	}
	return false, err
}

// failed counts a failure; the log has the first of each kind.
func (r *restriper) failed(err error) {
	r.c.stats.restripeFailures.Add(1)
	kind := cfs.KindOf(err)
	r.mu.Lock()
	first := !r.told[kind]
	r.told[kind] = true
	r.mu.Unlock()
	if first {
		r.log.Warn("restriping fails; more of this kind are only counted", "kind", kind.Error(), "err", err)
		return
	}
	r.log.Debug("restriping fails", "err", err)
}

// pace bounds bytes in a second. The zero value bounds nothing.
type pace struct {
	rateBytes int64
	mu        sync.Mutex
	next      time.Time // when what is allowed already has had its time
}

// take waits until n more bytes may be moved.
func (p *pace) take(ctx context.Context, n int) error {
	if p.rateBytes > 0 {
		p.mu.Lock()
		now := time.Now()
		if p.next.Before(now) {
			p.next = now
		}
		wait := p.next.Sub(now)
		p.next = p.next.Add(time.Duration(float64(n) / float64(p.rateBytes) * float64(time.Second)))
		p.mu.Unlock()
		if wait > 0 {
			sleep(ctx, wait)
		}
	}
	if ctx.Err() != nil {
		return ctxError("restripe", ctx)
	}
	return nil
}
