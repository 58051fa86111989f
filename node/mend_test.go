package node

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Four nodes: a device is added and another drained, and closed when it is empty; then a node dies for good, and
// what it had is made anew on the others. The file reads back all the time, and no shard is left over.
func TestDrainAndRebuild(t *testing.T) {
	dir := t.TempDir()
	addrs, nodes := startNodes(t, dir, 4, func(cfg *Config) { cfg.OutAfter = 2 * time.Second })
	for _, addr := range addrs {
		waitStatus(t, addr, devicesUp(8))
	}
	c := connect(t, addrs)
	want := bytes.Repeat([]byte("claudefs"), 1<<18)
	for i := range 4 {
		writeFile(t, c, fmt.Sprint("file-", i), want)
	}
	checkFiles := func() {
		t.Helper()
		for i := range 4 {
			a, err := c.Lookup(t.Context(), cfs.RootIno, fmt.Sprint("file-", i))
			if err != nil {
				t.Fatal(err)
			}
			checkFile(t, c, a.Ino, fmt.Sprint("file ", i), want)
		}
	}
	added, err := addDevice(t, nodes[0], makeDevice(t, filepath.Join(dir, "more"), testDeviceBytes), false)
	if err != nil {
		t.Fatal(err)
	}
	waitStatus(t, addrs[0], devicesUp(9))
	drained := cfs.MakeDeviceID(1, 0)
	lead := waitStatus(t, addrs[0], func(r *wirepb.StatusReply) bool { return r.LeaderAddr != "" }).LeaderAddr
	if err := call(t, lead, wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbDeviceRemove), Device: uint32(drained)}, &wirepb.AdminReply{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the drained device is closed", func() bool { return nodes[0].devices.find(drained) == nil })
	checkFiles()
	if stats, _ := nodes[0].store.Stats(cfs.DeviceID(added.Device)); stats.Records == 0 {
		t.Error("nothing is on the device that was added")
	}
	if err := nodes[3].Close(); err != nil {
		t.Fatal(err)
	}
	checkFiles()
	waitFor(t, "what the node had is made anew", func() bool {
		m := nodes[0].raft.Map()
		if len(m.Jobs) < 3 { // of the drained device, and of two that are lost
			return false
		}
		for _, j := range m.Jobs {
			if j.State != cfs.JobDone {
				return false
			}
		}
		out := 0
		for _, d := range m.Devices {
			if d.State == cfs.StateOut {
				out++
			}
		}
		return out == 3
	})
	checkFiles()
	shards := 0
	for _, n := range nodes[:3] {
		if err := call(t, n.Addr(), wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbReconcile)}, &wirepb.AdminReply{}); err != nil {
			t.Errorf("reconcile: %v", err)
		}
		shards += records([]*Node{n})
	}
	if shards != 4*cfs.Geo4p2.Total() {
		t.Errorf("%d shards", shards)
	}
}
