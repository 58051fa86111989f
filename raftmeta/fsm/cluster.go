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
	node := *n
	node.Learner = false // the members say that
	if old, ok := load(t, nodeKey(n.ID), decodeNode); ok && *old == node {
		return cfs.KindOK
	}
	t.set(nodeKey(n.ID), encodeNode(&node))
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
			if slices.ContainsFunc(g.Slots, func(s cfs.Slot) bool { return s.Filling }) {
				return cfs.Invalid // nobody had what it lacks
			}
			g.ID = cfs.PGID(t.mark(markNextPG))
			t.setMark(markNextPG, uint64(g.ID)+1)
			g.Epoch = 1
		} else {
			old, ok := load(t, groupKey(g.ID), decodePG)
			if !ok || old.Geometry != g.Geometry {
				return cfs.Invalid
			}
			for i := range g.Slots {
				if !keepsData(old.Slots[i], g.Slots[i]) {
					return cfs.Invalid
				}
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

// keepsData reports that a slot may change in this way without a shard being
// forgotten: to a device that fills it from the one that has it, and back to that one.
func keepsData(old, now cfs.Slot) bool {
	has := old.Device
	if old.Filling {
		has = old.Source
	}
	return now == old || now.Filling && now.Source == has || now == cfs.Slot{Device: has}
}

// checkGroup holds the rule of placement: never two shards on a device, never
// more than M on a node. A device that a slot is filled from still has its shards.
func (t *tx) checkGroup(g *cfs.PG) cfs.Kind {
	if g.Geometry.K == 0 || g.Geometry.M == 0 || g.Geometry.Total() > maxSlots || len(g.Slots) != g.Geometry.Total() {
		return cfs.Invalid
	}
	for i, s := range g.Slots {
		if s.Filling != (s.Source != 0) || s.Source == s.Device || s.Filling && g.Writable {
			return cfs.Invalid
		}
		onNode := 1
		for _, o := range g.Slots[:i] {
			if o.Device == s.Device || o.Source == s.Device || s.Filling && (o.Device == s.Source || o.Source == s.Source) {
				return cfs.Invalid
			}
			if o.Device.Node() == s.Device.Node() {
				onNode++
			}
		}
		if onNode > int(g.Geometry.M) {
			return cfs.Invalid
		}
		for _, d := range [...]cfs.DeviceID{s.Device, s.Source} {
			if _, ok := t.get(deviceKey(d)); !ok && d != 0 {
				return cfs.Invalid
			}
		}
	}
	return cfs.KindOK
}

// fillDone ends the filling of a slot, whose device has every shard.
func (t *tx) fillDone(op *cfs.Op) cfs.Kind {
	if len(op.Groups) != 1 {
		return cfs.Invalid
	}
	g, ok := load(t, groupKey(op.Groups[0].ID), decodePG)
	if !ok || g.Epoch != op.Groups[0].Epoch {
		return cfs.Conflict
	}
	at := slices.IndexFunc(g.Slots, func(s cfs.Slot) bool { return s.Filling && s.Device == op.Device.ID })
	if at < 0 {
		return cfs.Conflict
	}
	g.Slots[at] = cfs.Slot{Device: op.Device.ID}
	g.Epoch++
	t.set(groupKey(g.ID), encodePG(g))
	t.changeMap()
	return cfs.KindOK
}

// dropGroups forgets those groups that nothing is in and nothing can get into.
func (t *tx) dropGroups(groups []cfs.PG) cfs.Kind {
	for i := range groups {
		g, ok := load(t, groupKey(groups[i].ID), decodePG)
		if !ok || g.Writable {
			continue
		}
		empty := true
		prefix := stripeKey(g.ID, cfs.StripeID{})[:5]
		t.scan(prefix, after(prefix), func(_, _ []byte) bool {
			empty = false
			return false
		})
		if empty {
			t.del(groupKey(g.ID))
			t.changeMap()
		}
	}
	return cfs.KindOK
}

// setJob records the job of a device. Its times are set here: those at which
// commands began it and changed its state.
func (t *tx) setJob(j cfs.Job) cfs.Kind {
	if !validJob(&j) {
		return cfs.Invalid
	}
	if _, ok := t.get(deviceKey(j.Device)); !ok {
		return cfs.NotFound
	}
	old, ok := load(t, jobKey(j.Device), decodeJob)
	anew := ok && (old.Kind != j.Kind || old.State >= cfs.JobDone && j.State < cfs.JobDone)
	if !ok || anew {
		j.StartedNS, j.ChangedNS = t.now, t.now
	} else if j.StartedNS, j.ChangedNS = old.StartedNS, old.ChangedNS; j.State != old.State {
		j.ChangedNS = t.now
	}
	if ok && j == *old {
		return cfs.KindOK
	}
	t.set(jobKey(j.Device), encodeJob(&j))
	if ok {
		old.DoneBytes, old.TotalBytes = j.DoneBytes, j.TotalBytes
	}
	if !ok || j != *old {
		t.changeMap()
	}
	return cfs.KindOK
}

func validJob(j *cfs.Job) bool {
	return j.Kind >= cfs.JobRebuild && j.Kind <= cfs.JobRebalance && j.State >= cfs.JobRunning && j.State <= cfs.JobCancelled
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
