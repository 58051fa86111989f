package lease

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Kind is the kind of a key. The numbers are those of wire.RecallKind.
type Kind uint8

// The kinds. A session holds leases of Attr, Name and List and has Open inodes; Report
// and Exclusive are only recalled, since exclusive leases are part of the state.
const (
	Attr Kind = iota + 1
	Name
	List
	Open
	Report
	Exclusive

	kindEnd
)

// kindNames are the kinds as metrics and transcripts say them.
var kindNames = [kindEnd]string{"", "attr", "name", "list", "open", "report", "exclusive"}

// String is the kind's name.
func (k Kind) String() string { return kindNames[k] }

// Key is what a lease is of. Ino is the directory of a Name and of a List.
type Key struct {
	Name string
	Ino  cfs.Ino
	Kind Kind
}

// Config is a table's bounds and times.
type Config struct {
	Term      uint64        // of the leader: epochs and ids of recalls rise with it
	LeaseTime time.Duration // after the arrival of a heartbeat
	AskAgain  time.Duration // between two deliveries of a recall
	MaxKeys   int           // leases of a session
	MaxAll    int           // leases of all sessions
	MaxOpens  int           // inodes that a session is known to have open: beyond, it counts as having all open
}

// Stats count what has happened.
type Stats struct {
	Recalls [kindEnd]uint64
	Lapses  uint64
	Refused uint64 // grants
}

// freeEntries bounds the entries that are kept for use again.
const freeEntries = 1024

// Table is the state of all leases under one leader. Times are since it began to lead.
type Table struct {
	Stats Stats

	cfg        Config
	counter    uint64 // of epochs and of recalls
	seq        uint64 // of holds
	ends       uint64 // changes that have ended
	sessions   map[cfs.SessionID]*session
	unattached map[cfs.SessionID]*session // they have not said yet what they have open
	broad      map[cfs.SessionID]*session // they count as having every inode open: the unattached, and those with too many
	asked      map[cfs.SessionID]*session // with recalls that end with their leases
	keys       map[Key]*entry
	recalls    map[uint64]*Recall
	leases     int
	free       []*entry
}

type session struct {
	id       cfs.SessionID
	epoch    uint64
	adopted  bool          // the session has used the epoch
	deadline time.Duration // its leases lapse
	leases   map[*entry]*hold
	opens    map[*entry]*hold
	recalls  map[Key]*Recall
	first    *Recall // all recalls, the oldest first
	last     *Recall
	waiting  int // recalls that somebody waits for and that end with the leases
	notify   chan struct{}
}

// entry is a key that somebody holds or changes.
type entry struct {
	key     Key
	holders []*hold
	pending int           // changes
	changer cfs.SessionID // whose all of them are; 0 where there are several
	queue   []*Change     // of a Name: in order of arrival
	openers []*Wait       // of an Open: queries that wait for the changes to end
	mark    *Change       // the last that was added
}

// hold is a session's lease of a key, or its open inode.
type hold struct {
	s    *session
	e    *entry
	at   int    // in e.holders
	seq  uint64 // what was read before it does not count
	gone bool
	told bool // the session may know of it
}

// NewTable makes an empty table.
func NewTable(cfg Config) *Table {
	return &Table{cfg: cfg, sessions: map[cfs.SessionID]*session{}, unattached: map[cfs.SessionID]*session{}, broad: map[cfs.SessionID]*session{},
		asked: map[cfs.SessionID]*session{}, keys: map[Key]*entry{}, recalls: map[uint64]*Recall{}}
}

// next is a number that no leader has given before.
func (t *Table) next() uint64 {
	t.counter++
	return t.cfg.Term<<32 + t.counter
}

// AddSession adds a session: a fresh one has nothing open and no leases of an earlier leader.
func (t *Table) AddSession(id cfs.SessionID, fresh bool) {
	if t.sessions[id] != nil {
		return
	}
	s := &session{id: id, epoch: t.next(), leases: map[*entry]*hold{}, opens: map[*entry]*hold{}, recalls: map[Key]*Recall{}}
	t.sessions[id] = s
	if !fresh {
		t.unattached[id], t.broad[id] = s, s
	}
}

// EndSession forgets a session that is gone from the state: nothing has to be waited for, or held, any more.
func (t *Table) EndSession(id cfs.SessionID) {
	s := t.sessions[id]
	if s == nil {
		return
	}
	delete(t.sessions, id)
	delete(t.unattached, id)
	delete(t.broad, id)
	for s.first != nil {
		t.done(s.first)
	}
	for _, h := range s.leases {
		t.drop(h)
	}
	for _, h := range s.opens {
		t.drop(h)
	}
	s.wake()
}

// Known reports that a session is open.
func (t *Table) Known(id cfs.SessionID) bool { return t.sessions[id] != nil }

// Grace reports that leases of an earlier leader may still be in use.
func (t *Table) Grace(now time.Duration) bool { return len(t.unattached) > 0 && now < t.cfg.LeaseTime }

// Counts are the leases that a session has, and the inodes that it is known to have open.
func (t *Table) Counts(id cfs.SessionID) (leases, opens int) {
	if s := t.sessions[id]; s != nil {
		return len(s.leases), len(s.opens)
	}
	return 0, 0
}

// Leases is the number of leases of all sessions.
func (t *Table) Leases() int { return t.leases }

// Beat takes a confirmed heartbeat that arrived at a time, with the epoch that the session
// knows and the inodes that it has open. It is the epoch that the session has now; false for
// no such session. One without an epoch says nothing of what was open under an earlier leader:
// that comes with the heartbeat by which the session adopts its epoch.
func (t *Table) Beat(id cfs.SessionID, epoch uint64, opens []cfs.Ino, arrived, now time.Duration) (uint64, bool) {
	s := t.sessions[id]
	if s == nil {
		return 0, false
	}
	fresh := t.unattached[id] == nil
	if epoch != s.epoch && (epoch != 0 || !fresh) {
		return s.epoch, true
	}
	if !fresh {
		delete(t.unattached, id)
		delete(t.broad, id)
	}
	for _, i := range opens {
		t.addOpen(s, i)
	}
	if epoch == 0 {
		return s.epoch, true
	}
	t.adopt(s)
	if t.overdue(s, now) {
		t.renew(s)
	} else {
		s.deadline = max(s.deadline, arrived+t.cfg.LeaseTime)
	}
	return s.epoch, true
}

// adopt notes that the session knows its epoch, and so has dropped what came before.
func (t *Table) adopt(s *session) {
	if !s.adopted {
		t.void(s)
		s.adopted = true
	}
}

// renew gives the session a new epoch, under which it has no lease yet.
func (t *Table) renew(s *session) {
	s.epoch, s.adopted = t.next(), false
	s.wake()
}

// overdue reports that the session has not answered a recall for too long.
func (t *Table) overdue(s *session, now time.Duration) bool {
	if s.waiting == 0 {
		return false
	}
	for r := s.first; r != nil; r = r.later {
		if r.lapses() && len(r.waits) > 0 {
			return now-r.at > t.cfg.LeaseTime/4
		}
	}
	return false
}

// void drops all leases of a session. What it was asked about open inodes is answered by holds.
func (t *Table) void(s *session) {
	for r := s.first; r != nil; {
		later := r.later
		switch {
		case r.Key.Kind == Open:
			t.held(r)
		case r.lapses():
			t.done(r)
		}
		r = later
	}
	for _, h := range s.leases {
		t.drop(h)
	}
}

// lapse ends the leases of a session whose time has passed while somebody waited.
func (t *Table) lapse(s *session) {
	t.Stats.Lapses++
	t.void(s)
	t.renew(s)
}

// inOrder is sessions in the order of their ids: what the table does is a function of what it is told.
func inOrder(of map[cfs.SessionID]*session) []*session {
	if len(of) == 0 {
		return nil
	}
	return slices.SortedFunc(maps.Values(of), func(a, b *session) int { return cmp.Compare(a.id, b.id) })
}

// Tick lapses what is due. It returns when it is to be called again, 0 for never.
func (t *Table) Tick(now time.Duration) time.Duration {
	var next time.Duration
	for _, s := range inOrder(t.asked) {
		switch {
		case now >= s.deadline:
			t.lapse(s)
		case next == 0 || s.deadline < next:
			next = s.deadline
		}
	}
	return next
}

// entry finds or makes the entry of a key.
func (t *Table) entry(k Key) *entry {
	e := t.keys[k]
	if e != nil {
		return e
	}
	if n := len(t.free); n > 0 {
		e, t.free = t.free[n-1], t.free[:n-1]
	} else {
		e = &entry{}
	}
	e.key = k
	t.keys[k] = e
	return e
}

// retire forgets an entry that nobody uses.
func (t *Table) retire(e *entry) {
	if len(e.holders) > 0 || e.pending > 0 || len(e.queue) > 0 || len(e.openers) > 0 {
		return
	}
	delete(t.keys, e.key)
	e.key, e.mark, e.changer = Key{}, nil, 0
	if len(t.free) < freeEntries {
		t.free = append(t.free, e)
	}
}

// of are the session's holds of a kind.
func (s *session) of(k Kind) map[*entry]*hold {
	if k == Open {
		return s.opens
	}
	return s.leases
}

func (t *Table) addHold(s *session, e *entry) *hold {
	t.seq++
	h := &hold{s: s, e: e, at: len(e.holders), seq: t.seq}
	e.holders = append(e.holders, h)
	s.of(e.key.Kind)[e] = h
	if e.key.Kind != Open {
		t.leases++
	}
	return h
}

func (t *Table) drop(h *hold) {
	if h.gone {
		return
	}
	e := h.e
	last := len(e.holders) - 1
	e.holders[h.at] = e.holders[last]
	e.holders[h.at].at = h.at
	e.holders[last] = nil
	e.holders = e.holders[:last]
	delete(h.s.of(e.key.Kind), e)
	if e.key.Kind != Open {
		t.leases--
	}
	h.gone = true
	t.retire(e)
}

// addOpen notes that a session has an inode open.
func (t *Table) addOpen(s *session, i cfs.Ino) (added bool) {
	if len(s.opens) >= t.cfg.MaxOpens {
		t.broad[s.id] = s
		return false
	}
	e := t.entry(Key{Kind: Open, Ino: i})
	if h := s.opens[e]; h != nil { // an answer that is on its way is older
		t.seq++
		h.seq = t.seq
		return false
	}
	t.addHold(s, e)
	return true
}

// Closed notes that a session has an inode open no more.
func (t *Table) Closed(id cfs.SessionID, i cfs.Ino) {
	s, e := t.sessions[id], t.keys[Key{Kind: Open, Ino: i}]
	if s == nil || e == nil {
		return
	}
	if h := s.opens[e]; h != nil {
		t.drop(h)
	}
}
