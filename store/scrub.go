package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

const (
	// DefaultScrubPause is the time between the starts of two passes over a device when Config does not say.
	DefaultScrubPause = 24 * time.Hour
	// firstScrub is when the first pass begins at the latest: not with the start, when all is asked for.
	firstScrub = 10 * time.Minute
	// scrubRetry is how long a pass that failed is waited behind at least.
	scrubRetry = time.Minute
	// maxDamageLogged bounds the damaged shards that one pass over a device logs; the others are counted.
	maxDamageLogged = 100
)

// Scrub compares the shards of all devices with their checksums, again and
// again, until ctx ends; it returns at once when Config has no rate for it. Damage is logged and counted.
func (s *Store) Scrub(ctx context.Context) {
	if s.cfg.ScrubBytesPerSecond <= 0 {
		return
	}
	var group sync.WaitGroup
	for id, log := range s.cfg.Devices {
		group.Go(func() { s.scrubDevice(ctx, log, s.cfg.Logger.With("device", id.String())) })
	}
	group.Wait()
}

// scrubDevice scrubs a device until ctx ends or its log is closed.
func (s *Store) scrubDevice(ctx context.Context, log *nvme.Log, logger *slog.Logger) {
	next := time.Now().Add(min(s.cfg.ScrubPause, firstScrub))
	for {
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		next = time.Now().Add(s.cfg.ScrubPause)
		if err := s.scrubOnce(ctx, log, logger); err != nil {
			if ctx.Err() != nil || cfs.KindOf(err) == cfs.Closed {
				return
			}
			logger.Error("a scrub failed", "err", err)
			if soonest := time.Now().Add(scrubRetry); next.Before(soonest) {
				next = soonest
			}
		}
	}
}

// scrubOnce is one pass over a device.
func (s *Store) scrubOnce(ctx context.Context, log *nvme.Log, logger *slog.Logger) error {
	logged := 0
	began := time.Now()
	totals, err := log.Scrub(ctx, nvme.ScrubOptions{BytesPerSecond: s.cfg.ScrubBytesPerSecond, Report: func(d nvme.Damage) {
		if logged++; logged <= maxDamageLogged {
			logger.Error("damaged shard", "key", d.Record.Key.String(), "group", uint32(d.Record.PG),
				"damage", string(d.What), "block", d.Block, "offset", d.Offset, "err", d.Err)
		}
	}})
	if err != nil {
		return err
	}
	if totals.Damaged > maxDamageLogged {
		logger.Error("more damaged shards than are logged", "damaged", totals.Damaged, "logged", maxDamageLogged)
	}
	logger.Info("scrubbed", "shards", totals.Records, "bytes", totals.Bytes, "damaged", totals.Damaged, "took", time.Since(began))
	return nil
}
