package test

import (
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/cluster/proxy"
	"github.com/claudefs/claudefs/wire"
)

// Every put may be late, lost with its connection, answered into the void, or come
// twice, the second time long after its file was written anew; commands come twice and
// lose their answers too. Files are what they should be.
func TestTransport(t *testing.T) {
	c := start(t, func(s *cluster.Spec) {
		s.Proxies = true
		s.ServerArgs = []string{"--reclaim-interval", "2s"}
	})
	mt := mount(t, c, "mnt")
	seed := newSeed(t)
	rng := newRand(seed, 100)
	m := newModel(t, mt.Point, seed)
	var mu sync.Mutex
	var delayed, cut, unanswered, twice int
	decide := func(r proxy.Request) (f proxy.Fate) {
		mu.Lock()
		defer mu.Unlock()
		put, command := r.Op == wire.OpPutShard, r.Op == wire.OpCommand
		switch n := rng.IntN(1000); {
		case !put && !command:
		case n < 6:
			cut++
			f.CutRequest = true
		case n < 12:
			unanswered++
			f.CutReply = true
		case put && n < 400:
			delayed++
			f.Delay = between(rng, 0, 100*time.Millisecond)
		case put && n < 700:
			twice++
			f.Twice, f.Again = true, between(rng, 0, 3*time.Second)
		case command && n < 100:
			twice++
			f.Twice, f.Again = true, between(rng, 0, time.Second)
		}
		return f
	}
	for n := 1; n <= c.Nodes(); n++ {
		c.Proxy(n).SetFates(decide)
	}
	m.run()
	time.Sleep(chaosTime(6 * time.Second))
	m.stop()
	m.remount(mt)
	m.verify("through a bad transport")
	for n := 1; n <= c.Nodes(); n++ {
		c.Proxy(n).SetFates(nil)
	}
	mu.Lock()
	t.Logf("%d requests late, %d cut, %d unanswered, %d sent twice", delayed, cut, unanswered, twice)
	if delayed == 0 || cut == 0 || unanswered == 0 || twice == 0 {
		t.Error("a fault never happened")
	}
	mu.Unlock()
	if err := c.WaitUsable(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.remount(mt)
	m.verify("through a good transport again")
	settle(t, c, mt)
}
