package fsm

import (
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

// dataGeometries are the shapes of full stripes, best first.
var dataGeometries = [...]cfs.Geometry{cfs.Geo4p2, cfs.Geo3p2, cfs.Geo2p2}

// PlanGroups says which placement groups to record (OpSetGroups) so that exactly
// the groups that suit the devices which may take shards are writable: groups of
// the best data geometry that the devices allow, and groups of 1+2 for small
// writes; and so that the slots of devices that leave are filled elsewhere. Nil
// means that nothing is to change. It is pure: the leader calls it after each
// change of the map, or of what groups hold.
func PlanGroups(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage) []cfs.PG {
	wanted := wantedGroups(healthyRing(m, (*cfs.Device).Usable))
	if len(wanted) == 0 { // rather what is full, which says so, than nothing
		wanted = wantedGroups(healthyRing(m, func(d *cfs.Device) bool {
			spacious := *d
			spacious.Full = false
			return spacious.Usable()
		}))
	}
	f := newFilling(m)
	f.loads = f.load(m, usage)
	var change []cfs.PG
	for _, g := range m.Groups {
		old := g
		g.Slots = f.plan(g, usage(g.ID))
		at := slices.IndexFunc(wanted, func(w cfs.PG) bool { return w.Geometry == g.Geometry && sameDevices(w.Slots, g.Slots) })
		if at >= 0 {
			wanted = slices.Delete(wanted, at, at+1)
		}
		if g.Writable = at >= 0; g.Writable != old.Writable || !slices.Equal(g.Slots, old.Slots) {
			change = append(change, g)
		}
	}
	return append(change, wanted...)
}

// DroppableGroups lists the groups that need not be known any more (OpDropGroups).
func DroppableGroups(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage) []cfs.PG {
	var drop []cfs.PG
	for _, g := range m.Groups {
		if !g.Writable && usage(g.ID).Stripes == 0 {
			drop = append(drop, g)
		}
	}
	return drop
}

// CanSpare reports that full stripes could still be written if a device, and all
// that leave already, were gone.
func CanSpare(m *cfs.Map, id cfs.DeviceID) bool {
	var stay []cfs.DeviceID
	for i := range m.Devices {
		if d := &m.Devices[i]; d.ID != id && !d.Leaving() {
			stay = append(stay, d.ID)
		}
	}
	ring := inTurns(stay)
	return slices.ContainsFunc(dataGeometries[:], func(g cfs.Geometry) bool { return ringGroups(ring, g) != nil })
}

// wantedGroups are the groups that suit a ring.
func wantedGroups(ring []cfs.DeviceID) []cfs.PG {
	var wanted []cfs.PG
	for _, g := range dataGeometries {
		if groups := ringGroups(ring, g); len(groups) > 0 {
			wanted = groups
			break
		}
	}
	return append(wanted, ringGroups(ring, cfs.Geo1p2)...)
}

func sameDevices(a, b []cfs.Slot) bool {
	return slices.EqualFunc(a, b, func(x, y cfs.Slot) bool { return x.Device == y.Device && !x.Filling && !y.Filling })
}

// healthyRing is the ring of the devices that may be used on nodes that are up,
// or were a moment ago.
func healthyRing(m *cfs.Map, usable func(*cfs.Device) bool) []cfs.DeviceID {
	up := map[cfs.NodeID]bool{}
	for _, n := range m.Nodes {
		up[n.ID] = n.State == cfs.StateUp || n.State == cfs.StateSuspect
	}
	var healthy []cfs.DeviceID
	for i := range m.Devices {
		if d := &m.Devices[i]; usable(d) && up[d.ID.Node()] {
			healthy = append(healthy, d.ID)
		}
	}
	return inTurns(healthy)
}

// inTurns is a ring of devices that takes from the nodes in turn, so that
// neighbours on it are on different nodes.
func inTurns(devices []cfs.DeviceID) []cfs.DeviceID {
	perNode := map[cfs.NodeID][]cfs.DeviceID{}
	var nodes []cfs.NodeID
	for _, d := range devices {
		if len(perNode[d.Node()]) == 0 {
			nodes = append(nodes, d.Node())
		}
		perNode[d.Node()] = append(perNode[d.Node()], d)
	}
	slices.Sort(nodes)
	for _, n := range nodes {
		slices.Sort(perNode[n])
	}
	var ring []cfs.DeviceID
	for depth := 0; ; depth++ {
		before := len(ring)
		for _, n := range nodes {
			if depth < len(perNode[n]) {
				ring = append(ring, perNode[n][depth])
			}
		}
		if len(ring) == before {
			return ring
		}
	}
}

// ringGroups makes one group for each start on the ring, so that every device
// leads one and serves healthy reads. A group spreads over the nodes as evenly
// as they allow, and never puts more than M shards on one. It returns nil where
// the devices do not suffice.
func ringGroups(ring []cfs.DeviceID, g cfs.Geometry) []cfs.PG {
	nodes := map[cfs.NodeID]bool{}
	for _, d := range ring {
		nodes[d.Node()] = true
	}
	if len(nodes) == 0 {
		return nil
	}
	spread := (g.Total() + len(nodes) - 1) / len(nodes)
	for limit := spread; limit <= int(g.M); limit++ {
		var groups []cfs.PG
		for start := range ring {
			slots := takeSlots(ring, start, g.Total(), limit)
			if slots == nil {
				groups = nil
				break
			}
			groups = append(groups, cfs.PG{Geometry: g, Slots: slots, Writable: true})
		}
		if groups != nil {
			return groups
		}
	}
	return nil
}

// takeSlots walks the ring once from start and takes n devices, at most limit on
// a node; nil when there are not so many.
func takeSlots(ring []cfs.DeviceID, start, n, limit int) []cfs.Slot {
	slots := make([]cfs.Slot, 0, n)
	onNode := map[cfs.NodeID]int{}
	for i := 0; i < len(ring) && len(slots) < n; i++ {
		d := ring[(start+i)%len(ring)]
		if onNode[d.Node()] == limit {
			continue
		}
		onNode[d.Node()]++
		slots = append(slots, cfs.Slot{Device: d})
	}
	if len(slots) < n {
		return nil
	}
	return slots
}
