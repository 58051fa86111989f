package nvme

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

const (
	// maxCopied is the payload of one batch of moved records, in bytes.
	maxCopied = cfs.MaxShardSize
	// copyHeaders is how many batch headers are read for one batch of moved records.
	copyHeaders = 64
	// leastWin is the least part of a segment that must be dead for it to be
	// cleaned: below, cleaning costs more than sixteen times what it wins.
	leastWin = 1.0 / 16
)

// clean is the goroutine that moves live records out of segments that are mostly
// dead, so that these can be used again.
//
// Which segment comes next is chosen by what cleaning it wins, how long that
// is likely to last, and what it costs (Rosenblum and Ousterhout, The Design
// and Implementation of a Log-Structured File System, 1992): dead part times
// age, over what has to be read and written. Moved records go to the next
// stream: what has lived through a cleaning or two lives long, and is not
// moved again and again together with what dies young.
func (l *Log) clean() {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.watchIdleLocked()()
	sp := &l.space
	for !l.stopping {
		seg, idle := none, false
		if l.broken == nil && !sp.stuck {
			seg, idle = l.nextVictimLocked()
		}
		if seg == none {
			l.changed.Wait()
			continue
		}
		sp.cleaning, sp.victim = true, seg
		gaveWay, err := l.cleanLocked(seg, idle)
		sp.cleaning, sp.victim = false, none
		switch {
		case !idle:
			sp.fruitless++
		case !gaveWay:
			l.idle.cleaned(l.occupiedLocked())
		}
		switch s := &sp.segs[seg]; {
		case err == nil && s.live == 0:
			l.stats.Cleaned++
		case cfs.KindOf(err) == cfs.NoSpace:
			sp.stuck = true
		case err == nil && gaveWay: // what was not moved yet stays for the next time
		case !l.stopping && l.broken == nil:
			l.log.Error("segment not cleaned", "segment", seg, "left", s.live, "err", err)
			s.unreaped = s.unreaped || err == nil // its records are not where it says
		}
		l.changed.Broadcast()
	}
}

// deadPartLocked is the part of a segment that cleaning it would win, 0 to 1.
func (l *Log) deadPartLocked(seg int) float64 {
	return float64(l.deadLocked(&l.space.segs[seg])) / float64(l.segBlocks-l.firstData)
}

// deadLocked is the blocks that cleaning a segment would win: what dead records take,
// and what was left over when it was sealed early. A rest that is smaller than
// a record can be is no win: it would only come elsewhere.
func (l *Log) deadLocked(s *segment) int64 {
	dead := s.tail - l.firstData - s.liveCost(l.firstData)
	if rest := l.segBlocks - s.tail; rest > 2*cfs.MaxShardSize/cfs.BlockSize {
		dead += rest
	}
	return int64(dead)
}

// victimLocked is the segment to clean next, none when no one is worth it.
func (l *Log) victimLocked() int {
	best, _ := l.bestLocked(l.deadLocked, false)
	return best
}

// bestLocked is the segment whose cleaning is most worth it by the blocks that it wins, none
// when that is below leastWin for all; and what all together would win. Segments that are being
// filled are looked at too when open says so.
func (l *Log) bestLocked(won func(*segment) int64, open bool) (best int, sum int64) {
	size := float64(l.segBlocks - l.firstData)
	best, bestScore := none, 0.0
	for i := range l.space.segs {
		s := &l.space.segs[i]
		full := s.state == segFull && s.live > 0
		if !full && (!open || s.state != segOpen) || s.writers > 0 || s.unreaped {
			continue
		}
		blocks := won(s)
		sum += blocks
		win := float64(blocks) / size
		if win < leastWin {
			continue
		}
		age := 1.0
		if full {
			age += float64(l.space.lastSeq - s.sealedSeq)
		}
		if score := win * age / (2 - win); score > bestScore {
			best, bestScore = i, score
		}
	}
	return best, sum
}

// cleanLocked moves the live records out of a segment, releasing mu while it
// reads and writes. Nothing in it lives when it returns nil, unless the log is
// closing, or it cleans because nothing was put or got, and gave way to what is.
func (l *Log) cleanLocked(seg int, idle bool) (gaveWay bool, err error) {
	s := &l.space.segs[seg]
	s.readers++ // it may die meanwhile, but not be freed
	defer func() {
		s.readers--
		l.freeIfDeadLocked(seg)
	}()
	lines, err := l.linesLocked(seg)
	if err != nil {
		s.unreaped = true
		return false, err
	}
	slices.SortFunc(lines, func(a, b footerLine) int { return cmp.Compare(a.payload, b.payload) })
	var moving []*batch
	for len(lines) > 0 && err == nil && !l.stopping && l.broken == nil {
		if gaveWay = idle && !l.idle.goesOn(l.stats.Gets); gaveWay {
			break
		}
		lines = slices.DeleteFunc(lines, func(f footerLine) bool { return !s.bits.get(uint32(f.payload)) })
		n := l.oneCopy(lines, min(s.stream+1, oldStream))
		if n == 0 {
			break
		}
		var b *batch
		if b, err = l.moveLocked(seg, lines[:n]); b != nil {
			moving = append(moving, b)
			lines = lines[n:]
		}
	}
	for _, b := range moving {
		for b.state != batchAnswered {
			l.changed.Wait()
		}
		err = cmp.Or(err, b.err)
	}
	return gaveWay, err
}

// linesLocked is the records of a full segment, dead ones too. It may read the
// device, releasing mu.
func (l *Log) linesLocked(seg int) ([]footerLine, error) {
	s := &l.space.segs[seg]
	if !s.footed {
		if s.lines != nil {
			return slices.Clone(s.lines), nil
		}
	}
	h := s.header(&l.sb, uint32(seg))
	l.mu.Unlock()
	defer l.mu.Lock()
	found, err := l.readSegment(&h)
	if err != nil {
		return nil, err
	}
	return found.lines, nil
}

// oneCopy is how many of the lines to move to a stream in one batch.
func (l *Log) oneCopy(lines []footerLine, to uint8) int {
	if len(lines) == 0 {
		return 0
	}
	room, bytes, headers := entryRoom, 0, 0
	limit := l.batchLimitLocked(to, maxCopied, lines[0].record().Len)
	for i := range lines {
		rec := lines[i].record()
		room -= entryBytes(rec.Len)
		bytes += int(rec.Len)
		if i == 0 || lines[i].header != lines[i-1].header {
			headers++
		}
		distance := (bytes-int(rec.Len))/cfs.BlockSize + 1
		if i > 0 && (room < 0 || bytes > limit || headers > copyHeaders || distance > maxHeaderDistance) {
			return i
		}
	}
	return len(lines)
}

// batchLimitLocked is how many bytes of payload to put into the stream's next batch, which starts with
// a record of first bytes: what fits the open segment if that does, lest its rest stay empty.
func (l *Log) batchLimitLocked(to uint8, most int, first uint32) int {
	most = min(most, l.roomBytes(l.firstData, 0))
	if open := l.space.streams[to].open; open != none {
		s := &l.space.segs[open]
		if rest := l.roomBytes(s.tail, s.records); rest >= int(first) {
			return min(most, rest)
		}
	}
	return most
}

// roomBytes is the payload that fits a segment behind its tail in one batch of as many
// records as a batch can have.
func (l *Log) roomBytes(tail, records uint32) int {
	return max(0, int(l.segBlocks)-int(tail)-1-int(footerBlocks(records+entryRoom/entryFixedBytes))) * cfs.BlockSize
}

// moveLocked writes one batch of records anew, releasing mu while it reads and
// writes; they are moved when the batch is answered. It does nothing when one of
// them was deleted while they were read: no copy may come to the device that a
// checkpoint under way does not know of.
func (l *Log) moveLocked(seg int, lines []footerLine) (*batch, error) {
	s := &l.space.segs[seg]
	h := s.header(&l.sb, uint32(seg))
	to := min(s.stream+1, oldStream)
	l.mu.Unlock()
	puts, damaged, err := l.readForMove(&h, lines)
	l.mu.Lock()
	l.stats.CRCFailures += uint64(damaged)
	if err != nil {
		s.unreaped = true
		if cfs.KindOf(err) != cfs.Corrupt {
			l.readFailedLocked(err)
		}
		return nil, err
	}
	if err := l.roomLocked(to, batchBlocks(puts), uint32(len(puts))); err != nil {
		return nil, err
	}
	for i := range lines {
		if !s.bits.get(uint32(lines[i].payload)) {
			return nil, nil
		}
	}
	b := l.startLocked(to, puts) // which has room, and so does not wait
	l.moves = append(l.moves, b)
	l.mu.Unlock()
	l.encode(b, l.copyMem.WithHeadroom())
	l.write(b, nil)
	l.mu.Lock()
	return b, nil
}

// readForMove reads records and their checksums into the cleaner's memory. A
// damaged payload moves as it is: its reader will tell, and who repairs it
// finds it by its key.
func (l *Log) readForMove(h *segmentHeader, lines []footerLine) (puts []*put, damaged int, err error) {
	seg := int(h.index)
	mem, headerMem := l.copyMem.Bytes(), l.copyHeaderMem.Bytes()
	var ops []iopath.ReadOp
	at, headers := 0, 0
	for i := range lines {
		f := &lines[i]
		if i == 0 || f.header != lines[i-1].header {
			ops = append(ops, iopath.ReadOp{P: headerMem[headers*cfs.BlockSize:][:cfs.BlockSize], Off: l.segOffset(seg, uint32(f.header))})
			headers++
		}
		n := int(f.blocks) * cfs.BlockSize
		ops = append(ops, iopath.ReadOp{P: mem[at : at+n], Off: l.segOffset(seg, uint32(f.payload))})
		at += n
	}
	if err := l.dev.ReadMany(ops); err != nil {
		return nil, 0, err
	}
	at, headers = 0, -1
	var entries []batchEntry
	for i := range lines {
		f := &lines[i]
		if i == 0 || f.header != lines[i-1].header {
			headers++
			off := l.segOffset(seg, uint32(f.header))
			if _, entries, err = decodeBatch(headerMem[headers*cfs.BlockSize:][:cfs.BlockSize], h, uint32(f.header), off, entries[:0]); err != nil {
				return nil, damaged, cfs.Errorf("device "+l.info.Path, cfs.Corrupt, "batch header at %d: %w", off, err)
			}
		}
		j := slices.IndexFunc(entries, func(e batchEntry) bool { return e.block == uint32(f.payload) && e.rec == f.record() })
		if j < 0 {
			return nil, damaged, cfs.Errorf("device "+l.info.Path, cfs.Corrupt, "batch header at %d does not have record %s", l.segOffset(seg, uint32(f.header)), f.key)
		}
		p := &put{rec: f.record(), crcs: bytes.Clone(entries[j].crcs), revision: entries[j].revision, from: location{uint32(seg), uint32(f.header), uint32(f.payload)}}
		if !payloadWhole(f.key, 0, mem[at:at+int(p.rec.Len)], p.crcs) {
			damaged++
			l.log.Warn("damaged record", "key", f.key.String(), "offset", l.segOffset(seg, uint32(f.payload)))
		}
		at += int(p.rec.Len)
		puts = append(puts, p)
	}
	return puts, damaged, nil
}

// payloadWhole compares a piece of a record's payload, from a block of it on, with its checksums.
func payloadWhole(k Key, block uint32, p, crcs []byte) bool {
	for len(p) > 0 {
		if payloadCRC(k, block, p[:cfs.BlockSize]) != binary.LittleEndian.Uint32(crcs[block*crcBytes:]) {
			return false
		}
		p = p[cfs.BlockSize:]
		block++
	}
	return true
}

// movedLocked gives a record that was written anew its new place, unless it was
// deleted meanwhile.
func (l *Log) movedLocked(p *put, b *batch, payload uint32) {
	if !l.index.replace(p.rec.Key, p.from, location{uint32(b.seg), b.block, payload}) {
		l.space.segs[b.seg].dirty = true // a bitmap has to cover it
		return
	}
	blocks := p.rec.Len / cfs.BlockSize
	hot := l.crcs.get(cacheKey(p.from.seg, p.from.payload)) != nil
	l.rememberLocked(b.seg, payload, blocks)
	l.forgetLocked(&entry{key: p.rec.Key, seg: p.from.seg, header: p.from.header, payload: p.from.payload, blocks: blocks})
	if hot {
		l.crcs.put(cacheKey(uint32(b.seg), payload), p.crcs)
	}
	l.stats.CopiedBytes += uint64(p.rec.Len)
}
