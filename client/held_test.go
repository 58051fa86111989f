package client

import (
	"context"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// holdCommand has the next command whose first operation is of a kind wait at the leader, until release.
func (b *bed) holdCommand(k cfs.OpKind) (arrived chan struct{}, release func()) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	var first, once sync.Once
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Kind == k {
			first.Do(func() {
				close(arrived)
				<-goOn
			})
		}
	})
	release = func() { once.Do(func() { close(goOn) }) }
	b.t.Cleanup(release)
	return arrived, release
}

// gone waits until the state does not have an inode any more.
func (b *bed) gone(i cfs.Ino) {
	b.t.Helper()
	eventually(b.t, "the inode to go", func() bool {
		return b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: i}).Kind != cfs.KindOK
	})
}

// nameless makes an inode that has lost its name and is held for a client.
func (b *bed) nameless(t *testing.T, c *Client) cfs.Ino {
	t.Helper()
	i := b.existing(t, "held", cfs.ModeRegular|0o644)
	b.apply(b.sess, cfs.Op{Kind: cfs.OpUnlink, Dir: cfs.RootIno, Name: "held", Holds: []cfs.SessionID{c.session.Load().id}})
	return i
}

// TestFailureWithoutName: what is written to an open file without a name may fail, and its writer is told.
func TestFailureWithoutName(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	tmp, _, err := c.Tmpfile(ctx, me, cfs.RootIno, 0o600, false, unix.O_RDWR)
	must(t, err)
	f := create(t, c, "f")
	must(t, c.Unlink(ctx, me, cfs.RootIno, "f"))
	for _, n := range b.nodes {
		n.noSpace.Store(true)
	}
	for _, f := range []*File{tmp, f} {
		write(t, f, randomBytes(1, 100_000), 0)
		wantKind(t, f.Sync(ctx), cfs.NoSpace)
		write(t, f, randomBytes(1, 100_000), 0) // what nobody waits for any more is nobody's failure
		f.n.sealAll()
	}
	for _, n := range b.nodes {
		n.noSpace.Store(false)
	}
	for _, f := range []*File{tmp, f} {
		if err := f.Close(ctx); err != nil && cfs.KindOf(err) != cfs.NoSpace {
			t.Error(err)
		}
		b.gone(f.n.ino)
	}
}

// TestFlushAfterLostSession: it ends, whatever was on its way and kept back when the session ended.
func TestFlushAfterLostSession(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	f := create(t, c, "f")
	mode := func(m uint32) {
		_, err := c.SetAttr(ctx, me, f.n.ino, cfs.SetMode, cfs.Attr{Mode: m})
		must(t, err)
	}
	mode(0o600)
	arrived, release := b.holdCommand(cfs.OpSetAttr)
	first := make(chan error, 1)
	go func() { first <- f.n.flush(ctx) }()
	<-arrived
	mode(0o601)
	b.expire(c.session.Load().id)
	_, err := c.Create(ctx, me, cfs.RootIno, "g", cfs.ModeRegular|0o644, 0, "", true) // which finds that out
	must(t, err)
	release()
	must(t, within(t, "the first flush", func() error { return <-first }))
	wantKind(t, within(t, "the sync", func() error { return f.Sync(ctx) }), cfs.NoSession)
	must(t, f.Close(ctx))
}

// TestLinkAgainstClose: a file without a name that is closed while it is given one stays.
func TestLinkAgainstClose(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	f, a, err := c.Tmpfile(ctx, me, cfs.RootIno, 0o600, false, unix.O_RDWR)
	must(t, err)
	write(t, f, []byte("hello"), 0)
	arrived, release := b.holdCommand(cfs.OpLink)
	linked := make(chan error, 1)
	go func() {
		_, err := c.Link(context.Background(), me, a.Ino, cfs.RootIno, "named")
		linked <- err
	}()
	<-arrived
	must(t, f.Close(ctx))
	release()
	must(t, <-linked)
	check(t, c, "named", []byte("hello"))
	if got := b.attr(a.Ino); got.Nlink != 1 {
		t.Errorf("in the state: %+v", got)
	}
}

// TestOpenAgainstUnlink: an open that begins while the name of a closed file is taken is of a file that stays, or fails.
func TestOpenAgainstUnlink(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	i := put(t, c, "f", []byte("hello"))
	arrived, release := b.holdCommand(cfs.OpUnlink)
	removed := make(chan error, 1)
	go func() { removed <- c.Unlink(context.Background(), me, cfs.RootIno, "f") }()
	<-arrived
	type result struct {
		f   *File
		err error
	}
	opened := make(chan result, 1)
	go func() {
		f, err := c.Open(context.Background(), i, unix.O_RDONLY)
		opened <- result{f, err}
	}()
	eventually(t, "the open to begin", func() bool { return c.openCount() == 1 })
	var r result
	select {
	case r = <-opened: // before the name is gone: it must not go with the inode
	case <-time.After(100 * time.Millisecond):
	}
	early := r.f != nil
	release()
	must(t, <-removed)
	if !early {
		r = <-opened
	}
	if r.err == nil {
		p := make([]byte, 5)
		_, err := r.f.Read(ctx, p, 0)
		must(t, err)
		same(t, "read", p, []byte("hello"))
		if b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: i}).Kind != cfs.KindOK {
			t.Error("the handle is of an inode that is gone")
		}
		must(t, r.f.Close(ctx))
	}
	b.gone(i)
	if n := len(c.removals.set); n != 0 {
		t.Errorf("%d removals are left", n)
	}
}

// TestRemovalIsOneCommand: nobody asks or releases anything for a closed file.
func TestRemovalIsOneCommand(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	dir, err := c.Create(ctx, me, cfs.RootIno, "dir", cfs.ModeDir|0o755, 0, "", true)
	must(t, err)
	untar(t, c, dir.Ino, "f", []byte("x"))
	untar(t, c, dir.Ino, "g", []byte("x"))
	open := create(t, c, "open")
	ops, _ := b.commands()
	asked := b.queries()
	must(t, c.Unlink(ctx, me, dir.Ino, "f"))
	must(t, c.Unlink(ctx, me, dir.Ino, "g"))
	if u, r := ops(cfs.OpUnlink), ops(cfs.OpRelease); u != 2 || r != 0 {
		t.Errorf("%d unlinks, %d releases", u, r)
	}
	if n := asked(cfs.QueryLookup) + asked(cfs.QueryGetAttr); n != 0 {
		t.Errorf("%d questions", n)
	}
	must(t, open.Close(ctx))
}

// TestOpenNewIsKnown: the leader knows that a file which is not owned is open before its creator goes on.
func TestOpenNewIsKnown(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "f")
	b.leases.mu.Lock()
	known := b.leases.sessionLocked(c.session.Load().id).opens[f.n.ino]
	b.leases.mu.Unlock()
	if !known {
		t.Error("the leader does not know of it")
	}
	must(t, f.Close(t.Context()))
}

// TestChangeTimeOfBoth: a write after a change of attributes is the change time, also when both are committed together.
func TestChangeTimeOfBoth(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	f := create(t, c, "f")
	write(t, f, []byte("x"), 0)
	_, err := c.SetAttr(ctx, me, f.n.ino, cfs.SetMode, cfs.Attr{Mode: 0o600})
	must(t, err)
	time.Sleep(time.Millisecond)
	write(t, f, []byte("y"), 1)
	before, err := c.GetAttr(ctx, f.n.ino)
	must(t, err)
	must(t, f.Sync(ctx))
	if now := b.attr(f.n.ino).CtimeNS; now != before.CtimeNS {
		t.Errorf("the change time moved by %d ns at the commit", now-before.CtimeNS)
	}
	must(t, f.Close(ctx))
}

// TestKeptBackIsBounded: attributes that are due take the writes before them along, and no later change makes them wait.
func TestKeptBackIsBounded(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	f := create(t, c, "f")
	n := f.n
	chmod := func(m uint32) {
		_, err := c.SetAttr(ctx, me, n.ino, cfs.SetMode, cfs.Attr{Mode: m})
		must(t, err)
	}
	chmod(0o600)
	time.Sleep(time.Millisecond)
	write(t, f, []byte("x"), 0)
	chmod(0o601)
	n.mu.Lock()
	late := n.pendAt.Add(commitAfter + 1) // the write is younger
	n.mu.Unlock()
	c.age(n, late)
	n.mu.Lock()
	for _, k := range n.chunks {
		if k.state == chunkOpen {
			t.Error("what is due waits for a chunk that is open")
		}
	}
	n.mu.Unlock()
	eventually(t, "the commit", func() bool { return b.attr(n.ino).Mode&cfs.ModePerm == 0o601 })
	must(t, f.Close(ctx))
}

// TestRemovedSinceOpendir: a name that has gone is given without attributes, in an owned directory too.
func TestRemovedSinceOpendir(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	dir, err := c.Create(ctx, me, cfs.RootIno, "dir", cfs.ModeDir|0o755, 0, "", true)
	must(t, err)
	a, err := c.Create(ctx, me, dir.Ino, "f", cfs.ModeRegular|0o644, 0, "", true)
	must(t, err)
	f := c.OpenNew(a, unix.O_RDWR)
	d, err := c.OpenDir(ctx, dir.Ino)
	must(t, err)
	e, ok, err := d.At(ctx, 0)
	if err != nil || !ok || e.Attr == nil {
		t.Fatalf("%+v, %v, %v", e, ok, err)
	}
	must(t, c.Rename(ctx, me, dir.Ino, "f", dir.Ino, "g", 0))
	e, ok, err = d.At(ctx, 0)
	if err != nil || !ok || e.Attr != nil {
		t.Errorf("%+v, %v, %v", e, ok, err)
	}
	must(t, f.Close(ctx))
}

// TestGivenUpCommandComesLate: what it changes is known here when it is certain that it has or never will.
func TestGivenUpCommandComesLate(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	f := create(t, c, "f")
	write(t, f, []byte("0123456789"), 0)
	must(t, f.Sync(ctx))
	arrived, release := b.holdCommand(cfs.OpSetAttr)
	given, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := c.SetAttr(given, me, f.n.ino, cfs.SetSize, cfs.Attr{Size: 3})
		done <- err
	}()
	<-arrived
	cancel()
	if err := <-done; err == nil {
		t.Error("a command that was given up is done")
	}
	release()
	eventually(t, "certainty", func() bool { return c.cache.doubts.Load() == 0 })
	a, err := c.GetAttr(ctx, f.n.ino)
	must(t, err)
	if want := b.attr(f.n.ino); a.Size != want.Size {
		t.Errorf("the size is %d here and %d in the state", a.Size, want.Size)
	}
	must(t, f.Close(ctx))
}

// TestLateAdoption: a reply that is older than the end of a lease, or of its session, makes nothing ours.
func TestLateAdoption(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	s := c.session.Load()
	g := c.grantOf(s)
	a, err := c.Create(ctx, me, cfs.RootIno, "f", cfs.ModeRegular|0o644, 0, "", false)
	must(t, err)
	if !c.owns(a.Ino) {
		t.Fatal("not owned")
	}
	must(t, c.surrender(ctx, a.Ino))
	if c.adopt(s, &a, cfs.RootIno, g, false); c.owns(a.Ino) {
		t.Error("owned after it was given up")
	}
	b.expire(s.id)
	_, err = c.Create(ctx, me, cfs.RootIno, "g", cfs.ModeRegular|0o644, 0, "", true)
	must(t, err)
	a.Ino = 1 << 40
	if c.adopt(s, &a, cfs.RootIno, g, true); c.owns(a.Ino) {
		t.Error("owned in a session that has ended")
	}
}

// TestHeldWhileSilent: a hold that the leader made because this client did not answer is given up.
func TestHeldWhileSilent(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	i := b.nameless(t, c)
	c.recall(c.leases.state.Load().epoch, &wirepb.Recall{Id: 1 << 40, Kind: uint32(wire.RecallOpen), Ino: uint64(i), Held: true})
	b.gone(i)
}

// TestOpenWithoutName: the last close of a file that had lost its name before it was opened gives it up.
func TestOpenWithoutName(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	i := b.nameless(t, c)
	f, err := c.Open(t.Context(), i, unix.O_RDONLY)
	must(t, err)
	must(t, f.Close(t.Context()))
	b.gone(i)
}

// TestWriteAfterSentTimes: times that go again do not undo those of a later write.
func TestWriteAfterSentTimes(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	f := create(t, c, "f")
	n := f.n
	for _, written := range []int64{12, 13} {
		n.mu.Lock()
		n.sent = folded{cfs.SetMtime | cfs.SetMode | cfs.SetCtime, cfs.Attr{MtimeNS: 12, Mode: 0o600, CtimeNS: 20}}
		n.mtimeNS = written
		n.restoreLocked()
		n.sent = folded{}
		if kept := n.pend.mask&cfs.SetMtime != 0; kept != (written == 12) || n.pend.mask&cfs.SetMode == 0 {
			t.Errorf("written at %d: %+v", written, n.pend)
		}
		n.pend = folded{}
		n.mu.Unlock()
	}
	must(t, f.Close(t.Context()))
}

// TestAcknowledgementsWithoutRoom are made again when they are asked for again.
func TestAcknowledgementsWithoutRoom(t *testing.T) {
	l := newLeases(nil)
	l.begin(1, 1)
	l.acks = make([]*wirepb.Ack, maxAcks)
	for range 2 {
		if !l.claim(1, 7) {
			t.Fatal("not served again")
		}
		l.acknowledge(1, &wirepb.Ack{Id: 7})
	}
}
