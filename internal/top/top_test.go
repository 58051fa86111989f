package top

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestHist(t *testing.T) {
	var h Hist
	if f := h.Read(); f.Count != 0 || len(f.Buckets) != 0 || f.Quantile(0.5) != 0 || f.Mean() != 0 {
		t.Errorf("nothing is %+v", f)
	}
	for range 98 {
		h.Observe(3 * time.Microsecond)
	}
	h.Observe(-1)
	h.Observe(time.Millisecond)
	f := h.Read()
	if f.Count != 100 || f.TotalNS != 98*3000+1e6 || !slices.Equal(f.Buckets, []uint64{1, 0, 98, 0, 0, 0, 0, 0, 0, 0, 1}) {
		t.Errorf("%+v", f)
	}
	for q, want := range map[float64]time.Duration{0: time.Microsecond, 0.5: 4 * time.Microsecond, 0.99: 4 * time.Microsecond, 1: 1024 * time.Microsecond} {
		if got := f.Quantile(q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	h.Observe(time.Hour * 24)
	d := h.Read().Since(f)
	if d.Count != 1 || d.Mean() != 24*time.Hour || len(d.Buckets) != Buckets || d.Buckets[Buckets-1] != 1 {
		t.Errorf("%+v", d)
	}
	for _, both := range []Figures{d.Plus(f), f.Plus(d)} {
		if both.Count != 101 || len(both.Buckets) != Buckets || both.Buckets[2] != 98 || both.Buckets[Buckets-1] != 1 || len(f.Buckets) != 11 || f.Buckets[2] != 98 {
			t.Errorf("%+v", both)
		}
	}
	if again := f.Since(h.Read()); again.Count != f.Count {
		t.Errorf("after a restart: %+v", again)
	}
}

// The busiest are found among many that are not.
func TestDirs(t *testing.T) {
	var d Dirs
	rng := rand.New(rand.NewPCG(1, 2))
	hot := map[uint64]uint64{7: 0, 8: 0, 1 << 60: 0}
	for range 200000 {
		ino := 1000 + rng.Uint64N(100000)
		if rng.IntN(2) == 0 {
			ino = []uint64{7, 8, 1 << 60}[rng.IntN(3)]
			hot[ino]++
		}
		d.Touch(ino, time.Second)
	}
	got := d.Hottest(3, time.Second)
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	for i, g := range got {
		if want, ok := hot[g.Ino]; !ok || g.Ops > want || g.Ops < want*9/10 {
			t.Errorf("%+v, counted %d", g, want)
		}
		if i > 0 && g.Ops > got[i-1].Ops {
			t.Errorf("not in order: %+v", got)
		}
	}
	// They fade.
	then := d.Hottest(1, time.Second+fadeEvery)[0].Ops
	if want := got[0].Ops / 2; then < want-1 || then > want+1 {
		t.Errorf("%d later %d", got[0].Ops, then)
	}
	if late := d.Hottest(5, 100*fadeEvery); len(late) != 0 {
		t.Errorf("%+v", late)
	}
	d.Touch(5, time.Second) // a time that is past counts too
	if now := d.Hottest(5, 100*fadeEvery); len(now) != 1 || now[0] != (Dir{5, 1}) {
		t.Errorf("%+v", now)
	}
}

func TestConcurrently(t *testing.T) {
	var d Dirs
	var h Hist
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(1000) {
				d.Touch(1+(i+g)%8, time.Second)
				h.Observe(time.Duration(i) * time.Microsecond)
			}
		})
	}
	wg.Wait()
	total := uint64(0)
	for _, x := range d.Hottest(8, time.Second) {
		total += x.Ops
	}
	if total != 4000 || h.Read().Count != 4000 {
		t.Errorf("%d and %+v", total, h.Read())
	}
}

func TestCountingTakesNoMemory(t *testing.T) {
	var d Dirs
	var h Hist
	ino := uint64(0)
	if n := testing.AllocsPerRun(1000, func() {
		ino += 12345
		d.Touch(ino, time.Duration(ino))
		h.Observe(time.Millisecond)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHist(b *testing.B) {
	var h Hist
	for b.Loop() {
		h.Observe(time.Millisecond)
	}
}

func BenchmarkDirs(b *testing.B) {
	for name, mask := range map[string]uint64{"few": 15, "many": 1<<20 - 1} {
		b.Run(name, func(b *testing.B) {
			var d Dirs
			ino := uint64(1)
			for b.Loop() {
				ino = ino*6364136223846793005 + 1
				d.Touch(ino>>32&mask+1, time.Second)
			}
		})
	}
}
