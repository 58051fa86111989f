package node

import (
	"context"
	"log/slog"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/store"
)

// Where the feed has gone on without a device, what is dead on it is found by comparing, and only
// then is its position set: a comparison that fails leaves it where it was.
func TestFeedGap(t *testing.T) {
	cfg := aloneConfig(t, t.TempDir())
	cfg.Logger = slog.New(slog.DiscardHandler)
	dir, err := openDataDir(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.close()
	devices, err := openDevices(&cfg, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer devices.close()
	behind, current := cfs.MakeDeviceID(1, 0), cfs.MakeDeviceID(1, 1)
	live, dead := cfs.StripeID{Session: 1, Counter: 1}, cfs.StripeID{Session: 1, Counter: 2}
	for _, id := range []cfs.DeviceID{behind, current} {
		for _, st := range []cfs.StripeID{live, dead} {
			buf, err := devices.arena.Get(t.Context(), cfs.BlockSize)
			if err != nil {
				t.Fatal(err)
			}
			crcs := ec.BlockCRCs(nil, st, 0, 0, buf.Bytes())
			rec := nvme.Record{Key: nvme.Key{Stripe: st}, PG: 1, Epoch: 1, Len: cfs.BlockSize}
			if err := devices.find(id).log.Put(t.Context(), rec, crcs, buf); err != nil {
				t.Fatal(err)
			}
			buf.Release()
		}
	}
	answers := false
	ask := func(_ context.Context, q *cfs.Query) (*cfs.Answer, error) {
		if !answers {
			return nil, cfs.E("ask", cfs.Unavailable, nil)
		}
		ans := &cfs.Answer{Map: &cfs.Map{}}
		for _, ref := range q.Stripes {
			fate := cfs.FateDead
			if ref.Stripe == live {
				fate = cfs.FateLive
			}
			ans.Fates = append(ans.Fates, fate)
		}
		return ans, nil
	}
	m := &cfs.Map{}
	n := &Node{cfg: cfg, log: cfg.Logger, devices: devices, feed: newFeed(map[cfs.DeviceID]uint64{behind: 3, current: 9})}
	n.store = store.New(store.Config{Node: 1, Devices: devices.logs(), Arena: devices.arena, Ask: ask, Map: func() *cfs.Map { return m }})
	if err := n.bridgeGap(t.Context(), 10); cfs.KindOf(err) != cfs.Unavailable || n.feed.position(behind) != 3 {
		t.Errorf("without an answer: %v, position %d", err, n.feed.position(behind))
	}
	answers = true
	if err := n.bridgeGap(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if got := n.feed.position(behind); got != 9 {
		t.Errorf("position %d", got)
	}
	for id, want := range map[cfs.DeviceID]int{behind: 1, current: 2} {
		if stats, _ := n.store.Stats(id); stats.Records != want {
			t.Errorf("device %v has %d shards, want %d", id, stats.Records, want)
		}
	}
}
