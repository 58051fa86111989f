package raftmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// A voter that was off while another was replaced follows, and elects, who came meanwhile.
func TestVoterThatMissedAReplacement(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.NodeTimeout = time.Hour }) // who joins sends one heartbeat
	s := c.session()
	c.mustCreate(s, 1, "before")
	c.converge()
	one, two, three := c.members[0], c.members[1], c.members[2]
	c.close(three)
	four := c.join()
	if err := c.verb(wire.VerbVoterReplace, one.id, four.id); err != nil {
		t.Fatal(err)
	}
	c.start(four, four.ln)
	c.waitVoters(2, 3, 4)
	c.gone(one, ErrRemoved)
	c.crash(two)
	c.start(three, nil)
	c.mustCreate(s, 2, "after")
	c.mustFind("before")
	c.converge()
}

// deaf loses the answers to heartbeats while it is told to.
type deaf struct {
	*Node
	on *atomic.Bool
}

func (d *deaf) Receive(r *wire.Request) error {
	var req wirepb.Raft
	if err := r.Decode(&req); err != nil {
		return err
	}
	for _, b := range req.Messages {
		m := &pb.Message{}
		if err := proto.Unmarshal(b, m); err != nil {
			return err
		}
		if d.on.Load() && m.GetType() == pb.MsgHeartbeatResp {
			return nil
		}
	}
	return d.Node.Receive(r)
}

// A read that is being confirmed when its leader becomes the only voter is answered.
func TestReadsWhileVotersBecomeOne(t *testing.T) {
	c := newCluster(t, 2, func(cfg *Config) { cfg.TickInterval = 3 * time.Second })
	other := c.leader()
	leader := c.others(other)[0]
	var on atomic.Bool
	c.close(leader)
	c.wrap = func(n *Node) wire.Handler { return &deaf{n, &on} }
	c.start(leader, nil)
	s := c.session()
	var seq uint64
	c.wait("the deaf one leads", func() bool {
		seq++
		c.mustCreate(s, seq, fmt.Sprint("f", seq))
		other.node.transfer()
		return c.leader() == leader
	})
	on.Store(true)
	ctx, cancel := contextWithin(patience)
	defer cancel()
	read := make(chan error, 1)
	go func() { read <- leader.node.confirm(ctx, "test") }()
	c.wait("the round is on its way", func() bool {
		asking := make(chan bool, 1)
		leader.node.loop.do(func() error { asking <- len(leader.node.loop.round.asking) > 0; return nil })
		return <-asking
	})
	gone := &memberChange{member: fsm.Member{ID: other.id}, gone: true}
	err := errors.New("not tried")
	for err != nil && ctx.Err() == nil {
		err = leader.node.duties.Load().changeMembers(ctx, gone, func(r *roster) bool { return r.find(other.id) == nil })
	}
	if err := errors.Join(err, <-read); err != nil {
		t.Error(err)
	}
}

// Only who says that it votes, and has nothing, is a seed of a cluster that is being made.
func TestWhoIsEmpty(t *testing.T) {
	empty := func() *wirepb.StatusReply {
		return &wirepb.StatusReply{Voter: true, CommitIndex: firstIndex, AppliedIndex: firstIndex, LastIndex: firstIndex}
	}
	if !isEmpty(empty()) {
		t.Error("a voter that has nothing is not empty")
	}
	for name, change := range map[string]func(*wirepb.StatusReply){
		"without a replica": func(r *wirepb.StatusReply) { *r = wirepb.StatusReply{} },
		"a learner":         func(r *wirepb.StatusReply) { r.Voter = false },
		"with a log":        func(r *wirepb.StatusReply) { r.LastIndex++ },
		"with a state":      func(r *wirepb.StatusReply) { r.AppliedIndex++ },
		"with a map":        func(r *wirepb.StatusReply) { r.Map = &wirepb.Map{Version: 1} },
	} {
		r := empty()
		if change(r); isEmpty(r) {
			t.Errorf("one %s counts as empty", name)
		}
	}
	c := newCluster(t, 3, nil)
	c.mustCreate(c.session(), 1, "a")
	c.converge()
	for _, m := range c.members {
		c.close(m)
	}
	c.start(c.members[1], nil)
	if r := c.members[1].node.Status(); r.Term == 0 || isEmpty(r) {
		t.Errorf("a voter that was started anew says that it has never voted: term %d, log to %d", r.Term, r.LastIndex)
	}
}

// The seed nodes of the command line do not change a membership.
func TestAdoptMembersRefuses(t *testing.T) {
	n := &Node{cfg: Config{Seeds: []string{"a:1"}}}
	b := kv.NewMem().NewBatch()
	if err := n.adoptMembers(b, &current{conf: &pb.ConfState{Voters: []uint64{1, 2, 3}}}); !errors.Is(err, cfs.Conflict) {
		t.Errorf("one seed for three voters: %v", err)
	}
	n.cfg.Seeds = []string{"a:1", "b:1", "c:1"}
	if err := n.adoptMembers(b, &current{conf: &pb.ConfState{Voters: []uint64{3, 2, 1}}}); err != nil {
		t.Error(err)
	}
}

// A snapshot is no way around a disk that is full.
func TestSnapshotMeetsFullDisk(t *testing.T) {
	var full atomic.Bool
	c := newCluster(t, 2, func(cfg *Config) {
		cfg.FreeSpace = func(string) (uint64, uint64, error) {
			if full.Load() {
				return 0, 1 << 40, nil
			}
			return 1 << 39, 1 << 40, nil
		}
	})
	to := c.members[1].node
	piece := func(index uint64) error {
		b := binary.LittleEndian.AppendUint32(nil, crc32.Checksum(nil, crc32.MakeTable(crc32.Castagnoli)))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := c.members[0].pool.Call(ctx, c.members[1].addr, wire.OpSnapshot, &wirepb.Snapshot{Index: index, Term: 1}, [][]byte{b}, nil, nil)
		return err
	}
	coming := func() bool {
		to.inMu.Lock()
		defer to.inMu.Unlock()
		return to.in != nil
	}
	if err := piece(1000); err != nil || !coming() {
		t.Fatalf("a piece with room: %v", err)
	}
	full.Store(true)
	c.wait("the disk is full", to.disk.full.Load)
	if err := piece(1001); !errors.Is(err, cfs.NoSpace) || coming() {
		t.Errorf("a piece without: %v, and the earlier one is there: %v", err, coming())
	}
}

func FuzzAddr(f *testing.F) {
	for _, s := range []string{"10.0.0.1:9400", "[::1]:1", "host:0", ":1", "", "a:99999", strings.Repeat("x", 300) + ":1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if isAddr(s) && (len(s) > cfs.MaxName || !strings.Contains(s, ":")) {
			t.Errorf("%q is taken for an address", s)
		}
	})
}
