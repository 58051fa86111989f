package node

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/store"
	"github.com/claudefs/claudefs/wire"
)

// dispatch is the wire.Handler that joins the services.
type dispatch struct {
	node  *Node
	store *store.Store
	raft  *replica
	delay func() time.Duration // Config.ReadDelay
	done  shardOps
}

// Serve hands a request to the service whose it is.
func (d *dispatch) Serve(ctx context.Context, r *wire.Request) (wire.Response, error) {
	switch r.Op {
	case wire.OpGetShard:
		resp, err := d.serveStore(ctx, r)
		d.holdBack(ctx)
		return resp, err
	case wire.OpPutShard, wire.OpDeleteShards, wire.OpListShards, wire.OpReportShard:
		return d.serveStore(ctx, r)
	case wire.OpTop:
		return wire.Response{Body: d.done.addTo(d.raft.Top())}, nil
	case wire.OpInspect:
		return wire.Response{Body: d.node.inspect()}, nil
	case wire.OpEnrol:
		return d.node.enrol(ctx, r)
	case wire.OpAdmin:
		return d.node.admin(ctx, r)
	}
	resp, err := d.raft.Serve(ctx, r)
	if cfs.KindOf(err) == cfs.NotLeader && d.node.fromHere(r) {
		return d.node.passOn(ctx, r)
	}
	return resp, err
}

// holdBack waits as long as an answer is to be late, unless nobody waits for it any more.
func (d *dispatch) holdBack(ctx context.Context) {
	if d.delay == nil {
		return
	}
	if late := d.delay(); late > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(late):
		}
	}
}

// Receive takes one-way frames: the voters' messages.
func (d *dispatch) Receive(r *wire.Request) error { return d.raft.Receive(r) }

// alloc gives memory for an incoming payload: the arena's for shards, which go
// to a device from there, ordinary memory for pieces of snapshots. Nothing else
// has one.
func (d *dispatch) alloc(ctx context.Context, op wire.Op, n int) (wire.Buffer, error) {
	if op == wire.OpPutShard {
		return d.store.Alloc(ctx, op, n)
	}
	if op != wire.OpSnapshot {
		return nil, cfs.Errorf(op.String(), cfs.BadRequest, "a payload of %d bytes, which it has none of", n)
	}
	return heapBuffer(make([]byte, n)), nil
}

// heapBuffer is a wire.Buffer of ordinary memory.
type heapBuffer []byte

// Bytes is the memory.
func (b heapBuffer) Bytes() []byte { return b }

// Release leaves it to the collector.
func (b heapBuffer) Release() {}
