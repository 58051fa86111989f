package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

// semantics are the promises of POSIX and of Linux's own calls, each with a small test of a directory
// of its own, which two mounts have: a and b.
var semantics = map[string]func(t *testing.T, a, b string){
	"mmap":             mappings,
	"O_DIRECT":         directIO,
	"O_APPEND":         appends,
	"sparse":           sparse,
	"fallocate":        fallocates,
	"copy_file_range":  copies,
	"xattr":            attributes,
	"ACL":              lists,
	"O_TMPFILE":        nameless,
	"renameat2":        exchanges,
	"times":            times,
	"special files":    specialFiles,
	"unlink open":      unlinked,
	"umask":            umasks,
	"kill privileges":  privileges,
	"inotify":          watched,
	"relatime":         readings,
	"file handles":     fileHandles,
	"permission":       permissions,
	"readdir and seek": listings,
}

func TestSemantics(t *testing.T) {
	c := start(t, nil)
	a, b := mount(t, c, "a"), mount(t, c, "b")
	for name, f := range semantics {
		t.Run(name, func(t *testing.T) {
			dir := strings.ReplaceAll(name, " ", "-")
			must(t, os.Mkdir(filepath.Join(a.Point, dir), 0o777))
			must(t, os.Chmod(filepath.Join(a.Point, dir), 0o777))
			eventually(t, "the other mount sees the directory", func() bool { _, err := os.Stat(filepath.Join(b.Point, dir)); return err == nil })
			f(t, filepath.Join(a.Point, dir), filepath.Join(b.Point, dir))
		})
	}
	t.Run("handles outlive mounts", func(t *testing.T) { handlesOutliveMounts(t, a) })
	t.Run("O_SYNC", func(t *testing.T) { syncedWrites(t, c, a) })
	t.Run("SIGKILL", func(t *testing.T) { killedReader(t, c, b) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErrno(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func open(t *testing.T, path string, flags int, mode uint32) *os.File {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st
}

// sameBytes compares what is read of a file with what must be there.
func sameBytes(t *testing.T, what, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes that differ from the %d expected first at %d", what, len(got), len(want), firstDifference(got, want))
	}
}

func firstDifference(got, want []byte) int {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return i
		}
	}
	return min(len(got), len(want))
}

// asUser runs fn as another user, on a thread of its own.
func asUser(t *testing.T, id int, fn func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for _, call := range []struct{ nr, id uintptr }{{unix.SYS_SETFSGID, uintptr(id)}, {unix.SYS_SETFSUID, uintptr(id)}} {
			syscall.RawSyscall(call.nr, call.id, 0, 0)
		}
		done <- fn()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// dirFD is a directory for calls of other users, who may not walk to it.
func dirFD(t *testing.T, dir string) int {
	t.Helper()
	return int(open(t, dir, unix.O_DIRECTORY|unix.O_RDONLY, 0).Fd())
}

func mappings(t *testing.T, a, b string) {
	const n = 3*cfs.BlockSize + 100
	want := content(1, n)
	must(t, writeFile(a+"/f", want))
	f := open(t, a+"/f", unix.O_RDWR, 0)
	private, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(private)
	copy(private, "private")
	if string(private[:7]) != "private" || !bytes.Equal(private[7:], want[7:]) {
		t.Error("the private mapping differs from the file")
	}
	sameBytes(t, "after a write to a private mapping", a+"/f", want)

	shared, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(shared[cfs.BlockSize-3:], "shared")
	copy(want[cfs.BlockSize-3:], "shared")
	// read(2) and a second mapping see it at once; write(2) is seen by the mapping.
	sameBytes(t, "after a write to a shared mapping", a+"/f", want)
	_, err = f.WriteAt([]byte("written"), 2*cfs.BlockSize)
	must(t, err)
	copy(want[2*cfs.BlockSize:], "written")
	if !bytes.Equal(shared, want) {
		t.Errorf("a write is not seen by the mapping: first difference at %d", firstDifference(shared, want))
	}
	must(t, unix.Msync(shared, unix.MS_SYNC))
	must(t, unix.Munmap(shared))
	must(t, f.Close())
	sameBytes(t, "on the other mount", b+"/f", want)

	// What was written after the last msync goes with munmap and close.
	f = open(t, a+"/f", unix.O_RDWR, 0)
	shared, err = unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(shared, "at the end")
	copy(want, "at the end")
	must(t, f.Sync())
	must(t, unix.Munmap(shared))
	must(t, f.Close())
	sameBytes(t, "on the other mount after fsync", b+"/f", want)
}

func directIO(t *testing.T, a, b string) {
	want := content(2, 4*cfs.BlockSize)
	f := open(t, a+"/f", unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0o644)
	buf := aligned(t, len(want))
	copy(buf, want)
	_, err := f.WriteAt(buf, 0)
	must(t, err)
	// At any offset, of any length.
	copy(buf, "odd")
	_, err = f.WriteAt(buf[:3], 4097)
	must(t, err)
	copy(want[4097:], "odd")
	got := aligned(t, len(want))
	n, err := f.ReadAt(got, 0)
	if err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes read directly, first difference at %d, %v", n, firstDifference(got[:n], want), err)
	}
	// Beside pages of the kernel: direct writes are seen by buffered reads, and the reverse.
	g := open(t, a+"/f", unix.O_RDWR, 0)
	sameBytes(t, "buffered", a+"/f", want)
	_, err = g.WriteAt([]byte("buffered"), 10)
	must(t, err)
	copy(want[10:], "buffered")
	if _, err = f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a buffered write read directly: first difference at %d, %v", firstDifference(got, want), err)
	}
	copy(buf, want)
	copy(buf[8192:], "direct")
	copy(want[8192:], "direct")
	_, err = f.WriteAt(buf, 0)
	must(t, err)
	sameBytes(t, "a direct write read by pages", a+"/f", want)
	must(t, errors.Join(f.Close(), g.Close()))
	sameBytes(t, "on the other mount", b+"/f", want)
}

// appends has both mounts append to one file, each record in one write: none is lost or torn.
func appends(t *testing.T, a, b string) {
	const each, size = 40, 100
	must(t, writeFile(a+"/f", nil))
	done := make(chan error, 2)
	for i, path := range []string{a + "/f", b + "/f"} {
		f := open(t, path, unix.O_WRONLY|unix.O_APPEND, 0)
		go func() {
			for k := range each {
				if _, err := f.Write(bytes.Repeat([]byte{byte(2*k + i)}, size)); err != nil {
					done <- err
					return
				}
			}
			done <- f.Close()
		}()
	}
	must(t, errors.Join(<-done, <-done))
	got, err := os.ReadFile(b + "/f")
	must(t, err)
	seen := map[byte]bool{}
	for off := 0; off+size <= len(got); off += size {
		if r := got[off : off+size]; !bytes.Equal(r, bytes.Repeat(r[:1], size)) {
			t.Fatalf("the record at %d is torn", off)
		}
		seen[got[off]] = true
	}
	if len(got) != 2*each*size || len(seen) != 2*each {
		t.Errorf("%d bytes, %d records, want %d records of %d bytes", len(got), len(seen), 2*each, size)
	}
}

func sparse(t *testing.T, a, b string) {
	const far = 1 << 40
	f := open(t, a+"/f", unix.O_RDWR|unix.O_CREAT, 0o644)
	_, err := f.WriteAt([]byte("far"), far)
	must(t, err)
	must(t, f.Sync())
	if st := stat(t, a+"/f"); st.Size != far+3 || st.Blocks > 64 {
		t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
	}
	g := open(t, b+"/f", unix.O_RDONLY, 0)
	for _, h := range []*os.File{f, g} {
		data, err := unix.Seek(int(h.Fd()), 0, unix.SEEK_DATA)
		if err != nil || data > far || data < far-1<<20 {
			t.Errorf("the data begins at %d, %v", data, err)
		}
		if hole, err := unix.Seek(int(h.Fd()), data, unix.SEEK_HOLE); err != nil || hole < far+3 {
			t.Errorf("the hole after it begins at %d, %v", hole, err)
		}
		_, err = unix.Seek(int(h.Fd()), far+3, unix.SEEK_DATA)
		wantErrno(t, "SEEK_DATA at the end", err, unix.ENXIO)
		_, err = unix.Seek(int(h.Fd()), far+100, unix.SEEK_HOLE)
		wantErrno(t, "SEEK_HOLE after the end", err, unix.ENXIO)
		buf := make([]byte, 8192)
		if _, err := h.ReadAt(buf, far/2); err != nil || !bytes.Equal(buf, make([]byte, 8192)) {
			t.Errorf("the hole does not read as zeros: %v", err)
		}
	}
	_, err = f.WriteAt([]byte("x"), cfs.MaxFileSize)
	wantErrno(t, "a write beyond the largest file", err, unix.EINVAL)
}

func fallocates(t *testing.T, a, b string) {
	const mode0, keep, punch, zero = 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	f := open(t, a+"/f", unix.O_RDWR|unix.O_CREAT, 0o644)
	want := content(3, 100_000)
	_, err := f.Write(want)
	must(t, err)
	for _, c := range []struct {
		mode   uint32
		off, n int64
	}{
		{keep | punch, 5000, 10_000}, {keep | punch, 95_000, 20_000}, {zero, 40_001, 7}, {zero | keep, 99_990, 500}, {zero, 99_990, 100},
		{keep, 0, 300_000}, {mode0, 100_000, 1000}, {mode0, 10, 20},
	} {
		must(t, fallocate(f, c.mode, c.off, c.n))
		if end := c.off + c.n; c.mode&keep == 0 && end > int64(len(want)) {
			want = append(want, make([]byte, end-int64(len(want)))...)
		}
		if c.mode&(punch|zero) != 0 {
			clear(want[c.off:min(c.off+c.n, int64(len(want)))])
		}
		sameBytes(t, fmt.Sprintf("mode %#x", c.mode), a+"/f", want)
	}
	for _, mode := range []uint32{unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, unix.FALLOC_FL_UNSHARE_RANGE} {
		wantErrno(t, fmt.Sprintf("fallocate %#x", mode), fallocate(f, mode, 0, cfs.BlockSize), unix.EOPNOTSUPP)
	}
	must(t, f.Close())
	sameBytes(t, "on the other mount", b+"/f", want)
}

func copies(t *testing.T, a, b string) {
	want := content(4, 5<<20+77)
	must(t, writeFile(a+"/src", want))
	src, dst := open(t, a+"/src", unix.O_RDWR, 0), open(t, a+"/dst", unix.O_RDWR|unix.O_CREAT, 0o644)
	for from, to := int64(0), int64(0); from < int64(len(want)); {
		n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, 1<<30, 0)
		must(t, err)
		if n == 0 {
			t.Fatalf("nothing copied at %d", from)
		}
	}
	sameBytes(t, "the copy", a+"/dst", want)
	// Within one file, at odd offsets, and beyond its end.
	from, to := int64(1), int64(len(want)+3)
	n, err := unix.CopyFileRange(int(dst.Fd()), &from, int(dst.Fd()), &to, 10_000, 0)
	if err != nil || n != 10_000 {
		t.Fatalf("%d copied within the file, %v", n, err)
	}
	want = append(append(want, 0, 0, 0), want[1:10_001]...)
	must(t, dst.Close())
	sameBytes(t, "the copy on the other mount", b+"/dst", want)
	sameBytes(t, "the source on the other mount", b+"/src", want[:5<<20+77])
}

func attributes(t *testing.T, a, b string) {
	must(t, writeFile(a+"/f", nil))
	big := content(5, cfs.MaxXattrValue)
	must(t, unix.Setxattr(a+"/f", "user.big", big, unix.XATTR_CREATE))
	must(t, unix.Setxattr(a+"/f", "trusted.t", []byte("t"), 0))
	must(t, unix.Setxattr(a+"/f", "security.s", nil, 0))
	got := make([]byte, len(big)+1)
	n, err := unix.Getxattr(b+"/f", "user.big", got)
	if err != nil || !bytes.Equal(got[:n], big) {
		t.Errorf("the other mount has %d bytes, %v", n, err)
	}
	list := make([]byte, 100)
	n, err = unix.Listxattr(b+"/f", list)
	if err != nil || string(list[:n]) != "security.s\x00trusted.t\x00user.big\x00" {
		t.Errorf("the other mount lists %q, %v", list[:n], err)
	}
	must(t, unix.Removexattr(b+"/f", "user.big"))
	eventually(t, "an attribute goes that the other mount has removed", func() bool {
		_, err := unix.Getxattr(a+"/f", "user.big", nil)
		return errors.Is(err, unix.ENODATA)
	})
	must(t, os.Symlink("f", a+"/link"))
	wantErrno(t, "user.* of a symbolic link", unix.Lsetxattr(a+"/link", "user.x", nil, 0), unix.EPERM)
	must(t, unix.Lsetxattr(a+"/link", "trusted.x", []byte("x"), 0))
	wantErrno(t, "a namespace that is not kept", unix.Setxattr(a+"/f", "system.other", nil, 0), unix.EOPNOTSUPP)
	dir := dirFD(t, a)
	asUser(t, 1234, func() error {
		if err := unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d/f", dir), "user.x", nil, 0); !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("user.* of a file of others: %v", err)
		}
		return nil
	})
}

// aclBytes is the form of an ACL of entries {tag, perm, id}; id 0 is none but for users and groups.
func aclBytes(entries ...[3]uint32) []byte {
	p := []byte{2, 0, 0, 0}
	for _, e := range entries {
		id := e[2]
		if e[0] != 2 && e[0] != 8 {
			id = 0xffffffff
		}
		p = append(p, byte(e[0]), 0, byte(e[1]), 0, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return p
}

func lists(t *testing.T, a, b string) {
	must(t, writeFile(a+"/f", []byte("x")))
	must(t, os.Chmod(a+"/f", 0o600))
	inA, inB := dirFD(t, a), dirFD(t, b)
	opens := func(dir int, name string, want error) func() error {
		return func() error {
			fd, err := unix.Openat(dir, name, unix.O_RDWR, 0)
			if err == nil {
				unix.Close(fd)
			}
			if !errors.Is(err, want) {
				return fmt.Errorf("open of %s: %v, want %v", name, err, want)
			}
			return nil
		}
	}
	asUser(t, 1234, opens(inA, "f", unix.EACCES))
	must(t, unix.Setxattr(a+"/f", cfs.XattrACLAccess, aclBytes([3]uint32{1, 6}, [3]uint32{2, 6, 1234}, [3]uint32{4, 0}, [3]uint32{16, 6}, [3]uint32{32, 0}), 0))
	asUser(t, 1234, opens(inA, "f", nil))
	asUser(t, 4321, opens(inA, "f", unix.EACCES))
	if st := stat(t, a+"/f"); st.Mode&0o777 != 0o660 {
		t.Errorf("mode %o under the ACL", st.Mode)
	}
	eventually(t, "the other mount has the ACL", func() bool {
		_, err := unix.Getxattr(b+"/f", cfs.XattrACLAccess, nil)
		return err == nil
	})
	asUser(t, 1234, opens(inB, "f", nil))
	asUser(t, 4321, opens(inB, "f", unix.EACCES))
	// chmod sets the mask, which the named user is under.
	must(t, os.Chmod(a+"/f", 0o600))
	asUser(t, 1234, opens(inA, "f", unix.EACCES))
	// What is made in a directory gets its default ACL, and no umask.
	must(t, os.Mkdir(a+"/d", 0o755))
	must(t, unix.Setxattr(a+"/d", cfs.XattrACLDefault, aclBytes([3]uint32{1, 7}, [3]uint32{2, 6, 1234}, [3]uint32{4, 0}, [3]uint32{16, 7}, [3]uint32{32, 0}), 0))
	must(t, open(t, a+"/d/f", unix.O_CREAT|unix.O_WRONLY, 0o666).Close())
	must(t, os.Mkdir(a+"/d/sub", 0o777))
	asUser(t, 1234, opens(inA, "d/f", nil))
	if n, err := unix.Getxattr(a+"/d/sub", cfs.XattrACLDefault, nil); err != nil || n == 0 {
		t.Errorf("the directory's default ACL: %d bytes, %v", n, err)
	}
	if st := stat(t, a+"/d/f"); st.Mode&0o777 != 0o660 {
		t.Errorf("mode %o under the default ACL", st.Mode)
	}
}

func nameless(t *testing.T, a, b string) {
	f := open(t, a, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	_, err := f.WriteString("named later")
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Nlink != 0 {
		t.Errorf("%d links", st.Nlink)
	}
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, a+"/named", unix.AT_SYMLINK_FOLLOW))
	must(t, unix.Linkat(int(f.Fd()), "", unix.AT_FDCWD, a+"/again", unix.AT_EMPTY_PATH))
	must(t, f.Close())
	sameBytes(t, "on the other mount", b+"/named", []byte("named later"))
	if st := stat(t, b+"/again"); st.Nlink != 2 || st.Mode&0o777 != 0o640 {
		t.Errorf("%d links, mode %o", st.Nlink, st.Mode)
	}
	f = open(t, a, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o640)
	wantErrno(t, "naming a file that was to have no name", unix.Linkat(int(f.Fd()), "", unix.AT_FDCWD, a+"/never", unix.AT_EMPTY_PATH), unix.ENOENT)
}

func exchanges(t *testing.T, a, b string) {
	at := unix.AT_FDCWD
	must(t, writeFile(a+"/x", []byte("x")))
	must(t, os.MkdirAll(a+"/d/sub", 0o755))
	wantErrno(t, "NOREPLACE", unix.Renameat2(at, a+"/x", at, a+"/d", unix.RENAME_NOREPLACE), unix.EEXIST)
	must(t, unix.Renameat2(at, a+"/x", at, a+"/d/sub", unix.RENAME_EXCHANGE))
	eventually(t, "the other mount sees the exchange", func() bool {
		got, err := os.ReadFile(b + "/d/sub")
		return err == nil && string(got) == "x" && stat(t, b+"/x").Mode&unix.S_IFMT == unix.S_IFDIR
	})
	wantErrno(t, "exchange with nothing", unix.Renameat2(at, a+"/x", at, a+"/none", unix.RENAME_EXCHANGE), unix.ENOENT)
	wantErrno(t, "whiteout", unix.Renameat2(at, a+"/x", at, a+"/y", unix.RENAME_WHITEOUT), unix.EINVAL)
	wantErrno(t, "both", unix.Renameat2(at, a+"/x", at, a+"/d", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
	must(t, unix.Renameat2(at, a+"/x", at, a+"/y", unix.RENAME_NOREPLACE))
}

func times(t *testing.T, a, b string) {
	before := time.Now().Add(-2 * time.Second)
	must(t, writeFile(a+"/f", []byte("x")))
	var born unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, a+"/f", 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &born))
	if at := time.Unix(born.Btime.Sec, int64(born.Btime.Nsec)); born.Mask&unix.STATX_BTIME == 0 || at.Before(before) || at.After(time.Now().Add(2*time.Second)) {
		t.Errorf("born at %v, mask %#x", at, born.Mask)
	}
	set := []unix.Timespec{{Sec: -3, Nsec: 7}, {Sec: 1 << 32, Nsec: 999_999_999}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, a+"/f", set, 0))
	for _, path := range []string{a + "/f", b + "/f"} {
		if st := stat(t, path); st.Atim != set[0] || st.Mtim != set[1] {
			t.Errorf("%s: times %v %v", path, st.Atim, st.Mtim)
		}
	}
	var x unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, b+"/f", 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x))
	if x.Btime != born.Btime {
		t.Errorf("born at %v, and at %v for the other mount", born.Btime, x.Btime)
	}
	// Writing, linking and changing set what they must, and nothing else.
	changed := func(what string, do func() error, mtime bool) {
		t.Helper()
		old := stat(t, a+"/f")
		must(t, do())
		now := stat(t, a+"/f")
		if now.Ctim.Nano() <= old.Ctim.Nano() || mtime != (now.Mtim != old.Mtim) {
			t.Errorf("%s: ctime %v to %v, mtime %v to %v", what, old.Ctim, now.Ctim, old.Mtim, now.Mtim)
		}
	}
	changed("chmod", func() error { return os.Chmod(a+"/f", 0o600) }, false)
	changed("link", func() error { return os.Link(a+"/f", a+"/g") }, false)
	changed("unlink", func() error { return os.Remove(a + "/g") }, false)
	changed("setxattr", func() error { return unix.Setxattr(a+"/f", "user.x", []byte("x"), 0) }, false)
	changed("truncate", func() error { return os.Truncate(a+"/f", 100) }, true)
	changed("write", func() error { return writeFile(a+"/f", []byte("y")) }, true)
	dir := stat(t, a)
	must(t, os.Mkdir(a+"/d", 0o755))
	if now := stat(t, a); now.Mtim.Nano() <= dir.Mtim.Nano() || now.Ctim != now.Mtim || now.Nlink != dir.Nlink+1 {
		t.Errorf("the directory before %+v and after mkdir %+v", dir, now)
	}
}

func specialFiles(t *testing.T, a, b string) {
	dev := unix.Mkdev(1, 3) // /dev/null
	must(t, unix.Mknod(a+"/null", unix.S_IFCHR|0o666, int(dev)))
	must(t, unix.Mknod(a+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mkfifo(a+"/fifo", 0o600))
	if st := stat(t, b+"/null"); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != dev {
		t.Errorf("device %o %x", st.Mode, st.Rdev)
	}
	if st := stat(t, b+"/block"); st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(259, 70000) {
		t.Errorf("block device %o %x", st.Mode, st.Rdev)
	}
	// Both ends of a FIFO on one machine.
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(a+"/fifo", []byte("through"), 0) }()
	got, err := os.ReadFile(a + "/fifo")
	if err = errors.Join(err, <-done); err != nil || string(got) != "through" {
		t.Errorf("%q through a FIFO, %v", got, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	home, err := os.Getwd()
	must(t, err)
	must(t, unix.Fchdir(dirFD(t, a))) // a socket's path is short
	defer os.Chdir(home)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "sock"}))
	must(t, unix.Listen(fd, 1))
	peer, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(peer)
	must(t, unix.Connect(peer, &unix.SockaddrUnix{Name: "sock"}))
	target := strings.Repeat("t", cfs.MaxSymlink)
	must(t, os.Symlink(target, a+"/long"))
	if got, err := os.Readlink(b + "/long"); err != nil || got != target {
		t.Errorf("readlink of %d bytes, %v", len(got), err)
	}
}

// unlinked keeps files open that lose their names here and on the other mount.
func unlinked(t *testing.T, a, b string) {
	want := content(6, 300_000)
	for _, c := range []struct {
		name string
		do   func(name string) error
	}{
		{"here", func(n string) error { return os.Remove(a + "/" + n) }},
		{"there", func(n string) error { return os.Remove(b + "/" + n) }},
		{"over", func(n string) error { return errors.Join(writeFile(b+"/new", nil), os.Rename(b+"/new", b+"/"+n)) }},
	} {
		must(t, writeFile(a+"/"+c.name, want))
		f := open(t, a+"/"+c.name, unix.O_RDWR, 0)
		must(t, c.do(c.name))
		must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: first difference at %d, %v", c.name, firstDifference(got, want), err)
		}
		_, err := f.WriteAt([]byte("still"), 1<<20)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Truncate(3))
		var st unix.Stat_t
		eventually(t, c.name+": no links", func() bool { must(t, unix.Fstat(int(f.Fd()), &st)); return st.Nlink == 0 && st.Size == 3 })
		must(t, f.Close())
	}
}

func umasks(t *testing.T, a, _ string) {
	dir := dirFD(t, a)
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	asUser(t, 1234, func() error {
		fd, err := unix.Openat(dir, "f", unix.O_CREAT|unix.O_WRONLY, 0o666)
		if err == nil {
			err = unix.Close(fd)
		}
		return errors.Join(err, unix.Mkdirat(dir, "d", 0o777), unix.Mknodat(dir, "p", unix.S_IFIFO|0o666, 0))
	})
	for name, want := range map[string]uint32{"f": 0o640, "d": 0o750, "p": 0o640} {
		if st := stat(t, a+"/"+name); st.Mode&0o7777 != want || st.Uid != 1234 || st.Gid != 1234 {
			t.Errorf("%s: mode %o of %d:%d, want %o", name, st.Mode, st.Uid, st.Gid, want)
		}
	}
	// A directory that hands its group down.
	must(t, os.Chown(a, 0, 77))
	must(t, unix.Chmod(a, 0o2777))
	asUser(t, 1234, func() error { return unix.Mkdirat(dir, "inherits", 0o755) })
	if st := stat(t, a+"/inherits"); st.Gid != 77 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("gid %d mode %o in a set-group-ID directory", st.Gid, st.Mode)
	}
}

// fileCapability is a security.capability of version 2 with CAP_NET_RAW permitted.
var fileCapability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// privileges are taken away by whatever changes a file, also where the other mount has set them.
func privileges(t *testing.T, a, b string) {
	dir := dirFD(t, a)
	for name, do := range map[string]func(fd int) error{
		"write":     func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err },
		"truncate":  func(fd int) error { return unix.Ftruncate(fd, 1) },
		"fallocate": func(fd int) error { return unix.Fallocate(fd, 0, 0, 100) },
		"chown":     nil,
	} {
		must(t, writeFile(b+"/"+name, []byte("abc")))
		must(t, unix.Chmod(b+"/"+name, 0o6777))
		must(t, unix.Setxattr(b+"/"+name, "security.capability", fileCapability, 0))
		eventually(t, "the mode is seen by the other mount", func() bool {
			var st unix.Stat_t
			return unix.Lstat(a+"/"+name, &st) == nil && st.Mode&0o7777 == 0o6777
		})
		if do == nil {
			must(t, os.Chown(a+"/"+name, 5, 5))
		} else {
			asUser(t, 1234, func() error {
				fd, err := unix.Openat(dir, name, unix.O_WRONLY, 0)
				if err == nil {
					err = errors.Join(do(fd), unix.Close(fd))
				}
				return err
			})
		}
		if st := stat(t, a+"/"+name); st.Mode&0o7777 != 0o777 {
			t.Errorf("%s: mode %o after it", name, st.Mode)
		}
		_, err := unix.Getxattr(a+"/"+name, "security.capability", nil)
		wantErrno(t, name+": the capability", err, unix.ENODATA)
	}
}

// readings are kept as relatime has them.
func readings(t *testing.T, a, b string) {
	must(t, writeFile(a+"/f", []byte("x")))
	old := stat(t, a+"/f")
	sameBytes(t, "the file", a+"/f", []byte("x"))
	first := stat(t, a+"/f")
	if first.Atim.Nano() <= old.Atim.Nano() || first.Mtim != old.Mtim || first.Ctim != old.Ctim {
		t.Errorf("read: atime %v to %v, ctime %v to %v", old.Atim, first.Atim, old.Ctim, first.Ctim)
	}
	eventually(t, "the other mount has the time of the reading", func() bool { return stat(t, b+"/f").Atim == first.Atim })
	// Not again, until it is changed again, or the reading is a day old.
	sameBytes(t, "the file", a+"/f", []byte("x"))
	sameBytes(t, "the file", b+"/f", []byte("x"))
	if now := stat(t, a+"/f"); now.Atim != first.Atim {
		t.Errorf("read again: atime %v to %v", first.Atim, now.Atim)
	}
	yesterday := []unix.Timespec{unix.NsecToTimespec(first.Atim.Nano() - int64(25*time.Hour)), unix.NsecToTimespec(first.Atim.Nano() - int64(50*time.Hour))}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, a+"/f", yesterday, 0))
	if now := stat(t, a+"/f"); now.Atim != yesterday[0] {
		t.Errorf("set to %v: %v", yesterday[0], now.Atim)
	}
	must(t, unix.Fadvise(int(open(t, a+"/f", unix.O_RDONLY, 0).Fd()), 0, 0, unix.FADV_DONTNEED))
	f := open(t, a+"/f", unix.O_RDONLY|unix.O_NOATIME, 0)
	_, err := f.Read(make([]byte, 1))
	must(t, err)
	if now := stat(t, a+"/f"); now.Atim != yesterday[0] {
		t.Errorf("read with O_NOATIME: %v to %v", yesterday[0], now.Atim)
	}
	must(t, f.Close())
	must(t, writeFile(b+"/f", []byte("y")))
	sameBytes(t, "the changed file", a+"/f", []byte("y"))
	if now := stat(t, a+"/f"); now.Atim.Nano() <= now.Mtim.Nano() {
		t.Errorf("read after a change: atime %v, mtime %v", now.Atim, now.Mtim)
	}
}

// watched has inotify tell what programs of this mount do.
func watched(t *testing.T, a, _ string) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, a, unix.IN_CREATE|unix.IN_CLOSE_WRITE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ATTRIB)
	must(t, err)
	must(t, writeFile(a+"/f", []byte("x")))
	must(t, os.Chmod(a+"/f", 0o600))
	must(t, os.Rename(a+"/f", a+"/g"))
	must(t, os.Remove(a+"/g"))
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	must(t, err)
	var seen uint32
	for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
		mask, size := uint32(p[4])|uint32(p[5])<<8|uint32(p[6])<<16, int(p[12])|int(p[13])<<8
		seen |= mask
		p = p[unix.SizeofInotifyEvent+size:]
	}
	if want := uint32(unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_ATTRIB); seen&want != want {
		t.Errorf("events %#x, want %#x", seen, want)
	}
}

func permissions(t *testing.T, a, _ string) {
	must(t, writeFile(a+"/f", []byte("x")))
	must(t, os.Chmod(a+"/f", 0o640))
	must(t, os.Mkdir(a+"/sticky", 0o777))
	must(t, os.Chmod(a+"/sticky", 0o777|os.ModeSticky))
	must(t, writeFile(a+"/sticky/root", nil))
	dir := dirFD(t, a)
	asUser(t, 1234, func() error {
		var errs []error
		denied := func(what string, err error, want syscall.Errno) {
			if !errors.Is(err, want) {
				errs = append(errs, fmt.Errorf("%s: %v, want %v", what, err, want))
			}
		}
		_, err := unix.Openat(dir, "f", unix.O_RDONLY, 0)
		denied("reading", err, unix.EACCES)
		denied("chmod", unix.Fchmodat(dir, "f", 0o666, 0), unix.EPERM)
		denied("chown", unix.Fchownat(dir, "f", 1234, -1, 0), unix.EPERM)
		denied("unlink from a sticky directory", unix.Unlinkat(dir, "sticky/root", 0), unix.EPERM)
		denied("mknod of a device", unix.Mknodat(dir, "dev", unix.S_IFCHR, int(unix.Mkdev(1, 3))), unix.EPERM)

		return errors.Join(errs...)
	})
}

func listings(t *testing.T, a, b string) {
	const names = 300
	for i := range names {
		must(t, writeFile(fmt.Sprintf("%s/n%03d", a, i), nil))
	}
	d := open(t, a, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	first, err := d.Readdirnames(10)
	must(t, err)
	// What is removed while a listing is read does not make it lose what stays, and rewinding shows what is new.
	for i := 50; i < 100; i++ {
		must(t, os.Remove(fmt.Sprintf("%s/n%03d", a, i)))
	}
	rest, err := d.Readdirnames(-1)
	must(t, err)
	seen := map[string]int{}
	for _, n := range append(first, rest...) {
		seen[n]++
	}
	for i := range names {
		if n := seen[fmt.Sprintf("n%03d", i)]; n > 1 || n == 0 && (i < 50 || i >= 100) {
			t.Errorf("n%03d was listed %d times", i, n)
		}
	}
	_, err = d.Seek(0, io.SeekStart)
	must(t, err)
	if again, err := d.Readdirnames(-1); err != nil || len(again) != names-50 {
		t.Errorf("%d names after rewinding, %v", len(again), err)
	}
	eventually(t, "the other mount lists the same", func() bool { l, err := os.ReadDir(b); return err == nil && len(l) == names-50 })
}

// syncedWrites kills the daemon after writes that were to be durable.
func syncedWrites(t *testing.T, c *cluster.Cluster, m *cluster.Mount) {
	path := filepath.Join(m.Point, "synced")
	for i, flag := range []int{unix.O_SYNC, unix.O_DSYNC, unix.O_SYNC | unix.O_APPEND} {
		f := open(t, path, unix.O_WRONLY|unix.O_CREAT|flag, 0o644)
		want := content(uint64(10+i), 70_000)
		_, err := f.Write(want)
		must(t, err)
		must(t, m.Kill())
		f.Close()
		m = mount(t, c, m.Name)
		got, err := os.ReadFile(path)
		if must(t, err); !bytes.HasSuffix(got, want) {
			t.Errorf("flags %#x: what was written is not there after the daemon's death", flag)
		}
	}
}

// killedReader kills a program that waits for servers which do not answer: it ends.
func killedReader(t *testing.T, c *cluster.Cluster, m *cluster.Mount) {
	path := filepath.Join(m.Point, "slow")
	must(t, writeFile(path, content(20, 8<<20)))
	remount(t, m)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	f := open(t, path, unix.O_RDONLY, 0)
	for n := range c.Nodes() {
		must(t, c.Pause(n+1))
	}
	defer func() {
		for n := range c.Nodes() {
			must(t, c.Resume(n+1))
		}
		must(t, c.WaitUsable(t.Context()))
	}()
	cmd := exec.Command("cat")
	cmd.Stdin = f
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("the reader did not wait: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	must(t, cmd.Process.Kill())
	select {
	case <-ended:
	case <-time.After(patience):
		t.Errorf("a killed reader still waits after %v", patience)
	}
}
