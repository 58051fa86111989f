package fuse

import (
	"context"
	"errors"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// maxLockWaits bounds the requests that wait for locks. Each takes a goroutine and about
// a kilobyte of maxInflightBytes until it is answered, so that this many leave nearly all
// of it to the requests that unlock. One more is ENOLCK: EAGAIN would mean that the program
// had not asked to wait, and to make it poll here would hold just what is bounded.
const maxLockWaits = 1024

// lockOwners are the owners that have set locks through a handle, and have not closed a
// descriptor of it since. The last close ends what they still have: those of flock(2) and
// of OFD locks, whose owner is the open file and for whom no FLUSH comes. A process that
// has fcntl locks has closed its descriptors by then and so ended them.
type lockOwners struct {
	mu  sync.Mutex
	all map[lockOwner]struct{}
}

// lockOwner is an owner as the kernel numbers them, for one family of locks.
type lockOwner struct {
	kind  cfs.LockKind
	owner uint64
}

func (s *lockOwners) add(o lockOwner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[lockOwner]struct{}{}
	}
	s.all[o] = struct{}{}
}

func (s *lockOwners) remove(o lockOwner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, o)
}

func (s *lockOwners) drain() map[lockOwner]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all
	s.all = nil
	return all
}

// lockOf is the lock that a request names.
func lockOf(in *gofuse.LkIn) (cfs.Lock, error) {
	l := cfs.Lock{Kind: cfs.LockPosix, Owner: in.Owner, Start: in.Lk.Start, End: in.Lk.End, PID: in.Lk.Pid}
	if in.LkFlags&gofuse.LK_FLOCK != 0 {
		l.Kind = cfs.LockFlock
	}
	switch in.Lk.Typ {
	case unix.F_RDLCK:
		l.Type = cfs.LockRead
	case unix.F_WRLCK:
		l.Type = cfs.LockWrite
	case unix.F_UNLCK:
		l.Type = cfs.LockNone
	default:
		return l, cfs.Errorf("lock", cfs.Invalid, "type %d", in.Lk.Typ)
	}
	if l.Start > l.End {
		return l, cfs.Errorf("lock", cfs.Invalid, "the bytes %d to %d", l.Start, l.End)
	}
	return l, nil
}

// GetLk is F_GETLK.
func (fs *fileSystem) GetLk(cancel <-chan struct{}, in *gofuse.LkIn, out *gofuse.LkOut) gofuse.Status {
	r := fs.begin(opGetLk, cancel, &in.InHeader)
	l, err := lockOf(in)
	if err != nil {
		return r.end(err)
	}
	found, err := fs.GetLock(r, cfs.Ino(in.NodeId), l)
	if err != nil {
		return r.end(gone(err))
	}
	out.Lk = gofuse.FileLock{Typ: unix.F_UNLCK}
	switch found.Type {
	case cfs.LockRead:
		out.Lk = gofuse.FileLock{Typ: unix.F_RDLCK, Start: found.Start, End: found.End, Pid: found.PID}
	case cfs.LockWrite:
		out.Lk = gofuse.FileLock{Typ: unix.F_WRLCK, Start: found.Start, End: found.End, Pid: found.PID}
	}
	return r.end(nil)
}

// SetLk is F_SETLK, F_OFD_SETLK and flock(2) with LOCK_NB, and all unlocking.
func (fs *fileSystem) SetLk(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	r := fs.begin(opSetLk, cancel, &in.InHeader)
	return r.end(fs.setLock(r, in, false))
}

// SetLkw waits. Any signal ends that: the kernel restarts the call, or has it fail with
// EINTR, as the program has asked for the signal.
func (fs *fileSystem) SetLkw(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	r := fs.begin(opSetLkw, cancel, &in.InHeader)
	r.anySignal = true
	select {
	case fs.lockWaits <- struct{}{}:
		defer func() { <-fs.lockWaits }()
		return r.end(fs.setLock(r, in, true))
	default:
	}
	err := fs.setLock(r, in, false)
	if cfs.KindOf(err) == cfs.Locked {
		err = cfs.Errorf("lock", cfs.TooManyLocks, "%d wait for locks", maxLockWaits)
	}
	return r.end(err)
}

func (fs *fileSystem) setLock(r *request, in *gofuse.LkIn, wait bool) error {
	l, err := lockOf(in)
	if err != nil {
		return err
	}
	h, err := fs.handle(in.Fh)
	if err != nil {
		return err
	}
	if l.Type != cfs.LockNone {
		h.locks.add(lockOwner{l.Kind, l.Owner}) // even if it fails: it may have been set
	}
	if err := h.stored(r, 0, cfs.MaxFileSize); err != nil {
		return err
	}
	if err := fs.SetLock(r, h.ino, l, wait); err != nil {
		return gone(err)
	}
	if l.Type != cfs.LockNone {
		fs.freshen(r, h.ino)
	}
	return nil
}

// freshen has the kernel forget the pages of a file that others have changed: who has
// got a lock reads what its last holder wrote.
func (fs *fileSystem) freshen(r *request, ino cfs.Ino) {
	if fs.kernel == nil || fs.unchanged(r, ino) {
		return
	}
	if err := fs.kernel.invalInode(ino, 0, 0); err != nil {
		fs.log.Warn("the kernel keeps old pages of a file", "ino", uint64(ino), "err", err)
	}
}

// unlockAll ends what an owner has locked through any handle of an inode.
func (fs *fileSystem) unlockAll(ctx context.Context, h *openFile, kind cfs.LockKind, owner uint64) error {
	h.locks.remove(lockOwner{kind, owner})
	return fs.ReleaseOwner(ctx, h.ino, kind, owner)
}

// unlockHandle ends what a handle's owners still have locked.
func (fs *fileSystem) unlockHandle(ctx context.Context, h *openFile) error {
	var err error
	for o := range h.locks.drain() {
		err = errors.Join(err, fs.ReleaseOwner(ctx, h.ino, o.kind, o.owner))
	}
	return err
}
