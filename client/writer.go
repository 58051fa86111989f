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
	// putAttempt bounds one attempt to put a shard.
	putAttempt = 5 * time.Second
	// takeBackAttempt bounds the deletion of the shards of a stripe that is given up.
	takeBackAttempt = time.Second
	// maxBatchExtents and maxBatchInline bound what one commit carries.
	maxBatchExtents = 256
	maxBatchInline  = 1 << 20
	// spaceWait is how long a put that met a full device waits for groups without it: the
	// cluster plans them when the device's node has reported it.
	spaceWait = 3 * time.Second
)

// put makes a sealed chunk's bytes durable and hands it to the committer.
func (n *inode) put(k *chunk) {
	defer n.c.wg.Done()
	k.sess = n.c.session.Load()
	err := n.c.putChunk(n.c.ctx, k)
	n.mu.Lock()
	defer n.mu.Unlock()
	if k.state == chunkDropped {
		n.free(k)
		return
	}
	k.state = chunkPut
	if err != nil {
		n.leaveLocked(func(o *chunk) bool { return o == k }, err)
	}
	n.kickLocked() // after a failure too: what is put already may have waited for this chunk
}

// putChunk turns a chunk's bytes into extents: inline where they are few, else as
// many stripes as the groups of the moment need.
func (c *Client) putChunk(ctx context.Context, k *chunk) error {
	if k.n <= cfs.MaxInline && !c.inlineFull.Load() {
		k.extents = []cfs.Extent{{Off: k.off, Len: uint64(k.n), Kind: cfs.ExtentInline, Inline: k.data()}}
		return nil
	}
	select {
	case c.puts <- struct{}{}:
	case <-ctx.Done():
		return cfs.E("put", cfs.Closed, ctx.Err())
	}
	defer func() { <-c.puts }()
	for at := 0; at < k.n; {
		x, epoch, err := c.putStripe(ctx, k.sess, k.slab.b[at:], k.n-at)
		if err != nil {
			k.settle()
			return err
		}
		x.Off = k.off + uint64(at)
		at += int(x.Len)
		k.extents = append(k.extents, x)
		k.epochs = append(k.epochs, epoch)
	}
	return nil
}

// putStripe puts up to n of buf's bytes as one stripe, in one group after another
// until all its shards are durable. buf has room after the n bytes for padding.
func (c *Client) putStripe(ctx context.Context, sess *session, buf []byte, n int) (cfs.Extent, cfs.PGEpoch, error) {
	start := time.Now()
	var fullAt time.Time // since when devices are full, and in which version of the map
	var fullIn uint64
	backoff := minBackoff
	for try := 0; ; try++ {
		l := c.layout.get()
		g := c.pickGroup(l, n)
		err := error(cfs.E("put", cfs.Unavailable, errNoGroup))
		if g != nil {
			id := cfs.StripeID{Session: sess.id, Counter: sess.stripes.take()}
			size := min(n, int(g.Geometry.MaxData()))
			if err = c.putShards(ctx, g, id, buf, uint32(size)); err == nil {
				if time.Since(start) > complainAfter {
					c.relieved()
				}
				x := cfs.Extent{Len: uint64(size), Kind: cfs.ExtentStripe, Stripe: id, PG: g.ID, StripeLen: uint32(size)}
				return x, cfs.PGEpoch{PG: g.ID, Epoch: g.Epoch}, nil
			}
			sess.stripes.settle(id.Counter)
			c.stats.putRetries.Add(1)
		}
		if ctx.Err() != nil {
			return cfs.Extent{}, cfs.PGEpoch{}, cfs.E("put", cfs.Closed, ctx.Err())
		}
		if errors.Is(err, cfs.NoSpace) {
			if fullAt.IsZero() || fullIn != l.Version { // the groups may be others
				fullAt, fullIn = time.Now(), l.Version
			}
			if time.Since(fullAt) > c.forSpace || c.spaceless(l) {
				return cfs.Extent{}, cfs.PGEpoch{}, err
			}
		}
		if time.Since(start) > complainAfter {
			c.complain("waiting for storage that takes writes", err)
		}
		if try > 0 || g == nil {
			sleep(ctx, backoff)
			backoff = min(2*backoff, maxBackoff)
		}
		if err := c.refreshMap(ctx); err != nil {
			c.log.Debug("map not refreshed", "err", err)
		}
	}
}

// errNoGroup is the cause while too few devices are up, or all groups have a
// device that has just failed.
var errNoGroup = errors.New("no writable placement group")

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// putShards encodes a stripe and puts its shards in parallel. It returns when all
// have answered, so that buf can be used again.
func (c *Client) putShards(ctx context.Context, g *cfs.PG, id cfs.StripeID, buf []byte, n uint32) error {
	codec, err := c.codecs.For(g.Geometry)
	if err != nil {
		return err
	}
	shards := make([][]byte, 0, g.Geometry.Total())
	if shards, err = ec.Split(shards, g.Geometry, n, buf[:ec.StripeBytes(g.Geometry, n)]); err != nil {
		return err
	}
	if g.Geometry.K == 1 { // copies need no memory of their own
		for range g.Geometry.M {
			shards = append(shards, shards[0])
		}
	} else {
		parity := c.parity.get(int(g.Geometry.M) * len(shards[0]))
		defer c.parity.put(parity)
		for i := range int(g.Geometry.M) {
			shards = append(shards, parity[i*len(shards[0]):(i+1)*len(shards[0])])
		}
		if err := codec.Encode(shards); err != nil {
			return err
		}
	}
	ctx, end := c.flights.begin(ctx, g)
	defer end()
	errs := make([]error, len(shards))
	put := func(i int) {
		errs[i] = c.putShard(ctx, g, id, i, shards[i])
		if errs[i] != nil && !errors.Is(errs[i], cfs.NoSpace) { // of full devices it is good to know all
			end() // the stripe is put again whole: nothing waits for its other shards
		}
	}
	var wg sync.WaitGroup
	for i := range shards[1:] {
		wg.Go(func() { put(i + 1) })
	}
	put(0)
	wg.Wait()
	err = worst(errs)
	if err != nil {
		c.takeBack(g, id, errs)
	}
	return err
}

// takeBack deletes what is there of a stripe that could not be put whole, and never will be
// named: a writer that goes on trying would fill the other devices with it before their nodes
// find out. What is not reached stays for them to find.
func (c *Client) takeBack(g *cfs.PG, id cfs.StripeID, errs []error) {
	ctx, cancel := context.WithTimeout(c.ctx, takeBackAttempt)
	defer cancel()
	devices := c.layout.get().devices
	var wg sync.WaitGroup
	for i, err := range errs {
		at := devices[g.Slots[i].Device]
		if err != nil || at == nil {
			continue
		}
		wg.Go(func() {
			req := &wirepb.DeleteShards{Device: uint32(g.Slots[i].Device), Keys: []*wirepb.ShardKey{shardKey(id, i)}}
			if _, err := c.data.Call(ctx, at.addr, wire.OpDeleteShards, req, nil, &wirepb.Empty{}, nil); err != nil {
				c.log.Debug("a shard of a stripe that is given up was not deleted", "device", g.Slots[i].Device, "stripe", id, "shard", i, "err", err)
			}
		})
	}
	wg.Wait()
}

// worst picks the failure that says most about what to do: no space, which more
// attempts may not mend, over any other, and one that is given up because of
// another last.
func worst(errs []error) error {
	var first error
	for _, err := range errs {
		if errors.Is(err, cfs.NoSpace) {
			return err
		}
		if err != nil && (first == nil || errors.Is(first, cfs.Canceled)) {
			first = err
		}
	}
	return first
}

func (c *Client) putShard(ctx context.Context, g *cfs.PG, id cfs.StripeID, shard int, data []byte) error {
	device := g.Slots[shard].Device
	at, ok := c.layout.get().devices[device]
	if !ok {
		return cfs.Errorf("put shard", cfs.Unavailable, "device %v has no address", device)
	}
	req := &wirepb.PutShard{Device: uint32(device), Pg: uint32(g.ID), Epoch: uint32(g.Epoch),
		Key:  shardKey(id, shard),
		Crcs: ec.BlockCRCs(make([]byte, 0, 4*len(data)/cfs.BlockSize), id, uint8(shard), 0, data)}
	ctx, cancel := context.WithTimeout(ctx, putAttempt)
	defer cancel()
	if _, err := c.data.Call(ctx, at.addr, wire.OpPutShard, req, [][]byte{data}, nil, nil); err != nil {
		c.suspect(device, err)
		return err
	}
	c.stats.shardsPut.Add(1)
	c.stats.bytesPut.Add(uint64(len(data)))
	return nil
}

func shardKey(id cfs.StripeID, shard int) *wirepb.ShardKey {
	return &wirepb.ShardKey{StripeSession: uint64(id.Session), StripeCounter: id.Counter, Shard: uint32(shard)}
}

// suspect passes a device over for a while after a failure that is its own.
func (c *Client) suspect(d cfs.DeviceID, err error) {
	switch cfs.KindOf(err) {
	case cfs.Unavailable, cfs.Timeout, cfs.IO, cfs.Closed, cfs.Denied:
		c.suspects.add(d)
	case cfs.NoSpace:
		c.full.add(d)
	}
}

// kickLocked has the committer look for work.
func (n *inode) kickLocked() {
	if !n.committing {
		n.committing = true
		n.c.wg.Add(1)
		go n.commitPut()
	}
}

// work is what one commit of an inode carries.
type work struct {
	batch     []*chunk
	ops       []cfs.Op
	sess      *session
	folded    bool // with n.sent
	surrender bool
	lazy      bool // nobody waits for it
}

// commitPut commits what is put, oldest first, until nothing is.
func (n *inode) commitPut() {
	defer n.c.wg.Done()
	for {
		n.mu.Lock()
		w := n.nextWorkLocked()
		if w == nil {
			n.committing = false
			n.mu.Unlock()
			n.c.inodes.settle(n)
			return
		}
		n.mu.Unlock()
		res, err := n.c.carry(n, w)
		n.mu.Lock()
		n.doneLocked(w, res, err)
		n.mu.Unlock()
	}
}

// nextWorkLocked is the next commit, nil if there is nothing to commit. What is kept back goes with the
// last of the chunks that are older, and the surrender with the last of all.
func (n *inode) nextWorkLocked() *work {
	w := &work{batch: n.nextBatchLocked(), sess: n.ownSess, lazy: n.waiting == 0}
	if w.sess == nil {
		w.sess = n.c.session.Load()
	}
	size := n.attr.Size
	if len(w.batch) > 0 {
		w.sess = w.batch[0].sess
		op := cfs.Op{Kind: cfs.OpWrite, Ino: n.ino}
		for _, k := range w.batch {
			op.Extents = append(op.Extents, k.extents...)
			op.Epochs = append(op.Epochs, k.epochs...)
			op.Attr.MtimeNS = max(op.Attr.MtimeNS, k.mtimeNS)
			size = max(size, k.end())
		}
		w.ops = append(w.ops, op)
	}
	through := func(seq uint64) bool { // the chunks up to seq are committed with this
		return len(w.batch) == len(n.chunks) || n.chunks[len(w.batch)].seq > seq
	}
	if n.pend.mask != 0 && (n.pendDue || len(w.batch) > 0) && through(n.pendSeq) {
		w.folded = true
		if len(w.batch) > 0 { // the later of both is the change time, as it was before the commit
			n.pend.attr.CtimeNS = max(n.pend.attr.CtimeNS, n.wroteNS)
		}
		w.ops = append(w.ops, n.pend.ops(n.ino, size, n.mtimeNS)...)
		n.sent, n.pend, n.pendDue, n.sentFolds = n.pend, folded{}, false, n.folds
	}
	mine := n.own != ownNone && n.ownSess == w.sess
	for i := range w.ops {
		w.ops[i].Lease = mine
	}
	if n.own == ownLeaving && n.pend.mask == 0 && through(n.leaveSeq) {
		w.surrender = true
		w.ops = append(w.ops, cfs.Op{Kind: cfs.OpSurrender, Ino: n.ino})
	}
	if len(w.ops) == 0 {
		return nil
	}
	return w
}

// nextBatchLocked is the chunks that the next commit carries: the oldest, as far
// as they are put under one session, so that a later write never appears before an
// earlier one. From here to committedLocked they are the committer's.
func (n *inode) nextBatchLocked() []*chunk {
	var batch []*chunk
	extents, inline := 0, 0
	for _, k := range n.chunks {
		if k.state != chunkPut || len(batch) > 0 && k.sess != batch[0].sess {
			break
		}
		extents += len(k.extents)
		if k.extents[0].Kind == cfs.ExtentInline {
			inline += k.n
		}
		if len(batch) > 0 && (extents > maxBatchExtents || inline > maxBatchInline) {
			break
		}
		k.state = chunkCommitting
		batch = append(batch, k)
	}
	return batch
}

// carry carries out the operations of a commit: in one command, with others' where nobody waits
// for it, or in several where it replaces too many extents for one.
func (c *Client) carry(n *inode, w *work) ([]cfs.Result, error) {
	var res []cfs.Result
	var err error
	if w.lazy {
		res, err = c.combiner.carry(c, w.sess, w.ops)
	} else {
		c.stats.commits.Add(1)
		res, _, err = c.doIn(c.ctx, w.sess, cfs.Cred{}, w.ops)
	}
	if !errors.Is(err, cfs.TooBig) || len(w.batch) == 0 {
		return res, err
	}
	a, err := n.commitOp(c.ctx, w.sess, w.ops[0])
	if err != nil || len(w.ops) == 1 {
		return []cfs.Result{{Attr: a}}, err
	}
	res, _, err = c.doIn(c.ctx, w.sess, cfs.Cred{}, w.ops[1:])
	return res, err
}

// commitOp commits extents in the session that they were put in, in several
// commands where they replace too many for one.
func (n *inode) commitOp(ctx context.Context, s *session, op cfs.Op) (cfs.Attr, error) {
	n.c.stats.commits.Add(1)
	res, _, err := n.c.doIn(ctx, s, cfs.Cred{}, []cfs.Op{op})
	if err == nil {
		return res[0].Attr, nil
	}
	if !errors.Is(err, cfs.TooBig) || len(op.Extents) == 1 && op.Extents[0].Len < 2 {
		return cfs.Attr{}, err
	}
	first, second := op, op
	if half := len(op.Extents) / 2; half > 0 {
		first.Extents, second.Extents = op.Extents[:half], op.Extents[half:]
	} else {
		x := op.Extents[0]
		mid := x.Off + x.Len/2
		first.Extents, second.Extents = []cfs.Extent{x.Slice(x.Off, mid)}, []cfs.Extent{x.Slice(mid, x.End())}
	}
	if a, err := n.commitOp(ctx, s, first); err != nil {
		return a, err
	}
	return n.commitOp(ctx, s, second)
}

// doneLocked ends a commit. What was put under an epoch that has passed, or inline where there is no room, is
// put again; any other failure is the writer's.
func (n *inode) doneLocked(w *work, res []cfs.Result, err error) {
	if err == nil {
		n.dropExtentsLocked()
	}
	failed := err
	if len(w.batch) > 0 && n.batchDoneLocked(w.batch, err) {
		failed = nil // not the folded change's, which goes again
	}
	if w.folded {
		again := err != nil && len(w.batch) > 0 && n.own != ownNone && n.ownSess == w.sess && !gives(err)
		if again {
			n.restoreLocked()
		} else if n.pend.mask == 0 { // what was kept back since may have been given up
			n.foldsDone = n.folds
		} else {
			n.foldsDone = max(n.foldsDone, n.sentFolds)
		}
		n.sent = folded{}
		if !again && failed != nil && len(w.batch) == 0 {
			n.failLocked(failed)
		}
	}
	if gives(err) || w.surrender && (err == nil || len(w.batch) == 0 && !w.folded) {
		if n.own != ownNone && n.ownSess == w.sess {
			n.disownLocked()
		}
		if gives(err) && n.pend.mask != 0 { // it can never be committed
			n.pend, n.foldsDone = folded{}, n.folds
			n.failLocked(err)
		}
	}
	n.movedLocked()
}

// gives reports a failure that says that the exclusive lease is gone.
func gives(err error) bool {
	return errors.Is(err, cfs.NoLease) || errors.Is(err, cfs.NoSession)
}

// batchDoneLocked ends the chunks of a commit, and reports that they go again, or that their failure has been noted.
func (n *inode) batchDoneLocked(batch []*chunk, err error) bool {
	live := batch[:0]
	for _, k := range batch {
		if k.state == chunkDropped { // by a lost session, which its writer has been told of
			n.free(k)
			continue
		}
		k.state = chunkPut
		live = append(live, k)
	}
	switch cfs.KindOf(err) {
	case cfs.InlineFull:
		n.c.inlineFull.Store(true)
		n.putAgainLocked(live)
		return true
	case cfs.StaleEpoch:
		n.c.stats.putRetries.Add(uint64(len(live)))
		n.putAgainLocked(live)
		return true
	}
	if len(live) > 0 {
		last := live[len(live)-1].seq
		n.leaveLocked(func(o *chunk) bool { return o.seq <= last }, err)
	}
	return err != nil && len(live) > 0
}

// putAgainLocked sends the chunks of a batch back to be put.
func (n *inode) putAgainLocked(batch []*chunk) {
	for _, k := range batch {
		k.settle()
		k.state = chunkSealed
		n.c.wg.Add(1)
		go func() {
			// The map that made the epoch pass may be newer than ours.
			if err := n.c.refreshMap(n.c.ctx); err != nil {
				n.c.log.Debug("map not refreshed", "err", err)
			}
			n.put(k)
		}()
	}
}

// bufPool keeps buffers for parity and for ranges that are not read in place; it
// is bounded by what uses it: maxPuts stripes and the reads in flight.
type bufPool struct{ pool sync.Pool }

func (p *bufPool) get(n int) []byte {
	if b, ok := p.pool.Get().(*[]byte); ok && cap(*b) >= n {
		return (*b)[:n]
	}
	return make([]byte, n, max(n, cfs.MaxShardSize))
}

func (p *bufPool) put(b []byte) { p.pool.Put(&b) }
