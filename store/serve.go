package store

import (
	"context"
	"strconv"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxShards bounds the shards of a stripe: the widest geometry, 4+2.
	maxShards = 6
	// maxDeleteKeys bounds the keys of one delete request.
	maxDeleteKeys = 8192
	// maxListShards bounds the entries of one answer to a listing.
	maxListShards = 4096
	// crcBytes is the length of one block's checksum.
	crcBytes = 4
)

// Serve answers one shard request: OpPutShard, OpGetShard, OpDeleteShards,
// OpListShards or OpReportShard. Errors are *cfs.Error; a malformed request is BadRequest.
func (s *Store) Serve(ctx context.Context, r *wire.Request) (wire.Response, error) {
	began := time.Now()
	var (
		resp  wire.Response
		bytes int
		err   error
	)
	kind := opPut
	switch r.Op {
	case wire.OpPutShard:
		bytes, err = s.put(ctx, r)
	case wire.OpGetShard:
		kind = opGet
		resp, bytes, err = s.get(ctx, r)
	case wire.OpDeleteShards:
		kind = opDelete
		err = s.deleteShards(r)
	case wire.OpListShards:
		kind = opList
		resp, err = s.list(r)
	case wire.OpReportShard:
		kind = opReport
		err = s.reported(r)
	default:
		return wire.Response{}, cfs.Errorf("serve", cfs.BadRequest, "%v is not a shard operation", r.Op)
	}
	s.cfg.Metrics.observe(kind, time.Since(began), bytes, err)
	if k := cfs.KindOf(err); k == cfs.IO || k == cfs.Corrupt {
		s.cfg.Logger.Error("shard request failed", "op", kind.String(), "err", err, "trace", r.TraceID)
	}
	return resp, err
}

// put makes the payload durable on a device; it returns the payload's bytes.
func (s *Store) put(ctx context.Context, r *wire.Request) (int, error) {
	var req wirepb.PutShard
	if err := r.Decode(&req); err != nil {
		return 0, err
	}
	key, err := keyFromPB(req.Key)
	if err != nil {
		return 0, err
	}
	// The payload came from Alloc, so it is an arena buffer; anything else is a frame without one.
	buf, _ := r.Payload.(*iopath.Buf)
	if buf == nil {
		return 0, cfs.Errorf("put", cfs.BadRequest, "no payload")
	}
	n := len(buf.Bytes())
	if n == 0 || n%cfs.BlockSize != 0 || n > cfs.MaxShardSize || len(req.Crcs) != n/cfs.BlockSize*crcBytes {
		return 0, cfs.Errorf("put", cfs.BadRequest, "payload of %d bytes with %d bytes of checksums", n, len(req.Crcs))
	}
	log, err := s.device("put shard ", req.Device, key)
	if err != nil {
		return 0, err
	}
	if err := s.checkEpoch(cfs.PGID(req.Pg), cfs.Epoch(req.Epoch)); err != nil {
		return 0, err
	}
	rec := nvme.Record{Key: key, PG: cfs.PGID(req.Pg), Epoch: cfs.Epoch(req.Epoch), Len: uint32(n)}
	if err = log.Put(ctx, rec, req.Crcs, buf); cfs.KindOf(err) == cfs.NoSpace {
		s.noteFull(cfs.DeviceID(req.Device))
	}
	return n, err
}

// checkEpoch refuses an epoch that has passed.
func (s *Store) checkEpoch(id cfs.PGID, epoch cfs.Epoch) error {
	pg := s.layout().groups[id]
	switch {
	case pg == nil:
		return cfs.Errorf("put", cfs.Unavailable, "node %d has not heard of group %d yet", s.cfg.Node, id)
	case epoch < pg.Epoch:
		return cfs.Errorf("put", cfs.StaleEpoch, "group %d is at epoch %d, the put says %d", id, pg.Epoch, epoch)
	}
	return nil
}

// get reads whole blocks into an arena buffer that the response owns.
func (s *Store) get(ctx context.Context, r *wire.Request) (wire.Response, int, error) {
	var req wirepb.GetShard
	if err := r.Decode(&req); err != nil {
		return wire.Response{}, 0, err
	}
	key, err := keyFromPB(req.Key)
	if err != nil {
		return wire.Response{}, 0, err
	}
	if req.Len == 0 || req.Len > cfs.MaxShardSize || req.Len%cfs.BlockSize != 0 ||
		req.Off > cfs.MaxShardSize || req.Off%cfs.BlockSize != 0 {
		return wire.Response{}, 0, cfs.Errorf("get", cfs.BadRequest, "%d bytes at %d are not whole blocks of a shard", req.Len, req.Off)
	}
	log, err := s.device("get shard ", req.Device, key)
	if err != nil {
		return wire.Response{}, 0, err
	}
	buf, err := s.cfg.Arena.Get(ctx, int(req.Len))
	if err != nil {
		return wire.Response{}, 0, err
	}
	crcs, err := log.Get(ctx, key, req.Off, req.Len, buf)
	if err != nil {
		buf.Release()
		if k := cfs.KindOf(err); k == cfs.Corrupt || k == cfs.IO {
			s.suspect(cfs.DeviceID(req.Device), key)
		}
		return wire.Response{}, 0, err
	}
	return wire.Response{
		Body:    &wirepb.GetShardReply{Crcs: crcs},
		Payload: [][]byte{buf.Bytes()},
		Done:    buf.Release,
	}, int(req.Len), nil
}

// deleteShards forgets shards; those that are not there are no error.
func (s *Store) deleteShards(r *wire.Request) error {
	var req wirepb.DeleteShards
	if err := r.Decode(&req); err != nil {
		return err
	}
	if len(req.Keys) > maxDeleteKeys {
		return cfs.Errorf("delete", cfs.BadRequest, "%d keys, at most %d", len(req.Keys), maxDeleteKeys)
	}
	keys := make([]nvme.Key, len(req.Keys))
	for i, k := range req.Keys {
		key, err := keyFromPB(k)
		if err != nil {
			return err
		}
		keys[i] = key
	}
	log, err := s.device("delete", req.Device, nvme.Key{})
	if err != nil {
		return err
	}
	s.cfg.Metrics.deleted.Add(float64(log.Delete(keys)))
	return nil
}

// list answers what a device holds, in the order of keys.
func (s *Store) list(r *wire.Request) (wire.Response, error) {
	var req wirepb.ListShards
	if err := r.Decode(&req); err != nil {
		return wire.Response{}, err
	}
	var after *nvme.Key
	if req.After != nil {
		key, err := keyFromPB(req.After)
		if err != nil {
			return wire.Response{}, err
		}
		after = &key
	}
	log, err := s.device("list", req.Device, nvme.Key{})
	if err != nil {
		return wire.Response{}, err
	}
	limit := int(min(req.Limit, maxListShards))
	if limit == 0 {
		limit = maxListShards
	}
	recs := log.List(after, limit+1)
	reply := &wirepb.ListShardsReply{More: len(recs) > limit}
	recs = recs[:min(limit, len(recs))]
	reply.Shards = make([]*wirepb.ShardInfo, len(recs))
	for i, rec := range recs {
		reply.Shards[i] = &wirepb.ShardInfo{Key: keyToPB(rec.Key), Pg: uint32(rec.PG), Epoch: uint32(rec.Epoch), Len: rec.Len}
	}
	return wire.Response{Body: reply}, nil
}

// device finds the log of a device; what and key say in the error for what it was wanted.
func (s *Store) device(what string, id uint32, key nvme.Key) (*nvme.Log, error) {
	if d := s.find(cfs.DeviceID(id)); d != nil {
		return d.log, nil
	}
	if !key.Stripe.IsZero() {
		what += key.Stripe.String() + "/" + strconv.Itoa(int(key.Shard))
	}
	return nil, cfs.Errorf(what+" on "+cfs.DeviceID(id).String(), cfs.NotFound, "no such device on node %d", s.cfg.Node)
}

// keyFromPB checks and converts a key from the wire.
func keyFromPB(k *wirepb.ShardKey) (nvme.Key, error) {
	if k == nil || k.StripeSession == 0 || k.Shard >= maxShards {
		return nvme.Key{}, cfs.Errorf("shard key", cfs.BadRequest, "%v", k)
	}
	return nvme.Key{
		Stripe: cfs.StripeID{Session: cfs.SessionID(k.StripeSession), Counter: k.StripeCounter},
		Shard:  uint8(k.Shard),
	}, nil
}

func keyToPB(k nvme.Key) *wirepb.ShardKey {
	return &wirepb.ShardKey{StripeSession: uint64(k.Stripe.Session), StripeCounter: k.Stripe.Counter, Shard: uint32(k.Shard)}
}
