package node

import (
	"context"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// feedEvery is the rhythm in which the delete feed is asked when it is dry.
	feedEvery = time.Second
	// feedBatch bounds the stripes of one answer.
	feedBatch = 1024
)

// feed follows the ordered feed of stripes that nothing references any more.
// Each device has a position: it has deleted everything up to there. A position
// starts at what the device has stored, or what the cluster has recorded for a new device.
// The cluster is told what is durable on the device, so that the feed's rows can go: a
// crash makes a device forget deletes, and it goes over that part of the feed again.
type feed struct {
	mu   sync.Mutex
	pos  map[cfs.DeviceID]uint64
	told map[cfs.DeviceID]uint64 // what the cluster has recorded
}

func newFeed(stored map[cfs.DeviceID]uint64) *feed {
	return &feed{pos: stored, told: map[cfs.DeviceID]uint64{}}
}

// add follows the feed for another device, from the position that it has stored.
func (f *feed) add(id cfs.DeviceID, stored uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pos[id] = stored
}

// remove leaves a device out from now on.
func (f *feed) remove(id cfs.DeviceID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pos, id)
	delete(f.told, id)
}

// position is how far a device has come.
func (f *feed) position(id cfs.DeviceID) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pos[id]
}

// adopt takes over positions that the cluster has recorded, where they are
// ahead, and reports whether the cluster knows all of the devices.
func (f *feed) adopt(m *cfs.Map) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := 0
	for i := range m.Devices {
		d := &m.Devices[i]
		if old, ours := f.pos[d.ID]; ours {
			f.pos[d.ID] = max(old, d.FeedPos)
			f.told[d.ID] = max(f.told[d.ID], d.FeedPos)
			known++
		}
	}
	return known == len(f.pos)
}

// least is the position that every device has reached.
func (f *feed) least() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var least uint64
	first := true
	for _, pos := range f.pos {
		if first || pos < least {
			least, first = pos, false
		}
	}
	return least
}

// untold reports whether the cluster has not recorded a position of a device yet.
func (f *feed) untold(id cfs.DeviceID, pos uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pos > f.told[id]
}

func (f *feed) tell(id cfs.DeviceID, pos uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told[id] = max(f.told[id], pos)
}

func (f *feed) advance(id cfs.DeviceID, pos uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, ours := f.pos[id]; ours {
		f.pos[id] = max(old, pos)
	}
}

// followFeed deletes the shards of freed stripes until ctx ends.
func (n *Node) followFeed(ctx context.Context) {
	tick := time.NewTicker(feedEvery)
	defer tick.Stop()
	for {
		if err := n.drainFeed(ctx); err != nil && ctx.Err() == nil {
			n.log.Debug("the delete feed is put off", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// drainFeed follows the feed to its end, then records how far it came. It does
// nothing before the cluster knows all the node's devices.
func (n *Node) drainFeed(ctx context.Context) error {
	if !n.feed.adopt(n.raft.Map()) {
		return nil
	}
	for more := true; more; {
		var err error
		if more, err = n.feedOnce(ctx); err != nil {
			return err
		}
	}
	for _, id := range n.store.Devices() {
		if err := n.feedDone(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// feedDone records a device's position with the cluster if it has moved.
func (n *Node) feedDone(ctx context.Context, id cfs.DeviceID) error {
	pos := n.store.FeedPosition(id)
	if !n.feed.untold(id, pos) {
		return nil
	}
	op := cfs.Op{Kind: cfs.OpFeedDone, Device: cfs.Device{ID: id, FeedPos: pos}}
	if err := n.propose(ctx, "record the feed position of "+id.String(), op); err != nil {
		return err
	}
	n.feed.tell(id, pos)
	return nil
}

// feedOnce deletes what one answer of the feed names; more says that it goes on.
func (n *Node) feedOnce(ctx context.Context) (more bool, err error) {
	ans, err := n.ask(ctx, &cfs.Query{Kind: cfs.QueryFeed, Off: n.feed.least(), Limit: feedBatch})
	if err != nil {
		return false, err
	}
	if ans.Kind != cfs.KindOK {
		return false, cfs.E("delete feed", ans.Kind, nil)
	}
	if len(ans.Freed) == 0 {
		return false, nil
	}
	if err := n.bridgeGap(ctx, ans.Freed[0].Pos); err != nil {
		return false, err
	}
	last := ans.Freed[len(ans.Freed)-1].Pos
	stripes := make([]cfs.StripeID, 0, len(ans.Freed))
	for _, id := range n.store.Devices() {
		stripes = stripes[:0]
		for _, f := range ans.Freed {
			if f.Pos > n.feed.position(id) {
				stripes = append(stripes, f.Stripe)
			}
		}
		if _, err := n.store.DeleteFreed(id, stripes, last); err != nil {
			return false, err
		}
		n.feed.advance(id, last)
	}
	return ans.More, nil
}

// bridgeGap brings every device to the start of what the feed still has. Where the feed has gone on
// without a device, all that it holds is compared with the stripe table instead: what was freed meanwhile is
// not there any more.
func (n *Node) bridgeGap(ctx context.Context, first uint64) error {
	for _, id := range n.store.Devices() {
		pos := n.feed.position(id)
		if first <= pos+1 {
			continue
		}
		n.log.Warn("the delete feed went on without a device: its shards are compared with the stripe table",
			"device", id.String(), "from", pos+1, "to", first-1)
		if err := n.store.Reclaim(ctx, id); err != nil {
			return err
		}
		if _, err := n.store.DeleteFreed(id, nil, first-1); err != nil {
			return err
		}
		n.feed.advance(id, first-1)
	}
	return nil
}
