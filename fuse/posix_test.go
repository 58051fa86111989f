package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// notPosix are the tests of posixtest that are left out, and why.
var notPosix = map[string]string{
	"FcntlFlockLocksFile": "expects two descriptors of one process to exclude each other, which POSIX locks do not (go-fuse's own runs leave it out)",
	"OpenSymlinkRace":     "replaces a name faster than the kernel looks it up: it asks anew once after ESTALE, and meets the next replacement now and then (go-fuse's own runs leave it out)",
}

func TestPosix(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range posixtest.All {
			if !yield(name) {
				return
			}
		}
	}) {
		t.Run(name, func(t *testing.T) {
			if why, out := notPosix[name]; out {
				t.Skip(why)
			}
			sub := filepath.Join(dir, name)
			check(t, os.Mkdir(sub, 0o755))
			posixtest.All[name](t, sub)
		})
	}
}

func TestErrorNumbers(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.WriteFile(dir+"/file", []byte("x"), 0o644))
	check(t, os.MkdirAll(dir+"/full/sub", 0o755))
	check(t, os.Symlink("loop", dir+"/loop"))
	long := dir + "/" + strings.Repeat("n", cfs.MaxName+1)
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	stat := func(path string) error { var st unix.Stat_t; return unix.Lstat(path, &st) }
	for _, c := range []struct {
		what string
		err  error
		want syscall.Errno
	}{
		{"stat of nothing", stat(dir + "/none"), unix.ENOENT},
		{"stat below a file", stat(dir + "/file/x"), unix.ENOTDIR},
		{"stat of a long name", stat(long), unix.ENAMETOOLONG},
		{"create of a long name", open(long, unix.O_CREAT|unix.O_WRONLY), unix.ENAMETOOLONG},
		{"mkdir of a long name", unix.Mkdir(long, 0o755), unix.ENAMETOOLONG},
		{"symlink with a long name", unix.Symlink("x", long), unix.ENAMETOOLONG},
		{"rename to a long name", unix.Rename(dir+"/file", long), unix.ENAMETOOLONG},
		{"link to a long name", unix.Link(dir+"/file", long), unix.ENAMETOOLONG},
		{"open of nothing", open(dir+"/none", unix.O_RDONLY), unix.ENOENT},
		{"exclusive create over a file", open(dir+"/file", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY), unix.EEXIST},
		{"open of a directory for writing", open(dir+"/full", unix.O_WRONLY), unix.EISDIR},
		{"open of a file as a directory", open(dir+"/file", unix.O_DIRECTORY), unix.ENOTDIR},
		{"open of a link loop", open(dir+"/loop", unix.O_RDONLY), unix.ELOOP},
		{"open of a link itself", open(dir+"/loop", unix.O_RDONLY|unix.O_NOFOLLOW), unix.ELOOP},
		{"mkdir over a file", unix.Mkdir(dir+"/file", 0o755), unix.EEXIST},
		{"rmdir of a full directory", unix.Rmdir(dir + "/full"), unix.ENOTEMPTY},
		{"rmdir of a file", unix.Rmdir(dir + "/file"), unix.ENOTDIR},
		{"rmdir of nothing", unix.Rmdir(dir + "/none"), unix.ENOENT},
		{"rmdir of dot", unix.Rmdir(dir + "/full/."), unix.EINVAL},
		{"unlink of a directory", unix.Unlink(dir + "/full"), unix.EISDIR},
		{"unlink of nothing", unix.Unlink(dir + "/none"), unix.ENOENT},
		{"link of a directory", unix.Link(dir+"/full", dir+"/again"), unix.EPERM},
		{"link over a file", unix.Link(dir+"/file", dir+"/file"), unix.EEXIST},
		{"rename of nothing", unix.Rename(dir+"/none", dir+"/x"), unix.ENOENT},
		{"rename of a directory into itself", unix.Rename(dir+"/full", dir+"/full/sub/x"), unix.EINVAL},
		{"rename of a directory over a file", unix.Rename(dir+"/full", dir+"/file"), unix.ENOTDIR},
		{"rename of a file over a directory", unix.Rename(dir+"/file", dir+"/full"), unix.EISDIR},
		{"rename without replacing", unix.Renameat2(unix.AT_FDCWD, dir+"/file", unix.AT_FDCWD, dir+"/full", unix.RENAME_NOREPLACE), unix.EEXIST},
		{"exchange with nothing", unix.Renameat2(unix.AT_FDCWD, dir+"/file", unix.AT_FDCWD, dir+"/none", unix.RENAME_EXCHANGE), unix.ENOENT},
		{"rename leaving a whiteout", unix.Renameat2(unix.AT_FDCWD, dir+"/file", unix.AT_FDCWD, dir+"/y", unix.RENAME_WHITEOUT), unix.EINVAL},
		{"readlink of a file", func() error { _, err := unix.Readlink(dir+"/file", make([]byte, 9)); return err }(), unix.EINVAL},
		{"truncate of a directory", unix.Truncate(dir+"/full", 0), unix.EISDIR},
		{"truncate to a negative size", unix.Truncate(dir+"/file", -1), unix.EINVAL},
		{"fallocate of a mode that is not there", fallocate(dir+"/file", unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), unix.EOPNOTSUPP},
		{"a malformed ACL", unix.Setxattr(dir+"/file", "system.posix_acl_access", []byte{2, 0, 0, 0, 1}, 0), unix.EINVAL},
	} {
		wantErrno(t, c.what, c.err, c.want)
	}
}

func fallocate(path string, mode uint32, off, n int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), mode, off, n)
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Lstat(path, &st))
	return st
}

func TestAttributes(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f := dir + "/f"
	check(t, os.WriteFile(f, []byte("12345"), 0o640))
	check(t, unix.Chmod(f, 0o4711))
	st := lstat(t, f)
	if st.Mode != unix.S_IFREG|0o4711 || st.Size != 5 || st.Nlink != 1 || st.Blocks != 8 || st.Blksize != preferredIOBytes {
		t.Errorf("stat %+v", st)
	}
	check(t, unix.Lchown(f, 1000, 2000))
	if st = lstat(t, f); st.Uid != 1000 || st.Gid != 2000 || st.Mode&0o7777 != 0o711 {
		t.Errorf("after chown uid %d gid %d mode %o", st.Uid, st.Gid, st.Mode)
	}
	// A directory's set-group-ID is no privilege: chown leaves it.
	check(t, unix.Mkdir(dir+"/d", 0o755))
	check(t, unix.Chmod(dir+"/d", 0o2775))
	check(t, unix.Lchown(dir+"/d", 1000, 2000))
	if st = lstat(t, dir+"/d"); st.Mode&0o7777 != 0o2775 {
		t.Errorf("directory's mode after chown %o", st.Mode)
	}
	// Nanoseconds, before the epoch too, and each time alone.
	at, mt := unix.Timespec{Sec: -3, Nsec: 7}, unix.Timespec{Sec: 1 << 32, Nsec: 999999999}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{at, mt}, 0))
	if st = lstat(t, f); st.Atim != at || st.Mtim != mt {
		t.Errorf("times %v %v", st.Atim, st.Mtim)
	}
	before := time.Now().Add(-time.Second)
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, 0))
	if st = lstat(t, f); st.Atim != at || time.Unix(st.Mtim.Unix()).Before(before) || time.Unix(st.Ctim.Unix()).Before(before) {
		t.Errorf("after UTIME_NOW: times %v %v %v", st.Atim, st.Mtim, st.Ctim)
	}
	var stx unix.Statx_t
	check(t, unix.Statx(unix.AT_FDCWD, f, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx))
	if stx.Mask&unix.STATX_BTIME == 0 || time.Unix(stx.Btime.Sec, 0).Before(before.Add(-time.Minute)) || stx.Size != 5 || stx.Mode != unix.S_IFREG|0o711 {
		t.Errorf("statx %+v", stx)
	}
}

func TestUmaskAndPermissions(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.Chmod(dir, 0o777))
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	done := make(chan error, 1)
	go func() {
		done <- asUser(1234, func() error {
			if err := os.WriteFile(dir+"/f", nil, 0o666); err != nil {
				return err
			}
			if err := os.Mkdir(dir+"/private", 0o700); err != nil {
				return err
			}
			if err := os.Chown(dir+"/f", 0, -1); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("chown to root: %v", err)
			}
			return nil
		})
	}()
	check(t, <-done)
	if st := lstat(t, dir+"/f"); st.Mode&0o777 != 0o640 || st.Uid != 1234 || st.Gid != 1234 {
		t.Errorf("mode %o uid %d gid %d", st.Mode, st.Uid, st.Gid)
	}
	go func() {
		done <- asUser(4321, func() error {
			if _, err := os.OpenFile(dir+"/f", os.O_WRONLY, 0); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("writing another's file: %v", err)
			}
			if _, err := os.ReadDir(dir + "/private"); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("listing another's directory: %v", err)
			}
			return nil
		})
	}()
	check(t, <-done)
}

func TestSpecialFilesAndLinks(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	dev := unix.Mkdev(259, 70000)
	check(t, unix.Mknod(dir+"/dev", unix.S_IFBLK|0o600, int(dev)))
	check(t, unix.Mknod(dir+"/fifo", unix.S_IFIFO|0o600, 0))
	check(t, unix.Mknod(dir+"/reg", 0o600, 0))
	if st := lstat(t, dir+"/dev"); st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != dev {
		t.Errorf("device %o %x, want %x", st.Mode, st.Rdev, dev)
	}
	var stx unix.Statx_t
	check(t, unix.Statx(unix.AT_FDCWD, dir+"/dev", 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx))
	if stx.Rdev_major != 259 || stx.Rdev_minor != 70000 {
		t.Errorf("statx of the device: %d:%d", stx.Rdev_major, stx.Rdev_minor)
	}
	if st := lstat(t, dir+"/fifo"); st.Mode&unix.S_IFMT != unix.S_IFIFO {
		t.Errorf("fifo %o", st.Mode)
	}
	if st := lstat(t, dir+"/reg"); st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("mknod of a file %o", st.Mode)
	}
	target := strings.Repeat("t", cfs.MaxSymlink)
	check(t, os.Symlink(target, dir+"/long"))
	if got, err := os.Readlink(dir + "/long"); err != nil || got != target {
		t.Errorf("readlink of %d bytes: %v", len(got), err)
	}
	check(t, os.Link(dir+"/reg", dir+"/hard"))
	if a, b := lstat(t, dir+"/reg"), lstat(t, dir+"/hard"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("links %d %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
}

func TestRenameFlags(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.WriteFile(dir+"/a", []byte("a"), 0o644))
	check(t, os.MkdirAll(dir+"/d/sub", 0o755))
	check(t, unix.Renameat2(unix.AT_FDCWD, dir+"/a", unix.AT_FDCWD, dir+"/d/sub", unix.RENAME_EXCHANGE))
	if b, err := os.ReadFile(dir + "/d/sub"); err != nil || string(b) != "a" {
		t.Errorf("after the exchange: %q, %v", b, err)
	}
	if st := lstat(t, dir+"/a"); st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("after the exchange: mode %o", st.Mode)
	}
	check(t, unix.Renameat2(unix.AT_FDCWD, dir+"/d/sub", unix.AT_FDCWD, dir+"/b", unix.RENAME_NOREPLACE))
	if b, err := os.ReadFile(dir + "/b"); err != nil || string(b) != "a" {
		t.Errorf("after the rename: %q, %v", b, err)
	}
}

func TestOpenFilesOutliveTheirNames(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	write := func(name, text string) *os.File {
		f, err := os.OpenFile(dir+"/"+name, os.O_RDWR|os.O_CREATE, 0o644)
		check(t, err)
		_, err = f.WriteString(text)
		check(t, err)
		return f
	}
	gone, over := write("gone", "unlinked"), write("over", "renamed over")
	defer gone.Close()
	defer over.Close()
	check(t, os.Remove(dir+"/gone"))
	check(t, os.WriteFile(dir+"/new", []byte("new"), 0o644))
	check(t, os.Rename(dir+"/new", dir+"/over"))
	for _, c := range []struct {
		f    *os.File
		want string
	}{{gone, "unlinked"}, {over, "renamed over"}} {
		var st unix.Stat_t
		check(t, unix.Fstat(int(c.f.Fd()), &st))
		b := make([]byte, 100)
		n, err := c.f.ReadAt(b, 0)
		if st.Nlink != 0 || string(b[:n]) != c.want || err != io.EOF {
			t.Errorf("%d links, %q, %v", st.Nlink, b[:n], err)
		}
		_, err = c.f.WriteAt([]byte("more"), 4096)
		check(t, err)
		check(t, c.f.Truncate(10))
		check(t, c.f.Sync())
	}
	if b, err := os.ReadFile(dir + "/over"); err != nil || string(b) != "new" {
		t.Errorf("the new file: %q, %v", b, err)
	}
}

func TestXattrs(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f := dir + "/f"
	check(t, os.WriteFile(f, nil, 0o644))
	_, err := unix.Getxattr(f, "user.none", nil)
	wantErrno(t, "get of nothing", err, unix.ENODATA)
	value := pattern(1, 60<<10)
	check(t, unix.Setxattr(f, "user.big", value, unix.XATTR_CREATE))
	wantErrno(t, "create over", unix.Setxattr(f, "user.big", nil, unix.XATTR_CREATE), unix.EEXIST)
	wantErrno(t, "replace of nothing", unix.Setxattr(f, "user.none", nil, unix.XATTR_REPLACE), unix.ENODATA)
	n, err := unix.Getxattr(f, "user.big", nil)
	check(t, err)
	got := make([]byte, n)
	if n, err = unix.Getxattr(f, "user.big", got); err != nil || !bytes.Equal(got[:n], value) {
		t.Errorf("%d bytes, %v", n, err)
	}
	_, err = unix.Getxattr(f, "user.big", make([]byte, 10))
	wantErrno(t, "get into too little", err, unix.ERANGE)
	check(t, unix.Setxattr(f, "user.empty", nil, 0))
	if n, err := unix.Getxattr(f, "user.empty", make([]byte, 10)); n != 0 || err != nil {
		t.Errorf("empty value: %d, %v", n, err)
	}
	check(t, unix.Setxattr(f, "trusted.t", []byte("t"), 0))
	size, err := unix.Listxattr(f, nil)
	check(t, err)
	list := make([]byte, size)
	size, err = unix.Listxattr(f, list)
	if want := "trusted.t\x00user.big\x00user.empty\x00"; err != nil || string(list[:size]) != want {
		t.Errorf("list %q, %v", list[:size], err)
	}
	_, err = unix.Listxattr(f, make([]byte, 3))
	wantErrno(t, "list into too little", err, unix.ERANGE)
	check(t, unix.Removexattr(f, "user.big"))
	wantErrno(t, "remove of nothing", unix.Removexattr(f, "user.big"), unix.ENODATA)
	wantErrno(t, "value too big", unix.Setxattr(f, "user.x", make([]byte, cfs.MaxXattrValue+1), 0), unix.E2BIG)
}

func TestBigDirectory(t *testing.T) {
	const names = 5000
	m := newMemFS()
	dir, _ := mounted(t, m)
	big := dir + "/big"
	check(t, os.Mkdir(big, 0o755))
	want := make([]string, names)
	for i := range want {
		want[i] = fmt.Sprintf("name-%05d", i)
		check(t, os.WriteFile(big+"/"+want[i], nil, 0o644))
	}
	d, err := os.Open(big)
	check(t, err)
	defer d.Close()
	got, err := d.Readdirnames(-1)
	check(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("%d names listed, %d made", len(got), names)
	}
	// rewinddir sees what is there now.
	check(t, os.WriteFile(big+"/zz", nil, 0o644))
	_, err = d.Seek(0, io.SeekStart)
	check(t, err)
	if got, err = d.Readdirnames(-1); err != nil || len(got) != names+1 || got[names] != "zz" {
		t.Errorf("after rewinding: %d names, %v", len(got), err)
	}
	// A listing that is under way meets each name once while they go.
	d2, err := os.Open(big)
	check(t, err)
	defer d2.Close()
	seen := 0
	for {
		part, err := d2.Readdirnames(100)
		if err == io.EOF {
			break
		}
		check(t, err)
		for _, name := range part {
			check(t, os.Remove(big+"/"+name))
			seen++
		}
	}
	if seen != names+1 {
		t.Errorf("%d names seen while deleting", seen)
	}
	check(t, os.Remove(big))
}

func TestDotsAndTypesInListings(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.Mkdir(dir+"/d", 0o755))
	check(t, os.Symlink("x", dir+"/l"))
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(t, err)
	defer unix.Close(fd)
	check(t, unix.Fsync(fd))
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(fd, buf)
	check(t, err)
	got := ""
	for b := buf[:n]; len(b) > 0; {
		reclen := int(b[16]) | int(b[17])<<8
		name, _, _ := bytes.Cut(b[19:reclen], []byte{0})
		got += fmt.Sprintf("%s:%d ", name, b[18])
		b = b[reclen:]
	}
	if want := fmt.Sprintf(".:%d ..:%d d:%d l:%d ", unix.DT_DIR, unix.DT_DIR, unix.DT_DIR, unix.DT_LNK); got != want {
		t.Errorf("listed %q, want %q", got, want)
	}
}

func TestRemovedWorkingDirectory(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.Mkdir(dir+"/d", 0o755))
	fd, err := unix.Open(dir+"/d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(t, err)
	defer unix.Close(fd)
	check(t, os.Remove(dir+"/d"))
	_, err = unix.Openat(fd, "x", unix.O_CREAT|unix.O_WRONLY, 0o644)
	wantErrno(t, "create in a removed directory", err, unix.ENOENT)
}

// What another mount has made meanwhile is opened as any existing file is, with
// its permissions checked, though the kernel believed the name free.
func TestCreateOverWhatAnotherMountMade(t *testing.T) {
	m := newMemFS()
	m.ttl = time.Hour // capped: the kernel's own caches are what is tested
	dir, _ := mounted(t, m)
	if _, err := os.Stat(dir + "/f"); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	a, err := m.Create(t.Context(), cfs.Cred{UID: 7, GID: 7}, cfs.RootIno, "f", cfs.ModeRegular|0o600, 0, "", true)
	check(t, err)
	f, err := os.OpenFile(dir+"/f", os.O_CREATE|os.O_WRONLY, 0o644)
	check(t, err)
	defer f.Close()
	var st unix.Stat_t
	check(t, unix.Fstat(int(f.Fd()), &st))
	if st.Ino != uint64(a.Ino) || st.Uid != 7 {
		t.Errorf("opened inode %d of user %d", st.Ino, st.Uid)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		check(t, os.Chmod(dir, 0o777))
		if err := asUser(1234, func() error {
			_, err := os.OpenFile(dir+"/f", os.O_CREATE|os.O_WRONLY, 0o644)
			return err
		}); !errors.Is(err, unix.EACCES) {
			t.Errorf("another user: %v", err)
		}
	})
	wg.Wait()
}
