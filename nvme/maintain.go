package nvme

import (
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// maintainBytes is the memory in which the maintainer encodes headers and
// bitmaps, and that in which it encodes footers.
const maintainBytes = 256 << 10

// maintain is the goroutine that writes what belongs to segments and not to
// records: it keeps a prepared segment ahead of puts, ends the life of dead
// segments, writes footers and, now and then, the bitmaps that have changed.
// It alone writes these, so they never meet a new life of their segment.
func (l *Log) maintain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var due *time.Timer
	due = time.AfterFunc(l.interval, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.checkpoint = true
		l.changed.Broadcast()
		if !l.stop {
			due.Reset(l.interval)
		}
	})
	defer due.Stop()
	for {
		step := l.nextStepLocked()
		if step == nil {
			if l.stop {
				break
			}
			l.changed.Wait()
			continue
		}
		l.space.preparing = true
		err := step()
		l.space.preparing = false
		if err != nil {
			l.failedLocked(&l.upkeepFailures, err)
			l.flushFailedLocked(nil, err) // it may have been a flush that failed, for puts too
		}
		l.changed.Broadcast()
	}
	if l.broken == nil {
		l.closeErr = l.checkpointLocked()
	}
}

// nextStepLocked is what the maintainer does next, nil for nothing.
func (l *Log) nextStepLocked() func() error {
	if l.broken != nil {
		return nil
	}
	if to := l.wantsSegmentLocked(); to != none {
		return func() error { return l.prepareLocked(to) }
	}
	if len(l.space.dead) > 0 {
		return l.freeDeadLocked
	}
	for _, seg := range l.space.sealed {
		if s := &l.space.segs[seg]; s.writers == 0 {
			return func() error { return l.writeFooterLocked(seg) }
		}
	}
	if l.checkpoint {
		return func() error { l.checkpoint = false; return l.checkpointLocked() }
	}
	return nil
}

// writeSegmentHeaders writes headers of segments and makes them durable.
func (l *Log) writeSegmentHeaders(segs []int, headers []segmentHeader) error {
	const each = segHeaderBlocks * cfs.BlockSize
	ops := make([]iopath.WriteOp, len(segs))
	for i, seg := range segs {
		off := l.segOffset(seg, 0)
		p := l.maintainMem.Bytes()[i*each : (i+1)*each]
		encodeSegment(p, &headers[i], off)
		ops[i] = iopath.WriteOp{P: p, Off: off}
	}
	if err := l.dev.Write(ops); err != nil {
		return err
	}
	return l.dev.Flush()
}

// writeFooterLocked writes the footer of a sealed segment whose batches have all
// been answered, releasing mu meanwhile. Records that failed or were deleted by
// now are not in it. It needs no flush: without a footer a start follows the
// batch headers, and with one it need not doubt any payload.
func (l *Log) writeFooterLocked(seg int) error {
	sp := &l.space
	s := &sp.segs[seg]
	sp.sealed = slices.DeleteFunc(sp.sealed, func(i int) bool { return i == seg })
	lines := slices.DeleteFunc(s.lines, func(f footerLine) bool { return !s.bits.get(uint32(f.payload)) })
	s.lines = nil
	h := s.header(&l.sb, uint32(seg))
	at := fill{s.tail, s.payload}
	l.mu.Unlock()
	err := l.writeFooter(&h, at, lines)
	l.mu.Lock()
	if s.footed = err == nil; s.footed {
		l.upkeepFailures = 0
	}
	return err
}

func (l *Log) writeFooter(h *segmentHeader, at fill, lines []footerLine) error {
	parts := footerBlocks(uint32(len(lines)))
	first := l.segBlocks - parts
	mem := l.maintainFooter.Bytes()
	for part := uint32(0); part < parts; {
		n := min(parts-part, maintainBytes/cfs.BlockSize)
		off := l.segOffset(int(h.index), first+part)
		for i := range n {
			encodeFooterPart(mem[i*cfs.BlockSize:(i+1)*cfs.BlockSize], h, at, lines, part+i, off+int64(i)*cfs.BlockSize)
		}
		if err := l.dev.Write([]iopath.WriteOp{{P: mem[:n*cfs.BlockSize], Off: off}}); err != nil {
			return err
		}
		part += n
	}
	return nil
}

// checkpointLocked writes the bitmaps that have changed and then the feed
// position that they stand for, releasing mu while it writes. Deletes that come
// meanwhile may be in it: they are only durable early. A record that the cleaner
// moves meanwhile lies behind what the bitmap of its new segment covers, and so
// lives; those that it is moving now may have been deleted, so they are waited for, and
// so are puts that were deleted.
func (l *Log) checkpointLocked() error {
	sp := &l.space
	feed := l.feed
	l.stats.Checkpoints++
	for _, b := range l.doubtfulLocked() {
		for b.state != batchAnswered {
			l.changed.Wait()
		}
	}
	blocks := bitmapBlocks(l.segBlocks)
	slotBytes := int(blocks) * cfs.BlockSize
	var ops []iopath.WriteOp
	var written []int
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		l.mu.Unlock()
		err := l.dev.Write(ops)
		l.mu.Lock()
		ops = ops[:0]
		return err
	}
	var err error
	for seg := 0; seg < len(sp.segs) && err == nil; seg++ {
		s := &sp.segs[seg]
		if !s.dirty || s.state == segKept { // a dirty one has had records
			continue
		}
		s.dirty = false
		written = append(written, seg)
		h := s.header(&l.sb, uint32(seg))
		next := bitmapHeader{generation: s.generation + 1, covered: s.settled()}
		off := l.segOffset(seg, segHeaderBlocks+uint32(next.generation%bitmapSlots)*blocks)
		p := l.maintainMem.Bytes()[len(ops)*slotBytes:][:slotBytes]
		encodeBitmap(p, &h, &next, s.bits, off)
		if ops = append(ops, iopath.WriteOp{P: p, Off: off}); (len(ops)+1)*slotBytes > maintainBytes {
			err = flush()
		}
	}
	if err == nil {
		err = flush()
	}
	if err == nil && len(written) > 0 {
		l.mu.Unlock()
		err = l.dev.Flush()
		l.mu.Lock()
	}
	for _, seg := range written {
		// After a failure the same slot comes again: the other is whole.
		if s := &sp.segs[seg]; err == nil {
			s.generation++
			l.upkeepFailures = 0
		} else {
			s.dirty = true
		}
	}
	if err != nil || feed == l.state.feedPosition {
		return err
	}
	return l.writeStateLocked(deviceState{generation: l.state.generation + 1, feedPosition: feed})
}

// writeStateLocked stores the device's state durably, releasing mu meanwhile.
func (l *Log) writeStateLocked(st deviceState) error {
	p := l.maintainMem.Bytes()[:cfs.BlockSize]
	encodeState(p, l.sb.UUID, &st)
	l.mu.Unlock()
	err := l.dev.Write([]iopath.WriteOp{{P: p, Off: stateOffset(st.generation)}})
	if err == nil {
		err = l.dev.Flush()
	}
	l.mu.Lock()
	if err == nil {
		l.state = st
		l.upkeepFailures = 0
	}
	return err
}
