package nvme

import (
	"encoding/binary"
	"math/bits"

	"github.com/claudefs/claudefs/cfs"
)

// Which records of a segment live is a bitmap with one bit for each block of
// it, set where the payload of a live record starts. On the device it has two
// slots behind the segment's header, written in turn.
const (
	bitmapMagic      = 0x4d534643 // "CFSM"
	bitmapFixedBytes = 64
	bitmapBlockBits  = (crcAt - bitmapFixedBytes) / 8 * 64 // of one block, whole words
	bitmapSlots      = 2
)

// bitmapBlocks is the length of one slot.
func bitmapBlocks(segBlocks uint32) uint32 {
	return (segBlocks + bitmapBlockBits - 1) / bitmapBlockBits
}

// firstDataBlock is where the batches of a segment start: behind its header and bitmaps.
func firstDataBlock(segBlocks uint32) uint32 {
	return segHeaderBlocks + bitmapSlots*bitmapBlocks(segBlocks)
}

// bitmap has a bit for each block of a segment.
type bitmap []uint64

func newBitmap(segBlocks uint32) bitmap { return make(bitmap, (segBlocks+63)/64) }

func (m bitmap) get(i uint32) bool { return m[i/64]>>(i%64)&1 != 0 }
func (m bitmap) set(i uint32)      { m[i/64] |= 1 << (i % 64) }
func (m bitmap) clear(i uint32)    { m[i/64] &^= 1 << (i % 64) }

func (m bitmap) count() int {
	n := 0
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return n
}

// bitmapHeader says what a bitmap on the device covers.
type bitmapHeader struct {
	generation uint64 // rises with every writing; its lowest bit is the slot
	covered    uint32 // records from this block on came later: they live
}

// encodeBitmap fills a slot, bitmapBlocks of the segment, for device offset off.
func encodeBitmap(blks []byte, seg *segmentHeader, h *bitmapHeader, m bitmap, off int64) {
	le := binary.LittleEndian
	for part := 0; len(m) > 0; part++ {
		blk := blks[part*cfs.BlockSize : (part+1)*cfs.BlockSize]
		clear(blk)
		le.PutUint32(blk, bitmapMagic)
		le.PutUint16(blk[4:], logVersion)
		le.PutUint16(blk[6:], uint16(part))
		le.PutUint64(blk[8:], seg.salt)
		le.PutUint64(blk[16:], seg.seq)
		le.PutUint64(blk[24:], h.generation)
		le.PutUint32(blk[32:], h.covered)
		n := min(len(m), bitmapBlockBits/64)
		for i, w := range m[:n] {
			le.PutUint64(blk[bitmapFixedBytes+8*i:], w)
		}
		m = m[n:]
		sealBlock(blk, off+int64(part)*cfs.BlockSize)
	}
}

// decodeBitmap reads a slot from device offset off into m. NotFound when it is
// none of this life of the segment, Corrupt when it is damaged; m is undefined then.
func decodeBitmap(blks []byte, seg *segmentHeader, m bitmap, off int64) (bitmapHeader, error) {
	le := binary.LittleEndian
	var h bitmapHeader
	for part := 0; len(m) > 0; part++ {
		blk := blks[part*cfs.BlockSize:]
		if len(blk) < cfs.BlockSize || le.Uint32(blk) != bitmapMagic || le.Uint64(blk[8:]) != seg.salt || le.Uint64(blk[16:]) != seg.seq {
			return bitmapHeader{}, cfs.NotFound
		}
		at := off + int64(part)*cfs.BlockSize
		if !blockSealed(blk[:cfs.BlockSize], at) {
			return bitmapHeader{}, cfs.Errorf("bitmap", cfs.Corrupt, "at %d: checksum does not match", at)
		}
		this := bitmapHeader{generation: le.Uint64(blk[24:]), covered: le.Uint32(blk[32:])}
		if le.Uint16(blk[4:]) != logVersion || int(le.Uint16(blk[6:])) != part || part > 0 && this != h {
			return bitmapHeader{}, cfs.Errorf("bitmap", cfs.Corrupt, "at %d: its parts do not belong together", at)
		}
		h = this
		n := min(len(m), bitmapBlockBits/64)
		for i := range m[:n] {
			m[i] = le.Uint64(blk[bitmapFixedBytes+8*i:])
		}
		m = m[n:]
	}
	return h, nil
}
