package client

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// watcher is an observer that looks, when it is told, whether what it is told of has happened already.
type watcher struct {
	inode func(cfs.Ino)
	names func(cfs.Ino)
	all   func()

	mu                       sync.Mutex
	inodes, dirs, everything int
}

func (w *watcher) note(n *int, look func()) {
	w.mu.Lock()
	*n++
	w.mu.Unlock()
	look()
}

func (w *watcher) count(n *int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *n
}

func (w *watcher) ForgetInode(i cfs.Ino) {
	w.note(&w.inodes, func() {
		if w.inode != nil {
			w.inode(i)
		}
	})
}

func (w *watcher) ForgetNames(dir cfs.Ino) {
	w.note(&w.dirs, func() {
		if w.names != nil {
			w.names(dir)
		}
	})
}

func (w *watcher) ForgetAll() {
	w.note(&w.everything, func() {
		if w.all != nil {
			w.all()
		}
	})
}

// TestObserverIsToldFirst: what is above the client hears of another's change before it happens, and is given nothing to
// keep from then until it has happened.
func TestObserverIsToldFirst(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, _ := b.mountLeased(t)
	w := &watcher{}
	// A recall that the leader asks for again before it has the acknowledgement is served again, and that may be late.
	var toldInode, toldNames atomic.Bool
	w.inode = func(told cfs.Ino) {
		if told != i || toldInode.Swap(true) {
			return
		}
		if a := b.attr(i); a.Mode&cfs.ModePerm != 0o644 {
			t.Errorf("told after the change: %o", a.Mode)
		}
		if _, l := c.LeasedAttr(i); l != (Lease{}) {
			t.Errorf("leased while it is being given back: %+v", l)
		}
	}
	w.names = func(dir cfs.Ino) {
		if toldNames.Swap(true) {
			return
		}
		if a := b.read(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: "none"}); dir != cfs.RootIno || a.Kind != cfs.NotFound {
			t.Errorf("told of directory %d after the change: %v", dir, a.Kind)
		}
		if _, ttl := c.LeasedName(cfs.RootIno, "none"); ttl != 0 {
			t.Errorf("a name is leased for %v while it is being given back", ttl)
		}
	}
	c.Observe(w)
	leased(t, c, i)
	before, l := c.LeasedAttr(i)
	if before.Ino != i || l.TTL <= 0 || l.TTL > keepMost || l.Mark == 0 {
		t.Fatalf("attributes of %d, %+v", before.Ino, l)
	}
	eventually(t, "a leased absent name", func() bool {
		_, err := c.Lookup(t.Context(), cfs.RootIno, "none")
		wantKind(t, err, cfs.NotFound)
		_, ttl := c.LeasedName(cfs.RootIno, "none")
		return ttl > 0
	})
	b.apply(b.sess, cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: cfs.SetMode, Attr: cfs.Attr{Mode: 0o600}})
	if w.count(&w.inodes) == 0 {
		t.Error("the observer was not told of a change of attributes")
	}
	b.existing(t, "none", cfs.ModeRegular)
	if w.count(&w.dirs) == 0 {
		t.Error("the observer was not told of a new name")
	}
	leased(t, c, i)
	if _, now := c.LeasedAttr(i); now.Mark == l.Mark {
		t.Error("a lease has the mark of one that was lost")
	}
}

// TestMarkOfOwnChanges: what this client changes itself leaves the lease, and so the mark.
func TestMarkOfOwnChanges(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, _ := b.mountLeased(t)
	leased(t, c, i)
	_, l := c.LeasedAttr(i)
	_, err := c.SetAttr(t.Context(), me, i, cfs.SetMode, cfs.Attr{Mode: 0o640})
	must(t, err)
	if _, now := c.LeasedAttr(i); now.Mark != l.Mark {
		t.Errorf("a change of our own has changed the mark: %d, %d", l.Mark, now.Mark)
	}
}

// TestObserverForgetsAll before this client uses another epoch, which says that it has nothing of the one before.
func TestObserverForgetsAll(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, _ := b.mountLeased(t)
	leased(t, c, i)
	old := c.leases.state.Load().epoch
	w := &watcher{all: func() {
		if st := c.leases.state.Load(); st.epoch != old || st.until != 0 {
			t.Errorf("everything is forgotten under epoch %d (of before: %d) with leases until %d", st.epoch, old, st.until)
		}
	}}
	c.Observe(w)
	b.leases.mu.Lock()
	for _, s := range b.leases.sessions {
		b.leases.newEpochLocked(s)
	}
	b.leases.wakeLocked()
	b.leases.mu.Unlock()
	eventually(t, "the new epoch", func() bool { return c.leases.state.Load().epoch != old && c.leases.left() > 0 })
	if w.count(&w.everything) == 0 {
		t.Error("the observer was not told of a new epoch")
	}
}

// TestOwnedIsHushedBeforeItIsLeft: what is given up of itself is not leased above for a while before, so that nobody need
// be told; what another asks for is told of.
func TestOwnedIsHushedBeforeItIsLeft(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	var told cfs.Ino
	w := &watcher{}
	c.Observe(w)
	i := untar(t, c, cfs.RootIno, "f", []byte("hello"))
	n := c.find(i)
	if _, l := c.LeasedAttr(i); l.TTL <= 0 {
		t.Fatalf("what is owned is not leased: %+v", l)
	}
	c.age(n, time.Now().Add(disownAfter-keepMost/2))
	if _, l := c.LeasedAttr(i); l.TTL != 0 || !n.isOwned() {
		t.Errorf("shortly before it is left: %+v, owned: %v", l, n.isOwned())
	}
	if _, err := c.GetAttr(t.Context(), i); err != nil {
		t.Error(err)
	}
	c.age(n, time.Now().Add(disownAfter+keepMost))
	eventually(t, "that it is left", func() bool { return !n.isOwned() })
	if w.count(&w.inodes) != 0 {
		t.Error("the observer was told of what nobody has asked for")
	}

	j := untar(t, c, cfs.RootIno, "g", []byte("hello"))
	w.inode = func(i cfs.Ino) {
		if i == j && told == 0 { // the lease of its attributes, which the surrender leaves, is recalled after
			told = i
			if a := b.attr(j); a.Size != 0 {
				t.Errorf("told after the commit of %d bytes", a.Size)
			}
		}
	}
	b.apply(b.sess, cfs.Op{Kind: cfs.OpSetAttr, Ino: j, Mask: cfs.SetMode, Attr: cfs.Attr{Mode: 0o600}})
	if told != j {
		t.Errorf("told of %d, not of %d", told, j)
	}
	if b.leases.count(wire.RecallExclusive) == 0 {
		t.Error("nothing was recalled")
	}
}
