package nvme

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/claudefs/claudefs/cfs"
)

// maxScanners bounds the segments that are read at once at a start.
const maxScanners = 8

// maxLostAtStart is how many blocks may be unreadable at a start: a device with more fails it.
const maxLostAtStart = maxReadFailures

// lostLives is by how much the sequence numbers of lives go on behind the highest known one when the
// header of a segment cannot be read, besides the number of segments: the segment may have a higher
// one. Each segment that was prepared since takes one, and each start at most one more for each stream.
const lostLives = 1 << 16

// recovery is a start under way.
type recovery struct {
	layout   // passes over what cannot be read
	l        *Log
	torn     bool // some payloads were
	unfooted [streams][]int
	mem      []byte

	mu   sync.Mutex
	lost map[int64]bool // offsets of the blocks that cannot be read
}

// recover rebuilds the index from the footers and bitmaps of sealed segments and
// the batch headers of the others. Of two records with one key the one with the higher
// revision counts: it replaced the other. Two of one revision are equal, because keys are never
// used twice: one was moved, or put again after a failure. The one in the later segment counts.
//
// Each batch header says up to where its segment was durable when it was
// written; payloads behind the last such place may be torn by a crash though
// their header is whole, so they are compared with their checksums. The
// bitmaps then omit the torn ones, durably, before anything is put behind them.
//
// Blocks that cannot be read cost what they hold and nothing else: a segment whose header or bitmap is lost
// is left out, bad until the next start, and its records are missing; a lost footer is
// none; records whose batch header is lost, and that no footer names, are missing; a
// payload is its reader's to find. What is missing may be read at the next start, so nothing overwrites
// it: a segment without a footer of which a block was lost is kept as it is, see segKept.
func (l *Log) recover() error {
	r := &recovery{layout: l.layout, l: l, lost: map[int64]bool{}}
	r.skip = r.lose
	state, err := r.readState()
	if err != nil {
		return err
	}
	l.state, l.feed = state, state.feedPosition
	found, err := r.readHeaders()
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b *foundSegment) int { return cmp.Compare(a.header.seq, b.header.seq) })
	mem, err := newScratch(scanWindow)
	if err != nil {
		return err
	}
	defer mem.free()
	r.mem = mem.p
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := readInOrder(found, r.readRecords, r.adopt); err != nil {
		return err
	}
	r.settle()
	if r.lostIn(func(_ int, block uint32) bool { return block < segHeaderBlocks }) {
		l.space.lastSeq += uint64(len(l.space.segs)) + lostLives
	}
	l.stats.ReadErrors += uint64(len(r.lost))
	// What was read must be durable: the process may have died before it flushed.
	if err := l.dev.Flush(); err != nil {
		return err
	}
	if r.torn {
		return l.checkpointLocked()
	}
	return nil
}

// readState reads the newest state of the device.
func (l *layout) readState() (newest deviceState, err error) {
	mem, err := newScratch(cfs.BlockSize)
	if err != nil {
		return newest, err
	}
	defer mem.free()
	for slot := range uint64(stateSlots) {
		off := stateOffset(slot)
		if err := l.read(mem.p, off); err != nil {
			return newest, err
		}
		st, err := decodeState(mem.p, l.sb.UUID, off)
		if cfs.KindOf(err) == cfs.Corrupt {
			l.damaged(flaw{partState, none, off, err})
		}
		if err == nil && st.generation > newest.generation {
			newest = st
		}
	}
	return newest, nil
}

// lose passes over a block that cannot be read.
func (r *recovery) lose(off int64, err error) error {
	if cfs.KindOf(err) != cfs.IO {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost[off] {
		return nil
	}
	r.lost[off] = true
	if len(r.lost) > maxLostAtStart {
		return cfs.Errorf("open log on "+r.l.info.Path, cfs.IO, "given up, more than %d blocks cannot be read: %w", maxLostAtStart, err)
	}
	r.l.log.Error("block cannot be read at the start", "offset", off, "err", err)
	return nil
}

// lostIn reports whether a block of a segment was lost for which is says so.
func (r *recovery) lostIn(is func(seg int, block uint32) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock() // segments that come later may still be read
	for off := range r.lost {
		at := off - HeaderAreaBytes
		if at >= 0 && is(int(at/int64(r.sb.SegmentBytes)), uint32(at%int64(r.sb.SegmentBytes)/cfs.BlockSize)) {
			return true
		}
	}
	return false
}

// incomplete reports whether there may be more in a segment than was read. Its header and bitmaps do not
// count: without them it is left out.
func (r *recovery) incomplete(f *foundSegment) bool {
	return !f.header.free && !f.footed && r.lostIn(func(seg int, block uint32) bool {
		return seg == int(f.header.index) && block >= r.firstData
	})
}

// readHeaders reads the headers of all segments and returns those of this formatting.
func (r *recovery) readHeaders() ([]*foundSegment, error) {
	segs := r.l.space.segs
	all := make([]*foundSegment, len(segs))
	out := make([]bool, len(segs))
	err := inParallel(len(all), nil, func(i int, mem []byte) (err error) {
		all[i], out[i], err = r.readHead(i, mem)
		return err
	})
	for i := range segs {
		if err != nil || !out[i] {
			continue
		}
		segs[i].state = segBad
		r.l.log.Error("segment left out: its header or bitmap cannot be read", "segment", i, "offset", r.segOffset(i, 0))
		if all[i] != nil {
			r.l.space.lastSeq = max(r.l.space.lastSeq, all[i].header.seq)
			all[i] = nil
		}
	}
	return slices.DeleteFunc(all, func(f *foundSegment) bool { return f == nil }), err
}

// adopt takes a segment over. It is called in the order of the segments' lives.
func (r *recovery) adopt(f *foundSegment) error {
	l, seg := r.l, int(f.header.index)
	s := &l.space.segs[seg]
	*s = segment{seq: f.header.seq, salt: f.header.salt, stream: f.header.stream, sealedSeq: f.header.seq,
		generation: f.bitmap.generation, footed: f.footed, tail: f.fill.tail, payload: f.fill.payload, records: uint32(len(f.lines))}
	if !f.footed {
		// Behind a batch header that is damaged the bitmap may know of more. What comes
		// next must not lie where the bitmap says that nothing lives.
		s.tail = max(s.tail, min(f.bitmap.covered, l.segBlocks))
	}
	l.space.lastSeq = max(l.space.lastSeq, s.seq)
	if f.header.free || len(f.lines) == 0 && !f.footed && !r.incomplete(f) {
		return nil // its life is over, or has not begun
	}
	s.state, s.bits = segFull, newBitmap(l.segBlocks)
	s.readers++ // until all are adopted
	for _, off := range f.gaps {
		l.stats.CRCFailures++
		l.log.Warn("no batch header where one should be", "segment", seg, "offset", off)
	}
	dirty := false
	w := scanner{l: &r.layout, seg: seg, buf: r.mem}
	for i := range f.lines {
		line := &f.lines[i]
		if !f.lives(line) {
			continue
		}
		rec := line.record()
		if !f.footed && uint32(line.header) >= f.durable {
			whole, err := r.whole(&w, line, f.crcs[i])
			if err != nil {
				return err
			}
			if !whole {
				dirty = true
				continue
			}
		}
		lost, twice, kept, err := l.index.adopt(&rec, line.revision, location{uint32(seg), uint32(line.header), uint32(line.payload)})
		if err != nil {
			return cfs.E("open log on "+l.info.Path, cfs.KindOf(err), err)
		}
		if !kept {
			dirty = true
			continue
		}
		l.rememberLocked(seg, uint32(line.payload), uint32(line.blocks))
		if twice {
			l.forgetLocked(&lost)
		}
		if f.crcs != nil {
			l.crcs.put(cacheKey(uint32(seg), uint32(line.payload)), f.crcs[i])
		}
	}
	// A footer may leave out what the bitmap lets live: it was deleted since. Without the
	// footer it would come back, so the bitmap is written anew.
	s.dirty = dirty || f.footed && (f.bitmap.covered < f.fill.tail || !slices.Equal(f.bits, s.bits))
	if !f.footed {
		s.lines = f.lines
	}
	switch {
	case r.incomplete(f): // of its payloads too
		s.state = segKept
		l.log.Error("segment is neither filled nor cleaned until the next start: a block of it cannot be read", "segment", seg, "records", len(f.lines))
	case !f.footed:
		r.unfooted[s.stream] = append(r.unfooted[s.stream], seg)
	}
	return nil
}

// whole compares a payload that a crash may have torn with its checksums. One
// that cannot be read is not torn, it is damaged.
func (r *recovery) whole(w *scanner, line *footerLine, crcs []byte) (bool, error) {
	bad, err := w.badBlock(line, crcs)
	r.mu.Lock()
	defer r.mu.Unlock() // segments behind this one are still being read
	if err != nil || bad == none || r.lost[r.segOffset(w.seg, uint32(line.payload)+uint32(bad))] {
		return err == nil, err
	}
	r.torn = true
	r.l.stats.TornRecords++
	r.l.log.Warn("record torn by a crash", "key", line.key.String(), "offset", r.l.segOffset(w.seg, uint32(line.payload)))
	return false, nil
}

// settle sorts the segments into the lists that the next ones come from. In each
// stream the last segment without a footer is filled further.
func (r *recovery) settle() {
	l := r.l
	sp := &l.space
	for to, segs := range r.unfooted {
		for i, seg := range segs {
			if i == len(segs)-1 {
				sp.streams[to].open = seg
				sp.segs[seg].state = segOpen
			} else {
				sp.sealed = append(sp.sealed, seg)
			}
		}
	}
	for i := range sp.segs {
		switch s := &sp.segs[i]; s.state {
		case segFree:
			sp.free = append(sp.free, i)
		case segBad:
		default:
			s.readers--
			l.freeIfDeadLocked(i)
		}
	}
	l.sortFreeLocked()
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

// readInOrder reads segments, several at once, and visits them in order.
func readInOrder[S any](found []S, read func(s S, mem []byte) error, visit func(S) error) error {
	ready := make([]chan struct{}, len(found))
	for i := range ready {
		ready[i] = make(chan struct{})
	}
	ahead := make(chan struct{}, 2*maxScanners) // read, or being read, and not visited
	stop := make(chan struct{})
	halt := sync.OnceFunc(func() { close(stop) })
	ended := make(chan struct{})
	var readErr error
	go func() {
		defer close(ended)
		readErr = inParallel(len(found), func() bool {
			select {
			case ahead <- struct{}{}:
				return true
			case <-stop:
				return false
			}
		}, func(i int, mem []byte) error {
			err := read(found[i], mem)
			if err == nil {
				close(ready[i])
			} else {
				halt() // nobody waits to be admitted any more, or the visitor would wait for ever
			}
			return err
		})
	}()
	var err error
	for i := 0; i < len(found) && err == nil; i++ {
		select {
		case <-ready[i]:
		case <-ended:
			if err = readErr; err != nil {
				continue
			}
		}
		err = visit(found[i])
		found[i] = *new(S) // its memory can go
		<-ahead
	}
	halt()
	<-ended
	return err
}

// readRecords reads what is in a segment whose life has not ended.
func (l *layout) readRecords(f *foundSegment, mem []byte) error {
	if f.header.free {
		return nil
	}
	if err := l.readFooter(f, mem); err != nil || f.footed {
		return err
	}
	return l.scanSegment(f, mem)
}
