package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	testDeviceBytes  = 32 << 20
	testSegmentBytes = 1 << 20
	// testPatience bounds every wait; a test that reaches it has failed.
	testPatience = 30 * time.Second
)

func makeDevice(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// aloneConfig is a cluster of one node with two devices in dir.
func aloneConfig(t *testing.T, dir string) Config {
	t.Helper()
	return Config{
		ClusterID: "one", NodeID: 1, Listen: "127.0.0.1:0", DataDir: filepath.Join(dir, "data"), Metrics: "127.0.0.1:0",
		Devices:      []string{makeDevice(t, filepath.Join(dir, "dev-a"), testDeviceBytes), makeDevice(t, filepath.Join(dir, "dev-b"), testDeviceBytes)},
		SegmentBytes: testSegmentBytes, RaftSegmentBytes: testSegmentBytes,
	}
}

func start(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

func call(t *testing.T, addr string, op wire.Op, req, resp proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{ClusterID: "one", Name: "test"}})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Call(ctx, op, req, nil, resp, nil)
	return err
}

// waitStatus asks until ok says that the answer is as it should be.
func waitStatus(t *testing.T, addr string, ok func(*wirepb.StatusReply) bool) *wirepb.StatusReply {
	t.Helper()
	deadline := time.Now().Add(testPatience)
	for {
		reply := &wirepb.StatusReply{}
		err := call(t, addr, wire.OpStatus, &wirepb.Empty{}, reply)
		if err == nil && ok(reply) {
			return reply
		}
		if time.Now().After(deadline) {
			t.Fatalf("the status never became right: %v, %v", reply, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func devicesUp(n int) func(*wirepb.StatusReply) bool {
	return func(r *wirepb.StatusReply) bool {
		up := 0
		for _, d := range r.GetMap().GetDevices() {
			if cfs.State(d.State) == cfs.StateUp {
				up++
			}
		}
		return up == n
	}
}

func readState(t *testing.T, cfg Config) state {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(cfg.DataDir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseState(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func httpGet(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServesAndRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := aloneConfig(t, dir)
	n := start(t, cfg)
	first := waitStatus(t, n.Addr(), devicesUp(2))
	if first.ClusterId != "one" || first.LeaderId != 1 || first.LeaderAddr != n.Addr() {
		t.Errorf("status %v", first)
	}
	// The unix socket is the same service.
	waitStatus(t, "unix:"+filepath.Join(cfg.DataDir, socketFile), devicesUp(2))
	if code, body := httpGet(t, "http://"+n.MetricsAddr()+"/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d %s", code, body)
	}
	_, metrics := httpGet(t, "http://"+n.MetricsAddr()+"/metrics")
	for _, want := range []string{"claudefs_store_device_capacity_bytes", "claudefs_wire_seconds", "claudefs_raft_commit_seconds", "claudefs_node_heartbeats_total"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	before := readState(t, cfg)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// A new device at the end, and the old ones in another order.
	cfg.Devices = []string{makeDevice(t, filepath.Join(dir, "dev-c"), testDeviceBytes), cfg.Devices[1], cfg.Devices[0]}
	cfg.Listen = n.Addr()
	n = start(t, cfg)
	second := waitStatus(t, n.Addr(), devicesUp(3))
	after := readState(t, cfg)
	if before.NextSlot != 2 || after.NextSlot != 3 {
		t.Errorf("slots given out: %d, then %d", before.NextSlot, after.NextSlot)
	}
	for _, old := range before.Devices {
		if e := after.byPath(old.Path); e == nil || *e != old {
			t.Errorf("device %v became %v", old, e)
		}
	}
	uuids := map[uint32][]byte{}
	for _, d := range second.Map.Devices {
		uuids[d.Id] = d.Uuid
	}
	for _, d := range first.Map.Devices {
		if !bytes.Equal(uuids[d.Id], d.Uuid) {
			t.Errorf("device %v changed its uuid", cfs.DeviceID(d.Id))
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	cfg := aloneConfig(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	waitStatus(t, "unix:"+filepath.Join(cfg.DataDir, socketFile), devicesUp(2))
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(testPatience):
		t.Fatal("it does not end")
	}
}

// snapshot is every byte below dir that a refusal might change: names, sizes and
// the first MiB of each file.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			out[path] = "dir"
			return err
		}
		if !d.Type().IsRegular() || filepath.Base(path) == lockFile {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		head, err := io.ReadAll(io.LimitReader(f, 1<<20))
		out[path] = string(head)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRefusalsChangeNothing(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	// What other clusters and nodes have left.
	dir := t.TempDir()
	foreign := aloneConfig(t, filepath.Join(mkdir(t, dir, "foreign")))
	foreign.ClusterID = "elsewhere"
	if err := start(t, foreign).Close(); err != nil {
		t.Fatal(err)
	}
	sibling := aloneConfig(t, mkdir(t, dir, "sibling"))
	n := start(t, sibling)
	inUse := aloneConfig(t, mkdir(t, dir, "inuse"))
	start(t, inUse)
	waitStatus(t, n.Addr(), devicesUp(2))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	plain := mkdir(t, dir, "plain")
	small := makeDevice(t, filepath.Join(plain, "small"), 2<<20)
	corrupt := makeDevice(t, filepath.Join(plain, "corrupt"), testDeviceBytes)
	image, err := os.ReadFile(sibling.Devices[0])
	if err != nil {
		t.Fatal(err)
	}
	twin := filepath.Join(plain, "twin")
	if err := os.WriteFile(twin, image, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{100, 1<<20 - 4096 + 100} {
		image[off] ^= 1
	}
	if err := os.WriteFile(corrupt, image, 0o600); err != nil {
		t.Fatal(err)
	}
	clear(image[:8]) // no superblock's magic: somebody's file
	clear(image[1<<20-4096 : 1<<20-4088])
	backup := filepath.Join(plain, "backup")
	if err := os.WriteFile(backup, image, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		kind   cfs.Kind
		want   string
	}{
		{"port in use", func(c *Config) { c.Listen = busy.Addr().String() }, cfs.Busy, busy.Addr().String()},
		{"metrics port in use", func(c *Config) { c.Metrics = busy.Addr().String() }, cfs.Busy, busy.Addr().String()},
		{"missing device", func(c *Config) { c.Devices[1] = filepath.Join(plain, "none") }, cfs.NotFound, "none"},
		{"a directory as device", func(c *Config) { c.Devices[1] = plain }, cfs.Invalid, plain},
		{"too small", func(c *Config) { c.Devices[1] = small }, cfs.Invalid, "too small"},
		{"device in use", func(c *Config) { c.Devices[1] = inUse.Devices[0] }, cfs.Busy, inUse.Devices[0]},
		{"another cluster's device", func(c *Config) { c.Devices[1] = foreign.Devices[0] }, cfs.WrongCluster, `"elsewhere"`},
		{"another node's device", func(c *Config) {
			c.NodeID, c.Seeds, c.Advertise = 2, []string{"a:1", "b:2"}, "b:2"
			c.Devices[1] = sibling.Devices[0]
		}, cfs.Usage, "1/0"},
		{"two copies of a device", func(c *Config) { c.Devices = []string{sibling.Devices[0], twin} }, cfs.Usage, "1/0"},
		{"damaged superblock", func(c *Config) { c.Devices[1] = corrupt }, cfs.Corrupt, "corrupt"},
		{"other data", func(c *Config) { c.Devices[1] = backup }, cfs.Exists, "other data"},
		{"another cluster's directory", func(c *Config) { c.DataDir = foreign.DataDir }, cfs.WrongCluster, `"elsewhere"`},
		{"another node's directory", func(c *Config) {
			c.NodeID, c.Seeds, c.Advertise = 2, []string{"a:1", "b:2"}, "b:2"
			c.DataDir = sibling.DataDir
		}, cfs.Usage, "node 1"},
		{"another site's directory", func(c *Config) { c.DataDir, c.Site = sibling.DataDir, 9 }, cfs.Usage, "site 0"},
		{"directory in use", func(c *Config) { c.DataDir = inUse.DataDir }, cfs.Busy, inUse.DataDir},
		{"directory is a file", func(c *Config) { c.DataDir = small }, cfs.NotDir, small},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := aloneConfig(t, t.TempDir())
			c.change(&cfg)
			dirs := []string{filepath.Dir(cfg.Devices[0]), plain, filepath.Dir(foreign.DataDir), filepath.Dir(sibling.DataDir)}
			var before []map[string]string
			for _, d := range dirs {
				before = append(before, snapshot(t, d))
			}
			n, err := Start(t.Context(), cfg)
			if err == nil {
				_ = n.Close()
				t.Fatal("it started")
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("refused with %q (%v), want %v with %q", err, cfs.KindOf(err), c.kind, c.want)
			}
			for i, d := range dirs {
				after := snapshot(t, d)
				for path, old := range before[i] {
					if after[path] != old {
						t.Errorf("%s has changed", path)
					}
				}
				for path := range after {
					if _, was := before[i][path]; !was {
						t.Errorf("%s is new", path)
					}
				}
			}
		})
	}
}

func mkdir(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestForceTakesAnotherClustersDevice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	foreign := aloneConfig(t, mkdir(t, dir, "foreign"))
	foreign.ClusterID = "elsewhere"
	if err := start(t, foreign).Close(); err != nil {
		t.Fatal(err)
	}
	cfg := aloneConfig(t, mkdir(t, dir, "own"))
	cfg.Devices[1], cfg.Force = foreign.Devices[0], true
	n := start(t, cfg)
	waitStatus(t, n.Addr(), devicesUp(2))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Force = false // it is ours now
	waitStatus(t, start(t, cfg).Addr(), devicesUp(2))
}

func TestForceTakesWhatIsDamagedOrForeign(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := aloneConfig(t, dir)
	if err := start(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(cfg.Devices[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{100, 1<<20 - 4096 + 100} {
		image[off] ^= 1 // both superblocks
	}
	forced := aloneConfig(t, mkdir(t, dir, "forced"))
	if err := os.WriteFile(forced.Devices[0], image, 0o600); err != nil {
		t.Fatal(err)
	}
	image[0] ^= 1 // no superblock at all
	image[1<<20-4096] ^= 1
	if err := os.WriteFile(forced.Devices[1], image, 0o600); err != nil {
		t.Fatal(err)
	}
	forced.Force = true
	waitStatus(t, start(t, forced).Addr(), devicesUp(2))
}

func TestGoesOnWithoutADeviceThatItHad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := aloneConfig(t, dir)
	n := start(t, cfg)
	waitStatus(t, n.Addr(), devicesUp(2))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(cfg.Devices[0]); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	waitStatus(t, n.Addr(), devicesUp(1))
	_, metrics := httpGet(t, "http://"+n.MetricsAddr()+"/metrics")
	if want := `claudefs_node_device_failed{path="` + cfg.Devices[0] + `"} 1`; !strings.Contains(metrics, want) {
		t.Errorf("/metrics lacks %s", want)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// A blank replacement at the same path is another device: it gets a slot of its own.
	makeDevice(t, cfg.Devices[0], testDeviceBytes)
	n = start(t, cfg)
	if s := readState(t, cfg); s.NextSlot != 3 || s.byPath(cfg.Devices[0]).Slot != 2 {
		raw, _ := json.Marshal(s)
		t.Errorf("state after the replacement: %s", raw)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// None is too few.
	for _, d := range cfg.Devices {
		if err := os.Remove(d); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := Start(t.Context(), cfg); !errors.Is(err, cfs.NotFound) {
		if err == nil {
			_ = n.Close()
		}
		t.Errorf("without any device: %v", err)
	}
}
