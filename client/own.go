package client

import (
	"context"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of what a session owns.
const (
	// maxOwned bounds the inodes that the session owns: more are created without an exclusive lease.
	maxOwned = 16 << 10
	// crowdedOwned is when the oldest that are closed are given up early.
	crowdedOwned = maxOwned * 3 / 4
	// disownAfter is how long a file that is closed and has nothing to commit stays owned, and
	// disownDirAfter a directory in which nothing happens.
	disownAfter    = commitAfter
	disownDirAfter = 10 * time.Second
)

// ownState is what an exclusive lease of an inode is.
type ownState uint8

const (
	ownNone    ownState = iota
	ownHeld             // this session has it: nobody else sees or changes the inode
	ownLeaving          // it is being given up: what happens from now on is as without it
)

// owning is an inode's part in exclusive leases, guarded by inode.mu.
type owning struct {
	own      ownState
	ownSess  *session
	isDir    bool
	used     time.Time // last, while it was owned
	hush     hushing
	leaveSeq uint64 // the newest chunk that must be committed before it is given up

	// Changes of attributes that are kept back: pend gathers them, sent is on its way.
	pend, sent folded
	pendAt     time.Time // when the oldest of pend was made
	pendSeq    uint64    // the newest chunk before pend
	pendDue    bool
	folds      uint64 // how many have been made
	sentFolds  uint64 // of those, with sent
	foldsDone  uint64 // of those, that are committed or have failed
}

// folded is a change of attributes that stands for several.
type folded struct {
	mask cfs.SetMask
	attr cfs.Attr
}

// foldable is what is kept back under an exclusive lease.
const foldable = cfs.SetMode | cfs.SetUID | cfs.SetGID | cfs.SetAtime | cfs.SetMtime | cfs.SetAtimeNow | cfs.SetMtimeNow |
	cfs.SetCtime | cfs.SetKillPriv | cfs.SetSize

func (f *folded) size() uint64 {
	if f.mask&cfs.SetSize == 0 {
		return 0
	}
	return f.attr.Size
}

// apply makes the change to a. A size only grows.
func (f *folded) apply(a *cfs.Attr) {
	if f.mask&cfs.SetKillPriv != 0 {
		a.Mode = withoutPriv(a.Mode)
	}
	set(f.mask, cfs.SetMode, &a.Mode, a.Mode&cfs.ModeType|f.attr.Mode&cfs.ModePerm)
	set(f.mask, cfs.SetUID, &a.UID, f.attr.UID)
	set(f.mask, cfs.SetGID, &a.GID, f.attr.GID)
	set(f.mask, cfs.SetAtime, &a.AtimeNS, f.attr.AtimeNS)
	set(f.mask, cfs.SetMtime, &a.MtimeNS, f.attr.MtimeNS)
	set(f.mask, cfs.SetCtime, &a.CtimeNS, f.attr.CtimeNS)
	set(f.mask, cfs.SetSize, &a.Size, max(a.Size, f.attr.Size))
}

func set[T any](mask, bit cfs.SetMask, to *T, v T) {
	if mask&bit != 0 {
		*to = v
	}
}

// withoutPriv is a mode without what a change by another than the owner takes away.
func withoutPriv(mode uint32) uint32 {
	mode &^= cfs.ModeSetuid
	if mode&0o010 != 0 {
		mode &^= cfs.ModeSetgid
	}
	return mode
}

// add makes a later change part of f. mode is the inode's before it.
func (f *folded) add(mask cfs.SetMask, a *cfs.Attr, mode uint32, now int64) {
	if mask&cfs.SetKillPriv != 0 { // of the modes of now; what it removes besides it removes whenever
		f.mask |= cfs.SetKillPriv
		if mask&cfs.SetMode == 0 && f.mask&cfs.SetMode != 0 {
			f.attr.Mode = withoutPriv(mode)
		}
	}
	if mask&cfs.SetMode != 0 {
		f.attr.Mode = a.Mode & cfs.ModePerm
		if mask&cfs.SetKillPriv != 0 {
			f.attr.Mode = withoutPriv(f.attr.Mode)
		}
	}
	set(mask, cfs.SetUID, &f.attr.UID, a.UID)
	set(mask, cfs.SetGID, &f.attr.GID, a.GID)
	set(mask, cfs.SetSize, &f.attr.Size, a.Size)
	set(mask, cfs.SetAtime, &f.attr.AtimeNS, a.AtimeNS)
	set(mask, cfs.SetAtimeNow, &f.attr.AtimeNS, now)
	set(mask, cfs.SetSize, &f.attr.MtimeNS, now)
	set(mask, cfs.SetMtime, &f.attr.MtimeNS, a.MtimeNS)
	set(mask, cfs.SetMtimeNow, &f.attr.MtimeNS, now)
	f.attr.CtimeNS = max(f.attr.CtimeNS, now)
	set(mask, cfs.SetCtime, &f.attr.CtimeNS, a.CtimeNS)
	f.mask |= mask&(cfs.SetMode|cfs.SetUID|cfs.SetGID|cfs.SetSize|cfs.SetAtime|cfs.SetMtime) | cfs.SetCtime
	if mask&cfs.SetAtimeNow != 0 {
		f.mask |= cfs.SetAtime
	}
	if mask&(cfs.SetMtimeNow|cfs.SetSize) != 0 {
		f.mask |= cfs.SetMtime
	}
}

// under puts f, which is older, under a change that was gathered since.
func (f folded) under(later folded) folded {
	a := f.attr
	later.apply(&a)
	if later.mask&cfs.SetKillPriv != 0 && later.mask&cfs.SetMode == 0 && f.mask&cfs.SetMode != 0 {
		a.Mode = withoutPriv(f.attr.Mode)
	}
	return folded{f.mask | later.mask, a}
}

// ops are the operations that make the change. What takes privileges away comes first: the mode may
// give some back. A size that the file has grown beyond is left out.
func (f *folded) ops(i cfs.Ino, size uint64, mtimeNS int64) []cfs.Op {
	var ops []cfs.Op
	mask, a := f.mask&^cfs.SetKillPriv, f.attr
	if mask&cfs.SetSize != 0 && f.attr.Size <= size {
		mask &^= cfs.SetSize
	}
	if mask&(cfs.SetSize|cfs.SetMtime) == cfs.SetSize {
		mask, a.MtimeNS = mask|cfs.SetMtime, mtimeNS // of the write after it
	}
	if f.mask&cfs.SetKillPriv != 0 {
		ops = append(ops, cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: cfs.SetKillPriv})
	}
	return append(ops, cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: mask, Attr: a})
}

// adopt takes note of an inode that this session has just made and owns, unless it has been
// recalled since g: the recall may be faster than the reply. One that may have been there before (isNew is
// false) may have been given up since, too.
func (c *Client) adopt(s *session, a *cfs.Attr, parent cfs.Ino, g grant, isNew bool) {
	if a.Owner != s.id || c.session.Load() != s || !a.IsDir() && !a.IsRegular() {
		return
	}
	m, unlock := c.inodes.lock(a.Ino)
	defer unlock()
	// A new session disowns what is in the table after it has begun: under the lock it sees this, or is seen.
	if c.session.Load() != s || c.cache.overtaken(a.Ino, g, isNew) {
		return
	}
	n := c.at(m, a.Ino)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.observeLocked(*a)
	if n.own != ownNone {
		return
	}
	n.own, n.ownSess, n.isDir, n.used = ownHeld, s, a.IsDir(), time.Now()
	if c.inodes.owned.Add(1) > crowdedOwned {
		signal(c.crowded)
	}
	if n.isDir {
		c.cache.keepListing(a.Ino, parent, map[string]listed{}, grant{asked: g.asked})
	}
}

// disownLocked ends an ownership; the caller wakes who waits.
func (n *inode) disownLocked() {
	n.own, n.ownSess, n.hush = ownNone, nil, hushing{}
	n.dropExtentsLocked()
	n.c.inodes.owned.Add(-1)
	n.c.cache.disowned(n.ino)
	if n.isDir {
		n.c.cache.dropListing(n.ino)
	}
}

func (n *inode) isOwned() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own == ownHeld
}

// owns reports that this session has the exclusive lease of an inode, until st.alive.
func (c *Client) owns(i cfs.Ino) bool {
	n := c.inodes.find(i)
	return n != nil && n.isOwned()
}

// ownedAttr is the attributes of an inode that this session owns: nobody knows better.
func (c *Client) ownedAttr(i cfs.Ino) (cfs.Attr, bool) {
	n := c.inodes.find(i)
	if n == nil {
		return cfs.Attr{}, false
	}
	return n.ownAttr()
}

func (n *inode) ownAttr() (cfs.Attr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.own != ownHeld || n.c.cache.inDoubt(n.ino) {
		return cfs.Attr{}, false
	}
	return n.overlayLocked(), true
}

// restoreLocked keeps back again what was sent and has to go again, under what was gathered since. A write
// that came after it has the later time.
func (n *inode) restoreLocked() {
	if n.sent.mask&cfs.SetMtime != 0 && n.mtimeNS != n.sent.attr.MtimeNS {
		n.sent.mask &^= cfs.SetMtime
	}
	n.pend = n.sent.under(n.pend)
	n.dueLocked()
}

// fold keeps a change of attributes back, where that is allowed: the inode is a regular file that
// this session owns, the change cannot fail, and no file gets shorter.
func (n *inode) fold(mask cfs.SetMask, a *cfs.Attr) (cfs.Attr, bool) {
	n.order.RLock()
	defer n.order.RUnlock()
	alive := n.c.leases.state.Load().alive
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.own != ownHeld || n.isDir || n.gone || mask&^foldable != 0 || n.c.leases.boot() >= alive {
		return cfs.Attr{}, false
	}
	// What is due waits for the writes before it, and would do so for ever if each change came after another write.
	if n.pendDue && n.seq > n.pendSeq || n.c.cache.inDoubt(n.ino) {
		return cfs.Attr{}, false
	}
	if mask&cfs.SetSize != 0 && (a.Size < n.sizeLocked() || a.Size > cfs.MaxFileSize) {
		return cfs.Attr{}, false
	}
	now := time.Now()
	if n.pend.mask == 0 {
		n.pendAt = now
	}
	n.pend.add(mask, a, n.overlayLocked().Mode, now.UnixNano())
	if n.pend.mask&cfs.SetMtime != 0 && mask&(cfs.SetSize|cfs.SetMtime|cfs.SetMtimeNow) != 0 {
		n.mtimeNS = n.pend.attr.MtimeNS
	}
	n.pendSeq = n.seq
	n.folds++
	n.used = now
	return n.overlayLocked(), true
}

// folding reports that changes of attributes are kept back or on their way.
func (n *inode) folding() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pend.mask|n.sent.mask != 0
}

// dueLocked sends what is kept back on its way, with the writes before it.
func (n *inode) dueLocked() {
	if n.pend.mask != 0 {
		n.pendDue = true
		n.sealLocked(func(k *chunk) bool { return k.seq <= n.pendSeq })
		n.kickLocked()
	}
}

// leave begins to give up an exclusive lease: with the commit of what is written and kept back.
func (n *inode) leave() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.own != ownHeld {
		return
	}
	n.own, n.leaveSeq = ownLeaving, n.seq
	n.sealLocked(func(*chunk) bool { return true })
	n.dueLocked()
	n.kickLocked()
}

// surrender gives up the exclusive lease of an inode, and returns when the cluster knows it.
func (c *Client) surrender(ctx context.Context, i cfs.Ino) error {
	n := c.inodes.find(i)
	if n == nil || !n.isOwning() {
		_, err := c.do(ctx, cfs.Cred{}, cfs.Op{Kind: cfs.OpSurrender, Ino: i})
		if k := cfs.KindOf(err); k == cfs.Stale || k == cfs.NotFound {
			err = nil // it is gone, and the lease with it
		}
		return err
	}
	if c.inodes.isOpen(n) && !n.isDirectory() {
		c.register(ctx, n) // while nobody else can take its name
	}
	n.leave()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.waitLocked(ctx, func() bool { return n.own == ownNone })
}

func (n *inode) isOwning() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own != ownNone
}

func (n *inode) isDirectory() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.isDir
}

// touch notes that an owned inode is in use.
func (n *inode) touch() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.own == ownHeld {
		n.used = time.Now()
	}
}

// closed takes note of the last close: the table's lock is held.
func (n *inode) closed() {
	n.touch()
	if n.isGone() {
		n.discard()
	}
}

func (n *inode) isGone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

// vanish takes note that an inode has no name, by a command of ours, and of whether it is held.
func (n *inode) vanish(held bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.vanishLocked(held)
}

func (n *inode) vanishLocked(held bool) {
	n.gone = true
	if held {
		n.orphan.Store(true)
		return
	}
	n.discardLocked()
}

// appear takes note that an inode without a name has been given one.
func (n *inode) appear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone, n.dropped = false, false
	n.orphan.Store(false)
}

// discard drops what is written to an inode that nobody can open any more; true says that there
// is something left which is not to be dropped.
func (n *inode) discard() (dirty bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.gone {
		return n.dirtyLocked()
	}
	n.discardLocked()
	return false
}

func (n *inode) discardLocked() {
	n.dropped = true
	if n.own != ownNone {
		n.disownLocked() // it goes with the inode
	}
	n.pend = folded{}
	if n.sent.mask == 0 {
		n.foldsDone = n.folds
	}
	n.leaveLocked(func(*chunk) bool { return true }, nil)
}

// commitOld commits what has been written for longer than commitAfter, and gives up what is owned
// and has not been used for a while.
func (c *Client) commitOld() {
	tick := time.NewTicker(commitAfter / 5)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.memory.pressure:
			for _, n := range c.inodes.all() {
				n.sealAll()
			}
		case <-c.crowded:
			c.disownOldest()
		case now := <-tick.C:
			for _, n := range c.inodes.all() {
				c.age(n, now)
			}
		}
	}
}

// age commits and gives up what of an inode is old enough at now.
func (c *Client) age(n *inode, now time.Time) {
	open := c.inodes.isOpen(n)
	n.mu.Lock()
	old := now.Add(-commitAfter)
	goes := func(by time.Time) bool { return n.own == ownHeld && !open && n.idleLocked(by) }
	leave := n.quietLocked(goes(now.Add(n.c.hushLead())), now) && goes(now)
	if !leave { // else all goes at once
		n.sealLocked(func(k *chunk) bool { return k.born.Before(old) })
		if n.pend.mask != 0 && n.pendAt.Before(old) {
			n.dueLocked()
		}
	}
	n.mu.Unlock()
	if leave {
		n.leave()
	}
}

// idleLocked reports that what is owned is to be given up by a time: something is to be committed by then, or nothing happens.
func (n *inode) idleLocked(by time.Time) bool {
	old := by.Add(-commitAfter)
	late := n.pend.mask != 0 && n.pendAt.Before(old)
	for _, k := range n.chunks {
		late = late || k.born.Before(old)
	}
	idle := disownAfter
	if n.isDir {
		idle = disownDirAfter
	}
	return late || n.used.Before(by.Add(-idle))
}

// disownOldest gives up a part of what is owned and closed, the longest unused first.
func (c *Client) disownOldest() {
	type candidate struct {
		n    *inode
		used time.Time
	}
	var all []candidate
	for _, n := range c.inodes.all() {
		if c.inodes.isOpen(n) {
			continue
		}
		n.mu.Lock()
		if n.own == ownHeld {
			all = append(all, candidate{n, n.used})
		}
		n.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b candidate) int { return a.used.Compare(b.used) })
	oldest := all[:len(all)/4]
	lead := c.hushLead()
	for _, k := range oldest {
		k.n.mu.Lock()
		k.n.hush.recalled = lead > 0 // it leaves, whatever happens
		k.n.mu.Unlock()
	}
	c.wg.Go(func() {
		sleep(c.ctx, lead)
		for _, k := range oldest {
			k.n.leave()
		}
	})
}

// flushAll commits all and gives up all that is owned. The error is the first that a commit met.
func (c *Client) flushAll(ctx context.Context) error {
	first := c.await(ctx, true)
	all := c.inodes.all()
	for i := range all {
		n := c.open(all[i].ino) // so that a failure is told here; it may be another by now
		all[i] = n
		n.leave()
		n.sealAll()
	}
	for _, n := range all {
		err := n.flush(ctx)
		if err == nil {
			n.mu.Lock()
			err = n.waitLocked(ctx, func() bool { return n.own == ownNone })
			n.mu.Unlock()
		}
		if err == nil {
			err = n.untold()
		}
		if first == nil {
			first = err
		}
		c.release(ctx, n)
	}
	return first
}

// mayDefer reports that a close need not commit what was written: this session owns the inode, and
// there is no sign that space runs out, which close is to tell of then.
func (n *inode) mayDefer() bool { return n.isOwned() && !n.c.tight() }

// tight reports that a device is full, as far as the cluster or this client knows.
func (c *Client) tight() bool {
	for id, at := range c.layout.get().devices {
		if at.full || c.full.has(id) {
			return true
		}
	}
	return false
}
