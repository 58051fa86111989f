package fuse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// asUser runs f with another user's identity on a thread that is then thrown away.
func asUser(id int, f func() error) error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	for _, call := range []struct{ nr, id uintptr }{{unix.SYS_SETFSGID, uintptr(id)}, {unix.SYS_SETFSUID, uintptr(id)}} {
		syscall.RawSyscall(call.nr, call.id, 0, 0)
	}
	return f()
}

func TestLargeFile(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	want := pattern(1, 20<<20+777)
	check(t, os.WriteFile(dir+"/big", want, 0o644))
	got, err := os.ReadFile(dir + "/big")
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("what is read differs from what was written")
	}
	// At odd offsets, through the kernel's pages and past them.
	f, err := os.OpenFile(dir+"/big", os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	for i, off := range []int{0, 4095, 1<<20 - 1, 7<<20 + 13, len(want) - 5} {
		part := pattern(i+2, 8193)
		_, err := f.WriteAt(part, int64(off))
		check(t, err)
		if grow := off + len(part) - len(want); grow > 0 {
			want = append(want, make([]byte, grow)...)
		}
		copy(want[off:], part)
	}
	if got, err = os.ReadFile(dir + "/big"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after writing in the middle: %d bytes, %v", len(got), err)
	}
}

func TestSparseFile(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f, err := os.Create(dir + "/sparse")
	check(t, err)
	defer f.Close()
	const far = 1 << 40
	_, err = f.WriteAt([]byte("far"), far)
	check(t, err)
	st := lstat(t, dir+"/sparse")
	if st.Size != far+3 || st.Blocks != 8 {
		t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
	}
	hole := make([]byte, 10000)
	if _, err := f.ReadAt(hole, far-20000); err != nil || !bytes.Equal(hole, make([]byte, len(hole))) {
		t.Errorf("the hole reads otherwise than zeros, %v", err)
	}
	fd := int(f.Fd())
	if off, err := unix.Seek(fd, 0, unix.SEEK_DATA); err != nil || off != far {
		t.Errorf("SEEK_DATA %d, %v", off, err)
	}
	if off, err := unix.Seek(fd, 100, unix.SEEK_HOLE); err != nil || off != 100 {
		t.Errorf("SEEK_HOLE %d, %v", off, err)
	}
	if off, err := unix.Seek(fd, far, unix.SEEK_HOLE); err != nil || off != far+3 {
		t.Errorf("SEEK_HOLE at the end %d, %v", off, err)
	}
	_, err = unix.Seek(fd, far+3, unix.SEEK_DATA)
	wantErrno(t, "SEEK_DATA at the end", err, unix.ENXIO)
}

func TestFallocate(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f, err := os.Create(dir + "/f")
	check(t, err)
	defer f.Close()
	want := pattern(1, 64<<10)
	_, err = f.Write(want)
	check(t, err)
	fd := int(f.Fd())
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 20000))
	clear(want[5000:25000])
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 60<<10, 8<<10))
	clear(want[60<<10:])
	want = append(want, make([]byte, 4<<10)...)
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 1<<20, 4096))
	check(t, unix.Fallocate(fd, 0, 0, 100<<10))
	want = append(want, make([]byte, 32<<10)...)
	got, err := os.ReadFile(dir + "/f")
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

func TestAppend(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	const writers, each = 4, 200
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			f, err := os.OpenFile(dir+"/log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range each {
				if _, err := f.Write(bytes.Repeat([]byte{byte('a' + w)}, 10)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(dir + "/log")
	check(t, err)
	if len(got) != writers*each*10 {
		t.Fatalf("%d bytes", len(got))
	}
	counts := map[byte]int{}
	for i := 0; i < len(got); i += 10 {
		if !bytes.Equal(got[i:i+10], bytes.Repeat(got[i:i+1], 10)) {
			t.Fatalf("torn append at %d: %q", i, got[i:i+10])
		}
		counts[got[i]]++
	}
	for w := range writers {
		if counts[byte('a'+w)] != each {
			t.Errorf("writer %d: %d appends", w, counts[byte('a'+w)])
		}
	}
}

// O_APPEND can be turned off and on while the file is open.
func TestAppendTurnedOffAndOn(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f, err := os.OpenFile(dir+"/f", os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o644)
	check(t, err)
	defer f.Close()
	step := func(flags int, text string) {
		t.Helper()
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
		check(t, err)
		_, err = unix.Pwrite(int(f.Fd()), []byte(text), 0)
		check(t, err)
	}
	step(unix.O_APPEND, "one.")
	step(0, "ONE")
	step(unix.O_APPEND, "two.")
	if got, err := os.ReadFile(dir + "/f"); err != nil || string(got) != "ONE.two." {
		t.Errorf("%q, %v", got, err)
	}
}

func TestMappings(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.WriteFile(dir+"/r", pattern(1, mmapBytes), 0o644))
	runChild(t, "mmapRead", dir+"/r")
	runChild(t, "mmapWrite", dir+"/w")
	if got, err := os.ReadFile(dir + "/w"); err != nil || !bytes.Equal(got, pattern(2, mmapBytes)) {
		t.Errorf("written by a mapping: %d bytes, %v", len(got), err)
	}
	runChild(t, "mmapAppend", dir+"/a")
	if got, err := os.ReadFile(dir + "/a"); err != nil || !bytes.Equal(got, pattern(3, 8192)) {
		t.Errorf("written by a mapping of an appending descriptor: %d bytes, %v", len(got), err)
	}
}

func TestTruncate(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f, err := os.OpenFile(dir+"/f", os.O_RDWR|os.O_CREATE, 0o644)
	check(t, err)
	defer f.Close()
	want := pattern(1, 100000)
	_, err = f.Write(want)
	check(t, err)
	check(t, f.Truncate(50001))
	check(t, f.Truncate(70000)) // what was cut off does not come back
	want = append(want[:50001], make([]byte, 70000-50001)...)
	got, err := os.ReadFile(dir + "/f")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("after cutting and growing: %d bytes, %v", len(got), err)
	}
	g, err := os.OpenFile(dir+"/f", os.O_WRONLY|os.O_TRUNC, 0)
	check(t, err)
	defer g.Close()
	if st := lstat(t, dir+"/f"); st.Size != 0 {
		t.Errorf("size %d after O_TRUNC", st.Size)
	}
	if n, err := f.ReadAt(make([]byte, 10), 0); n != 0 || err != io.EOF {
		t.Errorf("the other descriptor reads %d bytes, %v", n, err)
	}
}

func TestDirectIO(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	f, err := os.OpenFile(dir+"/f", os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o644)
	check(t, err)
	defer f.Close()
	want := pattern(1, 3<<20)
	_, err = f.WriteAt(want, 0)
	check(t, err)
	g, err := os.Open(dir + "/f")
	check(t, err)
	defer g.Close()
	got := make([]byte, len(want))
	if _, err := g.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("buffered read of a direct write: %v", err)
	}
	part := pattern(2, 8192)
	_, err = f.WriteAt(part, 1<<20)
	check(t, err)
	copy(want[1<<20:], part)
	if _, err := g.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("buffered read after a direct write over cached pages: %v", err)
	}
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("direct read: %v", err)
	}
}

func TestConcurrentWriters(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	const writers, region = 8, 512 << 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			f, err := os.OpenFile(dir+"/f", os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			data := pattern(w, region)
			for off := 0; off < region; off += 10007 {
				end := min(off+10007, region)
				if _, err := f.WriteAt(data[off:end], int64(w*region+off)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(dir + "/f")
	check(t, err)
	for w := range writers {
		if !bytes.Equal(got[w*region:(w+1)*region], pattern(w, region)) {
			t.Errorf("writer %d's region differs", w)
		}
	}
}

func TestSyncs(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	f, err := os.Create(dir + "/f")
	check(t, err)
	_, err = f.WriteString("x")
	check(t, err)
	check(t, f.Sync())
	if m.count("sync") != 1 {
		t.Errorf("%d syncs after fsync", m.count("sync"))
	}
	for n := 1; n <= 2; n++ { // the second finds the kernel with a listing, and none is opened
		d, err := os.Open(dir)
		check(t, err)
		check(t, d.Sync())
		check(t, d.Close())
		if m.count("syncdir") != n {
			t.Errorf("%d syncs of the directory after %d fsyncs", m.count("syncdir"), n)
		}
	}
	check(t, f.Close())
	if m.count("flush") != 1 {
		t.Errorf("%d flushes after close", m.count("flush"))
	}
	_, err = os.ReadFile(dir + "/f")
	check(t, err)
	if m.count("flush") != 1 {
		t.Error("closing a file that was only read flushed it")
	}
	for i, flags := range []int{unix.O_SYNC, unix.O_DSYNC, unix.O_SYNC | unix.O_DIRECT} {
		f, err := os.OpenFile(dir+"/f", os.O_WRONLY|flags, 0)
		check(t, err)
		_, err = f.Write(make([]byte, 4096))
		check(t, err)
		if m.count("sync") != i+2 {
			t.Errorf("open flags %#x: %d syncs, want %d", flags, m.count("sync"), i+2)
		}
		check(t, f.Close())
	}
}

func TestErrorsReachTheApplication(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	check(t, os.WriteFile(dir+"/f", []byte("text"), 0o644))
	for _, c := range []struct {
		call string
		kind cfs.Kind
		run  func(*os.File) error
		want syscall.Errno
	}{
		{"write", cfs.NoSpace, func(f *os.File) error { _, err := f.Write([]byte("x")); return err }, unix.ENOSPC},
		{"read", cfs.Corrupt, func(f *os.File) error { _, err := f.Read(make([]byte, 9)); return err }, unix.EIO},
		{"sync", cfs.NoSession, func(f *os.File) error { return f.Sync() }, unix.EIO},
		{"flush", cfs.IO, func(f *os.File) error { return f.Close() }, unix.EIO},
	} {
		f, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
		check(t, err)
		hook := func(_ context.Context, call string, _ cfs.Ino) error {
			if call == c.call {
				return cfs.E(call, c.kind, nil)
			}
			return nil
		}
		m.before.Store(&hook)
		wantErrno(t, c.call, c.run(f), c.want)
		m.before.Store(nil)
		f.Close()
	}
}

// Privileges go with a write, a truncation and an opening truncation by a user
// who has none.
func TestPrivilegesAreCleared(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	check(t, os.Chmod(dir, 0o777))
	buf := make([]byte, 4096)
	for name, change := range map[string]func(f *os.File) error{
		"write":     func(f *os.File) error { _, err := f.Write([]byte("x")); return err },
		"ftruncate": func(f *os.File) error { return f.Truncate(1) },
		"truncate":  func(f *os.File) error { return os.Truncate(f.Name(), 2) },
		"O_TRUNC": func(f *os.File) error {
			g, err := os.OpenFile(f.Name(), os.O_WRONLY|os.O_TRUNC, 0)
			if err == nil {
				err = g.Close()
			}
			return err
		},
		"fallocate": func(f *os.File) error { return unix.Fallocate(int(f.Fd()), 0, 0, 100) },
		"direct write": func(f *os.File) error {
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, unix.O_DIRECT); err != nil {
				return err
			}
			_, err := f.Write(buf)
			return err
		},
	} {
		path := dir + "/f"
		for _, c := range []struct{ set, want uint32 }{{0o6777, 0o777}, {0o2767, 0o2767}} {
			os.Remove(path)
			check(t, os.WriteFile(path, []byte("abc"), 0o666))
			check(t, unix.Chmod(path, c.set))
			check(t, unix.Setxattr(path, "security.capability", vfsCap, 0))
			done := make(chan error, 1)
			go func() {
				done <- asUser(1234, func() error {
					f, err := os.OpenFile(path, os.O_WRONLY, 0)
					if err == nil {
						err = errors.Join(change(f), f.Close())
					}
					return err
				})
			}()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if st := lstat(t, path); st.Mode&0o7777 != c.want {
				t.Errorf("%s: mode %o after it, %o before, want %o", name, st.Mode&0o7777, c.set, c.want)
			}
			if _, err := unix.Getxattr(path, "security.capability", nil); !errors.Is(err, unix.ENODATA) {
				t.Errorf("%s: the capability is still there (%v)", name, err)
			}
		}
	}
}

// vfsCap is a security.capability of version 2 with CAP_NET_RAW permitted.
var vfsCap = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func TestPagesAreKeptWhileUnchanged(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	f := dir + "/f"
	check(t, os.WriteFile(f, []byte("first"), 0o644))
	read := func() (string, int) {
		before := m.count("read")
		got, err := os.ReadFile(f)
		check(t, err)
		return string(got), m.count("read") - before
	}
	read()
	if got, asked := read(); got != "first" || asked != 0 {
		t.Errorf("second read: %q, %d requests", got, asked)
	}
	// Another mount writes: the next open sees it.
	a, err := m.Lookup(t.Context(), cfs.RootIno, "f")
	check(t, err)
	other, err := m.Open(t.Context(), a.Ino, os.O_RDWR)
	check(t, err)
	_, err = other.Write(t.Context(), []byte("SECON"), 0)
	check(t, err)
	check(t, other.Close(t.Context()))
	if got, asked := read(); got != "SECON" || asked == 0 {
		t.Errorf("after another's write: %q, %d requests", got, asked)
	}
}

// Pages that a failed flush could not deliver are not kept for the next reader.
func TestPagesOfFailedWritesAreDropped(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	check(t, os.WriteFile(dir+"/f", []byte("text"), 0o644))
	_, err := os.ReadFile(dir + "/f")
	check(t, err)
	f, err := os.OpenFile(dir+"/f", os.O_WRONLY, 0)
	check(t, err)
	hook := func(_ context.Context, call string, _ cfs.Ino) error {
		if call == "flush" {
			return cfs.IO
		}
		return nil
	}
	m.before.Store(&hook)
	wantErrno(t, "close", f.Close(), unix.EIO)
	m.before.Store(nil)
	before := m.count("read")
	_, err = os.ReadFile(dir + "/f")
	check(t, err)
	if m.count("read") == before {
		t.Error("read from pages that are not to be trusted")
	}
}

// A signal that does not kill leaves a request alone; one that does ends it.
// (Reads through pages are asynchronous: the kernel never interrupts them, and
// a killed reader does not wait for them.)
func TestInterrupts(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	check(t, os.WriteFile(dir+"/f", []byte("text"), 0o644))
	opening, given := make(chan struct{}, 1), make(chan error, 1)
	release := make(chan struct{})
	hook := func(ctx context.Context, call string, _ cfs.Ino) error {
		if call != "open" {
			return nil
		}
		opening <- struct{}{}
		select {
		case <-ctx.Done():
			given <- ctx.Err()
			return ctx.Err()
		case <-release:
			given <- nil
			return nil
		}
	}
	m.before.Store(&hook)
	for _, c := range []struct {
		sig  syscall.Signal
		cmd  *exec.Cmd
		want error
	}{
		{unix.SIGURG, child("readFile", dir+"/f"), nil}, // it has a handler
		{unix.SIGTERM, child("readFile", dir+"/f"), nil},
		{unix.SIGTERM, exec.Command("cat", dir+"/f"), context.Canceled}, // it has none
		{unix.SIGKILL, child("readFile", dir+"/f"), context.Canceled},
	} {
		cmd := c.cmd
		check(t, cmd.Start())
		<-opening
		check(t, cmd.Process.Signal(c.sig))
		if c.want == nil {
			time.Sleep(5 * interruptPollFirst) // long enough to give up, were it to
			release <- struct{}{}
		}
		if err := <-given; !errors.Is(err, c.want) {
			t.Errorf("%v: the request ended with %v", c.sig, err)
		}
		cmd.Wait()
	}
}

func TestAbortGivesUpWaitingRequests(t *testing.T) {
	m := newMemFS()
	dir, s := mounted(t, m)
	check(t, os.WriteFile(dir+"/f", []byte("text"), 0o644))
	opening := make(chan struct{})
	hook := func(ctx context.Context, call string, _ cfs.Ino) error {
		if call == "open" {
			close(opening)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	m.before.Store(&hook)
	done := make(chan error, 1)
	go func() {
		_, err := unix.Open(dir+"/f", unix.O_RDONLY, 0)
		done <- err
	}()
	<-opening
	s.Abort()
	wantErrno(t, "open", <-done, unix.EINTR)
	m.before.Store(nil)
}
