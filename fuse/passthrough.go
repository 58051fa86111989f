package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/fuse/filecache"
)

const (
	// minPassBytes is the size below which the kernel's own pages serve better: see docs/decisions/017-passthrough.md.
	minPassBytes = 64 << 10
	// maxPins bounds the backing files that are registered, and pinShare their part of the file descriptors that this process may have.
	maxPins  = 1 << 16
	pinShare = 4
	// lingerFirst and lingerMax are how often a backing file that has no handle any more is looked at, for the mappings
	// that it may have; lingerWritten is lingerMax where a mapping may have been written through.
	lingerFirst   = 5 * time.Millisecond
	lingerMax     = 5 * time.Second
	lingerWritten = time.Second

	// flagExec is __FMODE_EXEC of linux/fs.h, which OPEN carries: the file is to be run.
	flagExec = 0x20
)

// passReason is what became of an open of a regular file: passed through, or why not.
type passReason uint8

const (
	passedOpen  passReason = iota
	passDirect             // for reading what a pinned inode's file is not
	passWriting            // for writing
	passAbsent             // the content of now is not in the cache
	passSmall              // too small to gain
	passMode               // the kernel's pages of the inode are in use
	passFailed             // the backing file could not be registered
	passUnable             // the kernel or the user is not able to, or there are too many
	passEnd
)

var passNames = [passEnd]string{"passed", "direct", "writing", "absent", "small", "mode", "failed", "unable"}

// passthrough lets the kernel read files that are whole in the cache directory by itself.
type passthrough struct {
	fs     *fileSystem
	cache  *filecache.Cache
	log    *slog.Logger
	able   atomic.Bool // the kernel takes backing files from us
	pins   atomic.Int64
	most   int64  // pins
	least  uint64 // bytes of a file that is passed through
	inodes ioTable
	filler filler

	ctx    context.Context // until the mount ends
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newPassthrough(fs *fileSystem, cache *filecache.Cache) *passthrough {
	p := &passthrough{fs: fs, cache: cache, log: fs.log, most: maxPins, least: minPassBytes}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		p.most = int64(min(lim.Cur/pinShare, maxPins))
	}
	return p
}

// start finds out, once the mount is there, whether the kernel takes backing files. Where it does not, files are read as without a cache.
func (p *passthrough) start() {
	id, err := p.fs.kernel.openBacking(p.cache.Probe())
	if err == nil {
		err = p.fs.kernel.closeBacking(id)
	}
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOTTY):
		err = fmt.Errorf("it takes Linux 6.9 and root: %w", err)
	case errors.Is(err, syscall.ELOOP):
		err = fmt.Errorf("the cache directory is on a stacked file system (overlayfs, FUSE): %w", err)
	}
	if err != nil {
		p.log.Warn("cached files are not passed through: the cache directory is not used", "err", err)
		return
	}
	p.startFilling()
	p.able.Store(true)
}

// stop ends what is in the background, when the last handle is closed.
func (p *passthrough) stop() {
	p.cancel()
	p.wg.Wait()
}

func (p *passthrough) count(why passReason) { p.fs.metrics.passed[why].Inc() }

// fallback is why a file is not to be passed through, as far as its attributes tell; passedOpen if it may be.
func (p *passthrough) fallback(a *cfs.Attr) passReason {
	switch {
	case !p.able.Load() || p.pins.Load() >= p.most:
		return passUnable
	case a.Size < p.least:
		return passSmall
	}
	return passedOpen
}

// open decides the mode of a handle that is being opened.
func (p *passthrough) open(r *request, h *openFile, flags uint32, out *gofuse.OpenOut) (err error) {
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		h.use = p.enterReader(r, h, flags&flagExec != 0)
	} else {
		h.use, err = p.enterWriter(h.ino, flags&syscall.O_ACCMODE == syscall.O_RDWR)
		p.count(passWriting)
	}
	switch h.use.mode {
	case ioPassed:
		out.OpenFlags = gofuse.FOPEN_PASSTHROUGH
	case ioDirect:
		out.OpenFlags = gofuse.FOPEN_PASSTHROUGH | gofuse.FOPEN_DIRECT_IO
	}
	out.BackingID = h.use.backingID()
	return err
}

// pinLocked makes the content key the backing file of an inode that has none; passedOpen if it is.
func (p *passthrough) pinLocked(n *inodeIO, key filecache.Key) passReason {
	f := p.cache.Get(key)
	if f == nil {
		return passAbsent
	}
	id, err := p.fs.kernel.openBacking(int(f.Fd()))
	if err != nil {
		p.log.Warn("a cached file is not passed through", "ino", uint64(n.ino), "err", errors.Join(err, f.Close()))
		return passFailed
	}
	p.pins.Add(1)
	n.pinned = &pin{p: p, ino: n.ino, id: id, key: key, file: f}
	return passedOpen
}

// unpinIdleLocked ends the pin of an inode that nobody uses or has mapped, at once instead of when linger next looks. One that
// may have been written through a mapping is linger's.
func (p *passthrough) unpinIdleLocked(n *inodeIO) {
	if pin := n.pinned; pin != nil && pin.users == 0 && pin.shadow.Load() == nil && !pin.file.InUse() {
		p.unpinLocked(n)
	}
}

func (p *passthrough) unpinLocked(n *inodeIO) {
	pin := n.pinned
	n.pinned = nil
	p.pins.Add(-1)
	if pin.changed {
		p.fs.distrustPages(n.ino)
	}
	p.wg.Go(pin.close)
}

// linger waits until nobody has a backing file mapped whose last handle is closed: the kernel lets go of a handle when a
// mapping is made. Until then the inode stays pinned, so that a write that is made here is seen by who has it mapped, and what is
// written through a mapping goes to the cluster.
func (p *passthrough) linger(n *inodeIO, pin *pin) {
	defer p.inodes.release(n)
	failed := false
	for wait := lingerFirst; ; wait *= 2 {
		most := lingerMax
		if pin.shadow.Load() != nil {
			most = lingerWritten
		}
		wait = min(wait, most)
		ended := !p.pause(wait)
		n.mu.Lock()
		if n.pinned != pin || pin.users > 0 {
			pin.lingering = false
			n.mu.Unlock()
			return
		}
		idle, entries := ended || !pin.file.InUse(), pin.entries
		n.mu.Unlock()
		// After the look: what was written before it is in the file.
		err := pin.push(context.WithoutCancel(p.ctx), 0, cfs.MaxFileSize)
		if kind := cfs.KindOf(err); err != nil && (idle || !failed) && kind != cfs.Stale && kind != cfs.NotFound { // of a file that is gone nothing is lost
			p.log.Error("what was written through a mapping does not reach the cluster", "ino", uint64(n.ino), "last", idle, "err", err)
		}
		failed = err != nil
		if idle && p.unpinUnused(n, pin, entries) {
			return
		}
	}
}

// unpinUnused ends a pin, if nobody has used it since entries.
func (p *passthrough) unpinUnused(n *inodeIO, pin *pin, entries uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pinned != pin || pin.entries != entries {
		return false
	}
	p.unpinLocked(n)
	return true
}

// pause waits; false when the mount ends.
func (p *passthrough) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// resizing carries out a change of an inode's size that comes without a handle, or before there is one.
func (p *passthrough) resizing(i cfs.Ino, do func() (cfs.Attr, error)) (cfs.Attr, error) {
	u, err := p.enterWriter(i, false)
	if err != nil {
		return cfs.Attr{}, err
	}
	defer p.leave(u)
	if u.mode == ioCached {
		p.cache.Drop(i)
		return do()
	}
	return u.pin.resize(do)
}

// What follows is for the file system's requests, and does without a cache directory what is done without one.

// enter decides how a handle that is being opened is read and written.
func (fs *fileSystem) enter(r *request, h *openFile, flags uint32, out *gofuse.OpenOut) error {
	if fs.pass == nil {
		return nil
	}
	return fs.pass.open(r, h, flags, out)
}

// enterNew is enter for a file that has just been made.
func (fs *fileSystem) enterNew(h *openFile) {
	if fs.pass != nil {
		h.use = fs.pass.enterNew(h.ino, h.flags&syscall.O_ACCMODE != syscall.O_RDONLY)
	}
}

// leave ends what enter began, when the file is closed.
func (fs *fileSystem) leave(h *openFile) {
	if fs.pass != nil {
		fs.pass.consider(h)
		fs.pass.leave(h.use)
	}
}

// resizing carries out do, which sets the size of an inode.
func (fs *fileSystem) resizing(i cfs.Ino, do func() (cfs.Attr, error)) (cfs.Attr, error) {
	if fs.pass == nil {
		return do()
	}
	return fs.pass.resizing(i, do)
}

// touch has what is in the cache directory of h's inode forgotten, since it is going to change.
func (fs *fileSystem) touch(h *openFile) {
	if fs.pass != nil && h.changed.CompareAndSwap(false, true) {
		fs.pass.cache.Drop(h.ino)
	}
}

// write is a WRITE through h by f, which appends or not.
func (fs *fileSystem) write(r *request, h *openFile, f file, data []byte, in *gofuse.WriteIn) (int, error) {
	if h.use.mode == ioCached {
		fs.touch(h)
		return f.Write(r, data, in.Offset)
	}
	return h.use.pin.write(r, f, data, in.Offset, in.Flags&syscall.O_APPEND != 0)
}

// changing carries out do, which changes length bytes of h's inode from off on and maybe its size.
func (fs *fileSystem) changing(r *request, h *openFile, off, length uint64, do func() error) error {
	if h.use.mode == ioCached {
		fs.touch(h)
		return do()
	}
	return h.use.pin.changing(r, h.file, off, length, do)
}

// stored brings to the cluster what was stored through mappings in length bytes of h's inode from off on, where the kernel did not
// do that.
func (h *openFile) stored(ctx context.Context, off, length uint64) error {
	if h.use.pin == nil {
		return nil
	}
	return h.use.pin.push(ctx, off, length)
}
