package fuse

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// twice are the tests that run over both transports: all but the long ones.
const twice = "^Test(Posix|ErrorNumbers|Attributes|UmaskAndPermissions|SpecialFilesAndLinks|RenameFlags|OpenFilesOutliveTheirNames|Xattrs|" +
	"DotsAndTypesInListings|RemovedWorkingDirectory|CreateOverWhatAnotherMountMade|Mount.*|Unmount.*|Interrupts|Abort.*|Panic.*|" +
	"Errors.*|DirectIO|ConcurrentWriters|Mappings|Syncs|PagesAre.*|Flock|OpenFileLocks|ManyWait.*|SignalsEnd.*|ForcedUnmount.*|KernelEnforcesACLs|Tmpfile)$"

// needURing skips the test where there is no FUSE over io_uring.
func needURing(t testing.TB) {
	t.Helper()
	needFUSE(t)
	if err := enableURing(); err != nil {
		t.Skip(err)
	}
	if os.Getenv(transportEnv) == TransportDev {
		t.Skip("the tests run over /dev/fuse")
	}
}

// The tests of this package run over the transport that a mount takes by itself; where
// that is io_uring, this runs those of them that depend on it over /dev/fuse too.
func TestOverDev(t *testing.T) {
	needURing(t)
	cmd := exec.Command(os.Args[0], "-test.run="+twice, "-test.timeout=2m")
	cmd.Env = append(os.Environ(), transportEnv+"="+TransportDev)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("over /dev/fuse: %v\n%s", err, out)
	}
}

func TestTransportIsWhatWasAskedFor(t *testing.T) {
	needURing(t)
	for _, c := range []struct {
		name  string
		uring bool
	}{{"", true}, {TransportURing, true}, {TransportDev, false}} {
		dir := t.TempDir()
		s, err := mount(Config{Mountpoint: dir, Source: "host-a:9400", Transport: c.name, Logger: testLogger(t)}, newMemFS().backend())
		check(t, err)
		queues := 0
		for _, task := range tasks(t) {
			if strings.Contains(task, "io_uring") {
				queues++
			}
		}
		if (queues > 0) != c.uring {
			t.Errorf("transport %q: %d rings", c.name, queues)
		}
		check(t, s.Unmount())
	}
	_, err := mount(Config{Mountpoint: t.TempDir(), Transport: "pigeon", Logger: testLogger(t)}, newMemFS().backend())
	if !errors.Is(err, cfs.Invalid) || !strings.Contains(err.Error(), "pigeon") {
		t.Errorf("an unknown transport: %v", err)
	}
}

// tasks are the open files of this process.
func tasks(t *testing.T) []string {
	all, err := filepath.Glob("/proc/self/fd/*")
	check(t, err)
	for i := range all {
		all[i], _ = os.Readlink(all[i]) // some are closed by now
	}
	return all
}

// More wait for a lock than there are threads to serve requests, and the unlock gets through.
func TestManyWaitForALock(t *testing.T) {
	const waiters = 1000
	m := newMemFS()
	dir, _ := mounted(t, m)
	path := dir + "/locked"
	holder, err := os.Create(path)
	check(t, err)
	defer holder.Close()
	check(t, unix.Flock(int(holder.Fd()), unix.LOCK_EX))
	var wg sync.WaitGroup
	failed := make(chan error, waiters)
	for range waiters {
		wg.Go(func() {
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				err = flockAll(fd)
				unix.Close(fd)
			}
			failed <- err
		})
	}
	eventually(t, "all wait", func() bool { return m.locks.waiting() == waiters })
	check(t, os.WriteFile(dir+"/other", []byte("others go on"), 0o644))
	check(t, unix.Flock(int(holder.Fd()), unix.LOCK_UN))
	wg.Wait()
	for range waiters {
		if err := <-failed; err != nil {
			t.Fatalf("a waiter: %v", err)
		}
	}
}

// flockAll locks and unlocks; the runtime's own signals interrupt the wait.
func flockAll(fd int) error {
	for {
		err := unix.Flock(fd, unix.LOCK_SH)
		if !errors.Is(err, unix.EINTR) {
			return errors.Join(err, unix.Flock(fd, unix.LOCK_UN))
		}
	}
}

// A bug in the answer to one request is that request's EIO.
func TestPanicIsAnError(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	check(t, os.WriteFile(dir+"/f", []byte("text"), 0o644))
	hook := func(_ context.Context, call string, _ cfs.Ino) error {
		if call == "open" {
			panic("in a handler")
		}
		return nil
	}
	m.before.Store(&hook)
	_, err := os.Open(dir + "/f")
	wantErrno(t, "open", err, unix.EIO)
	m.before.Store(nil)
	_, err = os.ReadFile(dir + "/f")
	check(t, err)
}

// A forced unmount ends requests that are being served, and the transport with them.
func TestForcedUnmountEndsTheConnection(t *testing.T) {
	m := newMemFS()
	dir, s := mounted(t, m)
	check(t, os.WriteFile(dir+"/f", nil, 0o644))
	opening, release := make(chan struct{}), make(chan struct{})
	hook := func(_ context.Context, call string, _ cfs.Ino) error {
		if call == "open" {
			close(opening)
			<-release
		}
		return nil
	}
	m.before.Store(&hook)
	got := make(chan error, 1)
	go func() {
		_, err := unix.Open(dir+"/f", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		got <- err
	}()
	<-opening
	check(t, unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH))
	if err := <-got; err == nil {
		t.Error("opened after the connection was ended")
	}
	m.before.Store(nil)
	close(release)
	s.Wait()
}

func TestShape(t *testing.T) {
	for queues := 1; queues < maxCPUs; queues += 1 + queues/3 {
		depth, maxWrite := shape(queues)
		if depth < 1 || depth > maxDepth || maxWrite < leastWriteBytes || maxWrite > maxWriteBytes {
			t.Errorf("%d queues: depth %d of %d bytes", queues, depth, maxWrite)
		}
		if total := queues * depth * maxWrite; total > maxPayloadBytes && depth > 1 {
			t.Errorf("%d queues take %d bytes", queues, total)
		}
	}
	if depth, maxWrite := shape(runtime.NumCPU()); depth < goodDepth && maxWrite > leastWriteBytes {
		t.Errorf("this machine: depth %d of %d bytes", depth, maxWrite)
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0\n": 1, "0-1\n": 2, "0-3,8": 5, "0,2,4-5": 4} {
		if n, err := countCPUs(list); n != want || err != nil {
			t.Errorf("%q: %d, %v", list, n, err)
		}
	}
	for _, bad := range []string{"", "x", "3-1", "0-", "-1", "0-99999999999"} {
		if n, err := countCPUs(bad); err == nil {
			t.Errorf("%q: %d", bad, n)
		}
	}
}

func FuzzParseInit(f *testing.F) {
	f.Add(make([]byte, 104))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := parseInit(b)
		if err == nil && len(b) < inHeaderBytes+20 && in.Flags2 != 0 {
			t.Error("flags out of nothing")
		}
	})
}

// FuzzEntry is a request in an entry, which the kernel wrote: whatever it is, nothing outside of it is touched.
func FuzzEntry(f *testing.F) {
	good := make([]byte, headBytes)
	binary.LittleEndian.PutUint32(good, inHeaderBytes+16+3)
	binary.LittleEndian.PutUint32(good[payloadSizeAt:], 3)
	f.Add(good)
	f.Fuzz(func(t *testing.T, head []byte) {
		if len(head) < headBytes {
			return
		}
		e := &uringEntry{head: head[:headBytes], payload: make([]byte, 64)}
		if e.parse() && len(e.in[1]) > opHeaderBytes {
			t.Errorf("a header of %d bytes", len(e.in[1]))
		}
	})
}

func TestParseInit(t *testing.T) {
	b := make([]byte, inHeaderBytes+64)
	binary.LittleEndian.PutUint32(b[opcodeAt:], opInit)
	binary.LittleEndian.PutUint32(b[inHeaderBytes:], 7)
	binary.LittleEndian.PutUint32(b[inHeaderBytes+4:], 45)
	binary.LittleEndian.PutUint32(b[inHeaderBytes+12:], gofuse.CAP_INIT_EXT)
	binary.LittleEndian.PutUint32(b[inHeaderBytes+16:], gofuse.CAP_OVER_IO_URING>>32)
	in, err := parseInit(b)
	check(t, err)
	if in.Major != 7 || in.Minor != 45 || in.Flags64()&gofuse.CAP_OVER_IO_URING == 0 {
		t.Errorf("%+v", in)
	}
	if _, err := parseInit(b[:inHeaderBytes+15]); err == nil {
		t.Error("a short INIT")
	}
}

// Without io_uring a mount takes /dev/fuse, and says why in one line.
func TestFallingBackSaysWhy(t *testing.T) {
	needFUSE(t)
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	u := &uring{cfg: Config{Logger: log}, log: log, made: make(chan error, 1)}
	u.made <- errors.New("forbidden")
	if err := u.await(); !errors.Is(err, errNoURing) {
		t.Errorf("a ring that cannot be made: %v", err)
	}
}
