package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// askLeader has the leader of a cluster carry out a verb.
func askLeader(t *testing.T, addr string, req *wirepb.Admin) error {
	t.Helper()
	var err error
	waitFor(t, "a leader answers", func() bool {
		led := waitStatus(t, addr, func(r *wirepb.StatusReply) bool { return r.LeaderAddr != "" })
		err = call(t, led.LeaderAddr, wire.OpAdmin, req, &wirepb.AdminReply{})
		switch cfs.KindOf(err) {
		case cfs.NotLeader, cfs.Unavailable, cfs.Closed:
			return false
		}
		return true
	})
	return err
}

// voters waits until a server's map names just these voters.
func waitVoters(t *testing.T, addr string, want ...cfs.NodeID) {
	t.Helper()
	waitStatus(t, addr, func(r *wirepb.StatusReply) bool {
		var got []cfs.NodeID
		for _, n := range r.GetMap().GetNodes() {
			if n.Voter {
				got = append(got, cfs.NodeID(n.Id))
			}
			if n.Learner {
				return false
			}
		}
		if len(got) != len(want) {
			return false
		}
		for i := range got {
			if got[i] != want[i] {
				return false
			}
		}
		return true
	})
}

func joinConfig(t *testing.T, dir string, id cfs.NodeID, seeds []string) Config {
	t.Helper()
	cfg := aloneConfig(t, mkdir(t, dir, string(rune('0'+id))))
	cfg.ClusterID, cfg.NodeID, cfg.Listen, cfg.Join = "", id, freeAddrs(t, 1)[0], seeds
	return cfg
}

// A server joins with devices alone, takes the place of a voter, and gives it up; it
// resumes from its directory. One whose directory was lost does not vote.
func TestServersComeAndGo(t *testing.T) {
	dir := t.TempDir()
	addrs, nodes := startNodes(t, dir, 3, func(*Config) {})
	for _, addr := range addrs {
		waitStatus(t, addr, devicesUp(6))
	}
	c := dial(t, addrs)
	want := bytes.Repeat([]byte("claudefs"), 1<<17)
	writeFile(t, c, "first", want)
	found, err := c.Lookup(t.Context(), cfs.RootIno, "first")
	if err != nil {
		t.Fatal(err)
	}
	a := found.Ino

	cfg := joinConfig(t, dir, 4, addrs[1:2])
	taken := joinConfig(t, dir, 5, addrs[1:2])
	taken.NodeID = 2
	refuseStart(t, taken, cfs.Exists, "voter")
	four, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	waitStatus(t, four.Addr(), devicesUp(8))
	if four.raft.raft.Load() != nil {
		t.Error("a server that has joined has a replica")
	}
	taken.NodeID = 4
	refuseStart(t, taken, cfs.Exists, "--node-id")

	// It resumes with nothing but its directory.
	if err := four.Close(); err != nil {
		t.Fatal(err)
	}
	again := Config{DataDir: cfg.DataDir, SegmentBytes: cfg.SegmentBytes, RaftSegmentBytes: cfg.RaftSegmentBytes}
	four = start(t, again)
	if four.Addr() != cfg.Listen {
		t.Errorf("it came back at %s, and was at %s", four.Addr(), cfg.Listen)
	}
	waitStatus(t, addrs[0], devicesUp(8))

	if err := askLeader(t, addrs[0], &wirepb.Admin{Verb: uint32(wire.VerbVoterReplace), Node: 3, Other: 4}); err != nil {
		t.Fatal(err)
	}
	for _, addr := range append(addrs, four.Addr()) {
		waitVoters(t, addr, 1, 2, 4)
	}
	waitFor(t, "the old voter has no replica", func() bool { return nodes[2].raft.raft.Load() == nil })
	if _, err := os.Stat(filepath.Join(nodes[2].dir.path, raftDir)); !os.IsNotExist(err) {
		t.Errorf("its data are still there: %v", err)
	}
	checkFile(t, c, a, "with another voter", want)

	// The directory of node 2 is lost: it must not vote.
	two := nodes[1].cfg
	if err := nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(two.DataDir, raftDir)); err != nil {
		t.Fatal(err)
	}
	refuseStart(t, two, cfs.Conflict, "voter remove 2")
	if err := askLeader(t, addrs[0], &wirepb.Admin{Verb: uint32(wire.VerbVoterRemove), Node: 1}); cfs.KindOf(err) != cfs.Invalid {
		t.Errorf("the removal of a voter that the others need: %v", err)
	}
	if err := askLeader(t, addrs[0], &wirepb.Admin{Verb: uint32(wire.VerbVoterRemove), Node: 2}); err != nil {
		t.Fatal(err)
	}
	back := start(t, two) // it only stores, until it is added again
	waitStatus(t, addrs[0], devicesUp(8))
	waitFor(t, "it has no replica", func() bool { return back.raft.raft.Load() == nil })
	if err := askLeader(t, addrs[0], &wirepb.Admin{Verb: uint32(wire.VerbVoterAdd), Node: 2}); err != nil {
		t.Fatal(err)
	}
	for _, addr := range append(addrs, four.Addr()) {
		waitVoters(t, addr, 1, 2, 4)
	}
	checkFile(t, c, a, "at the end", want)
	closeClient(t, c)

	// Node 4 joined, and is a voter: without its replica it does not go on silently.
	waitFor(t, "it is recorded", func() bool { return recorded(four) })
	if err := four.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(cfg.DataDir, raftDir)); err != nil {
		t.Fatal(err)
	}
	refuseStart(t, again, cfs.Conflict, "voter remove 4")
}

// recorded reports that a node's directory says that it has a replica.
func recorded(n *Node) bool {
	n.dir.mu.Lock()
	defer n.dir.mu.Unlock()
	return n.dir.state.Replica
}

// A cluster that one server founded, and that has grown, is not founded again by it: neither when its replica
// is lost, nor with a copy of it from when it was the only voter.
func TestFounderDoesNotFoundAgain(t *testing.T) {
	dir := t.TempDir()
	addrs, nodes := startNodes(t, dir, 1, func(*Config) {})
	waitStatus(t, addrs[0], devicesUp(2))
	waitFor(t, "it is recorded", func() bool { return recorded(nodes[0]) })
	one := nodes[0].cfg
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	raft, old := filepath.Join(one.DataDir, raftDir), filepath.Join(dir, "old")
	if err := os.CopyFS(old, os.DirFS(raft)); err != nil {
		t.Fatal(err)
	}
	lone := filepath.Join(dir, "away")
	if err := os.Rename(raft, lone); err != nil {
		t.Fatal(err)
	}
	refuseStart(t, one, cfs.Conflict, "replica is lost")
	if err := os.Rename(lone, raft); err != nil {
		t.Fatal(err)
	}
	first := start(t, one)
	waitStatus(t, addrs[0], func(r *wirepb.StatusReply) bool { return r.LeaderId == 1 })
	for id := cfs.NodeID(2); id <= 3; id++ {
		start(t, joinConfig(t, dir, id, addrs))
		waitStatus(t, addrs[0], devicesUp(2*int(id)))
		if err := askLeader(t, addrs[0], &wirepb.Admin{Verb: uint32(wire.VerbVoterAdd), Node: uint32(id)}); err != nil {
			t.Fatal(err)
		}
		want := []cfs.NodeID{1, 2, 3}[:id]
		waitVoters(t, addrs[0], want...)
	}
	waitFor(t, "it knows the others", func() bool { return len(first.dir.servers()) == 2 })
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(raft); err != nil {
		t.Fatal(err)
	}
	refuseStart(t, one, cfs.Conflict, "voter remove 1")
	if err := os.CopyFS(raft, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	again := start(t, one)
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	if err := again.Wait(ctx); cfs.KindOf(err) != cfs.Conflict || !strings.Contains(err.Error(), "other voters") {
		t.Errorf("with a copy from when it was alone it ended with %v", err)
	}
}

// What a server was told by flags is remembered: a founder is not one of a cluster of its own without them.
func TestSeedsAreRemembered(t *testing.T) {
	addrs, nodes := startNodes(t, t.TempDir(), 3, func(*Config) {})
	waitStatus(t, addrs[0], devicesUp(6))
	three := nodes[2].cfg
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, Config{DataDir: three.DataDir, SegmentBytes: three.SegmentBytes, RaftSegmentBytes: three.RaftSegmentBytes})
	if got := again.cfg.Seeds; len(got) != 3 || again.Addr() != addrs[2] {
		t.Errorf("it came back as one of %v, at %s", got, again.Addr())
	}
	waitVoters(t, again.Addr(), 1, 2, 3)
}

// A map that the leader told stays until there is a newer one.
func TestMapsDoNotGoBack(t *testing.T) {
	r := &replica{changed: make(chan struct{})}
	for _, v := range []uint64{1, 5, 3} {
		r.follow(&cfs.Map{Version: v})
	}
	if got := r.Map().Version; got != 5 {
		t.Errorf("the map is of version %d", got)
	}
}

// What is remembered of the voters does not wait for device work.
func TestRememberingWaitsForNoDevice(t *testing.T) {
	n := start(t, aloneConfig(t, t.TempDir()))
	n.adminMu.Lock()
	defer n.adminMu.Unlock()
	if err := n.remember([]string{"127.0.0.1:1"}, false); err != nil {
		t.Fatal(err)
	}
}

func refuseStart(t *testing.T, cfg Config, want cfs.Kind, part string) {
	t.Helper()
	n, err := Start(t.Context(), cfg)
	if err == nil {
		_ = n.Close()
	}
	if cfs.KindOf(err) != want || !strings.Contains(err.Error(), part) {
		t.Errorf("started as node %d: %v", cfg.NodeID, err)
	}
}
