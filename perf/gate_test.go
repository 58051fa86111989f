package perf

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/claudefs/claudefs/cfs"
)

// ioTargets is a good target file.
const ioTargets = `{
  "bench": "io", "size": "1MiB",
  "params": {"engines": ["native"], "rw": "randread", "bs": "4KiB", "depth": [4], "runtime": "10ms", "rounds": 1},
  "targets": [
    {"name": "rate", "what": "some rate", "metric": "iops", "of": {"engine": "native"}, "op": ">=", "value": 1, "kind": "hard"},
    {"name": "latency", "what": "some latency", "metric": "p99_us", "of": {"depth": "4"}, "op": "<=", "value": 0.001, "kind": "report"}
  ]
}`

func TestBuiltInTargets(t *testing.T) {
	dir, err := Profile("ci")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ReadTargets(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range files {
		for _, target := range f.Targets {
			names[target.Name] = true
		}
	}
	for _, want := range []string{"randread-4k-depth32-iops", "randread-4k-depth128-cpu", "log-put-256k-depth8", "log-open-killed", "log-clean-hot", "ec-encode-cpu", "file-write", "file-slow-share", "meta-create1", "meta-failover"} {
		if !names[want] {
			t.Errorf("no target %s", want)
		}
	}
	if _, err := Profile("nightly"); cfs.KindOf(err) != cfs.Usage || !strings.Contains(err.Error(), "ci") {
		t.Errorf("a profile that is none: %v", err)
	}
	// What is built in is what lies there.
	onDisk, err := ReadTargets(os.DirFS("targets/ci"))
	if err != nil || len(onDisk) != len(files) {
		t.Errorf("%d files built in, %d there: %v", len(files), len(onDisk), err)
	}
}

func TestBuiltInFileTargetsNameRows(t *testing.T) {
	dir, err := Profile("ci")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ReadTargets(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		plan, ok := f.plan.(*FileConfig)
		if !ok {
			continue
		}
		if !slices.Equal(slices.Sorted(slices.Values(plan.Shapes)), slices.Sorted(slices.Values(ShapeNames()))) {
			t.Errorf("%s leaves shapes out: %v", f.Path, plan.Shapes)
		}
		for _, target := range f.Targets {
			op := target.Of["op"]
			if by := map[string]string{"readback": ShapeOverwrite, "foreground": ShapeRebuild}; by[op] != "" {
				op = by[op]
			}
			if !plan.has(op) {
				t.Errorf("%s: no shape gives %v", target.Name, target.Of)
			}
		}
	}
}

func TestBadTargetFileNamesFileAndField(t *testing.T) {
	for _, c := range []struct{ replace, by, field string }{
		{`"bench": "io"`, `"bench": "gpu"`, "bench"},
		{`"size": "1MiB"`, `"size": "much"`, "much"},
		{`"size": "1MiB"`, `"size": "1KiB"`, "size"},
		{`"size"`, `"sise"`, "sise"},
		{`"rw": "randread"`, `"rw": "sideways"`, "params: rw"},
		{`"depth": [4]`, `"depth": 4`, "params"},
		{`"depth": [4]`, `"depth": []`, "params: depth"},
		{`"runtime": "10ms"`, `"runtime": "long"`, "long"},
		{`"rounds": 1`, `"round": 1`, "params: json: unknown field \"round\""},
		{`"rounds": 1`, `"rounds": 0`, "params: rounds"},
		{`"name": "rate"`, `"name": ""`, "targets[0].name"},
		{`"what": "some rate"`, `"what": ""`, "targets[0].what"},
		{`"metric": "p99_us"`, `"metric": "p98_us"`, "targets[1].metric"},
		{`"of": {"depth": "4"}`, `"of": {}`, "targets[1].of"},
		{`"of": {"depth": "4"}`, `"of": {"dept": "4"}`, "targets[1].of"},
		{`"of": {"depth": "4"}`, `"of": {"depth": "4"}, "over": {"x": "y"}`, "targets[1].over"},
		{`"op": ">="`, `"op": ">"`, "targets[0].op"},
		{`"kind": "report"`, `"kind": "soft"`, "targets[1].kind"},
		{`"value": 1,`, `"value": "one",`, "value"},
		{`"name": "latency"`, `"name": "rate"`, `"rate"`},
		{`  ]
}`, `  ]
} {}`, "follows"},
		{`"bench": "io"`, `"bench" "io"`, "at byte"},
	} {
		text := strings.Replace(ioTargets, c.replace, c.by, 1)
		if text == ioTargets {
			t.Fatalf("%s is not there to be replaced", c.replace)
		}
		_, err := ReadTargets(fstest.MapFS{"some.json": {Data: []byte(text)}})
		if cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), "some.json") || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: %v", c.by, err)
		}
	}
	if _, err := ReadTargets(fstest.MapFS{"readme.txt": {}}); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("no target file: %v", err)
	}
}

func FuzzTargets(f *testing.F) {
	f.Add([]byte(ioTargets))
	dir, err := Profile("ci")
	if err != nil {
		f.Fatal(err)
	}
	names, _ := fs.Glob(dir, "*.json")
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := parseTargets("some.json", text)
		if err != nil {
			if !strings.Contains(err.Error(), "some.json") {
				t.Errorf("%v does not name the file", err)
			}
			return
		}
		if file.plan == nil || len(file.Targets) == 0 {
			t.Errorf("took %q", text)
		}
	})
}

func TestMeasureAndVerdict(t *testing.T) {
	rep := twoRows()
	for _, c := range []struct {
		target Target
		want   float64
		met    bool
	}{
		{Target{Metric: IOPS, Of: Labels{"engine": "native"}, Over: Labels{"engine": "fio"}, Op: AtLeast, Value: 2}, 2, true},
		{Target{Metric: IOPS, Of: Labels{"engine": "native"}, Over: Labels{"engine": "fio"}, Op: AtLeast, Value: 2.01}, 2, false},
		{Target{Metric: CPUPerOp, Of: Labels{"engine": "native"}, Op: AtMost, Value: 3}, 3, true},
		{Target{Metric: CPUPerOp, Of: Labels{"engine": "native"}, Op: AtMost, Value: 2.9}, 3, false},
		{Target{Metric: AllocsPerOp, Of: Labels{"engine": "native"}, Op: AtMost, Value: 0}, 0, true},
	} {
		got, err := c.target.measure(rep)
		if err != nil || got != c.want || c.target.met(got) != c.met {
			t.Errorf("%+v: %g, met %t, %v", c.target, got, c.target.met(got), err)
		}
	}
	for _, bad := range []Target{
		{Metric: IOPS, Of: Labels{"depth": "32"}},  // two rows
		{Metric: IOPS, Of: Labels{"depth": "33"}},  // none
		{Metric: P99, Of: Labels{"engine": "fio"}}, // not measured
		{Metric: P50, Of: Labels{"engine": "fio"}, Over: Labels{"engine": "native"}},
		{Metric: IOPS, Of: Labels{"engine": "fio"}, Over: Labels{"engine": "none"}},
	} {
		if v, err := bad.measure(rep); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("%+v: %g, %v", bad, v, err)
		}
	}
}

// rateOf is a report in which the native engine has a rate.
func rateOf(rate, latency float64) *Report {
	rep := newReport("io", "")
	row := rep.row(Labels{"engine": "native", "depth": "4"}, nil)
	row.Rounds = []Values{{IOPS: rate, P99: latency}}
	return rep.finish()
}

func TestAttempts(t *testing.T) {
	f, err := parseTargets("some.json", []byte(ioTargets))
	if err != nil {
		t.Fatal(err)
	}
	f.Targets[0].Value = 10
	for _, c := range []struct {
		rates    []float64
		attempts int
		measured float64
		met      bool
	}{
		{[]float64{10}, 1, 10, true},
		{[]float64{9, 11}, 2, 11, true},
		{[]float64{9, 8, 7}, 3, 9, false},
		{[]float64{1, 2, 30}, 3, 30, true},
	} {
		var times []int
		verdicts, reports, err := attempt(f, func(n int) (*Report, error) {
			times = append(times, n)
			return rateOf(c.rates[len(times)-1], 100-float64(len(times))), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		rate, latency := verdicts[0], verdicts[1]
		if len(times) != c.attempts || len(reports) != c.attempts || !slices.Equal(times, []int{1, laterRounds, laterRounds}[:c.attempts]) {
			t.Errorf("%v: ran with %v times the rounds", c.rates, times)
		}
		if rate.Measured != c.measured || rate.Met != c.met || !slices.Equal(rate.Attempts, c.rates[:c.attempts]) {
			t.Errorf("%v: %+v", c.rates, rate)
		}
		// One that is only reported is missed, repeats nothing, and has its best attempt too.
		if latency.Met || latency.Measured != 100-float64(c.attempts) {
			t.Errorf("%v: %+v", c.rates, latency)
		}
		rep := &GateReport{Verdicts: verdicts}
		if missed := rep.Missed(); c.met == slices.Contains(missed, "rate") || slices.Contains(missed, "latency") {
			t.Errorf("%v: missed %v", c.rates, missed)
		}
		if table := rep.Table(); table[1][3] != map[bool]string{true: "met", false: "MISSED"}[c.met] || !strings.HasPrefix(table[2][3], "missed") {
			t.Errorf("%v: %q", c.rates, table)
		}
	}
	verdicts, _, err := attempt(f, func(int) (*Report, error) { return nil, cfs.Errorf("bench", cfs.IO, "broken") })
	if cfs.KindOf(err) != cfs.IO || len(verdicts) != 2 {
		t.Errorf("a bench that fails: %v, %v", verdicts, err)
	}
}

func TestAttemptsText(t *testing.T) {
	if got := attemptsText([]float64{0.912345}); got != "1" {
		t.Errorf("one: %s", got)
	}
	if got := attemptsText([]float64{0.91234567, 0.95, 1}); got != "3: 0.9123, 0.95, 1" {
		t.Errorf("three: %s", got)
	}
}

func TestRunGate(t *testing.T) {
	testEngines(t)
	const logTargets = `{
	  "bench": "log", "size": "64MiB",
	  "params": {"jobs": [{"op": "put", "bs": "4KiB", "depth": 4}], "segment": "1MiB", "runtime": "10ms", "rounds": 1},
	  "targets": [{"name": "log", "what": "w", "metric": "syncs_per_put", "of": {"engine": "log"}, "op": "<=", "value": 1e9, "kind": "hard"}]
	}`
	const openTargets = `{
	  "bench": "open",
	  "params": {"records": 500, "bs": "4KiB", "segment": "1MiB", "unclean": true, "rounds": 1},
	  "targets": [{"name": "open", "what": "w", "metric": "records", "of": {"state": "killed"}, "op": ">=", "value": 500, "kind": "hard"}]
	}`
	const cleanTargets = `{
	  "bench": "clean",
	  "params": {"skew": ["uniform"], "segments": 24, "segment": "256KiB", "bs": "16KiB", "live": 0.2, "warmup": 0, "rounds": 1},
	  "targets": [{"name": "clean", "what": "w", "metric": "write_amplification", "of": {"skew": "uniform"}, "op": "<=", "value": 0.5, "kind": "hard"}]
	}`
	files, err := ReadTargets(fstest.MapFS{
		"a.json": {Data: []byte(ioTargets)}, "b.json": {Data: []byte(logTargets)},
		"c.json": {Data: []byte(openTargets)}, "d.json": {Data: []byte(cleanTargets)},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rep, err := RunGate(t.Context(), GateConfig{Name: "test", Files: files, Dir: dir, Kill: killInChild})
	if err != nil {
		t.Fatal(err)
	}
	if missed := rep.Missed(); !slices.Equal(missed, []string{"clean"}) {
		t.Errorf("missed %v", missed)
	}
	if len(rep.Verdicts) != 5 || len(rep.Reports) != 3+maxAttempts {
		t.Errorf("%d verdicts from %d reports", len(rep.Verdicts), len(rep.Reports))
	}
	if text, err := json.Marshal(rep); err != nil || !strings.Contains(string(text), `"name":"clean"`) {
		t.Errorf("%s, %v", text, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}

	// A bench that fails is told of, and the next one runs.
	rep, err = RunGate(t.Context(), GateConfig{Files: files[2:], Dir: dir, Kill: func(context.Context, FillConfig) error {
		return cfs.Errorf("fill", cfs.IO, "broken")
	}})
	if err != nil || !strings.Contains(rep.Verdicts[0].Failed, "broken") || rep.Verdicts[0].Met || rep.Table()[1][3] != "FAILED" || len(rep.Verdicts) != 2 {
		t.Errorf("a bench that fails: %+v, %v", rep, err)
	}
	if missed := rep.Missed(); !slices.Equal(missed, []string{"open", "clean"}) {
		t.Errorf("missed %v", missed)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := RunGate(ctx, GateConfig{Files: files, Dir: dir}); cfs.KindOf(err) != cfs.Canceled || !strings.Contains(err.Error(), "a.json") {
		t.Errorf("cancelled: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
