package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

func addDevice(t *testing.T, n *Node, path string, force bool) (*wirepb.AdminReply, error) {
	t.Helper()
	reply := &wirepb.AdminReply{}
	err := call(t, n.Addr(), wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbDeviceAdd), Path: path, Force: force}, reply)
	return reply, err
}

func inspect(t *testing.T, n *Node) *wirepb.InspectReply {
	t.Helper()
	reply := &wirepb.InspectReply{}
	if err := call(t, n.Addr(), wire.OpInspect, &wirepb.Empty{}, reply); err != nil {
		t.Fatal(err)
	}
	return reply
}

// A device that is added while the node runs is formatted, served and brought into the cluster, and it is
// there after the next start though that does not name it.
func TestDeviceAdd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := aloneConfig(t, dir)
	n := start(t, cfg)
	waitStatus(t, n.Addr(), devicesUp(2))
	added := makeDevice(t, filepath.Join(dir, "dev-c"), testDeviceBytes)
	reply, err := addDevice(t, n, added, false)
	if err != nil || cfs.DeviceID(reply.Device) != cfs.MakeDeviceID(1, 2) || !strings.Contains(reply.Text, "formatted") {
		t.Fatalf("%v, %v", reply, err)
	}
	status := waitStatus(t, n.Addr(), devicesUp(3))
	info := inspect(t, n)
	if info.NodeId != 1 || len(info.Devices) != 3 || info.Devices[2].Id != reply.Device || info.Devices[2].Path != added || info.Devices[2].CapacityBytes == 0 {
		t.Errorf("inspected: %v", info)
	}
	waitFor(t, "the feed knows the device", func() bool { return n.feed.adopt(n.raft.Map()) })
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Listen = n.Addr()
	n = start(t, cfg)
	if got := waitStatus(t, n.Addr(), devicesUp(3)); len(got.Map.Devices) != len(status.Map.Devices) {
		t.Errorf("devices after a start: %v", got.Map.Devices)
	}
	if n.devices.find(cfs.DeviceID(reply.Device)) == nil {
		t.Error("the added device is not served after a start")
	}
	// Removed and not needed any more, it is closed, and the next start leaves it alone.
	n.retire(cfs.DeviceID(reply.Device))
	if got := inspect(t, n); len(got.Devices) != 2 {
		t.Errorf("inspected: %v", got)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	if got := inspect(t, n); len(got.Devices) != 2 {
		t.Errorf("inspected: %v", got)
	}
	// Its device can be added again: the slot is its own still.
	if again, err := addDevice(t, n, added, false); err != nil || again.Device != reply.Device || strings.Contains(again.Text, "formatted") {
		t.Errorf("%v, %v", again, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// What was added may be missing, or be something else, and the node starts.
	if err := os.WriteFile(added, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	if got := inspect(t, n); len(got.Devices) != 2 {
		t.Errorf("inspected: %v", got)
	}
	makeDevice(t, added, 0)
	makeDevice(t, added, testDeviceBytes)
	if again, err := addDevice(t, n, added, false); err != nil || cfs.DeviceID(again.Device) != cfs.MakeDeviceID(1, 3) {
		t.Errorf("a blank device at the same path: %v, %v", again, err)
	}
}

// What the start refuses is refused while the node runs, and changes nothing.
func TestDeviceAddRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	foreign := aloneConfig(t, mkdir(t, dir, "foreign"))
	foreign.ClusterID = "elsewhere"
	if err := start(t, foreign).Close(); err != nil {
		t.Fatal(err)
	}
	cfg := aloneConfig(t, mkdir(t, dir, "own"))
	n := start(t, cfg)
	waitStatus(t, n.Addr(), devicesUp(2))
	plain := mkdir(t, dir, "plain")
	image, err := os.ReadFile(cfg.Devices[0])
	if err != nil {
		t.Fatal(err)
	}
	twin := filepath.Join(plain, "twin")
	if err := os.WriteFile(twin, image, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		kind       cfs.Kind
	}{
		{"no path", "", cfs.Invalid},
		{"missing", filepath.Join(plain, "none"), cfs.NotFound},
		{"a directory", plain, cfs.Invalid},
		{"too small", makeDevice(t, filepath.Join(plain, "small"), 2<<20), cfs.Invalid},
		{"in use by this node", cfg.Devices[1], cfs.Busy},
		{"another cluster's", foreign.Devices[0], cfs.WrongCluster},
		{"a copy of one that is served", twin, cfs.Usage},
	} {
		if reply, err := addDevice(t, n, c.path, false); cfs.KindOf(err) != c.kind {
			t.Errorf("%s: %v, %v, want %v", c.name, reply, err, c.kind)
		}
	}
	if s := readState(t, cfg); len(s.Devices) != 2 || s.NextSlot != 2 || len(inspect(t, n).Devices) != 2 {
		t.Errorf("the refusals changed the state: %+v", s)
	}
	if _, err := addDevice(t, n, foreign.Devices[0], true); err != nil {
		t.Errorf("another cluster's by force: %v", err)
	}
	for i := 1; i < spareDevices; i++ {
		if _, err := addDevice(t, n, makeDevice(t, filepath.Join(plain, string(rune('a'+i))), testDeviceBytes), false); err != nil {
			t.Fatalf("device %d: %v", i, err)
		}
	}
	if _, err := addDevice(t, n, makeDevice(t, filepath.Join(plain, "more"), testDeviceBytes), false); cfs.KindOf(err) != cfs.NoSpace {
		t.Errorf("one more than there is memory for: %v", err)
	}
}

// A device that the cluster has removed comes back by force alone, and as another.
func TestDeviceAddOfARemovedOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := aloneConfig(t, dir)
	n := start(t, cfg)
	waitStatus(t, n.Addr(), devicesUp(2))
	path := cfg.Devices[1]
	id := cfs.MakeDeviceID(1, 1)
	n.retire(id)
	m := &cfs.Map{Devices: []cfs.Device{{ID: id, State: cfs.StateOut, Draining: true}}, Groups: []cfs.PG{{ID: 1, Slots: []cfs.Slot{{Device: id}}}}}
	add := func(force bool) (*candidate, error) {
		n.adminMu.Lock()
		defer n.adminMu.Unlock()
		c := cfg
		c.Logger, c.Force = n.log, force
		return n.devices.add(&c, n.dir, path, m)
	}
	if _, err := add(false); cfs.KindOf(err) != cfs.Exists {
		t.Errorf("without force: %v", err)
	}
	if _, err := add(true); cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), "still need it") {
		t.Errorf("by force while a group has it: %v", err)
	}
	m.Groups = nil
	c, err := add(true)
	if err != nil || c.sb.Device != cfs.MakeDeviceID(1, 2) {
		t.Fatalf("by force: %+v, %v", c, err)
	}
	if sb, err := nvme.ReadSuperblock(c.dev); err != nil || sb.Device != c.sb.Device {
		t.Errorf("%+v, %v", sb, err)
	}
}

func TestNeedless(t *testing.T) {
	out, up := cfs.MakeDeviceID(1, 0), cfs.MakeDeviceID(1, 1)
	m := &cfs.Map{
		Devices: []cfs.Device{{ID: out, State: cfs.StateOut, Draining: true}, {ID: up, State: cfs.StateUp}},
		Groups:  []cfs.PG{{ID: 1, Slots: []cfs.Slot{{Device: up, Filling: true, Source: out}}}},
	}
	if needless(m, out) || needless(m, up) || needless(m, cfs.MakeDeviceID(1, 2)) {
		t.Error("a source, one that is up, or one that nobody knows is not needed")
	}
	m.Groups[0].Slots[0] = cfs.Slot{Device: up}
	if !needless(m, out) || needless(m, up) {
		t.Error("needed are those that are up")
	}
	m.Groups[0].Slots[0] = cfs.Slot{Device: out}
	if needless(m, out) {
		t.Error("a device with a slot is not needed")
	}
}

// The verbs that a node carries out itself are known to it; the others go to the leader.
func TestAdminVerbs(t *testing.T) {
	t.Parallel()
	n := start(t, aloneConfig(t, t.TempDir()))
	waitStatus(t, n.Addr(), devicesUp(2))
	verb := func(v wire.Verb, id cfs.DeviceID) error {
		return call(t, n.Addr(), wire.OpAdmin, &wirepb.Admin{Verb: uint32(v), Device: uint32(id)}, &wirepb.AdminReply{})
	}
	if err := verb(wire.VerbScrub, 0); err != nil {
		t.Errorf("scrub: %v", err)
	}
	waitFor(t, "both devices are scrubbed", func() bool {
		for _, d := range inspect(t, n).Devices {
			if d.LastScrubNs == 0 {
				return false
			}
		}
		return true
	})
	for _, v := range []wire.Verb{wire.VerbScrub, wire.VerbReconcile} {
		if err := verb(v, cfs.MakeDeviceID(1, 9)); cfs.KindOf(err) != cfs.NotFound {
			t.Errorf("verb %d for an unknown device: %v", v, err)
		}
	}
	if err := call(t, n.Addr(), wire.OpReportShard, &wirepb.ReportShard{Device: uint32(cfs.MakeDeviceID(1, 9)),
		Key: wire.ShardKeyToPB(cfs.StripeID{Session: 1}, 0)}, &wirepb.Empty{}); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("a report for an unknown device: %v", err)
	}
}
