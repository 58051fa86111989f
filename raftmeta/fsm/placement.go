package fsm

import (
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

// dataGeometries are the shapes of full stripes, best first.
var dataGeometries = [...]cfs.Geometry{cfs.Geo4p2, cfs.Geo3p2, cfs.Geo2p2}

// PlanGroups says which placement groups to record (OpSetGroups) so that exactly
// the groups that suit the devices which are up are writable: groups of the best
// data geometry that the devices allow, and groups of 1+2 for small writes. Nil
// means that nothing is to change. It is pure: the leader calls it after each
// change of the map.
func PlanGroups(m *cfs.Map) []cfs.PG {
	ring := healthyRing(m)
	var wanted []cfs.PG
	for _, g := range dataGeometries {
		if groups := ringGroups(ring, g); len(groups) > 0 {
			wanted = groups
			break
		}
	}
	wanted = append(wanted, ringGroups(ring, cfs.Geo1p2)...)
	healthy := make(map[cfs.DeviceID]bool, len(ring))
	for _, d := range ring {
		healthy[d] = true
	}
	var change []cfs.PG
	for _, g := range m.Groups {
		at := slices.IndexFunc(wanted, func(w cfs.PG) bool { return w.Geometry == g.Geometry && sameDevices(w.Slots, g.Slots) })
		if at >= 0 {
			wanted = slices.Delete(wanted, at, at+1)
		}
		if writable := at >= 0; writable != g.Writable {
			g.Writable = writable
			change = append(change, g)
		}
	}
	return append(change, wanted...)
}

func sameDevices(a, b []cfs.Slot) bool {
	return slices.EqualFunc(a, b, func(x, y cfs.Slot) bool { return x.Device == y.Device && !x.Filling && !y.Filling })
}

// healthyRing lists the devices that are up on nodes that are up, taking from
// the nodes in turn, so that neighbours on the ring are on different nodes.
func healthyRing(m *cfs.Map) []cfs.DeviceID {
	up := map[cfs.NodeID]bool{}
	for _, n := range m.Nodes {
		up[n.ID] = n.State == cfs.StateUp
	}
	perNode := map[cfs.NodeID][]cfs.DeviceID{}
	var nodes []cfs.NodeID
	for _, d := range m.Devices {
		if d.State != cfs.StateUp || !up[d.ID.Node()] {
			continue
		}
		if len(perNode[d.ID.Node()]) == 0 {
			nodes = append(nodes, d.ID.Node())
		}
		perNode[d.ID.Node()] = append(perNode[d.ID.Node()], d.ID)
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
