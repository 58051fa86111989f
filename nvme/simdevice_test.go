package nvme

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/sim"
	"github.com/claudefs/claudefs/iopath"
)

// simDevice is a simulated disk as a Device.
type simDevice struct {
	disk   *sim.Disk
	info   Info // its SizeBytes is the disk's
	closed atomic.Bool
}

// simPath is the path of all simulated devices.
const simPath = "simulated"

// simYields bounds how often an operation of a simulated device lets others run in its middle.
const simYields = 20

// newSimDevice is a device of the given content, all of it durable, that looks like a file.
func newSimDevice(image []byte) *simDevice {
	d := simDisk(sim.DiskConfig{SizeBytes: int64(len(image)), Seed: 1, Yields: simYields}, KindFile)
	d.disk.Load(image)
	return d
}

// simDisk is a device of zeros. One of KindBlock discards.
func simDisk(cfg sim.DiskConfig, kind Kind) *simDevice {
	info := Info{Path: simPath, Kind: kind, WriteThrough: cfg.WriteThrough, LogicalBlockBytes: cfs.BlockSize}
	if kind == KindBlock {
		info.LogicalBlockBytes, info.DiscardBytes = 512, 512
	}
	return &simDevice{disk: sim.NewDisk(cfg), info: info}
}

// next is the device in its next life, on a disk that follows from its own.
func (d *simDevice) next(disk *sim.Disk) *simDevice { return &simDevice{disk: disk, info: d.info} }

// afterKill is the device when its process was killed: with all that was written.
func (d *simDevice) afterKill() *simDevice { return d.next(d.disk.AfterKill()) }

// afterPowerCut is the device when its power has failed: with what was flushed, and any part of the rest.
func (d *simDevice) afterPowerCut() *simDevice { return d.next(d.disk.AfterPowerCut()) }

// content is all that reads see.
func (d *simDevice) content() []byte { return d.disk.Image() }

// failed is err as a Device says it.
func (d *simDevice) failed(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sim.ErrBounds):
		return cfs.E("device "+simPath+": "+what, cfs.Invalid, err)
	}
	return cfs.E("device "+simPath+": "+what, cfs.IO, err)
}

// refuse is why a range cannot be read, written or discarded, nil if it can.
func (d *simDevice) refuse(what string, off, n int64) error {
	if d.closed.Load() {
		return cfs.Errorf("device "+simPath+": "+what, cfs.Closed, "used after Close")
	}
	if off%cfs.BlockSize != 0 || n%cfs.BlockSize != 0 {
		return cfs.Errorf("device "+simPath+": "+what, cfs.Invalid, "%d bytes at %d are not whole blocks", n, off)
	}
	return nil
}

func (d *simDevice) Info() Info {
	info := d.info
	info.SizeBytes = d.disk.SizeBytes() / cfs.BlockSize * cfs.BlockSize
	return info
}

func (d *simDevice) Read(p []byte, off int64) error {
	if err := d.refuse("read", off, int64(len(p))); err != nil {
		return err
	}
	return d.failed("read", d.disk.Read(p, off))
}

func (d *simDevice) ReadMany(ops []iopath.ReadOp) error {
	for i := range ops {
		if err := d.Read(ops[i].P, ops[i].Off); err != nil {
			return err
		}
	}
	return nil
}

func (d *simDevice) Write(ops []iopath.WriteOp) error {
	batch := make([]sim.Write, len(ops))
	for i := range ops {
		if err := d.refuse("write", ops[i].Off, int64(len(ops[i].P))); err != nil {
			return err
		}
		batch[i] = sim.Write{P: ops[i].P, Off: ops[i].Off, Sync: ops[i].Sync}
	}
	return d.failed("write", d.disk.Write(batch...))
}

func (d *simDevice) Flush() error {
	if err := d.refuse("flush", 0, 0); err != nil {
		return err
	}
	return d.failed("flush", d.disk.Flush())
}

func (d *simDevice) Discard(off, n int64) error {
	if err := d.refuse("discard", off, n); err != nil {
		return err
	}
	if d.info.Kind == KindFile && off >= 0 && n >= 0 && off <= d.disk.SizeBytes() && n <= d.disk.SizeBytes()-off {
		return nil
	}
	return d.failed("discard", d.disk.Discard(off, n))
}

// Close leaves the disk as it is.
func (d *simDevice) Close() error {
	d.closed.Store(true)
	return nil
}

// TestSimDevice holds that a simulated device is one, and answers as one when it fails.
func TestSimDevice(t *testing.T) {
	dev := simDisk(sim.DiskConfig{SizeBytes: 1<<20 + 512, Seed: 1, Yields: simYields}, KindBlock)
	if n := dev.Info().SizeBytes; n != 1<<20 {
		t.Errorf("it has %d bytes", n)
	}
	p := make([]byte, 8192)
	for i, err := range []error{
		dev.Write([]iopath.WriteOp{{P: p, Off: 0}, {P: p, Off: 1<<20 - 4096}}),
		dev.Write([]iopath.WriteOp{{P: p, Off: 512}}), dev.Write([]iopath.WriteOp{{P: p[:512]}}), dev.Write([]iopath.WriteOp{{P: p, Off: 1<<63 - 4096}}),
		dev.Read(p, 1<<20-4096), dev.Read(p, -4096), dev.Read(p, 512), dev.Read(p[:512], 0),
		dev.Discard(1<<20, 4096), dev.Discard(-4096, 4096), dev.Discard(512, 4096), dev.Discard(0, 512), dev.Discard(4096, 1<<63-4096),
	} {
		if cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), simPath) {
			t.Errorf("bad range %d: %v", i, err)
		}
	}
	for _, err := range []error{dev.Write(nil), dev.ReadMany(nil), dev.Read(nil, 0), dev.Discard(0, 0), dev.Write([]iopath.WriteOp{{Off: 4096}})} {
		if err != nil {
			t.Errorf("nothing: %v", err)
		}
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			off := int64(w) * 64 << 10
			for i := range 20 {
				mine := payload(testKey(w*100+i), 8192)
				got := make([]byte, 8192)
				ops := []iopath.WriteOp{{P: mine[:4096], Off: off, Sync: i%2 == 0}, {P: mine[4096:], Off: off + 4096}}
				if err := errors.Join(dev.Write(ops), dev.Flush(), dev.Read(got, off)); err != nil || string(got) != string(mine) {
					t.Errorf("worker %d: other bytes, or %v", w, err)
				}
			}
		})
	}
	wg.Wait()
	dev.disk.Stop()
	for _, err := range []error{dev.Read(p, 0), dev.Write([]iopath.WriteOp{{P: p}}), dev.Flush(), dev.Discard(0, 4096)} {
		if cfs.KindOf(err) != cfs.IO || !errors.Is(err, sim.ErrStopped) || !strings.Contains(err.Error(), simPath) {
			t.Errorf("when it has stopped: %v", err)
		}
	}
	dev = dev.afterPowerCut()
	dev.Close()
	for _, err := range []error{dev.Read(p, 0), dev.Write([]iopath.WriteOp{{P: p}}), dev.Flush(), dev.Discard(0, 4096)} {
		if cfs.KindOf(err) != cfs.Closed || !strings.Contains(err.Error(), simPath) {
			t.Errorf("when it is closed: %v", err)
		}
	}
}
