package node

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// retireEvery is how often it is looked for devices that the cluster needs no more.
const retireEvery = time.Second

// admin carries out what an administrator asks of this node; the rest is the leader's.
func (n *Node) admin(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var req wirepb.Admin
	if err := r.Decode(&req); err != nil {
		return wire.Response{}, err
	}
	var reply *wirepb.AdminReply
	var err error
	id := cfs.DeviceID(req.Device)
	switch wire.Verb(req.Verb) {
	case wire.VerbDeviceAdd:
		reply, err = n.addDevice(req.Path, req.Force)
	case wire.VerbScrub:
		if err = n.checkServed("scrub", id); err == nil {
			n.store.StartScrub(id)
			reply = &wirepb.AdminReply{Text: "a scrub begins"}
		}
	case wire.VerbReconcile:
		if err = n.store.Settle(ctx, id); err == nil {
			reply = &wirepb.AdminReply{Text: "all shards were compared with the stripe table"}
		}
	default:
		resp, err := n.raft.Serve(ctx, r)
		if cfs.KindOf(err) == cfs.NotLeader && n.fromHere(r) {
			return n.passOn(ctx, r)
		}
		return resp, err
	}
	if err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Body: reply}, nil
}

// checkServed refuses a device that is not served here; 0 means all that are.
func (n *Node) checkServed(op string, id cfs.DeviceID) error {
	if id == 0 || n.devices.find(id) != nil {
		return nil
	}
	return cfs.Errorf(op, cfs.NotFound, "no device %s on node %d", id, n.cfg.NodeID)
}

// addDevice opens a device, formats it if it is blank, and serves it. The heartbeat brings it into the cluster.
func (n *Node) addDevice(path string, force bool) (*wirepb.AdminReply, error) {
	n.adminMu.Lock()
	defer n.adminMu.Unlock()
	cfg := n.cfg
	cfg.Force = force
	c, err := n.devices.add(&cfg, n.dir, path, n.raft.Map())
	if err != nil {
		return nil, err
	}
	id := c.sb.Device
	n.feed.add(id, c.log.FeedPosition())
	if err := n.store.AddDevice(id, c.log); err != nil {
		return nil, err // twins are refused before, so it is not there
	}
	n.metrics.deviceFailed.DeleteLabelValues(c.path)
	text := "device " + id.String() + " is served"
	if c.made {
		text = "formatted: " + text
	}
	n.log.Info("device added", "device", id.String(), "path", c.path)
	return &wirepb.AdminReply{Device: uint32(id), Text: text}, nil
}

// removed reports that the cluster has removed a device.
func removed(m *cfs.Map, id cfs.DeviceID) bool {
	for i := range m.Devices {
		if m.Devices[i].ID == id {
			return m.Devices[i].Removed()
		}
	}
	return false
}

// needless reports that a device was removed, and no group has it or is filled from it.
func needless(m *cfs.Map, id cfs.DeviceID) bool {
	if !removed(m, id) {
		return false
	}
	for i := range m.Groups {
		for _, slot := range m.Groups[i].Slots {
			if slot.Device == id || slot.Source == id {
				return false
			}
		}
	}
	return true
}

// retireDevices closes devices that the cluster has removed and needs no more, until ctx ends.
func (n *Node) retireDevices(ctx context.Context) {
	tick := time.NewTicker(retireEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range n.store.Devices() {
			if needless(n.raft.Map(), id) {
				n.retire(id)
			}
		}
	}
}

// retire closes a device. Its slot stays used; the next start opens it only if it is told to.
func (n *Node) retire(id cfs.DeviceID) {
	n.adminMu.Lock()
	defer n.adminMu.Unlock()
	c := n.devices.find(id)
	if c == nil {
		return
	}
	n.store.RemoveDevice(id)
	n.feed.remove(id)
	err := n.dir.change(func(s *state) bool { s.leave(id.Slot()); return true })
	if err != nil {
		n.log.Error("a removed device is not forgotten", "device", id.String(), "err", err)
	}
	if err := n.devices.drop(c); err != nil {
		n.log.Warn("closing a removed device", "device", id.String(), "err", err)
	}
	n.log.Info("removed device closed: it can be taken off the command line", "device", id.String(), "path", c.path)
}

// inspect is what the node knows of its own devices.
func (n *Node) inspect() *wirepb.InspectReply {
	reply := &wirepb.InspectReply{NodeId: uint32(n.cfg.NodeID), Devices: n.store.Inspect(), Fills: n.store.Fills()}
	for _, info := range reply.Devices {
		if c := n.devices.find(cfs.DeviceID(info.Id)); c != nil {
			info.Path = c.path
		}
	}
	return reply
}
