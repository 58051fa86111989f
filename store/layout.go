package store

import (
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

// slotRef names a slot of a group.
type slotRef struct {
	pg   cfs.PGID
	slot int
}

// layout is a map of the cluster, made to be looked things up in.
type layout struct {
	m       *cfs.Map
	groups  map[cfs.PGID]*cfs.PG
	devices map[cfs.DeviceID]*cfs.Device
	nodes   map[cfs.NodeID]*cfs.Node
	jobs    map[cfs.DeviceID]*cfs.Job
	owned   map[cfs.DeviceID][]slotRef // slots of each device, filling ones too, in the order of groups
	empty   map[cfs.DeviceID][]slotRef // those that are filling
}

// layout is the newest one.
func (s *Store) layout() *layout {
	m := s.cfg.Map()
	if l := s.layouts.Load(); l != nil && l.m == m {
		return l
	}
	l := &layout{
		m: m, groups: map[cfs.PGID]*cfs.PG{}, devices: map[cfs.DeviceID]*cfs.Device{},
		nodes: map[cfs.NodeID]*cfs.Node{}, jobs: map[cfs.DeviceID]*cfs.Job{}, owned: map[cfs.DeviceID][]slotRef{}, empty: map[cfs.DeviceID][]slotRef{},
	}
	for i := range m.Groups {
		pg := &m.Groups[i]
		l.groups[pg.ID] = pg
		for slot := range pg.Slots {
			id := pg.Slots[slot].Device
			l.owned[id] = append(l.owned[id], slotRef{pg.ID, slot})
			if pg.Slots[slot].Filling {
				l.empty[id] = append(l.empty[id], slotRef{pg.ID, slot})
			}
		}
	}
	for i := range m.Devices {
		l.devices[m.Devices[i].ID] = &m.Devices[i]
	}
	for i := range m.Nodes {
		l.nodes[m.Nodes[i].ID] = &m.Nodes[i]
	}
	for i := range m.Jobs {
		l.jobs[m.Jobs[i].Device] = &m.Jobs[i]
	}
	s.layouts.Store(l)
	return l
}

// owns reports whether the group has the device in a slot, filling or not.
func owns(pg *cfs.PG, slot int, id cfs.DeviceID) bool {
	return slot < len(pg.Slots) && pg.Slots[slot].Device == id
}

// jobOf is the device whose job the filling of a slot belongs to: that of the device which goes, or else
// of the one that comes.
func (l *layout) jobOf(slot *cfs.Slot) cfs.DeviceID {
	if from := l.devices[slot.Source]; from != nil && !from.Leaving() {
		return slot.Device
	}
	return slot.Source
}

// filling reports whether a slot of the device is to be filled now, for which job, and under what bound.
// What has no job, or one that is over, is filled without a bound: an administrator stops only what goes on.
func (l *layout) filling(ref slotRef, id cfs.DeviceID) (rateBytes uint64, job cfs.DeviceID, ok bool) {
	pg := l.groups[ref.pg]
	if pg == nil || !owns(pg, ref.slot, id) || !pg.Slots[ref.slot].Filling {
		return 0, 0, false
	}
	job = l.jobOf(&pg.Slots[ref.slot])
	j := l.jobs[job]
	if j == nil {
		return 0, job, true
	}
	return j.RateBytes, job, j.State != cfs.JobPaused && j.State != cfs.JobCancelled
}

// toFill is the slots of a device that are to be filled now, for each job.
func (l *layout) toFill(id cfs.DeviceID) map[cfs.DeviceID][]slotRef {
	var jobs map[cfs.DeviceID][]slotRef
	for _, ref := range l.empty[id] {
		if _, job, ok := l.filling(ref, id); ok {
			if jobs == nil {
				jobs = map[cfs.DeviceID][]slotRef{}
			}
			jobs[job] = append(jobs[job], ref)
		}
	}
	return jobs
}

// reach is how well a device can be read from: 0 best.
func (l *layout) reach(id cfs.DeviceID) int {
	d, n := l.devices[id], l.nodes[id.Node()]
	if d == nil || n == nil {
		return unreachable
	}
	return max(int(d.State), int(n.State)) - int(cfs.StateUp)
}

const (
	// suspectReach is the worst of those that are worth trying first.
	suspectReach = int(cfs.StateSuspect - cfs.StateUp)
	unreachable  = int(cfs.StateOut) + 1
)

// holders are where a slot's shards may be, the likeliest first: a device that is being filled has some.
func (l *layout) holders(slot *cfs.Slot) []cfs.DeviceID {
	switch {
	case !slot.Filling || slot.Source == 0:
		return []cfs.DeviceID{slot.Device}
	case l.reach(slot.Source) <= suspectReach:
		return []cfs.DeviceID{slot.Source, slot.Device}
	}
	return []cfs.DeviceID{slot.Device, slot.Source}
}

// sources are the shards other than one, those that are easiest to get first: on devices that are up
// before others, on this node before others.
func (l *layout) sources(pg *cfs.PG, but int, node cfs.NodeID) []int {
	rank := func(shard int) int {
		best := unreachable * 2
		for _, id := range l.holders(&pg.Slots[shard]) {
			r := l.reach(id) * 2
			if id.Node() != node {
				r++
			}
			best = min(best, r)
		}
		return best
	}
	var shards []int
	for shard := range pg.Slots {
		if shard != but {
			shards = append(shards, shard)
		}
	}
	slices.SortStableFunc(shards, func(a, b int) int { return rank(a) - rank(b) })
	return shards
}
