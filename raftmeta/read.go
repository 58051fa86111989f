package raftmeta

import (
	"context"
	"encoding/binary"
	"errors"

	"go.etcd.io/raft/v3"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/planted"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
)

// read is a query that waits for leave to look at the state.
type read struct{ ready chan error } // room for one

// readRounds are the queries by how far they are: a round of ReadIndex asks a
// majority whether this node still leads, once for all that waited when it
// began; a confirmed round may be served when its index has been applied.
type readRounds struct {
	id      uint64
	waiting []*read
	asking  []*read // of round id
	held    []heldReads
}

type heldReads struct {
	index uint64
	reads []*read
}

// startRound begins a round if none is on its way.
func (l *loop) startRound() {
	r := &l.round
	if len(r.waiting) == 0 || len(r.asking) > 0 {
		return
	}
	if !l.mine {
		r.fail(l.n.notLeader("query"))
		return
	}
	r.asking, r.waiting = r.waiting, nil
	r.id++
	l.n.metrics.readRounds.Inc()
	l.raft.ReadIndex(binary.LittleEndian.AppendUint64(nil, r.id))
}

// again makes the round that is on its way another that has not begun: it was begun
// under another membership, and may never be confirmed.
func (r *readRounds) again() {
	r.waiting, r.asking = append(r.asking, r.waiting...), nil
}

// confirmed ends the round that rs belongs to.
func (r *readRounds) confirmed(rs raft.ReadState, applied uint64) {
	if len(rs.RequestCtx) != 8 || binary.LittleEndian.Uint64(rs.RequestCtx) != r.id || len(r.asking) == 0 {
		return
	}
	r.held = append(r.held, heldReads{rs.Index, r.asking})
	r.asking = nil
	r.release(applied)
}

// release lets the queries go whose index has been applied.
func (r *readRounds) release(applied uint64) {
	for len(r.held) > 0 && r.held[0].index <= applied {
		for _, q := range r.held[0].reads {
			q.ready <- nil
		}
		r.held[0].reads = nil
		r.held = r.held[1:]
	}
}

func (r *readRounds) fail(err error) {
	tell := func(reads []*read) {
		for _, q := range reads {
			q.ready <- err
		}
	}
	tell(r.waiting)
	tell(r.asking)
	for _, h := range r.held {
		tell(h.reads)
	}
	r.waiting, r.asking, r.held = nil, nil, nil
}

// confirm returns when this node has led at a moment after the call, and has
// applied everything that was committed then.
func (n *Node) confirm(ctx context.Context, op string) error {
	if planted.Is(planted.StaleRead) {
		return nil
	}
	if !n.lead.Load().mine {
		return n.notLeader(op)
	}
	r := &read{ready: make(chan error, 1)}
	select {
	case n.loop.reads <- r:
	default:
		return cfs.Errorf(op, cfs.Overloaded, "%d queries are waiting", maxReads)
	}
	select {
	case err := <-r.ready:
		return err
	case <-ctx.Done():
		return cfs.E(op, contextKind(ctx), ctx.Err())
	case <-n.done:
		return n.unavailable(op)
	}
}

// query answers q from a state at least as new as any reply given before it came.
func (n *Node) query(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	if err := n.confirm(ctx, "query"); err != nil {
		return nil, err
	}
	n.metrics.reads.Inc()
	d := n.duties.Load()
	var a *cfs.Answer
	var err error
	switch q.Kind {
	case cfs.QueryLookup, cfs.QueryGetAttr, cfs.QueryReadDir, cfs.QueryReadlink, cfs.QueryGetXattr, cfs.QueryListXattr, cfs.QueryExtents:
		if d == nil { // it led when it was confirmed
			return nil, n.notLeader("query")
		}
		a, err = d.leases.namespace(ctx, q)
	default:
		a, err = n.look(q)
	}
	if errors.Is(err, cfs.Closed) { // the node has ended since it was confirmed
		return nil, n.unavailable("query")
	}
	if err != nil {
		return nil, cfs.E("query", cfs.KindOf(err), err)
	}
	if d != nil && a.Map != nil {
		a.Map = d.withReported(a.Map)
	}
	return a, nil
}

// look answers q from the present state.
func (n *Node) look(q *cfs.Query) (a *cfs.Answer, err error) {
	err = n.state.view(func(v kv.View) error {
		a, err = fsm.Read(v, q)
		return err
	})
	return a, err
}
