package kv

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of a Pebble store.
const (
	// DefaultCacheBytes bounds the block cache.
	DefaultCacheBytes = 64 << 20
	// memtableBytes is what gathers in memory before it is flushed; two may exist.
	// Small enough to stay in the processor's caches: every new name is looked for
	// in vain there, and in 32 MiB that was a third of applying a create.
	memtableBytes = 8 << 20
	maxOpenFiles  = 512
	// warmBytes bounds the keys that batches keep at hand, warmOverhead is what each costs besides its bytes.
	warmBytes    = 8 << 20
	warmOverhead = 64
	bloomBits    = 10
)

// Options configure a Pebble store.
type Options struct {
	CacheBytes int64 // 0: DefaultCacheBytes
	Logger     *slog.Logger
}

type pebbleStore struct {
	db   *pebble.DB
	dir  string
	warm warm
}

// OpenPebble opens the store in dir, or makes an empty one there. What is
// damaged is cfs.Corrupt naming the directory.
func OpenPebble(dir string, opt Options) (Store, error) {
	op := "open state " + dir
	if opt.CacheBytes == 0 {
		opt.CacheBytes = DefaultCacheBytes
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	cache := pebble.NewCache(opt.CacheBytes)
	defer cache.Unref()
	o := &pebble.Options{
		Cache:              cache,
		DisableWAL:         true,
		EventListener:      quiet{opt.Logger, dir}.events(),
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             quiet{opt.Logger, dir},
		MaxOpenFiles:       maxOpenFiles,
		MemTableSize:       memtableBytes,
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBits)
	}
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, wrap("open state", dir, err)
	}
	return &pebbleStore{db: db, dir: dir}, nil
}

// wrap gives an error of Pebble its kind.
func wrap(op, dir string, err error) error {
	if err == nil {
		return nil
	}
	k := cfs.KindOf(err)
	if pebble.IsCorruptionError(err) {
		k = cfs.Corrupt
	}
	return cfs.E(op+" "+dir, k, err)
}

func (s *pebbleStore) NewBatch() Batch {
	return &pebbleBatch{s: s, b: s.db.NewIndexedBatch(), own: map[string][]byte{}, getter: getter{dir: s.dir}}
}

func (s *pebbleStore) View() View {
	return &pebbleView{s: s.db.NewSnapshot(), getter: getter{dir: s.dir}}
}

func (s *pebbleStore) Flush() error { return wrap("flush state", s.dir, s.db.Flush()) }

func (s *pebbleStore) Checkpoint(dir string) error {
	if err := s.Flush(); err != nil {
		return err
	}
	if err := s.db.Checkpoint(dir); err != nil {
		return wrap("checkpoint to", dir, err)
	}
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return wrap("checkpoint to", dir, err)
	}
	return wrap("checkpoint to", dir, errors.Join(unix.Fsync(int(parent.Fd())), parent.Close()))
}

func (s *pebbleStore) Close() error { return wrap("close state", s.dir, s.db.Close()) }

// source is what batches and snapshots of Pebble have in common.
type source interface {
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// scan keeps its iterator on its own stack, because fn may read, or scan again.
func (g *getter) scan(src source, lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	it, err := src.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return wrap("scan state", g.dir, err)
	}
	var fnErr error
	for ok := it.First(); ok; ok = it.Next() {
		var v []byte
		if v, err = it.ValueAndErr(); err != nil {
			break
		}
		more, ferr := fn(it.Key(), v)
		if fnErr = ferr; !more || ferr != nil {
			break
		}
	}
	if closeErr := it.Close(); err == nil { // it repeats the iterator's own error
		err = closeErr
	}
	if fnErr != nil {
		return fnErr
	}
	return wrap("scan state", g.dir, err)
}

// getter reads single keys into a buffer that the next read reuses.
type getter struct {
	dir string
	buf []byte
}

func (g *getter) take(v []byte, closer interface{ Close() error }, err error) ([]byte, bool, error) {
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, wrap("read state", g.dir, err)
	}
	g.buf = append(g.buf[:0], v...)
	return g.buf, true, wrap("read state", g.dir, closer.Close())
}

type pebbleView struct {
	s *pebble.Snapshot
	getter
}

func (v *pebbleView) Get(key []byte) ([]byte, bool, error) {
	val, closer, err := v.s.Get(key)
	return v.take(val, closer, err)
}

func (v *pebbleView) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	return v.scan(v.s, lo, hi, fn)
}

func (v *pebbleView) Close() error { return v.s.Close() }

// pebbleBatch keeps its writes twice: in a map for reading single keys and in an
// indexed batch of Pebble for scanning and for the commit.
type pebbleBatch struct {
	s   *pebbleStore
	b   *pebble.Batch
	own map[string][]byte // nil value: deleted
	getter
}

func (b *pebbleBatch) Get(key []byte) ([]byte, bool, error) {
	if v, ok := b.own[string(key)]; ok {
		return v, v != nil, nil
	}
	if v, ok := b.s.warm.m[string(key)]; ok {
		return v, v != nil, nil
	}
	val, closer, err := b.s.db.Get(key)
	v, ok, err := b.take(val, closer, err)
	if err == nil {
		b.s.warm.put(string(key), clone(v, ok))
	}
	return v, ok, err
}

func (b *pebbleBatch) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	return b.scan(b.b, lo, hi, fn)
}

func (b *pebbleBatch) Set(key, val []byte) error {
	b.own[string(key)] = clone(val, true)
	return wrap("write state", b.dir, b.b.Set(key, val, pebble.NoSync))
}

func (b *pebbleBatch) Delete(key []byte) error {
	b.own[string(key)] = nil
	return wrap("write state", b.dir, b.b.Delete(key, pebble.NoSync))
}

func (b *pebbleBatch) Commit() error {
	if err := b.b.Commit(pebble.NoSync); err != nil {
		b.s.warm = warm{} // what the store has now nobody knows
		return wrap("commit state", b.dir, err)
	}
	for k, v := range b.own {
		b.s.warm.put(k, v)
	}
	clear(b.own)
	return nil
}

func (b *pebbleBatch) Close() error { return wrap("close batch", b.dir, b.b.Close()) }

// warm is what batches read and wrote last. Entries of the Raft log come back to
// the same few keys (counters, the session, the directory), and a look here is
// an order of magnitude cheaper than one into the store. It belongs to the batch
// that is open: a store has one at a time.
type warm struct {
	m     map[string][]byte // nil value: not in the store
	bytes int
}

// put remembers a value. A full cache starts anew: the keys in use are back soon.
func (w *warm) put(key string, val []byte) {
	if w.m == nil || w.bytes > warmBytes {
		w.m, w.bytes = map[string][]byte{}, 0
	}
	w.m[key] = val
	w.bytes += len(key) + len(val) + warmOverhead
}

// clone is a copy of a value that is not nil, or nil for none.
func clone(v []byte, ok bool) []byte {
	if !ok {
		return nil
	}
	return append(make([]byte, 0, len(v)), v...)
}

// events are what Pebble tells of. Damage found by a read is the reader's error:
// without a listener Pebble would end the process.
func (q quiet) events() *pebble.EventListener {
	return &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) {
		q.log.Error("state store is damaged", "dir", q.dir, "file", i.Path, "err", i.Details)
	}}
}

// quiet passes Pebble's chatter to the debug level. Pebble calls Fatalf where it
// cannot go on and must not return from it.
type quiet struct {
	log *slog.Logger
	dir string
}

func (q quiet) Infof(format string, args ...any) {
	q.log.Debug("state store", "dir", q.dir, "event", fmt.Sprintf(format, args...))
}

func (q quiet) Errorf(format string, args ...any) {
	q.log.Error("state store", "dir", q.dir, "err", fmt.Sprintf(format, args...))
}

func (q quiet) Fatalf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	q.log.Error("state store cannot go on", "dir", q.dir, "err", msg)
	panic("state store " + q.dir + ": " + msg)
}
