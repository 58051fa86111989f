package client

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// wait polls until ok, for a time that no healthy run needs.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// hedgeAfter fixes the time that shards are given.
func (c *Client) hedgeAfter(d time.Duration) {
	c.hedging.small.delayNS.Store(int64(d))
	c.hedging.large.delayNS.Store(int64(d))
}

// node is the one that a device belongs to.
func (b *bed) node(d cfs.DeviceID) *storage { return b.nodes[d.Node()-1] }

func (b *bed) askedOf(n *storage) (total int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for d, times := range b.asked {
		if d.Node() == n.node {
			total += times
		}
	}
	return total
}

// TestHedgeWins: a node answers long after others could; reads do not wait for it, and
// what it sends late goes nowhere.
func TestHedgeWins(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 8<<20)
	ino := put(t, b.mount(t), "f", data)
	slow := b.node(b.dataShards(ino)[0].dev)
	c := b.mount(t)
	f := open(t, c, "f", unix.O_RDONLY)
	c.hedgeAfter(hedgeMin)
	slow.late.Store(int64(150 * time.Millisecond))
	rng := rand.New(rand.NewPCG(1, 2))
	var bufs [][]byte
	for i := range 40 {
		n := 4096
		if i%8 == 0 {
			n = 3 << 20
		}
		off := rng.IntN(len(data) - n)
		p := make([]byte, n)
		_, err := f.Read(t.Context(), p, uint64(off))
		must(t, err)
		same(t, fmt.Sprint("at ", off), p, data[off:off+n])
		for j := range p {
			p[j] = 0xaa
		}
		bufs = append(bufs, p)
	}
	if c.Stats().HedgeWins() == 0 || b.askedOf(slow) == 0 {
		t.Errorf("%d hedges, %d won; the slow node was asked %d times", c.Stats().Hedges(), c.Stats().HedgeWins(), b.askedOf(slow))
	}
	slow.late.Store(0)
	time.Sleep(200 * time.Millisecond) // until the late answers are there
	for i, p := range bufs {
		if !bytes.Equal(p, bytes.Repeat([]byte{0xaa}, len(p))) {
			t.Errorf("a late answer changed the memory of read %d", i)
		}
	}
	if c.suspects.n.Load() != 0 {
		t.Error("a slow device is suspected to have failed")
	}
	must(t, f.Close(t.Context()))
}

// TestFetchWins: the late shard comes while its hedge waits for others that are later.
func TestFetchWins(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	ino := put(t, b.mount(t), "f", data)
	c := b.mount(t)
	f := open(t, c, "f", unix.O_RDONLY)
	c.hedgeAfter(hedgeMin)
	first := b.node(b.dataShards(ino)[0].dev)
	for _, n := range b.nodes {
		n.delay.Store(int64(time.Hour))
	}
	first.delay.Store(int64(50 * time.Millisecond))
	p := make([]byte, 4096)
	_, err := f.Read(t.Context(), p, 0)
	must(t, err)
	same(t, "read", p, data[:4096])
	if c.Stats().Hedges() != 1 || c.Stats().HedgeWins() != 0 || c.hedging.small.n != 1 {
		t.Errorf("%d hedges, %d won, %d samples", c.Stats().Hedges(), c.Stats().HedgeWins(), c.hedging.small.n)
	}
	must(t, f.Close(t.Context()))
}

// TestHedgesAreBounded: above the bound reads wait.
func TestHedgesAreBounded(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	ino := put(t, b.mount(t), "f", data)
	c := b.mount(t)
	f := open(t, c, "f", unix.O_RDONLY)
	c.hedgeAfter(hedgeMin)
	b.node(b.dataShards(ino)[0].dev).delay.Store(int64(50 * time.Millisecond))
	for range maxHedges {
		c.hedging.running <- struct{}{}
	}
	p := make([]byte, 4096)
	_, err := f.Read(t.Context(), p, 0)
	must(t, err)
	same(t, "read", p, data[:4096])
	if c.Stats().Hedges() != 0 {
		t.Errorf("%d hedges", c.Stats().Hedges())
	}
	must(t, f.Close(t.Context()))
}

func TestLatencies(t *testing.T) {
	h := newHedging()
	if h.class(hedgeSmall) != &h.small || h.class(hedgeSmall+1) != &h.large {
		t.Error("classes")
	}
	l := &h.small
	for i := range hedgeEvery {
		if got := l.delayNS.Load(); got != int64(hedgeStart) {
			t.Fatalf("%v after %d samples", time.Duration(got), i)
		}
		l.add(time.Duration(i) * time.Millisecond)
	}
	if got := time.Duration(l.delayNS.Load()); got != (hedgeEvery-1)*time.Millisecond {
		t.Errorf("%v after %d samples", got, hedgeEvery)
	}
	for i := range hedgeSamples { // a window of 1 ms to 512 ms, in any order
		l.add(time.Duration((i*7)%hedgeSamples+1) * time.Millisecond)
	}
	if got := time.Duration(l.delayNS.Load()); got != 507*time.Millisecond {
		t.Errorf("%v is not the 99th percentile", got)
	}
	for range hedgeSamples {
		l.add(time.Microsecond)
	}
	if got := time.Duration(l.delayNS.Load()); got != hedgeMin {
		t.Errorf("%v, want the least", got)
	}
}

func TestAllocHedge(t *testing.T) {
	c := &Client{hedging: newHedging()}
	j := &shardRead{}
	abort := func() {}
	if n := allocs(t, func() {
		c.watch(context.Background(), j, abort, time.Hour).end(nil, false)
		c.hedging.small.add(time.Millisecond)
		c.slow.won(1)
	}); n != 0 {
		t.Errorf("watching a fetch allocates %v times", n)
	}
}

// TestDegradedReadsFetchOnce: while a node is down a sequential reader fetches about as
// many bytes as it reads, whatever the size of its reads, several of them at a time.
func TestDegradedReadsFetchOnce(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 32<<20+12345)
	put(t, b.mount(t), "f", data)
	b.nodes[1].stop()
	b.setState(b.nodes[1], cfs.StateDown)
	for _, c := range []struct {
		piece, first, readers int
	}{{8 << 20, 0, 1}, {4 << 20, 0, 2}, {1 << 20, 0, 8}, {1 << 20, 300_000, 4}, {3 << 20, 0, 1}} {
		t.Run(fmt.Sprintf("%dKiB from %d by %d", c.piece>>10, c.first, c.readers), func(t *testing.T) {
			m := b.mount(t)
			m.hedgeAfter(time.Hour)
			f := open(t, m, "f", unix.O_RDONLY)
			offs := make(chan int)
			var wg sync.WaitGroup
			for range c.readers {
				wg.Go(func() {
					p := make([]byte, c.piece)
					for off := range offs {
						n, err := f.Read(t.Context(), p, uint64(off))
						if want := data[off:min(off+c.piece, len(data))]; err != nil || !bytes.Equal(p[:n], want) {
							t.Errorf("at %d: %d bytes, %v", off, n, err)
						}
					}
				})
			}
			for off := c.first; off < len(data); off += c.piece {
				offs <- off
			}
			close(offs)
			wg.Wait()
			if ratio := float64(m.Stats().BytesFetched()) / float64(len(data)-c.first); ratio > 1.3 || m.Stats().ShardsReconstructed() == 0 {
				t.Errorf("%.2f bytes fetched for each byte read, %d shards reconstructed", ratio, m.Stats().ShardsReconstructed())
			}
			must(t, f.Close(t.Context()))
		})
	}
	// A small read of a stripe does not fetch it whole.
	m := b.mount(t)
	m.hedgeAfter(time.Hour)
	f := open(t, m, "f", unix.O_RDONLY)
	for off := 0; off < 4<<20; off += 1 << 19 {
		p := make([]byte, 4096)
		_, err := f.Read(t.Context(), p, uint64(off))
		must(t, err)
		same(t, "small", p, data[off:off+4096])
	}
	if got := m.Stats().BytesFetched(); got > 8*4*4096 {
		t.Errorf("%d bytes fetched for 8 small reads", got)
	}
	must(t, f.Close(t.Context()))
}

func TestWholesAreBounded(t *testing.T) {
	var w wholes
	id := func(i int) cfs.StripeID { return cfs.StripeID{Session: 1, Counter: uint64(i)} }
	var held []*whole
	for i := range maxWholes {
		s, fresh := w.take(id(i))
		if s == nil || !fresh {
			t.Fatalf("stripe %d: %v, %v", i, s, fresh)
		}
		w.loaded(id(i), s, make([]byte, 4096), nil)
		held = append(held, s)
	}
	if s, _ := w.take(id(99)); s != nil {
		t.Error("more than the bound")
	}
	if s, fresh := w.take(id(3)); s != held[3] || fresh {
		t.Error("a stripe that is there is loaded again")
	}
	w.give(held[3])
	w.give(held[7])
	s, fresh := w.take(id(99))
	if s == nil || !fresh || w.set[id(7)] != nil || held[7].b != nil {
		t.Errorf("the one that nobody uses did not make room")
	}
	w.loaded(id(99), s, nil, errGone)
	if w.set[id(99)] != nil {
		t.Error("what is gone is kept")
	}
	w.give(s)
	s, _ = w.take(id(98))
	w.loaded(id(98), s, nil, cfs.Unavailable)
	w.give(s)
	failed := s.used
	if s, fresh := w.take(id(98)); fresh || s.used != failed {
		t.Error("a failure is forgotten at once, or never")
	}
	w.give(s)
	w.forget(failed.Add(time.Second))
	if w.set[id(98)] != nil {
		t.Error("a failure is not forgotten")
	}
	for i, s := range held {
		if i != 7 {
			w.give(s)
		}
	}
	w.forget(time.Now().Add(time.Hour))
	if len(w.set) != 0 {
		t.Errorf("%d stripes are left", len(w.set))
	}
}
