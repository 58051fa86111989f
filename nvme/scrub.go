package nvme

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

const (
	// scrubBytes is the memory of a scrub, and the most that it reads at once: the
	// largest record and its header.
	scrubBytes = cfs.MaxShardSize + cfs.BlockSize
	// scrubWalk is how many records of the index are looked at in one hold of Log.mu.
	scrubWalk = 4096
)

// DamageKind is what is wrong with a record.
type DamageKind string

// The kinds of Damage.
const (
	DamagedPayload DamageKind = "payload"    // a block does not fit its checksum
	DamagedHeader  DamageKind = "header"     // the batch header is not whole, or not the record's
	Unreadable     DamageKind = "unreadable" // the device fails to read a block
)

// Damage is a live record that is not whole.
type Damage struct {
	Record Record
	What   DamageKind
	Block  int   // the first damaged one of the payload; -1 for the header
	Offset int64 // of that block, on the device
	Err    error // of the device or the header, nil for a payload
}

// ScrubOptions adjusts a Scrub.
type ScrubOptions struct {
	// BytesPerSecond bounds what is read; 0 for no bound.
	BytesPerSecond int64
	// Report is told of each damaged record, by the goroutine that called Scrub; nil for nobody.
	Report func(Damage)
}

// ScrubTotals is what a scrub has done.
type ScrubTotals struct {
	Segments int // with live records
	Records  int
	Bytes    int64 // read, headers and footers too
	Damaged  int   // records
}

// Scrub reads every live record once and compares its payload with its checksums, while
// puts, gets, deletes and the cleaner go on. A record that is deleted or moved
// meanwhile is no damage; of those that come meanwhile, and those that are moved
// to where the scrub has been, it misses some (the cleaner compares what it moves), and
// a damaged one that is moved on may be reported twice.
//
// It returns what it has done up to its end, or to an error: Busy while another
// scrub goes on, Closed when the log is closed, Canceled or Timeout when ctx
// ends. Damage is no error, and is not mended.
func (l *Log) Scrub(ctx context.Context, opt ScrubOptions) (ScrubTotals, error) {
	op := "scrub " + l.info.Path
	mem, err := newScratch(scrubBytes)
	if err != nil {
		return ScrubTotals{}, err
	}
	defer mem.free()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return ScrubTotals{}, cfs.E(op, cfs.Closed, nil)
	case l.scrubEnd != nil:
		l.mu.Unlock()
		return ScrubTotals{}, cfs.Errorf(op, cfs.Busy, "a scrub goes on")
	}
	l.scrubEnd = cancel
	l.active++
	l.mu.Unlock()

	s := scrub{l: l, ctx: ctx, opt: opt, mem: mem.p}
	for seg := 0; seg < len(l.space.segs) && err == nil; seg++ {
		if err = ctx.Err(); err == nil {
			err = s.segment(seg)
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.scrubEnd = nil
	l.leaveLocked()
	switch {
	case err == nil:
		l.stats.LastScrub = time.Now()
		return s.totals, nil
	case l.closed:
		return s.totals, cfs.E(op, cfs.Closed, nil)
	}
	return s.totals, cfs.E(op, contextKind(err), err)
}

// scrub is one under way.
type scrub struct {
	l      *Log
	ctx    context.Context
	opt    ScrubOptions
	mem    []byte
	totals ScrubTotals
}

// segment scrubs a segment. Its error is the context's.
func (s *scrub) segment(seg int) error {
	l := s.l
	began := time.Now()
	l.mu.Lock()
	g := &l.space.segs[seg]
	if !g.scrubbable() {
		l.mu.Unlock()
		return nil
	}
	h := g.header(&l.sb, uint32(seg))
	read := uint32(0) // blocks, about
	if g.footed {
		read = max(footerFirst, footerBlocks(g.records))
	}
	g.readers++
	lines, err := l.linesLocked(seg)
	live := 0
	for i := range lines {
		if g.bits.get(uint32(lines[i].payload)) {
			live++
		}
	}
	whole := err == nil && live == int(g.live)
	l.endReadLocked(seg)
	l.mu.Unlock()
	if !whole { // the footer is damaged, and a batch header too
		l.log.Warn("segment does not say all that it holds", "segment", seg, "err", err)
		lines = l.linesOfIndex(seg)
	}
	s.totals.Segments++
	slices.SortFunc(lines, func(a, b footerLine) int { return cmp.Compare(a.payload, b.payload) })
	if err := s.pause(began, int64(read)*cfs.BlockSize); err != nil {
		return err
	}
	for more := true; more; {
		if lines, more, err = s.chunk(&h, lines); err != nil {
			return err
		}
	}
	return nil
}

// scrubbable reports that there may be live records to read.
func (s *segment) scrubbable() bool {
	return s.live > 0 && (s.state == segOpen || s.state == segFull || s.state == segKept)
}

// endReadLocked undoes a readers++ of a segment.
func (l *Log) endReadLocked(seg int) {
	l.space.segs[seg].readers--
	l.freeIfDeadLocked(seg)
}

// linesOfIndex is the live records of a segment by the index alone, which it has to go through.
func (l *Log) linesOfIndex(seg int) []footerLine {
	var lines []footerLine
	var last Key
	var after *Key
	for {
		n := 0
		l.mu.Lock()
		l.index.each(after, func(e entry) bool {
			if int(e.seg) == seg {
				lines = append(lines, footerLine{key: e.key, group: e.group,
					header: uint16(e.header), payload: uint16(e.payload), blocks: uint16(e.blocks)})
			}
			last = e.key
			n++
			return n < scrubWalk
		})
		l.mu.Unlock()
		if n < scrubWalk {
			return lines
		}
		after = &last
	}
}

// chunk scrubs the first of the lines that live, as many as fit the memory, and
// returns the others; more is false when there are none, or the segment has
// ended its life. The segment is held only while it is read, so that a slow scrub
// keeps no space from being used again.
func (s *scrub) chunk(h *segmentHeader, lines []footerLine) (rest []footerLine, more bool, err error) {
	l, seg := s.l, int(h.index)
	began := time.Now()
	l.mu.Lock()
	g := &l.space.segs[seg]
	if g.seq != h.seq || !g.scrubbable() {
		l.mu.Unlock()
		return nil, false, nil
	}
	lines = slices.DeleteFunc(lines, func(f footerLine) bool { return !g.bits.get(uint32(f.payload)) })
	if len(lines) == 0 {
		l.mu.Unlock()
		return nil, false, nil
	}
	g.readers++
	l.mu.Unlock()

	r := scrubRead{l: l, h: h, mem: s.mem}
	n := r.plan(lines)
	damaged := r.read(lines[:n])

	l.mu.Lock()
	damaged = slices.DeleteFunc(damaged, func(d foundDamage) bool {
		e, ok := l.index.get(d.line.key)
		return !ok || e.location() != location{h.index, uint32(d.line.header), uint32(d.line.payload)} || g.seq != h.seq
	})
	for i := range damaged {
		if damaged[i].What != Unreadable {
			l.stats.CRCFailures++
		}
	}
	l.stats.ReadErrors += uint64(len(r.lost))
	l.stats.ScrubbedBytes += uint64(r.bytes)
	l.stats.ScrubDamaged += uint64(len(damaged))
	l.endReadLocked(seg)
	l.mu.Unlock()

	s.totals.Records += n
	s.totals.Bytes += int64(r.bytes)
	s.totals.Damaged += len(damaged)
	if s.opt.Report != nil {
		for i := range damaged {
			s.opt.Report(damaged[i].Damage)
		}
	}
	return lines[n:], len(lines) > n, s.pause(began, int64(r.bytes))
}

// pause waits until so many bytes, read since began, keep to the rate.
func (s *scrub) pause(began time.Time, bytes int64) error {
	wait := scrubPause(bytes, s.opt.BytesPerSecond, time.Since(began))
	if wait <= 0 {
		return s.ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// scrubPause is how long to wait after bytes were read in the time that it took.
func scrubPause(bytes, perSecond int64, took time.Duration) time.Duration {
	if perSecond <= 0 {
		return 0
	}
	return time.Duration(float64(bytes)/float64(perSecond)*float64(time.Second)) - took
}

// scrubRead is one reading of records and their headers.
type scrubRead struct {
	l     *Log
	h     *segmentHeader
	mem   []byte
	ops   []iopath.ReadOp
	bytes int
	lost  map[int64]error // blocks that cannot be read
}

// foundDamage is a Damage and where its record was.
type foundDamage struct {
	Damage
	line *footerLine
}

// plan takes as many of the lines as fit the memory: each payload behind its
// header, which is read once for those that follow on each other.
func (r *scrubRead) plan(lines []footerLine) (n int) {
	for i := range lines {
		f := &lines[i]
		need := int(f.blocks)
		fresh := i == 0 || f.header != lines[i-1].header
		if fresh {
			need++
		}
		if r.bytes+need*cfs.BlockSize > len(r.mem) {
			return i
		}
		if fresh {
			r.add(uint32(f.header), 1)
		}
		r.add(uint32(f.payload), uint32(f.blocks))
	}
	return len(lines)
}

// add reads blocks too, in one operation with those before them where they follow on those.
func (r *scrubRead) add(block, blocks uint32) {
	off, size := r.l.segOffset(int(r.h.index), block), int(blocks)*cfs.BlockSize
	r.bytes += size
	if n := len(r.ops); n > 0 && r.ops[n-1].Off+int64(len(r.ops[n-1].P)) == off {
		last := &r.ops[n-1]
		start := r.bytes - size - len(last.P)
		last.P = r.mem[start:r.bytes]
		return
	}
	r.ops = append(r.ops, iopath.ReadOp{P: r.mem[r.bytes-size : r.bytes], Off: off})
}

// read reads what was planned for the lines and compares it.
func (r *scrubRead) read(lines []footerLine) (damaged []foundDamage) {
	if err := r.l.dev.ReadMany(r.ops); err != nil {
		r.lost = map[int64]error{}
		each := r.l.layout
		each.skip = func(off int64, err error) error {
			r.lost[off] = err
			return nil
		}
		for i := range r.ops {
			_ = each.read(r.ops[i].P, r.ops[i].Off) // which has passed over all that it cannot read
		}
	}
	seg, at := int(r.h.index), 0
	var entries []batchEntry
	var headerErr error
	for i := range lines {
		f := &lines[i]
		headerOff := r.l.segOffset(seg, uint32(f.header))
		if i == 0 || f.header != lines[i-1].header {
			if headerErr = r.lost[headerOff]; headerErr == nil {
				_, entries, headerErr = decodeBatch(r.mem[at:at+cfs.BlockSize], r.h, uint32(f.header), headerOff, entries[:0])
			}
			at += cfs.BlockSize
		}
		p := r.mem[at : at+int(f.blocks)*cfs.BlockSize]
		at += len(p)
		j := slices.IndexFunc(entries, func(e batchEntry) bool { return e.block == uint32(f.payload) && e.rec == f.record() })
		d := Damage{Record: f.record(), Block: none, Offset: headerOff, Err: headerErr}
		switch {
		case r.lost[headerOff] != nil:
			d.What = Unreadable
		case headerErr != nil || j < 0:
			d.What = DamagedHeader
			d.Err = cmp.Or(headerErr, error(cfs.Errorf("batch header", cfs.Corrupt, "it does not have the record")))
		default:
			d.What, d.Block = r.compare(f, p, entries[j].crcs)
			if d.What == "" {
				continue
			}
			d.Offset = r.l.segOffset(seg, uint32(f.payload)+uint32(d.Block))
			d.Err = r.lost[d.Offset]
		}
		damaged = append(damaged, foundDamage{d, f})
	}
	return damaged
}

// compare is what is wrong with a payload and where, "" when nothing is.
func (r *scrubRead) compare(f *footerLine, p, crcs []byte) (DamageKind, int) {
	first := r.l.segOffset(int(r.h.index), uint32(f.payload))
	for i := range int(f.blocks) {
		at := i * cfs.BlockSize
		switch {
		case r.lost[first+int64(at)] != nil:
			return Unreadable, i
		case !payloadWhole(f.key, uint32(i), p[at:at+cfs.BlockSize], crcs):
			return DamagedPayload, i
		}
	}
	return "", none
}
