package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// statusTimeout bounds one question for a node's status.
	statusTimeout = 2 * time.Second
	// usablePoll is how often the cluster is asked whether it is usable.
	usablePoll = 100 * time.Millisecond
)

// Status asks a node for its view of the cluster.
func (c *Cluster) Status(ctx context.Context, nodeID int) (*wirepb.StatusReply, error) {
	n, err := c.node(nodeID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := wire.Dial(ctx, c.askAddr(n), wire.DialConfig{Hello: wire.Identity{ClusterID: c.st.ClusterID, Name: "launcher"}})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply := new(wirepb.StatusReply)
	if _, err := conn.Call(ctx, wire.OpStatus, &wirepb.Empty{}, nil, reply, nil); err != nil {
		return nil, err
	}
	return reply, nil
}

// Leader is the node that the running nodes agree to be led by.
func (c *Cluster) Leader(ctx context.Context) (int, error) {
	replies, err := c.statuses(ctx)
	if err != nil {
		return 0, err
	}
	return agreedLeader(replies)
}

// WaitUsable returns when all running nodes agree on a leader among them, see
// each other and their devices up, and the best groups that these devices allow
// take writes. A node that dies meanwhile is an error.
func (c *Cluster) WaitUsable(ctx context.Context) error {
	const op = "wait for a usable cluster"
	ctx, cancel := context.WithTimeout(ctx, c.spec.StartTimeout)
	defer cancel()
	for begun := time.Now(); ; {
		why := c.notUsable(ctx)
		if why == nil {
			c.log.Info("the cluster is usable", "after", time.Since(begun))
			return nil
		}
		for _, n := range c.st.Nodes {
			if n.wanted && !n.Process.alive() {
				return n.Process.died(fmt.Sprintf("start node %d", n.ID))
			}
		}
		select {
		case <-ctx.Done():
			return cfs.Errorf(op, cfs.Timeout, "%w; at last: %w", ctx.Err(), why)
		case <-time.After(usablePoll):
		}
	}
}

// statuses asks every node that runs.
func (c *Cluster) statuses(ctx context.Context) (map[int]*wirepb.StatusReply, error) {
	replies := map[int]*wirepb.StatusReply{}
	for _, n := range c.st.Nodes {
		if !n.Process.alive() {
			continue
		}
		r, err := c.Status(ctx, n.ID)
		if err != nil {
			return nil, err
		}
		replies[n.ID] = r
	}
	return replies, nil
}

// agreedLeader is the leader that all replies name, which must be among them.
func agreedLeader(replies map[int]*wirepb.StatusReply) (int, error) {
	leader := 0
	for id, r := range replies {
		l := int(r.GetLeaderId())
		if l == 0 || leader != 0 && l != leader {
			return 0, cfs.Errorf("find the leader", cfs.Unavailable, "node %d follows %d, another %d", id, l, leader)
		}
		leader = l
	}
	if replies[leader] == nil {
		return 0, cfs.Errorf("find the leader", cfs.Unavailable, "node %d is not running", leader)
	}
	return leader, nil
}

// notUsable is why the cluster is not usable; nil when it is.
func (c *Cluster) notUsable(ctx context.Context) error {
	replies, err := c.statuses(ctx)
	if err != nil {
		return err
	}
	leader, err := agreedLeader(replies)
	if err != nil {
		return err
	}
	running := map[int][]int{}
	for id := range replies {
		running[id] = c.st.Nodes[id-1].Serving
	}
	return mapNotUsable(replies[leader].GetMap(), running)
}

// mapNotUsable is why writes to the running nodes, each with devices in those slots, would
// not be as redundant as they can be.
func mapNotUsable(m *wirepb.Map, running map[int][]int) error {
	const op = "look at the cluster's map"
	up := 0
	for _, n := range m.GetNodes() {
		isUp := cfs.State(n.GetState()) == cfs.StateUp
		if _, runs := running[int(n.GetId())]; isUp != runs {
			return cfs.Errorf(op, cfs.Unavailable, "node %d is %v", n.GetId(), cfs.State(n.GetState()))
		}
		if isUp {
			up++
		}
	}
	if up != len(running) {
		return cfs.Errorf(op, cfs.Unavailable, "%d of %d running nodes have joined", up, len(running))
	}
	states, upDevices, removed := map[cfs.DeviceID]cfs.State{}, map[cfs.DeviceID]bool{}, map[cfs.DeviceID]bool{}
	usable := map[cfs.NodeID]int{}
	for _, d := range m.GetDevices() {
		id := cfs.DeviceID(d.GetId())
		states[id] = cfs.State(d.GetState())
		upDevices[id] = states[id] == cfs.StateUp
		removed[id] = d.GetDraining() && states[id] == cfs.StateOut
		if upDevices[id] && !d.GetDraining() && !d.GetFull() {
			usable[id.Node()]++
		}
	}
	for n, slots := range running {
		for _, slot := range slots {
			// One that has been drained is out for good.
			if id := cfs.MakeDeviceID(cfs.NodeID(n), uint16(slot)); !upDevices[id] && !removed[id] {
				return cfs.Errorf(op, cfs.Unavailable, "device %v is %v", id, states[id])
			}
		}
	}
	return groupsNotUsable(m, upDevices, usable)
}

// groupsNotUsable is why groups do not take writes as the usable devices of each node allow.
func groupsNotUsable(m *wirepb.Map, upDevices map[cfs.DeviceID]bool, usable map[cfs.NodeID]int) error {
	const op = "look at the cluster's groups"
	best, any := widest(slices.Collect(maps.Values(usable)))
	found := !any
	for _, g := range m.GetGroups() {
		if !g.GetWritable() {
			continue
		}
		for _, s := range g.GetSlots() {
			if !upDevices[cfs.DeviceID(s.GetDevice())] {
				return cfs.Errorf(op, cfs.Unavailable, "group %d takes writes to device %v, which is not up", g.GetId(), cfs.DeviceID(s.GetDevice()))
			}
		}
		found = found || cfs.Geometry{K: uint8(g.GetK()), M: uint8(g.GetM())} == best
	}
	if !found {
		return cfs.Errorf(op, cfs.Unavailable, "no group of %v takes writes", best)
	}
	return nil
}

// BestGeometry is the widest that so many nodes allow: never two shards of a
// stripe on a device, never more than m on one node. False where not even copies are possible.
func BestGeometry(nodes, devicesPerNode int) (cfs.Geometry, bool) {
	return widest(slices.Repeat([]int{devicesPerNode}, max(0, nodes)))
}

// widest is BestGeometry for nodes of so many devices each.
func widest(devices []int) (cfs.Geometry, bool) {
	for _, g := range []cfs.Geometry{cfs.Geo4p2, cfs.Geo3p2, cfs.Geo2p2, cfs.Geo1p2} {
		places := 0
		for _, n := range devices {
			places += min(n, int(g.M))
		}
		if places >= g.Total() {
			return g, true
		}
	}
	return cfs.Geometry{}, false
}
