package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// Key prefixes; doc.go explains each.
const (
	prefixMark      = 'A'
	prefixChange    = 'C'
	prefixDirent    = 'D'
	prefixExtent    = 'E'
	prefixFeed      = 'F'
	prefixGroup     = 'G'
	prefixHold      = 'H'
	prefixInode     = 'I'
	prefixJob       = 'J'
	prefixLink      = 'L'
	prefixLock      = 'K'
	prefixMember    = 'M'
	prefixNode      = 'N'
	prefixTrust     = 'P'
	prefixQueue     = 'Q'
	prefixReply     = 'R'
	prefixStripe    = 'S'
	prefixSession   = 'T'
	prefixUsage     = 'U'
	prefixDevice    = 'V'
	prefixXattr     = 'X'
	prefixZero      = 'Z'
	prefixReader    = 'c'
	prefixHeldBy    = 'h'
	prefixInos      = 'i'
	prefixLockedBy  = 'k'
	prefixLockQueue = 'l'
	prefixEnded     = 'q'
)

// The marks: names under prefixMark, each an 8-byte number but markCluster.
const (
	markApplied     = "applied"      // log index of the last entry
	markCluster     = "cluster"      // the cluster's id, bytes
	markFeedFirst   = "feed-first"   // position of the oldest retained feed row
	markFeedNext    = "feed-next"    // position of the next feed row
	markInline      = "inline-bytes" // bytes in inline extents
	markInodes      = "inodes"       // inodes in the namespace
	markLocks       = "locks"        // locks that have rows
	markMapVersion  = "map-version"  // index of the last change of the map
	markNextIno     = "next-ino"     // counter part of the next inode
	markNextPG      = "next-pg"      // next placement group
	markNextSession = "next-session" // next session
	markRaw         = "raw-bytes"    // bytes of all shards of all stripes
	markSessions    = "sessions"     // sessions that are open
	markStamp       = "stamp"        // largest time stamp applied, ns
)

// The marks of the journal.
const (
	markJournalNeed    = "journal-need"     // lowest index that a consumer needs, from which on it can be read; 0 for no consumer
	markJournalNext    = "journal-next"     // number of the next change
	markJournalEnd     = "journal-end"      // bytes of all changes ever
	markJournalTail    = "journal-tail"     // index below which no row is left
	markJournalTailSeq = "journal-tail-seq" // number of the oldest row
	markJournalTailPos = "journal-tail-pos" // bytes of all changes before it
)

func key1(p byte, a uint64) []byte {
	k := make([]byte, 1, 9)
	k[0] = p
	return binary.BigEndian.AppendUint64(k, a)
}

func key2(p byte, a, b uint64) []byte {
	k := make([]byte, 1, 17)
	k[0] = p
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(k, a), b)
}

// usualKey is what keys with names are given at once: with a constant capacity they lie on
// the stack of who only asks for them.
const usualKey = 64

func markKey(name string) []byte {
	k := make([]byte, 1, usualKey)
	k[0] = prefixMark
	return append(k, name...)
}

func inodeKey(i cfs.Ino) []byte  { return key1(prefixInode, uint64(i)) }
func targetKey(i cfs.Ino) []byte { return key1(prefixLink, uint64(i)) }

func direntKey(dir cfs.Ino, name string) []byte {
	k := make([]byte, 1, usualKey)
	k[0] = prefixDirent
	return append(binary.BigEndian.AppendUint64(k, uint64(dir)), name...)
}

func xattrKey(i cfs.Ino, name string) []byte {
	return append(key1(prefixXattr, uint64(i)), name...)
}

// mapKey is the prefix of an inode's extent rows (prefixExtent) or its place in
// the queue of deletions (prefixQueue).
func mapKey(p byte, i cfs.Ino, m uint32) []byte {
	return binary.BigEndian.AppendUint32(key1(p, uint64(i)), m)
}

func extentKey(i cfs.Ino, m uint32, end uint64) []byte {
	return binary.BigEndian.AppendUint64(mapKey(prefixExtent, i, m), end)
}

func stripeKey(pg cfs.PGID, s cfs.StripeID) []byte {
	k := make([]byte, 1, 21)
	k[0] = prefixStripe
	k = binary.BigEndian.AppendUint32(k, uint32(pg))
	k = binary.BigEndian.AppendUint64(k, uint64(s.Session))
	return binary.BigEndian.AppendUint64(k, s.Counter)
}

func zeroKey(s cfs.StripeID, pg cfs.PGID) []byte {
	return binary.BigEndian.AppendUint32(key2(prefixZero, uint64(s.Session), s.Counter), uint32(pg))
}

func holdKey(i cfs.Ino, s cfs.SessionID) []byte { return key2(prefixHold, uint64(i), uint64(s)) }

func heldByKey(s cfs.SessionID, i cfs.Ino) []byte { return key2(prefixHeldBy, uint64(s), uint64(i)) }

func inosKey(s cfs.SessionID) []byte              { return key1(prefixInos, uint64(s)) }
func replyKey(s cfs.SessionID, seq uint64) []byte { return key2(prefixReply, uint64(s), seq) }

func changeKey(index uint64, n uint32) []byte {
	return binary.BigEndian.AppendUint32(key1(prefixChange, index), n)
}

func readerKey(name string) []byte { return append([]byte{prefixReader}, name...) }

// endedKey is the place of a session in the queue of what sessions leave.
func endedKey(s cfs.SessionID) []byte { return key1(prefixEnded, uint64(s)) }

func sessionKey(s cfs.SessionID) []byte { return key1(prefixSession, uint64(s)) }

func feedKey(pos uint64) []byte { return key1(prefixFeed, pos) }

func groupKey(pg cfs.PGID) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixGroup}, uint32(pg))
}

func usageKey(pg cfs.PGID) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixUsage}, uint32(pg))
}

func jobKey(d cfs.DeviceID) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixJob}, uint32(d))
}

func nodeKey(n cfs.NodeID) []byte {
	return binary.BigEndian.AppendUint16([]byte{prefixNode}, uint16(n))
}

func deviceKey(d cfs.DeviceID) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixDevice}, uint32(d))
}

// Folder is the prefix that the keys of all entries of a directory share, if key is that of
// an entry. It lies in key.
func Folder(key []byte) (prefix []byte, ok bool) {
	const n = 1 + 8
	if len(key) <= n || key[0] != prefixDirent {
		return nil, false
	}
	return key[:n], true
}

// SetOnce reports that the machine sets a key only while it has no row.
func SetOnce(key []byte) bool { return len(key) > 0 && key[0] == prefixReply }

// After is the first key that is larger than every key with the prefix; nil for none.
func After(prefix []byte) []byte { return after(prefix) }

// after is the first key that is larger than every key with the prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
