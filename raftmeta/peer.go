package raftmeta

import (
	"errors"
	"maps"
	"net"
	"strconv"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// commitDelay is how long the followers' knowledge of a commit may be late.
const commitDelay = 2 * time.Millisecond

// keepFrameBytes is the largest frame whose memory is kept for the next one.
const keepFrameBytes = 64 << 10

// peer is another voter, as the loop sends to it: what Raft has for it at one
// time travels in one one-way frame, written by the loop itself.
type peer struct {
	id   cfs.NodeID
	addr string

	// Of the loop.
	held  *pb.Message // waits for the next one to say the same and more
	timer *time.Timer // of held
	frame wirepb.Raft // to be sent; its messages lie in buf, mostly
	buf   []byte
	bytes int // of the frame's messages
}

func (l *loop) newPeer(id cfs.NodeID, addr string) *peer {
	p := &peer{id: id, addr: addr}
	p.timer = time.AfterFunc(time.Hour, func() {
		select {
		case l.late <- p:
		case <-l.n.done:
		}
	})
	p.timer.Stop()
	return p
}

// send sends Raft's messages.
func (l *loop) send(ms []*pb.Message) {
	peers := l.n.peersNow()
	for _, m := range ms {
		p := peers[leaderID(m.GetTo())]
		if p == nil {
			continue
		}
		if m.GetType() == pb.MsgSnap {
			l.sendSnapshot(p, m)
			continue
		}
		l.post(p, m)
	}
	for _, p := range peers {
		l.flush(p, false)
	}
}

// post puts a message into the peer's frame, behind the one that is held, unless
// m says what that said. A message that only says how far the leader has
// committed is held for a moment: under load the next entries say it too, and
// the message, its answer and their handling are saved.
func (l *loop) post(p *peer, m *pb.Message) {
	if h := p.held; h != nil {
		p.held = nil
		if m.GetType() != pb.MsgApp || m.GetTerm() != h.GetTerm() || m.GetCommit() < h.GetCommit() {
			l.put(p, h)
		} else if commitOnly(m) {
			p.held = m // for as long as h would have been
			return
		}
	}
	if commitOnly(m) {
		p.held = m
		p.timer.Reset(commitDelay)
		return
	}
	l.put(p, m)
}

func commitOnly(m *pb.Message) bool { return m.GetType() == pb.MsgApp && len(m.GetEntries()) == 0 }

// put encodes a message into the peer's frame.
func (l *loop) put(p *peer, m *pb.Message) {
	start := len(p.buf)
	b, err := proto.MarshalOptions{}.MarshalAppend(p.buf, m)
	if err != nil {
		l.lost(p, err)
		return
	}
	p.buf = b
	p.frame.Messages = append(p.frame.Messages, b[start:])
	if p.bytes += len(b) - start; p.bytes >= maxMsgBytes {
		l.flush(p, false)
	}
}

// flush sends the peer's frame, with what is held if that is due.
func (l *loop) flush(p *peer, late bool) {
	if h := p.held; h != nil && late {
		p.held = nil
		l.put(p, h)
	}
	if len(p.frame.Messages) == 0 {
		return
	}
	p.frame.Addr = l.n.ownAddr()
	if err := l.n.cfg.Pool.Send(p.addr, wire.OpRaft, &p.frame); err != nil {
		l.lost(p, err)
	}
	clear(p.frame.Messages)
	p.frame.Messages, p.bytes = p.frame.Messages[:0], 0
	if p.buf = p.buf[:0]; cap(p.buf) > keepFrameBytes {
		p.buf = nil
	}
}

// lost tells Raft to probe the peer from now on.
func (l *loop) lost(p *peer, err error) {
	if errors.Is(err, cfs.Overloaded) {
		l.n.metrics.dropped.Add(float64(len(p.frame.Messages)))
	}
	l.n.log.Debug("raft messages lost", "to", p.id, "addr", p.addr, "err", err)
	l.raft.ReportUnreachable(uint64(p.id))
}

// told is an address that a member, or a stranger, has said of itself, in the place of the one that the state
// had then: it holds for as long as the state says the same.
type told struct{ addr, instead string }

// ownAddr is where others reach this node.
func (n *Node) ownAddr() string {
	if n.cfg.Addr != "" {
		return n.cfg.Addr
	}
	return n.addrOf(n.cfg.NodeID)
}

// noteAddr has the loop note at what address the sender of a message of a term is reached, where that is news. A
// note that finds no room is lost: the next message brings it again.
func (n *Node) noteAddr(id cfs.NodeID, addr string, term uint64) {
	if p := n.member(id); p != nil && p.addr == addr || !isAddr(addr) || id == n.cfg.NodeID {
		return
	}
	select {
	case n.loop.control <- func() error { n.loop.note(id, addr, term); return nil }:
	default:
	}
}

// note takes an address: that of a stranger, or of a member whose message is not older than the present term.
func (l *loop) note(id cfs.NodeID, addr string, term uint64) {
	known := l.n.roster.Load().addrs[id]
	if _, again := l.told[id]; known != "" && term < l.hard.GetTerm() || !again && len(l.told) >= fsm.MaxMembers {
		return
	}
	l.told[id] = told{addr: addr, instead: known}
	l.followRoster()
}

// addresses are those of the members by the state, and what was told since.
func (l *loop) addresses() map[cfs.NodeID]string {
	out := maps.Clone(l.n.roster.Load().addrs)
	for id, t := range l.told {
		if out[id] != t.instead {
			delete(l.told, id)
			continue
		}
		out[id] = t.addr
	}
	return out
}

// isAddr reports that an address is a HOST:PORT that can be called.
func isAddr(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	n, numErr := strconv.ParseUint(port, 10, 16)
	return err == nil && numErr == nil && n != 0 && host != "" && len(addr) <= cfs.MaxName
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

// checkMessage refuses what is not from the peer that sent it, or not for us. Who may ask is no question of the
// membership as this node knows it: the sender may be a member by a change that this node has missed. Raft
// itself takes no answers from others than those it has asked.
func (n *Node) checkMessage(m *pb.Message, from *wire.Peer, snapshot bool) error {
	id := leaderID(m.GetFrom())
	switch {
	case id == 0 || from == nil || from.NodeID != id:
		return cfs.Errorf("raft message", cfs.BadRequest, "from node %d, which the connection's node is not", m.GetFrom())
	case m.GetTo() != uint64(n.cfg.NodeID):
		return cfs.Errorf("raft message", cfs.BadRequest, "for node %d, this is node %d", m.GetTo(), n.cfg.NodeID)
	case snapshot && (m.GetType() != pb.MsgSnap || raft.IsEmptySnap(m.GetSnapshot())) || !snapshot && !acceptable(m.GetType()):
		return cfs.Errorf("raft message", cfs.BadRequest, "type %s", m.GetType())
	}
	return nil
}

// Receive takes messages of another voter, on the goroutine that reads its
// connection. A node that has ended, or whose loop is behind, drops them.
func (n *Node) Receive(r *wire.Request) error {
	if r.Op != wire.OpRaft {
		return cfs.Errorf("", cfs.Unsupported, "not taken one-way")
	}
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
		n.noteAddr(r.Peer.NodeID, req.Addr, m.GetTerm())
		select {
		case n.loop.messages <- m:
		default:
			n.metrics.dropped.Inc()
		}
	}
	return nil
}
