package nvme

import (
	"crypto/rand"
	"encoding/binary"
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

// segState is where a segment is in its life.
type segState uint8

const (
	segUnused     segState = iota // never written since the device was formatted
	segFree                       // written before, nothing live in it
	segPreparing                  // its new header is being written
	segReady                      // its new header is durable
	segOpen                       // being filled
	segFull                       // filled, or sealed by a failure
	segDiscarding                 // dead, being discarded
	segBad                        // its header could not be written
)

// segment is what memory knows of one.
type segment struct {
	state     segState
	seq, salt uint64
	tail      uint32 // next block to fill
	live      uint32 // records
	readers   uint32 // gets that read from it
	writers   uint32 // batches in flight to it
}

func (s *segment) header(sb *Superblock, index uint32) segmentHeader {
	return segmentHeader{uuid: sb.UUID, seq: s.seq, salt: s.salt, index: index, bytes: sb.SegmentBytes}
}

// idle reports that nothing in the segment is live, read or in flight.
func (s *segment) idle() bool { return s.live == 0 && s.readers == 0 && s.writers == 0 }

// none is no segment.
const none = -1

// space is which segment comes next. Guarded by Log.mu.
type space struct {
	segs      []segment
	open      int   // being filled, or none
	ready     int   // prepared to be filled next, or none
	free      []int // written before: used again first
	unused    []int // never written, the lowest last
	dead      []int // to be discarded, then free
	preparing bool
	lastSeq   uint64
}

func newSpace(segments int) space {
	return space{segs: make([]segment, segments), open: none, ready: none}
}

// sort orders the free lists at the start: the lowest segment is taken first.
func (sp *space) sort() {
	for _, list := range [][]int{sp.free, sp.unused} {
		slices.Sort(list)
		slices.Reverse(list)
	}
}

// take picks the segment to prepare next, none when the device is full.
func (sp *space) take() int {
	for _, list := range []*[]int{&sp.free, &sp.unused} {
		if n := len(*list); n > 0 {
			i := (*list)[n-1]
			*list = (*list)[:n-1]
			return i
		}
	}
	return none
}

// coming reports whether waiting can bring a prepared segment.
func (sp *space) coming() bool {
	return sp.preparing || len(sp.free) > 0 || len(sp.unused) > 0 || len(sp.dead) > 0
}

// reserveLocked takes so many contiguous blocks of the open segment, opening the
// prepared one when they do not fit. It may wait for that, releasing mu. The
// error is NoSpace or, when the device is given up, IO.
func (l *Log) reserveLocked(blocks uint32) (seg int, block uint32, err error) {
	sp := &l.space
	for {
		if l.broken != nil {
			return none, 0, l.broken
		}
		if sp.open != none {
			if s := &sp.segs[sp.open]; s.tail+blocks <= l.segBlocks {
				block = s.tail
				s.tail += blocks
				s.writers++
				return sp.open, block, nil
			}
		}
		switch {
		case sp.ready != none:
			l.sealLocked(sp.open)
			sp.open, sp.ready = sp.ready, none
			sp.segs[sp.open].state = segOpen
			l.changed.Broadcast() // the preparer has work
		case sp.coming():
			l.changed.Wait()
		case sp.open != none && sp.segs[sp.open].idle():
			l.sealLocked(sp.open) // nothing in it is worth keeping: it comes again
		default:
			return none, 0, cfs.Errorf("device "+l.info.Path, cfs.NoSpace, "all %d segments hold live records", len(sp.segs))
		}
	}
}

// sealLocked ends the filling of a segment.
func (l *Log) sealLocked(seg int) {
	if seg == none || l.space.segs[seg].state != segOpen {
		return
	}
	l.space.segs[seg].state = segFull
	if l.space.open == seg {
		l.space.open = none
	}
	l.freeIfDeadLocked(seg)
}

// freeIfDeadLocked lets a full segment be used again once nothing in it is live,
// read or in flight.
func (l *Log) freeIfDeadLocked(seg int) {
	s := &l.space.segs[seg]
	if s.state != segFull || !s.idle() {
		return
	}
	s.state = segDiscarding
	l.space.dead = append(l.space.dead, seg)
	l.changed.Broadcast()
}

// prepareLoop erases failed batches, discards dead segments, and keeps one
// segment prepared ahead of need: its header is written and flushed before any
// record goes into it, so that no crash mixes two lives of a segment.
func (l *Log) prepareLoop() {
	defer close(l.ended)
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.stop {
		if l.broken != nil || !l.prepareStepLocked() {
			l.changed.Wait()
		}
	}
}

// prepareStepLocked does one thing of prepareLoop, false when there is none to do.
func (l *Log) prepareStepLocked() bool {
	sp := &l.space
	switch n := len(sp.dead); {
	case len(l.condemned) > 0:
		if err := l.eraseLocked(); err != nil {
			l.failedLocked(err)
		}
	case n > 0:
		seg := sp.dead[n-1]
		sp.dead = sp.dead[:n-1]
		sp.preparing = true
		l.discardLocked(seg)
		sp.preparing = false
		sp.segs[seg].state = segFree
		sp.free = append(sp.free, seg)
	case sp.ready != none:
		return false
	default:
		seg := sp.take()
		if seg == none {
			return false
		}
		sp.preparing = true
		err := l.prepareLocked(seg)
		sp.preparing = false
		if err != nil {
			sp.segs[seg].state = segBad
			l.failedLocked(err)
		} else {
			sp.segs[seg].state = segReady
			sp.ready = seg
		}
	}
	l.changed.Broadcast()
	return true
}

// eraseLocked overwrites the headers of failed batches, releasing mu meanwhile.
// Until then the durable position stays in front of them: a start would take a
// whole header behind which the payload never arrived for a record, and a
// repeated put for done.
func (l *Log) eraseLocked() error {
	failed := slices.Clone(l.condemned)
	l.mu.Unlock()
	clear(l.prepMem.Bytes())
	ops := make([]iopath.WriteOp, len(failed))
	for i, b := range failed {
		ops[i] = iopath.WriteOp{P: l.prepMem.Bytes()[:cfs.BlockSize], Off: l.segOffset(b.seg, b.pos.block)}
	}
	err := l.dev.Write(ops)
	if err == nil {
		err = l.dev.Flush()
	}
	l.mu.Lock()
	if err != nil {
		return err
	}
	l.condemned = slices.Delete(l.condemned, 0, len(failed))
	for _, b := range failed {
		l.space.segs[b.seg].writers--
		l.freeIfDeadLocked(b.seg)
	}
	return nil
}

// discardLocked gives a dead segment's blocks back to the device, releasing mu.
func (l *Log) discardLocked(seg int) {
	if l.info.Kind == KindFile {
		return
	}
	off, n := l.segOffset(seg, 0), int64(l.sb.SegmentBytes)
	l.mu.Unlock()
	err := l.dev.Discard(off, n)
	l.mu.Lock()
	if err != nil && cfs.KindOf(err) != cfs.Unsupported {
		l.log.Warn("discard failed", "segment", seg, "err", err) // nothing depends on it
	}
}

// prepareLocked starts a new life of a segment, releasing mu while it writes.
func (l *Log) prepareLocked(seg int) error {
	s := &l.space.segs[seg]
	invariants.Check(s.idle(), "segment %d is used anew with %d live records, %d readers, %d writers", seg, s.live, s.readers, s.writers)
	l.space.lastSeq++
	*s = segment{state: segPreparing, seq: l.space.lastSeq, salt: randomSalt(), tail: segHeaderBlocks}
	h := s.header(&l.sb, uint32(seg))
	h.durable = l.durableLocked()
	l.mu.Unlock()
	defer l.mu.Lock()
	off := l.segOffset(seg, 0)
	encodeSegment(l.prepMem.Bytes(), &h, off)
	if err := l.dev.Write([]iopath.WriteOp{{P: l.prepMem.Bytes(), Off: off}}); err != nil {
		return err
	}
	return l.dev.Flush()
}

// durableLocked is the place before which everything was acknowledged, or had failed and was erased.
func (l *Log) durableLocked() position {
	if len(l.condemned) > 0 {
		return l.condemned[0].pos
	}
	if len(l.flow) > 0 {
		return l.flow[0].pos
	}
	if l.space.open != none {
		s := &l.space.segs[l.space.open]
		return position{s.seq, s.tail}
	}
	return position{} // says nothing, and so is always true
}

// failedLocked counts a failure of the device, and gives it up after too many in a row.
func (l *Log) failedLocked(err error) {
	l.stats.WriteErrors++
	l.failures++
	l.log.Error("device failed", "failures", l.failures, "err", err)
	if l.failures >= maxFailures && l.broken == nil {
		l.broken = cfs.Errorf("device "+l.info.Path, cfs.IO, "given up after %d failures: %w", l.failures, err)
		l.changed.Broadcast()
	}
}

func randomSalt() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}
