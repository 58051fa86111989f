package test

import (
	le "encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cluster"
)

// pageBytes is what a view of a mapping shows, and the size of the files of a scene.
const pageBytes = 4096

// scene is a directory in which one mount changes something that the other has looked at:
// files f and g, a link l to f, an empty directory d.
type scene struct{ rel string }

func (s scene) in(m *cluster.Mount, name string) string { return filepath.Join(m.Point, s.rel, name) }

// set makes the scene by one mount, and has the other one read all of it, so that nobody owns any of it.
func (s scene) set(by, other *cluster.Mount) error {
	if err := os.Mkdir(s.in(by, ""), 0o755); err != nil {
		return err
	}
	for i, name := range []string{"f", "g"} {
		if err := os.WriteFile(s.in(by, name), content(uint64(i), pageBytes), 0o644); err != nil {
			return err
		}
		if err := unix.Setxattr(s.in(by, name), "user.kept", []byte("before"), 0); err != nil {
			return err
		}
	}
	if err := os.Symlink("f", s.in(by, "l")); err != nil {
		return err
	}
	if err := os.Mkdir(s.in(by, "d"), 0o755); err != nil || other == nil {
		return err
	}
	for _, name := range []string{"f", "g"} {
		if _, err := os.ReadFile(s.in(other, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"", "d"} {
		if _, err := os.ReadDir(s.in(other, name)); err != nil {
			return err
		}
	}
	return nil
}

// actions are what one mount does in a scene.
var actions = []struct {
	name string
	do   func(s scene, m *cluster.Mount) error
}{
	{"create", func(s scene, m *cluster.Mount) error {
		return withFile(s.in(m, "new"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, func(*os.File) error { return nil })
	}},
	{"write", func(s scene, m *cluster.Mount) error {
		return withFile(s.in(m, "f"), os.O_WRONLY, func(f *os.File) error { _, err := f.WriteAt([]byte("written"), 100); return err })
	}},
	{"write and fsync", func(s scene, m *cluster.Mount) error {
		return withFile(s.in(m, "f"), os.O_WRONLY, func(f *os.File) error {
			_, err := f.WriteAt([]byte("synced"), 0)
			return errors.Join(err, f.Sync())
		})
	}},
	{"append", func(s scene, m *cluster.Mount) error {
		return withFile(s.in(m, "f"), os.O_WRONLY|os.O_APPEND, func(f *os.File) error { _, err := f.WriteString("appended"); return err })
	}},
	{"rewrite", func(s scene, m *cluster.Mount) error { return os.WriteFile(s.in(m, "f"), content(9, pageBytes), 0o644) }},
	{"truncate", func(s scene, m *cluster.Mount) error { return os.Truncate(s.in(m, "f"), 100) }},
	{"grow", func(s scene, m *cluster.Mount) error { return os.Truncate(s.in(m, "f"), 2*pageBytes) }},
	{"chmod", func(s scene, m *cluster.Mount) error { return os.Chmod(s.in(m, "f"), 0o600) }},
	{"chmod of the directory", func(s scene, m *cluster.Mount) error { return os.Chmod(s.in(m, ""), 0o700) }},
	{"chown", func(s scene, m *cluster.Mount) error { return os.Chown(s.in(m, "f"), 12, 34) }},
	{"utimes", func(s scene, m *cluster.Mount) error {
		return os.Chtimes(s.in(m, "f"), time.Unix(1, 2), time.Unix(3, 4))
	}},
	{"rename", func(s scene, m *cluster.Mount) error { return os.Rename(s.in(m, "f"), s.in(m, "new")) }},
	{"rename over", func(s scene, m *cluster.Mount) error { return os.Rename(s.in(m, "g"), s.in(m, "f")) }},
	{"rename into", func(s scene, m *cluster.Mount) error { return os.Rename(s.in(m, "f"), s.in(m, "d/new")) }},
	{"exchange", func(s scene, m *cluster.Mount) error {
		return unix.Renameat2(unix.AT_FDCWD, s.in(m, "f"), unix.AT_FDCWD, s.in(m, "d"), unix.RENAME_EXCHANGE)
	}},
	{"unlink", func(s scene, m *cluster.Mount) error { return os.Remove(s.in(m, "f")) }},
	{"link", func(s scene, m *cluster.Mount) error { return os.Link(s.in(m, "f"), s.in(m, "new")) }},
	{"symlink", func(s scene, m *cluster.Mount) error { return os.Symlink("g", s.in(m, "new")) }},
	{"another link", func(s scene, m *cluster.Mount) error {
		return errors.Join(os.Remove(s.in(m, "l")), os.Symlink("g", s.in(m, "l")))
	}},
	{"mkdir", func(s scene, m *cluster.Mount) error { return os.Mkdir(s.in(m, "new"), 0o755) }},
	{"rmdir", func(s scene, m *cluster.Mount) error { return syscall.Rmdir(s.in(m, "d")) }},
	{"setxattr", func(s scene, m *cluster.Mount) error {
		return unix.Setxattr(s.in(m, "f"), "user.kept", []byte("after"), 0)
	}},
	{"new xattr", func(s scene, m *cluster.Mount) error {
		return unix.Setxattr(s.in(m, "f"), "user.new", []byte("new"), 0)
	}},
	{"removexattr", func(s scene, m *cluster.Mount) error { return unix.Removexattr(s.in(m, "f"), "user.kept") }},
	{"setfacl", func(s scene, m *cluster.Mount) error {
		return unix.Setxattr(s.in(m, "f"), "system.posix_acl_access", aclFor(77), 0)
	}},
}

// aclFor is u::rw-,u:uid:rw-,g::r--,m::rw-,o::--- as the kernel takes it.
func aclFor(uid uint32) []byte {
	b := le.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, 6, uid}, {4, 4, ^uint32(0)}, {16, 6, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		b = le.LittleEndian.AppendUint16(b, e.tag)
		b = le.LittleEndian.AppendUint16(b, e.perm)
		b = le.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func withFile(path string, flags int, fn func(*os.File) error) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	err = fn(f)
	return errors.Join(err, f.Close())
}

// looker is what one mount sees of a scene; it may keep things open between looks.
type looker struct {
	look func() string
	end  func()
}

func simply(look func() string) (looker, error) { return looker{look, func() {}}, nil }

// looks are the ways to look at a scene by a mount.
var looks = []struct {
	name string
	open func(s scene, m *cluster.Mount) (looker, error)
}{
	{"stat", func(s scene, m *cluster.Mount) (looker, error) {
		return simply(func() string { return each(s, m, []string{"", "f", "g", "l", "d", "new", "d/new"}, statText) })
	}},
	{"absent names", func(s scene, m *cluster.Mount) (looker, error) {
		return simply(func() string {
			return each(s, m, []string{"new", "d/new", "f", "d"}, func(p string) string { return fmt.Sprint(unix.Access(p, unix.F_OK)) })
		})
	}},
	{"open and read", func(s scene, m *cluster.Mount) (looker, error) {
		return simply(func() string { return each(s, m, []string{"f", "new", "l"}, readText) })
	}},
	{"readdir", func(s scene, m *cluster.Mount) (looker, error) {
		return simply(func() string { return each(s, m, []string{"", "d"}, listText) })
	}},
	{"readlink", func(s scene, m *cluster.Mount) (looker, error) {
		return simply(func() string {
			return each(s, m, []string{"l", "new"}, func(p string) string { to, err := os.Readlink(p); return fmt.Sprint(to, bare(err)) })
		})
	}},
	{"getxattr", func(s scene, m *cluster.Mount) (looker, error) {
		return simply(func() string { return each(s, m, []string{"f", "g"}, xattrText) })
	}},
	{"held open", holdOpen},
	{"mapped", holdMapped},
}

// each is a view of several names.
func each(s scene, m *cluster.Mount, names []string, view func(path string) string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "%q: %s\n", name, view(s.in(m, name)))
	}
	return b.String()
}

// bare is an error without the path, which differs from mount to mount.
func bare(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func statText(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return bare(err).Error()
	}
	return stText(&st)
}

func stText(st *unix.Stat_t) string {
	return fmt.Sprintf("ino %d mode %o nlink %d uid %d gid %d size %d mtime %d ctime %d", st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}

func readText(path string) string {
	b, err := os.ReadFile(path)
	return fmt.Sprintf("%d bytes %x %v", len(b), b, bare(err))
}

func listText(path string) string {
	list, err := os.ReadDir(path)
	var names []string
	for _, e := range list {
		names = append(names, e.Name()+"="+e.Type().String())
	}
	return fmt.Sprint(names, bare(err))
}

func xattrText(path string) string {
	var b strings.Builder
	for _, name := range []string{"user.kept", "user.new", "system.posix_acl_access"} {
		v := make([]byte, 256)
		n, err := unix.Getxattr(path, name, v)
		fmt.Fprintf(&b, "%s=%x %v ", name, v[:max(n, 0)], err)
	}
	return b.String()
}

// holdOpen keeps f open and looks at it by the descriptor.
func holdOpen(s scene, m *cluster.Mount) (looker, error) {
	f, err := os.Open(s.in(m, "f"))
	return looker{func() string {
		var st unix.Stat_t
		b := make([]byte, 3*pageBytes)
		n, err := unix.Pread(int(f.Fd()), b, 0)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		return fmt.Sprintf("%x %v %s", b[:max(n, 0)], err, stText(&st))
	}, func() { f.Close() }}, err
}

// holdMapped looks at the first page of f through a mapping.
func holdMapped(s scene, m *cluster.Mount) (looker, error) {
	var mem []byte
	err := withFile(s.in(m, "f"), os.O_RDONLY, func(f *os.File) (err error) {
		mem, err = unix.Mmap(int(f.Fd()), 0, pageBytes, unix.PROT_READ, unix.MAP_SHARED)
		return err
	})
	return looker{func() string { return fmt.Sprintf("%x", mem) }, func() { unix.Munmap(mem) }}, err
}

// coherenceFlag has both mounts make what is looked at, in turn, for every pair: otherwise they take turns from pair to pair.
var coherenceFlag = flag.Bool("coherence.all", false, "test every pair of a change and a look twice")

// TestMountsAreCoherent: what a program on one mount has done, when its call has returned, a program on the other
// sees at once, whatever that one had in its kernel's caches, and whoever made what is looked at.
func TestMountsAreCoherent(t *testing.T) {
	c := start(t, nil)
	a, b := mount(t, c, "a"), mount(t, c, "b")
	n := 0
	for i, look := range looks {
		t.Run(look.name, func(t *testing.T) {
			for j, action := range actions {
				t.Run(action.name, func(t *testing.T) {
					if i+j&1 == 0 || *coherenceFlag {
						n++
						coherent(t, scene{fmt.Sprint("scene-", n)}, a, b, a, look.open, action.do)
					}
					if i+j&1 == 1 || *coherenceFlag {
						n++
						coherent(t, scene{fmt.Sprint("scene-", n)}, a, b, b, look.open, action.do)
					}
				})
			}
		})
	}
}

// coherent has a change a scene that b has looked at, and that one of them made. What b made it owns.
func coherent(t *testing.T, s scene, a, b, maker *cluster.Mount, open func(scene, *cluster.Mount) (looker, error), do func(scene, *cluster.Mount) error) {
	t.Helper()
	other := b
	if maker == b {
		other = nil
	}
	if err := s.set(maker, other); err != nil {
		t.Fatal(err)
	}
	atB, err := open(s, b)
	if err != nil {
		t.Fatal(err)
	}
	defer atB.end()
	atB.look()
	before := atB.look()
	atA, err := open(s, a)
	if err != nil {
		t.Fatal(err)
	}
	defer atA.end()
	if err := do(s, a); err != nil {
		t.Fatal(err)
	}
	got := atB.look()
	want := atA.look()
	if got == want {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	at = max(0, at-40)
	t.Errorf("made by %s, the other mount sees (as before: %v)\n...%.400s\nand not\n...%.400s", maker.Name, got == before, got[at:], want[at:])
}

// TestStatsAreTheKernels: what nobody changes the kernel answers by itself, names and attributes.
func TestStatsAreTheKernels(t *testing.T) {
	c := start(t, nil)
	m := mount(t, c, "a")
	s := scene{"scene"}
	if err := s.set(m, nil); err != nil {
		t.Fatal(err)
	}
	native := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(native, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const stats = 20000
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu := func() time.Duration { // of this thread: others use the machine too
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ts.Nano())
	}
	rate := func(path string) float64 {
		begun := cpu()
		for range stats {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
		}
		return stats / (cpu() - begun).Seconds()
	}
	requests := func() float64 { return counters(t, m)["claudefs_fuse_requests_total"] }
	rate(s.in(m, "f"))
	for range 3 {
		before, begun := requests(), time.Now()
		here, there := rate(s.in(m, "f")), rate(native)
		asked := requests() - before
		t.Logf("%.0f stats a second of its thread, %.2f of those of a local file; %.0f requests in %v", here, here/there, asked, time.Since(begun))
		if asked > stats/20 {
			t.Errorf("the daemon was asked %.0f times for %d stats", asked, stats)
		}
	}
}
