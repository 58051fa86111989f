package perf

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/rawdisk"
	"github.com/claudefs/claudefs/internal/units"
)

// IOConfig is one job, at one depth after the other, through several engines.
type IOConfig struct {
	Disk DiskConfig `json:"-"`

	Engines    []string    `json:"engines"`
	RW         string      `json:"rw"`
	BlockBytes units.Bytes `json:"bs"`
	Depths     []int       `json:"depth"`
	Sync       bool        `json:"sync"`
	Runtime    Duration    `json:"runtime"` // of each round
	Rounds     int         `json:"rounds"`
	Seed       uint64      `json:"seed"`

	Progress Progress `json:"-"`
}

// job is the job at one depth.
func (c *IOConfig) job(d *disk, depth int) Job {
	return Job{
		Path: d.path, SizeBytes: d.sizeBytes, BlockBytes: int(c.BlockBytes), Depth: depth, RW: c.RW,
		Sync: c.Sync, Runtime: time.Duration(c.Runtime), Seed: c.Seed, Buffered: d.buffered,
	}
}

// check refuses what cannot be run. The kind is Usage.
func (c *IOConfig) check() error {
	if err := checkEngines(c.Engines); err != nil {
		return err
	}
	if len(c.Depths) == 0 {
		return cfs.Errorf("--depth", cfs.Usage, "there is none")
	}
	for _, depth := range c.Depths {
		job := c.job(&disk{sizeBytes: c.Disk.SizeBytes}, depth)
		if err := job.check(); err != nil {
			return err
		}
	}
	return checkRounds(c.Rounds)
}

// BenchIO runs the job through each engine in turn. Rows have the labels rw, bs,
// depth and engine (and sync); their ratios are to fio, where it runs.
func BenchIO(ctx context.Context, cfg IOConfig) (rep *Report, err error) {
	if err := cfg.check(); err != nil { // before a file is made
		return nil, err
	}
	use := toRead
	if (&Job{RW: cfg.RW}).writes() {
		use = toWrite
	}
	d, err := openDisk(ctx, cfg.Disk, use, cfg.Progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	return benchIO(ctx, cfg, d)
}

// benchIO is BenchIO on a prepared disk.
func benchIO(ctx context.Context, cfg IOConfig, d *disk) (*Report, error) {
	rep := newReport("io", d.path)
	for _, text := range d.notes {
		rep.note("%s", text)
	}
	for _, depth := range cfg.Depths {
		job := cfg.job(d, depth)
		if err := job.check(); err != nil {
			return nil, err
		}
		if err := runJob(ctx, &cfg, job, rep); err != nil {
			return nil, err
		}
	}
	return rep.finish(), nil
}

// runJob adds the rows of one job: one for each engine.
func runJob(ctx context.Context, cfg *IOConfig, job Job, rep *Report) (err error) {
	labels := Labels{"rw": job.RW, "bs": sizeText(job.BlockBytes), "depth": strconv.Itoa(job.Depth)}
	if job.Sync {
		labels["sync"] = "dsync"
	}
	var base *Row
	if slices.Contains(cfg.Engines, EngineFio) {
		base = &Row{Labels: labels.with("engine", EngineFio)}
	}
	var turns []turn
	for _, name := range cfg.Engines {
		if name == EngineFio {
			run, err := fioTurn(job, rep)
			if err != nil {
				return err
			}
			rep.Rows = append(rep.Rows, base)
			turns = append(turns, turn{base, run})
			continue
		}
		l, err := openByName(ctx, name, &job)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.close()) }()
		row := rep.row(labels.with("engine", name), base)
		turns = append(turns, turn{row, func(ctx context.Context) (Values, error) {
			return drive(ctx, l.steps, job.BlockBytes, job.Runtime)
		}})
	}
	return interleave(ctx, cfg.Rounds, turns, cfg.Progress)
}

func openByName(ctx context.Context, name string, job *Job) (*loaded, error) {
	for _, e := range engineTable {
		if e.name == name {
			return e.open(ctx, job)
		}
	}
	return nil, checkEngines([]string{name})
}

// with is a copy with one more label.
func (l Labels) with(key, value string) Labels {
	out := Labels{key: value}
	for k, v := range l {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// fioTurn is a round of the job by fio.
func fioTurn(job Job, rep *Report) (func(context.Context) (Values, error), error) {
	fio, err := rawdisk.FindFio()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (Values, error) {
		res, err := rawdisk.RunFio(ctx, fio, rawdisk.Job{
			Path: job.Path, RW: job.RW, OffsetBytes: job.OffsetBytes, SizeBytes: job.SizeBytes,
			BlockBytes: job.BlockBytes, Depth: job.Depth, Runtime: job.Runtime, Sync: job.Sync,
			Buffered: job.Buffered, Seed: job.Seed,
		})
		if err != nil {
			return nil, err
		}
		rep.Machine.Fio = res.Version
		return Values{
			IOPS: res.OpsPerSecond, BytesPerSecond: res.BytesPerSecond,
			P50: micros(res.P50), P99: micros(res.P99), P999: micros(res.P999),
			CPUPerOp: micros(res.CPU) / float64(res.Ops),
		}, nil
	}, nil
}
