package raftmeta

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// TestSilenceOfNodes: what the leader makes of a node's silence.
func TestSilenceOfNodes(t *testing.T) {
	const timeout = time.Minute
	const up, suspect, down, out = cfs.StateUp, cfs.StateSuspect, cfs.StateDown, cfs.StateOut
	for _, test := range []struct {
		name      string
		have      cfs.State
		heard     time.Duration // ago; 0: never
		listening time.Duration
		node      cfs.State
		device    cfs.State
	}{
		{"heard just now", up, 1, time.Hour, up, up},
		{"suspect and heard", suspect, 1, time.Hour, up, up},
		{"down and heard", down, 1, time.Hour, up, up},
		{"out and heard", out, 1, time.Hour, out, up}, // the device only: a node has none to lose
		{"silent for a while", up, 40 * time.Second, time.Hour, suspect, suspect},
		{"still silent", suspect, 50 * time.Second, time.Hour, suspect, suspect},
		{"silent too long", suspect, 2 * timeout, time.Hour, down, down},
		{"silent too long at once", up, 2 * timeout, time.Hour, down, down},
		{"down and silent for a while", down, 40 * time.Second, time.Hour, down, down},
		{"out and silent", out, 2 * timeout, time.Hour, out, out},
		{"new leader", up, 0, time.Second, up, up},
		{"new leader, suspect before", suspect, 0, time.Second, suspect, suspect},
		{"new leader, not heard for a while", up, 0, 40 * time.Second, suspect, suspect},
		{"new leader, not heard too long", up, 0, 2 * timeout, down, down},
		{"leader was held up", up, 2 * timeout, time.Second, up, up},
		{"leader was held up, and a while more", up, 2 * timeout, 40 * time.Second, suspect, suspect},
	} {
		id := cfs.MakeDeviceID(1, 0)
		now := time.Now()
		d := &duties{n: &Node{cfg: Config{NodeTimeout: timeout}}, hearing: now.Add(-test.listening), beats: map[cfs.NodeID]*beat{}}
		if test.heard > 0 {
			d.beats[1] = &beat{heard: now.Add(-test.heard), node: cfs.Node{ID: 1, State: up}, devices: []cfs.Device{{ID: id, State: up}}}
		}
		m := &cfs.Map{Nodes: []cfs.Node{{ID: 1, State: test.have}}, Devices: []cfs.Device{{ID: id, State: test.have}}}
		node, device := test.have, test.have
		for _, op := range d.changes(m) {
			if op.Kind == cfs.OpSetNode {
				node = op.Node.State
			} else {
				device = op.Device.State
			}
		}
		if node != test.node || device != test.device {
			t.Errorf("%s: node %v, device %v, want %v and %v", test.name, node, device, test.node, test.device)
		}
	}
	// A device that its node reports down stays so while the node is silent for a while.
	id := cfs.MakeDeviceID(1, 0)
	d := &duties{n: &Node{cfg: Config{NodeTimeout: timeout}}, hearing: time.Now().Add(-40 * time.Second)}
	m := &cfs.Map{Nodes: []cfs.Node{{ID: 1, State: up}}, Devices: []cfs.Device{{ID: id, State: down}}}
	if ops := d.changes(m); len(ops) != 1 || ops[0].Kind != cfs.OpSetNode {
		t.Errorf("a device that was down: %+v", ops)
	}
}

// A node that is silent for a while is suspect, and its groups stay as they are.
func TestSuspectNode(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.NodeTimeout = 4 * time.Second })
	c.startBeats()
	leader := c.leader()
	c.wait("groups over all nodes", func() bool {
		all, using := writable(leader.node.Map(), 1)
		return all > 0 && all == using && len(leader.node.Map().Devices) == 6
	})
	gone := c.others(leader)[0]
	was, _ := writable(leader.node.Map(), gone.id)
	c.setMute(gone.id, true)
	c.wait("the node to be suspect", func() bool {
		m := leader.node.Map()
		n, d := stateOf(m, gone.id)
		if n == cfs.StateDown {
			t.Fatal("the node is down, and was never suspect")
		}
		if n != cfs.StateSuspect || d != cfs.StateSuspect {
			return false
		}
		if all, using := writable(m, gone.id); all != was || using == 0 {
			t.Errorf("%d groups take stripes, %d of them on the suspect node; there were %d", all, using, was)
		}
		return true
	})
	c.setMute(gone.id, false)
	c.wait("the node to be up", func() bool {
		n, d := stateOf(leader.node.Map(), gone.id)
		return n == cfs.StateUp && d == cfs.StateUp
	})
}

// works is a cluster whose nodes report what the test says.
type works struct {
	*cluster
	t       *testing.T
	devices map[cfs.DeviceID]cfs.Device
	fills   map[cfs.NodeID][]*wirepb.Fill
	sess    cfs.SessionID
	seq     uint64
	ino     cfs.Ino
}

func newWorks(t *testing.T, devices uint16, capacity uint64) *works {
	w := &works{t: t, devices: map[cfs.DeviceID]cfs.Device{}, fills: map[cfs.NodeID][]*wirepb.Fill{}}
	w.cluster = newCluster(t, 3, func(cfg *Config) {
		cfg.NodeTimeout = 2 * time.Second
		cfg.OutAfter, cfg.JobInterval = 300*time.Millisecond, 100*time.Millisecond
	})
	for n := cfs.NodeID(1); n <= 3; n++ {
		for slot := range devices {
			w.report(cfs.Device{ID: cfs.MakeDeviceID(n, slot), State: cfs.StateUp, Capacity: capacity})
		}
	}
	w.cluster.reports = func(n cfs.NodeID) (out []*wirepb.Device, fills []*wirepb.Fill) {
		for id, d := range w.devices {
			if id.Node() == n {
				out = append(out, wire.DeviceToPB(d))
			}
		}
		return out, w.fills[n]
	}
	w.startBeats()
	w.wait("groups over all devices", func() bool {
		m := w.Map()
		all, using := writable(m, 1)
		return all > 0 && using > 0 && len(m.Devices) == int(3*devices) && len(m.Groups) >= int(3*devices)
	})
	w.sess = w.session()
	w.seq = 1
	w.mustCreate(w.sess, 1, "a")
	a, err := w.query(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	w.ino = a.Attr.Ino
	return w
}

// Map is the leader's.
func (w *works) Map() *cfs.Map { return w.leader().node.Map() }

// report changes what a node says of a device.
func (w *works) report(d cfs.Device) {
	d.UUID = cfs.UUID{byte(d.ID.Node()), byte(d.ID.Slot()), 1}
	if w.cluster != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
	}
	w.devices[d.ID] = d
}

// store commits a stripe to each group that takes stripes of a geometry and is on a device.
func (w *works) store(g cfs.Geometry, on cfs.DeviceID, size uint32) {
	w.t.Helper()
	stored := map[cfs.PGID]bool{}
	for again := true; again; {
		again = false
		for _, pg := range w.Map().Groups {
			uses := false
			for _, s := range pg.Slots {
				uses = uses || s.Device == on
			}
			if !pg.Writable || pg.Geometry != g || !uses || stored[pg.ID] {
				continue
			}
			w.seq++
			x := cfs.Extent{Off: w.seq << 22, Len: uint64(size), Kind: cfs.ExtentStripe, PG: pg.ID, Stripe: cfs.StripeID{Session: w.sess, Counter: w.seq}, StripeLen: size}
			r, err := w.command(&cfs.Command{Session: w.sess, Seq: w.seq, LowWater: w.seq, Ops: []cfs.Op{{Kind: cfs.OpWrite, Ino: w.ino, Extents: []cfs.Extent{x},
				Epochs: []cfs.PGEpoch{{PG: pg.ID, Epoch: pg.Epoch}}}}})
			if err != nil {
				w.t.Fatal(err)
			}
			if stored[pg.ID] = r.Kind == cfs.KindOK; r.Kind == cfs.StaleEpoch { // the groups have changed
				again = true
			} else if r.Kind != cfs.KindOK {
				w.t.Fatalf("write: %v", r.Kind)
			}
		}
	}
	if len(stored) == 0 {
		w.t.Fatalf("no group of %v takes stripes on %v", g, on)
	}
}

// fill says for each slot that is being filled that it is done, as its node does.
func (w *works) fill() (filled int) {
	w.t.Helper()
	for _, g := range w.Map().Groups {
		for _, s := range g.Slots {
			if !s.Filling {
				continue
			}
			cmd := &cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpFillDone, Device: cfs.Device{ID: s.Device}, Groups: []cfs.PG{g}}}}
			m := w.members[s.Device.Node()-1]
			var reply wirepb.Reply
			_, err := m.pool.Call(w.t.Context(), w.leader().addr, wire.OpCommand, wire.CommandToPB(cmd), nil, &reply, nil)
			if err != nil {
				w.t.Fatalf("filling done: %v", err)
			}
			if cfs.Kind(reply.Kind) == cfs.KindOK {
				filled++
			}
			other := w.members[s.Device.Node()%3]
			if _, err := other.pool.Call(w.t.Context(), w.leader().addr, wire.OpCommand, wire.CommandToPB(cmd), nil, nil, nil); !errors.Is(err, cfs.BadRequest) {
				w.t.Errorf("filling of %v done, says node %d: %v", s.Device, other.id, err)
			}
		}
	}
	return filled
}

func (w *works) device(id cfs.DeviceID) cfs.Device {
	for _, d := range w.Map().Devices {
		if d.ID == id {
			return d
		}
	}
	return cfs.Device{}
}

func (w *works) job(id cfs.DeviceID) cfs.Job {
	if j := jobOf(w.Map(), id); j != nil {
		return *j
	}
	return cfs.Job{}
}

// filling counts the slots that are filled, and those of them that have the device as their source.
func (w *works) filling(source cfs.DeviceID) (all, from int) {
	for _, g := range w.Map().Groups {
		for _, s := range g.Slots {
			if s.Filling {
				all++
				if s.Source == source {
					from++
				}
			}
		}
	}
	return all, from
}

func (w *works) admin(verb wire.Verb, id cfs.DeviceID, rate uint64, force bool) (string, error) {
	var m wirepb.AdminReply
	err := w.call(wire.OpAdmin, &wirepb.Admin{Verb: uint32(verb), Device: uint32(id), RateBytes: rate, Force: force}, &m)
	return m.Text, err
}

func (w *works) must(verb wire.Verb, id cfs.DeviceID, rate uint64) {
	w.t.Helper()
	if text, err := w.admin(verb, id, rate, false); err != nil || !strings.Contains(text, id.String()) {
		w.t.Fatalf("verb %d: %q %v", verb, text, err)
	}
}

// agree waits until the states of all nodes are the same. They go on changing: nodes
// are heard of late on a busy machine.
func (w *works) agree() {
	w.t.Helper()
	w.wait("equal states", func() bool {
		want := dump(w.t, w.members[0].node)
		return dump(w.t, w.members[1].node) == want && dump(w.t, w.members[2].node) == want
	})
}

// checked compares the tables of every node's replica.
func (w *works) checked() {
	w.t.Helper()
	for _, m := range w.members {
		var r wirepb.CheckReply
		if _, err := w.pool.Call(w.t.Context(), m.addr, wire.OpCheckState, nil, nil, &r, nil); err != nil || r.Faults != 0 || r.Inodes != 2 || r.AppliedIndex == 0 {
			w.t.Errorf("state of node %d: %v %+v", m.id, err, &r)
		}
	}
}

// A device that its node reports failed is given up after a time, and what it had is filled
// elsewhere; when it works again it is let in, without what it had.
func TestLostDeviceIsRebuilt(t *testing.T) {
	w := newWorks(t, 3, 1<<30)
	lost := cfs.MakeDeviceID(3, 0)
	w.store(cfs.Geo4p2, lost, 1<<20)
	w.store(cfs.Geo1p2, lost, 4096)
	var st wirepb.StatusReply
	if _, err := w.pool.Call(t.Context(), w.seeds[0], wire.OpStatus, nil, nil, &st, nil); err != nil || len(st.Usage) < 2 || st.Usage[0].RawBytes == 0 {
		t.Errorf("status: %v, usage %v", err, st.Usage)
	}
	w.report(cfs.Device{ID: lost, State: cfs.StateDown, Capacity: 1 << 30})
	w.wait("the device to be out", func() bool { return w.device(lost).State == cfs.StateOut })
	w.wait("its slots to be filled", func() bool { all, from := w.filling(lost); return from > 0 && all == from })
	j := w.job(lost)
	if j.Kind != cfs.JobRebuild || j.State != cfs.JobRunning || j.TotalBytes == 0 || j.StartedNS == 0 {
		t.Errorf("job %+v", j)
	}
	// Progress: the node says how much is there.
	half := j.TotalBytes / 2
	for _, g := range w.Map().Groups {
		for i, s := range g.Slots {
			if s.Filling && half > 0 {
				w.mu.Lock()
				n := s.Device.Node()
				w.fills[n] = append(w.fills[n], &wirepb.Fill{Pg: uint32(g.ID), Slot: uint32(i), DoneBytes: 4096})
				w.mu.Unlock()
			}
		}
	}
	w.wait("progress", func() bool { return w.job(lost).DoneBytes > 0 })
	w.wait("the job to be done", func() bool { w.fill(); return w.job(lost).State == cfs.JobDone })
	if j = w.job(lost); j.DoneBytes != j.TotalBytes || j.ChangedNS <= j.StartedNS {
		t.Errorf("job %+v", j)
	}
	if d := w.device(lost); d.State != cfs.StateOut {
		t.Errorf("device %+v", d)
	}
	for _, g := range w.Map().Groups {
		for _, s := range g.Slots {
			if s.Device == lost || s.Source == lost {
				t.Errorf("group %+v is on the lost device", g)
			}
		}
	}
	w.report(cfs.Device{ID: lost, State: cfs.StateUp, Capacity: 1 << 30})
	w.wait("the device to be let in", func() bool { return w.device(lost).State == cfs.StateUp })
	w.agree()
	w.checked()
}

func TestDrain(t *testing.T) {
	w := newWorks(t, 3, 1<<30)
	id, unknown := cfs.MakeDeviceID(2, 1), cfs.MakeDeviceID(9, 9)
	w.store(cfs.Geo4p2, id, 1<<20)
	for _, test := range []struct {
		name string
		verb wire.Verb
		id   cfs.DeviceID
		want cfs.Kind
	}{
		{"no such device", wire.VerbDeviceRemove, unknown, cfs.NotFound},
		{"no job", wire.VerbJobPause, id, cfs.NotFound},
		{"another server's verb", wire.VerbScrub, id, cfs.Unsupported},
		{"no verb", 99, id, cfs.Unsupported},
	} {
		if text, err := w.admin(test.verb, test.id, 0, false); !errors.Is(err, test.want) {
			t.Errorf("%s: %q %v, want %v", test.name, text, err, test.want)
		}
	}
	leader := w.leader()
	for _, m := range w.others(leader) {
		_, err := w.pool.Call(t.Context(), m.addr, wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbDeviceRemove), Device: uint32(id)}, nil, nil, nil)
		var remote *wire.RemoteError
		if !errors.As(err, &remote) || remote.Kind != cfs.NotLeader || remote.Leader != leader.addr {
			t.Errorf("at a follower: %v", err)
		}
	}

	w.must(wire.VerbDeviceRemove, id, 0)
	w.wait("slots to be filled", func() bool { _, from := w.filling(id); return from > 0 })
	d, j := w.device(id), w.job(id)
	if !d.Draining || d.State != cfs.StateUp || j.Kind != cfs.JobDrain || j.State != cfs.JobRunning || j.TotalBytes == 0 {
		t.Errorf("device %+v, job %+v", d, j)
	}
	if text, err := w.admin(wire.VerbDeviceRemove, id, 0, false); err != nil || !strings.Contains(text, "already") {
		t.Errorf("again: %q %v", text, err)
	}
	w.must(wire.VerbJobRate, id, 12345)
	if j := w.job(id); j.RateBytes != 12345 {
		t.Errorf("job %+v", j)
	}
	w.must(wire.VerbJobPause, id, 0)
	if text, err := w.admin(wire.VerbJobPause, id, 0, false); !errors.Is(err, cfs.Invalid) {
		t.Errorf("paused twice: %q %v", text, err)
	}
	if j := w.job(id); j.State != cfs.JobPaused {
		t.Errorf("job %+v", j)
	}
	w.must(wire.VerbJobResume, id, 0)
	w.must(wire.VerbJobCancel, id, 0)
	w.wait("the filling to be called off", func() bool { all, _ := w.filling(id); return all == 0 })
	if d := w.device(id); d.Draining || d.State != cfs.StateUp {
		t.Errorf("device %+v", d)
	}
	if text, err := w.admin(wire.VerbJobResume, id, 0, false); !errors.Is(err, cfs.Invalid) {
		t.Errorf("resumed after it was cancelled: %q %v", text, err)
	}

	// Drained to the end, over a change of leader.
	w.must(wire.VerbDeviceRemove, id, 0)
	w.crash(w.leader())
	w.wait("slots to be filled", func() bool { _, from := w.filling(id); return from > 0 })
	for _, m := range w.members {
		if m.node == nil {
			w.start(m, nil)
			w.beat(m)
		}
	}
	w.wait("the device to be empty", func() bool { w.fill(); return w.job(id).State == cfs.JobDone })
	w.wait("the device to be out", func() bool { return w.device(id).State == cfs.StateOut })
	if d := w.device(id); !d.Removed() {
		t.Errorf("device %+v", d)
	}
	w.report(cfs.Device{ID: id, State: cfs.StateUp, Capacity: 1 << 30})
	if d := w.device(id); !d.Removed() {
		t.Errorf("removed and heard: device %+v", d)
	}
	w.agree()
	w.checked()
}

// The device without which no full stripe can be written is not removed, unless it is forced.
func TestRemoveTooMany(t *testing.T) {
	w := newWorks(t, 1, 1<<30)
	id := cfs.MakeDeviceID(1, 0)
	if text, err := w.admin(wire.VerbDeviceRemove, id, 0, false); !errors.Is(err, cfs.Invalid) || !strings.Contains(err.Error(), "too few") {
		t.Errorf("%q %v", text, err)
	}
	if text, err := w.admin(wire.VerbDeviceRemove, id, 0, true); err != nil {
		t.Errorf("%q %v", text, err)
	}
	w.wait("the device to be out", func() bool { return w.device(id).State == cfs.StateOut && w.job(id).State == cfs.JobDone })
	if text, err := w.admin(wire.VerbDeviceRemove, id, 0, true); err != nil || !strings.Contains(text, "already") {
		t.Errorf("again: %q %v", text, err)
	}
}

// What is full takes no new stripes until it has room again.
func TestFullDevice(t *testing.T) {
	w := newWorks(t, 3, 1<<30)
	id := cfs.MakeDeviceID(1, 2)
	uses := func() (n int) {
		for _, g := range w.Map().Groups {
			for _, s := range g.Slots {
				if g.Writable && s.Device == id {
					n++
				}
			}
		}
		return n
	}
	w.report(cfs.Device{ID: id, State: cfs.StateUp, Capacity: 1 << 30, Full: true})
	w.wait("no group on the full device", func() bool { all, _ := writable(w.Map(), 1); return w.device(id).Full && uses() == 0 && all > 0 })
	w.report(cfs.Device{ID: id, State: cfs.StateUp, Capacity: 1 << 30})
	w.wait("groups on the device", func() bool { return !w.device(id).Full && uses() > 0 })
}

// A device that is added to others which are fuller is filled from them.
func TestRebalance(t *testing.T) {
	const capacity = 16 << 20
	w := newWorks(t, 2, capacity)
	for range 2 {
		w.store(cfs.Geo4p2, cfs.MakeDeviceID(1, 0), 2<<20) // half a MiB on each device, of each of six groups
	}
	added := cfs.MakeDeviceID(2, 2)
	w.report(cfs.Device{ID: added, State: cfs.StateUp, Capacity: capacity})
	w.wait("slots to be filled on the new device", func() bool {
		n := 0
		for _, g := range w.Map().Groups {
			for _, s := range g.Slots {
				if s.Filling && s.Device == added {
					n++
				}
			}
		}
		return n > 0 && n <= 4
	})
	if j := w.job(added); j.Kind != cfs.JobRebalance || j.State != cfs.JobRunning || j.TotalBytes == 0 {
		t.Errorf("job %+v", j)
	}
	w.wait("the job to be done", func() bool { w.fill(); return w.job(added).State == cfs.JobDone })
	for _, d := range w.Map().Devices {
		if d.ID != added && w.job(d.ID) != (cfs.Job{}) {
			t.Errorf("device %v has the job %+v", d.ID, w.job(d.ID))
		}
	}
	w.agree()
	w.checked()
}

// A command without operations raises the floor of its session.
func TestFloorOfAnIdleSession(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.session()
	fate := func() cfs.Fate {
		a, err := c.query(&cfs.Query{Kind: cfs.QueryFates, Stripes: []cfs.StripeRef{{PG: 1, Stripe: cfs.StripeID{Session: s, Counter: 5}}}})
		if err != nil || len(a.Fates) != 1 {
			t.Fatalf("%v %+v", err, a)
		}
		return a.Fates[0]
	}
	if f := fate(); f != cfs.FatePending {
		t.Errorf("fate %d before", f)
	}
	if r, err := c.command(&cfs.Command{Session: s, Seq: 1, Floor: 6}); err != nil || r.Kind != cfs.KindOK || len(r.Results) != 0 {
		t.Errorf("%v %+v", err, r)
	}
	if f := fate(); f != cfs.FateDead {
		t.Errorf("fate %d after", f)
	}
}

// A check that is no longer wanted ends, and there is one at a time.
func TestCheckStateEnds(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.leader().node
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.checkState(ctx); !errors.Is(err, cfs.Canceled) {
		t.Errorf("given up: %v", err)
	}
	n.checking.Lock()
	if _, err := n.checkState(t.Context()); !errors.Is(err, cfs.Busy) {
		t.Errorf("a second one: %v", err)
	}
	n.checking.Unlock()
	n.state.replacing.Store(true)
	if _, err := n.checkState(t.Context()); !errors.Is(err, cfs.Unavailable) {
		t.Errorf("while the state is replaced: %v", err)
	}
	n.state.replacing.Store(false)
	if r, err := n.checkState(t.Context()); err != nil || r.Faults != 0 || r.Inodes != 1 {
		t.Errorf("%v %+v", err, r)
	}
	// A fault in the state is told, and does not end the node.
	damaged := make(chan error, 1)
	n.loop.do(func() error { // a store has one batch at a time, and that is the loop's
		b := n.state.store.NewBatch()
		damaged <- errors.Join(b.Set([]byte("B"), []byte{1}), b.Commit(), b.Close())
		return nil
	})
	if err := <-damaged; err != nil {
		t.Fatal(err)
	}
	if r, err := n.checkState(t.Context()); err != nil || r.Faults != 1 || len(r.Examples) != 1 {
		t.Errorf("%v %+v", err, r)
	}
	if err := n.state.view(func(kv.View) error { return nil }); err != nil {
		t.Error(err)
	}
}
