package fuse

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// memCopyBytes is how much memFS copies at a time: the kernel has to ask again.
const memCopyBytes = 100_000

func (m *memFS) CopyRange(ctx context.Context, src, dst file, srcOff, dstOff, n uint64, mask cfs.SetMask) (uint64, error) {
	if err := m.enter(ctx, "copy", dst.(*memFile).n.attr.Ino); err != nil {
		return 0, err
	}
	m.mu.Unlock()
	p := make([]byte, min(n, memCopyBytes))
	got, err := src.Read(ctx, p, srcOff)
	if err != nil {
		return 0, err
	}
	if _, err = dst.Write(ctx, p[:got], dstOff); err == nil && mask&cfs.SetKillPriv != 0 {
		m.mu.Lock()
		dst.(*memFile).n.killPriv()
		m.mu.Unlock()
	}
	return uint64(got), err
}

// copyRange is copy_file_range until n bytes are copied or the source ends.
func copyRange(t *testing.T, src, dst *os.File, srcOff, dstOff int64, n int) (total int) {
	t.Helper()
	for total < n {
		got, err := unix.CopyFileRange(int(src.Fd()), &srcOff, int(dst.Fd()), &dstOff, n-total, 0)
		check(t, err)
		if got == 0 {
			return total
		}
		total += got
	}
	return total
}

func TestCopyFileRange(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	data := pattern(1, 1<<20)
	check(t, os.WriteFile(dir+"/src", data, 0o644))
	src, err := os.Open(dir + "/src")
	check(t, err)
	defer src.Close()
	dst, err := os.OpenFile(dir+"/dst", os.O_CREATE|os.O_RDWR, 0o644)
	check(t, err)
	defer dst.Close()
	old := pattern(2, 400_000)
	_, err = dst.Write(old)
	check(t, err)
	_, err = dst.ReadAt(make([]byte, 400_000), 0) // into the kernel's pages
	check(t, err)
	if n := copyRange(t, src, dst, 1000, 5000, 300_000); n != 300_000 {
		t.Fatalf("%d bytes copied", n)
	}
	copy(old[5000:], data[1000:301_000])
	got, err := os.ReadFile(dir + "/dst")
	check(t, err)
	if !bytes.Equal(got, old) {
		t.Error("the copy is not what the source holds")
	}
	if calls := m.count("copy"); calls != 3 {
		t.Errorf("the front end was asked %d times", calls)
	}
	// Beyond the source's end; and the destination grows.
	if n := copyRange(t, src, dst, 1<<20-500, 1<<20, 10_000); n != 500 {
		t.Errorf("%d bytes copied from the end", n)
	}
	if st := lstat(t, dir+"/dst"); st.Size != 1<<20+500 {
		t.Errorf("size %d", st.Size)
	}
}

// TestCopyFileRangeByTheKernel: where the cluster has no room for inline bytes the
// kernel copies, and the application does not notice.
func TestCopyFileRangeByTheKernel(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	fn := func(_ context.Context, call string, _ cfs.Ino) error {
		if call == "copy" {
			return cfs.E("commit", cfs.InlineFull, nil)
		}
		return nil
	}
	m.before.Store(&fn)
	data := pattern(1, 10_000)
	check(t, os.WriteFile(dir+"/src", data, 0o644))
	src, err := os.Open(dir + "/src")
	check(t, err)
	defer src.Close()
	dst, err := os.Create(dir + "/dst")
	check(t, err)
	defer dst.Close()
	if n := copyRange(t, src, dst, 0, 0, len(data)); n != len(data) {
		t.Fatalf("%d bytes copied", n)
	}
	if got, err := os.ReadFile(dir + "/dst"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestCopyFileRangeClearsSetuid: with the copy, and not where it fails.
func TestCopyFileRangeClearsSetuid(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	check(t, os.WriteFile(dir+"/src", []byte("program"), 0o644))
	check(t, os.WriteFile(dir+"/dst", nil, 0o666))
	check(t, unix.Chmod(dir+"/dst", 0o4777)) // os.Chmod takes no such bits
	var refuse atomic.Bool
	fn := func(_ context.Context, call string, _ cfs.Ino) error {
		if call == "copy" && refuse.Load() {
			return cfs.E("commit", cfs.NoSpace, nil)
		}
		return nil
	}
	m.before.Store(&fn)
	refuse.Store(true)
	if err := copyAs(dir); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%v, want ENOSPC", err)
	}
	a, err := m.GetAttr(t.Context(), cfs.Ino(lstat(t, dir+"/dst").Ino)) // the kernel's may be old
	if check(t, err); a.Mode&cfs.ModeSetuid == 0 {
		t.Errorf("mode %o though nothing was copied", a.Mode)
	}
	refuse.Store(false)
	check(t, copyAs(dir))
	if st := lstat(t, dir+"/dst"); st.Mode&unix.S_ISUID != 0 || st.Size != 7 {
		t.Errorf("mode %o, size %d", st.Mode, st.Size)
	}
}

// copyAs copies 7 bytes from src to dst in dir as another user than root.
func copyAs(dir string) error {
	done := make(chan error, 1)
	go func() {
		done <- asUser(1000, func() error {
			src, err := os.Open(dir + "/src")
			if err != nil {
				return err
			}
			defer src.Close()
			dst, err := os.OpenFile(dir+"/dst", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer dst.Close()
			_, err = unix.CopyFileRange(int(src.Fd()), nil, int(dst.Fd()), nil, 7, 0)
			return err
		})
	}()
	return <-done
}

// TestFallocateModes checks size, content and refusals of each mode at and beyond the end.
func TestFallocateModes(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f, err := os.Create(dir + "/f")
	check(t, err)
	defer f.Close()
	fd := int(f.Fd())
	want := pattern(3, 20_000)
	_, err = f.Write(want)
	check(t, err)
	is := func(what string) {
		t.Helper()
		got, err := os.ReadFile(dir + "/f")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d, %v", what, len(got), len(want), err)
		}
	}
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 15_000, 10_000))
	clear(want[15_000:])
	is("zero range, keeping the size")
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 19_000, 10_000))
	is("a hole across the end")
	check(t, unix.Fallocate(fd, 0, 1000, 1000))
	is("allocating what is there")
	check(t, unix.Fallocate(fd, 0, 25_000, 5_000))
	want = append(want, make([]byte, 10_000)...)
	is("allocating beyond the end")
	for mode, errno := range map[uint32]error{
		unix.FALLOC_FL_COLLAPSE_RANGE: unix.EOPNOTSUPP, unix.FALLOC_FL_INSERT_RANGE: unix.EOPNOTSUPP,
		unix.FALLOC_FL_PUNCH_HOLE: unix.EOPNOTSUPP,
	} {
		if err := unix.Fallocate(fd, mode, 0, 4096); !errors.Is(err, errno) {
			t.Errorf("mode %#x: %v, want %v", mode, err, errno)
		}
	}
	is("after the refusals")
}
