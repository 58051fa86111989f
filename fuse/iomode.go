package fuse

import (
	"sync"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/fuse/filecache"
)

// ioMode is how a handle is read and written.
type ioMode uint8

const (
	// ioCached: through the kernel's pages, which requests fill and write.
	ioCached ioMode = iota
	// ioPassed: by the kernel in the backing file, without a request.
	ioPassed
	// ioDirect: by requests, past the kernel's pages; mappings are of the backing file.
	ioDirect
)

// inodeIO is the I/O mode of one inode: this is the place that decides it. The kernel answers EIO to an open that
// does not fit those that it has: with the pages of an inode in use nothing is passed through, and
// while an inode is pinned every handle has its backing file. The kernel ends a handle's mode before it sends RELEASE and this
// does after, so what is decided here fits there.
type inodeIO struct {
	ino  cfs.Ino
	refs int // guarded by the table

	mu      sync.Mutex
	cached  int    // handles that use the pages, and changes under way while nothing is pinned
	writers int    // those of cached that may write
	changes uint64 // rises when one of writers ends
	pinned  *pin   // nil where nothing is
}

// ioTable has the inodes that are open, or being filled, by number.
type ioTable struct {
	shard [inoTableShards]struct {
		sync.Mutex
		inode map[cfs.Ino]*inodeIO
	}
}

// hold finds an inode's state for a caller, who releases it.
func (t *ioTable) hold(i cfs.Ino) *inodeIO {
	s := &t.shard[uint64(i)%inoTableShards]
	s.Lock()
	defer s.Unlock()
	n := s.inode[i]
	if n == nil {
		if s.inode == nil {
			s.inode = make(map[cfs.Ino]*inodeIO)
		}
		n = &inodeIO{ino: i}
		s.inode[i] = n
	}
	n.refs++
	return n
}

func (t *ioTable) release(n *inodeIO) {
	s := &t.shard[uint64(n.ino)%inoTableShards]
	s.Lock()
	defer s.Unlock()
	if n.refs--; n.refs == 0 {
		delete(s.inode, n.ino)
	}
}

// use is one handle's, or one change's, part in the mode of its inode.
type use struct {
	inode *inodeIO
	pin   *pin // of ioPassed and ioDirect
	mode  ioMode
	write bool
}

// backingID is what the kernel is told.
func (u *use) backingID() int32 {
	if u.pin == nil {
		return 0
	}
	return u.pin.id
}

// enterLocked counts a user whose mode is decided.
func (n *inodeIO) enterLocked(mode ioMode, write bool) use {
	u := use{inode: n, mode: mode, write: write}
	if mode == ioCached {
		n.cached++
		if write {
			n.writers++
		}
		return u
	}
	u.pin = n.pinned
	u.pin.users++
	u.pin.entries++
	return u
}

// leave ends a use.
func (p *passthrough) leave(u use) {
	n := u.inode
	if n == nil {
		return
	}
	n.mu.Lock()
	if u.mode == ioCached {
		n.cached--
		if u.write {
			n.writers--
			n.changes++
		}
	} else if u.pin.users--; u.pin.users == 0 && !u.pin.lingering {
		u.pin.lingering = true
		p.inodes.hold(n.ino) // linger's
		p.wg.Go(func() { p.linger(n, u.pin) })
	}
	n.mu.Unlock()
	p.inodes.release(n)
}

// enterWriter decides how an open that may write, or a change without a handle, goes about it. mapped says that it may
// also write through a mapping.
func (p *passthrough) enterWriter(i cfs.Ino, mapped bool) (use, error) {
	n := p.inodes.hold(i)
	n.mu.Lock()
	p.unpinIdleLocked(n)
	if n.pinned == nil {
		defer n.mu.Unlock()
		return n.enterLocked(ioCached, true), nil
	}
	n.pinned.changed = true
	u := n.enterLocked(ioDirect, true)
	n.mu.Unlock()
	if err := u.pin.prepare(mapped); err != nil {
		p.leave(u)
		return use{}, err
	}
	return u, nil
}

// enterReader decides how an open for reading goes about it: passed through if the content of now is in the cache. exec says
// that the file is to be run.
func (p *passthrough) enterReader(r *request, h *openFile, exec bool) use {
	n := p.inodes.hold(h.ino)
	n.mu.Lock()
	changes := n.changes
	n.mu.Unlock()
	a, err := p.fs.inodes.GetAttr(r, h.ino)
	h.size = a.Size
	n.mu.Lock()
	defer n.mu.Unlock()
	p.unpinIdleLocked(n)
	if pin := n.pinned; pin != nil {
		// A program that is half of one version and half of another runs into the ground.
		if exec || err == nil && !pin.changed && pin.key == filecache.KeyOf(&a) {
			p.count(passedOpen)
			return n.enterLocked(ioPassed, false)
		}
		p.count(passDirect)
		return n.enterLocked(ioDirect, false)
	}
	why := passFailed
	if err == nil {
		why = p.fallback(&a)
	}
	if why == passedOpen && (n.cached > 0 || n.changes != changes) {
		why = passMode
	}
	if why == passedOpen {
		why = p.pinLocked(n, filecache.KeyOf(&a))
	}
	p.count(why)
	if why == passedOpen {
		return n.enterLocked(ioPassed, false)
	}
	return n.enterLocked(ioCached, false)
}

// enterNew is the use of a file that has just been made.
func (p *passthrough) enterNew(i cfs.Ino, write bool) use {
	n := p.inodes.hold(i)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.enterLocked(ioCached, write)
}
