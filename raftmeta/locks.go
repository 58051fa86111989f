package raftmeta

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxLockWaits bounds the waits for locks at a leader.
	maxLockWaits = 4096
	// lockWaitTime is how long a wait is kept without news: the client asks again, so
	// that what a leader knows of waits that are over goes by itself.
	lockWaitTime = time.Second
	// maxDeadlockOwners bounds the owners that a search for a circle of waits visits.
	maxDeadlockOwners = 64
)

// lockWaits are the waits for locks at this leader. They are soft state: a client
// that waits asks again when its wait ends, at this leader or another.
//
// A wait is entered before the state is looked at, and whoever applies a change of
// locks wakes the waits of the inode after it is in the state: no change goes
// unnoticed. Waits are judged one at a time (turn), so that of those that together
// close a circle the last sees the others.
type lockWaits struct {
	keep time.Duration // lockWaitTime, but in tests
	turn chan struct{} // room for one: whoever judges a wait

	// mu guards the maps. The loop takes it, so it is held for moments only; nothing
	// is taken under it.
	mu     sync.Mutex
	count  int
	inodes map[cfs.Ino]map[*lockWait]struct{}
	owners map[lockOwner]map[*lockWait]struct{} // of fcntl locks
}

// lockOwner is who waits for a lock, or has one.
type lockOwner struct {
	session cfs.SessionID
	owner   uint64
}

func ownerOf(l *cfs.Lock) lockOwner { return lockOwner{l.Session, l.Owner} }

// lockWait is one wait: a lock that its session would have.
type lockWait struct {
	ino  cfs.Ino
	lock cfs.Lock
	wake chan struct{} // room for one
}

func newLockWaits() *lockWaits {
	return &lockWaits{keep: lockWaitTime, turn: make(chan struct{}, 1), inodes: map[cfs.Ino]map[*lockWait]struct{}{}, owners: map[lockOwner]map[*lockWait]struct{}{}}
}

// enter adds a wait; false when there are too many.
func (w *lockWaits) enter(e *lockWait) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count >= maxLockWaits {
		return false
	}
	w.count++
	enterIn(w.inodes, e.ino, e)
	if e.lock.Kind == cfs.LockPosix {
		enterIn(w.owners, ownerOf(&e.lock), e)
	}
	return true
}

// leave removes a wait.
func (w *lockWaits) leave(e *lockWait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count--
	leaveFrom(w.inodes, e.ino, e)
	leaveFrom(w.owners, ownerOf(&e.lock), e)
}

func enterIn[K comparable](m map[K]map[*lockWait]struct{}, k K, e *lockWait) {
	if m[k] == nil {
		m[k] = map[*lockWait]struct{}{}
	}
	m[k][e] = struct{}{}
}

func leaveFrom[K comparable](m map[K]map[*lockWait]struct{}, k K, e *lockWait) {
	if delete(m[k], e); len(m[k]) == 0 {
		delete(m, k)
	}
}

// changed wakes who waits for locks of the inodes, and everybody when sessions have ended.
func (w *lockWaits) changed(inodes []cfs.Ino, all bool) {
	if len(inodes) == 0 && !all {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count == 0 {
		return
	}
	wake := func(set map[*lockWait]struct{}) {
		for e := range set {
			select {
			case e.wake <- struct{}{}:
			default:
			}
		}
	}
	if all {
		for _, set := range w.inodes {
			wake(set)
		}
		return
	}
	for _, i := range inodes {
		wake(w.inodes[i])
	}
}

// of are the waits of an owner of fcntl locks.
func (w *lockWaits) of(o lockOwner) []*lockWait {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.owners[o]))
}

// judge says what becomes of a wait that has been entered: nil, the lock may be free;
// Locked, it has to wait; Deadlock, it would wait for itself.
func (w *lockWaits) judge(v fsm.Reader, e *lockWait) error {
	const op = "wait for lock"
	against, kind, err := fsm.LocksAgainst(v, e.ino, e.lock)
	switch {
	case err != nil:
		return cfs.E(op, cfs.KindOf(err), err)
	case kind != cfs.KindOK:
		return cfs.E(op, kind, nil)
	case len(against) == 0:
		return nil
	case e.lock.Kind != cfs.LockPosix:
		return cfs.E(op, cfs.Locked, nil)
	}
	me := ownerOf(&e.lock)
	seen := map[lockOwner]bool{}
	var next []lockOwner
	follow := func(locks []cfs.Lock) (circle bool) {
		for i := range locks {
			o := ownerOf(&locks[i])
			if o == me {
				return true
			}
			if !seen[o] && len(seen) < maxDeadlockOwners {
				seen[o] = true
				next = append(next, o)
			}
		}
		return false
	}
	follow(against) // its own locks are not in its way
	for len(next) > 0 {
		o := next[0]
		next = next[1:]
		for _, other := range w.of(o) {
			// One that waits for nothing any more is about to have its lock. A session
			// or inode that is gone waits for nothing either.
			theirs, _, err := fsm.LocksAgainst(v, other.ino, other.lock)
			if err != nil {
				return cfs.E(op, cfs.KindOf(err), err)
			}
			if follow(theirs) {
				return cfs.E(op, cfs.Deadlock, nil)
			}
		}
	}
	return cfs.E(op, cfs.Locked, nil)
}

// serveWaitLock waits until a lock may be free (no error), or for lockWaitTime (Locked).
func (n *Node) serveWaitLock(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var m wirepb.WaitLock
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	lock, err := wire.LockFromPB(m.Lock)
	if err != nil {
		return wire.Response{}, err
	}
	lock.Session = cfs.SessionID(m.Session)
	d := n.duties.Load()
	if d == nil {
		return wire.Response{}, n.notLeader("wait for lock")
	}
	e := &lockWait{ino: cfs.Ino(m.Ino), lock: lock, wake: make(chan struct{}, 1)}
	return wire.Response{Body: &wirepb.Empty{}}, n.waitLock(ctx, d, e)
}

func (n *Node) waitLock(ctx context.Context, d *duties, e *lockWait) error {
	const op = "wait for lock"
	timer := time.NewTimer(d.waits.keep)
	defer timer.Stop()
	var last error
	for {
		entered, err := n.judgeLock(ctx, d.waits, e)
		if !entered {
			return err
		}
		last = err
		select {
		case <-e.wake:
			d.waits.leave(e)
			continue
		case <-timer.C:
		case <-d.ended:
			last = n.notLeader(op)
		case <-n.done:
			last = n.unavailable(op)
		case <-ctx.Done():
			last = cfs.E(op, contextKind(ctx), ctx.Err())
		}
		d.waits.leave(e)
		return last
	}
}

// judgeLock enters a wait and judges it by a state that is not older than the call. The wait
// stays entered only where it is Locked.
func (n *Node) judgeLock(ctx context.Context, w *lockWaits, e *lockWait) (entered bool, err error) {
	const op = "wait for lock"
	if err := n.confirm(ctx, op); err != nil {
		return false, err
	}
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return false, cfs.E(op, contextKind(ctx), ctx.Err())
	}
	defer func() { <-w.turn }()
	if !w.enter(e) {
		return false, cfs.Errorf(op, cfs.Overloaded, "%d wait for locks", maxLockWaits)
	}
	var judged error
	err = n.state.view(func(v kv.View) error {
		judged = w.judge(v, e)
		return nil
	})
	if errors.Is(err, cfs.Closed) {
		err = n.unavailable(op)
	}
	if err == nil {
		err = judged
	}
	if cfs.KindOf(err) == cfs.Locked {
		return true, err
	}
	w.leave(e)
	return false, err
}
