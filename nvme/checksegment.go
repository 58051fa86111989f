package nvme

import (
	"fmt"

	"github.com/claudefs/claudefs/cfs"
)

// fate is what a check finds a record to be.
type fate uint8

const (
	fateDead     fate = iota // its bit is clear, or the footer leaves it out
	fateLive                 // a damaged one too: a start finds it
	fateDoubtful             // it lives if its payload is whole
	fateTorn                 // and that is not
)

// segmentCheck is the check of one segment.
type segmentCheck struct {
	layout // whose hooks are this segment's
	c      *checker
	seg    int
	found  *foundSegment // by the batch headers; nil when no header is whole
	fates  []fate        // of the lines of found
	footer foundSegment  // by the footer

	problems []Problem
	report   SegmentReport
	lostAt   map[int64]int // blocks that cannot be read: their problems
	out      bool          // a start leaves it out
	starting bool          // a start would read what is read now

	headerFlaws, bitmapFlaws   int
	torn, tornHeaders, omitted int
	verifiedBytes              int64
	extra                      []Key // live by the footer, without a batch header
}

func newSegmentCheck(c *checker, seg int) *segmentCheck {
	s := &segmentCheck{layout: c.layout, c: c, seg: seg}
	s.report = SegmentReport{Segment: seg, State: SegmentUnused}
	s.layout.skip = s.lose
	s.layout.damaged = s.note
	return s
}

// lose passes over a block that cannot be read.
func (s *segmentCheck) lose(off int64, err error) error {
	if _, again := s.lostAt[off]; again {
		return nil
	}
	if err := s.c.canceled(); err != nil {
		return err
	}
	if n := s.c.lostCount.Add(1); n > maxLostBlocks {
		return cfs.Errorf("check "+s.c.report.Path, cfs.IO, "given up, more than %d blocks cannot be read: %w", maxLostBlocks, err)
	}
	if s.starting && s.c.startLost.Add(1) == maxLostAtStart+1 {
		s.c.tooMany.Store(&err)
	}
	if s.lostAt == nil {
		s.lostAt = map[int64]int{}
	}
	s.lostAt[off] = len(s.problems)
	s.problems = append(s.problems, Problem{Kind: ProblemUnreadable, Segment: s.seg, Offset: off, Text: err.Error()})
	return nil
}

// note takes a damaged part that was passed over.
func (s *segmentCheck) note(f flaw) {
	kind := ProblemFooter
	switch f.what {
	case partHeader:
		kind = ProblemHeader
		s.headerFlaws++
	case partBitmap:
		kind = ProblemBitmap
		s.bitmapFlaws++
	}
	s.problems = append(s.problems, Problem{Kind: kind, Segment: s.seg, Offset: f.off, Crash: true, Text: f.err.Error()})
}

// add notes a problem at a block of the segment.
func (s *segmentCheck) add(kind ProblemKind, block uint32, crash bool, format string, args ...any) {
	s.problems = append(s.problems, Problem{
		Kind: kind, Segment: s.seg, Offset: s.segOffset(s.seg, block), Crash: crash, Text: fmt.Sprintf(format, args...)})
}

// addKey notes a problem of a record.
func (s *segmentCheck) addKey(kind ProblemKind, block uint32, key Key, format string, args ...any) {
	s.add(kind, block, false, format, args...)
	s.problems[len(s.problems)-1].Key = key.String()
}

// unexplain says of the problems of a kind that no crash leaves them.
func (s *segmentCheck) unexplain(kind ProblemKind) {
	for i := range s.problems {
		if s.problems[i].Kind == kind {
			s.problems[i].Crash = false
		}
	}
}

// readHead reads the segment's header and bitmaps.
func (s *segmentCheck) readHead(mem []byte) error {
	s.starting = true
	f, lost, err := s.layout.readHead(s.seg, mem)
	if err != nil {
		return err
	}
	if s.out = lost; lost {
		s.report.State = SegmentLost
	}
	if s.found = f; f == nil {
		return nil
	}
	s.report.Sequence, s.report.Stream = f.header.seq, int(f.header.stream)
	switch {
	case f.header.free:
		s.report.State = SegmentFree
	case !lost:
		s.report.State = SegmentOpen
	}
	if s.bitmapFlaws == bitmapSlots { // they are written in turn
		s.unexplain(ProblemBitmap)
	}
	return nil
}

// read reads the rest of the segment and compares it.
func (s *segmentCheck) read(mem []byte) error {
	if err := s.c.canceled(); err != nil {
		return err
	}
	f := s.found
	switch {
	case s.out:
		return nil
	case f == nil && s.headerFlaws > 0:
		return s.readHeaderless(mem)
	case f == nil || f.header.free:
		return nil
	}
	s.footer.header = f.header
	if err := s.readFooter(&s.footer, mem); err != nil {
		return err
	}
	if s.footer.footed {
		s.report.State = SegmentSealed
	}
	s.starting = !s.footer.footed
	if err := s.scanSegment(f, mem); err != nil {
		return err
	}
	s.report.Records = len(f.lines)
	s.report.UsedBytes = int64(f.fill.tail) * cfs.BlockSize
	s.compare()
	return s.verify(mem)
}

// readHeaderless looks for records in a segment both of whose header copies are
// damaged or missing. A crash leaves that when it interrupts the start of a new life, and then
// there are none, or the end of one, and then all are dead.
func (s *segmentCheck) readHeaderless(mem []byte) error {
	s.starting = false
	var tried []segmentHeader
	for i := range uint32(segHeaderBlocks) {
		blk := mem[:cfs.BlockSize]
		if err := s.layout.read(blk, s.segOffset(s.seg, i)); err != nil {
			return err
		}
		h := segmentFields(blk)
		if blk[11] ^= segFlagFree; blockSealed(blk, s.segOffset(s.seg, i)) {
			return nil // the flag is of one writing and the checksum of the other
		}
		if h.uuid != s.sb.UUID || h.index != uint32(s.seg) || h.bytes != s.sb.SegmentBytes || h.free || len(tried) > 0 && tried[0] == h {
			continue
		}
		tried = append(tried, h)
	}
	for _, h := range tried {
		f := &foundSegment{header: h}
		if err := s.scanSegment(f, mem); err != nil {
			return err
		}
		if len(f.lines) > 0 {
			s.unexplain(ProblemHeader)
			s.add(ProblemHeader, 0, false, "no copy is whole: the segment's %d records are lost", len(f.lines))
			return nil
		}
	}
	return nil
}

// compare holds the footer and the bitmap against the records under batch
// headers, and decides what lives.
func (s *segmentCheck) compare() {
	f := s.found
	at := make(map[uint16]int, len(f.lines)) // by payload
	for i := range f.lines {
		at[f.lines[i].payload] = i
	}
	listed := s.compareFooter(at)
	s.fates = make([]fate, len(f.lines))
	for i := range f.lines {
		line := &f.lines[i]
		switch {
		case !f.lives(line):
		case s.footer.footed && !listed[i]:
			s.omitted++
		case !s.footer.footed && uint32(line.header) >= f.durable:
			s.fates[i] = fateDoubtful
		default:
			s.fates[i] = fateLive
		}
	}
	if f.bitmap.generation > 0 {
		s.compareBitmap(at)
	}
	s.compareBroken()
}

// compareFooter says which records the footer lists.
func (s *segmentCheck) compareFooter(at map[uint16]int) (listed []bool) {
	f := s.found
	if !s.footer.footed {
		return nil
	}
	if own := s.footer.fill.tail; f.fill.tail > own {
		s.add(ProblemFooter, s.segBlocks-1, false, "it ends the batches at block %d, they go on to block %d", own, f.fill.tail)
	}
	listed = make([]bool, len(f.lines))
	for i := range s.footer.lines {
		line := &s.footer.lines[i]
		n, ok := at[line.payload]
		switch {
		case !ok || f.lines[n] != *line:
			s.addKey(ProblemLine, uint32(line.payload), line.key, "the footer's record is under no batch header at block %d", line.header)
			if f.lives(line) {
				s.extra = append(s.extra, line.key)
			}
		case listed[n]:
			s.addKey(ProblemLine, uint32(line.payload), line.key, "the footer lists it twice")
		default:
			listed[n] = true
		}
	}
	return listed
}

// compareBitmap looks for bits that no record has.
func (s *segmentCheck) compareBitmap(at map[uint16]int) {
	f := s.found
	slot := segHeaderBlocks + uint32(f.bitmap.generation%bitmapSlots)*bitmapBlocks(s.segBlocks)
	if f.bitmap.covered < s.firstData || f.bitmap.covered > s.segBlocks {
		s.add(ProblemBitmap, slot, false, "it covers what is in front of block %d of %d", f.bitmap.covered, s.segBlocks)
	}
	inFooter := make(map[uint16]bool, len(s.footer.lines))
	for i := range s.footer.lines {
		inFooter[s.footer.lines[i].payload] = true
	}
	for b := range uint32(len(f.bits) * 64) {
		if !f.bits.get(b) {
			continue
		}
		_, ok := at[uint16(b)]
		switch {
		case b <= s.firstData || b >= s.segBlocks || b >= f.bitmap.covered:
			s.add(ProblemBit, slot, false, "bit %d is set, outside of blocks %d to %d", b, s.firstData+1, min(s.segBlocks, f.bitmap.covered)-1)
		case !ok && !inFooter[uint16(b)]:
			s.add(ProblemBit, b, false, "a live record should start here, and no batch header has it")
		}
	}
}

// compareBroken judges damaged batch headers. Behind what was durable a crash leaves
// them. In front of it too, when the segment was filled further afterwards; but then
// no bit and no footer knows of a record there.
func (s *segmentCheck) compareBroken() {
	f := s.found
	for _, b := range f.broken {
		end := s.segBlocks
		for i := range f.lines {
			if h := uint32(f.lines[i].header); h > b {
				end = h
				break
			}
		}
		known := false
		for i := range s.footer.lines {
			known = known || uint32(s.footer.lines[i].header) == b
		}
		for p := b + 1; f.bitmap.generation > 0 && p < min(end, f.bitmap.covered); p++ {
			known = known || f.bits.get(p)
		}
		if !known && !s.footer.footed && b >= f.durable {
			s.tornHeaders++
			continue
		}
		s.add(ProblemBatch, b, !known, "it is damaged, its records are not found by it")
	}
}

// verify compares payloads with their checksums.
func (s *segmentCheck) verify(mem []byte) error {
	w := scanner{l: &s.layout, seg: s.seg, buf: mem}
	for i := range s.fates {
		doubtful := s.fates[i] == fateDoubtful
		if s.fates[i] == fateDead || s.c.opt.Quick && !doubtful {
			continue
		}
		if err := s.c.canceled(); err != nil {
			return err
		}
		s.starting = doubtful
		line := &s.found.lines[i]
		bad, err := w.badBlock(line, s.found.crcs[i])
		if err != nil {
			return err
		}
		s.verifiedBytes += int64(line.blocks) * cfs.BlockSize
		if doubtful {
			s.fates[i] = fateLive
		}
		if bad == none {
			continue
		}
		block := uint32(line.payload) + uint32(bad)
		problem, lost := s.lostAt[s.segOffset(s.seg, block)]
		switch {
		case lost:
			s.problems[problem].Key = line.key.String()
		case doubtful:
			s.fates[i] = fateTorn
			s.torn++
			if f := s.found; f.bitmap.generation > 0 && block < f.bitmap.covered {
				s.addKey(ProblemPayload, block, line.key, "block %d of %d does not fit its checksum, though a bitmap says that it was durable; a start takes it for torn", bad, line.blocks)
			}
		default:
			s.addKey(ProblemPayload, block, line.key, "block %d of %d does not fit its checksum", bad, line.blocks)
		}
	}
	return nil
}
