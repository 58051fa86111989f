package nvme

import (
	"encoding/hex"
	"errors"
	"os"
	"slices"
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
	KindFile        Kind = iota // a regular file
	KindBlock                   // a block device
	KindPassthrough             // an NVMe namespace, by its character device
)

// String is the kind's name.
func (k Kind) String() string {
	switch k {
	case KindBlock:
		return "block"
	case KindPassthrough:
		return "passthrough"
	default:
		return "file"
	}
}

// Identity is the name that an NVMe namespace has for all time: its NGUID, or
// its EUI64 in the first 8 bytes. Zero where there is none.
type Identity [16]byte

// String is the identity as the kernel writes it, in /dev/disk/by-id too.
func (id Identity) String() string {
	if id == (Identity{}) {
		return "none"
	}
	n := len(id)
	if [8]byte(id[8:]) == ([8]byte{}) {
		n = 8
	}
	return "eui." + hex.EncodeToString(id[:n])
}

// Info describes a device.
type Info struct {
	Path         string
	SizeBytes    int64 // whole blocks
	Kind         Kind
	WriteThrough bool // a write that has returned is durable without a flush
	Direct       bool // the page cache is bypassed

	LogicalBlockBytes int      // the device's own unit, 512 to 4096; cfs.BlockSize on a file
	MaxTransferBytes  int      // what the device takes in one command; larger transfers are split. 0 when not known
	DiscardBytes      int      // the granularity of Discard; 0 where nothing is discarded
	Identity          Identity // of an NVMe namespace, by whichever path it was opened
	Model             string   // of the hardware, where it is known
	Serial            string
}

// Device is a flat range of blocks. Offsets, lengths and memory are multiples
// of cfs.BlockSize. All methods may be called by any number of goroutines at
// once. Errors are of kind IO (NoSpace when the file system below is full,
// Invalid for a range that is not on the device or not of blocks, Closed after
// Close) and name the path and the offset.
type Device interface {
	// Info describes the device.
	Info() Info
	// Read fills p from off; beyond the device's end is an error.
	Read(p []byte, off int64) error
	// ReadMany reads a batch in one submission.
	ReadMany(ops []iopath.ReadOp) error
	// Write writes a batch in one submission, in no order. What has Sync set is
	// durable when it returns.
	Write(ops []iopath.WriteOp) error
	// Flush makes every write that returned before the call durable.
	Flush() error
	// Discard tells the device that n bytes from off hold nothing of worth; what a
	// later read returns is undefined. On a file it does nothing: its blocks stay
	// allocated, because writing allocated blocks is the faster. Unsupported where
	// the device has no such command.
	Discard(off, n int64) error
	// Close gives the device up. A second call does nothing.
	Close() error
}

// HealthReader is a Device that may know how its hardware is doing.
type HealthReader interface {
	// Health reads the log page of NVMe. Unsupported where there is none.
	Health() (Health, error)
}

const (
	// lockWait is how long OpenDevice waits for another holder to go: the kernel
	// keeps the files of a killed process until its io_uring requests have ended.
	lockWait = 5 * time.Second
	lockPoll = 10 * time.Millisecond
)

// OpenDevice opens the regular file, block device or NVMe character device
// (/dev/ngXnY) at path, for this process alone, past the page cache where that
// is possible. What it is decides, not how it is called; DeviceKind says it
// beforehand. eng does its I/O and must outlive it; for an NVMe character device
// it must be an iopath.Commander that was made for commands. Busy when somebody
// else uses it, by this path or another, NotFound when there is nothing, Invalid
// when it is something that cannot be used; all name the path.
func OpenDevice(path string, eng iopath.Engine) (Device, error) {
	return openDevice(path, eng, lockWait)
}

func openDevice(path string, eng iopath.Engine, wait time.Duration) (Device, error) {
	op := "open device " + path
	st, kind, err := lookAt(path)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	if kind == KindPassthrough {
		return openPassthrough(path, st, eng, wait)
	}
	return openHost(path, kind, st, eng, wait)
}

// DeviceKind is the kind of device that OpenDevice would find at path. NotFound
// when there is nothing, Invalid when it is no device.
func DeviceKind(path string) (Kind, error) {
	_, kind, err := lookAt(path)
	if err != nil {
		return 0, cfs.E("look at device "+path, cfs.KindOf(err), err)
	}
	return kind, nil
}

// lookAt finds out what is at path.
func lookAt(path string) (*syscall.Stat_t, Kind, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, bareCause(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, 0, cfs.Errorf("", cfs.Unsupported, "not a file of Linux")
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return st, KindFile, nil
	case syscall.S_IFBLK:
		return st, KindBlock, nil
	case syscall.S_IFCHR:
		switch system.subsystem(st.Rdev) {
		case "nvme-generic":
			return st, KindPassthrough, nil
		case "nvme":
			return nil, 0, cfs.Errorf("", cfs.Invalid, "an NVMe controller: name one of its namespaces, /dev/ngXnY")
		}
	}
	return nil, 0, cfs.Errorf("", cfs.Invalid, "neither a regular file nor a block device nor an NVMe character device")
}

// openLocked opens and locks path, waiting a little for another holder to go.
// Busy when it does not.
func openLocked(path string, flags int, wait time.Duration) (*os.File, error) {
	for deadline := time.Now().Add(wait); ; time.Sleep(lockPoll) {
		f, err := os.OpenFile(path, flags, 0)
		if err == nil {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
				return f, nil
			}
			f.Close()
		}
		if !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, bareCause(err)
		}
		if time.Now().After(deadline) {
			return nil, cfs.Errorf("", cfs.Busy, "%s is mounted or in use by another process", path)
		}
	}
}

// bareCause strips the path that os errors repeat.
func bareCause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// checkRange refuses what is not whole blocks of the device.
func (i *Info) checkRange(what string, off, n int64) error {
	if off < 0 || n < 0 || off > i.SizeBytes-n {
		return cfs.Errorf("device "+i.Path, cfs.Invalid, "%s of %d bytes at %d is beyond the end, %d", what, n, off, i.SizeBytes)
	}
	if (off|n)%cfs.BlockSize != 0 {
		return cfs.Errorf("device "+i.Path, cfs.Invalid, "%s of %d bytes at %d is not of whole blocks", what, n, off)
	}
	return nil
}

// checkRanges is checkRange for a batch.
func (i *Info) checkRanges(what string, ops []iopath.Transfer) error {
	for j := range ops {
		if err := i.checkRange(what, ops[j].Off, int64(len(ops[j].P))); err != nil {
			return err
		}
	}
	return nil
}

// failed names the device in err, and makes it IO unless it is the host's lack
// of space, a use after Close, or one of the kinds that the operation may have besides.
func (i *Info) failed(what string, err error, besides ...cfs.Kind) error {
	if err == nil {
		return nil
	}
	kind := cfs.KindOf(err)
	if kind != cfs.NoSpace && kind != cfs.Closed && !slices.Contains(besides, kind) {
		kind = cfs.IO
	}
	return cfs.E("device "+i.Path+": "+what, kind, err)
}
