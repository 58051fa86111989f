package store

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

const (
	// DefaultReclaimInterval is the least time between two comparisons with the stripe table when Config does not say.
	DefaultReclaimInterval = time.Minute
	// reclaimShare is which part of the time a device is compared by itself at most: 1 in so many.
	reclaimShare = 50
	// catchUpPatience is how long a node is waited for that has an older map than the namespace.
	catchUpPatience = 3 * time.Second
	// reconcileSpacing is the least time from the end of one pass to a next one that something asked for.
	reconcileSpacing = 10 * time.Second
	// nearlyFullSpacing is that while a device is nearly full.
	nearlyFullSpacing = time.Minute
	// reconcilePoll is how often it is looked whether a pass is due.
	reconcilePoll = time.Second
	// repairAgain is how often shards are tried again that could not be repaired.
	repairAgain = time.Minute
)

// reconcileDevice makes a pass over a device whenever one is due, until ctx ends.
func (s *Store) reconcileDevice(ctx context.Context, d *device) {
	tick := time.NewTicker(reconcilePoll)
	defer tick.Stop()
	last, tried := time.Now(), time.Now()
	asked, never := false, true
	took := time.Duration(0)
	for {
		select {
		case <-tick.C:
		case <-d.reconcileNow:
			asked = true
		case <-ctx.Done():
			return
		}
		if time.Since(tried) > repairAgain {
			tried = time.Now()
			d.repairs.again()
		}
		since := time.Since(last)
		due := since > s.reclaimAfter(took) || asked && (never || since > reconcileSpacing) ||
			since > nearlyFullSpacing && s.Full(d.id)
		if !due {
			continue
		}
		began := time.Now()
		err := s.reconcile(ctx, d)
		took = time.Since(began)
		last, never, asked = time.Now(), false, err != nil
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("the comparison with the stripe table is put off", "device", d.id.String(), "err", err)
		}
	}
}

// reclaimAfter is the time to the next pass after one that took so long.
func (s *Store) reclaimAfter(took time.Duration) time.Duration {
	return max(s.cfg.ReclaimInterval, reclaimShare*took)
}

// agreed is the version of the cluster's map, linearizably.
func (s *Store) agreed(ctx context.Context) (uint64, error) {
	ans, err := s.query(ctx, &cfs.Query{Kind: cfs.QueryMap})
	if err != nil {
		return 0, err
	}
	if ans.Map == nil {
		return 0, cfs.Errorf("ask for the map", cfs.BadRequest, "none is in the answer")
	}
	return ans.Map.Version, nil
}

// reaches waits a moment for this node's map to be of a version at least.
func (s *Store) reaches(ctx context.Context, version uint64) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpPatience)
	defer cancel()
	if until(ctx, func() bool { return s.cfg.Map().Version >= version }) != nil {
		return cfs.Errorf("catch up", cfs.Unavailable, "this node's map is of version %d, the cluster's of %d", s.cfg.Map().Version, version)
	}
	return nil
}

// catchUp returns when this node's map is as new as the cluster's was when asked.
func (s *Store) catchUp(ctx context.Context) error {
	version, err := s.agreed(ctx)
	if err != nil {
		return err
	}
	return s.reaches(ctx, version)
}

// reconcile goes through all shards of a device and deletes those that are of no use: of stripes that nothing
// can name any more, and of groups that have other devices by now. A shard of a stripe that may still be
// committed stays. What is dead is so for good; whether a device has a group is judged only by a map that is as new
// as the cluster's was before the first shard was listed: this node's own may be older than what the node once went by.
func (s *Store) reconcile(ctx context.Context, d *device) error {
	select {
	case d.reconciling <- struct{}{}:
		defer func() { <-d.reconciling }()
	case <-ctx.Done():
		return contextError("reconcile", ctx)
	}
	began, total, deleted := time.Now(), 0, 0
	version, err := s.agreed(ctx)
	if err != nil {
		return err
	}
	behind := s.reaches(ctx, version) // the dead go all the same
	var after *nvme.Key
	for {
		recs := d.log.List(after, cfs.MaxFates)
		if len(recs) == 0 {
			break
		}
		last := recs[len(recs)-1].Key
		after = &last
		refs := make([]cfs.StripeRef, len(recs))
		for i := range recs {
			refs[i] = cfs.StripeRef{PG: recs[i].PG, Stripe: recs[i].Key.Stripe}
		}
		fates, err := s.fates(ctx, refs)
		if err != nil {
			return err
		}
		total += len(recs)
		deleted += s.discard(d, recs, fates, version)
	}
	if behind == nil {
		d.reconciledNS.Store(time.Now().UnixNano())
	}
	if deleted > 0 {
		s.cfg.Logger.Info("reclaimed", "device", d.id.String(), "shards", deleted, "of", total, "took", time.Since(began))
	}
	return behind
}

// fates asks what becomes of stripes, at most MaxFates of them.
func (s *Store) fates(ctx context.Context, refs []cfs.StripeRef) ([]cfs.Fate, error) {
	ans, err := s.query(ctx, &cfs.Query{Kind: cfs.QueryFates, Stripes: refs})
	if err != nil {
		return nil, err
	}
	if len(ans.Fates) != len(refs) {
		return nil, cfs.Errorf("ask for fates", cfs.BadRequest, "%d of %d stripes", len(ans.Fates), len(refs))
	}
	return ans.Fates, nil
}

// discard deletes the records that are of no use, by a map of the version at least; an older one condemns nothing.
func (s *Store) discard(d *device, recs []nvme.Record, fates []cfs.Fate, version uint64) int {
	d.deleting.Lock()
	defer d.deleting.Unlock()
	lay := s.layout() // after the records were listed
	var keys []nvme.Key
	for i := range recs {
		if fates[i] == cfs.FateDead || fates[i] == cfs.FateLive && lay.m.Version >= version && lay.foreign(&recs[i], d.id) {
			keys = append(keys, recs[i].Key)
		}
	}
	if len(keys) == 0 {
		return 0
	}
	n := d.log.Delete(keys)
	d.reclaimed.Add(uint64(n))
	s.cfg.Metrics.mended.reclaimed.Add(float64(n))
	return n
}

// foreign reports that a device has no business with a record of a live stripe: its group is known at
// least as of the record's epoch, and has another device in the slot, with every shard. One that is being
// filled may still need what its predecessors have.
func (l *layout) foreign(rec *nvme.Record, id cfs.DeviceID) bool {
	pg := l.groups[rec.PG]
	if pg == nil || pg.Epoch < rec.Epoch {
		return false
	}
	shard := int(rec.Key.Shard)
	return shard >= len(pg.Slots) || pg.Slots[shard].Device != id && !pg.Slots[shard].Filling
}
