package node

import (
	"bytes"
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
	c := connect(t, addrs)
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
	lost := start(t, two)
	if err := lost.Wait(t.Context()); cfs.KindOf(err) != cfs.Conflict || !strings.Contains(err.Error(), "voter remove 2") {
		t.Errorf("a server with an empty directory ended with %v", err)
	}
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
