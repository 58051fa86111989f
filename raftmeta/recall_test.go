package raftmeta

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// orphan checks that an inode without a name is there until its session releases it.
func orphan(t *testing.T, h *holder, ino cfs.Ino) {
	t.Helper()
	l := h.c.leader().node.duties.Load().leases
	for id := range h.id { // the others, which are older, are not there to answer
		l.forget(id)
	}
	if x := h.query(getattr(ino)); x.Kind != cfs.KindOK || x.Attr.Nlink != 0 {
		t.Fatalf("an open inode that lost its name: %+v", x)
	}
	h.do(cfs.Op{Kind: cfs.OpRelease, Ino: ino})
	if x := h.query(getattr(ino)); x.Kind != cfs.Stale {
		t.Errorf("after its release: %+v", x)
	}
}

// An inode that another session has open outlives its last name.
func TestOpenElsewhere(t *testing.T) {
	c := newCluster(t, 3, leaseTime(never))
	a, b := c.holder(), c.holder()
	make := func(name string) cfs.Ino {
		ino := c.finished(a.start(createOp(name))).Results[0].Attr.Ino
		if x := b.query(open(ino)); x.Kind != cfs.KindOK {
			t.Fatalf("open %s: %v", name, x.Kind)
		}
		return ino
	}
	ack := func(h *holder, r *wirepb.Recall, kind wire.AckKind, done <-chan *cfs.Reply) {
		h.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(kind)})
		if r := h.dropAll(done); r.Kind != cfs.KindOK {
			t.Fatalf("unlink: %v", r.Kind)
		}
	}
	ino := make("f")
	done := a.start(unlinkOp("f"))
	r := b.recalled(wire.RecallOpen)
	pending(t, done, "the session has said whether it has the inode open")
	ack(b, r, wire.AckOpen, done)
	orphan(t, b, ino)

	ino = make("g")
	other := make("h")
	done = a.start(cfs.Op{Kind: cfs.OpRename, Dir: cfs.RootIno, Name: "h", NewDir: cfs.RootIno, NewName: "g"})
	r = b.recalled(wire.RecallOpen)
	if cfs.Ino(r.Ino) != ino {
		t.Errorf("asked for inode %d, %d loses its name and %d does not", r.Ino, ino, other)
	}
	ack(b, r, wire.AckOpen, done)
	orphan(t, b, ino)

	ino = make("i")
	done = a.start(unlinkOp("i"))
	ack(b, b.recalled(wire.RecallOpen), wire.AckDropped, done)
	if x := b.query(getattr(ino)); x.Kind != cfs.Stale {
		t.Errorf("kept for a session that has not got it open: %+v", x)
	}

	// The next leader is told what is open, and asks as this one did.
	ino = make("j")
	c.crash(c.leader())
	a.attach()
	b.attach(ino)
	done = a.start(unlinkOp("j"))
	ack(b, b.recalled(wire.RecallOpen), wire.AckOpen, done)
	orphan(t, b, ino)
}

// forget drops the leases of a session, as if they had lapsed.
func (l *leases) forget(id cfs.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t.Known(id) {
		l.t.EndSession(id)
		l.t.AddSession(id, true)
	}
}

// Silence keeps what was open, under this leader and the next.
func TestOpenAndSilent(t *testing.T) {
	c := newCluster(t, 3, leaseTime(200*time.Millisecond))
	a, b := c.holder(), c.holder()
	var inodes []cfs.Ino
	for i := range 2 {
		inodes = append(inodes, a.do(createOp(fmt.Sprint("f", i))).Results[0].Attr.Ino)
		b.query(open(inodes[i]))
	}
	a.do(unlinkOp("f0"))
	c.crash(c.leader())
	a.do(unlinkOp("f1"))
	b.attach()
	for _, ino := range inodes {
		orphan(t, b, ino)
	}
	if r := b.recalled(wire.RecallOpen); cfs.Ino(r.Ino) != inodes[1] {
		t.Errorf("the session learns of inode %d, not of %d", r.Ino, inodes[1])
	}
	leader := c.leader().node
	if r := checkedState(t, leader); r != "" {
		t.Error(r)
	}
}

// Another's look at what a session owns is answered by the session; another's change ends the lease.
func TestExclusiveRecalls(t *testing.T) {
	c := newCluster(t, 3, leaseTime(never))
	a, b := c.holder(), c.holder()
	f := a.do(ownedOp("f")).Results[0].Attr
	if f.Owner != a.id {
		t.Fatalf("created with a lease: %+v", f)
	}
	answers := make(chan *cfs.Answer, 1)
	ask := func(q cfs.Query) {
		go func() {
			q.Session, q.Epoch = b.id, b.epoch
			x, err := c.query(&q)
			if err != nil {
				t.Errorf("query: %v", err)
				x = &cfs.Answer{}
			}
			answers <- x
		}()
	}
	told := f
	told.Size = 12345
	for _, q := range []cfs.Query{lookup("f"), getattr(f.Ino)} {
		ask(q)
		r := a.recalled(wire.RecallReport)
		a.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckReport), Attr: wire.AttrToPB(&told)})
		if x := <-answers; x.Attr.Size != told.Size || x.Leased {
			t.Errorf("reported: %+v", x)
		}
	}
	dir := b.query(cfs.Query{Kind: cfs.QueryReadDir, Dir: cfs.RootIno, WithAttrs: true})
	if len(dir.Entries) != 1 || dir.Entries[0].Attr != nil || dir.Entries[0].Ino != f.Ino {
		t.Errorf("listing with what another owns: %+v", dir.Entries)
	}
	if own := a.query(cfs.Query{Kind: cfs.QueryReadDir, Dir: cfs.RootIno, WithAttrs: true}); own.Entries[0].Attr == nil {
		t.Errorf("listing of the owner: %+v", own.Entries)
	}
	ask(cfs.Query{Kind: cfs.QueryExtents, Ino: f.Ino, End: 1 << 20})
	r := a.recalled(wire.RecallExclusive)
	commit := []cfs.Op{{Kind: cfs.OpSetAttr, Ino: f.Ino, Mask: cfs.SetSize, Attr: cfs.Attr{Size: 4096}, Lease: true}, {Kind: cfs.OpSurrender, Ino: f.Ino}}
	if done := a.do(commit...); done.Results[1].Attr.Owner != 0 {
		t.Errorf("after the surrender: %+v", done.Results[1].Attr)
	}
	a.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)})
	if x := <-answers; x.Attr.Size != 4096 || x.Attr.Owner != 0 {
		t.Errorf("extents after the surrender: %+v", x)
	}
	c.leader().node.duties.Load().leases.forget(b.id)
	a.seq++
	if r, err := c.command(&cfs.Command{Session: a.id, Seq: a.seq, Ops: commit[:1]}); err != nil || r.Kind != cfs.NoLease {
		t.Errorf("a change under a lease that is gone: %v %+v", err, r)
	}
}

// Changes of other sessions wait for the surrender, of the inode, or of the directory, or for the
// end of the owner.
func TestExclusiveEnds(t *testing.T) {
	c := newCluster(t, 3, leaseTime(never))
	a, b := c.holder(), c.holder()
	mkdir := ownedOp("d")
	mkdir.Attr.Mode = cfs.ModeDir | 0o755
	dir := a.do(mkdir).Results[0].Attr.Ino
	inside := ownedOp("g")
	inside.Dir = dir
	g := a.do(inside).Results[0].Attr.Ino
	f := a.do(ownedOp("f")).Results[0].Attr.Ino

	surrender := func(want cfs.Ino, done <-chan *cfs.Reply) {
		t.Helper()
		r := a.recalled(wire.RecallExclusive)
		if cfs.Ino(r.Ino) != want {
			t.Fatalf("recall of inode %d, want %d", r.Ino, want)
		}
		pending(t, done, "the owner has surrendered")
		a.do(cfs.Op{Kind: cfs.OpSurrender, Ino: want})
		a.watch(&wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)})
	}
	done := b.start(chmodOp(f, 0o600))
	surrender(f, done)
	a.dropAll(done)
	new := createOp("h")
	new.Dir = dir
	done = b.start(new)
	surrender(dir, done)
	a.dropAll(done)
	done = b.start(cfs.Op{Kind: cfs.OpUnlink, Dir: dir, Name: "g"})
	r := a.recalled(wire.RecallExclusive)
	if cfs.Ino(r.Ino) != g {
		t.Errorf("recall of inode %d, want %d", r.Ino, g)
	}
	c.leader().node.expire(t, a.id)
	c.finished(done)
	// The rows of a session that is gone count as none.
	if r := checkedState(t, c.leader().node); r != "" {
		t.Error(r)
	}
}

func checkedState(t testing.TB, n *Node) string {
	t.Helper()
	reply, err := n.checkState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if reply.Faults == 0 {
		return ""
	}
	return fmt.Sprint(reply)
}

// player is a session that behaves as clients do, with a cache of attributes by name.
type player struct {
	*holder
	mu       sync.Mutex
	cache    map[string]cfs.Attr
	owned    map[cfs.Ino]cfs.Attr
	recalls  uint64 // that have been served
	deadline time.Time
	seqs     atomic.Uint64
	stop     chan struct{}
	wg       sync.WaitGroup
}

func (c *cluster) player() *player {
	p := &player{holder: &holder{c: c, id: c.session()}, cache: map[string]cfs.Attr{}, owned: map[cfs.Ino]cfs.Attr{}, stop: make(chan struct{})}
	p.wg.Go(func() { p.every(p.beatOnce) })
	p.wg.Go(func() {
		var acks []*wirepb.Ack
		p.every(func() { acks = p.watchOnce(acks) })
	})
	return p
}

func (p *player) every(fn func()) {
	for {
		select {
		case <-p.stop:
			return
		default:
			fn()
		}
	}
}

func (p *player) adopt(epoch uint64) {
	if epoch != p.epoch {
		p.epoch, p.deadline = epoch, time.Time{}
		clear(p.cache)
	}
}

func (p *player) known() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.epoch
}

func (p *player) beatOnce() {
	epoch, sent := p.known(), time.Now()
	var m wirepb.HeartbeatReply
	if err := p.c.call(wire.OpHeartbeat, &wirepb.Heartbeat{Session: uint64(p.id), Epoch: epoch}, &m); err != nil {
		p.c.t.Errorf("heartbeat: %v", err)
	}
	p.mu.Lock()
	if m.Epoch == epoch && p.epoch == epoch {
		p.deadline = sent.Add(time.Duration(m.LeaseMs) * time.Millisecond)
	}
	p.adopt(m.Epoch)
	p.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
}

func (p *player) watchOnce(acks []*wirepb.Ack) (next []*wirepb.Ack) {
	var m wirepb.WatchReply
	if err := p.c.call(wire.OpWatch, &wirepb.Watch{Session: uint64(p.id), Epoch: p.known(), Acks: acks}, &m); err != nil {
		p.c.t.Errorf("watch: %v", err)
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.adopt(m.Epoch)
	for _, r := range m.Recalls {
		p.recalls++
		ack := &wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)}
		switch wire.RecallKind(r.Kind) {
		case wire.RecallReport:
			if a, ok := p.owned[cfs.Ino(r.Ino)]; ok {
				ack.Kind, ack.Attr = uint32(wire.AckReport), wire.AttrToPB(&a)
			} else {
				p.surrender(cfs.Ino(r.Ino))
			}
		case wire.RecallExclusive:
			delete(p.owned, cfs.Ino(r.Ino))
			p.surrender(cfs.Ino(r.Ino))
		default:
			clear(p.cache)
		}
		next = append(next, ack)
	}
	return next
}

// surrender gives up an exclusive lease; p.mu is held.
func (p *player) surrender(i cfs.Ino) {
	p.mu.Unlock()
	defer p.mu.Lock()
	p.send(cfs.Op{Kind: cfs.OpSurrender, Ino: i})
}

func (p *player) send(ops ...cfs.Op) *cfs.Reply {
	seq := p.seqs.Add(1)
	r, err := p.c.command(&cfs.Command{Session: p.id, Seq: seq, LowWater: max(seq, 100) - 99, Ops: ops})
	if err != nil {
		p.c.t.Errorf("command of session %d: %v", p.id, err)
		return &cfs.Reply{Kind: cfs.KindOf(err)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(ops) == 1 && ops[0].Kind == cfs.OpSetAttr && r.Kind == cfs.KindOK { // its own leases stay
		for name, a := range p.cache {
			if now := r.Results[0].Attr; a.Ino == now.Ino && a.Gen < now.Gen {
				p.cache[name] = now
			}
		}
	} else {
		clear(p.cache)
	}
	return r
}

// find looks a name up, in the cache where it may. It is the generation of the inode, and
// whether the cache said so.
func (p *player) find(name string) (a cfs.Attr, cached bool) {
	p.mu.Lock()
	if a, ok := p.cache[name]; ok && time.Now().Before(p.deadline) {
		p.mu.Unlock()
		return a, true
	}
	epoch, recalls := p.epoch, p.recalls
	p.mu.Unlock()
	q := lookup(name)
	q.Session, q.Epoch = p.id, epoch
	x, err := p.c.query(&q)
	if err != nil {
		p.c.t.Errorf("lookup: %v", err)
		return a, false
	}
	if x.Kind == cfs.KindOK && x.Leased {
		p.mu.Lock()
		if old := p.cache[name]; p.epoch == epoch && p.recalls == recalls && (old.Ino != x.Attr.Ino || old.Gen < x.Attr.Gen) {
			p.cache[name] = x.Attr
		}
		p.mu.Unlock()
	}
	return x.Attr, false
}

// Sessions that change, look at and own the same files, and so recall each other's leases all
// the time, never see anything old, and none of them waits for ever.
func TestRecallsAtOnce(t *testing.T) {
	c := newCluster(t, 3, nil)
	const files = 3
	var newest sync.Map // generations of acknowledged changes, by inode
	acknowledged := func(i cfs.Ino) *atomic.Uint64 {
		v, _ := newest.LoadOrStore(i, new(atomic.Uint64))
		return v.(*atomic.Uint64)
	}
	var cached, changed atomic.Uint64
	var wg sync.WaitGroup
	var players []*player
	for range 3 {
		players = append(players, c.player())
	}
	for n, p := range players {
		for worker := range 2 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(n), uint64(worker)))
				for range 200 {
					i := r.IntN(files)
					name := fmt.Sprint("f", i)
					switch r.IntN(30) {
					case 0:
						if got := p.send(ownedOp(name)); got.Kind == cfs.KindOK {
							p.mu.Lock()
							p.owned[got.Results[0].Attr.Ino] = got.Results[0].Attr
							p.mu.Unlock()
						}
					case 1:
						p.send(unlinkOp(name))
					case 2:
						p.send(cfs.Op{Kind: cfs.OpRename, Dir: cfs.RootIno, Name: name, NewDir: cfs.RootIno, NewName: fmt.Sprint("f", r.IntN(files))})
					case 3, 4, 5, 6:
						if a, _ := p.find(name); a.Ino != 0 {
							if got := p.send(chmodOp(a.Ino, uint32(r.IntN(0o777)))); got.Kind == cfs.KindOK {
								changed.Add(1)
								raise(acknowledged(a.Ino), got.Results[0].Attr.Gen)
							}
						}
					default:
						p.mu.Lock()
						ino := p.cache[name].Ino
						p.mu.Unlock()
						was := acknowledged(ino).Load()
						for range 20 {
							a, hit := p.find(name)
							if !hit || a.Ino != ino {
								break
							}
							cached.Add(1)
							if a.Gen < was {
								t.Errorf("session %d sees generation %d of inode %d, and %d was acknowledged", p.id, a.Gen, a.Ino, was)
							}
						}
					}
				}
			})
		}
	}
	wg.Wait()
	for _, p := range players {
		close(p.stop)
		p.wg.Wait()
	}
	t.Logf("%d answers from memory, %d changes", cached.Load(), changed.Load())
}

// raise makes v at least n.
func raise(v *atomic.Uint64, n uint64) {
	for {
		if old := v.Load(); old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}
