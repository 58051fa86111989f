package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// What a command deletes is bounded; OpReap does the rest. There are three queues: of the
// rows of inodes (Q), of locks (l) and of what else sessions leave (q).
const (
	// maxReaped bounds the rows that a command deletes of what nobody can see any more.
	maxReaped = cfs.MaxCommandExtents
	// xattrMap is the place of an inode's extended attributes in the queue: maps of extents begin at 1.
	xattrMap = 0
	// reapLooks bounds the places of a queue that one OpReap looks at.
	reapLooks = 64
)

// reapable is how many rows the command may still delete.
func (t *tx) reapable() int { return max(0, maxReaped-t.reaped) }

// take lists the first keys of [lo, hi), at most limit; all says that these are all.
func (t *tx) take(lo, hi []byte, limit int) (keys [][]byte, all bool) {
	all = true
	t.scan(lo, hi, func(k, _ []byte) bool {
		if len(keys) == limit {
			all = false
			return false
		}
		keys = append(keys, append([]byte(nil), k...))
		return true
	})
	return keys, all
}

// destroy removes an inode and all that belongs to it; many rows are left to OpReap.
func (t *tx) destroy(n *inode) {
	t.del(inodeKey(n.Ino))
	t.del(targetKey(n.Ino))
	t.addMark(markInodes, ^uint64(0))
	t.endLocks(locksOfInode, uint64(n.Ino))
	if !t.dropXattrs(n.Ino, reapAtOnce) {
		t.queueMap(n.Ino, xattrMap)
	}
	t.dropMap(n.Ino, n.Map)
	if n.cut > 0 {
		t.dropMap(n.Ino, n.high)
	}
}

// dropXattrs deletes extended attributes of an inode that is gone, and says whether none is left.
func (t *tx) dropXattrs(i cfs.Ino, limit int) bool {
	prefix := key1(prefixXattr, uint64(i))
	keys, all := t.take(prefix, after(prefix), limit)
	for _, k := range keys {
		t.del(k)
	}
	t.reaped += len(keys)
	return all
}

func (t *tx) queueMap(i cfs.Ino, m uint32) {
	t.set(mapKey(prefixQueue, i, m), []byte{recordVersion})
}

// dropMap deletes the extent rows of a map that no inode uses any more.
func (t *tx) dropMap(i cfs.Ino, m uint32) {
	if !t.dropRows(i, m, reapAtOnce) {
		t.queueMap(i, m)
	}
}

// dropRows deletes rows of a map, and says whether none is left.
func (t *tx) dropRows(i cfs.Ino, m uint32, limit int) bool {
	rows, more := t.rows(i, m, 0, ^uint64(0), limit)
	for j := range rows {
		t.del(extentKey(i, m, rows[j].End()))
		t.unref(&rows[j])
	}
	t.reaped += len(rows)
	return !more
}

// reap deletes a command's worth of what is queued for deletion.
func (t *tx) reap() cfs.Kind {
	t.reaped += t.trimJournal(t.reapable() / 2)
	t.reapLocks()
	maps, _ := t.take([]byte{prefixQueue}, []byte{prefixQueue + 1}, reapLooks)
	for _, k := range maps {
		if len(k) != 13 {
			t.corrupt(k)
			break
		}
		if !t.reapMap(cfs.Ino(binary.BigEndian.Uint64(k[1:])), binary.BigEndian.Uint32(k[9:])) {
			return cfs.KindOK
		}
		t.del(k)
	}
	ended, _ := t.take([]byte{prefixEnded}, []byte{prefixEnded + 1}, reapLooks)
	for _, k := range ended {
		if len(k) != 9 {
			t.corrupt(k)
			break
		}
		id := cfs.SessionID(binary.BigEndian.Uint64(k[1:]))
		if sess, open := load(t, k2session(k), decodeSession); open {
			if !t.freeBelow(id, sess.floor) {
				return cfs.KindOK
			}
		} else if !t.clearSession(id) {
			return cfs.KindOK
		}
		t.del(k)
	}
	return cfs.KindOK
}

// k2session is the key of the session that a place in the queue of sessions is of.
func k2session(k []byte) []byte { return sessionKey(cfs.SessionID(binary.BigEndian.Uint64(k[1:]))) }

// reapMap works off a place in the queue of maps, and says whether it is done.
func (t *tx) reapMap(i cfs.Ino, m uint32) bool {
	if m == xattrMap {
		return t.dropXattrs(i, t.reapable())
	}
	if n, ok := t.inode(i); ok && n.cut > 0 && n.Map == m {
		return t.heal(n)
	}
	return t.dropRows(i, m, t.reapable())
}

// sever makes a file with many rows at and above size end there. Those of its map which lie above the cut are dead
// from now on, and what is written there goes to a second map, so that it never shows old
// bytes. The queue has the file until heal has made one map of the two. A file that is cut already can be
// cut further down only, and only where little has been written above; Busy is until it has healed.
func (t *tx) sever(n *inode, size uint64) cfs.Kind {
	if n.cut > 0 {
		above, more := t.rows(n.Ino, n.high, n.cut, ^uint64(0), MaxReplaced-t.replaced)
		if more || size > n.cut {
			return cfs.Busy
		}
		t.replaced += len(above)
		for i := range above {
			t.trimRow(n, &above[i], 0, ^uint64(0))
		}
	} else {
		n.high = n.Map + 1
	}
	n.cut = size
	across, _ := t.rows(n.Ino, n.Map, size, size+1, 1)
	for i := range across {
		if across[i].Off < size {
			t.trimRow(n, &across[i], size, ^uint64(0))
		}
	}
	t.queueMap(n.Ino, n.Map)
	return cfs.KindOK
}

// heal deletes rows above a file's cut, then moves those of the second map down and the
// cut up, as many as a command may. It reports that the file has one map again. What the file says does
// not change but for the blocks that it takes, so its generation stays.
func (t *tx) heal(n *inode) (done bool) {
	dead, more := t.rows(n.Ino, n.Map, n.cut, ^uint64(0), t.reapable())
	for i := range dead {
		t.del(extentKey(n.Ino, n.Map, dead[i].End()))
		t.unref(&dead[i])
		n.stored -= dead[i].Len
	}
	t.reaped += len(dead)
	if !more {
		var rows []cfs.Extent
		rows, more = t.rows(n.Ino, n.high, n.cut, ^uint64(0), t.reapable())
		for i := range rows {
			x := &rows[i]
			t.del(extentKey(n.Ino, n.high, x.End()))
			t.set(extentKey(n.Ino, n.Map, x.End()), encodeExtent(x))
			n.cut = x.End()
		}
		t.reaped += len(rows)
		if !more {
			n.cut, n.high = 0, 0
		}
	}
	t.set(inodeKey(n.Ino), t.encode().inode(n))
	return !more
}

// expireSession ends a session; one that is gone already is no error.
func (t *tx) expireSession(id cfs.SessionID) cfs.Kind {
	if _, ok := t.get(sessionKey(id)); !ok {
		return cfs.KindOK
	}
	t.del(sessionKey(id))
	t.del(inosKey(id))
	t.addMark(markSessions, ^uint64(0))
	t.endLocks(locksOfSession, uint64(id))
	if t.clearSession(id) {
		t.del(endedKey(id))
	} else {
		t.set(endedKey(id), []byte{recordVersion})
	}
	return cfs.KindOK
}

// clearSession deletes what a session that is gone has left, and says whether that is all.
func (t *tx) clearSession(id cfs.SessionID) bool {
	replies, all := t.take(replyKey(id, 0), replyKey(id+1, 0), t.reapable())
	for _, k := range replies {
		t.del(k)
	}
	if t.reaped += len(replies); !all {
		return false
	}
	held, all := t.take(heldByKey(id, 0), heldByKey(id+1, 0), t.reapable())
	for _, k := range held {
		if t.reapable() == 0 {
			return false
		}
		t.reaped++
		t.release(cfs.Ino(binary.BigEndian.Uint64(k[9:])), id)
	}
	return all && t.freeBelow(id, ^uint64(0))
}

// freeBelow frees the unreferenced stripes of a session below its floor, as many as a command may, and
// says whether these were all.
func (t *tx) freeBelow(s cfs.SessionID, floor uint64) bool {
	lo, hi := zeroKey(cfs.StripeID{Session: s}, 0), zeroKey(cfs.StripeID{Session: s, Counter: floor}, 0)
	idle, all := t.take(lo, hi, t.reapable())
	t.reaped += len(idle)
	for _, k := range idle {
		id := cfs.StripeID{Session: s, Counter: binary.BigEndian.Uint64(k[9:])}
		pg := cfs.PGID(binary.BigEndian.Uint32(k[17:]))
		st, ok := load(t, stripeKey(pg, id), decodeStripe)
		if !ok {
			t.corrupt(stripeKey(pg, id))
			return true
		}
		t.freeStripe(pg, id, st.len)
	}
	return all
}
