package perf

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/claudefs/claudefs/internal/units"
)

// FioConfig runs fio alone.
type FioConfig struct {
	Disk     DiskConfig
	ReadOnly bool // only the jobs that read
	Runtime  time.Duration
	Rounds   int
	Seed     uint64
	Progress Progress
}

// referenceJobs are the machine's own limit: what a bulk write and read, small
// random operations and a durable small write can be at best.
var referenceJobs = []struct {
	rw    string
	bytes int
	depth int
	sync  bool
}{
	{Write, 1 << 20, 8, false},
	{Read, 1 << 20, 8, false},
	{Write, 256 << 10, 8, false},
	{RandWrite, 4 << 10, 32, false},
	{Write, 4 << 10, 1, true},
	{RandRead, 4 << 10, 1, false},
	{RandRead, 4 << 10, 32, false},
	{RandRead, 4 << 10, 128, false},
}

// BenchFio runs the reference jobs through fio, in turn.
func BenchFio(ctx context.Context, cfg FioConfig) (rep *Report, err error) {
	use := toWrite
	if cfg.ReadOnly {
		use = toRead
	}
	d, err := openDisk(ctx, cfg.Disk, use, cfg.Progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	rep = newReport("fio", d.path)
	for _, text := range d.notes {
		rep.note("%s", text)
	}
	var turns []turn
	for _, ref := range referenceJobs {
		job := Job{
			Path: d.path, SizeBytes: d.sizeBytes, BlockBytes: ref.bytes, Depth: ref.depth, RW: ref.rw,
			Sync: ref.sync, Runtime: cfg.Runtime, Seed: cfg.Seed, Buffered: d.buffered,
		}
		if job.writes() && cfg.ReadOnly {
			continue
		}
		if err := job.check(); err != nil {
			return nil, err
		}
		run, err := fioTurn(job, rep)
		if err != nil {
			return nil, err
		}
		labels := Labels{"rw": job.RW, "bs": units.Bytes(job.BlockBytes).String(), "depth": strconv.Itoa(job.Depth), "engine": EngineFio}
		if job.Sync {
			labels["sync"] = "dsync"
		}
		turns = append(turns, turn{rep.row(labels, nil), run})
	}
	if err := interleave(ctx, cfg.Rounds, turns, cfg.Progress); err != nil {
		return nil, err
	}
	return rep.finish(), nil
}
