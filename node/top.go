package node

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/internal/top"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// shardOps counts what the store has answered since the node started.
type shardOps struct {
	put, get, remove, list, report top.Hist
}

// of is where an operation is counted.
func (s *shardOps) of(op wire.Op) *top.Hist {
	switch op {
	case wire.OpPutShard:
		return &s.put
	case wire.OpGetShard:
		return &s.get
	case wire.OpDeleteShards:
		return &s.remove
	case wire.OpListShards:
		return &s.list
	}
	return &s.report
}

// serveStore has the store serve a request, and counts it.
func (d *dispatch) serveStore(ctx context.Context, r *wire.Request) (wire.Response, error) {
	op, came := r.Op, time.Now()
	resp, err := d.store.Serve(ctx, r)
	if err == nil {
		d.done.of(op).Observe(time.Since(came))
	}
	return resp, err
}

// addTo adds what the store has done to what the replica has.
func (s *shardOps) addTo(r *wirepb.TopReply) *wirepb.TopReply {
	for _, op := range []wire.Op{wire.OpPutShard, wire.OpGetShard, wire.OpDeleteShards, wire.OpListShards, wire.OpReportShard} {
		if f := s.of(op).Read(); f.Count > 0 {
			r.Ops = append(r.Ops, &wirepb.OpStats{Name: op.String(), Count: f.Count, TotalNs: f.TotalNS, Buckets: f.Buckets})
		}
	}
	return r
}
