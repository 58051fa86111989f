package nvme

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// Sizes of the format.
const (
	// HeaderAreaBytes is the room in front of the segments: superblock copies in its first and last block.
	HeaderAreaBytes = 1 << 20
	// DefaultSegmentBytes is the size of a segment when the superblock does not say; see DefaultSegment.
	DefaultSegmentBytes = 64 << 20
	// leastDefaultSegment holds three records of the largest size; of half of it every second block would stay empty.
	leastDefaultSegment = 4 << 20
	// enoughSegments is so many that the reserve is a small part of them.
	enoughSegments = 64
	// MinSegmentBytes and MaxSegmentBytes bound a segment; the index counts blocks in 16 bits.
	MinSegmentBytes = 128 << 10
	MaxSegmentBytes = 256 << 20
	// MinSegments is the least number of segments of a device: the reserve, and two to fill.
	MinSegments = reserveSegments + 2
	// maxClusterID bounds a cluster id, in bytes.
	maxClusterID = 63

	superMagic   = "CFSSUPER"
	superVersion = 2
	identityAt   = 128               // where a superblock has the identity
	crcAt        = cfs.BlockSize - 4 // where each header block has its CRC
)

// castagnoli is the polynomial of every checksum on a device.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Superblock says whose a device is.
type Superblock struct {
	ClusterID    string       // 1 to 63 bytes
	Device       cfs.DeviceID // within the cluster
	UUID         cfs.UUID     // of this formatting; Format makes one when it is zero
	SegmentBytes uint32       // 0 for DefaultSegment of the device's size
	SizeBytes    int64        // of the device when it was formatted; Format sets it
	Generation   uint64       // rises with each formatting; Format sets it
	Identity     Identity     // of the NVMe namespace that was formatted, zero for other devices; Format sets it
}

// DefaultSegment is the size of segments on a device of so many bytes unless its formatter says
// otherwise: 64 MiB, and less where there would be fewer than 64 of them, down to 4 MiB.
func DefaultSegment(sizeBytes int64) uint32 {
	segment := uint32(DefaultSegmentBytes)
	for segment > leastDefaultSegment && (sizeBytes-HeaderAreaBytes)/int64(segment) < enoughSegments {
		segment /= 2
	}
	return segment
}

// superOffsets are the places of the two copies.
func superOffsets() [2]int64 { return [2]int64{0, HeaderAreaBytes - cfs.BlockSize} }

// sealBlock stores the CRC of a header block that lies at device offset off.
func sealBlock(blk []byte, off int64) {
	binary.LittleEndian.PutUint32(blk[crcAt:], blockCRC(blk, off))
}

// blockSealed reports whether a header block at device offset off is whole.
func blockSealed(blk []byte, off int64) bool {
	return binary.LittleEndian.Uint32(blk[crcAt:]) == blockCRC(blk, off)
}

// blockCRC covers the block and its own place, so that a copy elsewhere is not taken for it.
func blockCRC(blk []byte, off int64) uint32 {
	var place [8]byte
	binary.LittleEndian.PutUint64(place[:], uint64(off))
	return crc32.Update(crc32.Checksum(place[:], castagnoli), castagnoli, blk[:crcAt])
}

// encodeSuper fills a block for device offset off.
func encodeSuper(blk []byte, sb *Superblock, off int64) {
	clear(blk)
	copy(blk, superMagic)
	le := binary.LittleEndian
	le.PutUint16(blk[8:], superVersion)
	le.PutUint32(blk[12:], sb.SegmentBytes)
	le.PutUint64(blk[16:], sb.Generation)
	le.PutUint64(blk[24:], uint64(sb.SizeBytes))
	copy(blk[32:48], sb.UUID[:])
	le.PutUint32(blk[48:], uint32(sb.Device))
	blk[52] = byte(len(sb.ClusterID))
	copy(blk[56:56+maxClusterID], sb.ClusterID)
	copy(blk[identityAt:], sb.Identity[:])
	sealBlock(blk, off)
}

// decodeSuper reads a block from device offset off: NotFound when it is no
// superblock, Corrupt when it is a damaged one.
func decodeSuper(blk []byte, off int64) (Superblock, error) {
	if len(blk) < cfs.BlockSize || !bytes.HasPrefix(blk, []byte(superMagic)) {
		return Superblock{}, cfs.NotFound
	}
	le := binary.LittleEndian
	if !blockSealed(blk, off) {
		return Superblock{}, cfs.Errorf("", cfs.Corrupt, "superblock at %d: checksum does not match", off)
	}
	if v := le.Uint16(blk[8:]); v != superVersion {
		return Superblock{}, cfs.Errorf("", cfs.Corrupt, "superblock at %d: version %d, this program knows %d", off, v, superVersion)
	}
	n := int(blk[52])
	if n > maxClusterID {
		return Superblock{}, cfs.Errorf("", cfs.Corrupt, "superblock at %d: cluster id of %d bytes", off, n)
	}
	sb := Superblock{
		ClusterID:    string(blk[56 : 56+n]),
		Device:       cfs.DeviceID(le.Uint32(blk[48:])),
		UUID:         cfs.UUID(blk[32:48]),
		SegmentBytes: le.Uint32(blk[12:]),
		Generation:   le.Uint64(blk[16:]),
		SizeBytes:    int64(le.Uint64(blk[24:])),
		Identity:     Identity(blk[identityAt:]),
	}
	if err := sb.check(); err != nil {
		return Superblock{}, cfs.Errorf("", cfs.Corrupt, "superblock at %d: %w", off, err)
	}
	return sb, nil
}

// check validates what a superblock says about the device.
func (sb *Superblock) check() error {
	if n := len(sb.ClusterID); n < 1 || n > maxClusterID {
		return cfs.Errorf("", cfs.Invalid, "cluster id of %d bytes, want 1 to %d", n, maxClusterID)
	}
	if n := sb.SegmentBytes; n < MinSegmentBytes || n > MaxSegmentBytes || n%cfs.BlockSize != 0 {
		return cfs.Errorf("", cfs.Invalid, "segments of %d bytes, want whole blocks, %d to %d", n, MinSegmentBytes, MaxSegmentBytes)
	}
	if least := sb.leastSize(); sb.SizeBytes < least {
		return cfs.Errorf("", cfs.Invalid, "%d bytes are too small, the least is %d", sb.SizeBytes, least)
	}
	return nil
}

// leastSize is the least device for the segment size, in bytes.
func (sb *Superblock) leastSize() int64 {
	return HeaderAreaBytes + MinSegments*int64(sb.SegmentBytes)
}

// Format writes superblocks. Unless force, it refuses a device that is
// formatted for another cluster (WrongCluster, naming it) or for this one
// (Exists), one with a damaged superblock (Corrupt), and a block device that
// holds anything else in its first MiB (Exists). A device that is too small is
// Invalid. Nothing is changed when it fails before writing.
func Format(dev Device, sb Superblock, force bool) error {
	path := dev.Info().Path
	op := "format " + path
	if sb.SegmentBytes == 0 {
		sb.SegmentBytes = DefaultSegment(dev.Info().SizeBytes)
	}
	sb.SizeBytes, sb.Identity = dev.Info().SizeBytes, dev.Info().Identity
	if err := sb.check(); err != nil {
		return cfs.E(op, cfs.Invalid, err)
	}
	old, oldErr := readSuper(dev, op)
	if kind := cfs.KindOf(oldErr); kind == cfs.IO {
		return oldErr
	}
	if oldErr == nil && old.UUID == sb.UUID {
		return cfs.Errorf(op, cfs.Invalid, "it already has the UUID %s: each formatting needs its own", sb.UUID)
	}
	if !force {
		if err := formatAllowed(dev, op, old, oldErr, sb.ClusterID); err != nil {
			return err
		}
	}
	if sb.UUID == (cfs.UUID{}) {
		sb.UUID = newUUID()
	}
	sb.Generation = old.Generation + 1
	mem, err := newScratch(cfs.BlockSize)
	if err != nil {
		return err
	}
	defer mem.free()
	// One after the other, each flushed: a crash leaves at least one copy whole.
	for _, off := range superOffsets() {
		encodeSuper(mem.p, &sb, off)
		if err := dev.Write([]iopath.WriteOp{{P: mem.p, Off: off}}); err != nil {
			return err
		}
		if err := dev.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func formatAllowed(dev Device, op string, old Superblock, oldErr error, clusterID string) error {
	switch {
	case oldErr == nil && old.ClusterID != clusterID:
		return cfs.Errorf(op, cfs.WrongCluster, "it is formatted for cluster %q, not %q", old.ClusterID, clusterID)
	case oldErr == nil:
		return cfs.Errorf(op, cfs.Exists, "it is already device %s of cluster %q", old.Device, old.ClusterID)
	case cfs.KindOf(oldErr) != cfs.NotFound:
		return oldErr
	}
	return CheckBlank(dev)
}

// CheckBlank refuses a device, with Exists, that is not formatted and holds
// something else: anything but zeros where the superblocks go.
func CheckBlank(dev Device) error {
	op := "format " + dev.Info().Path
	mem, err := newScratch(HeaderAreaBytes)
	if err != nil {
		return err
	}
	defer mem.free()
	if err := dev.Read(mem.p, 0); err != nil {
		return err
	}
	for i, c := range mem.p {
		if c != 0 {
			return cfs.Errorf(op, cfs.Exists, "it holds other data (at offset %d)", i)
		}
	}
	return nil
}

// ReadSuperblock reads the newest whole copy. NotFound when the device is not
// formatted, Corrupt (naming path and offset) when copies are there and none is
// whole, Invalid when they name another NVMe namespace than this, IO when it
// cannot be read.
func ReadSuperblock(dev Device) (Superblock, error) {
	op := "read superblock of " + dev.Info().Path
	sb, err := readSuper(dev, op)
	if err != nil {
		return Superblock{}, err
	}
	// Nothing is known of what was formatted without an identity.
	if here := dev.Info().Identity; sb.Identity != (Identity{}) && sb.Identity != here {
		return Superblock{}, cfs.Errorf(op, cfs.Invalid,
			"device %s of cluster %q was formatted as NVMe namespace %s, and the identity of this one is %s: it is a copy, or another device at this path",
			sb.Device, sb.ClusterID, sb.Identity, here)
	}
	return sb, nil
}

// readSuper is ReadSuperblock for whichever device it is.
func readSuper(dev Device, op string) (Superblock, error) {
	if dev.Info().SizeBytes < HeaderAreaBytes {
		return Superblock{}, cfs.Errorf(op, cfs.NotFound, "a device of %d bytes has none", dev.Info().SizeBytes)
	}
	mem, err := newScratch(cfs.BlockSize)
	if err != nil {
		return Superblock{}, err
	}
	defer mem.free()
	var best Superblock
	found := false
	var bad error
	for _, off := range superOffsets() {
		if err := dev.Read(mem.p, off); err != nil {
			return Superblock{}, err
		}
		sb, err := decodeSuper(mem.p, off)
		switch {
		case err == nil && (!found || sb.Generation > best.Generation):
			best, found = sb, true
		case err != nil && cfs.KindOf(err) != cfs.NotFound:
			bad = err
		}
	}
	switch {
	case found:
		return best, nil
	case bad != nil:
		return Superblock{}, cfs.E(op, cfs.Corrupt, bad)
	}
	return Superblock{}, cfs.Errorf(op, cfs.NotFound, "it is not formatted")
}

// newUUID makes a random UUID (RFC 9562, version 4).
func newUUID() cfs.UUID {
	var u cfs.UUID
	rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}
