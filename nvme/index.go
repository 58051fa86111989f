package nvme

import (
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
)

// entry is what the index knows of a record.
type entry struct {
	key     Key
	seg     uint32 // segment
	header  uint32 // block of the batch header in the segment
	payload uint32 // first block of the payload in the segment
	blocks  uint32 // of the payload
	group   group

	// revision is how often the record was replaced, or was tried to be: see Log.Replace.
	revision uint16
}

func (e *entry) sizeBytes() uint32 { return e.blocks * cfs.BlockSize }

func (e *entry) location() location { return location{e.seg, e.header, e.payload} }

// location is where a record lies: the blocks count from the segment's start.
type location struct{ seg, header, payload uint32 }

// packed is a record in a leaf. A leaf has the session and the upper half of the
// counter; everything else is here:
//
//	key   counter (lower half) 32 | shard 8 | segment 24
//	val   revision 11 | group slot 22 | distance 7 | blocks less one 8 | payload 16
//
// The distance is that from the batch's header block to the payload. Keys compare as numbers.
type packed struct{ key, val uint64 }

const (
	segBits      = 24
	shardBits    = 8
	payloadBits  = 16
	blocksBits   = 8
	distanceBits = 7
	groupBits    = 22
	revisionBits = 11

	segMask       = 1<<segBits - 1
	counterShift  = shardBits + segBits
	distanceShift = payloadBits + blocksBits
	groupShift    = distanceShift + distanceBits
	revisionShift = groupShift + groupBits

	// maxIndexSegments bounds the segments of a device, and maxHeaderDistance how
	// far behind its batch's header a payload starts, in blocks.
	maxIndexSegments  = 1 << segBits
	maxHeaderDistance = 1<<distanceBits - 1
	// maxRevision bounds how often a record is replaced.
	maxRevision = 1<<revisionBits - 1
)

// packKey is the part of a packed key that orders it.
func packKey(k Key) uint64 {
	return k.Stripe.Counter<<counterShift | uint64(k.Shard)<<segBits
}

// packPlace is a location in a packed key and value, or Invalid when it has no room there.
func packPlace(at location) (key, val uint64, err error) {
	distance := at.payload - at.header
	if at.seg >= maxIndexSegments || at.payload >= 1<<payloadBits || at.header >= at.payload || distance > maxHeaderDistance {
		return 0, 0, cfs.Errorf("index", cfs.Invalid, "no room for segment %d (at most %d), payload block %d (at most %d) under a header at %d (at most %d in front)",
			at.seg, maxIndexSegments-1, at.payload, 1<<payloadBits-1, at.header, maxHeaderDistance)
	}
	return uint64(at.seg), uint64(at.payload) | uint64(distance)<<distanceShift, nil
}

func (p *packed) slot() uint32 { return uint32(p.val>>groupShift) & (1<<groupBits - 1) }

func (p *packed) revision() uint16 { return uint16(p.val >> revisionShift) }

// counter is the lower half of the record's counter.
func (p *packed) counter() uint32 { return uint32(p.key >> counterShift) }

// leaf holds the records of a part of a session in their order. counter is at
// most that of its first record and above that of any record of the session in front of
// the leaf; its upper half is that of all records here. So all shards of a
// stripe are in one leaf.
type leaf struct {
	session, counter uint64
	recs             []packed
}

func (l *leaf) covers(session, counter uint64) bool {
	return l.session == session && l.counter>>32 == counter>>32
}

// find is where a record is in the leaf, or would be.
func (l *leaf) find(key uint64) (i int, found bool) {
	lo, hi := 0, len(l.recs)
	for lo < hi {
		if m := int(uint(lo+hi) >> 1); l.recs[m].key < key {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo, lo < len(l.recs) && l.recs[lo].key&^segMask == key
}

// branch is a run of leaves. session and counter are at most those of its first leaf and
// above those of any leaf in front of it; those of the first branch are 0.
type branch struct {
	session, counter uint64
	leaves           []leaf
}

// find is the last leaf that starts at or in front of a key, -1 for none.
func (b *branch) find(session, counter uint64) int {
	lo, hi := 0, len(b.leaves)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if l := &b.leaves[m]; l.session < session || l.session == session && l.counter <= counter {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo - 1
}

const (
	leafBytes   = 40
	branchBytes = 40
	packedBytes = 16

	// maxLeaf bounds the records of a leaf. It is at least the number of shards
	// that a stripe can have, which stay together.
	maxLeaf = 256
	// maxBranch bounds the leaves of a branch.
	maxBranch = 128
)

// index finds and orders the live records of a device. It has a sorted list of
// branches, each a sorted list of leaves, each a sorted list of records in 16
// bytes. Lists grow by a quarter and shrink when a third of them is empty; of
// neighbours that have become small one takes in the other. Records that come
// in order, or nearly, fill their leaves.
//
// A record costs 16 bytes, slack (none when records come in order, 2 bytes when they come
// in no order, 4 after random deletes, never more than 8), and its share of the 40 to 60
// bytes that a leaf has in its branch, less than 1 for the 64 to 256 records of a leaf. So a
// million records cost 16 to 21 bytes each. A leaf has one session and one upper half of
// its counters, so a session of few records costs more: its leaf has 40 to 50 bytes (60
// at worst, after deletes) and 16 for each record, which is 58 to 64 bytes for
// one, 37 to 40 a record for two, 30 to 32 for three, 22 for ten. A group costs
// 17 to 50 bytes more, see groupTable.
//
// The collector meets one pointer for each leaf. The index is guarded by Log.mu.
type index struct {
	branches []branch // never empty
	groups   groupTable
	count    int
	recRoom  int // sum of the capacities of the leaves
	leafRoom int // and of the branches
}

func newIndex() *index {
	return &index{branches: make([]branch, 1), groups: newGroupTable()}
}

func (x *index) len() int { return x.count }

// memBytes is what the index takes of the heap.
func (x *index) memBytes() int {
	return x.recRoom*packedBytes + x.leafRoom*leafBytes + cap(x.branches)*branchBytes + x.groups.memBytes()
}

// seek is the branch and the leaf that a key belongs to: the leaf is the last
// that starts at or in front of it, -1 when the branch has none.
func (x *index) seek(session, counter uint64) (bi, li int) {
	lo, hi := 1, len(x.branches)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if b := &x.branches[m]; b.session < session || b.session == session && b.counter <= counter {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo - 1, x.branches[lo-1].find(session, counter)
}

// lookup is where the record of a key is.
func (x *index) lookup(k Key) (bi, li, ri int, ok bool) {
	session, counter := uint64(k.Stripe.Session), k.Stripe.Counter
	bi, li = x.seek(session, counter)
	if li < 0 {
		return 0, 0, 0, false
	}
	l := &x.branches[bi].leaves[li]
	if !l.covers(session, counter) {
		return 0, 0, 0, false
	}
	ri, ok = l.find(packKey(k))
	return bi, li, ri, ok
}

func (x *index) entry(l *leaf, p *packed) entry {
	payload := uint32(p.val) & (1<<payloadBits - 1)
	return entry{
		key: Key{
			Stripe: cfs.StripeID{Session: cfs.SessionID(l.session), Counter: l.counter>>32<<32 | uint64(p.counter())},
			Shard:  uint8(p.key >> segBits),
		},
		seg:     uint32(p.key & segMask),
		header:  payload - uint32(p.val>>distanceShift)&maxHeaderDistance,
		payload: payload,
		blocks:  uint32(p.val>>payloadBits)&(1<<blocksBits-1) + 1,
		group:   x.groups.slots[p.slot()].group,

		revision: p.revision(),
	}
}

// record describes an entry.
func (x *index) record(e *entry) Record {
	return Record{Key: e.key, PG: e.group.pg, Epoch: e.group.epoch, Len: e.sizeBytes()}
}

func (x *index) get(k Key) (entry, bool) {
	bi, li, ri, ok := x.lookup(k)
	if !ok {
		return entry{}, false
	}
	l := &x.branches[bi].leaves[li]
	return x.entry(l, &l.recs[ri]), true
}

// put adds a record and returns the entry that it replaces, if any. On an error
// nothing has changed: Overloaded when there are too many groups, Invalid for
// a place, length or revision that no device has.
func (x *index) put(rec *Record, revision uint16, at location) (old entry, replaced bool, err error) {
	blocks := rec.Len / cfs.BlockSize
	if blocks == 0 || blocks > 1<<blocksBits || revision > maxRevision {
		return entry{}, false, cfs.Errorf("index", cfs.Invalid, "no room for a record of %d blocks, revision %d", blocks, revision)
	}
	key, val, err := packPlace(at)
	if err != nil {
		return entry{}, false, err
	}
	slot, err := x.groups.take(group{rec.PG, rec.Epoch})
	if err != nil {
		return entry{}, false, err
	}
	p := packed{key | packKey(rec.Key), val | uint64(blocks-1)<<payloadBits | uint64(slot)<<groupShift | uint64(revision)<<revisionShift}

	session, counter := uint64(rec.Key.Stripe.Session), rec.Key.Stripe.Counter
	bi, li := x.seek(session, counter)
	b := &x.branches[bi]
	switch {
	case li >= 0 && b.leaves[li].covers(session, counter):
		l := &b.leaves[li]
		ri, found := l.find(p.key &^ segMask)
		if found {
			old = x.entry(l, &l.recs[ri])
			x.groups.release(l.recs[ri].slot())
			l.recs[ri] = p
			return old, true, nil
		}
		x.insert(bi, li, ri, p)
	case li+1 < len(b.leaves) && b.leaves[li+1].covers(session, counter):
		b.leaves[li+1].counter = counter
		x.insert(bi, li+1, 0, p)
	default:
		x.insertLeaf(bi, li+1, leaf{session, counter, nil}, p)
	}
	x.count++
	return entry{}, false, nil
}

// replace moves a record that still is at from. The caller sees to it that there can be a
// record at the new place.
func (x *index) replace(k Key, from, to location) bool {
	bi, li, ri, ok := x.lookup(k)
	if !ok {
		return false
	}
	l := &x.branches[bi].leaves[li]
	p := &l.recs[ri]
	if e := x.entry(l, p); e.location() != from {
		return false
	}
	key, val, err := packPlace(to)
	if invariants.Check(err == nil, "%v", err); err != nil {
		return false
	}
	const placeMask = 1<<payloadBits - 1 | maxHeaderDistance<<distanceShift
	p.key = p.key&^segMask | key
	p.val = p.val&^placeMask | val
	return true
}

// revise raises the revision of a record and returns it; 0 when there is no such record. Overloaded
// when it cannot rise: nothing has changed then.
func (x *index) revise(k Key) (uint16, error) {
	bi, li, ri, ok := x.lookup(k)
	if !ok {
		return 0, nil
	}
	p := &x.branches[bi].leaves[li].recs[ri]
	if p.revision() == maxRevision {
		return 0, cfs.Errorf("index", cfs.Overloaded, "the record was replaced %d times", maxRevision)
	}
	p.val += 1 << revisionShift
	return p.revision(), nil
}

// adopt is put when a start finds records in any order: of two of a key that of the higher revision
// stays, or of equal ones the one that comes later. lost is the other, if there was one.
func (x *index) adopt(rec *Record, revision uint16, at location) (lost entry, twice, kept bool, err error) {
	old, twice, err := x.put(rec, revision, at)
	if err != nil || !twice || old.revision <= revision {
		return old, twice, true, err
	}
	was := x.record(&old)
	lost, _, err = x.put(&was, old.revision, old.location())
	return lost, true, false, err
}

func (x *index) delete(k Key) (entry, bool) {
	bi, li, ri, ok := x.lookup(k)
	if !ok {
		return entry{}, false
	}
	l := &x.branches[bi].leaves[li]
	e := x.entry(l, &l.recs[ri])
	x.groups.release(l.recs[ri].slot())
	l.recs = slices.Delete(l.recs, ri, ri+1)
	x.count--
	x.shrinkLeaf(bi, li)
	return e, true
}

// each visits the entries behind after (nil: all) in order of their keys, until
// visit says no. The index must not change meanwhile.
func (x *index) each(after *Key, visit func(e entry) bool) {
	bi, li, ri := 0, 0, 0
	if after != nil {
		session, counter := uint64(after.Stripe.Session), after.Stripe.Counter
		if bi, li = x.seek(session, counter); li < 0 {
			li = 0
		} else if l := &x.branches[bi].leaves[li]; l.covers(session, counter) {
			var found bool
			if ri, found = l.find(packKey(*after)); found {
				ri++
			}
		} else {
			li++
		}
	}
	for ; bi < len(x.branches); bi, li = bi+1, 0 {
		leaves := x.branches[bi].leaves
		for ; li < len(leaves); li, ri = li+1, 0 {
			l := &leaves[li]
			for ; ri < len(l.recs); ri++ {
				if !visit(x.entry(l, &l.recs[ri])) {
					return
				}
			}
		}
	}
}

// list is up to limit records behind after (nil: from the first), in order of their keys.
func (x *index) list(after *Key, limit int) []Record {
	var out []Record
	if limit <= 0 {
		return nil
	}
	x.each(after, func(e entry) bool {
		out = append(out, x.record(&e))
		return len(out) < limit
	})
	return out
}
