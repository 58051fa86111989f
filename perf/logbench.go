package perf

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// fillDepth is how many puts fill a log at a time before gets are measured.
const fillDepth = 64

// The operations of a LogJob.
const (
	OpPut = "put"
	OpGet = "get"
)

// checkSegment refuses a size that segments cannot have; 0 is the default.
func checkSegment(n units.Bytes) error {
	if n != 0 && (n < nvme.MinSegmentBytes || n > nvme.MaxSegmentBytes) {
		return cfs.Errorf("--segment-size", cfs.Usage, "%s, want %s to %s", n, units.Bytes(nvme.MinSegmentBytes), units.Bytes(nvme.MaxSegmentBytes))
	}
	return nil
}

// LogJob is one load on a log.
type LogJob struct {
	Op         string      `json:"op"`    // put or get
	BlockBytes units.Bytes `json:"bs"`    // of each record
	Depth      int         `json:"depth"` // goroutines
	Fio        bool        `json:"fio"`   // beside fio's direct write, or random read, of the same size and depth
}

// LogConfig is a bench of the log on one device.
type LogConfig struct {
	Disk DiskConfig `json:"-"` // the log has its first half, fio the second

	Jobs         []LogJob    `json:"jobs"`
	SegmentBytes units.Bytes `json:"segment"` // 0 for the default
	Runtime      Duration    `json:"runtime"` // of each round
	Rounds       int         `json:"rounds"`
	Seed         uint64      `json:"seed"`

	Progress Progress `json:"-"`
}

// check refuses what cannot be run. The kind is Usage.
func (c *LogConfig) check() error {
	if len(c.Jobs) == 0 {
		return cfs.Errorf("jobs", cfs.Usage, "there is none")
	}
	for _, j := range c.Jobs {
		if j.Op != OpPut && j.Op != OpGet {
			return cfs.Errorf("op", cfs.Usage, "%q is neither %s nor %s", j.Op, OpPut, OpGet)
		}
		job := c.diskJob(&disk{sizeBytes: c.Disk.SizeBytes}, j)
		if err := job.check(); err != nil {
			return err
		}
	}
	return checkRounds(c.Rounds)
}

// diskJob is what fio does beside a job of the log: the same, without a log, on the
// second half of the disk.
func (c *LogConfig) diskJob(d *disk, j LogJob) Job {
	job := Job{
		Path: d.path, OffsetBytes: d.sizeBytes / 2 &^ (cfs.MaxShardSize - 1), BlockBytes: int(j.BlockBytes), Depth: j.Depth,
		RW: Write, Runtime: time.Duration(c.Runtime), Seed: c.Seed, Buffered: d.buffered,
	}
	if j.Op == OpGet {
		job.RW = RandRead
	}
	job.SizeBytes = d.sizeBytes - job.OffsetBytes
	return job
}

// logBench is a LogConfig at work.
type logBench struct {
	cfg     *LogConfig
	rep     *Report
	disk    *disk
	rig     *logRig
	kernel  kernelDisk
	counted bool // the kernel counts on the disk
	streams map[int]*stream
}

// BenchLog runs each job in turn, on one log, and fio beside those that want it.
// Rows have the labels op, bs, depth and engine (log or fio). Puts come with
// what the device was asked for, as counted between the log and the device, and
// as counted by the kernel on the disk.
func BenchLog(ctx context.Context, cfg LogConfig) (rep *Report, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	d, err := openDisk(ctx, cfg.Disk, forLog, cfg.Progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	return benchLog(ctx, cfg, d)
}

// benchLog is BenchLog on a prepared disk.
func benchLog(ctx context.Context, cfg LogConfig, d *disk) (rep *Report, err error) {
	b := &logBench{cfg: &cfg, rep: newReport("log", d.path), disk: d, streams: map[int]*stream{}}
	for _, text := range d.notes {
		b.rep.note("%s", text)
	}
	deepest := 0
	if d.passthrough {
		b.rep.note("fio has no such job for an NVMe character device: there are no ratios")
	}
	for _, j := range cfg.Jobs {
		deepest = max(deepest, max(j.Depth, fillDepth)*(iopath.Headroom+int(j.BlockBytes)))
	}
	half := b.cfg.diskJob(d, cfg.Jobs[0]).OffsetBytes
	b.rig, err = openRig(rigConfig{path: d.path, limitBytes: half, segmentBytes: uint32(cfg.SegmentBytes), format: true, bufferBytes: deepest})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.rig.close()) }()
	if err := b.rig.openLog(); err != nil {
		return nil, err
	}
	b.describe()
	turns, err := b.turns()
	if err != nil {
		return nil, err
	}
	if err := interleave(ctx, cfg.Rounds, turns, cfg.Progress); err != nil {
		return nil, err
	}
	if st := b.rig.log.Stats(); st.CopiedBytes > 0 {
		b.rep.note("the cleaner moved %s meanwhile: the rates of puts include that", units.Bytes(st.CopiedBytes))
	}
	return b.rep.finish(), nil
}

// describe notes what the numbers about the device rest on.
func (b *logBench) describe() {
	if b.rig.dev.Info().WriteThrough {
		b.rep.note("%s reports write-through: a write is durable without a flush", b.disk.path)
	}
	if b.kernel, b.counted = kernelDiskOf(b.disk.path); b.counted {
		b.rep.note("disk flushes and bytes are the kernel's counts of %s, with those of others and of the file system", b.kernel.name)
	} else {
		b.rep.note("the kernel does not count flushes of what is below %s", b.disk.path)
	}
}

// turns makes the rows, and the streams that they share by size.
func (b *logBench) turns() ([]turn, error) {
	sizes := map[int]int{} // the largest depth of each size
	for _, j := range b.cfg.Jobs {
		sizes[int(j.BlockBytes)] = max(sizes[int(j.BlockBytes)], j.Depth)
	}
	// Half of what the log can hold lives; each size has its share.
	window := b.rig.log.Stats().CapacityBytes / 2 / int64(len(sizes))
	last := new(atomic.Uint64)
	for size, depth := range sizes {
		b.streams[size] = newStream(b.rig.log, size, window, depth, last)
	}
	var turns []turn
	for _, j := range b.cfg.Jobs {
		labels := Labels{"op": j.Op, "bs": j.BlockBytes.String(), "depth": strconv.Itoa(j.Depth)}
		withFio := j.Fio && !b.disk.passthrough
		var base *Row
		if withFio {
			base = &Row{Labels: labels.with("engine", EngineFio)}
		}
		row := b.rep.row(labels.with("engine", "log"), base)
		turns = append(turns, turn{row, func(ctx context.Context) (Values, error) { return b.round(ctx, j) }})
		if withFio {
			job := b.cfg.diskJob(b.disk, j)
			// As much as the records take: a smaller range is easier for what caches below.
			job.SizeBytes = min(job.SizeBytes, max(window, int64(job.BlockBytes)))
			run, err := fioTurn(job, b.rep)
			if err != nil {
				return nil, err
			}
			b.rep.Rows = append(b.rep.Rows, base)
			turns = append(turns, turn{base, run})
		}
	}
	return turns, nil
}

// round is one round of a job on the log.
func (b *logBench) round(ctx context.Context, j LogJob) (Values, error) {
	s := b.streams[int(j.BlockBytes)]
	bufs, release, err := b.rig.buffers(ctx, max(j.Depth, fillDepth), s.sizeBytes, b.cfg.Seed)
	if err != nil {
		return nil, err
	}
	defer release()
	var steps []step
	for i, buf := range bufs[:j.Depth] {
		if j.Op == OpGet {
			steps = append(steps, s.getStep(ctx, buf, rand.New(rand.NewPCG(b.cfg.Seed, uint64(i)))))
		} else {
			steps = append(steps, s.putStep(ctx, buf))
		}
	}
	if j.Op == OpGet {
		if err := s.fill(ctx, bufs); err != nil {
			return nil, err
		}
		return drive(ctx, steps, s.sizeBytes, time.Duration(b.cfg.Runtime))
	}
	dev, st := b.rig.dev.counts(), b.rig.log.Stats()
	kernel, _ := b.kernel.counts()
	v, err := drive(ctx, steps, s.sizeBytes, time.Duration(b.cfg.Runtime))
	if err != nil {
		return nil, err
	}
	after, _ := b.kernel.counts()
	b.addSyncs(v, b.rig.dev.counts().since(dev), st, b.rig.log.Stats())
	if b.counted {
		used := b.rig.dev.counts().since(dev)
		addRatio(v, KernelSyncs, float64(after.flushes-kernel.flushes), float64(used.syncs))
		addRatio(v, KernelBytes, float64(after.writtenBytes-kernel.writtenBytes), float64(used.writtenBytes))
	}
	return v, nil
}

// fill puts records until the window is full, one from each buffer at a time.
func (s *stream) fill(ctx context.Context, bufs []*iopath.Buf) error {
	left := new(atomic.Int64)
	left.Store(int64(s.window - s.n))
	return inParallel(len(bufs), func(w int, stop *atomic.Bool) error {
		put := s.putStep(ctx, bufs[w])
		for !stop.Load() && left.Add(-1) >= 0 {
			if _, err := put(); err != nil {
				return err
			}
		}
		return nil
	})
}

// addSyncs adds what the device was asked for to what a round of puts gave.
func (b *logBench) addSyncs(v Values, used deviceCounts, before, after nvme.LogStats) {
	puts := float64(after.Puts - before.Puts)
	bytes := float64(after.PutBytes - before.PutBytes)
	addRatio(v, PutsPerSync, puts, float64(used.syncs))
	addRatio(v, SyncsPerPut, float64(used.syncs), puts)
	addRatio(v, WritesPerPut, float64(used.writes), puts)
	addRatio(v, WrittenPerByte, float64(used.writtenBytes), bytes)
}

// addRatio adds a metric where there is one.
func addRatio(v Values, m Metric, a, b float64) {
	if b > 0 {
		v[m] = a / b
	}
}
