package raftmeta

import (
	"context"
	"maps"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
)

const (
	// firstIndex is where the log of a cluster begins: a replica without state is before
	// that, so that it is never given entries alone.
	firstIndex = 1
	// changeTimeout bounds one change of the membership, from its proposal to its effect.
	changeTimeout = 5 * time.Second
	// maxLag is how many entries a learner may lack to be made a voter.
	maxLag = 1000
)

// ErrRemoved is the failure of a replica that the cluster has removed: its directory
// means nothing any more.
var ErrRemoved = cfs.Errorf("replica", cfs.NotFound, "the cluster has removed it from the voters")

// roster is the membership as this node has applied it, and where to reach everybody.
type roster struct {
	members []fsm.Member // by id
	addrs   map[cfs.NodeID]string
}

func (r *roster) find(id cfs.NodeID) *fsm.Member {
	for i := range r.members {
		if r.members[i].ID == id {
			return &r.members[i]
		}
	}
	return nil
}

// voters counts those that vote.
func (r *roster) voters() int {
	n := 0
	for i := range r.members {
		if !r.members[i].Learner {
			n++
		}
	}
	return n
}

// conf is the membership as Raft has it.
func (r *roster) conf() *pb.ConfState {
	c := &pb.ConfState{}
	for _, m := range r.members {
		if m.Learner {
			c.Learners = append(c.Learners, uint64(m.ID))
		} else {
			c.Voters = append(c.Voters, uint64(m.ID))
		}
	}
	return c
}

// newRoster finds the addresses: that of the map where a node has told one, since nodes move.
func newRoster(m *cfs.Map, members []fsm.Member, more map[cfs.NodeID]string) *roster {
	r := &roster{members: members, addrs: map[cfs.NodeID]string{}}
	if len(members) == 0 { // a learner without a state
		maps.Copy(r.addrs, more)
	}
	for _, v := range members {
		r.addrs[v.ID] = v.Addr
	}
	for _, v := range m.Nodes {
		if r.find(v.ID) != nil && v.Addr != "" {
			r.addrs[v.ID] = v.Addr
		}
	}
	return r
}

// followRoster takes connections to new members up, and drops those of others.
// It runs in the loop, and before it.
func (l *loop) followRoster() {
	addrs := l.addresses()
	old := l.n.peersNow()
	peers := map[cfs.NodeID]*peer{}
	for id, addr := range addrs {
		switch p := old[id]; {
		case id == l.n.cfg.NodeID:
		case p != nil && p.addr == addr:
			peers[id] = p
		default:
			peers[id] = l.newPeer(id, addr)
		}
	}
	for id, p := range old {
		if peers[id] != p {
			p.timer.Stop()
		}
	}
	l.n.peers.Store(&peers)
}

// peersNow are the other members; the map is never changed in place.
func (n *Node) peersNow() map[cfs.NodeID]*peer {
	if p := n.peers.Load(); p != nil {
		return *p
	}
	return nil
}

// member is the peer of an id, nil for none.
func (n *Node) member(id cfs.NodeID) *peer { return n.peersNow()[id] }

// Voters are the addresses of the voters as this node has applied them.
func (n *Node) Voters() []string {
	var out []string
	r := n.roster.Load()
	for _, m := range r.members {
		if !m.Learner {
			out = append(out, r.addrs[m.ID])
		}
	}
	return out
}

// votes reports that this node is a voter as far as it has applied.
func (n *Node) votes() bool {
	m := n.roster.Load().find(n.cfg.NodeID)
	return m != nil && !m.Learner
}

// alone reports that this node is the only voter as far as it has applied.
func (n *Node) alone() bool { return n.votes() && n.roster.Load().voters() == 1 }

// Member reports whether this node has a part in the log as it has applied it.
func (n *Node) Member() bool { return n.roster.Load().find(n.cfg.NodeID) != nil }

// memberChange is one step from a membership to the next.
type memberChange struct {
	member fsm.Member
	gone   bool
}

func (c *memberChange) encode() (*pb.ConfChangeV2, error) {
	kind := pb.ConfChangeAddNode
	switch {
	case c.gone:
		kind = pb.ConfChangeRemoveNode
	case c.member.Learner:
		kind = pb.ConfChangeAddLearnerNode
	}
	return &pb.ConfChangeV2{
		Changes: []*pb.ConfChangeSingle{{Type: kind.Enum(), NodeId: new(uint64(c.member.ID))}},
		Context: fsm.EncodeMember(&c.member),
	}, nil
}

// decodeChange reads the log entry of a change.
func decodeChange(e *pb.Entry) (*memberChange, *pb.ConfChangeV2, error) {
	const op = "decode change of the membership"
	var cc pb.ConfChangeV2
	if err := proto.Unmarshal(e.GetData(), &cc); err != nil {
		return nil, nil, cfs.E(op, cfs.Corrupt, err)
	}
	if len(cc.Changes) != 1 {
		return nil, nil, cfs.Errorf(op, cfs.Unsupported, "%d changes in one step", len(cc.Changes))
	}
	m, ok := fsm.DecodeMember(cc.Context)
	if !ok || uint64(m.ID) != cc.Changes[0].GetNodeId() {
		return nil, nil, cfs.Errorf(op, cfs.Corrupt, "its member cannot be read")
	}
	c := &memberChange{member: *m, gone: cc.Changes[0].GetType() == pb.ConfChangeRemoveNode}
	if learner := cc.Changes[0].GetType() == pb.ConfChangeAddLearnerNode; !c.gone && learner != m.Learner {
		return nil, nil, cfs.Errorf(op, cfs.Corrupt, "it contradicts itself")
	}
	return c, &cc, nil
}

// applyChange brings a change of the membership into effect: in the state, in the
// same batch as all else of its index, and in Raft.
func (l *loop) applyChange(b kv.Batch, e *pb.Entry, eff *effects) error {
	c, cc, err := decodeChange(e)
	if err != nil {
		return err
	}
	if err := fsm.ChangeMember(b, e.GetIndex(), &c.member, c.gone); err != nil {
		return err
	}
	l.conf = l.raft.ApplyConfChange(cc)
	l.round.again()
	eff.mapChanged, eff.members = true, true
	eff.removed = eff.removed || c.gone && c.member.ID == l.n.cfg.NodeID
	l.n.log.Info("membership changed", "member", c.member.ID, "addr", c.member.Addr, "learner", c.member.Learner, "gone", c.gone,
		"voters", l.conf.GetVoters(), "learners", l.conf.GetLearners())
	return nil
}

// progress is what the leader knows of a member.
type progress struct {
	match  uint64
	active bool
}

// progressOf asks the loop; nil where this node does not lead.
func (n *Node) progressOf(ctx context.Context) (map[cfs.NodeID]progress, uint64, error) {
	type answer struct {
		of     map[cfs.NodeID]progress
		commit uint64
	}
	got := make(chan answer, 1)
	asked := n.loop.do(func() error {
		s := n.loop.raft.Status()
		a := answer{of: map[cfs.NodeID]progress{}, commit: s.GetCommit()}
		for id, p := range s.Progress {
			a.of[leaderID(id)] = progress{match: p.Match, active: p.RecentActive}
		}
		got <- a
		return nil
	})
	if !asked {
		return nil, 0, n.unavailable("membership")
	}
	select {
	case a := <-got:
		return a.of, a.commit, nil
	case <-ctx.Done():
		return nil, 0, cfs.E("membership", contextKind(ctx), ctx.Err())
	case <-n.done:
		return nil, 0, n.unavailable("membership")
	}
}

// changeMembers proposes a change and waits until the roster says that it is in effect.
// Only the duties do it, one change at a time.
func (d *duties) changeMembers(ctx context.Context, c *memberChange, done func(*roster) bool) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	cc, err := c.encode()
	if err != nil {
		return err
	}
	refused := make(chan error, 1)
	l := d.n.loop
	if !l.do(func() error { refused <- l.raft.ProposeConfChange(cc); return nil }) {
		return d.n.unavailable("membership")
	}
	for {
		changed := d.n.MapChanged()
		if done(d.n.roster.Load()) {
			return nil
		}
		select {
		case <-changed:
		case err := <-refused:
			if err != nil {
				return cfs.E("membership", cfs.Unavailable, err)
			}
		case <-ctx.Done():
			return cfs.Errorf("membership", contextKind(ctx), "the change has not come into effect; it still may")
		}
	}
}

// workMembers brings learners on: one that has caught up becomes a voter, and
// the voter that it replaces goes then.
func (d *duties) workMembers(ctx context.Context) error {
	r := d.n.roster.Load()
	pending := slices.ContainsFunc(r.members, func(m fsm.Member) bool { return m.Learner || m.Replaces != 0 })
	if !pending {
		return nil
	}
	of, commit, err := d.n.progressOf(ctx)
	if err != nil {
		return err
	}
	for _, m := range r.members {
		switch p := of[m.ID]; {
		case m.Learner && m.Replica != (cfs.UUID{}) && p.active && p.match+maxLag >= commit && p.match > 0:
			m.Learner = false
			d.n.log.Info("a learner has caught up and becomes a voter", "node", m.ID)
			return d.changeMembers(ctx, &memberChange{member: m}, func(r *roster) bool {
				now := r.find(m.ID)
				return now == nil || !now.Learner
			})
		case !m.Learner && m.Replaces != 0:
			return d.removeMember(ctx, m.Replaces)
		}
	}
	return nil
}

// removeMember removes a member. The leader itself hands its leadership over
// first; its successor is to ask again.
func (d *duties) removeMember(ctx context.Context, id cfs.NodeID) error {
	if id == d.n.cfg.NodeID {
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		defer cancel()
		for d.n.lead.Load().mine {
			if ctx.Err() != nil {
				return cfs.Errorf("voter remove", cfs.Unavailable, "node %d leads, and no other voter has taken over", id)
			}
			d.n.transfer()
			sleepOr(ctx, d.n.cfg.TickInterval)
		}
		return d.n.notLeader("voter remove")
	}
	return d.changeMembers(ctx, &memberChange{member: fsm.Member{ID: id}, gone: true}, func(r *roster) bool { return r.find(id) == nil })
}

// live counts the voters that are heard of without one, and all of them.
func (d *duties) live(ctx context.Context, without cfs.NodeID) (live, all int, err error) {
	of, _, err := d.n.progressOf(ctx)
	if err != nil {
		return 0, 0, err
	}
	// Raft forgets at times whom it has heard, until it hears them again: so it is asked twice.
	sleepOr(ctx, 3*heartbeatTicks*d.n.cfg.TickInterval)
	again, _, err := d.n.progressOf(ctx)
	for _, m := range d.n.roster.Load().members {
		if m.Learner || m.ID == without {
			continue
		}
		all++
		if m.ID == d.n.cfg.NodeID || of[m.ID].active || again[m.ID].active {
			live++
		}
	}
	return live, all, err
}

// loadRoster publishes the membership in the state.
func (n *Node) loadRoster(m *cfs.Map, r fsm.Reader) error {
	members, err := fsm.ReadMembers(r)
	if err == nil {
		n.roster.Store(newRoster(m, members, n.cfg.Peers))
	}
	return err
}

// foundMembers are the voters that a cluster starts with.
func (c *Config) foundMembers() []fsm.Member {
	var out []fsm.Member
	for i, addr := range c.Seeds {
		out = append(out, fsm.Member{ID: cfs.NodeID(i + 1), Addr: addr})
	}
	return out
}
