package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// fillEnv has this test's program run Fill, given as JSON, and end in its middle.
const fillEnv = "CFS_PERF_TEST_FILL"

func TestMain(m *testing.M) {
	if text := os.Getenv(fillEnv); text != "" {
		cfg := FillConfig{Abandon: func() { os.Exit(0) }}
		err := json.Unmarshal([]byte(text), &cfg)
		if err == nil {
			err = Fill(context.Background(), cfg)
		}
		fmt.Fprintln(os.Stderr, "fill did not end the process:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// killInChild is OpenConfig.Kill.
func killInChild(ctx context.Context, cfg FillConfig) error {
	text, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), fillEnv+"="+string(text))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// testLog is a log on a small device in memory.
func testLog(t *testing.T, segments int) *logRig {
	t.Helper()
	const segment = 1 << 20
	dev, err := newMemoryDevice(nvme.HeaderAreaBytes + int64(segments)*segment)
	if err != nil {
		t.Fatal(err)
	}
	rig, err := openRig(rigConfig{memory: dev, format: true, segmentBytes: segment, bufferBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rig.close(); err != nil {
			t.Error(err)
		}
	})
	if err := rig.openLog(); err != nil {
		t.Fatal(err)
	}
	return rig
}

func TestStreamKeepsItsWindow(t *testing.T) {
	rig := testLog(t, 24)
	last := new(atomic.Uint64)
	const size, window = 16 << 10, 10
	s := newStream(rig.log, size, window*size, 1, last)
	if _, err := s.getStep(t.Context(), nil, rand.New(rand.NewPCG(1, 1)))(); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("a get of nothing: %v", err)
	}
	bufs, release, err := rig.buffers(t.Context(), 2, size, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	put := s.putStep(t.Context(), bufs[0])
	const puts = 57
	for range puts {
		if _, err := put(); err != nil {
			t.Fatal(err)
		}
	}
	if n := rig.log.Stats().Records; n != window {
		t.Errorf("%d records live, want %d", n, window)
	}
	for n := uint64(1); n <= puts; n++ {
		if _, ok := rig.log.Has(keyOf(n)); ok != (n > puts-window) {
			t.Errorf("record %d is there: %t", n, ok)
		}
	}
	get := s.getStep(t.Context(), bufs[1], rand.New(rand.NewPCG(1, 1)))
	for range 100 {
		if _, err := get(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGetSeesWrongBytes(t *testing.T) {
	rig := testLog(t, 24)
	s := newStream(rig.log, 4<<10, 1<<20, 1, new(atomic.Uint64))
	bufs, release, err := rig.buffers(t.Context(), 1, 4<<10, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	stamp(bufs[0].Bytes(), 99)
	if err := rig.log.Put(t.Context(), recordOf(1, 4<<10), make([]byte, 4), bufs[0]); err != nil {
		t.Fatal(err)
	}
	s.added(1)
	if _, err := s.getStep(t.Context(), bufs[0], rand.New(rand.NewPCG(1, 1)))(); cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("another record's bytes: %v", err)
	}
	// Its checksums are zeros, as those of streams are.
	if err := rig.verify(t.Context(), []nvme.Record{recordOf(1, 4<<10)}); cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("verified: %v", err)
	}
}

func TestCountingDevice(t *testing.T) {
	mem, err := newMemoryDevice(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	d := &countingDevice{Device: mem, limit: 64 << 10}
	defer d.Close()
	if got := d.Info().SizeBytes; got != 64<<10 {
		t.Errorf("it shows %d bytes", got)
	}
	p := bytes.Repeat([]byte{7}, cfs.BlockSize)
	back := make([]byte, 2*cfs.BlockSize)
	if err := errors.Join(
		d.Write([]iopath.WriteOp{{P: p}, {P: p, Off: cfs.BlockSize, Sync: true}}), d.Flush(),
		d.Read(back, 0), d.ReadMany([]iopath.ReadOp{{P: back[:cfs.BlockSize]}, {P: back[cfs.BlockSize:], Off: cfs.BlockSize}}),
	); err != nil {
		t.Fatal(err)
	}
	want := deviceCounts{writes: 2, writtenBytes: 2 * cfs.BlockSize, syncs: 2, readBytes: 4 * cfs.BlockSize}
	if got := d.counts(); got != want || !bytes.Equal(back[:cfs.BlockSize], p) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := d.Read(back, 1<<20); cfs.KindOf(err) != cfs.IO {
		t.Errorf("beyond the end: %v", err)
	}
	if err := d.Write([]iopath.WriteOp{{P: p, Off: -1}}); cfs.KindOf(err) != cfs.IO {
		t.Errorf("before the start: %v", err)
	}
}

func TestBenchLog(t *testing.T) {
	withFio := slices.Contains(testEngines(t), EngineFio)
	path := filepath.Join(t.TempDir(), "data")
	cfg := LogConfig{
		Disk: DiskConfig{Path: path, SizeBytes: 64 << 20}, SegmentBytes: 1 << 20,
		Jobs: []LogJob{
			{Op: OpPut, BlockBytes: 64 << 10, Depth: 4, Fio: withFio},
			{Op: OpGet, BlockBytes: 64 << 10, Depth: 4, Fio: withFio},
			{Op: OpPut, BlockBytes: 4 << 10, Depth: 16},
		},
		Runtime: Duration(30 * time.Millisecond), Rounds: 2, Seed: 1,
	}
	rep, err := BenchLog(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	big, ok := rep.find(Labels{"op": OpPut, "bs": "64KiB", "engine": "log"})
	if !ok {
		t.Fatalf("rows %v", rep.Rows)
	}
	for _, m := range []Metric{IOPS, PutsPerSync, SyncsPerPut, WritesPerPut} {
		if big.Median[m] <= 0 {
			t.Errorf("%s is %g", m, big.Median[m])
		}
	}
	if got := big.Median[WrittenPerByte]; got < 1 || got > 1.5 {
		t.Errorf("%g bytes are written for each of a record of 64 KiB", got)
	}
	small, ok := rep.find(Labels{"op": OpPut, "bs": "4KiB", "depth": "16"})
	if !ok || small.Median[SyncsPerPut] > 1 {
		t.Errorf("sixteen that put together: %+v", small)
	}
	get, ok := rep.find(Labels{"op": OpGet, "engine": "log"})
	if !ok || get.Median[IOPS] <= 0 || withFio && get.Ratios[IOPS] <= 0 {
		t.Errorf("gets: %+v", get)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestLogConfigRefuses(t *testing.T) {
	good := LogConfig{Disk: DiskConfig{SizeBytes: 64 << 20}, Jobs: []LogJob{{Op: OpPut, BlockBytes: 4 << 10, Depth: 1}}, Runtime: Duration(time.Second), Rounds: 1}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*LogConfig){
		"no job":      func(c *LogConfig) { c.Jobs = nil },
		"op":          func(c *LogConfig) { c.Jobs = []LogJob{{Op: "scan", BlockBytes: 4 << 10, Depth: 1}} },
		"record size": func(c *LogConfig) { c.Jobs = []LogJob{{Op: OpPut, BlockBytes: 5, Depth: 1}} },
		"rounds":      func(c *LogConfig) { c.Rounds = 0 },
		"runtime":     func(c *LogConfig) { c.Runtime = 0 },
	} {
		c := good
		change(&c)
		if err := c.check(); cfs.KindOf(err) != cfs.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBenchOpen(t *testing.T) {
	testEngines(t)
	for _, unclean := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "data")
		cfg := OpenConfig{
			Disk: DiskConfig{Path: path}, Records: 3000, RecordBytes: 4 << 10, SegmentBytes: 1 << 20,
			Unclean: unclean, Rounds: 2, Seed: 1, Kill: killInChild,
		}
		rep, err := BenchOpen(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		closed, ok := rep.find(Labels{"state": "closed", "records": "3000"})
		if !ok || len(closed.Rounds) != 2 || closed.Median[OpenSeconds] <= 0 || closed.Median[Records] < 3000 || closed.Median[OpenReadBytes] <= 0 {
			t.Errorf("unclean %t: closed: %+v", unclean, closed)
		}
		killed, ok := rep.find(Labels{"state": "killed"})
		if ok != unclean {
			t.Errorf("unclean %t: killed: %+v", unclean, killed)
		}
		if unclean && killed.Rounds[1][Records] < 3000+afterwards {
			t.Errorf("the second kill: %v", killed.Rounds)
		}
	}
}

func TestBenchOpenSeesALoss(t *testing.T) {
	testEngines(t)
	path := filepath.Join(t.TempDir(), "data")
	cfg := OpenConfig{
		Disk: DiskConfig{Path: path}, Records: 500, RecordBytes: 4 << 10, SegmentBytes: 1 << 20, Unclean: true, Rounds: 1,
		Kill: func(ctx context.Context, fill FillConfig) error {
			fill.Records-- // one is promised and not put
			return Fill(ctx, fill)
		},
	}
	if _, err := BenchOpen(t.Context(), cfg); cfs.KindOf(err) != cfs.Corrupt || !strings.Contains(err.Error(), "1.500/0 was acknowledged") {
		t.Errorf("got %v", err)
	}
}

func TestFillAbandonsWithMoreOnTheWay(t *testing.T) {
	testEngines(t)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	called := 0
	cfg := FillConfig{Path: path, Format: true, SegmentBytes: 1 << 20, RecordBytes: 4 << 10, First: 1, Records: 300, Abandon: func() { called++ }}
	if err := Fill(t.Context(), cfg); err != nil || called != 1 {
		t.Fatalf("abandoned %d times: %v", called, err)
	}
	rig, err := openRig(rigConfig{path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer rig.close()
	if err := rig.openLog(); err != nil {
		t.Fatal(err)
	}
	if n := rig.log.Stats().Records; n < 300+fillWorkers {
		t.Errorf("%d records", n)
	}
	if err := rig.verify(t.Context(), []nvme.Record{recordOf(1, 4<<10), recordOf(300, 4<<10)}); err != nil {
		t.Error(err)
	}
}

func TestBenchClean(t *testing.T) {
	cfg := CleanConfig{
		Skews: []string{SkewUniform, SkewHot}, Segments: 40, SegmentBytes: 256 << 10, RecordBytes: 4 << 10,
		Live: 0.3, Warmup: 0.5, Rounds: 2, Seed: 1,
	}
	rep, err := BenchClean(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, skew := range cfg.Skews {
		row, ok := rep.find(Labels{"skew": skew})
		if !ok || len(row.Rounds) != 2 {
			t.Fatalf("%s: %+v", skew, row)
		}
		v := row.Median
		if v[Amplification] < 1 || v[Amplification] > 3 || v[DeviceWritten] < v[Amplification] || v[RecordsPerHead] < 1 {
			t.Errorf("%s: %v", skew, v)
		}
		room := float64((cfg.Segments - testLog(t, cfg.Segments).log.Stats().ReserveSegments) * int(cfg.SegmentBytes) / int(cfg.RecordBytes))
		if part := v[Records] / room; part > cfg.Live*1.25 || part < cfg.Live/2 {
			t.Errorf("%s: %g records live, %.2f of the device", skew, v[Records], part)
		}
	}
}

func TestBenchCleanOnAFile(t *testing.T) {
	testEngines(t)
	path := filepath.Join(t.TempDir(), "data")
	cfg := CleanConfig{
		Disk: DiskConfig{Path: path}, Skews: []string{SkewUniform}, Segments: 24, SegmentBytes: 256 << 10,
		RecordBytes: 16 << 10, Live: 0.2, Rounds: 1,
	}
	rep, err := BenchClean(t.Context(), cfg)
	if err != nil || rep.Device != path {
		t.Fatalf("%v, %v", rep, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestHotOverwritesHitATenth(t *testing.T) {
	rig := testLog(t, 24)
	cfg := &CleanConfig{Segments: 24, SegmentBytes: 1 << 20, RecordBytes: 64 << 10, Live: 0.5, Rounds: 1, Seed: 3}
	c := newCleaning(cfg, SkewHot, rig)
	if err := c.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := make([]uint64, len(c.live))
	for i := range c.live {
		before[i] = c.live[i].Load()
	}
	if err := c.overwrite(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	hot := int(float64(len(c.live)) * hotRecords)
	cold := 0
	for i := range c.live {
		same := c.live[i].Load() == before[i]
		if i < hot && same {
			t.Errorf("hot record %d of %d was never overwritten", i, hot)
		}
		if i >= hot && !same {
			cold++
		}
	}
	if cold == 0 || cold == len(c.live)-hot {
		t.Errorf("%d of %d cold records were overwritten", cold, len(c.live)-hot)
	}
}

func TestCleanConfigRefuses(t *testing.T) {
	good := CleanConfig{Skews: []string{SkewHot}, Segments: 40, SegmentBytes: 1 << 20, RecordBytes: 4 << 10, Live: 0.8, Rounds: 1}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*CleanConfig){
		"--skew":         func(c *CleanConfig) { c.Skews = []string{"zipf"} },
		"--segments":     func(c *CleanConfig) { c.Segments = 3 },
		"--live":         func(c *CleanConfig) { c.Live = 1 },
		"--warmup":       func(c *CleanConfig) { c.Warmup = -1 },
		"--segment-size": func(c *CleanConfig) { c.SegmentBytes = units.Bytes(4096) },
		"--bs":           func(c *CleanConfig) { c.RecordBytes = 100 },
		"--rounds":       func(c *CleanConfig) { c.Rounds = 0 },
	} {
		c := good
		change(&c)
		if err := c.check(); cfs.KindOf(err) != cfs.Usage || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
