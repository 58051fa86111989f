package test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

const (
	// modelWorkers write at the same time, each to filesEach files of its own.
	modelWorkers = 4
	filesEach    = 3
	// maxModelFile bounds a file, in bytes: a full stripe and a bit.
	maxModelFile = 5 << 20
	// maxFailures bounds the errors in a row that a worker puts up with.
	maxFailures = 200
)

var (
	seedFlag  = flag.Uint64("model.seed", 0, "what decides the model's operations and faults; 0: the clock")
	chaosFlag = flag.Duration("chaos.time", 0, "how long each chaos test goes on breaking things; 0: the short form")
)

// chaosTime is how long a test goes on.
func chaosTime(short time.Duration) time.Duration {
	if *chaosFlag > 0 {
		return *chaosFlag
	}
	return short
}

// newSeed is the seed of a test, which is logged: it is seen when the test fails.
func newSeed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) >> 10 & 0xffffffff
	}
	t.Logf("-model.seed %d", seed)
	return seed
}

func newRand(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// model is files whose every acknowledged byte is known. Its workers operate on them
// through a mount; what they may find, and must not, follows from what was acknowledged.
type model struct {
	t       *testing.T
	point   string
	dir     string
	workers []*worker
	stopped chan struct{}
	running sync.WaitGroup
	// bearable says which errors may meet an operation; nil: none.
	bearable func(error) bool
	// doubtful says that what was not synced may be lost at any time, as it is told later.
	doubtful bool
	// pause lies between two operations of a worker.
	pause time.Duration

	mu    sync.Mutex
	ops   map[string]int
	fails map[string]int
}

// worker is one writer and its files.
type worker struct {
	m     *model
	rng   *rand.Rand
	root  *os.Root
	files []*fileModel
	open  map[*fileModel]*os.File
	old   []*fileModel // removed as far as is known: there with what they held, or not at all
	gone  []string     // certainly removed
	made  int
	id    int
}

// newModel makes a directory below the mount for the model's files.
func newModel(t *testing.T, point string, seed uint64) *model {
	t.Helper()
	m := &model{t: t, point: point, dir: fmt.Sprintf("model-%d", seed), ops: map[string]int{}, fails: map[string]int{}}
	if err := os.Mkdir(filepath.Join(point, m.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syncDir(point); err != nil {
		t.Fatal(err)
	}
	for i := range modelWorkers {
		m.workers = append(m.workers, &worker{m: m, id: i, rng: newRand(seed, uint64(i)), open: map[*fileModel]*os.File{}})
	}
	return m
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// run starts the workers.
func (m *model) run() {
	m.t.Helper()
	m.stopped = make(chan struct{})
	for _, w := range m.workers {
		root, err := os.OpenRoot(filepath.Join(m.point, m.dir))
		if err != nil {
			m.t.Fatal(err)
		}
		w.root = root
		m.running.Go(w.run)
	}
}

// stop ends the workers and closes what they have open.
func (m *model) stop() {
	m.t.Helper()
	close(m.stopped)
	m.running.Wait()
	for _, w := range m.workers {
		for _, f := range w.files {
			w.close(f)
		}
		w.root.Close()
	}
	m.t.Logf("the model's operations: %v; bearable failures: %v", m.ops, m.fails)
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// total is how many operations there were.
func (m *model) total() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.ops {
		n += k
	}
	return n
}

// flushed notes that the mount was unmounted in order.
func (m *model) flushed() {
	for _, w := range m.workers {
		for _, f := range append(w.files, w.old...) {
			f.synced()
		}
	}
}

// crashed notes that the mount has died.
func (m *model) crashed() {
	for _, w := range m.workers {
		for _, f := range append(w.files, w.old...) {
			f.crashed()
		}
	}
}

// remount gives the model a mount without anything cached.
func (m *model) remount(mt *cluster.Mount) {
	m.t.Helper()
	remount(m.t, mt)
	m.flushed()
}

// verify reads every file through the mount and compares.
func (m *model) verify(when string) {
	m.t.Helper()
	root, err := os.OpenRoot(filepath.Join(m.point, m.dir))
	if err != nil {
		m.t.Fatal(err)
	}
	defer root.Close()
	var bytesRead int64
	files := 0
	check := func(f *fileModel, mayBeGone bool) bool {
		got, err := readWhole(root, f.name)
		if errors.Is(err, os.ErrNotExist) && mayBeGone {
			return false
		}
		if err == nil {
			err = f.found(got)
		}
		if err != nil {
			m.t.Errorf("%s: %s: %v", when, f.name, err)
			m.t.Logf("wrong: %s", f.name)
		}
		files, bytesRead = files+1, bytesRead+int64(len(got))
		return true
	}
	for _, w := range m.workers {
		for _, f := range w.files {
			check(f, false)
		}
		for _, f := range w.old {
			if !check(f, true) {
				w.gone = append(w.gone, f.name)
				continue
			}
			if err := root.Remove(f.name); err != nil && !m.bear("remove", err) {
				m.t.Errorf("%s: %v", when, err)
			}
		}
		w.old = nil
		for _, name := range w.gone {
			if _, err := root.Stat(name); !errors.Is(err, os.ErrNotExist) {
				m.t.Errorf("%s: %s was removed and is there: %v", when, name, err)
			}
		}
		w.gone = nil
	}
	m.t.Logf("%s: %d files of %d bytes in all were read and compared", when, files, bytesRead)
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// bear counts an error and reports whether it may happen.
func (m *model) bear(op string, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bearable == nil || !m.bearable(err) {
		return false
	}
	m.fails[op]++
	return true
}

func (w *worker) ending() bool {
	select {
	case <-w.m.stopped:
		return true
	default:
		return false
	}
}

// run works until the model is stopped or something fails that may not.
func (w *worker) run() {
	failures := 0
	for !w.ending() {
		time.Sleep(w.m.pause)
		for len(w.files) < filesEach && !w.ending() {
			if err := w.create(); err != nil {
				if !w.m.bear("create", err) {
					w.m.t.Errorf("worker %d: create: %v", w.id, err)
					return
				}
				break
			}
		}
		if len(w.files) == 0 {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		f := w.files[w.rng.IntN(len(w.files))]
		op, do := w.choose(f)
		err := do(f)
		w.m.mu.Lock()
		w.m.ops[op]++
		w.m.mu.Unlock()
		if err == nil {
			failures = 0
			continue
		}
		var wrong *wrongBytes
		if errors.As(err, &wrong) || !w.m.bear(op, err) {
			w.m.t.Errorf("worker %d: %s %s: %v", w.id, op, f.name, err)
			return
		}
		if failures++; failures > maxFailures {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// wrongBytes is the error that is never bearable.
type wrongBytes struct{ err error }

func (e *wrongBytes) Error() string { return e.err.Error() }

type operation = func(*fileModel) error

// choose picks what is done next to a file.
func (w *worker) choose(f *fileModel) (string, operation) {
	if f.unsure() > maxVersions/2 {
		return "sync", w.sync
	}
	n := w.rng.IntN(100)
	for _, c := range []struct {
		share int
		name  string
		do    operation
	}{
		{28, "overwrite", w.overwrite},
		{12, "write", w.writeSome},
		{7, "sequential", w.sequential},
		{8, "append", w.append},
		{5, "shrink", w.shrink},
		{4, "grow", w.grow},
		{6, "punch", w.punch},
		{4, "zero", w.zero},
		{4, "allocate", w.allocate},
		{7, "copy", w.copyRange},
		{2, "remove", w.remove},
		{8, "read", w.read},
	} {
		if n < c.share {
			return c.name, c.do
		}
		n -= c.share
	}
	return "sync", w.sync
}

// file is the open file; it is opened when it is not.
func (w *worker) file(f *fileModel) (*os.File, error) {
	if o := w.open[f]; o != nil {
		return o, nil
	}
	o, err := w.root.OpenFile(f.name, os.O_RDWR, 0)
	if err == nil {
		w.open[f] = o
	}
	return o, err
}

// close closes a file, which may tell of what did not reach the cluster.
func (w *worker) close(f *fileModel) {
	o := w.open[f]
	if o == nil {
		return
	}
	delete(w.open, f)
	if err := o.Close(); err != nil {
		f.unsynced()
		if !w.m.bear("close", err) {
			w.m.t.Errorf("worker %d: close %s: %v", w.id, f.name, err)
		}
	}
}

// note records how a change ended. Its error may be that of an earlier write, of which
// a handle tells only once.
func (w *worker) note(f *fileModel, c change, err error) error {
	if err != nil {
		f.tried(c)
		f.unsynced()
		w.close(f)
		return err
	}
	f.done(c)
	return nil
}

// random is n bytes that are like no others.
func (w *worker) random(n int) []byte {
	var key [32]byte
	for i := range key {
		key[i] = byte(w.rng.Uint32())
	}
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

// write writes at an offset and notes how far that got.
func (w *worker) write(f *fileModel, off int64, data []byte) error {
	o, err := w.file(f)
	if err != nil {
		return err
	}
	_, err = o.WriteAt(data, off)
	return w.note(f, change{off: off, n: int64(len(data)), data: data, grow: off + int64(len(data))}, err)
}

// shown is what the file may look like to whoever reads it now.
func (w *worker) shown(f *fileModel) *image {
	if w.m.doubtful {
		return &f.lost
	}
	return &f.now
}

// somewhere is an offset in the file, or in a file of one block where it is empty.
func (w *worker) somewhere(f *fileModel) int64 {
	return w.rng.Int64N(max(f.now.most(), cfs.BlockSize))
}

func (w *worker) sync(f *fileModel) error {
	o, err := w.file(f)
	if err != nil {
		return err
	}
	if err := o.Sync(); err != nil {
		f.unsynced()
		return err
	}
	f.synced()
	return nil
}

func (w *worker) overwrite(f *fileModel) error {
	off := w.somewhere(f) / cfs.BlockSize * cfs.BlockSize
	if err := w.write(f, off, w.random(cfs.BlockSize)); err != nil {
		return err
	}
	return w.sync(f)
}

func (w *worker) writeSome(f *fileModel) error {
	return w.write(f, w.somewhere(f), w.random(1+w.rng.IntN(128<<10)))
}

func (w *worker) sequential(f *fileModel) error {
	n := 1 + w.rng.Int64N(maxModelFile)
	for off := int64(0); off < n; {
		piece := min(n-off, 256<<10)
		if err := w.write(f, off, w.random(int(piece))); err != nil {
			return err
		}
		off += piece
	}
	if w.rng.IntN(2) == 0 {
		return w.sync(f)
	}
	return nil
}

func (w *worker) append(f *fileModel) error {
	size, sure := w.shown(f).size()
	if !sure || size > maxModelFile {
		return w.sync(f)
	}
	o, err := w.root.OpenFile(f.name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	data := w.random(1 + w.rng.IntN(100<<10))
	_, err = o.Write(data)
	c := change{off: size, n: int64(len(data)), data: data, grow: size + int64(len(data))}
	if cerr := o.Close(); err == nil && cerr != nil {
		f.tried(c)
		f.unsynced()
		return cerr
	}
	return w.note(f, c, err)
}

func (w *worker) shrink(f *fileModel) error {
	return w.truncate(f, w.rng.Int64N(f.now.most()+1))
}

func (w *worker) grow(f *fileModel) error {
	return w.truncate(f, min(maxModelFile, f.now.most()+w.rng.Int64N(1<<20)))
}

func (w *worker) truncate(f *fileModel, size int64) error {
	o, err := w.file(f)
	if err != nil {
		return err
	}
	return w.note(f, change{off: size, n: -1, trunc: true}, o.Truncate(size))
}

// fallocate calls fallocate(2) until no signal interrupts it.
func fallocate(o *os.File, mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(int(o.Fd()), mode, off, n); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (w *worker) punch(f *fileModel) error {
	o, err := w.file(f)
	if err != nil {
		return err
	}
	off, n := w.somewhere(f), 1+w.rng.Int64N(512<<10)
	return w.note(f, change{off: off, n: n}, fallocate(o, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n))
}

func (w *worker) zero(f *fileModel) error {
	o, err := w.file(f)
	if err != nil {
		return err
	}
	off, n := w.somewhere(f), 1+w.rng.Int64N(256<<10)
	return w.note(f, change{off: off, n: n, grow: off + n}, fallocate(o, unix.FALLOC_FL_ZERO_RANGE, off, n))
}

func (w *worker) allocate(f *fileModel) error {
	o, err := w.file(f)
	if err != nil {
		return err
	}
	off, n := w.somewhere(f), 1+w.rng.Int64N(256<<10)
	return w.note(f, change{off: off, grow: off + n}, fallocate(o, 0, off, n))
}

// copyRange copies a range that is known from another of the worker's files.
func (w *worker) copyRange(f *fileModel) error {
	from := w.files[w.rng.IntN(len(w.files))]
	size, sure := w.shown(from).size()
	if from == f || !sure || size == 0 {
		return w.sync(f)
	}
	src := w.rng.Int64N(size)
	n := 1 + w.rng.Int64N(min(size-src, 2<<20))
	dst := w.rng.Int64N(min(f.now.most(), maxModelFile-n) + 1)
	if w.rng.IntN(2) == 0 { // as whole blocks
		src, dst = src/cfs.BlockSize*cfs.BlockSize, dst/cfs.BlockSize*cfs.BlockSize
	}
	data, sure := w.shown(from).known(src, n)
	if !sure {
		return w.sync(from)
	}
	in, err := w.file(from)
	if err != nil {
		return err
	}
	out, err := w.file(f)
	if err != nil {
		return err
	}
	for len(data) > 0 {
		at, to := src, dst
		k, err := unix.CopyFileRange(int(in.Fd()), &at, int(out.Fd()), &to, len(data), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && k == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return w.note(f, change{off: dst, n: int64(len(data)), data: data, grow: dst + int64(len(data))}, err)
		}
		f.done(change{off: dst, n: int64(k), data: data[:k], grow: dst + int64(k)})
		src, dst, data = src+int64(k), dst+int64(k), data[k:]
	}
	return nil
}

func (w *worker) read(f *fileModel) error {
	o, err := w.file(f)
	if err != nil {
		return err
	}
	off := w.somewhere(f)
	buf := make([]byte, 1+w.rng.IntN(1<<20))
	n, err := o.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	shown := w.shown(f)
	if size, sure := shown.size(); sure && int64(n) != min(int64(len(buf)), max(0, size-off)) {
		return &wrongBytes{fmt.Errorf("%d bytes at %d of a file of %d", n, off, size)}
	}
	if err := shown.compare(off, buf[:n]); err != nil {
		return &wrongBytes{err}
	}
	return nil
}

// create makes a new file under a name of its own.
func (w *worker) create() error {
	f := newFileModel(fmt.Sprintf("w%d-%d", w.id, w.made))
	w.made++
	o, err := w.root.OpenFile(f.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		w.old = append(w.old, f) // it may have been made
		return err
	}
	w.open[f] = o
	if err := w.syncRoot(); err != nil {
		w.close(f)
		w.old = append(w.old, f)
		return err
	}
	w.files = append(w.files, f)
	return nil
}

func (w *worker) syncRoot() error {
	d, err := w.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (w *worker) remove(f *fileModel) error {
	for i, other := range w.files {
		if other == f {
			w.files = append(w.files[:i], w.files[i+1:]...)
			break
		}
	}
	w.close(f)
	err := w.root.Remove(f.name)
	if err == nil {
		err = w.syncRoot()
	}
	if err != nil {
		w.old = append(w.old, f)
		return err
	}
	w.gone = append(w.gone, f.name)
	return nil
}

// Without any fault: what is read cold is what was written.
func TestModel(t *testing.T) {
	c := start(t, nil)
	mt := mount(t, c, "mnt")
	m := newModel(t, mt.Point, newSeed(t))
	for range 2 {
		m.run()
		time.Sleep(chaosTime(3 * time.Second))
		m.stop()
		m.remount(mt)
		m.verify("remounted")
	}
	sameSpace(t, c, mt)
	settle(t, c, mt)
}
