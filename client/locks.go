package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxLockWaits bounds the waits for locks that the leader keeps for this client: a
	// connection takes 128 requests at a time, and commands must never stand behind
	// waits. Whoever waits beyond it asks from time to time.
	maxLockWaits = 32
	// lockPause is between two attempts while the leader cannot say when to try again.
	lockPause = 100 * time.Millisecond
	// maxLockPause is the same for who has waited long.
	maxLockPause = time.Second
)

// lockKey names an owner of locks of one family on an inode.
type lockKey struct {
	ino   cfs.Ino
	kind  cfs.LockKind
	owner uint64
}

// lockTable is the owners that have locks, or are about to. It holds what the cluster
// has bounded (fsm.MaxLocks).
type lockTable struct {
	mu     sync.Mutex
	owners map[lockKey]*lockOwner
	waits  chan struct{} // waits at the leader
}

// lockOwner is an owner's part of the table. Its commands go one at a time (turn), so
// that one that was given up is done with before the next.
type lockOwner struct {
	lockKey
	turn turn

	// Guarded by lockTable.mu.
	refs    int
	session *session // that has the locks
	holds   bool
	// Every lock that it has lies in [start, end]: to unlock what is not locked does
	// no harm.
	start, end uint64
}

func newLockTable() lockTable {
	return lockTable{owners: map[lockKey]*lockOwner{}, waits: make(chan struct{}, maxLockWaits)}
}

// use finds an owner, or with make makes one; each use ends with leave.
func (t *lockTable) use(k lockKey, make bool) *lockOwner {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.owners[k]
	if o == nil {
		if !make {
			return nil
		}
		o = &lockOwner{lockKey: k, turn: newTurn()}
		t.owners[k] = o
	}
	o.refs++
	return o
}

func (t *lockTable) leave(o *lockOwner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o.refs--; o.refs == 0 && !o.holds {
		delete(t.owners, o.lockKey)
	}
}

// has reports that an owner may have locks, in a session that may not be there any more.
func (t *lockTable) has(o *lockOwner) (in *session, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return o.session, o.holds
}

// note records that a lock was set, or may have been.
func (t *lockTable) note(o *lockOwner, s *session, l *cfs.Lock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case l.Type != cfs.LockNone && !o.holds:
		o.session, o.holds, o.start, o.end = s, true, l.Start, l.End
	case l.Type != cfs.LockNone:
		o.start, o.end = min(o.start, l.Start), max(o.end, l.End)
	case !o.holds:
	case l.Start <= o.start && l.End >= o.end:
		o.holds = false
	case l.Start <= o.start && l.End >= o.start:
		o.start = l.End + 1
	case l.End >= o.end && l.Start <= o.end:
		o.end = l.Start - 1
	}
}

func (t *lockTable) forget(o *lockOwner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o.holds = false
}

// lostWith are the inodes on which owners have lost locks with a session.
func (t *lockTable) lostWith(s *session) (inodes []cfs.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, o := range t.owners {
		if o.holds && o.session == s {
			inodes = append(inodes, k.ino)
		}
	}
	return inodes
}

// SetLock sets a lock of l.Owner on an inode, or with LockNone unlocks. What is written
// to the inode is committed before, and what is known of it is as new as the lock: who
// gets a lock sees what its last holder wrote. Another's lock in the way is cfs.Locked;
// with wait it is waited for, until ctx ends, or cfs.Deadlock if that would be never.
// When ctx ends nothing is locked that was not, nor is it later.
//
// A waiting lock of flock(2) gives up the owner's own first, as Linux has it: two who
// would both upgrade do not wait for each other.
//
// An owner whose locks went with the session is told so once, by cfs.NoSession (EIO).
func (c *Client) SetLock(ctx context.Context, i cfs.Ino, l cfs.Lock, wait bool) error {
	if l.Kind == cfs.LockFlock {
		l.Start, l.End = 0, ^uint64(0)
	}
	o := c.locks.use(lockKey{i, l.Kind, l.Owner}, true)
	defer c.locks.leave(o)
	wait = wait && l.Type != cfs.LockNone
	for {
		err := c.lockOnce(ctx, o, l)
		if !wait || cfs.KindOf(err) != cfs.Locked {
			return err
		}
		if _, holds := c.locks.has(o); holds && l.Kind == cfs.LockFlock {
			none := l
			none.Type = cfs.LockNone
			if err := c.lockOnce(ctx, o, none); err != nil {
				return err
			}
			continue
		}
		if err := c.awaitLock(ctx, i, l); err != nil {
			return err
		}
	}
}

// ReleaseOwner removes all locks of an owner on an inode; it costs nothing for one
// that has none. It goes on when ctx ends.
func (c *Client) ReleaseOwner(ctx context.Context, i cfs.Ino, kind cfs.LockKind, owner uint64) error {
	o := c.locks.use(lockKey{i, kind, owner}, false)
	if o == nil {
		return nil
	}
	if err := c.ctx.Err(); err != nil {
		c.locks.leave(o)
		return cfs.E("unlock", cfs.Closed, err)
	}
	answer := make(chan error, 1)
	c.wg.Go(func() { // a process that is being killed waits for nothing, and keeps nothing
		defer c.locks.leave(o)
		answer <- c.lockOnce(c.ctx, o, cfs.Lock{Kind: kind, Owner: owner, End: ^uint64(0)})
	})
	select {
	case err := <-answer:
		if k := cfs.KindOf(err); k == cfs.NoSession || k == cfs.Stale { // the locks are gone
			return nil
		}
		return err
	case <-ctx.Done():
		return ctxError("unlock", ctx)
	}
}

// GetLock finds a lock that is in the way of l, of type LockNone if there is none. The
// process is told only of this client's own: another machine's numbers mean nothing here.
func (c *Client) GetLock(ctx context.Context, i cfs.Ino, l cfs.Lock) (cfs.Lock, error) {
	s := c.session.Load()
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryLock, Ino: i, Session: s.id, Lock: l})
	if err != nil {
		return cfs.Lock{}, err
	}
	if a.Lock.Session != s.id {
		a.Lock.PID = 0
	}
	return a.Lock, nil
}

// lockOnce is one attempt. The command goes on when ctx ends, since it may have been
// carried out; what it locked then is unlocked again.
func (c *Client) lockOnce(ctx context.Context, o *lockOwner, l cfs.Lock) error {
	if n := c.find(o.ino); n != nil {
		if err := n.flush(ctx); err != nil {
			return err
		}
	}
	if err := o.turn.take(ctx); err != nil {
		return err
	}
	if err := c.ctx.Err(); err != nil {
		o.turn.done()
		return cfs.E("lock", cfs.Closed, err)
	}
	c.locks.use(o.lockKey, true)
	answer := make(chan error)
	c.wg.Go(func() {
		defer c.locks.leave(o)
		defer o.turn.done()
		_, had := c.locks.has(o)
		err := c.carryLock(o, l)
		select {
		case answer <- err:
		case <-ctx.Done():
			c.undoLock(o, l, had, err)
		}
	})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctxError("lock", ctx)
	}
}

// undoLock takes back a lock that nobody waits for any more. An owner that had locks
// before may have had some of the same bytes: it keeps what it has got until it unlocks.
func (c *Client) undoLock(o *lockOwner, l cfs.Lock, had bool, err error) {
	if err != nil || l.Type == cfs.LockNone || had {
		return
	}
	l.Type = cfs.LockNone
	if err := c.carryLock(o, l); err != nil {
		c.log.Warn("a lock that was given up is not unlocked: it goes with its owner", "ino", uint64(o.ino), "err", err)
	}
}

// carryLock has a lock set or removed, and tells an owner of locks that are lost.
func (c *Client) carryLock(o *lockOwner, l cfs.Lock) error {
	for {
		s := c.session.Load()
		in, holds := c.locks.has(o)
		switch {
		case holds && in != s:
			c.locks.forget(o)
			return cfs.Errorf("lock", cfs.NoSession, "the locks of this owner went with session %d", in.id)
		case !holds && l.Type == cfs.LockNone:
			return nil
		}
		_, _, err := c.doIn(c.ctx, s, cfs.Cred{}, []cfs.Op{{Kind: cfs.OpLock, Ino: o.ino, Lock: l}})
		if errors.Is(err, cfs.NoSession) && c.session.Load() != s {
			continue // whatever it did has gone with the session
		}
		switch cfs.KindOf(err) {
		case cfs.KindOK:
			c.locks.note(o, s, &l)
		case cfs.Timeout, cfs.Closed, cfs.Canceled, cfs.Unavailable:
			if l.Type != cfs.LockNone {
				c.locks.note(o, s, &l) // it may have been carried out
			}
		}
		if c.session.Load() != s {
			c.locksLost(s)
		}
		return err
	}
}

// locksLost has the handles of files tell that locks on them went with a session: what
// is written from now on would be written without them.
func (c *Client) locksLost(s *session) {
	for _, i := range c.locks.lostWith(s) {
		n := c.find(i)
		if n == nil {
			continue
		}
		n.mu.Lock()
		n.leaveLocked(func(*chunk) bool { return false }, cfs.Errorf("lock", cfs.NoSession, "locks went with session %d", s.id))
		n.mu.Unlock()
	}
}

// awaitLock returns when a lock may be free.
func (c *Client) awaitLock(ctx context.Context, i cfs.Ino, l cfs.Lock) error {
	select {
	case c.locks.waits <- struct{}{}:
		defer func() { <-c.locks.waits }()
	default:
		return c.pollLock(ctx, i, l)
	}
	for {
		addr := *c.leader.Load()
		attempt, cancel := context.WithTimeout(ctx, metaAttempt)
		req := &wirepb.WaitLock{Session: uint64(c.session.Load().id), Ino: uint64(i), Lock: wire.LockToPB(l)}
		_, err := c.meta.Call(attempt, addr, wire.OpWaitLock, req, nil, &wirepb.Empty{}, nil)
		cancel()
		if ctx.Err() != nil {
			return ctxError("lock", ctx)
		}
		switch cfs.KindOf(err) {
		case cfs.KindOK, cfs.NoSession: // the next attempt says what is to be done about a session
			return nil
		case cfs.Locked:
			continue
		case cfs.Deadlock, cfs.Stale, cfs.Invalid, cfs.BadRequest, cfs.Unsupported, cfs.WrongCluster:
			return err
		case cfs.NotLeader:
			c.follow(addr, err)
		}
		return c.pauseLock(ctx, lockPause) // the next attempt finds the leader
	}
}

// pollLock is awaitLock without a place at the leader. A deadlock is not found so: it
// is where one of those who wait for each other has a place.
func (c *Client) pollLock(ctx context.Context, i cfs.Ino, l cfs.Lock) error {
	for pause := lockPause; ; pause = min(2*pause, maxLockPause) {
		if err := c.pauseLock(ctx, pause); err != nil {
			return err
		}
		found, err := c.GetLock(ctx, i, l)
		if err != nil || found.Type == cfs.LockNone {
			return err
		}
	}
}

func (c *Client) pauseLock(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctxError("lock", ctx)
	case <-c.ctx.Done():
		return cfs.E("lock", cfs.Closed, nil)
	case <-timer.C:
		return nil
	}
}
