package client

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

func TestNamespace(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	dir, err := c.Create(ctx, me, cfs.RootIno, "dir", cfs.ModeDir|0o755, 0, "", true)
	must(t, err)
	link, err := c.Create(ctx, me, dir.Ino, "link", cfs.ModeSymlink|0o777, 0, "to/there", true)
	must(t, err)
	if to, err := c.Readlink(ctx, link.Ino); err != nil || to != "to/there" {
		t.Errorf("readlink: %q, %v", to, err)
	}
	dev, err := c.Create(ctx, me, dir.Ino, "dev", cfs.ModeChar|0o600, 0x103, "", true)
	must(t, err)
	if dev.Rdev != 0x103 || dev.UID != me.UID {
		t.Errorf("device: %+v", dev)
	}
	_, err = c.Create(ctx, me, dir.Ino, "dev", cfs.ModeChar|0o600, 0, "", true)
	wantKind(t, err, cfs.Exists)
	ino := put(t, c, "f", []byte("x"))
	again, err := c.Create(ctx, me, cfs.RootIno, "f", cfs.ModeRegular|0o600, 0, "", false)
	must(t, err)
	if again.Ino != ino || again.Size != 1 {
		t.Errorf("created again: %+v", again)
	}
	a, err := c.Link(ctx, me, ino, dir.Ino, "hard")
	must(t, err)
	if a.Nlink != 2 {
		t.Errorf("%d links", a.Nlink)
	}
	must(t, c.SetXattr(ctx, me, ino, "user.a", []byte("1"), unix.XATTR_CREATE))
	wantKind(t, c.SetXattr(ctx, me, ino, "user.a", nil, unix.XATTR_CREATE), cfs.Exists)
	must(t, c.SetXattr(ctx, me, ino, "user.b", []byte("2"), 0))
	v, err := c.GetXattr(ctx, ino, "user.a")
	must(t, err)
	names, err := c.ListXattr(ctx, ino)
	must(t, err)
	if string(v) != "1" || !slices.Equal(names, []string{"user.a", "user.b"}) {
		t.Errorf("xattrs %v, user.a %q", names, v)
	}
	must(t, c.RemoveXattr(ctx, me, ino, "user.a"))
	_, err = c.GetXattr(ctx, ino, "user.a")
	wantKind(t, err, cfs.NoAttr)
	wantKind(t, c.Rmdir(ctx, me, cfs.RootIno, "dir"), cfs.NotEmpty)
	wantKind(t, c.Rmdir(ctx, me, cfs.RootIno, "f"), cfs.NotDir)
	wantKind(t, c.Unlink(ctx, me, cfs.RootIno, "dir"), cfs.IsDir)
	wantKind(t, c.Unlink(ctx, me, cfs.RootIno, "none"), cfs.NotFound)
	must(t, c.Rename(ctx, me, dir.Ino, "hard", dir.Ino, "dev", cfs.RenameExchange))
	if a, err := c.Lookup(ctx, dir.Ino, "dev"); err != nil || a.Ino != ino {
		t.Errorf("after the exchange: %+v, %v", a, err)
	}
	if a, err := c.Lookup(ctx, dir.Ino, "hard"); err != nil || a.Ino != dev.Ino {
		t.Errorf("after the exchange: %+v, %v", a, err)
	}
	wantKind(t, c.Rename(ctx, me, dir.Ino, "hard", dir.Ino, "dev", cfs.RenameNoreplace), cfs.Exists)
	must(t, c.Rename(ctx, me, dir.Ino, "dev", cfs.RootIno, "f", 0)) // two names of one file: nothing happens
	if a, err := c.Lookup(ctx, dir.Ino, "dev"); err != nil || a.Ino != ino || a.Nlink != 2 {
		t.Errorf("after a rename of a file to itself: %+v, %v", a, err)
	}
	must(t, c.Rename(ctx, me, dir.Ino, "hard", cfs.RootIno, "moved", 0))
	_, err = c.Lookup(ctx, dir.Ino, "hard")
	wantKind(t, err, cfs.NotFound)
	for _, n := range []string{"link", "dev"} {
		must(t, c.Unlink(ctx, me, dir.Ino, n))
	}
	must(t, c.Rmdir(ctx, me, cfs.RootIno, "dir"))
	_, err = c.Lookup(ctx, cfs.RootIno, "dir")
	wantKind(t, err, cfs.NotFound)
	s, err := c.Statfs(ctx)
	must(t, err)
	if s.TotalBytes != 6<<40/6*4 || s.Inodes != 3 {
		t.Errorf("statfs %+v", s)
	}
}

// TestNamesAreCachedAndGoStale counts the questions to the leader.
func TestNamesAreCached(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	awaitLease(c)
	ctx := t.Context()
	lookups := 0
	var mu sync.Mutex
	hook(&b.answered, func(q *cfs.Query) {
		if q.Kind == cfs.QueryLookup {
			mu.Lock()
			defer mu.Unlock()
			lookups++
		}
	})
	for range 3 {
		_, err := c.Lookup(ctx, cfs.RootIno, "none")
		wantKind(t, err, cfs.NotFound)
	}
	put(t, c, "f", nil)
	for range 3 {
		_, err := c.Lookup(ctx, cfs.RootIno, "f")
		must(t, err)
	}
	must(t, c.Unlink(ctx, me, cfs.RootIno, "f"))
	_, err := c.Lookup(ctx, cfs.RootIno, "f")
	wantKind(t, err, cfs.NotFound)
	if lookups != 1 {
		t.Errorf("%d lookups were sent, want 1", lookups)
	}
	other := b.mount(t)
	_, err = other.Lookup(ctx, cfs.RootIno, "f")
	wantKind(t, err, cfs.NotFound)
	ino := put(t, c, "f", []byte("new"))
	if a, err := other.Lookup(ctx, cfs.RootIno, "f"); err != nil || a.Ino != ino || a.Size != 3 {
		t.Errorf("another client finds %+v, %v", a, err)
	}
}

// TestLateAnswers: an answer from before a change of this client's own does not
// undo what its cache knows.
func TestLateAnswers(t *testing.T) {
	for _, change := range []string{"rename", "unlink", "create"} {
		t.Run(change, func(t *testing.T) {
			b := newBed(t, 3)
			c := b.mount(t, func(cfg *Config) { cfg.CacheTTL = MaxCacheTTL })
			ctx := t.Context()
			if change != "create" {
				put(t, b.mount(t), "a", []byte("1"))
			}
			held, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			hook(&b.answered, func(q *cfs.Query) {
				if q.Kind == cfs.QueryLookup && q.Name == "a" {
					once.Do(func() {
						close(held)
						<-release
					})
				}
			})
			late := make(chan struct{})
			go func() {
				defer close(late)
				c.Lookup(ctx, cfs.RootIno, "a")
			}()
			<-held
			want := cfs.NotFound
			switch change {
			case "rename":
				must(t, c.Rename(ctx, me, cfs.RootIno, "a", cfs.RootIno, "b", 0))
			case "unlink":
				must(t, c.Unlink(ctx, me, cfs.RootIno, "a"))
			case "create":
				put(t, c, "a", []byte("1"))
				want = cfs.KindOK
			}
			close(release)
			<-late
			if _, err := c.Lookup(ctx, cfs.RootIno, "a"); cfs.KindOf(err) != want {
				t.Errorf("lookup after the %s: %v", change, err)
			}
		})
	}
}

func TestDirPaging(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	const names = 3000
	name := func(i int) string { return fmt.Sprintf("%05d", i) }
	for i := 0; i < names; i += 200 {
		var ops []cfs.Op
		for j := i; j < i+200; j++ {
			ops = append(ops, cfs.Op{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: name(j), Attr: cfs.Attr{Mode: cfs.ModeRegular | 0o644}})
		}
		b.apply(b.sess, ops...)
	}
	d, err := c.OpenDir(ctx, cfs.RootIno)
	must(t, err)
	if d.Parent() != cfs.RootIno {
		t.Errorf("parent %d", d.Parent())
	}
	list := func(from uint64, each func(pos uint64, e cfs.Dirent)) {
		t.Helper()
		for pos := from; ; pos++ {
			e, ok, err := d.At(ctx, pos)
			must(t, err)
			if !ok {
				return
			}
			each(pos, e)
		}
	}
	list(0, func(pos uint64, e cfs.Dirent) {
		if e.Name != name(int(pos)) || e.Attr == nil || e.Attr.Ino != e.Ino {
			t.Fatalf("at %d: %+v", pos, e)
		}
	})
	for _, pos := range []uint64{2999, 0, 1024, 1023, 2048, 5} { // anywhere, in any order
		if e, ok, err := d.At(ctx, pos); err != nil || !ok || e.Name != name(int(pos)) {
			t.Fatalf("at %d: %+v, %v, %v", pos, e, ok, err)
		}
	}
	for _, pos := range []uint64{names, 1 << 20, 1 << 62} {
		if _, ok, err := d.At(ctx, pos); err != nil || ok {
			t.Fatalf("at %d: %v, %v", pos, ok, err)
		}
	}
	// Deletions and additions on the way: what was there all the time comes exactly once.
	d.Rewind()
	seen, doomed := map[string]int{}, map[string]bool{}
	list(0, func(pos uint64, e cfs.Dirent) {
		seen[e.Name]++
		if pos == 1500 {
			var ops []cfs.Op
			for i := 900; i < 2200; i += 10 {
				ops = append(ops, cfs.Op{Kind: cfs.OpUnlink, Dir: cfs.RootIno, Name: name(i)})
				doomed[name(i)] = true
			}
			b.apply(b.sess, ops...)
			for i := 0; i < names; i += 100 {
				b.apply(b.sess, cfs.Op{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: name(i) + "x", Attr: cfs.Attr{Mode: cfs.ModeRegular}})
			}
		}
	})
	for i := range names {
		if n := seen[name(i)]; n > 1 || n == 0 && !doomed[name(i)] {
			t.Errorf("%s was listed %d times", name(i), n)
		}
	}
	// Back to the first page, which has changed, and on: again each once.
	seen = map[string]int{}
	list(0, func(_ uint64, e cfs.Dirent) { seen[e.Name]++ })
	entries := 0
	for n, k := range seen {
		if entries++; k != 1 || doomed[n] {
			t.Errorf("%s was listed %d times", n, k)
		}
	}
	if want := names - len(doomed) + names/100; entries != want {
		t.Errorf("%d entries, want %d", entries, want)
	}
	// Sizes of files that are being written show here too.
	f := open(t, c, name(7), unix.O_RDWR)
	write(t, f, []byte("dirty"), 0)
	d.Rewind()
	list(0, func(_ uint64, e cfs.Dirent) {
		if e.Name == name(7) && e.Attr.Size != 5 {
			t.Errorf("size %d of a dirty file", e.Attr.Size)
		}
	})
	must(t, f.Close(ctx))
	_, err = c.OpenDir(ctx, f.n.ino)
	wantKind(t, err, cfs.NotDir)
}

func TestUnlinkOfManyOpenFiles(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	var wg sync.WaitGroup
	for i := range 50 {
		f := create(t, c, fmt.Sprint(i))
		write(t, f, []byte("x"), 0)
		wg.Go(func() {
			if err := c.Unlink(t.Context(), me, cfs.RootIno, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := f.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if u := b.read(&cfs.Query{Kind: cfs.QueryStatfs}).Statfs; u.Inodes != 1 {
		t.Errorf("%d inodes are left", u.Inodes)
	}
	if n := c.openCount(); n != 0 {
		t.Errorf("%d inodes are open", n)
	}
}
