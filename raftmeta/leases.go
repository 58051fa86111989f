package raftmeta

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/planted"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/raftmeta/lease"
	"github.com/claudefs/claudefs/wire"
)

// leases are the leases under one leadership, and those who wait for them. Package
// lease says who waits for whom.
type leases struct {
	n        *Node
	began    time.Time // monotonic: all of the table's times are since then
	ended    <-chan struct{}
	settled  atomic.Bool   // no lease of an earlier leader is in use any more
	attached chan struct{} // closed when every session has attached
	once     sync.Once     // to close it
	settling atomic.Int64  // who wait for that

	mu      sync.Mutex
	t       *lease.Table
	waits   map[cfs.SessionID]int // who wait for recalls
	waiting int                   // all of them
	// owners is who was seen to own an inode, 0 for nobody. An owner never changes but to nobody,
	// so a command of that session, or of any where it is nobody, needs no look at the state.
	owners  map[cfs.Ino]cfs.SessionID
	counted lease.Stats // what the metrics have
}

func newLeases(n *Node, term uint64, open []fsm.Session, ended <-chan struct{}) *leases {
	l := &leases{n: n, began: time.Now(), ended: ended, attached: make(chan struct{}), waits: map[cfs.SessionID]int{}, owners: map[cfs.Ino]cfs.SessionID{}}
	l.t = lease.NewTable(lease.Config{Term: term, LeaseTime: n.cfg.LeaseTime, AskAgain: recallAgain, MaxKeys: maxSessionLeases, MaxAll: maxLeases, MaxOpens: maxSessionOpens})
	for _, s := range open {
		l.t.AddSession(s.ID, false)
	}
	return l
}

func (l *leases) now() time.Duration { return time.Since(l.began) }

// note follows sessions that were opened or ended.
func (l *leases) note(changes []sessionChange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range changes {
		if c.ended {
			l.t.EndSession(c.id)
		} else {
			l.t.AddSession(c.id, true)
		}
	}
	l.settleLocked()
}

func (l *leases) settleLocked() {
	if !l.t.Grace(l.now()) {
		l.settled.Store(true)
		l.once.Do(func() { close(l.attached) })
	}
}

// beat takes a session's heartbeat, confirmed since it arrived; it is the session's epoch.
func (l *leases) beat(id cfs.SessionID, epoch uint64, opens []uint64, arrived time.Time) (uint64, bool) {
	inodes := make([]cfs.Ino, len(opens))
	for i, o := range opens {
		inodes[i] = cfs.Ino(o)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now, ok := l.t.Beat(id, epoch, inodes, arrived.Sub(l.began), l.now())
	l.settleLocked()
	return now, ok
}

// settle waits until no session can have a lease of an earlier leader.
func (l *leases) settle(ctx context.Context) error {
	if l.settled.Load() {
		return nil
	}
	l.settling.Add(1)
	defer l.settling.Add(-1)
	timer := time.NewTimer(l.n.cfg.LeaseTime - l.now())
	defer timer.Stop()
	select {
	case <-l.attached:
	case <-timer.C:
	case <-ctx.Done():
		return cfs.E("wait for sessions of an earlier leader", contextKind(ctx), ctx.Err())
	case <-l.ended:
		return l.n.notLeader("command")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settleLocked()
	return nil
}

// wait waits until ready, which is called with mu held, on behalf of a session.
func (l *leases) wait(ctx context.Context, id cfs.SessionID, w *lease.Wait, ready func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ready() {
		return nil
	}
	if l.waits[id] >= maxRecallWaits || l.waiting >= maxAllRecallWaits {
		return cfs.Errorf("wait for recalls", cfs.Overloaded, "%d requests of session %d wait for recalls", l.waits[id], id)
	}
	if w.Wake == nil {
		w.Wake = make(chan struct{}, 1)
	}
	l.waits[id]++
	l.waiting++
	start := time.Now()
	defer func() {
		l.n.metrics.recallWait.Observe(time.Since(start).Seconds())
		l.waiting--
		if l.waits[id]--; l.waits[id] == 0 {
			delete(l.waits, id)
		}
	}()
	timer := time.NewTimer(l.n.cfg.LeaseTime)
	defer timer.Stop()
	for {
		next := l.t.Tick(l.now())
		if ready() {
			return nil
		}
		again := l.n.cfg.LeaseTime
		if next > 0 {
			again = next - l.now()
		}
		timer.Reset(again)
		if err := l.sleep(ctx, w.Wake, timer.C); err != nil {
			return err
		}
	}
}

// sleep waits without the lock for one of what it is given.
func (l *leases) sleep(ctx context.Context, wake <-chan struct{}, timer <-chan time.Time) error {
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-wake:
	case <-timer:
	case <-ctx.Done():
		return cfs.E("wait for recalls", contextKind(ctx), ctx.Err())
	case <-l.ended:
		return l.n.notLeader("wait for recalls")
	}
	return nil
}

// over reports that this leadership has ended. What the table says then is worth nothing: the
// next leader may commit what this node has not got.
func (l *leases) over() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}

// closed notes that a session does not have an inode open after all.
func (l *leases) closed(id cfs.SessionID, i cfs.Ino) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Closed(id, i)
}

// cancel leaves nothing of a wait behind.
func (l *leases) cancel(w *lease.Wait) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Cancel(w)
}

// owned is an inode of which another session has the exclusive lease.
type owned struct {
	ino   cfs.Ino
	owner cfs.SessionID
	kind  lease.Kind // of the recall
}

// recallOwners asks the owners, and waits for all of them. One that has answered may still be
// the owner in the state: look again.
func (l *leases) recallOwners(ctx context.Context, id cfs.SessionID, w *lease.Wait, of []owned, ready func() bool) error {
	l.mu.Lock()
	for _, o := range of {
		l.t.Recall(w, o.owner, o.kind, o.ino, l.now())
	}
	l.mu.Unlock()
	return l.wait(ctx, id, w, ready)
}

// pause is what an owner is given that has answered without surrendering.
func (l *leases) pause(ctx context.Context) error {
	timer := time.NewTimer(askAgain)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return cfs.E("recall an exclusive lease", contextKind(ctx), ctx.Err())
	case <-l.ended:
		return l.n.notLeader("recall an exclusive lease")
	}
}

// change is a session's command on its way through the table.
type change struct {
	lease.Change
	l    *leases
	cmd  *cfs.Command
	some [4]lease.Key // room for keys
}

// begin returns when the command, whose encoding is body, may be proposed, with the encoding
// to propose. The change is nil for a command that touches nothing that is leased.
func (l *leases) begin(ctx context.Context, c *cfs.Command, body []byte) (*change, []byte, error) {
	if err := l.settle(ctx); err != nil {
		return nil, nil, err
	}
	ch := &change{l: l, cmd: c}
	keys, look := changeKeys(ch.some[:0], c)
	if len(keys) == 0 || planted.Is(planted.LeaseIgnored) {
		return nil, body, nil
	}
	ch.Owner = namesOwned(c)
	l.mu.Lock()
	l.t.Begin(&ch.Change, c.Session, look, keys, l.now())
	l.mu.Unlock()
	if err := ch.clear(ctx, look); err != nil {
		ch.end(nil, 0)
		return nil, nil, err
	}
	if len(ch.Holds) == 0 {
		return ch, body, nil
	}
	body, err := proto.Marshal(wire.CommandToPB(c))
	if err == nil && len(body) > maxEntryBytes {
		err = cfs.Errorf("command", cfs.TooBig, "%d bytes with the sessions that have its files open, at most %d", len(body), maxEntryBytes)
	}
	if err != nil {
		ch.end(nil, 0)
		return nil, nil, cfs.E("command", cfs.KindOf(err), err)
	}
	return ch, body, nil
}

// clear waits until nobody is in the way of the change.
func (ch *change) clear(ctx context.Context, look bool) error {
	l, id := ch.l, ch.cmd.Session
	if err := l.wait(ctx, id, &ch.Wait, ch.Ordered); err != nil {
		return err
	}
	if !look && l.ownedByNoOther(ch.cmd) {
		return l.wait(ctx, id, &ch.Wait, ch.Leave)
	}
	for round := 0; ; round++ {
		found, err := l.n.behind(ch.cmd)
		if err != nil {
			return err
		}
		l.learn(found.owners)
		if len(found.owned) == 0 { // what is behind the names stays: later commands of them wait
			l.mu.Lock()
			l.t.Add(&ch.Change, found.keys, l.now())
			l.mu.Unlock()
			if err := l.wait(ctx, id, &ch.Wait, ch.Leave); err != nil {
				return err
			}
			ch.fillHolds(found)
			return nil
		}
		// An owner may have to open what it surrenders, so none of it is being changed yet.
		if err := l.recallOwners(ctx, id, &ch.Wait, found.owned, ch.Leave); err != nil {
			return err
		}
		if round > 0 {
			if err := l.pause(ctx); err != nil {
				return err
			}
		}
	}
}

// ownedByNoOther reports that a command, which looks behind no name, is known to touch nothing
// that another session owns.
func (l *leases) ownedByNoOther(c *cfs.Command) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	free := func(i cfs.Ino) bool {
		owner, known := l.owners[i]
		return known && (owner == 0 || owner == c.Session)
	}
	for i := range c.Ops {
		switch op := &c.Ops[i]; {
		case op.Kind == cfs.OpCreate:
			if _, fenced := fsm.Fenced(op); !op.Exclusive || !fenced && !free(op.Dir) {
				return false
			}
		case op.Kind == cfs.OpLink:
			if !op.Lease && !free(op.Dir) || !free(op.Ino) {
				return false
			}
		case op.Kind == cfs.OpSurrender || op.Kind == cfs.OpLock || op.Lease: // the machine fences it
		default:
			if !free(op.Ino) {
				return false
			}
		}
	}
	return true
}

// learn notes who owns inodes.
func (l *leases) learn(owners []owned) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range owners {
		if len(l.owners) >= maxKnownOwners {
			clear(l.owners)
		}
		l.owners[o.ino] = o.owner
	}
}

// fillHolds tells the machine who else has open what the command takes the last name of.
func (ch *change) fillHolds(f *found) {
	for i := range ch.cmd.Ops {
		op := &ch.cmd.Ops[i]
		op.Holds = nil
		for _, h := range ch.Holds {
			if i < len(f.loses) && f.loses[i] == h.Ino {
				op.Holds = append(op.Holds, h.Session)
			}
		}
	}
}

// end takes the change out of the table: it was applied at index with that reply, or is given up.
func (ch *change) end(reply *cfs.Reply, index uint64) {
	l := ch.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if reply != nil && reply.Kind == cfs.KindOK && reply.Index == index { // not of an earlier try
		var some [8]cfs.Ino
		inodes, ok := changedInodes(some[:0], ch.cmd.Session, reply)
		reply.Leased = ok && l.t.Earn(&ch.Change, inodes, l.now())
		for i := range ch.cmd.Ops {
			if op := &ch.cmd.Ops[i]; op.Kind == cfs.OpRelease {
				l.t.Closed(ch.cmd.Session, op.Ino)
			}
		}
	}
	l.t.End(&ch.Change)
}

// changedInodes are those whose attributes a reply has; false where another owns one.
func changedInodes(out []cfs.Ino, id cfs.SessionID, r *cfs.Reply) ([]cfs.Ino, bool) {
	for i := range r.Results {
		res := &r.Results[i]
		for _, a := range [...]*cfs.Attr{&res.Attr, &res.Dir, &res.NewDir} {
			if a.Ino == 0 || a.Nlink == 0 {
				continue
			}
			if a.Owner != 0 && a.Owner != id {
				return nil, false
			}
			out = append(out, a.Ino)
		}
	}
	return out, true
}

// changeKeys are the keys that a command changes as far as it says itself; look is that it
// takes names from what is behind them.
func changeKeys(keys []lease.Key, c *cfs.Command) (all []lease.Key, look bool) {
	name := func(dir cfs.Ino, name string) {
		if name != "" {
			keys = append(keys, lease.Key{Kind: lease.Name, Ino: dir, Name: name}, lease.Key{Kind: lease.List, Ino: dir}, lease.Key{Kind: lease.Attr, Ino: dir})
		}
	}
	for i := range c.Ops {
		op := &c.Ops[i]
		switch op.Kind {
		case cfs.OpCreate:
			name(op.Dir, op.Name)
		case cfs.OpLink:
			name(op.Dir, op.Name)
			keys = append(keys, lease.Key{Kind: lease.Attr, Ino: op.Ino})
		case cfs.OpUnlink, cfs.OpRmdir:
			look = true
			name(op.Dir, op.Name)
		case cfs.OpRename:
			look = true
			name(op.Dir, op.Name)
			name(op.NewDir, op.NewName)
		case cfs.OpSetAttr, cfs.OpSetXattr, cfs.OpRemoveXattr, cfs.OpWrite, cfs.OpSwap, cfs.OpRelease, cfs.OpSurrender:
			keys = append(keys, lease.Key{Kind: lease.Attr, Ino: op.Ino})
		}
	}
	return keys, look
}

// namesOwned reports that a command changes names only under exclusive leases, which the machine makes sure of.
func namesOwned(c *cfs.Command) bool {
	for i := range c.Ops {
		switch op := &c.Ops[i]; op.Kind {
		case cfs.OpCreate, cfs.OpLink, cfs.OpUnlink, cfs.OpRmdir, cfs.OpRename:
			if dir, ok := fsm.Fenced(op); !ok || dir != op.Dir {
				return false
			}
		}
	}
	return true
}

// behind looks at the state for what a command changes.
func (n *Node) behind(c *cfs.Command) (f *found, err error) {
	f = &found{c: c}
	err = n.state.view(func(v kv.View) error {
		f.v = v
		for i := range c.Ops {
			f.op(i)
		}
		return f.err
	})
	f.v = nil
	return f, err
}
