package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// maxSessionRows bounds the rows that one answer about sessions counts.
const maxSessionRows = 64 << 10

// sessions lists the open sessions after one, with what the state has of each.
func (t *tx) sessions(q *cfs.Query, a *cfs.Answer) {
	limit := listLimit(q.Limit)
	t.scan(sessionKey(q.Session+1), []byte{prefixSession + 1}, func(k, v []byte) bool {
		if len(a.Sessions) == limit {
			a.More = true
			return false
		}
		s, ok := decodeSession(v)
		if !ok || len(k) != 9 {
			t.corrupt(k)
			return false
		}
		a.Sessions = append(a.Sessions, cfs.SessionInfo{ID: cfs.SessionID(binary.BigEndian.Uint64(k[1:])), Name: s.name,
			OpenedNS: s.openedNS, LowWater: s.lowWater, Floor: s.floor})
		return true
	})
	rows := uint64(0)
	for i := range a.Sessions {
		s := &a.Sessions[i]
		s.Replies = t.count(replyKey(s.ID, 0), replyKey(s.ID+1, 0))
		s.Holds = t.count(heldByKey(s.ID, 0), heldByKey(s.ID+1, 0))
		s.Locks = t.count(key1(prefixLockedBy, uint64(s.ID)), key1(prefixLockedBy, uint64(s.ID)+1))
		if rows += s.Replies + s.Holds + s.Locks; rows > maxSessionRows && i+1 < len(a.Sessions) {
			a.Sessions, a.More = a.Sessions[:i+1], true
			return
		}
	}
}

// count is how many rows there are in [lo, hi).
func (t *tx) count(lo, hi []byte) (n uint64) {
	t.scan(lo, hi, func(_, _ []byte) bool {
		n++
		return true
	})
	return n
}
