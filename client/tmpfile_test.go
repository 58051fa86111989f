package client

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// A file without a name goes with its last close, unless it has been given a name.
func TestTmpfile(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	inodes := func() uint64 {
		st, err := c.Statfs(ctx)
		must(t, err)
		return st.Inodes
	}
	before := inodes()
	open := func(exclusive bool) (*File, cfs.Attr) {
		by := me
		by.Umask = 0o027
		f, a, err := c.Tmpfile(ctx, by, cfs.RootIno, 0o666, exclusive, unix.O_RDWR)
		must(t, err)
		if a.Nlink != 0 || a.Mode != cfs.ModeRegular|0o640 || a.UID != me.UID {
			t.Errorf("made %+v", a)
		}
		_, err = f.Write(ctx, []byte("hello"), 0)
		must(t, err)
		return f, a
	}
	f, _ := open(false)
	must(t, f.Sync(ctx))
	must(t, f.Close(ctx))
	if n := inodes(); n != before {
		t.Errorf("%d inodes after the close, %d before", n, before)
	}
	f, a := open(true)
	_, err := c.Link(ctx, me, a.Ino, cfs.RootIno, "x")
	wantKind(t, err, cfs.NotFound)
	must(t, f.Close(ctx))
	f, a = open(false)
	named, err := c.Link(ctx, me, a.Ino, cfs.RootIno, "named")
	must(t, err)
	if named.Nlink != 1 {
		t.Errorf("named %+v", named)
	}
	must(t, f.Close(ctx))
	if got, err := c.GetAttr(ctx, a.Ino); err != nil || got.Nlink != 1 || got.Size != 5 {
		t.Errorf("after the close %+v, %v", got, err)
	}
	if n := inodes(); n != before+1 {
		t.Errorf("%d inodes, want %d", n, before+1)
	}
}
