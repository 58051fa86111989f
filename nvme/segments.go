package nvme

import (
	"crypto/rand"
	"encoding/binary"
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
)

// Streams keep apart what is likely to be deleted at different times: puts go to
// the first, and each time that the cleaner moves a record it goes one further.
const (
	putStream = iota
	survivorStream
	oldStream
	streams
)

const (
	// cleanerFloor is how many free segments puts leave to the cleaner: it empties
	// one segment into at most one new one, and frees it only then.
	cleanerFloor = 2
	// cleanBelow is how many free segments the cleaner sees to.
	cleanBelow = cleanerFloor + 2
	// reserveSegments is what a device cannot fill: one open for each stream, one
	// prepared for puts, and the free ones.
	reserveSegments = streams + 1 + cleanBelow
)

// segState is where a segment is in its life.
type segState uint8

const (
	segFree      segState = iota // nothing in it, on the device too
	segPreparing                 // its new header is being written
	segReady                     // its new header is durable
	segOpen                      // being filled
	segFull                      // filled, or sealed by a failure
	segDead                      // full, and nothing in it lives; to be freed
	segBad                       // its header could not be written, or not be read at the start
	// segKept is full, and holds more than what is known, for all one knows: something in it could not be
	// read at the start. Until the next one nothing is written to it, no footer and no bitmap either: they would leave that
	// out. So its records may be there again then though they were deleted; who follows the feed removes them.
	segKept
)

// segment is what memory knows of one.
type segment struct {
	state     segState
	stream    uint8
	unreaped  bool // the cleaner could not read it
	footed    bool // its footer is on the device
	dirty     bool // bits differ from the device's
	seq, salt uint64
	sealedSeq uint64 // the log's lastSeq when it was sealed: its age
	tail      uint32 // next block to fill
	payload   uint32 // blocks of all payloads in it, dead ones too
	records   uint32 // that were placed in it

	live, liveBlocks uint32 // records, and blocks of their payloads
	readers          uint32 // gets that read from it
	writers          uint32 // batches in flight to it
	flow             []*batch
	lines            []footerLine // until the footer is written

	bits       bitmap
	generation uint64 // of the bitmap on the device
}

func (s *segment) header(sb *Superblock, index uint32) segmentHeader {
	return segmentHeader{uuid: sb.UUID, seq: s.seq, salt: s.salt, index: index, bytes: sb.SegmentBytes, stream: s.stream}
}

// idle reports that nothing in the segment is live, read or in flight.
func (s *segment) idle() bool { return s.live == 0 && s.readers == 0 && s.writers == 0 }

// settled is the block in front of which every batch has been answered.
func (s *segment) settled() uint32 {
	if len(s.flow) > 0 {
		return s.flow[0].block
	}
	return s.tail
}

// liveCost is the blocks that the live records take, with their share of batch headers.
func (s *segment) liveCost(firstData uint32) uint32 {
	if s.live == 0 {
		return 0
	}
	headers := s.tail - firstData - s.payload
	return s.liveBlocks + uint32(uint64(headers)*uint64(s.liveBlocks)/uint64(s.payload))
}

// none is no segment.
const none = -1

// stream is where a stream's next records go.
type stream struct {
	open   int  // being filled, or none
	ready  int  // prepared to be filled next, or none
	wanted bool // somebody waits for a prepared one
}

// space is which segment comes next. Guarded by Log.mu.
type space struct {
	segs      []segment
	streams   [streams]stream
	free      []int // used ones in front: their blocks are allocated on a file
	dead      []int // to be freed
	sealed    []int // to get a footer
	preparing bool  // the maintainer is at work on a segment
	cleaning  bool  // the cleaner is at work on one
	victim    int   // that one, or none
	stuck     bool  // the cleaner has nothing to move records to: its reserve went bad
	fruitless int   // segments cleaned since puts got one
	lastSeq   uint64
}

func newSpace(segments int) space {
	sp := space{segs: make([]segment, segments), victim: none}
	for i := range sp.streams {
		sp.streams[i] = stream{open: none, ready: none}
	}
	return sp
}

// reserveLocked takes so many contiguous blocks for so many records of the
// stream's open segment, which has room for them; see roomLocked.
func (l *Log) reserveLocked(to uint8, blocks, records uint32) (seg int, block uint32) {
	seg = l.space.streams[to].open
	s := &l.space.segs[seg]
	block = s.tail
	s.tail += blocks
	s.payload += blocks - 1
	s.records += records
	s.writers++
	return seg, block
}

// roomLocked sees to it that so many blocks for so many records fit the stream's
// open segment, opening the next one when they do not. It may wait for that,
// releasing mu. The error is NoSpace or, when the device is given up, IO.
func (l *Log) roomLocked(to uint8, blocks, records uint32) error {
	sp := &l.space
	st := &sp.streams[to]
	for asked := false; ; {
		if l.broken != nil {
			return l.broken
		}
		if st.open != none {
			if s := &sp.segs[st.open]; s.tail+blocks+footerBlocks(s.records+records) <= l.segBlocks {
				return nil
			}
		}
		switch {
		case st.ready != none:
			l.sealLocked(st.open)
			st.open, st.ready = st.ready, none
			sp.segs[st.open].state = segOpen
			if to == putStream {
				sp.fruitless = 0
				l.idle.filled()
			}
			l.changed.Broadcast() // the maintainer has work
		case l.comingLocked(to):
			if !asked {
				asked, st.wanted = true, true
				l.changed.Broadcast() // the maintainer, or the cleaner, has work
			}
			l.changed.Wait()
		case st.open != none && l.deadPartLocked(st.open) >= leastWin:
			l.sealLocked(st.open) // the cleaner, or nothing, stands between it and a new life
		default:
			return cfs.Errorf("device "+l.info.Path, cfs.NoSpace, "%d segments hold live records, the rest is the cleaner's reserve", len(sp.segs)-len(sp.free))
		}
	}
}

// floor is how many free segments a stream must leave.
func floor(to uint8) int {
	if to == putStream {
		return cleanerFloor
	}
	return 0
}

// comingLocked reports whether waiting can bring a stream a prepared segment.
func (l *Log) comingLocked(to uint8) bool {
	sp := &l.space
	if sp.preparing || len(sp.dead) > 0 || len(sp.free) > floor(to) {
		return true
	}
	for i := range sp.segs {
		if s := &sp.segs[i]; s.state == segFull && s.live == 0 && (to == putStream || i != sp.victim) {
			return true // when its last reader or writer has gone; the cleaner is not to wait for itself
		}
	}
	// The cleaner may move records from one segment to another for ever without
	// winning one, when the rests that it leaves are as large as what it wins.
	return to == putStream && !l.stopping && !sp.stuck && sp.fruitless < len(sp.segs) && (sp.cleaning || l.victimLocked() != none)
}

// sealLocked ends the filling of a segment.
func (l *Log) sealLocked(seg int) {
	if seg == none || l.space.segs[seg].state != segOpen {
		return
	}
	s := &l.space.segs[seg]
	s.state, s.sealedSeq = segFull, l.space.lastSeq
	if st := &l.space.streams[s.stream]; st.open == seg {
		st.open = none
	}
	l.space.sealed = append(l.space.sealed, seg)
	l.changed.Broadcast()
	l.freeIfDeadLocked(seg)
}

// freeIfDeadLocked lets a full segment be used again once nothing in it is live,
// read or in flight.
func (l *Log) freeIfDeadLocked(seg int) {
	s := &l.space.segs[seg]
	if s.state != segFull || !s.idle() {
		return
	}
	s.state = segDead
	l.space.dead = append(l.space.dead, seg)
	l.changed.Broadcast()
}

// wantsSegmentLocked is a stream that needs a segment prepared and may have one, or none.
// For puts one is always kept ahead.
func (l *Log) wantsSegmentLocked() int {
	for to := range l.space.streams {
		st := &l.space.streams[to]
		if st.ready == none && (st.wanted || to == putStream) && len(l.space.free) > floor(uint8(to)) {
			return to
		}
	}
	return none
}

// prepareLocked starts a new life of a free segment for a stream, releasing mu
// while it writes. The header is durable before anything else is written
// there, so that no crash mixes two lives of a segment.
func (l *Log) prepareLocked(to int) error {
	sp := &l.space
	seg := sp.free[0]
	sp.free = slices.Delete(sp.free, 0, 1)
	s := &sp.segs[seg]
	invariants.Check(s.state == segFree && s.idle(), "segment %d is used anew in state %d with %d live records, %d readers, %d writers", seg, s.state, s.live, s.readers, s.writers)
	bits := s.bits
	if bits == nil {
		bits = newBitmap(l.segBlocks)
	}
	clear(bits)
	sp.lastSeq++
	*s = segment{state: segPreparing, stream: uint8(to), seq: sp.lastSeq, salt: randomSalt(), tail: l.firstData, bits: bits}
	h := s.header(&l.sb, uint32(seg))
	l.mu.Unlock()
	err := l.writeSegmentHeaders([]int{seg}, []segmentHeader{h})
	l.mu.Lock()
	if err != nil {
		s.state = segBad
		return err
	}
	l.upkeepFailures = 0
	s.state = segReady
	sp.streams[to].ready, sp.streams[to].wanted = seg, false
	return nil
}

// freeDeadLocked ends the life of dead segments: their headers say so, durably,
// before anything in them is discarded or written again. Until then a start
// finds what their bitmaps on the device say. It releases mu while it writes.
func (l *Log) freeDeadLocked() error {
	sp := &l.space
	n := min(len(sp.dead), maintainBytes/(segHeaderBlocks*cfs.BlockSize))
	segs := slices.Clone(sp.dead[:n])
	sp.dead = slices.Delete(sp.dead, 0, n)
	headers := make([]segmentHeader, n)
	for i, seg := range segs {
		headers[i] = sp.segs[seg].header(&l.sb, uint32(seg))
		headers[i].free = true
	}
	l.mu.Unlock()
	err := l.writeSegmentHeaders(segs, headers)
	if err == nil && l.info.Kind != KindFile {
		for _, seg := range segs {
			l.discard(seg)
		}
	}
	l.mu.Lock()
	for _, seg := range segs {
		s := &sp.segs[seg]
		if err != nil {
			s.state = segBad
			continue
		}
		l.upkeepFailures = 0
		s.state, s.dirty, s.lines, s.footed = segFree, false, nil, false
		sp.free = append(sp.free, seg)
		sp.stuck = false
	}
	l.sortFreeLocked()
	sp.sealed = slices.DeleteFunc(sp.sealed, func(seg int) bool { return slices.Contains(segs, seg) })
	return err
}

// sortFreeLocked puts those that were written before first, because writing allocated
// blocks of a file is faster, the lowest of them in front.
func (l *Log) sortFreeLocked() {
	sp := &l.space
	slices.SortFunc(sp.free, func(a, b int) int {
		if ua, ub := sp.segs[a].seq == 0, sp.segs[b].seq == 0; ua != ub {
			if ua {
				return 1
			}
			return -1
		}
		return a - b
	})
}

// discard gives a segment's blocks behind its header back to the device.
func (l *Log) discard(seg int) {
	err := l.dev.Discard(l.segOffset(seg, segHeaderBlocks), int64(l.segBlocks-segHeaderBlocks)*cfs.BlockSize)
	if err != nil && cfs.KindOf(err) != cfs.Unsupported {
		l.log.Warn("discard failed", "segment", seg, "err", err) // nothing depends on it
	}
}

// readFailedLocked counts a failed read, and gives the device up after too many in a row.
func (l *Log) readFailedLocked(err error) {
	l.stats.ReadErrors++
	if l.lost++; l.lost >= maxReadFailures {
		l.giveUpLocked(l.lost, err)
	}
}

// failedLocked counts a failed write, and gives the device up after too many of its kind in a row.
func (l *Log) failedLocked(inRow *int, err error) {
	l.stats.WriteErrors++
	*inRow++
	l.log.Error("device failed", "failures", *inRow, "err", err)
	if *inRow >= maxFailures {
		l.giveUpLocked(*inRow, err)
	}
}

func (l *Log) giveUpLocked(failures int, err error) {
	if l.broken != nil {
		return
	}
	l.broken = cfs.Errorf("device "+l.info.Path, cfs.IO, "given up after %d failures: %w", failures, err)
	l.log.Error("device given up", "err", err)
	l.changed.Broadcast()
}

func randomSalt() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}
