package raftmeta

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// closePatience bounds the wait for a store that cannot write.
	closePatience = 5 * time.Second
	// diskInterval is the rhythm in which the disk is looked at.
	diskInterval = 500 * time.Millisecond
	// reserveState is what the state store may write between two looks, beside two segments of the log.
	reserveState = 64 << 20
	// reserveShare bounds the reserve on a small disk: 1/reserveShare of it.
	reserveShare = 16
	// nearlyFull is how many times the reserve must be free for a disk not to be nearly full.
	nearlyFull = 2
	// defaultSlowSync is how long a sync may take.
	defaultSlowSync = time.Second
	// slowSyncs in a row make a leader hand over.
	slowSyncs = 3
)

// disk is what is known of the disk under the log and the state.
//
// A disk without room is found before a write fails on it: from then on the replica
// writes nothing, so it says nothing; a leader hands over first. When there is room
// again it goes on. A write or a sync that has failed is final, since nobody knows what of
// it is on the disk: the replica ends then. A disk on which several syncs in a row have taken
// longer than the bound makes a leader hand over; a follower is slow without harm.
type disk struct {
	full   atomic.Bool
	nearly atomic.Bool
	slow   atomic.Int32 // syncs in a row that took too long
}

// freeSpace is how many bytes of a directory's disk are free, and how many it has.
func freeSpace(dir string) (free, total uint64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, 0, cfs.E("look at the disk of "+dir, cfs.KindOf(err), err)
	}
	return s.Bavail * uint64(s.Bsize), s.Blocks * uint64(s.Bsize), nil
}

// noteSync counts syncs that are too slow; it is called by the loop.
func (n *Node) noteSync(took time.Duration) {
	n.metrics.onSync(took)
	if took < n.cfg.SlowSync {
		n.disk.slow.Store(0)
		return
	}
	n.metrics.slowSyncs.Inc()
	n.disk.slow.Add(1)
}

// watchDisk looks at the disk until the node ends.
func (n *Node) watchDisk() {
	tick := time.NewTicker(diskInterval)
	defer tick.Stop()
	for {
		n.lookAtDisk()
		select {
		case <-tick.C:
		case <-n.stop:
			return
		case <-n.done:
			return
		}
	}
}

func (n *Node) lookAtDisk() {
	if n.disk.slow.Load() >= slowSyncs && n.lead.Load().mine {
		n.log.Warn("the disk under the log is slow: leadership is handed over", "dir", n.cfg.Dir, "bound", n.cfg.SlowSync)
		n.disk.slow.Store(0)
		n.transfer()
	}
	free, total, err := n.cfg.FreeSpace(n.cfg.Dir)
	if err != nil {
		n.log.Warn("the disk cannot be looked at", "err", err)
		return
	}
	reserve := min(uint64(2*n.cfg.SegmentBytes+reserveState), total/reserveShare)
	n.metrics.diskFree.Set(float64(free))
	n.disk.nearly.Store(free < nearlyFull*reserve)
	switch full := n.disk.full.Load(); {
	case !full && free < reserve:
		n.log.Error("the disk under the log is full: this replica takes no part until there is room", "dir", n.cfg.Dir, "free_bytes", free, "needed_bytes", reserve)
		n.transfer()
		n.disk.full.Store(true)
		n.metrics.diskFull.Set(1)
	case full && free > reserve+reserve/4:
		n.log.Info("there is room on the disk again", "dir", n.cfg.Dir, "free_bytes", free)
		n.disk.full.Store(false)
		n.metrics.diskFull.Set(0)
	case full:
		n.transfer() // where nobody could take over before
	}
}

// DiskHealth says what is wrong with the disk under the replica, nil for nothing.
func (n *Node) DiskHealth() error {
	switch {
	case n.disk.full.Load():
		return cfs.Errorf("disk of "+n.cfg.Dir, cfs.NoSpace, "it is full: the replica takes no part")
	case n.disk.nearly.Load():
		return cfs.Errorf("disk of "+n.cfg.Dir, cfs.NoSpace, "it is nearly full")
	}
	return nil
}

// quiet reports that this replica takes no part now: its standing is not known, or it
// has no room to write what it would have to. A leader that nobody takes over from goes on
// with what needs no room.
func (l *loop) quiet() bool {
	return !l.n.standing.admitted.Load() || l.n.disk.full.Load() && !l.mine
}

// sleepOr waits, unless ctx ends first.
func sleepOr(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
