package lease

import (
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Change is one command of a session, from before it is proposed until it is applied.
type Change struct {
	Wait
	// Owner is set before Begin where the session owns all directories whose names it changes: who waits for
	// those names waits for its surrender, and nobody else can change them before.
	Owner bool

	session cfs.SessionID
	look    bool // it looks behind its names
	before  int  // commands that go first
	keys    []*entry
	some    [6]*entry // room for keys
}

// Ordered reports that every earlier command which decides what is behind the names has ended.
func (c *Change) Ordered() bool { return c.before == 0 }

// Leave reports that the change may be proposed.
func (c *Change) Leave() bool { return c.before == 0 && !c.Waiting() }

// Begin begins a change of keys by a session. With look the command has to know what is
// behind its names: it waits until it is Ordered, looks, and adds what it has found.
func (t *Table) Begin(c *Change, id cfs.SessionID, look bool, keys []Key, now time.Duration) {
	c.session, c.look = id, look
	c.keys = c.some[:0]
	t.Add(c, keys, now)
}

// Add adds keys to a change.
func (t *Table) Add(c *Change, keys []Key, now time.Duration) {
	for _, k := range keys {
		t.add(c, k, now)
	}
}

func (t *Table) add(c *Change, k Key, now time.Duration) {
	e := t.entry(k)
	if e.mark == c {
		return
	}
	if k.Kind == Name && !c.Owner {
		for _, earlier := range e.queue {
			if earlier == c {
				return
			}
			if c.look || earlier.look {
				c.before++
			}
		}
		e.queue = append(e.queue, c)
	}
	e.mark = c
	c.keys = append(c.keys, e)
	if e.pending++; e.pending == 1 {
		e.changer = c.session
	} else if e.changer != c.session {
		e.changer = 0
	}
	for i := 0; i < len(e.holders); {
		h := e.holders[i]
		switch {
		case h.s.id == c.session:
			if k.Kind != Open {
				t.seq++
				h.seq = t.seq
			}
		case k.Kind == Open:
			t.ask(c, h.s, k, now)
		case now >= h.s.deadline:
			t.lapse(h.s) // takes h out, and perhaps others: look from the start
			i = 0
			continue
		default:
			t.recall(h.s, k, &c.Wait, now)
		}
		i++
	}
	if k.Kind == Open {
		t.askUnknown(c, e, now)
	}
}

// ask asks a session whether an inode is open, or takes it to be where the session is silent.
func (t *Table) ask(c *Change, s *session, k Key, now time.Duration) {
	r := t.recall(s, k, &c.Wait, now)
	if now >= s.deadline {
		t.held(r)
	}
}

// askUnknown asks the sessions of which it is not known what they have open.
func (t *Table) askUnknown(c *Change, e *entry, now time.Duration) {
	for _, s := range inOrder(t.broad) {
		if s.id != c.session && s.opens[e] == nil {
			t.ask(c, s, e.key, now)
		}
	}
}

// End ends a change, applied or given up.
func (t *Table) End(c *Change) {
	t.Cancel(&c.Wait)
	t.ends++
	for _, e := range c.keys {
		if e.key.Kind == Name && !c.Owner {
			t.leaveQueue(c, e)
		}
		if e.mark == c {
			e.mark = nil
		}
		if e.pending--; e.pending == 0 {
			e.changer = 0
			for _, w := range e.openers {
				w.opening = nil
				w.wake()
			}
			e.openers = nil
			t.retire(e)
		}
	}
	c.keys = nil
}

func (t *Table) leaveQueue(c *Change, e *entry) {
	at := 0
	for e.queue[at] != c {
		at++
	}
	for _, later := range e.queue[at+1:] {
		if later.look || c.look {
			if later.before--; later.before == 0 {
				later.wake()
			}
		}
	}
	e.queue = remove(e.queue, c)
}

// Grant gathers the leases of one answer. Its zero value is ready.
type Grant struct {
	s     *session
	epoch uint64
	holds []granted
	some  [2]granted
	bad   bool
}

type granted struct {
	h    *hold
	seq  uint64
	made bool // by this grant
}

// Register gives a session leases of keys, before what they are of is read: all or none.
// It is refused where the session's epoch or its time has passed, a change is pending, or a
// bound is met.
func (t *Table) Register(g *Grant, id cfs.SessionID, epoch uint64, now time.Duration, keys ...Key) bool {
	s := t.sessions[id]
	if g.bad || s == nil || !s.adopted || epoch != s.epoch || now >= s.deadline || !t.mayHave(s, keys) {
		g.bad = true
		t.Stats.Refused++
		return false
	}
	if g.holds == nil {
		g.holds = g.some[:0]
	}
	g.s, g.epoch = s, epoch
	for _, k := range keys {
		e := t.entry(k)
		h := s.leases[e]
		made := h == nil
		if made {
			h = t.addHold(s, e)
		}
		g.holds = append(g.holds, granted{h, t.seq, made})
	}
	return true
}

// mayHave reports that a session may get leases of keys.
func (t *Table) mayHave(s *session, keys []Key) bool {
	if len(s.leases)+len(keys) > t.cfg.MaxKeys || t.leases+len(keys) > t.cfg.MaxAll {
		return false
	}
	for _, k := range keys {
		if e := t.keys[k]; e != nil && e.pending > 0 {
			return false
		}
	}
	return true
}

// Standing reports that all that was registered stands still.
func (t *Table) Standing(g *Grant) bool {
	if g.bad || g.s == nil || g.s.epoch != g.epoch {
		return false
	}
	for _, r := range g.holds {
		if r.h.gone || r.h.seq > r.seq {
			return false
		}
	}
	return true
}

// Tell is Standing for an answer that says so to the session.
func (t *Table) Tell(g *Grant) bool {
	if !t.Standing(g) {
		return false
	}
	for _, r := range g.holds {
		r.h.told = true
	}
	return true
}

// Withdraw takes back what was registered, of an answer that is not leased after all: the
// session has not been told of it, so it need not be asked to give it back.
func (t *Table) Withdraw(g *Grant) {
	for _, r := range g.holds {
		if !r.made || r.h.gone || r.h.told {
			continue
		}
		s, k := r.h.s, r.h.e.key
		t.drop(r.h)
		if asked := s.recalls[k]; asked != nil {
			t.done(asked)
		}
	}
	*g = Grant{bad: true}
}

// Changes is the number of changes that have ended: what was read since the same number of
// them, and is not being changed, is what it was.
func (t *Table) Changes() uint64 { return t.ends }

// Earn gives the changing session leases of what it has changed, before the change ends:
// of the names, and of the inodes of which it has the attributes. False where it gets none.
func (t *Table) Earn(c *Change, inodes []cfs.Ino, now time.Duration) bool {
	s := t.sessions[c.session]
	if s == nil || !s.adopted || now >= s.deadline {
		return false
	}
	n := 0
	for _, e := range c.keys {
		if e.key.Kind == Name {
			n++
			if e.pending > 1 {
				return false
			}
		}
	}
	if len(s.leases)+n+len(inodes) > t.cfg.MaxKeys || t.leases+n+len(inodes) > t.cfg.MaxAll {
		t.Stats.Refused++
		return false
	}
	for _, i := range inodes {
		if e := t.keys[Key{Kind: Attr, Ino: i}]; e != nil && e.pending > 0 && e.changer != s.id {
			return false
		}
	}
	for _, e := range c.keys {
		if e.key.Kind == Name {
			t.tell(s, e)
		}
	}
	for _, i := range inodes {
		t.tell(s, t.entry(Key{Kind: Attr, Ino: i}))
	}
	return true
}

// tell gives a session a lease that it is told of at once.
func (t *Table) tell(s *session, e *entry) {
	h := s.leases[e]
	if h == nil {
		h = t.addHold(s, e)
	}
	h.told = true
}

// Opening notes that a session opens an inode, before its state is read. Where a change
// takes the inode's name just then, w waits for its end, and nothing is noted: try again.
func (t *Table) Opening(w *Wait, id cfs.SessionID, i cfs.Ino) (added bool) {
	s := t.sessions[id]
	if s == nil {
		return false
	}
	if e := t.keys[Key{Kind: Open, Ino: i}]; e != nil && e.pending > 0 {
		w.opening = e
		e.openers = append(e.openers, w)
		return false
	}
	return t.addOpen(s, i)
}
