package store

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxMending bounds the stripes that are being mended at a time, of all devices: each holds
	// the shards that it reads and the one that it makes.
	maxMending = 8
	// maxDeviceMending bounds those of one device.
	maxDeviceMending = 4
	// maxSources bounds the shards that one is made from: the K of the widest geometry.
	maxSources = 4
	// MendArenaBytes is the most of the arena that Mend holds at a time. With this much in the arena beside
	// what requests use it waits for requests alone, which never wait for it.
	MendArenaBytes = maxMending * (maxSources + 1) * (cfs.MaxShardSize + iopath.Headroom)

	// fetchTimeout bounds the reading of one shard of another node.
	fetchTimeout = 5 * time.Second
	// reportTimeout bounds telling another node of a damaged shard.
	reportTimeout = time.Second
)

// acquire waits for the turn of a stripe of the device; release ends it.
func (s *Store) acquire(ctx context.Context, d *device) error {
	select {
	case d.stripes <- struct{}{}:
	case <-ctx.Done():
		return contextError("mend", ctx)
	}
	select {
	case s.stripes <- struct{}{}:
		return nil
	case <-ctx.Done():
		<-d.stripes
		return contextError("mend", ctx)
	}
}

func (s *Store) release(d *device) {
	<-s.stripes
	<-d.stripes
}

// contextError is the end of ctx as an Error.
func contextError(op string, ctx context.Context) error {
	kind := cfs.Canceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = cfs.Timeout
	}
	return cfs.E(op, kind, context.Cause(ctx))
}

// wanted is a shard that is to be made.
type wanted struct {
	lay  *layout
	pg   *cfs.PG
	key  nvme.Key
	size uint32 // bytes of each shard of the stripe
}

// restore makes a shard's bytes in buf, which has room for them, and returns their checksums: the bytes
// that the device which the shard's slot replaces has, or what any K other shards give. A shard whose
// checksums are wrong is taken from elsewhere. The caller has the stripe's turn.
func (s *Store) restore(ctx context.Context, w *wanted, buf *iopath.Buf) ([]byte, error) {
	slot := &w.pg.Slots[w.key.Shard]
	copyable := slot.Filling && slot.Source != 0
	if copyable && w.lay.reach(slot.Source) <= suspectReach {
		if crcs, err := s.fetch(ctx, w, slot.Source, w.key, buf); err == nil {
			return crcs, nil
		}
	}
	crcs, err := s.reconstruct(ctx, w, buf)
	if err != nil && copyable && w.lay.reach(slot.Source) > suspectReach && ctx.Err() == nil {
		if crcs, last := s.fetch(ctx, w, slot.Source, w.key, buf); last == nil {
			return crcs, nil
		}
	}
	return crcs, err
}

// reconstruct computes a shard from K others.
func (s *Store) reconstruct(ctx context.Context, w *wanted, buf *iopath.Buf) ([]byte, error) {
	codec, err := s.codecs.For(w.pg.Geometry)
	if err != nil {
		return nil, err
	}
	shards := make([][]byte, w.pg.Geometry.Total())
	bufs, err := s.gather(ctx, w, shards)
	defer func() {
		for _, b := range bufs {
			b.Release()
		}
	}()
	if err != nil {
		return nil, err
	}
	want := make([]bool, len(shards))
	want[w.key.Shard] = true
	shards[w.key.Shard] = buf.Bytes()[:0:w.size]
	if err := codec.Reconstruct(shards, want); err != nil {
		return nil, err
	}
	return ec.BlockCRCs(nil, w.key.Stripe, w.key.Shard, 0, shards[w.key.Shard]), nil
}

// gather reads K other shards of a stripe: K at a time, and for each that fails the next best.
// The memory is the caller's to release, after an error too.
func (s *Store) gather(ctx context.Context, w *wanted, shards [][]byte) ([]*iopath.Buf, error) {
	from := w.lay.sources(w.pg, int(w.key.Shard), s.cfg.Node)
	k := int(w.pg.Geometry.K)
	bufs := make([]*iopath.Buf, 0, k)
	for range k {
		b, err := s.cfg.Arena.Get(ctx, int(w.size))
		if err != nil {
			return bufs, err
		}
		bufs = append(bufs, b)
	}
	var next, got atomic.Int32
	var group sync.WaitGroup
	var mu sync.Mutex
	var first error // to fail
	for _, b := range bufs {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(from) || ctx.Err() != nil {
					return
				}
				err := s.fetchShard(ctx, w, from[i], b)
				if err == nil {
					shards[from[i]] = b.Bytes()[:w.size]
					got.Add(1)
					return
				}
				mu.Lock()
				first = cmp.Or(first, err)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	switch {
	case ctx.Err() != nil:
		return bufs, contextError("read stripe "+w.key.Stripe.String(), ctx)
	case int(got.Load()) < k:
		return bufs, cfs.Errorf("read stripe "+w.key.Stripe.String(), cfs.Unavailable, "%d of %d shards: %w", got.Load(), k, first)
	}
	return bufs, nil
}

// fetchShard reads a shard from wherever it is.
func (s *Store) fetchShard(ctx context.Context, w *wanted, shard int, buf *iopath.Buf) (err error) {
	key := nvme.Key{Stripe: w.key.Stripe, Shard: uint8(shard)}
	for _, id := range w.lay.holders(&w.pg.Slots[shard]) {
		if _, err = s.fetch(ctx, w, id, key, buf); err == nil {
			return nil
		}
	}
	return err
}

// fetch reads a whole shard from a device, of this node or another, and returns its checksums, which its
// bytes fit. The device's node is told when they do not.
func (s *Store) fetch(ctx context.Context, w *wanted, id cfs.DeviceID, key nvme.Key, buf *iopath.Buf) ([]byte, error) {
	crcs, err := s.read(ctx, w, id, key, buf)
	if err != nil {
		if cfs.KindOf(err) == cfs.Corrupt {
			s.reportTo(ctx, w, id, key)
		}
		return nil, err
	}
	bad := ec.CheckBlockCRCs(crcs, key.Stripe, key.Shard, 0, buf.Bytes()[:w.size])
	if bad < 0 {
		return crcs, nil
	}
	s.reportTo(ctx, w, id, key)
	return nil, cfs.Errorf("read shard "+key.String()+" from "+id.String(), cfs.Corrupt, "block %d does not fit its checksum", bad)
}

func (s *Store) read(ctx context.Context, w *wanted, id cfs.DeviceID, key nvme.Key, buf *iopath.Buf) ([]byte, error) {
	op := "read shard " + key.String() + " from " + id.String()
	if d := s.find(id); d != nil {
		return d.log.Get(ctx, key, 0, w.size, buf)
	}
	node := w.lay.nodes[id.Node()]
	if node == nil || id.Node() == s.cfg.Node || s.cfg.Pool == nil {
		return nil, cfs.Errorf(op, cfs.NotFound, "no such device")
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req := &wirepb.GetShard{Device: uint32(id), Key: keyToPB(key), Len: w.size}
	var reply wirepb.GetShardReply
	n, err := s.cfg.Pool.Call(ctx, node.Addr, wire.OpGetShard, req, nil, &reply, buf.Bytes()[:w.size])
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	if n != int(w.size) {
		return nil, cfs.Errorf(op, cfs.Corrupt, "%d bytes, not %d", n, w.size)
	}
	return reply.Crcs, nil
}

// reportTo tells a device's node that a shard is damaged. It is a favour: what comes of it is not waited for.
func (s *Store) reportTo(ctx context.Context, w *wanted, id cfs.DeviceID, key nvme.Key) {
	if d := s.find(id); d != nil {
		d.repairs.push(repair{key: key, pg: w.pg.ID})
		return
	}
	node := w.lay.nodes[id.Node()]
	if node == nil || s.cfg.Pool == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	req := &wirepb.ReportShard{Device: uint32(id), Key: keyToPB(key)}
	if _, err := s.cfg.Pool.Call(ctx, node.Addr, wire.OpReportShard, req, nil, &wirepb.Empty{}, nil); err != nil {
		s.cfg.Logger.Debug("a damaged shard could not be reported", "key", key.String(), "device", id.String(), "err", err)
	}
}

// query asks the namespace; an answer that is a refusal is an error.
func (s *Store) query(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	ans, err := s.cfg.Ask(ctx, q)
	if err == nil && ans.Kind != cfs.KindOK {
		err = cfs.E("ask the namespace", ans.Kind, nil)
	}
	return ans, err
}
