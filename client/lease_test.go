package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// queries counts the questions to the leader by kind.
func (b *bed) queries() func(cfs.QueryKind) int64 {
	var n [64]atomic.Int64
	hook(&b.answered, func(q *cfs.Query) { n[q.Kind].Add(1) })
	return func(k cfs.QueryKind) int64 { return n[k].Load() }
}

// mountLeased is a client with leases, whose clock for them is the returned one's.
func (b *bed) mountLeased(t testing.TB) (*Client, *atomic.Int64) {
	t.Helper()
	ahead := &atomic.Int64{}
	clock := newBootClock()
	c := b.mount(t, func(cfg *Config) { cfg.Boot = func() int64 { return clock.now() + ahead.Load() } })
	c.shares.Store(false)
	eventually(t, "a lease", func() bool { return c.leases.left() > 0 })
	return c, ahead
}

// existing makes a file that nobody owns.
func (b *bed) existing(t testing.TB, name string, mode uint32) cfs.Ino {
	t.Helper()
	op := cfs.Op{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: name, Attr: cfs.Attr{Mode: mode}}
	return b.apply(b.sess, op).Results[0].Attr.Ino
}

// leased asks until the answer is kept.
func leased(t testing.TB, c *Client, i cfs.Ino) {
	t.Helper()
	eventually(t, "leased attributes", func() bool {
		_, err := c.GetAttr(t.Context(), i)
		must(t, err)
		_, ok := c.cachedAttr(i)
		return ok
	})
}

// TestLeasedAnswers: what is leased is not asked again, until another changes it; then at once.
func TestLeasedAnswers(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	asked := b.queries()
	for range 10 {
		_, err := c.Lookup(ctx, cfs.RootIno, "f")
		must(t, err)
		_, err = c.GetAttr(ctx, i)
		must(t, err)
		_, err = c.Lookup(ctx, cfs.RootIno, "none")
		wantKind(t, err, cfs.NotFound)
		_, err = c.GetXattr(ctx, i, "user.none")
		wantKind(t, err, cfs.NoAttr)
	}
	if l, g, x := asked(cfs.QueryLookup), asked(cfs.QueryGetAttr), asked(cfs.QueryGetXattr); l > 4 || g > 2 || x > 2 {
		t.Errorf("%d lookups, %d getattrs, %d getxattrs", l, g, x)
	}
	b.apply(b.sess, cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: cfs.SetMode, Attr: cfs.Attr{Mode: 0o600}})
	if a, err := c.GetAttr(ctx, i); err != nil || a.Mode&cfs.ModePerm != 0o600 {
		t.Errorf("after another's chmod: %+v, %v", a, err)
	}
	b.apply(b.sess, cfs.Op{Kind: cfs.OpSetXattr, Ino: i, Name: "user.none", Value: []byte("1")})
	if v, err := c.GetXattr(ctx, i, "user.none"); err != nil || string(v) != "1" {
		t.Errorf("after another's setxattr: %q, %v", v, err)
	}
	b.existing(t, "none", cfs.ModeRegular)
	if _, err := c.Lookup(ctx, cfs.RootIno, "none"); err != nil {
		t.Errorf("after another's create: %v", err)
	}
	b.apply(b.sess, cfs.Op{Kind: cfs.OpUnlink, Dir: cfs.RootIno, Name: "f"})
	_, err := c.Lookup(ctx, cfs.RootIno, "f")
	wantKind(t, err, cfs.NotFound)
	if n := b.leases.count(wire.RecallAttr); n == 0 {
		t.Error("nothing was recalled")
	}
}

// TestLeasesLapse: when their time has passed, suspended or not, nothing is answered from memory.
func TestLeasesLapse(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, ahead := b.mountLeased(t)
	leased(t, c, i)
	ahead.Store(int64(time.Hour)) // as after a suspension
	if _, ok := c.cachedAttr(i); ok {
		t.Error("answered from memory after the lease has lapsed")
	}
	if _, l := c.LeasedAttr(i); l != (Lease{}) {
		t.Errorf("the layer above may keep answers: %+v", l)
	}
	a, err := c.GetAttr(t.Context(), i)
	must(t, err)
	if a.Ino != i {
		t.Errorf("attributes of %d", a.Ino)
	}
	leased(t, c, i)
	if _, l := c.LeasedAttr(i); l.TTL <= 0 || l.TTL > c.leases.left() || l.Mark == 0 {
		t.Errorf("the layer above may keep answers: %+v", l)
	}
}

// TestRecallOvertakesAnswer: an answer whose key was recalled since it was asked is used once.
func TestRecallOvertakesAnswer(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, _ := b.mountLeased(t)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	hook(&b.answered, func(q *cfs.Query) {
		if q.Kind == cfs.QueryGetAttr {
			once.Do(func() {
				close(held)
				<-release
			})
		}
	})
	got := make(chan cfs.Attr, 1)
	go func() {
		a, err := c.GetAttr(context.Background(), i)
		if err != nil {
			t.Error(err)
		}
		got <- a
	}()
	<-held
	b.apply(b.sess, cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: cfs.SetMode, Attr: cfs.Attr{Mode: 0o600}})
	close(release)
	if a := <-got; a.Mode&cfs.ModePerm != 0o644 {
		t.Errorf("the answer is %+v", a)
	}
	if a, err := c.GetAttr(t.Context(), i); err != nil || a.Mode&cfs.ModePerm != 0o600 {
		t.Errorf("an answer that a recall has overtaken was kept: %+v, %v", a, err)
	}
}

// TestListingsAreLeased: a directory that was read to the end is listed from memory until a name changes.
func TestListingsAreLeased(t *testing.T) {
	b := newBed(t, 3)
	for i := range 10 {
		b.existing(t, fmt.Sprint(i), cfs.ModeRegular)
	}
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	count := func() (n int) {
		d, err := c.OpenDir(ctx, cfs.RootIno)
		must(t, err)
		for ; ; n++ {
			_, ok, err := d.At(ctx, uint64(n))
			must(t, err)
			if !ok {
				return n
			}
		}
	}
	eventually(t, "a listing in memory", func() bool {
		if n := count(); n != 10 {
			t.Fatalf("%d entries", n)
		}
		_, _, ok := c.cache.entries(cfs.RootIno, c.leases.state.Load().era, false)
		return ok
	})
	asked := b.queries()
	if n := count(); n != 10 || asked(cfs.QueryReadDir) != 0 {
		t.Errorf("%d entries, %d questions", n, asked(cfs.QueryReadDir))
	}
	_, err := c.Lookup(ctx, cfs.RootIno, "absent")
	wantKind(t, err, cfs.NotFound)
	if asked(cfs.QueryLookup) != 0 {
		t.Error("an absent name of a listed directory was asked for")
	}
	create(t, c, "mine").Close(ctx)
	if n := count(); n != 11 || asked(cfs.QueryReadDir) != 0 {
		t.Errorf("after our own create: %d entries, %d questions", n, asked(cfs.QueryReadDir))
	}
	b.existing(t, "other", cfs.ModeRegular)
	if n := count(); n != 12 {
		t.Errorf("after another's create: %d entries", n)
	}
}

// TestNewEpoch: where the leader has forgotten the leases they are void, and it is told at once what is open.
func TestNewEpoch(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	f := create(t, c, "f")
	other := b.existing(t, "g", cfs.ModeRegular|0o644)
	leased(t, c, other)
	write(t, f, []byte("kept over the change"), 0)
	b.mu.Lock()
	b.leader = 1
	b.mu.Unlock()
	b.metas[0].cut()
	eventually(t, "the new leader to know what is open", func() bool {
		b.leases.mu.Lock()
		defer b.leases.mu.Unlock()
		s := b.leases.sessions[c.session.Load().id]
		return b.leases.leader == 1 && s.attached && s.opens[f.n.ino]
	})
	eventually(t, "leases of the new leader", func() bool { return c.leases.left() > 0 })
	if _, ok := c.cache.attr(other, c.leases.state.Load().era); ok {
		t.Error("a lease of the old leader is in force")
	}
	must(t, f.Sync(t.Context()))
	must(t, f.Close(t.Context()))
	d, _ := b.mountLeased(t)
	check(t, d, "f", []byte("kept over the change"))
}

// TestUnlinkedElsewhere: a file that is open here and unlinked by another stays until it is closed.
func TestUnlinkedElsewhere(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, _ := b.mountLeased(t)
	other, _ := b.mountLeased(t)
	ctx := t.Context()
	f := open(t, c, "f", unix.O_RDWR)
	write(t, f, []byte("still there"), 0)
	must(t, f.Sync(ctx))
	must(t, other.Unlink(ctx, me, cfs.RootIno, "f"))
	same(t, "an unlinked file", readAll(t, f, 100), []byte("still there"))
	a, err := f.Attr(ctx)
	must(t, err)
	if a.Nlink != 0 {
		t.Errorf("%d links", a.Nlink)
	}
	must(t, f.Close(ctx))
	eventually(t, "the inode to go", func() bool { return b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: i}).Kind == cfs.Stale })
	// One that is not open any more is not held.
	b.existing(t, "g", cfs.ModeRegular|0o644)
	must(t, open(t, c, "g", unix.O_RDONLY).Close(ctx))
	must(t, other.Unlink(ctx, me, cfs.RootIno, "g"))
	if n := b.read(&cfs.Query{Kind: cfs.QueryStatfs}).Statfs.Inodes; n != 1 {
		t.Errorf("%d inodes are left", n)
	}
}

func BenchmarkLeasedGetAttr(b *testing.B) {
	benchLeased(b, func(c *Client, i cfs.Ino) error {
		_, err := c.GetAttr(context.Background(), i)
		return err
	})
}

func BenchmarkLeasedLookup(b *testing.B) {
	benchLeased(b, func(c *Client, _ cfs.Ino) error {
		_, err := c.Lookup(context.Background(), cfs.RootIno, "f")
		return err
	})
}

// benchLeased measures what is answered under the leases of the file f.
func benchLeased(b *testing.B, answer func(c *Client, i cfs.Ino) error) {
	bed := newBed(b, 3)
	i := bed.existing(b, "f", cfs.ModeRegular|0o644)
	c, _ := bed.mountLeased(b)
	leased(b, c, i)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := answer(c, i); err != nil {
				b.Error(err)
			}
		}
	})
}

// TestAllocLeased: an answer under a lease allocates nothing.
func TestAllocLeased(t *testing.T) {
	b := newBed(t, 3)
	i := b.existing(t, "f", cfs.ModeRegular|0o644)
	c, _ := b.mountLeased(t)
	leased(t, c, i)
	ctx := t.Context()
	_, err := c.Lookup(ctx, cfs.RootIno, "f")
	must(t, err)
	hit := func() bool {
		i, known := c.cachedName(cfs.RootIno, "f")
		if !known {
			return false
		}
		_, ok := c.cachedAttr(i)
		return ok
	}
	// What else runs meanwhile allocates: one round without is enough.
	eventually(t, "answers without an allocation", func() bool {
		return allocs(t, func() {
			if hit() {
				c.Lookup(ctx, cfs.RootIno, "f")
				c.GetAttr(ctx, i)
			}
		}) == 0 && hit()
	})
}
