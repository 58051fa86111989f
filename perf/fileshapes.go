package perf

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/rawdisk"
)

// EngineCfs is the engine of rows that a mounted cluster gave.
const EngineCfs = "cfs"

// The states of rows that are compared with each other.
const (
	StateHealthy     = "healthy"
	StateDegraded    = "degraded"    // a node is dead
	StateSlow        = "slow"        // a node answers late
	StateFresh       = "fresh"       // a file as it was written
	StateOverwritten = "overwritten" // and after its overwrites
)

// dataFile is the file in the mount that is read by all shapes that read.
const dataFile = "data"

// data makes the file once.
func (b *fileBench) data(ctx context.Context) (string, error) {
	path := b.path(dataFile)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	b.cfg.Progress.say("writing %s, %s", path, b.cfg.FileBytes)
	_, err := writeFile(ctx, path, int64(b.cfg.FileBytes), b.cfg.Seed)
	return path, err
}

// fioRow adds a row of fio on the disk's file.
func (b *fileBench) fioRow(op string, job Job) (turn, error) {
	job.Path, job.SizeBytes, job.Seed = b.disk, int64(b.cfg.FileBytes), b.cfg.Seed
	run, err := fioTurn(job, b.rep)
	labels := Labels{"op": op, "bs": sizeText(job.BlockBytes), "depth": strconv.Itoa(job.Depth), "engine": EngineFio}
	if job.Sync {
		labels["sync"] = "dsync"
	}
	return turn{b.rep.row(labels, nil), run}, err
}

// row adds a row of the mount, compared with base by one metric.
func (b *fileBench) row(labels Labels, base *Row, compare Metric) *Row {
	row := b.rep.row(labels.with("engine", EngineCfs), base)
	row.compare = []Metric{compare}
	return row
}

func (b *fileBench) writeTurns(context.Context) ([]turn, error) {
	base, err := b.fioRow(ShapeWrite, Job{RW: Write, BlockBytes: largeBytes, Depth: largeDepth})
	if err != nil {
		return nil, err
	}
	ours := turn{b.row(Labels{"op": ShapeWrite, "bs": sizeText(largeBytes)}, base.row, BytesPerSecond), func(ctx context.Context) (Values, error) {
		path := b.path("written")
		v, err := writeFile(ctx, path, int64(b.cfg.FileBytes), b.cfg.Seed+1)
		if err != nil {
			return nil, err
		}
		if err := os.Remove(path); err != nil {
			return nil, cfs.E("remove "+path, cfs.KindOf(err), err)
		}
		return v, nil
	}}
	return []turn{base, ours}, nil
}

func (b *fileBench) readTurns(ctx context.Context) ([]turn, error) {
	path, err := b.data(ctx)
	if err != nil {
		return nil, err
	}
	base, err := b.fioRow(ShapeRead, Job{RW: Read, BlockBytes: largeBytes, Depth: largeDepth})
	if err != nil {
		return nil, err
	}
	ours := turn{b.row(Labels{"op": ShapeRead, "bs": sizeText(largeBytes), "state": StateHealthy}, base.row, BytesPerSecond),
		func(ctx context.Context) (Values, error) { return b.coldRead(ctx, path) }}
	return []turn{base, ours}, nil
}

// degradedTurns compares with the healthy reads, which it takes itself where nobody else does.
func (b *fileBench) degradedTurns(ctx context.Context) ([]turn, error) {
	var turns []turn
	if !b.cfg.has(ShapeRead) {
		var err error
		if turns, err = b.readTurns(ctx); err != nil {
			return nil, err
		}
	}
	healthy, ok := b.rep.find(Labels{"op": ShapeRead, "state": StateHealthy})
	if !ok {
		return nil, cfs.Errorf("compare", cfs.Invalid, "there is no healthy read")
	}
	row := b.row(Labels{"op": ShapeRead, "bs": sizeText(largeBytes), "state": StateDegraded}, healthy, BytesPerSecond)
	return append(turns, turn{row, func(ctx context.Context) (Values, error) { return b.degradedRead(ctx, b.path(dataFile)) }}), nil
}

// degradedRead is a cold read while a node is dead.
func (b *fileBench) degradedRead(ctx context.Context, path string) (Values, error) {
	node, err := b.cluster.follower(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.cluster.kill(ctx, node); err != nil {
		return nil, err
	}
	v, err := b.coldRead(ctx, path)
	if err != nil {
		return nil, err
	}
	rebuilt, err := b.cluster.mountCounter(ctx, "shards_reconstructed_total")
	if err == nil && rebuilt == 0 {
		err = cfs.Errorf("read with a node dead", cfs.Invalid, "nothing was reconstructed: the node had no shard that was read")
	}
	if err != nil {
		return nil, err
	}
	if err := b.cluster.restart(ctx, node); err != nil {
		return nil, err
	}
	return v, b.cluster.remount(ctx)
}

// coldRead reads a file whole, of which nothing is cached.
func (b *fileBench) coldRead(ctx context.Context, path string) (Values, error) {
	if b.cluster == nil {
		if err := dropCached(path); err != nil {
			return nil, err
		}
		return readFile(ctx, path)
	}
	if err := b.cluster.remount(ctx); err != nil {
		return nil, err
	}
	v, err := readFile(ctx, path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, cfs.E("read "+path, cfs.KindOf(err), err)
	}
	fetched, err := b.cluster.mountCounter(ctx, "bytes_fetched_total")
	if err == nil && fetched < float64(st.Size()) {
		err = cfs.Errorf("read "+path, cfs.Invalid, "%.0f bytes came from devices, it has %d: the read was not cold", fetched, st.Size())
	}
	return v, err
}

func (b *fileBench) randReadTurns(ctx context.Context) ([]turn, error) {
	path, err := b.data(ctx)
	if err != nil {
		return nil, err
	}
	job := Job{RW: RandRead, BlockBytes: smallBytes, Depth: randDepth, Runtime: time.Duration(b.cfg.Runtime)}
	base, err := b.fioRow(ShapeRandRead, job)
	if err != nil {
		return nil, err
	}
	job.Path, job.SizeBytes, job.Seed = path, int64(b.cfg.FileBytes), b.cfg.Seed
	run, err := fioTurn(job, b.rep)
	labels := Labels{"op": ShapeRandRead, "bs": sizeText(smallBytes), "depth": strconv.Itoa(randDepth)}
	return []turn{base, {b.row(labels, base.row, IOPS), run}}, err
}

// slowTurns takes the latencies of single reads, healthy and with a node slowed.
func (b *fileBench) slowTurns(ctx context.Context) ([]turn, error) {
	path, err := b.data(ctx)
	if err != nil {
		return nil, err
	}
	node, err := b.cluster.follower(ctx)
	if err != nil {
		return nil, err
	}
	b.rep.note("%s: node %d answers reads of shards %s late; its share is counted by itself, healthy it is that of the reads whose bytes it holds", StateSlow, node, slowBy)
	labels := Labels{"op": ShapeSlow, "bs": sizeText(smallBytes), "depth": "1"}
	healthy := b.row(labels.with("state", StateHealthy), nil, P99)
	slowed := b.row(labels.with("state", StateSlow), healthy, P99)
	reads := func(ctx context.Context) (Values, error) {
		seed := b.cfg.Seed + uint64(len(healthy.Rounds)+len(slowed.Rounds))<<32 // other places each time
		return b.sharedReads(ctx, path, node, seed)
	}
	return []turn{{healthy, reads}, {slowed, func(ctx context.Context) (Values, error) {
		if err := b.cluster.delay(ctx, node, slowBy); err != nil {
			return nil, err
		}
		v, err := reads(ctx)
		return v, errors.Join(err, b.cluster.delay(ctx, node, 0))
	}}}, nil
}

// sharedReads are single small reads, and how many of them a node had a part in.
func (b *fileBench) sharedReads(ctx context.Context, path string, node int, seed uint64) (Values, error) {
	before, err := b.cluster.shardReads(ctx, node)
	if err != nil {
		return nil, err
	}
	res, err := rawdisk.RunFio(ctx, b.fio, rawdisk.Job{
		Path: path, RW: RandRead, SizeBytes: int64(b.cfg.FileBytes), BlockBytes: smallBytes, Depth: 1,
		Runtime: time.Duration(b.cfg.Runtime), Seed: seed,
	})
	if err != nil {
		return nil, err
	}
	after, err := b.cluster.shardReads(ctx, node)
	return Values{
		IOPS: res.OpsPerSecond, P50: micros(res.P50), P99: micros(res.P99), P999: micros(res.P999),
		Reads: float64(res.Ops), SlowShare: (after - before) / float64(res.Ops),
	}, err
}

func (b *fileBench) syncWriteTurns(ctx context.Context) ([]turn, error) {
	base, err := b.fioRow(ShapeSyncWrite, Job{RW: RandWrite, BlockBytes: smallBytes, Depth: 1, Sync: true, Runtime: time.Duration(b.cfg.Runtime)})
	if err != nil {
		return nil, err
	}
	path, size := b.path("synced"), min(int64(b.cfg.FileBytes), syncFileBytes)
	if _, err := writeFile(ctx, path, size, b.cfg.Seed+2); err != nil {
		return nil, err
	}
	row := b.row(Labels{"op": ShapeSyncWrite, "bs": sizeText(smallBytes), "depth": "1", "sync": "fsync"}, base.row, IOPS)
	return []turn{base, {row, func(ctx context.Context) (v Values, err error) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, cfs.E("open "+path, cfs.KindOf(err), err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		places := newPlaces(size, b.cfg.Seed+uint64(len(row.Rounds)))
		return drive(ctx, []step{func() (int, error) {
			err := places.write(f)
			if err == nil {
				err = f.Sync()
			}
			return 1, err
		}}, smallBytes, time.Duration(b.cfg.Runtime))
	}}}, nil
}

// places are random small writes to a file, each of other bytes.
type places struct {
	rng    *rand.Rand
	blocks int64
	bytes  []byte
}

func newPlaces(sizeBytes int64, seed uint64) *places {
	p := &places{rng: rand.New(rand.NewPCG(seed, 1)), blocks: sizeBytes / smallBytes, bytes: make([]byte, largeBytes)}
	fill(p.bytes, seed)
	return p
}

func (p *places) write(f *os.File) error {
	from := p.rng.IntN(len(p.bytes) - smallBytes)
	_, err := f.WriteAt(p.bytes[from:from+smallBytes], p.rng.Int64N(p.blocks)*smallBytes)
	return err
}

// writeFile writes a new file in order and fsyncs it. The time is until that returns.
func writeFile(ctx context.Context, path string, size int64, seed uint64) (Values, error) {
	chunk := make([]byte, largeBytes)
	fill(chunk, seed)
	rate, err := rawdisk.SeqWrite(ctx, path, size, chunk)
	return Values{BytesPerSecond: rate}, err
}

// readFile reads a file from its start to its end.
func readFile(ctx context.Context, path string) (Values, error) {
	rate, err := rawdisk.SeqRead(ctx, path)
	return Values{BytesPerSecond: rate}, err
}

// dropCached has the kernel forget a file's pages.
func dropCached(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return cfs.E("open "+path, cfs.KindOf(err), err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return cfs.E("drop what is cached of "+path, cfs.KindOf(err), err)
	}
	return nil
}
