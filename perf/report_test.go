package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		in := slices.Clone(c.in)
		if got, ok := Median(in); !ok || got != c.want {
			t.Errorf("%v: %g, %t, want %g", c.in, got, ok, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("%v was changed to %v", c.in, in)
		}
	}
	if _, ok := Median(nil); ok {
		t.Error("nothing has a median")
	}
}

func TestRoundsAreInterleaved(t *testing.T) {
	var order []string
	rep := newReport("x", "")
	var turns []turn
	for _, name := range []string{"a", "b", "c"} {
		row := rep.row(Labels{"engine": name}, nil)
		turns = append(turns, turn{row, func(context.Context) (Values, error) {
			order = append(order, name)
			return Values{IOPS: float64(len(order))}, nil
		}})
	}
	var said []string
	if err := interleave(t.Context(), 2, turns, func(text string) { said = append(said, text) }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, ""); got != "abcabc" {
		t.Errorf("order %s", got)
	}
	if rep.finish(); rep.Rows[1].Median[IOPS] != 3.5 || len(rep.Rows[1].Rounds) != 2 {
		t.Errorf("the second row has %v, median %v", rep.Rows[1].Rounds, rep.Rows[1].Median)
	}
	if len(said) != 6 || said[3] != "round 2 of 2: engine=a" {
		t.Errorf("progress %q", said)
	}
}

func TestInterleaveStops(t *testing.T) {
	ran := 0
	bad := turn{&Row{Labels: Labels{"engine": "bad"}}, func(context.Context) (Values, error) { ran++; return nil, cfs.E("", cfs.IO, errors.New("broken")) }}
	if err := interleave(t.Context(), 3, []turn{bad}, nil); cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), "engine=bad") || ran != 1 {
		t.Errorf("%v after %d turns", err, ran)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := interleave(ctx, 3, []turn{bad}, nil); cfs.KindOf(err) != cfs.Canceled || ran != 1 {
		t.Errorf("cancelled: %v after %d turns", err, ran)
	}
	for _, rounds := range []int{0, -1, maxRounds + 1} {
		if err := interleave(t.Context(), rounds, nil, nil); cfs.KindOf(err) != cfs.Usage {
			t.Errorf("%d rounds: %v", rounds, err)
		}
	}
}

// twoRows is a report in which one row is twice as good as fio in every round,
// while the machine drifts.
func twoRows() *Report {
	rep := newReport("io", "/dev/disk 1")
	fio := &Row{Labels: Labels{"depth": "32", "engine": EngineFio}}
	ours := rep.row(Labels{"depth": "32", "engine": EngineNative}, fio)
	rep.Rows = append(rep.Rows, fio)
	for _, speed := range []float64{1000, 3000, 9000} {
		ours.Rounds = append(ours.Rounds, Values{IOPS: 2 * speed, CPUPerOp: 3, AllocsPerOp: 0, P50: 70.5})
		fio.Rounds = append(fio.Rounds, Values{IOPS: speed, CPUPerOp: 2})
	}
	return rep.finish()
}

func TestRatiosAreOfRounds(t *testing.T) {
	rep := twoRows()
	// As if the machine had slowed down between the two in one of the rounds.
	rep.Rows[1].Rounds[2][IOPS] = 100
	rep.finish()
	if got := rep.Rows[0].Ratios; got[IOPS] != 2 || got[CPUPerOp] != 1.5 {
		t.Errorf("ratios %v", got)
	}
	if rep.Rows[1].Ratios != nil {
		t.Errorf("the base has ratios to itself: %v", rep.Rows[1].Ratios)
	}
}

func TestTable(t *testing.T) {
	got := twoRows().Table()
	want := [][]string{
		{"depth", "engine", "IOPS", "p50 us", "CPU us/op", "allocs/op", "IOPS/fio", "CPU/fio"},
		{"32", "native", "6000", "70.5", "3.00", "0.00", "2.00", "1.50"},
		{"32", "fio", "3000", "-", "2.00", "-", "-", "-"},
	}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %q", got)
	}
}

func TestJSON(t *testing.T) {
	text, err := json.Marshal(twoRows())
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if row, ok := back.find(Labels{"engine": EngineNative}); !ok || row.Median[IOPS] != 6000 || row.Ratios[IOPS] != 2 || row.RatioTo != "depth=32/engine=fio" || len(row.Rounds) != 3 {
		t.Errorf("%s", text)
	}
}

// The benchmark format: https://go.dev/design/14313-benchmark-format.
var (
	configLine = regexp.MustCompile(`^[a-z][^ \t\p{Lu}]*: .*$`)
	unitLine   = regexp.MustCompile(`^Unit (\S+) better=(higher|lower)$`)
	resultLine = regexp.MustCompile(`^Benchmark\P{Ll}\S*-[0-9]+ [0-9]+( \S+ \S+)+$`)
)

func TestBenchFormatReadsBack(t *testing.T) {
	var out bytes.Buffer
	rep := twoRows()
	if err := rep.WriteBench(&out); err != nil {
		t.Fatal(err)
	}
	units := map[string]bool{}
	got := map[string][]float64{} // of op/s, by benchmark
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" || configLine.MatchString(line):
		case unitLine.MatchString(line):
			units[unitLine.FindStringSubmatch(line)[1]] = true
		case resultLine.MatchString(line):
			f := strings.Fields(line)
			for i := 2; i < len(f); i += 2 {
				v, err := strconv.ParseFloat(f[i], 64)
				if err != nil {
					t.Errorf("%s: %v", line, err)
				}
				if f[i+1] == "op/s" {
					got[f[0]] = append(got[f[0]], v)
				}
				if f[i+1] != "ns/op" && !units[f[i+1]] {
					t.Errorf("unit %s comes without its metadata before it", f[i+1])
				}
			}
		default:
			t.Errorf("line %q is no part of the format", line)
		}
	}
	cpus := strconv.Itoa(rep.Machine.CPUs)
	if v := got["BenchmarkIO/depth=32/engine=native-"+cpus]; !slices.Equal(v, []float64{2000, 6000, 18000}) {
		t.Errorf("native: %v, in %s", v, out.String())
	}
	if len(got) != 2 {
		t.Errorf("%d benchmarks in %s", len(got), out.String())
	}
}

func TestEveryMetricIsInTheTableOnce(t *testing.T) {
	seen := map[Metric]bool{}
	for _, info := range metricTable {
		if seen[info.metric] || info.title == "" || info.scale == 0 || (info.unit == "") != (info.bench == 0) {
			t.Errorf("metric %+v", info)
		}
		seen[info.metric] = true
	}
}
