package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// allShards are the shards of a file's first stripe.
func (b *bed) allShards(i cfs.Ino) (ids []shardID) {
	x := b.extents(i)[0]
	for n, s := range b.group(x.PG).Slots {
		ids = append(ids, shardID{s.Device, x.Stripe, uint8(n)})
	}
	return ids
}

// stick makes gets of shards wait until the function that it returns is called.
func (b *bed) stick(ids ...shardID) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan struct{})
	if b.stuck == nil {
		b.stuck = map[shardID]chan struct{}{}
	}
	for _, id := range ids {
		b.stuck[id] = ch
	}
	return func() { close(ch) }
}

// within is the result of fn, which is not to wait for ever.
func within(t *testing.T, what string, fn func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("never: the end of %s", what)
		return nil
	}
}

// TestLateShardsOfOneStripe: two hedges, each of which waits for the other's late shard,
// do not wait for ever when both fail; the read ends, and then the client.
func TestLateShardsOfOneStripe(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	shards := b.allShards(put(t, b.mount(t), "f", data))
	c := b.mount(t)
	c.patience = 100 * time.Millisecond
	f := open(t, c, "f", unix.O_RDONLY)
	c.hedgeAfter(hedgeMin)
	b.drop(shards[5])
	release := b.stick(shards[0], shards[1])
	go func() {
		for c.Stats().Hedges() < 2 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond) // until both wait
		release()
	}()
	err := within(t, "the read", func() error {
		_, err := f.Read(context.Background(), make([]byte, len(data)), 0)
		return err
	})
	wantKind(t, err, cfs.IO)
	must(t, within(t, "the file", func() error { return f.Close(t.Context()) }))
	must(t, within(t, "the client", func() error { return c.Close(t.Context()) }))
}

// TestHedgesEndWithTheRead: a read that is given up ends, whatever its hedges wait for.
func TestHedgesEndWithTheRead(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	shards := b.allShards(put(t, b.mount(t), "f", data))
	c := b.mount(t)
	f := open(t, c, "f", unix.O_RDONLY)
	c.hedgeAfter(hedgeMin)
	defer b.stick(shards...)()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for c.Stats().Hedges() < 2 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	err := within(t, "the read", func() error {
		_, err := f.Read(ctx, make([]byte, len(data)), 0)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	must(t, f.Close(t.Context()))
}

// TestGatherEndsWithTheRead: also where only others' parts are waited for, which end later.
func TestGatherEndsWithTheRead(t *testing.T) {
	b := newBed(t, 3)
	ino := put(t, b.mount(t), "f", randomBytes(1, 4<<20))
	c := b.mount(t)
	x := b.extents(ino)[0]
	ctx, cancel := context.WithCancel(t.Context())
	jobs := make([]shardRead, 5)
	for i := range jobs {
		jobs[i] = shardRead{x: &x, pg: x.PG, g: c.layout.get().groups[x.PG]}
		jobs[i].r.Shard, jobs[i].r.Len = i, cfs.BlockSize
		jobs[i].p = make([]byte, cfs.BlockSize)
		c.prepare(&jobs[i])
	}
	s := newStripeRead(ctx, c, jobs)
	time.AfterFunc(10*time.Millisecond, cancel)
	err := within(t, "gather", func() error { return s.gather(&jobs[0], make([][]byte, 6), source{}) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	s.end()
}

// TestLostShardsTakeNoMoreMemory however often they are tried, and are told of once each.
func TestLostShardsTakeNoMoreMemory(t *testing.T) {
	b := newBed(t, 3)
	shards := b.allShards(put(t, b.mount(t), "f", randomBytes(1, 4<<20)))
	x := b.extents(open(t, b.mount(t), "f", unix.O_RDONLY).n.ino)[0]
	for _, id := range shards[:3] {
		b.drop(id)
	}
	c := b.mount(t)
	j := shardRead{x: &x, pg: x.PG, g: c.layout.get().groups[x.PG], p: make([]byte, cfs.BlockSize)}
	j.r.Len = cfs.BlockSize
	c.prepare(&j)
	newStripeRead(t.Context(), c, nil).adopt(&j)
	var err error
	for range 20 {
		err = c.tryReconstruct(&j, j.part.b, source{anyDevice: true})
		wantKind(t, err, cfs.Unavailable)
	}
	if n := len(j.stripe.parts); n > len(shards) {
		t.Errorf("%d parts of %d shards", n, len(shards))
	}
	if n := strings.Count(err.Error(), errGone.Error()); n != 2 {
		t.Errorf("%d reasons for two shards: %v", n, err)
	}
	j.stripe.end()
}

// TestHealthyShardOfALostStripe: reads of a shard that is there do not wait for those that
// are not, not even the first.
func TestHealthyShardOfALostStripe(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	shards := b.allShards(put(t, b.mount(t), "f", data))
	c := b.mount(t)
	c.patience = time.Hour
	f := open(t, c, "f", unix.O_RDONLY)
	release := b.stick(shards[1], shards[2], shards[3])
	release()
	for i := range 8 { // of which some are while a device is suspect: the stripe is degraded
		p := make([]byte, 1<<20)
		c.suspects.add(shards[1].dev)
		must(t, within(t, "the read", func() error { _, err := f.Read(t.Context(), p, 0); return err }))
		same(t, "read", p, data[:1<<20])
		if n := len(c.wholes.set); n != 1 {
			t.Fatalf("%d stripes are known after %d reads", n, i+1)
		}
	}
	must(t, f.Close(t.Context()))
}

// TestHedgesAtOnce of a device that loses all the time, which is asked all the same.
func TestHedgesAtOnce(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	shards := b.allShards(put(t, b.mount(t), "f", data))
	c := b.mount(t)
	f := open(t, c, "f", unix.O_RDONLY)
	c.hedgeAfter(time.Hour)
	slow := b.node(shards[0].dev)
	slow.late.Store(int64(50 * time.Millisecond))
	for range hedgeAtOnce {
		c.slow.lost(shards[0].dev)
	}
	p := make([]byte, 4096)
	read := func() {
		t.Helper()
		_, err := f.Read(t.Context(), p, 0)
		must(t, err)
		same(t, "read", p, data[:4096])
	}
	read()
	if c.Stats().HedgeWins() != 1 {
		t.Errorf("%d hedges won", c.Stats().HedgeWins())
	}
	wait(t, "the slow device is asked", func() bool { return b.askedOf(slow) == 1 })
	slow.late.Store(0)
	for _, n := range b.nodes {
		if n != slow {
			n.late.Store(int64(50 * time.Millisecond))
		}
	}
	read()
	hedges := c.Stats().Hedges()
	read()
	if c.slow.losses(shards[0].dev) != 0 || c.Stats().Hedges() != hedges {
		t.Errorf("after it has won the device counts as slow")
	}
	for _, n := range b.nodes {
		n.late.Store(0)
	}
	must(t, f.Close(t.Context()))
}

func TestLaggards(t *testing.T) {
	var l laggards
	l.lost(1)
	l.lost(1)
	l.lost(2)
	if l.losses(1) != 2 || l.losses(2) != 1 || l.losses(3) != 0 {
		t.Errorf("%+v", l.by)
	}
	l.won(2)
	l.by[1] = lag{2, time.Now().Add(-1)}
	if l.losses(1) != 0 || l.losses(2) != 0 || l.n.Load() != 0 {
		t.Errorf("%+v are left", l.by)
	}
}
