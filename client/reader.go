package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// getAttempt bounds one attempt to fetch a range of a shard.
	getAttempt = 2 * time.Second
	// maxRefetch is how often a read asks for the extents again because a shard
	// that they name is gone.
	maxRefetch = 2
	// maxUnreadable is how long a stripe of which fewer than K shards answer is
	// tried again: a node that restarts is back by then.
	maxUnreadable = 10 * time.Second
)

// errGone says that a node does not have a shard: its stripe may have been freed.
var errGone = errors.New("shard is gone")

// Read reads into p from off; it is short only at the end of the file.
func (f *File) Read(ctx context.Context, p []byte, off uint64) (int, error) {
	return f.n.read(ctx, p, off)
}

func (n *inode) read(ctx context.Context, p []byte, off uint64) (int, error) {
	for try := 0; ; try++ {
		size, gaps := n.readWritten(p, off)
		if off >= size {
			return 0, nil
		}
		want := int(min(uint64(len(p)), size-off))
		var err error
		for _, g := range gaps {
			if err = n.readCommitted(ctx, p[g.off-off:g.end-off], g.off, try == maxRefetch); err != nil {
				break
			}
		}
		if errors.Is(err, errGone) && try < maxRefetch {
			n.dropExtents()
			continue
		}
		if err != nil {
			return 0, err
		}
		return want, nil
	}
}

// span is the range [off, end) of a file.
type span struct{ off, end uint64 }

// readWritten copies what is written here and not yet committed, and returns the
// file's size and the ranges that must come from the cluster.
func (n *inode) readWritten(p []byte, off uint64) (size uint64, gaps []span) {
	n.mu.Lock()
	defer n.mu.Unlock()
	size = n.sizeLocked()
	if off >= size {
		return size, nil
	}
	end := min(off+uint64(len(p)), size)
	gaps = []span{{off, end}}
	for _, k := range n.chunks { // a later chunk covers an earlier
		if !k.overlaps(off, end) {
			continue
		}
		from, to := max(off, k.off), min(end, k.end())
		copy(p[from-off:to-off], k.data()[from-k.off:to-k.off])
		gaps = cut(gaps, from, to)
	}
	return size, gaps
}

// cut takes [off, end) out of the spans.
func cut(spans []span, off, end uint64) []span {
	var out []span
	for _, s := range spans {
		if s.end <= off || end <= s.off {
			out = append(out, s)
			continue
		}
		if s.off < off {
			out = append(out, span{s.off, off})
		}
		if end < s.end {
			out = append(out, span{end, s.end})
		}
	}
	return out
}

// readCommitted fills p with the file's committed bytes from off on. final says
// that a shard that is gone is to be reconstructed: the extents are certain.
func (n *inode) readCommitted(ctx context.Context, p []byte, off uint64, final bool) error {
	end := off + uint64(len(p))
	var jobs []shardRead
	for at := off; at < end; {
		rows, upTo, err := n.extentsFor(ctx, at, end)
		if err != nil {
			return err
		}
		pos := at
		for i := range rows {
			x := &rows[i]
			if x.End() <= pos {
				continue
			}
			if x.Off >= upTo {
				break
			}
			from, to := max(pos, x.Off), min(upTo, x.End())
			clear(p[pos-off : from-off]) // a hole before it
			jobs = n.readExtent(jobs, x, from, p[from-off:to-off])
			pos = to
		}
		clear(p[pos-off : upTo-off])
		at = upTo
	}
	return n.c.readShards(ctx, jobs, final)
}

// readExtent reads the part of x that starts at from and is as long as p: at once
// where it needs no shard, else as further jobs.
func (n *inode) readExtent(jobs []shardRead, x *cfs.Extent, from uint64, p []byte) []shardRead {
	skip := from - x.Off
	switch x.Kind {
	case cfs.ExtentInline:
		copy(p, x.Inline[skip:])
	case cfs.ExtentStripe:
		g := n.c.layout.get().groups[x.PG]
		if g == nil {
			return append(jobs, shardRead{x: x, pg: x.PG})
		}
		var ranges [4]ec.ShardRange
		for _, r := range ec.AppendCover(ranges[:0], g.Geometry, x.StripeLen, x.StripeOff+uint32(skip), uint32(len(p))) {
			jobs = append(jobs, shardRead{x: x, pg: x.PG, g: g, r: r, p: p[:r.DataLen]})
			p = p[r.DataLen:]
		}
		if len(p) > 0 { // no stripe of this geometry: the map that we have must be wrong
			jobs = append(jobs, shardRead{x: x, pg: x.PG})
		}
	default:
		clear(p)
	}
	return jobs
}

// shardRead is one range of one shard to be read into p.
type shardRead struct {
	x  *cfs.Extent
	pg cfs.PGID
	g  *cfs.PG // nil: the map that we have does not know it
	r  ec.ShardRange
	p  []byte
}

// readShards does the reads in parallel.
func (c *Client) readShards(ctx context.Context, jobs []shardRead, final bool) error {
	switch len(jobs) {
	case 0:
		return nil
	case 1:
		return c.readShard(ctx, &jobs[0], final)
	}
	errs := make([]error, len(jobs))
	var wg sync.WaitGroup
	for i := range jobs[1:] {
		wg.Go(func() { errs[i+1] = c.readShard(ctx, &jobs[i+1], final) })
	}
	errs[0] = c.readShard(ctx, &jobs[0], final)
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// readShard reads a range of a shard, in place where it is whole blocks.
func (c *Client) readShard(ctx context.Context, j *shardRead, final bool) error {
	if j.g == nil {
		if err := c.refreshMap(ctx); err != nil {
			return err
		}
		return cfs.E("read", cfs.Unavailable, errGone)
	}
	into := j.p
	if uint32(len(into)) != j.r.Len {
		into = c.scratch.get(int(j.r.Len))
		defer c.scratch.put(into)
	}
	err := c.fetch(ctx, j.g, j.x.Stripe, j.r.Shard, j.r, into, false)
	if errors.Is(err, errGone) && !final {
		return err
	}
	if err != nil {
		c.log.Debug("shard not read: reconstructing it", "stripe", j.x.Stripe, "shard", j.r.Shard, "err", err)
		if err = c.reconstruct(ctx, j, into, err, final); err != nil {
			return err
		}
	}
	if uint32(len(j.p)) != j.r.Len {
		copy(j.p, j.r.Wanted(into))
	}
	return nil
}

// fetch reads the blocks of range r from a shard and checks each against its
// CRC32C. Devices that are not up, or have just failed, are not asked but with anyDevice.
func (c *Client) fetch(ctx context.Context, g *cfs.PG, id cfs.StripeID, shard int, r ec.ShardRange, into []byte, anyDevice bool) error {
	device := g.Slots[shard].Device
	at, ok := c.layout.get().devices[device]
	if !ok || !anyDevice && (!at.up || c.suspects.has(device)) {
		return cfs.Errorf("get shard", cfs.Unavailable, "device %v is not up", device)
	}
	attempt, cancel := context.WithTimeout(ctx, getAttempt)
	defer cancel()
	req := &wirepb.GetShard{Device: uint32(device), Key: shardKey(id, shard), Off: r.Off, Len: r.Len}
	var reply wirepb.GetShardReply
	n, err := c.data.Call(attempt, at.addr, wire.OpGetShard, req, nil, &reply, into)
	switch {
	case errors.Is(err, cfs.NotFound):
		return cfs.E("get shard", cfs.NotFound, errGone)
	case err != nil:
		if ctx.Err() == nil {
			c.suspect(device, err)
		}
		return err
	case n != len(into) || len(reply.Crcs) != 4*n/cfs.BlockSize:
		return cfs.Errorf("get shard", cfs.BadRequest, "%d bytes and %d bytes of checksums for %d bytes", n, len(reply.Crcs), len(into))
	}
	if bad := ec.CheckBlockCRCs(reply.Crcs, id, uint8(shard), r.FirstBlock(), into); bad >= 0 {
		c.stats.crcFailures.Add(1)
		c.log.Warn("shard is corrupt", "device", device, "stripe", id, "shard", shard, "block", r.FirstBlock()+uint32(bad))
		return cfs.Errorf("get shard", cfs.Corrupt, "stripe %v shard %d block %d on device %v", id, shard, r.FirstBlock()+uint32(bad), device)
	}
	c.stats.shardsFetched.Add(1)
	c.stats.bytesFetched.Add(uint64(n))
	return nil
}

// reconstruct computes a range of a shard, which failed with cause, from the same
// range of K others. While fewer answer it tries again, then on any device: a node
// may be restarting, or down in the cluster's opinion only.
func (c *Client) reconstruct(ctx context.Context, j *shardRead, into []byte, cause error, final bool) error {
	deadline := time.Now().Add(maxUnreadable)
	backoff := minBackoff
	for try := 0; ; try++ {
		err := c.tryReconstruct(ctx, j, into, try > 0)
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
		if time.Now().After(deadline) {
			return cfs.E("read", cfs.IO, errors.Join(cause, err))
		}
		sleep(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
		if err := c.refreshMap(ctx); err != nil {
			c.log.Debug("map not refreshed", "err", err)
		}
		if g := c.layout.get().groups[j.pg]; g != nil {
			j.g = g
		}
		if c.fetch(ctx, j.g, j.x.Stripe, j.r.Shard, j.r, into, true) == nil {
			return nil
		}
	}
}

// tryReconstruct fetches K other shards, at first K at once and then one more for
// each that fails.
func (c *Client) tryReconstruct(ctx context.Context, j *shardRead, into []byte, anyDevice bool) error {
	geo := j.g.Geometry
	shards := make([][]byte, geo.Total())
	var others []int
	for i := range shards {
		if i != j.r.Shard {
			others = append(others, i)
		}
	}
	defer func() {
		for i, s := range shards {
			if i != j.r.Shard && s != nil {
				c.scratch.put(s)
			}
		}
	}()
	have := 0
	var failed []error
	for have < int(geo.K) {
		need := min(int(geo.K)-have, len(others))
		if need < int(geo.K)-have {
			return cfs.E("reconstruct", cfs.Unavailable, errors.Join(failed...))
		}
		errs := make([]error, need)
		var wg sync.WaitGroup
		for w, i := range others[:need] {
			wg.Go(func() {
				b := c.scratch.get(len(into))
				if errs[w] = c.fetch(ctx, j.g, j.x.Stripe, i, j.r, b, anyDevice); errs[w] != nil {
					c.scratch.put(b)
					return
				}
				shards[i] = b
			})
		}
		wg.Wait()
		others = others[need:]
		for _, err := range errs {
			if err == nil {
				have++
			} else {
				failed = append(failed, err)
			}
		}
	}
	codec, err := c.codecs.For(geo)
	if err != nil {
		return err
	}
	want := make([]bool, geo.Total())
	want[j.r.Shard] = true
	shards[j.r.Shard] = into[:0]
	return codec.Reconstruct(shards, want)
}
