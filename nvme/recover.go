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

// recovery is a start under way.
type recovery struct {
	l        *Log
	torn     bool // some payloads were
	unfooted [streams][]int
	mem      []byte
}

// recover rebuilds the index from the footers and bitmaps of sealed segments and
// the batch headers of the others. Of two records with one key the one in the
// later segment counts: they are equal, because keys are never used twice.
//
// Each batch header says up to where its segment was durable when it was
// written; payloads behind the last such place may be torn by a crash though
// their header is whole, so they are compared with their checksums. The
// bitmaps then omit the torn ones, durably, before anything is put behind them.
func (l *Log) recover() error {
	state, err := l.readState()
	if err != nil {
		return err
	}
	l.state, l.feed = state, state.feedPosition
	found, err := l.readHeaders()
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b *foundSegment) int { return cmp.Compare(a.header.seq, b.header.seq) })
	mem, err := newScratch(scanWindow)
	if err != nil {
		return err
	}
	defer mem.free()
	r := recovery{l: l, mem: mem.p}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := readInOrder(found, l.readRecords, r.adopt); err != nil {
		return err
	}
	r.settle()
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

// readHeaders reads the headers of all segments and returns those of this formatting.
func (l *Log) readHeaders() ([]*foundSegment, error) {
	all := make([]*foundSegment, len(l.space.segs))
	err := inParallel(len(all), nil, func(i int, mem []byte) (err error) {
		all[i], err = l.readHeader(i, mem)
		return err
	})
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
	if f.header.free || len(f.lines) == 0 && !f.footed {
		return nil // its life is over, or has not begun
	}
	s.state, s.bits = segFull, newBitmap(l.segBlocks)
	s.readers++ // until all are adopted
	for _, off := range f.gaps {
		l.stats.CRCFailures++
		l.log.Warn("no batch header where one should be", "segment", seg, "offset", off)
	}
	dirty := false
	w := scanner{l: &l.layout, seg: seg, buf: r.mem}
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
		old, replaced, err := l.index.put(&rec, seg, uint32(line.header), uint32(line.payload))
		if err != nil {
			return cfs.E("open log on "+l.info.Path, cfs.KindOf(err), err)
		}
		l.rememberLocked(seg, uint32(line.payload), uint32(line.blocks))
		if replaced {
			l.forgetLocked(&old)
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
		r.unfooted[s.stream] = append(r.unfooted[s.stream], seg)
	}
	return nil
}

// whole compares a payload that a crash may have torn with its checksums.
func (r *recovery) whole(w *scanner, line *footerLine, crcs []byte) (bool, error) {
	bad, err := w.badBlock(line, crcs)
	if err != nil || bad == none {
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
