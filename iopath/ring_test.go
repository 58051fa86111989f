package iopath

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"golang.org/x/sys/unix"
)

func testRing(t testing.TB, a *Arena, entries int) *Ring {
	t.Helper()
	return mustRing(t, RingConfig{Entries: entries, Arena: a})
}

func mustRing(t testing.TB, cfg RingConfig) *Ring {
	t.Helper()
	r, err := NewRing(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRing(t *testing.T) {
	testEngine(t, func(t *testing.T, a *Arena) Engine {
		r := testRing(t, a, engineEntries)
		if r.arena == nil {
			t.Log("the arena could not be registered: the fixed operations are not tested")
		}
		return r
	})
}

// TestRingPlain is the suite without an arena, as where memory cannot be locked.
func TestRingPlain(t *testing.T) {
	testEngine(t, func(t *testing.T, _ *Arena) Engine { return testRing(t, nil, engineEntries) })
}

// TestRingSingleIssuer is the suite on a ring that a thread owns.
func TestRingSingleIssuer(t *testing.T) {
	testEngine(t, func(t *testing.T, a *Arena) Engine {
		return mustRing(t, RingConfig{Entries: engineEntries, Arena: a, SingleIssuer: true})
	})
}

// TestRingPoll is the suite on a ring that polls what can be polled.
func TestRingPoll(t *testing.T) {
	for _, owned := range []bool{false, true} {
		testEngine(t, func(t *testing.T, a *Arena) Engine {
			return mustRing(t, RingConfig{Entries: engineEntries, Arena: a, SingleIssuer: owned, Poll: true})
		})
	}
}

// TestShards is the suite on several rings.
func TestShards(t *testing.T) {
	testEngine(t, func(t *testing.T, a *Arena) Engine {
		s, err := NewShards(3, RingConfig{Entries: engineEntries, Arena: a})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	for _, n := range []int{0, maxShards + 1} {
		if _, err := NewShards(n, RingConfig{}); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("%d shards: %v", n, err)
		}
	}
	if _, err := NewShards(2, RingConfig{Entries: -1}); cfs.KindOf(err) != cfs.Invalid {
		t.Errorf("bad rings: %v", err)
	}
}

// TestRingOldKernel goes without the newer setup flags, fixed files and the
// muting of the eventfd.
func TestRingOldKernel(t *testing.T) {
	q, err := setupQueues(engineEntries, 0)
	if err != nil {
		t.Fatalf("without the optional flags: %v", err)
	}
	for i := range q.entries {
		if *q.word(q.params.SQ.Array + 4*i) != i {
			t.Fatalf("entry %d of the array is not itself", i)
		}
	}
	q.unmap()
	unix.Close(q.fd)
	a := testArena(t, 4<<20)
	r := testRing(t, a, engineEntries)
	r.hasTable = false
	r.q.cqFlags = nil
	engineRoundTrip(t, r, a)
	engineConcurrency(t, r, a)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestSetupNewest asks for a flag that no kernel has.
func TestSetupNewest(t *testing.T) {
	var text strings.Builder
	optional := append([]optionalFlag{{1 << 30, "TOMORROW"}}, optionalFlags(RingConfig{SingleIssuer: true})...)
	q, err := setupNewest(engineEntries, 0, optional, slog.New(slog.NewTextHandler(&text, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text.String(), "\n") != 1 || !strings.Contains(text.String(), "TOMORROW") {
		t.Errorf("the log does not say in one line what is lacking:\n%s", &text)
	}
	q.unmap()
	unix.Close(q.fd)
	if _, err := setupNewest(engineEntries, 1<<30, optional, slog.New(slog.DiscardHandler)); err != unix.EINVAL {
		t.Errorf("a flag that must be: %v", err)
	}
}

// TestOutcome takes the kernel's answers one by one: all, some, none, errors.
func TestOutcome(t *testing.T) {
	f := File{name: "a file"}
	p := make([]byte, 4096)
	for _, c := range []struct {
		code uint8
		res  int32
		n    int
		over bool
		is   error
	}{
		{opRead, 4096, 4096, true, nil}, {opRead, 512, 512, false, nil}, {opRead, 100, 100, true, io.EOF}, {opRead, 0, 0, true, io.EOF},
		{opWrite, 4096, 4096, true, nil}, {opWrite, 100, 100, false, nil}, {opWrite, 0, 0, true, io.ErrShortWrite},
		{opRead, -int32(unix.EINTR), 0, false, nil}, {opWrite, -int32(unix.EAGAIN), 0, false, nil},
		{opRead, -int32(unix.EIO), 0, true, cfs.IO}, {opWrite, -int32(unix.ENOSPC), 0, true, cfs.NoSpace},
		{opRead, -int32(unix.ETIMEDOUT), 0, true, cfs.Timeout}, {opRead, -int32(unix.ECANCELED), 0, true, cfs.Canceled}, {opRead, -int32(unix.ESHUTDOWN), 0, true, cfs.Closed},
	} {
		op := Transfer{P: p, Off: 8192, Sync: true, res: c.res}
		n, over, err := op.outcome(c.code, f)
		if n != c.n || over != c.over || !errors.Is(err, c.is) {
			t.Errorf("operation %d, answer %d: %d, %t, %v, want %d, %t, %v", c.code, c.res, n, over, err, c.n, c.over, c.is)
		}
		if rest := op.rest(n); len(rest.P) != 4096-n || rest.Off != 8192+int64(n) || !rest.Sync {
			t.Errorf("after %d bytes there are %d at %d to do", n, len(rest.P), rest.Off)
		}
	}
}

// TestShortTransfers meets the kernel's own short answers, at a pipe.
func TestShortTransfers(t *testing.T) {
	eachShape(t, func(t *testing.T, cfg RingConfig) {
		r := mustRing(t, cfg)
		pr, pw := testPipe(t)
		pipe := mustRegister(t, r, pr)
		want, got := make([]byte, 4096), make([]byte, 4096)
		fillRandom(want, 1)
		done := make(chan error)
		go func() {
			_, err := r.Read(pipe, got, 0)
			done <- err
		}()
		for i := range 4 {
			await(func() bool { return load(r).inFlight == 1 })
			if _, err := pw.Write(want[1024*i:][:1024]); err != nil {
				t.Fatal(err)
			}
			if i < 3 {
				await(func() bool { // the part has been taken
					n, err := unix.IoctlGetInt(int(pr.Fd()), unix.TIOCINQ)
					return n == 0 && err == nil
				})
			}
		}
		if err := <-done; err != nil || !bytes.Equal(got, want) {
			t.Errorf("other bytes came back, or %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestRingConfig(t *testing.T) {
	for _, n := range []int{-1, maxRingEntries + 1} {
		if _, err := NewRing(RingConfig{Entries: n}); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("%d entries: %v", n, err)
		}
	}
}

func TestRingWrite(t *testing.T) {
	r := testRing(t, nil, 4)
	file := mustRegister(t, r, testFile(t, 0))
	if n, err := r.Write(file, []byte("hello"), 3); n != 5 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	p := make([]byte, 8)
	if n, err := r.Read(file, p, 0); n != 8 || err != nil || string(p) != "\x00\x00\x00hello" {
		t.Errorf("%d, %v, %q", n, err, p)
	}
	if n, err := r.Read(file, nil, 0); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestRingRefusedSubmission enters a ring whose descriptor is no
// ring: the operations must fail, not hang.
func TestRingRefusedSubmission(t *testing.T) {
	r := testRing(t, nil, 4)
	file := mustRegister(t, r, testFile(t, 0))
	fd := r.q.fd
	r.mu.Lock()
	r.q.fd = -1
	r.mu.Unlock()
	ops := []WriteOp{{P: []byte("a")}, {P: []byte("b"), Off: 1}}
	if err := r.WriteMany(file, ops); err == nil {
		t.Error("a refused submission succeeded")
	}
	r.mu.Lock()
	r.q.fd = fd
	r.mu.Unlock()
	if _, err := r.Write(file, []byte("c"), 0); err != nil {
		t.Errorf("the ring did not recover: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestRingAllocatesNothing(t *testing.T) {
	if invariants.Race {
		t.Skip("the race detector allocates on its own")
	}
	eachShape(t, func(t *testing.T, cfg RingConfig) {
		a := testArena(t, 4<<20)
		cfg.Entries, cfg.Arena, cfg.Timeout = 32, a, time.Minute
		r := mustRing(t, cfg)
		allocatesNothing(t, r, a)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("Shards", func(t *testing.T) {
		a := testArena(t, 4<<20)
		s, err := NewShards(2, RingConfig{Entries: 32, Arena: a})
		if err != nil {
			t.Fatal(err)
		}
		allocatesNothing(t, s, a)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func allocatesNothing(t *testing.T, e Engine, a *Arena) {
	file := mustRegister(t, e, testFile(t, unix.O_DIRECT))
	b := mustGet(t, a, 64<<10)
	defer b.Release()
	ops := make([]WriteOp, 4)
	fill := func() {
		for i := range ops {
			ops[i] = WriteOp{P: b.Bytes()[i*4096 : (i+1)*4096], Off: int64(i) * 4096}
		}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(e.WriteMany(file, []WriteOp{{P: b.Bytes()}}))
	for name, f := range map[string]func(){
		"Read":      func() { _, err := e.Read(file, b.Bytes(), 0); must(err) },
		"WriteMany": func() { fill(); must(e.WriteMany(file, ops)) },
		"WriteSync": func() { fill(); ops[0].Sync = true; must(e.WriteMany(file, ops[:1])) },
		"ReadMany":  func() { fill(); must(e.ReadMany(file, ops)) },
		"Fdatasync": func() { must(e.Fdatasync(file)) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
