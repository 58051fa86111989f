package fuse

import (
	"context"
	"log/slog"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// preferredIOBytes is st_blksize: stdio and cp size their buffers by it, and each write is a request.
	preferredIOBytes = 128 << 10
	nsPerSecond      = int64(time.Second)
)

// fileSystem is the kernel's requests as calls of the client. What it does not
// implement answers ENOSYS, which the kernel remembers: access (the kernel checks
// permissions) and ioctl.
type fileSystem struct {
	gofuse.RawFileSystem
	backend
	files   handles[*openFile]
	dirs    handles[*openDir]
	log     *slog.Logger
	metrics *Metrics

	// opened is the generation of each file that its last open saw. If the next
	// sees the same, nobody has changed the file since, and the kernel's pages,
	// filled after that open or written through it, are its content.
	opened inoTable
	// marks is the mark of the client's lease of each, then: while it is the same nobody else has changed the file.
	marks inoTable
	// bare is the mark of the lease under which a file is known to have no
	// security.capability, which the kernel asks for at the first write after each
	// look at the attributes.
	bare inoTable
	// plain is the same for system.posix_acl_access, which the kernel asks for where it
	// checks the permissions of another than the owner.
	plain inoTable

	lockWaits chan struct{} // a place for each SetLkw
	kernel    *kernelConn   // nil where nothing is mounted
	caches    *caches

	// learned is called when it is known what the kernel can, before it is given anything to keep.
	learned func()
	owners  owners
	timeout time.Duration // of an operation; 0: none
	pass    *passthrough  // nil without a cache directory

	// setxattrExt: the kernel's requests to set an attribute have flags of its own (Linux 5.14).
	setxattrExt bool
	// losesSignals: the transport may not tell of a signal.
	losesSignals bool
	// stop is closed when the mount is forced down: requests that still wait give up.
	stop chan struct{}
}

func newFileSystem(b backend, log *slog.Logger, m *Metrics) *fileSystem {
	fs := &fileSystem{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		backend:       b,
		log:           log,
		metrics:       m,
		lockWaits:     make(chan struct{}, maxLockWaits),
		stop:          make(chan struct{}),
	}
	fs.caches = newCaches(fs)
	return fs
}

// Init takes note of what the kernel can, before the first request.
func (fs *fileSystem) Init(s *gofuse.Server) { fs.learn(s.KernelSettings()) }

// learn is Init for any transport.
func (fs *fileSystem) learn(settings *gofuse.InitIn) {
	fs.kernel.minor = settings.Minor
	fs.caches.kernel, fs.caches.epochs = fs.kernel, fs.kernel.canIncEpoch()
	fs.setxattrExt = settings.Flags64()&gofuse.CAP_SETXATTR_EXT != 0
	if fs.learned != nil {
		fs.learned()
	}
}

// String names the file system in go-fuse's messages.
func (fs *fileSystem) String() string { return fsName }

// OnUnmount closes what the kernel had no time to release.
func (fs *fileSystem) OnUnmount() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-fs.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	fs.dirs.drain()
	for _, h := range fs.files.drain() {
		fs.metrics.open.Dec()
		if err := h.close(ctx); err != nil {
			fs.log.Error("closing a file at unmount", "ino", uint64(h.ino), "err", err)
		}
		fs.leave(h)
	}
	if fs.pass != nil {
		fs.pass.stop()
	}
}

// cred is on whose behalf a request comes. The kernel has checked permissions.
func cred(h *gofuse.InHeader) cfs.Cred { return cfs.Cred{UID: h.Uid, GID: h.Gid} }

// maker is cred of a request that makes an inode. The kernel leaves the umask to us
// (CAP_DONT_MASK), since a default ACL takes its place.
func maker(h *gofuse.InHeader, umask uint32) cfs.Cred {
	c := cred(h)
	c.Umask = umask & 0o777
	return c
}

// checkName refuses names that the kernel lets through and we do not store.
func checkName(name string) error {
	if len(name) > cfs.MaxName {
		return cfs.Errorf("name", cfs.NameTooLong, "%d bytes", len(name))
	}
	return nil
}

// fillEntry makes a, which is behind a name, the answer to a lookup of it.
func (fs *fileSystem) fillEntry(out *gofuse.EntryOut, dir cfs.Ino, name string, a *cfs.Attr) {
	out.NodeId = uint64(a.Ino)
	out.SetEntryTimeout(fs.nameTTL(dir, name, a.Ino))
	out.SetAttrTimeout(fs.attrTTL(a))
	fs.fillAttr(&out.Attr, a)
}

// fillAttr converts attributes for the kernel.
func (fs *fileSystem) fillAttr(out *gofuse.Attr, a *cfs.Attr) {
	out.Ino = uint64(a.Ino)
	out.Size = a.Size
	out.Blocks = a.Blocks
	out.Atime, out.Atimensec = splitNS(a.AtimeNS)
	out.Mtime, out.Mtimensec = splitNS(a.MtimeNS)
	out.Ctime, out.Ctimensec = splitNS(a.CtimeNS)
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid, out.Gid = fs.owners.show(a.UID, a.GID)
	out.Rdev = a.Rdev
	out.Blksize = preferredIOBytes
}

// splitNS splits a time into seconds, two's complement before 1970, and nanoseconds.
func splitNS(ns int64) (uint64, uint32) {
	sec, rest := ns/nsPerSecond, ns%nsPerSecond
	if rest < 0 {
		sec, rest = sec-1, rest+nsPerSecond
	}
	return uint64(sec), uint32(rest)
}

// joinNS is the inverse of splitNS; what an int64 cannot hold (before 1677,
// after 2262) becomes the nearest that it can.
func joinNS(sec uint64, nsec uint32) int64 {
	const limit = int64(1<<63-1)/nsPerSecond - 1
	s := min(max(int64(sec), -limit), limit)
	return s*nsPerSecond + int64(nsec)
}
