package wal

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
)

// The segment header, one block. Little-endian: magic 8, version u32, node u16,
// length of the cluster id u8, the cluster id 64, sequence u64, salt u64 and,
// last, the CRC32C of all before.
const (
	segMagic       = "CFSRLOG\n"
	segVersion     = 1
	segHeaderBytes = cfs.BlockSize
	segUsedBytes   = 99
	maxClusterID   = 64
	segSuffix      = ".seg"
	spareName      = "spare"
	// MinSegmentBytes is the smallest segment: the header and something to write.
	MinSegmentBytes = 2 * cfs.BlockSize
)

// segment is one file of the log.
type segment struct {
	place
	path     string
	bytes    int64
	maxIndex uint64 // highest entry index in it
}

func segName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, segSuffix) }

func parseSegName(name string) (seq uint64, ok bool) {
	hex, found := strings.CutSuffix(name, segSuffix)
	if !found || len(hex) != 16 {
		return 0, false
	}
	_, err := fmt.Sscanf(hex, "%016x", &seq)
	return seq, err == nil && segName(seq) == name
}

func encodeSegHeader(p place, clusterID string, node cfs.NodeID) []byte {
	b := make([]byte, segHeaderBytes)
	copy(b, segMagic)
	binary.LittleEndian.PutUint32(b[8:], segVersion)
	binary.LittleEndian.PutUint16(b[12:], uint16(node))
	b[14] = byte(len(clusterID))
	copy(b[15:15+maxClusterID], clusterID)
	binary.LittleEndian.PutUint64(b[79:], p.seq)
	binary.LittleEndian.PutUint64(b[87:], p.salt)
	binary.LittleEndian.PutUint32(b[segUsedBytes-4:], crc32.Checksum(b[:segUsedBytes-4], castagnoli()))
	return b
}

func decodeSegHeader(path string, b []byte) (p place, clusterID string, node cfs.NodeID, err error) {
	bad := func(format string, args ...any) (place, string, cfs.NodeID, error) {
		return place{}, "", 0, cfs.Errorf("read raft log "+path+" at offset 0", cfs.Corrupt, format, args...)
	}
	if len(b) < segHeaderBytes {
		return bad("segment of %d bytes is shorter than its header", len(b))
	}
	if !bytes.Equal(b[:8], []byte(segMagic)) {
		return bad("not a raft log segment")
	}
	if binary.LittleEndian.Uint32(b[segUsedBytes-4:]) != crc32.Checksum(b[:segUsedBytes-4], castagnoli()) {
		return bad("segment header checksum does not match")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != segVersion {
		return bad("segment version %d, this program knows %d", v, segVersion)
	}
	n := int(b[14])
	if n > maxClusterID {
		return bad("cluster id of %d bytes", n)
	}
	p = place{seq: binary.LittleEndian.Uint64(b[79:]), salt: binary.LittleEndian.Uint64(b[87:])}
	return p, string(b[15 : 15+n]), cfs.NodeID(binary.LittleEndian.Uint16(b[12:])), nil
}

// zeroFile makes a file of n zero bytes, written and synced: an append that
// neither extends a file nor allocates blocks is a third cheaper to sync.
func zeroFile(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for left := n; left > 0 && err == nil; left -= int64(len(zeros)) {
		_, err = f.Write(zeros[:min(left, int64(len(zeros)))])
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// newSegment turns the spare file at path into the segment seq of the log and
// opens it. It is renamed once its header is durable, so a segment that has a
// segment's name has a whole header.
func newSegment(dir, spare string, seq uint64, clusterID string, node cfs.NodeID) (*segment, *os.File, error) {
	var salt [8]byte
	if _, err := io.ReadFull(rand.Reader, salt[:]); err != nil {
		return nil, nil, err
	}
	s := &segment{place: place{seq: seq, salt: binary.LittleEndian.Uint64(salt[:])}, path: filepath.Join(dir, segName(seq))}
	f, err := os.OpenFile(spare, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err == nil {
		s.bytes = st.Size()
		_, err = f.WriteAt(encodeSegHeader(s.place, clusterID, node), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(spare, s.path)
	}
	if err == nil {
		err = durable.SyncDir(dir)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return s, f, nil
}
