package store

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

const (
	// walkPause is the time between two pages of a walk that nobody waits for.
	walkPause = 100 * time.Millisecond
	// firstWalk is when missing shards are first looked for: not with the start, when all is asked for. A device
	// that has lost some of its log is walked at once.
	firstWalk = 10 * time.Second
	// walkSpacing is the least time from the end of one walk to a next one that no scrub and no administrator began.
	walkSpacing = 10 * time.Minute
	// walkRetry is how long a walk that failed is put off.
	walkRetry = time.Minute
)

// Mend makes the shards of all devices what they should be, until ctx ends: it fills the slots that are to be
// filled, repairs what is damaged or missing, and deletes what is of no use any more.
func (s *Store) Mend(ctx context.Context) {
	if s.cfg.Ask == nil {
		return
	}
	s.each(ctx, func(ctx context.Context, d *device) {
		var group sync.WaitGroup
		for _, f := range []func(context.Context, *device){s.fillDevice, s.repairDevice, s.reconcileDevice, s.walkDevice} {
			group.Go(func() { f(ctx, d) })
		}
		group.Wait()
	})
}

// Reclaim deletes what is of no use on a device and returns when that is done: all shards that were there have
// been compared with the stripe table. NotFound for a device not served here.
func (s *Store) Reclaim(ctx context.Context, id cfs.DeviceID) error {
	d := s.find(id)
	if d == nil {
		return s.noDevice("reconcile", id)
	}
	ctx, cancel := d.lifetime(ctx)
	defer cancel()
	return s.reconcile(ctx, d)
}

// Settle makes a device, all devices for 0, what it should be and returns when that is done: everything has been
// compared with the stripe table, shards that are of no use are deleted, and it was tried to make those that are
// missing, or known to be damaged. Mend must be running. An error means that some of it was not done; a device that is
// served no more needs nothing.
func (s *Store) Settle(ctx context.Context, id cfs.DeviceID) error {
	if s.cfg.Ask == nil {
		return cfs.Errorf("reconcile", cfs.Unsupported, "there is no namespace to compare with")
	}
	devices := s.selected(id)
	if len(devices) == 0 {
		return s.noDevice("reconcile", id)
	}
	errs := make([]error, len(devices))
	var group sync.WaitGroup
	for i, d := range devices {
		group.Go(func() {
			ctx, cancel := d.lifetime(ctx)
			defer cancel()
			d.repairs.again()
			if err := cmp.Or(s.reconcile(ctx, d), s.walk(ctx, d, 0), until(ctx, d.repairs.idle)); !d.isGone() {
				errs[i] = err
			}
		})
	}
	group.Wait()
	return cmp.Or(errs...)
}

// walkDevice looks for shards that are missing soon after the start, and when something says that there may be some,
// until ctx ends.
func (s *Store) walkDevice(ctx context.Context, d *device) {
	wait := firstWalk
	if d.log.Stats().BadSegments > 0 {
		wait = 0
	}
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = walkSpacing
		d.repairs.again()
		if err := s.walk(ctx, d, walkPause); err != nil {
			if ctx.Err() != nil {
				return
			}
			s.cfg.Logger.Warn("missing shards were not looked for: put off", "device", d.id.String(), "err", err)
			wait = walkRetry
			ask(d.walkNow)
		}
		select { // what asks meanwhile waits for its time
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = 0
		select {
		case <-d.walkNow:
		case <-ctx.Done():
			return
		}
	}
}

// walk goes through the stripes of all groups that have a device and has those shards repaired that are missing.
// Slots that are being filled are left out.
func (s *Store) walk(ctx context.Context, d *device, pause time.Duration) error {
	if err := s.catchUp(ctx); err != nil {
		return err
	}
	for _, ref := range s.layout().owned[d.id] {
		var after cfs.StripeID
		for more := true; more; {
			ans, err := s.query(ctx, &cfs.Query{Kind: cfs.QueryStripes, PG: ref.pg, Stripe: after, Limit: stripePage})
			if err != nil {
				return err
			}
			pg := s.layout().groups[ref.pg]
			if pg == nil || !owns(pg, ref.slot, d.id) || pg.Slots[ref.slot].Filling {
				break
			}
			for i := range ans.Stripes {
				st := &ans.Stripes[i]
				after = st.Stripe
				w := wanted{pg: pg, key: nvme.Key{Stripe: st.Stripe, Shard: uint8(ref.slot)}, size: pg.Geometry.ShardSize(st.Len)}
				if d.holds(&w) {
					continue
				}
				if err := d.repairs.wait(ctx, repair{key: w.key, pg: ref.pg}); err != nil {
					return err
				}
			}
			more = ans.More && len(ans.Stripes) > 0
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return contextError("look for missing shards", ctx)
			}
		}
	}
	return nil
}
