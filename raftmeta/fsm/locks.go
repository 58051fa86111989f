package fsm

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of locks; as those of machine.go, they are part of the replicated behaviour.
const (
	// MaxInodeLocks bounds the locks of one family that an inode has: each lock is
	// compared with all of them.
	MaxInodeLocks = 4096
	// MaxLocks bounds the locks of the whole namespace.
	MaxLocks = 1 << 20
	// locksAtOnce is the number of locks that the end of a session or inode removes
	// itself before it leaves the rest to OpReap.
	locksAtOnce = 64
	// wholeFile is the last byte of a lock without end.
	wholeFile = ^uint64(0)
)

// What a row of the queue names: a session or an inode that is gone.
const (
	locksOfSession = 1
	locksOfInode   = 2
)

const (
	lockKeyBytes      = 34
	lockQueueKeyBytes = 10
)

// lockKey is the row of a lock: those of an inode and family lie together, of these
// those of an owner, by their start.
func lockKey(i cfs.Ino, l *cfs.Lock) []byte {
	k := make([]byte, 1, lockKeyBytes)
	k[0] = prefixLock
	k = append(binary.BigEndian.AppendUint64(k, uint64(i)), byte(l.Kind))
	k = binary.BigEndian.AppendUint64(k, uint64(l.Session))
	k = binary.BigEndian.AppendUint64(k, l.Owner)
	return binary.BigEndian.AppendUint64(k, l.Start)
}

// lockOfKey is the inverse of lockKey; the value has the rest.
func lockOfKey(k []byte) (i cfs.Ino, l cfs.Lock) {
	i = cfs.Ino(binary.BigEndian.Uint64(k[1:]))
	l.Kind = cfs.LockKind(k[9])
	l.Session = cfs.SessionID(binary.BigEndian.Uint64(k[10:]))
	l.Owner = binary.BigEndian.Uint64(k[18:])
	l.Start = binary.BigEndian.Uint64(k[26:])
	return i, l
}

// lockedByKey is the same lock in its session's list.
func lockedByKey(i cfs.Ino, l *cfs.Lock) []byte {
	k := make([]byte, 1, lockKeyBytes)
	k[0] = prefixLockedBy
	k = binary.BigEndian.AppendUint64(k, uint64(l.Session))
	k = append(binary.BigEndian.AppendUint64(k, uint64(i)), byte(l.Kind))
	k = binary.BigEndian.AppendUint64(k, l.Owner)
	return binary.BigEndian.AppendUint64(k, l.Start)
}

func lockOfListKey(k []byte) (i cfs.Ino, l cfs.Lock) {
	l.Session = cfs.SessionID(binary.BigEndian.Uint64(k[1:]))
	i = cfs.Ino(binary.BigEndian.Uint64(k[9:]))
	l.Kind = cfs.LockKind(k[17])
	l.Owner = binary.BigEndian.Uint64(k[18:])
	l.Start = binary.BigEndian.Uint64(k[26:])
	return i, l
}

func lockQueueKey(what byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixLockQueue, what}, id)
}

// locked is the value of a lock's row.
type locked struct {
	end uint64
	typ cfs.LockType
	pid uint32
}

func encodeLocked(l locked) []byte {
	e := newEnc(13)
	e.u8(uint8(l.typ))
	e.u64(l.end)
	e.u32(l.pid)
	return e.b
}

func decodeLocked(b []byte) (locked, bool) {
	d := newDec(b)
	l := locked{typ: cfs.LockType(d.u8()), end: d.u64(), pid: d.u32()}
	return l, d.ok() && (l.typ == cfs.LockRead || l.typ == cfs.LockWrite)
}

// decodeLock is the lock of a row.
func decodeLock(k, v []byte) (i cfs.Ino, l cfs.Lock, ok bool) {
	if len(k) != lockKeyBytes {
		return 0, l, false
	}
	val, ok := decodeLocked(v)
	i, l = lockOfKey(k)
	l.Type, l.End, l.PID = val.typ, val.end, val.pid
	return i, l, ok && l.Start <= l.End && l.Kind >= cfs.LockPosix && l.Kind <= cfs.LockFlock
}

func (t *tx) putLock(i cfs.Ino, l *cfs.Lock) {
	t.set(lockKey(i, l), encodeLocked(locked{typ: l.Type, end: l.End, pid: l.PID}))
	t.set(lockedByKey(i, l), []byte{recordVersion})
}

func (t *tx) delLock(i cfs.Ino, l *cfs.Lock) {
	t.del(lockKey(i, l))
	t.del(lockedByKey(i, l))
}

// setLock sets a lock of the session or, with LockNone, unlocks. What the owner had
// of the range is replaced: cut at its ends, and joined with what is of the same type
// beside it, as fcntl(2) has it. A lock of flock(2) is one of the whole file, so that
// another type replaces it. The result has the inode: a lock is where a program looks
// at what others have done.
func (t *tx) setLock(op *cfs.Op, res *cfs.Result) cfs.Kind {
	l := op.Lock
	l.Session = t.sess
	if k := completeLock(&l); k != cfs.KindOK {
		return k
	}
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	res.Attr = n.Attr
	live := t.liveLocks(op.Ino, l.Kind)
	var old, now []cfs.Lock
	whole := l
	for i := range live {
		switch o := &live[i]; {
		case !sameOwner(o, &l):
			if bars(o, &l) {
				return cfs.Locked
			}
		case o.Type == l.Type && (meets(o, &l) || beside(o, &l)):
			whole.Start, whole.End = min(whole.Start, o.Start), max(whole.End, o.End)
			old = append(old, *o)
		case meets(o, &l):
			old = append(old, *o)
			now = append(now, cut(*o, &l)...)
		}
	}
	if l.Type != cfs.LockNone {
		now = append(now, whole)
	}
	more := len(now) - len(old)
	if more > 0 && (len(live)+more > MaxInodeLocks || t.mark(markLocks)+uint64(more) > MaxLocks) {
		return cfs.TooManyLocks
	}
	for i := range old {
		t.delLock(op.Ino, &old[i])
	}
	for i := range now {
		t.putLock(op.Ino, &now[i])
	}
	if more != 0 {
		t.addMark(markLocks, uint64(more))
	}
	return cfs.KindOK
}

// completeLock checks a lock that is asked for, and makes one of flock(2) the whole file's.
func completeLock(l *cfs.Lock) cfs.Kind {
	switch {
	case l.Kind != cfs.LockPosix && l.Kind != cfs.LockFlock, l.Type > cfs.LockWrite, l.Start > l.End:
		return cfs.Invalid
	case l.Kind == cfs.LockFlock:
		l.Start, l.End = 0, wholeFile
	}
	return cfs.KindOK
}

func sameOwner(a, b *cfs.Lock) bool { return a.Session == b.Session && a.Owner == b.Owner }

func meets(a, b *cfs.Lock) bool { return a.Start <= b.End && b.Start <= a.End }

// beside reports that one ends where the other begins.
func beside(a, b *cfs.Lock) bool {
	return a.End != wholeFile && a.End+1 == b.Start || b.End != wholeFile && b.End+1 == a.Start
}

// bars reports that another owner's lock is in the way of l.
func bars(o, l *cfs.Lock) bool {
	return l.Type != cfs.LockNone && meets(o, l) && (o.Type == cfs.LockWrite || l.Type == cfs.LockWrite)
}

// cut is what is left of o without the range of l.
func cut(o cfs.Lock, l *cfs.Lock) (left []cfs.Lock) {
	if o.Start < l.Start {
		before := o
		before.End = l.Start - 1
		left = append(left, before)
	}
	if o.End > l.End {
		o.Start = l.End + 1
		left = append(left, o)
	}
	return left
}

// liveLocks are an inode's locks of a family, in the order of their keys. One whose
// session is gone is none, though its row may not have been removed yet.
func (t *tx) liveLocks(i cfs.Ino, kind cfs.LockKind) (live []cfs.Lock) {
	prefix := append(key1(prefixLock, uint64(i)), byte(kind))
	t.scan(prefix, after(prefix), func(k, v []byte) bool {
		_, l, ok := decodeLock(k, v)
		if !ok {
			t.corrupt(k)
			return false
		}
		live = append(live, l)
		return true
	})
	var of cfs.SessionID
	open := false
	return slices.DeleteFunc(live, func(l cfs.Lock) bool {
		if l.Session != of {
			of = l.Session
			_, open = t.get(sessionKey(of))
		}
		return !open
	})
}

// against are the locks of other owners that are in the way of l, by their start.
func (t *tx) against(i cfs.Ino, l *cfs.Lock) []cfs.Lock {
	live := slices.DeleteFunc(t.liveLocks(i, l.Kind), func(o cfs.Lock) bool { return sameOwner(&o, l) || !bars(&o, l) })
	slices.SortStableFunc(live, func(a, b cfs.Lock) int { return cmp.Compare(a.Start, b.Start) })
	return live
}

// LocksAgainst are the locks that are in the way of l, which would be its session's.
// The kind says why that session cannot have it at all: NoSession, Stale or Invalid.
func LocksAgainst(r Reader, i cfs.Ino, l cfs.Lock) ([]cfs.Lock, cfs.Kind, error) {
	t := &tx{kv: r}
	if k := completeLock(&l); k != cfs.KindOK {
		return nil, k, nil
	}
	if _, ok := t.get(sessionKey(l.Session)); !ok {
		return nil, cfs.NoSession, t.err
	}
	if _, ok := t.inode(i); !ok {
		return nil, cfs.Stale, t.err
	}
	found := t.against(i, &l)
	return found, cfs.KindOK, t.err
}

// queryLock finds the first lock that is in the way.
func (t *tx) queryLock(q *cfs.Query, a *cfs.Answer) cfs.Kind {
	l := q.Lock
	l.Session = q.Session
	if k := completeLock(&l); k != cfs.KindOK {
		return k
	}
	if _, ok := t.inode(q.Ino); !ok {
		return cfs.Stale
	}
	if found := t.against(q.Ino, &l); len(found) > 0 {
		a.Lock = found[0]
	}
	return cfs.KindOK
}

// endLocks removes the locks of a session or inode that is gone, or leaves many to
// OpReap: they count for nobody from now on, and neither number comes again.
func (t *tx) endLocks(what byte, id uint64) {
	if t.mark(markLocks) == 0 {
		return
	}
	if !t.dropLocks(what, id, locksAtOnce) {
		t.set(lockQueueKey(what, id), []byte{recordVersion})
	}
}

// dropLocks removes up to limit locks of a session or inode, and says whether none is left.
func (t *tx) dropLocks(what byte, id uint64, limit int) (all bool) {
	p, of := byte(prefixLock), lockOfKey
	if what == locksOfSession {
		p, of = prefixLockedBy, lockOfListKey
	}
	type row struct {
		ino  cfs.Ino
		lock cfs.Lock
	}
	var rows []row
	all = true
	prefix := key1(p, id)
	t.scan(prefix, after(prefix), func(k, _ []byte) bool {
		if len(k) != lockKeyBytes {
			t.corrupt(k)
			return false
		}
		if all = len(rows) < limit; !all {
			return false
		}
		i, l := of(k)
		rows = append(rows, row{i, l})
		return true
	})
	for i := range rows {
		t.delLock(rows[i].ino, &rows[i].lock)
	}
	if len(rows) > 0 {
		t.addMark(markLocks, -uint64(len(rows)))
	}
	t.reaped += len(rows)
	return all
}

// reapLocks goes on with what endLocks has left.
func (t *tx) reapLocks() {
	queue, _ := t.take([]byte{prefixLockQueue}, []byte{prefixLockQueue + 1}, reapLooks)
	for _, k := range queue {
		if len(k) != lockQueueKeyBytes {
			t.corrupt(k)
			return
		}
		if !t.dropLocks(k[1], binary.BigEndian.Uint64(k[2:]), t.reapable()) {
			return
		}
		t.del(k)
	}
}

// locks checks the rows of locks, in both orders, and those of the queue.
func (c *checker) locks() {
	var last cfs.Lock
	var lastIno cfs.Ino
	c.each(prefixLock, func(k, v []byte) {
		i, l, ok := decodeLock(k, v)
		if !ok {
			c.bad("lock record %x", k)
			return
		}
		c.lockRows++
		if c.sessions[l.Session] == nil && !c.has(lockQueueKey(locksOfSession, uint64(l.Session))) {
			c.bad("lock of inode %d by session %d, which is gone", i, l.Session)
		}
		if !c.has(inodeKey(i)) && !c.has(lockQueueKey(locksOfInode, uint64(i))) {
			c.bad("lock by session %d of inode %d, which is gone", l.Session, i)
		}
		if !c.has(lockedByKey(i, &l)) {
			c.bad("lock of inode %d by session %d is not in the session's list", i, l.Session)
		}
		if i == lastIno && l.Kind == last.Kind && sameOwner(&l, &last) && (meets(&l, &last) || l.Type == last.Type && beside(&l, &last)) {
			c.bad("locks of inode %d by session %d meet at %d", i, l.Session, l.Start)
		}
		last, lastIno = l, i
	})
	c.sized(prefixLockedBy, lockKeyBytes, func(k, _ []byte) {
		if i, l := lockOfListKey(k); !c.has(lockKey(i, &l)) {
			c.bad("session %d lists a lock of inode %d, which it has not", l.Session, i)
		}
	})
	c.sized(prefixLockQueue, lockQueueKeyBytes, func(k, _ []byte) {
		id := u64of(k[2:])
		gone := k[1] == locksOfSession && c.sessions[cfs.SessionID(id)] == nil || k[1] == locksOfInode && !c.has(inodeKey(cfs.Ino(id)))
		if !gone {
			c.bad("locks of %x are to be removed, which is not gone", k)
		}
	})
}
