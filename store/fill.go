package store

import (
	"context"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

const (
	// mapPoll is how often the map is looked at for slots to fill, and by a fill for whether it may go on.
	mapPoll = 100 * time.Millisecond
	// ratePoll is how often a fill that its rate holds up looks whether it may go on.
	ratePoll = 10 * time.Millisecond
	// stripePage bounds the stripes of one answer of the namespace.
	stripePage = 1024
	// maxFillFailures is how many stripes of a fill may fail before it is put off.
	maxFillFailures = 64
	// fillRetry is how long a fill that failed is put off at first; it doubles up to maxFillRetry.
	fillRetry    = time.Second
	maxFillRetry = 30 * time.Second
)

// fillState is how far the filling of a slot is.
type fillState struct {
	epoch     cfs.Epoch // of the group
	doneBytes uint64    // of shards that are there: the most that any walk has found
	walkBytes uint64    // by the walk under way
	delay     time.Duration
	notBefore time.Time // failed: not again before
	done      bool      // the cluster has been told
}

// fillDevice fills the filling slots of a device until ctx ends: those of one job one after the
// other, so that a slow or paused job holds up no other.
func (s *Store) fillDevice(ctx context.Context, d *device) {
	for s.catchUp(ctx) != nil { // what an old map wants filled may long be full
		select {
		case <-time.After(fillRetry):
		case <-ctx.Done():
			return
		}
	}
	tick := time.NewTicker(mapPoll)
	defer tick.Stop()
	var group sync.WaitGroup
	defer group.Wait()
	var last *layout
	var held map[cfs.PGID]bool
	busy := map[cfs.DeviceID]bool{}
	ended := make(chan cfs.DeviceID)
	for {
		lay := s.layout()
		if lay != last {
			d.keepFills(lay)
			held = d.letGo(held, lay)
			if last != nil && lay.cameBack(last, d.id) {
				ask(d.walkNow)
			}
			last = lay
		}
		for job, refs := range lay.toFill(d.id) {
			if busy[job] {
				continue
			}
			busy[job] = true
			group.Go(func() {
				for _, ref := range refs {
					s.fillSlot(ctx, d, ref)
				}
				select {
				case ended <- job:
				case <-ctx.Done():
				}
			})
		}
		for waiting := true; waiting; {
			select {
			case job := <-ended:
				delete(busy, job)
			case <-tick.C:
				waiting = false
			case <-ctx.Done():
				return
			}
		}
	}
}

// letGo has a device looked through when there are groups that it has nothing to do with any more, and
// returns those that it has to do with.
func (d *device) letGo(before map[cfs.PGID]bool, lay *layout) map[cfs.PGID]bool {
	now := lay.holding(d.id)
	for pg := range before {
		if !now[pg] {
			ask(d.reconcileNow)
			break
		}
	}
	return now
}

// cameBack reports that a device has a slot again that another was to fill in its stead.
func (l *layout) cameBack(before *layout, id cfs.DeviceID) bool {
	for _, ref := range l.owned[id] {
		if was := before.groups[ref.pg]; was != nil && !owns(was, ref.slot, id) && !l.groups[ref.pg].Slots[ref.slot].Filling {
			return true
		}
	}
	return false
}

// holding is the groups that a device has, or has had and is still a source for.
func (l *layout) holding(id cfs.DeviceID) map[cfs.PGID]bool {
	held := map[cfs.PGID]bool{}
	for i := range l.m.Groups {
		for _, slot := range l.m.Groups[i].Slots {
			if slot.Device == id || slot.Source == id {
				held[l.m.Groups[i].ID] = true
			}
		}
	}
	return held
}

// keepFills forgets how far slots are that are not to be filled any more.
func (d *device) keepFills(lay *layout) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ref := range d.fills {
		if pg := lay.groups[ref.pg]; pg == nil || !owns(pg, ref.slot, d.id) || !pg.Slots[ref.slot].Filling {
			delete(d.fills, ref)
		}
	}
}

// beginFill begins another walk; false when the fill is put off, or done already.
func (d *device) beginFill(ref slotRef, epoch cfs.Epoch) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.fills[ref]
	if st == nil {
		st = &fillState{}
		d.fills[ref] = st
	}
	if st.epoch != epoch {
		st.epoch, st.delay, st.notBefore, st.done = epoch, 0, time.Time{}, false
	}
	st.walkBytes = 0
	return !st.done && !time.Now().Before(st.notBefore)
}

// filled counts a shard that is there.
func (d *device) filled(ref slotRef, bytes uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if st := d.fills[ref]; st != nil {
		st.walkBytes += uint64(bytes)
		st.doneBytes = max(st.doneBytes, st.walkBytes)
	}
}

// endFill puts a fill off that has failed, and one that is done for good.
func (d *device) endFill(ref slotRef, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.fills[ref]
	switch {
	case st == nil:
	case err == nil:
		st.done = true
	default:
		st.delay = min(max(2*st.delay, fillRetry), maxFillRetry)
		st.notBefore = time.Now().Add(st.delay)
	}
}

// fill is the filling of one slot, under one epoch of its group.
type fill struct {
	s   *Store
	d   *device
	ref slotRef
	lay *layout
	pg  *cfs.PG

	group sync.WaitGroup
	mu    sync.Mutex
	fails int
	last  error
}

// fillSlot fills a slot, if it is to be filled now. Whatever changes meanwhile, the
// next round begins anew, and passes over what is there.
func (s *Store) fillSlot(ctx context.Context, d *device, ref slotRef) {
	lay := s.layout()
	if _, _, ok := lay.filling(ref, d.id); !ok || ctx.Err() != nil {
		return
	}
	f := &fill{s: s, d: d, ref: ref, lay: lay, pg: lay.groups[ref.pg]}
	if !d.beginFill(ref, f.pg.Epoch) {
		return
	}
	d.barrier()
	began := time.Now()
	logger := s.cfg.Logger.With("device", d.id.String(), "group", uint32(ref.pg), "slot", ref.slot)
	whole, err := f.walk(ctx)
	f.group.Wait()
	if err == nil && f.fails > 0 {
		err = cfs.E("fill", cfs.KindOf(f.last), f.last)
	}
	switch {
	case ctx.Err() != nil || err == nil && !whole:
		return
	case err == nil:
		err = s.cfg.FillDone(ctx, ref.pg, d.id, f.pg.Epoch)
	}
	if cfs.KindOf(err) == cfs.Conflict {
		return // the group has changed
	}
	d.endFill(ref, err)
	if err != nil {
		logger.Warn("a slot could not be filled: put off", "shards", f.fails, "err", err)
		return
	}
	ask(d.reconcileNow)
	logger.Info("slot filled", "took", time.Since(began))
}

// walk goes through the group's stripes and has those made that are not there. whole is false when
// the fill shall not go on as it began.
func (f *fill) walk(ctx context.Context) (whole bool, err error) {
	var after cfs.StripeID
	for {
		ans, err := f.s.query(ctx, &cfs.Query{Kind: cfs.QueryStripes, PG: f.ref.pg, Stripe: after, Limit: stripePage})
		if err != nil {
			return false, err
		}
		for i := range ans.Stripes {
			st := &ans.Stripes[i]
			after = st.Stripe
			w := &wanted{lay: f.lay, pg: f.pg, key: nvme.Key{Stripe: st.Stripe, Shard: uint8(f.ref.slot)}, size: f.pg.Geometry.ShardSize(st.Len)}
			if f.d.holds(w) {
				f.d.filled(f.ref, w.size)
				continue
			}
			if ok, err := f.next(ctx, w.size); !ok || err != nil {
				return false, err
			}
			f.group.Go(func() {
				defer f.s.release(f.d)
				f.note(ctx, f.shard(ctx, w))
			})
		}
		if !ans.More || len(ans.Stripes) == 0 {
			return true, nil
		}
	}
}

// holds reports that a device has the shard, as far as its index says.
func (d *device) holds(w *wanted) bool {
	rec, ok := d.log.Has(w.key)
	return ok && rec.PG == w.pg.ID && rec.Len == w.size
}

// next waits until another shard may be made, and has its turn then. It is false when the fill shall
// not go on: the group has changed, the job is paused, or too much has failed.
func (f *fill) next(ctx context.Context, size uint32) (bool, error) {
	for {
		lay := f.s.layout()
		rate, job, ok := lay.filling(f.ref, f.d.id)
		if !ok || lay.groups[f.ref.pg].Epoch != f.pg.Epoch {
			return false, nil
		}
		f.mu.Lock()
		fails, last := f.fails, f.last
		f.mu.Unlock()
		if k := cfs.KindOf(last); fails >= maxFillFailures || fails > 0 && (k == cfs.NoSpace || k == cfs.Closed) {
			return false, cfs.E("fill", k, last)
		}
		if f.s.rates.of(job).take(time.Now(), uint64(size), rate) {
			break
		}
		select {
		case <-time.After(ratePoll):
		case <-ctx.Done():
			return false, contextError("fill", ctx)
		}
	}
	return true, f.s.acquire(ctx, f.d)
}

func (f *fill) note(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails++
	f.last = err
}

// shard makes one shard and puts it.
func (f *fill) shard(ctx context.Context, w *wanted) error {
	buf, err := f.s.cfg.Arena.Get(ctx, int(w.size))
	if err != nil {
		return err
	}
	defer buf.Release()
	crcs, err := f.s.restore(ctx, w, buf)
	if err != nil {
		return err
	}
	rec := nvme.Record{Key: w.key, PG: w.pg.ID, Epoch: w.pg.Epoch, Len: w.size}
	err = f.d.log.Put(ctx, rec, crcs, buf)
	if cfs.KindOf(err) == cfs.Exists && !f.d.holds(w) {
		// Something else is there under its key: of another group, or of another length.
		err = f.d.log.Replace(ctx, rec, crcs, buf)
	}
	switch cfs.KindOf(err) {
	case cfs.Exists: // it has come by another way, under another epoch
	case cfs.KindOK:
		f.s.cfg.Metrics.mended.filledBytes.Add(float64(w.size))
	case cfs.NoSpace:
		f.s.noteFull(f.d.id)
		return err
	default:
		return err
	}
	f.d.filled(f.ref, w.size)
	return nil
}
