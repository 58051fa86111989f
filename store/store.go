package store

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/wire"
)

// Config is what a Store needs. Logger and Metrics may be nil. Without Ask
// nothing is mended: shards are served, and that is all.
type Config struct {
	Node    cfs.NodeID
	Devices map[cfs.DeviceID]*nvme.Log // that are served from the start; see AddDevice
	Arena   *iopath.Arena              // with room for MendArenaBytes beside what requests need
	// Pool reaches the shards of other nodes.
	Pool *wire.Pool
	// Ask asks the namespace, linearizably.
	Ask func(context.Context, *cfs.Query) (*cfs.Answer, error)
	// Map is the cluster as this node knows it, by which puts are admitted; what it returned does not change. After a start it may be older
	// than what the node went by before, for a while: nothing is filled, and nothing that the table has is
	// deleted, before it is as new as the namespace was when asked.
	Map func() *cfs.Map
	// FillDone tells the cluster that a device of this node, in a filling slot of a group, has every shard
	// as of an epoch of the group.
	FillDone func(ctx context.Context, pg cfs.PGID, device cfs.DeviceID, epoch cfs.Epoch) error
	// ReclaimInterval is the least time between two comparisons of all shards with the stripe table, which is longer
	// for a device whose comparison takes long; 0 for DefaultReclaimInterval.
	ReclaimInterval time.Duration
	// ScrubBytesPerSecond bounds what Scrub reads of each device; 0 leaves it to StartScrub to begin a pass.
	ScrubBytesPerSecond int64
	// ScrubPause is the time from the start of one pass of Scrub to that of the next, unless
	// the pass takes longer; 0 for DefaultScrubPause.
	ScrubPause time.Duration
	Logger     *slog.Logger
	Metrics    *Metrics
}

// Store serves the shards of one node. Its methods may be called concurrently.
// It does not own the logs: whoever opened them closes them after the last Serve.
type Store struct {
	cfg     Config
	codecs  ec.Codecs
	stripes chan struct{} // one token for each stripe that is being mended
	layouts atomic.Pointer[layout]
	rates   rates

	mu      sync.RWMutex
	devices map[cfs.DeviceID]*device
	added   chan struct{} // closed when a device is added
}

// New makes a Store over opened logs.
func New(cfg Config) *Store {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.ScrubPause == 0 {
		cfg.ScrubPause = DefaultScrubPause
	}
	if cfg.ReclaimInterval == 0 {
		cfg.ReclaimInterval = DefaultReclaimInterval
	}
	s := &Store{cfg: cfg, stripes: make(chan struct{}, maxMending), devices: map[cfs.DeviceID]*device{}, added: make(chan struct{})}
	for id, log := range cfg.Devices {
		s.devices[id] = newDevice(id, log)
	}
	cfg.Metrics.watch(s)
	return s
}

// Alloc is the memory for an incoming payload of n bytes: an arena buffer,
// waited for while the arena is exhausted. It fails with BadRequest for a
// length that no shard has, otherwise as ctx does.
func (s *Store) Alloc(ctx context.Context, op wire.Op, n int) (wire.Buffer, error) {
	if op != wire.OpPutShard || n > cfs.MaxShardSize {
		return nil, cfs.Errorf("receive", cfs.BadRequest, "a payload of %d bytes does not belong to %v", n, op)
	}
	return s.cfg.Arena.Get(ctx, n)
}

// Devices are the ids of the devices served, in order.
func (s *Store) Devices() []cfs.DeviceID {
	all := s.all()
	ids := make([]cfs.DeviceID, len(all))
	for i, d := range all {
		ids[i] = d.id
	}
	return ids
}

// all is the devices served, in the order of their ids.
func (s *Store) all() []*device {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*device, 0, len(s.devices))
	for _, d := range s.devices {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *device) int { return cmp.Compare(a.id, b.id) })
	return all
}

// find is a device that is served, nil for another.
func (s *Store) find(id cfs.DeviceID) *device {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.devices[id]
}

// Stats are the figures of a device's log; false for a device not served here.
func (s *Store) Stats(id cfs.DeviceID) (nvme.LogStats, bool) {
	d := s.find(id)
	if d == nil {
		return nvme.LogStats{}, false
	}
	return d.log.Stats(), true
}

// FeedPosition is the position in the delete feed that a device has stored: what
// the feed names up to there is deleted for good. 0 for a device that has none, or is not served here.
func (s *Store) FeedPosition(id cfs.DeviceID) uint64 {
	d := s.find(id)
	if d == nil {
		return 0
	}
	return d.log.FeedPosition()
}

// FeedPositions is FeedPosition of every device served here.
func (s *Store) FeedPositions() map[cfs.DeviceID]uint64 {
	positions := map[cfs.DeviceID]uint64{}
	for _, d := range s.all() {
		positions[d.id] = d.log.FeedPosition()
	}
	return positions
}

// DeleteFreed deletes whatever shards of the given stripes the device holds, and
// reports how many there were; with them everything is deleted that the feed names
// up to position. A stripe that the device never held is not an error: the
// feed names a group's stripes to all devices. Unknown devices are NotFound.
func (s *Store) DeleteFreed(id cfs.DeviceID, stripes []cfs.StripeID, position uint64) (int, error) {
	d := s.find(id)
	if d == nil {
		return 0, s.noDevice("delete on "+id.String(), id)
	}
	keys := make([]nvme.Key, 0, len(stripes)*maxShards)
	for _, st := range stripes {
		for shard := uint8(0); shard < maxShards; shard++ {
			keys = append(keys, nvme.Key{Stripe: st, Shard: shard})
		}
	}
	n := d.log.Delete(keys)
	d.log.SetFeedPosition(position)
	s.cfg.Metrics.deleted.Add(float64(n))
	return n, nil
}

func (s *Store) noDevice(op string, id cfs.DeviceID) error {
	return cfs.Errorf(op, cfs.NotFound, "no device %s on node %d", id, s.cfg.Node)
}
