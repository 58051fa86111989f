package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
)

func TestWindow(t *testing.T) {
	w := newWindow()
	rng := rand.New(rand.NewPCG(1, 1))
	open := map[uint64]bool{}
	for range 10_000 {
		if rng.IntN(2) == 0 || len(open) == 0 {
			open[w.take()] = true
		} else {
			var all []uint64
			for n := range open {
				all = append(all, n)
			}
			slices.Sort(all)
			n := all[rng.IntN(len(all))]
			w.settle(n)
			w.settle(n) // twice is once
			delete(open, n)
		}
		want := w.next
		for n := range open {
			want = min(want, n)
		}
		if got := w.lowest(); got != want {
			t.Fatalf("lowest is %d, want %d", got, want)
		}
	}
	for n := range open {
		w.settle(n)
	}
	if w.lowest() != w.next || len(w.settled) != 0 {
		t.Errorf("lowest %d, next %d, %d remembered", w.lowest(), w.next, len(w.settled))
	}
}

func TestWindowBound(t *testing.T) {
	w := newWindow()
	for range 4 {
		if _, err := w.takeWithin(t.Context(), 4); err != nil {
			t.Fatal(err)
		}
	}
	w.settle(2)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := w.takeWithin(ctx, 4)
	wantKind(t, err, cfs.Timeout)
	got := make(chan uint64)
	go func() {
		n, _ := w.takeWithin(t.Context(), 4)
		got <- n
	}()
	w.settle(1)
	if n := <-got; n != 5 {
		t.Errorf("took %d, want 5", n)
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		in       []span
		off, end uint64
		want     []span
	}{
		{[]span{{0, 10}}, 3, 5, []span{{0, 3}, {5, 10}}},
		{[]span{{0, 10}}, 0, 10, nil},
		{[]span{{0, 10}}, 0, 4, []span{{4, 10}}},
		{[]span{{0, 10}}, 6, 20, []span{{0, 6}}},
		{[]span{{0, 10}}, 10, 20, []span{{0, 10}}},
		{[]span{{5, 10}}, 0, 5, []span{{5, 10}}},
		{[]span{{0, 4}, {6, 10}}, 2, 8, []span{{0, 2}, {8, 10}}},
	} {
		if got := cut(c.in, c.off, c.end); !slices.Equal(got, c.want) {
			t.Errorf("%v without [%d, %d): %v, want %v", c.in, c.off, c.end, got, c.want)
		}
	}
}

func TestChunk(t *testing.T) {
	k := &chunk{off: 100, slab: &slab{0, make([]byte, slabSizes[0]+slabPad)}}
	k.fill([]byte("abcdef"), 100)
	k.fill([]byte("XY"), 104)
	k.fill([]byte("Z"), 106)
	if string(k.data()) != "abcdXYZ" || k.end() != 107 {
		t.Errorf("%q to %d", k.data(), k.end())
	}
	for _, c := range []struct {
		off   uint64
		limit int
		want  bool
	}{{99, 100, false}, {100, 100, true}, {107, 100, true}, {108, 100, false}, {107, 7, false}, {106, 7, true}} {
		if got := k.takes(c.off, c.limit); got != c.want {
			t.Errorf("takes %d within %d: %v", c.off, c.limit, got)
		}
	}
	if !k.overlaps(106, 200) || k.overlaps(107, 200) || k.overlaps(0, 100) || !k.overlaps(0, 101) {
		t.Error("overlaps")
	}
	if got := k.room(103); got != slabSizes[0]-3 {
		t.Errorf("room %d", got)
	}
	k.state = chunkSealed
	if k.takes(100, 100) {
		t.Error("a sealed chunk takes writes")
	}
	s := &session{stripes: newWindow()}
	k.sess = s
	for range 3 {
		k.extents = append(k.extents, cfs.Extent{Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Counter: s.stripes.take()}})
	}
	k.settle()
	k.settle()
	if s.stripes.lowest() != 4 {
		t.Errorf("floor %d after all is settled", s.stripes.lowest())
	}
}

func TestCache(t *testing.T) {
	c := newCache()
	g := grant{era: 1}
	c.putAttr(&cfs.Attr{Ino: 5, Gen: 10, Size: 1}, g)
	c.putAttr(&cfs.Attr{Ino: 5, Gen: 9, Size: 2}, g)
	if got, ok := c.attr(5, 1); !ok || got.Size != 1 {
		t.Errorf("an older answer won: %+v", got)
	}
	if _, ok := c.attr(5, 2); ok {
		t.Error("attributes of another era")
	}
	c.putAttr(&cfs.Attr{}, g)
	c.putAttr(&cfs.Attr{Ino: 6, Gen: 1}, grant{})
	for _, i := range []cfs.Ino{0, 6} {
		if _, ok := c.attr(i, 0); ok {
			t.Errorf("attributes of %d without a lease", i)
		}
	}
	c.recallAttr(5)
	if _, ok := c.attr(5, 1); ok {
		t.Error("recalled attributes")
	}
	c.putAttr(&cfs.Attr{Ino: 5, Gen: 11}, g)
	if _, ok := c.attr(5, 1); ok {
		t.Error("an answer that a recall has overtaken is kept")
	}
	g.asked = c.seq.Load()
	c.putAttr(&cfs.Attr{Ino: 5, Gen: 11}, g)
	if _, ok := c.attr(5, 1); !ok {
		t.Error("an answer from after the recall is not kept")
	}
	c.putName(1, "a", 5, 10, g)
	c.putName(1, "a", 0, 9, g)
	if i, ok, _ := c.name(1, "a", 1); !ok || i != 5 {
		t.Errorf("name: %d, %v", i, ok)
	}
	c.putName(1, "a", 0, 11, g)
	if i, ok, _ := c.name(1, "a", 1); !ok || i != 0 {
		t.Errorf("negative: %d, %v", i, ok)
	}
	c.recallName(1, "a")
	c.putName(1, "a", 8, 12, g)
	if _, ok, _ := c.name(1, "a", 1); ok {
		t.Error("a late answer brought a recalled name back")
	}
}

// TestCacheDuringChanges: what a command of ours changes is no answer while it is on its way, nor is
// what was asked for meanwhile.
func TestCacheDuringChanges(t *testing.T) {
	c := newCache()
	g := grant{era: 1}
	c.putAttr(&cfs.Attr{Ino: 5, Gen: 10}, g)
	c.putName(1, "a", 5, 10, g)
	ops := []cfs.Op{{Kind: cfs.OpUnlink, Dir: 1, Name: "a"}}
	ch := c.begin(g, ops, func(cfs.Ino, string) (cfs.Ino, bool) { return 5, true })
	if _, ok := c.attr(5, 1); ok {
		t.Error("attributes that are being changed")
	}
	if _, ok, _ := c.name(1, "a", 1); ok {
		t.Error("a name that is being changed")
	}
	late := grant{era: 1, asked: c.seq.Load()}
	ch.end([]cfs.Result{{Attr: cfs.Attr{Ino: 5, Gen: 12, Nlink: 1}, Dir: cfs.Attr{Ino: 1, Gen: 11}}}, false)
	if a, ok := c.attr(5, 1); !ok || a.Gen != 12 {
		t.Errorf("the lease of before does not stay through our own change: %+v, %v", a, ok)
	}
	if i, ok, _ := c.name(1, "a", 1); !ok || i != 0 {
		t.Errorf("after the unlink: %d, %v", i, ok)
	}
	c.putName(1, "b", 7, 11, late)
	c.putAttr(&cfs.Attr{Ino: 1, Gen: 10}, late)
	if _, ok := c.attr(1, 1); ok {
		t.Error("an answer from before the change is kept")
	}
	ch = c.begin(grant{era: 1, asked: c.seq.Load()}, ops, func(cfs.Ino, string) (cfs.Ino, bool) { return 0, false })
	if _, ok := c.attr(5, 1); ok {
		t.Error("an attribute is an answer while it is not known what is being unlinked")
	}
	ch.end(nil, false)
	if _, ok := c.attr(5, 1); !ok {
		t.Error("a refused command has changed something")
	}
	ch = c.begin(grant{era: 1, asked: c.seq.Load()}, ops, func(cfs.Ino, string) (cfs.Ino, bool) { return 5, true })
	ch.void()
	if _, ok := c.attr(5, 1); ok {
		t.Error("what may have been changed is an answer")
	}
	if c.blind.Load() != 0 {
		t.Error("a mark is left")
	}
}

func TestListings(t *testing.T) {
	c := newCache()
	c.keepListing(7, 1, map[string]listed{}, grant{})
	if _, ok := c.listed(7, "a", 1, false); ok {
		t.Error("a listing without a lease answers for a directory that is not owned")
	}
	if i, ok := c.listed(7, "a", 1, true); !ok || i != 0 {
		t.Error("a new directory is empty")
	}
	know := func(cfs.Ino, string) (cfs.Ino, bool) { return 0, true }
	create := c.begin(grant{}, []cfs.Op{{Kind: cfs.OpCreate, Dir: 7, Name: "a"}}, know)
	unlink := c.begin(grant{}, []cfs.Op{{Kind: cfs.OpUnlink, Dir: 7, Name: "a"}}, know)
	unlink.end([]cfs.Result{{Attr: cfs.Attr{Ino: 9, Gen: 6}, Dir: cfs.Attr{Ino: 7, Gen: 6}}}, false) // overtakes the reply to the create
	create.end([]cfs.Result{{Attr: cfs.Attr{Ino: 9, Gen: 5}, Dir: cfs.Attr{Ino: 7, Gen: 5}}}, false)
	if i, ok := c.listed(7, "a", 1, true); !ok || i != 0 {
		t.Errorf("a reply that came late won: %d, %v", i, ok)
	}
	if n := c.names.Load(); n != 0 {
		t.Errorf("%d names are counted", n)
	}
	c.begin(grant{}, []cfs.Op{{Kind: cfs.OpCreate, Dir: 7, Name: "b"}}, know).
		end([]cfs.Result{{Attr: cfs.Attr{Ino: 10, Gen: 7, Mode: cfs.ModeRegular}, Dir: cfs.Attr{Ino: 7, Gen: 7}}}, false)
	if _, all, ok := c.entries(7, 1, true); !ok || len(all) != 1 || all[0].Name != "b" || all[0].Ino != 10 {
		t.Errorf("entries %+v, %v", all, ok)
	}
	g := grant{era: 1, asked: c.seq.Load()}
	c.keepListing(8, 1, map[string]listed{"x": {ino: 3}}, g)
	if i, ok := c.listed(8, "x", 1, false); !ok || i != 3 {
		t.Errorf("a leased listing: %d, %v", i, ok)
	}
	c.recallList(8)
	c.keepListing(8, 1, map[string]listed{}, g)
	if _, ok := c.listed(8, "x", 1, false); ok {
		t.Error("a listing from before its recall is kept")
	}
	for i := range cfs.Ino(3 * cacheShards * maxListings) {
		c.keepListing(1000+i, 1, map[string]listed{"x": {}}, grant{asked: c.seq.Load()})
	}
	kept := 0
	for i := range c.shard {
		kept += len(c.shard[i].listings)
	}
	if kept > cacheShards*maxListings || c.names.Load() > int64(kept) {
		t.Errorf("%d listings with %d names", kept, c.names.Load())
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	for i := range cfs.Ino(4 * maxCached * cacheShards) {
		c.putAttr(&cfs.Attr{Ino: i + 1, Gen: 1}, grant{era: 1})
		if i%1000 != 0 {
			continue
		}
		if _, ok := c.attr(1, 1); !ok { // in use: it stays
			t.Fatalf("the attributes in use went after %d others", i)
		}
	}
	for i := range c.shard {
		if n := len(c.shard[i].attrs.young) + len(c.shard[i].attrs.old); n > 2*maxCached {
			t.Errorf("%d entries", n)
		}
	}
	if _, ok := c.attr(2, 1); ok {
		t.Error("the oldest is still there")
	}
}

func TestMemoryWaits(t *testing.T) {
	m := newMemory(MinMemoryBytes)
	var all []*slab
	for range 8 {
		s, err := m.get(t.Context(), 4<<20)
		must(t, err)
		all = append(all, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := m.get(ctx, 1)
	wantKind(t, err, cfs.Timeout)
	select {
	case <-m.pressure:
	default:
		t.Error("no pressure was signalled")
	}
	go m.put(all[0])
	s, err := m.get(t.Context(), 17<<10)
	must(t, err)
	if s.size() != 128<<10 || len(s.b) != s.size()+slabPad {
		t.Errorf("slab of %d, %d", s.size(), len(s.b))
	}
	m.put(s)
	m.put(nil)
	for _, s := range all[1:] {
		m.put(s)
	}
	if m.used != 0 {
		t.Errorf("%d in use", m.used)
	}
}

func TestStatsRegister(t *testing.T) {
	reg := prometheus.NewRegistry()
	var s Stats
	s.Register(reg)
	s.crcFailures.Add(3)
	got, err := reg.Gather()
	must(t, err)
	for _, f := range got {
		if f.GetName() == "claudefs_client_crc_failures_total" && f.Metric[0].Counter.GetValue() == 3 {
			return
		}
	}
	t.Errorf("not among %d metrics", len(got))
}

// allocs counts what fn allocates, once warm.
func allocs(t *testing.T, fn func()) float64 {
	t.Helper()
	if invariants.Race {
		t.Skip("the race detector allocates on its own")
	}
	return testing.AllocsPerRun(200, fn)
}

func TestAllocCache(t *testing.T) {
	c := newCache()
	g := grant{era: 1}
	a := cfs.Attr{Ino: 5, Gen: 1}
	c.putAttr(&a, g)
	c.putName(1, "a", 5, 1, g)
	if n := allocs(t, func() { c.attr(5, 1); c.name(1, "a", 1); c.putAttr(&a, g) }); n != 0 {
		t.Errorf("a hit of the cache allocates %v times", n)
	}
}

func TestAllocWriteIntoChunk(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "f")
	p := make([]byte, 4096)
	write(t, f, make([]byte, 64<<10), 0)
	if n := allocs(t, func() { write(t, f, p, 4096) }); n > 0 {
		t.Errorf("a write into a chunk allocates %v times", n)
	}
	if n := allocs(t, func() { f.Read(t.Context(), p, 4096) }); n > 1 {
		t.Errorf("a read from a chunk allocates %v times", n)
	}
}

// BenchmarkRead reads committed bytes: 4 KiB from one shard, 1 MiB from all of them.
func BenchmarkRead(b *testing.B) {
	bed := newBed(b, 3)
	c := bed.mount(b)
	put(b, c, "f", randomBytes(1, 16<<20))
	f := open(b, c, "f", unix.O_RDONLY)
	defer f.Close(context.Background())
	for _, n := range []int{4 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			off := uint64(0)
			for b.Loop() {
				if _, err := f.Read(b.Context(), p, off); err != nil {
					b.Fatal(err)
				}
				off = (off + uint64(n)) % (16 << 20)
			}
		})
	}
}

// BenchmarkWrite writes 128 KiB at a time, as the kernel does.
func BenchmarkWrite(b *testing.B) {
	bed := newBed(b, 3)
	c := bed.mount(b)
	f := create(b, c, "f")
	p := randomBytes(1, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	off := uint64(0)
	for b.Loop() {
		write(b, f, p, off)
		off = (off + uint64(len(p))) % (32 << 20)
	}
	if err := f.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCreateClose makes small files: a create and a commit each.
func BenchmarkCreateClose(b *testing.B) {
	bed := newBed(b, 3)
	c := bed.mount(b)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		f := create(b, c, fmt.Sprint(i))
		write(b, f, []byte("contents"), 0)
		if err := f.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
