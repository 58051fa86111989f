package nvme

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// A sealed segment ends in a footer: one line for each of its records, so that
// a start need not follow the batch headers.
const (
	footerMagic      = 0x46534643 // "CFSF"
	footerFixedBytes = 64
	footerLineBytes  = 32
	footerLines      = (crcAt - footerFixedBytes) / footerLineBytes // of one block
)

// footerLine is a record of a footer, and what memory keeps of the records of
// a segment until its footer is written.
type footerLine struct {
	key     Key
	group   group
	header  uint16 // block of the batch header
	payload uint16 // first block of the payload
	blocks  uint16 // of the payload, 1 to 256

	revision uint16 // see batchEntry
}

func (f *footerLine) record() Record {
	return Record{Key: f.key, PG: f.group.pg, Epoch: f.group.epoch, Len: uint32(f.blocks) * cfs.BlockSize}
}

// fill is how far a segment is filled, in blocks.
type fill struct {
	tail    uint32 // behind the last batch
	payload uint32 // of all records that were placed in it
}

// footerBlocks is the length of a footer of so many records, 1 block or more.
func footerBlocks(records uint32) uint32 { return max(1, (records+footerLines-1)/footerLines) }

// encodeFooterPart fills block part of the footer of these lines, for device offset off.
func encodeFooterPart(blk []byte, h *segmentHeader, fill fill, lines []footerLine, part uint32, off int64) {
	le := binary.LittleEndian
	clear(blk)
	total := uint32(len(lines))
	mine := lines[min(part*footerLines, total):min((part+1)*footerLines, total)]
	le.PutUint32(blk, footerMagic)
	le.PutUint16(blk[4:], logVersion)
	le.PutUint16(blk[6:], uint16(len(mine)))
	le.PutUint64(blk[8:], h.salt)
	le.PutUint64(blk[16:], h.seq)
	le.PutUint32(blk[24:], part)
	le.PutUint32(blk[28:], footerBlocks(total))
	le.PutUint32(blk[32:], total)
	le.PutUint32(blk[36:], fill.tail)
	le.PutUint32(blk[40:], fill.payload)
	for i := range mine {
		encodeFooterLine(blk[footerFixedBytes+i*footerLineBytes:], &mine[i])
	}
	sealBlock(blk, off)
}

func encodeFooterLine(p []byte, f *footerLine) {
	le := binary.LittleEndian
	le.PutUint64(p, uint64(f.key.Stripe.Session))
	le.PutUint64(p[8:], f.key.Stripe.Counter)
	le.PutUint32(p[16:], uint32(f.group.pg))
	le.PutUint32(p[20:], uint32(f.group.epoch))
	le.PutUint16(p[24:], f.payload)
	p[26] = byte(f.payload - f.header)
	p[27] = byte(f.blocks - 1)
	p[28] = f.key.Shard
	le.PutUint16(p[30:], f.revision)
}

// footerPart is one block of a footer.
type footerPart struct {
	part, parts uint32
	total       uint32 // records of the whole footer
	fill        fill
}

// decodeFooterPart reads a block of a footer from device offset off and appends
// its lines. NotFound when it belongs to no footer of this life of the
// segment, Corrupt when it is damaged.
func decodeFooterPart(blk []byte, h *segmentHeader, off int64, lines []footerLine) (footerPart, []footerLine, error) {
	le := binary.LittleEndian
	if len(blk) < cfs.BlockSize || le.Uint32(blk) != footerMagic || le.Uint64(blk[8:]) != h.salt || le.Uint64(blk[16:]) != h.seq {
		return footerPart{}, lines, cfs.NotFound
	}
	damaged := func(format string, args ...any) (footerPart, []footerLine, error) {
		return footerPart{}, lines, cfs.E("footer", cfs.Corrupt, cfs.Errorf("", cfs.Corrupt, format, args...))
	}
	p := footerPart{part: le.Uint32(blk[24:]), parts: le.Uint32(blk[28:]), total: le.Uint32(blk[32:]),
		fill: fill{le.Uint32(blk[36:]), le.Uint32(blk[40:])}}
	n, segBlocks := int(le.Uint16(blk[6:])), h.bytes/cfs.BlockSize
	switch {
	case !blockSealed(blk, off):
		return damaged("at %d: checksum does not match", off)
	case le.Uint16(blk[4:]) != logVersion:
		return damaged("at %d: version %d, this program knows %d", off, le.Uint16(blk[4:]), logVersion)
	case n > footerLines, p.total > segBlocks, p.parts != footerBlocks(p.total), p.part >= p.parts, p.parts >= segBlocks,
		p.fill.tail > segBlocks, p.fill.payload > p.fill.tail:
		return damaged("at %d: part %d of %d with %d of %d records", off, p.part, p.parts, n, p.total)
	}
	out := lines
	for i := range n {
		f, ok := decodeFooterLine(blk[footerFixedBytes+i*footerLineBytes:], segBlocks)
		if !ok {
			return damaged("at %d: record %d lies outside the segment", off, i)
		}
		out = append(out, f)
	}
	return p, out, nil
}

func decodeFooterLine(p []byte, segBlocks uint32) (footerLine, bool) {
	le := binary.LittleEndian
	f := footerLine{
		key: Key{
			Stripe: cfs.StripeID{Session: cfs.SessionID(le.Uint64(p)), Counter: le.Uint64(p[8:])},
			Shard:  p[28],
		},
		group:   group{cfs.PGID(le.Uint32(p[16:])), cfs.Epoch(le.Uint32(p[20:]))},
		payload: le.Uint16(p[24:]),
		blocks:  uint16(p[27]) + 1,

		revision: le.Uint16(p[30:]),
	}
	distance := uint16(p[26])
	f.header = f.payload - distance
	ok := distance > 0 && f.revision <= maxRevision && distance <= maxHeaderDistance && f.payload >= distance+segHeaderBlocks &&
		uint32(f.payload)+uint32(f.blocks) <= segBlocks
	return f, ok
}
