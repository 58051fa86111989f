package fuse

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// TestKernelForgets: what the kernel was given to keep it answers by itself until it is told, and then asks.
func TestKernelForgets(t *testing.T) {
	m := newMemFS()
	dir, s := mounted(t, m)
	k := s.fs.caches
	path := filepath.Join(dir, "f")
	check(t, os.WriteFile(path, []byte("old"), 0o644))
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	var st unix.Stat_t
	check(t, unix.Fstat(int(f.Fd()), &st))
	ino := cfs.Ino(st.Ino)
	elsewhere := func(change func(n *memNode)) { // and nobody is told
		m.mu.Lock()
		defer m.mu.Unlock()
		change(m.nodes[ino])
	}

	elsewhere(func(n *memNode) {
		n.attr.Mode = cfs.ModeRegular | 0o600
		n.attr.MtimeNS += 5e9
		copy(n.pages[0][:], "new")
	})
	k.ForgetInode(ino)
	b := make([]byte, 3)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "new" {
		t.Errorf("an open file reads %q, %v", b, err)
	}
	if check(t, unix.Fstat(int(f.Fd()), &st)); st.Mode&0o777 != 0o600 {
		t.Errorf("its mode is %o", st.Mode)
	}

	if _, err := os.Stat(filepath.Join(dir, "other")); !os.IsNotExist(err) {
		t.Error(err)
	}
	if !k.epochs {
		t.Skip("this kernel does not know INC_EPOCH: it keeps no names")
	}
	asked := m.count("lookup")
	for range 10 {
		os.Stat(filepath.Join(dir, "other"))
		os.Stat(path)
	}
	if n := m.count("lookup") - asked; n > 4 {
		t.Errorf("%d lookups of names that the kernel has", n)
	}
	m.mu.Lock()
	root := m.nodes[cfs.RootIno]
	root.names["other"] = ino
	delete(root.names, "f")
	m.mu.Unlock()
	k.ForgetNames(cfs.RootIno)
	if _, err := os.Stat(filepath.Join(dir, "other")); err != nil {
		t.Errorf("a name that was absent: %v", err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a name that was there: %v", err)
	}
	asked = m.count("lookup")
	for range 10 { // of a directory that others change it keeps no names
		check(t, unix.Access(filepath.Join(dir, "other"), unix.F_OK))
	}
	if n := m.count("lookup") - asked; n < 10 {
		t.Errorf("%d lookups in a directory that is shared", n)
	}

	elsewhere(func(n *memNode) { n.attr.UID = 9 })
	k.ForgetAll()
	if check(t, unix.Fstat(int(f.Fd()), &st)); st.Uid != 9 {
		t.Errorf("after everything was forgotten the owner is %d", st.Uid)
	}
	m.mu.Lock()
	root.names["f"] = ino // so that the mount is as the test's end expects it
	m.mu.Unlock()
}

// TestMountsBelowStay: what is mounted on a directory of the mount stays there when names are taken back.
func TestMountsBelowStay(t *testing.T) {
	m := newMemFS()
	dir, s := mounted(t, m)
	on := filepath.Join(dir, "on")
	check(t, os.Mkdir(on, 0o755))
	_, err := os.Stat(filepath.Join(dir, "absent")) // so that the kernel has names
	if !os.IsNotExist(err) {
		t.Error(err)
	}
	if err := unix.Mount("below", on, "tmpfs", 0, ""); err != nil {
		t.Skip("mounting a tmpfs: ", err)
	}
	defer unix.Unmount(on, unix.MNT_DETACH)
	s.fs.caches.ForgetNames(cfs.RootIno)
	s.fs.caches.ForgetAll()
	_, err = os.Stat(on)
	check(t, err)
	if found, ok, err := mountedAt(on); err != nil || !ok || found.fsType != "tmpfs" {
		t.Errorf("after names were taken back there is %+v on it, %v, %v", found, ok, err)
	}
	asked := m.count("lookup")
	os.Stat(filepath.Join(dir, "another"))
	os.Stat(filepath.Join(dir, "another"))
	if n := m.count("lookup") - asked; n < 2 {
		t.Errorf("%d lookups beside a mount below", n)
	}
}

// TestListingsAreKept: a directory that nobody else changes is listed by the kernel; what this mount changes it sees.
func TestListingsAreKept(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	for _, name := range []string{"a", "b"} {
		check(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	list := func() int {
		all, err := os.ReadDir(dir)
		check(t, err)
		return len(all)
	}
	list()
	list()
	opened := m.count("opendir")
	for range 10 {
		if n := list(); n != 2 {
			t.Errorf("%d names", n)
		}
	}
	if n := m.count("opendir") - opened; n > 0 {
		t.Errorf("the names were read %d times", n)
	}
	check(t, os.Remove(filepath.Join(dir, "a")))
	if n := list(); n != 1 {
		t.Errorf("%d names after one was removed", n)
	}
}

// TestRecent: what was noted is known, and there is a bound.
func TestRecent(t *testing.T) {
	r := &recent{}
	if r.has(5) || !r.note(5) || !r.has(5) || !r.take(5) || r.take(5) {
		t.Error("what is noted, known and forgotten")
	}
	for at := range r.shard { // one generation, however slow the machine
		r.note(cfs.Ino(at))
		r.shard[at].turned = time.Now().Add(time.Hour)
	}
	refused := 0
	for i := range cfs.Ino(2 * recentShards * maxRecent) {
		if !r.note(i) {
			refused++
		}
	}
	known := 0
	r.each(func(cfs.Ino) { known++ })
	if refused == 0 || known > 2*recentShards*maxRecent {
		t.Errorf("%d were refused, %d are known", refused, known)
	}
}
