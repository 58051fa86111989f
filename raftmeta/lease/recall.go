package lease

import (
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// maxKept bounds the recalls of a session that stay though nobody waits for them: they
// tell it of inodes that lost their names while it was silent.
const maxKept = 4096

// Recall is what a session is asked to give back or to tell.
type Recall struct {
	ID   uint64
	Key  Key
	Held bool // a change went on with a hold in the session's name: it stays until the session has answered

	s      *session
	at     time.Duration // when it was made
	sent   time.Duration // when last
	isSent bool
	seq    uint64 // what the session opened since is not meant
	making int    // changes under way that make holds of it: it is not told before they end
	waits  []*Wait
	sooner *Recall
	later  *Recall
}

// lapses reports that silence ends it.
func (r *Recall) lapses() bool { return r.Key.Kind <= Open }

// Held is a session that keeps an inode open which loses its last name.
type Held struct {
	Ino     cfs.Ino
	Session cfs.SessionID
}

// Wait is somebody who waits for recalls. Wake, if it is there (with room for one), gets a
// token whenever the wait may have ended.
type Wait struct {
	Wake   chan struct{}
	Holds  []Held   // of open inodes, as far as they have been answered
	Report cfs.Attr // that a Report was answered with; Ino 0 for none

	recalls []*Recall
	made    []*Recall // from which it has holds
	opening *entry
}

// Waiting reports that recalls are still open.
func (w *Wait) Waiting() bool { return len(w.recalls) > 0 || w.opening != nil }

func (w *Wait) wake() { poke(w.Wake) }

func (s *session) wake() { poke(s.notify) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// remove takes the first x out of list, whose order stays.
func remove[T comparable](list []T, x T) []T {
	for i := range list {
		if list[i] == x {
			copy(list[i:], list[i+1:])
			var zero T
			list[len(list)-1] = zero
			return list[:len(list)-1]
		}
	}
	return list
}

// recall asks s for k on behalf of w, nil for nobody. Whoever waits for the same waits
// for the same recall; but a report that is on its way may be older than the question.
func (t *Table) recall(s *session, k Key, w *Wait, now time.Duration) *Recall {
	r := s.recalls[k]
	if r == nil || k.Kind == Report && r.isSent {
		r = &Recall{ID: t.next(), Key: k, s: s, at: now, sooner: s.last}
		if s.last != nil {
			s.last.later = r
		} else {
			s.first = r
		}
		s.last = r
		s.recalls[k] = r
		t.recalls[r.ID] = r
		r.seq = t.seq
		t.Stats.Recalls[k.Kind]++
		s.wake()
	}
	if w == nil {
		return r
	}
	if r.Held && len(r.waits) == 0 {
		t.anew(r) // an answer that is on its way is older than the question
	}
	for _, have := range w.recalls {
		if have == r {
			return r
		}
	}
	if len(r.waits) == 0 && r.lapses() {
		r.at = now
		s.waiting++
		t.asked[s.id] = s
	}
	r.waits = append(r.waits, w)
	w.recalls = append(w.recalls, r)
	return r
}

// anew makes r another question, which an answer to what it was does not end.
func (t *Table) anew(r *Recall) {
	delete(t.recalls, r.ID)
	r.ID, r.isSent, r.seq = t.next(), false, t.seq
	t.recalls[r.ID] = r
	r.s.wake()
}

// release lets those go who wait for r.
func (t *Table) release(r *Recall) {
	if len(r.waits) == 0 {
		return
	}
	for _, w := range r.waits {
		w.recalls = remove(w.recalls, r)
		if len(w.recalls) == 0 {
			w.wake()
		}
	}
	r.waits = nil
	t.unasked(r)
}

// unasked notes that nobody waits for r any more.
func (t *Table) unasked(r *Recall) {
	if !r.lapses() {
		return
	}
	if r.s.waiting--; r.s.waiting == 0 {
		delete(t.asked, r.s.id)
	}
}

// done ends a recall.
func (t *Table) done(r *Recall) {
	t.release(r)
	delete(t.recalls, r.ID)
	s := r.s
	if s.recalls[r.Key] == r {
		delete(s.recalls, r.Key)
	}
	if r.sooner != nil {
		r.sooner.later = r.later
	} else {
		s.first = r.later
	}
	if r.later != nil {
		r.later.sooner = r.sooner
	} else {
		s.last = r.sooner
	}
}

// held answers the recall of an open inode by silence. It stays, as another question, so that the
// session learns of it and releases what it has not got open.
func (t *Table) held(r *Recall) {
	if len(r.waits) == 0 {
		return
	}
	for _, w := range r.waits {
		w.Holds = append(w.Holds, Held{r.Key.Ino, r.s.id})
		w.made = append(w.made, r)
		r.making++
	}
	t.release(r)
	if len(r.s.recalls) > maxKept {
		t.done(r)
		return
	}
	r.Held = true
	t.anew(r)
}

// Cancel ends a wait: recalls that nobody waits for any more are withdrawn.
func (t *Table) Cancel(w *Wait) {
	for _, r := range w.recalls {
		r.waits = remove(r.waits, w)
		if len(r.waits) == 0 {
			t.unasked(r)
			if !r.Held {
				t.done(r)
			}
		}
	}
	w.recalls = nil
	for _, r := range w.made {
		if r.making--; r.making == 0 {
			r.s.wake()
		}
	}
	w.made = nil
	if e := w.opening; e != nil {
		w.opening = nil
		e.openers = remove(e.openers, w)
		t.retire(e)
	}
}

// Recall makes w wait for what the owner of an inode is to do about its exclusive lease: k is
// Report or Exclusive. There is nothing to wait for where the owner is gone.
func (t *Table) Recall(w *Wait, owner cfs.SessionID, k Kind, i cfs.Ino, now time.Duration) {
	if s := t.sessions[owner]; s != nil {
		t.recall(s, Key{Kind: k, Ino: i}, w, now)
	}
}

// Answer is how a recall is answered. The numbers are those of wire.AckKind.
type Answer uint8

// The answers.
const (
	Dropped Answer = iota + 1
	StaysOpen
	Reported
)

// Ack takes a session's answer to a recall. One that does not fit, or is of a recall that has
// ended, changes nothing.
func (t *Table) Ack(id cfs.SessionID, recall uint64, a Answer, attr *cfs.Attr) {
	r := t.recalls[recall]
	if r == nil || r.s.id != id {
		return
	}
	switch {
	case a == Dropped:
		if h := r.s.of(r.Key.Kind)[t.keys[r.Key]]; h != nil && (r.Key.Kind != Open || h.seq <= r.seq) {
			t.drop(h)
		}
	case a == StaysOpen && r.Key.Kind == Open:
		for _, w := range r.waits {
			w.Holds = append(w.Holds, Held{r.Key.Ino, id})
		}
	case a == Reported && r.Key.Kind == Report && attr != nil && attr.Ino == r.Key.Ino:
		for _, w := range r.waits {
			w.Report = *attr
		}
	default:
		return
	}
	t.done(r)
}

// Notify has c poked when a session has something to be told. It is the session's epoch;
// false for no such session. A session that watches with its epoch knows it.
func (t *Table) Notify(id cfs.SessionID, epoch uint64, c chan struct{}) (uint64, bool) {
	s := t.sessions[id]
	if s == nil {
		return 0, false
	}
	if epoch == s.epoch {
		t.adopt(s)
	}
	if s.notify != c {
		s.wake() // whom c takes the place of
		s.notify = c
	}
	return s.epoch, true
}

// Notified reports that c is still the channel of the session's last Notify.
func (t *Table) Notified(id cfs.SessionID, c chan struct{}) bool {
	s := t.sessions[id]
	return s == nil || s.notify == c
}

// Unnotify ends Notify, unless another has taken the place of c.
func (t *Table) Unnotify(id cfs.SessionID, c chan struct{}) {
	if s := t.sessions[id]; s != nil && s.notify == c {
		s.notify = nil
	}
}

// Due appends to out what a session is to be told now, at most limit: what it has not been
// told yet, and what it was told AskAgain ago and has not answered. It is also
// when there will be something due that has been told before, 0 for never.
func (t *Table) Due(id cfs.SessionID, out []Recall, limit int, now time.Duration) (due []Recall, next time.Duration) {
	s := t.sessions[id]
	if s == nil {
		return out, 0
	}
	for r := s.first; r != nil && len(out) < limit; r = r.later {
		if r.making > 0 { // a release would come before the hold
			continue
		}
		if again := r.sent + t.cfg.AskAgain; r.isSent && now < again {
			if next == 0 || again < next {
				next = again
			}
			continue
		}
		r.isSent, r.sent = true, now
		out = append(out, Recall{ID: r.ID, Key: r.Key, Held: r.Held})
	}
	return out, next
}
