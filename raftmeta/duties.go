package raftmeta

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Bounds of one round of duties.
const (
	maxExpiries = fsm.MaxOps // sessions ended in one command
	reapsARound = 16
	// maxBeatDevices bounds the devices of one node.
	maxBeatDevices = 256
)

// duties are the leader's: they watch sessions and nodes, whose heartbeats are
// soft state of this leader alone, and propose what follows from them. They
// begin when the leader has applied all that came before its term, with every
// timer restarted, and end with its leadership.
type duties struct {
	n          *Node
	kick       chan struct{}
	cancel     context.CancelFunc
	inlineFull atomic.Bool

	mu       sync.Mutex
	hearing  time.Time                   // since when without a break: silence before it is ours (monotonic, as all times here)
	sessions map[cfs.SessionID]time.Time // when last heard
	beats    map[cfs.NodeID]*beat

	// Of run alone.
	planned uint64 // map version whose groups are as they should be
	settled bool   // every voter was heard of, or had the time
}

// beat is a node's last heartbeat.
type beat struct {
	heard   time.Time
	node    cfs.Node
	devices []cfs.Device
}

// beginDuties runs in the loop, so no session is opened or ended meanwhile.
func (l *loop) beginDuties() error {
	n := l.n
	ctx, cancel := context.WithCancel(context.Background())
	d := &duties{n: n, hearing: time.Now(), kick: make(chan struct{}, 1), cancel: cancel,
		sessions: map[cfs.SessionID]time.Time{}, beats: map[cfs.NodeID]*beat{}}
	err := n.state.view(func(v kv.View) error {
		open, err := fsm.Sessions(v)
		for _, s := range open {
			d.sessions[s.ID] = d.hearing
		}
		return err
	})
	if err != nil {
		cancel()
		return err
	}
	n.duties.Store(d)
	n.background.Go(func() { d.run(ctx) })
	return nil
}

func (l *loop) endDuties() {
	if d := l.n.duties.Swap(nil); d != nil {
		d.cancel()
	}
}

func (d *duties) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

func (d *duties) run(ctx context.Context) {
	interval := min(dutyInterval, d.n.cfg.NodeTimeout/4, d.n.cfg.SessionTimeout/4)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	woke := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.kick:
		}
		if late := time.Since(woke) - interval; late > d.n.cfg.NodeTimeout/4 {
			d.hearAnew(late)
		}
		woke = time.Now()
		for _, duty := range []func(context.Context) error{d.expireSessions, d.updateNodes, d.planGroups, d.reap} {
			if err := duty(ctx); err != nil && ctx.Err() == nil {
				d.n.log.Warn("leader's duty put off", "err", err)
				break
			}
		}
	}
}

// hearAnew restarts every timer after this process itself was held up: what it
// did not hear meanwhile says nothing of the others.
func (d *duties) hearAnew(late time.Duration) {
	d.n.log.Warn("leader was held up: nodes and sessions get their time anew", "late", late)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hearing = time.Now()
}

// silentLocked is how long a peer last heard at t has been silent while this leader was listening.
func (d *duties) silentLocked(t time.Time) time.Duration {
	return min(time.Since(t), time.Since(d.hearing))
}

// propose proposes the leader's own operations; a refusal is an error.
func (d *duties) propose(ctx context.Context, ops ...cfs.Op) error {
	r, err := d.n.own(ctx, ops...)
	if err == nil && r.Kind != cfs.KindOK {
		err = cfs.Errorf("propose", r.Kind, "operation %d of %d refused", r.Failed+1, len(ops))
	}
	return err
}

// hearSession restarts a session's timer; false for one that does not exist.
func (d *duties) hearSession(id cfs.SessionID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.sessions[id]
	if ok {
		d.sessions[id] = time.Now()
	}
	return ok
}

// noteSessions follows sessions that were opened or ended.
func (d *duties) noteSessions(changes []sessionChange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range changes {
		if c.ended {
			delete(d.sessions, c.id)
		} else {
			d.sessions[c.id] = time.Now()
		}
	}
}

func (d *duties) expireSessions(ctx context.Context) error {
	var ops []cfs.Op
	d.mu.Lock()
	for id, heard := range d.sessions {
		if d.silentLocked(heard) > d.n.cfg.SessionTimeout && len(ops) < maxExpiries {
			ops = append(ops, cfs.Op{Kind: cfs.OpExpireSession, Sess: id})
		}
	}
	d.mu.Unlock()
	for _, op := range ops {
		d.n.log.Info("session expires", "session", op.Sess)
	}
	if len(ops) == 0 {
		return nil
	}
	return d.propose(ctx, ops...)
}

// decodeBeat checks a node's heartbeat.
func decodeBeat(m *wirepb.Heartbeat, from *wire.Peer) (*beat, error) {
	node, err := wire.NodeFromPB(m.Node)
	if err != nil {
		return nil, err
	}
	if from == nil || from.NodeID != node.ID {
		return nil, cfs.Errorf("heartbeat", cfs.BadRequest, "of node %d, which the connection's node is not", node.ID)
	}
	if len(m.Devices) > maxBeatDevices {
		return nil, cfs.Errorf("heartbeat", cfs.BadRequest, "%d devices, at most %d", len(m.Devices), maxBeatDevices)
	}
	b := &beat{heard: time.Now(), node: node}
	for _, pb := range m.Devices {
		dev, err := wire.DeviceFromPB(pb)
		if err != nil {
			return nil, err
		}
		if dev.ID.Node() != node.ID {
			return nil, cfs.Errorf("heartbeat", cfs.BadRequest, "node %d reports device %s of another node", node.ID, dev.ID)
		}
		b.devices = append(b.devices, dev)
	}
	return b, nil
}

// hearNode restarts a node's timer, unless one of its devices is not the one
// that the cluster knows under its id.
func (d *duties) hearNode(b *beat) error {
	for _, known := range d.n.Map().Devices {
		for _, dev := range b.devices {
			if dev.ID == known.ID && dev.UUID != known.UUID {
				return cfs.Errorf("heartbeat", cfs.Conflict, "device %s has uuid %s, the cluster knows it as %s", dev.ID, dev.UUID, known.UUID)
			}
			if dev.ID != known.ID && dev.UUID == known.UUID {
				return cfs.Errorf("heartbeat", cfs.Conflict, "device %s has uuid %s, which is that of device %s", dev.ID, dev.UUID, known.ID)
			}
		}
	}
	d.mu.Lock()
	d.beats[b.node.ID] = b
	d.mu.Unlock()
	if len(d.changes(d.n.Map())) > 0 {
		d.wake()
	}
	return nil
}

// changes are the operations that bring the map to what the heartbeats say.
func (d *duties) changes(m *cfs.Map) []cfs.Op {
	d.mu.Lock()
	beats, hearing := maps.Clone(d.beats), d.hearing
	d.mu.Unlock()
	now, timeout := time.Now(), d.n.cfg.NodeTimeout
	patient := now.Sub(hearing) <= timeout // too early to call anybody silent
	alive := func(id cfs.NodeID) *beat {
		if b := beats[id]; b != nil && now.Sub(b.heard) <= timeout {
			return b
		}
		return nil
	}
	var ops []cfs.Op
	node := func(n cfs.Node) { ops = append(ops, cfs.Op{Kind: cfs.OpSetNode, Node: n}) }
	device := func(v cfs.Device) { ops = append(ops, cfs.Op{Kind: cfs.OpSetDevice, Device: v}) }
	known := map[cfs.NodeID]bool{}
	for _, have := range m.Nodes {
		known[have.ID] = true
		want := have
		if b := alive(have.ID); b != nil {
			want.Addr = b.node.Addr
			want.State = cfs.StateUp
		} else if !patient {
			want.State = cfs.StateDown
		}
		if have.State == cfs.StateOut {
			want.State = cfs.StateOut // only an administrator brings it back
		}
		if want != have {
			node(want)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(beats)) {
		if b := alive(id); b != nil && !known[id] {
			node(cfs.Node{ID: id, Addr: b.node.Addr, State: cfs.StateUp, Voter: d.n.addrOf(id) != ""})
		}
	}
	knownDevice := map[cfs.DeviceID]bool{}
	for _, have := range m.Devices {
		knownDevice[have.ID] = true
		if want, changed := wanted(have, alive(have.ID.Node()), patient); changed {
			device(want)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(beats)) {
		if b := alive(id); b != nil {
			for _, v := range b.devices {
				if !knownDevice[v.ID] {
					device(cfs.Device{ID: v.ID, UUID: v.UUID, State: reported(v.State), Capacity: v.Capacity})
				}
			}
		}
	}
	return ops[:min(len(ops), fsm.MaxOps)]
}

// reported is a device's state as its node says it; silence means up.
func reported(s cfs.State) cfs.State {
	if s == 0 {
		return cfs.StateUp
	}
	return s
}

// wanted is what the map should say of a device, given its node's heartbeat: nil
// for none in time, which says something unless the leader is patient.
func wanted(have cfs.Device, b *beat, patient bool) (want cfs.Device, changed bool) {
	want = have
	switch {
	case have.State == cfs.StateOut:
		return have, false
	case b != nil:
		want.State = cfs.StateDown // unless the node has it
		for _, v := range b.devices {
			if v.ID == have.ID {
				want.State, want.Capacity = reported(v.State), v.Capacity
			}
		}
	case !patient:
		want.State = cfs.StateDown
	}
	return want, want.State != have.State || want.Capacity != have.Capacity
}

func (d *duties) updateNodes(ctx context.Context) error {
	ops := d.changes(d.n.Map())
	if len(ops) == 0 {
		return nil
	}
	for _, op := range ops {
		if op.Kind == cfs.OpSetNode {
			d.n.log.Info("node", "id", op.Node.ID, "addr", op.Node.Addr, "state", op.Node.State.String())
		} else {
			d.n.log.Info("device", "id", op.Device.ID.String(), "state", op.Device.State.String(), "capacity_bytes", op.Device.Capacity)
		}
	}
	return d.propose(ctx, ops...)
}

// planGroups records the groups that suit the map. It waits until every voter
// has been heard of, and is in the map, or has had the time for it: groups are
// not to be planned from a cluster that is just coming up.
func (d *duties) planGroups(ctx context.Context) error {
	if d.settled = d.settled || d.settles(); !d.settled {
		return nil
	}
	for ctx.Err() == nil {
		m := d.n.Map()
		if m.Version == d.planned {
			return nil
		}
		groups := fsm.PlanGroups(m)
		if len(groups) == 0 {
			d.planned = m.Version
			return nil
		}
		r, err := d.n.own(ctx, cfs.Op{Kind: cfs.OpSetGroups, Groups: groups, MapVersion: m.Version})
		switch {
		case err != nil:
			return err
		case r.Kind == cfs.KindOK:
			d.n.log.Info("placement groups changed", "groups", len(groups), "map_version", r.Index)
		case r.Kind != cfs.Conflict: // the map has changed: plan again
			return cfs.Errorf("set placement groups", r.Kind, "planned from map version %d", m.Version)
		}
	}
	return nil
}

func (d *duties) settles() bool {
	d.mu.Lock()
	heard, patience := len(d.beats), time.Since(d.hearing)
	d.mu.Unlock()
	if patience > d.n.cfg.NodeTimeout {
		return true
	}
	return heard >= len(d.n.cfg.Seeds) && len(d.changes(d.n.Map())) == 0
}

// reap works off queued deletions, some at a time.
func (d *duties) reap(ctx context.Context) error {
	for range reapsARound {
		var u fsm.Usage
		err := d.n.state.view(func(v kv.View) (err error) {
			u, err = fsm.ReadUsage(v)
			return err
		})
		if err != nil {
			return err
		}
		d.inlineFull.Store(u.InlineFull)
		if !u.Reapable {
			return nil
		}
		if err := d.propose(ctx, cfs.Op{Kind: cfs.OpReap}); err != nil {
			return err
		}
	}
	return nil
}

// withUsed is a copy of m with the devices' use as last heard.
func (d *duties) withUsed(m *cfs.Map) *cfs.Map {
	out := *m
	out.Devices = slices.Clone(m.Devices)
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range out.Devices {
		dev := &out.Devices[i]
		if b := d.beats[dev.ID.Node()]; b != nil {
			for _, v := range b.devices {
				if v.ID == dev.ID {
					dev.Used = v.Used
				}
			}
		}
	}
	return &out
}
