package nvme

import (
	"math"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// idleDead is the part of what is occupied that cleaning has to win at least for the
	// cleaner to go on while nothing is put.
	idleDead = 1.0 / 10
	// idleTries is how many segments are cleaned in a row, while nothing is put, without
	// less being occupied than ever before in that time.
	idleTries = int(2 / leastWin)
	// readPatience is for how many looks in a row gets keep the cleaner from its work though nothing is
	// put. At the next it goes on despite them, until the one after that.
	readPatience = 7
)

// idling is how the cleaner uses the time when nothing is put or got. Guarded by Log.mu.
//
// It cleans segments, as it does when space is short, until less than idleDead of
// what is occupied can be won, and then rests until a record is put or deleted.
//
// It always comes to rest. A segment is cleaned only when that wins leastWin of a segment or
// more, and where its records go there is nothing to win from them, but for a header or two: so what
// can be won in all segments becomes less with each cleaning. What it wins is bounded by
// that too: at most sixteen blocks are moved for one. Should the device or small
// segments make it move records without winning anything all the same, it rests when the
// number of occupied blocks has found no new minimum for idleTries segments, until puts have filled one or
// as much as one holds was deleted.
//
// Gets only delay it: where some come all the time it works at one look of readPatience+1.
type idling struct {
	after    time.Duration
	due      *time.Timer
	quiet    bool   // nothing was put for so long, and nothing got or that is passed over
	rested   bool   // and nothing is worth cleaning
	activity uint64 // records put or deleted
	seen     uint64 // activity when it was looked at last
	looks    uint64 // how often that was

	gets    uint64 // LogStats.Gets when it was looked at last
	delayed int    // looks in a row at which there were gets, and nothing else
	despite bool   // gets are passed over until the next look

	fruitless int   // segments cleaned since puts got one, or as much was deleted, or since there was a new minimum
	least     int64 // the minimum of the blocks that were occupied
	dead      int64 // blocks deleted since fruitless was 0 for that
}

// busy says that a record is being put.
func (i *idling) busy() {
	i.changed(1)
	i.quiet = false
}

// changed says that n records were put or deleted.
func (i *idling) changed(n int) {
	if n > 0 {
		i.activity += uint64(n)
		i.rested = false
	}
}

// watchIdleLocked looks now and then whether anything was put or deleted, until the log
// closes or the function that it returns is called.
func (l *Log) watchIdleLocked() (end func()) {
	i := &l.idle
	if i.after < 0 {
		return func() {}
	}
	i.due = time.AfterFunc(i.after, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.stopping {
			return
		}
		i.looks++
		i.quiet = i.activity == i.seen && len(l.pending) == 0 && i.unread(l.stats.Gets)
		if i.seen = i.activity; i.quiet && !i.rested {
			l.changed.Broadcast() // the cleaner may have work
		}
		i.due.Reset(i.after)
	})
	return func() { i.due.Stop() }
}

// nextVictimLocked is the segment to clean next, none when there is nothing to do. idle says
// that space is not short, but that there is time.
func (l *Log) nextVictimLocked() (seg int, idle bool) {
	if len(l.space.free)+len(l.space.dead) < cleanBelow {
		return l.victimLocked(), false
	}
	if !l.idle.goesOn(l.stats.Gets) || l.idle.rested {
		return none, false
	}
	for {
		if seg = l.idleVictimLocked(); seg == none {
			l.idle.rested = true
			return none, false
		}
		l.sealLocked(seg) // it may be one that is being filled, and die by that
		if l.space.segs[seg].state == segFull {
			return seg, true
		}
	}
}

// idleVictimLocked is the segment to clean next while nothing is put, none when no
// one is worth it or the others are dense enough. Segments that are being filled are cleaned too.
func (l *Log) idleVictimLocked() int {
	if l.idle.fruitless >= idleTries {
		return none
	}
	best, sum := l.bestLocked(l.wonLocked, true)
	if float64(sum) < idleDead*float64(l.occupiedLocked()) {
		return none
	}
	return best
}

// wonLocked is the blocks that cleaning a segment wins when there is time for it: what
// dead records take, what was left over when it was sealed early, and the headers of
// records that were put one by one and share one when they are moved. These may be as large as the records.
func (l *Log) wonLocked(s *segment) int64 {
	used := int64(s.tail - l.firstData)
	if rest := l.segBlocks - s.tail; s.state == segFull && rest > 2*cfs.MaxShardSize/cfs.BlockSize {
		used += int64(rest)
	}
	// A batch of moved records has copyHeaders headers of source batches, or goes on until a
	// payload would be too far behind its header, or is one record.
	headers := min(s.live, max(s.live/copyHeaders, s.liveBlocks/(maxHeaderDistance+1))+1)
	return max(0, used-int64(s.liveBlocks)-int64(headers))
}

// occupiedLocked is the blocks of the segments that hold anything, and of those that
// are being filled what is filled.
func (l *Log) occupiedLocked() (blocks int64) {
	for i := range l.space.segs {
		switch s := &l.space.segs[i]; {
		case s.state == segOpen:
			blocks += int64(s.tail)
		case s.state == segFull && s.live > 0, s.state == segKept:
			blocks += int64(l.segBlocks)
		}
	}
	return blocks
}

// cleaned counts a segment that was cleaned while nothing was put, and says how many blocks are occupied now.
func (i *idling) cleaned(occupied int64) {
	i.fruitless++
	if occupied < i.least {
		i.fruitless, i.least = 0, occupied
	}
}

// filled says that puts got a segment.
func (i *idling) filled() { i.fruitless, i.least, i.dead = 0, math.MaxInt64, 0 }

// deleted says that so many blocks were deleted, of which a segment holds segment.
func (i *idling) deleted(blocks, segment int64) {
	if i.dead += blocks; i.dead >= segment {
		i.filled() // there is as much to win as if puts had got one
	}
}

// unread says at a look whether gets leave the cleaner its time until the next; there have been so many.
func (i *idling) unread(gets uint64) bool {
	got := gets != i.gets
	i.gets = gets
	if i.despite = got && i.delayed == readPatience; !got || i.despite {
		i.delayed = 0
		return true
	}
	i.delayed++
	return false
}

// goesOn reports whether the cleaner may use the time: nothing was put or got since the last look either.
func (i *idling) goesOn(gets uint64) bool { return i.quiet && (i.despite || gets == i.gets) }
