package main

import (
	"fmt"

	"github.com/claudefs/claudefs/cfs"
)

// faultKind is a kind of what `cfs admin fsck` finds.
type faultKind string

// The kinds of faults. What a cluster that is alive does in passing (a file that
// was deleted a moment ago, a stripe being written) is none of them.
const (
	faultState      faultKind = "state"       // the tables of a replica contradict each other
	faultUnchecked  faultKind = "not_checked" // a server or a device did not answer
	faultUnreadable faultKind = "unreadable"  // a stripe has fewer shards than it takes to read it
	faultMissing    faultKind = "missing"     // a shard is not on the device that should have it
	faultDiffers    faultKind = "differs"     // a shard is of another length, group or epoch than its stripe
	faultStray      faultKind = "stray"       // a shard of a stripe on a device that does not count for it
	faultDebris     faultKind = "debris"      // a shard of a stripe that nothing can name any more
	faultNoGroup    faultKind = "no_group"    // a stripe in a group that is not in the map
	faultTwice      faultKind = "twice"       // a stripe in two groups
	faultUnrepaired faultKind = "unrepaired"  // damage that a server could not repair so far
)

// faultKinds is what each kind means, in the order of reports.
var faultKinds = []struct {
	kind faultKind
	text string
}{
	{faultUnchecked, "not checked: no answer"},
	{faultState, "tables of a replica that contradict each other"},
	{faultUnreadable, "stripes with too few shards to be read"},
	{faultMissing, "shards that are not on their device"},
	{faultDiffers, "shards that do not fit their stripe"},
	{faultNoGroup, "stripes of groups that there are not"},
	{faultTwice, "stripes in two groups"},
	{faultUnrepaired, "damaged shards that are not repaired"},
	{faultStray, "shards on devices that do not count for them"},
	{faultDebris, "shards of stripes that are gone"},
}

// fault is one thing that is wrong.
type fault struct {
	kind faultKind
	text string
}

// shardSeen is a shard that a device lists.
type shardSeen struct {
	device cfs.DeviceID
	shard  uint8
	pg     cfs.PGID
	epoch  cfs.Epoch
	len    uint32 // bytes
}

// sighting is everything that was seen of one stripe id.
type sighting struct {
	stripe cfs.StripeID
	rows   []cfs.StripeInfo // of the stripe table: none or one, unless there is a fault
	shards []shardSeen
	fates  map[cfs.PGID]cfs.Fate // of the stripe in the groups that its shards name; nil: not asked
}

// layout is the map as the check needs it.
type layout struct {
	groups map[cfs.PGID]*cfs.PG
	states map[cfs.DeviceID]cfs.State
	listed map[cfs.DeviceID]bool // its shards can be seen: a shard that is not there is missing
}

// newLayout takes the map, and tells of each device that is up whether it answers.
func newLayout(m *cfs.Map, answers func(cfs.DeviceID) bool) *layout {
	l := &layout{groups: map[cfs.PGID]*cfs.PG{}, states: map[cfs.DeviceID]cfs.State{}, listed: map[cfs.DeviceID]bool{}}
	for i := range m.Groups {
		l.groups[m.Groups[i].ID] = &m.Groups[i]
	}
	for _, d := range m.Devices {
		l.states[d.ID] = d.State
		l.listed[d.ID] = (d.State == cfs.StateUp || d.State == cfs.StateSuspect) && answers(d.ID)
	}
	return l
}

// verdict is what a sighting comes to.
type verdict struct {
	faults  []fault
	absent  int  // slots whose shard cannot be seen, for a good reason or not
	pending int  // shards of a stripe that may still be committed
	unclear bool // what was seen contradicts itself: it changed meanwhile
}

// judge compares a stripe with its shards.
func (l *layout) judge(s *sighting) verdict {
	var v verdict
	switch {
	case len(s.rows) == 0:
		l.judgeUnnamed(s, &v)
	case len(s.rows) > 1:
		v.add(faultTwice, "stripe %v is in groups %d and %d", s.stripe, s.rows[0].PG, s.rows[1].PG)
	case l.groups[s.rows[0].PG] == nil:
		v.add(faultNoGroup, "stripe %v of %d bytes is in group %d", s.stripe, s.rows[0].Len, s.rows[0].PG)
	default:
		l.judgeStripe(s, l.groups[s.rows[0].PG], &v)
	}
	return v
}

func (v *verdict) add(kind faultKind, format string, args ...any) {
	v.faults = append(v.faults, fault{kind, fmt.Sprintf(format, args...)})
}

// judgeUnnamed looks at shards whose stripe is not in the table. Without a fate
// they are taken for debris.
func (l *layout) judgeUnnamed(s *sighting, v *verdict) {
	for _, h := range s.shards {
		switch s.fates[h.pg] {
		case cfs.FatePending:
			v.pending++
		case cfs.FateLive:
			v.unclear = true
		default:
			v.add(faultDebris, "shard %v/%d of group %d on device %v, %d bytes", s.stripe, h.shard, h.pg, h.device, h.len)
		}
	}
}

// judgeStripe looks for the shard of each slot, and for shards that are no slot's.
func (l *layout) judgeStripe(s *sighting, g *cfs.PG, v *verdict) {
	row := &s.rows[0]
	matched := make([]bool, len(s.shards))
	var missing []fault
	for i, slot := range g.Slots {
		there, wrong := false, false
		for j, h := range s.shards {
			if int(h.shard) != i || h.device != slot.Device && !(slot.Filling && h.device == slot.Source) {
				continue
			}
			matched[j] = true
			if text := unfit(row, g, &h); text != "" {
				wrong = true
				v.add(faultDiffers, "shard %v/%d on device %v %s", s.stripe, i, h.device, text)
				continue
			}
			there = true
		}
		if there {
			continue
		}
		v.absent++
		holder := slot.Device
		if slot.Filling {
			holder = slot.Source
		}
		if l.listed[holder] && !wrong {
			missing = append(missing, fault{faultMissing, fmt.Sprintf("shard %v/%d of group %d is not on device %v", s.stripe, i, g.ID, holder)})
		}
	}
	if present := len(g.Slots) - v.absent; present < int(g.Geometry.K) {
		v.add(faultUnreadable, "stripe %v of group %d, %d bytes: %d of %d shards, and it takes %d", s.stripe, g.ID, row.Len, present, len(g.Slots), g.Geometry.K)
	} else {
		v.faults = append(v.faults, missing...)
	}
	for j, h := range s.shards {
		if !matched[j] {
			v.add(faultStray, "shard %v/%d of group %d on device %v", s.stripe, h.shard, h.pg, h.device)
		}
	}
}

// unfit says in what a shard does not fit its stripe; "" when it does.
func unfit(row *cfs.StripeInfo, g *cfs.PG, h *shardSeen) string {
	switch want := g.Geometry.ShardSize(row.Len); {
	case h.pg != row.PG:
		return fmt.Sprintf("says group %d, its stripe is in %d", h.pg, row.PG)
	case h.len != want:
		return fmt.Sprintf("has %d bytes, want %d", h.len, want)
	case h.epoch > g.Epoch:
		return fmt.Sprintf("was put at epoch %d, and group %d is at %d", h.epoch, g.ID, g.Epoch)
	}
	return ""
}
