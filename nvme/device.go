package nvme

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
	"golang.org/x/sys/unix"
)

// Kind is the kind of thing that a device is.
type Kind uint8

// The kinds of device.
const (
	KindFile  Kind = iota // a regular file
	KindBlock             // a block device
)

// String is the kind's name.
func (k Kind) String() string {
	if k == KindBlock {
		return "block"
	}
	return "file"
}

// Info describes a device.
type Info struct {
	Path         string
	SizeBytes    int64 // whole blocks
	Kind         Kind
	WriteThrough bool // a write that has returned is durable without a flush
	Direct       bool // the page cache is bypassed (O_DIRECT)
}

// Device is a flat range of blocks. Offsets, lengths and memory are multiples
// of cfs.BlockSize. All methods may be called by any number of goroutines at
// once. Errors are of kind IO (NoSpace when the file system below is full) and
// name the path and the offset.
type Device interface {
	// Info describes the device.
	Info() Info
	// Read fills p from off; beyond the device's end is an error.
	Read(p []byte, off int64) error
	// ReadMany reads a batch in one submission.
	ReadMany(ops []iopath.ReadOp) error
	// Write writes a batch in one submission, in no order.
	Write(ops []iopath.WriteOp) error
	// Flush makes every write that returned before the call durable.
	Flush() error
	// Discard tells the device that n bytes from off hold nothing of worth; what a
	// later read returns is undefined. On a file it does nothing: its blocks stay
	// allocated, because writing allocated blocks is the faster.
	Discard(off, n int64) error
	// Close gives the device up. A second call does nothing.
	Close() error
}

const (
	// lockWait is how long OpenDevice waits for another holder to go: the kernel
	// keeps the files of a killed process until its io_uring requests have ended.
	lockWait = 5 * time.Second
	lockPoll = 10 * time.Millisecond
)

// hostDevice is a file or block device of the host.
type hostDevice struct {
	info Info
	eng  iopath.Engine
	file iopath.File
	f    *os.File

	closeOnce sync.Once
	closeErr  error
}

// OpenDevice opens the regular file or block device at path, for this process
// alone, with O_DIRECT where the file system has it. eng does its I/O and must
// outlive it. Busy when another process holds it, NotFound when there is
// nothing, Invalid when it is something else; all name the path.
func OpenDevice(path string, eng iopath.Engine) (Device, error) {
	return openDevice(path, eng, lockWait)
}

func openDevice(path string, eng iopath.Engine, wait time.Duration) (Device, error) {
	op := "open device " + path
	st, err := os.Stat(path)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), bareCause(err))
	}
	info := Info{Path: path, Direct: true}
	flags := os.O_RDWR | unix.O_DIRECT
	switch mode := st.Mode(); {
	case mode.IsRegular():
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		info.Kind = KindBlock
		info.WriteThrough = writeThrough(st)
		flags |= os.O_EXCL // refused while mounted or claimed
	default:
		return nil, cfs.Errorf(op, cfs.Invalid, "neither a regular file nor a block device")
	}
	f, err := openLocked(path, flags, wait)
	if errors.Is(err, syscall.EINVAL) {
		info.Direct = false
		f, err = openLocked(path, flags&^unix.O_DIRECT, wait)
	}
	if err != nil {
		kind := cfs.KindOf(err)
		if kind == cfs.Busy {
			return nil, cfs.Errorf(op, kind, "in use by another process")
		}
		return nil, cfs.E(op, kind, bareCause(err))
	}
	// The end is the size of a block device too, whose stat says 0.
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, cfs.E(op, cfs.IO, bareCause(err))
	}
	info.SizeBytes = end / cfs.BlockSize * cfs.BlockSize
	file, err := eng.RegisterFile(f)
	if err != nil {
		f.Close()
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return &hostDevice{info: info, eng: eng, file: file, f: f}, nil
}

// openLocked opens and locks path, waiting a little for another holder to go.
func openLocked(path string, flags int, wait time.Duration) (*os.File, error) {
	for deadline := time.Now().Add(wait); ; time.Sleep(lockPoll) {
		f, err := os.OpenFile(path, flags, 0)
		if err == nil {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
				return f, nil
			}
			f.Close()
		}
		busy := errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EWOULDBLOCK)
		if !busy {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, syscall.EBUSY
		}
	}
}

// writeThrough reads from sysfs whether a block device has no volatile cache.
func writeThrough(st os.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(sys.Rdev), unix.Minor(sys.Rdev))
	for _, at := range []string{"queue", "../queue"} { // a partition's queue is its disk's
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return false
		}
		if b, err := os.ReadFile(filepath.Join(real, at, "write_cache")); err == nil {
			return strings.TrimSpace(string(b)) == "write through"
		}
	}
	return false
}

// bareCause strips the path that os errors repeat.
func bareCause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Info describes the device.
func (d *hostDevice) Info() Info { return d.info }

// Read fills p from off.
func (d *hostDevice) Read(p []byte, off int64) error {
	n, err := d.eng.Read(d.file, p, off)
	if err == io.EOF {
		err = cfs.Errorf("", cfs.IO, "the device ends at %d: %w", off+int64(n), io.ErrUnexpectedEOF)
	}
	return d.failed("read", err)
}

// ReadMany reads a batch.
func (d *hostDevice) ReadMany(ops []iopath.ReadOp) error {
	return d.failed("read", d.eng.ReadMany(d.file, ops))
}

// Write writes a batch.
func (d *hostDevice) Write(ops []iopath.WriteOp) error {
	for i := range ops {
		if ops[i].Off < 0 || ops[i].Off+int64(len(ops[i].P)) > d.info.SizeBytes {
			return cfs.Errorf("device "+d.info.Path, cfs.Invalid, "write of %d bytes at %d is beyond the end, %d", len(ops[i].P), ops[i].Off, d.info.SizeBytes)
		}
	}
	return d.failed("write", d.eng.WriteMany(d.file, ops))
}

// Flush is fdatasync, which on a block device flushes the volatile cache.
func (d *hostDevice) Flush() error { return d.failed("flush", d.eng.Fdatasync(d.file)) }

// Discard is BLKDISCARD on a block device.
func (d *hostDevice) Discard(off, n int64) error {
	if d.info.Kind != KindBlock {
		return nil
	}
	conn, err := d.f.SyscallConn()
	if err == nil {
		var errno error
		if err = conn.Control(func(fd uintptr) { errno = discard(fd, off, n) }); err == nil {
			err = errno
		}
	}
	if cfs.KindOf(err) == cfs.Unsupported {
		return cfs.E("device "+d.info.Path+": discard", cfs.Unsupported, err)
	}
	return d.failed("discard", err)
}

// Close unlocks and closes the device.
func (d *hostDevice) Close() error {
	d.closeOnce.Do(func() {
		d.closeErr = d.failed("close", errors.Join(d.eng.UnregisterFile(d.file), d.f.Close()))
	})
	return d.closeErr
}

// failed names the device in err, and makes it IO unless it is the host's lack
// of space or a use after Close.
func (d *hostDevice) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	kind := cfs.KindOf(err)
	if kind != cfs.NoSpace && kind != cfs.Closed {
		kind = cfs.IO
	}
	return cfs.E("device "+d.info.Path+": "+what, kind, err)
}
