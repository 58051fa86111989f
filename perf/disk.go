package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/rawdisk"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// DiskConfig says which file or block device a bench works on.
type DiskConfig struct {
	// Path is a block device, a file, or a file to be made, and removed at the end; for
	// the benches of the log also an NVMe character device.
	Path string
	// SizeBytes is how much of it is used: all of what exists when it has less.
	SizeBytes int64
	// Force allows writing to what exists. What it holds is lost.
	Force bool
	// Sparse makes a new file without writing it: for benches that write it
	// themselves before they measure.
	Sparse bool
}

// diskUse is what a bench does with a disk.
type diskUse uint8

const (
	toRead  diskUse = iota
	toWrite         // by the engines, or fio
	forLog          // through nvme.Device, which may be an NVMe character device, and locks it itself
)

// disk is a prepared file or device.
type disk struct {
	path        string
	sizeBytes   int64
	made        bool // by us, so it is ours to write and to remove
	buffered    bool // there is no direct I/O
	passthrough bool // an NVMe character device: only for logs, and its size is not known here
	notes       []string
	lock        *os.File // nil when not held
}

// lockWait is how long a device's other user may take to go before it is refused.
const (
	lockWait = 5 * time.Second
	lockPoll = 20 * time.Millisecond
)

// openDisk finds or makes what cfg names.
// Exists, saying what is there, when it would have to be overwritten without
// Force; Busy when another process uses it, whatever Force says.
func openDisk(ctx context.Context, cfg DiskConfig, use diskUse, progress Progress) (*disk, error) {
	if cfg.SizeBytes < cfs.BlockSize {
		return nil, cfs.Errorf("--size", cfs.Usage, "%d bytes are less than a block", cfg.SizeBytes)
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, cfs.E("find "+cfg.Path, cfs.KindOf(err), err)
	}
	d := &disk{path: path, sizeBytes: cfg.SizeBytes &^ (cfs.BlockSize - 1)}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = d.make(ctx, cfg.Sparse, progress)
	case err != nil:
		err = cfs.E("look at "+path, cfs.KindOf(err), err)
	default:
		err = d.take(st, use, cfg.Force)
	}
	if err == nil && !d.passthrough {
		err = d.probeDirect()
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// make makes the file.
func (d *disk) make(ctx context.Context, sparse bool, progress Progress) error {
	op := "make " + d.path
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	d.made = true
	if sparse {
		err = f.Truncate(d.sizeBytes)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if sparse {
		return nil
	}
	progress.say("writing %s once, %s", d.path, units.Bytes(d.sizeBytes))
	return rawdisk.Prewrite(ctx, d.path, d.sizeBytes)
}

// take uses what exists.
func (d *disk) take(st os.FileInfo, use diskUse, force bool) error {
	op := "use " + d.path
	mode := st.Mode()
	d.passthrough = mode&os.ModeCharDevice != 0
	if !mode.IsRegular() && mode&os.ModeDevice == 0 || d.passthrough && use != forLog {
		return cfs.Errorf(op, cfs.Invalid, "neither a regular file nor a block device")
	}
	if use != toRead && !force {
		return cfs.Errorf(op, cfs.Exists, "a bench that writes would destroy %s (--force lets it)", whatIsThere(d.path))
	}
	if d.passthrough {
		return nil
	}
	flags := os.O_RDONLY
	if use != toRead {
		flags = os.O_RDWR
	}
	if use == toWrite && !mode.IsRegular() {
		flags |= os.O_EXCL // refused while mounted or claimed, whatever force says
	}
	f, err := os.OpenFile(d.path, flags, 0)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	d.lock = f
	if use == toWrite {
		if err := lockFile(f, lockWait); err != nil {
			return cfs.Errorf(op, cfs.Busy, "in use by another process: %w", err)
		}
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if end &^= cfs.BlockSize - 1; end < d.sizeBytes {
		d.notes = append(d.notes, fmt.Sprintf("%s has %s: that much is used", d.path, units.Bytes(end)))
		d.sizeBytes = end
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && mode.IsRegular() && sys.Blocks*512 < end {
		d.notes = append(d.notes, fmt.Sprintf("%s is sparse: where it was never written no rate is the disk's", d.path))
	}
	return nil
}

// close gives the disk up, and removes it when it was made.
func (d *disk) close() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	if d.made {
		err = errors.Join(err, os.Remove(d.path))
	}
	if err != nil {
		return cfs.E("give up "+d.path, cfs.KindOf(err), err)
	}
	return nil
}

// probeDirect finds out whether the file system has direct I/O.
func (d *disk) probeDirect() error {
	f, err := os.OpenFile(d.path, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		d.buffered = true
		d.notes = append(d.notes, fmt.Sprintf("the file system of %s has no direct I/O: everything goes through the page cache", d.path))
		return nil
	}
	if err != nil {
		return cfs.E("open "+d.path, cfs.KindOf(err), err)
	}
	return f.Close()
}

// lockFile takes the lock that servers hold on their devices, waiting a little for
// who holds it to go.
func lockFile(f *os.File, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || time.Now().After(deadline) {
			return err
		}
	}
}

// whatIsThere describes an existing file or block device, for a refusal.
func whatIsThere(path string) string {
	const unknown = "what it holds"
	if where := mountedAt(path); where != "" {
		return "what is mounted at " + where
	}
	ring, err := iopath.NewRing(ringConfig(1, nil))
	if err != nil {
		return unknown
	}
	defer ring.Close()
	dev, err := nvme.OpenDevice(path, ring)
	if err != nil {
		return fmt.Sprintf("%s (%v)", unknown, err)
	}
	defer dev.Close()
	switch sb, err := nvme.ReadSuperblock(dev); {
	case err == nil:
		return fmt.Sprintf("ClaudeFS device %s of cluster %q", sb.Device, sb.ClusterID)
	case cfs.KindOf(err) == cfs.Corrupt:
		return "a ClaudeFS device, which is damaged"
	}
	return unknown
}
