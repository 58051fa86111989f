package client

import (
	"context"
	"errors"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxWindowRows bounds the extents that are replaced at a time: a window with more is cut
	// there, and what is left of it comes again.
	maxWindowRows = 16 << 10
	// maxWindowReads bounds the shard reads in flight for a window.
	maxWindowReads = 64
	// maxSwapExtents bounds the extents that one swap names, old and new.
	maxSwapExtents = cfs.MaxCommandExtents
	// restripeAttempt bounds the reading and the putting of a window, each. A window that does
	// not get through waits for a later pass.
	restripeAttempt = 30 * time.Second
)

// rewrite is what is to be written anew: the bytes of old, as far as they lie in
// [lo, hi). Packed means: one after the other, without the holes between them.
type rewrite struct {
	ino    cfs.Ino
	lo, hi uint64
	old    []cfs.Extent // rows with data that meet the range, whole, in order
	runs   []span       // what they cover of it, neighbours joined
	n      int          // bytes in the runs
	inline bool         // the bytes are to stay in the namespace
}

// span of a row: the part of it that is rewritten.
func (w *rewrite) span(x *cfs.Extent) span { return span{max(x.Off, w.lo), min(x.End(), w.hi)} }

// restripeWindow writes the data of a window anew, as the fewest stripes, and swaps
// them for the extents that it has read. It returns how many bytes: 0 when nothing
// would be better for it. Holes, and what is allocated and not written, stay.
func (c *Client) restripeWindow(ctx context.Context, win cfs.Window, p *pace) (bytes uint64, err error) {
	if win.Off >= win.End || win.End-win.Off > uint64(slabSizes[len(slabSizes)-1]) {
		return 0, cfs.Errorf("restripe", cfs.BadRequest, "the window [%d, %d) of inode %d", win.Off, win.End, uint64(win.Ino))
	}
	w, buf, err := c.readWindow(ctx, win, p, false)
	if errors.Is(err, errGone) { // freed since, or lost: extents that were asked for again are certain
		w, buf, err = c.readWindow(ctx, win, p, true)
	}
	if err != nil || w == nil {
		return 0, err
	}
	defer c.memory.put(buf)
	s := c.session.Load()
	blobs, epochs, err := c.putWindow(ctx, s, w, buf.b, p)
	// Committed or not, nobody commits them after this.
	defer func() {
		for i := range blobs {
			if blobs[i].Kind == cfs.ExtentStripe {
				s.stripes.settle(blobs[i].Stripe.Counter)
			}
		}
	}()
	if err == nil {
		err = c.swapWindow(ctx, s, w, lay(w.runs, blobs), epochs)
	}
	if err != nil {
		return 0, err
	}
	return uint64(w.n), nil
}

// readWindow asks what a window consists of and reads it, packed. It returns nil when
// nothing is to be done. certain says that a shard that is gone is to be reconstructed.
func (c *Client) readWindow(ctx context.Context, win cfs.Window, p *pace, certain bool) (*rewrite, *slab, error) {
	rows, hi, err := c.windowRows(ctx, win)
	if err != nil {
		return nil, nil, err
	}
	w := planRewrite(win.Ino, rows, win.Off, hi, c.inlineFull.Load())
	if w.n == 0 || w.asGoodAsNew(c.layout.get()) {
		return nil, nil, nil
	}
	buf, err := c.memory.get(ctx, w.n)
	if err != nil {
		return nil, nil, err
	}
	if err = p.take(ctx, w.n); err == nil {
		err = c.readRewrite(ctx, w, buf.b, certain)
	}
	if err != nil {
		c.memory.put(buf)
		return nil, nil, err
	}
	return w, buf, nil
}

// windowRows asks the leader, and no cache, for the rows that meet a window, and up
// to where they are complete.
func (c *Client) windowRows(ctx context.Context, win cfs.Window) (rows []cfs.Extent, hi uint64, err error) {
	for at := win.Off; ; {
		a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryExtents, Ino: win.Ino, Off: at, End: win.End})
		if err != nil {
			return nil, 0, err
		}
		for i := range a.Extents {
			x := &a.Extents[i]
			if x.End() <= at || x.Off >= win.End || at > win.Off && x.Off < at {
				return nil, 0, cfs.Errorf("restripe", cfs.Conflict, "the extents have changed while they were listed")
			}
			at = x.End()
		}
		rows = append(rows, a.Extents...)
		switch {
		case !a.More:
			return rows, win.End, nil
		case len(a.Extents) == 0:
			return nil, 0, cfs.Errorf("restripe", cfs.BadRequest, "an answer that goes on without getting beyond %d", at)
		case len(rows) >= maxWindowRows:
			return rows, min(at, win.End), nil
		}
	}
}

// planRewrite says what of the rows, which are all that meet [lo, hi), is to be
// written anew. Few bytes in many inline rows are merged where they are. Rows that
// are not many, or have no neighbours, are here because their bytes are to leave the
// namespace.
func planRewrite(ino cfs.Ino, rows []cfs.Extent, lo, hi uint64, inlineFull bool) *rewrite {
	w := &rewrite{ino: ino, lo: lo, hi: hi}
	stay := !inlineFull
	for _, x := range rows {
		if x.Kind == cfs.ExtentStripe || x.Kind == cfs.ExtentInline {
			w.add(x)
			stay = stay && x.Kind == cfs.ExtentInline
		}
	}
	if !stay || w.n > cfs.MaxInline || len(w.old) <= cfs.ManyExtents || len(w.old) == len(w.runs) {
		return w
	}
	merged := &rewrite{ino: ino, lo: lo, hi: hi, inline: true}
	for i, j := 0, 0; i < len(w.old); i = j {
		for j = i + 1; j < len(w.old) && w.old[j].Off == w.old[j-1].End(); j++ {
		}
		if j-i > 1 { // a row alone is as it would be
			for _, x := range w.old[i:j] {
				merged.add(x)
			}
		}
	}
	return merged
}

func (w *rewrite) add(x cfs.Extent) {
	s := w.span(&x)
	w.old = append(w.old, x)
	w.n += int(s.end - s.off)
	if last := len(w.runs) - 1; last >= 0 && w.runs[last].end == s.off {
		w.runs[last].end = s.end
		return
	}
	w.runs = append(w.runs, s)
}

// asGoodAsNew reports that the rewritten window would look as it does now: one
// stripe of the right shape in a writable group, with these bytes and no others.
func (w *rewrite) asGoodAsNew(l *layout) bool {
	if w.inline || len(w.old) != len(w.runs) {
		return false
	}
	first := &w.old[0]
	for i := range w.old {
		x := &w.old[i]
		if x.Kind != cfs.ExtentStripe || x.Stripe != first.Stripe || x.StripeLen != uint32(w.n) {
			return false
		}
	}
	g := l.groups[first.PG]
	return g != nil && g.Writable && g.Geometry == l.shape(w.n)
}

// shape is the geometry that a stripe of n bytes would have now.
func (l *layout) shape(n int) cfs.Geometry {
	if n <= cfs.SmallStripe || len(l.large) == 0 {
		return cfs.Geo1p2
	}
	return l.large[0].Geometry
}

// readRewrite reads the bytes of w into buf, packed.
func (c *Client) readRewrite(ctx context.Context, w *rewrite, buf []byte, certain bool) error {
	return attempt(ctx, func(ctx context.Context) error {
		n := &inode{c: c, ino: w.ino}
		var jobs []shardRead
		for i := range w.old {
			s := w.span(&w.old[i])
			size := int(s.end - s.off)
			jobs = n.readExtent(jobs, &w.old[i], s.off, buf[:size:size])
			buf = buf[size:]
			if len(jobs) >= maxWindowReads || i == len(w.old)-1 {
				if err := c.readShards(ctx, jobs, certain); err != nil {
					return err
				}
				jobs = jobs[:0]
			}
		}
		return nil
	})
}

// putWindow makes the packed bytes durable: as a blob that is inline, or as stripes
// of a session. Off of each is its place among the packed bytes. Where a writer would
// take any group that it gets, this waits for a later pass. What has been put is
// returned with an error too.
func (c *Client) putWindow(ctx context.Context, s *session, w *rewrite, buf []byte, p *pace) (blobs []cfs.Extent, epochs []cfs.PGEpoch, err error) {
	if w.inline {
		return []cfs.Extent{{Len: uint64(w.n), Kind: cfs.ExtentInline, Inline: buf[:w.n]}}, nil, nil
	}
	for at := 0; at < w.n; {
		g := c.layout.get().shape(w.n - at)
		raw := int(g.ShardSize(uint32(min(w.n-at, int(g.MaxData()))))) * g.Total()
		if err := p.take(ctx, raw); err != nil {
			return blobs, epochs, err
		}
		err := attempt(ctx, func(ctx context.Context) error {
			select {
			case c.puts <- struct{}{}:
			case <-ctx.Done():
				return ctxError("put", ctx)
			}
			defer func() { <-c.puts }()
			x, epoch, err := c.putStripe(ctx, s, buf[at:], w.n-at)
			if err != nil {
				return err
			}
			x.Off = uint64(at)
			blobs, epochs = append(blobs, x), append(epochs, epoch)
			if l := c.layout.get(); l.groups[x.PG] == nil || l.groups[x.PG].Geometry != l.shape(w.n-at) {
				return cfs.Errorf("restripe", cfs.Unavailable, "no group of %v takes stripes now", l.shape(w.n-at))
			}
			at += int(x.Len)
			return nil
		})
		if err != nil {
			return blobs, epochs, err
		}
	}
	return blobs, epochs, nil
}

// attempt carries out fn within restripeAttempt.
func attempt(ctx context.Context, fn func(context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, restripeAttempt)
	defer cancel()
	err := fn(within)
	if err != nil && within.Err() != nil {
		return cfs.E("restripe", ctxKind(within), err)
	}
	return err
}

// lay spreads packed blobs over the runs that their bytes come from.
func lay(runs []span, blobs []cfs.Extent) []cfs.Extent {
	var out []cfs.Extent
	at := uint64(0)
	for _, r := range runs {
		for off := r.off; off < r.end; {
			n := min(r.end-off, blobs[0].End()-at)
			x := blobs[0].Slice(at, at+n)
			x.Off = off
			out = append(out, x)
			off, at = off+n, at+n
			if at == blobs[0].End() {
				blobs = blobs[1:]
			}
		}
	}
	return out
}

// swapWindow commits fresh, which covers the runs of w, in place of its rows. Where
// one command cannot name them all, the rows are replaced from the first on; an extent
// that a command ends within is expected by the next as far as it has come.
func (c *Client) swapWindow(ctx context.Context, s *session, w *rewrite, fresh []cfs.Extent, epochs []cfs.PGEpoch) error {
	old := make([]cfs.Extent, len(w.old))
	for i := range old {
		old[i] = w.old[i].Digest()
	}
	for len(old) > 0 {
		n, m := swapStep(old, fresh, w.hi)
		upTo := min(old[n-1].End(), w.hi)
		op := cfs.Op{Kind: cfs.OpSwap, Ino: w.ino, Expect: old[:n], Extents: append([]cfs.Extent(nil), fresh[:m]...), Epochs: epochs}
		old, fresh = old[n:], fresh[m:]
		if last := op.Extents[m-1]; last.End() > upTo {
			op.Extents[m-1] = last.Slice(last.Off, upTo)
			old = append([]cfs.Extent{op.Extents[m-1].Digest()}, old...)
			fresh = append([]cfs.Extent{last}, fresh...)
		}
		c.stats.commits.Add(1)
		if _, _, err := c.doIn(ctx, s, cfs.Cred{}, []cfs.Op{op}); err != nil {
			return err
		}
	}
	return nil
}

// swapStep is how many of the rows old one command can replace, and how many of the
// extents fresh begin within them.
func swapStep(old, fresh []cfs.Extent, hi uint64) (n, m int) {
	for n < len(old) {
		end, meet := min(old[n].End(), hi), m
		for meet < len(fresh) && fresh[meet].Off < end {
			meet++
		}
		if n > 0 && n+1+meet > maxSwapExtents {
			break
		}
		n, m = n+1, meet
	}
	return n, m
}
