package iopath

import (
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

// TestRingOldKernel goes without the newer setup flags and without fixed files.
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
	engineRoundTrip(t, r, a)
	engineConcurrency(t, r, a)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
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
