package perf

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

const (
	// fillWorkers is how many goroutines put records: as many as a log takes at once.
	fillWorkers = 256
	// verifyRecords is how many records are read and compared after each start.
	verifyRecords = 256
	// afterwards is how many records are put before each further kill.
	afterwards = 10000
	// numberGap is between the numbers of one Fill and of the next: more than are on
	// their way when a process ends.
	numberGap = 1 << 32
	// maxOpenRecords bounds the records of a bench.
	maxOpenRecords = 100_000_000
)

// FillConfig puts records into a log.
type FillConfig struct {
	Path         string
	Format       bool // first
	SegmentBytes units.Bytes
	RecordBytes  units.Bytes
	First        uint64 // number of the first record
	Records      uint64 // how many
	// Abandon is called when they are durable, while more are being put and the log
	// is open: it ends the process. Nil to put no more and close the log.
	Abandon func() `json:"-"`
	// Progress is told how far it is.
	Progress Progress `json:"-"`
}

// Fill puts records into a log, whole and with their checksums.
func Fill(ctx context.Context, cfg FillConfig) (err error) {
	size := int(cfg.RecordBytes)
	if err := checkRecord(size); err != nil {
		return err
	}
	rig, err := openRig(rigConfig{
		path: cfg.Path, format: cfg.Format, segmentBytes: uint32(cfg.SegmentBytes),
		bufferBytes: fillWorkers * (iopath.Headroom + size),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.close()) }()
	if err := rig.openLog(); err != nil {
		return err
	}
	bufs, release, err := rig.buffers(ctx, fillWorkers, size, cfg.First)
	if err != nil {
		return err
	}
	defer release()
	f := &filling{cfg: &cfg, log: rig.log}
	return inParallel(len(bufs), func(w int, stop *atomic.Bool) error { return f.work(ctx, bufs[w], stop) })
}

func checkRecord(size int) error {
	if size < cfs.BlockSize || size > cfs.MaxShardSize || size%cfs.BlockSize != 0 {
		return cfs.Errorf("--bs", cfs.Usage, "records of %d bytes: want whole blocks of %d, at most %d", size, cfs.BlockSize, cfs.MaxShardSize)
	}
	return nil
}

// filling is one Fill.
type filling struct {
	cfg   *FillConfig
	log   *nvme.Log
	begun atomic.Uint64
	put   atomic.Uint64 // of those that are asked for
	more  atomic.Uint64 // beyond, since all those were durable
}

// work puts records until there are enough; with Abandon, until that has been called.
func (f *filling) work(ctx context.Context, buf *iopath.Buf, stop *atomic.Bool) error {
	crcs := make([]byte, 0, len(buf.Bytes())/cfs.BlockSize*4)
	for !stop.Load() {
		if ctx.Err() != nil {
			return cfs.E("fill "+f.cfg.Path, cfs.Canceled, context.Cause(ctx))
		}
		i := f.begun.Add(1) - 1
		if i >= f.cfg.Records && f.cfg.Abandon == nil {
			return nil
		}
		if err := putWhole(ctx, f.log, f.cfg.First+i, buf, crcs); err != nil {
			return err
		}
		if i < f.cfg.Records {
			if n := f.put.Add(1); n%(f.cfg.Records/100+1) == 0 {
				f.cfg.Progress.say("putting records: %d of %d", n, f.cfg.Records)
			}
		} else if f.put.Load() == f.cfg.Records && f.more.Add(1) == fillWorkers {
			f.cfg.Abandon()
			stop.Store(true) // where Abandon returns, as in tests
		}
	}
	return nil
}

// putWhole puts the n-th record with the checksums of its bytes; crcs is memory for them.
func putWhole(ctx context.Context, log *nvme.Log, n uint64, buf *iopath.Buf, crcs []byte) error {
	stamp(buf.Bytes(), n)
	key := keyOf(n)
	crcs = ec.BlockCRCs(crcs[:0], key.Stripe, key.Shard, 0, buf.Bytes())
	return log.Put(ctx, recordOf(n, len(buf.Bytes())), crcs, buf)
}

// OpenConfig is a bench of the start of a log.
type OpenConfig struct {
	Disk DiskConfig `json:"-"` // its size follows from the records

	Records      uint64      `json:"records"`
	RecordBytes  units.Bytes `json:"bs"`
	SegmentBytes units.Bytes `json:"segment"`
	Unclean      bool        `json:"unclean"` // start it after a kill, too
	Rounds       int         `json:"rounds"`
	Seed         uint64      `json:"seed"`

	// Kill runs Fill in a process of its own that ends where Abandon is called.
	Kill     func(ctx context.Context, cfg FillConfig) error `json:"-"`
	Progress Progress                                        `json:"-"`
}

// check refuses what cannot be run. The kind is Usage.
func (c *OpenConfig) check() error {
	if c.Records < 1 || c.Records > maxOpenRecords {
		return cfs.Errorf("--records", cfs.Usage, "%d, want 1 to %d", c.Records, maxOpenRecords)
	}
	if err := errors.Join(checkRecord(int(c.RecordBytes)), checkSegment(c.SegmentBytes)); err != nil {
		return err
	}
	return checkRounds(c.Rounds)
}

// deviceBytes is a device with room for all records, their headers and a reserve.
func (c *OpenConfig) deviceBytes() int64 {
	records := int64(c.Records) + int64(c.Rounds)*2*afterwards
	segment := int64(c.SegmentBytes)
	if segment == 0 {
		segment = nvme.DefaultSegmentBytes
	}
	return nvme.HeaderAreaBytes + (records*int64(c.RecordBytes)*5/4/segment+32)*segment
}

// BenchOpen fills a log and measures OpenLog. Rows have the labels records and
// state: closed, and killed while records were being put. It fails when a start
// loses a record that was acknowledged, or one reads wrong.
func BenchOpen(ctx context.Context, cfg OpenConfig) (rep *Report, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Disk.SizeBytes, cfg.Disk.Sparse = cfg.deviceBytes(), true
	d, err := openDisk(ctx, cfg.Disk, forLog, cfg.Progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	b := &openBench{cfg: &cfg, disk: d, rep: newReport("open", d.path)}
	for _, text := range d.notes {
		b.rep.note("%s", text)
	}
	labels := Labels{"records": strconv.FormatUint(cfg.Records, 10), "bs": cfg.RecordBytes.String()}
	var turns []turn
	if cfg.Unclean {
		turns = append(turns, turn{b.rep.row(labels.with("state", "killed"), nil), b.killed})
	} else if err := b.fill(ctx, false); err != nil {
		return nil, err
	}
	turns = append(turns, turn{b.rep.row(labels.with("state", "closed"), nil), b.open})
	if err := interleave(ctx, cfg.Rounds, turns, cfg.Progress); err != nil {
		return nil, err
	}
	return b.rep.finish(), nil
}

// openBench is an OpenConfig at work.
type openBench struct {
	cfg   *OpenConfig
	disk  *disk
	rep   *Report
	acked []numbers
}

// numbers are those of the records that one Fill has put.
type numbers struct{ first, n uint64 }

// fill puts what is to be there: all records the first time, some more later.
func (b *openBench) fill(ctx context.Context, kill bool) error {
	next := numbers{1, b.cfg.Records}
	if n := len(b.acked); n > 0 {
		next = numbers{b.acked[n-1].first + b.acked[n-1].n + numberGap, afterwards}
	}
	cfg := FillConfig{
		Path: b.disk.path, Format: len(b.acked) == 0, SegmentBytes: b.cfg.SegmentBytes, RecordBytes: b.cfg.RecordBytes,
		First: next.first, Records: next.n, Progress: b.cfg.Progress,
	}
	run := Fill
	if kill {
		run = b.cfg.Kill
	}
	if err := run(ctx, cfg); err != nil {
		return err
	}
	b.acked = append(b.acked, next)
	return nil
}

// killed is a round of the row of that name.
func (b *openBench) killed(ctx context.Context) (Values, error) {
	if err := b.fill(ctx, true); err != nil {
		return nil, err
	}
	return b.open(ctx)
}

// open is one start, and a close behind it.
func (b *openBench) open(ctx context.Context) (v Values, err error) {
	rig, err := openRig(rigConfig{path: b.disk.path})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rig.close()) }()
	before, heap := rig.dev.counts(), heapBytes()
	begun := time.Now()
	if err := rig.openLog(); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	used := rig.dev.counts().since(before)
	n := rig.log.Stats().Records
	v = Values{
		OpenSeconds: took.Seconds(), Records: float64(n), OpenReadBytes: float64(used.readBytes),
		HeapPerRecord: float64(heapBytes()-heap) / float64(max(n, 1)),
	}
	return v, errors.Join(b.allThere(rig.log), rig.verify(ctx, b.sample()))
}

// allThere reports the loss of a record that was acknowledged.
func (b *openBench) allThere(log *nvme.Log) error {
	for _, r := range b.acked {
		for i := range r.n {
			if _, ok := log.Has(keyOf(r.first + i)); !ok {
				return cfs.Errorf("open "+b.disk.path, cfs.Corrupt, "record %s was acknowledged and is gone", keyOf(r.first+i))
			}
		}
	}
	return nil
}

// sample is some of the records that were acknowledged.
func (b *openBench) sample() []nvme.Record {
	rng := rand.New(rand.NewPCG(b.cfg.Seed, uint64(len(b.acked))))
	var out []nvme.Record
	for range verifyRecords {
		r := b.acked[rng.IntN(len(b.acked))]
		out = append(out, recordOf(r.first+rng.Uint64N(r.n), int(b.cfg.RecordBytes)))
	}
	return out
}

// heapBytes is the live heap.
func heapBytes() int64 {
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return int64(mem.HeapAlloc)
}
