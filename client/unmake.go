package client

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// unlinkBehind takes the only name of a file that this session owns from a directory that it owns, in memory, and queues
// that; false where it must be done at once. An error is ctx's.
func (c *Client) unlinkBehind(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) (ok bool, err error) {
	if !c.behind.on || cred.Enforce {
		return false, nil
	}
	i, known := c.cachedName(dir, name)
	d, n := c.find(dir), c.find(i)
	if !known || i == 0 || d == nil || n == nil || !d.isOwned() || !n.isOwned() || n.isDirectory() {
		return false, nil
	}
	if err := c.awaitBehind(ctx, func(b *behind) bool { return len(b.queue) < maxBehind }); err != nil {
		return false, err
	}
	c.behind.making.Lock()
	defer c.behind.making.Unlock()
	op := cfs.Op{Kind: cfs.OpUnlink, Dir: dir, Name: name, Ino: i, Lease: true}
	m, unlock := c.inodes.lock(i) // nobody opens it meanwhile
	defer unlock()
	ok = m[i] == n && c.queueUnlink(d, n, cred, op)
	return ok, nil
}

// queueUnlink is queueCreate of an unlink: the caller holds the lock of the table for n besides. Who
// has it open keeps it, as after any unlink.
func (c *Client) queueUnlink(d, n *inode, cred cfs.Cred, op cfs.Op) bool {
	st, s := c.leases.state.Load(), c.session.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	file := n.overlayLocked()
	if !d.mayNameLocked(s, st) || !n.mayNameLocked(s, st) || file.Nlink != 1 || n.dirtyAwayLocked() {
		return false
	}
	dir := d.overlayLocked()
	op.Hold = n.refs > 0
	op.AtNS = max(time.Now().UnixNano(), dir.CtimeNS, file.CtimeNS)
	p := &pending{sess: s, cred: cred, op: op, on: []pendingOn{{ino: op.Dir, n: d, isDir: true}, {ino: op.Ino, n: n, links: -1}}}
	if !c.push(p, func() bool { return c.cache.setBehind(op.Dir, op.Name, op.Ino, listed{}) }) {
		return false
	}
	d.changedNamesLocked(0, op.AtNS)
	n.naming.queued++
	n.naming.links--
	n.naming.ctimeNS = op.AtNS
	n.pend.attr.CtimeNS = max(n.pend.attr.CtimeNS, op.AtNS)
	n.vanishLocked(op.Hold)
	return true
}

// dirtyAwayLocked reports that a commit of the inode is on its way.
func (n *inode) dirtyAwayLocked() bool { return n.committing || n.sent.mask != 0 }
