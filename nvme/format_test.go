package nvme

import (
	"bytes"
	"slices"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

const fuzzOff = HeaderAreaBytes + 5*cfs.BlockSize

// resealed runs f on bytes as they are and as if their checksum were right, so
// that the fuzzer gets behind it.
func resealed(data []byte, f func(blk []byte)) {
	f(data)
	if len(data) < cfs.BlockSize {
		data = append(bytes.Clone(data), make([]byte, cfs.BlockSize-len(data))...)
	}
	blk := bytes.Clone(data[:cfs.BlockSize])
	sealBlock(blk, fuzzOff)
	f(blk)
}

func FuzzSuperblock(f *testing.F) {
	blk := make([]byte, cfs.BlockSize)
	encodeSuper(blk, &Superblock{ClusterID: "alpha", Device: 7, SegmentBytes: testSegment, SizeBytes: 1 << 30, UUID: newUUID()}, fuzzOff)
	f.Add(blk)
	f.Add([]byte(superMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		resealed(data, func(blk []byte) {
			sb, err := decodeSuper(blk, fuzzOff)
			if err != nil {
				return
			}
			again := make([]byte, cfs.BlockSize)
			encodeSuper(again, &sb, fuzzOff)
			if got, err := decodeSuper(again, fuzzOff); err != nil || got != sb {
				t.Errorf("%+v became %+v, %v", sb, got, err)
			}
			if _, err := decodeSuper(again, fuzzOff+cfs.BlockSize); cfs.KindOf(err) != cfs.Corrupt {
				t.Errorf("taken for one elsewhere: %v", err)
			}
		})
	})
}

func FuzzSegmentHeader(f *testing.F) {
	blks := make([]byte, segHeaderBlocks*cfs.BlockSize)
	h := segmentHeader{uuid: newUUID(), seq: 3, salt: 4, index: 5, bytes: testSegment, stream: 2, free: true}
	encodeSegment(blks, &h, fuzzOff)
	f.Add(blks[:cfs.BlockSize])
	f.Add([]byte(segMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		resealed(data, func(blk []byte) {
			h, err := decodeSegmentCopy(blk, fuzzOff)
			if err != nil {
				return
			}
			blks := make([]byte, segHeaderBlocks*cfs.BlockSize)
			encodeSegment(blks, &h, fuzzOff)
			for i := range segHeaderBlocks {
				off := int64(i) * cfs.BlockSize
				if got, err := decodeSegmentCopy(blks[off:off+cfs.BlockSize], fuzzOff+off); err != nil || got != h {
					t.Errorf("copy %d: %+v became %+v, %v", i, h, got, err)
				}
			}
		})
	})
}

func FuzzBatchHeader(f *testing.F) {
	seg := segmentHeader{seq: 3, salt: 0x1122334455667788, bytes: testSegment}
	const block = 5
	blk := make([]byte, cfs.BlockSize)
	enc := newBatchEncoder(blk)
	blocks := uint32(0)
	for i, n := range []uint32{1, 2, 20} {
		rec := record(testKey(i), int(n)*cfs.BlockSize)
		enc.add(&rec, uint16(i), bytes.Repeat([]byte{byte(i)}, int(n)*crcBytes))
		blocks += n
	}
	enc.seal(&batchHeader{seq: seg.seq, salt: seg.salt, block: block, payloadBlocks: blocks, durable: 4}, fuzzOff)
	if _, entries, err := decodeBatch(blk, &seg, block, fuzzOff, nil); err != nil || len(entries) != 3 {
		f.Fatalf("the seed does not decode: %v", err)
	}
	f.Add(blk)
	f.Add(blk[:batchFixedBytes])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		resealed(data, func(blk []byte) {
			h, entries, err := decodeBatch(blk, &seg, block, fuzzOff, nil)
			if err != nil {
				return
			}
			next := uint32(block + 1)
			for i := range entries {
				e := &entries[i]
				if e.block != next || e.rec.Len == 0 || e.rec.Len > cfs.MaxShardSize || len(e.crcs) != int(e.rec.Len)/cfs.BlockSize*crcBytes || e.revision > maxRevision {
					t.Fatalf("entry %d: %+v", i, e)
				}
				next += e.rec.Len / cfs.BlockSize
			}
			if next != block+1+h.payloadBlocks || next > testSegment/cfs.BlockSize || len(entries) == 0 {
				t.Fatalf("%d entries up to block %d of %d", len(entries), next, h.payloadBlocks)
			}
			// Another place, another life: not taken for this one.
			other := seg
			other.salt++
			if _, _, err := decodeBatch(blk, &other, block, fuzzOff, nil); cfs.KindOf(err) != cfs.NotFound {
				t.Errorf("taken for one of another life: %v", err)
			}
			if _, _, err := decodeBatch(blk, &seg, block, fuzzOff+cfs.BlockSize, nil); cfs.KindOf(err) != cfs.Corrupt {
				t.Errorf("taken for one elsewhere: %v", err)
			}
		})
	})
}

func TestBatchHolds(t *testing.T) {
	// The sizes that docs/format/disk.md states.
	for n, want := range map[uint32]int{4096: 111, 64 << 10: 41, 256 << 10: 13, 1 << 20: 3} {
		if got := entryRoom / entryBytes(n); got != want {
			t.Errorf("a header block has room for %d records of %d bytes, want %d", got, n, want)
		}
	}
}

func FuzzFooter(f *testing.F) {
	h := segmentHeader{seq: 3, salt: 0x1122334455667788, bytes: testSegment}
	var lines []footerLine
	for i := range uint16(50) {
		lines = append(lines, footerLine{key: testKey(int(i)), group: group{cfs.PGID(i), 7}, header: 4, payload: 5 + i, blocks: 1 + i%9, revision: i * 41})
	}
	blk := make([]byte, cfs.BlockSize)
	encodeFooterPart(blk, &h, fill{60, 40}, lines, 0, fuzzOff)
	if p, got, err := decodeFooterPart(blk, &h, fuzzOff, nil); err != nil || p.total != 50 || p.fill != (fill{60, 40}) || !slices.Equal(got, lines) {
		f.Fatalf("%+v, %v, %v", p, got, err)
	}
	f.Add(blk)
	f.Add(blk[:footerFixedBytes])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		resealed(data, func(blk []byte) {
			p, lines, err := decodeFooterPart(blk, &h, fuzzOff, nil)
			if err != nil {
				return
			}
			if p.part >= p.parts || p.parts >= testSegment/cfs.BlockSize || len(lines) > footerLines {
				t.Fatalf("%+v with %d lines", p, len(lines))
			}
			for _, l := range lines {
				if n := uint32(l.payload) + uint32(l.blocks); n > testSegment/cfs.BlockSize || l.header >= l.payload || l.blocks == 0 || l.blocks > cfs.MaxShardSize/cfs.BlockSize || l.revision > maxRevision {
					t.Fatalf("line %+v", l)
				}
			}
			other := h
			other.salt++
			if _, _, err := decodeFooterPart(blk, &other, fuzzOff, nil); cfs.KindOf(err) != cfs.NotFound {
				t.Errorf("taken for one of another life: %v", err)
			}
			if _, _, err := decodeFooterPart(blk, &h, fuzzOff+cfs.BlockSize, nil); cfs.KindOf(err) != cfs.Corrupt {
				t.Errorf("taken for one elsewhere: %v", err)
			}
		})
	})
}

func FuzzBitmap(f *testing.F) {
	h := segmentHeader{seq: 3, salt: 0x1122334455667788, bytes: testSegment}
	bits := newBitmap(testSegment / cfs.BlockSize)
	bits.set(5)
	bits.set(63)
	blk := make([]byte, cfs.BlockSize)
	encodeBitmap(blk, &h, &bitmapHeader{generation: 9, covered: 40}, bits, fuzzOff)
	f.Add(blk)
	f.Add(blk[:bitmapFixedBytes])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		resealed(data, func(blk []byte) {
			bits := newBitmap(testSegment / cfs.BlockSize)
			got, err := decodeBitmap(blk, &h, bits, fuzzOff)
			if err != nil {
				return
			}
			again, other := make([]byte, cfs.BlockSize), newBitmap(testSegment/cfs.BlockSize)
			encodeBitmap(again, &h, &got, bits, fuzzOff)
			if back, err := decodeBitmap(again, &h, other, fuzzOff); err != nil || back != got || !slices.Equal(bits, other) {
				t.Errorf("%+v became %+v, %v", got, back, err)
			}
			if _, err := decodeBitmap(again, &h, other, fuzzOff+cfs.BlockSize); cfs.KindOf(err) != cfs.Corrupt {
				t.Errorf("taken for one elsewhere: %v", err)
			}
		})
	})
}

// TestBitmapParts has a bitmap of several blocks: all must be of one writing.
func TestBitmapParts(t *testing.T) {
	const segBlocks = MaxSegmentBytes / cfs.BlockSize
	n := int(bitmapBlocks(segBlocks))
	h := segmentHeader{seq: 3, salt: 4, bytes: MaxSegmentBytes}
	var slots [2][]byte
	for i := range slots {
		bits := newBitmap(segBlocks)
		bits.set(segBlocks - 1)
		slots[i] = make([]byte, n*cfs.BlockSize)
		encodeBitmap(slots[i], &h, &bitmapHeader{generation: uint64(1 + i), covered: 7}, bits, fuzzOff)
	}
	bits := newBitmap(segBlocks)
	if got, err := decodeBitmap(slots[1], &h, bits, fuzzOff); err != nil || got.generation != 2 || !bits.get(segBlocks-1) || bits.count() != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	copy(slots[1][cfs.BlockSize:], slots[0][cfs.BlockSize:]) // torn between its blocks
	if _, err := decodeBitmap(slots[1], &h, bits, fuzzOff); n < 2 || cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("%d blocks of two writings: %v", n, err)
	}
}

func FuzzState(f *testing.F) {
	uuid := newUUID()
	blk := make([]byte, cfs.BlockSize)
	encodeState(blk, uuid, &deviceState{generation: 4, feedPosition: 77})
	f.Add(blk[:64])
	f.Add([]byte(stateMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		blk := make([]byte, cfs.BlockSize)
		copy(blk, data)
		for slot := range uint64(stateSlots) {
			off := stateOffset(slot)
			copy(blk[16:32], uuid[:])
			sealBlock(blk, off)
			st, err := decodeState(blk, uuid, off)
			if err != nil {
				continue
			}
			again := make([]byte, cfs.BlockSize)
			encodeState(again, uuid, &st)
			if got, err := decodeState(again, uuid, off); err != nil || got != st {
				t.Errorf("%+v became %+v, %v", st, got, err)
			}
			if _, err := decodeState(again, newUUID(), off); cfs.KindOf(err) != cfs.NotFound {
				t.Errorf("taken for one of another formatting: %v", err)
			}
			if _, err := decodeState(again, uuid, stateOffset(slot+1)); cfs.KindOf(err) != cfs.Corrupt {
				t.Errorf("taken for one elsewhere: %v", err)
			}
		}
	})
}
