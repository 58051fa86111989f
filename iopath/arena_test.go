package iopath

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// testArena is an arena that must be wholly free at the test's end. When it is
// not, IOPATH_TRACE=1 in the environment says where what leaked was taken.
func testArena(t testing.TB, sizeBytes int) *Arena {
	t.Helper()
	a, err := NewArena(sizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	a.Trace(os.Getenv("IOPATH_TRACE") != "")
	t.Cleanup(func() {
		for _, h := range a.Held() {
			t.Errorf("leaked: %s", h)
		}
		if n := a.InUse(); n != 0 {
			t.Errorf("%d bytes of the arena are in use", n)
			return
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func mustGet(t testing.TB, a *Arena, n int) *Buf {
	t.Helper()
	b, err := a.Get(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestArenaBufs(t *testing.T) {
	a := testArena(t, 4<<20)
	for _, n := range []int{1, 4095, 4096, 4097, 1<<20 - 1, 1 << 20} {
		b := mustGet(t, a, n)
		if len(b.Bytes()) != n || len(b.WithHeadroom()) != n+Headroom {
			t.Errorf("%d: %d bytes, %d with headroom", n, len(b.Bytes()), len(b.WithHeadroom()))
		}
		if address(b.Bytes())%4096 != 0 || address(b.WithHeadroom())+Headroom != address(b.Bytes()) {
			t.Errorf("%d: not aligned, or headroom not in front", n)
		}
		if want := (n+4095)/4096*4096 + Headroom; a.InUse() != want {
			t.Errorf("%d: %d bytes in use, want %d", n, a.InUse(), want)
		}
		clear(b.WithHeadroom())
		b.Resize(1)
		if len(b.Bytes()) != 1 {
			t.Error("not resized")
		}
		b.Retain()
		b.Release()
		if a.InUse() == 0 {
			t.Error("freed while referenced")
		}
		b.Release()
		if a.InUse() != 0 {
			t.Error("not freed with the last reference")
		}
	}
}

func TestArenaBadUse(t *testing.T) {
	if _, err := NewArena(MinArenaBytes - 1); cfs.KindOf(err) != cfs.Invalid {
		t.Errorf("tiny arena: %v", err)
	}
	a := testArena(t, 4<<20)
	for _, n := range []int{-1, 0, cfs.MaxShardSize + 1} {
		if _, err := a.Get(context.Background(), n); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("Get(%d): %v", n, err)
		}
	}
	b := mustGet(t, a, 10)
	if err := a.Close(); cfs.KindOf(err) != cfs.Busy {
		t.Errorf("Close with a Buf out: %v", err)
	}
	panics(t, "resize beyond the memory", func() { b.Resize(4097) })
	b.Release()
	panics(t, "double release", func() { b.Release() })
	panics(t, "retain after release", func() { b.Retain() })
}

func panics(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	f()
}

// TestArenaBlocks checks that Get waits its turn, and that a waiter may give up.
func TestArenaBlocks(t *testing.T) {
	a := testArena(t, 1<<20+256<<10)
	first := mustGet(t, a, 1<<20)
	ctx, cancel := context.WithCancel(context.Background())
	gaveUp := make(chan error)
	go func() {
		_, err := a.Get(ctx, 1<<20)
		gaveUp <- err
	}()
	waitFor(t, a, 1)
	small := make(chan *Buf)
	go func() {
		b, err := a.Get(context.Background(), 4096) // fits, but is not first in line
		if err != nil {
			t.Error(err)
		}
		small <- b
	}()
	waitFor(t, a, 2)
	cancel()
	if err := <-gaveUp; cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("canceled Get: %v", err)
	}
	(<-small).Release() // served because the one in front of it left
	deadline, stop := context.WithTimeout(context.Background(), time.Millisecond)
	defer stop()
	if _, err := a.Get(deadline, 1<<20); cfs.KindOf(err) != cfs.Timeout {
		t.Errorf("Get with a deadline: %v", err)
	}
	next := make(chan *Buf)
	go func() { next <- mustGet(t, a, 1<<20) }()
	waitFor(t, a, 1)
	first.Release()
	(<-next).Release()
}

func waitFor(t *testing.T, a *Arena, waiters int) {
	t.Helper()
	for {
		a.mu.Lock()
		n := len(a.waiters)
		a.mu.Unlock()
		if n == waiters {
			return
		}
		runtime.Gosched()
	}
}

func TestArenaClosedWakesWaiters(t *testing.T) {
	a, err := NewArena(MinArenaBytes)
	if err != nil {
		t.Fatal(err)
	}
	a.waiters = append(a.waiters, &arenaWaiter{bytes: 1, granted: make(chan *Buf, 1)})
	w := a.waiters[0]
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if b := <-w.granted; b != nil {
		t.Error("granted by a closed arena")
	}
	if _, err := a.Get(context.Background(), 1); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("Get after Close: %v", err)
	}
}

// TestArenaChunks checks that no Buf crosses the end of a registered chunk.
func TestArenaChunks(t *testing.T) {
	a, err := newArena(8<<20, 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if n := len(a.chunks()); n != 4 {
		t.Fatalf("%d chunks", n)
	}
	var bufs []*Buf
	chunks := map[int]bool{}
	for range 4 { // 1 MiB and headroom: one to a chunk
		b := mustGet(t, a, 1<<20)
		chunk := a.chunkOf(b.WithHeadroom())
		if chunk < 0 || chunks[chunk] {
			t.Errorf("chunk %d", chunk)
		}
		chunks[chunk] = true
		bufs = append(bufs, b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Get(ctx, 1<<20); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("a fifth: %v", err)
	}
	for _, b := range bufs {
		b.Release()
	}
	if a.chunkOf(make([]byte, 10)) != -1 || a.chunkOf(nil) != -1 || a.chunkOf(a.mem[2<<20-1:2<<20+1]) != -1 {
		t.Error("memory outside a chunk was found in one")
	}
}

// TestArenaRandom checks from many goroutines that no two Bufs overlap.
func TestArenaRandom(t *testing.T) {
	a := testArena(t, 8<<20)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			var held []*Buf
			for range 2000 {
				if len(held) < 2 && rng.IntN(2) == 0 {
					b := mustGet(t, a, 1+rng.IntN(200<<10))
					all := b.WithHeadroom()
					all[0], all[len(all)-1] = byte(g), byte(g)
					held = append(held, b)
				} else if len(held) > 0 {
					all := held[0].WithHeadroom()
					if all[0] != byte(g) || all[len(all)-1] != byte(g) {
						t.Error("a buffer was given twice")
					}
					held[0].Release()
					held = held[1:]
				}
			}
			for _, b := range held {
				b.Release()
			}
		})
	}
	wg.Wait()
}

func TestArenaGetAllocatesNothing(t *testing.T) {
	a := testArena(t, 4<<20)
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		b, err := a.Get(ctx, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		b.Release()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestArenaHeld checks that what is out is named, with where it was taken when asked.
func TestArenaHeld(t *testing.T) {
	a := testArena(t, 4<<20)
	a.Trace(false)
	plain := mustGet(t, a, 100)
	a.Trace(true)
	traced, gone := mustGet(t, a, 5000), mustGet(t, a, 1)
	traced.Retain()
	gone.Release()
	held := a.Held()
	if len(held) != 2 || held[0].Bytes+held[1].Bytes != 5100 {
		t.Fatalf("held: %v", held)
	}
	for _, h := range held {
		want := 1
		if h.Bytes == 5000 {
			want = 2
		}
		if got := strings.Contains(h.Taken, "TestArenaHeld"); h.Refs != want || got != (h.Bytes == 5000) {
			t.Errorf("held: %v", h)
		}
	}
	plain.Release()
	traced.Release()
	traced.Release()
	again := mustGet(t, a, 7)
	if held := a.Held(); len(held) != 1 || held[0].Bytes != 7 || !strings.Contains(held[0].String(), "mustGet") {
		t.Errorf("held: %v", held)
	}
	again.Release()
	if held := a.Held(); len(held) != 0 {
		t.Errorf("nothing is out, but held: %v", held)
	}
}
