package nvme

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

const (
	// DefaultCRCCacheBytes bounds the checksum vectors in memory when LogOptions
	// does not: those of 64 GiB in records of 1 MiB.
	DefaultCRCCacheBytes = 64 << 20
	// DefaultCheckpoint is how often bitmaps that have changed are written when LogOptions does not say.
	DefaultCheckpoint = 5 * time.Second
	// DefaultIdleAfter is how long nothing is put or got before segments are cleaned when LogOptions does not say.
	DefaultIdleAfter = 2 * time.Second
	// LogArenaBytes is the arena memory that a Log holds while it is open.
	LogArenaBytes = maxSmallWriters*(iopath.Headroom+maxStaged) + 2*(iopath.Headroom+maintainBytes) + iopath.Headroom + maxCopied + iopath.Headroom + copyHeaders*cfs.BlockSize
	// maxPuts bounds the puts inside a log, and so the memory that they hold.
	maxPuts = 256
	// maxFailures is how many writes, flushes or segments may fail in a row
	// before the log gives its device up.
	maxFailures = 4
	// maxReadFailures is how many reads may fail in a row: more, because one
	// place that cannot be read is asked for again and again.
	maxReadFailures = 64
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
	// Checkpoint is how often bitmaps that have changed are written; 0 for DefaultCheckpoint.
	Checkpoint time.Duration
	// Logger is told of damage and failures; nil for none.
	Logger *slog.Logger
	// IdleAfter is how long nothing is put or got before segments are cleaned though space is not
	// short, see LogStats.OccupiedBytes; 0 for DefaultIdleAfter, negative for never. Gets delay it by a few times that.
	IdleAfter time.Duration
}

// LogStats is the state of a log and what it has done since it was opened.
type LogStats struct {
	CapacityBytes int64 // of all segments but the reserve
	UsedBytes     int64 // of live records and what lies around them, at most CapacityBytes
	LiveBytes     int64 // of the payloads of live records
	OccupiedBytes int64 // of segments that hold anything, whole; of those being filled, what is filled
	Records       int   // live
	IndexBytes    int   // of memory for the index
	BitmapBytes   int   // of memory for the bitmaps

	SegmentBytes    int64
	ReserveSegments int // being filled, and those that only the cleaner may take
	FreeSegments    int // never used, or nothing live in them
	OpenSegments    int // being filled, or prepared to be
	FullSegments    int
	BadSegments     int // given up: the header could not be written, or header or bitmap not be read at the start; until the next start

	Puts, Gets, Deletes     uint64 // records
	Writes, Flushes         uint64 // batches written, flushes of the device for them
	WrittenBytes, ReadBytes uint64 // to and from the device, by puts, gets and the cleaner
	PutBytes                uint64 // payloads that were put
	CopiedBytes             uint64 // payloads that the cleaner has moved
	Cleaned                 uint64 // segments that the cleaner has emptied
	Checkpoints             uint64
	FeedPosition            uint64    // as of the last checkpoint
	CRCFailures             uint64    // damaged headers and payloads met
	TornRecords             uint64    // dropped at the start: a crash tore them before they were acknowledged
	ScrubbedBytes           uint64    // read by scrubs, headers too
	ScrubDamaged            uint64    // damaged records that scrubs found
	LastScrub               time.Time // when the last complete pass ended; zero for never
	WriteErrors, ReadErrors uint64
	Failed                  bool // the device was given up: nothing is put any more
}

// Log is the store on a device. See the package doc.
type Log struct {
	layout
	info     Info
	log      *slog.Logger
	interval time.Duration
	puts     chan struct{} // one token for each put inside
	ended    sync.WaitGroup

	maintainMem, copyMem *iopath.Buf // of the maintainer, of the cleaner: payloads
	maintainFooter       *iopath.Buf // of the maintainer: footers
	copyHeaderMem        *iopath.Buf // of the cleaner: headers that it reads

	mu      sync.Mutex
	changed *sync.Cond // segments, or puts and gets ended
	index   *index
	crcs    *crcCache
	space   space
	idle    idling
	pending map[Key]*put // admitted, not yet in the index

	unflushed []*batch // written, waiting for a flush
	writing   int      // batches that are being written
	flushing  bool
	moves     []*batch // of the cleaner, not answered
	doomed    int      // puts in pending that were deleted

	small        []*put        // small records that wait for a writer
	smallWriters int           // batches of small records that are not answered
	gathered     int           // records of the last one
	staging      []*iopath.Buf // idle memory for batches of small records

	state      deviceState // as it is on the device
	feed       uint64      // how far deletes have followed the feed
	checkpoint bool        // one is due

	scrubEnd context.CancelFunc // of the scrub inside, nil for none

	active   int // puts, gets and scrubs inside
	failures int // writes of puts and the cleaner in a row
	lost     int // reads in a row

	upkeepFailures int // writes of the maintainer in a row, with none of a put between them
	broken         error
	closeErr       error // of the last checkpoint
	closed         bool
	stopping       bool // the cleaner shall return
	stop           bool // the maintainer shall return, after a last checkpoint
	stats          LogStats
}

// OpenLog rebuilds the index from a formatted device and makes the log ready.
// The log has the device to itself until Close, which leaves the device open.
// arena should be the one that the device's engine has registered; the log
// keeps LogArenaBytes of it. NotFound when the device is not formatted; Corrupt when its
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
	if arena.SizeBytes() < LogArenaBytes+iopath.MinArenaBytes {
		return nil, cfs.Errorf(op, cfs.Invalid, "an arena of %d bytes is too small", arena.SizeBytes())
	}
	l := newLog(dev, sb, opt)
	if err := l.takeMemory(arena); err != nil {
		l.releaseMemory()
		return nil, err
	}
	if err := l.recover(); err != nil {
		l.releaseMemory()
		return nil, err
	}
	l.ended.Go(l.maintain)
	l.ended.Go(l.clean)
	return l, nil
}

func newLog(dev Device, sb Superblock, opt LogOptions) *Log {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.CRCCacheBytes == 0 {
		opt.CRCCacheBytes = DefaultCRCCacheBytes
	}
	opt.Checkpoint = cmp.Or(opt.Checkpoint, DefaultCheckpoint)
	l := &Log{
		layout:   newLayout(dev, sb),
		info:     dev.Info(),
		log:      opt.Logger.With("device", dev.Info().Path),
		interval: opt.Checkpoint,
		puts:     make(chan struct{}, maxPuts),
		index:    newIndex(),
		crcs:     newCRCCache(opt.CRCCacheBytes),
		pending:  make(map[Key]*put),
		space:    newSpace(sb.segments()),
		idle:     idling{after: cmp.Or(opt.IdleAfter, DefaultIdleAfter), least: math.MaxInt64},
	}
	l.damaged = func(d flaw) { l.log.Warn("damaged "+d.what, "segment", d.seg, "offset", d.off, "err", d.err) }
	l.changed = sync.NewCond(&l.mu)
	return l
}

func (l *Log) takeMemory(arena *iopath.Arena) (err error) {
	take := func(b **iopath.Buf, n int) {
		if err == nil {
			*b, err = arena.Get(context.Background(), n) // OpenLog's caller has an arena with room
		}
	}
	l.staging = make([]*iopath.Buf, maxSmallWriters)
	for i := range l.staging {
		take(&l.staging[i], maxStaged)
	}
	take(&l.maintainMem, maintainBytes)
	take(&l.maintainFooter, maintainBytes)
	take(&l.copyMem, maxCopied)
	take(&l.copyHeaderMem, copyHeaders*cfs.BlockSize)
	return err
}

func (l *Log) releaseMemory() {
	for _, b := range append(l.staging, l.maintainMem, l.maintainFooter, l.copyMem, l.copyHeaderMem) {
		if b != nil {
			b.Release()
		}
	}
	l.staging, l.maintainMem, l.maintainFooter, l.copyMem, l.copyHeaderMem = nil, nil, nil, nil, nil
}

// Health is how the device is doing, if it says: Unsupported if not.
func (l *Log) Health() (Health, error) {
	if r, ok := l.dev.(HealthReader); ok {
		return r.Health()
	}
	return Health{}, cfs.Errorf("health of "+l.info.Path, cfs.Unsupported, "a %s does not say", l.info.Kind)
}

// Superblock says whose device the log is on.
func (l *Log) Superblock() Superblock { return l.sb }

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

// Delete forgets records and returns how many there were, those included whose put is
// under way: that put returns nil, and leaves nothing. The next checkpoint
// makes that durable: a crash before it makes the log forget the delete, and
// nothing else (of a record that was replaced shortly before, what was
// replaced may come back then).
func (l *Log) Delete(keys []Key) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, k := range keys {
		e, there := l.index.delete(k)
		if there {
			l.idle.deleted(int64(e.blocks), int64(l.segBlocks-l.firstData))
			l.forgetLocked(&e)
		}
		if l.doomLocked(k) || there {
			n++
		}
	}
	l.stats.Deletes += uint64(n)
	l.idle.changed(n)
	if n > 0 && len(l.space.free) < cleanBelow {
		l.changed.Broadcast() // the cleaner may have work
	}
	return n
}

// SetFeedPosition says that every delete which the feed names up to position
// has been made. The next checkpoint stores it, behind the bitmaps without
// those records. A lower position than before changes nothing.
func (l *Log) SetFeedPosition(position uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.feed = max(l.feed, position)
}

// FeedPosition is the position that is stored on the device: what the feed
// names up to there does not come back after a crash. 0 when there is none.
func (l *Log) FeedPosition() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.feedPosition
}

// forgetLocked takes an entry that has left the index out of its segment.
func (l *Log) forgetLocked(e *entry) {
	l.crcs.delete(cacheKey(e.seg, uint32(e.payload)))
	s := &l.space.segs[e.seg]
	invariants.Check(s.live > 0 && s.bits.get(uint32(e.payload)), "segment %d has no record at %d to forget", e.seg, e.payload)
	s.bits.clear(uint32(e.payload))
	s.dirty = true
	s.live--
	s.liveBlocks -= uint32(e.blocks)
	l.stats.LiveBytes -= int64(e.sizeBytes())
	l.freeIfDeadLocked(int(e.seg))
}

// rememberLocked puts a durable record into its segment; the index has it already.
func (l *Log) rememberLocked(seg int, payload, blocks uint32) {
	s := &l.space.segs[seg]
	s.bits.set(payload)
	s.dirty = true
	s.live++
	s.liveBlocks += blocks
	l.stats.LiveBytes += int64(blocks) * cfs.BlockSize
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
	crcs := l.crcs.get(cacheKey(e.seg, uint32(e.payload)))
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
	e, err := l.findLocked("get", key)
	if err != nil {
		return entry{}, err
	}
	if off%cfs.BlockSize != 0 || n%cfs.BlockSize != 0 || n == 0 ||
		uint64(off)+uint64(n) > uint64(e.sizeBytes()) || int(n) > len(dst.Bytes()) {
		return entry{}, cfs.Errorf(l.opOn("get", key), cfs.Invalid, "%d bytes at %d of %d into a buffer of %d", n, off, e.sizeBytes(), len(dst.Bytes()))
	}
	l.space.segs[e.seg].readers++
	l.active++
	return e, nil
}

// findLocked is the entry of a record that is to be read.
func (l *Log) findLocked(what string, key Key) (entry, error) {
	if l.closed {
		return entry{}, cfs.E(l.opOn(what, key), cfs.Closed, nil)
	}
	e, ok := l.index.get(key)
	if !ok {
		return entry{}, cfs.Errorf(l.opOn(what, key), cfs.NotFound, "no such record")
	}
	return e, nil
}

func (l *Log) endGet(e *entry, n uint32, crcs []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Gets++
	switch {
	case err == nil:
		l.stats.ReadBytes += uint64(n)
		l.lost = 0
		if now, ok := l.index.get(e.key); ok && now == *e { // not deleted or moved meanwhile
			l.crcs.put(cacheKey(e.seg, uint32(e.payload)), crcs)
		}
	case cfs.KindOf(err) == cfs.Corrupt:
		l.stats.CRCFailures++
	default:
		l.readFailedLocked(err)
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
	st.ReserveSegments = reserveSegments
	st.Records = l.index.len()
	st.IndexBytes = l.index.memBytes()
	st.FeedPosition = l.state.feedPosition
	st.Failed = l.broken != nil
	st.OccupiedBytes = l.occupiedLocked() * cfs.BlockSize
	for i := range l.space.segs {
		s := &l.space.segs[i]
		st.BitmapBytes += 8 * len(s.bits)
		st.UsedBytes += int64(s.liveCost(l.firstData)) * cfs.BlockSize
		switch s.state {
		case segFree, segDead:
			st.FreeSegments++
		case segPreparing, segReady, segOpen:
			st.OpenSegments++
		case segFull, segKept:
			st.FullSegments++
		case segBad:
			st.BadSegments++
		}
	}
	st.CapacityBytes = int64(len(l.space.segs)-reserveSegments) * int64(l.segBlocks-l.firstData) * cfs.BlockSize
	st.UsedBytes = min(st.UsedBytes, st.CapacityBytes)
	return st
}

// Close ends a scrub, waits for the puts and gets inside, refuses later ones, writes a last
// checkpoint, and gives the arena's memory back. The device stays open. The
// error is the checkpoint's: then a later start may find deleted records. There is
// no checkpoint on a device that was given up.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed, l.stopping = true, true
	if l.scrubEnd != nil {
		l.scrubEnd()
	}
	l.changed.Broadcast()
	for l.active > 0 || l.flushing || l.smallWriters > 0 || l.space.cleaning {
		l.changed.Wait()
	}
	l.stop = true
	l.changed.Broadcast()
	l.mu.Unlock()
	l.ended.Wait()
	l.releaseMemory()
	return l.closeErr
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
