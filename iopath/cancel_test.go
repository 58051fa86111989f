package iopath

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// shapes are the ways in which a ring is driven.
func shapes() map[string]RingConfig {
	return map[string]RingConfig{
		"Shared":       {Entries: engineEntries},
		"SingleIssuer": {Entries: engineEntries, SingleIssuer: true},
		"Commands":     {Entries: engineEntries, Commands: true},
		"Poll":         {Entries: engineEntries, Poll: true},
	}
}

func eachShape(t *testing.T, test func(t *testing.T, cfg RingConfig)) {
	for name, cfg := range shapes() {
		t.Run(name, func(t *testing.T) { test(t, cfg) })
	}
}

// testPipe is a pipe whose reads wait in the kernel, as those of Go's own do not.
func testPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "a pipe"), os.NewFile(uintptr(fds[1]), "its other end")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// ringLoad is what a ring has to do.
type ringLoad struct{ inFlight, callers int }

func load(r *Ring) ringLoad {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := map[*call]bool{}
	for i := range r.slots {
		if c := r.slots[i].call; c != nil {
			calls[c] = true
		}
	}
	for c := r.waiting.head; c != nil; c = c.behind {
		calls[c] = true
	}
	return ringLoad{r.inFlightLocked(), len(calls)}
}

func await(condition func() bool) {
	for !condition() {
		runtime.Gosched()
	}
}

// TestTimeout reads a pipe that nobody writes to.
func TestTimeout(t *testing.T) {
	eachShape(t, func(t *testing.T, cfg RingConfig) {
		cfg.Timeout = 5 * time.Millisecond
		r := mustRing(t, cfg)
		pr, pw := testPipe(t)
		pipe := mustRegister(t, r, pr)
		var wg sync.WaitGroup
		for range 3 * engineEntries { // some begin when others have timed out
			wg.Go(func() {
				if n, err := r.Read(pipe, make([]byte, 1), 0); n != 0 || cfs.KindOf(err) != cfs.Timeout || !strings.Contains(err.Error(), pr.Name()) {
					t.Errorf("read %d bytes from an empty pipe: %v", n, err)
				}
			})
		}
		wg.Wait()
		ops := []ReadOp{{P: make([]byte, 1)}, {P: make([]byte, 1)}}
		if err := r.ReadMany(pipe, ops); cfs.KindOf(err) != cfs.Timeout {
			t.Errorf("a batch from an empty pipe: %v", err)
		}
		if _, err := pw.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(pipe, make([]byte, 1), 0); n != 1 || err != nil {
			t.Errorf("read %d bytes from a filled pipe: %v", n, err)
		}
		// An operation that has timed out does not hold up Close.
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = r.Read(pipe, make([]byte, 1), 0)
		}()
		await(func() bool {
			select {
			case <-ended: // timed out before it was seen
				return true
			default:
				return load(r).inFlight == 1
			}
		})
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	})
}

// TestCancel cancels reads of a pipe, in flight and waiting, but no others.
func TestCancel(t *testing.T) {
	eachShape(t, func(t *testing.T, cfg RingConfig) {
		r := mustRing(t, cfg)
		pr, pw := testPipe(t)
		otherR, otherW := testPipe(t)
		pipe, other := mustRegister(t, r, pr), mustRegister(t, r, otherR)
		var wg, wgOther sync.WaitGroup
		wgOther.Go(func() {
			if n, err := r.Read(other, make([]byte, 1), 0); n != 1 || err != nil {
				t.Errorf("another file's read: %d, %v", n, err)
			}
		})
		await(func() bool { return load(r) == ringLoad{1, 1} })
		for i := range 2 * engineEntries {
			wg.Go(func() {
				var err error
				if i%2 == 0 {
					_, err = r.Read(pipe, make([]byte, 1), 0)
				} else {
					err = r.ReadMany(pipe, []ReadOp{{P: make([]byte, 1)}, {P: make([]byte, 1)}})
				}
				if cfs.KindOf(err) != cfs.Canceled || !strings.Contains(err.Error(), pr.Name()) {
					t.Errorf("canceled: %v", err)
				}
			})
		}
		await(func() bool { return load(r) == ringLoad{engineEntries, 1 + 2*engineEntries} })
		r.Cancel(pipe)
		wg.Wait()
		for _, w := range []*os.File{pw, otherW} {
			if _, err := w.WriteString("x"); err != nil {
				t.Fatal(err)
			}
		}
		wgOther.Wait()
		if n, err := r.Read(pipe, make([]byte, 1), 0); n != 1 || err != nil {
			t.Errorf("after Cancel: %d, %v", n, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		r.Cancel(pipe) // of a closed ring: nothing to do
	})
}

// TestCancelDispatched cancels reads of a file again and again: each either
// succeeds with the right bytes or is Canceled, whatever the kernel had begun.
func TestCancelDispatched(t *testing.T) {
	eachShape(t, func(t *testing.T, cfg RingConfig) {
		a := testArena(t, 4<<20)
		cfg.Arena = a
		r := mustRing(t, cfg)
		file := mustRegister(t, r, testFile(t, unix.O_DIRECT))
		b := mustGet(t, a, 64<<10)
		defer b.Release()
		fillRandom(b.Bytes(), 3)
		if err := r.WriteMany(file, []WriteOp{{P: b.Bytes()}}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 * engineEntries {
			wg.Go(func() {
				p := mustGet(t, a, 64<<10)
				defer p.Release()
				for range 30 {
					_, err := r.Read(file, p.Bytes(), 0)
					if err != nil && cfs.KindOf(err) != cfs.Canceled || err == nil && !bytes.Equal(p.Bytes(), b.Bytes()) {
						t.Errorf("wrong bytes, or %v", err)
						return
					}
					clear(p.Bytes())
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		for left := true; left; {
			select {
			case <-done:
				left = false
			default:
				r.Cancel(file)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestBackPressure has many more callers than entries: the kernel holds as many
// operations as there are entries, each other caller waits in its own call, and
// nothing of the ring has grown.
func TestBackPressure(t *testing.T) {
	eachShape(t, func(t *testing.T, cfg RingConfig) {
		r := mustRing(t, cfg)
		pr, pw := testPipe(t)
		pipe := mustRegister(t, r, pr)
		const callers = 50 * engineEntries
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				var err error
				if i%2 == 0 {
					_, err = r.Read(pipe, make([]byte, 1), 0)
				} else {
					err = r.ReadMany(pipe, []ReadOp{{P: make([]byte, 1)}, {P: make([]byte, 1)}, {P: make([]byte, 1)}})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		await(func() bool { return load(r) == ringLoad{engineEntries, callers} })
		r.mu.Lock()
		if len(r.slots) != engineEntries || cap(r.free) != engineEntries || cap(r.jobs) > 1 {
			t.Errorf("room for %d operations, %d free ones, %d jobs", len(r.slots), cap(r.free), cap(r.jobs))
		}
		r.mu.Unlock()
		if _, err := pw.Write(make([]byte, callers/2*(1+3))); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}
