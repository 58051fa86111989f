package client

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of what is done to names in memory first.
const (
	// maxBehind bounds the operations that are not committed: who makes one more waits.
	maxBehind = 4096
	// maxBehindOps bounds those of one command.
	maxBehindOps = 128
	// inosAhead is how many inode numbers the session asks for at a time: it asks again when half are used.
	inosAhead = 4096
)

// behind is the queue of what this client has done to the names of directories that it owns, in memory: commands follow,
// one at a time and in order, each as soon as the one before has ended.
//
// Nothing that is pending meets another command or query: those that name an inode which a pending operation
// concerns wait for that one (enter, await), and nothing new is queued for an inode while a command of the other kind is
// on its way to it (direct). So they see the queue as if it had been durable all the time.
type behind struct {
	on     bool
	making sync.Mutex   // puts the makers in sequence; taken before all other locks
	left   atomic.Int64 // operations that are pending

	mu      sync.Mutex // of what follows; nothing is called under it
	queue   []*pending // oldest first, with those on their way
	next    uint64     // number of the newest
	done    uint64     // all up to it have ended
	last    map[cfs.Ino]uint64
	direct  map[cfs.Ino]int // other commands on their way, by what they name
	blind   int             // those of which it is not known what they change
	limit   int             // operations of the next command, where the last was refused
	sending bool
	moved   chan struct{} // closed and replaced when done rises

	numbers []inoRange
	asking  bool
}

// inoRange is inode numbers that a session may use: [first, end).
type inoRange struct {
	sess       *session
	first, end cfs.Ino
}

// pending is an operation that has been done in memory.
type pending struct {
	num  uint64
	sess *session
	cred cfs.Cred
	op   cfs.Op
	on   []pendingOn
}

// pendingOn is what a pending operation changes of an inode.
type pendingOn struct {
	ino   cfs.Ino
	n     *inode // nil where the client keeps nothing of it
	links int
	isDir bool // a directory whose names it changes
}

// naming is what pending operations change of an inode, guarded by inode.mu.
type naming struct {
	queued  int // how many concern it: what the cluster says of it meanwhile is older
	links   int
	mtimeNS int64
	ctimeNS int64
	plain   bool // a directory that is known to have no default ACL
	aclSets int  // commands that change the default ACL
}

// apply makes the changes to a.
func (m *naming) apply(a *cfs.Attr) {
	if m.queued == 0 {
		return
	}
	a.Nlink = uint32(int(a.Nlink) + m.links)
	if m.mtimeNS != 0 {
		a.MtimeNS = m.mtimeNS
	}
	a.CtimeNS = max(a.CtimeNS, m.ctimeNS)
}

func newBehind(on bool) behind {
	return behind{on: on, last: map[cfs.Ino]uint64{}, direct: map[cfs.Ino]int{}, moved: make(chan struct{})}
}

// concerned is what a command names, or that it may change any inode.
func (c *Client) concerned(ops []cfs.Op) (inos []cfs.Ino, any bool) {
	add := func(i cfs.Ino) {
		if i != 0 {
			inos = append(inos, i)
		}
	}
	at := func(dir cfs.Ino, name string) {
		i, known := c.cachedName(dir, name)
		add(i)
		any = any || !known
	}
	for i := range ops {
		op := &ops[i]
		add(op.Ino)
		switch op.Kind {
		case cfs.OpCreate, cfs.OpLink, cfs.OpUnlink:
			add(op.Dir)
		case cfs.OpRmdir:
			add(op.Dir)
			at(op.Dir, op.Name)
		case cfs.OpRename:
			add(op.Dir)
			add(op.NewDir)
			at(op.Dir, op.Name)
			at(op.NewDir, op.NewName)
		}
	}
	return inos, any
}

// enter waits until nothing pending concerns what a command names, and keeps it so until leave is called.
func (c *Client) enter(ctx context.Context, ops []cfs.Op) (leave func(), err error) {
	b := &c.behind
	if !b.on || len(ops) == 0 {
		return func() {}, nil
	}
	inos, any := c.concerned(ops)
	by := func(d int) {
		for _, i := range inos {
			if b.direct[i] += d; b.direct[i] == 0 {
				delete(b.direct, i)
			}
		}
		if any {
			b.blind += d
		}
	}
	b.mu.Lock()
	by(1)
	upTo := b.newestLocked(inos, any)
	b.mu.Unlock()
	leave = func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		by(-1)
	}
	if err := c.awaitNumber(ctx, upTo); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// newestLocked is the newest pending operation that concerns one of inos, or any; 0 for none.
func (b *behind) newestLocked(inos []cfs.Ino, any bool) (num uint64) {
	if any {
		return b.next
	}
	for _, i := range inos {
		num = max(num, b.last[i])
	}
	return num
}

// await waits until what is pending for inodes, or all that is, has ended.
func (c *Client) await(ctx context.Context, all bool, inos ...cfs.Ino) error {
	b := &c.behind
	if b.left.Load() == 0 {
		return nil
	}
	b.mu.Lock()
	num := b.newestLocked(inos, all)
	b.mu.Unlock()
	return c.awaitNumber(ctx, num)
}

// concerns reports that something pending concerns an inode.
func (b *behind) concerns(i cfs.Ino) bool {
	if b.left.Load() == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last[i] != 0
}

func (c *Client) awaitNumber(ctx context.Context, num uint64) error {
	return c.awaitBehind(ctx, func(b *behind) bool { return b.done >= num })
}

// awaitBehind waits for something of the queue.
func (c *Client) awaitBehind(ctx context.Context, ready func(*behind) bool) error {
	b := &c.behind
	for {
		b.mu.Lock()
		is, moved := ready(b), b.moved
		b.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctxError("wait for names", ctx)
		case <-c.ctx.Done():
			return cfs.E("wait for names", cfs.Closed, nil)
		}
	}
}

// SyncDir returns when all that was done to the names of a directory is durable. A failure is told once.
func (c *Client) SyncDir(ctx context.Context, dir cfs.Ino) error {
	if err := c.await(ctx, false, dir); err != nil {
		return err
	}
	if n := c.find(dir); n != nil {
		return n.untold()
	}
	return nil
}

// mayQueueLocked reports that nothing stands against an operation on inodes which is not sent at once.
func (b *behind) mayQueueLocked(on []pendingOn) bool {
	for i := range on {
		if b.direct[on[i].ino] > 0 {
			return false
		}
	}
	return b.blind == 0
}

// push queues an operation; false where a command is on its way to what it changes. with is called before it can
// be sent. Of what it changes the caller holds the locks.
func (c *Client) push(p *pending, with func() bool) bool {
	b := &c.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.mayQueueLocked(p.on) || !with() {
		return false
	}
	b.next++
	p.num = b.next
	b.queue = append(b.queue, p)
	b.left.Add(1)
	c.stats.behindOps.Add(1)
	for i := range p.on {
		b.last[p.on[i].ino] = p.num
	}
	if !b.sending {
		b.sending = true
		c.wg.Add(1)
		go c.sendBehind()
	}
	return true
}

// sendBehind sends what is queued until nothing is.
func (c *Client) sendBehind() {
	defer c.wg.Done()
	for {
		batch := c.behind.take()
		if len(batch) == 0 {
			return
		}
		c.carryBehind(batch)
	}
}

// take is what the next command carries: operations of one session and one user.
func (b *behind) take() []*pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, limit := 0, maxBehindOps
	if b.limit > 0 {
		limit = b.limit
	}
	b.limit = 0
	for n < len(b.queue) && n < limit {
		p, first := b.queue[n], b.queue[0]
		if p.sess != first.sess || p.cred.UID != first.cred.UID || p.cred.GID != first.cred.GID {
			break
		}
		n++
	}
	if n == 0 {
		b.sending = false
	}
	return b.queue[:n:n]
}

// ended takes the oldest n operations out of the queue.
func (b *behind) ended(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.queue[:n] {
		b.done = p.num
		for i := range p.on {
			if b.last[p.on[i].ino] == p.num {
				delete(b.last, p.on[i].ino)
			}
		}
	}
	clear(b.queue[:n])
	if b.queue = b.queue[n:]; len(b.queue) == 0 {
		b.queue = nil
	}
	b.left.Add(-int64(n))
	close(b.moved)
	b.moved = make(chan struct{})
}

// carryBehind carries out operations as one command. It is never given up while the client lives: what it does
// has been seen.
func (c *Client) carryBehind(batch []*pending) {
	s := batch[0].sess
	ops := make([]cfs.Op, len(batch))
	for i, p := range batch {
		ops[i] = p.op
	}
	g := c.grantOf(s)
	c.stats.behindCommands.Add(1)
	_, reply, _, err := c.issue(c.ctx, s, batch[0].cred, ops, func() {})
	if err == nil && reply.Kind == cfs.NoSession {
		if err := c.sessionLost(c.ctx, s); err != nil {
			c.log.Warn("no session after one has expired", "err", err)
		}
	}
	b := &c.behind
	switch {
	case err == nil && reply.Kind == cfs.KindOK:
		c.landed(batch, reply, g)
	case err == nil && reply.Kind == cfs.TooBig && len(batch) > 1:
		b.retry(len(batch) / 2)
		return
	case err == nil && reply.Kind != cfs.NoSession && reply.Failed > 0: // those before it are carried out without it
		b.retry(int(reply.Failed))
		return
	case err == nil && reply.Kind != cfs.NoSession:
		batch = batch[:1]
		c.failed(batch[0], cfs.E(opName(ops, 0), reply.Kind, nil))
	default:
		if err == nil {
			err = cfs.E("commit names", cfs.NoSession, nil)
		}
		for _, p := range batch {
			c.failed(p, err)
		}
	}
	b.ended(len(batch))
}

// retry has the next command carry only the oldest n operations.
func (b *behind) retry(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = n
}

// landed takes note of operations that the cluster has carried out.
func (c *Client) landed(batch []*pending, reply *cfs.Reply, g grant) {
	era := g.era
	g = g.leased(reply.Leased)
	type change struct {
		attr   cfs.Attr // after the last
		queued int
		links  int
	}
	all := map[*inode]*change{}
	for i, p := range batch {
		r := &reply.Results[i]
		c.cache.landed(&p.op, r, g, era)
		for _, on := range p.on {
			if on.n == nil {
				continue
			}
			k := all[on.n]
			if k == nil {
				k = &change{}
				all[on.n] = k
			}
			k.queued++
			k.links += on.links
			for _, a := range [...]*cfs.Attr{&r.Attr, &r.Dir, &r.NewDir} {
				if a.Ino == on.ino {
					k.attr = *a
				}
			}
		}
	}
	for n, k := range all {
		n.mu.Lock()
		n.namedLocked(k.queued, k.links)
		if k.attr.Gen > n.attr.Gen {
			n.attr = k.attr // its extents are as they were
		}
		n.mu.Unlock()
		c.inodes.settle(n)
	}
}

// namedLocked takes note of pending operations that have ended.
func (n *inode) namedLocked(queued, links int) {
	n.naming.queued -= queued
	if n.naming.links -= links; n.naming.queued == 0 {
		n.naming.links, n.naming.mtimeNS, n.naming.ctimeNS = 0, 0, 0
	}
}

// failed takes note of an operation that the cluster has not carried out, and never will: its directory is asked for
// anew, and what it was to make is gone.
func (c *Client) failed(p *pending, err error) {
	if c.ctx.Err() == nil {
		c.log.Error("a name that was changed is not durable", "dir", uint64(p.op.Dir), "name", p.op.Name, "op", p.op.Kind.String(), "err", err)
	}
	for _, on := range p.on {
		if on.n == nil {
			continue
		}
		if on.isDir {
			c.cache.dropListing(on.ino)
		}
		on.n.notNamed(on, p, err)
		c.inodes.settle(on.n)
	}
}

// notNamed is failed of one inode.
func (n *inode) notNamed(on pendingOn, p *pending, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.namedLocked(1, on.links)
	if gives(err) && n.own != ownNone && n.ownSess == p.sess {
		n.disownLocked()
	}
	if on.isDir || p.op.Kind != cfs.OpCreate {
		n.failLocked(err)
		n.movedLocked()
		return
	}
	if n.own != ownNone {
		n.disownLocked()
	}
	n.gone = true
	if n.pend = (folded{}); n.sent.mask == 0 {
		n.foldsDone = n.folds
	}
	n.leaveLocked(func(*chunk) bool { return true }, err)
}

// landed keeps what an operation that was pending has left, under g.
func (c *cache) landed(op *cfs.Op, r *cfs.Result, g grant, era uint64) {
	seq := c.seq.Add(1)
	for _, a := range [...]*cfs.Attr{&r.Attr, &r.Dir, &r.NewDir} {
		if a.Ino == 0 {
			continue
		}
		c.changedAttr(a, g, era)
		s, sl := c.attrAt(a.Ino)
		s.mu.Lock()
		sl.changed = max(sl.changed, seq)
		s.mu.Unlock()
	}
	name := func(dir cfs.Ino, name string, i cfs.Ino, gen uint64) {
		s, sl := c.nameAt(dir, name)
		s.mu.Lock()
		defer s.mu.Unlock()
		sl.changed = max(sl.changed, seq)
		if sl.covers(g, era) {
			s.names.put(nameKey{dir, name}, cachedName{i, gen, g}, maxCached)
		} else {
			s.names.drop(nameKey{dir, name})
		}
	}
	switch op.Kind {
	case cfs.OpCreate:
		name(op.Dir, op.Name, r.Attr.Ino, r.Dir.Gen)
	case cfs.OpUnlink:
		name(op.Dir, op.Name, 0, r.Dir.Gen)
	}
}

// setBehind changes a name in the listing of a directory, from one inode (0: none) to another; false where it is not
// what is there, or not all names are known.
func (c *cache) setBehind(dir cfs.Ino, name string, from cfs.Ino, to listed) bool {
	s, sl := c.listAt(dir)
	s.mu.Lock()
	l := s.listings[dir]
	old, had := listed{}, false
	if l != nil {
		old, had = l.names[name]
	}
	if l == nil || old.ino != from || to.ino != 0 && len(l.names) >= maxListed {
		s.mu.Unlock()
		return false
	}
	sl.changed = c.seq.Add(1)
	switch {
	case to.ino != 0:
		l.names[name] = to
		if !had {
			c.names.Add(1)
		}
	case had:
		delete(l.names, name)
		c.names.Add(-1)
	}
	s.mu.Unlock()
	s, sl = c.nameAt(dir, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.changed = c.seq.Add(1)
	s.names.drop(nameKey{dir, name})
	return true
}

// newListing keeps that a directory which has just been made is empty.
func (c *cache) newListing(dir, parent cfs.Ino) {
	g := grant{asked: c.seq.Load()}
	c.keepListing(dir, parent, map[string]listed{}, g)
}
