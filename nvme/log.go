package nvme

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

const (
	// DefaultCRCCacheBytes bounds the checksum vectors in memory when LogOptions
	// does not: those of 64 GiB in records of 1 MiB.
	DefaultCRCCacheBytes = 64 << 20
	// maxPuts bounds the puts inside a log, and so the memory that they hold.
	maxPuts = 256
	// maxFailures is how many writes, flushes or segments may fail in a row
	// before the log gives its device up.
	maxFailures = 4
)

// Key names a record: a shard of a stripe.
type Key struct {
	Stripe cfs.StripeID
	Shard  uint8
}

// Less orders keys by stripe, then shard.
func (k Key) Less(o Key) bool {
	return k.Stripe.Less(o.Stripe) || k.Stripe == o.Stripe && k.Shard < o.Shard
}

// String is the form that people and logs see: session.counter/shard.
func (k Key) String() string { return fmt.Sprintf("%s/%d", k.Stripe, k.Shard) }

// Record describes what a log holds under a key.
type Record struct {
	Key   Key
	PG    cfs.PGID
	Epoch cfs.Epoch // of the group, under which it was put
	Len   uint32    // bytes, a multiple of cfs.BlockSize
}

// LogOptions adjusts a Log.
type LogOptions struct {
	// CRCCacheBytes bounds the checksum vectors in memory; 0 for DefaultCRCCacheBytes.
	CRCCacheBytes int
	// Logger is told of damage and failures; nil for none.
	Logger *slog.Logger
}

// LogStats is the state of a log and what it has done since it was opened.
type LogStats struct {
	CapacityBytes int64 // of all segments
	UsedBytes     int64 // of the segments that are not free
	LiveBytes     int64 // of the payloads of live records
	Records       int   // live

	SegmentBytes int64
	FreeSegments int // never used, or nothing live in them
	OpenSegments int // being filled, or prepared to be
	FullSegments int
	BadSegments  int // given up after a failed header write; until the next start

	Puts, Gets, Deletes     uint64 // records
	Writes, Flushes         uint64 // batches written, flushes of the device
	WrittenBytes, ReadBytes uint64 // to and from the device
	CRCFailures             uint64 // damaged headers met
	TornRecords             uint64 // dropped at the start: a crash tore them before they were acknowledged
	WriteErrors             uint64
	Failed                  bool // the device was given up: nothing is put any more
}

// Log is the store on a device. See the package doc.
type Log struct {
	dev   Device
	info  Info
	sb    Superblock
	log   *slog.Logger
	puts  chan struct{} // one token for each put inside
	ended chan struct{} // the preparer has returned

	segBlocks uint32
	prepMem   *iopath.Buf // the preparer's header

	mu      sync.Mutex
	changed *sync.Cond // segments, or puts and gets ended
	index   *index
	crcs    *crcCache
	space   space
	pending map[Key]*put // admitted, not yet in the index

	flow      []*batch // in flight, in the log's order
	written   int      // of flow, waiting for a flush
	flushing  bool
	condemned []*batch // failed: their headers are to be erased, lest a start believes them

	small        []*put        // small records that wait for a writer
	smallWriters int           // writers of small records at work
	staging      []*iopath.Buf // idle memory for batches of small records

	active   int // puts and gets inside
	failures int // in a row
	broken   error
	closed   bool
	stop     bool // the preparer shall return
	stats    LogStats
}

// stagingBytes is the arena memory that a Log holds for itself while open.
const stagingBytes = maxSmallWriters*(iopath.Headroom+maxStaged) + iopath.Headroom + segHeaderBlocks*cfs.BlockSize

// OpenLog rebuilds the index from a formatted device and makes the log ready.
// The log has the device to itself until Close, which leaves the device open.
// arena should be the one that the device's engine has registered; the log
// keeps about 0.5 MiB of it. NotFound when the device is not formatted; Corrupt when its
// superblock is damaged or it has shrunk; IO when it cannot be read or written.
func OpenLog(dev Device, arena *iopath.Arena, opt LogOptions) (*Log, error) {
	info := dev.Info()
	sb, err := ReadSuperblock(dev)
	if err != nil {
		return nil, err
	}
	op := "open log on " + info.Path
	if info.SizeBytes < sb.SizeBytes {
		return nil, cfs.Errorf(op, cfs.Corrupt, "the device ends at offset %d, it was formatted with %d bytes", info.SizeBytes, sb.SizeBytes)
	}
	if arena.SizeBytes() < 2*stagingBytes {
		return nil, cfs.Errorf(op, cfs.Invalid, "an arena of %d bytes is too small", arena.SizeBytes())
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.CRCCacheBytes == 0 {
		opt.CRCCacheBytes = DefaultCRCCacheBytes
	}
	l := &Log{
		dev: dev, info: info, sb: sb,
		log:       opt.Logger.With("device", info.Path),
		puts:      make(chan struct{}, maxPuts),
		ended:     make(chan struct{}),
		segBlocks: sb.SegmentBytes / cfs.BlockSize,
		index:     newIndex(),
		crcs:      newCRCCache(opt.CRCCacheBytes),
		pending:   make(map[Key]*put),
	}
	l.changed = sync.NewCond(&l.mu)
	l.space = newSpace(int((info.SizeBytes - HeaderAreaBytes) / int64(sb.SegmentBytes)))
	if err := l.recover(arena); err != nil {
		return nil, err
	}
	if err := l.takeMemory(arena); err != nil {
		l.releaseMemory()
		return nil, err
	}
	go l.prepareLoop()
	return l, nil
}

func (l *Log) takeMemory(arena *iopath.Arena) (err error) {
	ctx := context.Background() // OpenLog's caller has an arena with room
	for range maxSmallWriters {
		b, err := arena.Get(ctx, maxStaged)
		if err != nil {
			return err
		}
		l.staging = append(l.staging, b)
	}
	l.prepMem, err = arena.Get(ctx, segHeaderBlocks*cfs.BlockSize)
	return err
}

func (l *Log) releaseMemory() {
	for _, b := range l.staging {
		b.Release()
	}
	l.staging = nil
	if l.prepMem != nil {
		l.prepMem.Release()
		l.prepMem = nil
	}
}

// Superblock says whose device the log is on.
func (l *Log) Superblock() Superblock { return l.sb }

// segOffset is where a block of a segment lies on the device, in bytes.
func (l *Log) segOffset(seg int, block uint32) int64 {
	return HeaderAreaBytes + int64(seg)*int64(l.sb.SegmentBytes) + int64(block)*cfs.BlockSize
}

// Has reports whether the log holds a record, and describes it.
func (l *Log) Has(key Key) (Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.index.get(key)
	if !ok {
		return Record{}, false
	}
	return l.index.record(&e), true
}

// List is up to limit records whose keys follow after (nil: from the first), in order.
func (l *Log) List(after *Key, limit int) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.list(after, limit)
}

// Delete forgets records and returns how many there were. Nothing is written: a
// restart finds them again as long as their segment is not used anew. A segment that
// holds nothing live any more is.
func (l *Log) Delete(keys []Key) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, k := range keys {
		e, ok := l.index.delete(k)
		if !ok {
			continue
		}
		n++
		l.forgetLocked(&e)
	}
	l.stats.Deletes += uint64(n)
	return n
}

// forgetLocked takes an entry that has left the index out of its segment.
func (l *Log) forgetLocked(e *entry) {
	l.crcs.delete(place(e.seg, uint32(e.payload)))
	invariants.Check(l.space.segs[e.seg].live > 0, "segment %d has no record to forget", e.seg)
	l.space.segs[e.seg].live--
	l.stats.LiveBytes -= int64(e.sizeBytes())
	l.freeIfDeadLocked(int(e.seg))
}

// Get reads n bytes at off of a record into dst, and returns the checksum of
// each of their blocks, little endian, which the caller must not change. off
// and n are multiples of cfs.BlockSize within the record, and dst has n bytes or more; it is
// Invalid otherwise. The payload is not checked here: the reader does that, end
// to end. NotFound when the log has no such record, Corrupt when its header is
// damaged, IO when the device fails. dst's headroom is overwritten.
func (l *Log) Get(ctx context.Context, key Key, off, n uint32, dst *iopath.Buf) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, cfs.E(l.opOn("get", key), contextKind(err), err)
	}
	l.mu.Lock()
	e, err := l.beginGetLocked(key, off, n, dst)
	if err != nil {
		l.mu.Unlock()
		return nil, err
	}
	seg := l.space.segs[e.seg].header(&l.sb, e.seg)
	crcs := l.crcs.get(place(e.seg, uint32(e.payload)))
	l.mu.Unlock()

	if crcs != nil {
		err = l.dev.Read(dst.Bytes()[:n], l.segOffset(int(e.seg), uint32(e.payload))+int64(off))
	} else {
		crcs, err = l.readBoth(key, &e, &seg, off, n, dst)
	}
	l.endGet(&e, n, crcs, err)
	if err != nil {
		return nil, cfs.E(l.opOn("get", key), cfs.KindOf(err), err)
	}
	const each = cfs.BlockSize / crcBytes
	return crcs[off/each : (off+n)/each], nil
}

func (l *Log) beginGetLocked(key Key, off, n uint32, dst *iopath.Buf) (entry, error) {
	if l.closed {
		return entry{}, cfs.E(l.opOn("get", key), cfs.Closed, nil)
	}
	e, ok := l.index.get(key)
	if !ok {
		return entry{}, cfs.Errorf(l.opOn("get", key), cfs.NotFound, "no such record")
	}
	if off%cfs.BlockSize != 0 || n%cfs.BlockSize != 0 || n == 0 ||
		uint64(off)+uint64(n) > uint64(e.sizeBytes()) || int(n) > len(dst.Bytes()) {
		return entry{}, cfs.Errorf(l.opOn("get", key), cfs.Invalid, "%d bytes at %d of %d into a buffer of %d", n, off, e.sizeBytes(), len(dst.Bytes()))
	}
	l.space.segs[e.seg].readers++
	l.active++
	return e, nil
}

func (l *Log) endGet(e *entry, n uint32, crcs []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Gets++
	switch {
	case err == nil:
		l.stats.ReadBytes += uint64(n)
		if now, ok := l.index.tree.Get(*e); ok && now == *e { // not deleted meanwhile
			l.crcs.put(place(e.seg, uint32(e.payload)), crcs)
		}
	case cfs.KindOf(err) == cfs.Corrupt:
		l.stats.CRCFailures++
	}
	l.space.segs[e.seg].readers--
	l.freeIfDeadLocked(int(e.seg))
	l.leaveLocked()
}

// readBoth reads a record's header block into dst's headroom and its data, in
// one submission, and returns all its checksums.
func (l *Log) readBoth(key Key, e *entry, seg *segmentHeader, off, n uint32, dst *iopath.Buf) ([]byte, error) {
	all := dst.WithHeadroom()
	headerOff := l.segOffset(int(e.seg), uint32(e.header))
	dataOff := l.segOffset(int(e.seg), uint32(e.payload)) + int64(off)
	var err error
	if dataOff == headerOff+cfs.BlockSize {
		err = l.dev.Read(all[:cfs.BlockSize+n], headerOff)
	} else {
		err = l.dev.ReadMany([]iopath.ReadOp{
			{P: all[:cfs.BlockSize], Off: headerOff},
			{P: all[cfs.BlockSize : cfs.BlockSize+n], Off: dataOff},
		})
	}
	if err != nil {
		return nil, err
	}
	_, entries, err := decodeBatch(all[:cfs.BlockSize], seg, uint32(e.header), headerOff, nil)
	if err == nil {
		for i := range entries {
			if entries[i].rec.Key == key && entries[i].block == uint32(e.payload) && entries[i].rec.Len == e.sizeBytes() {
				return bytes.Clone(entries[i].crcs), nil
			}
		}
	}
	if err == nil || cfs.KindOf(err) == cfs.NotFound {
		err = cfs.Errorf("", cfs.Corrupt, "batch header at %d is not the record's", headerOff)
	}
	return nil, cfs.E("device "+l.info.Path, cfs.Corrupt, err)
}

// Stats is a snapshot.
func (l *Log) Stats() LogStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats
	st.SegmentBytes = int64(l.sb.SegmentBytes)
	st.CapacityBytes = st.SegmentBytes * int64(len(l.space.segs))
	st.Records = l.index.len()
	st.Failed = l.broken != nil
	for i := range l.space.segs {
		switch l.space.segs[i].state {
		case segUnused, segFree, segDiscarding:
			st.FreeSegments++
		case segPreparing, segReady, segOpen:
			st.OpenSegments++
		case segFull:
			st.FullSegments++
		case segBad:
			st.BadSegments++
		}
	}
	st.UsedBytes = st.SegmentBytes * int64(len(l.space.segs)-st.FreeSegments)
	return st
}

// Close waits for the puts and gets inside, refuses later ones, and gives the
// arena's memory back. The device stays open.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	for l.active > 0 || l.flushing || l.smallWriters > 0 {
		l.changed.Wait()
	}
	l.stop = true
	l.changed.Broadcast()
	l.mu.Unlock()
	<-l.ended
	l.releaseMemory()
	return nil
}

// leaveLocked ends a put or get.
func (l *Log) leaveLocked() {
	if l.active--; l.closed {
		l.changed.Broadcast()
	}
}

func (l *Log) opOn(what string, key Key) string {
	return fmt.Sprintf("%s %s on %s", what, key, l.info.Path)
}

// contextKind is the kind of a context's end.
func contextKind(err error) cfs.Kind {
	if err == context.DeadlineExceeded {
		return cfs.Timeout
	}
	return cfs.Canceled
}
