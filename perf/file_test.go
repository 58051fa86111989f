package perf

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

func TestECBench(t *testing.T) {
	rep, err := BenchEC(t.Context(), ECConfig{WorkingSetBytes: 12 << 20, Runtime: Duration(10 * time.Millisecond), Rounds: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{OpEncode, OpReconstruct1, OpReconstruct2} {
		row, ok := rep.find(Labels{"op": op})
		if !ok || len(row.Rounds) != 2 || row.Median[BytesPerSecond] <= 0 || row.Median[CorePerGB] <= 0 {
			t.Errorf("%s: %+v", op, row)
		}
	}
	for _, bad := range []ECConfig{
		{WorkingSetBytes: 1 << 20, Runtime: 1, Rounds: 1}, {WorkingSetBytes: 8 << 20, Rounds: 1}, {WorkingSetBytes: 8 << 20, Runtime: 1},
	} {
		if _, err := BenchEC(t.Context(), bad); cfs.KindOf(err) != cfs.Usage {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestECBenchNoticesWrongBytes(t *testing.T) {
	b, err := newECBench(&ECConfig{WorkingSetBytes: 8 << 20, Runtime: 1, Rounds: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	for i := range b.stripes {
		want := slices.Clone(b.stripes[i][1])
		b.stripes[i][1][17] ^= 1
		b.next = i + 1
		if err := b.verify(); cfs.KindOf(err) != cfs.Corrupt {
			t.Errorf("stripe %d: %v", i, err)
		}
		b.stripes[i][1][17] ^= 1
		if err := b.reconstruct(i, 2); err != nil || !slices.Equal(b.stripes[i][1], want) || b.verify() != nil {
			t.Errorf("stripe %d does not come back: %v", i, err)
		}
	}
}

// goodFile is a configuration that can be run on a mounted cluster.
func goodFile() FileConfig {
	return FileConfig{FileBytes: 8 << 20, Runtime: Duration(20 * time.Millisecond), Settle: Duration(10 * time.Second), Rounds: 2, quiet: 20 * time.Millisecond}
}

func TestFileConfig(t *testing.T) {
	for _, c := range []struct {
		change func(*FileConfig)
		want   string // of the error; "" for none
	}{
		{func(*FileConfig) {}, ""},
		{func(c *FileConfig) { c.Shapes = []string{"sideways"} }, "--shape"},
		{func(c *FileConfig) { c.Mount, c.Shapes = "/m", []string{ShapeSlow} }, "--mount"},
		{func(c *FileConfig) { c.Mount, c.Shapes = "/m", []string{ShapeOverwrite} }, "--server"},
		{func(c *FileConfig) { c.Mount, c.Server, c.Shapes = "/m", "a:1", []string{ShapeOverwrite} }, ""},
		{func(c *FileConfig) { c.Mount = "/m" }, ""},
		{func(c *FileConfig) { c.FileBytes = 4 << 20 }, "--file"},
		{func(c *FileConfig) { c.FileBytes = 8<<20 + 1 }, "--file"},
		{func(c *FileConfig) { c.DeviceBytes = 1 << 20 }, "--device-size"},
		{func(c *FileConfig) { c.OverwriteBytes = 1 }, "--overwrite"},
		{func(c *FileConfig) { c.Runtime = 0 }, "--runtime"},
		{func(c *FileConfig) { c.Settle = -1 }, "--settle"},
		{func(c *FileConfig) { c.Rounds = 0 }, "--rounds"},
	} {
		cfg := goodFile()
		c.change(&cfg)
		cfg.complete()
		err := cfg.check()
		if c.want == "" && err != nil || c.want != "" && (cfs.KindOf(err) != cfs.Usage || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", cfg, err, c.want)
		}
	}
	mounted := goodFile()
	mounted.Mount = "/m"
	mounted.complete()
	if want := []string{ShapeWrite, ShapeRead, ShapeRandRead, ShapeSyncWrite}; !slices.Equal(mounted.Shapes, want) {
		t.Errorf("shapes of a mounted cluster: %v", mounted.Shapes)
	}
	own := goodFile()
	own.FileBytes = 4 << 30
	own.complete()
	// Three files at a time of 4 GiB, and overwrites, on six devices: parity is half as much.
	if !slices.Equal(own.Shapes, ShapeNames()) || own.DeviceBytes*fileNodes*fileDevices < 3*own.FileBytes*3/2 || own.OverwriteBytes != own.FileBytes {
		t.Errorf("of its own: %+v", own)
	}
}

const goodState = `{"version":2,"cluster_id":"c","nodes":[{"id":1,"advertise":"a:1","metrics":"a:2","process":{"pid":3}}],"mounts":[{"point":"/m","metrics":"a:4"}]}`

func TestParseState(t *testing.T) {
	s, err := parseState([]byte(goodState))
	if err != nil || s.Nodes[0].Addr != "a:1" || s.Mounts[0].Point != "/m" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, c := range [][2]string{
		{`"version":2`, `"version":1`}, {`"id":1`, `"id":2`}, {`"advertise":"a:1"`, `"advertise":""`}, {`"metrics":"a:2"`, `"metrics":""`},
		{`"point":"/m"`, `"point":""`}, {`"mounts"`, `"points"`}, {`"nodes"`, `"servers"`}, {`}]}`, ``},
	} {
		if s, err := parseState([]byte(strings.Replace(goodState, c[0], c[1], 1))); cfs.KindOf(err) != cfs.Corrupt {
			t.Errorf("%s: %+v, %v", c[1], s, err)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(goodState))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := parseState(text); err == nil && (len(s.Nodes) == 0 || len(s.Mounts) != 1) {
			t.Errorf("took %q for %+v", text, s)
		}
	})
}

func TestSettle(t *testing.T) {
	busy := 5
	f, _, rested, err := settle(t.Context(), 30*time.Millisecond, time.Millisecond, time.Minute, func() (deviceFigures, error) {
		busy = max(busy-1, 0)
		return deviceFigures{occupiedBytes: uint64(busy)}, nil
	})
	if err != nil || !rested || f.occupiedBytes != 0 {
		t.Errorf("%+v, rested %t, %v", f, rested, err)
	}
	n := uint64(0)
	f, _, rested, err = settle(t.Context(), time.Minute, time.Millisecond, 20*time.Millisecond, func() (deviceFigures, error) {
		n++
		return deviceFigures{records: n}, nil
	})
	if err != nil || rested || f.records != n {
		t.Errorf("never at rest: %+v, rested %t, %v", f, rested, err)
	}
	if _, _, _, err = settle(t.Context(), time.Minute, time.Millisecond, time.Minute, func() (deviceFigures, error) {
		return deviceFigures{}, cfs.Errorf("ask", cfs.Unavailable, "nobody")
	}); cfs.KindOf(err) != cfs.Unavailable {
		t.Errorf("nobody answers: %v", err)
	}
}

// fakeServer is a server of a cluster of itself, with a device; silent leaves out OpInspect.
type fakeServer struct {
	addr   string
	silent bool
	asked  atomic.Int64
}

func (s *fakeServer) Serve(_ context.Context, r *wire.Request) (wire.Response, error) {
	switch {
	case r.Op == wire.OpStatus:
		return wire.Response{Body: &wirepb.StatusReply{NodeId: 1, LeaderId: 1, Map: &wirepb.Map{Nodes: []*wirepb.Node{{Id: 1, Addr: s.addr}}}}}, nil
	case r.Op == wire.OpInspect && !s.silent:
		device := &wirepb.DeviceInfo{Id: 1}
		if s.asked.Add(1) > 1 { // before anything was written there was nothing
			device.OccupiedBytes, device.LiveBytes = 16<<20, 12<<20
		}
		return wire.Response{Body: &wirepb.InspectReply{NodeId: 1, Devices: []*wirepb.DeviceInfo{device}}}, nil
	}
	return wire.Response{}, cfs.Errorf(r.Op.String(), cfs.Unsupported, "not here")
}

func startFake(t *testing.T, s *fakeServer) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	srv := wire.NewServer(wire.ServerConfig{Handler: s})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return s.addr
}

// mountedFile is a configuration on a directory that is as good as a mount, and on
// another that is its disk.
func mountedFile(t *testing.T) FileConfig {
	t.Helper()
	if !slices.Contains(testEngines(t), EngineFio) {
		t.Skip("no fio")
	}
	dir, err := os.MkdirTemp("/var/tmp", "cfs-perf-test-") // fio wants direct I/O
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := goodFile()
	cfg.Mount, cfg.Disk = filepath.Join(dir, "mount"), filepath.Join(dir, "disk")
	for _, d := range []string{cfg.Mount, cfg.Disk} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

func nothingLeft(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
			t.Errorf("left in %s: %v, %v", dir, names, err)
		}
	}
}

func TestFileBenchOnAMount(t *testing.T) {
	cfg := mountedFile(t)
	cfg.Server = startFake(t, &fakeServer{})
	rep, err := BenchFile(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		labels Labels
		ratio  Metric
		rounds int
	}{
		{Labels{"op": ShapeWrite, "engine": EngineCfs}, BytesPerSecond, 2},
		{Labels{"op": ShapeRead, "engine": EngineCfs}, BytesPerSecond, 2},
		{Labels{"op": ShapeRandRead, "engine": EngineCfs}, IOPS, 2},
		{Labels{"op": ShapeSyncWrite, "engine": EngineCfs}, IOPS, 2},
		{Labels{"op": "readback", "state": StateOverwritten}, BytesPerSecond, 2},
		{Labels{"op": ShapeOverwrite}, "", 1},
	} {
		row, ok := rep.find(c.labels)
		if !ok || len(row.Rounds) != c.rounds || c.ratio != "" && !(row.Ratios[c.ratio] > 0) {
			t.Errorf("%v: %+v", c.labels, row)
		}
	}
	if row, _ := rep.find(Labels{"op": ShapeOverwrite}); row.Median[OccupiedBytes] != 2 || row.Median[LiveBytes] != 1.5 {
		t.Errorf("16 and 12 MiB for a file of 8: %v", row.Median)
	}
	titles := rep.Table()[0]
	for _, want := range []string{"MB/s ratio", "IOPS ratio", "ratio to", "occupied/byte"} {
		if !slices.Contains(titles, want) {
			t.Errorf("no column %q: %q", want, titles)
		}
	}
	nothingLeft(t, cfg.Mount, cfg.Disk)
}

// What cannot be measured fails, and leaves nothing behind.
func TestFileBenchFails(t *testing.T) {
	cfg := mountedFile(t)
	cfg.Server = startFake(t, &fakeServer{silent: true})
	if rep, err := BenchFile(t.Context(), cfg); cfs.KindOf(err) != cfs.Unsupported || rep != nil || !strings.Contains(err.Error(), ShapeOverwrite) {
		t.Errorf("a server that does not know its devices: %+v, %v", rep, err)
	}
	nothingLeft(t, cfg.Mount, cfg.Disk)

	ctx, cancel := context.WithCancel(t.Context())
	cfg.Server, cfg.Shapes, cfg.Progress = "", nil, func(text string) {
		if strings.Contains(text, "round 2") {
			cancel()
		}
	}
	if _, err := BenchFile(ctx, cfg); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	nothingLeft(t, cfg.Mount, cfg.Disk)

	cfg.Mount = filepath.Join(cfg.Mount, "none")
	if _, err := BenchFile(t.Context(), cfg); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("a mount that is not there: %v", err)
	}
	nothingLeft(t, cfg.Disk)
}

// fakeCfs is a program that stands for cfs: it keeps a log of how it was called, leaves a
// state file, and fails at one verb.
func fakeCfs(t *testing.T, failing string) (program, log string) {
	t.Helper()
	dir := t.TempDir()
	program, log = filepath.Join(dir, "cfs"), filepath.Join(dir, "log")
	script := `#!/bin/sh
verb=$2; dir=$4
echo "$verb" >> ` + log + `
case $verb in
up) mkdir -p "$dir/m" && printf '%s' '` + strings.Replace(goodState, "/m", "'\"$dir\"'/m", 1) + `' > "$dir/cluster.json";;
down) rm -rf "$dir";;
esac
[ "$verb" != "` + failing + `" ] || { echo "cannot $verb" >&2; exit 1; }
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, log
}

func TestClusterIsRemovedAfterFailures(t *testing.T) {
	for _, failing := range []string{"up", "remount", "none"} {
		cfg := mountedFile(t)
		program, log := fakeCfs(t, failing)
		cfg.Cfs, cfg.Dir, cfg.Mount, cfg.Disk = program, cfg.Disk, "", ""
		cfg.Shapes = []string{ShapeRead}
		// Where nothing fails, the metrics that prove a cold read are missing: a:4 is no address.
		_, err := BenchFile(t.Context(), cfg)
		if err == nil || failing != "none" && !strings.Contains(err.Error(), "cannot "+failing) {
			t.Errorf("%s: %v", failing, err)
		}
		said, err := os.ReadFile(log)
		if verbs := strings.Fields(string(said)); err != nil || verbs[len(verbs)-1] != "down" {
			t.Errorf("%s: called %q, %v", failing, said, err)
		}
		nothingLeft(t, cfg.Dir)
	}

	// A cluster that cannot be ended keeps its files, and that is an error.
	cfg := mountedFile(t)
	cfg.Cfs, _ = fakeCfs(t, "down")
	cfg.Dir, cfg.Mount, cfg.Disk, cfg.Shapes = cfg.Disk, "", "", []string{ShapeSyncWrite}
	if rep, err := BenchFile(t.Context(), cfg); err == nil || rep != nil || !strings.Contains(err.Error(), "cannot down") {
		t.Errorf("no end: %+v, %v", rep, err)
	}

	cfg.Cfs = filepath.Join(cfg.Dir, "none")
	if _, err := BenchFile(t.Context(), cfg); cfs.KindOf(err) != cfs.NotFound || !strings.Contains(err.Error(), "--cfs") {
		t.Errorf("no program: %v", err)
	}
}

func TestReadsAreDelayed(t *testing.T) {
	c := &ownCluster{delays: t.TempDir()}
	path := filepath.Join(c.delays, "node-2-read")
	if err := c.delay(t.Context(), 2, slowBy); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "200ms" {
		t.Errorf("%q, %v", text, err)
	}
	for range 2 {
		if err := c.delay(t.Context(), 2, 0); err != nil {
			t.Fatal(err)
		}
	}
	nothingLeft(t, c.delays)
}
