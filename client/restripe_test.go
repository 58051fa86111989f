package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

const testWindow = 4 << 20

// restripe rewrites the window that off is in.
func restripe(t testing.TB, c *Client, i cfs.Ino, off uint64) (uint64, error) {
	t.Helper()
	off -= off % testWindow
	return c.restripeWindow(t.Context(), cfs.Window{Ino: i, Off: off, End: off + testWindow}, &pace{})
}

func mustRestripe(t testing.TB, c *Client, i cfs.Ino, off, want uint64) {
	t.Helper()
	if n, err := restripe(t, c, i, off); err != nil || n != want {
		t.Fatalf("the window at %d: %d bytes, %v; want %d", off, n, err, want)
	}
}

// overwritten is a file of one stripe with n blocks written over it.
func overwritten(t testing.TB, c *Client, name string, n int) (cfs.Ino, []byte) {
	t.Helper()
	data := randomBytes(uint64(n), testWindow)
	f := create(t, c, name)
	writeIn(t, f, data, 0, 1<<20)
	must(t, f.Sync(t.Context()))
	for i := range n {
		at := rand.IntN(testWindow/cfs.BlockSize) * cfs.BlockSize
		copy(data[at:], randomBytes(uint64(i), cfs.BlockSize))
		write(t, f, data[at:at+cfs.BlockSize], uint64(at))
	}
	must(t, f.Sync(t.Context()))
	must(t, f.Close(t.Context()))
	return f.n.ino, data
}

// inlineRows makes an inline row of each n bytes of a file, gap bytes apart.
func (b *bed) inlineRows(i cfs.Ino, rows, n, gap int) (data []byte) {
	b.t.Helper()
	data = make([]byte, rows*(n+gap)-gap)
	for first := 0; first < rows; first += 256 {
		op := cfs.Op{Kind: cfs.OpWrite, Ino: i}
		for r := first; r < min(first+256, rows); r++ {
			at := r * (n + gap)
			copy(data[at:], randomBytes(uint64(r), n))
			op.Extents = append(op.Extents, cfs.Extent{Off: uint64(at), Len: uint64(n), Kind: cfs.ExtentInline, Inline: data[at : at+n]})
		}
		b.apply(b.sess, op)
	}
	return data
}

// inStripe finds the rows of a window in one stripe of a geometry that holds n bytes.
func (b *bed) inStripe(i cfs.Ino, off uint64, g cfs.Geometry, n, rows int) {
	b.t.Helper()
	var met []cfs.Extent
	for _, x := range b.extents(i) {
		if x.Off < off-off%testWindow+testWindow && x.End() > off-off%testWindow && x.Kind != cfs.ExtentUnwritten {
			met = append(met, x)
		}
	}
	if len(met) != rows {
		b.t.Fatalf("%d rows, want %d", len(met), rows)
	}
	for _, x := range met {
		if x.Kind != cfs.ExtentStripe || x.Stripe != met[0].Stripe || b.group(x.PG).Geometry != g || x.StripeLen != uint32(n) {
			b.t.Fatalf("%+v is not in one stripe of %v with %d bytes", x, g, n)
		}
	}
}

// swaps calls fn, the first time, before a swap is applied.
func (b *bed) swaps(fn func(cmd *cfs.Command)) {
	var once atomic.Bool
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Kind == cfs.OpSwap && once.CompareAndSwap(false, true) {
			fn(cmd)
		}
	})
}

func TestRestripeOverwrites(t *testing.T) {
	b := newBed(t, 3)
	c, r := b.mount(t), b.mount(t)
	ino, data := overwritten(t, c, "f", 1000)
	if n := len(b.extents(ino)); n < 400 {
		t.Fatalf("%d rows after 1000 overwrites", n)
	}
	before := b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: ino}).Attr
	mustRestripe(t, r, ino, 0, testWindow)
	b.inStripe(ino, 0, cfs.Geo4p2, testWindow, 1)
	after := b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: ino}).Attr
	if after.Gen <= before.Gen {
		t.Errorf("generation %d after %d: nobody learns of the new extents", after.Gen, before.Gen)
	}
	after.Owner = before.Owner // which was asked to let go
	if after.Gen = before.Gen; after != before {
		t.Errorf("the attributes are\n%+v, before\n%+v", after, before)
	}
	mustRestripe(t, r, ino, 0, 0) // what is good stays
	check(t, c, "f", data)
	b.checkStripes(t, r)
}

// TestRestripeManyRows: more rows than one command can name.
func TestRestripeManyRows(t *testing.T) {
	for _, c := range []struct{ rows, bytes, gap, after int }{
		{2500, 100, 0, 1},   // one run: each command replaces what the one before it has made, too
		{600, 150, 40, 600}, // one row for each run, all in the same stripe
		{1200, 2000, 0, 1},
	} {
		t.Run(fmt.Sprint(c.rows, "x", c.bytes, "+", c.gap), func(t *testing.T) {
			b := newBed(t, 3)
			m := b.mount(t)
			ino := put(t, m, "f", nil)
			data := b.inlineRows(ino, c.rows, c.bytes, c.gap)
			var commands atomic.Int64
			hook(&b.before, func(cmd *cfs.Command) {
				if cmd.Ops[0].Kind == cfs.OpSwap {
					commands.Add(1)
				}
			})
			mustRestripe(t, m, ino, 0, uint64(c.rows*c.bytes))
			if n := commands.Load(); n < 2 || n > 4 {
				t.Errorf("%d commands", n)
			}
			b.inStripe(ino, 0, cfs.Geo4p2, c.rows*c.bytes, c.after)
			mustRestripe(t, m, ino, 0, 0)
			check(t, m, "f", data)
			b.checkStripes(t, m)
		})
	}
}

// TestRestripeRowBound: what lies beyond the bound on rows comes again.
func TestRestripeRowBound(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ino := put(t, c, "f", nil)
	data := b.inlineRows(ino, maxWindowRows+2000, 5, 0)
	var sum uint64
	for range 3 {
		n, err := restripe(t, c, ino, 0)
		must(t, err)
		sum += n
		if sum >= uint64(len(data)) {
			break
		}
	}
	check(t, c, "f", data)
	if rows := len(b.extents(ino)); rows > 2 {
		t.Errorf("%d rows are left", rows)
	}
	b.checkStripes(t, c)
}

func TestRestripeHoles(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "f")
	for i := range 40 { // data, hole, data after data, unwritten
		at := uint64(i) * 60_000
		write(t, f, randomBytes(uint64(i), 7000), at)
		write(t, f, randomBytes(uint64(i)+1, 3333), at+10_000)
		must(t, f.Sync(t.Context()))
		must(t, f.Allocate(t.Context(), unix.FALLOC_FL_KEEP_SIZE, at+20_000, 5000))
	}
	must(t, f.Allocate(t.Context(), unix.FALLOC_FL_KEEP_SIZE, 3<<20, 1<<20))
	data := readAll(t, f, 1<<20)
	kinds := func() (s []string) {
		for _, x := range b.extents(f.n.ino) {
			s = append(s, fmt.Sprint(x.Off, "+", x.Len, x.Kind == cfs.ExtentUnwritten))
		}
		return s
	}
	before := kinds()
	mustRestripe(t, c, f.n.ino, 0, 40*(7000+3333))
	if after := kinds(); strings.Join(before, " ") != strings.Join(after, " ") {
		t.Errorf("the rows are\n%v, before\n%v", after, before)
	}
	b.inStripe(f.n.ino, 0, cfs.Geo4p2, 40*(7000+3333), 80)
	mustRestripe(t, c, f.n.ino, 0, 0)
	must(t, f.Close(t.Context()))
	check(t, c, "f", data)
	b.checkStripes(t, c)
	// Nothing but holes, nothing but what is allocated.
	mustRestripe(t, c, f.n.ino, 100<<20, 0)
	g := create(t, c, "g")
	must(t, g.Allocate(t.Context(), 0, 0, 1<<20))
	mustRestripe(t, c, g.n.ino, 0, 0)
	must(t, g.Close(t.Context()))
}

// TestRestripeEdges: rows that reach over the edges of a window are replaced in part.
func TestRestripeEdges(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	data := randomBytes(1, 3*testWindow)
	f := create(t, c, "f")
	for _, s := range []span{{0, 1 << 20}, {1 << 20, testWindow - 5000}, {testWindow - 5000, testWindow + 5000}, {testWindow + 5000, 2*testWindow - 1<<20},
		{2*testWindow - 1<<20, 2*testWindow + 3<<20 - 77}, {2*testWindow + 3<<20 - 77, 3 * testWindow}} {
		write(t, f, data[s.off:s.end], s.off)
		must(t, f.Sync(t.Context()))
	}
	must(t, f.Close(t.Context()))
	for _, at := range []uint64{testWindow, 0, 2 * testWindow} {
		mustRestripe(t, c, f.n.ino, at, testWindow)
		b.inStripe(f.n.ino, at, cfs.Geo4p2, testWindow, 1)
		check(t, c, "f", data)
	}
	if n := len(b.extents(f.n.ino)); n != 3 {
		t.Errorf("%d rows", n)
	}
	b.checkStripes(t, c)
	// A window that was asked for is refused when it cannot be one.
	for _, w := range []cfs.Window{{Ino: f.n.ino}, {Ino: f.n.ino, Off: 5, End: 4}, {Ino: f.n.ino, End: 2 * testWindow}} {
		_, err := c.restripeWindow(t.Context(), w, &pace{})
		wantKind(t, err, cfs.BadRequest)
	}
}

func TestRestripeInline(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	files := map[string]int{"few": cfs.ManyExtents, "many": 3 * cfs.ManyExtents, "apart": 3 * cfs.ManyExtents, "more": 24}
	sizes := map[string]int{"few": 1000, "many": 300, "apart": 300, "more": 1024}
	data, inos := map[string][]byte{}, map[string]cfs.Ino{}
	for name, rows := range files {
		inos[name] = put(t, c, name, nil)
		gap := 0
		if name == "apart" {
			gap = 100
		}
		data[name] = b.inlineRows(inos[name], rows, sizes[name], gap)
	}
	inos["pairs"] = put(t, c, "pairs", nil)
	pairs := cfs.Op{Kind: cfs.OpWrite, Ino: inos["pairs"]}
	data["pairs"] = make([]byte, 16*1000-700)
	for i := range 16 {
		at := i * 1000
		if i < 8 {
			at -= i % 2 * 700
		}
		x := cfs.Extent{Off: uint64(at), Len: 300, Kind: cfs.ExtentInline, Inline: randomBytes(uint64(i), 300)}
		copy(data["pairs"][at:], x.Inline)
		pairs.Extents = append(pairs.Extents, x)
	}
	b.apply(b.sess, pairs)
	// Few rows are listed because the namespace is to be rid of them.
	mustRestripe(t, c, inos["few"], 0, 8000)
	b.inStripe(inos["few"], 0, cfs.Geo1p2, 8000, 1)
	mustRestripe(t, c, inos["few"], 0, 0)
	mustRestripe(t, c, inos["many"], 0, 24*300)
	if x := b.extents(inos["many"]); len(x) != 1 || x[0].Kind != cfs.ExtentInline {
		t.Errorf("many small rows became %+v", x)
	}
	mustRestripe(t, c, inos["apart"], 0, 24*300)
	b.inStripe(inos["apart"], 0, cfs.Geo1p2, 24*300, 24)
	mustRestripe(t, c, inos["pairs"], 0, 4*600) // what has no neighbour stays
	if x := b.extents(inos["pairs"]); len(x) != 4+8 || x[0].Len != 600 || x[0].Kind != cfs.ExtentInline {
		t.Errorf("four pairs and eight alone became %+v", x)
	}
	mustRestripe(t, c, inos["more"], 0, 24*1024) // more than may be inline
	b.inStripe(inos["more"], 0, cfs.Geo1p2, 24*1024, 1)
	c.inlineFull.Store(true)
	mustRestripe(t, c, inos["many"], 0, 24*300)
	b.inStripe(inos["many"], 0, cfs.Geo1p2, 24*300, 1)
	for name := range data {
		check(t, c, name, data[name])
	}
	b.checkStripes(t, c)
}

// TestRestripeDegraded: what was written with a node missing becomes whole, though
// another is missing when it is read.
func TestRestripeDegraded(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	b.setState(b.nodes[2], cfs.StateDown)
	must(t, c.refreshMap(t.Context()))
	data := randomBytes(1, testWindow)
	ino := put(t, c, "f", data)
	if x := b.extents(ino); b.group(x[0].PG).Geometry != cfs.Geo2p2 {
		t.Fatalf("%+v", x)
	}
	for _, half := range []cfs.Window{{Ino: ino, End: testWindow / 2}, {Ino: ino, Off: testWindow / 2, End: testWindow}} {
		if n, err := c.restripeWindow(t.Context(), half, &pace{}); n != 0 || err != nil {
			t.Errorf("%d bytes rewritten (%v) that cannot lie better now", n, err)
		}
	}
	b.setState(b.nodes[2], cfs.StateUp)
	must(t, c.refreshMap(t.Context()))
	for _, id := range b.dataShards(ino) {
		b.drop(id) // one of each stripe
		break
	}
	mustRestripe(t, c, ino, 0, testWindow)
	if c.Stats().ShardsReconstructed()+c.Stats().HedgeWins() == 0 {
		t.Error("the lost shard was not reconstructed")
	}
	b.inStripe(ino, 0, cfs.Geo4p2, testWindow, 1)
	check(t, c, "f", data)
	mustRestripe(t, c, ino, 0, 0)
	// A small file is three copies before and after.
	small := put(t, c, "small", data[:40_000])
	mustRestripe(t, c, small, 0, 0)
	b.checkStripes(t, c)
}

// TestRestripeHurt: shards that are lost or corrupt while a window is rewritten.
func TestRestripeHurt(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ino, data := overwritten(t, c, "f", 20)
	shards := b.dataShards(ino)
	b.spoil(shards[0])
	b.drop(shards[len(shards)-1])
	c.hedgeAfter(time.Hour) // a hedge that wins does not see what is wrong
	mustRestripe(t, c, ino, 0, testWindow)
	if s := c.Stats(); s.ShardsReconstructed() < 2 || s.CRCFailures() == 0 {
		t.Errorf("%d shards reconstructed, %d checksums wrong", s.ShardsReconstructed(), s.CRCFailures())
	}
	b.inStripe(ino, 0, cfs.Geo4p2, testWindow, 1)
	check(t, c, "f", data)
	b.checkStripes(t, c)
}

// TestRestripeMeets: something happens between the reading and the swap.
func TestRestripeMeets(t *testing.T) {
	for _, c := range []struct {
		name  string
		meets func(b *bed, other *Client, r *Client, ino cfs.Ino, data []byte) // what the file holds then is in data
		kind  cfs.Kind
	}{
		{"write", func(b *bed, other, _ *Client, ino cfs.Ino, data []byte) {
			copy(data[123_456:], "new")
			f, err := other.Open(b.t.Context(), ino, unix.O_RDWR)
			must(b.t, err)
			write(b.t, f, []byte("new"), 123_456)
			must(b.t, f.Close(b.t.Context()))
		}, cfs.Conflict},
		{"hole", func(b *bed, other, _ *Client, ino cfs.Ino, data []byte) {
			clear(data[1<<20 : 2<<20])
			f, err := other.Open(b.t.Context(), ino, unix.O_RDWR)
			must(b.t, err)
			must(b.t, f.Allocate(b.t.Context(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20))
			must(b.t, f.Close(b.t.Context()))
		}, cfs.Conflict},
		{"session", func(b *bed, _, r *Client, _ cfs.Ino, _ []byte) { b.expire(r.session.Load().id) }, cfs.NoSession},
		{"epoch", func(b *bed, _, r *Client, _ cfs.Ino, _ []byte) { b.bumpEpochs(b.nodes[1]) }, cfs.StaleEpoch},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, 3)
			other, r := b.mount(t), b.mount(t)
			ino, data := overwritten(t, other, "f", 50)
			var rows int
			b.swaps(func(*cfs.Command) {
				c.meets(b, other, r, ino, data)
				rows = len(b.extents(ino))
			})
			_, err := restripe(t, r, ino, 0)
			wantKind(t, err, c.kind)
			if n := len(b.extents(ino)); n != rows {
				t.Errorf("%d rows became %d though nothing was committed", rows, n)
			}
			check(t, other, "f", data)
			must(t, r.refreshMap(t.Context()))
			if n, err := restripe(t, r, ino, 0); err != nil || n == 0 {
				t.Fatalf("once more: %d bytes, %v", n, err)
			}
			check(t, other, "f", data)
			b.checkStripes(t, r)
		})
	}
}

// TestRestripeFreed: the stripes that a window consisted of are deleted before they are read.
func TestRestripeFreed(t *testing.T) {
	b := newBed(t, 3)
	other, r := b.mount(t), b.mount(t)
	ino, _ := overwritten(t, other, "f", 20)
	data := randomBytes(9, testWindow)
	var once atomic.Bool
	hook(&b.answered, func(q *cfs.Query) {
		if q.Kind != cfs.QueryExtents || !once.CompareAndSwap(false, true) {
			return
		}
		f, err := other.Open(t.Context(), ino, unix.O_RDWR)
		must(t, err)
		writeIn(t, f, data, 0, 400_000)
		must(t, f.Sync(t.Context()))
		write(t, f, data[:99], 0)
		must(t, f.Close(t.Context()))
		_, err = other.SetAttr(t.Context(), me, ino, cfs.SetAtimeNow, cfs.Attr{}) // carries the floor
		must(t, err)
		if b.reclaim() == 0 {
			t.Error("nothing was freed")
		}
	})
	mustRestripe(t, r, ino, 0, testWindow)
	b.inStripe(ino, 0, cfs.Geo4p2, testWindow, 1)
	check(t, other, "f", data)
	b.checkStripes(t, r)
}

func TestRestripeNoSpace(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ino, data := overwritten(t, c, "f", 20)
	for _, n := range b.nodes {
		n.noSpace.Store(true)
	}
	_, err := restripe(t, c, ino, 0)
	wantKind(t, err, cfs.NoSpace)
	for _, n := range b.nodes {
		n.noSpace.Store(false)
	}
	c.full = suspects{}
	mustRestripe(t, c, ino, 0, testWindow)
	check(t, c, "f", data)
	b.checkStripes(t, c)
}

// TestRestripeUnlinked: a file without a name is rewritten while it is open.
func TestRestripeUnlinked(t *testing.T) {
	b := newBed(t, 3)
	c, r := b.mount(t), b.mount(t)
	ino, data := overwritten(t, c, "f", 20)
	f := open(t, c, "f", unix.O_RDONLY)
	must(t, c.Unlink(t.Context(), me, cfs.RootIno, "f"))
	mustRestripe(t, r, ino, 0, testWindow)
	f.n.dropExtents()
	same(t, "the open file", readAll(t, f, 1<<20), data)
	b.swaps(func(*cfs.Command) { t.Error("a swap for a file that is as good as new") })
	mustRestripe(t, r, ino, 0, 0)
	must(t, f.Close(t.Context()))
	_, err := restripe(t, r, ino, 0)
	wantKind(t, err, cfs.Stale)
	b.checkStripes(t, r)
}

// windowsOf lists the windows of files, as often as it is asked.
func windowsOf(n int, inos ...cfs.Ino) func(*cfs.Query) *cfs.Answer {
	return func(*cfs.Query) *cfs.Answer {
		a := &cfs.Answer{}
		for _, i := range inos {
			for w := range n {
				a.Windows = append(a.Windows, cfs.Window{Ino: i, Off: uint64(w) * testWindow, End: uint64(w+1) * testWindow})
			}
		}
		return a
	}
}

// running runs Restripe until the test ends.
func running(t testing.TB, c *Client, cfg RestripeConfig) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Restripe(ctx, cfg) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("restripe: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

func TestRestripeLoop(t *testing.T) {
	b := newBed(t, 3)
	c, r := b.mount(t), b.mount(t)
	one, first := overwritten(t, c, "one", 20)
	two, second := overwritten(t, c, "two", 20)
	var asked atomic.Int64
	all := windowsOf(1, one, 12345, two) // one that is gone is only counted
	hook(&b.windows, func(q *cfs.Query) *cfs.Answer {
		asked.Add(1)
		if age := time.Now().UnixNano() - q.BeforeNS; age < int64(time.Minute) || age > int64(2*time.Minute) || q.Limit != restripePage {
			t.Errorf("%+v, %v ago", q, time.Duration(age))
		}
		if q.Ino == 0 { // a page with nothing on it
			return &cfs.Answer{More: true, Next: cfs.Window{Ino: one}}
		}
		return all(q)
	})
	stop := running(t, r, RestripeConfig{MinAge: time.Minute, Idle: time.Hour})
	eventually(t, "both are rewritten, and the pass after that has found nothing", func() bool {
		return r.Stats().RestripedWindows() == 2 && asked.Load() == 4 && r.Stats().RestripeConflicts() == 2
	})
	stop()
	if s := r.Stats(); s.RestripedBytes() != 2*testWindow || s.RestripeConflicts() != 2 || s.RestripeFailures() != 0 {
		t.Errorf("%d bytes, %d conflicts, %d failures", s.RestripedBytes(), s.RestripeConflicts(), s.RestripeFailures())
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times while it rests", n)
	}
	check(t, c, "one", first)
	check(t, c, "two", second)
	b.checkStripes(t, r)
}

// TestRestripeGoesOn: failures are logged once and end nothing; the end of the client does.
func TestRestripeGoesOn(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ino, data := overwritten(t, c, "f", 20)
	var log bytes.Buffer
	var mode, asked atomic.Int64
	hook(&b.windows, func(q *cfs.Query) *cfs.Answer {
		asked.Add(1)
		switch mode.Load() {
		case 0:
			return &cfs.Answer{Kind: cfs.IO}
		case 1:
			return &cfs.Answer{More: true} // does not get on
		case 2:
			return &cfs.Answer{Windows: []cfs.Window{{Ino: ino, End: 1 << 40}}}
		}
		return windowsOf(1, ino)(q)
	})
	done := make(chan error, 1)
	go func() {
		done <- c.Restripe(t.Context(), RestripeConfig{Idle: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	}()
	for m := range int64(3) {
		mode.Store(m)
		from := c.Stats().RestripeFailures()
		eventually(t, fmt.Sprint("failures of mode ", m), func() bool { return c.Stats().RestripeFailures() > from+3 })
	}
	for _, n := range b.nodes {
		n.noSpace.Store(true)
	}
	mode.Store(3)
	failures := c.Stats().RestripeFailures()
	eventually(t, "no space", func() bool { return c.Stats().RestripeFailures() > failures+2 })
	for _, n := range b.nodes {
		n.noSpace.Store(false)
	}
	eventually(t, "a window is rewritten", func() bool { return c.Stats().RestripedWindows() == 1 })
	check(t, c, "f", data)
	mode.Store(0) // and nothing is in flight
	from := c.Stats().RestripeFailures()
	eventually(t, "failures again", func() bool { return c.Stats().RestripeFailures() > from })
	b.checkStripes(t, c)
	must(t, c.Close(t.Context()))
	wantKind(t, <-done, cfs.Closed)
	for _, kind := range []cfs.Kind{cfs.IO, cfs.BadRequest, cfs.NoSpace} {
		if n := strings.Count(log.String(), fmt.Sprintf("kind=%q", kind.Error())) + strings.Count(log.String(), fmt.Sprintf("kind=%s ", kind.Error())); n != 1 {
			t.Errorf("%v is logged %d times:\n%s", kind, n, log.String())
		}
	}
}

func TestRestripePace(t *testing.T) {
	p := &pace{rateBytes: 1000}
	must(t, p.take(t.Context(), 10_000_000))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantKind(t, p.take(ctx, 1), cfs.Timeout) // ten thousand seconds are not over
	start := time.Now()
	p = &pace{rateBytes: 1 << 20}
	for range 5 {
		must(t, p.take(t.Context(), 64<<10))
	}
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("256 KiB before the last at 1 MiB/s took %v", took)
	}
	free := &pace{}
	for range 1000 {
		must(t, free.take(t.Context(), 1<<40))
	}
}

// TestRestripeModel: readers and a writer see each block in a state that it has
// been in, never an older one than was acknowledged, while windows are rewritten.
func TestRestripeModel(t *testing.T) {
	const blocks, windows = 512, 2
	b := newBed(t, 3)
	w, r := b.mount(t), b.mount(t)
	ino := put(t, w, "f", nil)
	hook(&b.windows, windowsOf(windows, ino))
	at := func(i int) uint64 { return uint64(i) * (windows * testWindow / blocks) }
	var acked, issued [blocks]atomic.Uint64
	content := func(i int, version uint64) []byte {
		p := make([]byte, cfs.BlockSize)
		for o := 0; o < len(p); o += 16 {
			binary.LittleEndian.PutUint64(p[o:], uint64(i))
			binary.LittleEndian.PutUint64(p[o+8:], version)
		}
		return p
	}
	stop := running(t, r, RestripeConfig{Idle: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		reader := b.mount(t)
		wg.Go(func() {
			for ctx.Err() == nil {
				i := rand.IntN(blocks)
				least := acked[i].Load()
				f, err := reader.Open(t.Context(), ino, unix.O_RDONLY)
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				p := make([]byte, cfs.BlockSize)
				n, err := f.Read(t.Context(), p, at(i))
				f.Close(t.Context())
				if n < len(p) {
					clear(p[n:])
				}
				version := binary.LittleEndian.Uint64(p[8:])
				if err != nil || version < least || version > issued[i].Load() || version > 0 && !bytes.Equal(p, content(i, version)) {
					t.Errorf("block %d: version %d (at least %d, at most %d), %v", i, version, least, issued[i].Load(), err)
					return
				}
			}
		})
	}
	f := open(t, w, "f", unix.O_RDWR)
	for round := 0; r.Stats().RestripedWindows() < 6 || round < 40; round++ {
		if round == 5000 || t.Failed() {
			t.Errorf("%d windows rewritten in %d rounds", r.Stats().RestripedWindows(), round)
			break
		}
		var mine []int
		for range 1 + rand.IntN(20) { // the other half comes to rest
			i := round/10%2*(blocks/2) + rand.IntN(blocks/2)
			v := issued[i].Add(1)
			write(t, f, content(i, v), at(i))
			mine = append(mine, i)
		}
		must(t, f.Sync(t.Context()))
		for _, i := range mine {
			acked[i].Store(issued[i].Load())
		}
		if round%10 == 0 {
			w.SetAttr(t.Context(), me, ino, cfs.SetAtimeNow, cfs.Attr{}) // carries the floor
			b.reclaim()
		}
	}
	cancel()
	wg.Wait()
	stop()
	must(t, f.Close(t.Context()))
	last := open(t, w, "f", unix.O_RDONLY)
	for i := range blocks {
		p := make([]byte, cfs.BlockSize)
		if v := acked[i].Load(); v > 0 {
			_, err := last.Read(t.Context(), p, at(i))
			must(t, err)
			same(t, fmt.Sprint("block ", i), p, content(i, v))
		}
	}
	must(t, last.Close(t.Context()))
	b.checkStripes(t, r)
	t.Logf("%d windows rewritten, %d conflicts", r.Stats().RestripedWindows(), r.Stats().RestripeConflicts())
}

// TestRestripeSettles: whatever files are like, in the end nothing is worth writing
// anew, each range was written a few times at most, and no byte has changed.
func TestRestripeSettles(t *testing.T) {
	b := newBed(t, 3)
	c, r := b.mount(t), b.mount(t)
	data, inos := map[string][]byte{}, map[string]cfs.Ino{}
	inos["over"], data["over"] = overwritten(t, c, "over", 300)
	for _, rows := range []struct{ n, bytes, gap int }{{3000, 100, 0}, {600, 150, 40}, {24, 300, 0}, {24, 300, 100}, {5, 16 << 10, 0}, {100, 16 << 10, 5000}, {40, 4096, 4096}} {
		name := fmt.Sprint(rows)
		inos[name] = put(t, c, name, nil)
		data[name] = b.inlineRows(inos[name], rows.n, rows.bytes, rows.gap)
	}
	random := create(t, c, "random") // rows over all edges, and holes
	data["random"] = make([]byte, 2*testWindow)
	for i := range 100 {
		p := randomBytes(uint64(i), 1+rand.IntN(200_000))
		at := rand.IntN(len(data["random"]) - len(p))
		copy(data["random"][at:], p)
		write(t, random, p, uint64(at))
		if i%50 == 49 {
			must(t, random.Sync(t.Context()))
		}
	}
	copy(data["random"][len(data["random"])-5:], "the e")
	write(t, random, []byte("the e"), 2*testWindow-5)
	must(t, random.Close(t.Context()))
	b.setState(b.nodes[2], cfs.StateDown)
	must(t, c.refreshMap(t.Context()))
	data["degraded"] = randomBytes(7, testWindow+99)
	put(t, c, "degraded", data["degraded"])
	b.setState(b.nodes[2], cfs.StateUp)
	list := func() []cfs.Window {
		a := b.read(&cfs.Query{Kind: cfs.QueryWindows, BeforeNS: time.Now().Add(time.Hour).UnixNano()})
		if a.Kind != cfs.KindOK || a.More {
			t.Fatalf("%+v", a)
		}
		return a.Windows
	}
	first := len(list())
	if first < 8 {
		t.Fatalf("%d windows are worth it", first)
	}
	stop := running(t, r, RestripeConfig{MinAge: time.Nanosecond, Idle: time.Millisecond})
	eventually(t, "nothing is worth it", func() bool { return len(list()) == 0 })
	stop()
	if s := r.Stats(); s.RestripedWindows() > uint64(3*first) || s.RestripeFailures() > 0 {
		t.Errorf("%d windows were rewritten %d times, with %d failures", first, s.RestripedWindows(), s.RestripeFailures())
	}
	for name := range data {
		check(t, c, name, data[name])
	}
	b.checkStripes(t, r)
	t.Logf("%d windows, %d rewritten, %d conflicts", first, r.Stats().RestripedWindows(), r.Stats().RestripeConflicts())
}
