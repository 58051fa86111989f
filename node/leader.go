package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// attemptTimeout bounds one attempt to reach one voter.
const attemptTimeout = time.Second

// leader calls whoever leads the voters. It remembers who answered last, and
// follows hints; this node's own replica is reached in the same way.
type leader struct {
	pool *wire.Pool
	self string // this node's own address

	mu    sync.Mutex
	seeds []string // never empty
	addr  string   // believed to lead
	next  int      // the seed to try after it
}

func newLeader(pool *wire.Pool, seeds []string, self string) *leader {
	return &leader{pool: pool, seeds: seeds, self: self, addr: seeds[0], next: 1 % len(seeds)}
}

// setServers makes others those that are asked from now on.
func (l *leader) setServers(addrs []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.seeds, addrs) {
		l.seeds, l.next = slices.Clone(addrs), 0
	}
}

// servers are those that are asked.
func (l *leader) servers() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seeds)
}

func (l *leader) believed() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}

// moveOn gives up an address for the hint, or for the next seed without one.
func (l *leader) moveOn(from, hint string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addr != from {
		return // somebody else has moved on already
	}
	if hint != "" && hint != from {
		l.addr = hint
		return
	}
	l.addr = l.seeds[l.next]
	l.next = (l.next + 1) % len(l.seeds)
}

// call asks the leader, each voter tried once and one hint followed at most. An
// answer that another voter would give too is returned as it is. The error is Denied only if
// every other voter that was asked refuses this node.
func (l *leader) call(ctx context.Context, op wire.Op, req, resp proto.Message) error {
	var err, denied error
	refused := true
	for range len(l.servers()) + 1 {
		addr := l.believed()
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		_, err = l.pool.Call(attempt, addr, op, req, nil, resp, nil)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		var remote *wire.RemoteError
		hint := ""
		if errors.As(err, &remote) {
			hint = remote.Leader
		}
		if cfs.KindOf(err) == cfs.Denied {
			denied = err
		} else if addr != l.self {
			refused = false
		}
		switch cfs.KindOf(err) {
		case cfs.Denied, cfs.NotLeader, cfs.Unavailable, cfs.Timeout, cfs.Canceled, cfs.Closed, cfs.Overloaded, cfs.IO:
			l.moveOn(addr, hint)
		default:
			return err
		}
	}
	switch {
	case denied != nil && refused:
		return denied
	case denied != nil: // which says more than what the others say
		return cfs.E("", cfs.Unavailable, denied)
	}
	return err
}

// callOnce is call for what must not be done twice: once it was sent, only a server that says that it did nothing
// is left for another, and it may take as long as ctx lives.
func (l *leader) callOnce(ctx context.Context, op wire.Op, req, resp proto.Message) error {
	var err error
	for range len(l.servers()) + 1 {
		addr := l.believed()
		conn, dialErr := l.pool.Conn(ctx, addr)
		if err = dialErr; err == nil {
			_, err = conn.Call(ctx, op, req, nil, resp, nil)
		}
		kind := cfs.KindOf(err)
		if err == nil || ctx.Err() != nil || dialErr == nil && kind != cfs.NotLeader && kind != cfs.Overloaded {
			return err
		}
		var remote *wire.RemoteError
		hint := ""
		if errors.As(err, &remote) {
			hint = remote.Leader
		}
		l.moveOn(addr, hint)
	}
	return err
}

// ask asks the namespace, linearizably.
func (n *Node) ask(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	var pb wirepb.Answer
	if err := n.leader.call(ctx, wire.OpQuery, wire.QueryToPB(q), &pb); err != nil {
		return nil, err
	}
	return wire.AnswerFromPB(&pb)
}

// propose has an operation of this node's own carried out; a refusal is an error of its kind.
func (n *Node) propose(ctx context.Context, what string, op cfs.Op) error {
	var pb wirepb.Reply
	if err := n.leader.call(ctx, wire.OpCommand, wire.CommandToPB(&cfs.Command{Ops: []cfs.Op{op}}), &pb); err != nil {
		return err
	}
	if kind := cfs.Kind(pb.Kind); kind != cfs.KindOK {
		return cfs.E(what, kind, nil)
	}
	return nil
}

// fillDone tells the cluster that a slot has every shard, as of an epoch of its group.
func (n *Node) fillDone(ctx context.Context, pg cfs.PGID, device cfs.DeviceID, epoch cfs.Epoch) error {
	what := "end the filling of " + device.String()
	groups := n.raft.Map().Groups
	at := slices.IndexFunc(groups, func(g cfs.PG) bool { return g.ID == pg })
	if at < 0 {
		return cfs.Errorf(what, cfs.Conflict, "group %d is gone", pg)
	}
	group := groups[at] // whole, as groups are on the wire
	group.Epoch = epoch
	return n.propose(ctx, what, cfs.Op{Kind: cfs.OpFillDone, Device: cfs.Device{ID: device}, Groups: []cfs.PG{group}})
}
