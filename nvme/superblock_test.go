package nvme

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func TestFormat(t *testing.T) {
	r := newRig(t)
	dev := r.open(r.file(suiteBytes))
	if _, err := ReadSuperblock(dev); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("blank device: %v", err)
	}
	if _, err := OpenLog(dev, r.arena, LogOptions{}); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("log on a blank device: %v", err)
	}
	sb := Superblock{ClusterID: "alpha", Device: cfs.MakeDeviceID(3, 1), SegmentBytes: testSegment}
	if err := Format(dev, sb, false); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSuperblock(dev)
	if err != nil {
		t.Fatal(err)
	}
	if got.UUID == (cfs.UUID{}) {
		t.Error("no UUID")
	}
	want := sb
	want.UUID, want.SizeBytes, want.Generation = got.UUID, suiteBytes, 1
	if got != want {
		t.Errorf("read %+v, want %+v", got, want)
	}
	if err := Format(dev, sb, false); cfs.KindOf(err) != cfs.Exists || !strings.Contains(err.Error(), "alpha") {
		t.Errorf("format again: %v", err)
	}
	other := sb
	other.ClusterID = "beta"
	if err := Format(dev, other, false); cfs.KindOf(err) != cfs.WrongCluster || !strings.Contains(err.Error(), "alpha") {
		t.Errorf("format for another cluster: %v", err)
	}
	if again, err := ReadSuperblock(dev); err != nil || again != got {
		t.Errorf("a refused format changed the superblock: %+v, %v", again, err)
	}
	same := other
	same.UUID = got.UUID
	if err := Format(dev, same, true); cfs.KindOf(err) != cfs.Invalid {
		t.Errorf("format with the same UUID: %v", err)
	}
	if err := Format(dev, other, true); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSuperblock(dev); err != nil || got.ClusterID != "beta" || got.Generation != 2 {
		t.Errorf("after force: %+v, %v", got, err)
	}
}

func TestFormatBounds(t *testing.T) {
	r := newRig(t)
	small := r.open(r.file(deviceBytes(2) - 4096))
	big := r.open(r.file(suiteBytes))
	for what, c := range map[string]struct {
		dev Device
		sb  Superblock
	}{
		"too small":         {small, Superblock{ClusterID: "a", SegmentBytes: testSegment}},
		"default segments":  {big, Superblock{ClusterID: "a"}}, // ten of 2 MiB do not fit
		"no cluster id":     {big, Superblock{SegmentBytes: testSegment}},
		"long cluster id":   {big, Superblock{ClusterID: strings.Repeat("a", 64), SegmentBytes: testSegment}},
		"tiny segments":     {big, Superblock{ClusterID: "a", SegmentBytes: 4096}},
		"unaligned segment": {big, Superblock{ClusterID: "a", SegmentBytes: testSegment + 1}},
		"huge segments":     {big, Superblock{ClusterID: "a", SegmentBytes: MaxSegmentBytes + 4096}},
	} {
		if err := Format(c.dev, c.sb, true); cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), c.dev.Info().Path) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// named is a Device that is an NVMe namespace of some name.
type named struct {
	Device
	identity Identity
}

func (n named) Info() Info {
	i := n.Device.Info()
	i.Identity = n.identity
	return i
}

// TestSuperblockIdentity checks that a device knows the namespace that it was
// formatted as, and is refused when it is another.
func TestSuperblockIdentity(t *testing.T) {
	r := newRig(t)
	a := Identity{0x52, 0x54, 0, 0, 0, 0, 0, 1}
	b := Identity{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	file := r.open(r.file(suiteBytes))
	sb := Superblock{ClusterID: testCluster, Device: cfs.MakeDeviceID(2, 1), SegmentBytes: testSegment}
	if err := Format(named{file, a}, sb, false); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSuperblock(named{file, a}); err != nil || got.Identity != a {
		t.Errorf("%+v, %v", got, err)
	}
	for _, other := range []Identity{b, {}} {
		dev := named{file, other}
		_, err := ReadSuperblock(dev)
		for _, text := range []string{a.String(), other.String(), dev.Info().Path, testCluster} {
			if cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), text) {
				t.Errorf("as %s: no %q in %v", other, text, err)
			}
		}
		if _, err := OpenLog(dev, r.arena, LogOptions{}); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("a log as %s: %v", other, err)
		}
		if err := Format(dev, sb, false); cfs.KindOf(err) != cfs.Exists {
			t.Errorf("format as %s: %v", other, err)
		}
	}
	// By force it becomes the other, and rises above what is there.
	if err := Format(named{file, b}, sb, true); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSuperblock(named{file, b}); err != nil || got.Identity != b || got.Generation != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	// One that was formatted without a name may have got one since.
	if err := Format(file, sb, true); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSuperblock(named{file, a}); err != nil || got.Identity != (Identity{}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSuperblockBytes holds the places that docs/format/disk.md names.
func TestSuperblockBytes(t *testing.T) {
	blk := make([]byte, cfs.BlockSize)
	sb := Superblock{
		ClusterID: "alpha", Device: cfs.MakeDeviceID(3, 1), SegmentBytes: testSegment, SizeBytes: suiteBytes, Generation: 9,
		UUID: cfs.UUID{1, 2, 3}, Identity: Identity{4, 5, 6},
	}
	encodeSuper(blk, &sb, 0)
	le := binary.LittleEndian
	if string(blk[:8]) != "CFSSUPER" || le.Uint16(blk[8:]) != 2 || le.Uint32(blk[12:]) != testSegment || le.Uint64(blk[16:]) != 9 ||
		le.Uint64(blk[24:]) != suiteBytes || blk[32] != 1 || le.Uint32(blk[48:]) != uint32(sb.Device) || blk[52] != 5 ||
		string(blk[56:61]) != "alpha" || blk[128] != 4 || blk[130] != 6 || blk[131] != 0 {
		t.Errorf("%x", blk[:160])
	}
	if got, err := decodeSuper(blk, 0); err != nil || got != sb {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := decodeSuper(blk, 4096); cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("at another place: %v", err)
	}
}

// TestSuperblockDamage checks that one copy is enough, and that without one the
// error names the place.
func TestSuperblockDamage(t *testing.T) {
	r := newRig(t)
	dev := r.device(4)
	path := dev.Info().Path
	dev.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := func(offs ...int64) Device {
		data := append([]byte(nil), whole...)
		for _, off := range offs {
			data[off+60] ^= 4
		}
		return r.open(r.write(data))
	}
	for _, off := range superOffsets() {
		if sb, err := ReadSuperblock(damage(off)); err != nil || sb.ClusterID != testCluster {
			t.Errorf("copy at %d damaged: %+v, %v", off, sb, err)
		}
	}
	dev = damage(superOffsets()[0], superOffsets()[1])
	_, err = ReadSuperblock(dev)
	if cfs.KindOf(err) != cfs.Corrupt || !strings.Contains(err.Error(), dev.Info().Path) || !strings.Contains(err.Error(), "1044480") {
		t.Errorf("both damaged: %v", err)
	}
	sb := Superblock{ClusterID: testCluster, SegmentBytes: testSegment}
	if err := Format(dev, sb, false); cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("format over a damaged superblock: %v", err)
	}
	if err := Format(dev, sb, true); err != nil {
		t.Errorf("forced: %v", err)
	}
}

func TestShrunkDevice(t *testing.T) {
	r := newRig(t)
	dev := r.device(4)
	path := r.copyFile(dev.Info().Path)
	if err := os.Truncate(path, deviceBytes(3)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLog(r.open(path), r.arena, LogOptions{}); cfs.KindOf(err) != cfs.Corrupt || !strings.Contains(err.Error(), path) {
		t.Errorf("shrunk device: %v", err)
	}
}
