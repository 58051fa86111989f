package client

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// bedLeases is what the bed's leader knows of leases: grants, recalls and open
// marks, as simple as can be. Owners are in the state.
type bedLeases struct {
	b *bed

	mu       sync.Mutex // before bed.mu
	changed  chan struct{}
	leader   int
	began    time.Time // when it began to lead, zero for the first
	next     uint64    // epochs and recalls
	sessions map[cfs.SessionID]*bedSession
	pending  map[string]int // changes of a key that are on their way
	refuse   bool           // no leases at all
	quiet    bool           // recalls are not delivered
	recalls  map[wire.RecallKind]int
}

type bedSession struct {
	id       cfs.SessionID
	epoch    uint64
	heard    time.Time // the last heartbeat under this epoch
	attached bool
	keys     map[string]bool
	opens    map[cfs.Ino]bool
	recalls  map[uint64]*bedRecall
	watches  int
}

type bedRecall struct {
	pb   *wirepb.Recall
	acks []*wirepb.Ack
}

func newBedLeases(b *bed) *bedLeases {
	return &bedLeases{b: b, changed: make(chan struct{}), sessions: map[cfs.SessionID]*bedSession{}, pending: map[string]int{}, recalls: map[wire.RecallKind]int{}}
}

func attrKey(i cfs.Ino) string             { return fmt.Sprintf("a%d", i) }
func listKey(i cfs.Ino) string             { return fmt.Sprintf("l%d", i) }
func nameKeyOf(d cfs.Ino, n string) string { return fmt.Sprintf("n%d/%s", d, n) }
func (s *bedSession) fresh() bool          { return s.attached && time.Since(s.heard) < leaseTime }
func (l *bedLeases) wakeLocked()           { close(l.changed); l.changed = make(chan struct{}) }
func (l *bedLeases) count(k wire.RecallKind) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recalls[k]
}

// waitLocked waits until done, or until the time is up.
func (l *bedLeases) waitLocked(ctx context.Context, atMost time.Duration, done func() bool) bool {
	end := time.Now().Add(atMost)
	for !done() {
		ch := l.changed
		l.mu.Unlock()
		select {
		case <-ch:
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
		l.mu.Lock()
		if ctx.Err() != nil || time.Now().After(end) {
			return done()
		}
	}
	return true
}

func (l *bedLeases) newEpochLocked(s *bedSession) {
	l.next++
	s.epoch, s.attached = l.next, false
	s.keys, s.recalls = map[string]bool{}, map[uint64]*bedRecall{}
	l.wakeLocked()
}

func (l *bedLeases) sessionLocked(id cfs.SessionID) *bedSession {
	s := l.sessions[id]
	if s == nil {
		s = &bedSession{id: id, opens: map[cfs.Ino]bool{}}
		l.newEpochLocked(s)
		l.sessions[id] = s
	}
	return s
}

// lead forgets everything when another has begun to lead.
func (l *bedLeases) lead(self int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leader == self {
		return
	}
	l.leader, l.began = self, time.Now()
	for _, s := range l.sessions {
		l.newEpochLocked(s)
		s.opens = map[cfs.Ino]bool{}
	}
}

func (l *bedLeases) heartbeat(m *wirepb.Heartbeat) *wirepb.HeartbeatReply {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessionLocked(cfs.SessionID(m.Session))
	switch {
	case l.refuse:
		return &wirepb.HeartbeatReply{}
	case m.Epoch != s.epoch:
	case s.attached && !s.fresh():
		l.newEpochLocked(s)
	default:
		s.heard, s.attached = time.Now(), true
		for _, i := range m.Opens {
			s.opens[cfs.Ino(i)] = true
		}
		l.wakeLocked()
	}
	return &wirepb.HeartbeatReply{Epoch: s.epoch, LeaseMs: uint32(leaseTime.Milliseconds())}
}

func (l *bedLeases) watch(ctx context.Context, m *wirepb.Watch) *wirepb.WatchReply {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessionLocked(cfs.SessionID(m.Session))
	if m.Epoch == s.epoch {
		for _, a := range m.Acks {
			if r := s.recalls[a.Id]; r != nil {
				r.acks = append(r.acks, a)
			}
		}
	}
	s.watches++
	mine := s.watches
	l.wakeLocked()
	l.waitLocked(ctx, time.Second, func() bool {
		return s.watches != mine || m.Epoch != s.epoch || !l.quiet && len(s.unacked()) > 0
	})
	reply := &wirepb.WatchReply{Epoch: s.epoch}
	if s.watches == mine && !l.quiet {
		reply.Recalls = s.unacked()
	}
	return reply
}

func (s *bedSession) unacked() (all []*wirepb.Recall) {
	for _, r := range s.recalls {
		if len(r.acks) == 0 {
			all = append(all, r.pb)
		}
	}
	return all
}

// recallLocked begins a recall.
func (l *bedLeases) recallLocked(s *bedSession, pb *wirepb.Recall) *bedRecall {
	l.next++
	pb.Id = l.next
	r := &bedRecall{pb: pb}
	s.recalls[pb.Id] = r
	l.recalls[wire.RecallKind(pb.Kind)]++
	l.wakeLocked()
	return r
}

// look is what is behind a name.
func (l *bedLeases) look(dir cfs.Ino, name string) cfs.Attr {
	return l.b.read(&cfs.Query{Kind: cfs.QueryLookup, Dir: dir, Name: name}).Attr
}

// owner is the session that owns an inode, if it lives.
func (l *bedLeases) ownerLocked(i cfs.Ino) *bedSession {
	if i == 0 {
		return nil
	}
	return l.sessions[l.b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: i}).Attr.Owner]
}

// disown has other sessions give up what they own of inos.
func (l *bedLeases) disownLocked(ctx context.Context, self cfs.SessionID, inos ...cfs.Ino) {
	for _, i := range inos {
		o := l.ownerLocked(i)
		if o == nil || o.id == self {
			continue
		}
		r := l.recallLocked(o, &wirepb.Recall{Kind: uint32(wire.RecallExclusive), Ino: uint64(i)})
		epoch := o.epoch
		l.waitLocked(ctx, time.Minute, func() bool {
			if o.epoch != epoch { // asked again
				epoch = o.epoch
				r = l.recallLocked(o, &wirepb.Recall{Kind: uint32(wire.RecallExclusive), Ino: uint64(i)})
			}
			return len(r.acks) > 0 || l.ownerLocked(i) != o
		})
		delete(o.recalls, r.pb.Id)
	}
}

// bedChange is what a command changes.
type bedChange struct {
	keys map[string]*wirepb.Recall
	inos []cfs.Ino
	last []cfs.Ino // whose last name may go, by operation
}

func (c *bedChange) attr(i cfs.Ino) {
	if i != 0 {
		c.keys[attrKey(i)] = &wirepb.Recall{Kind: uint32(wire.RecallAttr), Ino: uint64(i)}
		c.inos = append(c.inos, i)
	}
}

func (l *bedLeases) keysOf(cmd *cfs.Command) *bedChange {
	c := &bedChange{keys: map[string]*wirepb.Recall{}, last: make([]cfs.Ino, len(cmd.Ops))}
	entry := func(at int, dir cfs.Ino, name string) {
		c.attr(dir)
		c.keys[listKey(dir)] = &wirepb.Recall{Kind: uint32(wire.RecallList), Dir: uint64(dir)}
		c.keys[nameKeyOf(dir, name)] = &wirepb.Recall{Kind: uint32(wire.RecallName), Dir: uint64(dir), Name: []byte(name)}
		a := l.look(dir, name)
		c.attr(a.Ino)
		if a.Nlink == 1 {
			c.last[at] = a.Ino
		}
	}
	for at := range cmd.Ops {
		switch op := &cmd.Ops[at]; op.Kind {
		case cfs.OpCreate, cfs.OpUnlink, cfs.OpRmdir:
			entry(at, op.Dir, op.Name)
		case cfs.OpLink:
			entry(at, op.Dir, op.Name)
			c.attr(op.Ino)
		case cfs.OpRename:
			entry(at, op.Dir, op.Name)
			c.last[at] = 0
			entry(at, op.NewDir, op.NewName)
		case cfs.OpSurrender:
		default:
			c.attr(op.Ino)
		}
	}
	return c
}

// begin recalls what others have of what a command changes, and waits for it.
func (l *bedLeases) begin(ctx context.Context, cmd *cfs.Command) *bedChange {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cmd.Session != 0 && !l.began.IsZero() {
		l.waitLocked(ctx, leaseTime-time.Since(l.began), func() bool {
			for _, s := range l.sessions {
				if !s.attached {
					return false
				}
			}
			return true
		})
	}
	c := l.keysOf(cmd)
	l.disownLocked(ctx, cmd.Session, c.inos...)
	for k := range c.keys {
		l.pending[k]++
	}
	for _, s := range l.sessions {
		if s.id != cmd.Session {
			l.takeLocked(ctx, s, c.keys)
		}
	}
	for at, i := range c.last {
		for _, s := range l.sessions {
			if k := cmd.Ops[at].Kind; s.id == cmd.Session || !s.opens[i] || k != cfs.OpUnlink && k != cfs.OpRename {
				continue
			}
			r := l.recallLocked(s, &wirepb.Recall{Kind: uint32(wire.RecallOpen), Ino: uint64(i)})
			l.waitLocked(ctx, leaseTime, func() bool { return len(r.acks) > 0 })
			if delete(s.recalls, r.pb.Id); len(r.acks) > 0 && r.acks[0].Kind == uint32(wire.AckDropped) {
				delete(s.opens, i)
			} else {
				cmd.Ops[at].Holds = append(cmd.Ops[at].Holds, s.id)
			}
		}
	}
	return c
}

// takeLocked takes keys from a session: it gives them back, or they lapse, all of them.
func (l *bedLeases) takeLocked(ctx context.Context, s *bedSession, keys map[string]*wirepb.Recall) {
	var mine []*bedRecall
	for k, pb := range keys {
		if s.keys[k] {
			mine = append(mine, l.recallLocked(s, &wirepb.Recall{Kind: pb.Kind, Ino: pb.Ino, Dir: pb.Dir, Name: pb.Name}))
		}
	}
	if len(mine) == 0 {
		return
	}
	epoch := s.epoch
	given := func() bool {
		for _, r := range mine {
			if len(r.acks) == 0 {
				return false
			}
		}
		return true
	}
	l.waitLocked(ctx, time.Minute, func() bool { return s.epoch != epoch || given() || !s.fresh() })
	if s.epoch != epoch {
		return
	}
	for _, r := range mine {
		delete(s.recalls, r.pb.Id)
	}
	if !given() {
		l.newEpochLocked(s)
	}
	for k := range keys {
		delete(s.keys, k)
	}
}

// end lets keys be granted again, and grants them to who has changed them.
func (l *bedLeases) end(cmd *cfs.Command, c *bedChange, reply *cfs.Reply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range c.keys {
		if l.pending[k]--; l.pending[k] == 0 {
			delete(l.pending, k)
		}
	}
	for i := range cmd.Ops {
		if cmd.Ops[i].Kind == cfs.OpExpireSession {
			delete(l.sessions, cmd.Ops[i].Sess)
		}
	}
	l.wakeLocked()
	s := l.sessions[cmd.Session]
	if s == nil || !s.fresh() || l.refuse || reply.Kind != cfs.KindOK {
		return
	}
	for i := range reply.Results {
		c.attr(reply.Results[i].Attr.Ino)
	}
	for k := range c.keys {
		if l.pending[k] > 0 {
			return
		}
	}
	for k, pb := range c.keys {
		if pb.Kind != uint32(wire.RecallList) {
			s.keys[k] = true
		}
	}
	reply.Leased = true
}

// answer answers a query, with leases where it can.
func (l *bedLeases) answer(ctx context.Context, q *cfs.Query) *cfs.Answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.Open {
		l.sessionLocked(q.Session).opens[q.Ino] = true
	}
	inos := []cfs.Ino{q.Ino, q.Dir}
	target := q.Ino
	if q.Kind == cfs.QueryLookup {
		target = l.look(q.Dir, q.Name).Ino
	}
	if q.Kind == cfs.QueryLookup || q.Kind == cfs.QueryGetAttr {
		inos = []cfs.Ino{q.Dir}
		if o := l.ownerLocked(target); o != nil && o.id != q.Session {
			r := l.recallLocked(o, &wirepb.Recall{Kind: uint32(wire.RecallReport), Ino: uint64(target)})
			l.waitLocked(ctx, 20*time.Second, func() bool { return len(r.acks) > 0 })
			delete(o.recalls, r.pb.Id)
			if len(r.acks) > 0 && r.acks[0].Kind == uint32(wire.AckReport) {
				a := l.b.read(q)
				if a.Attr.Ino == target {
					a.Attr = wire.AttrFromPB(r.acks[0].Attr)
				}
				return a
			}
		}
	}
	l.disownLocked(ctx, q.Session, inos...)
	a := l.b.read(q)
	s := l.sessions[q.Session]
	if s == nil || q.Epoch != s.epoch || !s.fresh() || l.refuse {
		return a
	}
	keys := []string{attrKey(q.Ino)}
	switch q.Kind {
	case cfs.QueryLookup:
		keys = []string{nameKeyOf(q.Dir, q.Name), attrKey(a.Attr.Ino)}
	case cfs.QueryReadDir:
		keys = []string{listKey(q.Dir), attrKey(q.Dir)}
		for i := range a.Entries {
			if e := &a.Entries[i]; e.Attr != nil && e.Attr.Owner != 0 && e.Attr.Owner != q.Session {
				e.Attr = nil
			} else if e.Attr != nil {
				keys = append(keys, attrKey(e.Ino))
			}
		}
	case cfs.QueryGetAttr, cfs.QueryExtents, cfs.QueryGetXattr, cfs.QueryListXattr, cfs.QueryReadlink:
	default:
		return a
	}
	for _, k := range keys {
		if l.pending[k] > 0 {
			return a
		}
	}
	for _, k := range keys {
		s.keys[k] = true
	}
	a.Leased = true
	return a
}

// awaitLease waits until a client has its leases.
func awaitLease(c *Client) {
	for end := time.Now().Add(20 * time.Second); c.leases.left() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}
