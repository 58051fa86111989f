package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// lottery makes clusters and what happens to them.
type lottery struct {
	*harness
	rng  *rand.Rand
	sess cfs.SessionID
	last uint64
	ino  cfs.Ino
}

// write puts a stripe into each writable group, mostly.
func (l *lottery) write(m *cfs.Map) {
	for _, g := range m.Groups {
		if !g.Writable || l.rng.IntN(3) == 0 {
			continue
		}
		l.last++
		n := uint32(1 + l.rng.IntN(int(g.Geometry.MaxData())))
		l.do(l.sess, cfs.Op{Kind: cfs.OpWrite, Ino: l.ino, Epochs: []cfs.PGEpoch{{PG: g.ID, Epoch: g.Epoch}}, Extents: []cfs.Extent{
			{Off: l.last << 24, Len: uint64(n), Kind: cfs.ExtentStripe, PG: g.ID, Stripe: cfs.StripeID{Session: l.sess, Counter: l.last}, StripeLen: n}}})
	}
}

// happen changes a device.
func (l *lottery) happen(m *cfs.Map) {
	d := m.Devices[l.rng.IntN(len(m.Devices))]
	job := cfs.Job{Device: d.ID, State: cfs.JobRunning}
	switch l.rng.IntN(8) {
	case 0, 1:
		d.State, job.Kind = cfs.StateOut, cfs.JobRebuild
	case 2:
		d.Draining, job.Kind = true, cfs.JobDrain
	case 3: // called off, where it can be
		d.Draining, job.Kind, job.State = false, cfs.JobDrain, cfs.JobCancelled
	case 4:
		d.Full = !d.Full
	case 5:
		d.Capacity = uint64(8+l.rng.IntN(100)) << 20
		d.State = []cfs.State{cfs.StateUp, cfs.StateSuspect, cfs.StateDown}[l.rng.IntN(3)]
	case 6:
		job.Kind, job.State = cfs.JobRebalance, cfs.JobState(1+l.rng.IntN(4))
	case 7:
		n := m.Nodes[l.rng.IntN(len(m.Nodes))]
		n.State = []cfs.State{cfs.StateUp, cfs.StateUp, cfs.StateSuspect, cfs.StateDown}[l.rng.IntN(4)]
		l.do(0, cfs.Op{Kind: cfs.OpSetNode, Node: n})
		return
	}
	ops := []cfs.Op{{Kind: cfs.OpSetDevice, Device: d}}
	if job.Kind != 0 {
		ops = append(ops, cfs.Op{Kind: cfs.OpSetJob, Job: job})
	}
	l.do(0, ops...)
}

// fill ends some of the fillings.
func (l *lottery) fill(m *cfs.Map) {
	for _, g := range m.Groups {
		for _, s := range g.Slots {
			if s.Filling && l.rng.IntN(2) == 0 {
				l.do(0, cfs.Op{Kind: cfs.OpFillDone, Device: cfs.Device{ID: s.Device}, Groups: []cfs.PG{{ID: g.ID, Epoch: g.Epoch}}})
				break // the group's epoch has changed
			}
		}
	}
}

// judge holds a planned map against the rules, said in other words than the plan's.
func (l *lottery) judge(before, m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage) {
	l.t.Helper()
	device := map[cfs.DeviceID]cfs.Device{}
	for _, d := range m.Devices {
		device[d.ID] = d
	}
	up := map[cfs.NodeID]bool{}
	for _, n := range m.Nodes {
		up[n.ID] = n.State == cfs.StateUp
	}
	jobs := map[cfs.DeviceID]cfs.Job{}
	for _, j := range m.Jobs {
		jobs[j.Device] = j
	}
	had := map[cfs.PGID]cfs.PG{}
	for _, g := range before.Groups {
		had[g.ID] = g
	}
	for _, g := range m.Groups {
		perNode, taken := map[cfs.NodeID]int{}, map[cfs.DeviceID]bool{}
		for _, s := range g.Slots {
			perNode[s.Device.Node()]++
			for _, d := range []cfs.DeviceID{s.Device, s.Source} {
				if d != 0 && taken[d] {
					l.t.Fatalf("group %s has %v twice", showGroup(&g), d)
				}
				taken[d] = d != 0
			}
			if s.Filling && g.Writable {
				l.t.Fatalf("group %s takes stripes while it is filled", showGroup(&g))
			}
			if d := device[s.Device]; g.Writable && (d.Leaving() || d.State == cfs.StateDown) {
				l.t.Fatalf("group %s takes stripes on %v, which is %v, draining %v", showGroup(&g), d.ID, d.State, d.Draining)
			}
		}
		for n, count := range perNode {
			if count > int(g.Geometry.M) {
				l.t.Fatalf("group %s has %d shards on node %d", showGroup(&g), count, n)
			}
		}
		for i, s := range g.Slots {
			if old, known := had[g.ID]; known && old.Slots[i] != s {
				has := old.Slots[i].Device
				if old.Slots[i].Filling {
					has = old.Slots[i].Source
				}
				if s.Filling && s.Source != has || !s.Filling && s.Device != has {
					l.t.Fatalf("group %s: slot %d was %+v", showGroup(&g), i, old.Slots[i])
				}
			}
			// Whatever leaves, has a job that runs and holds something is filled elsewhere, if anything will do.
			j := jobs[s.Device]
			if d := device[s.Device]; s.Filling || !d.Leaving() || usage(g.ID).Stripes == 0 || j.State != cfs.JobRunning || j.Kind == cfs.JobRebalance {
				continue
			}
			for _, d := range m.Devices {
				room := perNode[d.ID.Node()]
				if s.Device.Node() == d.ID.Node() {
					room--
				}
				if d.Usable() && up[d.ID.Node()] && !taken[d.ID] && room < int(g.Geometry.M) {
					l.t.Fatalf("group %s: nothing fills slot %d, where %v could", showGroup(&g), i, d.ID)
				}
			}
		}
	}
}

// TestPlansOnRandomClusters: whatever happens to a cluster, plans keep the rules, are
// what the machine takes, and come to rest.
func TestPlansOnRandomClusters(t *testing.T) {
	fills, moves := 0, 0
	for seed := range uint64(20) {
		h := newHarness(t)
		l := &lottery{harness: h, rng: rand.New(rand.NewPCG(seed, 0))}
		h.cluster(1+l.rng.IntN(7), 1+l.rng.IntN(4))
		l.sess = h.open("x")
		l.ino = h.create(l.sess, "a")
		m, _ := ReadMap(h.kv)
		for _, d := range m.Devices {
			d.Capacity = 32 << 20
			h.do(0, cfs.Op{Kind: cfs.OpSetDevice, Device: d})
		}
		for range 25 {
			m, _ := ReadMap(h.kv)
			l.write(m)
			for range 1 + l.rng.IntN(3) {
				m, _ = ReadMap(h.kv)
				l.happen(m)
			}
			before, _ := ReadMap(h.kv)
			planned := h.plan()
			after, err := ReadMap(h.kv)
			if err != nil {
				t.Fatal(err)
			}
			usage := h.usage()
			t.Run(fmt.Sprintf("seed=%d/index=%d", seed, h.index), func(t *testing.T) {
				h.t = t
				l.judge(before, after, usage)
				if again := PlanGroups(after, usage); again != nil {
					t.Fatalf("planned again: %+v", again)
				}
				for _, g := range h.propose(PlanRebalance) {
					if old := after.Groups[slices.IndexFunc(after.Groups, func(o cfs.PG) bool { return o.ID == g.ID })]; old.Writable {
						t.Fatalf("group %s takes stripes, and is to move", showGroup(&old))
					}
					moves++
				}
				balanced, _ := ReadMap(h.kv)
				l.judge(after, balanced, usage)
				if again := PlanGroups(balanced, usage); again != nil {
					t.Fatalf("planned again after the rebalance: %+v", again)
				}
				if again := PlanRebalance(balanced, usage); again != nil && rebalancing(balanced) >= maxRebalancing {
					t.Fatalf("rebalances more than %d slots: %+v", maxRebalancing, again)
				}
			})
			h.t = t
			for _, g := range planned {
				for _, s := range g.Slots {
					if s.Filling {
						fills++
					}
				}
			}
			m, _ = ReadMap(h.kv)
			l.fill(m)
			if drop := DroppableGroups(m, usage); l.rng.IntN(3) == 0 && len(drop) > 0 {
				h.do(0, cfs.Op{Kind: cfs.OpDropGroups, Groups: drop})
			}
			if broken := checkState(h.kv); broken != "" {
				t.Fatal(broken)
			}
			if t.Failed() {
				return
			}
		}
	}
	if fills < 200 || moves < 5 {
		t.Errorf("only %d slots were filled and %d moved", fills, moves)
	}
}

func rebalancing(m *cfs.Map) (n int) {
	f := newFilling(m)
	for _, g := range m.Groups {
		for _, s := range g.Slots {
			if s.Filling && !f.leaving(s.Source) {
				n++
			}
		}
	}
	return n
}

// TestRebalanceComesToRest: a new device is filled until it has about its share, and no further.
func TestRebalanceComesToRest(t *testing.T) {
	h := newHarness(t)
	h.cluster(4, 2)
	l := &lottery{harness: h, rng: rand.New(rand.NewPCG(1, 1)), sess: h.open("x")}
	l.ino = h.create(l.sess, "a")
	resize := func(n cfs.NodeID, slot uint16) {
		d := testDevice(cfs.MakeDeviceID(n, slot), cfs.StateUp)
		d.Capacity = 100 << 20
		h.do(0, cfs.Op{Kind: cfs.OpSetDevice, Device: d})
	}
	for n := cfs.NodeID(1); n <= 4; n++ {
		resize(n, 0)
		resize(n, 1)
	}
	for range 10 {
		m, _ := ReadMap(h.kv)
		l.write(m)
	}
	added := cfs.MakeDeviceID(4, 2)
	resize(4, 2)
	h.plan()
	m, _ := ReadMap(h.kv)
	job := cfs.Job{Device: added, Kind: cfs.JobRebalance, State: cfs.JobRunning}
	total := RebalanceBytes(m, h.usage(), added)
	if total == 0 {
		t.Fatal("nothing is worth moving")
	}
	h.do(0, cfs.Op{Kind: cfs.OpSetJob, Job: job})
	none := func(cfs.PGID, int) uint64 { return 0 }
	m, _ = ReadMap(h.kv)
	if left := JobBytes(m, h.usage(), &job, none); left != total || JobOver(m, h.usage(), &job) {
		t.Errorf("%d bytes left, want %d", left, total)
	}
	for i := range m.Devices { // what may be given nothing now has nothing to come
		if d := &m.Devices[i]; d.ID == added {
			d.State = cfs.StateDown
			if left := JobBytes(m, h.usage(), &job, none); left != 0 || !JobOver(m, h.usage(), &job) {
				t.Errorf("%d bytes left for a device that is down", left)
			}
		}
	}
	last, rounds := total, 0
	for ; ; rounds++ {
		h.propose(PlanRebalance)
		m, _ = ReadMap(h.kv)
		left := JobBytes(m, h.usage(), &job, none)
		if left > last {
			t.Errorf("%d bytes left, %d before", left, last)
		}
		if last = left; JobOver(m, h.usage(), &job) {
			if left != 0 {
				t.Errorf("the job is over with %d bytes left", left)
			}
			break
		}
		if n := rebalancing(m); n == 0 || n > maxRebalancing {
			t.Fatalf("%d slots are filled", n)
		}
		for _, g := range m.Groups {
			for _, s := range g.Slots {
				if s.Filling {
					h.do(0, cfs.Op{Kind: cfs.OpFillDone, Device: cfs.Device{ID: s.Device}, Groups: []cfs.PG{{ID: g.ID, Epoch: g.Epoch}}})
				}
			}
		}
	}
	load := newFilling(m).load(m, h.usage())
	if rounds == 0 || load[added] == 0 {
		t.Errorf("nothing moved in %d rounds", rounds)
	}
	for d, share := range load {
		if load[added] > share+rebalanceSpread {
			t.Errorf("the new device is at %.2f, %v at %.2f", load[added], d, share)
		}
	}
}
