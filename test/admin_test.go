package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// admin runs `cfs admin ...` against the first node that runs and returns what it prints.
func admin(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	args = append(append([]string{"admin"}, args...), "--server", c.AdminAddr(firstRunning(t, c)))
	cmd := exec.CommandContext(ctx, binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("cfs %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func firstRunning(t *testing.T, c *cluster.Cluster) int {
	t.Helper()
	for n := 1; n <= c.Nodes(); n++ {
		if c.Alive(n) {
			return n
		}
	}
	t.Fatal("no node runs")
	return 0
}

// fsck wants the cluster to be whole within a time; what it prints says what is not.
func fsck(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	begun := time.Now()
	out := admin(t, c, "fsck", "--wait", "60s")
	t.Logf("fsck is clean after %v: %s", time.Since(begun), strings.TrimSpace(out))
}

// sameSpace wants statfs(2) and `cfs admin status` to agree, within what moves meanwhile.
func sameSpace(t *testing.T, c *cluster.Cluster, m *cluster.Mount) {
	t.Helper()
	var why string
	eventually(t, "statfs(2) and cfs admin status agree on the space", func() bool {
		var st unix.Statfs_t
		if err := unix.Statfs(m.Point, &st); err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Space struct {
				Total uint64 `json:"total_bytes"`
				Free  uint64 `json:"free_bytes"`
			} `json:"space"`
		}
		if err := json.Unmarshal([]byte(admin(t, c, "status", "--json")), &doc); err != nil {
			t.Fatal(err)
		}
		block := uint64(st.Bsize)
		why = fmt.Sprintf("%d of %d blocks of %d free, %d of %d bytes free", st.Bfree, st.Blocks, block, doc.Space.Free, doc.Space.Total)
		return doc.Space.Total > 0 && st.Blocks == doc.Space.Total/block && st.Bfree == doc.Space.Free/block
	}, func() string { return why })
}

// settle is what every run ends with: nothing is missing, nothing is left over, and
// everybody agrees on the space.
func settle(t *testing.T, c *cluster.Cluster, m *cluster.Mount) {
	t.Helper()
	fsck(t, c)
	sameSpace(t, c, m)
}

// deviceID is how the cluster calls the device whose file is in a slot: the nodes number
// them in the order in which they get them.
func deviceID(at cluster.DevicePlace) cfs.DeviceID {
	return cfs.MakeDeviceID(cfs.NodeID(at.Node), uint16(at.Slot))
}

// clusterMap is the layout as the leader knows it.
func clusterMap(t *testing.T, c *cluster.Cluster) *cfs.Map {
	t.Helper()
	var m *cfs.Map
	eventually(t, "the leader shows the map", func() bool {
		leader, err := c.Leader(t.Context())
		if err != nil {
			return false
		}
		r, err := c.Status(t.Context(), leader)
		if err != nil {
			return false
		}
		m, err = wire.MapFromPB(r.GetMap())
		return err == nil
	})
	return m
}

func device(t *testing.T, c *cluster.Cluster, id cfs.DeviceID) cfs.Device {
	t.Helper()
	for _, d := range clusterMap(t, c).Devices {
		if d.ID == id {
			return d
		}
	}
	return cfs.Device{}
}

// job is the job of a device; false for none.
func job(t *testing.T, c *cluster.Cluster, id cfs.DeviceID) (cfs.Job, bool) {
	t.Helper()
	for _, j := range clusterMap(t, c).Jobs {
		if j.Device == id {
			return j, true
		}
	}
	return cfs.Job{}, false
}

// waitJob waits until the job of a device is done and the device is in a state.
func waitJob(t *testing.T, c *cluster.Cluster, id cfs.DeviceID, kind cfs.JobKind) {
	t.Helper()
	var j cfs.Job
	begun := time.Now()
	eventually(t, fmt.Sprintf("the %v of device %v is done", kind, id), func() bool {
		var ok bool
		j, ok = job(t, c, id)
		return ok && j.Kind == kind && j.State == cfs.JobDone
	}, func() string { return fmt.Sprintf("%+v", j) })
	t.Logf("the %v of device %v is done after %v: %d of %d bytes", kind, id, time.Since(begun), j.DoneBytes, j.TotalBytes)
}

// slots are the slots that a device has in groups, as device or source.
func slots(m *cfs.Map, id cfs.DeviceID) (n int) {
	for _, g := range m.Groups {
		for _, s := range g.Slots {
			if s.Device == id || s.Source == id {
				n++
			}
		}
	}
	return n
}

// inspect is what a node knows of its own devices.
func inspect(t *testing.T, c *cluster.Cluster, node int) *wirepb.InspectReply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := wire.Dial(ctx, c.Addrs()[node-1], wire.DialConfig{Hello: wire.Identity{ClusterID: c.ClusterID(), Name: "test"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := new(wirepb.InspectReply)
	if _, err := conn.Call(ctx, wire.OpInspect, &wirepb.Empty{}, nil, r, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

// deviceInfo is what its node knows of a device.
func deviceInfo(t *testing.T, c *cluster.Cluster, id cfs.DeviceID) *wirepb.DeviceInfo {
	t.Helper()
	for _, d := range inspect(t, c, int(id.Node())).GetDevices() {
		if d.GetId() == uint32(id) {
			return d
		}
	}
	t.Fatalf("node %d does not know device %v", id.Node(), id)
	return nil
}
