package nvme

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

const (
	// scanWindow is the read unit where the next header is not where it should
	// be, in bytes.
	scanWindow = 256 << 10
	// maxScanners bounds the segments that are scanned at once.
	maxScanners = 16
)

// scannedBatch is a whole batch header that a start has found.
type scannedBatch struct {
	seg     int
	header  batchHeader
	entries []batchEntry
}

// scannedSegment is what a start finds in a segment.
type scannedSegment struct {
	index   int
	header  segmentHeader
	batches []scannedBatch
	tail    uint32  // behind the last whole batch
	gaps    []int64 // device offsets where a header should be and is not, though one follows
	err     error
}

// recover rebuilds the index. Batches are found by their headers, in the order
// in which they were written, so that the later of two records with a key wins.
// Every header says up to where the log was durable when it was written; what
// lies behind the last such place may be torn by a crash, though its header
// is whole, so there payloads are compared with their checksums. Torn ones are
// marked on the device, because a later header will claim the place as durable.
func (l *Log) recover(arena *iopath.Arena) error {
	found, err := l.readSegmentHeaders(arena)
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b *scannedSegment) int { return cmp.Compare(a.header.seq, b.header.seq) })
	var durable position
	var suspects []scannedBatch
	for seg := range l.scanAll(arena, found) {
		if seg.err != nil {
			return seg.err
		}
		for _, off := range seg.gaps {
			l.stats.CRCFailures++
			l.log.Warn("no batch header where one should be", "segment", seg.index, "offset", off)
		}
		suspects = append(suspects, seg.batches...)
		durable = maxPosition(durable, seg.header.durable)
		for i := range seg.batches {
			durable = maxPosition(durable, seg.batches[i].header.durable)
		}
		n := 0
		for n < len(suspects) && suspects[n].pos().before(durable) {
			l.recoverBatch(&suspects[n])
			n++
		}
		suspects = slices.Delete(suspects, 0, n)
		s := &l.space.segs[seg.index]
		s.seq, s.salt, s.tail, s.state = seg.header.seq, seg.header.salt, seg.tail, segFull
		l.space.lastSeq = max(l.space.lastSeq, s.seq)
		if len(seg.batches) > 0 {
			l.space.open = seg.index // the last one is filled further
		}
	}
	if err := l.settleSuspects(arena, suspects); err != nil {
		return err
	}
	l.settleSegments()
	return nil
}

func (b *scannedBatch) pos() position { return position{b.header.seq, b.header.block} }

func maxPosition(a, b position) position {
	if a.before(b) {
		return b
	}
	return a
}

// recoverBatch puts the records of a batch into the index.
func (l *Log) recoverBatch(b *scannedBatch) {
	s := &l.space.segs[b.seg]
	for i := range b.entries {
		e := &b.entries[i]
		if e.dead {
			continue
		}
		if old, replaced := l.index.put(&e.rec, b.seg, b.header.block, e.block); replaced {
			l.forgetLocked(&old)
		}
		l.crcs.put(place(uint32(b.seg), e.block), e.crcs)
		s.live++
		l.stats.LiveBytes += int64(e.rec.Len)
	}
}

// settleSuspects compares the payloads behind the last durable place with their
// checksums, marks the torn ones, and makes all that is kept durable: the
// process may have died before it flushed.
func (l *Log) settleSuspects(arena *iopath.Arena, suspects []scannedBatch) error {
	if len(suspects) == 0 {
		return nil
	}
	buf, err := arena.Get(context.Background(), scanWindow)
	if err != nil {
		return err
	}
	defer buf.Release()
	for i := range suspects {
		b := &suspects[i]
		torn := false
		for j := range b.entries {
			e := &b.entries[j]
			if e.dead {
				continue
			}
			whole, err := l.payloadWhole(b.seg, e, buf)
			if err != nil {
				return err
			}
			if !whole {
				e.dead, torn = true, true
				l.stats.TornRecords++
				l.log.Warn("record torn by a crash", "key", e.rec.Key.String(), "offset", l.segOffset(b.seg, e.block))
			}
		}
		if torn {
			if err := l.markTorn(b, buf); err != nil {
				return err
			}
		}
		l.recoverBatch(b)
	}
	return l.dev.Flush()
}

// payloadWhole compares a record's payload with its checksums. buf has scanWindow bytes.
func (l *Log) payloadWhole(seg int, e *batchEntry, buf *iopath.Buf) (bool, error) {
	off := l.segOffset(seg, e.block)
	for at := uint32(0); at < e.rec.Len; at += scanWindow {
		p := buf.Bytes()[:min(scanWindow, e.rec.Len-at)]
		if err := l.dev.Read(p, off+int64(at)); err != nil {
			return false, err
		}
		for i := uint32(0); i < uint32(len(p))/cfs.BlockSize; i++ {
			block := at/cfs.BlockSize + i
			want := binary.LittleEndian.Uint32(e.crcs[block*crcBytes:])
			if payloadCRC(e.rec.Key, block, p[i*cfs.BlockSize:(i+1)*cfs.BlockSize]) != want {
				return false, nil
			}
		}
	}
	return true, nil
}

// payloadCRC is the checksum that the writer of a shard computes for one of its
// blocks: seeded with {session u64, counter u64, shard u32, block u32}, little endian.
func payloadCRC(k Key, block uint32, data []byte) uint32 {
	var seed [24]byte
	binary.LittleEndian.PutUint64(seed[0:], uint64(k.Stripe.Session))
	binary.LittleEndian.PutUint64(seed[8:], k.Stripe.Counter)
	binary.LittleEndian.PutUint32(seed[16:], uint32(k.Shard))
	binary.LittleEndian.PutUint32(seed[20:], block)
	return crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, data)
}

// markTorn flags the dead entries of a batch on the device. None of the batch was
// acknowledged, unless the device lost what it had made durable: so a crash
// during this write loses nothing.
func (l *Log) markTorn(b *scannedBatch, buf *iopath.Buf) error {
	off := l.segOffset(b.seg, b.header.block)
	blk := buf.Bytes()[:cfs.BlockSize]
	if err := l.dev.Read(blk, off); err != nil {
		return err
	}
	for i := range b.entries {
		if b.entries[i].dead {
			markDead(blk, &b.entries[i], off)
		}
	}
	return l.dev.Write([]iopath.WriteOp{{P: blk, Off: off}})
}

// settleSegments sorts the segments into the lists that the next ones come from.
func (l *Log) settleSegments() {
	sp := &l.space
	sp.dead = sp.dead[:0]
	for i := range sp.segs {
		s := &sp.segs[i]
		switch {
		case i == sp.open:
			s.state = segOpen
		case s.seq == 0:
			s.state = segUnused
			sp.unused = append(sp.unused, i)
		case s.live == 0:
			s.state = segFree
			sp.free = append(sp.free, i)
		default:
			s.state = segFull
		}
	}
	sp.sort()
}

// readSegmentHeaders reads the header of every segment and returns those of this formatting.
func (l *Log) readSegmentHeaders(arena *iopath.Arena) ([]*scannedSegment, error) {
	all := make([]*scannedSegment, len(l.space.segs))
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	bound := make(chan struct{}, maxScanners)
	for i := range all {
		bound <- struct{}{}
		wg.Go(func() {
			all[i], errs[i] = l.readSegmentHeader(arena, i)
			<-bound
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(all, func(s *scannedSegment) bool { return s == nil }), nil
}

// readSegmentHeader reads both copies of a segment's header: nil when neither is
// whole and of this formatting.
func (l *Log) readSegmentHeader(arena *iopath.Arena, seg int) (*scannedSegment, error) {
	buf, err := arena.Get(context.Background(), segHeaderBlocks*cfs.BlockSize)
	if err != nil {
		return nil, err
	}
	defer buf.Release()
	off := l.segOffset(seg, 0)
	if err := l.dev.Read(buf.Bytes(), off); err != nil {
		return nil, err
	}
	var out *scannedSegment
	for i := range segHeaderBlocks {
		at := off + int64(i)*cfs.BlockSize
		h, err := decodeSegmentCopy(buf.Bytes()[i*cfs.BlockSize:(i+1)*cfs.BlockSize], at)
		switch {
		case cfs.KindOf(err) == cfs.Corrupt:
			l.log.Warn("damaged segment header", "segment", seg, "err", err)
		case err != nil || h.uuid != l.sb.UUID || h.index != uint32(seg) || h.bytes != l.sb.SegmentBytes || h.seq == 0:
		case out == nil || h.seq > out.header.seq: // copies differ when a crash tore the start of a new life
			out = &scannedSegment{index: seg, header: h, tail: segHeaderBlocks}
		}
	}
	return out, nil
}

// scanAll scans segments, several at once, and yields them in order.
func (l *Log) scanAll(arena *iopath.Arena, segs []*scannedSegment) func(yield func(*scannedSegment) bool) {
	return func(yield func(*scannedSegment) bool) {
		done := make([]chan struct{}, len(segs))
		ahead := 0
		for i, seg := range segs {
			for ; ahead < len(segs) && ahead < i+maxScanners; ahead++ {
				done[ahead] = make(chan struct{})
				go func(s *scannedSegment, done chan struct{}) {
					defer close(done)
					s.err = l.scanSegment(arena, s)
				}(segs[ahead], done[ahead])
			}
			<-done[i]
			ok := yield(seg)
			seg.batches = nil
			if !ok {
				for _, d := range done[i+1 : ahead] {
					<-d
				}
				return
			}
		}
	}
}

// scanSegment finds the batches of a segment. It follows the headers; where one
// is missing (a crash tore it, or it is damaged) it looks at every block for
// the next, because batches are written side by side and a later one may be whole.
func (l *Log) scanSegment(arena *iopath.Arena, s *scannedSegment) error {
	buf, err := arena.Get(context.Background(), scanWindow)
	if err != nil {
		return err
	}
	defer buf.Release()
	w := scanner{l: l, seg: s.index, buf: buf.Bytes()}
	searching := false
	for block := uint32(segHeaderBlocks); block < l.segBlocks; {
		blk, err := w.block(block, searching)
		if err != nil {
			return err
		}
		off := l.segOffset(s.index, block)
		h, entries, err := decodeBatch(blk, &s.header, block, off, nil)
		if err != nil {
			searching = true
			block++
			continue
		}
		if searching {
			searching = false
			s.gaps = append(s.gaps, l.segOffset(s.index, s.tail))
		}
		for i := range entries {
			entries[i].crcs = bytes.Clone(entries[i].crcs)
		}
		s.batches = append(s.batches, scannedBatch{seg: s.index, header: h, entries: entries})
		block += 1 + h.payloadBlocks
		s.tail = block
	}
	return nil
}

// scanner reads a segment's blocks through a window.
type scanner struct {
	l           *Log
	seg         int
	buf         []byte
	first, next uint32 // blocks in the window
}

// block is one block; wide reads many at once, for a search.
func (w *scanner) block(block uint32, wide bool) ([]byte, error) {
	if block < w.first || block >= w.next {
		n := uint32(1)
		if wide {
			n = min(scanWindow/cfs.BlockSize, w.l.segBlocks-block)
		}
		if err := w.l.dev.Read(w.buf[:n*cfs.BlockSize], w.l.segOffset(w.seg, block)); err != nil {
			return nil, err
		}
		w.first, w.next = block, block+n
	}
	at := (block - w.first) * cfs.BlockSize
	return w.buf[at : at+cfs.BlockSize], nil
}
