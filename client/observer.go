package client

import (
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// keepMost bounds how long an observer may keep an answer, however long the lease lasts: what this client gives
	// up of itself it gives up that long after it has last been leased above.
	keepMost = 900 * time.Millisecond
	// keepMargin is what an answer may need to get to an observer that counts from then on.
	keepMargin = 100 * time.Millisecond
	// forgetWait bounds how long an acknowledgement waits for the observer. The leader's patience with a session that does
	// not answer is a little longer (lease.Table: a quarter of the lease), after which it takes all leases away.
	forgetWait = 250 * time.Millisecond
)

// Observer keeps answers above the client, as a kernel does. It is told what it may not answer any more
// before the cluster is told that this client has given it up. No lock is held meanwhile; a call returns when
// it is done, and several may be on their way at once.
type Observer interface {
	// ForgetInode is told of an inode that others change: its attributes and ACLs, and its bytes or names.
	ForgetInode(i cfs.Ino)
	// ForgetNames is told of a directory in which others change names; absent ones too.
	ForgetNames(dir cfs.Ino)
	// ForgetAll is told when all leases are void at once.
	ForgetAll()
}

// Lease is for how long an observer may keep an answer. Mark is the same for as long as the leases of an inode
// have gone on and nobody else has changed it; 0 where there is no lease.
type Lease struct {
	TTL  time.Duration
	Mark uint64
}

// Observe names the observer, before it is given anything to keep.
func (c *Client) Observe(o Observer) { c.observer.Store(&o) }

// above has the observer forget, and waits for it within bounds: what it waits for itself may wait for this client. It
// is called with no lock held.
func (c *Client) above(forget func(Observer)) {
	o := c.observer.Load()
	if o == nil || c.ctx.Err() != nil {
		return
	}
	done := make(chan struct{})
	c.wg.Go(func() {
		defer close(done)
		forget(*o)
	})
	timer := time.NewTimer(forgetWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		c.stats.forgetsLate.Add(1)
	case <-c.ctx.Done():
	}
}

// keeping is how long an observer may keep what is leased until a time.
func (c *Client) keeping(until int64) time.Duration {
	left := time.Duration(until-c.leases.boot()) - keepMargin
	return max(0, min(left, keepMost, c.cfg.CacheTTL))
}

// LeasedAttr is an inode's attributes if this client can answer them from memory, and the lease of them.
func (c *Client) LeasedAttr(i cfs.Ino) (cfs.Attr, Lease) {
	mark := c.cache.mark(i) // before what it is of
	a, era, until := c.keptAttr(i)
	if c.leases.boot() >= until {
		return cfs.Attr{}, Lease{}
	}
	l := Lease{TTL: c.keeping(until), Mark: mark ^ era<<40}
	if n := c.inodes.find(i); n != nil && n.isHushed() {
		l.TTL = 0
	}
	return a, l
}

// LeasedName is the inode behind a name, 0 for none, and for how long an observer may keep that.
func (c *Client) LeasedName(dir cfs.Ino, name string) (cfs.Ino, time.Duration) {
	i, until := c.keptName(dir, name)
	if n := c.inodes.find(dir); n != nil && n.isHushed() {
		return i, 0
	}
	return i, c.keeping(until)
}

// mark is a number that rises when a lease of an inode is lost.
func (c *cache) mark(i cfs.Ino) uint64 {
	s, sl := c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(sl.recalled, sl.disowned) + 1
}

// hushing is when nothing of an owned inode is leased above any more, because its exclusive lease is about to be
// given up: as the cluster asks, or since then of itself.
type hushing struct {
	recalled bool
	since    time.Time
}

func (n *inode) isHushed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own == ownHeld && (n.hush.recalled || !n.hush.since.IsZero())
}

// hushForRecall ends what is leased above of an inode that is owned: nothing new from now on, and what there is.
func (c *Client) hushForRecall(i cfs.Ino) {
	dir := false
	if n := c.inodes.find(i); n != nil {
		n.mu.Lock()
		n.hush.recalled, dir = true, n.isDir
		n.mu.Unlock()
	}
	c.above(func(o Observer) {
		if dir {
			o.ForgetNames(i)
		}
		o.ForgetInode(i)
	})
}

// hushLead is how long before a lease is given up of itself nothing of it may be leased above any more.
func (c *Client) hushLead() time.Duration {
	if c.observer.Load() == nil {
		return 0
	}
	return keepMost
}

// quietLocked hushes an inode that may leave soon, and reports that nothing above depends on it any more.
func (n *inode) quietLocked(soon bool, now time.Time) bool {
	switch {
	case n.c.hushLead() == 0:
		return true
	case !soon:
		n.hush.since = time.Time{}
		return false
	case n.hush.since.IsZero():
		n.hush.since = now
		return false
	}
	return now.Sub(n.hush.since) >= keepMost
}
