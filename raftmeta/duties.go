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
	// maxBeatFills bounds the slots that one node reports to be filling; of others the progress is not known.
	maxBeatFills = 4096
)

// duties are the leader's: they watch sessions and nodes, whose heartbeats are
// soft state of this leader alone, and propose what follows from them. They
// begin when the leader has applied all that came before its term, with every
// timer restarted, and end with its leadership.
type duties struct {
	n          *Node
	kick       chan struct{}
	admin      chan *adminCall // for run, which alone changes the layout: what it read stays true
	ended      <-chan struct{}
	cancel     context.CancelFunc
	waits      *lockWaits
	inlineFull atomic.Bool
	leases     *leases

	mu       sync.Mutex
	hearing  time.Time                   // since when without a break: silence before it is ours (monotonic, as all times here)
	sessions map[cfs.SessionID]time.Time // when last heard
	// dismissed are sessions that an administrator ends: they are heard no more.
	dismissed map[cfs.SessionID]bool
	beats     map[cfs.NodeID]*beat

	// Of run alone.
	planned  uint64                     // map version whose groups are as they should be
	settled  bool                       // every voter was heard of, or had the time
	down     map[cfs.DeviceID]time.Time // since when, as far as this leader knows
	recorded map[cfs.DeviceID]time.Time // when the progress of a job was
}

// beat is a node's last heartbeat.
type beat struct {
	heard   time.Time
	node    cfs.Node
	devices []cfs.Device
	fills   map[slotOf]uint64 // bytes that are there
}

// slotOf names a slot of a group.
type slotOf struct {
	pg   cfs.PGID
	slot int
}

// beginDuties runs in the loop, so no session is opened or ended meanwhile.
func (l *loop) beginDuties() error {
	n := l.n
	ctx, cancel := context.WithCancel(context.Background())
	d := &duties{n: n, hearing: time.Now(), kick: make(chan struct{}, 1), admin: make(chan *adminCall), ended: ctx.Done(), cancel: cancel, waits: newLockWaits(),
		sessions: map[cfs.SessionID]time.Time{}, dismissed: map[cfs.SessionID]bool{}, beats: map[cfs.NodeID]*beat{}, down: map[cfs.DeviceID]time.Time{}, recorded: map[cfs.DeviceID]time.Time{}}
	err := n.state.view(func(v kv.View) error {
		open, err := fsm.Sessions(v)
		for _, s := range open {
			d.sessions[s.ID] = d.hearing
		}
		d.leases = newLeases(n, l.hard.GetTerm(), open, d.ended)
		return err
	})
	if err != nil {
		cancel()
		return err
	}
	n.duties.Store(d)
	work := []func(context.Context) error{d.expireSessions, d.updateNodes, d.retire, d.workJobs, d.planGroups, d.dropGroups, d.workMembers, d.reap, d.measureLeases}
	n.background.Go(func() { d.run(ctx, work) })
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

func (d *duties) run(ctx context.Context, work []func(context.Context) error) {
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
		case c := <-d.admin:
			c.serve(ctx, d)
			woke = time.Now() // it was not held up, but did what it was asked to
		}
		if late := time.Since(woke) - interval; late > d.n.cfg.NodeTimeout/4 {
			d.hearAnew(late)
		}
		d.round(ctx, work)
		woke = time.Now() // however long the duties took, the others were heard meanwhile
	}
}

// round does each duty once. One that is refused is in no other's way; where no
// command passes at all the rest waits too.
func (d *duties) round(ctx context.Context, work []func(context.Context) error) {
	for _, duty := range work {
		err := duty(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			d.n.log.Warn("leader's duty put off", "err", err)
		}
		switch cfs.KindOf(err) {
		case cfs.NotLeader, cfs.Unavailable, cfs.Closed:
			return
		}
	}
}

// hearAnew restarts every timer after this process itself was held up: what it did not
// hear meanwhile says nothing of the others. Devices were not down for that time either.
func (d *duties) hearAnew(late time.Duration) {
	d.n.log.Warn("leader was held up: nodes and sessions get their time anew", "late", late)
	for id, since := range d.down {
		d.down[id] = since.Add(late)
	}
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

// hearSession restarts a session's timer; false for one that does not exist or is dismissed.
func (d *duties) hearSession(id cfs.SessionID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.sessions[id]
	if ok = ok && !d.dismissed[id]; ok {
		d.sessions[id] = time.Now()
	}
	return ok
}

// noteSessions follows sessions that were opened or ended.
func (d *duties) noteSessions(changes []sessionChange) {
	if len(changes) > 0 {
		d.leases.note(changes)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range changes {
		if c.ended {
			delete(d.sessions, c.id)
			delete(d.dismissed, c.id)
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
	b.fills = make(map[slotOf]uint64, min(len(m.Fills), maxBeatFills))
	for _, f := range m.Fills[:min(len(m.Fills), maxBeatFills)] {
		b.fills[slotOf{cfs.PGID(f.Pg), int(f.Slot)}] = f.DoneBytes
	}
	return b, nil
}

// hearNode restarts a node's timer, unless one of its devices is not the one
// that the cluster knows under its id, or the node's certificate is of one that the cluster has forgotten.
func (d *duties) hearNode(b *beat) error {
	if d.n.Map().CA != "" && !d.n.Knows(b.node.ID) {
		return unknownNode("heartbeat", b.node.ID)
	}
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

// heard is what the leader knows of the nodes at a moment.
type heard struct {
	beats   map[cfs.NodeID]*beat
	since   time.Time // silence before it is the leader's own
	now     time.Time
	timeout time.Duration
}

// alive is the last heartbeat of a node that is not silent, nil for another.
func (h *heard) alive(id cfs.NodeID) *beat {
	if b := h.beats[id]; b != nil && h.now.Sub(b.heard) <= h.timeout/2 {
		return b
	}
	return nil
}

// fading is the state of a node that is not alive, or of a device of it.
func (h *heard) fading(id cfs.NodeID, have cfs.State) cfs.State {
	silent := h.now.Sub(h.since)
	if b := h.beats[id]; b != nil {
		silent = min(silent, h.now.Sub(b.heard))
	}
	switch {
	case silent > h.timeout:
		return cfs.StateDown
	case silent > h.timeout/2 && have == cfs.StateUp:
		return cfs.StateSuspect
	}
	return have
}

// changes are the operations that bring the map to what the heartbeats say.
func (d *duties) changes(m *cfs.Map) []cfs.Op {
	h := &heard{now: time.Now(), timeout: d.n.cfg.NodeTimeout}
	d.mu.Lock()
	h.beats, h.since = maps.Clone(d.beats), d.hearing
	d.mu.Unlock()
	var ops []cfs.Op
	node := func(n cfs.Node) { ops = append(ops, cfs.Op{Kind: cfs.OpSetNode, Node: n}) }
	device := func(v cfs.Device) { ops = append(ops, cfs.Op{Kind: cfs.OpSetDevice, Device: v}) }
	known := map[cfs.NodeID]bool{}
	for _, have := range m.Nodes {
		known[have.ID] = true
		want := have
		if b := h.alive(have.ID); b != nil {
			want.Addr = b.node.Addr
			want.State = cfs.StateUp
		} else {
			want.State = h.fading(have.ID, have.State)
		}
		if have.State == cfs.StateOut {
			want.State = cfs.StateOut // only an administrator brings it back
		}
		if want != have {
			node(want)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(h.beats)) {
		if b := h.alive(id); b != nil && !known[id] {
			node(cfs.Node{ID: id, Addr: b.node.Addr, State: cfs.StateUp})
		}
	}
	knownDevice := map[cfs.DeviceID]bool{}
	for _, have := range m.Devices {
		knownDevice[have.ID] = true
		want := have
		switch b := h.alive(have.ID.Node()); {
		case have.State == cfs.StateOut:
			if back := b.wanted(have); !have.Draining && back.State == cfs.StateUp {
				want = back
			}
		case b != nil:
			want = b.wanted(have)
		default:
			want.State = h.fading(have.ID.Node(), have.State)
		}
		if want != have {
			device(want)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(h.beats)) {
		if b := h.alive(id); b != nil {
			for _, v := range b.devices {
				if !knownDevice[v.ID] {
					device(cfs.Device{ID: v.ID, UUID: v.UUID, State: reported(v.State), Capacity: v.Capacity, Full: v.Full})
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

// wanted is what the map should say of a device whose node is alive: without the
// heartbeat (nil) nobody has it.
func (b *beat) wanted(have cfs.Device) cfs.Device {
	want := have
	want.State = cfs.StateDown // unless the node has it
	if b == nil {
		return want
	}
	for _, v := range b.devices {
		if v.ID == have.ID {
			want.State, want.Capacity, want.Full = reported(v.State), v.Capacity, v.Full
		}
	}
	return want
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

// planGroups records the groups that suit the map, and slots to be filled. It waits
// until every voter has been heard of, and is in the map, or has had the time for it:
// groups are not to be planned from a cluster that is just coming up.
func (d *duties) planGroups(ctx context.Context) error {
	if d.settled = d.settled || d.settles(); !d.settled {
		return nil
	}
	for ctx.Err() == nil {
		m := d.n.Map()
		usage, err := d.n.usage()
		if err != nil {
			return err
		}
		var groups []cfs.PG
		if m.Version != d.planned {
			groups = fsm.PlanGroups(m, usage)
		}
		if len(groups) == 0 {
			d.planned = m.Version
			groups = fsm.PlanRebalance(m, usage)
		}
		if len(groups) == 0 {
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

// dropGroups forgets groups that have become empty.
func (d *duties) dropGroups(ctx context.Context) error {
	if !d.settled {
		return nil
	}
	usage, err := d.n.usage()
	if err != nil {
		return err
	}
	drop := fsm.DroppableGroups(d.n.Map(), usage)
	if len(drop) == 0 {
		return nil
	}
	return d.propose(ctx, cfs.Op{Kind: cfs.OpDropGroups, Groups: drop})
}

func (d *duties) settles() bool {
	d.mu.Lock()
	heard, patience := len(d.beats), time.Since(d.hearing)
	d.mu.Unlock()
	if patience > d.n.cfg.NodeTimeout {
		return true
	}
	return heard >= d.n.roster.Load().voters() && len(d.changes(d.n.Map())) == 0
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

// withReported is a copy of m with what the devices' nodes last said that no change of the
// map tells of: their use, and how far they have followed the delete feed.
func (d *duties) withReported(m *cfs.Map) *cfs.Map {
	out := *m
	out.Devices = slices.Clone(m.Devices)
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range out.Devices {
		dev := &out.Devices[i]
		if b := d.beats[dev.ID.Node()]; b != nil {
			for _, v := range b.devices {
				if v.ID == dev.ID {
					dev.Used, dev.FeedPos = v.Used, max(dev.FeedPos, v.FeedPos)
				}
			}
		}
	}
	return &out
}
