package client

import (
	"context"
	"errors"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// getAttempt bounds one attempt to fetch a range of a shard.
const getAttempt = 2 * time.Second

// errNoAnswer is the cause of an attempt that has taken getAttempt.
var errNoAnswer = errors.New("no answer in time")

// attemptGet is the context of one attempt to fetch a range of a shard.
func attemptGet(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, getAttempt, errNoAnswer)
}

// fetch reads p's blocks of a shard from where they are. With anyDevice it tries
// wherever they might be. certain says that the extents are: a shard that is not
// where it must be is missing.
func (c *Client) fetch(ctx context.Context, g *cfs.PG, id cfs.StripeID, p *part, anyDevice, certain bool) error {
	slot := g.Slots[p.shard]
	attempt, cancel := attemptGet(ctx)
	defer cancel()
	err := c.fetchFrom(attempt, holder(slot), id, p, certain && !slot.Filling)
	if err == nil || !anyDevice || !slot.Filling {
		return err
	}
	again, cancel := attemptGet(ctx)
	defer cancel()
	return c.fetchFrom(again, slot.Device, id, p, false)
}

// fetchFrom reads p's blocks of a shard from a device, within an attempt, and checks
// each against its CRC32C. A shard that is damaged, or that the device owes and does
// not have, is reported to its node.
func (c *Client) fetchFrom(attempt context.Context, device cfs.DeviceID, id cfs.StripeID, p *part, owed bool) error {
	at := c.layout.get().devices[device]
	if at == nil {
		return cfs.Errorf("get shard", cfs.Unavailable, "device %v has no address", device)
	}
	var m struct { // one piece of memory
		req   wirepb.GetShard
		key   wirepb.ShardKey
		reply wirepb.GetShardReply
	}
	m.key.StripeSession, m.key.StripeCounter, m.key.Shard = uint64(id.Session), id.Counter, uint32(p.shard)
	m.req.Device, m.req.Key, m.req.Off, m.req.Len = uint32(device), &m.key, p.off, uint32(len(p.b))
	n, err := c.data.Call(attempt, at.addr, wire.OpGetShard, &m.req, nil, &m.reply, p.b)
	crcs := m.reply.Crcs
	switch {
	case errors.Is(err, cfs.NotFound):
		if owed {
			c.report(device, id, p.shard)
		}
		return cfs.E("get shard", cfs.NotFound, errGone)
	case errors.Is(err, cfs.Corrupt):
		c.report(device, id, p.shard)
		return err
	case err != nil:
		if attempt.Err() == nil || context.Cause(attempt) == errNoAnswer { // not given up by the reader
			c.suspect(device, err)
		}
		return err
	case n != len(p.b) || len(crcs) != 4*n/cfs.BlockSize:
		return cfs.Errorf("get shard", cfs.BadRequest, "%d bytes and %d bytes of checksums for %d bytes", n, len(crcs), len(p.b))
	}
	first := p.off / cfs.BlockSize
	if bad := ec.CheckBlockCRCs(crcs, id, uint8(p.shard), first, p.b); bad >= 0 {
		c.stats.crcFailures.Add(1)
		c.log.Warn("shard is corrupt", "device", device, "stripe", id, "shard", p.shard, "block", first+uint32(bad))
		c.report(device, id, p.shard)
		return cfs.Errorf("get shard", cfs.Corrupt, "stripe %v shard %d block %d on device %v", id, p.shard, first+uint32(bad), device)
	}
	c.stats.shardsFetched.Add(1)
	c.stats.bytesFetched.Add(uint64(n))
	return nil
}

// reconstruct computes a range of a shard, which failed with cause, from the same
// range of K others. While fewer answer it tries again, then on any device: a node
// may be restarting, or down in the cluster's opinion only.
func (c *Client) reconstruct(ctx context.Context, j *shardRead, cause error, final bool) error {
	deadline := time.Now().Add(c.patience)
	backoff := minBackoff
	if j.stripe == nil {
		newStripeRead(ctx, c, nil).adopt(j)
	}
	for try := 0; ; try++ {
		err := c.tryReconstruct(j, j.part.b, source{anyDevice: try > 0, certain: final})
		if err == nil {
			c.stats.shardsReconstructed.Add(1)
			return nil
		}
		if errors.Is(err, errGone) && !final {
			return err // the stripe may have been freed
		}
		if ctx.Err() != nil {
			return ctxError("read", ctx)
		}
		if j.once || time.Now().After(deadline) {
			return cfs.E("read", cfs.IO, errors.Join(cause, err))
		}
		sleep(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
		asked := time.Now()
		if err := c.refreshMap(ctx); err != nil {
			c.log.Debug("map not refreshed", "err", err)
		}
		// While nobody answers at all, reading waits as everything does.
		deadline = deadline.Add(time.Since(asked))
		if g := c.layout.get().groups[j.pg]; g != nil {
			j.g = g
		}
		if c.fetch(ctx, j.g, j.x.Stripe, &j.part, true, final) == nil {
			return nil
		}
	}
}

// tryReconstruct computes j's blocks into a buffer.
func (c *Client) tryReconstruct(j *shardRead, into []byte, from source) error {
	geo := j.g.Geometry
	codec, err := c.codecs.For(geo)
	if err != nil {
		return err
	}
	shards := make([][]byte, geo.Total())
	if err := j.stripe.gather(j, shards, from); err != nil {
		return err
	}
	want := make([]bool, geo.Total())
	want[j.r.Shard] = true
	shards[j.r.Shard] = into[:0]
	return codec.Reconstruct(shards, want)
}
