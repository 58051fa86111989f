package client

import (
	"context"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxReports bounds the reports that wait to be sent; others are dropped, and made
	// again by the next reader.
	maxReports = 256
	// maxReported bounds the shards that are remembered as reported.
	maxReported = 1024
	// reportAgain is how long a shard that was reported is not reported again: its repair
	// takes a while.
	reportAgain = 30 * time.Second
	// reportAttempt bounds the sending of a report.
	reportAttempt = 2 * time.Second
)

// damage is a shard that is damaged, or not where it must be.
type damage struct {
	device cfs.DeviceID
	stripe cfs.StripeID
	shard  int
}

// reports tells nodes of damage, in the background.
type reports struct {
	queue chan damage
	mu    sync.Mutex
	seen  map[damage]time.Time // when it was reported
}

func newReports() *reports {
	return &reports{queue: make(chan damage, maxReports), seen: map[damage]time.Time{}}
}

// add notes damage; false when it is known, or there is no room.
func (r *reports) add(d damage, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.seen[d]; ok && now.Sub(t) < reportAgain {
		return false
	}
	if len(r.seen) >= maxReported {
		for k, t := range r.seen {
			if now.Sub(t) >= reportAgain {
				delete(r.seen, k)
			}
		}
	}
	if len(r.seen) >= maxReported {
		return false
	}
	select {
	case r.queue <- d:
	default:
		return false
	}
	r.seen[d] = now
	return true
}

// failed forgets that damage was reported.
func (r *reports) failed(d damage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.seen, d)
}

// report has the owner of a damaged or missing shard told. It does not wait.
func (c *Client) report(device cfs.DeviceID, id cfs.StripeID, shard int) {
	c.reports.add(damage{device, id, shard}, time.Now())
}

// sendReports sends what is reported until the client ends.
func (c *Client) sendReports() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case d := <-c.reports.queue:
			if err := c.sendReport(d); err != nil {
				c.reports.failed(d)
				c.log.Debug("damage not reported", "device", d.device, "stripe", d.stripe, "shard", d.shard, "err", err)
				continue
			}
			c.stats.shardsReported.Add(1)
		}
	}
}

func (c *Client) sendReport(d damage) error {
	at := c.layout.get().devices[d.device]
	if at == nil {
		return cfs.Errorf("report shard", cfs.Unavailable, "device %v has no address", d.device)
	}
	ctx, cancel := context.WithTimeout(c.ctx, reportAttempt)
	defer cancel()
	_, err := c.data.Call(ctx, at.addr, wire.OpReportShard, &wirepb.ReportShard{Device: uint32(d.device), Key: shardKey(d.stripe, d.shard)}, nil, nil, nil)
	return err
}
