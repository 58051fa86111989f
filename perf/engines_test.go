package perf

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

// testEngines are those that can run here.
func testEngines(t *testing.T) []string {
	t.Helper()
	ring, err := iopath.NewRing(iopath.RingConfig{Entries: 8})
	if err != nil {
		t.Skip("no io_uring: ", err)
	}
	ring.Close()
	return DefaultEngines()
}

func TestEveryEngineRunsEveryJob(t *testing.T) {
	engines := testEngines(t)
	path := filepath.Join(t.TempDir(), "data")
	before := make([]byte, 3<<20)
	for _, rw := range directions {
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range engines {
			job := Job{Path: path, OffsetBytes: 1 << 20, SizeBytes: 1 << 20, BlockBytes: 16 << 10, Depth: 5, RW: rw, Runtime: 20 * time.Millisecond, Seed: 7}
			rep := newReport("io", path)
			cfg := &IOConfig{Engines: []string{name}, Rounds: 1}
			if err := runJob(t.Context(), cfg, job, rep); err != nil {
				t.Fatalf("%s by %s: %v", rw, name, err)
			}
			v := rep.Rows[0].Rounds[0]
			if v[IOPS] <= 0 || v[BytesPerSecond] <= 0 || v[P50] <= 0 || v[P999] < v[P99] || v[P99] < v[P50] {
				t.Errorf("%s by %s: %v", rw, name, v)
			}
			if _, counted := v[AllocsPerOp]; counted != (name != EngineFio) {
				t.Errorf("%s by %s: %v", rw, name, v)
			}
			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(after) != len(before) || !bytes.Equal(after[:1<<20], before[:1<<20]) || !bytes.Equal(after[2<<20:], before[2<<20:]) {
				t.Errorf("%s by %s wrote beside its range", rw, name)
			}
			if changed := !bytes.Equal(after[1<<20:2<<20], before[1<<20:2<<20]); changed != job.writes() {
				t.Errorf("%s by %s: the range was changed: %t", rw, name, changed)
			}
			if err := os.WriteFile(path, before, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSyncedWrites(t *testing.T) {
	cfg := IOConfig{
		Disk: DiskConfig{Path: filepath.Join(t.TempDir(), "data"), SizeBytes: 1 << 20}, Engines: testEngines(t),
		RW: RandWrite, BlockBytes: 4 << 10, Depths: []int{2}, Sync: true, Runtime: Duration(20 * time.Millisecond), Rounds: 1,
	}
	rep, err := BenchIO(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rep.Rows {
		if row.Labels["sync"] != "dsync" || row.Median[IOPS] <= 0 {
			t.Errorf("%s: %v", row.Labels, row.Median)
		}
	}
}

func TestBenchIORows(t *testing.T) {
	engines := testEngines(t)
	path := filepath.Join(t.TempDir(), "data")
	cfg := IOConfig{
		Disk: DiskConfig{Path: path, SizeBytes: 1 << 20}, Engines: engines,
		RW: RandRead, BlockBytes: 4 << 10, Depths: []int{1, 4}, Runtime: Duration(10 * time.Millisecond), Rounds: 1,
	}
	rep, err := BenchIO(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Rows) != 2*len(engines) {
		t.Fatalf("%d rows", len(rep.Rows))
	}
	for _, depth := range []string{"1", "4"} {
		row, ok := rep.find(Labels{"depth": depth, "engine": EngineNative})
		if !ok || len(row.Rounds) != 1 {
			t.Fatalf("depth %s: %+v", depth, row)
		}
		if withFio := slices.Contains(engines, EngineFio); withFio && row.Ratios[IOPS] <= 0 {
			t.Errorf("depth %s: ratios %v", depth, row.Ratios)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestReadsDoNotAllocate(t *testing.T) {
	if invariants.Race {
		t.Skip("the race detector allocates on its own")
	}
	testEngines(t)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, open := range []func(context.Context, *Job) (*loaded, error){openNative, openNativeBatch, openPread} {
		job := &Job{Path: path, SizeBytes: 1 << 20, BlockBytes: 4 << 10, Depth: 8, RW: RandRead}
		l, err := open(t.Context(), job)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range l.steps { // what is made on first use
			if _, err := s(); err != nil {
				t.Fatal(err)
			}
		}
		n := testing.AllocsPerRun(200, func() {
			if _, err := l.steps[0](); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%g allocations an operation", n)
		}
		if err := l.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDriveCounts(t *testing.T) {
	calls := make([]int, 3)
	var steps []step
	for i := range calls {
		steps = append(steps, func() (int, error) { calls[i]++; return 4, nil })
	}
	v, err := drive(t.Context(), steps, 1000, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	// The first call of each is not measured.
	if v[IOPS] <= 0 || math.Abs(v[BytesPerSecond]/v[IOPS]-1000) > 1 || slices.Min(calls) < 2 {
		t.Errorf("%v calls gave %v", calls, v)
	}
}

func TestDriveEndsAtAnError(t *testing.T) {
	broken := cfs.Errorf("read", cfs.IO, "broken")
	n := 0
	steps := []step{
		func() (int, error) { return 1, nil },
		func() (int, error) {
			if n++; n > 10 {
				return 0, broken
			}
			return 1, nil
		},
	}
	if _, err := drive(t.Context(), steps, 1, time.Hour); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := drive(t.Context(), []step{func() (int, error) { return 0, broken }}, 1, time.Hour); !errors.Is(err, broken) {
		t.Errorf("at the first call: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	cancelling := func() (int, error) {
		if n++; n == 10 {
			cancel()
		}
		return 1, nil
	}
	if _, err := drive(ctx, []step{cancelling}, 1, time.Hour); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestJobCheck(t *testing.T) {
	good := Job{RW: RandRead, BlockBytes: 4096, Depth: 1, Runtime: time.Second, SizeBytes: 1 << 20}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Job){
		"--rw":      func(j *Job) { j.RW = "trim" },
		"--bs":      func(j *Job) { j.BlockBytes = 4097 },
		"--depth":   func(j *Job) { j.Depth = 0 },
		"--runtime": func(j *Job) { j.Runtime = 0 },
		"--size":    func(j *Job) { j.SizeBytes = 4095 },
		"--sync":    func(j *Job) { j.Sync = true },
	} {
		j := good
		change(&j)
		if err := j.check(); cfs.KindOf(err) != cfs.Usage || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestEngineNames(t *testing.T) {
	for _, c := range [][]string{nil, {"libaio"}, {EngineNative, EngineNative}} {
		if err := checkEngines(c); cfs.KindOf(err) != cfs.Usage {
			t.Errorf("%q: %v", c, err)
		}
	}
	if hasIouringGo {
		return
	}
	if _, err := openByName(t.Context(), EngineIouringGo, &Job{}); cfs.KindOf(err) != cfs.Unsupported || !strings.Contains(err.Error(), "-tags iouringgo") {
		t.Errorf("an engine that is not built in: %v", err)
	}
}
