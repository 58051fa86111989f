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
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

// deviceRig is what a test needs to open devices of any kind.
type deviceRig struct {
	t     testing.TB
	arena *iopath.Arena
	ring  *iopath.Ring
}

// newDeviceRig makes a rig whose ring sends NVMe commands if asked for.
func newDeviceRig(t testing.TB, commands bool) *deviceRig {
	t.Helper()
	arena, err := iopath.NewArena(24 << 20)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := iopath.NewRing(iopath.RingConfig{Arena: arena, Entries: 64, Commands: commands})
	if commands && cfs.KindOf(err) == cfs.Unsupported {
		arena.Close()
		t.Skipf("no ring for commands here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
		if n := arena.InUse(); n != 0 {
			t.Errorf("%d bytes of the arena leaked", n)
		} else if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return &deviceRig{t: t, arena: arena, ring: ring}
}

// openAt opens the device at path with a ring of the kind that it needs.
func openAt(t testing.TB, path string) (*deviceRig, Device) {
	t.Helper()
	kind, err := DeviceKind(path)
	if err != nil {
		t.Fatal(err)
	}
	r := newDeviceRig(t, kind == KindPassthrough)
	dev, err := OpenDevice(path, r.ring)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return r, dev
}

// mem takes n bytes of the arena until the test's end.
func (r *deviceRig) mem(t testing.TB, n int) []byte {
	t.Helper()
	b, err := r.arena.Get(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Release)
	return b.Bytes()
}

// file makes a sparse file of the given size.
func (r *deviceRig) file(sizeBytes int64) string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Truncate(path, sizeBytes); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// noise is n bytes that depend on seed.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(p)
	return p
}

// deviceSuite is the conformance suite of Device. It overwrites the device.
type deviceSuite struct {
	r    *deviceRig
	path string
	kind Kind
	open func(wait time.Duration) (Device, error)
}

// host is the suite on what OpenDevice opens.
func (r *deviceRig) host(path string, kind Kind) *deviceSuite {
	return &deviceSuite{r: r, path: path, kind: kind, open: func(wait time.Duration) (Device, error) {
		return openDevice(path, r.ring, wait)
	}}
}

// suiteBytes is what the suite needs of a device.
const suiteBytes = HeaderAreaBytes + 64*testSegment

func (s *deviceSuite) run(t *testing.T) Info {
	dev := s.mustOpen(t)
	info := dev.Info()
	if info.Path != s.path || info.Kind != s.kind || info.SizeBytes < suiteBytes || info.SizeBytes%cfs.BlockSize != 0 {
		t.Errorf("info %+v", info)
	}
	if n := info.LogicalBlockBytes; n < 512 || n > cfs.BlockSize || n&(n-1) != 0 {
		t.Errorf("logical blocks of %d bytes", n)
	}
	for name, test := range map[string]func(*testing.T, Device){
		"RoundTrip":   s.roundTrip,
		"Large":       s.large,
		"Sync":        s.sync,
		"Empty":       s.empty,
		"Bounds":      s.bounds,
		"Concurrency": s.concurrency,
		"Discard":     s.discard,
		"Health":      s.health,
		"Allocates":   s.allocates,
	} {
		t.Run(name, func(t *testing.T) { test(t, dev) })
	}
	t.Run("InUse", func(t *testing.T) {
		if _, err := s.open(2 * lockPoll); cfs.KindOf(err) != cfs.Busy || !strings.Contains(err.Error(), s.path) {
			t.Errorf("second open: %v", err)
		}
	})
	t.Run("Reopen", func(t *testing.T) { s.reopen(t, dev) })
	return info
}

func (s *deviceSuite) mustOpen(t *testing.T) Device {
	t.Helper()
	dev, err := s.open(lockWait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

func (s *deviceSuite) roundTrip(t *testing.T, dev Device) {
	p := s.r.mem(t, 1<<20)
	want := noise(1, len(p))
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

// large has transfers above what a device takes in one command, from the
// arena and from other memory.
func (s *deviceSuite) large(t *testing.T, dev Device) {
	const size = 3 << 20
	mem, err := newScratch(size)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.free()
	want := noise(2, size)
	copy(mem.p, want)
	inArena := s.r.mem(t, 1<<20)
	copy(inArena, want)
	// The lengths are not multiples of each other, and the pieces lie in no order.
	const first, second = 1<<20 + 5*4096, 1 << 20
	ops := []iopath.WriteOp{
		{P: mem.p[first+second:], Off: 8<<20 + first + second},
		{P: mem.p[:first], Off: 8 << 20},
		{P: mem.p[first : first+second], Off: 8<<20 + first, Sync: true},
		{P: inArena, Off: 12 << 20},
	}
	if err := dev.Write(ops); err != nil {
		t.Fatal(err)
	}
	clear(mem.p)
	if err := dev.Read(mem.p, 8<<20); err != nil || !bytes.Equal(mem.p, want) {
		t.Errorf("one read: other bytes, or %v", err)
	}
	clear(mem.p)
	clear(inArena)
	if err := dev.ReadMany(ops); err != nil || !bytes.Equal(mem.p, want) || !bytes.Equal(inArena, want[:len(inArena)]) {
		t.Errorf("a batch of reads: other bytes, or %v", err)
	}
}

// sync has batches in which some writes are durable and some are not.
func (s *deviceSuite) sync(t *testing.T, dev Device) {
	const n = 32
	p := s.r.mem(t, n*4096)
	want := noise(3, len(p))
	copy(p, want)
	ops := make([]iopath.WriteOp, n)
	for i := range ops {
		ops[i] = iopath.WriteOp{P: p[i*4096 : (i+1)*4096], Off: 1<<20 + int64(n-i)*8192, Sync: i%3 == 0}
	}
	if err := dev.Write(ops); err != nil {
		t.Fatal(err)
	}
	clear(p)
	if err := dev.ReadMany(ops); err != nil || !bytes.Equal(p, want) {
		t.Errorf("other bytes, or %v", err)
	}
}

func (s *deviceSuite) empty(t *testing.T, dev Device) {
	for _, err := range []error{
		dev.Write(nil),
		dev.ReadMany(nil),
		dev.Read(nil, 0),
		dev.Write([]iopath.WriteOp{{Off: 4096}}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
}

func (s *deviceSuite) bounds(t *testing.T, dev Device) {
	p := s.r.mem(t, 8192)
	end := dev.Info().SizeBytes
	if err := dev.Write([]iopath.WriteOp{{P: p, Off: end - 8192}}); err != nil {
		t.Errorf("the last blocks: %v", err)
	}
	if err := dev.Read(p, end-8192); err != nil {
		t.Errorf("the last blocks: %v", err)
	}
	clear(p)
	if err := dev.Write([]iopath.WriteOp{{P: p[:4096], Off: 1 << 20}}); err != nil {
		t.Fatal(err)
	}
	p[0] = 1
	for i, err := range []error{
		dev.Write([]iopath.WriteOp{{P: p[:4096], Off: 1 << 20}, {P: p, Off: end - 4096}}),
		dev.Write([]iopath.WriteOp{{P: p, Off: -4096}}),
		dev.Write([]iopath.WriteOp{{P: p, Off: 1<<63 - 4096}}),
		dev.Write([]iopath.WriteOp{{P: p[:4096], Off: 100}}),
		dev.Write([]iopath.WriteOp{{P: p[:100], Off: 0}}),
		dev.Read(p, end-4096),
		dev.Read(p[:4096], 100),
		dev.Read(p[:100], 0),
		dev.ReadMany([]iopath.ReadOp{{P: p, Off: end}}),
		dev.ReadMany([]iopath.ReadOp{{P: p, Off: -1}}),
		dev.Discard(end, 4096),
		dev.Discard(-4096, 4096),
		dev.Discard(100, 4096),
		dev.Discard(0, 100),
		dev.Discard(4096, 1<<63-4096),
	} {
		if cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), s.path) {
			t.Errorf("bad range %d: %v", i, err)
		}
	}
	if err := dev.Read(p[:4096], 1<<20); err != nil || p[0] != 0 {
		t.Errorf("a batch that was refused wrote something, or %v", err)
	}
}

func (s *deviceSuite) concurrency(t *testing.T, dev Device) {
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			b, err := s.r.arena.Get(context.Background(), 64<<10)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Release()
			p, half := b.Bytes(), len(b.Bytes())/2
			off := HeaderAreaBytes + int64(w)<<16
			for i := range 20 {
				want := noise(uint64(w*100+i), len(p))
				copy(p, want)
				ops := []iopath.WriteOp{{P: p[half:], Off: off + int64(half), Sync: i%4 == 0}, {P: p[:half], Off: off}}
				if err := dev.Write(ops); err != nil {
					t.Error(err)
					return
				}
				if w%4 == 0 {
					if err := dev.Flush(); err != nil {
						t.Error(err)
					}
				}
				clear(p)
				if err := dev.Read(p, off); err != nil || !bytes.Equal(p, want) {
					t.Errorf("worker %d, round %d: other bytes, or %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// discard gives up blocks between others, which must stay, and uses them again.
func (s *deviceSuite) discard(t *testing.T, dev Device) {
	const off, size = 4 << 20, 1 << 20
	p := s.r.mem(t, size)
	want := noise(4, size)
	copy(p, want)
	if err := dev.Write([]iopath.WriteOp{{P: p, Off: off}}); err != nil {
		t.Fatal(err)
	}
	info := dev.Info()
	err := dev.Discard(off+size/4, size/2)
	if info.Kind != KindFile && info.DiscardBytes == 0 {
		if cfs.KindOf(err) != cfs.Unsupported || !strings.Contains(err.Error(), s.path) {
			t.Errorf("on a device that discards nothing: %v", err)
		}
	} else if err != nil {
		t.Error(err)
	}
	if err := dev.Discard(off, 0); err != nil && info.DiscardBytes != 0 {
		t.Errorf("nothing: %v", err)
	}
	clear(p)
	if err := dev.Read(p, off); err != nil || !bytes.Equal(p[:size/4], want[:size/4]) || !bytes.Equal(p[size*3/4:], want[size*3/4:]) {
		t.Errorf("what is beside the discarded blocks has changed, or %v", err)
	}
	copy(p, want)
	if err := dev.Write([]iopath.WriteOp{{P: p, Off: off}}); err != nil {
		t.Fatal(err)
	}
	clear(p)
	if err := dev.Read(p, off); err != nil || !bytes.Equal(p, want) {
		t.Errorf("discarded blocks that were written again: other bytes, or %v", err)
	}
}

func (s *deviceSuite) health(t *testing.T, dev Device) {
	hr, ok := dev.(HealthReader)
	if !ok {
		t.Fatal("no HealthReader")
	}
	h, err := hr.Health()
	if err != nil && cfs.KindOf(err) != cfs.Unsupported || err == nil && s.kind == KindFile || err != nil && s.kind == KindPassthrough {
		t.Errorf("%+v, %v", h, err)
	}
	if err == nil && (h.SparePercent > 100 || h.TemperatureCelsius < -50 || h.TemperatureCelsius > 150) {
		t.Errorf("%+v", h)
	}
}

func (s *deviceSuite) allocates(t *testing.T, dev Device) {
	p := s.r.mem(t, 64<<10)
	ops := make([]iopath.WriteOp, 4)
	for i := range ops {
		ops[i] = iopath.WriteOp{P: p[i*4096 : (i+1)*4096], Off: 1<<20 + int64(i)*4096, Sync: i == 0}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, f := range map[string]func(){
		"Read":     func() { must(dev.Read(p, 1<<20)) },
		"ReadMany": func() { must(dev.ReadMany(ops)) },
		"Write":    func() { must(dev.Write(ops)) },
		"Flush":    func() { must(dev.Flush()) },
	} {
		if n := testing.AllocsPerRun(20, f); n != 0 && !invariants.Race {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// reopen closes the device, twice, and finds in it what was written.
func (s *deviceSuite) reopen(t *testing.T, dev Device) {
	p := s.r.mem(t, 64<<10)
	want := noise(5, len(p))
	copy(p, want)
	if err := dev.Write([]iopath.WriteOp{{P: p, Off: 6 << 20, Sync: true}}); err != nil {
		t.Fatal(err)
	}
	info := dev.Info()
	for range 2 {
		if err := dev.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	for _, err := range []error{dev.Read(p, 0), dev.Write([]iopath.WriteOp{{P: p, Off: 6 << 20}}), dev.Flush()} {
		if cfs.KindOf(err) != cfs.Closed || !strings.Contains(err.Error(), s.path) {
			t.Errorf("after Close: %v", err)
		}
	}
	dev = s.mustOpen(t)
	if dev.Info() != info {
		t.Errorf("it was %+v, and is %+v", info, dev.Info())
	}
	clear(p)
	if err := dev.Read(p, 6<<20); err != nil || !bytes.Equal(p, want) {
		t.Errorf("other bytes, or %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}

// TestDevicesAllocateNothing is a test of its own to be run without the race detector.
func TestDevicesAllocateNothing(t *testing.T) {
	r := newDeviceRig(t, false)
	file := r.host(r.file(suiteBytes), KindFile)
	file.allocates(t, file.mustOpen(t))
	fake := &deviceSuite{r: r, path: "fake", kind: KindPassthrough, open: newFakeNamespace(512).open}
	fake.allocates(t, fake.mustOpen(t))
}

func TestFileDevice(t *testing.T) {
	r := newDeviceRig(t, false)
	path := r.file(suiteBytes + 100) // the part of a block at the end is not used
	if info := r.host(path, KindFile).run(t); info.SizeBytes != suiteBytes || info.Identity != (Identity{}) {
		t.Errorf("info %+v", info)
	}
}

func TestBlockDevice(t *testing.T) {
	r := newDeviceRig(t, false)
	info := r.host(loopDevice(t, r.file(suiteBytes)), KindBlock).run(t)
	if info.SizeBytes != suiteBytes || info.LogicalBlockBytes != 512 || info.MaxTransferBytes == 0 || info.Identity != (Identity{}) {
		t.Errorf("info %+v", info)
	}
}

// TestCommandRing has a file and a block device on a ring that takes commands too.
func TestCommandRing(t *testing.T) {
	r := newDeviceRig(t, true)
	r.host(r.file(suiteBytes), KindFile).run(t)
	r.host(loopDevice(t, r.file(suiteBytes), "--sector-size=4096"), KindBlock).run(t)
}

// loopDevice makes a block device of a file, or skips the test.
func loopDevice(t *testing.T, file string, options ...string) string {
	t.Helper()
	args := append([]string{"--find", "--show", "--direct-io=on"}, options...)
	out, err := exec.Command("losetup", append(args, file)...).CombinedOutput()
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
	r := newDeviceRig(t, false)
	dir := t.TempDir()
	for path, kind := range map[string]cfs.Kind{
		filepath.Join(dir, "missing"): cfs.NotFound,
		dir:                           cfs.Invalid,
		"/dev/null":                   cfs.Invalid,
	} {
		if _, err := OpenDevice(path, r.ring); cfs.KindOf(err) != kind || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, kind)
		}
		if _, err := DeviceKind(path); cfs.KindOf(err) != kind || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, kind)
		}
	}
}

// TestDeviceShrinks takes the end of a block device away while it is open: what
// lies there fails, by the device's name, and is no lack of space.
func TestDeviceShrinks(t *testing.T) {
	r := newDeviceRig(t, false)
	file := r.file(suiteBytes)
	path := loopDevice(t, file)
	dev, err := OpenDevice(path, r.ring)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := os.Truncate(file, suiteBytes/2); err != nil {
		t.Fatal(err)
	}
	p := r.mem(t, 8192)
	check := func(what string, err error) {
		t.Helper()
		if cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("a read behind the end of the loop device's file", dev.Read(p, suiteBytes-8192))
	if out, err := exec.Command("losetup", "--set-capacity", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	check("a read", dev.Read(p, suiteBytes-8192))
	check("a batch of reads", dev.ReadMany([]iopath.ReadOp{{P: p, Off: suiteBytes - 8192}}))
	check("a write", dev.Write([]iopath.WriteOp{{P: p, Off: suiteBytes - 8192}}))
	check("a durable write", dev.Write([]iopath.WriteOp{{P: p, Off: suiteBytes - 8192, Sync: true}}))
	if err := dev.Write([]iopath.WriteOp{{P: p, Off: 0}}); err != nil {
		t.Errorf("what is left: %v", err)
	}
}

// TestFormatForeignBlockDevice checks that a disk which holds something is not formatted by accident.
func TestFormatForeignBlockDevice(t *testing.T) {
	r := newDeviceRig(t, false)
	file := r.file(suiteBytes)
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, 70000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	dev, err := OpenDevice(loopDevice(t, file), r.ring)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	sb := Superblock{ClusterID: testCluster, SegmentBytes: testSegment}
	if err := Format(dev, sb, false); cfs.KindOf(err) != cfs.Exists || !strings.Contains(err.Error(), "70000") {
		t.Errorf("format over other data: %v", err)
	}
	if err := Format(dev, sb, true); err != nil {
		t.Errorf("forced: %v", err)
	}
}
