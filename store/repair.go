package store

import (
	"context"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxRepairs bounds the shards of a device that wait to be looked at, and those being looked at.
	maxRepairs = 1024
	// maxUnrepaired bounds the shards of a device that are kept to be tried again. Others are found again.
	maxUnrepaired = 1024
	// repairPoll is how often who waits for room in a queue of repairs, or for its end, looks.
	repairPoll = 20 * time.Millisecond
)

// repair is a shard to look at, and to make anew if it is damaged or missing.
type repair struct {
	key nvme.Key
	pg  cfs.PGID // 0 when it is not known
	// counted says that it was found not whole before, and could not be repaired.
	counted bool
}

// repairQueue is the shards of a device that wait to be looked at, each once.
type repairQueue struct {
	mu      sync.Mutex
	waiting []repair
	in      map[nvme.Key]bool   // waiting, or being looked at
	failed  map[nvme.Key]repair // could not be repaired when last tried
	more    chan struct{}       // there may be something waiting
}

func (q *repairQueue) init() {
	q.in, q.failed, q.more = map[nvme.Key]bool{}, map[nvme.Key]repair{}, make(chan struct{}, 1)
}

// push queues a shard, unless it is there; false when there is no room.
func (q *repairQueue) push(r repair) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.in[r.key] {
		return true
	}
	if len(q.in) >= maxRepairs {
		return false
	}
	q.in[r.key] = true
	r.counted = q.failed[r.key].counted
	q.waiting = append(q.waiting, r)
	ask(q.more)
	return true
}

// wait queues a shard when there is room.
func (q *repairQueue) wait(ctx context.Context, r repair) error {
	return until(ctx, func() bool { return q.push(r) })
}

// until waits for something to be so.
func until(ctx context.Context, so func() bool) error {
	for !so() {
		select {
		case <-time.After(repairPoll):
		case <-ctx.Done():
			return contextError("wait for repairs", ctx)
		}
	}
	return nil
}

func (q *repairQueue) pop() (repair, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		return repair{}, false
	}
	r := q.waiting[0]
	q.waiting = q.waiting[1:]
	return r, true
}

// end takes a shard out of the queue; one whose repair failed is kept to be tried again.
func (q *repairQueue) end(r repair, failed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.in, r.key)
	if !failed {
		delete(q.failed, r.key)
	} else if len(q.failed) < maxUnrepaired {
		q.failed[r.key] = r
	}
}

func (q *repairQueue) unrepaired() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.failed)
}

// again queues what could not be repaired before, as far as there is room.
func (q *repairQueue) again() {
	q.mu.Lock()
	failed := make([]repair, 0, len(q.failed))
	for _, r := range q.failed {
		failed = append(failed, r)
	}
	q.mu.Unlock()
	for _, r := range failed {
		if !q.push(r) {
			return
		}
	}
}

func (q *repairQueue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.in) == 0
}

// reported queues a shard that a reader found damaged. The reader is not told what comes of it.
func (s *Store) reported(r *wire.Request) error {
	var req wirepb.ReportShard
	if err := r.Decode(&req); err != nil {
		return err
	}
	key, err := keyFromPB(req.Key)
	if err != nil {
		return err
	}
	if _, err := s.device("report shard ", req.Device, key); err != nil {
		return err
	}
	if !s.suspect(cfs.DeviceID(req.Device), key) {
		return cfs.Errorf("report shard "+key.String(), cfs.Overloaded, "%d others wait to be looked at", maxRepairs)
	}
	return nil
}

// suspect queues a shard to be looked at; false when there is no room.
func (s *Store) suspect(id cfs.DeviceID, key nvme.Key) bool {
	d := s.find(id)
	if d == nil {
		return true
	}
	r := repair{key: key}
	if rec, ok := d.log.Has(key); ok {
		r.pg = rec.PG
	}
	return d.repairs.push(r)
}

// repairDevice looks at what is queued for a device until ctx ends.
func (s *Store) repairDevice(ctx context.Context, d *device) {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		r, ok := d.repairs.pop()
		if !ok {
			select {
			case <-d.repairs.more:
				continue
			case <-ctx.Done():
				return
			}
		}
		if s.acquire(ctx, d) != nil {
			return
		}
		group.Go(func() {
			defer s.release(d)
			err := s.repairShard(ctx, d, &r)
			d.repairs.end(r, err != nil)
			if err != nil && ctx.Err() == nil {
				s.cfg.Metrics.mended.failed.Inc()
				s.cfg.Logger.Error("a shard could not be repaired", "device", d.id.String(), "key", r.key.String(), "err", err)
			}
		})
	}
}

// repairShard looks at a shard and makes it anew if it should be there and is not whole. An error means that
// it is not whole still, or that nobody knows.
func (s *Store) repairShard(ctx context.Context, d *device, r *repair) error {
	buf, err := s.cfg.Arena.Get(ctx, cfs.MaxShardSize)
	if err != nil {
		return err
	}
	defer buf.Release()
	rec, bad := d.log.Verify(ctx, r.key, buf)
	switch cfs.KindOf(bad) {
	case cfs.KindOK:
		r.pg = rec.PG
	case cfs.NotFound, cfs.Corrupt, cfs.IO:
	default:
		return bad // the log is closed, or nobody waits
	}
	w, err := s.wanted(ctx, d, r)
	if err != nil || w == nil || bad == nil && rec.Len == w.size {
		return err // it is not known, not needed, or whole
	}
	if !r.counted {
		r.counted = true
		what, count := &d.damaged, s.cfg.Metrics.mended.damaged
		if cfs.KindOf(bad) == cfs.NotFound {
			what, count = &d.missing, s.cfg.Metrics.mended.missing
		}
		what.Add(1)
		count.Inc()
	}
	crcs, err := s.restore(ctx, w, buf)
	if err != nil {
		return err
	}
	err = d.log.Replace(ctx, nvme.Record{Key: r.key, PG: w.pg.ID, Epoch: w.pg.Epoch, Len: w.size}, crcs, buf)
	if err != nil {
		if cfs.KindOf(err) == cfs.NoSpace {
			s.noteFull(d.id)
		}
		return err
	}
	d.repaired.Add(1)
	s.cfg.Metrics.mended.repaired.Inc()
	s.cfg.Logger.Info("shard repaired", "device", d.id.String(), "key", r.key.String(), "was", bad)
	return nil
}

// wanted describes a shard that a device should have; nil when it should not: no stripe is there that has
// it, or it belongs elsewhere.
func (s *Store) wanted(ctx context.Context, d *device, r *repair) (*wanted, error) {
	if r.pg == 0 {
		var err error
		if r.pg, err = s.groupOf(ctx, d, r.key); r.pg == 0 || err != nil {
			return nil, err
		}
	}
	ans, err := s.query(ctx, &cfs.Query{Kind: cfs.QueryStripes, PG: r.pg, Stripe: r.key.Stripe.Prev(), Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(ans.Stripes) == 0 || ans.Stripes[0].Stripe != r.key.Stripe {
		return nil, nil
	}
	lay := s.layout()
	pg := lay.groups[r.pg]
	if pg == nil || !owns(pg, int(r.key.Shard), d.id) {
		return nil, nil
	}
	return &wanted{lay: lay, pg: pg, key: r.key, size: pg.Geometry.ShardSize(ans.Stripes[0].Len)}, nil
}

// groupOf finds the group of a stripe whose shard a device should have, 0 for none.
func (s *Store) groupOf(ctx context.Context, d *device, key nvme.Key) (cfs.PGID, error) {
	var refs []cfs.StripeRef
	for _, ref := range s.layout().owned[d.id] {
		if ref.slot == int(key.Shard) {
			refs = append(refs, cfs.StripeRef{PG: ref.pg, Stripe: key.Stripe})
		}
	}
	for len(refs) > 0 {
		page := refs[:min(len(refs), cfs.MaxFates)]
		refs = refs[len(page):]
		fates, err := s.fates(ctx, page)
		if err != nil {
			return 0, err
		}
		for i, fate := range fates {
			if fate == cfs.FateLive {
				return page[i].PG, nil
			}
		}
	}
	return 0, nil
}
