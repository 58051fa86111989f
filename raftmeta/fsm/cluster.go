package fsm

import (
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

// changeMap notes that the cluster's layout has changed.
func (t *tx) changeMap() { t.setMark(markMapVersion, t.index) }

func (t *tx) setNode(n *cfs.Node) cfs.Kind {
	if n.ID == 0 || n.State < cfs.StateUp || n.State > cfs.StateOut || len(n.Addr) > cfs.MaxName {
		return cfs.Invalid
	}
	if old, ok := load(t, nodeKey(n.ID), decodeNode); ok && *old == *n {
		return cfs.KindOK
	}
	t.set(nodeKey(n.ID), encodeNode(n))
	t.changeMap()
	t.birth()
	return cfs.KindOK
}

// birth gives the root its times with the first node: each replica bootstraps by
// itself, before there is a time that all agree on.
func (t *tx) birth() {
	root, ok := t.inode(cfs.RootIno)
	if !ok || root.BtimeNS != 0 {
		return
	}
	root.AtimeNS, root.MtimeNS, root.BtimeNS = t.now, t.now, t.now
	t.touch(root)
}

// setDevice records a device. Its id belongs to one formatted device for ever: a
// device with another UUID under the same id is refused.
func (t *tx) setDevice(v *cfs.Device) cfs.Kind {
	if v.ID.Node() == 0 || v.State < cfs.StateUp || v.State > cfs.StateOut {
		return cfs.Invalid
	}
	dev := *v
	dev.Used, dev.FeedPos = 0, 0
	if old, ok := load(t, deviceKey(v.ID), decodeDevice); ok {
		if old.UUID != v.UUID {
			return cfs.Conflict
		}
		if dev.FeedPos = old.FeedPos; dev == *old {
			return cfs.KindOK
		}
	} else {
		dev.FeedPos = t.mark(markFeedNext) - 1 // a new device holds nothing that was freed before
	}
	t.set(deviceKey(v.ID), encodeDevice(&dev))
	t.changeMap()
	return cfs.KindOK
}

// setGroups records placement groups that were planned from a map that must
// still be the present one.
func (t *tx) setGroups(op *cfs.Op) cfs.Kind {
	if op.MapVersion != t.mark(markMapVersion) {
		return cfs.Conflict
	}
	for i := range op.Groups {
		g := op.Groups[i]
		if k := t.checkGroup(&g); k != cfs.KindOK {
			return k
		}
		if g.ID == 0 {
			g.ID = cfs.PGID(t.mark(markNextPG))
			t.setMark(markNextPG, uint64(g.ID)+1)
			g.Epoch = 1
		} else {
			old, ok := load(t, groupKey(g.ID), decodePG)
			if !ok || old.Geometry != g.Geometry {
				return cfs.Invalid
			}
			if g.Epoch = old.Epoch; old.Writable != g.Writable || !slices.Equal(old.Slots, g.Slots) {
				g.Epoch++
			}
		}
		t.set(groupKey(g.ID), encodePG(&g))
	}
	t.changeMap()
	return cfs.KindOK
}

// maxSlots bounds a group's slots: its record counts them in a byte.
const maxSlots = 255

// checkGroup holds the rule of placement: never two shards on a device, never
// more than M on a node.
func (t *tx) checkGroup(g *cfs.PG) cfs.Kind {
	if g.Geometry.K == 0 || g.Geometry.M == 0 || g.Geometry.Total() > maxSlots || len(g.Slots) != g.Geometry.Total() {
		return cfs.Invalid
	}
	for i, s := range g.Slots {
		onNode := 1
		for _, o := range g.Slots[:i] {
			if o.Device == s.Device {
				return cfs.Invalid
			}
			if o.Device.Node() == s.Device.Node() {
				onNode++
			}
		}
		if onNode > int(g.Geometry.M) {
			return cfs.Invalid
		}
		if _, ok := t.get(deviceKey(s.Device)); !ok {
			return cfs.Invalid
		}
	}
	return cfs.KindOK
}

// feedDone records how far a device has followed the delete feed and drops the
// rows that every device has passed.
func (t *tx) feedDone(id cfs.DeviceID, pos uint64) cfs.Kind {
	dev, ok := load(t, deviceKey(id), decodeDevice)
	if !ok {
		return cfs.NotFound
	}
	if pos >= t.mark(markFeedNext) {
		return cfs.Invalid
	}
	if pos <= dev.FeedPos {
		return cfs.KindOK
	}
	dev.FeedPos = pos
	t.set(deviceKey(id), encodeDevice(dev))
	lowest := pos
	t.scan([]byte{prefixDevice}, []byte{prefixDevice + 1}, func(k, v []byte) bool {
		d, ok := decodeDevice(v)
		if !ok {
			t.corrupt(k)
			return false
		}
		if d.ID == id {
			d = dev
		}
		if d.State != cfs.StateOut {
			lowest = min(lowest, d.FeedPos)
		}
		return true
	})
	// The newest row always stays: by it a device that comes back from far behind
	// sees that it has missed others.
	lowest = min(lowest, t.mark(markFeedNext)-2)
	first := t.mark(markFeedFirst)
	for n := 0; first <= lowest && n < cfs.MaxCommandExtents; n++ {
		t.del(feedKey(first))
		first++
	}
	t.setMark(markFeedFirst, first)
	return cfs.KindOK
}
