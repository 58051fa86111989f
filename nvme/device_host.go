package nvme

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
	"golang.org/x/sys/unix"
)

// hostDevice is a file or block device of the host.
type hostDevice struct {
	info Info
	eng  iopath.Engine
	file iopath.File
	f    *os.File
	nvme bool // the block device of an NVMe namespace

	closeOnce sync.Once
	closeErr  error
}

func openHost(path string, kind Kind, st *syscall.Stat_t, eng iopath.Engine, wait time.Duration) (Device, error) {
	op := "open device " + path
	d := &hostDevice{info: Info{Path: path, Kind: kind, Direct: true, LogicalBlockBytes: cfs.BlockSize}, eng: eng}
	flags := os.O_RDWR | unix.O_DIRECT
	if kind == KindBlock {
		flags |= os.O_EXCL // refused while mounted or claimed
		if err := d.describe(system, st.Rdev); err != nil {
			return nil, cfs.E(op, cfs.KindOf(err), err)
		}
	}
	f, err := openLocked(path, flags, wait)
	if errors.Is(err, syscall.EINVAL) {
		d.info.Direct = false
		f, err = openLocked(path, flags&^unix.O_DIRECT, wait)
	}
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	d.f = f
	end, err := d.end()
	if err != nil {
		f.Close()
		return nil, cfs.E(op, cfs.IO, err)
	}
	d.info.SizeBytes = end / cfs.BlockSize * cfs.BlockSize
	if d.nvme {
		d.askNamespace()
	}
	if d.file, err = eng.RegisterFile(f); err != nil {
		f.Close()
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return d, nil
}

// describe fills in what sysfs says of a block device.
func (d *hostDevice) describe(sys sysfs, number uint64) error {
	b, err := sys.block(number)
	if err != nil {
		return err
	}
	if b.logicalBlockBytes > cfs.BlockSize {
		return cfs.Errorf("", cfs.Invalid, "its logical blocks are of %d bytes; at most %d can be used", b.logicalBlockBytes, cfs.BlockSize)
	}
	d.nvme = b.nvme
	i := &d.info
	i.WriteThrough, i.LogicalBlockBytes, i.MaxTransferBytes = b.writeThrough, b.logicalBlockBytes, b.splitBytes
	i.DiscardBytes, i.Identity, i.Model, i.Serial = b.discardBytes, b.identity, b.model, b.serial
	return nil
}

// askNamespace takes the identity from the namespace itself, as passthrough
// does: the kernel hides some that it does not trust. Without the right to ask,
// the kernel's word counts.
func (d *hostDevice) askNamespace() {
	if ns, err := identify(adminOf(d.f)); err == nil {
		d.info.Identity = ns.identity
	}
}

// end is the size in bytes: of a block device too, whose stat says 0.
func (d *hostDevice) end() (int64, error) {
	end, err := d.f.Seek(0, io.SeekEnd)
	return end, bareCause(err)
}

// Info describes the device.
func (d *hostDevice) Info() Info { return d.info }

// Read fills p from off.
func (d *hostDevice) Read(p []byte, off int64) error {
	if err := d.info.checkRange("read", off, int64(len(p))); err != nil {
		return err
	}
	n, err := d.eng.Read(d.file, p, off)
	if err == io.EOF {
		err = cfs.Errorf("", cfs.IO, "the device ends at %d: %w", off+int64(n), io.ErrUnexpectedEOF)
	}
	return d.info.failed("read", err)
}

// ReadMany reads a batch.
func (d *hostDevice) ReadMany(ops []iopath.ReadOp) error {
	if err := d.info.checkRanges("read", ops); err != nil {
		return err
	}
	return d.info.failed("read", d.eng.ReadMany(d.file, ops))
}

// Write writes a batch.
func (d *hostDevice) Write(ops []iopath.WriteOp) error {
	if err := d.info.checkRanges("write", ops); err != nil {
		return err
	}
	err := d.eng.WriteMany(d.file, ops)
	if err != nil && d.info.Kind == KindBlock && cfs.KindOf(err) == cfs.NoSpace {
		// What the kernel says of writes behind a block device's end.
		if end, endErr := d.end(); endErr != nil || end < d.info.SizeBytes {
			err = cfs.Errorf("", cfs.IO, "the device now ends at %d, it ended at %d: %w", end, d.info.SizeBytes, err)
		}
	}
	return d.info.failed("write", err)
}

// Flush is fdatasync, which on a block device flushes the volatile cache.
func (d *hostDevice) Flush() error { return d.info.failed("flush", d.eng.Fdatasync(d.file)) }

// Discard is BLKDISCARD on a block device.
func (d *hostDevice) Discard(off, n int64) error {
	if err := d.info.checkRange("discard", off, n); err != nil {
		return err
	}
	if d.info.Kind != KindBlock || n == 0 {
		return nil
	}
	if d.info.DiscardBytes == 0 {
		return d.info.failed("discard", cfs.Errorf("", cfs.Unsupported, "the device discards nothing"), cfs.Unsupported)
	}
	return d.info.failed("discard", control(d.f, func(fd uintptr) error { return discard(fd, off, n) }), cfs.Unsupported)
}

// Health reads the health of an NVMe namespace's hardware.
func (d *hostDevice) Health() (Health, error) {
	if !d.nvme {
		return Health{}, d.info.failed("health", cfs.Errorf("", cfs.Unsupported, "not an NVMe device"), cfs.Unsupported)
	}
	h, err := readHealth(adminOf(d.f))
	return h, d.info.failed("health", err, cfs.Unsupported)
}

// Close unlocks and closes the device.
func (d *hostDevice) Close() error {
	d.closeOnce.Do(func() {
		d.closeErr = d.info.failed("close", errors.Join(d.eng.UnregisterFile(d.file), d.f.Close()))
	})
	return d.closeErr
}

// control calls do with f's descriptor, which stays open meanwhile.
func control(f *os.File, do func(fd uintptr) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return cfs.E("", cfs.Closed, err)
	}
	var result error
	if err := conn.Control(func(fd uintptr) { result = do(fd) }); err != nil {
		return cfs.E("", cfs.Closed, err)
	}
	return result
}
