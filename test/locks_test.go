package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cluster"
)

// lockerEnv makes this test binary a locker of the file that it names.
const lockerEnv = "CLAUDEFS_TEST_LOCKER"

// locker is a process that has a file open and locks it as it is told: fcntl locks
// belong to processes.
type locker struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	says chan string // a line for each order, when it is carried out
}

func newLocker(t *testing.T, path string) *locker {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), lockerEnv+"="+path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	l := &locker{t: t, cmd: cmd, in: in, says: make(chan string, 16)}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			l.says <- s.Text()
		}
		close(l.says)
	}()
	t.Cleanup(l.end)
	return l
}

// end ends the process, whatever it waits for.
func (l *locker) end() {
	l.in.Close()
	l.cmd.Process.Kill()
	for range l.says {
	}
	l.cmd.Wait()
}

// order does not wait for the answer.
func (l *locker) order(format string, args ...any) {
	l.t.Helper()
	if _, err := fmt.Fprintf(l.in, format+"\n", args...); err != nil {
		l.t.Fatal(err)
	}
}

func (l *locker) answer() string {
	l.t.Helper()
	select {
	case s, ok := <-l.says:
		if !ok {
			l.t.Fatal("the locker has ended")
		}
		return s
	case <-time.After(patience):
		l.t.Fatalf("no answer of the locker after %v", patience)
		return ""
	}
}

// want gives an order and compares the answer.
func (l *locker) want(order, want string) {
	l.t.Helper()
	l.order("%s", order)
	if got := l.answer(); got != want {
		l.t.Fatalf("%s: %s, want %s", order, got, want)
	}
}

// silent looks whether an order that was given is carried out although it must wait.
func (l *locker) silent(order string) {
	l.t.Helper()
	select {
	case s := <-l.says:
		l.t.Fatalf("%s did not wait: %s", order, s)
	case <-time.After(300 * time.Millisecond):
	}
}

// signalled sends signals to the thread that waits, until one has met it waiting.
func (l *locker) signalled() string {
	l.t.Helper()
	for begun := time.Now(); time.Since(begun) < patience; {
		l.order("signal")
		select {
		case s, ok := <-l.says:
			if !ok {
				l.t.Fatal("the locker has ended")
			}
			return s
		case <-time.After(300 * time.Millisecond):
		}
	}
	l.t.Fatalf("no answer of the locker after %v of signals", patience)
	return ""
}

// runLocker is the process. Orders that wait are carried out in a thread of their own,
// which "signal" is sent to.
func runLocker(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	if err := interrupting(unix.SIGUSR1); err != nil {
		return err
	}
	var waits atomic.Int32 // the thread that waits
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		words := strings.Fields(s.Text())
		switch words[0] {
		case "signal":
			if waits.Load() == 0 {
				continue
			}
			if err := unix.Tgkill(os.Getpid(), int(waits.Load()), unix.SIGUSR1); err != nil {
				return err
			}
		case "wait", "flock-wait":
			go func() {
				runtime.LockOSThread()
				waits.Store(int32(unix.Gettid()))
				fmt.Println(carryOut(f, words))
			}()
		default:
			fmt.Println(carryOut(f, words))
		}
	}
	return nil
}

// carryOut carries out an order and says how it went.
func carryOut(f *os.File, words []string) string {
	said := func(err error) string {
		var no unix.Errno
		switch {
		case err == nil:
			return "ok"
		case errors.As(err, &no):
			return unix.ErrnoName(no)
		}
		return err.Error()
	}
	switch words[0] {
	case "flock", "flock-wait":
		how := map[string]int{"shared": unix.LOCK_SH, "exclusive": unix.LOCK_EX, "none": unix.LOCK_UN}[words[1]]
		if words[0] == "flock" {
			how |= unix.LOCK_NB
		}
		return said(unix.Flock(int(f.Fd()), how))
	case "write":
		_, err := f.WriteAt([]byte(words[1]), 0)
		return said(err)
	case "read":
		p := make([]byte, 64)
		n, err := f.ReadAt(p, 0)
		if err != nil && err != io.EOF {
			return said(err)
		}
		return string(p[:n])
	}
	lock := unix.Flock_t{Type: map[string]int16{"shared": unix.F_RDLCK, "exclusive": unix.F_WRLCK, "none": unix.F_UNLCK}[words[1]]}
	if _, err := fmt.Sscan(strings.Join(words[2:], " "), &lock.Start, &lock.Len); err != nil {
		return err.Error()
	}
	if words[0] == "get" {
		if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
			return "free " + said(err)
		}
		return fmt.Sprintf("%s %d %d", map[int16]string{unix.F_RDLCK: "shared", unix.F_WRLCK: "exclusive"}[lock.Type], lock.Start, lock.Len)
	}
	how := unix.F_SETLK
	if words[0] == "wait" {
		how = unix.F_SETLKW
	}
	return said(unix.FcntlFlock(f.Fd(), how, &lock))
}

// interrupting takes SA_RESTART, which the runtime sets, off a signal's handler: then a
// call that it interrupts fails with EINTR.
func interrupting(sig unix.Signal) error {
	const restart = 0x10000000
	var action struct {
		handler  uintptr
		flags    uint64
		restorer uintptr
		mask     uint64
	}
	at, size := uintptr(unsafe.Pointer(&action)), unsafe.Sizeof(action.mask)
	if _, _, no := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, at, size, 0, 0); no != 0 {
		return no
	}
	action.flags &^= restart
	if _, _, no := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), at, 0, size, 0, 0); no != 0 {
		return no
	}
	return nil
}

// lockedFile is a new file as two mounts see it.
func lockedFile(t *testing.T, a, b *cluster.Mount, name string) (inA, inB string) {
	t.Helper()
	inA, inB = filepath.Join(a.Point, name), filepath.Join(b.Point, name)
	if err := writeFile(inA, []byte("new")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new name is seen by the other mount", func() bool { _, err := os.Stat(inB); return err == nil })
	return inA, inB
}

// Two mounts of one cluster, as two machines have: a lock of one is a lock for the other.
func TestLocksAcrossMounts(t *testing.T) {
	c := start(t, nil)
	a, b := mount(t, c, "a"), mount(t, c, "b")

	t.Run("ranges", func(t *testing.T) {
		inA, inB := lockedFile(t, a, b, "ranges")
		one, two := newLocker(t, inA), newLocker(t, inB)
		one.want("set exclusive 10 10", "ok")
		two.want("set shared 19 1", "EAGAIN")
		two.want("set shared 20 0", "ok")
		one.want("set exclusive 15 10", "EAGAIN")
		one.want("set none 12 2", "ok")
		two.want("get exclusive 0 0", "exclusive 10 2")
		two.want("get exclusive 12 0", "exclusive 14 6")
		two.want("get exclusive 12 2", "free ok")
		one.want("get exclusive 0 0", "shared 20 0")
		two.want("set exclusive 12 2", "ok")
		one.in.Close() // it ends, and its locks with it
		eventually(t, "an ended process has no locks", func() bool {
			two.order("set exclusive 0 0")
			return two.answer() == "ok"
		})
	})

	t.Run("waiting", func(t *testing.T) {
		inA, inB := lockedFile(t, a, b, "waiting")
		one, two := newLocker(t, inA), newLocker(t, inB)
		two.want("read", "new") // into the kernel's cache
		one.want("set exclusive 0 0", "ok")
		one.want("write old", "ok")
		two.order("wait exclusive 0 0")
		two.silent("wait")
		one.want("set none 0 0", "ok")
		if got := two.answer(); got != "ok" {
			t.Fatalf("after the other unlocked: %s", got)
		}
		two.want("read", "old") // what the last holder wrote
		one.want("set shared 0 1", "EAGAIN")
	})

	t.Run("a signal", func(t *testing.T) {
		inA, inB := lockedFile(t, a, b, "signal")
		one, two, three := newLocker(t, inA), newLocker(t, inB), newLocker(t, inB)
		one.want("set exclusive 0 10", "ok")
		two.order("wait exclusive 0 5")
		two.silent("wait")
		if got := two.signalled(); got != "EINTR" {
			t.Fatalf("a wait that a signal interrupts: %s", got)
		}
		one.want("set none 0 10", "ok")
		three.want("set exclusive 0 10", "ok") // it left nothing
	})

	t.Run("deadlock", func(t *testing.T) {
		inA, inB := lockedFile(t, a, b, "deadlock")
		one, two := newLocker(t, inA), newLocker(t, inB)
		one.want("set exclusive 0 1", "ok")
		two.want("set exclusive 1 1", "ok")
		one.order("wait exclusive 1 1")
		one.silent("wait")
		two.order("wait exclusive 0 1")
		// The last to wait is refused: the second, unless the first was very slow.
		refused, other, mine, got := two, one, 1, ""
		select {
		case got = <-two.says:
		case got = <-one.says:
			refused, other, mine = one, two, 0
		case <-time.After(patience):
		}
		if got != "EDEADLK" {
			t.Fatalf("a circle of waits: %q, want EDEADLK", got)
		}
		refused.want(fmt.Sprintf("set none %d 1", mine), "ok")
		if got := other.answer(); got != "ok" {
			t.Fatalf("the other of the two: %s", got)
		}
	})

	t.Run("flock", func(t *testing.T) {
		inA, inB := lockedFile(t, a, b, "flock")
		one, two := newLocker(t, inA), newLocker(t, inB)
		one.want("flock shared", "ok")
		two.want("flock shared", "ok")
		two.want("flock exclusive", "EAGAIN")
		two.want("set exclusive 0 0", "ok") // the other family
		two.order("flock-wait exclusive")
		two.silent("flock")
		one.want("flock none", "ok")
		if got := two.answer(); got != "ok" {
			t.Fatalf("after the other unlocked: %s", got)
		}
		one.want("flock shared", "EAGAIN")
		two.in.Close()
		one.want("flock-wait shared", "ok")
	})

	t.Run("leader killed", func(t *testing.T) {
		inA, inB := lockedFile(t, a, b, "leader")
		one, two := newLocker(t, inA), newLocker(t, inB)
		one.want("set exclusive 0 10", "ok")
		two.order("wait exclusive 0 10")
		two.silent("wait")
		leader, err := c.Leader(t.Context())
		if err == nil {
			err = c.Kill(leader)
		}
		if err == nil {
			err = c.WaitUsable(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		two.silent("wait")
		one.want("set none 0 5", "ok")
		two.silent("wait")
		one.want("set none 5 5", "ok")
		if got := two.answer(); got != "ok" {
			t.Fatalf("under the new leader: %s", got)
		}
		if err := c.Restart(t.Context(), leader); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("mount killed", func(t *testing.T) {
		inA, inB := lockedFile(t, a, b, "killed")
		one, two := newLocker(t, inA), newLocker(t, inB)
		one.want("set exclusive 0 10", "ok")
		one.want("flock exclusive", "ok")
		two.order("wait exclusive 0 10")
		two.silent("wait")
		if err := a.Kill(); err != nil {
			t.Fatal(err)
		}
		if got := two.answer(); got != "ok" {
			t.Fatalf("after the session's end: %s", got)
		}
		two.want("flock exclusive", "ok")
	})
}
