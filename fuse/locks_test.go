package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// memLocks is a locker in memory: a list, gone through from end to end. It is used
// with the same ranges again, not with parts of them.
type memLocks struct {
	mu    sync.Mutex
	inode map[cfs.Ino][]cfs.Lock
	moved chan struct{} // closed and replaced at each change
	waits int
}

func (m *memLocks) blocker(ino cfs.Ino, l cfs.Lock) (cfs.Lock, bool) {
	for _, o := range m.inode[ino] {
		if o.Kind == l.Kind && o.Owner != l.Owner && o.Start <= l.End && l.Start <= o.End && (o.Type == cfs.LockWrite || l.Type == cfs.LockWrite) {
			return o, true
		}
	}
	return cfs.Lock{}, false
}

func (m *memLocks) change(ino cfs.Ino, drop func(o cfs.Lock) bool, add ...cfs.Lock) {
	if m.inode == nil {
		m.inode = map[cfs.Ino][]cfs.Lock{}
	}
	m.inode[ino] = append(slices.DeleteFunc(m.inode[ino], drop), add...)
	if m.moved != nil {
		close(m.moved)
		m.moved = nil
	}
}

func (m *memLocks) SetLock(ctx context.Context, ino cfs.Ino, l cfs.Lock, wait bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mine := func(o cfs.Lock) bool {
		return o.Kind == l.Kind && o.Owner == l.Owner && o.Start >= l.Start && o.End <= l.End
	}
	if l.Type == cfs.LockNone {
		m.change(ino, mine)
		return nil
	}
	for {
		if _, ok := m.blocker(ino, l); !ok {
			m.change(ino, mine, l)
			return nil
		}
		if !wait {
			return cfs.E("lock", cfs.Locked, nil)
		}
		if m.moved == nil {
			m.moved = make(chan struct{})
		}
		moved := m.moved
		m.waits++
		m.mu.Unlock()
		var err error
		select {
		case <-moved:
		case <-ctx.Done():
			err = ctx.Err()
		}
		m.mu.Lock()
		if m.waits--; err != nil {
			return err
		}
	}
}

func (m *memLocks) GetLock(_ context.Context, ino cfs.Ino, l cfs.Lock) (cfs.Lock, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, _ := m.blocker(ino, l)
	return o, nil
}

func (m *memLocks) ReleaseOwner(_ context.Context, ino cfs.Ino, kind cfs.LockKind, owner uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.change(ino, func(o cfs.Lock) bool { return o.Kind == kind && o.Owner == owner })
	return nil
}

// of are the locks of an inode.
func (m *memLocks) of(ino cfs.Ino) []cfs.Lock {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.inode[ino])
}

func (m *memLocks) waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waits
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// openTwice opens a new file by two handles.
func openTwice(t testing.TB, dir string) (f, g *os.File, ino cfs.Ino) {
	t.Helper()
	path := filepath.Join(dir, "locked")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	g, err = os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return f, g, cfs.Ino(lstat(t, path).Ino)
}

func fcntl(f *os.File, cmd int, typ int16, start, n int64) error {
	return unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: typ, Whence: unix.SEEK_SET, Start: start, Len: n})
}

func TestFlock(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	f, g, ino := openTwice(t, dir)
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_SH))
	check(t, unix.Flock(int(g.Fd()), unix.LOCK_SH|unix.LOCK_NB))
	if err := unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("an exclusive lock beside a shared one: %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(g.Fd()), unix.LOCK_EX) }()
	eventually(t, "a wait", func() bool { return m.locks.waiting() == 1 })
	check(t, f.Close()) // ends its lock
	check(t, <-got)
	if l := m.locks.of(ino); len(l) != 1 || l[0].Kind != cfs.LockFlock || l[0].Type != cfs.LockWrite {
		t.Errorf("locks: %+v", l)
	}
	check(t, unix.Flock(int(g.Fd()), unix.LOCK_UN))
	if l := m.locks.of(ino); len(l) != 0 {
		t.Errorf("after LOCK_UN: %+v", l)
	}
}

func TestOpenFileLocks(t *testing.T) {
	m := newMemFS()
	dir, srv := mounted(t, m)
	f, g, ino := openTwice(t, dir)
	check(t, fcntl(f, unix.F_OFD_SETLK, unix.F_WRLCK, 10, 10))
	if err := fcntl(g, unix.F_OFD_SETLK, unix.F_RDLCK, 15, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a lock in the way: %v", err)
	}
	found := unix.Flock_t{Type: unix.F_RDLCK, Start: 0, Len: 0}
	check(t, unix.FcntlFlock(g.Fd(), unix.F_OFD_GETLK, &found))
	if found.Type != unix.F_WRLCK || found.Start != 10 || found.Len != 10 {
		t.Errorf("F_OFD_GETLK: %+v", found)
	}
	found = unix.Flock_t{Type: unix.F_RDLCK, Start: 30, Len: 0}
	check(t, unix.FcntlFlock(g.Fd(), unix.F_OFD_GETLK, &found))
	if found.Type != unix.F_UNLCK {
		t.Errorf("F_OFD_GETLK of what is free: %+v", found)
	}
	// Without a place to wait in it is ENOLCK; what need not wait passes.
	for range cap(srv.fs.lockWaits) {
		srv.fs.lockWaits <- struct{}{}
	}
	if err := fcntl(g, unix.F_OFD_SETLKW, unix.F_RDLCK, 15, 1); !errors.Is(err, unix.ENOLCK) {
		t.Errorf("one wait too many: %v", err)
	}
	check(t, fcntl(g, unix.F_OFD_SETLKW, unix.F_RDLCK, 50, 1))
	check(t, fcntl(g, unix.F_OFD_SETLK, unix.F_UNLCK, 50, 1))
	for range cap(srv.fs.lockWaits) {
		<-srv.fs.lockWaits
	}
	got := make(chan error, 1)
	go func() { got <- fcntl(g, unix.F_OFD_SETLKW, unix.F_RDLCK, 15, 1) }()
	eventually(t, "a wait", func() bool { return m.locks.waiting() == 1 })
	check(t, f.Close()) // the kernel does not say whose locks end: we know
	check(t, <-got)
	check(t, g.Close())
	eventually(t, "no locks", func() bool { return len(m.locks.of(ino)) == 0 })
}

// A close of any descriptor of the file ends the process's fcntl locks, of one for
// reading too; a child's close, or death, does not end its parent's.
func TestProcessLocksEndAtClose(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	f, _, ino := openTwice(t, dir)
	check(t, fcntl(f, unix.F_SETLK, unix.F_WRLCK, 0, 1))
	runChild(t, "closeLocks", f.Name())
	if l := m.locks.of(ino); len(l) != 1 || l[0].Start != 0 || l[0].End != 0 {
		t.Errorf("after a child: %+v", l)
	}
	check(t, f.Close())
	if l := m.locks.of(ino); len(l) != 0 {
		t.Errorf("after the close: %+v", l)
	}
}

// closeLocks is the child: it locks by one descriptor, and closes another.
func closeLocks(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	g, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := fcntl(f, unix.F_SETLK, unix.F_WRLCK, 0, 1); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("the parent's lock is not in the way: %w", err)
	}
	if err := fcntl(f, unix.F_SETLK, unix.F_WRLCK, 100, 10); err != nil {
		return err
	}
	if err := g.Close(); err != nil {
		return err
	}
	h, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := fcntl(h, unix.F_OFD_SETLK, unix.F_WRLCK, 100, 10); err != nil {
		return fmt.Errorf("the lock is there after a close: %w", err)
	}
	if err := fcntl(f, unix.F_SETLK, unix.F_WRLCK, 200, 10); err != nil {
		return err
	}
	return nil // which ends the others
}

func TestLockOfRequest(t *testing.T) {
	in := &gofuse.LkIn{Owner: 7, Lk: gofuse.FileLock{Start: 1, End: 2, Typ: unix.F_WRLCK, Pid: 9}, LkFlags: gofuse.LK_FLOCK}
	if l, err := lockOf(in); err != nil || l != (cfs.Lock{Kind: cfs.LockFlock, Type: cfs.LockWrite, Owner: 7, Start: 1, End: 2, PID: 9}) {
		t.Errorf("%+v, %v", l, err)
	}
	for _, bad := range []gofuse.FileLock{{Typ: 77}, {Typ: unix.F_RDLCK, Start: 2, End: 1}} {
		if _, err := lockOf(&gofuse.LkIn{Lk: bad}); !errors.Is(err, cfs.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// A wait for a lock is given up at any signal, other requests at a deadly one alone.
func TestAnySignalEndsAWaitForALock(t *testing.T) {
	fs := newFileSystem(newMemFS().backend(), nil, NewMetrics(nil))
	signalled := make(chan struct{})
	close(signalled)
	h := &gofuse.InHeader{Caller: gofuse.Caller{Pid: uint32(os.Getpid())}}
	r := fs.begin(opSetLkw, signalled, h)
	r.anySignal = true
	select {
	case <-r.Done():
	case <-time.After(30 * time.Second):
		t.Error("a signal does not end the wait")
	}
	r.end(nil)
	r = fs.begin(opSetLk, signalled, h)
	select {
	case <-r.Done():
		t.Error("a signal ends a request that does not wait for a lock")
	case <-time.After(3 * interruptPollFirst):
	}
	r.end(nil)
}
