package nvme

import (
	"bytes"
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// The bytes of segments: see docs/format/disk.md, which follows this file,
// footer.go and bitmap.go.
const (
	segMagic        = "CFSSEGMT"
	batchMagic      = 0x42534643 // "CFSB"
	logVersion      = 2
	segHeaderBlocks = 2 // two copies, so that one damaged block loses no segment

	segFlagFree = 1 << 0 // nothing in the segment is worth anything

	batchFixedBytes = 64 // in front of a batch's entries
	entryFixedBytes = 32 // in front of an entry's checksums
	crcBytes        = 4  // of one block
	entryRoom       = crcAt - batchFixedBytes
)

// segmentHeader identifies one life of a segment.
type segmentHeader struct {
	uuid   cfs.UUID
	seq    uint64 // rises with every segment opened on the device
	salt   uint64 // random; every other header of this life repeats it
	index  uint32 // of the segment on the device
	bytes  uint32 // of the segment
	stream uint8
	free   bool // this life has ended
}

// encodeSegment fills the copies of a segment's header for device offset off.
func encodeSegment(blks []byte, h *segmentHeader, off int64) {
	le := binary.LittleEndian
	for i := range segHeaderBlocks {
		blk := blks[i*cfs.BlockSize : (i+1)*cfs.BlockSize]
		clear(blk)
		copy(blk, segMagic)
		le.PutUint16(blk[8:], logVersion)
		blk[10] = h.stream
		if h.free {
			blk[11] = segFlagFree
		}
		le.PutUint32(blk[12:], h.bytes)
		copy(blk[16:32], h.uuid[:])
		le.PutUint64(blk[32:], h.seq)
		le.PutUint64(blk[40:], h.salt)
		le.PutUint32(blk[48:], h.index)
		sealBlock(blk, off+int64(i)*cfs.BlockSize)
	}
}

// decodeSegmentCopy reads one copy from device offset off. NotFound when it is none, Corrupt
// when it is a damaged one.
func decodeSegmentCopy(blk []byte, off int64) (segmentHeader, error) {
	if len(blk) < cfs.BlockSize || !bytes.HasPrefix(blk, []byte(segMagic)) {
		return segmentHeader{}, cfs.NotFound
	}
	if !blockSealed(blk, off) {
		return segmentHeader{}, cfs.Errorf("", cfs.Corrupt, "segment header at %d: checksum does not match", off)
	}
	le := binary.LittleEndian
	if v := le.Uint16(blk[8:]); v != logVersion {
		return segmentHeader{}, cfs.Errorf("", cfs.Corrupt, "segment header at %d: version %d, this program knows %d", off, v, logVersion)
	}
	if blk[10] >= streams {
		return segmentHeader{}, cfs.Errorf("", cfs.Corrupt, "segment header at %d: stream %d", off, blk[10])
	}
	return segmentFields(blk), nil
}

// segmentFields is what a copy says, whole or not.
func segmentFields(blk []byte) segmentHeader {
	le := binary.LittleEndian
	return segmentHeader{
		uuid:   cfs.UUID(blk[16:32]),
		seq:    le.Uint64(blk[32:]),
		salt:   le.Uint64(blk[40:]),
		index:  le.Uint32(blk[48:]),
		bytes:  le.Uint32(blk[12:]),
		stream: blk[10],
		free:   blk[11]&segFlagFree != 0,
	}
}

// batchHeader is the block in front of a batch's payloads.
type batchHeader struct {
	seq, salt     uint64 // the segment's
	block         uint32 // its own place in the segment
	payloadBlocks uint32 // that follow it
	durable       uint32 // every batch of the segment in front of this block had been answered when this was written
}

// batchEntry is one record of a batch.
type batchEntry struct {
	rec      Record
	crcs     []byte // one CRC32C, little endian, for each block
	block    uint32 // where its payload starts in the segment
	revision uint16 // of two records of a key the one with the higher counts
}

// entryBytes is the room that a record of so many bytes takes in a header block.
func entryBytes(recLen uint32) int { return entryFixedBytes + int(recLen/cfs.BlockSize)*crcBytes }

// batchEncoder fills a header block.
type batchEncoder struct {
	blk   []byte
	at    int
	count uint16
}

func newBatchEncoder(blk []byte) batchEncoder {
	clear(blk[:cfs.BlockSize])
	return batchEncoder{blk: blk[:cfs.BlockSize], at: batchFixedBytes}
}

// add appends an entry; the caller has checked that there is room.
func (e *batchEncoder) add(rec *Record, revision uint16, crcs []byte) {
	le := binary.LittleEndian
	p := e.blk[e.at:crcAt]
	le.PutUint64(p, uint64(rec.Key.Stripe.Session))
	le.PutUint64(p[8:], rec.Key.Stripe.Counter)
	le.PutUint32(p[16:], uint32(rec.PG))
	le.PutUint32(p[20:], uint32(rec.Epoch))
	le.PutUint32(p[24:], rec.Len)
	p[28] = rec.Key.Shard
	le.PutUint16(p[30:], revision)
	copy(p[entryFixedBytes:], crcs)
	e.at += entryFixedBytes + len(crcs)
	e.count++
}

// seal finishes a header block that will lie at device offset off.
func (e *batchEncoder) seal(h *batchHeader, off int64) {
	le := binary.LittleEndian
	le.PutUint32(e.blk, batchMagic)
	le.PutUint16(e.blk[4:], logVersion)
	le.PutUint16(e.blk[6:], e.count)
	le.PutUint64(e.blk[8:], h.salt)
	le.PutUint64(e.blk[16:], h.seq)
	le.PutUint32(e.blk[24:], h.block)
	le.PutUint32(e.blk[28:], h.payloadBlocks)
	le.PutUint32(e.blk[32:], h.durable)
	sealBlock(e.blk, off)
}

// decodeBatch reads a header block that lies at block of a segment, device
// offset off, and appends its entries, whose crcs alias blk. NotFound when it
// is no header of this life of the segment, Corrupt when it is a damaged one.
func decodeBatch(blk []byte, seg *segmentHeader, block uint32, off int64, entries []batchEntry) (batchHeader, []batchEntry, error) {
	le := binary.LittleEndian
	if len(blk) < cfs.BlockSize || le.Uint32(blk) != batchMagic || le.Uint64(blk[8:]) != seg.salt {
		return batchHeader{}, entries, cfs.NotFound
	}
	damaged := func(format string, args ...any) (batchHeader, []batchEntry, error) {
		return batchHeader{}, entries, cfs.E("", cfs.Corrupt, cfs.Errorf("batch header", cfs.Corrupt, format, args...))
	}
	h := batchHeader{
		seq: le.Uint64(blk[16:]), salt: seg.salt, block: le.Uint32(blk[24:]), payloadBlocks: le.Uint32(blk[28:]),
		durable: le.Uint32(blk[32:]),
	}
	switch segBlocks := seg.bytes / cfs.BlockSize; {
	case !blockSealed(blk, off):
		return damaged("at %d: checksum does not match", off)
	case le.Uint16(blk[4:]) != logVersion:
		return damaged("at %d: version %d, this program knows %d", off, le.Uint16(blk[4:]), logVersion)
	case h.seq != seg.seq || h.block != block:
		return damaged("at %d: it says segment %d, block %d", off, h.seq, h.block)
	case uint64(block)+1+uint64(h.payloadBlocks) > uint64(segBlocks):
		return damaged("at %d: %d blocks reach beyond the segment", off, h.payloadBlocks)
	}
	out, at, next := entries, batchFixedBytes, block+1
	for range le.Uint16(blk[6:]) {
		if at+entryFixedBytes > crcAt {
			return damaged("at %d: too many entries", off)
		}
		e, err := decodeEntry(blk, at)
		if err != nil {
			return damaged("at %d: %w", off, err)
		}
		e.block = next
		next += e.rec.Len / cfs.BlockSize
		at += entryFixedBytes + len(e.crcs)
		out = append(out, e)
	}
	if next != block+1+h.payloadBlocks || h.payloadBlocks == 0 {
		return damaged("at %d: the entries have %d blocks, not %d", off, next-block-1, h.payloadBlocks)
	}
	return h, out, nil
}

func decodeEntry(blk []byte, at int) (batchEntry, error) {
	le := binary.LittleEndian
	p := blk[at:crcAt]
	e := batchEntry{rec: Record{
		Key: Key{
			Stripe: cfs.StripeID{Session: cfs.SessionID(le.Uint64(p)), Counter: le.Uint64(p[8:])},
			Shard:  p[28],
		},
		PG: cfs.PGID(le.Uint32(p[16:])), Epoch: cfs.Epoch(le.Uint32(p[20:])), Len: le.Uint32(p[24:]),
	}, revision: le.Uint16(p[30:])}
	n := e.rec.Len
	if n == 0 || n > cfs.MaxShardSize || n%cfs.BlockSize != 0 || entryBytes(n) > len(p) || e.revision > maxRevision {
		return batchEntry{}, cfs.Errorf("", cfs.Corrupt, "a record of %d bytes, revision %d", n, e.revision)
	}
	e.crcs = p[entryFixedBytes:entryBytes(n):entryBytes(n)]
	return e, nil
}
