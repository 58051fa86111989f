package raftmeta

import (
	"context"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// never is a lease time that no test waits for.
const never = time.Hour

// holder is a session that uses leases, step by step.
type holder struct {
	c     *cluster
	id    cfs.SessionID
	seq   uint64
	epoch uint64
	owes  []*wirepb.Ack // of recalls that came with others
}

// holder opens a session and has it adopt its epoch.
func (c *cluster) holder() *holder {
	c.t.Helper()
	h := &holder{c: c, id: c.session()}
	h.attach()
	return h
}

// beat sends a heartbeat with the epoch that the session knows; it is the epoch of the reply.
func (h *holder) beat(opens ...cfs.Ino) uint64 {
	h.c.t.Helper()
	req := &wirepb.Heartbeat{Session: uint64(h.id), Epoch: h.epoch}
	for _, i := range opens {
		req.Opens = append(req.Opens, uint64(i))
	}
	var m wirepb.HeartbeatReply
	if err := h.c.call(wire.OpHeartbeat, req, &m); err != nil {
		h.c.t.Fatalf("heartbeat of session %d: %v", h.id, err)
	}
	return m.Epoch
}

// attach adopts the epoch that the leader gives, and says what is open.
func (h *holder) attach(opens ...cfs.Ino) {
	h.c.t.Helper()
	h.c.wait("an epoch that stays", func() bool {
		was := h.epoch
		h.epoch = h.beat(opens...)
		return h.epoch == was
	})
}

func (h *holder) query(q cfs.Query) *cfs.Answer {
	h.c.t.Helper()
	q.Session, q.Epoch = h.id, h.epoch
	a, err := h.c.query(&q)
	if err != nil {
		h.c.t.Fatalf("query %+v: %v", q, err)
	}
	return a
}

// leased is query for an answer that must be leased.
func (h *holder) leased(q cfs.Query) *cfs.Answer {
	h.c.t.Helper()
	a := h.query(q)
	if !a.Leased {
		h.c.t.Fatalf("query %+v is not leased: %+v", q, a)
	}
	return a
}

// start sends a command; the reply comes later.
func (h *holder) start(ops ...cfs.Op) <-chan *cfs.Reply {
	h.seq++
	cmd := &cfs.Command{Session: h.id, Seq: h.seq, LowWater: h.seq, Ops: ops}
	done := make(chan *cfs.Reply, 1)
	go func() {
		r, err := h.c.command(cmd)
		if err != nil {
			h.c.t.Errorf("command of session %d: %v", h.id, err)
			r = &cfs.Reply{Kind: cfs.KindOf(err)}
		}
		done <- r
	}()
	return done
}

// do is start for a command that must succeed.
func (h *holder) do(ops ...cfs.Op) *cfs.Reply {
	h.c.t.Helper()
	return h.c.finished(h.start(ops...))
}

func (c *cluster) finished(done <-chan *cfs.Reply) *cfs.Reply {
	c.t.Helper()
	select {
	case r := <-done:
		if r.Kind != cfs.KindOK {
			c.t.Fatalf("refused: %v", r.Kind)
		}
		return r
	case <-time.After(patience):
		c.t.Fatal("a command does not end")
	}
	return nil
}

// watch answers recalls and is what comes next.
func (h *holder) watch(acks ...*wirepb.Ack) *wirepb.WatchReply {
	h.c.t.Helper()
	var m wirepb.WatchReply
	if err := h.c.call(wire.OpWatch, &wirepb.Watch{Session: uint64(h.id), Epoch: h.epoch, Acks: append(h.owes, acks...)}, &m); err != nil {
		h.c.t.Fatalf("watch of session %d: %v", h.id, err)
	}
	h.owes = nil
	return &m
}

// recalled waits for a recall of a kind; others that come before it are acknowledged.
func (h *holder) recalled(kind wire.RecallKind) *wirepb.Recall {
	h.c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		var found *wirepb.Recall
		for _, r := range h.watch().Recalls {
			if r.Kind == uint32(kind) && found == nil {
				found = r
				continue
			}
			h.owes = append(h.owes, &wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)})
		}
		if found != nil {
			return found
		}
	}
	h.c.t.Fatalf("session %d gets no recall of kind %d", h.id, kind)
	return nil
}

// dropAll acknowledges whatever comes until done has something.
func (h *holder) dropAll(done <-chan *cfs.Reply) *cfs.Reply {
	h.c.t.Helper()
	var acks []*wirepb.Ack
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		reply := h.watch(acks...)
		acks = nil
		for _, r := range reply.Recalls {
			acks = append(acks, &wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)})
		}
		if len(acks) > 0 {
			continue
		}
		select {
		case r := <-done:
			return r
		default:
		}
	}
	h.c.t.Fatal("a command does not end")
	return nil
}

func pending(t *testing.T, done <-chan *cfs.Reply, before string) {
	t.Helper()
	select {
	case r := <-done:
		t.Fatalf("a command ended before %s: %+v", before, r)
	default:
	}
}

func leaseTime(d time.Duration) func(*Config) { return func(c *Config) { c.LeaseTime = d } }

func createOp(name string) cfs.Op {
	return cfs.Op{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: name, Attr: cfs.Attr{Mode: cfs.ModeRegular | 0o644}, Exclusive: true}
}

func ownedOp(name string) cfs.Op {
	op := createOp(name)
	op.Lease = true
	return op
}

func unlinkOp(name string) cfs.Op { return cfs.Op{Kind: cfs.OpUnlink, Dir: cfs.RootIno, Name: name} }

func chmodOp(i cfs.Ino, mode uint32) cfs.Op {
	return cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: cfs.SetMode, Attr: cfs.Attr{Mode: mode}}
}

func lookup(name string) cfs.Query {
	return cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: name}
}

func getattr(i cfs.Ino) cfs.Query { return cfs.Query{Kind: cfs.QueryGetAttr, Ino: i} }

func open(i cfs.Ino) cfs.Query {
	return cfs.Query{Kind: cfs.QueryExtents, Ino: i, End: 1 << 20, Open: true}
}

// A change waits until the others have given their leases back: a stale read is impossible.
func TestChangesWaitForLeases(t *testing.T) {
	c := newCluster(t, 3, leaseTime(never))
	a, b := c.holder(), c.holder()
	f := a.do(createOp("f"))
	if !f.Leased {
		t.Errorf("the creator has no lease: %+v", f)
	}
	ino := f.Results[0].Attr.Ino
	b.leased(lookup("f"))
	b.leased(lookup("g")) // that there is none
	b.leased(cfs.Query{Kind: cfs.QueryReadDir, Dir: cfs.RootIno, WithAttrs: true})

	for _, step := range []struct {
		op   cfs.Op
		kind wire.RecallKind
	}{{chmodOp(ino, 0o600), wire.RecallAttr}, {createOp("g"), wire.RecallList}, {unlinkOp("f"), wire.RecallName}} {
		b.leased(lookup("f"))
		b.leased(cfs.Query{Kind: cfs.QueryReadDir, Dir: cfs.RootIno, WithAttrs: true})
		done := a.start(step.op)
		r := b.recalled(step.kind)
		pending(t, done, "the others have given their leases back")
		if x := b.query(getattr(ino)); x.Leased && step.kind == wire.RecallAttr {
			t.Error("leased while it is being changed")
		}
		b.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)})
		if r := b.dropAll(done); r.Kind != cfs.KindOK {
			t.Fatalf("%+v: %v", step.op, r.Kind)
		}
	}
	if x := b.leased(lookup("f")); x.Kind != cfs.NotFound {
		t.Errorf("lookup of what is gone: %+v", x)
	}
	if x := b.leased(lookup("g")); x.Kind != cfs.KindOK {
		t.Errorf("lookup of what is new: %+v", x)
	}
	// A session that asks for no leases gets none, and is in nobody's way.
	c.leader().node.expire(t, a.id)
	old := c.session()
	c.mustCreateBesides(old, 1, "h", b)
	if x, err := c.query(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: "h"}); err != nil || x.Leased || x.Kind != cfs.KindOK {
		t.Errorf("without a session: %v %+v", err, x)
	}
	if x := b.query(getattr(ino)); x.Kind != cfs.Stale || x.Leased {
		t.Errorf("an inode that is gone: %+v", x)
	}
}

// mustCreateBesides creates a file while h gives back whatever it has.
func (c *cluster) mustCreateBesides(s cfs.SessionID, seq uint64, name string, h *holder) {
	c.t.Helper()
	done := make(chan *cfs.Reply, 1)
	go func() {
		r, err := c.command(create(s, seq, name))
		if err != nil {
			c.t.Errorf("create %s: %v", name, err)
			r = &cfs.Reply{Kind: cfs.KindOf(err)}
		}
		done <- r
	}()
	if r := h.dropAll(done); r.Kind != cfs.KindOK {
		c.t.Errorf("create %s: %v", name, r.Kind)
	}
}

func TestSilentSessionLapses(t *testing.T) {
	c := newCluster(t, 3, leaseTime(200*time.Millisecond))
	a, b := c.holder(), c.holder()
	b.beat()
	c.wait("a lease", func() bool { b.attach(); return b.query(lookup("f")).Leased })
	was := b.epoch
	a.do(createOp("f")) // and nobody acknowledges
	c.wait("another epoch, if the lease was still good", func() bool { b.attach(); return b.query(lookup("f")).Leased })
	if b.epoch == was {
		// It had lapsed before the create, which then dropped it: that gives a new epoch too.
		t.Error("the epoch stays though its leases have lapsed")
	}
	x := b.query(lookup("f"))
	if x.Kind != cfs.KindOK {
		t.Errorf("lookup after the lapse: %v", x.Kind)
	}
	b.epoch = was
	if x := b.query(lookup("f")); x.Leased {
		t.Error("leased under an epoch that has passed")
	}
}

// A leader that cannot reach the others renews nothing, and the next one lets nobody change
// anything before the sessions have come to it.
func TestDeposedLeaderDoesNotRenew(t *testing.T) {
	c := newCluster(t, 3, leaseTime(never))
	a, b := c.holder(), c.holder()
	a.do(createOp("f"))
	b.leased(lookup("f"))
	old := c.leader()
	old.pool.Close() // it is heard no more, but hears
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var m wirepb.HeartbeatReply
	if _, err := c.pool.Call(ctx, old.addr, wire.OpHeartbeat, &wirepb.Heartbeat{Session: uint64(b.id), Epoch: b.epoch}, nil, &m, nil); err == nil {
		t.Fatal("a leader that nobody hears renews leases")
	}
	c.wait("another leader", func() bool { return c.leader() != old })
	was := b.epoch
	a.attach()
	done := a.start(unlinkOp("f"))
	c.wait("the command to arrive", func() bool { return c.leader().node.duties.Load().leases.arrived() > 0 })
	pending(t, done, "every session has come to the new leader")
	b.attach()
	if b.epoch == was {
		t.Error("the epoch of another leader is the same")
	}
	c.finished(done)
}

// arrived is the number of requests that wait for the grace of a new leader.
func (l *leases) arrived() int64 { return l.settling.Load() }

func TestGraceEndsByTime(t *testing.T) {
	c := newCluster(t, 3, leaseTime(300*time.Millisecond))
	a, b := c.holder(), c.holder()
	a.do(createOp("f"))
	b.query(lookup("f"))
	c.crash(c.leader())
	a.do(unlinkOp("f")) // and nobody comes back
	if x := b.query(lookup("f")); x.Leased || x.Kind != cfs.NotFound {
		t.Errorf("after the grace: %+v", x)
	}
}

// Who waits and gives up leaves nothing behind.
func TestCanceledChangeLeavesNothing(t *testing.T) {
	c := newCluster(t, 1, leaseTime(never))
	a, b := c.holder(), c.holder()
	ino := a.do(createOp("f")).Results[0].Attr.Ino
	b.leased(getattr(ino))
	a.seq++
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		var m wirepb.Reply
		_, err := c.pool.Call(ctx, c.seeds[0], wire.OpCommand, wire.CommandToPB(&cfs.Command{Session: a.id, Seq: a.seq, Ops: []cfs.Op{chmodOp(ino, 0o600)}}), nil, &m, nil)
		failed <- err
	}()
	b.recalled(wire.RecallAttr)
	cancel()
	if err := <-failed; err == nil {
		t.Fatal("the change was made")
	}
	l := c.leader().node.duties.Load().leases
	c.wait("the change to end", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.waiting == 0 && len(l.waits) == 0
	})
	c.wait("leases as before", func() bool { return b.query(getattr(ino)).Leased })
	if x := b.query(getattr(ino)); x.Attr.Mode&0o777 != 0o644 {
		t.Errorf("mode %o", x.Attr.Mode)
	}
	// A session that answers nothing any more does not keep what is open either: it ends.
	b.query(open(ino))
	done := a.start(unlinkOp("f"))
	b.recalled(wire.RecallOpen)
	pending(t, done, "the session has answered or is gone")
	c.leader().node.expire(t, b.id)
	c.finished(done)
	if x := a.query(getattr(ino)); x.Kind != cfs.Stale {
		t.Errorf("kept for a session that is gone: %+v", x)
	}
}

// expire ends a session as the leader does.
func (n *Node) expire(t testing.TB, id cfs.SessionID) {
	t.Helper()
	if r, err := n.own(t.Context(), cfs.Op{Kind: cfs.OpExpireSession, Sess: id}); err != nil || r.Kind != cfs.KindOK {
		t.Fatalf("expire session %d: %v %+v", id, err, r)
	}
}
