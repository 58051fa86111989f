package iopath

import (
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

func testRing(t testing.TB, a *Arena, entries int) *Ring {
	t.Helper()
	r, err := NewRing(RingConfig{Entries: entries, Arena: a})
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

// TestRingOldKernel goes without the newer setup flags and without fixed files.
func TestRingOldKernel(t *testing.T) {
	q, err := setupQueues(engineEntries, setupClamp|setupCQSize)
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
	r.hasSlot = false
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
	a := testArena(t, 4<<20)
	r := testRing(t, a, 32)
	file := mustRegister(t, r, testFile(t, unix.O_DIRECT))
	b := mustGet(t, a, 64<<10)
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
	for name, f := range map[string]func(){
		"Write":     func() { _, err := r.Write(file, b.Bytes(), 0); must(err) },
		"Read":      func() { _, err := r.Read(file, b.Bytes(), 0); must(err) },
		"WriteMany": func() { fill(); must(r.WriteMany(file, ops)) },
		"ReadMany":  func() { fill(); must(r.ReadMany(file, ops)) },
		"Fdatasync": func() { must(r.Fdatasync(file)) },
	} {
		must(r.WriteMany(file, []WriteOp{{P: b.Bytes()}}))
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	b.Release()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
