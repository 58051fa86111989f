package raftmeta

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

var (
	_ wire.Handler  = (*Node)(nil)
	_ wire.Receiver = (*Node)(nil)
)

// Serve answers the metadata requests of the wire: OpCommand, OpQuery, OpHeartbeat, OpWatch, OpWaitLock,
// OpStatus, OpTop, OpCheckState, OpSnapshot, OpEnrol, and of OpAdmin the leader's verbs; OpRaft comes one-way, to Receive.
// What only the leader can answer is cfs.NotLeader elsewhere, with the leader's address in it.
func (n *Node) Serve(ctx context.Context, r *wire.Request) (wire.Response, error) {
	select {
	case <-n.done:
		return wire.Response{}, n.unavailable(r.Op.String())
	default:
	}
	switch r.Op {
	case wire.OpCommand:
		return n.serveCommand(ctx, r)
	case wire.OpQuery:
		return n.serveQuery(ctx, r)
	case wire.OpHeartbeat:
		return n.serveHeartbeat(ctx, r)
	case wire.OpTop:
		return n.serveTop(ctx, r)
	case wire.OpWaitLock:
		return n.serveWaitLock(ctx, r)
	case wire.OpWatch:
		return n.serveWatch(ctx, r)
	case wire.OpStatus:
		return wire.Response{Body: n.Status()}, nil
	case wire.OpSnapshot:
		return wire.Response{}, n.serveSnapshot(ctx, r)
	case wire.OpAdmin:
		return n.serveAdmin(ctx, r)
	case wire.OpEnrol:
		return n.serveEnrol(ctx, r)
	case wire.OpCheckState:
		reply, err := n.checkState(ctx)
		if err != nil {
			return wire.Response{}, err
		}
		return wire.Response{Body: reply}, nil
	}
	return wire.Response{}, cfs.Errorf(r.Op.String(), cfs.Unsupported, "not a metadata operation")
}

func (n *Node) serveCommand(ctx context.Context, r *wire.Request) (wire.Response, error) {
	came := time.Now()
	var m wirepb.Command
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	c, err := wire.CommandFromPB(&m)
	if err != nil {
		return wire.Response{}, err
	}
	if err := checkCommand(c, r.Peer); err != nil {
		return wire.Response{}, err
	}
	reply, err := n.command(ctx, c, r.Body)
	if err != nil {
		return wire.Response{}, err
	}
	n.activity.command(c, came)
	return wire.Response{Body: wire.ReplyToPB(reply)}, nil
}

func (n *Node) serveQuery(ctx context.Context, r *wire.Request) (wire.Response, error) {
	came := time.Now()
	var m wirepb.Query
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	q, err := wire.QueryFromPB(&m)
	if err != nil {
		return wire.Response{}, err
	}
	a, err := n.answer(ctx, q)
	if err != nil {
		return wire.Response{}, err
	}
	n.activity.query(q, came)
	return wire.Response{Body: wire.AnswerToPB(a)}, nil
}

// serveHeartbeat keeps a session or a node alive. It is final to say that a session is
// unknown, and leases go on by what is said here, so a leader makes sure first that it still
// leads: another may have opened the session meanwhile, or change what is leased.
func (n *Node) serveHeartbeat(ctx context.Context, r *wire.Request) (wire.Response, error) {
	arrived := time.Now()
	var m wirepb.Heartbeat
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	if m.Replica != nil {
		if r.Peer == nil {
			return wire.Response{}, cfs.Errorf("heartbeat", cfs.BadRequest, "a replica of no node")
		}
		return wire.Response{Body: &wirepb.HeartbeatReply{}}, n.recordReplica(ctx, r.Peer.NodeID, m.Replica)
	}
	d := n.duties.Load()
	if d == nil {
		return wire.Response{}, n.notLeader("heartbeat")
	}
	reply := &wirepb.HeartbeatReply{}
	if id := cfs.SessionID(m.Session); id != 0 {
		heard := d.hearSession(id)
		if err := n.confirm(ctx, "heartbeat"); err != nil {
			return wire.Response{}, err
		}
		if n.duties.Load() != d { // a later term of this node was confirmed
			return wire.Response{}, n.notLeader("heartbeat")
		}
		if !heard && !d.hearSession(id) {
			return wire.Response{}, cfs.Errorf("heartbeat", cfs.NoSession, "session %d", id)
		}
		epoch, known := d.leases.beat(id, m.Epoch, m.Opens, arrived)
		if !known {
			return wire.Response{}, cfs.Errorf("heartbeat", cfs.NoSession, "session %d", id)
		}
		reply.Epoch, reply.LeaseMs = epoch, uint32(n.cfg.LeaseTime.Milliseconds())
	}
	if m.Node != nil {
		beat, err := decodeBeat(&m, r.Peer)
		if err != nil {
			return wire.Response{}, err
		}
		if err := d.hearNode(beat); err != nil {
			return wire.Response{}, err
		}
	}
	reply.MapVersion, reply.InlineFull = n.Map().Version, d.inlineFull.Load()
	return wire.Response{Body: reply}, nil
}
