package client

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// mayBehind reports that what op makes need not be durable at once, as far as the operation says.
func (c *Client) mayBehind(cred cfs.Cred, op *cfs.Op) bool {
	if !c.behind.on || cred.Enforce || op.Name == "" || op.Name == "." || op.Name == ".." || len(op.Name) > cfs.MaxName || strings.ContainsAny(op.Name, "/\x00") {
		return false
	}
	switch op.Attr.Mode & cfs.ModeType {
	case cfs.ModeRegular, cfs.ModeDir:
		return c.mayOwn(op.Attr.Mode)
	case cfs.ModeSymlink:
		return len(op.Value) > 0 && len(op.Value) <= cfs.MaxSymlink
	}
	return false
}

// createBehind makes what op says in memory and queues it; false where it must be done at once: the directory is not owned,
// not all its names are known or this one is there, or it has a default ACL. An error is ctx's.
func (c *Client) createBehind(ctx context.Context, cred cfs.Cred, op cfs.Op) (a cfs.Attr, ok bool, err error) {
	if !c.mayBehind(cred, &op) {
		return a, false, nil
	}
	if i, known := c.cachedName(op.Dir, op.Name); !known || i != 0 {
		return a, false, nil
	}
	d := c.find(op.Dir)
	if d == nil || !d.isOwned() || !c.isPlain(ctx, d) {
		return a, false, nil
	}
	if err := c.awaitBehind(ctx, func(b *behind) bool { return len(b.queue) < maxBehind }); err != nil {
		return a, false, err
	}
	b := &c.behind
	b.making.Lock()
	defer b.making.Unlock()
	s := c.session.Load()
	if op.Ino = c.peekIno(s); op.Ino == 0 {
		return a, false, nil
	}
	var n *inode
	if t := op.Attr.Mode & cfs.ModeType; t != cfs.ModeSymlink {
		n = c.unborn(op.Ino, s, t == cfs.ModeDir)
	}
	a, ok = c.queueCreate(d, n, s, cred, op)
	if n != nil && !ok {
		n.mu.Lock()
		n.disownLocked()
		n.mu.Unlock()
		c.inodes.settle(n)
	}
	if ok && a.IsDir() {
		c.cache.newListing(a.Ino, op.Dir)
	}
	return a, ok, nil
}

// unborn is an inode that this session is about to make: it is owned, and nobody else knows it.
func (c *Client) unborn(i cfs.Ino, s *session, isDir bool) *inode {
	m, unlock := c.inodes.lock(i)
	defer unlock()
	n := c.at(m, i)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.own, n.ownSess, n.isDir, n.used = ownHeld, s, isDir, time.Now()
	n.naming.plain = isDir
	n.extents = extentCache{version: n.extents.version, valid: true, hi: math.MaxUint64}
	if c.inodes.owned.Add(1) > crowdedOwned {
		signal(c.crowded)
	}
	return n
}

// queueCreate does what op says to the directory d and its new inode n, if d allows it. The caller holds making.
func (c *Client) queueCreate(d, n *inode, s *session, cred cfs.Cred, op cfs.Op) (a cfs.Attr, ok bool) {
	st := c.leases.state.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.mayNameLocked(s, st) {
		return a, false
	}
	dir := d.overlayLocked()
	if dir.Nlink >= cfs.MaxLinks || !d.naming.plain {
		return a, false
	}
	op.AtNS = max(time.Now().UnixNano(), dir.CtimeNS) // what was done later is not older, whatever clocks say
	op.Exclusive = true
	a = made(&op, &dir, s.id)
	p := &pending{sess: s, cred: cred, op: op, on: []pendingOn{{ino: op.Dir, n: d, isDir: true}, {ino: op.Ino, n: n}}}
	if a.IsDir() {
		p.on[0].links = 1
	}
	if n != nil { // its lock is taken in another's: that of an inode which nobody else knows yet
		n.mu.Lock()
		n.attr = a
		n.naming.queued = 1
		n.mu.Unlock()
	}
	ok = c.push(p, func() bool {
		return c.cache.setBehind(op.Dir, op.Name, 0, listed{ino: op.Ino, mode: a.Mode & cfs.ModeType})
	})
	if !ok {
		if n != nil {
			n.mu.Lock()
			n.naming.queued = 0
			n.mu.Unlock()
		}
		return a, false
	}
	c.behind.useIno(op.Ino)
	d.changedNamesLocked(p.on[0].links, op.AtNS)
	return a, true
}

// mayNameLocked reports that the names of a directory are this session's to change.
func (n *inode) mayNameLocked(s *session, st *leaseState) bool {
	return n.own == ownHeld && n.ownSess == s && !n.gone && st.session == s.id && n.c.session.Load() == s && n.c.leases.boot() < st.alive && !n.c.cache.inDoubt(n.ino)
}

// changedNamesLocked notes that a name in a directory has been changed.
func (n *inode) changedNamesLocked(links int, at int64) {
	n.naming.queued++
	n.naming.links += links
	n.naming.mtimeNS, n.naming.ctimeNS = at, at
	n.used = time.Now()
}

// made is the attributes that the cluster will give to what op makes, in a directory without a default ACL.
func made(op *cfs.Op, dir *cfs.Attr, s cfs.SessionID) cfs.Attr {
	a := cfs.Attr{Ino: op.Ino, Mode: op.Attr.Mode & (cfs.ModeType | cfs.ModePerm), Nlink: 1, UID: op.Attr.UID, GID: op.Attr.GID, Map: 1,
		AtimeNS: op.AtNS, MtimeNS: op.AtNS, CtimeNS: op.AtNS, BtimeNS: op.AtNS}
	if dir.Mode&cfs.ModeSetgid != 0 {
		if a.GID = dir.GID; a.IsDir() {
			a.Mode |= cfs.ModeSetgid
		}
	}
	switch a.Mode & cfs.ModeType {
	case cfs.ModeSymlink:
		a.Size = uint64(len(op.Value))
		return a
	case cfs.ModeDir:
		a.Nlink, a.Size = 2, cfs.BlockSize
	}
	a.Mode &^= op.Flags & 0o777
	if op.Lease {
		a.Owner = s
	}
	return a
}

// isPlain reports that a directory is known to have no default ACL. It is asked for once; what the session makes in one
// that has none has none.
func (c *Client) isPlain(ctx context.Context, d *inode) bool {
	look := func() (plain, changing bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.naming.plain, d.naming.aclSets > 0
	}
	plain, changing := look()
	if plain || changing {
		return plain
	}
	if _, err := c.GetXattr(ctx, d.ino, cfs.XattrACLDefault); cfs.KindOf(err) != cfs.NoAttr {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own == ownHeld && d.naming.aclSets == 0 {
		d.naming.plain = true
	}
	return d.naming.plain
}

// changesACL notes that a command of ours changes the default ACL of a directory, until over is called.
func (c *Client) changesACL(i cfs.Ino, name string) (over func()) {
	n := c.find(i)
	if name != cfs.XattrACLDefault || n == nil {
		return func() {}
	}
	by := func(d int) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.naming.plain = false
		n.naming.aclSets += d
	}
	by(1)
	return func() { by(-1) }
}

// peekIno is the next inode number that session s may use; 0 for none yet.
func (c *Client) peekIno(s *session) cfs.Ino {
	b := &c.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.numbers) > 0 && (b.numbers[0].sess != s || b.numbers[0].first == b.numbers[0].end) {
		b.numbers = b.numbers[1:]
	}
	left := 0
	for _, r := range b.numbers {
		left += int(r.end - r.first)
	}
	if left < inosAhead/2 && !b.asking {
		b.asking = true
		c.wg.Go(c.askInos)
	}
	if left == 0 {
		return 0
	}
	return b.numbers[0].first
}

// useIno notes that the number that peekIno has given is used. The lock of the queue is not held.
func (b *behind) useIno(i cfs.Ino) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.numbers) > 0 && b.numbers[0].first == i {
		b.numbers[0].first++
	}
}

// askInos gets the session more inode numbers.
func (c *Client) askInos() {
	s := c.session.Load()
	res, _, err := c.doIn(c.ctx, s, cfs.Cred{}, []cfs.Op{{Kind: cfs.OpGrantInos, Dir: cfs.RootIno, Index: inosAhead}})
	if err != nil && c.ctx.Err() == nil {
		c.log.Debug("no inode numbers ahead", "err", err)
	}
	b := &c.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asking = false
	if err == nil {
		first := res[0].Attr.Ino
		b.numbers = append(b.numbers, inoRange{s, first, first + inosAhead})
	}
}
