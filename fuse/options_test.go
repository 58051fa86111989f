package fuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// mountedWith is mounted with options.
func mountedWith(t *testing.T, m *memFS, o Options) (string, *Server) {
	t.Helper()
	needFUSE(t)
	dir := t.TempDir()
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := mount(Config{Mountpoint: dir, Source: "host:9400:/", Options: o, Logger: testLogger(t)}, m.backend())
	check(t, err)
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir, s
}

// planted is a tree: /top/sub/{dir/,file}, /top/beside and a link /link to top.
func planted(t *testing.T) (m *memFS, sub cfs.Ino) {
	t.Helper()
	m = newMemFS()
	make := func(dir cfs.Ino, name string, mode uint32, target string) cfs.Ino {
		a, err := m.Create(t.Context(), cfs.Cred{}, dir, name, mode, 0, target, true)
		check(t, err)
		return a.Ino
	}
	top := make(cfs.RootIno, "top", cfs.ModeDir|0o755, "")
	make(cfs.RootIno, "link", cfs.ModeSymlink|0o777, "top")
	make(top, "beside", cfs.ModeRegular|0o644, "")
	sub = make(top, "sub", cfs.ModeDir|0o755, "")
	make(sub, "dir", cfs.ModeDir|0o755, "")
	make(sub, "file", cfs.ModeRegular|0o644, "")
	return m, sub
}

func TestFindRoot(t *testing.T) {
	m, sub := planted(t)
	for name, want := range map[string]cfs.Ino{"/": cfs.RootIno, "": cfs.RootIno, "/top/sub": sub, "top//sub/": sub, "/top/../top/./sub": sub, "/../..": cfs.RootIno} {
		if got, err := findRoot(t.Context(), m, name); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", name, got, err, want)
		}
	}
	for name, want := range map[string]cfs.Kind{"/none": cfs.NotFound, "/top/none/x": cfs.NotFound, "/top/beside": cfs.NotDir, "/link": cfs.NotDir, "/link/sub": cfs.NotDir} {
		if got, err := findRoot(t.Context(), m, name); !errors.Is(err, want) {
			t.Errorf("%q is %d, %v; want %v", name, got, err, want)
		}
	}
}

// The root of a mount is a directory below the namespace's, and everything that names it works.
func TestSubdirectoryMount(t *testing.T) {
	m, sub := planted(t)
	dir, s := mountedWith(t, m, Options{Root: sub})
	if st := lstat(t, dir); st.Ino != uint64(cfs.RootIno) {
		t.Errorf("the root has number %d", st.Ino)
	}
	names := func() (all []string) {
		t.Helper()
		list, err := os.ReadDir(dir)
		check(t, err)
		for _, e := range list {
			all = append(all, e.Name())
		}
		return all
	}
	if got := names(); !slices.Equal(got, []string{"dir", "file"}) {
		t.Errorf("the root lists %q", got)
	}
	f, err := os.Open(dir)
	check(t, err)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(int(f.Fd()), buf)
	check(t, errors.Join(err, f.Close()))
	// struct linux_dirent64: the number, 8 bytes; offset, 8; length, 2; type, 1; name.
	for at, seen := 0, 0; seen < dots; seen++ {
		if ino := buf[at]; ino != byte(cfs.RootIno) || at >= n {
			t.Errorf("entry %d of the root has number %d", seen, ino)
		}
		at += int(buf[at+16])
	}
	other := filepath.Join(dir, "dir")
	check(t, errors.Join(
		os.WriteFile(dir+"/new", []byte("new"), 0o644),
		os.Rename(dir+"/new", other+"/moved"), // from the root
		os.Rename(other+"/moved", dir+"/back"),
		os.Link(dir+"/back", dir+"/again"),
		os.Symlink("back", dir+"/symlink"),
		unix.Mknod(dir+"/fifo", unix.S_IFIFO|0o600, 0),
		unix.Setxattr(dir, "user.a", []byte("value"), 0),
		os.Chmod(dir, 0o750),
		unix.Removexattr(dir, "user.a"),
		os.Remove(dir+"/fifo"),
		os.Mkdir(dir+"/gone", 0o755),
		os.Remove(dir+"/gone"),
	))
	if got := names(); !slices.Equal(got, []string{"again", "back", "dir", "file", "symlink"}) {
		t.Errorf("the root lists %q", got)
	}
	if got, err := os.ReadFile(dir + "/symlink"); err != nil || string(got) != "new" {
		t.Errorf("read %q, %v", got, err)
	}
	if a, err := m.GetAttr(t.Context(), sub); err != nil || a.Mode&0o777 != 0o750 {
		t.Errorf("the directory itself has mode %o, %v", a.Mode, err)
	}
	if a, err := m.Lookup(t.Context(), sub, "back"); err != nil || a.Nlink != 2 {
		t.Errorf("a file made there is %+v, %v", a, err)
	}
	if a, err := m.GetAttr(t.Context(), cfs.RootIno); err != nil || a.Mode&0o777 != 0o755 {
		t.Errorf("the namespace's root has mode %o, %v", a.Mode, err)
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	check(t, err)
	check(t, unix.Close(fd))
	lock, err := os.OpenFile(dir+"/file", os.O_RDWR, 0)
	check(t, err)
	check(t, errors.Join(unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}), lock.Close()))
	var st unix.Statfs_t
	check(t, unix.Statfs(dir, &st))
	check(t, s.fs.kernel.invalInode(sub, -1, 0))

	// Removed while it is mounted.
	m.mu.Lock()
	delete(m.nodes, sub)
	m.mu.Unlock()
	check(t, s.fs.kernel.invalInode(sub, -1, 0))
	wantErrno(t, "stat of a root that was removed", unix.Lstat(dir, new(unix.Stat_t)), unix.ESTALE)
	_, err = os.ReadDir(dir)
	wantErrno(t, "reading a root that was removed", err, unix.ESTALE)
	check(t, Unmount(dir, false))
	s.Wait()
}

func TestReadOnlyMount(t *testing.T) {
	m, _ := planted(t)
	dir, _ := mountedWith(t, m, Options{ReadOnly: true, NoAtime: true, NoExec: true, Suid: true, Dev: true})
	created, set := m.count("create"), m.count("setattr")
	for what, err := range map[string]error{
		"create": os.WriteFile(dir+"/new", nil, 0o644), "mkdir": os.Mkdir(dir+"/new", 0o755), "unlink": os.Remove(dir + "/top/beside"),
		"rename": os.Rename(dir+"/top", dir+"/new"), "chmod": os.Chmod(dir+"/top", 0o700), "truncate": os.Truncate(dir+"/top/beside", 1),
		"setxattr": unix.Setxattr(dir+"/top", "user.a", nil, 0), "utimes": os.Chtimes(dir+"/top", time.Now(), time.Now()),
	} {
		wantErrno(t, what, err, unix.EROFS)
	}
	if _, err := os.ReadFile(dir + "/top/beside"); err != nil {
		t.Errorf("reading: %v", err)
	}
	if m.count("create") != created || m.count("setattr") != set {
		t.Error("a change came through")
	}
	var st unix.Statfs_t
	check(t, unix.Statfs(dir, &st))
	const all = unix.ST_RDONLY | unix.ST_NOATIME | unix.ST_NOEXEC | unix.ST_NOSUID | unix.ST_NODEV
	if got := st.Flags & all; got != unix.ST_RDONLY|unix.ST_NOATIME|unix.ST_NOEXEC {
		t.Errorf("the mount has flags %#x", got)
	}
}

// Everything is shown as owned by others than the cluster has, which stays as it is.
func TestShownOwners(t *testing.T) {
	m := newMemFS()
	uid, gid := uint32(7), uint32(8)
	dir, _ := mountedWith(t, m, Options{UID: &uid, GID: &gid})
	f := dir + "/f"
	check(t, os.WriteFile(f, []byte("x"), 0o644))
	if st := lstat(t, f); st.Uid != uid || st.Gid != gid {
		t.Errorf("shown as owned by %d:%d", st.Uid, st.Gid)
	}
	var stx unix.Statx_t
	check(t, unix.Statx(unix.AT_FDCWD, f, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx))
	if stx.Uid != uid || stx.Gid != gid {
		t.Errorf("statx shows %d:%d", stx.Uid, stx.Gid)
	}
	check(t, os.Chown(f, 7, 8))
	check(t, os.Chown(f, -1, 8))
	wantErrno(t, "chown to another user", os.Chown(f, 9, -1), unix.EPERM)
	wantErrno(t, "chown to another group", os.Chown(f, 7, 9), unix.EPERM)
	if a, err := m.Lookup(t.Context(), cfs.RootIno, "f"); err != nil || a.UID != 0 || a.GID != 0 {
		t.Errorf("the cluster has %d:%d, %v", a.UID, a.GID, err)
	}
}

// With a timeout an operation that gets no answer fails with EIO; waits for locks go on.
func TestOperationTimeout(t *testing.T) {
	m := newMemFS()
	dir, _ := mountedWith(t, m, Options{Timeout: 300 * time.Millisecond})
	silent := func(ctx context.Context, call string, _ cfs.Ino) error {
		if call != "lookup" && call != "write" {
			return nil
		}
		<-ctx.Done()
		if call == "lookup" {
			return cfs.E(call, cfs.Canceled, context.DeadlineExceeded) // of its last attempt
		}
		return cfs.E(call, cfs.Canceled, ctx.Err())
	}
	f, err := os.Create(dir + "/f")
	check(t, err)
	defer f.Close()
	g, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
	check(t, err)
	defer g.Close()
	m.before.Store(&silent)
	_, err = os.Stat(dir + "/none")
	wantErrno(t, "lookup without an answer", err, unix.EIO)
	_, err = f.WriteString("x")
	wantErrno(t, "write without an answer", err, unix.EIO)
	m.before.Store(nil)
	_, err = f.WriteString("x")
	check(t, err)

	check(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(g.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-got:
		t.Errorf("a wait for a lock ended: %v", err)
	case <-time.After(time.Second):
	}
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	if err := <-got; err != nil && !errors.Is(err, syscall.EINTR) {
		t.Errorf("a wait for a lock: %v", err)
	}
}

// Many files are open, and each costs little.
func TestManyOpenFiles(t *testing.T) {
	const (
		open = 10_000
		most = 4 << 10 // bytes for each, with what the test has of it
	)
	var limit unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Max < open+1000 {
		t.Skipf("needs %d descriptors, and may have %d", open+1000, limit.Max)
	}
	raised := limit
	raised.Cur = raised.Max
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &raised))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	m := newMemFS()
	dir, s := mountedWith(t, m, Options{})
	for i := range open {
		_, err := m.Create(t.Context(), cfs.Cred{}, cfs.RootIno, strconv.Itoa(i), cfs.ModeRegular|0o644, 0, "", true)
		check(t, err)
	}
	heap := func() int64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	before := heap()
	fds := make([]int, open)
	for i := range fds {
		var err error
		fds[i], err = unix.Open(dir+"/"+strconv.Itoa(i), unix.O_RDONLY, 0)
		check(t, err)
	}
	if n := s.fs.files.count.Load(); n != open {
		t.Errorf("%d files are open, want %d", n, open)
	}
	if grown := heap() - before; grown > open*most {
		t.Errorf("%d open files take %d bytes", open, grown)
	} else {
		t.Logf("%d open files take %d bytes", open, grown)
	}
	for _, fd := range fds {
		check(t, unix.Close(fd))
	}
}
