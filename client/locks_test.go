package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// waitLock is the leader's OpWaitLock, without the search for deadlocks.
func (b *bed) waitLock(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var pb wirepb.WaitLock
	if err := r.Decode(&pb); err != nil {
		return wire.Response{}, err
	}
	l, err := wire.LockFromPB(pb.Lock)
	if err != nil {
		return wire.Response{}, err
	}
	l.Session = cfs.SessionID(pb.Session)
	b.lockWaits.Add(1)
	defer b.lockWaits.Add(-1)
	if fn := b.waiting.Load(); fn != nil {
		if err := (*fn)(); err != nil {
			return wire.Response{}, err
		}
	}
	for end := time.Now().Add(time.Second); ; {
		b.mu.Lock()
		found, kind, err := fsm.LocksAgainst(b.kv, cfs.Ino(pb.Ino), l)
		b.mu.Unlock()
		switch {
		case err != nil:
			return wire.Response{}, err
		case kind != cfs.KindOK:
			return wire.Response{}, cfs.E("wait for lock", kind, nil)
		case len(found) == 0:
			return wire.Response{Body: &wirepb.Empty{}}, nil
		case time.Now().After(end):
			return wire.Response{}, cfs.E("wait for lock", cfs.Locked, nil)
		}
		select {
		case <-ctx.Done():
			return wire.Response{}, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// locks is what the state says of an inode.
func (b *bed) locks(i cfs.Ino, kind cfs.LockKind) []cfs.Lock {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	l := cfs.Lock{Kind: kind, Type: cfs.LockWrite, Owner: ^uint64(0), End: ^uint64(0), Session: b.sess}
	found, k, err := fsm.LocksAgainst(b.kv, i, l)
	if err != nil || k != cfs.KindOK {
		b.t.Errorf("locks: %v %v", k, err)
	}
	return found
}

func (b *bed) eventually(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("still not: %s", what)
		}
	}
}

func posix(owner uint64, typ cfs.LockType, start, end uint64) cfs.Lock {
	return cfs.Lock{Kind: cfs.LockPosix, Type: typ, Owner: owner, Start: start, End: end, PID: uint32(owner)}
}

func flock(owner uint64, typ cfs.LockType) cfs.Lock {
	return cfs.Lock{Kind: cfs.LockFlock, Type: typ, Owner: owner}
}

func TestLocksOfTwoClients(t *testing.T) {
	b := newBed(t, 3)
	one, two := b.mount(t), b.mount(t)
	a := mustCreate(t, one, "f")
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(one.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 9), false))
	if err := two.SetLock(ctx, a.Ino, posix(1, cfs.LockRead, 5, 5), false); !errors.Is(err, cfs.Locked) {
		t.Errorf("a lock in the way: %v", err)
	}
	found, err := two.GetLock(ctx, a.Ino, posix(1, cfs.LockRead, 5, 50))
	if err != nil || found.Type != cfs.LockWrite || found.Start != 0 || found.End != 9 || found.PID != 0 {
		t.Errorf("another client's lock: %+v, %v", found, err)
	}
	found, err = one.GetLock(ctx, a.Ino, posix(2, cfs.LockRead, 5, 50))
	if err != nil || found.PID != 1 {
		t.Errorf("a lock of the same client: %+v, %v", found, err)
	}
	if found, err = two.GetLock(ctx, a.Ino, posix(1, cfs.LockRead, 10, 50)); err != nil || found.Type != cfs.LockNone {
		t.Errorf("no lock: %+v, %v", found, err)
	}
	// A waits until the other unlocks; then it sees what was written under the lock.
	f, err := one.Open(ctx, a.Ino, unix.O_RDWR)
	must(err)
	g, err := two.Open(ctx, a.Ino, unix.O_RDONLY)
	must(err)
	if _, err := f.Write(ctx, []byte("under the lock"), 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- two.SetLock(ctx, a.Ino, posix(1, cfs.LockRead, 0, 99), true) }()
	b.eventually("a wait", func() bool { return b.lockWaits.Load() > 0 })
	must(one.SetLock(ctx, a.Ino, posix(1, cfs.LockNone, 0, 9), false))
	must(<-done)
	p := make([]byte, 20)
	if n, err := g.Read(ctx, p, 0); err != nil || string(p[:n]) != "under the lock" {
		t.Errorf("what the last holder wrote: %q, %v", p[:n], err)
	}
	must(f.Close(ctx))
	must(g.Close(ctx))
	// An owner goes with all it has; one that has nothing costs nothing.
	must(two.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 200, 299), false))
	must(two.ReleaseOwner(ctx, a.Ino, cfs.LockPosix, 1))
	if left := b.locks(a.Ino, cfs.LockPosix); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	var locks atomic.Int32
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Kind == cfs.OpLock {
			locks.Add(1)
		}
	})
	must(two.ReleaseOwner(ctx, a.Ino, cfs.LockPosix, 1))
	must(two.ReleaseOwner(ctx, a.Ino, cfs.LockFlock, 9))
	if n := locks.Load(); n != 0 {
		t.Errorf("owners without locks cost %d commands", n)
	}
	two.locks.mu.Lock()
	if n := len(two.locks.owners); n != 0 {
		t.Errorf("%d owners are remembered", n)
	}
	two.locks.mu.Unlock()
}

// Two who would both upgrade a shared flock get there one after the other.
func TestFlockUpgrades(t *testing.T) {
	b := newBed(t, 3)
	one, two := b.mount(t), b.mount(t)
	a := mustCreate(t, one, "f")
	ctx := t.Context()
	var tasks sync.WaitGroup
	for _, c := range []*Client{one, two} {
		if err := c.SetLock(ctx, a.Ino, flock(1, cfs.LockRead), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.SetLock(ctx, a.Ino, flock(1, cfs.LockWrite), false); !errors.Is(err, cfs.Locked) {
		t.Errorf("upgrade without waiting: %v", err)
	}
	if n := len(b.locks(a.Ino, cfs.LockFlock)); n != 2 {
		t.Errorf("a refused upgrade left %d locks, want 2", n)
	}
	for _, c := range []*Client{one, two} {
		tasks.Go(func() {
			err := c.SetLock(ctx, a.Ino, flock(1, cfs.LockWrite), true)
			if err == nil {
				err = c.SetLock(ctx, a.Ino, flock(1, cfs.LockNone), false)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	tasks.Wait()
}

// A wait that is given up leaves nothing, wherever it was.
func TestLockCancelled(t *testing.T) {
	b := newBed(t, 3)
	one, two := b.mount(t), b.mount(t)
	a := mustCreate(t, one, "f")
	if err := one.SetLock(t.Context(), a.Ino, posix(1, cfs.LockWrite, 0, 9), false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- two.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 5, 5), true) }()
	b.eventually("a wait", func() bool { return b.lockWaits.Load() > 0 })
	cancel()
	if err := <-done; !errors.Is(err, cfs.Canceled) {
		t.Errorf("a wait that was given up: %v", err)
	}
	b.eventually("no wait", func() bool { return b.lockWaits.Load() == 0 })

	// The command itself is given up while it is carried out: it is undone.
	held, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Kind == cfs.OpLock && cmd.Ops[0].Lock.Start == 50 {
			once.Do(func() { close(held); <-goOn })
		}
	})
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- two.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 50, 59), true) }()
	<-held
	cancel()
	if err := <-done; !errors.Is(err, cfs.Canceled) {
		t.Errorf("a command that was given up: %v", err)
	}
	// The owner's next command comes after all that.
	next := make(chan error, 1)
	go func() { next <- two.SetLock(t.Context(), a.Ino, posix(1, cfs.LockRead, 55, 70), false) }()
	close(goOn)
	if err := <-next; err != nil {
		t.Error(err)
	}
	for _, l := range b.locks(a.Ino, cfs.LockPosix) {
		if l.Start == 50 {
			t.Errorf("left: %+v", l)
		}
	}
}

func TestLockRefusalsEndTheWait(t *testing.T) {
	b := newBed(t, 3)
	one, two := b.mount(t), b.mount(t)
	a := mustCreate(t, one, "f")
	ctx := t.Context()
	if err := one.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 9), false); err != nil {
		t.Fatal(err)
	}
	hook(&b.waiting, func() error { return cfs.E("wait for lock", cfs.Deadlock, nil) })
	if err := two.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 9), true); !errors.Is(err, cfs.Deadlock) {
		t.Errorf("a deadlock: %v", err)
	}
	// A leader with no room for the wait does not end it.
	n := 0
	hook(&b.waiting, func() error {
		if n++; n < 3 {
			return cfs.E("wait for lock", cfs.Overloaded, nil)
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- two.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 9), true) }()
	b.eventually("a wait", func() bool { return b.lockWaits.Load() > 0 })
	if err := one.ReleaseOwner(ctx, a.Ino, cfs.LockPosix, 1); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("after Overloaded: %v", err)
	}
}

// More wait than the leader keeps waits of this client: all get the lock in the end, and
// commands go on meanwhile.
func TestManyLockWaits(t *testing.T) {
	b := newBed(t, 3)
	one, two := b.mount(t), b.mount(t)
	a := mustCreate(t, one, "f")
	ctx := t.Context()
	if err := one.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 9), false); err != nil {
		t.Fatal(err)
	}
	const waiters = 3 * maxLockWaits
	var tasks sync.WaitGroup
	for i := range waiters {
		tasks.Go(func() {
			owner := uint64(100 + i)
			if err := two.SetLock(ctx, a.Ino, posix(owner, cfs.LockRead, 0, 9), true); err != nil {
				t.Errorf("waiter %d: %v", i, err)
			}
			if err := two.ReleaseOwner(ctx, a.Ino, cfs.LockPosix, owner); err != nil {
				t.Errorf("waiter %d: %v", i, err)
			}
		})
	}
	b.eventually("all places taken", func() bool { return b.lockWaits.Load() == maxLockWaits })
	mustCreate(t, two, "meanwhile")
	if n := b.lockWaits.Load(); n > maxLockWaits {
		t.Errorf("%d waits at the leader, at most %d", n, maxLockWaits)
	}
	if err := one.SetLock(ctx, a.Ino, posix(1, cfs.LockNone, 0, 9), false); err != nil {
		t.Fatal(err)
	}
	tasks.Wait()
}

// Locks go with the session: its owner is told at the next lock, and each handle at the
// next write; then both work again.
func TestLocksLostWithSession(t *testing.T) {
	b := newBed(t, 3)
	one, two := b.mount(t), b.mount(t)
	a, other := mustCreate(t, one, "f"), mustCreate(t, one, "other")
	ctx := t.Context()
	f, err := one.Open(ctx, a.Ino, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close(ctx)
	g, err := one.Open(ctx, other.Ino, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	if err := one.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 9), false); err != nil {
		t.Fatal(err)
	}
	if err := one.SetLock(ctx, other.Ino, posix(1, cfs.LockWrite, 0, 9), false); err != nil {
		t.Fatal(err)
	}
	if err := one.SetLock(ctx, other.Ino, posix(1, cfs.LockNone, 0, 9), false); err != nil {
		t.Fatal(err)
	}
	old := one.session.Load()
	b.expire(old.id)
	if err := two.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 9), true); err != nil {
		t.Errorf("a lock of a session that is gone is in the way: %v", err)
	}
	b.eventually("a new session", func() bool { return one.session.Load() != old })
	b.eventually("the handle to know", func() bool { _, err := f.Write(ctx, []byte("x"), 0); return errors.Is(err, cfs.NoSession) })
	b.eventually("a write after it", func() bool { _, err := f.Write(ctx, []byte("x"), 0); return err == nil })
	if _, err := g.Write(ctx, []byte("x"), 0); err != nil {
		t.Errorf("a file without locks: %v", err)
	}
	if err := one.SetLock(ctx, other.Ino, posix(1, cfs.LockWrite, 0, 9), false); err != nil {
		t.Errorf("an owner that had no lock any more: %v", err)
	}
	if err := one.SetLock(ctx, a.Ino, posix(1, cfs.LockNone, 0, 3), false); cfs.Errno(err) != unix.EIO {
		t.Errorf("the owner's next lock: %v, want EIO", err)
	}
	if err := one.SetLock(ctx, a.Ino, posix(1, cfs.LockWrite, 0, 3), false); !errors.Is(err, cfs.Locked) {
		t.Errorf("and the one after it: %v, want Locked", err)
	}
}

// mustCreate makes an empty file.
func mustCreate(t testing.TB, c *Client, name string) cfs.Attr {
	t.Helper()
	a, err := c.Create(t.Context(), cfs.Cred{}, cfs.RootIno, name, cfs.ModeRegular|0o644, 0, "", true)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
