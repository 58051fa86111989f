package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// partEvery is the rhythm in which a node looks whether it is to have a replica.
const partEvery = 200 * time.Millisecond

// lostTimeout bounds the questions of a node whose replica is lost.
const lostTimeout = 10 * time.Second

// removedSuffix marks a replica's directory that is being removed.
const removedSuffix = ".removed"

// replica is the node's part in the namespace: a replica where it is a member of the
// log, else only the map, which it asks the leader for.
type replica struct {
	n        *Node
	raft     atomic.Pointer[raftmeta.Node] // nil without a part in the log
	followed atomic.Pointer[cfs.Map]       // as the leader last told it
	behind   uint64                        // of the heartbeats: the version that the last one told

	mu      sync.Mutex
	changed chan struct{} // closed when followed or raft becomes another
}

// mapChanged are closed when Map may be another than at the call; own is nil without a part in the log.
func (r *replica) mapChanged() (own, followed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if raft := r.raft.Load(); raft != nil {
		own = raft.MapChanged()
	}
	return own, r.changed
}

// follow takes a map that the leader told, unless a newer one is here.
func (r *replica) follow(m *cfs.Map) {
	for {
		old := r.followed.Load()
		if old != nil && old.Version >= m.Version {
			return
		}
		if r.followed.CompareAndSwap(old, m) {
			r.tell()
			return
		}
	}
}

// take makes raft the node's replica; nil for none.
func (r *replica) take(raft *raftmeta.Node) {
	r.raft.Store(raft)
	r.tell()
}

func (r *replica) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// Map is the newest layout that the node knows: a learner's own may be far behind.
func (r *replica) Map() *cfs.Map {
	m := r.followed.Load()
	if raft := r.raft.Load(); raft != nil {
		if own := raft.Map(); m == nil || own.Version >= m.Version {
			return own
		}
	}
	return m
}

// knows reports a server that is part of the cluster, as far as this node has heard. Where there are no certificates,
// or nothing is known yet, every server is.
func (r *replica) knows(id cfs.NodeID) bool {
	m := r.Map()
	if m.CA == "" || slices.ContainsFunc(m.Nodes, func(n cfs.Node) bool { return n.ID == id }) {
		return true
	}
	raft := r.raft.Load()
	return raft != nil && raft.Knows(id)
}

// Leads reports that this node leads the voters, as far as it knows.
func (r *replica) Leads() bool {
	raft := r.raft.Load()
	return raft != nil && raft.Leads()
}

// Serve answers what is the namespace's.
func (r *replica) Serve(ctx context.Context, req *wire.Request) (wire.Response, error) {
	if raft := r.raft.Load(); raft != nil {
		return raft.Serve(ctx, req)
	}
	if req.Op == wire.OpStatus {
		return wire.Response{Body: r.status()}, nil
	}
	return wire.Response{}, wire.NotLeaderError(req.Op.String(), r.n.leader.believed())
}

// Receive takes the other members' messages; without a part in the log they are lost, as any may be.
func (r *replica) Receive(req *wire.Request) error {
	if raft := r.raft.Load(); raft != nil {
		return raft.Receive(req)
	}
	return nil
}

// status is what a node without a replica knows of the cluster.
func (r *replica) status() *wirepb.StatusReply {
	m := r.Map()
	s := &wirepb.StatusReply{ClusterId: r.n.cfg.ClusterID, NodeId: uint32(r.n.cfg.NodeID), Map: wire.MapToPB(m), LeaderAddr: r.n.leader.believed()}
	for _, v := range m.Nodes {
		if v.Addr == s.LeaderAddr {
			s.LeaderId = uint32(v.ID)
		}
	}
	return s
}

// Top is what the node has done of the namespace's work.
func (r *replica) Top() *wirepb.TopReply {
	if raft := r.raft.Load(); raft != nil {
		return raft.Top()
	}
	return &wirepb.TopReply{NodeId: uint32(r.n.cfg.NodeID)}
}

// open starts the replica in the node's directory. Without seeds it is a learner's,
// where there is no state yet.
func (r *replica) open(seeds []string, peers map[cfs.NodeID]string) error {
	n := r.n
	raft, err := raftmeta.Open(raftmeta.Config{
		ClusterID: n.cfg.ClusterID, NodeID: n.cfg.NodeID, Dir: n.raftDir(),
		Seeds: seeds, Peers: peers, Addr: n.addr, Known: n.dir.servers(), Pool: n.pools[0], Clock: offsetClock{n.cfg.ClockOffset, n.cfg.ClockJump},
		SegmentBytes: n.cfg.RaftSegmentBytes, SyncDelay: n.cfg.SyncDelay,
		OutAfter: n.cfg.OutAfter, CertLifetime: n.cfg.CertLifetime,
		Logger: n.log.With("part", "raft"), Metrics: n.raftMetrics,
	})
	if err == nil {
		r.take(raft)
	}
	return err
}

// close ends the replica.
func (r *replica) close() error {
	if raft := r.raft.Load(); raft != nil {
		return raft.Close()
	}
	return nil
}

func (n *Node) raftDir() string { return filepath.Join(n.dir.path, raftDir) }

// startPart begins with what the node's directory says: a replica, or none.
func (n *Node) startPart() error {
	n.raft.follow(&cfs.Map{ClusterID: n.cfg.ClusterID})
	if err := os.RemoveAll(n.raftDir() + removedSuffix); err != nil {
		return cfs.E("remove the replica", cfs.KindOf(err), err)
	}
	here, err := raftmeta.HasState(n.raftDir())
	switch s := &n.dir.state; {
	case err != nil:
		return err
	case !here && s.Replica:
		return n.lostPart()
	case !s.Joined:
		return n.raft.open(n.cfg.Seeds, nil)
	case !here:
		return nil
	}
	return n.raft.open(nil, n.dir.state.Members) // it has become a member since it joined
}

// lostPart begins without the replica that the node once had, if the cluster has removed it. Else the
// node ends: with an empty one it would vote as if what it voted and acknowledged had never been,
// or found another cluster.
func (n *Node) lostPart() error {
	ctx, cancel := context.WithTimeout(context.Background(), lostTimeout)
	defer cancel()
	why := "it is a member of the cluster still"
	for {
		a, err := n.ask(ctx, &cfs.Query{Kind: cfs.QueryMap})
		switch {
		case err == nil && a.Kind == cfs.KindOK && a.Map != nil:
			if slices.ContainsFunc(a.Map.Nodes, func(v cfs.Node) bool { return v.ID == n.cfg.NodeID && (v.Voter || v.Learner) }) {
				break
			}
			n.raft.follow(a.Map)
			return n.remember(votersOf(a.Map), true)
		case ctx.Err() != nil || len(n.leader.servers()) == 1 && n.leader.servers()[0] == n.addr:
			why = "no leader says that it is a member no more"
		default:
			time.Sleep(partEvery)
			continue
		}
		return cfs.Errorf("replica in "+n.raftDir(), cfs.Conflict,
			"the replica is lost, and %s: on another server run \"cfs admin voter remove %d\", then start this one again: it only stores until \"cfs admin voter add %d\"",
			why, n.cfg.NodeID, n.cfg.NodeID)
	}
}

// keepPart gives the node a replica when the cluster has made it a member, and ends
// it when it is none any more, until ctx ends.
func (n *Node) keepPart(ctx context.Context) {
	tick := time.NewTicker(partEvery)
	defer tick.Stop()
	for {
		raft := n.raft.raft.Load()
		if raft == nil {
			if err := n.takePart(); err != nil {
				n.fail(err)
				return
			}
		}
		var ended <-chan struct{}
		if raft != nil {
			ended = raft.Done()
			n.notePart(raft)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-ended:
			if ctx.Err() != nil {
				return
			}
			if err := n.endPart(raft); err != nil {
				n.fail(err)
				return
			}
		}
	}
}

// notePart records that the node has a replica, once that has taken part.
func (n *Node) notePart(raft *raftmeta.Node) {
	if !raft.TakesPart() {
		return
	}
	err := n.dir.change(func(s *state) bool {
		was := s.Replica
		s.Replica = true
		return !was
	})
	if err != nil {
		n.log.Warn("it is not recorded that this node has a replica", "err", err)
	}
}

// takePart opens a replica for a node that the map says is to be a voter.
func (n *Node) takePart() error {
	m := n.raft.Map()
	peers, mine := map[cfs.NodeID]string{}, false
	for _, v := range m.Nodes {
		if v.Voter {
			peers[v.ID] = v.Addr
		}
		mine = mine || v.ID == n.cfg.NodeID && v.Learner
	}
	if !mine {
		return nil
	}
	if err := n.dir.change(func(s *state) bool { s.Members = peers; return true }); err != nil {
		return err
	}
	n.log.Info("this node is a learner, and becomes a voter when it has caught up")
	return n.raft.open(nil, peers)
}

// endPart ends a replica that has ended by itself. One that the cluster has removed goes
// with all its data: from then on the node only stores.
func (n *Node) endPart(raft *raftmeta.Node) error {
	why := raft.Err()
	if !errors.Is(why, raftmeta.ErrRemoved) {
		return why
	}
	n.log.Info("this node is no voter any more: it keeps its devices, and asks the leader for the map")
	voters := raft.Voters()
	n.raft.follow(raft.Map())
	if err := raft.Close(); err != nil {
		n.log.Warn("closing the replica", "err", err)
	}
	if newer := votersOf(n.raft.Map()); len(newer) > 0 { // the leader may have told of a later one
		voters = newer
	}
	if err := n.remember(voters, true); err != nil {
		return err
	}
	n.raft.take(nil)
	gone := n.raftDir() + removedSuffix // one that is removed in part is none either
	if err := os.RemoveAll(gone); err != nil {
		return cfs.E("remove the replica", cfs.KindOf(err), err)
	}
	if err := os.Rename(n.raftDir(), gone); err != nil {
		return cfs.E("remove the replica", cfs.KindOf(err), err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return cfs.E("remove the replica", cfs.KindOf(err), err)
	}
	return nil
}

// remember records who the other voters are, and of a node that has left the log that it is no founder.
func (n *Node) remember(voters []string, left bool) error {
	others := slices.DeleteFunc(slices.Clone(voters), func(a string) bool { return a == n.addr || a == "" })
	return n.dir.change(func(s *state) bool {
		if slices.Equal(s.Servers, others) && (!left || s.Joined && !s.Replica) {
			return false
		}
		s.Servers = others
		if left {
			s.Joined, s.Replica = true, false
		}
		return true
	})
}

// followMap asks the leader for a map that is newer than the node's own, as a heartbeat has told. A member learns
// it from the log, unless it takes no part now: then it lags still when the next heartbeat comes.
func (n *Node) followMap(ctx context.Context, version uint64) error {
	raft, own := n.raft.raft.Load(), n.raft.Map().Version
	lags := own < n.raft.behind
	n.raft.behind = version
	switch {
	case own >= version:
		return n.followVoters()
	case raft != nil && raft.Member() && !lags:
		return nil
	}
	a, err := n.ask(ctx, &cfs.Query{Kind: cfs.QueryMap})
	if err != nil {
		return err
	}
	if a.Kind != cfs.KindOK || a.Map == nil {
		return cfs.E("map", a.Kind, nil)
	}
	n.raft.follow(a.Map)
	return n.followVoters()
}

// votersOf are the addresses of a map's voters.
func votersOf(m *cfs.Map) []string {
	var addrs []string
	for _, v := range m.Nodes {
		if v.Voter && v.Addr != "" {
			addrs = append(addrs, v.Addr)
		}
	}
	return addrs
}

// followVoters makes the voters of the map, which the leader knows no newer one than, those that the node asks.
func (n *Node) followVoters() error {
	addrs := votersOf(n.raft.Map())
	if len(addrs) == 0 {
		return nil
	}
	n.leader.setServers(addrs)
	return n.remember(addrs, false)
}
