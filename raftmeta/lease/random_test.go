package lease

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// client is a session as the protocol tells it to behave; everything that it sends and is sent
// may be late or lost.
type client struct {
	id       cfs.SessionID
	epoch    uint64
	deadline time.Duration
	cache    map[Key]bool
	recalled map[Key]int // how often: an answer that was on its way then is not cached
	queries  []query
	acks     []Recall
	beatSent time.Duration // of a heartbeat on its way, 0 for none
	beatAs   uint64
}

type query struct {
	g     *Grant
	key   Key
	epoch uint64
	seen  int // recalls of the key when it was sent
}

type running struct {
	c     *Change
	id    cfs.SessionID
	keys  []Key
	look  bool
	begun time.Duration
}

// world is a table with clients around it.
type world struct {
	t       *testing.T
	r       *rand.Rand
	tab     *Table
	now     time.Duration
	clients []*client
	changes []*running
	leaves  int
	cached  int
}

func (w *world) key() Key {
	k := Key{Kind: Attr + Kind(w.r.IntN(3)), Ino: cfs.Ino(1 + w.r.IntN(3))}
	if k.Kind == Name {
		k.Name = string('a' + rune(w.r.IntN(2)))
	}
	return k
}

func (c *client) adopt(epoch uint64) {
	if epoch != c.epoch {
		c.epoch, c.deadline = epoch, 0
		clear(c.cache)
	}
}

// beat sends a heartbeat, or has one arrive and perhaps its reply.
func (w *world) beat(c *client) {
	if c.beatSent == 0 {
		c.beatSent, c.beatAs = w.now, c.epoch
		return
	}
	sent := c.beatSent
	c.beatSent = 0
	epoch, ok := w.tab.Beat(c.id, c.beatAs, nil, w.now-time.Duration(w.r.Int64N(int64(w.now-sent+1))), w.now)
	if !ok {
		w.t.Fatalf("session %d is gone", c.id)
	}
	if w.r.IntN(4) == 0 {
		return // the reply is lost
	}
	if epoch == c.epoch && epoch == c.beatAs {
		c.deadline = max(c.deadline, sent+testLease)
	}
	c.adopt(epoch)
}

// watch is told recalls, some of which it answers later.
func (w *world) watch(c *client) {
	for _, r := range c.acks {
		if w.r.IntN(5) > 0 {
			w.tab.Ack(c.id, r.ID, Dropped, nil)
		}
	}
	c.acks = c.acks[:0]
	epoch, _ := w.tab.Notify(c.id, c.epoch, nil)
	due, _ := w.tab.Due(c.id, nil, 1+w.r.IntN(10), w.now)
	if w.r.IntN(4) == 0 {
		return // lost
	}
	c.adopt(epoch)
	for _, r := range due {
		delete(c.cache, r.Key)
		c.recalled[r.Key]++
		c.acks = append(c.acks, r)
	}
}

// query sends one, or takes an answer.
func (w *world) query(c *client) {
	if len(c.queries) < 3 && w.r.IntN(2) == 0 {
		q := query{g: &Grant{}, key: w.key(), epoch: c.epoch}
		q.seen = c.recalled[q.key]
		w.tab.Register(q.g, c.id, q.epoch, w.now, q.key)
		c.queries = append(c.queries, q)
		return
	}
	if len(c.queries) == 0 {
		return
	}
	q := c.queries[0]
	c.queries = c.queries[1:]
	if !w.tab.Tell(q.g) {
		w.tab.Withdraw(q.g)
		return
	}
	if q.epoch == c.epoch && c.recalled[q.key] == q.seen {
		c.cache[q.key] = true
		w.cached++
	}
}

func (w *world) begin(c *client) {
	if len(w.changes) > 8 {
		return
	}
	run := &running{c: &Change{}, id: c.id, begun: w.now, look: w.r.IntN(3) == 0}
	for range 1 + w.r.IntN(4) {
		run.keys = append(run.keys, w.key())
	}
	w.tab.Begin(run.c, c.id, run.look, run.keys, w.now)
	w.changes = append(w.changes, run)
}

// step ends a change that has leave, gives one up, or goes on waiting.
func (w *world) step() {
	if len(w.changes) == 0 {
		return
	}
	at := w.r.IntN(len(w.changes))
	run := w.changes[at]
	leave := run.c.Leave()
	if !leave && w.r.IntN(30) > 0 {
		return
	}
	if leave {
		w.leaves++
		if w.r.IntN(2) == 0 {
			w.tab.Earn(run.c, []cfs.Ino{2}, w.now) // that the client does not use
		}
	}
	w.tab.End(run.c)
	w.changes = append(w.changes[:at], w.changes[at+1:]...)
}

// check holds what the table is for.
func (w *world) check() {
	w.tab.check(w.t)
	ordered := len(w.changes) == 0
	for _, run := range w.changes {
		ordered = ordered || run.c.Ordered()
		if !run.c.Leave() {
			if run.c.Waiting() && w.now > run.begun+testLease+testLease/4 {
				w.t.Fatalf("a change that began at %v waits at %v", run.begun, w.now)
			}
			continue
		}
		for _, c := range w.clients {
			for _, k := range run.keys {
				if c.id != run.id && c.cache[k] && w.now < c.deadline {
					w.t.Fatalf("at %v session %d changes %s, of which session %d has a lease until %v", w.now, run.id, k.text(), c.id, c.deadline)
				}
			}
		}
	}
	if !ordered {
		w.t.Fatal("every change waits for another")
	}
}

// TestRandom plays sessions whose messages are late or lost against the table.
func TestRandom(t *testing.T) {
	leaves, cached := 0, 0
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := &world{t: t, r: r, tab: NewTable(Config{Term: 1, LeaseTime: testLease, AskAgain: testLease / 4, MaxKeys: 12, MaxAll: 30, MaxOpens: 4})}
		next := cfs.SessionID(1)
		for range 4 {
			w.join(&next)
		}
		for range 3000 {
			w.now += time.Duration(r.IntN(40)) * time.Millisecond
			w.tab.Tick(w.now)
			c := w.clients[r.IntN(len(w.clients))]
			switch r.IntN(12) {
			case 0, 1, 2:
				w.beat(c)
			case 3, 4:
				w.watch(c)
			case 5, 6, 7:
				w.query(c)
			case 8, 9:
				w.begin(c)
			case 10:
				w.step()
			case 11:
				if r.IntN(50) == 0 {
					w.tab.EndSession(c.id)
					clear(c.cache) // the cluster says so only after it has waited for the session to lapse
					w.leave(c)
					w.join(&next)
				}
			}
			w.check()
		}
		leaves, cached = leaves+w.leaves, cached+w.cached
		for _, run := range w.changes {
			w.tab.End(run.c)
		}
		for _, c := range w.clients {
			w.tab.EndSession(c.id)
		}
		if len(w.tab.keys)+len(w.tab.recalls)+len(w.tab.sessions)+len(w.tab.asked)+w.tab.leases > 0 {
			t.Fatalf("seed %d: %d keys, %d recalls are left", seed, len(w.tab.keys), len(w.tab.recalls))
		}
	}
	if leaves < 3000 || cached < 400 {
		t.Errorf("only %d changes and %d leases", leaves, cached)
	}
}

func (w *world) join(next *cfs.SessionID) {
	w.tab.AddSession(*next, true)
	w.clients = append(w.clients, &client{id: *next, cache: map[Key]bool{}, recalled: map[Key]int{}})
	*next++
}

func (w *world) leave(c *client) {
	for i := range w.clients {
		if w.clients[i] == c {
			w.clients = append(w.clients[:i], w.clients[i+1:]...)
			return
		}
	}
}
