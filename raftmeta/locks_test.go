package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// locker is a session that locks whole bytes of a file.
type locker struct {
	c   *cluster
	id  cfs.SessionID
	ino cfs.Ino
	seq uint64
}

func posix(owner uint64, t cfs.LockType, at uint64) cfs.Lock {
	return cfs.Lock{Kind: cfs.LockPosix, Type: t, Owner: owner, Start: at, End: at}
}

// set sets or removes a lock.
func (l *locker) set(lock cfs.Lock) cfs.Kind {
	l.c.t.Helper()
	l.seq++
	r, err := l.c.command(&cfs.Command{Session: l.id, Seq: l.seq, LowWater: l.seq, Ops: []cfs.Op{{Kind: cfs.OpLock, Ino: l.ino, Lock: lock}}})
	if err != nil {
		l.c.t.Fatalf("lock: %v", err)
	}
	return r.Kind
}

func (l *locker) must(lock cfs.Lock) {
	l.c.t.Helper()
	if k := l.set(lock); k != cfs.KindOK {
		l.c.t.Fatalf("lock %+v: %v", lock, k)
	}
}

// wait is one OpWaitLock, at the leader.
func (l *locker) wait(ctx context.Context, lock cfs.Lock) error {
	req := &wirepb.WaitLock{Session: uint64(l.id), Ino: uint64(l.ino), Lock: wire.LockToPB(lock)}
	_, err := l.c.pool.Call(ctx, l.c.leader().addr, wire.OpWaitLock, req, nil, &wirepb.Empty{}, nil)
	return err
}

// acquire waits and locks until it has the lock or cannot get it.
func (l *locker) acquire(ctx context.Context, lock cfs.Lock) error {
	for {
		if k := l.set(lock); k != cfs.Locked {
			if k == cfs.KindOK {
				return nil
			}
			return k
		}
		for err := error(cfs.Locked); errors.Is(err, cfs.Locked); {
			if err = l.wait(ctx, lock); err != nil && !errors.Is(err, cfs.Locked) {
				return err
			}
		}
	}
}

// lockers are sessions on one file.
func lockers(c *cluster, n int) []*locker {
	c.t.Helper()
	var all []*locker
	for range n {
		all = append(all, &locker{c: c, id: c.session()})
	}
	first := all[0]
	first.seq++
	r, err := c.command(create(first.id, first.seq, "locked"))
	if err != nil || r.Kind != cfs.KindOK {
		c.t.Fatalf("create: %v %+v", err, r)
	}
	for _, l := range all {
		l.ino = r.Results[0].Attr.Ino
	}
	return all
}

// waiting is how many waits the leader has.
func (c *cluster) waiting() int {
	d := c.leader().node.duties.Load()
	if d == nil {
		return 0
	}
	d.waits.mu.Lock()
	defer d.waits.mu.Unlock()
	return d.waits.count
}

func TestLockWaitWakes(t *testing.T) {
	c := newCluster(t, 3, nil)
	all := lockers(c, 3)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := all[1].wait(ctx, posix(1, cfs.LockWrite, 0)); err != nil {
		t.Errorf("a wait for a free lock: %v", err)
	}
	all[0].must(posix(1, cfs.LockWrite, 0))
	if err := all[1].wait(ctx, posix(1, cfs.LockWrite, 0)); !errors.Is(err, cfs.Locked) {
		t.Errorf("a wait without news: %v, want Locked", err)
	}
	c.leader().node.duties.Load().waits.keep = time.Hour // a wake alone ends a wait
	done := make(chan error, 2)
	go func() { done <- all[1].acquire(ctx, posix(1, cfs.LockRead, 0)) }()
	go func() { done <- all[2].acquire(ctx, posix(1, cfs.LockRead, 0)) }()
	c.wait("both to wait", func() bool { return c.waiting() == 2 })
	all[0].must(posix(1, cfs.LockNone, 0))
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := (&locker{c: c, id: 999, ino: all[0].ino}).wait(ctx, posix(1, cfs.LockWrite, 0)); !errors.Is(err, cfs.NoSession) {
		t.Errorf("a wait of no session: %v", err)
	}
	c.converge()
}

// A cancelled wait ends at once, at the leader too.
func TestLockWaitCancelled(t *testing.T) {
	c := newCluster(t, 1, nil)
	all := lockers(c, 2)
	all[0].must(posix(1, cfs.LockWrite, 0))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		err := error(cfs.Locked)
		for errors.Is(err, cfs.Locked) {
			err = all[1].wait(ctx, posix(1, cfs.LockWrite, 0))
		}
		done <- err
	}()
	c.wait("the wait", func() bool { return c.waiting() == 1 })
	cancel()
	if err := <-done; cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("a cancelled wait: %v", err)
	}
	c.wait("no wait", func() bool { return c.waiting() == 0 })
}

// Circles of two and of three, closed by any of them, are refused to the last; flock
// waits are not looked at; after the refusal the others go on.
func TestLockDeadlock(t *testing.T) {
	for _, n := range []int{2, 3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCluster(t, 1, nil)
			all := lockers(c, n)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for i, l := range all {
				l.must(posix(7, cfs.LockWrite, uint64(i)))
			}
			// Each waits for the next one's byte; all at once, so that any may be the last.
			var mu sync.Mutex
			refused := 0
			var tasks sync.WaitGroup
			for i, l := range all {
				tasks.Go(func() {
					err := l.acquire(ctx, posix(7, cfs.LockWrite, uint64((i+1)%n)))
					if errors.Is(err, cfs.Deadlock) {
						mu.Lock()
						refused++
						mu.Unlock()
					} else if err != nil {
						t.Errorf("locker %d: %v", i, err)
					}
					l.must(cfs.Lock{Kind: cfs.LockPosix, Owner: 7, End: ^uint64(0)})
				})
			}
			tasks.Wait()
			if refused != 1 {
				t.Errorf("%d of %d waits were refused, want 1", refused, n)
			}
		})
	}
}

func TestNoFalseDeadlock(t *testing.T) {
	c := newCluster(t, 1, nil)
	all := lockers(c, 2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// The same two bytes crosswise, but by other owners of the same sessions; and by flock.
	all[0].must(posix(1, cfs.LockWrite, 0))
	all[1].must(posix(1, cfs.LockWrite, 1))
	done := make(chan error, 1)
	go func() { done <- all[0].acquire(ctx, posix(2, cfs.LockWrite, 1)) }()
	c.wait("the first wait", func() bool { return c.waiting() == 1 })
	if err := all[1].wait(ctx, posix(2, cfs.LockWrite, 0)); !errors.Is(err, cfs.Locked) {
		t.Errorf("no circle, but: %v", err)
	}
	all[1].must(posix(1, cfs.LockNone, 1))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A session's end wakes who waits for its locks.
func TestLockWaitSessionEnds(t *testing.T) {
	c := newCluster(t, 3, nil)
	all := lockers(c, 2)
	all[0].must(posix(1, cfs.LockWrite, 0))
	c.leader().node.duties.Load().waits.keep = time.Hour // a wake alone ends a wait
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- all[1].acquire(ctx, posix(1, cfs.LockWrite, 0)) }()
	c.wait("the wait", func() bool { return c.waiting() == 1 })
	c.leader().node.expire(t, all[0].id) // as silence does (TestSessionsExpire), but when it is waited for
	if err := <-done; err != nil {
		t.Errorf("after the end of the other session: %v", err)
	}
}

// Locks outlive the leader; a wait at one that no longer leads says so.
func TestLocksThroughFailover(t *testing.T) {
	c := newCluster(t, 3, nil)
	all := lockers(c, 2)
	all[0].must(posix(1, cfs.LockWrite, 0))
	old := c.leader()
	ended := make(chan error, 1)
	go func() {
		err := error(cfs.Locked)
		for errors.Is(err, cfs.Locked) {
			req := &wirepb.WaitLock{Session: uint64(all[1].id), Ino: uint64(all[1].ino), Lock: wire.LockToPB(posix(1, cfs.LockWrite, 0))}
			_, err = c.pool.Call(t.Context(), old.addr, wire.OpWaitLock, req, nil, &wirepb.Empty{}, nil)
		}
		ended <- err
	}()
	c.wait("the wait", func() bool { return c.waiting() == 1 })
	if err := old.node.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, cfs.NotLeader) && !errors.Is(err, cfs.Unavailable) {
		t.Errorf("a wait at the old leader: %v", err)
	}
	c.close(old)
	if k := all[1].set(posix(1, cfs.LockWrite, 0)); k != cfs.Locked {
		t.Errorf("at the new leader: %v, want locked", k)
	}
	all[0].must(posix(1, cfs.LockNone, 0))
	all[1].must(posix(1, cfs.LockWrite, 0))
}

// TestBoundedLockWaits: one wait more than there may be is Overloaded.
func TestBoundedLockWaits(t *testing.T) {
	c := newCluster(t, 1, nil)
	all := lockers(c, 2)
	all[0].must(posix(1, cfs.LockWrite, 0))
	c.wait("duties", func() bool { return c.leader().node.duties.Load() != nil })
	w := c.leader().node.duties.Load().waits
	w.mu.Lock()
	w.count += maxLockWaits
	w.mu.Unlock()
	if err := all[1].wait(t.Context(), posix(1, cfs.LockWrite, 0)); !errors.Is(err, cfs.Overloaded) {
		t.Errorf("one wait too many: %v", err)
	}
	w.mu.Lock()
	w.count -= maxLockWaits
	w.mu.Unlock()
	if err := all[1].wait(t.Context(), posix(1, cfs.LockWrite, 0)); !errors.Is(err, cfs.Locked) {
		t.Errorf("with room: %v", err)
	}
}
