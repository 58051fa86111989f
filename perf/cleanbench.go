package perf

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// The ways in which BenchClean chooses what is overwritten.
const (
	SkewUniform = "uniform" // every record is as likely
	SkewHot     = "hot"     // 9 of 10 overwrites hit the first tenth of the records
)

const (
	hotShare     = 0.9 // of the overwrites
	hotRecords   = 0.1 // of the records
	cleanWorkers = 128 // goroutines that overwrite; a batch of small records has about half of them
	fillCheck    = 64  // records between two looks at how full the device is
	// leastCleanSegments is a device on which anything could be learnt.
	leastCleanSegments = 20
)

// CleanConfig is a bench of the cleaner's write amplification.
type CleanConfig struct {
	// Disk is the device; with an empty path one in memory, as nothing is timed.
	Disk DiskConfig `json:"-"`

	Skews        []string    `json:"skew"`
	Segments     int         `json:"segments"`
	SegmentBytes units.Bytes `json:"segment"`
	RecordBytes  units.Bytes `json:"bs"`
	// Live is the part of the segments, less the log's reserve, that live records take
	// with what lies around them.
	Live float64 `json:"live"`
	// Warmup is how much is overwritten before the first round, in sizes of the device.
	Warmup float64 `json:"warmup"`
	Rounds int     `json:"rounds"` // each overwrites one size of the device
	Seed   uint64  `json:"seed"`

	Progress Progress `json:"-"`
}

func (c *CleanConfig) check() error {
	for _, s := range c.Skews {
		if s != SkewUniform && s != SkewHot {
			return cfs.Errorf("--skew", cfs.Usage, "%q is neither %s nor %s", s, SkewUniform, SkewHot)
		}
	}
	switch {
	case len(c.Skews) == 0:
		return cfs.Errorf("--skew", cfs.Usage, "names neither %s nor %s", SkewUniform, SkewHot)
	case c.Segments < leastCleanSegments:
		return cfs.Errorf("--segments", cfs.Usage, "%d, want at least %d", c.Segments, leastCleanSegments)
	case !(c.Live > 0 && c.Live < 1):
		return cfs.Errorf("--live", cfs.Usage, "%g, want more than 0 and less than 1", c.Live)
	case !(c.Warmup >= 0 && c.Warmup <= maxRounds):
		return cfs.Errorf("--warmup", cfs.Usage, "%g, want 0 to %d", c.Warmup, maxRounds)
	case c.SegmentBytes == 0:
		return cfs.Errorf("--segment-size", cfs.Usage, "is not given")
	}
	return errors.Join(checkSegment(c.SegmentBytes), checkRecord(int(c.RecordBytes)), checkRounds(c.Rounds))
}

func (c *CleanConfig) deviceBytes() int64 {
	return nvme.HeaderAreaBytes + int64(c.Segments)*int64(c.SegmentBytes)
}

// BenchClean fills a log, overwrites records (puts a new one, deletes the old one)
// until the cleaner's work is steady, and counts what is written from then on.
// Rows have the labels skew and bs.
func BenchClean(ctx context.Context, cfg CleanConfig) (*Report, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	rep := newReport("clean", "memory")
	for _, skew := range cfg.Skews {
		row := rep.row(Labels{"skew": skew, "bs": cfg.RecordBytes.String()}, nil)
		if err := cleanRow(ctx, &cfg, skew, row, rep); err != nil {
			return nil, err
		}
	}
	return rep.finish(), nil
}

// cleanRow fills one row, on a device of its own.
func cleanRow(ctx context.Context, cfg *CleanConfig, skew string, row *Row, rep *Report) (err error) {
	rc := rigConfig{
		segmentBytes: uint32(cfg.SegmentBytes), format: true, limitBytes: cfg.deviceBytes(),
		bufferBytes: cleanWorkers * (iopath.Headroom + int(cfg.RecordBytes)),
	}
	if cfg.Disk.Path == "" {
		dev, err := newMemoryDevice(cfg.deviceBytes())
		if err != nil {
			return err
		}
		rc.memory = dev
	} else {
		cfg.Disk.SizeBytes, cfg.Disk.Sparse = cfg.deviceBytes(), true
		d, err := openDisk(ctx, cfg.Disk, forLog, cfg.Progress)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.close()) }()
		rep.Device, rc.path = d.path, d.path
	}
	rig, err := openRig(rc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.close()) }()
	if err := rig.openLog(); err != nil {
		return err
	}
	c := newCleaning(cfg, skew, rig)
	if err := c.begin(ctx); err != nil {
		return err
	}
	for i := range cfg.Rounds {
		cfg.Progress.say("%s, round %d of %d: overwriting the device once", skew, i+1, cfg.Rounds)
		v, err := c.round(ctx)
		if err != nil {
			return err
		}
		row.Rounds = append(row.Rounds, v)
	}
	return nil
}

// cleaning is one row of BenchClean at work.
type cleaning struct {
	cfg  *CleanConfig
	hot  bool
	rig  *logRig
	live []atomic.Uint64 // number of the record at each place
	last atomic.Uint64   // number
}

func newCleaning(cfg *CleanConfig, skew string, rig *logRig) *cleaning {
	st := rig.log.Stats()
	most := st.CapacityBytes / int64(cfg.RecordBytes)
	return &cleaning{cfg: cfg, hot: skew == SkewHot, rig: rig, live: make([]atomic.Uint64, most)}
}

// begin fills every place, and overwrites until it is steady.
func (c *cleaning) begin(ctx context.Context) error {
	c.cfg.Progress.say("filling %g of the device", c.cfg.Live)
	var place atomic.Int64
	fill := func(*rand.Rand) (int, bool) {
		i := int(place.Add(1)) - 1
		if i%fillCheck == 0 {
			if st := c.rig.log.Stats(); float64(st.UsedBytes) >= c.cfg.Live*float64(st.CapacityBytes) {
				place.Add(int64(len(c.live))) // nobody goes on
				return i, false
			}
		}
		return i, i < len(c.live)
	}
	if err := c.work(ctx, fill); err != nil {
		return err
	}
	c.live = c.live[:c.rig.log.Stats().Records] // places were taken in order
	c.cfg.Progress.say("overwriting until it is steady")
	return c.overwrite(ctx, c.cfg.Warmup)
}

// round overwrites one size of the device and counts.
func (c *cleaning) round(ctx context.Context) (Values, error) {
	st, dev := c.rig.log.Stats(), c.rig.dev.counts()
	if err := c.overwrite(ctx, 1); err != nil {
		return nil, err
	}
	after, used := c.rig.log.Stats(), c.rig.dev.counts().since(dev)
	put := float64(after.PutBytes - st.PutBytes)
	v := Values{Amplification: 1 + float64(after.CopiedBytes-st.CopiedBytes)/put, Records: float64(after.Records)}
	addRatio(v, DeviceWritten, float64(used.writtenBytes), put)
	addRatio(v, RecordsPerHead, (put+float64(after.CopiedBytes-st.CopiedBytes))/float64(c.cfg.RecordBytes), float64(after.Writes-st.Writes))
	return v, nil
}

// overwrite overwrites records of so many sizes of the device.
func (c *cleaning) overwrite(ctx context.Context, sizes float64) error {
	left := new(atomic.Int64)
	left.Store(int64(sizes * float64(c.cfg.deviceBytes()) / float64(c.cfg.RecordBytes)))
	hot := max(1, int(float64(len(c.live))*hotRecords))
	return c.work(ctx, func(rng *rand.Rand) (int, bool) {
		if left.Add(-1) < 0 {
			return 0, false
		}
		if c.hot && rng.Float64() < hotShare {
			return rng.IntN(hot), true
		}
		if c.hot && hot < len(c.live) {
			return hot + rng.IntN(len(c.live)-hot), true
		}
		return rng.IntN(len(c.live)), true
	})
}

// work puts new records at the places that next names until it names none.
func (c *cleaning) work(ctx context.Context, next func(*rand.Rand) (int, bool)) error {
	bufs, release, err := c.rig.buffers(ctx, cleanWorkers, int(c.cfg.RecordBytes), c.cfg.Seed)
	if err != nil {
		return err
	}
	defer release()
	return inParallel(len(bufs), func(w int, stop *atomic.Bool) error {
		rng := rand.New(rand.NewPCG(c.cfg.Seed+c.last.Load(), uint64(w)))
		crcs := make([]byte, 0, int(c.cfg.RecordBytes)/cfs.BlockSize*4)
		old := make([]nvme.Key, 1)
		for !stop.Load() {
			if ctx.Err() != nil {
				return cfs.E("measure", cfs.Canceled, context.Cause(ctx))
			}
			place, ok := next(rng)
			if !ok {
				return nil
			}
			n := c.last.Add(1)
			if err := putWhole(ctx, c.rig.log, n, bufs[w], crcs); err != nil {
				return err
			}
			if was := c.live[place].Swap(n); was != 0 {
				old[0] = keyOf(was)
				c.rig.log.Delete(old)
			}
		}
		return nil
	})
}

// SkewNames are the skews, for help.
func SkewNames() string { return strings.Join([]string{SkewUniform, SkewHot}, ", ") }
