package store

import (
	"cmp"
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

// Scrub compares the shards of all devices with their checksums, and looks for those that are missing, again
// and again, until ctx ends; without a rate in Config it compares only when StartScrub asks for it. Damage is
// logged, counted, and left to Mend.
func (s *Store) Scrub(ctx context.Context) { s.each(ctx, s.scrubDevice) }

// scrubDevice scrubs a device until ctx ends or its log is closed.
func (s *Store) scrubDevice(ctx context.Context, d *device) {
	logger := s.cfg.Logger.With("device", d.id.String())
	next := time.Now().Add(min(s.cfg.ScrubPause, firstScrub))
	for {
		asked := false
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-d.scrubNow:
			asked = true
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
		next = time.Now().Add(s.cfg.ScrubPause)
		if err := s.scrubPass(ctx, d, logger, asked); err != nil {
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

// scrubPass looks at what is on a device and, which takes far less time and does not depend on it, for what is not.
func (s *Store) scrubPass(ctx context.Context, d *device, logger *slog.Logger, asked bool) (err error) {
	var walked error
	var group sync.WaitGroup
	if s.cfg.Ask != nil {
		group.Go(func() {
			d.repairs.again()
			walked = s.walk(ctx, d, walkPause)
		})
	}
	if asked || s.cfg.ScrubBytesPerSecond > 0 {
		err = s.scrubOnce(ctx, d, logger)
	}
	group.Wait()
	return cmp.Or(err, walked)
}

// scrubOnce is one pass over a device.
func (s *Store) scrubOnce(ctx context.Context, d *device, logger *slog.Logger) error {
	logged := 0
	began := time.Now()
	d.scrubFrom.Store(int64(d.log.Stats().ScrubbedBytes))
	defer d.scrubFrom.Store(-1)
	totals, err := d.log.Scrub(ctx, nvme.ScrubOptions{BytesPerSecond: s.cfg.ScrubBytesPerSecond, Report: func(found nvme.Damage) {
		// Where there is no room, the next pass finds it again.
		_ = d.repairs.push(repair{key: found.Record.Key, pg: found.Record.PG})
		if logged++; logged <= maxDamageLogged {
			logger.Error("damaged shard", "key", found.Record.Key.String(), "group", uint32(found.Record.PG),
				"damage", string(found.What), "block", found.Block, "offset", found.Offset, "err", found.Err)
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
