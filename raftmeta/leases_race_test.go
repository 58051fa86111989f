package raftmeta

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/lease"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// An owner opens what it is to surrender before it does: the change that waits for it is not in the way.
func TestOwnerOpensBeforeSurrender(t *testing.T) {
	c := newCluster(t, 1, leaseTime(never))
	a, b := c.holder(), c.holder()
	f := a.do(ownedOp("f")).Results[0].Attr.Ino
	done := b.start(unlinkOp("f"))
	r := a.recalled(wire.RecallExclusive)
	q := open(f)
	q.Session, q.Epoch = a.id, a.epoch
	noTime, cancel := context.WithCancel(t.Context())
	cancel()
	opening := &asked{l: c.leader().node.duties.Load().leases, q: &q}
	if _, err := opening.register(noTime); err != nil {
		t.Fatalf("the owner's open waits: %v", err)
	}
	pending(t, done, "the owner has surrendered")
	a.do(cfs.Op{Kind: cfs.OpSurrender, Ino: f})
	a.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)})
	r = a.recalled(wire.RecallOpen)
	pending(t, done, "the owner has said whether it has the inode open")
	a.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckOpen)})
	if r := a.dropAll(done); r.Kind != cfs.KindOK {
		t.Fatalf("unlink: %v", r.Kind)
	}
	orphan(t, a, f)
}

// reading is a query of a session that is registered and has read, but is not sealed.
func (h *holder) reading(l *leases, q cfs.Query) *asked {
	h.c.t.Helper()
	q.Session, q.Epoch = h.id, h.epoch
	s := &asked{l: l, q: &q}
	if _, err := s.register(h.c.t.Context()); err != nil {
		h.c.t.Fatal(err)
	}
	if err := s.read(); err != nil {
		h.c.t.Fatal(err)
	}
	return s
}

// A listing that is read again leases no attributes that were another's at first.
func TestListingReadAgain(t *testing.T) {
	c := newCluster(t, 1, leaseTime(never))
	a, b := c.holder(), c.holder()
	f := a.do(ownedOp("f")).Results[0].Attr.Ino
	g := a.do(createOp("g")).Results[0].Attr.Ino
	l := c.leader().node.duties.Load().leases
	s := b.reading(l, cfs.Query{Kind: cfs.QueryReadDir, Dir: cfs.RootIno, WithAttrs: true})
	a.do(cfs.Op{Kind: cfs.OpSurrender, Ino: f})
	if err := s.seal(); err != nil {
		t.Fatal(err)
	}
	if !s.a.Leased {
		t.Fatal("not leased")
	}
	for _, e := range s.a.Entries {
		if has := e.Attr != nil; has != (e.Name == "g") {
			t.Errorf("entry %s, attributes: %v", e.Name, has)
		}
	}
	done := a.start(chmodOp(g, 0o600))
	b.recalled(wire.RecallAttr)
	if r := b.dropAll(done); r.Kind != cfs.KindOK {
		t.Errorf("change: %v", r.Kind)
	}
}

// A leadership that has ended leases nothing.
func TestEndedLeadershipLeasesNothing(t *testing.T) {
	c := newCluster(t, 1, leaseTime(never))
	h := c.holder()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := newLeases(c.leader().node, 99, []fsm.Session{{ID: h.id}}, ctx.Done())
	h.epoch, _ = l.beat(h.id, 0, nil, time.Now())
	l.beat(h.id, h.epoch, nil, time.Now())
	for _, ended := range []bool{false, true} {
		s := h.reading(l, lookup("f"))
		if ended {
			cancel()
		}
		if err := s.seal(); err != nil || s.a.Leased == ended {
			t.Errorf("ended %v: %v, leased %v", ended, err, s.a.Leased)
		}
	}
}

// An open that fails takes nothing from another of the same session that did not.
func TestFailedOpenStaysRegistered(t *testing.T) {
	c := newCluster(t, 1, leaseTime(never))
	a, b := c.holder(), c.holder()
	f := a.do(ownedOp("f")).Results[0].Attr.Ino
	l := c.leader().node.duties.Load().leases
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	q := open(f)
	q.Session, q.Epoch = b.id, b.epoch
	go func() {
		_, err := l.namespace(ctx, &q)
		failed <- err
	}()
	a.recalled(wire.RecallExclusive)
	cancel()
	if err := <-failed; cfs.KindOf(err) != cfs.Canceled {
		t.Fatalf("canceled: %v", err)
	}
	opens := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		_, n := l.t.Counts(b.id)
		return n
	}
	if opens() != 1 {
		t.Error("not open any more")
	}
	if x := b.query(open(f + 1000)); x.Kind != cfs.Stale || opens() != 1 {
		t.Errorf("what is not there is open: %v, %d", x.Kind, opens())
	}
}

// A command that follows its own operations sees what they leave.
func TestBehindFollowsOperations(t *testing.T) {
	c := newCluster(t, 1, leaseTime(never))
	a, b := c.holder(), c.holder()
	f := a.do(createOp("f")).Results[0].Attr.Ino
	owned := a.do(ownedOp("o")).Results[0].Attr.Ino
	mkdir := ownedOp("d")
	mkdir.Attr.Mode = cfs.ModeDir | 0o755
	dir := a.dropAll(b.start(mkdir)).Results[0].Attr.Ino
	old := createOp("f")
	old.Exclusive = false
	link := cfs.Op{Kind: cfs.OpLink, Dir: cfs.RootIno, Name: "l", Ino: f}
	under := func(op cfs.Op) cfs.Op { op.Dir, op.Lease = dir, true; return op }
	for _, x := range []struct {
		what  string
		ops   []cfs.Op
		loses cfs.Ino // by the last
		owned cfs.Ino
	}{
		{"create and unlink", []cfs.Op{old, unlinkOp("f")}, f, 0},
		{"link and unlink", []cfs.Op{link, unlinkOp("l")}, f, 0},
		{"link under a lease", []cfs.Op{under(cfs.Op{Kind: cfs.OpLink, Name: "l", Ino: owned})}, 0, owned},
		{"under a lease", []cfs.Op{under(cfs.Op{Kind: cfs.OpUnlink, Name: "x"})}, 0, 0},
	} {
		got, err := c.leader().node.behind(&cfs.Command{Session: b.id, Ops: x.ops})
		if err != nil {
			t.Fatal(err)
		}
		var loses cfs.Ino
		if got.loses != nil {
			loses = got.loses[len(x.ops)-1]
		}
		if loses != x.loses || x.loses != 0 && !slices.Contains(got.keys, lease.Key{Kind: lease.Open, Ino: x.loses}) {
			t.Errorf("%s: loses %d, keys %v", x.what, loses, got.keys)
		}
		if (x.owned == 0) != (len(got.owned) == 0) || x.owned != 0 && got.owned[0].ino != x.owned {
			t.Errorf("%s: owned %v, want %d", x.what, got.owned, x.owned)
		}
	}
}

// A hold that was made of silence is told, so that it is released.
func TestHoldOfSilenceIsTold(t *testing.T) {
	c := newCluster(t, 1, leaseTime(200*time.Millisecond))
	a, b := c.holder(), c.holder()
	f := a.do(createOp("f")).Results[0].Attr.Ino
	b.query(open(f))
	a.do(unlinkOp("f"))
	b.attach()
	r := b.recalled(wire.RecallOpen)
	if !r.Held || cfs.Ino(r.Ino) != f {
		t.Errorf("recall %+v", r)
	}
	b.do(cfs.Op{Kind: cfs.OpRelease, Ino: f})
	b.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)})
	if x := b.query(getattr(f)); x.Kind != cfs.Stale {
		t.Errorf("after the release: %+v", x)
	}
}
