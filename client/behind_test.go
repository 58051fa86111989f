package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// mountBehind is a client that commits names behind, and a directory that it owns.
func (b *bed) mountBehind(t testing.TB) (*Client, cfs.Ino) {
	t.Helper()
	c := b.mount(t, func(cfg *Config) { cfg.WriteBehind = true })
	c.shares.Store(false)
	eventually(t, "a lease", func() bool { return c.leases.left() > 0 })
	eventually(t, "inode numbers", func() bool { return c.peekIno(c.session.Load()) != 0 })
	dir, err := c.Create(t.Context(), me, cfs.RootIno, fmt.Sprint("dir of ", c.session.Load().id), cfs.ModeDir|0o755, 0, "", true)
	must(t, err)
	return c, dir.Ino
}

// stall keeps commands of a kind from being carried out, until release.
func (b *bed) stall(t testing.TB, kinds ...cfs.OpKind) (release func()) {
	t.Helper()
	gate := make(chan struct{})
	var once sync.Once
	release = func() { once.Do(func() { close(gate) }) }
	hook(&b.before, func(cmd *cfs.Command) {
		for i := range cmd.Ops {
			for _, k := range kinds {
				if cmd.Ops[i].Kind == k && (k != cfs.OpCreate || cmd.Ops[i].Ino != 0) {
					<-gate
					return
				}
			}
		}
	})
	t.Cleanup(release)
	return release
}

func names(t testing.TB, c *Client, dir cfs.Ino) (all []string) {
	t.Helper()
	d, err := c.OpenDir(t.Context(), dir)
	must(t, err)
	for at := uint64(0); ; at++ {
		e, ok, err := d.At(t.Context(), at)
		must(t, err)
		if !ok {
			return all
		}
		all = append(all, e.Name)
	}
}

// TestBehind: many files are made with few commands, and are as the cluster has them in the end.
func TestBehind(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	ops, commands := b.commands()
	before := commands()
	const files = 200
	want := map[cfs.Ino]cfs.Attr{}
	for k := range files {
		i := untar(t, c, dir, fmt.Sprint(k), []byte("content"))
		a, err := c.GetAttr(ctx, i)
		must(t, err)
		tarred(t, "here", a, 7)
		want[i] = a
	}
	here := names(t, c, dir)
	must(t, c.SyncDir(ctx, dir))
	if n := commands() - before; n > files/5 || ops(cfs.OpCreate) != files {
		t.Errorf("%d commands, %d of files made", n, ops(cfs.OpCreate))
	}
	if len(here) != files {
		t.Errorf("%d names", len(here))
	}
	other, _ := b.mountLeased(t)
	if theirs := names(t, other, dir); fmt.Sprint(theirs) != fmt.Sprint(here) {
		t.Errorf("another lists %v", theirs)
	}
	check2 := func(i cfs.Ino, a cfs.Attr) {
		got, err := other.GetAttr(ctx, i)
		must(t, err)
		tarred(t, "elsewhere", got, 7)
		if got.BtimeNS != a.BtimeNS || got.CtimeNS != a.CtimeNS {
			t.Errorf("another sees %+v, here was %+v", got, a)
		}
	}
	for i, a := range want {
		check2(i, a)
	}
}

// TestBehindAttributes: what is computed here is what the cluster makes, field by field.
func TestBehindAttributes(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	_, err := c.SetAttr(ctx, me, dir, cfs.SetMode|cfs.SetGID, cfs.Attr{Mode: 0o2777, GID: 42})
	must(t, err)
	setgid, err := c.Create(ctx, me, dir, "setgid", cfs.ModeDir|0o777, 0, "", true)
	must(t, err)
	plain, err := c.Create(ctx, me, cfs.RootIno, "plain", cfs.ModeDir|0o777, 0, "", true)
	must(t, err)
	count := c.stats.behindOps.Load()
	for k, in := range []cfs.Ino{dir, setgid.Ino, plain.Ino} {
		for _, mode := range []uint32{cfs.ModeRegular | 0o7777, cfs.ModeRegular | 0o600, cfs.ModeDir | 0o1777, cfs.ModeDir | 0o2755, cfs.ModeSymlink | 0o777} {
			for _, umask := range []uint32{0, 0o022, 0o777} {
				target := ""
				if mode&cfs.ModeType == cfs.ModeSymlink {
					target = "target"
				}
				cred := cfs.Cred{UID: 7, GID: 8, Umask: umask}
				a, err := c.Create(ctx, cred, in, fmt.Sprintf("%d %o %o", k, mode, umask), mode, 0, target, true)
				must(t, err)
				parent, err := c.GetAttr(ctx, in)
				must(t, err)
				must(t, c.SyncDir(ctx, in))
				for _, x := range []cfs.Attr{a, parent} {
					is := b.attr(x.Ino)
					if is.Gen == 0 {
						t.Errorf("%+v has no generation", is)
					}
					is.Gen, x.Gen = 0, 0
					if is != x {
						t.Errorf("mode %o umask %o: here %+v\nthere %+v", mode, umask, x, is)
					}
				}
			}
		}
	}
	if n := c.stats.behindOps.Load() - count; n != 3*5*3 {
		t.Errorf("%d were made behind", n)
	}
}

// TestBehindOrder: a name in a directory never comes before the directory; what is not there yet can be used as if it were.
func TestBehindOrder(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	release := b.stall(t, cfs.OpCreate)
	in := dir
	for k := range 200 {
		a, err := c.Create(ctx, me, in, fmt.Sprint(k), cfs.ModeDir|0o755, 0, "", true)
		must(t, err)
		in = a.Ino
	}
	i := untar(t, c, in, "f", []byte("deep"))
	if a, err := c.Lookup(ctx, in, "f"); err != nil || a.Ino != i {
		t.Errorf("%+v %v", a, err)
	}
	if b.attr(i).Ino != 0 || b.attr(in).Ino != 0 {
		t.Error("they are there already")
	}
	f, err := c.Open(withTimeout(t, 50*time.Millisecond), i, unix.O_RDONLY)
	if err == nil { // it asks for the extents: only when the cluster has it
		t.Error("opened before it is there")
		must(t, f.Close(ctx))
	}
	release()
	must(t, c.SyncDir(ctx, in))
	if b.attr(i).Ino != i || b.attr(in).Ino != in {
		t.Error("they are not there")
	}
}

func withTimeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestBehindBarriers: every command and query that names what is pending comes after it.
func TestBehindBarriers(t *testing.T) {
	b := newBed(t, 3)
	c, top := b.mountBehind(t)
	var dir cfs.Ino
	file := func(ctx context.Context, i cfs.Ino) (*File, error) {
		a, err := c.GetAttr(ctx, i)
		return c.OpenNew(a, unix.O_RDWR), err
	}
	for name, do := range map[string]func(ctx context.Context, i, sub cfs.Ino) error{
		"fsync": func(ctx context.Context, i, _ cfs.Ino) error {
			f, err := file(ctx, i)
			return errors.Join(err, f.Sync(ctx), f.Close(ctx))
		},
		"fsync of data": func(ctx context.Context, i, _ cfs.Ino) error {
			f, err := file(ctx, i)
			_, err2 := f.Write(ctx, []byte("data"), 0)
			return errors.Join(err, err2, f.Sync(ctx), f.Close(ctx))
		},
		"fsync of the directory": func(ctx context.Context, _, _ cfs.Ino) error { return c.SyncDir(ctx, dir) },
		"setattr of a directory": func(ctx context.Context, _, sub cfs.Ino) error {
			_, err := c.SetAttr(ctx, me, sub, cfs.SetMode, cfs.Attr{Mode: 0o700})
			return err
		},
		"truncate": func(ctx context.Context, i, _ cfs.Ino) error {
			f, err := file(ctx, i)
			_, err2 := f.Write(ctx, []byte("data"), 0)
			_, err3 := c.SetAttr(ctx, me, i, cfs.SetSize, cfs.Attr{Size: 2})
			return errors.Join(err, err2, err3, f.Close(ctx))
		},
		"setxattr": func(ctx context.Context, i, _ cfs.Ino) error {
			return c.SetXattr(ctx, me, i, "user.x", []byte("v"), 0)
		},
		"getxattr": func(ctx context.Context, i, _ cfs.Ino) error {
			_, err := c.GetXattr(ctx, i, "user.x")
			if cfs.KindOf(err) == cfs.NoAttr {
				return nil
			}
			return err
		},
		"link": func(ctx context.Context, i, _ cfs.Ino) error {
			_, err := c.Link(ctx, me, i, cfs.RootIno, fmt.Sprint("link", i))
			return err
		},
		"rename to elsewhere": func(ctx context.Context, i, _ cfs.Ino) error {
			return c.Rename(ctx, me, dir, "f", cfs.RootIno, fmt.Sprint("moved", i), 0)
		},
		"rmdir of what is not empty": func(ctx context.Context, _, sub cfs.Ino) error {
			if _, err := c.Create(ctx, me, sub, "in it", cfs.ModeRegular, 0, "", true); err != nil {
				return err
			}
			if err := c.Rmdir(ctx, me, dir, "d"); cfs.KindOf(err) != cfs.NotEmpty {
				return errors.Join(err, errors.New("not refused as not empty"))
			}
			return nil
		},
		"statfs": func(ctx context.Context, _, _ cfs.Ino) error { _, err := c.Statfs(ctx); return err },
		"lock": func(ctx context.Context, i, _ cfs.Ino) error {
			return c.SetLock(ctx, i, cfs.Lock{Kind: cfs.LockFlock, Type: cfs.LockRead, Owner: 1}, false)
		},
		"copy": func(ctx context.Context, i, _ cfs.Ino) error {
			f, err := file(ctx, i)
			g, err2 := c.Open(ctx, put(t, c, "src", []byte("content")), unix.O_RDONLY)
			if err2 != nil {
				return err2
			}
			_, err3 := g.CopyRange(ctx, f, 0, 0, 10, 0)
			return errors.Join(err, err3, f.Close(ctx), g.Close(ctx))
		},
		"surrender": func(ctx context.Context, i, _ cfs.Ino) error { return c.surrender(ctx, i) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			a, err := c.Create(ctx, me, top, name, cfs.ModeDir|0o700, 0, "", true)
			must(t, err)
			dir = a.Ino
			must(t, c.SyncDir(ctx, top))
			release := b.stall(t, cfs.OpCreate)
			i, err := c.Create(ctx, me, dir, "f", cfs.ModeRegular|0o600, 0, "", true)
			must(t, err)
			sub, err := c.Create(ctx, me, dir, "d", cfs.ModeDir|0o700, 0, "", true)
			must(t, err)
			done := make(chan error, 1)
			go func() { done <- do(ctx, i.Ino, sub.Ino) }()
			select {
			case err := <-done:
				t.Errorf("it did not wait: %v", err)
				done <- err
			case <-time.After(50 * time.Millisecond):
			}
			release()
			must(t, <-done)
			must(t, c.SyncDir(ctx, dir))
			if b.attr(i.Ino).Ino == 0 || b.attr(sub.Ino).Ino == 0 {
				t.Error("they are not there")
			}
		})
	}
}

// TestBehindRecall: another that asks gets all that was done, while the owner goes on.
func TestBehindRecall(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	other, _ := b.mountLeased(t)
	ctx := t.Context()
	var made atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for k := 0; ; k++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := c.Create(ctx, me, dir, fmt.Sprintf("%06d", k), cfs.ModeRegular|0o600, 0, "", true); err != nil {
				t.Error(err)
				return
			}
			made.Store(int64(k + 1))
		}
	})
	eventually(t, "some files", func() bool { return made.Load() > 50 })
	for range 10 {
		least := made.Load()
		if n := int64(len(names(t, other, dir))); n < least {
			t.Errorf("%d names where %d were made before", n, least)
		}
	}
	close(stop)
	wg.Wait()
	if b.attr(dir).Owner != 0 {
		t.Error("still owned")
	}
	if n := len(names(t, other, dir)); n != int(made.Load()) {
		t.Errorf("%d names of %d", n, made.Load())
	}
}

// TestBehindNewLeader: what is pending goes to the next leader, once.
func TestBehindNewLeader(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	for k := range 300 {
		if k == 100 || k == 200 {
			b.leases.mu.Lock()
			other := 1 - b.leases.leader
			b.leases.mu.Unlock()
			b.leases.lead(other)
		}
		_, err := c.Create(t.Context(), me, dir, fmt.Sprint(k), cfs.ModeRegular|0o600, 0, "", true)
		must(t, err)
	}
	must(t, c.SyncDir(t.Context(), dir))
	if got := b.read(&cfs.Query{Kind: cfs.QueryReadDir, Dir: dir, Limit: 1000}); len(got.Entries) != 300 {
		t.Errorf("%d names", len(got.Entries))
	}
}

// TestBehindSessionLost: who made it is told, and the names are not there any more.
func TestBehindSessionLost(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	release := b.stall(t, cfs.OpCreate)
	a, err := c.Create(ctx, me, dir, "f", cfs.ModeRegular|0o600, 0, "", true)
	must(t, err)
	f := c.OpenNew(a, unix.O_RDWR)
	e, err := c.Create(ctx, me, dir, "empty", cfs.ModeRegular|0o600, 0, "", true)
	must(t, err)
	g := c.OpenNew(e, unix.O_RDWR)
	write(t, f, []byte("lost"), 0)
	b.expire(c.session.Load().id)
	release()
	wantKind(t, f.Sync(ctx), cfs.NoSession)
	_, err = g.Write(ctx, []byte("x"), 0)
	for err == nil { // until it is known
		time.Sleep(time.Millisecond)
		_, err = g.Write(ctx, []byte("x"), 0)
	}
	wantKind(t, err, cfs.NoSession)
	_, err = c.Lookup(ctx, dir, "f")
	wantKind(t, err, cfs.NotFound)
	_, err = c.GetAttr(ctx, a.Ino)
	wantKind(t, err, cfs.Stale)
	if all := names(t, c, dir); len(all) != 0 {
		t.Errorf("there are %v", all)
	}
	_ = g.Close(ctx) // what was written since is lost too
	must(t, f.Close(ctx))
	must(t, c.SyncDir(ctx, dir))
	// In the new session the old way, and what it makes anew it owns.
	d, err := c.Create(ctx, me, dir, "anew", cfs.ModeDir|0o755, 0, "", true)
	must(t, err)
	eventually(t, "inode numbers", func() bool { return c.peekIno(c.session.Load()) != 0 })
	untar(t, c, d.Ino, "f", []byte("x"))
	must(t, c.SyncDir(ctx, d.Ino))
}

// TestBehindRefused: one that the cluster refuses takes nobody else with it.
func TestBehindRefused(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	var files []*File
	release := b.stall(t, cfs.OpCreate)
	// As if somebody had got past the lease.
	b.mu.Lock()
	b.doLocked(&cfs.Command{Session: c.session.Load().id, Seq: c.session.Load().seqs.take(),
		Ops: []cfs.Op{{Kind: cfs.OpCreate, Dir: dir, Name: "3", Attr: cfs.Attr{Mode: cfs.ModeRegular}}}})
	b.mu.Unlock()
	for k := range 10 {
		a, err := c.Create(ctx, me, dir, fmt.Sprint(k), cfs.ModeRegular|0o600, 0, "", true)
		must(t, err)
		f := c.OpenNew(a, unix.O_RDWR)
		write(t, f, []byte("x"), 0)
		files = append(files, f)
	}
	release()
	for k, f := range files {
		if err := f.Sync(ctx); (cfs.KindOf(err) == cfs.Exists) != (k == 3) || err != nil && k != 3 {
			t.Errorf("file %d: %v", k, err)
		}
		must(t, f.Sync(ctx))
		must(t, f.Close(ctx))
		if a := b.attr(f.n.ino); (a.Ino == 0) != (k == 3) {
			t.Errorf("file %d: %+v", k, a)
		}
	}
	wantKind(t, c.SyncDir(ctx, dir), cfs.Exists)
	if all := names(t, c, dir); len(all) != 10 {
		t.Errorf("names %v", all)
	}
}

// TestBehindACL: in a directory with a default ACL the cluster makes files, which get it.
func TestBehindACL(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	untar(t, c, dir, "before", nil)
	count := c.stats.behindOps.Load()
	if count == 0 {
		t.Error("nothing was made behind")
	}
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	must(t, c.SetXattr(ctx, me, dir, cfs.XattrACLDefault, acl, 0))
	a, err := c.Create(ctx, cfs.Cred{Umask: 0o077}, dir, "with", cfs.ModeRegular|0o666, 0, "", true)
	must(t, err)
	if a.Mode&0o777 != 0o660 || c.stats.behindOps.Load() != count {
		t.Errorf("mode %o", a.Mode)
	}
	must(t, c.RemoveXattr(ctx, me, dir, cfs.XattrACLDefault))
	_, err = c.Create(ctx, me, dir, "without", cfs.ModeRegular|0o666, 0, "", true)
	must(t, err)
	if c.stats.behindOps.Load() != count+1 {
		t.Error("made at once")
	}
}

// TestBehindTogether: makers of one name and of many directories, commands between them, for the race detector.
func TestBehindTogether(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	var wg sync.WaitGroup
	var won atomic.Int64
	const each = 60
	for w := range 6 {
		wg.Go(func() {
			sub, err := c.Create(ctx, me, dir, fmt.Sprint("own ", w), cfs.ModeDir|0o755, 0, "", true)
			must(t, err)
			for k := range each {
				if _, err := c.Create(ctx, me, dir, fmt.Sprint(k), cfs.ModeRegular|0o600, 0, "", true); err == nil {
					won.Add(1)
				} else {
					wantKind(t, err, cfs.Exists)
				}
				untar(t, c, sub.Ino, fmt.Sprint(k), []byte("x"))
				switch k % 4 {
				case 0:
					must(t, c.Unlink(ctx, me, sub.Ino, fmt.Sprint(k)))
				case 1:
					must(t, c.Rename(ctx, me, sub.Ino, fmt.Sprint(k), sub.Ino, fmt.Sprint("r", k), 0))
				case 2:
					must(t, c.SyncDir(ctx, sub.Ino))
				}
			}
			if n := len(names(t, c, sub.Ino)); n != each-each/4 {
				t.Errorf("%d names", n)
			}
			if a, err := c.GetAttr(ctx, dir); err != nil || a.Nlink < 3 {
				t.Errorf("%+v %v", a, err)
			}
		})
	}
	wg.Wait()
	if won.Load() != each {
		t.Errorf("%d names were made %d times", each, won.Load())
	}
	must(t, c.SyncDir(ctx, dir))
	if a := b.attr(dir); a.Nlink != 8 {
		t.Errorf("%+v", a)
	}
	if a, err := c.GetAttr(ctx, dir); err != nil || a != b.attr(dir) {
		t.Errorf("here %+v, there %+v", a, b.attr(dir))
	}
}

// TestBehindUnlink: what is removed in memory is gone at once, and with few commands; what is open stays until it is closed.
func TestBehindUnlink(t *testing.T) {
	b := newBed(t, 3)
	c, dir := b.mountBehind(t)
	ctx := t.Context()
	ops, commands := b.commands()
	before := commands()
	const files = 100
	for k := range files {
		untar(t, c, dir, fmt.Sprint(k), []byte("never put"))
	}
	for k := range files {
		must(t, c.Unlink(ctx, me, dir, fmt.Sprint(k)))
		_, err := c.Lookup(ctx, dir, fmt.Sprint(k))
		wantKind(t, err, cfs.NotFound)
	}
	a, err := c.Create(ctx, me, dir, "open", cfs.ModeRegular|0o600, 0, "", true)
	must(t, err)
	f := c.OpenNew(a, unix.O_RDWR)
	write(t, f, []byte("kept"), 0)
	must(t, c.Unlink(ctx, me, dir, "open"))
	must(t, c.SyncDir(ctx, dir))
	if n := commands() - before; n > files/2 || ops(cfs.OpUnlink) != files+1 || ops(cfs.OpWrite) != 0 {
		t.Errorf("%d commands, %d unlinks, %d writes", n, ops(cfs.OpUnlink), ops(cfs.OpWrite))
	}
	if got, err := f.Attr(ctx); err != nil || got.Nlink != 0 || got.Size != 4 {
		t.Errorf("%+v %v", got, err)
	}
	must(t, f.Sync(ctx))
	if is := b.attr(a.Ino); is.Nlink != 0 || is.Size != 4 {
		t.Errorf("in the state: %+v", is)
	}
	must(t, f.Close(ctx))
	if b.attr(a.Ino).Ino != 0 {
		t.Error("it is still there after its last close")
	}
	if all := names(t, c, dir); len(all) != 0 {
		t.Errorf("names %v", all)
	}
	if n := c.inodes.owned.Load(); n != 1 {
		t.Errorf("%d inodes are owned", n)
	}
}
