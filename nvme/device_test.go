package nvme

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// testDevice is the conformance suite of Device. open opens a device of
// sizeBytes; opening it again is refused while it is open.
func testDevice(t *testing.T, r *rig, path string, kind Kind, sizeBytes int64) {
	dev := r.open(path)
	info := dev.Info()
	if info.Path != path || info.Kind != kind || info.SizeBytes != sizeBytes {
		t.Errorf("info %+v", info)
	}
	t.Run("RoundTrip", func(t *testing.T) { deviceRoundTrip(t, r, dev) })
	t.Run("Bounds", func(t *testing.T) { deviceBounds(t, r, dev) })
	t.Run("Concurrency", func(t *testing.T) { deviceConcurrency(t, r, dev) })
	t.Run("Discard", func(t *testing.T) {
		if err := dev.Discard(0, 1<<20); err != nil && cfs.KindOf(err) != cfs.Unsupported {
			t.Error(err)
		}
	})
	t.Run("InUse", func(t *testing.T) {
		if _, err := openDevice(path, r.ring, 2*lockPoll); cfs.KindOf(err) != cfs.Busy || !strings.Contains(err.Error(), path) {
			t.Errorf("second open: %v", err)
		}
	})
	t.Run("Log", func(t *testing.T) { deviceLog(t, r, dev) })
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if err := dev.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	r.open(path).Close() // free again
}

func deviceRoundTrip(t *testing.T, r *rig, dev Device) {
	b, err := r.arena.Get(context.Background(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	p := b.Bytes()
	want := make([]byte, len(p))
	rand.NewChaCha8([32]byte{1}).Read(want)
	copy(p, want)
	half := len(p) / 2
	ops := []iopath.WriteOp{{P: p[:half], Off: 4 << 20}, {P: p[half:], Off: 2 << 20}}
	if err := dev.Write(ops); err != nil {
		t.Fatal(err)
	}
	if err := dev.Flush(); err != nil {
		t.Fatal(err)
	}
	clear(p)
	if err := dev.ReadMany(ops); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, want) {
		t.Error("ReadMany: other bytes")
	}
	clear(p)
	if err := dev.Read(p[:half], 2<<20); err != nil || !bytes.Equal(p[:half], want[half:]) {
		t.Errorf("Read: other bytes, or %v", err)
	}
}

func deviceBounds(t *testing.T, r *rig, dev Device) {
	b, err := r.arena.Get(context.Background(), 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	end := dev.Info().SizeBytes
	if err := dev.Write([]iopath.WriteOp{{P: b.Bytes(), Off: end - 8192}}); err != nil {
		t.Errorf("the last blocks: %v", err)
	}
	for _, err := range []error{
		dev.Write([]iopath.WriteOp{{P: b.Bytes(), Off: end - 4096}}),
		dev.Write([]iopath.WriteOp{{P: b.Bytes(), Off: -4096}}),
		dev.Read(b.Bytes(), end-4096),
		dev.ReadMany([]iopath.ReadOp{{P: b.Bytes(), Off: end}}),
	} {
		if err == nil || !strings.Contains(err.Error(), dev.Info().Path) {
			t.Errorf("beyond the end: %v", err)
		}
	}
}

func deviceConcurrency(t *testing.T, r *rig, dev Device) {
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			b, err := r.arena.Get(context.Background(), 64<<10)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Release()
			off := HeaderAreaBytes + int64(w)<<16
			for i := range 20 {
				for j := range b.Bytes() {
					b.Bytes()[j] = byte(w + i)
				}
				if err := dev.Write([]iopath.WriteOp{{P: b.Bytes(), Off: off}}); err != nil {
					t.Error(err)
				}
				clear(b.Bytes())
				if err := dev.Read(b.Bytes(), off); err != nil || b.Bytes()[0] != byte(w+i) || b.Bytes()[len(b.Bytes())-1] != byte(w+i) {
					t.Errorf("worker %d: other bytes, or %v", w, err)
				}
			}
		})
	}
	wg.Wait()
}

// deviceLog runs the log through a few lives of its segments.
func deviceLog(t *testing.T, r *rig, dev Device) {
	sb := Superblock{ClusterID: testCluster, Device: 1, SegmentBytes: testSegment}
	if err := Format(dev, sb, true); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{})
	for i := range 400 {
		size := 4096 * (1 + i%8)
		r.mustPut(l, testKey(i), size)
		if i >= 20 {
			if l.Delete([]Key{testKey(i - 20)}) != 1 {
				t.Fatalf("record %d was not there to delete", i-20)
			}
		}
	}
	l.Close()
	l = r.log(dev, LogOptions{})
	for i := 380; i < 400; i++ {
		r.mustCheck(l, testKey(i), 4096*(1+i%8))
	}
	l.Close()
}

const suiteBytes = HeaderAreaBytes + 64*testSegment

func TestFileDevice(t *testing.T) {
	r := newRig(t)
	path := r.file(suiteBytes + 100) // the part of a block at the end is not used
	testDevice(t, r, path, KindFile, suiteBytes)
}

func TestBlockDevice(t *testing.T) {
	r := newRig(t)
	testDevice(t, r, loopDevice(t, r.file(suiteBytes)), KindBlock, suiteBytes)
}

// loopDevice makes a block device of a file, or skips the test.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices here: %v: %s", err, bytes.TrimSpace(out))
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", path, err, out)
		}
	})
	return path
}

func TestOpenDeviceRefusals(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	for path, kind := range map[string]cfs.Kind{
		filepath.Join(dir, "missing"): cfs.NotFound,
		dir:                           cfs.Invalid,
		"/dev/null":                   cfs.Invalid,
	} {
		if _, err := OpenDevice(path, r.ring); cfs.KindOf(err) != kind || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, kind)
		}
	}
}

// TestFormatForeignBlockDevice checks that a disk which holds something is not formatted by accident.
func TestFormatForeignBlockDevice(t *testing.T) {
	r := newRig(t)
	file := r.file(suiteBytes)
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, 70000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	dev := r.open(loopDevice(t, file))
	defer dev.Close()
	sb := Superblock{ClusterID: testCluster, SegmentBytes: testSegment}
	if err := Format(dev, sb, false); cfs.KindOf(err) != cfs.Exists || !strings.Contains(err.Error(), "70000") {
		t.Errorf("format over other data: %v", err)
	}
	if err := Format(dev, sb, true); err != nil {
		t.Errorf("forced: %v", err)
	}
}
