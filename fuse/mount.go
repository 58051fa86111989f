package fuse

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/fuse/filecache"
)

const (
	// fsName makes the type fuse.cfs, as mount(8) and findmnt(8) show it.
	fsName = "cfs"
	fsType = "fuse." + fsName

	// maxWriteBytes is the largest READ and WRITE: FUSE_MAX_MAX_PAGES of the kernel.
	maxWriteBytes = 1 << 20
	// maxBackground bounds the requests that the kernel has in flight and that no
	// process waits for by itself: readahead and asynchronous direct I/O.
	maxBackground = 64
	// maxInflightBytes bounds the memory of requests that are being served.
	maxInflightBytes = 256 << 20
	// DefaultReadAheadBytes is the readahead of a mount. The protocol's own limit
	// is 128 KiB, which would wait for each stripe in turn.
	DefaultReadAheadBytes = 8 << 20

	// probeTimeout is how long a mount that is in the way may take to show that it is alive.
	probeTimeout = 2 * time.Second

	// capabilities that go-fuse asks for only when told to.
	capabilities = gofuse.CAP_ATOMIC_O_TRUNC | gofuse.CAP_HANDLE_KILLPRIV_V2 | gofuse.CAP_ASYNC_DIO | gofuse.CAP_READDIRPLUS_AUTO |
		gofuse.CAP_DONT_MASK | gofuse.CAP_SETXATTR_EXT | gofuse.CAP_EXPORT_SUPPORT
)

// Config says what to mount where.
type Config struct {
	// Mountpoint is an existing directory.
	Mountpoint string
	// Source is what df(1) and mount(8) show: the servers' address as the user gave it.
	Source string
	// Client answers. It stays the caller's: close it after Wait.
	Client *client.Client
	// Options may be left empty.
	Options
	// ReadAheadBytes is how far the kernel reads ahead; 0 for DefaultReadAheadBytes.
	ReadAheadBytes int
	// Transport is how requests reach the daemon: TransportURing, TransportDev, or "" for
	// TransportURing where the kernel has it.
	Transport string
	// Cache is where whole files are kept, which the kernel then reads by itself; nil for nowhere. It stays the caller's.
	Cache *filecache.Cache
	// Logger may be nil, for slog's default.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Server is a mount that is being served.
type Server struct {
	fs    *fileSystem
	point string
	dev   string // major:minor; empty where it was not found out
	log   *slog.Logger
	done  chan struct{}
	stop  sync.Once
	// departed is closed when nothing is mounted at point any more, and something goes on elsewhere.
	departed chan struct{}
}

// Mount mounts, and returns when the mount is usable. Errors name the mount
// point: cfs.NotFound, cfs.NotDir, cfs.Busy when something is mounted there.
func Mount(cfg Config) (*Server, error) {
	return mount(cfg, clientBackend(cfg.Client))
}

func mount(cfg Config, b backend) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	point, err := prepare(cfg.Mountpoint, cfg.Logger)
	if err != nil {
		return nil, err
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	s := &Server{
		fs:    newFileSystem(rootedAt(b, cfg.Root), cfg.Logger, cfg.Metrics),
		point: point, log: cfg.Logger, done: make(chan struct{}), departed: make(chan struct{}),
	}
	s.fs.caches.point = point
	s.fs.owners, s.fs.timeout = owners{cfg.UID, cfg.GID}, cfg.Timeout
	if cfg.Client != nil {
		s.fs.learned = func() { cfg.Client.Observe(observerAt(s.fs.caches, cfg.Root)) }
	}
	if cfg.Cache != nil {
		s.fs.pass = newPassthrough(s.fs, cfg.Cache)
	}
	link, err := connect(s.fs, point, cfg)
	if err != nil {
		return nil, cfs.E("mount "+point, cfs.KindOf(err), mountHint(err))
	}
	go func() {
		defer close(s.done)
		link.serve()
		if err := s.fs.kernel.Close(); err != nil {
			s.log.Warn("ending the connection to the kernel", "err", err)
		}
	}()
	if err = settle(point); err != nil {
		return nil, errors.Join(cfs.E("mount "+point, cfs.KindOf(err), err), s.Unmount())
	}
	s.setReadAhead(cfg.ReadAheadBytes)
	go s.watchDeparture()
	if s.fs.pass != nil {
		s.fs.pass.start()
	}
	return s, nil
}

// mountFD mounts and returns the connection to the kernel: as root by mount(2), for others by fusermount3.
func mountFD(point string, cfg Config, maxBytes int) (int, error) {
	if os.Geteuid() != 0 {
		return fusermount(point, cfg, maxBytes)
	}
	// Not go-fuse's own mount(2), which leaves the descriptor open across exec: a child of the
	// daemon would then keep the mount alive after it, and hang if it used it.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open /dev/fuse", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d,allow_other,default_permissions", fd, unix.S_IFDIR, maxBytes)
	if err := unix.Mount(cfg.Source, point, fsType, cfg.flags(), data); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("mount", err)
	}
	return fd, nil
}

// settle makes a first use of the mount, which also shows that it works: a poll(2)
// of a file that go-fuse alone knows and answers with ENOSYS. The kernel then
// never asks again; otherwise the runtime's epoll of a process that uses its own
// mount would wait for itself.
func settle(point string) error {
	fd, err := unix.Open(filepath.Join(point, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if errors.Is(err, unix.EINTR) {
		err = nil
	}
	return err
}

// mountOptions is what go-fuse is told.
func mountOptions(cfg Config, maxBytes int) *gofuse.MountOptions {
	log := cfg.Logger
	return &gofuse.MountOptions{
		AllowOther:              cfg.AllowOther,
		Options:                 []string{"default_permissions"},
		FsName:                  cfg.Source,
		Name:                    fsName,
		MaxWrite:                maxBytes,
		MaxBackground:           maxBackground,
		MaxInflightRequestBytes: maxInflightBytes,
		EnableLocks:             true,
		EnableSymlinkCaching:    true, // an inode's target never changes
		EnableAcl:               true, // the kernel enforces what the cluster keeps
		DisableSplice:           true, // answers are in memory; at 1 MiB splice fails and is logged each time
		ExtraCapabilities:       capabilities,
		Logger:                  slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		PanicHandler: func(cause any) gofuse.Status {
			log.Error("panic while answering the kernel", "cause", cause, "stack", string(debug.Stack()))
			return gofuse.EIO
		},
	}
}

// mountHint adds what helps to the errors that people meet.
func mountHint(err error) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w (mounting takes root, or fusermount3)", err)
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w (is there a /dev/fuse? modprobe fuse)", err)
	}
	return err
}

// prepare makes the mount point absolute and sees that it can be mounted on. A
// mount of ours whose daemon has died is taken away; any other FUSE mount is in
// the way.
func prepare(mountpoint string, log *slog.Logger) (string, error) {
	point, err := filepath.Abs(mountpoint)
	if err != nil {
		return "", cfs.E("mount "+mountpoint, cfs.IO, err)
	}
	op := "mount " + point
	// Parents first: a mount point is listed by its real path.
	if parent, err := filepath.EvalSymlinks(filepath.Dir(point)); err == nil {
		point = filepath.Join(parent, filepath.Base(point))
	}
	found, mounted, err := mountedAt(point)
	if err != nil {
		return "", cfs.E(op, cfs.KindOf(err), err)
	}
	if mounted && found.isFUSE() {
		if err := clearDead(op, found, log); err != nil {
			return "", err
		}
	}
	info, err := os.Lstat(point)
	if err != nil {
		return "", cfs.E(op, cfs.KindOf(err), err)
	}
	if info.Mode()&os.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(point)
		if err != nil {
			return "", cfs.E(op, cfs.KindOf(err), err)
		}
		return prepare(target, log)
	}
	if !info.IsDir() {
		return "", cfs.Errorf(op, cfs.NotDir, "not a directory")
	}
	return point, nil
}

// clearDead takes a mount away that is ours and whose daemon has died; any other
// FUSE mount is an error.
func clearDead(op string, found mountEntry, log *slog.Logger) error {
	switch err := probe(found.point); {
	case !errors.Is(err, syscall.ENOTCONN):
		return cfs.Errorf(op, cfs.Busy, "%s (%s) is mounted there already", found.source, found.fsType)
	case found.fsType != fsType:
		return cfs.Errorf(op, cfs.Busy, "the daemon of %s (%s), mounted there, has died: clear it by umount -l %s", found.source, found.fsType, found.point)
	}
	log.Warn("taking away a mount whose daemon has died", "mountpoint", found.point, "source", found.source)
	if err := unmount(found.point, true); err != nil {
		return cfs.Errorf(op, cfs.Busy, "the daemon of %s, mounted there, has died: clear it by umount -l %s: %w", found.source, found.point, err)
	}
	return nil
}

// probe asks a mount for its statfs(2), which the kernel always hands to the
// daemon: stat(2) could be answered from its cache. nil too if there is no answer
// for probeTimeout.
func probe(point string) error {
	answer := make(chan error, 1)
	go func() {
		err := syscall.Statfs(point, new(syscall.Statfs_t))
		// The io_uring of a daemon that has just died goes by and by, and takes requests with it.
		for end := time.Now().Add(probeTimeout); errors.Is(err, syscall.ECANCELED) || errors.Is(err, syscall.ECONNABORTED); {
			if time.Now().After(end) {
				break
			}
			time.Sleep(busyPause)
			err = syscall.Statfs(point, new(syscall.Statfs_t))
		}
		answer <- err
	}()
	timer := time.NewTimer(probeTimeout)
	defer timer.Stop()
	select {
	case err := <-answer:
		return err
	case <-timer.C:
		return nil
	}
}

// setReadAhead sets how far the kernel reads ahead on this mount. Only root may;
// without it sequential reads are slower and no worse.
func (s *Server) setReadAhead(n int) {
	if n == 0 {
		n = DefaultReadAheadBytes
	}
	m, ok, err := mountedAt(s.point)
	if err == nil && !ok {
		err = errors.New("the mount is not listed")
	}
	if err == nil {
		s.dev = m.dev
		path := "/sys/class/bdi/" + m.dev + "/read_ahead_kb"
		err = os.WriteFile(path, []byte(strconv.Itoa(n/1024)), 0o644)
	}
	if err != nil {
		s.log.Warn("readahead stays at the kernel's default", "mountpoint", s.point, "err", err)
	}
}

// Mountpoint is the absolute path that is mounted on.
func (s *Server) Mountpoint() string { return s.point }

// Done is closed when the mount is gone and all its requests are answered.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait waits until the mount is gone, by Unmount or by umount(8).
func (s *Server) Wait() { <-s.done }
