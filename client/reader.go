package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
)

const (
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
	k, err := f.n.read(ctx, p, off)
	if err == nil {
		f.accessed()
	}
	return k, err
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
			// Or the stripe is where it was and the shard has moved.
			if err := n.c.refreshMap(ctx); err != nil {
				n.c.log.Debug("map not refreshed", "err", err)
			}
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

	once   bool        // a failure is final: there is another way to the bytes
	part   part        // the whole blocks: p itself where it is that
	stripe *stripeRead // shared by the reads of one stripe; nil while a read that is alone needs none
	err    error
}

// readShards does the reads, those of one extent next to each other, in parallel.
func (c *Client) readShards(ctx context.Context, jobs []shardRead, final bool) error {
	total := 0
	for i := range jobs {
		total += len(jobs[i].p)
	}
	if n := sameStripe(jobs); n < len(jobs) {
		var wg sync.WaitGroup
		for rest := jobs; len(rest) > 0; n = sameStripe(rest) {
			group := rest[:n]
			rest = rest[n:]
			wg.Go(func() { c.readStripe(ctx, group, total, final) })
		}
		wg.Wait()
	} else if n > 0 {
		c.readStripe(ctx, jobs, total, final)
	}
	for i := range jobs {
		if jobs[i].err != nil {
			return jobs[i].err
		}
	}
	return nil
}

// sameStripe is how many of the reads, from the first on, are of its stripe.
func sameStripe(jobs []shardRead) int {
	n := 0
	for n < len(jobs) && jobs[n].x == jobs[0].x {
		n++
	}
	return n
}

// readStripe does the reads of one stripe, part of a read of total bytes, and notes
// with each how it went.
func (c *Client) readStripe(ctx context.Context, jobs []shardRead, total int, final bool) {
	if c.readsWhole(jobs, total, final) && c.readWhole(ctx, jobs) {
		return
	}
	for i := range jobs {
		c.prepare(&jobs[i])
	}
	if len(jobs) > 1 {
		s := newStripeRead(ctx, c, jobs)
		var wg sync.WaitGroup
		for i := range jobs[1:] {
			wg.Go(func() { jobs[i+1].err = c.readShard(ctx, &jobs[i+1], final) })
		}
		jobs[0].err = c.readShard(ctx, &jobs[0], final)
		wg.Wait()
		s.end()
		return
	}
	j := &jobs[0]
	j.err = c.readShard(ctx, j, final)
	if j.stripe != nil {
		j.stripe.end()
		return
	}
	c.freePart(&j.part)
}

// readShard reads a range of a shard, in place where it is whole blocks.
func (c *Client) readShard(ctx context.Context, j *shardRead, final bool) error {
	if j.g == nil {
		j.settle(partLost, nil)
		if err := c.refreshMap(ctx); err != nil {
			return err
		}
		return cfs.E("read", cfs.Unavailable, errGone)
	}
	err := c.fetchHedged(ctx, j, final)
	if err != nil {
		j.settle(partLost, err)
		if errors.Is(err, errGone) && !final {
			return err
		}
		c.log.Debug("shard not read: reconstructing it", "stripe", j.x.Stripe, "shard", j.r.Shard, "err", err)
		if err = c.reconstruct(ctx, j, err, final); err != nil {
			return err
		}
	}
	j.settle(partHave, nil)
	if j.part.scratch {
		copy(j.p, j.r.Wanted(j.part.b))
	}
	return nil
}
