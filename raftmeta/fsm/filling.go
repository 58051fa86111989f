package fsm

import (
	"maps"
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxRebalancing bounds the slots that are filled at a time for rebalancing.
	maxRebalancing = 4
	// rebalanceSpread is by how much of its capacity a device must be fuller than
	// another for its shards to move there.
	rebalanceSpread = 0.10
	// newShare is what a device holds at most, as a share of its capacity, to be new.
	newShare = 0.02
)

// filling plans which slots are filled, where and from where.
type filling struct {
	devices map[cfs.DeviceID]*cfs.Device
	order   []cfs.DeviceID // by id
	nodeUp  map[cfs.NodeID]bool
	jobs    map[cfs.DeviceID]*cfs.Job
	slots   map[cfs.DeviceID]int     // of all groups, as planned
	loads   map[cfs.DeviceID]float64 // as planned; nil where it does not matter which device is taken
}

func newFilling(m *cfs.Map) *filling {
	f := &filling{devices: map[cfs.DeviceID]*cfs.Device{}, nodeUp: map[cfs.NodeID]bool{}, jobs: map[cfs.DeviceID]*cfs.Job{}, slots: map[cfs.DeviceID]int{}}
	for i := range m.Devices {
		d := &m.Devices[i]
		f.devices[d.ID] = d
		f.order = append(f.order, d.ID)
	}
	slices.Sort(f.order)
	for _, n := range m.Nodes {
		f.nodeUp[n.ID] = n.State == cfs.StateUp
	}
	for i := range m.Jobs {
		f.jobs[m.Jobs[i].Device] = &m.Jobs[i]
	}
	for _, g := range m.Groups {
		for _, s := range g.Slots {
			f.slots[s.Device]++
		}
	}
	return f
}

// running reports that a device's shards are to be moved elsewhere now.
func (f *filling) running(id cfs.DeviceID) bool {
	j := f.jobs[id]
	return j != nil && j.Kind != cfs.JobRebalance && j.State == cfs.JobRunning
}

func (f *filling) leaving(id cfs.DeviceID) bool {
	d := f.devices[id]
	return d != nil && d.Leaving()
}

// plan is a group's slots as they should be. One slot that moves may make room on
// a node for another, so it looks again until nothing changes.
func (f *filling) plan(g cfs.PG, u cfs.GroupUsage) []cfs.Slot {
	slots := slices.Clone(g.Slots)
	for changed := true; changed; {
		changed = false
		for i := range slots {
			if next, ok := f.next(&g, slots, i, u); ok {
				f.slots[slots[i].Device]--
				f.slots[next.Device]++
				bytes := u.RawBytes / uint64(g.Geometry.Total())
				f.loads[slots[i].Device] -= f.share(slots[i].Device, bytes)
				f.loads[next.Device] += f.share(next.Device, bytes)
				slots[i] = next
				changed = true
			}
		}
	}
	return slots
}

// next is what a slot should become; false for what it is.
func (f *filling) next(g *cfs.PG, slots []cfs.Slot, i int, u cfs.GroupUsage) (cfs.Slot, bool) {
	s := slots[i]
	has := s.Device
	if s.Filling {
		lost := f.cannotFill(s.Device)
		if has = s.Source; !f.leaving(has) {
			if j := f.jobs[s.Device]; j != nil && j.Kind == cfs.JobRebalance && j.State <= cfs.JobPaused && !lost {
				return s, false
			}
			return cfs.Slot{Device: has}, f.fits(g, slots, i, has)
		}
		if !lost {
			return s, false
		}
	}
	if u.Stripes == 0 || !f.running(has) || !f.leaving(has) {
		return s, false
	}
	to := f.candidate(g, slots, i)
	return cfs.Slot{Device: to, Filling: true, Source: has}, to != 0
}

// cannotFill reports that a device will not end the filling of a slot that it has begun.
func (f *filling) cannotFill(id cfs.DeviceID) bool {
	d := f.devices[id]
	return d == nil || d.Leaving() || d.Full
}

// stranded reports that what a slot should have is to move, and that there is no
// device for it.
func (f *filling) stranded(g *cfs.PG, i int) bool {
	has := g.Slots[i].Device
	if g.Slots[i].Filling {
		if !f.cannotFill(has) {
			return false
		}
		has = g.Slots[i].Source
	}
	return f.leaving(has) && f.running(has) && f.candidate(g, g.Slots, i) == 0
}

// candidate is the device that is to fill a slot, 0 for none: of those that may,
// the emptiest, and of several in the fewest slots.
func (f *filling) candidate(g *cfs.PG, slots []cfs.Slot, i int) cfs.DeviceID {
	best := cfs.DeviceID(0)
	for _, id := range f.order {
		if !f.devices[id].Usable() || !f.nodeUp[id.Node()] || id == slots[i].Device || id == slots[i].Source || !f.fits(g, slots, i, id) {
			continue
		}
		if best == 0 || f.loads[id] < f.loads[best] || f.loads[id] == f.loads[best] && f.slots[id] < f.slots[best] {
			best = id
		}
	}
	return best
}

// fits reports that a slot may be on a device, as far as the other slots go: no
// other is on it or filled from it, and at most M are on its node.
func (f *filling) fits(g *cfs.PG, slots []cfs.Slot, i int, id cfs.DeviceID) bool {
	onNode := 1
	for j, o := range slots {
		if j == i {
			continue
		}
		if o.Device == id || o.Source == id {
			return false
		}
		if o.Device.Node() == id.Node() {
			onNode++
		}
	}
	return onNode <= int(g.Geometry.M)
}

// PlanRebalance says which slots of groups that take no stripes any more to move to
// devices whose job is to be filled (OpSetGroups). Nil means that there is nothing
// to begin now. It is pure, as PlanGroups is.
func PlanRebalance(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage) []cfs.PG {
	runs := func(j cfs.Job) bool { return j.Kind == cfs.JobRebalance && j.State == cfs.JobRunning }
	if !slices.ContainsFunc(m.Jobs, runs) {
		return nil
	}
	f := newFilling(m)
	load := f.load(m, usage)
	moving := 0
	for _, g := range m.Groups {
		for _, s := range g.Slots {
			if s.Filling && !f.leaving(s.Source) {
				moving++
			}
		}
	}
	var change []cfs.PG
	taken := map[cfs.PGID]bool{}
	for _, to := range f.order {
		j := f.jobs[to]
		if j == nil || !runs(*j) || !f.devices[to].Usable() || !f.nodeUp[to.Node()] {
			continue
		}
		for moving < maxRebalancing {
			g, ok := f.move(m, usage, load, to, taken)
			if !ok {
				break
			}
			taken[g.ID] = true
			change = append(change, g)
			moving++
		}
	}
	return change
}

// NewDevices lists devices that were never rebalanced and hold next to nothing, while others
// hold so much that some of it is worth moving there.
func NewDevices(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage) (ids []cfs.DeviceID) {
	f := newFilling(m)
	load := f.load(m, usage)
	for _, id := range f.order {
		if j := f.jobs[id]; j != nil && (j.Kind == cfs.JobRebalance || j.State != cfs.JobDone) || !f.devices[id].Usable() || load[id] > newShare {
			continue
		}
		if _, ok := f.move(m, usage, maps.Clone(load), id, nil); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// RebalanceBytes is how much would still begin to move to a device if its job were
// to be filled; nothing does to one that may not be given shards now.
func RebalanceBytes(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage, to cfs.DeviceID) (bytes uint64) {
	f := newFilling(m)
	if d := f.devices[to]; d == nil || !d.Usable() {
		return 0
	}
	load := f.load(m, usage)
	for taken := map[cfs.PGID]bool{}; ; {
		g, ok := f.move(m, usage, load, to, taken)
		if !ok {
			return bytes
		}
		taken[g.ID] = true
		bytes += shardBytes(&g, usage)
	}
}

// moves reports that a job is not over before a slot has moved, and that this has begun.
func (f *filling) moves(j *cfs.Job, s *cfs.Slot) (moves, begun bool) {
	begun = s.Filling && (s.Source == j.Device || j.Kind == cfs.JobRebalance && s.Device == j.Device && !f.leaving(s.Source))
	return begun || j.Kind != cfs.JobRebalance && s.Device == j.Device, begun
}

// JobOver reports that the job of a device has nothing left to do: no slot is with the
// device any more, or for rebalancing, none moves to it and none is worth moving. That
// takes far less than JobBytes.
func JobOver(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage, j *cfs.Job) bool {
	f := newFilling(m)
	for i := range m.Groups {
		for k := range m.Groups[i].Slots {
			if moves, _ := f.moves(j, &m.Groups[i].Slots[k]); moves {
				return false
			}
		}
	}
	if d := f.devices[j.Device]; j.Kind != cfs.JobRebalance || d == nil || !d.Usable() {
		return true
	}
	_, more := f.move(m, usage, f.load(m, usage), j.Device, nil)
	return !more
}

// JobBytes is how much has still to move for the job of a device. filled says how much
// a filling slot of a group has already.
func JobBytes(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage, j *cfs.Job, filled func(pg cfs.PGID, slot int) uint64) (left uint64) {
	f := newFilling(m)
	for i := range m.Groups {
		g := &m.Groups[i]
		bytes := shardBytes(g, usage)
		for k := range g.Slots {
			switch moves, begun := f.moves(j, &g.Slots[k]); {
			case begun:
				left += bytes - min(bytes, filled(g.ID, k))
			case moves:
				left += bytes
			}
		}
	}
	if j.Kind == cfs.JobRebalance {
		left += RebalanceBytes(m, usage, j.Device)
	}
	return left
}

// load is what each device holds, or will once it is filled, as a share of its capacity.
func (f *filling) load(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage) map[cfs.DeviceID]float64 {
	load := map[cfs.DeviceID]float64{}
	for i := range m.Groups {
		share := shardBytes(&m.Groups[i], usage)
		for _, s := range m.Groups[i].Slots {
			load[s.Device] += f.share(s.Device, share)
		}
	}
	return load
}

// shardBytes is what a group has on each of its slots.
func shardBytes(g *cfs.PG, usage func(cfs.PGID) cfs.GroupUsage) uint64 {
	return usage(g.ID).RawBytes / uint64(g.Geometry.Total())
}

func (f *filling) share(id cfs.DeviceID, n uint64) float64 {
	if d := f.devices[id]; d != nil && d.Capacity > 0 {
		return float64(n) / float64(d.Capacity)
	}
	return 0
}

// move finds the next slot to move to a device: of the fullest other device that
// has one, so long as that stays the fuller of the two.
func (f *filling) move(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage, load map[cfs.DeviceID]float64, to cfs.DeviceID, taken map[cfs.PGID]bool) (cfs.PG, bool) {
	from := slices.Clone(f.order)
	slices.SortStableFunc(from, func(a, b cfs.DeviceID) int {
		switch {
		case load[a] > load[b]:
			return -1
		case load[a] < load[b]:
			return 1
		}
		return 0
	})
	for _, src := range from {
		if load[src]-load[to] <= rebalanceSpread {
			return cfs.PG{}, false
		}
		if d := f.devices[src]; d.Leaving() || d.State != cfs.StateUp {
			continue
		}
		for _, g := range m.Groups {
			bytes := shardBytes(&g, usage)
			i := slices.Index(g.Slots, cfs.Slot{Device: src})
			if g.Writable || bytes == 0 || i < 0 || taken[g.ID] || !f.fits(&g, g.Slots, i, to) {
				continue
			}
			was, will := load[src]-f.share(src, bytes), load[to]+f.share(to, bytes)
			if will > was {
				continue
			}
			load[src], load[to] = was, will
			g.Slots = slices.Clone(g.Slots)
			g.Slots[i] = cfs.Slot{Device: to, Filling: true, Source: src}
			return g, true
		}
	}
	return cfs.PG{}, false
}
