package raftmeta

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
)

// proposal is a command on its way, and its waiter.
type proposal struct {
	token    uint64
	cmd      *cfs.Command
	data     []byte
	arrived  time.Time
	proposed time.Time
	change   *change      // nil for the leader's own
	done     chan outcome // room for one
}

type outcome struct {
	reply *cfs.Reply
	err   error
}

// answer tells the waiter what became of the command of the log entry at index.
func (p *proposal) answer(n *Node, r *cfs.Reply, index uint64) {
	if p.change != nil {
		p.change.end(r, index)
	}
	result := "ok"
	if r.Kind != cfs.KindOK {
		result = "refused"
	}
	n.metrics.proposals.WithLabelValues(result).Inc()
	n.metrics.commitSeconds.Observe(time.Since(p.arrived).Seconds())
	n.waiting.Add(-1)
	p.done <- outcome{reply: r}
}

func (p *proposal) fail(n *Node, err error) {
	if p.change != nil {
		p.change.end(nil, 0)
	}
	n.metrics.proposals.WithLabelValues("failed").Inc()
	n.waiting.Add(-1)
	p.done <- outcome{err: err}
}

// checkCommand refuses what may not come from the wire: the leader's own
// operations, but for opening a session and for a storage node's reports of its
// device: how far it has followed the delete feed, and which slot it has filled; and
// for the progress of a consumer of the journal.
// A session's command without operations raises its floor and low-water mark.
func checkCommand(c *cfs.Command, from *wire.Peer) error {
	if len(c.Ops) > fsm.MaxOps {
		return cfs.Errorf("command", cfs.BadRequest, "%d operations, at most %d", len(c.Ops), fsm.MaxOps)
	}
	if c.Session == 0 {
		if len(c.Ops) != 1 {
			return cfs.Errorf("command", cfs.BadRequest, "%d operations without a session", len(c.Ops))
		}
		op := &c.Ops[0]
		open := op.Kind == cfs.OpOpenSession
		owner := from != nil && from.NodeID != 0 && from.NodeID == op.Device.ID.Node()
		report := op.Kind == cfs.OpFeedDone || op.Kind == cfs.OpFillDone
		progress := op.Kind == cfs.OpSetConsumer && op.Index > 0 // to make one is an administrator's
		// The first server made the authority; whether it may say so, node decides by its certificate.
		authority := op.Kind == cfs.OpSetCA && from != nil && from.NodeID == 1
		if !open && !(report && owner) && !progress && !authority {
			return cfs.Errorf("command", cfs.BadRequest, "operation %d needs a session", op.Kind)
		}
		return nil
	}
	for i := range c.Ops {
		if c.Ops[i].Kind.OfLeader() {
			return cfs.Errorf("command", cfs.BadRequest, "operation %d is the leader's own", c.Ops[i].Kind)
		}
		if len(c.Ops[i].Holds) > 0 {
			return cfs.Errorf("command", cfs.BadRequest, "operation %d holds inodes for other sessions", i)
		}
	}
	return nil
}

// command proposes c, whose encoding is body, once nobody else answers from memory what
// it changes, and waits for its reply.
func (n *Node) command(ctx context.Context, c *cfs.Command, body []byte) (*cfs.Reply, error) {
	arrived := time.Now()
	if len(body) > maxEntryBytes {
		return nil, cfs.Errorf("command", cfs.TooBig, "%d bytes, at most %d", len(body), maxEntryBytes)
	}
	if !n.lead.Load().mine {
		return nil, n.notLeader("command")
	}
	if n.disk.full.Load() {
		return nil, cfs.Errorf("command", cfs.NoSpace, "the disk under the leader's log is full")
	}
	if c.Session == 0 {
		return n.propose(ctx, &proposal{cmd: c, arrived: arrived}, body)
	}
	d := n.duties.Load()
	if d == nil {
		return nil, n.notLeader("command")
	}
	ch, body, err := d.leases.begin(ctx, c, body)
	if err != nil {
		return nil, err
	}
	return n.propose(ctx, &proposal{cmd: c, arrived: arrived, change: ch}, body)
}

// propose hands p, whose command's encoding is body, to the loop, which ends its change.
func (n *Node) propose(ctx context.Context, p *proposal, body []byte) (*cfs.Reply, error) {
	p.token, p.done = n.tokens.Add(1), make(chan outcome, 1)
	if n.waiting.Add(1) > int64(n.cfg.MaxProposals) {
		p.drop(n)
		n.metrics.proposals.WithLabelValues("overloaded").Inc()
		return nil, cfs.Errorf("command", cfs.Overloaded, "%d commands are waiting", n.cfg.MaxProposals)
	}
	p.data = encodeEntry(entry{node: n.cfg.NodeID, token: p.token, stampNS: n.cfg.Clock.Now().UnixNano(), body: body})
	select {
	case n.loop.proposals <- p:
	case <-n.done:
		p.drop(n)
		return nil, n.unavailable("command")
	}
	select {
	case o := <-p.done:
		return o.reply, o.err
	case <-ctx.Done():
		return nil, cfs.E("command", contextKind(ctx), ctx.Err())
	case <-n.done:
		select { // it may have been answered before the end
		case o := <-p.done:
			return o.reply, o.err
		default:
			return nil, n.unavailable("command")
		}
	}
}

// drop takes back a proposal that the loop has not got.
func (p *proposal) drop(n *Node) {
	n.waiting.Add(-1)
	if p.change != nil {
		p.change.end(nil, 0)
	}
}

// own proposes operations of the leader itself.
func (n *Node) own(ctx context.Context, ops ...cfs.Op) (*cfs.Reply, error) {
	c := &cfs.Command{Ops: ops}
	body, err := proto.Marshal(wire.CommandToPB(c))
	if err != nil {
		return nil, cfs.E("command", cfs.BadRequest, err)
	}
	return n.command(ctx, c, body)
}

func contextKind(ctx context.Context) cfs.Kind {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return cfs.Timeout
	}
	return cfs.Canceled
}

// propose gives Raft what was gathered, as few messages of bounded size.
func (l *loop) propose() {
	l.gathered = slices.DeleteFunc(l.gathered, l.outdated)
	for len(l.gathered) > 0 {
		batch, bytes := 0, 0
		for batch < len(l.gathered) && (batch == 0 || bytes+len(l.gathered[batch].data) <= maxMsgBytes) {
			bytes += len(l.gathered[batch].data)
			batch++
		}
		l.proposeBatch(l.gathered[:batch])
		l.gathered = l.gathered[batch:]
	}
	l.gathered = nil
}

// outdated refuses a command that got leave under a leadership that has passed: who has leases
// now was not asked.
func (l *loop) outdated(p *proposal) bool {
	if p.change == nil {
		return false
	}
	if d := l.n.duties.Load(); d != nil && d.leases == p.change.l {
		return false
	}
	p.fail(l.n, l.n.notLeader("command"))
	return true
}

func (l *loop) proposeBatch(ps []*proposal) {
	now := time.Now()
	m := &pb.Message{Type: pb.MsgProp.Enum(), From: new(uint64(l.n.cfg.NodeID)), Entries: make([]*pb.Entry, len(ps))}
	for i, p := range ps {
		m.Entries[i] = &pb.Entry{Data: p.data}
		p.proposed = now
		l.n.metrics.queue.Observe(now.Sub(p.arrived).Seconds())
	}
	err := raft.ErrProposalDropped
	if l.mine {
		err = l.raft.Step(m)
	}
	for _, p := range ps {
		switch {
		case err == nil:
			l.pending[p.token] = p
			p.data = nil
		case l.mine:
			p.fail(l.n, cfs.Errorf("command", cfs.Overloaded, "raft takes no more now: %w", err))
		default:
			p.fail(l.n, l.n.notLeader("command"))
		}
	}
}
