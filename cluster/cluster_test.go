package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

func startSleep(t *testing.T) *process {
	t.Helper()
	s := newSpawner()
	p, err := s.start([]string{"sleep", "600"}, nil, filepath.Join(t.TempDir(), "log"), syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		s.close()
	})
	return p
}

func TestSignalsOnlyTheProcessThatWasStarted(t *testing.T) {
	p := startSleep(t)
	if !p.alive() {
		t.Fatal("a started process is not alive")
	}
	// The same pid, as if the kernel had given it to somebody else since.
	other := &process{PID: p.PID, StartTicks: p.StartTicks + 1}
	other.kill()
	if other.alive() || !p.alive() {
		t.Fatalf("after killing a stranger by pid: stranger alive %v, ours %v", other.alive(), p.alive())
	}
	// As another launcher knows it: from the state file.
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	loaded := new(process)
	if err := json.Unmarshal(raw, loaded); err != nil {
		t.Fatal(err)
	}
	loaded.terminate(10 * time.Second)
	if loaded.alive() || p.alive() {
		t.Fatal("a loaded process survived SIGTERM")
	}
	p.kill() // of a dead one is nothing
}

func TestProcessThatCannotStart(t *testing.T) {
	s := newSpawner()
	defer s.close()
	_, err := s.start([]string{"/nonexistent/cfs"}, nil, filepath.Join(t.TempDir(), "log"), 0)
	if cfs.KindOf(err) != cfs.NotFound || !strings.Contains(err.Error(), "/nonexistent/cfs") {
		t.Errorf("got %v", err)
	}
}

func TestSpecIsChecked(t *testing.T) {
	for _, c := range []struct {
		change func(*Spec)
		want   string
	}{
		{func(s *Spec) {}, ""},
		{func(s *Spec) { s.Dir = "" }, "no directory"},
		{func(s *Spec) { s.Binary = "" }, "no binary"},
		{func(s *Spec) { s.Nodes = -1 }, "-1 nodes"},
		{func(s *Spec) { s.Nodes = 1 }, "redundantly"},
		{func(s *Spec) { s.Devices = 65 }, "65 devices"},
		{func(s *Spec) { s.DeviceSizeBytes = 4096 }, "4096 bytes"},
		{func(s *Spec) { s.PrewriteBytes = 1 << 40 }, "to prewrite"},
		{func(s *Spec) { s.OtherSizeBytes = map[DevicePlace]int64{{3, 1}: 64 << 20} }, ""},
		{func(s *Spec) { s.OtherSizeBytes = map[DevicePlace]int64{{3, 2}: 64 << 20} }, "device 2 of node 3"},
		{func(s *Spec) { s.OtherSizeBytes = map[DevicePlace]int64{{3, 1}: 4096} }, "4096 bytes"},
		{func(s *Spec) { s.ClockOffsets = map[int]time.Duration{4: 1} }, "node 4 of 3"},
	} {
		s := Spec{Dir: "x", Binary: "cfs"}
		c.change(&s)
		err := s.complete()
		if c.want == "" && err != nil || c.want != "" && (cfs.KindOf(err) != cfs.Usage || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("want %q, got %v", c.want, err)
		}
	}
}

func TestFreePorts(t *testing.T) {
	ports, err := freePorts(loopback, 20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if seen[p] {
			t.Errorf("port %d twice", p)
		}
		seen[p] = true
		if low := ephemeralLow(); low > lowestPort && p >= low {
			t.Errorf("port %d is in the kernel's own range from %d", p, low)
		}
		l, err := net.Listen("tcp", joinPort(loopback, p))
		if err != nil {
			t.Errorf("port %d is not free: %v", p, err)
			continue
		}
		l.Close()
	}
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir, nil); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("load of nothing: %v", err)
	}
	s := &state{
		Version: stateVersion, ClusterID: "lab", Binary: "/bin/cfs", Devices: 2, DeviceSizeBytes: 1 << 30,
		Nodes:  []*node{{ID: 1, Listen: "127.0.0.1:1", Advertise: "127.0.0.1:1", Process: &process{PID: 1, StartTicks: 7}}, {ID: 2}},
		Mounts: []*Mount{{Name: "mnt", Point: filepath.Join(dir, "mnt")}},
	}
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	c, err := Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Nodes() != 2 || c.ClusterID() != "lab" || c.MountOf("mnt") == nil || c.Alive(1) || c.Addrs()[0] != "127.0.0.1:1" {
		t.Errorf("loaded %+v", c.st)
	}
	for _, bad := range []string{"{", `{"version":1}`, `{"version":2,"nodes":[null]}`, `{"version":2,"nodes":[{"id":2}]}`, `{"version":2,"mounts":[{"name":"../x"}]}`} {
		if err := os.WriteFile(filepath.Join(dir, StateFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir, nil); cfs.KindOf(err) != cfs.Corrupt {
			t.Errorf("load of %s: %v", bad, err)
		}
	}
}

// Files of devices come and go, and the node is expected to serve what is there when it starts.
func TestDeviceFiles(t *testing.T) {
	dir := t.TempDir()
	n := &node{ID: 1, Files: make([]file, 2)}
	c := &Cluster{spec: Spec{Dir: dir, DeviceSizeBytes: MinDeviceSizeBytes}, log: slog.New(slog.DiscardHandler), st: &state{Devices: 2, DeviceSizeBytes: MinDeviceSizeBytes, Nodes: []*node{n}}}
	if err := c.makeDevicesOf(n); err != nil {
		t.Fatal(err)
	}
	n.serve()
	if err := c.LoseDevice(DevicePlace{1, 0}); err != nil {
		t.Fatal(err)
	}
	if len(c.deviceFiles(n)) != 2 || len(n.Serving) != 2 {
		t.Errorf("a file is lost under a running node: %v named, %v served", c.deviceFiles(n), n.Serving)
	}
	n.serve()
	slot, path, err := c.AddDevice(1)
	if err != nil || slot != 2 || path != c.DevicePath(1, 2) || len(n.Serving) != 2 {
		t.Errorf("a device was added: slot %d, %s, %v, %v served", slot, path, err, n.Serving)
	}
	for _, at := range []DevicePlace{{1, 0}, {1, 1}} {
		if err := c.DropDevice(at); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.deviceFiles(n); len(got) != 1 || got[0] != path || len(n.Serving) != 1 {
		t.Errorf("two were dropped: %v named, %v served", got, n.Serving)
	}
	for _, at := range []DevicePlace{{2, 0}, {1, 3}} {
		if err := c.LoseDevice(at); cfs.KindOf(err) != cfs.NotFound {
			t.Errorf("device %v was lost: %v", at, err)
		}
	}
}

// What a failed start has made is gone, and what was there before is not.
func TestFailedStartLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "c")
	falseBinary, err := exec.LookPath("false")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Start(context.Background(), Spec{Dir: dir, Binary: falseBinary})
	if err == nil || !strings.Contains(err.Error(), "the process ended") {
		t.Fatalf("start of a binary that ends: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}

	mine := filepath.Join(dir, "node-2", "mine")
	if err := os.MkdirAll(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err = Start(context.Background(), Spec{Dir: dir, Binary: falseBinary}); cfs.KindOf(err) != cfs.Exists {
		t.Errorf("start in a directory with somebody's node-2: %v", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("somebody's files: %v", err)
	}
}

func TestDeviceFileIsNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev")
	if err := makeDevice(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := makeDevice(path, 64<<20); cfs.KindOf(err) != cfs.Exists {
		t.Errorf("a second device file at the same path: %v", err)
	}
}

func TestBestGeometry(t *testing.T) {
	none := cfs.Geometry{}
	for _, c := range []struct {
		nodes, devices int
		want           cfs.Geometry
	}{
		{3, 2, cfs.Geo4p2}, {2, 2, cfs.Geo2p2}, {6, 1, cfs.Geo4p2}, {5, 1, cfs.Geo3p2}, {4, 1, cfs.Geo2p2}, {3, 1, cfs.Geo1p2}, {3, 4, cfs.Geo4p2},
		{2, 1, none}, {1, 6, none},
	} {
		if got, ok := BestGeometry(c.nodes, c.devices); got != c.want || ok != (c.want != none) {
			t.Errorf("%d nodes of %d devices: %v, %v, want %v", c.nodes, c.devices, got, ok, c.want)
		}
	}
}

// testMap is a healthy map of 3 nodes of 2 devices.
func testMap() *wirepb.Map {
	m := &wirepb.Map{}
	g := &wirepb.PG{Id: 1, K: 4, M: 2, Writable: true}
	for n := 1; n <= 3; n++ {
		m.Nodes = append(m.Nodes, &wirepb.Node{Id: uint32(n), State: uint32(cfs.StateUp)})
		for slot := range 2 {
			id := uint32(cfs.MakeDeviceID(cfs.NodeID(n), uint16(slot)))
			m.Devices = append(m.Devices, &wirepb.Device{Id: id, State: uint32(cfs.StateUp)})
			g.Slots = append(g.Slots, &wirepb.Slot{Device: id})
		}
	}
	m.Groups = []*wirepb.PG{g}
	return m
}

func TestMapNotUsable(t *testing.T) {
	two := []int{0, 1}
	all := map[int][]int{1: two, 2: two, 3: two}
	for _, c := range []struct {
		name    string
		change  func(*wirepb.Map)
		running map[int][]int
		want    string
	}{
		{"healthy", func(*wirepb.Map) {}, all, ""},
		{"a node is dead and the map does not say so", func(*wirepb.Map) {}, map[int][]int{1: two, 2: two}, "node 3 is up"},
		{"a node is suspect", func(m *wirepb.Map) { m.Nodes[1].State = uint32(cfs.StateSuspect) }, all, "node 2 is suspect"},
		{"a node is missing", func(m *wirepb.Map) { m.Nodes = m.Nodes[:2] }, all, "2 of 3"},
		{"a device is down", func(m *wirepb.Map) { m.Devices[0].State = uint32(cfs.StateDown) }, all, "device 1/0 is down"},
		{"a device is down and known to be lost", func(m *wirepb.Map) {
			m.Devices[0].State, m.Groups[0].K, m.Groups[0].Slots = uint32(cfs.StateDown), 3, m.Groups[0].Slots[1:]
		}, map[int][]int{1: {1}, 2: two, 3: two}, ""},
		{"a device has been drained", func(m *wirepb.Map) {
			m.Devices[0].State, m.Groups[0].K, m.Groups[0].Slots = uint32(cfs.StateOut), 3, m.Groups[0].Slots[1:]
			m.Devices[0].Draining = true
		}, all, ""},
		{"a device is out, and comes back", func(m *wirepb.Map) {
			m.Devices[0].State, m.Groups[0].K, m.Groups[0].Slots = uint32(cfs.StateOut), 3, m.Groups[0].Slots[1:]
		}, all, "is out"},
		{"a device is full and takes no writes", func(m *wirepb.Map) {
			m.Devices[0].Full, m.Groups[0].K, m.Groups[0].Slots = true, 3, m.Groups[0].Slots[1:]
		}, all, ""},
		{"no group takes writes", func(m *wirepb.Map) { m.Groups[0].Writable = false }, all, "no group of 4+2"},
		{"the group is narrow", func(m *wirepb.Map) { m.Groups[0].K = 2 }, all, "no group of 4+2"},
		{"a group writes to a device that is not there", func(m *wirepb.Map) { m.Groups[0].Slots[0].Device = 77 }, all, "not up"},
	} {
		m := testMap()
		c.change(m)
		err := mapNotUsable(m, c.running)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestAgreedLeader(t *testing.T) {
	reply := func(leader uint32) *wirepb.StatusReply { return &wirepb.StatusReply{LeaderId: leader} }
	if l, err := agreedLeader(map[int]*wirepb.StatusReply{1: reply(2), 2: reply(2)}); l != 2 || err != nil {
		t.Errorf("%d, %v", l, err)
	}
	for _, bad := range []map[int]*wirepb.StatusReply{
		{}, {1: reply(0)}, {1: reply(1), 2: reply(2)}, {1: reply(2), 3: reply(2)},
	} {
		if l, err := agreedLeader(bad); err == nil {
			t.Errorf("%v: %d", bad, l)
		}
	}
}

// Namespaces reach each other and this machine, and nothing of them stays.
func TestNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip(8): ", err)
	}
	n, err := planNetwork(2)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	defer n.down(ctx)
	if err := n.up(ctx); err != nil {
		if strings.Contains(err.Error(), "not permitted") || strings.Contains(err.Error(), "not supported") {
			t.Skip("this kernel does not let us: ", err)
		}
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(n.hostAddr(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	cmd := exec.Command("ip", "netns", "exec", n.Namespaces[1], "bash", "-c", fmt.Sprintf("echo hello > /dev/tcp/%s/%s", n.hostAddr(), port))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if from := c.RemoteAddr().(*net.TCPAddr).IP.String(); from != n.addr(2) {
		t.Errorf("node 2 came from %s, not %s", from, n.addr(2))
	}
	if err := n.down(ctx); err != nil {
		t.Error(err)
	}
	if err := n.down(ctx); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := net.InterfaceByName(n.Bridge); err == nil {
		t.Error("the bridge is still there")
	}
}
