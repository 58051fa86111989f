package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// shardPage is how many shards of a device one page has.
	shardPage = 4096
	// maxRowPage and maxRowsHeld bound the rows of a page of one group, and those of
	// one page of all groups; each list holds two pages.
	maxRowPage  = 1024
	maxRowsHeld = 256 << 10
	// minRowPage keeps the number of requests within reason.
	minRowPage = 32
	// maxStripeShards bounds the shards of one stripe, as servers do.
	maxStripeShards = 6
	// checkStateTimeout bounds the comparison of a replica's tables: it reads them all.
	checkStateTimeout = time.Hour
)

// fsckPass is one pass over a cluster: the evidence, and what it asks.
type fsckPass struct {
	cc    *conn
	slots chan struct{} // one for each page on its way
	c     *checker

	mu     sync.Mutex
	silent map[cfs.NodeID]bool   // did not answer
	failed map[cfs.DeviceID]bool // could not be listed
}

// newFsckPass prepares a pass over the cluster s: who answers, and what to list.
func newFsckPass(ctx context.Context, cc *conn, s *state, settle time.Duration) *fsckPass {
	p := &fsckPass{cc: cc, slots: make(chan struct{}, maxAsks), silent: map[cfs.NodeID]bool{}, failed: map[cfs.DeviceID]bool{}}
	p.c = &checker{ask: p, settle: settle, doc: fsckDoc{Complete: true, Notes: []string{}}}
	for _, v := range cc.inspect(ctx, s) {
		if v.err != nil {
			p.silent[v.node.ID] = true
			if text := fmt.Sprintf("node %d: %v", v.node.ID, cli.OneLine(v.err)); s.needs(&v.node) {
				p.c.add(faultUnchecked, 1, text)
			} else {
				p.c.doc.Notes = append(p.c.doc.Notes, text+"; it has no vote, and its devices are out")
			}
		}
		for _, d := range v.reply.GetDevices() {
			if known := s.find(cfs.DeviceID(d.Id)); v.err == nil && d.Unrepaired > 0 && known != nil && known.State != cfs.StateOut {
				p.c.add(faultUnrepaired, d.Unrepaired, fmt.Sprintf("%s on device %v", count(d.Unrepaired, "shard"), known.ID))
			}
		}
	}
	p.c.now = newLayout(s.m, p.answers)
	return p
}

// needs reports that a cluster counts on a server: on its replica of the namespace, or on a device of it.
func (s *state) needs(n *cfs.Node) bool {
	return n.Voter || slices.ContainsFunc(s.m.Devices, func(d cfs.Device) bool { return d.ID.Node() == n.ID && d.State != cfs.StateOut })
}

// answers reports that a device has not failed to answer so far.
func (p *fsckPass) answers(d cfs.DeviceID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.silent[d.Node()] && !p.failed[d]
}

// giveUp notes that a device cannot be listed, once.
func (p *fsckPass) giveUp(d cfs.DeviceID, err error) {
	p.mu.Lock()
	known := p.failed[d]
	p.failed[d] = true
	p.mu.Unlock()
	if !known {
		p.c.add(faultUnchecked, 1, fmt.Sprintf("device %v: %v", d, cli.OneLine(err)))
	}
}

// run merges the stripe table with the lists of all devices, while the servers
// compare their own tables.
func (p *fsckPass) run(ctx context.Context, s *state, progress *cli.Progress) (*fsckDoc, error) {
	var total, seen uint64
	for _, u := range s.usage {
		total += u.Stripes
	}
	addrs := map[cfs.NodeID]string{}
	for _, n := range s.m.Nodes {
		addrs[n.ID] = n.Addr
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	listing, stop := context.WithCancel(ctx)
	defer stop()
	for _, n := range s.m.Nodes {
		if n.Voter && !p.silent[n.ID] { // others have no replica
			g.Go(func() error { return p.checkState(ctx, n) })
		}
	}
	var lists []*list
	page := uint32(min(max(maxRowsHeld/max(len(s.m.Groups), 1), minRowPage), maxRowPage))
	for _, pg := range s.m.Groups {
		lists = append(lists, startList(listing, fmt.Sprintf("stripes of group %d", pg.ID), p.rowPages(pg.ID, page), nil))
	}
	for _, d := range s.m.Devices {
		if !p.c.now.listed[d.ID] {
			continue
		}
		p.c.doc.Devices++
		lists = append(lists, startList(listing, "shards of "+d.ID.String(), p.shardPages(d.ID, addrs[d.ID.Node()]), func(err error) {
			p.giveUp(d.ID, err)
			p.c.now.listed[d.ID] = false
		}))
	}
	err := merge(lists, func(s *sighting) error {
		seen += uint64(len(s.rows))
		progress.Show("%s of %d: %s", count(seen, "stripe"), total, cli.Percent(min(seen, total), total))
		if p.c.full() {
			return errEnough
		}
		return p.c.visit(ctx, s)
	})
	if err == nil {
		err = p.c.confirm(ctx)
	}
	if err == errEnough {
		p.c.doc.Complete, err = false, nil
	}
	stop()
	if err != nil {
		cancel()
	}
	progress.Show("waiting for the servers to compare their tables")
	if e := g.Wait(); err == nil {
		err = e
	}
	p.c.finish()
	return &p.c.doc, err
}

// errEnough ends a merge when there are faults enough.
var errEnough = cfs.Errorf("fsck", cfs.Invalid, "more than %d faults", maxFaults)

// checkState has a server compare the tables of its replica.
func (p *fsckPass) checkState(ctx context.Context, n cfs.Node) error {
	reply := &wirepb.CheckReply{}
	err := p.retry(ctx, checkStateTimeout, n.Addr, wire.OpCheckState, &wirepb.Empty{}, reply)
	switch {
	case ctx.Err() != nil:
		return cfs.E("fsck", cfs.Canceled, ctx.Err())
	case err != nil:
		p.c.add(faultUnchecked, 1, fmt.Sprintf("state of node %d: %v", n.ID, cli.OneLine(err)))
		return nil
	}
	p.c.mu.Lock()
	p.c.doc.Replicas++
	p.c.doc.Inodes, p.c.doc.Extents = max(p.c.doc.Inodes, reply.Inodes), max(p.c.doc.Extents, reply.Extents)
	p.c.mu.Unlock()
	if reply.Faults > 0 {
		texts := make([]string, len(reply.Examples))
		for i, e := range reply.Examples {
			texts[i] = fmt.Sprintf("node %d: %s", n.ID, e)
		}
		p.c.add(faultState, reply.Faults, texts...)
	}
	return nil
}

// slot takes one of the places for pages on their way, until what it returns is called.
func (p *fsckPass) slot(ctx context.Context) (release func(), err error) {
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, cfs.E("fsck", cfs.Canceled, ctx.Err())
	}
}

// rowPages lists the stripe table of a group.
func (p *fsckPass) rowPages(pg cfs.PGID, limit uint32) fetchPage {
	return func(ctx context.Context, after *item) ([]item, bool, error) {
		release, err := p.slot(ctx)
		if err != nil {
			return nil, false, err
		}
		defer release()
		q := &cfs.Query{Kind: cfs.QueryStripes, PG: pg, Limit: limit}
		if after != nil {
			q.Stripe = after.stripe
		}
		a, err := p.cc.query(ctx, q)
		if err != nil {
			return nil, false, err
		}
		page := make([]item, len(a.Stripes))
		for i, r := range a.Stripes {
			page[i] = item{stripe: r.Stripe, isRow: true, row: r}
		}
		return page, a.More, nil
	}
}

// shardPages lists the shards of a device.
func (p *fsckPass) shardPages(d cfs.DeviceID, addr string) fetchPage {
	return func(ctx context.Context, after *item) ([]item, bool, error) {
		release, err := p.slot(ctx)
		if err != nil {
			return nil, false, err
		}
		defer release()
		var key *wirepb.ShardKey
		if after != nil {
			key = wire.ShardKeyToPB(after.stripe, after.shard.shard)
		}
		return p.listShards(ctx, d, addr, key, shardPage)
	}
}

// listShards asks a device for the shards after a key.
func (p *fsckPass) listShards(ctx context.Context, d cfs.DeviceID, addr string, after *wirepb.ShardKey, limit uint32) ([]item, bool, error) {
	req := &wirepb.ListShards{Device: uint32(d), After: after, Limit: limit}
	reply := &wirepb.ListShardsReply{}
	err := p.retry(ctx, p.cc.timeout, addr, wire.OpListShards, req, reply)
	if err != nil {
		return nil, false, err
	}
	page := make([]item, len(reply.Shards))
	for i, h := range reply.Shards {
		stripe, shard, err := wire.ShardKeyFromPB(h.Key)
		if err != nil {
			return nil, false, err
		}
		page[i] = item{stripe: stripe, shard: shardSeen{device: d, shard: shard, pg: cfs.PGID(h.Pg), epoch: cfs.Epoch(h.Epoch), len: h.Len}}
	}
	return page, reply.More, nil
}

// retry asks a server, and asks again while it has too much to do, or does the
// same for somebody else.
func (p *fsckPass) retry(ctx context.Context, most time.Duration, addr string, op wire.Op, req, reply proto.Message) error {
	deadline := time.Now().Add(most)
	for {
		err := p.cc.askWithin(ctx, most, addr, op, req, reply)
		if k := cfs.KindOf(err); k != cfs.Overloaded && k != cfs.Busy || time.Now().After(deadline) {
			return err
		}
		if err := sleep(ctx, leaderPause); err != nil {
			return err
		}
	}
}

// layout is the newest map.
func (p *fsckPass) layout(ctx context.Context) (*layout, error) {
	a, err := p.cc.query(ctx, &cfs.Query{Kind: cfs.QueryMap})
	if err != nil {
		return nil, err
	}
	if a.Map == nil {
		return nil, cfs.Errorf("fsck", cfs.BadRequest, "the leader sent no map")
	}
	return newLayout(a.Map, p.answers), nil
}

// rows looks a stripe up: it is the first one after its predecessor.
func (p *fsckPass) rows(ctx context.Context, id cfs.StripeID, groups []cfs.PGID) ([]cfs.StripeInfo, error) {
	var out []cfs.StripeInfo
	for _, pg := range groups {
		a, err := p.cc.query(ctx, &cfs.Query{Kind: cfs.QueryStripes, PG: pg, Stripe: id.Prev(), Limit: 1})
		if err != nil {
			return nil, err
		}
		if len(a.Stripes) > 0 && a.Stripes[0].Stripe == id {
			out = append(out, a.Stripes[0])
		}
	}
	return out, nil
}

// shards is what a device has of a stripe; nothing when it does not answer any more.
func (p *fsckPass) shards(ctx context.Context, d cfs.DeviceID, id cfs.StripeID) ([]shardSeen, error) {
	if !p.answers(d) {
		return nil, nil
	}
	var after *wirepb.ShardKey
	if b := id.Prev(); b.Session != 0 {
		after = wire.ShardKeyToPB(b, maxStripeShards-1)
	}
	page, _, err := p.listShards(ctx, d, p.cc.addrOf(d.Node()), after, maxStripeShards)
	if err != nil && ctx.Err() == nil {
		p.giveUp(d, err)
		err = nil
	}
	var out []shardSeen
	for i := range page {
		if page[i].stripe == id {
			out = append(out, page[i].shard)
		}
	}
	return out, err
}

// fates says what becomes of stripes.
func (p *fsckPass) fates(ctx context.Context, refs []cfs.StripeRef) ([]cfs.Fate, error) {
	a, err := p.cc.query(ctx, &cfs.Query{Kind: cfs.QueryFates, Stripes: refs})
	if err != nil {
		return nil, err
	}
	return a.Fates, nil
}
