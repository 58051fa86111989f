package client

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// File is an open handle of a regular file. Its methods may be called from any
// goroutine.
type File struct {
	c      *Client
	n      *inode
	flags  int // O_* of open(2)
	closed atomic.Bool
	told   uint64 // guarded by inode.mu: the failures of the inode that this handle has told of

	accessNoted atomic.Bool // something was read
}

func (c *Client) handle(n *inode, flags int) *File {
	return &File{c: c, n: n, flags: flags, told: n.toldUpTo()}
}

// Open opens a regular file as the cluster has it now; O_TRUNC empties it.
func (c *Client) Open(ctx context.Context, i cfs.Ino, flags int) (*File, error) {
	// Known as open before the leader is asked: what this client commits while the
	// answer is on its way makes the answer old.
	n := c.open(i)
	err := c.removals.wait(ctx, i)
	if err == nil {
		err = n.opened(ctx)
	}
	if err != nil {
		c.release(context.WithoutCancel(ctx), n)
		return nil, err
	}
	f := c.handle(n, flags)
	if flags&unix.O_TRUNC != 0 && flags&unix.O_ACCMODE != unix.O_RDONLY && n.size() > 0 {
		if _, err := c.SetAttr(ctx, cfs.Cred{}, i, cfs.SetSize, cfs.Attr{}); err != nil {
			c.release(ctx, n)
			return nil, err
		}
	}
	return f, nil
}

// opened asks for an inode's extents. One that has lost its name already, but not to a command of ours, is
// held for this session, and to be released with the last close.
func (n *inode) opened(ctx context.Context) error {
	if _, err := n.loadExtents(ctx, 0, true); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attr.Nlink == 0 {
		n.orphan.Store(true)
	}
	return nil
}

// OpenNew opens a file that this client has just created, with the attributes
// that Create returned: the cluster need not be asked. Where this client does not own it, the leader
// is told that it is open.
func (c *Client) OpenNew(a cfs.Attr, flags int) *File {
	n := c.open(a.Ino)
	n.observe(a)
	if !n.isOwned() {
		c.register(c.ctx, n)
	}
	return c.handle(n, flags)
}

// register tells the leader that an inode is open. That it does not is no failure: with the next epoch it hears of all.
func (c *Client) register(ctx context.Context, n *inode) {
	if _, err := n.loadExtents(ctx, 0, true); err != nil && ctx.Err() == nil {
		c.log.Debug("the leader does not know that an inode is open", "ino", uint64(n.ino), "err", err)
	}
}

// Attr is the file's attributes with what is written here.
func (f *File) Attr(ctx context.Context) (cfs.Attr, error) { return f.c.GetAttr(ctx, f.n.ino) }

// Write writes p at off, or at the end of a file opened with O_APPEND. It returns
// when the bytes are in the client's memory; with O_SYNC or O_DSYNC when they are
// durable. A failure of an earlier write to the inode, by any handle, is returned
// here, at Flush, Sync or Close, once for each handle that was open then.
func (f *File) Write(ctx context.Context, p []byte, off uint64) (int, error) {
	if err := f.n.failedSince(&f.told); err != nil {
		return 0, err
	}
	n, err := f.n.write(ctx, p, off, f.flags&unix.O_APPEND != 0)
	if err == nil && f.flags&(unix.O_SYNC|unix.O_DSYNC) != 0 {
		err = f.Sync(ctx)
	}
	return n, err
}

// Flush puts and commits what has been written to the inode, unless this client owns it: then others get it by
// asking. It tells of a failure without
// having told of it: the kernel flushes for every descriptor of the handle that is closed, also
// for those that a child process drops when it execs, and nobody sees that answer.
func (f *File) Flush(ctx context.Context) error {
	if !f.n.mayDefer() {
		if err := f.n.flush(ctx); err != nil {
			return err
		}
	}
	f.n.mu.Lock()
	seen := f.told
	f.n.mu.Unlock()
	return f.n.failedSince(&seen)
}

// Sync returns when all that has been written to the inode survives the loss of
// any M devices of its groups and of power everywhere. A commit is that already.
func (f *File) Sync(ctx context.Context) error {
	if err := f.n.flush(ctx); err != nil {
		return err
	}
	if err := f.c.await(ctx, false, f.n.ino); err != nil { // its name, where nothing was written
		return err
	}
	return f.n.failedSince(&f.told)
}

// Close flushes as Flush does, unless the handle is for reading only, and ends the handle. The last handle of an inode that has lost
// its name lets the cluster delete it.
func (f *File) Close(ctx context.Context) error {
	if !f.closed.CompareAndSwap(false, true) {
		return cfs.E("close", cfs.Closed, nil)
	}
	var err error
	if f.flags&unix.O_ACCMODE != unix.O_RDONLY {
		if !f.n.mayDefer() {
			err = f.n.flush(ctx)
		}
		if err == nil {
			err = f.n.failedSince(&f.told)
		}
	}
	f.c.release(ctx, f.n)
	return err
}

// Allocate changes the allocation of [off, off+n) as fallocate(2) does: mode 0 and
// FALLOC_FL_KEEP_SIZE allocate, FALLOC_FL_PUNCH_HOLE makes a hole,
// FALLOC_FL_ZERO_RANGE zeros. Other modes are Unsupported.
func (f *File) Allocate(ctx context.Context, mode uint32, off, n uint64) error {
	if n == 0 {
		return cfs.E("fallocate", cfs.Invalid, nil)
	}
	if off > cfs.MaxFileSize || n > cfs.MaxFileSize-off {
		return cfs.E("fallocate", cfs.TooLarge, nil)
	}
	var kinds []cfs.ExtentKind
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		kinds = []cfs.ExtentKind{cfs.ExtentUnwritten}
	case unix.FALLOC_FL_PUNCH_HOLE:
		if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
			return cfs.E("fallocate", cfs.Unsupported, nil)
		}
		kinds = []cfs.ExtentKind{cfs.ExtentHole}
	case unix.FALLOC_FL_ZERO_RANGE:
		kinds = []cfs.ExtentKind{cfs.ExtentHole, cfs.ExtentUnwritten}
	default:
		return cfs.E("fallocate", cfs.Unsupported, nil)
	}
	return f.n.settled(ctx, func() error {
		defer f.n.dropExtents()
		return f.allocate(ctx, kinds, mode&unix.FALLOC_FL_KEEP_SIZE != 0, off, n)
	})
}

// allocate splits a range that has too many extents for one command.
func (f *File) allocate(ctx context.Context, kinds []cfs.ExtentKind, keep bool, off, n uint64) error {
	op := cfs.Op{Kind: cfs.OpWrite, Ino: f.n.ino, KeepSize: keep}
	for _, k := range kinds {
		op.Extents = append(op.Extents, cfs.Extent{Off: off, Len: n, Kind: k})
	}
	_, err := f.c.change(ctx, cfs.Cred{}, op)
	if cfs.KindOf(err) != cfs.TooBig || n < 2 {
		return err
	}
	if err := f.allocate(ctx, kinds, keep, off, n/2); err != nil {
		return err
	}
	return f.allocate(ctx, kinds, keep, off+n/2, n-n/2)
}

// errNoData has an errno that no Kind has.
var errNoData = fmt.Errorf("lseek: %w", unix.ENXIO)

// Seek finds the next data (unix.SEEK_DATA) or hole (unix.SEEK_HOLE) at or after
// off, as lseek(2) does: ENXIO where there is none. The end of the file is a hole.
func (f *File) Seek(ctx context.Context, off uint64, whence int) (uint64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, cfs.E("lseek", cfs.Invalid, nil)
	}
	if err := f.n.flush(ctx); err != nil {
		return 0, err
	}
	a, err := f.c.GetAttr(ctx, f.n.ino)
	if err != nil {
		return 0, err
	}
	if off >= a.Size {
		return 0, errNoData
	}
	at := off
	for at < a.Size {
		rows, upTo, err := f.n.extentsFor(ctx, at, a.Size)
		if err != nil {
			return 0, err
		}
		for i := range rows {
			x := &rows[i]
			if x.End() <= at || x.Kind == cfs.ExtentUnwritten {
				continue
			}
			if whence == unix.SEEK_DATA {
				return min(max(at, x.Off), a.Size), nil
			}
			if x.Off > at {
				return at, nil
			}
			at = x.End()
		}
		if whence == unix.SEEK_HOLE && at < upTo {
			return at, nil
		}
		at = max(at, upTo)
	}
	if whence == unix.SEEK_DATA {
		return 0, errNoData
	}
	return a.Size, nil
}
