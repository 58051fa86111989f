package raftmeta

import (
	"context"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// sendTimeout bounds one frame of messages to a peer: after it they are lost,
// as if the network had dropped them.
const sendTimeout = time.Second

// commitDelay is how long the followers' knowledge of a commit may be late.
const commitDelay = 2 * time.Millisecond

// peer sends messages to one voter, one frame at a time: what gathers meanwhile
// travels together in the next.
type peer struct {
	n     *Node
	id    cfs.NodeID
	addr  string
	queue chan *pb.Message
	early *pb.Message // taken from the queue, to be sent after the one at hand
}

func newPeer(n *Node, id cfs.NodeID, addr string) *peer {
	return &peer{n: n, id: id, addr: addr, queue: make(chan *pb.Message, maxMessages)}
}

func (p *peer) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-p.n.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		select {
		case <-p.n.done:
			return
		case m := <-p.queue:
			if m = p.hold(m); m == nil {
				return
			}
			if err := p.send(ctx, m); err != nil {
				p.lost(err)
			}
		}
	}
}

// hold waits a moment with a message that only says how far the leader has
// committed: under load the next entries say it too, and the message, its
// answer and their handling are saved. It returns what is to be sent now, nil
// when the node has ended.
func (p *peer) hold(m *pb.Message) *pb.Message {
	if !commitOnly(m) {
		return m
	}
	late := time.NewTimer(commitDelay)
	defer late.Stop()
	for commitOnly(m) {
		select {
		case next := <-p.queue:
			if next.GetType() != pb.MsgApp || next.GetTerm() != m.GetTerm() || next.GetCommit() < m.GetCommit() {
				p.early = next
				return m
			}
			m = next
		case <-late.C:
			return m
		case <-p.n.done:
			return nil
		}
	}
	return m
}

func commitOnly(m *pb.Message) bool { return m.GetType() == pb.MsgApp && len(m.GetEntries()) == 0 }

// send sends m and what else waits, as much as a frame should hold.
func (p *peer) send(ctx context.Context, m *pb.Message) error {
	req := &wirepb.Raft{}
	for bytes := 0; m != nil; {
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		req.Messages = append(req.Messages, b)
		if m, p.early = p.early, nil; m != nil {
			continue
		}
		if bytes += len(b); bytes < maxMsgBytes {
			select {
			case m = <-p.queue:
			default:
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	_, err := p.n.cfg.Pool.Call(ctx, p.addr, wire.OpRaft, req, nil, nil, nil)
	return err
}

// lost tells Raft to probe the peer from now on. What waits is dropped: it is
// stale by the time the peer is back.
func (p *peer) lost(err error) {
	p.n.log.Debug("raft messages lost", "to", p.id, "addr", p.addr, "err", err)
	for len(p.queue) > 0 {
		<-p.queue
	}
	p.n.loop.do(func() error {
		p.n.loop.raft.ReportUnreachable(uint64(p.id))
		return nil
	})
}

// send hands messages to the senders; a full queue drops them.
func (l *loop) send(ms []*pb.Message) {
	for _, m := range ms {
		p := l.n.peers[leaderID(m.GetTo())]
		if p == nil {
			continue
		}
		if m.GetType() == pb.MsgSnap {
			l.sendSnapshot(p, m)
			continue
		}
		select {
		case p.queue <- m:
		default:
			l.n.metrics.dropped.Inc()
		}
	}
}

// acceptable are the messages that come from other voters. Proposals are not
// forwarded, and a snapshot's message comes with its state.
func acceptable(t pb.MessageType) bool {
	switch t {
	case pb.MsgApp, pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp,
		pb.MsgHeartbeat, pb.MsgHeartbeatResp, pb.MsgTimeoutNow:
		return true
	}
	return false
}

// checkMessage refuses what is not from the peer that sent it, or not for us.
func (n *Node) checkMessage(m *pb.Message, from *wire.Peer, snapshot bool) error {
	id := leaderID(m.GetFrom())
	switch {
	case n.peers[id] == nil || from == nil || from.NodeID != id:
		return cfs.Errorf("raft message", cfs.BadRequest, "from node %d, which the connection's node is not", m.GetFrom())
	case m.GetTo() != uint64(n.cfg.NodeID):
		return cfs.Errorf("raft message", cfs.BadRequest, "for node %d, this is node %d", m.GetTo(), n.cfg.NodeID)
	case snapshot && (m.GetType() != pb.MsgSnap || raft.IsEmptySnap(m.GetSnapshot())) || !snapshot && !acceptable(m.GetType()):
		return cfs.Errorf("raft message", cfs.BadRequest, "type %s", m.GetType())
	}
	return nil
}

// serveRaft takes messages of another voter. The answer says only that they came.
func (n *Node) serveRaft(r *wire.Request) error {
	var req wirepb.Raft
	if err := r.Decode(&req); err != nil {
		return err
	}
	for _, b := range req.Messages {
		m := &pb.Message{}
		if err := proto.Unmarshal(b, m); err != nil {
			return cfs.E("raft message", cfs.BadRequest, err)
		}
		if err := n.checkMessage(m, r.Peer, false); err != nil {
			return err
		}
		select {
		case n.loop.messages <- m:
		default:
			n.metrics.dropped.Inc()
		}
	}
	return nil
}
