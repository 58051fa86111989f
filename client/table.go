package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const tableShards = 64

// inodeTable is the inodes that are open here, that this session owns, or that have something that is not committed.
type inodeTable struct {
	shard [tableShards]struct {
		mu sync.Mutex // before inode.mu
		m  map[cfs.Ino]*inode
	}
	open  atomic.Int64 // inodes with references
	owned atomic.Int64
}

func (t *inodeTable) lock(i cfs.Ino) (m map[cfs.Ino]*inode, unlock func()) {
	s := &t.shard[mix(i)>>58%tableShards]
	s.mu.Lock()
	if s.m == nil {
		s.m = map[cfs.Ino]*inode{}
	}
	return s.m, s.mu.Unlock
}

// find is the shared state of an inode, or nil.
func (t *inodeTable) find(i cfs.Ino) *inode {
	s := &t.shard[mix(i)>>58%tableShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[i]
}

// all are the inodes of now.
func (t *inodeTable) all() []*inode {
	var all []*inode
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		for _, n := range s.m {
			all = append(all, n)
		}
		s.mu.Unlock()
	}
	return all
}

// opens are the inodes that are open.
func (t *inodeTable) opens() []uint64 {
	var all []uint64
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		for i, n := range s.m {
			if n.refs > 0 {
				all = append(all, uint64(i))
			}
		}
		s.mu.Unlock()
	}
	return all
}

// orphan marks an inode that loses its last name, and reports whether it is open.
func (t *inodeTable) orphan(i cfs.Ino) bool {
	m, unlock := t.lock(i)
	defer unlock()
	n := m[i]
	if n == nil || n.refs == 0 {
		return false
	}
	n.orphan.Store(true)
	return true
}

// settle forgets an inode that is neither open nor owned and has nothing that is to be committed.
func (t *inodeTable) settle(n *inode) {
	m, unlock := t.lock(n.ino)
	defer unlock()
	t.settleLocked(m, n)
}

func (t *inodeTable) settleLocked(m map[cfs.Ino]*inode, n *inode) {
	if n.refs > 0 || m[n.ino] != n || n.kept() {
		return
	}
	delete(m, n.ino)
	if err := n.untold(); err != nil {
		n.c.log.Error("a write failed and nobody was left to be told", "ino", uint64(n.ino), "err", err)
	}
}

// isOpen reports that handles of an inode are open here.
func (t *inodeTable) isOpen(n *inode) bool {
	_, unlock := t.lock(n.ino)
	defer unlock()
	return n.refs > 0
}

// at is the shared state of an inode, made where there is none.
func (c *Client) at(m map[cfs.Ino]*inode, i cfs.Ino) *inode {
	n := m[i]
	if n == nil {
		n = &inode{c: c, ino: i, moved: make(chan struct{})}
		m[i] = n
	}
	return n
}

// open takes a reference to the shared state of an inode.
func (c *Client) open(i cfs.Ino) *inode {
	m, unlock := c.inodes.lock(i)
	defer unlock()
	n := c.at(m, i)
	c.ref(n)
	return n
}

func (c *Client) ref(n *inode) {
	if n.refs++; n.refs == 1 {
		c.inodes.open.Add(1)
	}
}

// retain takes one more reference of an inode that may just be closing.
func (c *Client) retain(n *inode) bool {
	_, unlock := c.inodes.lock(n.ino)
	defer unlock()
	if n.refs == 0 {
		return false
	}
	c.ref(n)
	return true
}

func (c *Client) openCount() int { return int(c.inodes.open.Load()) }

// release gives a reference back. The last one of an inode without a name tells
// the cluster that it can go. What is not committed then stays until it is.
func (c *Client) release(ctx context.Context, n *inode) {
	m, unlock := c.inodes.lock(n.ino)
	if n.refs == 1 && n.orphan.Load() && n.discard() && c.ctx.Err() == nil {
		unlock()
		// It may have a name yet: the cluster is told that it can go when it has all.
		c.wg.Go(func() {
			if err := n.flush(c.ctx); err != nil {
				c.log.Warn("what was written before a close is lost", "ino", uint64(n.ino), "err", err)
			}
			c.release(c.ctx, n)
		})
		return
	}
	n.refs--
	last := n.refs == 0
	over := func() {}
	if last {
		if n.orphan.Load() {
			over = c.removals.begin(n.ino)
		}
		c.inodes.open.Add(-1)
		n.closed()
		c.inodes.settleLocked(m, n)
	}
	unlock()
	defer func() { over() }()
	if !last || !n.orphan.Load() {
		return
	}
	c.cache.forgetAttr(n.ino)
	if !n.isGone() {
		c.wg.Go(func() { c.releaseLater(n.ino) })
		return
	}
	c.giveUpHold(ctx, n.ino)
}

// giveUpHold lets an inode without a name go.
func (c *Client) giveUpHold(ctx context.Context, i cfs.Ino) {
	if _, err := c.do(ctx, cfs.Cred{}, cfs.Op{Kind: cfs.OpRelease, Ino: i}); err != nil {
		c.log.Warn("inode without a name not released: it goes with the session", "ino", uint64(i), "err", err)
	}
}

// Bounds of the wait for a name to go that the cluster has asked about.
const (
	lateFirst = 20 * time.Millisecond
	lateLast  = 10 * time.Second
)

// releaseLater gives up the hold of an inode whose name another session was about to
// take when it was asked whether it is open here: the hold comes with that command,
// which may come later than the last close.
func (c *Client) releaseLater(i cfs.Ino) {
	for wait := lateFirst; wait < lateLast; wait *= 2 {
		a, err := c.ask(c.ctx, &cfs.Query{Kind: cfs.QueryGetAttr, Ino: i})
		over := c.removals.begin(i)
		switch {
		case cfs.KindOf(err) == cfs.Stale, c.ctx.Err() != nil, c.inodes.orphan(i):
			over()
			return // gone, or with the session, or open again: then its last close comes here
		case err == nil && a.Attr.Nlink == 0:
			c.giveUpHold(c.ctx, i)
			over()
			return
		}
		over()
		sleep(c.ctx, wait)
	}
}
