package raftmeta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/wal"
)

// refused opens with cfg and returns the error that must come.
func refused(t *testing.T, cfg Config, want cfs.Kind, parts ...string) {
	t.Helper()
	n, err := Open(cfg)
	if err == nil {
		n.Close()
		t.Fatalf("opened, want %s", want.Name())
	}
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %s", err, want.Name())
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not name %q", err, p)
		}
	}
}

func oneVoter(t *testing.T) (*cluster, *member, Config) {
	c := newCluster(t, 1, nil)
	s := c.session()
	for i := range 10 {
		c.mustCreate(s, uint64(i+1), fmt.Sprint("f", i))
	}
	m := c.members[0]
	return c, m, c.config(m)
}

func TestOpenRefusals(t *testing.T) {
	c, m, cfg := oneVoter(t)
	refused(t, cfg, cfs.Busy, m.dir)
	c.close(m)
	other := cfg
	other.ClusterID = "other"
	refused(t, other, cfs.WrongCluster, `"test"`, `"other"`)
	other = cfg
	other.Seeds = []string{"a:1", "b:1", "c:1"}
	other.Pool = c.pool
	other.NodeID = 2
	refused(t, other, cfs.Conflict, "node 1", "node 2")
	other.NodeID, other.Dir = 4, t.TempDir()
	refused(t, other, cfs.Usage)
	c.start(m, nil)
	c.mustFind("f9")
}

func TestLostParts(t *testing.T) {
	c, m, cfg := oneVoter(t)
	c.close(m)
	saved := filepath.Join(t.TempDir(), "saved")
	if err := os.CopyFS(saved, os.DirFS(m.dir)); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(m.dir), os.CopyFS(m.dir, os.DirFS(saved))); err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range map[string]func() error{
		"log":     func() error { return os.RemoveAll(filepath.Join(m.dir, walName)) },
		"state":   func() error { return os.RemoveAll(filepath.Join(m.dir, kvName(1))) },
		"pointer": func() error { return os.Remove(filepath.Join(m.dir, currentName)) },
		"pointer's bytes": func() error {
			return os.WriteFile(filepath.Join(m.dir, currentName), []byte("kv kv-9\n"), 0o600)
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { refused(t, cfg, cfs.Corrupt, m.dir) })
		restore()
	}
	c.start(m, nil)
	c.mustFind("f9")
}

// An entry that this program does not understand ends the replica; answering an
// error would let replicas diverge.
func TestUnknownEntryHalts(t *testing.T) {
	for name, data := range map[string][]byte{
		"version":   append([]byte{entryVersion + 1}, make([]byte, 40)...),
		"short":     {entryVersion, 1},
		"protobuf":  append(encodeEntry(entry{node: 9, token: 1}), 0xff, 0xff),
		"operation": append(encodeEntry(entry{node: 9, token: 1}), 0x4a, 2, 8, 200, 1),
	} {
		t.Run(name, func(t *testing.T) {
			c, m, cfg := oneVoter(t)
			c.close(m)
			l, r, err := wal.Open(filepath.Join(m.dir, walName), wal.Options{ClusterID: "test", NodeID: 1, SegmentBytes: cfg.SegmentBytes})
			if err != nil {
				t.Fatal(err)
			}
			last := r.Entries[len(r.Entries)-1]
			index := last.GetIndex() + 1
			bad := &pb.Entry{Index: new(index), Term: new(last.GetTerm()), Data: data}
			if err := errors.Join(l.Append(nil, nil, []*pb.Entry{bad}, true), l.Close()); err != nil {
				t.Fatal(err)
			}
			n, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			<-n.Done()
			if err := n.Err(); err == nil || !strings.Contains(err.Error(), fmt.Sprint("log entry ", index)) {
				t.Errorf("ended with %v", err)
			}
			if _, err := n.query(t.Context(), &cfs.Query{Kind: cfs.QueryMap}); !errors.Is(err, cfs.Unavailable) && !errors.Is(err, cfs.NotLeader) {
				t.Errorf("query: %v", err)
			}
			if err := n.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// A log that cannot be written ends the node; it acknowledges nothing, and the others go on.
func TestLogFailureEndsTheNode(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	c.mustCreate(s, 1, "before")
	leader := c.leader()
	n := leader.node
	n.loop.do(func() error { return n.loop.wal.Close() })
	c.mustCreate(s, 2, "after")
	<-n.Done()
	if n.Err() == nil {
		t.Error("no error")
	}
	if _, err := c.pool.Call(t.Context(), leader.addr, 0+7, nil, nil, nil, nil); err == nil {
		t.Error("a node that has ended answers commands")
	}
	c.mustFind("before")
	c.mustFind("after")
	leader.stop, leader.node = endStopped(leader), nil
	c.start(leader, nil)
	c.converge()
}

// endStopped gives back what a failed member holds.
func endStopped(m *member) chan struct{} {
	close(m.stop)
	m.beats.Wait()
	m.node.Close()
	m.server.Close()
	m.pool.Close()
	return nil
}

// The crash between the switch to a snapshot's state and the log's record of it.
func TestCrashWithinInstall(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	c.mustCreate(s, 1, "a")
	c.converge()
	behind := c.others(c.leader())[0]
	c.crash(behind)
	for i := range 30 {
		c.mustCreate(s, uint64(i+2), fmt.Sprint("f", i))
	}
	leader := c.leader().node
	var at current
	copied := make(chan error, 1)
	leader.loop.do(func() error {
		meta := leader.loop.present().Metadata
		at = current{kv: kvName(2), index: meta.GetIndex(), term: meta.GetTerm(), conf: meta.GetConfState()}
		copied <- leader.state.store.Checkpoint(filepath.Join(behind.dir, at.kv))
		return nil
	})
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	if err := writeCurrent(behind.dir, &at); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c.start(behind, nil)
		c.converge()
		if first := behind.node.indexes.first.Load(); first != at.index+1 {
			t.Errorf("the log starts at %d, the snapshot is at %d", first, at.index)
		}
		if _, err := os.Stat(filepath.Join(behind.dir, kvName(1))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old state is still there: %v", err)
		}
		c.mustCreate(s, 100+behind.node.indexes.applied.Load(), fmt.Sprint("more", behind.node.indexes.applied.Load()))
		c.crash(behind)
	}
	// A received directory that the pointer never named is removed.
	stray := filepath.Join(behind.dir, kvName(7))
	if err := os.Mkdir(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	c.start(behind, nil)
	c.converge()
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stray directory: %v", err)
	}
}

func FuzzEntry(f *testing.F) {
	f.Add(encodeEntry(entry{node: 1, token: 2, stampNS: 3, body: []byte{8, 1}}))
	f.Add([]byte{})
	f.Add([]byte{entryVersion, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(b)
		if err != nil {
			return
		}
		if got := encodeEntry(e); string(got) != string(b) {
			t.Errorf("entry %x encodes to %x", b, got)
		}
		if _, err := e.command(); err != nil && cfs.KindOf(err) == cfs.IO {
			t.Errorf("unclassified error %v", err)
		}
	})
}

func FuzzCurrent(f *testing.F) {
	f.Add((&current{kv: "kv-1", index: 5, term: 6, conf: &pb.ConfState{Voters: []uint64{1, 2, 3}}}).encode())
	f.Add([]byte("claudefs-state 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCurrent(b)
		if err == nil && !isKVName(c.kv) {
			t.Errorf("directory %q", c.kv)
		}
	})
}
