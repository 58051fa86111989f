package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

func TestProposeAndRead(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	for i := range 20 {
		c.mustCreate(s, uint64(i+1), fmt.Sprint("f", i))
		c.mustFind(fmt.Sprint("f", i))
	}
	r, err := c.command(create(s, 21, "f3"))
	if err != nil || r.Kind != cfs.Exists {
		t.Errorf("create again: %v %+v", err, r)
	}
	c.converge()
	leader := c.leader()
	for _, m := range c.others(leader) {
		for op, req := range map[wire.Op]proto.Message{
			wire.OpCommand:   wire.CommandToPB(create(s, 22, "x")),
			wire.OpQuery:     wire.QueryToPB(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: cfs.RootIno}),
			wire.OpHeartbeat: &wirepb.Heartbeat{Session: uint64(s)},
		} {
			_, err := c.pool.Call(t.Context(), m.addr, op, req, nil, nil, nil)
			var remote *wire.RemoteError
			if !errors.As(err, &remote) || remote.Kind != cfs.NotLeader || remote.Leader != leader.addr {
				t.Errorf("%s at a follower: %v", op, err)
			}
		}
		var st wirepb.StatusReply
		if _, err := c.pool.Call(t.Context(), m.addr, wire.OpStatus, nil, nil, &st, nil); err != nil {
			t.Fatal(err)
		}
		if st.LeaderAddr != leader.addr || st.NodeId != uint32(m.id) || st.Sessions != 1 || st.ClusterId != "test" || st.AppliedIndex == 0 || st.Statfs == nil {
			t.Errorf("status of node %d: %v", m.id, &st)
		}
	}
}

func TestOneVoter(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.session()
	c.mustCreate(s, 1, "a")
	c.mustFind("a")
	c.crash(c.members[0])
	c.start(c.members[0], nil)
	c.mustFind("a")
}

func TestLeaderCrashAndCatchUpByLog(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	c.mustCreate(s, 1, "a")
	old := c.leader()
	term := old.node.lead.Load().term
	c.crash(old)
	c.mustCreate(s, 2, "b")
	c.mustFind("a")
	if now := c.leader().node.lead.Load().term; now <= term {
		t.Errorf("term %d after %d", now, term)
	}
	c.start(old, nil)
	c.converge()
	c.mustFind("b")
}

func TestRestartOfAll(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	for round := range 3 {
		for i := range 10 {
			c.mustCreate(s, uint64(10*round+i+1), fmt.Sprintf("f%d-%d", round, i))
		}
		for _, m := range c.members {
			if round == 1 {
				c.close(m)
			} else {
				c.crash(m)
			}
		}
		for _, m := range c.members {
			c.start(m, nil)
		}
		for i := range 10 {
			c.mustFind(fmt.Sprintf("f%d-%d", round, i))
		}
	}
	c.converge()
}

// Acknowledged names are found by every later query, whoever leads and whoever dies.
func TestLinearizableReadsThroughFailover(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	var acked atomic.Uint64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if r, err := c.command(create(s, i, fmt.Sprint("f", i))); err != nil || r.Kind != cfs.KindOK {
				t.Errorf("create f%d: %v %+v", i, err, r)
				return
			}
			acked.Store(i)
		}
	})
	var found atomic.Uint64
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := acked.Load()
				if i == 0 {
					continue
				}
				a, err := c.query(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: fmt.Sprint("f", i)})
				if err != nil || a.Kind != cfs.KindOK {
					t.Errorf("f%d was acknowledged, lookup: %v %+v", i, err, a)
					return
				}
				found.Add(1)
			}
		})
	}
	for range 3 {
		was := acked.Load()
		c.wait("progress", func() bool { return acked.Load() > was+20 || t.Failed() })
		m := c.leader()
		c.crash(m)
		c.wait("progress without the old leader", func() bool { return acked.Load() > was+40 || t.Failed() })
		c.start(m, nil)
	}
	close(stop)
	wg.Wait()
	c.converge()
	if found.Load() == 0 {
		t.Error("no read was made")
	}
}

func TestExactlyOnce(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	cmd := create(s, 7, "once")
	cmd.LowWater = 1
	first, err := c.command(cmd)
	if err != nil || first.Kind != cfs.KindOK {
		t.Fatalf("%v %+v", err, first)
	}
	again, err := c.command(cmd)
	if err != nil || again.Kind != cfs.KindOK || again.Index != first.Index {
		t.Errorf("retry: %v %+v, first was at index %d", err, again, first.Index)
	}
	c.crash(c.leader())
	again, err = c.command(cmd)
	if err != nil || again.Kind != cfs.KindOK || again.Index != first.Index || again.Results[0].Attr.Ino != first.Results[0].Attr.Ino {
		t.Errorf("retry at the new leader: %v %+v, first was at index %d", err, again, first.Index)
	}
}

func TestSessionsExpire(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.SessionTimeout = 400 * time.Millisecond })
	kept, left := c.session(), c.session()
	beat := func(s cfs.SessionID) error {
		var r wirepb.HeartbeatReply
		return c.call(wire.OpHeartbeat, &wirepb.Heartbeat{Session: uint64(s)}, &r)
	}
	client := &holder{c: c, id: kept}
	keep := func() { client.attach() } // as clients do, so that a new leader need not wait for it
	seq := uint64(0)
	c.wait("the end of the silent session", func() bool {
		keep()
		seq++
		r, err := c.command(&cfs.Command{Session: left, Seq: seq, Ops: create(left, 1, "x").Ops})
		return err == nil && r.Kind == cfs.NoSession
	})
	if err := beat(left); !errors.Is(err, cfs.NoSession) {
		t.Errorf("heartbeat of an expired session: %v", err)
	}
	keep()
	c.mustCreate(kept, 1, "kept")
	if err := beat(kept + 1000); !errors.Is(err, cfs.NoSession) {
		t.Errorf("heartbeat of no session: %v", err)
	}
	// A new leader knows the sessions, and gives them their time again.
	c.crash(c.leader())
	keep()
	c.mustCreate(kept, 2, "kept again")
}

// sawSnapshot reports that the member's state came by a snapshot.
func sawSnapshot(m *member) bool {
	cur, err := readCurrent(m.dir)
	return err == nil && cur != nil && cur.index > 0
}

func TestCatchUpBySnapshot(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.CompactEntries = 40; cfg.SegmentBytes = 16 << 10 })
	s := c.session()
	c.mustCreate(s, 1, "first")
	behind := c.others(c.leader())[0]
	c.crash(behind)
	for i := range 300 {
		c.mustCreate(s, uint64(i+2), strings.Repeat("n", 100)+fmt.Sprint(i))
	}
	c.wait("a truncated log", func() bool { return c.leader().node.indexes.first.Load() > 200 })
	c.start(behind, nil)
	c.converge()
	if !sawSnapshot(behind) {
		t.Error("the voter caught up without a snapshot")
	}
	for range 2 { // it lives on with it, across crashes and restarts
		c.crash(behind)
		c.start(behind, nil)
		c.converge()
	}
	c.crash(c.leader())
	c.mustCreate(s, 400, "last")
	c.mustFind("first")
	for _, m := range c.members {
		if m.node == nil {
			c.start(m, nil)
		}
	}
	c.converge()
}

// A snapshot larger than one piece, with a leader that dies while it sends.
func TestSnapshotOfManyPieces(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.CompactEntries = 40; cfg.CompactBytes = 1 << 20 })
	s := c.session()
	behind := c.others(c.leader())[0]
	c.converge() // a replica that has nothing yet would wait for the old leader later
	c.crash(behind)
	for i := range 100 {
		c.mustCreate(s, uint64(2*i+1), fmt.Sprint("f", i))
		a, err := c.query(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: fmt.Sprint("f", i)})
		if err != nil {
			t.Fatal(err)
		}
		data := []byte(strings.Repeat(fmt.Sprint(i%10), 12<<10))
		r, err := c.command(&cfs.Command{Session: s, Seq: uint64(2*i + 2), LowWater: uint64(2*i + 2), Ops: []cfs.Op{{Kind: cfs.OpWrite, Ino: a.Attr.Ino,
			Attr: cfs.Attr{Size: uint64(len(data))}, Extents: []cfs.Extent{{Len: uint64(len(data)), Kind: cfs.ExtentInline, Inline: data}}}}})
		if err != nil || r.Kind != cfs.KindOK {
			t.Fatalf("write: %v %+v", err, r)
		}
	}
	c.wait("a truncated log", func() bool { return c.leader().node.indexes.first.Load() > 100 })
	c.start(behind, nil)
	old := c.leader()
	c.crash(old)
	c.mustCreate(s, 300, "last") // needs the voter that was behind
	c.start(old, nil)
	c.converge()
	if !sawSnapshot(behind) {
		t.Error("the voter caught up without a snapshot")
	}
}

func (c *cluster) startBeats() {
	for _, m := range c.members {
		c.beat(m)
	}
}

func stateOf(m *cfs.Map, id cfs.NodeID) (node, devices cfs.State) {
	for _, n := range m.Nodes {
		if n.ID == id {
			node = n.State
		}
	}
	for _, d := range m.Devices {
		if d.ID.Node() == id {
			devices = d.State
		}
	}
	return node, devices
}

// writable counts groups that take stripes, and those of them that use a node.
func writable(m *cfs.Map, id cfs.NodeID) (all, using int) {
	for _, g := range m.Groups {
		if !g.Writable {
			continue
		}
		all++
		for _, s := range g.Slots {
			if s.Device.Node() == id {
				using++
				break
			}
		}
	}
	return all, using
}

func TestNodesComeAndGo(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.NodeTimeout = 600 * time.Millisecond })
	c.startBeats()
	leader := c.leader()
	c.wait("4+2 groups over all nodes", func() bool {
		m := leader.node.Map()
		all, using := writable(m, 1)
		for _, g := range m.Groups {
			if g.Writable && g.Geometry != cfs.Geo4p2 && g.Geometry != cfs.Geo1p2 {
				return false // planned while not all had been heard of: replaced when they have
			}
		}
		return all > 0 && using == all && len(m.Devices) == 6
	})
	m := leader.node.Map()
	if len(m.Nodes) != 3 || len(m.Devices) != 6 || !m.Nodes[0].Voter || m.Nodes[0].Addr != c.seeds[0] {
		t.Errorf("map %+v", m)
	}
	a, err := c.query(&cfs.Query{Kind: cfs.QueryMap})
	if err != nil || a.Map == nil || a.Map.Devices[0].Used != 1000 {
		t.Errorf("map with the use of devices: %v %+v", err, a)
	}
	changed := leader.node.MapChanged()
	gone := c.others(leader)[0]
	c.setMute(gone.id, true)
	c.wait("the node to be down", func() bool {
		n, d := stateOf(c.leader().node.Map(), gone.id)
		all, using := writable(c.leader().node.Map(), gone.id)
		return n == cfs.StateDown && d == cfs.StateDown && all > 0 && using == 0
	})
	select {
	case <-changed:
	case <-time.After(patience):
		t.Error("the change of the map was not told")
	}
	c.setMute(gone.id, false)
	c.wait("the node to be up", func() bool {
		n, d := stateOf(c.leader().node.Map(), gone.id)
		_, using := writable(c.leader().node.Map(), gone.id)
		return n == cfs.StateUp && d == cfs.StateUp && using > 0
	})
	c.wait("the followers' maps", func() bool {
		v := c.leader().node.Map().Version
		for _, m := range c.members {
			if m.node.Map().Version != v {
				return false
			}
		}
		return true
	})
}

func TestHeartbeatRefusals(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startBeats()
	c.wait("devices", func() bool { return len(c.leader().node.Map().Devices) == 6 })
	m := c.members[0]
	node := wire.NodeToPB(cfs.Node{ID: m.id, Addr: m.addr})
	device := func(d cfs.Device) []*wirepb.Device { return []*wirepb.Device{wire.DeviceToPB(d)} }
	uuid := func(id cfs.NodeID, slot byte) cfs.UUID { return cfs.UUID{byte(id), slot, 1} }
	for _, test := range []struct {
		name string
		beat *wirepb.Heartbeat
		want cfs.Kind
	}{
		{"another uuid", &wirepb.Heartbeat{Node: node, Devices: device(cfs.Device{ID: cfs.MakeDeviceID(m.id, 0), UUID: cfs.UUID{9}})}, cfs.Conflict},
		{"another's uuid", &wirepb.Heartbeat{Node: node, Devices: device(cfs.Device{ID: cfs.MakeDeviceID(m.id, 7), UUID: uuid(2, 0)})}, cfs.Conflict},
		{"another's device", &wirepb.Heartbeat{Node: node, Devices: device(cfs.Device{ID: cfs.MakeDeviceID(2, 0), UUID: uuid(2, 0)})}, cfs.BadRequest},
		{"another node", &wirepb.Heartbeat{Node: wire.NodeToPB(cfs.Node{ID: 2, Addr: m.addr})}, cfs.BadRequest},
	} {
		_, err := m.pool.Call(t.Context(), c.leader().addr, wire.OpHeartbeat, test.beat, nil, nil, nil)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestCommandRefusals(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.session()
	for name, cmd := range map[string]*cfs.Command{
		"leader's operation":          {Ops: []cfs.Op{{Kind: cfs.OpExpireSession, Sess: s}}},
		"leader's op in a session":    {Session: s, Seq: 1, Ops: []cfs.Op{{Kind: cfs.OpReap}}},
		"without a session":           {Ops: create(s, 1, "x").Ops},
		"nothing":                     {},
		"filling done from a client":  {Ops: []cfs.Op{{Kind: cfs.OpFillDone, Device: cfs.Device{ID: cfs.MakeDeviceID(1, 0)}}}},
		"a job from a client":         {Ops: []cfs.Op{{Kind: cfs.OpSetJob, Job: cfs.Job{Device: cfs.MakeDeviceID(1, 0), Kind: 1, State: 1}}}},
		"two sessions":                {Ops: []cfs.Op{{Kind: cfs.OpOpenSession}, {Kind: cfs.OpOpenSession}}},
		"feed position from a client": {Ops: []cfs.Op{{Kind: cfs.OpFeedDone, Device: cfs.Device{ID: cfs.MakeDeviceID(1, 0)}}}},
	} {
		if r, err := c.command(cmd); !errors.Is(err, cfs.BadRequest) {
			t.Errorf("%s: %v %+v", name, err, r)
		}
	}
	if r, err := c.command(create(s+5, 1, "x")); err != nil || r.Kind != cfs.NoSession {
		t.Errorf("unknown session: %v %+v", err, r)
	}
	if _, err := c.pool.Call(t.Context(), c.seeds[0], wire.OpRaft, &wirepb.Raft{}, nil, nil, nil); !errors.Is(err, cfs.Unsupported) {
		t.Errorf("raft messages as a call: %v", err)
	}
	for _, test := range []struct {
		op   wire.Op
		req  *wirepb.Raft
		want string
	}{
		{wire.OpRaft, &wirepb.Raft{Messages: [][]byte{{1, 2, 3}}}, "raft message"},
		{wire.OpRaft, &wirepb.Raft{Messages: [][]byte{{}}}, "from node 0"},
		{wire.OpCommand, &wirepb.Raft{}, "receive command"},
	} {
		conn, err := wire.Dial(t.Context(), c.seeds[0], wire.DialConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Send(test.op, test.req); err != nil {
			t.Fatal(err)
		}
		<-conn.Done()
		if err := conn.Send(test.op, test.req); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("one-way from a client: %v, want %q", err, test.want)
		}
	}
	if _, err := c.pool.Call(t.Context(), c.seeds[0], wire.OpSnapshot, &wirepb.Snapshot{Index: 1}, nil, nil, nil); !errors.Is(err, cfs.BadRequest) {
		t.Errorf("snapshot from a client: %v", err)
	}
}

// Without a majority commands wait; beyond the bound they are turned away, and
// those that wait fail when the leader finds out that it leads nobody.
func TestBoundedProposals(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.MaxProposals = 4; cfg.TickInterval = 200 * time.Millisecond })
	s := c.session()
	leader := c.leader()
	for _, m := range c.others(leader) {
		c.crash(m)
	}
	outcomes := make(chan error, 20)
	for i := range 20 {
		go func() {
			cmd := create(s, uint64(i+1), fmt.Sprint("f", i))
			body, _ := proto.Marshal(wire.CommandToPB(cmd))
			_, err := leader.node.command(context.Background(), cmd, body)
			outcomes <- err
		}()
	}
	counts := map[cfs.Kind]int{}
	for range 20 {
		counts[cfs.KindOf(<-outcomes)]++
	}
	if counts[cfs.Overloaded] != 16 || counts[cfs.NotLeader] != 4 {
		t.Errorf("outcomes %v", counts)
	}
	if _, err := leader.node.query(t.Context(), &cfs.Query{Kind: cfs.QueryGetAttr, Ino: cfs.RootIno}); !errors.Is(err, cfs.NotLeader) {
		t.Errorf("query without a majority: %v", err)
	}
}

func TestCloseHandsLeadershipOver(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.TickInterval = time.Second }) // no election by timeout in time
	leader := c.leader()
	before := leader.node.lead.Load().term
	start := time.Now()
	c.close(leader)
	next := c.leader()
	if got := next.node.lead.Load().term; got != before+1 {
		t.Errorf("term %d after %d: an election took place", got, before)
	}
	t.Logf("handed over within %v", time.Since(start))
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newCluster(t, 1, func(cfg *Config) { cfg.Metrics = NewMetrics(reg) })
	s := c.session()
	c.mustCreate(s, 1, "a")
	c.mustFind("a")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for _, name := range []string{"claudefs_raft_proposals_total/ok", "claudefs_raft_commit_seconds", "claudefs_raft_stage_seconds/queue",
		"claudefs_raft_stage_seconds/replicate", "claudefs_raft_stage_seconds/sync", "claudefs_raft_stage_seconds/apply",
		"claudefs_raft_log_syncs_total", "claudefs_raft_term", "claudefs_raft_is_leader", "claudefs_raft_applied_index", "claudefs_raft_reads_total"} {
		if got[name] <= 0 {
			t.Errorf("%s is %v in %v", name, got[name], got)
		}
	}
}
