package fuse

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// openFile is a file that a process has open.
type openFile struct {
	ino   cfs.Ino
	flags uint32
	file  file
	locks lockOwners

	// Where files are passed through; see passthrough.
	use  use
	size uint64 // at the open, of a file for reading
	run  readRun
	// changed: something was written through this handle, which is not of a pinned inode.
	changed atomic.Bool

	// other is the same file with O_APPEND the other way round, opened when first
	// needed: fcntl(2) can turn it on and off, and pages that a mapping of an
	// appending descriptor made dirty belong where they are, not at the end.
	mu    sync.Mutex
	other file
}

// forWrite is the file to write through, appending or not.
func (h *openFile) forWrite(ctx context.Context, fs *fileSystem, appending bool) (file, error) {
	if h.flags&syscall.O_APPEND != 0 == appending {
		return h.file, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.other == nil {
		f, err := fs.inodes.Open(ctx, h.ino, int(h.flags^syscall.O_APPEND))
		if err != nil {
			return nil, err
		}
		h.other = f
	}
	return h.other, nil
}

// close closes the file and reports the first failure.
func (h *openFile) close(ctx context.Context) error {
	h.mu.Lock()
	other := h.other
	h.mu.Unlock()
	var err error
	if other != nil {
		err = other.Close(ctx)
	}
	if err2 := h.file.Close(ctx); err == nil {
		err = err2
	}
	return err
}

// openFlags is what a file is opened with: what open(2) does once has been done.
func openFlags(flags uint32) uint32 {
	return flags &^ (syscall.O_CREAT | syscall.O_EXCL | syscall.O_TRUNC | syscall.O_NOCTTY)
}

// install gives an open file its number.
func (fs *fileSystem) install(r *request, ino cfs.Ino, f file, flags uint32, out *gofuse.OpenOut) (*openFile, error) {
	h := &openFile{ino: ino, flags: openFlags(flags), file: f}
	var err error
	if out.Fh, err = fs.files.add(h); err != nil {
		return nil, fs.abandon(r, h, err)
	}
	fs.metrics.open.Inc()
	return h, nil
}

// abandon closes a file that could not be opened in full, because of err.
func (fs *fileSystem) abandon(r *request, h *openFile, err error) error {
	if err2 := h.close(r); err2 != nil {
		fs.log.Warn("closing a file after a failed open", "ino", uint64(h.ino), "err", err2)
	}
	fs.leave(h)
	return err
}

// Create makes a file and opens it.
//
// The kernel has not checked the permissions of a file that it believes new, so
// one that another mount has made meanwhile must not be opened here: ESTALE has
// the kernel look the name up again and open what it finds.
func (fs *fileSystem) Create(cancel <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	r := fs.begin(opCreate, cancel, &in.InHeader)
	if err := checkName(name); err != nil {
		return r.end(err)
	}
	dir, mode := cfs.Ino(in.NodeId), in.Mode&cfs.ModePerm|cfs.ModeRegular
	by := maker(&in.InHeader, in.Umask)
	a, err := fs.namespace.Create(r, by, dir, name, mode, 0, "", true)
	if cfs.KindOf(err) == cfs.Exists && in.Flags&syscall.O_EXCL == 0 {
		// Asked for once more without exclusive, so that the client learns of the name too.
		if _, err2 := fs.namespace.Create(r, by, dir, name, mode, 0, "", false); err2 != nil {
			fs.log.Debug("looking at a file that was there already", "err", err2)
		}
		err = cfs.E("create", cfs.Stale, err)
	}
	if err != nil {
		return r.end(err)
	}
	h, err := fs.install(r, a.Ino, fs.inodes.OpenNew(a, int(openFlags(in.Flags))), in.Flags, &out.OpenOut)
	if err != nil {
		return r.end(err)
	}
	fs.enterNew(h)
	fs.pagesOf(&a)
	fs.setBare(a.Ino)
	fs.fillEntry(&out.EntryOut, dir, name, &a)
	return r.end(nil)
}

// Tmpfile makes a file without a name and opens it.
func (fs *fileSystem) Tmpfile(cancel <-chan struct{}, in *gofuse.CreateIn, out *gofuse.CreateOut) gofuse.Status {
	r := fs.begin(opTmpfile, cancel, &in.InHeader)
	f, a, err := fs.tmpfiles.Tmpfile(r, maker(&in.InHeader, in.Umask), cfs.Ino(in.NodeId), in.Mode&cfs.ModePerm,
		in.Flags&syscall.O_EXCL != 0, int(openFlags(in.Flags)))
	if err != nil {
		return r.end(err)
	}
	h, err := fs.install(r, a.Ino, f, in.Flags, &out.OpenOut)
	if err != nil {
		return r.end(err)
	}
	fs.enterNew(h)
	fs.pagesOf(&a)
	fs.setBare(a.Ino)
	fs.fillEntry(&out.EntryOut, cfs.Ino(in.NodeId), "", &a)
	return r.end(nil)
}

// Open opens a file, truncating it first where that is asked for.
func (fs *fileSystem) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	r := fs.begin(opOpen, cancel, &in.InHeader)
	ino := cfs.Ino(in.NodeId)
	f, err := fs.inodes.Open(r, ino, int(openFlags(in.Flags)))
	if err != nil {
		return r.end(gone(err))
	}
	h, err := fs.install(r, ino, f, in.Flags, out)
	if err != nil {
		return r.end(err)
	}
	if err = fs.enter(r, h, in.Flags, out); err == nil && in.Flags&syscall.O_TRUNC != 0 {
		err = fs.emptied(r, h, in)
	}
	if err != nil {
		fs.files.remove(out.Fh)
		fs.metrics.open.Dec()
		return r.end(gone(fs.abandon(r, h, err)))
	}
	if h.use.mode != ioCached {
		return r.end(nil) // the kernel drops its pages
	}
	if fs.unchanged(r, ino) {
		out.OpenFlags |= gofuse.FOPEN_KEEP_CACHE
		fs.metrics.opens.kept.Inc()
	} else {
		fs.metrics.opens.dropped.Inc()
	}
	return r.end(nil)
}

// emptied truncates a file that is opened with O_TRUNC.
func (fs *fileSystem) emptied(r *request, h *openFile, in *gofuse.OpenIn) error {
	mask := cfs.SetSize | cfs.SetMtimeNow // open(2) marks the time even of an empty file
	if in.Mode&gofuse.OPEN_KILL_SUIDGID != 0 {
		mask |= cfs.SetKillPriv
	}
	_, err := fs.resizing(h.ino, func() (cfs.Attr, error) {
		return fs.inodes.SetAttr(r, cred(&in.InHeader), h.ino, mask, cfs.Attr{})
	})
	return err
}

// unchanged reports that the kernel's pages of ino are its content: nobody but this mount has changed it since
// the mount opened it last.
func (fs *fileSystem) unchanged(r *request, ino cfs.Ino) bool {
	a, err := fs.inodes.GetAttr(r, ino)
	if err != nil {
		fs.distrustPages(ino)
		return false
	}
	return fs.pagesOf(&a)
}

// pagesOf takes note of what the pages will be of that the kernel gets from now on, and reports that those that it
// has are of that too. What this mount has written is in them.
func (fs *fileSystem) pagesOf(a *cfs.Attr) bool {
	mark := fs.mark(a.Ino)
	gen, known := fs.opened.swap(a.Ino, a.Gen)
	marked, leased := fs.marks.swap(a.Ino, mark)
	return known && gen == a.Gen || leased && mark != 0 && marked == mark
}

func (fs *fileSystem) distrustPages(ino cfs.Ino) {
	fs.opened.forget(ino)
	fs.marks.forget(ino)
}

// distrust has the next open drop the kernel's pages of a file whose writes have
// failed: they may hold what never arrived.
func (fs *fileSystem) distrust(h *openFile, err error) {
	if err != nil {
		fs.distrustPages(h.ino)
	}
}

// handle finds an open file; EBADF for a number that is not one.
func (fs *fileSystem) handle(fh uint64) (*openFile, error) {
	h, ok := fs.files.get(fh)
	if !ok {
		return nil, cfs.Errorf("handle", cfs.Closed, "%d is not open", fh)
	}
	return h, nil
}

// Read reads into buf, which is what goes back to the kernel.
func (fs *fileSystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	r := fs.begin(opRead, cancel, &in.InHeader)
	h, err := fs.handle(in.Fh)
	if err != nil {
		return nil, r.end(err)
	}
	if err := h.stored(r, in.Offset, uint64(len(buf))); err != nil {
		return nil, r.end(err)
	}
	n, err := h.file.Read(r, buf, in.Offset)
	if err != nil {
		return nil, r.end(err)
	}
	h.run.note(in.Offset, uint64(n))
	fs.metrics.bytes.read.Add(float64(n))
	fs.caches.pagesFilled(h.ino)
	return gofuse.ReadResultData(buf[:n]), r.end(nil)
}

// Write writes data, which is the kernel's again when Write returns.
func (fs *fileSystem) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	r := fs.begin(opWrite, cancel, &in.InHeader)
	h, err := fs.handle(in.Fh)
	if err != nil {
		return 0, r.end(err)
	}
	if in.WriteFlags&gofuse.WRITE_KILL_SUIDGID != 0 {
		if err := fs.killPriv(r, &in.InHeader, h.ino); err != nil {
			return 0, r.end(err)
		}
	}
	f, err := h.forWrite(r, fs, in.Flags&syscall.O_APPEND != 0)
	if err != nil {
		return 0, r.end(err)
	}
	n, err := fs.write(r, h, f, data, in)
	fs.distrust(h, err)
	fs.metrics.bytes.written.Add(float64(n))
	if n > 0 && n < len(data) {
		err = nil // a short write; what stopped it meets the next one
	}
	return uint32(n), r.end(err)
}

// killPriv clears set-user-ID and set-group-ID where a write must. The look at
// the mode is answered by the client's cache.
func (fs *fileSystem) killPriv(r *request, h *gofuse.InHeader, ino cfs.Ino) error {
	a, err := fs.inodes.GetAttr(r, ino)
	if err != nil || !privileged(a.Mode) {
		return err
	}
	_, err = fs.inodes.SetAttr(r, cred(h), ino, cfs.SetKillPriv, cfs.Attr{})
	return err
}

// privileged reports bits that a write takes away: set-user-ID, and set-group-ID
// where the group may execute (without that it once meant mandatory locking).
func privileged(mode uint32) bool {
	const groupExec = 0o010
	return mode&cfs.ModeSetuid != 0 || mode&cfs.ModeSetgid != 0 && mode&groupExec != 0
}

// Flush is a close(2) of one of the descriptors of a handle: it ends all fcntl locks that
// its process has of the file, which is why handles for reading are flushed too.
func (fs *fileSystem) Flush(cancel <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	r := fs.begin(opFlush, cancel, &in.InHeader)
	h, err := fs.handle(in.Fh)
	if err == nil && h.flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		err = errors.Join(h.stored(r, 0, cfs.MaxFileSize), h.file.Flush(r))
		fs.distrust(h, err)
	}
	if h != nil {
		err = errors.Join(err, fs.unlockAll(r, h, cfs.LockPosix, in.LockOwner))
	}
	return r.end(err)
}

// Fsync makes the file durable; fdatasync(2) is no cheaper, since the data is
// found through the metadata.
func (fs *fileSystem) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	r := fs.begin(opFsync, cancel, &in.InHeader)
	h, err := fs.handle(in.Fh)
	if err == nil {
		err = errors.Join(h.stored(r, 0, cfs.MaxFileSize), h.file.Sync(r))
		fs.distrust(h, err)
	}
	return r.end(err)
}

// Release is the last close of a handle. Nobody waits for it, and nothing but
// the end of the mount interrupts it.
func (fs *fileSystem) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	r := fs.begin(opRelease, nil, &in.InHeader)
	h, ok := fs.files.remove(in.Fh)
	if !ok {
		r.end(cfs.Errorf("release", cfs.Closed, "handle %d is not open", in.Fh))
		return
	}
	fs.metrics.open.Dec()
	err := errors.Join(h.close(r), fs.unlockHandle(r, h))
	fs.leave(h)
	fs.distrust(h, err)
	if err != nil {
		fs.log.Error("closing a file", "ino", uint64(h.ino), "err", err)
	}
	r.end(err)
}

// Fallocate is fallocate(2); Mode is FALLOC_FL_*.
func (fs *fileSystem) Fallocate(cancel <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	r := fs.begin(opFallocate, cancel, &in.InHeader)
	h, err := fs.handle(in.Fh)
	switch {
	case err != nil:
	case in.Offset > cfs.MaxFileSize || in.Length > cfs.MaxFileSize-in.Offset:
		err = cfs.Errorf("fallocate", cfs.TooLarge, "%d bytes at %d", in.Length, in.Offset)
	default:
		err = fs.changing(r, h, in.Offset, in.Length, func() error { return h.file.Allocate(r, in.Mode, in.Offset, in.Length) })
	}
	if err == nil && in.Uid != 0 {
		// The request does not say whether the caller may keep them; only root is likely to.
		err = fs.killPriv(r, &in.InHeader, h.ino)
	}
	return r.end(err)
}

// maxCopyBytes is the largest CopyFileRange: the count in its answer has 32 bits.
const maxCopyBytes = math.MaxUint32 &^ (cfs.BlockSize - 1)

// CopyFileRange is copy_file_range(2) within the mount. The kernel has written back
// its pages of the source, and drops those of the destination. Where the cluster
// cannot copy by reference the kernel is told to copy by itself.
func (fs *fileSystem) CopyFileRange(cancel <-chan struct{}, in *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	r := fs.begin(opCopyFileRange, cancel, &in.InHeader)
	src, err := fs.handle(in.FhIn)
	if err != nil {
		return 0, r.end(err)
	}
	dst, err := fs.handle(in.FhOut)
	if err != nil {
		return 0, r.end(err)
	}
	if in.Flags != 0 {
		return 0, r.end(cfs.Errorf("copy_file_range", cfs.Invalid, "flags %#x", in.Flags))
	}
	var mask cfs.SetMask
	if in.Uid != 0 { // as in Fallocate
		mask = cfs.SetKillPriv
	}
	var n uint64
	length := min(in.Len, maxCopyBytes)
	if err = src.stored(r, in.OffIn, length); err == nil {
		err = fs.changing(r, dst, in.OffOut, length, func() (err error) {
			n, err = fs.CopyRange(r, src.file, dst.file, in.OffIn, in.OffOut, length, mask)
			return err
		})
	}
	if cfs.KindOf(err) == cfs.InlineFull {
		err = cfs.E("copy_file_range", cfs.Unsupported, err)
	}
	return uint32(n), r.end(err)
}

// Lseek is SEEK_DATA and SEEK_HOLE; the kernel does the others. ENXIO at and
// after the end of the file.
func (fs *fileSystem) Lseek(cancel <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	r := fs.begin(opLseek, cancel, &in.InHeader)
	h, err := fs.handle(in.Fh)
	if err != nil {
		return r.end(err)
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return r.end(cfs.Errorf("lseek", cfs.Invalid, "whence %d", in.Whence))
	}
	if err := h.stored(r, 0, cfs.MaxFileSize); err != nil {
		return r.end(err)
	}
	a, err := fs.inodes.GetAttr(r, h.ino)
	if err == nil && in.Offset >= a.Size {
		err = syscall.ENXIO
	}
	if err == nil {
		out.Offset, err = h.file.Seek(r, in.Offset, int(in.Whence))
	}
	if errors.Is(err, syscall.ENXIO) {
		err = syscall.ENXIO // no kind of error says so
	}
	return r.end(err)
}
