package nvme

import (
	"github.com/claudefs/claudefs/cfs"
	"github.com/tidwall/btree"
)

// entry is a record in the index: 32 bytes, and no pointer for the collector to
// follow. Records of a group share the interned {PG, epoch}.
type entry struct {
	session, counter uint64
	seg              uint32 // segment
	group            uint32 // in index.groups
	header           uint16 // block of the batch header in the segment
	payload          uint16 // first block of the payload in the segment
	blocks           uint16 // of the payload
	shard            uint8
	_                uint8
}

func (e *entry) before(o *entry) bool {
	switch {
	case e.session != o.session:
		return e.session < o.session
	case e.counter != o.counter:
		return e.counter < o.counter
	}
	return e.shard < o.shard
}

func (e *entry) sizeBytes() uint32 { return uint32(e.blocks) * cfs.BlockSize }

// group is what the records of a placement group and epoch share.
type group struct {
	pg    cfs.PGID
	epoch cfs.Epoch
}

// indexDegree makes B-tree nodes of up to 2*degree-1 entries.
const indexDegree = 32

// index finds and orders the live records. The B-tree holds the entries
// themselves: 32 bytes a record, 48 to 68 with the slack of its nodes (which
// are half full after keys in ascending order; a test holds it under 70).
// Guarded by Log.mu.
type index struct {
	tree    *btree.BTreeG[entry]
	groups  []group
	groupOf map[group]uint32
}

func newIndex() *index {
	less := func(a, b entry) bool { return a.before(&b) }
	return &index{
		tree:    btree.NewBTreeGOptions(less, btree.Options{NoLocks: true, Degree: indexDegree}),
		groupOf: make(map[group]uint32),
	}
}

func keyEntry(k Key) entry {
	return entry{session: uint64(k.Stripe.Session), counter: k.Stripe.Counter, shard: k.Shard}
}

func (x *index) get(k Key) (entry, bool) { return x.tree.Get(keyEntry(k)) }

// put adds a record and returns the entry that it replaces, if any.
func (x *index) put(rec *Record, seg int, header, payload uint32) (old entry, replaced bool) {
	e := keyEntry(rec.Key)
	e.seg, e.group = uint32(seg), x.intern(group{rec.PG, rec.Epoch})
	e.header, e.payload, e.blocks = uint16(header), uint16(payload), uint16(rec.Len/cfs.BlockSize)
	return x.tree.Set(e)
}

func (x *index) delete(k Key) (entry, bool) { return x.tree.Delete(keyEntry(k)) }

func (x *index) len() int { return x.tree.Len() }

func (x *index) intern(g group) uint32 {
	i, ok := x.groupOf[g]
	if !ok {
		i = uint32(len(x.groups))
		x.groups = append(x.groups, g)
		x.groupOf[g] = i
	}
	return i
}

func (x *index) record(e *entry) Record {
	g := x.groups[e.group]
	return Record{
		Key: Key{Stripe: cfs.StripeID{Session: cfs.SessionID(e.session), Counter: e.counter}, Shard: e.shard},
		PG:  g.pg, Epoch: g.epoch, Len: e.sizeBytes(),
	}
}

// list is up to limit records behind after (nil: from the first), in order of their keys.
func (x *index) list(after *Key, limit int) []Record {
	var out []Record
	var from entry
	if after != nil {
		from = keyEntry(*after)
	}
	x.tree.Ascend(from, func(e entry) bool {
		if len(out) >= limit {
			return false
		}
		if after == nil || from.before(&e) {
			out = append(out, x.record(&e))
		}
		return true
	})
	return out
}
