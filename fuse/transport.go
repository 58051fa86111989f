package fuse

import (
	"errors"
	"fmt"
	"os"
	"strings"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// What Config.Transport may name.
const (
	TransportURing = "uring" // FUSE over io_uring
	TransportDev   = "dev"   // read(2) and write(2) on /dev/fuse
)

// uringParam is the kernel's switch of FUSE over io_uring (Linux 6.14), which root may turn on.
const uringParam = "/sys/module/fuse/parameters/enable_uring"

// errNoURing says that FUSE over io_uring is not to be had here.
var errNoURing = errors.New("no FUSE over io_uring")

// transport carries the kernel's requests to the file system, and the answers back.
type transport interface {
	// start mounts by mount, which is told of the largest READ and WRITE and returns the connection, and is
	// ready for requests when it returns. The connection is the transport's, whatever comes of it.
	start(fs *fileSystem, mount func(maxBytes int) (fd int, err error)) error
	// serve answers until the mount is gone and all requests have ended, and ends with OnUnmount.
	serve()
}

// CheckTransport refuses what is not the name of a transport; the empty name is for Mount to decide.
func CheckTransport(name string) error {
	switch name {
	case "", TransportURing, TransportDev:
		return nil
	}
	return cfs.Errorf("transport", cfs.Invalid, "%q is none: want %s or %s", name, TransportURing, TransportDev)
}

// connect mounts, by the transport that is asked for, or else by the better one that is to be had.
func connect(fs *fileSystem, point string, cfg Config) (transport, error) {
	if err := CheckTransport(cfg.Transport); err != nil {
		return nil, err
	}
	if cfg.Transport != TransportDev {
		t := transport(&uring{cfg: cfg, log: cfg.Logger})
		err := enableURing()
		if err == nil {
			err = attach(t, fs, point, cfg)
		}
		if err == nil || cfg.Transport == TransportURing || !errors.Is(err, errNoURing) {
			return t, err
		}
		cfg.Logger.Info("requests come by /dev/fuse", "why", err)
	}
	t := &dev{cfg: cfg}
	fs.losesSignals = false
	return t, attach(t, fs, point, cfg)
}

// enableURing sees to it that new mounts may use io_uring.
func enableURing() error {
	now, err := os.ReadFile(uringParam)
	if err == nil && strings.TrimSpace(string(now)) != "Y" {
		err = os.WriteFile(uringParam, []byte("Y"), 0)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: the kernel does not know it (Linux 6.14)", errNoURing)
	case err != nil:
		return fmt.Errorf("%w: it is turned off, and turning it on takes root: %w", errNoURing, err)
	}
	return nil
}

// attach mounts and starts a transport; after a failure nothing is mounted.
func attach(t transport, fs *fileSystem, point string, cfg Config) error {
	mounted := false
	err := t.start(fs, func(maxBytes int) (int, error) {
		fd, err := mountFD(point, cfg, maxBytes)
		if err != nil {
			return -1, err
		}
		mounted = true
		if fs.kernel, err = newKernelConn(fd); err != nil {
			unix.Close(fd)
			return -1, err
		}
		fs.kernel.root = cfg.Root
		return fd, nil
	})
	if err == nil || !mounted {
		return err
	}
	if fs.kernel != nil {
		err = errors.Join(err, fs.kernel.Close())
	}
	return errors.Join(err, unmount(point, true))
}

// dev is go-fuse's own server: threads that read requests from /dev/fuse, and write the answers there.
type dev struct {
	cfg Config
	srv *gofuse.Server
}

func (d *dev) start(fs *fileSystem, mount func(int) (int, error)) error {
	fd, err := mount(maxWriteBytes)
	if err != nil {
		return err
	}
	d.srv, err = gofuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", fd), mountOptions(d.cfg, maxWriteBytes))
	return err
}

func (d *dev) serve() { d.srv.Serve() }
