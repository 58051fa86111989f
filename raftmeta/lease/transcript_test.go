package lease

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/claudefs/claudefs/cfs"
)

// TestTranscripts runs the transcripts of testdata; -rewrite records new ones. A line is
// a call; what follows it says what came of it, and which changes got leave.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newScript(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t = t
			var out strings.Builder
			for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
				s.out = nil
				s.line(strings.Fields(line))
				s.news()
				fmt.Fprintf(&out, "%s -> %s\n", line, strings.Join(s.out, "; "))
				s.tab.check(t)
			}
			return out.String()
		})
	})
}

const testLease = 1500 * time.Millisecond

type script struct {
	t       *testing.T
	tab     *Table
	now     time.Duration
	changes map[string]*Change
	grants  map[string]*Grant
	waits   map[string]*Wait
	left    map[string]bool
	out     []string
}

func newScript(t *testing.T) *script {
	return &script{t: t, tab: NewTable(Config{Term: 7, LeaseTime: testLease, AskAgain: testLease / 4, MaxKeys: 6, MaxAll: 10, MaxOpens: 3}),
		changes: map[string]*Change{}, grants: map[string]*Grant{}, waits: map[string]*Wait{}, left: map[string]bool{}}
}

func (s *script) say(format string, args ...any) { s.out = append(s.out, fmt.Sprintf(format, args...)) }

func (s *script) num(w string) uint64 {
	n, err := strconv.ParseUint(w, 10, 32)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *script) id(w string) cfs.SessionID { return cfs.SessionID(s.num(strings.TrimPrefix(w, "s"))) }

// epochOf reads 7.3, as epochs and ids are shown, and now for the epoch that a session has.
func (s *script) epochOf(id, w string) uint64 {
	if w == "now" {
		return s.tab.sessions[s.id(id)].epoch
	}
	term, n, ok := strings.Cut(w, ".")
	if !ok {
		return s.num(w)
	}
	return s.num(term)<<32 + s.num(n)
}

func show(n uint64) string { return fmt.Sprintf("%d.%d", n>>32, n&0xffffffff) }

func (k Key) text() string {
	switch k.Kind {
	case Name:
		return fmt.Sprintf("name:%d/%s", k.Ino, k.Name)
	}
	return fmt.Sprintf("%s:%d", k.Kind, k.Ino)
}

func (s *script) keys(words []string) (keys []Key) {
	for _, w := range words {
		kind, of, _ := strings.Cut(w, ":")
		ino, name, _ := strings.Cut(of, "/")
		k := Key{Ino: cfs.Ino(s.num(ino)), Name: name}
		for i, n := range kindNames {
			if n == kind {
				k.Kind = Kind(i)
			}
		}
		keys = append(keys, k)
	}
	return keys
}

func (s *script) inodes(words []string) (inodes []cfs.Ino) {
	for _, w := range words {
		inodes = append(inodes, cfs.Ino(s.num(w)))
	}
	return inodes
}

func (s *script) line(w []string) {
	switch w[0] {
	case "at":
		s.now = time.Duration(s.num(w[1])) * time.Millisecond
	case "tick":
		if next := s.tab.Tick(s.now); next > 0 {
			s.say("next at %d", next.Milliseconds())
		}
	case "session":
		s.tab.AddSession(s.id(w[1]), len(w) == 2)
		s.say("epoch %s", show(s.tab.sessions[s.id(w[1])].epoch))
	case "gone":
		s.tab.EndSession(s.id(w[1]))
	case "grace":
		s.say("%v", s.tab.Grace(s.now))
	case "beat":
		epoch, ok := s.tab.Beat(s.id(w[1]), s.epochOf(w[1], w[2]), s.inodes(w[3:]), s.now, s.now)
		s.say("%s %v", show(epoch), ok)
	case "watch":
		epoch, ok := s.tab.Notify(s.id(w[1]), s.epochOf(w[1], w[2]), make(chan struct{}, 1))
		due, next := s.tab.Due(s.id(w[1]), nil, 100, s.now)
		s.say("%s %v", show(epoch), ok)
		for _, r := range due {
			held := ""
			if r.Held {
				held = " held"
			}
			s.say("recall %s %s%s", show(r.ID), r.Key.text(), held)
		}
		if next > 0 {
			s.say("again at %d", next.Milliseconds())
		}
	case "counts":
		leases, opens := s.tab.Counts(s.id(w[1]))
		s.say("%d leases, %d open", leases, opens)
	default:
		s.call(w)
	}
}

func (s *script) call(w []string) {
	switch w[0] {
	case "ack": // ack s1 attr:5 dropped, for the last recall of that, or ack s1 7.3 dropped
		id := uint64(0)
		if !strings.Contains(w[2], ":") {
			id = s.epochOf(w[1], w[2])
		} else if r := s.tab.sessions[s.id(w[1])].recalls[s.keys(w[2:3])[0]]; r != nil {
			id = r.ID
		}
		kind := map[string]Answer{"dropped": Dropped, "open": StaysOpen, "report": Reported}[w[3]]
		var a cfs.Attr
		if len(w) > 4 {
			a.Ino = cfs.Ino(s.num(w[4]))
		}
		s.tab.Ack(s.id(w[1]), id, kind, &a)
	case "register": // register q1 s1 7.1 attr:5
		g := &Grant{}
		s.grants[w[1]] = g
		if !s.tab.Register(g, s.id(w[2]), s.epochOf(w[2], w[3]), s.now, s.keys(w[4:])...) {
			s.say("refused")
		}
	case "standing":
		s.say("%v", s.tab.Standing(s.grants[w[1]]))
	case "tell":
		s.say("%v", s.tab.Tell(s.grants[w[1]]))
	case "withdraw":
		s.tab.Withdraw(s.grants[w[1]])
	case "begin", "look", "owner": // begin c1 s1 name:1/a
		c := &Change{Wait: Wait{Wake: make(chan struct{}, 1)}, Owner: w[0] == "owner"}
		s.changes[w[1]] = c
		s.tab.Begin(c, s.id(w[2]), w[0] != "begin", s.keys(w[3:]), s.now)
	case "add":
		delete(s.left, w[1])
		s.tab.Add(s.changes[w[1]], s.keys(w[2:]), s.now)
	case "earn":
		s.say("%v", s.tab.Earn(s.changes[w[1]], s.inodes(w[2:]), s.now))
	case "end":
		s.tab.End(s.changes[w[1]])
		delete(s.changes, w[1])
		delete(s.left, w[1])
	case "recall": // recall w1 s2 report 5
		wait := s.waits[w[1]]
		if wait == nil {
			wait = &Wait{}
			s.waits[w[1]] = wait
		}
		s.tab.Recall(wait, s.id(w[2]), s.keys([]string{w[3] + ":" + w[4]})[0].Kind, cfs.Ino(s.num(w[4])), s.now)
	case "opening":
		wait := &Wait{}
		s.waits[w[1]] = wait
		s.say("added %v", s.tab.Opening(wait, s.id(w[2]), cfs.Ino(s.num(w[3]))))
	case "waits":
		s.say("%v", s.waits[w[1]].Waiting())
		if i := s.waits[w[1]].Report.Ino; i != 0 {
			s.say("report of %d", i)
		}
	case "cancel":
		s.tab.Cancel(s.waits[w[1]])
		delete(s.waits, w[1])
	default:
		s.t.Fatalf("what is %q?", w[0])
	}
}

// news says which changes have got leave, or lost it by more keys.
func (s *script) news() {
	for _, name := range slices.Sorted(maps.Keys(s.changes)) {
		c := s.changes[name]
		if leave := c.Leave(); leave != s.left[name] {
			s.left[name] = leave
			holds := ""
			for _, h := range c.Holds {
				holds += fmt.Sprintf(" hold:s%d/%d", h.Session, h.Ino)
			}
			s.say("%s has leave%s", name, holds)
		}
	}
}

// check finds contradictions in a table.
func (t *Table) check(tb testing.TB) {
	tb.Helper()
	held := 0
	for k, e := range t.keys {
		if e.key != k {
			tb.Fatalf("entry of %s is %s", k.text(), e.key.text())
		}
		if len(e.holders) == 0 && e.pending == 0 && len(e.queue) == 0 && len(e.openers) == 0 {
			tb.Fatalf("entry %s is of no use", k.text())
		}
		for i, h := range e.holders {
			if h.at != i || h.e != e || h.gone || t.sessions[h.s.id] != h.s || h.s.of(k.Kind)[e] != h {
				tb.Fatalf("hold %d of %s is %+v", i, k.text(), h)
			}
			if k.Kind != Open {
				held++
			}
		}
	}
	of, recalls := 0, 0
	for _, s := range t.sessions {
		of += len(s.leases)
		waiting := 0
		for r := s.first; r != nil; r = r.later {
			recalls++
			if t.recalls[r.ID] != r {
				tb.Fatalf("recall %d of session %d is not known", r.ID, s.id)
			}
			if r.lapses() && len(r.waits) > 0 {
				waiting++
			}
			if len(r.waits) == 0 && !r.Held {
				tb.Fatalf("nobody waits for the recall of %s", r.Key.text())
			}
		}
		if waiting != s.waiting || (waiting > 0) != (t.asked[s.id] == s) {
			tb.Fatalf("session %d is waited for %d times, counted %d", s.id, s.waiting, waiting)
		}
	}
	if held != t.leases || of != held || recalls != len(t.recalls) {
		tb.Fatalf("%d leases, counted %d and %d; %d recalls, counted %d", t.leases, held, of, len(t.recalls), recalls)
	}
	if t.leases > t.cfg.MaxAll || len(t.free) > freeEntries {
		tb.Fatalf("%d leases, %d entries kept", t.leases, len(t.free))
	}
}
