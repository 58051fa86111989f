package store

import (
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

func numbered(i int) repair {
	return repair{key: nvme.Key{Stripe: cfs.StripeID{Session: 1, Counter: uint64(i)}}}
}

// A queue holds each shard once, and a bounded number of them; so does the list of those that failed.
func TestRepairQueueIsBounded(t *testing.T) {
	var q repairQueue
	q.init()
	for i := range maxRepairs {
		for range 2 {
			if !q.push(numbered(i)) {
				t.Fatalf("no room for shard %d", i)
			}
		}
	}
	if q.push(numbered(maxRepairs)) || len(q.waiting) != maxRepairs {
		t.Errorf("%d wait", len(q.waiting))
	}
	r, _ := q.pop()
	if q.push(numbered(maxRepairs)) || !q.push(r) || len(q.waiting) != maxRepairs-1 {
		t.Error("one that is being looked at does not count")
	}
	q.end(r, false)
	if q.idle() || !q.push(numbered(maxRepairs)) {
		t.Error("one that has left holds its place")
	}
	for n := 0; n < 3*maxUnrepaired; n++ {
		if r, ok := q.pop(); ok {
			q.end(r, true)
		} else {
			q.push(numbered(maxRepairs + n))
		}
	}
	if q.unrepaired() != maxUnrepaired {
		t.Errorf("%d are kept", q.unrepaired())
	}
	q.again()
	if len(q.in) != maxUnrepaired {
		t.Errorf("%d are tried again", len(q.in))
	}
}

// TestCameBack: a slot that another was to fill is the device's own again.
func TestCameBack(t *testing.T) {
	id, other := cfs.MakeDeviceID(1, 0), cfs.MakeDeviceID(2, 0)
	at := func(slots ...cfs.Slot) *layout {
		s := New(Config{Map: func() *cfs.Map { return &cfs.Map{Groups: []cfs.PG{{ID: 1, Slots: slots}}} }})
		return s.layout()
	}
	own, filling, away := cfs.Slot{Device: id}, cfs.Slot{Device: id, Filling: true}, cfs.Slot{Device: other, Filling: true, Source: id}
	for _, test := range []struct {
		name        string
		before, now *layout
		want        bool
	}{
		{"as it was", at(own), at(own), false},
		{"filled", at(filling), at(own), false},
		{"to be filled", at(cfs.Slot{Device: other}), at(filling), false},
		{"gone", at(own), at(away), false},
		{"back", at(away), at(own), true},
		{"of a new group", &layout{}, at(own), false},
	} {
		if got := test.now.cameBack(test.before, id); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// TestReclaimAfter: a pass that takes long is not made again soon.
func TestReclaimAfter(t *testing.T) {
	s := New(Config{})
	if a, b := s.reclaimAfter(time.Second), s.reclaimAfter(time.Hour); a != time.Minute || b != 50*time.Hour {
		t.Errorf("%v, %v", a, b)
	}
}

// A bucket lets through what its rate allows; one that is raised counts for what was taken before.
func TestBucket(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	if !b.take(now, 1000, 100) {
		t.Fatal("the first is refused")
	}
	if b.take(now.Add(9*time.Second), 1, 100) {
		t.Error("the debt is not paid off")
	}
	if !b.take(now.Add(10*time.Second), 1000, 100) {
		t.Error("the debt is paid off")
	}
	if b.take(now.Add(10*time.Second), 1, 1000) || !b.take(now.Add(11*time.Second), 1, 1000) {
		t.Error("a raised rate does not count")
	}
	if !b.take(now.Add(11*time.Second), 1<<40, 0) || !b.take(now.Add(11*time.Second), 1, 1) {
		t.Error("no rate is a bound")
	}
}

// What a slot's filling is bounded by is the job of the device that goes, or of the one that comes.
func TestJobOfASlot(t *testing.T) {
	goes, comes, stays := cfs.MakeDeviceID(1, 0), cfs.MakeDeviceID(1, 1), cfs.MakeDeviceID(1, 2)
	m := &cfs.Map{
		Devices: []cfs.Device{{ID: goes, State: cfs.StateUp, Draining: true}, {ID: comes, State: cfs.StateUp}, {ID: stays, State: cfs.StateUp}},
		Groups:  []cfs.PG{{ID: 1, Slots: []cfs.Slot{{Device: comes, Filling: true, Source: goes}, {Device: comes, Filling: true, Source: stays}, {Device: comes}}}},
		Jobs:    []cfs.Job{{Device: goes, State: cfs.JobRunning, RateBytes: 5}, {Device: comes, State: cfs.JobPaused, RateBytes: 6}},
	}
	s := New(Config{Map: func() *cfs.Map { return m }})
	for slot, want := range []struct {
		rate uint64
		ok   bool
	}{{5, true}, {6, false}, {0, false}} {
		if rate, _, ok := s.layout().filling(slotRef{1, slot}, comes); rate != want.rate || ok != want.ok {
			t.Errorf("slot %d: rate %d, to be filled %v", slot, rate, ok)
		}
	}
}
