package nvme

import (
	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
)

// group is what the records of a placement group and epoch share.
type group struct {
	pg    cfs.PGID
	epoch cfs.Epoch
}

// maxGroups bounds the different groups that the records of an index have: their
// slots are numbered in groupBits of a packed record.
const maxGroups = 1 << groupBits

// groupTable interns groups: each has a slot for as long as a record refers to it.
// It costs 12 bytes a slot, with up to a quarter of slack, and 4 bytes for each place of the
// hash table, of which an eighth to three quarters are taken. Slots are used
// again, and given back when no record is left: so they are as many as there were
// groups at once.
type groupTable struct {
	slots   []groupSlot
	free    uint32   // the first slot that nobody refers to, plus one; 0 for none
	hashed  []uint32 // slots plus one where their hash says or behind; 0 is free; a power of two
	live    int      // slots that records refer to
	maximum int
}

// groupSlot is a group; when nobody refers to it its pg is the next free slot, plus one.
type groupSlot struct {
	group
	refs uint32
}

const (
	minGroupTable  = 8
	groupSlotBytes = 12
)

func newGroupTable() groupTable {
	return groupTable{hashed: make([]uint32, minGroupTable), maximum: maxGroups}
}

func (t *groupTable) home(g group) uint32 {
	h := (uint64(g.pg)<<32 | uint64(g.epoch)) * 0x9e3779b97f4a7c15 // 2^64 over the golden ratio
	return uint32(h>>32) & uint32(len(t.hashed)-1)
}

// take refers to the slot of g, which may be new. Overloaded when there is none
// left; nothing has changed then.
func (t *groupTable) take(g group) (slot uint32, err error) {
	mask := uint32(len(t.hashed) - 1)
	at := t.home(g)
	for ; t.hashed[at] != 0; at = (at + 1) & mask {
		slot = t.hashed[at] - 1
		if s := &t.slots[slot]; s.group == g {
			s.refs++
			return slot, nil
		}
	}
	if t.live >= t.maximum {
		return 0, cfs.Errorf("index", cfs.Overloaded, "the records have %d different placement groups and epochs, there is no room for more", t.live)
	}
	if t.free != 0 {
		slot = t.free - 1
		t.free = uint32(t.slots[slot].pg)
		t.slots[slot] = groupSlot{g, 1}
	} else {
		slot = uint32(len(t.slots))
		t.slots = insertGrowing(t.slots, len(t.slots), groupSlot{g, 1}, maxGroups)
	}
	t.hashed[at] = slot + 1
	t.live++
	if t.live > len(t.hashed)/4*3 {
		t.rehash(2 * len(t.hashed))
	}
	return slot, nil
}

// release undoes one take of a slot.
func (t *groupTable) release(slot uint32) {
	s := &t.slots[slot]
	invariants.Check(s.refs > 0, "group slot %d is released more often than taken", slot)
	if s.refs--; s.refs > 0 {
		return
	}
	t.unhash(slot)
	s.pg, s.epoch = cfs.PGID(t.free), 0
	t.free = slot + 1
	if t.live--; t.live == 0 {
		t.slots, t.free = nil, 0
	}
	if t.live < len(t.hashed)/8 && len(t.hashed) > minGroupTable {
		t.rehash(len(t.hashed) / 2)
	}
}

// unhash takes a slot out of the hash table, and moves those behind it that
// would not be found any more.
func (t *groupTable) unhash(slot uint32) {
	mask := uint32(len(t.hashed) - 1)
	hole := t.home(t.slots[slot].group)
	for t.hashed[hole] != slot+1 {
		hole = (hole + 1) & mask
	}
	for at := (hole + 1) & mask; t.hashed[at] != 0; at = (at + 1) & mask {
		home := t.home(t.slots[t.hashed[at]-1].group)
		if (at-home)&mask >= (at-hole)&mask {
			t.hashed[hole] = t.hashed[at]
			hole = at
		}
	}
	t.hashed[hole] = 0
}

// rehash makes the hash table anew with n places.
func (t *groupTable) rehash(n int) {
	t.hashed = make([]uint32, n)
	mask := uint32(n - 1)
	for i := range t.slots {
		if t.slots[i].refs == 0 {
			continue
		}
		at := t.home(t.slots[i].group)
		for t.hashed[at] != 0 {
			at = (at + 1) & mask
		}
		t.hashed[at] = uint32(i) + 1
	}
}

func (t *groupTable) memBytes() int { return cap(t.slots)*groupSlotBytes + cap(t.hashed)*4 }
