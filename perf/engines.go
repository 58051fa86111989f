package perf

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/rawdisk"
	"github.com/claudefs/claudefs/iopath"
)

// The engines of BenchIO.
const (
	EngineNative      = "native"       // iopath.Ring, shared by as many goroutines as the depth
	EngineNativeBatch = "native-batch" // iopath.Ring with a thread of its own, by few goroutines with large batches
	EngineIouringGo   = "iouring-go"   // the reference engine, where it is built in
	EnginePread       = "pread"        // pread and pwrite in goroutines
	EngineFio         = "fio"          // fio with io_uring
)

// engineTable says how each engine is opened; fio is no engine of this process.
var engineTable = []struct {
	name string
	open func(ctx context.Context, job *Job) (*loaded, error)
}{
	{EngineNative, openNative},
	{EngineNativeBatch, openNativeBatch},
	{EngineIouringGo, openIouringGo},
	{EnginePread, openPread},
	{EngineFio, nil},
}

// EngineNames are the names of all engines.
func EngineNames() []string {
	var names []string
	for _, e := range engineTable {
		names = append(names, e.name)
	}
	return names
}

// DefaultEngines are those that can run here: all, less iouring-go where it is not
// built in and fio where it is not installed.
func DefaultEngines() []string {
	return slices.DeleteFunc(EngineNames(), func(name string) bool {
		_, err := rawdisk.FindFio()
		return name == EngineIouringGo && !hasIouringGo || name == EngineFio && err != nil
	})
}

func checkEngines(names []string) error {
	if len(names) == 0 {
		return cfs.Errorf("--engine", cfs.Usage, "names none of %s", strings.Join(EngineNames(), ", "))
	}
	for i, name := range names {
		if !slices.Contains(EngineNames(), name) {
			return cfs.Errorf("--engine", cfs.Usage, "%q is none of %s", name, strings.Join(EngineNames(), ", "))
		}
		if slices.Contains(names[:i], name) {
			return cfs.Errorf("--engine", cfs.Usage, "%s stands there twice", name)
		}
	}
	return nil
}

// loaded is an engine with a job's file open.
type loaded struct {
	steps  []step
	closes []func() error // in the reverse order of opening
}

// later has f called by close.
func (l *loaded) later(f func() error) { l.closes = append(l.closes, f) }

func (l *loaded) close() error {
	var errs []error
	for i := len(l.closes) - 1; i >= 0; i-- {
		errs = append(errs, l.closes[i]())
	}
	l.closes = nil
	return errors.Join(errs...)
}

// openFile opens the job's file as the job wants it, with more flags.
func openFile(job *Job, flags int) (*os.File, error) {
	if job.writes() {
		flags |= os.O_RDWR
	}
	if !job.Buffered {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(job.Path, flags, 0)
	if err != nil {
		return nil, cfs.E("open "+job.Path, cfs.KindOf(err), err)
	}
	return f, nil
}

// arenaFor makes an arena with room for n buffers of size bytes, and more bytes.
func arenaFor(n, size, more int) (*iopath.Arena, error) {
	const page = cfs.BlockSize
	each := iopath.Headroom + (size+page-1)/page*page
	return iopath.NewArena(max(n*each+more, iopath.MinArenaBytes))
}

// ringConfig is a ring for so many operations in flight.
func ringConfig(depth int, arena *iopath.Arena) iopath.RingConfig {
	return iopath.RingConfig{Entries: depth, Arena: arena}
}

func openNative(ctx context.Context, job *Job) (*loaded, error) {
	return openEngine(ctx, job, 1, func(arena *iopath.Arena) (iopath.Engine, error) {
		return iopath.NewRing(ringConfig(job.Depth, arena))
	})
}

// batchWorkers is how many goroutines have a batch in flight: while the answers of one
// are taken the device works on the other's.
const batchWorkers = 2

func openNativeBatch(ctx context.Context, job *Job) (*loaded, error) {
	batch := (job.Depth + batchWorkers - 1) / batchWorkers
	return openEngine(ctx, job, batch, func(arena *iopath.Arena) (iopath.Engine, error) {
		cfg := ringConfig(job.Depth, arena)
		cfg.SingleIssuer = true
		return iopath.NewRing(cfg)
	})
}

// openEngine opens a job on an iopath.Engine that all workers share, each of which has
// a batch of so many operations in flight: together the job's depth.
func openEngine(ctx context.Context, job *Job, batch int, make func(*iopath.Arena) (iopath.Engine, error)) (l *loaded, err error) {
	l = &loaded{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	f, err := openFile(job, 0)
	if err != nil {
		return l, err
	}
	l.later(f.Close)
	arena, err := arenaFor(job.Depth, job.BlockBytes, 0)
	if err != nil {
		return l, err
	}
	l.later(arena.Close)
	eng, err := make(arena)
	if err != nil {
		return l, err
	}
	l.later(eng.Close)
	file, err := eng.RegisterFile(f)
	if err != nil {
		return l, err
	}
	l.later(func() error { return eng.UnregisterFile(file) })
	places := &offsets{job: job}
	for left, i := job.Depth, 0; left > 0; i++ {
		ops, err := batchOf(ctx, l, arena, job, min(batch, left))
		if err != nil {
			return l, err
		}
		l.steps = append(l.steps, engineStep(job, eng, file, ops, places.worker(i)))
		left -= len(ops)
	}
	return l, nil
}

// batchOf is a batch of n operations with their memory, which l gives back.
func batchOf(ctx context.Context, l *loaded, arena *iopath.Arena, job *Job, n int) ([]iopath.Transfer, error) {
	var ops []iopath.Transfer
	for range n {
		buf, err := arena.Get(ctx, job.BlockBytes)
		if err != nil {
			return nil, err
		}
		l.later(func() error { buf.Release(); return nil })
		fill(buf.Bytes(), job.Seed+uint64(len(l.closes)))
		ops = append(ops, iopath.Transfer{P: buf.Bytes(), Sync: job.Sync})
	}
	return ops, nil
}

// engineStep is a worker's operation, or batch of them.
func engineStep(job *Job, eng iopath.Engine, file iopath.File, ops []iopath.Transfer, place func() int64) step {
	if len(ops) == 1 && !job.writes() {
		return func() (int, error) {
			_, err := eng.Read(file, ops[0].P, place())
			return 1, err
		}
	}
	run := eng.ReadMany
	if job.writes() {
		run = eng.WriteMany
	}
	return func() (int, error) {
		for i := range ops {
			ops[i].Off = place()
		}
		return len(ops), run(file, ops)
	}
}
