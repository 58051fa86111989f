package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/claudefs/claudefs/cfs"
)

// Record types. The numbers are on disk.
const (
	recHardState = 1
	recEntry     = 2
	recMark      = 3
	recEnd       = 4 // the segment is sealed: the log goes on in the next
	recTypeEnd   = 5
)

// Sizes of the format, in bytes.
const (
	recHeaderBytes = 24
	recAlign       = 8
	// maxRecordBytes bounds a record's body before memory is taken for it.
	maxRecordBytes = 64 << 20
)

// place is what seeds the checksums of a segment's records, so that no record
// of another segment, or of an earlier use of the same file, is taken for one.
type place struct {
	seq  uint64
	salt uint64
	seed [28]byte // scratch of checksum
}

// record is a decoded record; body lies in the buffer that it was decoded from.
type record struct {
	kind    uint8
	durable uint64 // offset in the segment below which all was durable when it was written
	body    []byte
	next    int // offset of the record after it
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// checksum is the CRC32C of a record: of its place, its offset and its length,
// then of the header after the checksum and of the body.
func (p *place) checksum(off int, n uint32, rest, body []byte) uint32 {
	seed := p.seed[:]
	binary.LittleEndian.PutUint64(seed[0:], p.salt)
	binary.LittleEndian.PutUint64(seed[8:], p.seq)
	binary.LittleEndian.PutUint64(seed[16:], uint64(off))
	binary.LittleEndian.PutUint32(seed[24:], n)
	tab := castagnoli()
	return crc32.Update(crc32.Update(crc32.Update(0, tab, seed), tab, rest), tab, body)
}

// begin appends an empty record header to b; finish fills it in.
func begin(b []byte) []byte { return append(b, make([]byte, recHeaderBytes)...) }

// finish completes the record that starts at b[at:], which will be written at
// offset off of its segment, and pads it.
func (p *place) finish(b []byte, at, off int, kind uint8, durable uint64) []byte {
	h, body := b[at:at+recHeaderBytes], b[at+recHeaderBytes:]
	binary.LittleEndian.PutUint32(h[0:], uint32(len(body)))
	binary.LittleEndian.PutUint32(h[8:], uint32(p.salt))
	h[12] = kind
	binary.LittleEndian.PutUint64(h[16:], durable)
	binary.LittleEndian.PutUint32(h[4:], p.checksum(off, uint32(len(body)), h[8:], body))
	for (len(b)-at)%recAlign != 0 {
		b = append(b, 0)
	}
	return b
}

// decode reads the record at offset off of a segment's bytes; ok is false when
// none is there.
func (p *place) decode(seg []byte, off int) (rec record, ok bool) {
	if off < 0 || off > len(seg)-recHeaderBytes {
		return record{}, false
	}
	h := seg[off : off+recHeaderBytes]
	n := binary.LittleEndian.Uint32(h[0:])
	if binary.LittleEndian.Uint32(h[8:]) != uint32(p.salt) || h[12] == 0 || h[12] >= recTypeEnd ||
		n > maxRecordBytes || int(n) > len(seg)-off-recHeaderBytes {
		return record{}, false
	}
	body := seg[off+recHeaderBytes : off+recHeaderBytes+int(n)]
	if p.checksum(off, n, h[8:], body) != binary.LittleEndian.Uint32(h[4:]) {
		return record{}, false
	}
	next := (off + recHeaderBytes + int(n) + recAlign - 1) &^ (recAlign - 1)
	return record{kind: h[12], durable: binary.LittleEndian.Uint64(h[16:]), body: body, next: next}, true
}

// Mark says where the log starts: entries up to Index, of Term, are part of the
// state. Conf is the membership at Index.
type Mark struct {
	Index uint64
	Term  uint64
	Conf  *pb.ConfState
}

const hardStateBytes = 24

func appendHardState(b []byte, hs *pb.HardState) []byte {
	b = binary.LittleEndian.AppendUint64(b, hs.GetTerm())
	b = binary.LittleEndian.AppendUint64(b, hs.GetVote())
	return binary.LittleEndian.AppendUint64(b, hs.GetCommit())
}

func decodeHardState(b []byte) (*pb.HardState, error) {
	if len(b) != hardStateBytes {
		return nil, fmt.Errorf("hard state of %d bytes", len(b))
	}
	return &pb.HardState{
		Term:   new(binary.LittleEndian.Uint64(b[0:])),
		Vote:   new(binary.LittleEndian.Uint64(b[8:])),
		Commit: new(binary.LittleEndian.Uint64(b[16:])),
	}, nil
}

const entryHeaderBytes = 17

func appendEntry(b []byte, e *pb.Entry) []byte {
	b = binary.LittleEndian.AppendUint64(b, e.GetIndex())
	b = binary.LittleEndian.AppendUint64(b, e.GetTerm())
	b = append(b, byte(e.GetType()))
	return append(b, e.GetData()...)
}

// decodeEntry copies the data, so that an entry does not keep its whole segment in memory.
func decodeEntry(b []byte) (*pb.Entry, error) {
	if len(b) < entryHeaderBytes {
		return nil, fmt.Errorf("entry of %d bytes", len(b))
	}
	if b[16] > byte(pb.EntryConfChangeV2) {
		return nil, fmt.Errorf("entry of unknown type %d", b[16])
	}
	e := &pb.Entry{
		Index: new(binary.LittleEndian.Uint64(b[0:])),
		Term:  new(binary.LittleEndian.Uint64(b[8:])),
		Type:  pb.EntryType(b[16]).Enum(),
	}
	if len(b) > entryHeaderBytes {
		e.Data = append([]byte(nil), b[entryHeaderBytes:]...)
	}
	return e, nil
}

func appendMark(b []byte, m *Mark) []byte {
	b = binary.LittleEndian.AppendUint64(b, m.Index)
	b = binary.LittleEndian.AppendUint64(b, m.Term)
	return append(b, EncodeConf(m.Conf)...)
}

// markBytes is the size of a mark's body.
func markBytes(m *Mark) int { return 16 + len(EncodeConf(m.Conf)) }

func decodeMark(b []byte) (*Mark, error) {
	if len(b) < 16 {
		return nil, fmt.Errorf("mark of %d bytes", len(b))
	}
	conf, err := DecodeConf(b[16:])
	if err != nil {
		return nil, err
	}
	return &Mark{Index: binary.LittleEndian.Uint64(b[0:]), Term: binary.LittleEndian.Uint64(b[8:]), Conf: conf}, nil
}

// maxConfIDs bounds each list of a stored membership.
const maxConfIDs = 1024

// EncodeConf is the stored form of a membership: a version byte, then its four
// lists of ids (voters, learners, outgoing voters, next learners), each a 2-byte
// count and 8-byte ids, then the auto-leave flag. Little-endian.
func EncodeConf(c *pb.ConfState) []byte {
	b := []byte{1}
	for _, ids := range [][]uint64{c.GetVoters(), c.GetLearners(), c.GetVotersOutgoing(), c.GetLearnersNext()} {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(ids)))
		for _, id := range ids {
			b = binary.LittleEndian.AppendUint64(b, id)
		}
	}
	if c.GetAutoLeave() {
		return append(b, 1)
	}
	return append(b, 0)
}

// DecodeConf reads what EncodeConf wrote; anything else is cfs.Corrupt.
func DecodeConf(b []byte) (*pb.ConfState, error) {
	bad := func(why string) (*pb.ConfState, error) {
		return nil, cfs.Errorf("decode membership", cfs.Corrupt, "%s", why)
	}
	if len(b) < 1 || b[0] != 1 {
		return bad("unknown version")
	}
	b = b[1:]
	var lists [4][]uint64
	for i := range lists {
		if len(b) < 2 {
			return bad("short")
		}
		n := int(binary.LittleEndian.Uint16(b))
		if b = b[2:]; n > maxConfIDs || len(b) < 8*n {
			return bad("bad count")
		}
		for ; n > 0; n-- {
			lists[i] = append(lists[i], binary.LittleEndian.Uint64(b))
			b = b[8:]
		}
	}
	if len(b) != 1 || b[0] > 1 {
		return bad("bad end")
	}
	c := &pb.ConfState{Voters: lists[0], Learners: lists[1], VotersOutgoing: lists[2], LearnersNext: lists[3]}
	if b[0] == 1 {
		c.AutoLeave = new(true)
	}
	return c, nil
}
