package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// join adds a member to the test's list that is no member of the cluster yet, and lets
// the cluster hear of it as a node that only stores.
func (c *cluster) join() *member {
	c.t.Helper()
	ln, err := wire.Listen("127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	m := &member{id: cfs.NodeID(len(c.members) + 1), dir: filepath.Join(c.t.TempDir(), "raft"), addr: ln.Addr().String(), joins: true, ln: ln}
	pool := wire.NewPool(wire.DialConfig{Hello: wire.Identity{ClusterID: "test", NodeID: m.id, Name: "joiner"}}, 1)
	defer pool.Close()
	if err := callEach(pool, c.seeds, wire.OpHeartbeat, &wirepb.Heartbeat{Node: wire.NodeToPB(cfs.Node{ID: m.id, Addr: m.addr, State: cfs.StateUp})}); err != nil {
		c.t.Fatal(err)
	}
	c.wait("the node is known", func() bool { return nodeOf(c.leader().node.Map(), m.id) != nil })
	c.members = append(c.members, m)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seeds = append(c.seeds, m.addr)
	return m
}

func callEach(pool *wire.Pool, addrs []string, op wire.Op, req protoMessage) error {
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, a := range addrs {
			ctx, cancel := contextWithin(5 * time.Second)
			_, err = pool.Call(ctx, a, op, req, nil, nil, nil)
			cancel()
			if err == nil {
				return nil
			}
		}
	}
	return err
}

func (c *cluster) verb(v wire.Verb, node, other cfs.NodeID) error {
	return c.call(wire.OpAdmin, &wirepb.Admin{Verb: uint32(v), Node: uint32(node), Other: uint32(other)}, &wirepb.AdminReply{})
}

// waitVoters waits until the leader's membership is these voters and no learner.
func (c *cluster) waitVoters(want ...uint64) {
	c.t.Helper()
	c.wait(fmt.Sprint("voters ", want), func() bool {
		conf := c.leader().node.roster.Load().conf()
		return len(conf.Learners) == 0 && fmt.Sprint(conf.Voters) == fmt.Sprint(want)
	})
}

// load creates files until it is stopped; each must be there in the end.
type load struct {
	c     *cluster
	stop  atomic.Bool
	group sync.WaitGroup
	made  []string
}

func (c *cluster) load() *load {
	l := &load{c: c}
	s := c.session()
	l.group.Go(func() {
		for i := uint64(1); !l.stop.Load(); i++ {
			name := fmt.Sprint("load-", i)
			r, err := c.command(create(s, i, name))
			if err != nil || r.Kind != cfs.KindOK {
				c.t.Errorf("create %s: %v %+v", name, err, r)
				return
			}
			l.made = append(l.made, name)
		}
	})
	return l
}

func (l *load) end() {
	l.c.t.Helper()
	l.stop.Store(true)
	l.group.Wait()
	for _, name := range l.made {
		l.c.mustFind(name)
	}
}

// gone ends a member whose node has ended by itself.
func (c *cluster) gone(m *member, want error) {
	c.t.Helper()
	<-m.node.Done()
	if err := m.node.Err(); !errors.Is(err, want) {
		c.t.Errorf("node %d ended with %v, want %v", m.id, err, want)
	}
	endStopped(m)
	m.node = nil
}

// A node becomes a voter in the place of another, under load: by a snapshot and the log.
// Voters that are removed end; the leader hands over first.
func TestMembershipUnderLoad(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.CompactEntries = 64
		cfg.NodeTimeout = time.Hour // who joins sends one heartbeat
	})
	l := c.load()
	four := c.join()
	leader := c.leader()
	if err := c.verb(wire.VerbVoterReplace, leader.id, 4); err != nil {
		t.Fatal(err)
	}
	c.start(four, four.ln)
	rest := []uint64{}
	for _, m := range c.members {
		if m != leader {
			rest = append(rest, uint64(m.id))
		}
	}
	c.waitVoters(rest...)
	c.gone(leader, ErrRemoved)
	if err := c.verb(wire.VerbVoterRemove, cfs.NodeID(rest[0]), 0); err != nil {
		t.Fatal(err)
	}
	c.waitVoters(rest[1:]...)
	if m := c.members[rest[0]-1]; m.node != nil {
		c.gone(m, ErrRemoved)
	}
	l.end()
	c.converge()
	// Who is removed and comes back with its old directory learns it, and ends.
	c.start(leader, nil)
	c.gone(leader, ErrRemoved)
	// The membership is that of the state, whatever the command line says.
	for _, m := range c.members {
		if m.node != nil {
			c.close(m)
			c.start(m, nil)
		}
	}
	c.waitVoters(rest[1:]...)
	l.c.mustFind(l.made[0])
}

func TestVoterRefusals(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	other := c.others(leader)
	for _, bad := range []struct {
		verb        wire.Verb
		node, other cfs.NodeID
		want        cfs.Kind
	}{
		{wire.VerbVoterAdd, 9, 0, cfs.NotFound},
		{wire.VerbVoterAdd, 1, 0, cfs.Exists},
		{wire.VerbVoterRemove, 9, 0, cfs.NotFound},
		{wire.VerbVoterReplace, 9, 1, cfs.NotFound},
		{wire.VerbNodeRemove, 9, 0, cfs.NotFound},
		{wire.VerbNodeDrain, 9, 0, cfs.NotFound},
	} {
		if err := c.verb(bad.verb, bad.node, bad.other); !errors.Is(err, bad.want) {
			t.Errorf("verb %d of node %d: %v, want %s", bad.verb, bad.node, err, bad.want.Name())
		}
	}
	c.close(other[0])
	c.wait("the leader misses it", func() bool {
		of, _, err := leader.node.progressOf(t.Context())
		return err == nil && !of[other[0].id].active
	})
	if err := c.verb(wire.VerbVoterRemove, other[1].id, 0); !errors.Is(err, cfs.Invalid) {
		t.Errorf("the removal of a voter that the others need: %v", err)
	}
	if err := c.verb(wire.VerbVoterRemove, other[0].id, 0); err != nil {
		t.Fatal(err)
	}
	c.start(other[0], nil)
	c.gone(other[0], ErrRemoved)
}

// A voter whose directory was lost, or is an older copy, does not vote, whether the
// leader knows it or a voter that has been elected since.
func TestDirectoriesThatAreNotTrusted(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	c.mustCreate(s, 1, "a")
	for _, m := range c.members {
		c.wait("the leader knows all", m.node.standing.known.Load)
	}
	old := c.others(c.leader())[0]
	c.close(old)
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(old.dir)); err != nil {
		t.Fatal(err)
	}
	for i, dir := range []string{t.TempDir(), copied} {
		name := []string{"lost", "an older copy"}[i]
		t.Run(name, func(t *testing.T) {
			c.start(old, nil)
			c.wait("it is known", old.node.standing.known.Load)
			c.mustCreate(s, uint64(2+i), name)
			c.converge()
			c.close(old)
			right := old.dir
			old.dir = filepath.Join(t.TempDir(), "raft")
			if err := os.CopyFS(old.dir, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			c.start(old, nil)
			<-old.node.Done()
			if err := old.node.Err(); !errors.Is(err, cfs.Conflict) || !strings.Contains(err.Error(), fmt.Sprint("voter remove ", old.id)) {
				t.Errorf("it ended with %v", err)
			}
			endStopped(old)
			old.node, old.dir = nil, right
			c.mustFind(name)
		})
	}
	c.start(old, nil) // the right one is
	c.converge()
}

// Without a leader an empty directory does not vote: two voters that remain of three, one
// of them without its data, elect nobody until the third is back.
func TestEmptyDirectoryWaits(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	c.mustCreate(s, 1, "a")
	for _, m := range c.members {
		c.wait("the leader knows all", m.node.standing.known.Load)
	}
	leader := c.leader()
	rest := c.others(leader)
	c.close(leader)
	c.close(rest[0])
	right := rest[0].dir
	rest[0].dir = filepath.Join(t.TempDir(), "raft")
	c.start(rest[0], nil)
	time.Sleep(3 * time.Second) // several elections' time; nothing may come of it
	if rest[0].node.standing.admitted.Load() || rest[1].node.lead.Load().mine {
		t.Fatal("a voter with an empty directory takes part")
	}
	c.start(leader, nil)
	c.gone(rest[0], cfs.Conflict)
	rest[0].dir = right
	c.start(rest[0], nil)
	c.mustFind("a")
	c.converge()
}

// A full disk makes the leader hand over and keeps a replica quiet; with room it goes on.
func TestDiskFull(t *testing.T) {
	var room [4]atomic.Bool // by node: the disk is full
	c := newCluster(t, 3, func(cfg *Config) {
		id := cfg.NodeID
		cfg.FreeSpace = func(string) (uint64, uint64, error) {
			if room[id].Load() {
				return 0, 1 << 40, nil
			}
			return 1 << 39, 1 << 40, nil
		}
	})
	s := c.session()
	c.mustCreate(s, 1, "before")
	first := c.leader()
	room[first.id].Store(true)
	c.wait("another leads", func() bool { return first.node.disk.full.Load() && c.leader() != first })
	if err := first.node.DiskHealth(); !errors.Is(err, cfs.NoSpace) {
		t.Errorf("its health: %v", err)
	}
	at := first.node.indexes.applied.Load()
	for i := range uint64(20) {
		c.mustCreate(s, 2+i, fmt.Sprint("while full ", i))
	}
	if now := first.node.indexes.applied.Load(); now > at+2 {
		t.Errorf("a replica without room went on from %d to %d", at, now)
	}
	room[first.id].Store(false)
	c.converge()
	if err := first.node.DiskHealth(); err != nil {
		t.Errorf("its health: %v", err)
	}
}

// A leader whose log syncs slowly hands over; one that does not stays.
func TestSlowDisk(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.SlowSync = time.Hour
		if cfg.NodeID == 1 { // which campaigns first
			cfg.SlowSync = time.Nanosecond
		}
	})
	s := c.session()
	var seq uint64
	c.wait("another leads", func() bool {
		seq++
		c.mustCreate(s, seq, fmt.Sprint("f", seq))
		return c.leader().id != 1
	})
}

// flaky loses pieces of snapshots, and answers to them.
type flaky struct {
	*Node
	first, calls *atomic.Int64
}

func (f *flaky) Serve(ctx context.Context, r *wire.Request) (wire.Response, error) {
	if r.Op != wire.OpSnapshot {
		return f.Node.Serve(ctx, r)
	}
	var m wirepb.Snapshot
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	if m.Piece == 0 {
		f.first.Add(1)
	}
	lost := cfs.Errorf("", cfs.Unavailable, "lost by the test")
	switch n := f.calls.Add(1); {
	case m.Last:
	case n%3 == 0:
		return wire.Response{}, lost
	case n%3 == 1:
		if _, err := f.Node.Serve(ctx, r); err != nil {
			return wire.Response{}, err
		}
		return wire.Response{}, lost
	}
	return f.Node.Serve(ctx, r)
}

// A snapshot whose pieces, and the answers to them, get lost goes on where it was.
func TestSnapshotGoesOn(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.CompactEntries = 40 })
	s := c.session()
	behind := c.others(c.leader())[0]
	c.crash(behind)
	big := strings.Repeat("x", 60<<10)
	for i := range uint64(80) {
		name := fmt.Sprint("f", i)
		c.mustCreate(s, 2*i+1, name)
		a, err := c.query(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.command(&cfs.Command{Session: s, Seq: 2*i + 2, LowWater: 2*i + 2, Ops: []cfs.Op{
			{Kind: cfs.OpSetXattr, Ino: a.Attr.Ino, Name: "user.x", Value: []byte(big)}}})
		if err != nil || r.Kind != cfs.KindOK {
			t.Fatalf("set an attribute: %v %+v", err, r)
		}
	}
	c.wait("a truncated log", func() bool { return c.leader().node.indexes.first.Load() > 60 })
	var first, calls atomic.Int64
	c.wrap = func(n *Node) wire.Handler { return &flaky{n, &first, &calls} }
	c.start(behind, nil)
	c.converge()
	if first.Load() > 2 || calls.Load() < 4 {
		t.Errorf("the first piece came %d times, of %d pieces", first.Load(), calls.Load())
	}
}
