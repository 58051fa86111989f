package perf

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxAttempts is how often a bench runs when a hard target is missed: the machine
	// may have been busy. All but the first have laterRounds times the rounds.
	maxAttempts = 3
	laterRounds = 2
	// scratchName is the file that benches of a gate share.
	scratchName = "disk"
	logFileName = "log"
)

// benchPlan is a bench with its parameters, as a target file has them.
type benchPlan interface {
	// valid refuses what cannot be run on a file of so many bytes.
	valid(sizeBytes int64) error
	// run runs it with times the rounds.
	run(ctx context.Context, g *gateRun, f *TargetFile, times int) (*Report, error)
}

// benchTable makes the plan of each bench.
var benchTable = map[string]func() benchPlan{
	"io":    func() benchPlan { return &IOConfig{} },
	"log":   func() benchPlan { return &LogConfig{} },
	"open":  func() benchPlan { return &OpenConfig{} },
	"clean": func() benchPlan { return &CleanConfig{} },
	"ec":    func() benchPlan { return &ECConfig{} },
	"file":  func() benchPlan { return &FileConfig{} },
	"meta":  func() benchPlan { return &MetaConfig{} },
}

func benchNames() []string { return slices.Sorted(maps.Keys(benchTable)) }

func (c *IOConfig) valid(sizeBytes int64) error {
	c.Disk.SizeBytes = sizeBytes
	return c.check()
}

func (c *IOConfig) run(ctx context.Context, g *gateRun, f *TargetFile, times int) (*Report, error) {
	d, err := g.scratch(ctx, int64(f.Size))
	if err != nil {
		return nil, err
	}
	cfg := *c
	cfg.Rounds, cfg.Progress = c.Rounds*times, g.progress
	return benchIO(ctx, cfg, d)
}

func (c *LogConfig) valid(sizeBytes int64) error {
	c.Disk.SizeBytes = sizeBytes
	return c.check()
}

func (c *LogConfig) run(ctx context.Context, g *gateRun, f *TargetFile, times int) (*Report, error) {
	d, err := g.scratch(ctx, int64(f.Size))
	if err != nil {
		return nil, err
	}
	cfg := *c
	cfg.Rounds, cfg.Progress = c.Rounds*times, g.progress
	return benchLog(ctx, cfg, d)
}

func (c *OpenConfig) valid(int64) error { return c.check() }

func (c *OpenConfig) run(ctx context.Context, g *gateRun, _ *TargetFile, times int) (*Report, error) {
	cfg := *c
	cfg.Rounds, cfg.Progress, cfg.Kill = c.Rounds*times, g.progress, g.cfg.Kill
	cfg.Disk = DiskConfig{Path: filepath.Join(g.dir, logFileName)}
	return BenchOpen(ctx, cfg)
}

func (c *CleanConfig) valid(int64) error { return c.check() }

func (c *CleanConfig) run(ctx context.Context, g *gateRun, _ *TargetFile, times int) (*Report, error) {
	cfg := *c
	cfg.Rounds, cfg.Progress = c.Rounds*times, g.progress
	return BenchClean(ctx, cfg)
}

func (c *ECConfig) valid(int64) error { return c.check() }

func (c *ECConfig) run(ctx context.Context, g *gateRun, _ *TargetFile, times int) (*Report, error) {
	cfg := *c
	cfg.Rounds, cfg.Progress = c.Rounds*times, g.progress
	return BenchEC(ctx, cfg)
}

func (c *FileConfig) valid(int64) error {
	cfg := *c
	cfg.complete()
	return cfg.check()
}

func (c *FileConfig) run(ctx context.Context, g *gateRun, _ *TargetFile, times int) (*Report, error) {
	cfg := *c
	cfg.Rounds, cfg.Progress = c.Rounds*times, g.progress
	cfg.Cfs, cfg.Dir = g.cfg.Cfs, g.dir
	return BenchFile(ctx, cfg)
}

func (c *MetaConfig) valid(int64) error { return c.check() }

func (c *MetaConfig) run(ctx context.Context, g *gateRun, _ *TargetFile, times int) (*Report, error) {
	cfg := *c
	cfg.Rounds, cfg.Progress = c.Rounds*times, g.progress
	cfg.Cfs, cfg.Dir, cfg.Load = g.cfg.Cfs, g.dir, g.cfg.Load
	return BenchMeta(ctx, cfg)
}

// GateConfig says what a gate runs.
type GateConfig struct {
	Name  string // of the profile, for the report
	Files []*TargetFile
	// Dir is where the benches' files go, below a new directory that is removed; it is
	// the disk that is measured.
	Dir string
	// Cfs is FileConfig's.
	Cfs string
	// Kill is OpenConfig's.
	Kill func(ctx context.Context, cfg FillConfig) error
	// Load is MetaConfig's.
	Load     func(ctx context.Context, b BulkNamespace) error
	Progress Progress
}

// Verdict is what a gate says of one target.
type Verdict struct {
	Target
	File     string    `json:"file"`
	Measured float64   `json:"measured"` // the best of the attempts
	Attempts []float64 `json:"attempts"` // the medians that were measured, in order
	Met      bool      `json:"met"`
	Failed   string    `json:"failed,omitempty"` // why the bench did not measure it
}

// GateReport is the outcome of a gate.
type GateReport struct {
	Profile  string    `json:"profile"`
	Machine  Machine   `json:"machine"`
	Verdicts []Verdict `json:"verdicts"`
	Reports  []*Report `json:"reports"` // of every bench and attempt
}

// Missed are the names of the hard targets that were missed, and of all that were
// not measured because their bench failed.
func (r *GateReport) Missed() []string {
	var names []string
	for _, v := range r.Verdicts {
		if v.Failed != "" || !v.Met && v.Kind == KindHard {
			names = append(names, v.Name)
		}
	}
	return names
}

// Table is the verdicts as rows of cells, titles first.
func (r *GateReport) Table() [][]string {
	table := [][]string{{"target", "want", "measured", "verdict", "attempts", "what"}}
	for _, v := range r.Verdicts {
		verdict, measured := "met", short(v.Measured)
		switch {
		case v.Failed != "":
			verdict, measured = "FAILED", "-"
		case !v.Met && v.Kind == KindHard:
			verdict = "MISSED"
		case !v.Met:
			verdict = "missed, reported only"
		}
		table = append(table, []string{v.Name, v.Op + " " + short(v.Value), measured, verdict, attemptsText(v.Attempts), v.What})
	}
	return table
}

// attemptsText is how often a bench ran, and what it gave when it was more than once.
func attemptsText(attempts []float64) string {
	text := strconv.Itoa(len(attempts))
	if len(attempts) <= 1 {
		return text
	}
	for i, v := range attempts {
		text += []string{": ", ", "}[min(i, 1)] + short(v)
	}
	return text
}

// short is a number with the digits that a reader needs.
func short(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

// gateRun is a gate at work.
type gateRun struct {
	cfg      *GateConfig
	dir      string
	progress Progress
	disk     *disk // made when the first bench wants it
}

// RunGate runs the benches of all files, one after the other, each once for all of
// its targets, and again while a hard target is missed, up to three times in all.
// Missed targets, and benches that fail, are in the report. The error is Canceled, or
// says that there is nowhere to measure.
func RunGate(ctx context.Context, cfg GateConfig) (rep *GateReport, err error) {
	dir, err := os.MkdirTemp(cfg.Dir, "cfs-perf-")
	if err != nil {
		return nil, cfs.E("make a directory for the gate", cfs.KindOf(err), err)
	}
	g := &gateRun{cfg: &cfg, dir: dir, progress: cfg.Progress}
	defer func() {
		if g.disk != nil {
			err = errors.Join(err, g.disk.close())
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	rep = &GateReport{Profile: cfg.Name, Machine: thisMachine()}
	for i, f := range cfg.Files {
		g.progress = func(text string) { cfg.Progress.say("[%d/%d] %s: %s", i+1, len(cfg.Files), f.Path, text) }
		verdicts, reports, err := attempt(f, func(times int) (*Report, error) { return f.plan.run(ctx, g, f, times) })
		if ctx.Err() != nil {
			return nil, cfs.E(f.Path, cfs.Canceled, context.Cause(ctx))
		}
		for j := range verdicts {
			if err != nil {
				verdicts[j].Failed, verdicts[j].Met = err.Error(), false
			}
		}
		rep.Verdicts = append(rep.Verdicts, verdicts...)
		for _, r := range reports {
			rep.Reports = append(rep.Reports, r)
			if r.Machine.Fio != "" {
				rep.Machine.Fio = r.Machine.Fio
			}
		}
	}
	return rep, nil
}

// attempt runs a file's bench until its hard targets are met, at most maxAttempts
// times; of each target the best attempt counts. With an error, the verdicts say
// what there was until then.
func attempt(f *TargetFile, run func(times int) (*Report, error)) (verdicts []Verdict, reports []*Report, err error) {
	for _, t := range f.Targets {
		verdicts = append(verdicts, Verdict{Target: t, File: f.Path})
	}
	times := 1
	for range maxAttempts {
		r, err := run(times)
		if err != nil {
			return verdicts, reports, err
		}
		reports = append(reports, r)
		again := false
		for i := range verdicts {
			v := &verdicts[i]
			got, err := v.measure(r)
			if err != nil {
				return verdicts, reports, err
			}
			if len(v.Attempts) == 0 {
				v.Measured = got
			}
			v.Attempts = append(v.Attempts, got)
			v.Measured = v.better(v.Measured, got)
			v.Met = v.met(v.Measured)
			again = again || !v.Met && v.Kind == KindHard
		}
		if !again {
			break
		}
		times = laterRounds
	}
	return verdicts, reports, nil
}

// scratch is the shared file, seen as one of so many bytes.
func (g *gateRun) scratch(ctx context.Context, sizeBytes int64) (*disk, error) {
	if g.disk == nil {
		most := sizeBytes
		for _, f := range g.cfg.Files {
			most = max(most, int64(f.Size))
		}
		d, err := openDisk(ctx, DiskConfig{Path: filepath.Join(g.dir, scratchName), SizeBytes: most}, toWrite, g.progress)
		if err != nil {
			return nil, err
		}
		g.disk = d
	}
	part := *g.disk
	part.sizeBytes = sizeBytes
	return &part, nil
}
