package client

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// commands counts the operations of clients' commands, and the commands with any.
func (b *bed) commands() (ops func(cfs.OpKind) int, commands func() int) {
	seen, n := map[cfs.OpKind]int{}, 0
	hook(&b.before, func(cmd *cfs.Command) {
		b.mu.Lock()
		defer b.mu.Unlock()
		n++
		for i := range cmd.Ops {
			seen[cmd.Ops[i].Kind]++
		}
	})
	return func(k cfs.OpKind) int {
			b.mu.Lock()
			defer b.mu.Unlock()
			return seen[k]
		}, func() int {
			b.mu.Lock()
			defer b.mu.Unlock()
			return n
		}
}

func (b *bed) attr(i cfs.Ino) cfs.Attr {
	return b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: i}).Attr
}

// untar makes a file as tar does, and leaves it to the client when it is committed.
func untar(t *testing.T, c *Client, dir cfs.Ino, name string, data []byte) cfs.Ino {
	t.Helper()
	ctx := t.Context()
	a, err := c.Create(ctx, me, dir, name, cfs.ModeRegular|0o600, 0, "", true)
	must(t, err)
	f := c.OpenNew(a, unix.O_WRONLY)
	write(t, f, data, 0)
	_, err = c.SetAttr(ctx, me, a.Ino, cfs.SetUID|cfs.SetGID|cfs.SetKillPriv, cfs.Attr{UID: 7, GID: 8})
	must(t, err)
	_, err = c.SetAttr(ctx, me, a.Ino, cfs.SetMode, cfs.Attr{Mode: 0o4751})
	must(t, err)
	_, err = c.SetAttr(ctx, me, a.Ino, cfs.SetAtime|cfs.SetMtime, cfs.Attr{AtimeNS: 11, MtimeNS: 12})
	must(t, err)
	must(t, f.Flush(ctx))
	must(t, f.Close(ctx))
	return a.Ino
}

func tarred(t *testing.T, what string, a cfs.Attr, size uint64) {
	t.Helper()
	if a.Mode != cfs.ModeRegular|0o4751 || a.UID != 7 || a.GID != 8 || a.AtimeNS != 11 || a.MtimeNS != 12 || a.Size != size {
		t.Errorf("%s: %+v", what, a)
	}
}

// TestFolding: what follows the creation of a file is one operation, when somebody asks.
func TestFolding(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	other, _ := b.mountLeased(t)
	ctx := t.Context()
	ops, _ := b.commands()
	i := untar(t, c, cfs.RootIno, "f", []byte("content"))
	if n := ops(cfs.OpSetAttr) + ops(cfs.OpWrite); n != 0 {
		t.Errorf("%d operations were sent", n)
	}
	a, err := c.GetAttr(ctx, i)
	must(t, err)
	tarred(t, "here", a, 7)
	// A look at the attributes is a report; nothing is committed for it.
	a, err = other.GetAttr(ctx, i)
	must(t, err)
	tarred(t, "elsewhere", a, 7)
	if n := ops(cfs.OpSetAttr) + ops(cfs.OpWrite); n != 0 {
		t.Errorf("%d operations were sent for a report", n)
	}
	check(t, other, "f", []byte("content"))
	if b.attr(i).Owner != 0 {
		t.Error("still owned")
	}
	tarred(t, "in the state", b.attr(i), 7)
	// One surrender more for each recall that finds it given up already.
	if w, s := ops(cfs.OpWrite), ops(cfs.OpSurrender); w != 1 || s < 1 {
		t.Errorf("%d writes, %d surrenders", w, s)
	}
	if a, err := c.GetAttr(ctx, i); err != nil || a.CtimeNS != b.attr(i).CtimeNS {
		t.Errorf("the change time moved at the commit: %+v, %v", a, err)
	}
}

// TestSyncOfOwned: fsync is durable, ownership or not.
func TestSyncOfOwned(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	f := create(t, c, "f")
	write(t, f, []byte("x"), 0)
	_, err := c.SetAttr(t.Context(), me, f.n.ino, cfs.SetMode, cfs.Attr{Mode: 0o600})
	must(t, err)
	_, err = c.SetAttr(t.Context(), me, f.n.ino, cfs.SetSize, cfs.Attr{Size: 100})
	must(t, err)
	must(t, f.Sync(t.Context()))
	if a := b.attr(f.n.ino); a.Size != 100 || a.Mode&cfs.ModePerm != 0o600 || a.Owner != c.session.Load().id {
		t.Errorf("after fsync: %+v", a)
	}
	_, err = c.SetAttr(t.Context(), me, f.n.ino, cfs.SetSize, cfs.Attr{Size: 10}) // shorter: at once
	must(t, err)
	if a := b.attr(f.n.ino); a.Size != 10 {
		t.Errorf("after the truncation: %+v", a)
	}
	must(t, f.Close(t.Context()))
}

// TestTimerCommitsMany: files that are closed are committed and given up together, and in time.
func TestTimerCommitsMany(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ops, commands := b.commands()
	var inos []cfs.Ino
	const files = 100
	for k := range files {
		inos = append(inos, untar(t, c, cfs.RootIno, fmt.Sprint(k), []byte("x")))
	}
	made := commands()
	late := time.Now().Add(2 * commitAfter)
	for _, n := range c.inodes.all() {
		c.age(n, late)
	}
	eventually(t, "all to be given up", func() bool { return c.inodes.owned.Load() == 0 })
	for _, i := range inos {
		a := b.attr(i)
		tarred(t, "in the state", a, 1)
		if a.Owner != 0 {
			t.Error("still owned")
		}
	}
	if w, s := ops(cfs.OpWrite), ops(cfs.OpSurrender); w != files || s != files {
		t.Errorf("%d writes, %d surrenders", w, s)
	}
	if n := commands() - made; n > files/2 {
		t.Errorf("%d commands for %d files", n, files)
	}
	eventually(t, "nothing to be known of them", func() bool { return len(c.inodes.all()) == 0 })
}

// TestOneRefusedOfMany: the others are committed without it, and its writer is told.
func TestOneRefusedOfMany(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	var files []*File
	for k := range 10 {
		f := create(t, c, fmt.Sprint(k))
		write(t, f, []byte("x"), 0)
		files = append(files, f)
	}
	// As if the leader had ended the lease of one without a word.
	b.mu.Lock()
	b.doLocked(&cfs.Command{Session: c.session.Load().id, Seq: c.session.Load().seqs.take(),
		Ops: []cfs.Op{{Kind: cfs.OpSurrender, Ino: files[3].n.ino}}})
	b.mu.Unlock()
	for _, f := range files {
		c.age(f.n, time.Now().Add(2*commitAfter))
	}
	for k, f := range files {
		eventually(t, "the commit", func() bool { return !f.n.dirty() })
		_, err := f.Write(ctx, []byte("y"), 1)
		if want := map[bool]cfs.Kind{true: cfs.NoLease}[k == 3]; cfs.KindOf(err) != want {
			t.Errorf("file %d: the next write says %v, want %v", k, err, want)
		}
		if a := b.attr(f.n.ino); (a.Size == 0) != (k == 3) {
			t.Errorf("file %d: %+v", k, a)
		}
		must(t, f.Sync(ctx))
		must(t, f.Close(ctx))
	}
}

// TestOwnedDirectory: its creator asks nobody for its names, and another gets it by asking.
func TestOwnedDirectory(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	other, _ := b.mountLeased(t)
	ctx := t.Context()
	dir, err := c.Create(ctx, me, cfs.RootIno, "dir", cfs.ModeDir|0o755, 0, "", true)
	must(t, err)
	asked := b.queries()
	for k := range 20 {
		name := fmt.Sprint(k)
		_, err := c.Lookup(ctx, dir.Ino, name)
		wantKind(t, err, cfs.NotFound)
		untar(t, c, dir.Ino, name, []byte("x"))
		_, err = c.Lookup(ctx, dir.Ino, name)
		must(t, err)
	}
	must(t, c.Unlink(ctx, me, dir.Ino, "0"))
	must(t, c.Rename(ctx, me, dir.Ino, "1", dir.Ino, "one", 0))
	names := func(c *Client) (all []string) {
		d, err := c.OpenDir(ctx, dir.Ino)
		must(t, err)
		for at := uint64(0); ; at++ {
			e, ok, err := d.At(ctx, at)
			must(t, err)
			if !ok {
				return all
			}
			all = append(all, e.Name)
		}
	}
	mine := names(c)
	if n := asked(cfs.QueryLookup) + asked(cfs.QueryReadDir) + asked(cfs.QueryGetAttr); n != 0 || len(mine) != 19 {
		t.Errorf("%d questions, %d names", n, len(mine))
	}
	if theirs := names(other); fmt.Sprint(theirs) != fmt.Sprint(mine) {
		t.Errorf("another lists %v, we %v", theirs, mine)
	}
	if b.attr(dir.Ino).Owner != 0 {
		t.Error("still owned")
	}
	check(t, other, "f", put2(t, other))
	must(t, other.Unlink(ctx, me, dir.Ino, "2"))
	_, err = c.Lookup(ctx, dir.Ino, "2")
	wantKind(t, err, cfs.NotFound)
	if a, err := other.Lookup(ctx, dir.Ino, "3"); err != nil {
		t.Error(err)
	} else {
		tarred(t, "elsewhere", a, 1)
	}
}

func put2(t *testing.T, c *Client) []byte {
	data := []byte("some")
	put(t, c, "f", data)
	return data
}

// TestOwnerSleeps: a session that ended takes what it kept back with it; its writer is told, and nothing is overwritten.
func TestOwnerSleeps(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ctx := t.Context()
	f := create(t, c, "f")
	write(t, f, []byte("lost"), 0)
	_, err := c.SetAttr(ctx, me, f.n.ino, cfs.SetMode, cfs.Attr{Mode: 0o600})
	must(t, err)
	b.expire(c.session.Load().id)
	other, _ := b.mountLeased(t)
	g := open(t, other, "f", unix.O_RDWR)
	write(t, g, []byte("theirs"), 0)
	must(t, g.Sync(ctx))
	wantKind(t, f.Sync(ctx), cfs.NoSession)
	must(t, f.Close(ctx))
	must(t, g.Close(ctx))
	check(t, other, "f", []byte("theirs"))
	if a := b.attr(f.n.ino); a.Mode&cfs.ModePerm != 0o644 {
		t.Errorf("the mode is %o", a.Mode)
	}
}

// TestDeletedBeforeCommit: what is written to a file that is deleted soon is never put.
func TestDeletedBeforeCommit(t *testing.T) {
	b := newBed(t, 3)
	c, _ := b.mountLeased(t)
	ops, _ := b.commands()
	untar(t, c, cfs.RootIno, "f", randomBytes(1, 100<<10))
	must(t, c.Unlink(t.Context(), me, cfs.RootIno, "f"))
	if n := ops(cfs.OpWrite) + ops(cfs.OpSetAttr); n != 0 {
		t.Errorf("%d operations", n)
	}
	if n := c.inodes.owned.Load(); n != 0 {
		t.Errorf("%d inodes are owned", n)
	}
	if n := c.Stats().shardsPut.Load(); n != 0 {
		t.Errorf("%d shards were put", n)
	}
}
