package store

import (
	"context"
	"log/slog"
	"sort"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/wire"
)

// Config is what a Store needs. Logger and Metrics may be nil.
type Config struct {
	Node    cfs.NodeID
	Devices map[cfs.DeviceID]*nvme.Log
	Arena   *iopath.Arena
	// Epoch is the epoch of a group as this node knows it; false for a group that it does not know.
	Epoch func(cfs.PGID) (cfs.Epoch, bool)
	// ScrubBytesPerSecond bounds what Scrub reads of each device; 0 turns it off.
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
	cfg Config
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
	s := &Store{cfg: cfg}
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
	ids := make([]cfs.DeviceID, 0, len(s.cfg.Devices))
	for id := range s.cfg.Devices {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	return ids
}

// Stats are the figures of a device's log; false for a device not served here.
func (s *Store) Stats(id cfs.DeviceID) (nvme.LogStats, bool) {
	log := s.cfg.Devices[id]
	if log == nil {
		return nvme.LogStats{}, false
	}
	return log.Stats(), true
}

// FeedPosition is the position in the delete feed that a device has stored: what
// the feed names up to there is deleted for good. 0 for a device that has none, or is not served here.
func (s *Store) FeedPosition(id cfs.DeviceID) uint64 {
	log := s.cfg.Devices[id]
	if log == nil {
		return 0
	}
	return log.FeedPosition()
}

// FeedPositions is FeedPosition of every device served here.
func (s *Store) FeedPositions() map[cfs.DeviceID]uint64 {
	all := map[cfs.DeviceID]uint64{}
	for id, log := range s.cfg.Devices {
		all[id] = log.FeedPosition()
	}
	return all
}

// DeleteFreed deletes whatever shards of the given stripes the device holds, and
// reports how many there were; with them everything is deleted that the feed names
// up to position. A stripe that the device never held is not an error: the
// feed names a group's stripes to all devices. Unknown devices are NotFound.
func (s *Store) DeleteFreed(id cfs.DeviceID, stripes []cfs.StripeID, position uint64) (int, error) {
	log := s.cfg.Devices[id]
	if log == nil {
		return 0, cfs.Errorf("delete on "+id.String(), cfs.NotFound, "no such device on node %d", s.cfg.Node)
	}
	keys := make([]nvme.Key, 0, len(stripes)*maxShards)
	for _, st := range stripes {
		for shard := uint8(0); shard < maxShards; shard++ {
			keys = append(keys, nvme.Key{Stripe: st, Shard: shard})
		}
	}
	n := log.Delete(keys)
	log.SetFeedPosition(position)
	s.cfg.Metrics.deleted.Add(float64(n))
	return n, nil
}
