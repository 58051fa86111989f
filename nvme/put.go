package nvme

import (
	"bytes"
	"context"
	"runtime"
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

const (
	// maxSmall is the largest record that shares a write with others: copying it
	// costs less than a write of its own.
	maxSmall = 32 << 10
	// maxStaged bounds the payloads of one shared write, in bytes.
	maxStaged = 256 << 10
	// maxSmallWriters bounds the shared writes that are not answered. Meanwhile small
	// records gather for the next: one after the other, each with a flush, makes more of
	// both than one beside the other's flush.
	maxSmallWriters = 1
	// maxGather bounds how often a shared write lets other goroutines run that may bring
	// records for it.
	maxGather = 32
	// maxUnflushed is how many batches wait for a flush at most while others are being written.
	maxUnflushed = 32
)

// put is a record on its way in, or from one segment to another.
type put struct {
	rec  Record
	crcs []byte
	buf  *iopath.Buf   // retained until it is written; nil for a move
	done chan struct{} // closed when err is valid; nil for a move
	from location      // of a move

	revision uint16
	replace  bool // a record that is there is superseded
	deleted  bool // meanwhile: it is dropped
	err      error
}

// what names what is done, in errors.
func (p *put) what() string {
	if p.replace {
		return "replace"
	}
	return "put"
}

// batchState is how far a batch is.
type batchState uint8

const (
	batchWriting batchState = iota
	batchWritten            // waits for a flush
	batchDone               // durable or failed; waits for those before it
	batchAnswered
)

// batch is one write: a header block and the payloads of its puts.
type batch struct {
	puts   []*put
	seg    int
	block  uint32
	blocks uint32
	header batchHeader
	state  batchState
	shared bool // holds one of the smallWriters
	err    error
	op     [1]iopath.WriteOp
}

// Put stores a record: its payload is the first rec.Len of buf's bytes, crcs
// the CRC32C of each block, little endian. It returns nil when the record is
// durable. buf's headroom is overwritten, and neither may be changed until buf
// has its references back; the log takes one of its own.
//
// A record that is there already with the same group, epoch and length is
// accepted again; with others it is Exists. NoSpace: no segment is free. IO:
// the device failed; the record may or may not be found after a restart. When
// ctx ends first Put is Canceled or Timeout and the record may still become
// durable; but a Put that is itself writing returns only when the device answers.
func (l *Log) Put(ctx context.Context, rec Record, crcs []byte, buf *iopath.Buf) error {
	return l.put(ctx, &put{rec: rec, crcs: crcs, buf: buf})
}

// put sees a put, whose checksums are still the caller's, through.
func (l *Log) put(ctx context.Context, p *put) error {
	if err := l.checkPut(p); err != nil {
		return err
	}
	select {
	case l.puts <- struct{}{}:
	case <-ctx.Done():
		return cfs.E(l.opOn(p.what(), p.rec.Key), contextKind(ctx.Err()), context.Cause(ctx))
	}
	p.crcs, p.done = bytes.Clone(p.crcs), make(chan struct{})
	if here, err := l.admit(ctx, p); here || err != nil {
		<-l.puts
		return err
	}
	if p.rec.Len > maxSmall {
		l.writeAlone(p)
	} else {
		l.writeShared(p)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return cfs.E(l.opOn(p.what(), p.rec.Key), contextKind(ctx.Err()), context.Cause(ctx))
	}
	if p.err != nil {
		return cfs.E(l.opOn(p.what(), p.rec.Key), cfs.KindOf(p.err), p.err)
	}
	return nil
}

func (l *Log) checkPut(p *put) error {
	n := p.rec.Len
	switch {
	case n == 0 || n > cfs.MaxShardSize || n%cfs.BlockSize != 0:
		return cfs.Errorf(l.opOn(p.what(), p.rec.Key), cfs.Invalid, "%d bytes, want whole blocks, at most %d", n, cfs.MaxShardSize)
	case len(p.crcs) != int(n)/cfs.BlockSize*crcBytes:
		return cfs.Errorf(l.opOn(p.what(), p.rec.Key), cfs.Invalid, "%d bytes of checksums for %d of payload", len(p.crcs), n)
	case len(p.buf.Bytes()) < int(n):
		return cfs.Errorf(l.opOn(p.what(), p.rec.Key), cfs.Invalid, "a buffer of %d bytes for %d", len(p.buf.Bytes()), n)
	case l.firstData+1+n/cfs.BlockSize+footerBlocks(1) > l.segBlocks:
		return cfs.Errorf(l.opOn(p.what(), p.rec.Key), cfs.TooLarge, "%d bytes do not fit a segment", n)
	}
	return nil
}

// admit makes p the one put of its key. here says that the record is in the log
// already, unless p is to replace it; a put of the same key under way is waited for.
func (l *Log) admit(ctx context.Context, p *put) (here bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return false, cfs.E(l.opOn(p.what(), p.rec.Key), cfs.Closed, nil)
		}
		if e, ok := l.index.get(p.rec.Key); ok && !p.replace {
			if old := l.index.record(&e); old != p.rec {
				return false, cfs.Errorf(l.opOn("put", p.rec.Key), cfs.Exists, "it is there with group %d, epoch %d, %d bytes", old.PG, old.Epoch, old.Len)
			}
			return true, nil
		}
		other := l.pending[p.rec.Key]
		if other == nil {
			break
		}
		l.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			err = cfs.E(l.opOn(p.what(), p.rec.Key), contextKind(ctx.Err()), context.Cause(ctx))
		}
		if l.mu.Lock(); err != nil {
			return false, err
		}
	}
	if p.replace {
		if p.revision, err = l.index.revise(p.rec.Key); err != nil {
			return false, cfs.E(l.opOn(p.what(), p.rec.Key), cfs.KindOf(err), err)
		}
	}
	l.idle.busy()
	l.pending[p.rec.Key] = p
	l.active++
	p.buf.Retain()
	return false, nil
}

// writeAlone writes one record straight from its buffer, header and payload in one.
func (l *Log) writeAlone(p *put) {
	l.mu.Lock()
	b := l.startLocked(putStream, []*put{p})
	l.mu.Unlock()
	if b == nil {
		return
	}
	l.encode(b, p.buf.WithHeadroom())
	l.write(b, nil)
}

// writeShared queues a small record. Its goroutine writes what is queued
// unless enough others are writing: then one of those, when it has written,
// sees to the next.
func (l *Log) writeShared(p *put) {
	l.mu.Lock()
	l.small = append(l.small, p)
	if l.smallWriters == maxSmallWriters {
		l.mu.Unlock()
		return
	}
	l.smallWriters++
	l.writeSmallLocked()
	l.mu.Unlock()
}

// writeSmallLocked writes one batch of queued small records, releasing mu meanwhile.
// The caller holds one of the smallWriters, which it passes on or gives up.
func (l *Log) writeSmallLocked() {
	l.gatherLocked()
	puts := l.nextSmallLocked()
	if len(puts) == 0 {
		l.smallWriters--
		l.changed.Broadcast()
		return
	}
	b := l.startLocked(putStream, puts)
	if b == nil {
		l.passSmallLocked()
		return
	}
	b.shared = true
	puts = b.puts
	mem := puts[0].buf
	var staging *iopath.Buf
	if len(puts) > 1 {
		staging = l.staging[len(l.staging)-1]
		l.staging = l.staging[:len(l.staging)-1]
		mem = staging
	}
	l.mu.Unlock()
	if staging != nil {
		at := staging.Bytes()
		for _, p := range puts {
			at = at[copy(at, p.buf.Bytes()[:p.rec.Len]):]
		}
	}
	l.encode(b, mem.WithHeadroom())
	l.write(b, staging)
	l.mu.Lock()
}

// gatherLocked lets goroutines run that are about to put, as long as some do or the last
// batch was larger: a flush answers many puts at once, and the next ones come as a swarm.
func (l *Log) gatherLocked() {
	for i, n := 0, 0; i < maxGather && (n < len(l.small) || n < l.gathered); i++ {
		n = len(l.small)
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
}

// passSmallLocked lets another goroutine write what is queued, or gives the writer up.
func (l *Log) passSmallLocked() {
	if len(l.small) == 0 {
		l.smallWriters--
		l.changed.Broadcast()
		return
	}
	go func() {
		l.mu.Lock()
		l.writeSmallLocked()
		l.mu.Unlock()
	}()
}

// nextSmallLocked takes the queued records that fit one batch.
func (l *Log) nextSmallLocked() []*put {
	room, bytes, n := entryRoom, 0, 0
	if len(l.small) == 0 {
		return nil
	}
	limit := l.batchLimitLocked(putStream, maxStaged, l.small[0].rec.Len)
	for _, p := range l.small {
		room -= entryBytes(p.rec.Len)
		bytes += int(p.rec.Len)
		if room < 0 || bytes > limit {
			break
		}
		n++
	}
	l.gathered = n
	puts := slices.Clone(l.small[:n])
	l.small = slices.Delete(l.small, 0, n)
	return puts
}

// batchBlocks is the length of a batch.
func batchBlocks(puts []*put) uint32 {
	blocks := uint32(1)
	for _, p := range puts {
		blocks += p.rec.Len / cfs.BlockSize
	}
	return blocks
}

// startLocked gives a batch its place; nil when there is none, and its puts have failed
// then. It may wait for that, releasing mu; those that were deleted by then are dropped.
func (l *Log) startLocked(to uint8, puts []*put) *batch {
	if err := l.roomLocked(to, batchBlocks(puts), uint32(len(puts))); err != nil {
		for _, p := range puts {
			p.releaseBuf()
			l.finishLocked(p, err)
		}
		return nil
	}
	if puts = l.dropDeletedLocked(puts); len(puts) == 0 {
		return nil
	}
	blocks := batchBlocks(puts)
	seg, block := l.reserveLocked(to, blocks, uint32(len(puts)))
	s := &l.space.segs[seg]
	b := &batch{puts: puts, seg: seg, block: block, blocks: blocks}
	if n := len(s.flow); n > 0 {
		invariants.Check(s.flow[n-1].block < block, "batch at block %d behind one at %d", block, s.flow[n-1].block)
	}
	s.flow = append(s.flow, b)
	b.header = batchHeader{seq: s.seq, salt: s.salt, block: block, payloadBlocks: blocks - 1, durable: s.settled()}
	l.writing++
	return b
}

// encode fills the header block at the start of mem, which has the payloads behind it.
func (l *Log) encode(b *batch, mem []byte) {
	off := l.segOffset(b.seg, b.block)
	enc := newBatchEncoder(mem)
	for _, p := range b.puts {
		enc.add(&p.rec, p.revision, p.crcs)
	}
	enc.seal(&b.header, off)
	b.op[0] = iopath.WriteOp{P: mem[:int(b.blocks)*cfs.BlockSize], Off: off}
}

// write writes an encoded batch and sees to its flush. staging is the memory of
// a shared batch, nil when a put's own was used.
func (l *Log) write(b *batch, staging *iopath.Buf) {
	err := l.dev.Write(b.op[:])
	b.op[0] = iopath.WriteOp{}
	for _, p := range b.puts {
		p.releaseBuf()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing--
	if staging != nil {
		l.staging = append(l.staging, staging)
	}
	l.stats.Writes++
	l.stats.WrittenBytes += uint64(b.blocks) * cfs.BlockSize
	switch {
	case err != nil:
		b.state = batchDone
		if b.err == nil {
			l.failedLocked(&l.failures, err)
		}
		l.failBatchLocked(b, err)
		l.settleLocked(b.seg)
	case b.err != nil || l.info.WriteThrough: // failed by one before it, or durable
		b.state = batchDone
		l.settleLocked(b.seg)
	default:
		b.state = batchWritten
		l.unflushed = append(l.unflushed, b)
	}
	l.flushLocked()
}

func (p *put) releaseBuf() {
	if p.buf != nil {
		p.buf.Release()
		p.buf = nil
	}
}

// flushLocked flushes once on behalf of all batches that are written, unless
// another goroutine is flushing: that one will see to these. mu is released meanwhile.
func (l *Log) flushLocked() {
	if l.flushing || !l.flushDueLocked() {
		return
	}
	l.flushing = true
	l.flushRoundLocked()
	if l.flushDueLocked() {
		go l.flushLoop() // this goroutine's own record is settled: let it go
		return
	}
	l.endFlushLocked()
}

// flushDueLocked reports whether to flush now: when every write has ended, because
// those under way are best covered too, or when much is waiting.
func (l *Log) flushDueLocked() bool {
	n := len(l.unflushed)
	return n > 0 && (l.writing == 0 || n >= maxUnflushed)
}

func (l *Log) flushLoop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.flushDueLocked() {
		l.flushRoundLocked()
	}
	l.endFlushLocked()
}

func (l *Log) endFlushLocked() {
	l.flushing = false
	l.changed.Broadcast()
}

func (l *Log) flushRoundLocked() {
	covered := l.unflushed
	l.unflushed = nil
	l.mu.Unlock()
	err := l.dev.Flush()
	l.mu.Lock()
	l.stats.Flushes++
	if err != nil {
		l.failedLocked(&l.failures, err)
		l.flushFailedLocked(covered, err)
		return
	}
	for _, b := range covered {
		b.state = batchDone
	}
	for _, b := range covered {
		l.settleLocked(b.seg)
	}
}

// flushFailedLocked fails the batches that a flush should have made durable, and
// those that were written meanwhile and wait for the next: what the flush did
// not reach is unknown, and a later flush would not say.
func (l *Log) flushFailedLocked(covered []*batch, err error) {
	covered = append(covered, l.unflushed...)
	l.unflushed = nil
	for _, b := range covered {
		b.state = batchDone
		l.failBatchLocked(b, err)
	}
	for _, b := range covered {
		l.settleLocked(b.seg)
	}
}

// failBatchLocked fails a batch and those behind it in its segment, which is sealed.
func (l *Log) failBatchLocked(b *batch, err error) {
	if b.err != nil {
		return
	}
	s := &l.space.segs[b.seg]
	for _, o := range s.flow {
		if o.block >= b.block && o.err == nil {
			o.err = err
		}
	}
	l.sealLocked(b.seg)
}

// settleLocked answers the batches at the front of a segment's flow that are
// durable or have failed.
func (l *Log) settleLocked(seg int) {
	s := &l.space.segs[seg]
	n := 0
	for _, b := range s.flow {
		if b.state != batchDone {
			break
		}
		n++
		payload := b.block + 1
		for _, p := range b.puts {
			if b.err == nil {
				l.failures, l.upkeepFailures = 0, 0
				l.insertLocked(p, b, payload)
			}
			payload += p.rec.Len / cfs.BlockSize
			l.finishLocked(p, b.err)
		}
		if b.shared {
			l.passSmallLocked()
		}
		b.state = batchAnswered
		s.dirty = s.dirty || b.err != nil // a bitmap has to leave it out
		s.writers--
		l.moves = slices.DeleteFunc(l.moves, func(o *batch) bool { return o == b })
	}
	s.flow = slices.Delete(s.flow, 0, n)
	if n > 0 && s.writers == 0 {
		l.changed.Broadcast() // its footer can be written
		l.freeIfDeadLocked(seg)
	}
}

// insertLocked makes a durable record visible in its place. One that was deleted
// while it was being put or moved is not.
func (l *Log) insertLocked(p *put, b *batch, payload uint32) {
	s := &l.space.segs[b.seg]
	blocks := p.rec.Len / cfs.BlockSize
	s.lines = append(s.lines, footerLine{
		key: p.rec.Key, group: group{p.rec.PG, p.rec.Epoch},
		header: uint16(b.block), payload: uint16(payload), blocks: uint16(blocks), revision: p.revision,
	})
	switch {
	case p.done == nil:
		l.movedLocked(p, b, payload)
		return
	case p.deleted:
		s.dirty = true // a bitmap has to cover it
		return
	}
	old, replaced, err := l.index.put(&p.rec, p.revision, location{uint32(b.seg), b.block, payload})
	if err != nil {
		p.err = err
		s.dirty = true
		return
	}
	l.rememberLocked(b.seg, payload, blocks)
	if replaced {
		l.forgetLocked(&old)
	}
	l.crcs.put(cacheKey(uint32(b.seg), payload), p.crcs)
	l.stats.Puts++
	l.stats.PutBytes += uint64(p.rec.Len)
}

// finishLocked ends a put.
func (l *Log) finishLocked(p *put, err error) {
	if p.err == nil {
		p.err = err
	}
	if p.done == nil {
		return
	}
	delete(l.pending, p.rec.Key)
	if p.deleted {
		l.doomed--
	}
	close(p.done)
	<-l.puts
	l.leaveLocked()
}
