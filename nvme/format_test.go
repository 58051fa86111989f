package nvme

import (
	"bytes"
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
		enc.add(&rec, bytes.Repeat([]byte{byte(i)}, int(n)*crcBytes))
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
				if e.block != next || e.rec.Len == 0 || e.rec.Len > cfs.MaxShardSize || len(e.crcs) != int(e.rec.Len)/cfs.BlockSize*crcBytes {
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
