package kv

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/raftmeta/fsm"
)

// Bounds of a Pebble store.
const (
	// DefaultCacheBytes bounds the block cache.
	DefaultCacheBytes = 64 << 20
	// memtableBytes is what gathers in memory before it is flushed; two may exist. It is about
	// what the entries of a Raft log write before the log is truncated, which flushes it anyway.
	memtableBytes = 16 << 20
	maxOpenFiles  = 512
	// recentBytes bounds the keys that batches keep at hand, recentOverhead is what each costs besides its bytes.
	// A file costs 800 bytes: half of them are the last 10,000 that were made.
	recentBytes    = 16 << 20
	recentOverhead = 160
	// keepOwn bounds the list of what a batch has written that is kept for the next one.
	keepOwn = 16 << 10
	// recentPiece is the size of the pieces that the memory for them is taken in.
	recentPiece = 16 << 10
	// pendingBytes bounds what of it Pebble has not got yet, but for the last batch.
	pendingBytes = 128 << 10
	bloomBits    = 10
)

// Options configure a Pebble store.
type Options struct {
	CacheBytes int64 // 0: DefaultCacheBytes
	Logger     *slog.Logger
}

type pebbleStore struct {
	db  *pebble.DB
	dir string

	recent recent
	names  names
	own    []*cell    // memory for the next batch
	mu     sync.Mutex // what is pending
}

// OpenPebble opens the store in dir, or makes an empty one there. What is
// damaged is cfs.Corrupt naming the directory, or the file and offset where Pebble knows them.
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
	return &pebbleStore{db: db, dir: dir, recent: newRecent(), names: newNames()}, nil
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
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil { // the error's text says at which offset
		return cfs.E(op+" "+info.Path, k, info.Details)
	}
	return cfs.E(op+" "+dir, k, err)
}

func (s *pebbleStore) NewBatch() Batch {
	own := s.own
	s.own = nil
	return &pebbleBatch{s: s, own: own, getter: getter{dir: s.dir}}
}

func (s *pebbleStore) View() View {
	err := s.current() // a view that is not of the present answers nothing
	return &pebbleView{s: s.db.NewSnapshot(), err: err, getter: getter{dir: s.dir}}
}

func (s *pebbleStore) Flush() error {
	if err := s.current(); err != nil {
		return err
	}
	return wrap("flush state", s.dir, s.db.Flush())
}

func (s *pebbleStore) Checkpoint(dir string) error {
	if err := s.Flush(); err != nil {
		return err
	}
	if err := s.db.Checkpoint(dir); err != nil {
		return wrap("checkpoint to", dir, err)
	}
	return wrap("checkpoint to", dir, durable.SyncDir(filepath.Dir(dir)))
}

func (s *pebbleStore) Close() error {
	return errors.Join(s.current(), wrap("close state", s.dir, s.db.Close()))
}

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
	s   *pebble.Snapshot
	err error // why it is not of the present
	getter
}

func (v *pebbleView) Get(key []byte) ([]byte, bool, error) {
	if v.err != nil {
		return nil, false, v.err
	}
	val, closer, err := v.s.Get(key)
	return v.take(val, closer, err)
}

func (v *pebbleView) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	if v.err != nil {
		return v.err
	}
	return v.scan(v.s, lo, hi, fn)
}

func (v *pebbleView) Close() error { return v.s.Close() }

// pebbleBatch writes to the cells of recent, which show it to nobody else before Commit. A
// scan needs an indexed batch of Pebble, which is made then.
type pebbleBatch struct {
	s     *pebbleStore
	own   []*cell       // what it has written
	index *pebble.Batch // all of own, once there was a scan
	getter
}

func (b *pebbleBatch) Get(key []byte) ([]byte, bool, error) {
	if c := b.s.recent.find(key); c != nil {
		v := c.now()
		return v, v != nil, nil
	}
	if b.s.names.lacks(key) {
		b.s.checkLacks(key)
		b.s.recent.met(b.s.recent.add(key), nil, false)
		return nil, false, nil
	}
	val, closer, err := b.s.db.Get(key)
	v, ok, err := b.take(val, closer, err)
	if err != nil {
		return nil, false, err
	}
	b.s.recent.met(b.s.recent.add(key), v, ok)
	if !ok {
		if folder, rows := b.s.names.missed(key); rows > 0 {
			err = b.read(folder, rows)
		}
	}
	return v, ok, err
}

func (b *pebbleBatch) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	if b.index == nil {
		if err := b.s.current(); err != nil {
			return err
		}
		b.index = b.s.db.NewIndexedBatch()
		for _, c := range b.own {
			if err := write(b.index, c.key, c.next); err != nil {
				return wrap("write state", b.dir, err)
			}
		}
	}
	return b.scan(b.index, lo, hi, fn)
}

// put writes a value that is the cell's from now on, nil for a deletion.
func (b *pebbleBatch) put(c *cell, val []byte) error {
	if !c.written {
		c.written = true
		b.own = append(b.own, c)
	}
	c.next = val
	if b.index == nil {
		return nil
	}
	return wrap("write state", b.dir, write(b.index, c.key, val))
}

func (b *pebbleBatch) Set(key, val []byte) error {
	c := b.s.recent.find(key)
	if c == nil {
		c = b.s.recent.add(key)
		c.absent = fsm.SetOnce(key)
	}
	b.s.names.wrote(key)
	return b.put(c, c.room(val))
}

func (b *pebbleBatch) Delete(key []byte) error {
	c := b.s.recent.find(key)
	if c == nil {
		c = b.s.recent.add(key)
	}
	return b.put(c, nil)
}

func (b *pebbleBatch) Commit() error {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	r := &b.s.recent
	for _, c := range b.own {
		r.commit(c)
	}
	b.emptyOwn()
	if r.pendingBytes < pendingBytes && r.bytes <= recentBytes/2 {
		return nil
	}
	if err := b.s.settle(); err != nil {
		return err
	}
	r.age()
	return nil
}

// checkLacks checks that Pebble has nothing under a key.
func (s *pebbleStore) checkLacks(key []byte) {
	if invariants.Enabled {
		_, closer, err := s.db.Get(key)
		invariants.Check(err != nil, "the store has key %q", key)
		if err == nil {
			closer.Close()
		}
	}
}

// emptyOwn keeps the memory, not the cells.
func (b *pebbleBatch) emptyOwn() {
	clear(b.own)
	b.own = b.own[:0]
}

func (b *pebbleBatch) Close() error {
	for _, c := range b.own {
		b.s.recent.undo(c)
	}
	b.emptyOwn()
	if cap(b.own) <= keepOwn {
		b.s.own = b.own
	}
	b.own = nil
	if b.index == nil {
		return nil
	}
	return wrap("close batch", b.dir, b.index.Close())
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
