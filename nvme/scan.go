package nvme

import (
	"bytes"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// scanWindow is the unit in which a segment is read when its batches are
	// small or the next header is not where it should be, in bytes.
	scanWindow = 512 << 10
	// footerFirst is how many blocks of a footer are read before its length is known.
	footerFirst = 4
)

// layout reads what is on a formatted device: for a start, for whom it stops
// at what it cannot read, and for a check, which goes on behind that.
type layout struct {
	dev                  Device
	sb                   Superblock
	segBlocks, firstData uint32

	damaged func(flaw) // told of what is not whole, and was passed over
	// skip is told of each block that cannot be read; it is taken for zeros then,
	// unless skip returns an error. Nil: a failed read ends the reading.
	skip func(off int64, err error) error
}

// flaw is a part of a device that is not whole: a crash tore it, or it went bad.
type flaw struct {
	what string // one of the parts below
	seg  int    // none for the device's state
	off  int64
	err  error
}

// What a flaw can be of.
const (
	partState  = "device state"
	partHeader = "segment header"
	partBitmap = "bitmap"
	partFooter = "footer"
)

func newLayout(dev Device, sb Superblock) layout {
	segBlocks := sb.SegmentBytes / cfs.BlockSize
	return layout{dev: dev, sb: sb, segBlocks: segBlocks, firstData: firstDataBlock(segBlocks)}
}

// segments is how many segments a device has.
func (sb *Superblock) segments() int {
	return int((sb.SizeBytes - HeaderAreaBytes) / int64(sb.SegmentBytes))
}

// segOffset is where a block of a segment lies on the device, in bytes.
func (l *layout) segOffset(seg int, block uint32) int64 {
	return HeaderAreaBytes + int64(seg)*int64(l.sb.SegmentBytes) + int64(block)*cfs.BlockSize
}

// read fills p from off, see skip.
func (l *layout) read(p []byte, off int64) error {
	err := l.dev.Read(p, off)
	if err == nil || l.skip == nil {
		return err
	}
	for ; len(p) > 0; p, off = p[cfs.BlockSize:], off+cfs.BlockSize {
		blk := p[:cfs.BlockSize]
		if err := l.dev.Read(blk, off); err != nil {
			clear(blk)
			if err := l.skip(off, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// readHead is readHeader that passes over what cannot be read: skip is told. lost says that the
// segment cannot be believed: no copy of its header can be read, or not both of its
// bitmaps, of which either may be the newer one.
func (l *layout) readHead(seg int, mem []byte) (f *foundSegment, lost bool, err error) {
	own := *l
	header, bitmaps := false, false
	if l.skip != nil {
		own.skip = func(off int64, err error) error {
			if off < l.segOffset(seg, segHeaderBlocks) {
				header = true
			} else {
				bitmaps = true
			}
			return l.skip(off, err)
		}
	}
	f, err = own.readHeader(seg, mem)
	return f, f == nil && header || f != nil && !f.header.free && bitmaps, err
}

// foundSegment is what is on the device of one life of a segment.
type foundSegment struct {
	header segmentHeader
	copies int          // of the header that agree with it
	bitmap bitmapHeader // generation 0 when there is none
	bits   bitmap
	footed bool // it was read from the footer
	lines  []footerLine
	fill   fill

	// Without a footer:
	crcs    [][]byte // of lines, by the same index
	durable uint32   // no payload in front of this block can be torn
	gaps    []int64  // device offsets where a batch header should be and is not, though one follows
	broken  []uint32 // blocks where a batch header should be and is a damaged one
}

// lives reports whether the bitmap lets the record of a line live.
func (f *foundSegment) lives(line *footerLine) bool {
	return f.bitmap.generation == 0 || uint32(line.payload) >= f.bitmap.covered || f.bits.get(uint32(line.payload))
}

// readSegment reads the records of a segment: from its footer, or from its batch
// headers when there is none that is whole.
func (l *layout) readSegment(h *segmentHeader) (*foundSegment, error) {
	mem, err := newScratch(scanWindow)
	if err != nil {
		return nil, err
	}
	defer mem.free()
	f := &foundSegment{header: *h}
	return f, l.readRecords(f, mem.p)
}

// readFooter reads the footer of a segment; f.footed says whether there is one.
func (l *layout) readFooter(f *foundSegment, mem []byte) error {
	seg := int(f.header.index)
	first := l.segBlocks - footerFirst
	blks := mem[:footerFirst*cfs.BlockSize]
	if err := l.read(blks, l.segOffset(seg, first)); err != nil {
		return err
	}
	last := blks[(footerFirst-1)*cfs.BlockSize:]
	end, _, err := decodeFooterPart(last, &f.header, l.segOffset(seg, l.segBlocks-1), nil)
	if err != nil || end.part != end.parts-1 {
		if cfs.KindOf(err) == cfs.Corrupt {
			l.damaged(flaw{partFooter, seg, l.segOffset(seg, l.segBlocks-1), err})
		}
		return nil
	}
	lines := make([]footerLine, 0, end.total)
	w := scanner{l: l, seg: seg, buf: mem, first: first, next: l.segBlocks}
	for part := range end.parts {
		block := l.segBlocks - end.parts + part
		blk, err := w.block(block, true)
		if err != nil {
			return err
		}
		var p footerPart
		if p, lines, err = decodeFooterPart(blk, &f.header, l.segOffset(seg, block), lines); err != nil || p.part != part || p.parts != end.parts || p.total != end.total || p.fill != end.fill {
			if err == nil || err == cfs.NotFound {
				err = cfs.Errorf("footer", cfs.Corrupt, "part %d of %d is not there", part, end.parts)
			}
			l.damaged(flaw{partFooter, seg, l.segOffset(seg, block), err})
			return nil
		}
	}
	if uint32(len(lines)) != end.total {
		err := cfs.Errorf("footer", cfs.Corrupt, "%d records, not %d", len(lines), end.total)
		l.damaged(flaw{partFooter, seg, l.segOffset(seg, l.segBlocks-1), err})
		return nil
	}
	f.lines, f.fill, f.footed = lines, end.fill, true
	return nil
}

// scanSegment finds the batches of a segment. It follows the headers; where one
// is missing (a crash tore it, or it is damaged) it looks at every block for
// the next, because batches are written side by side and a later one may be whole.
func (l *layout) scanSegment(f *foundSegment, mem []byte) error {
	seg := int(f.header.index)
	w := scanner{l: l, seg: seg, buf: mem}
	f.fill.tail, f.durable = l.firstData, l.firstData
	wide := false
	searching := false
	var entries []batchEntry
	for block := l.firstData; block < l.segBlocks; {
		blk, err := w.block(block, wide || searching)
		if err != nil {
			return err
		}
		var h batchHeader
		h, entries, err = decodeBatch(blk, &f.header, block, l.segOffset(seg, block), entries[:0])
		if err != nil {
			if !searching && cfs.KindOf(err) == cfs.Corrupt {
				f.broken = append(f.broken, block)
			}
			searching = true
			block++
			continue
		}
		if searching {
			searching = false
			f.gaps = append(f.gaps, l.segOffset(seg, f.fill.tail))
		}
		for i := range entries {
			e := &entries[i]
			f.lines = append(f.lines, footerLine{
				key: e.rec.Key, group: group{e.rec.PG, e.rec.Epoch},
				header: uint16(block), payload: uint16(e.block), blocks: uint16(e.rec.Len / cfs.BlockSize), revision: e.revision,
			})
			f.crcs = append(f.crcs, bytes.Clone(e.crcs))
		}
		f.durable = max(f.durable, h.durable)
		f.fill.payload += h.payloadBlocks
		block += 1 + h.payloadBlocks
		f.fill.tail = block
		wide = h.payloadBlocks < scanWindow/cfs.BlockSize/8
	}
	return nil
}

// scanner reads a segment's blocks through a window.
type scanner struct {
	l           *layout
	seg         int
	buf         []byte
	first, next uint32 // blocks in the window
}

// block is one block; wide reads many at once.
func (w *scanner) block(block uint32, wide bool) ([]byte, error) {
	if block < w.first || block >= w.next {
		n := uint32(1)
		if wide {
			n = min(uint32(len(w.buf)/cfs.BlockSize), w.l.segBlocks-block)
		}
		if err := w.l.read(w.buf[:n*cfs.BlockSize], w.l.segOffset(w.seg, block)); err != nil {
			w.first, w.next = 0, 0
			return nil, err
		}
		w.first, w.next = block, block+n
	}
	at := (block - w.first) * cfs.BlockSize
	return w.buf[at : at+cfs.BlockSize], nil
}

// badBlock is the first block of a record's payload that its checksum does not
// fit, none when all fit.
func (w *scanner) badBlock(line *footerLine, crcs []byte) (int, error) {
	for i := range int(line.blocks) {
		blk, err := w.block(uint32(line.payload)+uint32(i), true)
		if err != nil {
			return none, err
		}
		if !payloadWhole(line.key, uint32(i), blk, crcs) {
			return i, nil
		}
	}
	return none, nil
}

// readHeader reads a segment's header and bitmaps; nil when neither copy of the
// header is whole and of this formatting.
func (l *layout) readHeader(seg int, mem []byte) (*foundSegment, error) {
	blks := mem[:l.firstData*cfs.BlockSize]
	if err := l.read(blks, l.segOffset(seg, 0)); err != nil {
		return nil, err
	}
	var f *foundSegment
	for i := range segHeaderBlocks {
		at := l.segOffset(seg, uint32(i))
		h, err := decodeSegmentCopy(blks[i*cfs.BlockSize:(i+1)*cfs.BlockSize], at)
		switch {
		case cfs.KindOf(err) == cfs.Corrupt:
			l.damaged(flaw{partHeader, seg, at, err})
		case err != nil || h.uuid != l.sb.UUID || h.index != uint32(seg) || h.bytes != l.sb.SegmentBytes || h.seq == 0:
		case f == nil || h.seq > f.header.seq: // copies differ when a crash tore the start of a new life,
			f = &foundSegment{header: h, copies: 1}
		case h.seq == f.header.seq && h.free && !f.header.free: // or its end
			f.header.free = true
		case h == f.header:
			f.copies++
		}
	}
	if f == nil || f.header.free {
		return f, nil
	}
	slotBlocks := bitmapBlocks(l.segBlocks)
	for slot := range uint32(bitmapSlots) {
		first := segHeaderBlocks + slot*slotBlocks
		bits := newBitmap(l.segBlocks)
		h, err := decodeBitmap(blks[first*cfs.BlockSize:], &f.header, bits, l.segOffset(seg, first))
		switch {
		case cfs.KindOf(err) == cfs.Corrupt:
			l.damaged(flaw{partBitmap, seg, l.segOffset(seg, first), err})
		case err == nil && h.generation > f.bitmap.generation:
			f.bitmap, f.bits = h, bits
		}
	}
	return f, nil
}
