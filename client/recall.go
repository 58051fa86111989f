package client

import (
	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// recall serves a recall of an epoch. All but that of an exclusive lease are served from memory: they wait for
// nobody but the observer, and for that not long. One that comes again before it is acknowledged is the same.
func (c *Client) recall(epoch uint64, r *wirepb.Recall) {
	if !c.leases.claim(epoch, r.Id) {
		return
	}
	i, dir := cfs.Ino(r.Ino), cfs.Ino(r.Dir)
	ack := &wirepb.Ack{Id: r.Id, Kind: uint32(wire.AckDropped)}
	var above func(Observer)
	switch wire.RecallKind(r.Kind) {
	case wire.RecallAttr:
		c.cache.recallAttr(i)
		if n := c.inodes.find(i); n != nil {
			n.dropExtents()
		}
		above = func(o Observer) { o.ForgetInode(i) }
	case wire.RecallName:
		c.cache.recallName(dir, string(r.Name))
		above = func(o Observer) { o.ForgetNames(dir) }
	case wire.RecallList:
		c.cache.recallList(dir)
		above = func(o Observer) { o.ForgetNames(dir) }
	case wire.RecallOpen:
		c.cache.recallAttr(i)
		if c.inodes.orphan(i) {
			ack.Kind = uint32(wire.AckOpen)
		} else if r.Held { // for this session, which did not answer in time: nobody else gives it up
			c.wg.Go(func() { c.releaseLater(i) })
		}
	case wire.RecallReport:
		if c.behind.concerns(i) { // what is told of it must not be lost any more
			c.wg.Go(func() { c.reportFor(epoch, i, ack) })
			return
		}
		a, ok := c.ownedAttr(i)
		if !ok { // the reply that would make it ours is not here yet, or it is being given back
			c.surrenderFor(epoch, i, ack)
			return
		}
		ack.Kind, ack.Attr = uint32(wire.AckReport), wire.AttrToPB(&a)
	case wire.RecallExclusive:
		c.surrenderFor(epoch, i, ack)
		return
	default:
		c.log.Warn("a recall of a kind that this client does not know", "kind", r.Kind)
	}
	if above == nil || c.observer.Load() == nil {
		c.leases.acknowledge(epoch, ack)
		return
	}
	c.wg.Go(func() { // other recalls do not wait
		c.above(above)
		c.leases.acknowledge(epoch, ack)
	})
}

// reportFor reports the attributes of an inode when all that was done to names of it is durable.
func (c *Client) reportFor(epoch uint64, i cfs.Ino, ack *wirepb.Ack) {
	if c.await(c.ctx, false, i) != nil {
		return
	}
	a, ok := c.ownedAttr(i)
	if !ok {
		c.surrenderFor(epoch, i, ack)
		return
	}
	ack.Kind, ack.Attr = uint32(wire.AckReport), wire.AttrToPB(&a)
	c.leases.acknowledge(epoch, ack)
}

// surrenderFor gives up the exclusive lease of an inode and acknowledges that. It takes a command:
// nobody is kept waiting for it. What is kept above goes first, with what is written there and not here yet.
func (c *Client) surrenderFor(epoch uint64, i cfs.Ino, ack *wirepb.Ack) {
	c.cache.recallAttr(i) // a reply on its way does not make it ours any more
	c.cache.recallList(i)
	c.wg.Go(func() {
		c.hushForRecall(i)
		if err := c.surrender(c.ctx, i); err != nil {
			c.log.Warn("an exclusive lease is not given up", "ino", uint64(i), "err", err)
		}
		c.leases.acknowledge(epoch, ack)
	})
}
