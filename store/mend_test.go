package store_test

import (
	"context"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

func id(counter int) cfs.StripeID { return cfs.StripeID{Session: 7, Counter: uint64(counter)} }

// sizes are of stripes: of one block, with padding, of the largest.
func sizes(i int) uint32 { return []uint32{1, 100_000, 1 << 20, 3<<20 + 5}[i%4] }

// The slot of a device that is gone with its node is filled from what the others have, of all
// geometries; what is damaged there is left out, and repaired where it is.
func TestFillFromADeadDevice(t *testing.T) {
	for _, geo := range []cfs.Geometry{cfs.Geo4p2, cfs.Geo2p2, cfs.Geo1p2} {
		t.Run(geo.String(), func(t *testing.T) {
			c := newCluster(t, 3, 3)
			slots := []cfs.DeviceID{dev(3, 0), dev(1, 0), dev(2, 0), dev(1, 1), dev(2, 1), dev(2, 2)}[:geo.Total()]
			c.addGroup(clusterPG, geo, slots...)
			var stripes []stripe
			for i := range 20 {
				stripes = append(stripes, c.put(clusterPG, id(i), min(sizes(i), geo.MaxData())))
			}
			c.damage(clusterPG, stripes[3], 1) // on this node
			c.damage(clusterPG, stripes[4], 2) // on another
			c.stop(3)
			c.table.change(func(m *cfs.Map) { m.Nodes[2].State = cfs.StateDown })
			c.setDevice(dev(3, 0), func(d *cfs.Device) { d.State = cfs.StateOut })
			c.replan(clusterPG, 0, dev(1, 2))
			c.mend(1)
			c.mend(2)
			c.wait("the slot is full", func() bool { return !c.group(clusterPG).Slots[0].Filling })
			for _, st := range stripes {
				if !c.whole(dev(1, 2), st, 0) {
					t.Errorf("stripe %v is not whole", st.id)
				}
			}
			c.settle(1)
			c.settle(2)
			if !c.whole(dev(1, 0), stripes[3], 1) || geo.K > 2 && !c.whole(dev(2, 0), stripes[4], 2) {
				t.Error("what a fill found damaged is not repaired")
			}
			if g := c.group(clusterPG); g.Epoch != 3 || len(c.table.filled) != 1 {
				t.Errorf("group %+v, filled %v", g, c.table.filled)
			}
		})
	}
}

// A device that is drained is the source of its shards: they are taken from there even when there is no other way, and
// from the others where it has them damaged or not at all.
func TestFillFromALiveSource(t *testing.T) {
	c := newCluster(t, 3, 3)
	source, target := dev(3, 0), dev(1, 2)
	c.addGroup(clusterPG, cfs.Geo4p2, source, dev(1, 0), dev(2, 0), dev(1, 1), dev(2, 1), dev(2, 2))
	var stripes []stripe
	for i := range 12 {
		stripes = append(stripes, c.put(clusterPG, id(i), sizes(i)))
	}
	for i, st := range stripes {
		switch {
		case i == 0:
			c.damage(clusterPG, st, 0)
		case i == 1:
			c.members[3].logs[source].Delete([]nvme.Key{{Stripe: st.id}})
		default: // the source alone can help
			for _, d := range []cfs.DeviceID{dev(1, 0), dev(2, 0), dev(1, 1), dev(2, 1), dev(2, 2)} {
				for shard := range uint8(6) {
					c.members[d.Node()].logs[d].Delete([]nvme.Key{{Stripe: st.id, Shard: shard}})
				}
			}
		}
	}
	c.setDevice(source, func(d *cfs.Device) { d.Draining = true })
	c.replan(clusterPG, 0, target)
	c.mend(1)
	c.mend(3)
	c.wait("the slot is full", func() bool { return !c.group(clusterPG).Slots[0].Filling })
	for _, st := range stripes {
		if !c.whole(target, st, 0) {
			t.Errorf("stripe %v is not whole", st.id)
		}
	}
	// The source lets go of what it has when the slot is full, and not before.
	c.settle(3)
	if n := c.records(source); n != 0 {
		t.Errorf("%d shards are left on the source", n)
	}
}

// While a slot is being filled, whoever had it keeps what it has, even if it is not the source any more.
func TestReconcileKeepsWhatAFillMayNeed(t *testing.T) {
	c := newCluster(t, 3, 3)
	c.addGroup(clusterPG, cfs.Geo1p2, dev(3, 0), dev(1, 0), dev(2, 0))
	c.put(clusterPG, id(1), 4096)
	c.replan(clusterPG, 0, dev(3, 1))
	c.replan(clusterPG, 0, dev(2, 1)) // of the source 3/1, which has nothing
	c.mend(3)
	c.settle(3)
	if !c.has(dev(3, 0), id(1), 0) {
		t.Fatal("it is deleted")
	}
	c.mend(2)
	c.wait("the slot is full", func() bool { return !c.group(clusterPG).Slots[0].Filling })
	c.settle(3)
	if c.has(dev(3, 0), id(1), 0) {
		t.Error("it is still there")
	}
}

// A fill that ends in the middle goes on where it was, and one that is paused or cancelled stands still.
func TestFillResumes(t *testing.T) {
	c := newCluster(t, 2, 2)
	source, target := dev(2, 0), dev(1, 1)
	c.addGroup(clusterPG, cfs.Geo1p2, source, dev(1, 0), dev(2, 1))
	const stripes, each = 60, 64 << 10
	var all []stripe
	for i := range stripes {
		all = append(all, c.put(clusterPG, id(i), each))
	}
	c.setDevice(source, func(d *cfs.Device) { d.Draining = true })
	job := func(f func(*cfs.Job)) {
		c.table.change(func(m *cfs.Map) {
			if len(m.Jobs) == 0 {
				m.Jobs = []cfs.Job{{Device: source, Kind: cfs.JobDrain, State: cfs.JobRunning}}
			}
			f(&m.Jobs[0])
		})
	}
	job(func(j *cfs.Job) { j.State = cfs.JobPaused })
	c.replan(clusterPG, 0, target)
	c.mend(1)
	c.settle(1) // a while
	if n := c.records(target); n != 0 {
		t.Fatalf("%d shards were moved for a paused job", n)
	}
	// Slowly: one shard and then 16 in a second at most.
	job(func(j *cfs.Job) { j.State, j.RateBytes = cfs.JobRunning, 16*each })
	c.wait("some are there", func() bool { return c.records(target) >= 5 })
	// Without a rate, so that one that did not stop would be done soon.
	job(func(j *cfs.Job) { j.State, j.RateBytes = cfs.JobCancelled, 0 })
	stopped := c.records(target)
	for range 4 {
		c.settle(1)
	}
	if n := c.records(target); n > stopped+maxParallel || n == stripes {
		t.Fatalf("%d shards, %d when the job was cancelled", n, stopped)
	}
	stopped = c.records(target)
	if f := c.members[1].store.Fills(); len(f) != 1 || f[0].Pg != uint32(clusterPG) || f[0].Slot != 0 || int(f[0].DoneBytes) < (stopped-maxParallel)*each {
		t.Errorf("fills: %v with %d shards", f, stopped)
	}
	job(func(j *cfs.Job) { j.State, j.RateBytes = cfs.JobRunning, 16*each })
	c.wait("more are there", func() bool { return c.records(target) >= stopped+2 })
	c.rest(1)
	c.stop(1)
	c.start(1, 2)
	there := c.records(target)
	if there == 0 || there == stripes {
		t.Fatalf("%d shards after the restart", there)
	}
	job(func(j *cfs.Job) { j.RateBytes = 0 })
	c.mend(1)
	c.wait("the slot is full", func() bool { return !c.group(clusterPG).Slots[0].Filling })
	if puts := c.members[1].logs[target].Stats().Puts; puts != uint64(stripes-there) {
		t.Errorf("%d puts for %d shards, of which %d were there", puts, stripes, there)
	}
	for _, st := range all {
		if !c.whole(target, st, 0) {
			t.Errorf("stripe %v is not whole", st.id)
		}
	}
}

// maxParallel is more than the shards that one device makes at a time.
const maxParallel = 8

// When the group changes in the middle of a fill, the fill begins anew under the new epoch.
func TestFillUnderAChangingMap(t *testing.T) {
	c := newCluster(t, 2, 3)
	target := dev(1, 1)
	c.addGroup(clusterPG, cfs.Geo1p2, dev(2, 0), dev(1, 0), dev(2, 1))
	for i := range 10 {
		c.put(clusterPG, id(i), 4096)
	}
	asked := 0
	c.table.mu.Lock()
	c.table.hook = func(q *cfs.Query) {
		if q.Kind == cfs.QueryStripes {
			if asked++; asked == 3 {
				go c.replan(clusterPG, 2, dev(2, 2)) // by another goroutine: the table is locked here
			}
		}
	}
	c.table.mu.Unlock()
	c.replan(clusterPG, 0, target)
	c.mend(1)
	c.wait("both slots are planned and this one is full", func() bool {
		g := c.group(clusterPG)
		return g.Slots[2].Device == dev(2, 2) && !g.Slots[0].Filling
	})
	if n := c.records(target); n != 10 {
		t.Errorf("%d shards", n)
	}
}

// A slot goes to and fro between two devices while both are reconciled all the time: whoever has it when it is
// full has every shard, though it had let go of them before, and had just been told to.
func TestFillAndReconcileMeet(t *testing.T) {
	c := newCluster(t, 3, 1)
	homes := []cfs.DeviceID{dev(1, 0), dev(2, 0)}
	c.table.change(func(m *cfs.Map) { m.Devices = append(m.Devices, cfs.Device{ID: dev(3, 1), State: cfs.StateUp}) })
	c.addGroup(clusterPG, cfs.Geo1p2, homes[0], dev(3, 0), dev(3, 1)) // 3/1 is not there
	var stripes []stripe
	for i := range 12 {
		shards := c.encode(clusterPG, id(i), 4096)
		for shard, at := range []cfs.DeviceID{homes[0], dev(3, 0)} {
			c.putShard(at, clusterPG, 1, nvme.Key{Stripe: id(i), Shard: uint8(shard)}, shards[shard], false)
		}
		c.commit(clusterPG, id(i), 4096)
		stripes = append(stripes, stripe{id(i), shards})
	}
	c.mend(1)
	c.mend(2)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for node := range 2 {
		group.Go(func() {
			for ctx.Err() == nil {
				_ = c.members[cfs.NodeID(node+1)].store.Reclaim(ctx, homes[node]) // ends with ctx
			}
		})
	}
	for round := 1; round <= 10; round++ {
		to := homes[round%2]
		c.replan(clusterPG, 0, to)
		c.wait("the slot is full", func() bool { return !c.group(clusterPG).Slots[0].Filling })
		for _, st := range stripes {
			if !c.whole(to, st, 0) {
				t.Fatalf("round %d: stripe %v is not on %v", round, st.id, to)
			}
		}
	}
	cancel()
	group.Wait()
}

// A reconcile that is about to delete by an old map holds up a fill under a newer one, which would count on
// what is being deleted.
func TestFillWaitsForAnOlderReconcile(t *testing.T) {
	c := newCluster(t, 2, 2)
	c.addGroup(clusterPG, cfs.Geo1p2, dev(1, 0), dev(1, 1), dev(2, 1))
	var stripes []stripe
	for i := range 5 {
		st := c.put(clusterPG, id(i), 4096)
		c.putShard(dev(2, 0), clusterPG, 1, nvme.Key{Stripe: st.id}, st.shards[0], false)
		stripes = append(stripes, st)
	}
	c.table.change(func(m *cfs.Map) { m.Groups[0].Epoch, m.Groups[0].Slots[0].Device = 2, dev(2, 0) })
	var once sync.Once
	hook := func(*cfs.Map) {
		if !strings.Contains(string(debug.Stack()), "discard") {
			return
		}
		once.Do(func() {
			c.replan(clusterPG, 0, dev(1, 0))
			// A fill that did not wait would be done soon.
			for deadline := time.Now().Add(time.Second); c.group(clusterPG).Slots[0].Filling && time.Now().Before(deadline); {
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	c.mapped.Store(&hook)
	c.mend(1)
	c.must(c.members[1].store.Reclaim(t.Context(), dev(1, 0)))
	c.wait("the slot is full", func() bool { return !c.group(clusterPG).Slots[0].Filling })
	for _, st := range stripes {
		if !c.whole(dev(1, 0), st, 0) {
			t.Errorf("stripe %v is not whole", st.id)
		}
	}
}

// Reconciling deletes what is dead and what is foreign. What a client has put and not yet committed
// stays, however long it takes.
func TestReconcileDeletesOnlyWhatIsOfNoUse(t *testing.T) {
	c := newCluster(t, 2, 2)
	c.addGroup(clusterPG, cfs.Geo1p2, dev(1, 0), dev(1, 1), dev(2, 0))
	c.addGroup(clusterPG+1, cfs.Geo1p2, dev(2, 0), dev(1, 1), dev(2, 1))
	c.table.floors[7] = 100
	live := c.put(clusterPG, id(1), 4096)
	slow := c.putOnly(clusterPG, id(100), 8192)                      // will be committed
	c.putOnly(clusterPG, id(99), 4096)                               // below the floor
	c.putOnly(clusterPG, cfs.StripeID{Session: 8, Counter: 1}, 4096) // of a session that has ended
	foreign := c.put(clusterPG+1, id(2), 4096)
	c.putShard(dev(1, 0), clusterPG+1, 1, nvme.Key{Stripe: foreign.id}, foreign.shards[0], false)
	newer := c.put(clusterPG+1, id(3), 4096) // under an epoch that the node has not heard of: it may be its own by then
	c.putShard(dev(1, 0), clusterPG+1, 9, nvme.Key{Stripe: newer.id}, newer.shards[0], false)
	c.mend(1)
	for range 3 {
		c.settle(1)
		if !c.whole(dev(1, 0), live, 0) || !c.whole(dev(1, 0), slow, 0) || !c.has(dev(1, 0), newer.id, 0) {
			t.Fatal("a shard is gone that is of use")
		}
		if n := c.records(dev(1, 0)); n != 3 {
			t.Fatalf("%d shards", n)
		}
	}
	if got := c.info(dev(1, 0)); got.Reclaimed != 3 || got.Missing != 0 {
		t.Errorf("%+v", got)
	}
	c.commit(clusterPG, slow.id, 8192)
	c.table.mu.Lock()
	c.table.floors[7] = 1000
	c.table.mu.Unlock()
	c.settle(1)
	if !c.whole(dev(1, 0), slow, 0) {
		t.Error("a shard is gone that was committed late")
	}
	c.table.mu.Lock()
	delete(c.table.rows[clusterPG], slow.id)
	c.table.mu.Unlock()
	c.settle(1)
	if c.has(dev(1, 0), slow.id, 0) {
		t.Error("a shard of a dead stripe is there still")
	}
}

// After a start a node's map may be older than what it went by before: by that one nothing is deleted that the
// table has, and nothing is filled. What is dead goes all the same.
func TestNothingIsDoneByAnOldMap(t *testing.T) {
	c := newCluster(t, 2, 2)
	c.addGroup(clusterPG, cfs.Geo1p2, dev(2, 0), dev(1, 1), dev(2, 1))
	live := c.put(clusterPG, id(1), 4096)
	dead := c.putOnly(clusterPG, id(2), 4096)
	c.replan(clusterPG, 2, dev(1, 0)) // as the node once knew it: 1/0 is to be filled, and
	old := c.table.m.Load()
	c.table.change(func(m *cfs.Map) { // now, the other way round: what was put into slot 0 under epoch 1 is good
		g := &m.Groups[0]
		g.Slots[0], g.Slots[2] = cfs.Slot{Device: dev(1, 0)}, cfs.Slot{Device: dev(2, 1)}
		g.Epoch++
	})
	c.putShard(dev(1, 0), clusterPG, 1, nvme.Key{Stripe: live.id}, live.shards[0], false)
	c.putShard(dev(1, 0), clusterPG, 1, nvme.Key{Stripe: dead.id}, dead.shards[0], false)
	c.stale.Store(old)
	c.mend(1)
	pass := make(chan error, 1)
	go func() { pass <- c.members[1].store.Reclaim(t.Context(), dev(1, 0)) }()
	c.wait("the dead shard is gone, or the pass over", func() bool { return !c.has(dev(1, 0), dead.id, 0) || len(pass) > 0 })
	if err := <-pass; cfs.KindOf(err) != cfs.Unavailable {
		t.Errorf("a pass by an old map: %v", err)
	}
	if !c.whole(dev(1, 0), live, 0) || c.has(dev(1, 0), dead.id, 0) {
		t.Error("the live shard is gone, or the dead one is not")
	}
	if f := c.members[1].store.Fills(); len(f) != 0 || c.has(dev(1, 0), live.id, 2) {
		t.Errorf("it fills what it should not: %v", f)
	}
	c.stale.Store(nil)
	c.settle(1)
	if n := c.records(dev(1, 0)); n != 1 || !c.whole(dev(1, 0), live, 0) {
		t.Errorf("%d shards", n)
	}
}

// A device that is served no more while it is settled ends that.
func TestSettleOfARetiredDevice(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.addGroup(clusterPG, cfs.Geo1p2, dev(1, 0), dev(2, 0), dev(2, 1))
	c.putShard(dev(1, 0), clusterPG, 1, nvme.Key{Stripe: id(1)}, c.encode(clusterPG, id(1), 4096)[0], false)
	c.commit(clusterPG, id(1), 4096)
	c.report(dev(1, 0), id(1), 0) // nobody mends: what is queued stays
	asked := make(chan struct{}, 1)
	c.table.mu.Lock()
	c.table.hook = func(*cfs.Query) {
		select {
		case asked <- struct{}{}:
		default:
		}
	}
	c.table.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- c.members[1].store.Settle(t.Context(), 0) }()
	<-asked
	c.members[1].store.RemoveDevice(dev(1, 0))
	select {
	case err := <-done:
		c.must(err)
	case <-time.After(clusterPatience):
		t.Fatal("it goes on")
	}
}

// Missing shards are looked for when a scrub begins, not when it ends.
func TestMissingIsFoundDuringAScrub(t *testing.T) {
	c := newCluster(t, 0, 0)
	c.rate = 1
	for node := range cfs.NodeID(2) {
		c.table.change(func(m *cfs.Map) {
			m.Nodes = append(m.Nodes, cfs.Node{ID: node + 1, State: cfs.StateUp})
			for slot := range uint16(2) {
				m.Devices = append(m.Devices, cfs.Device{ID: cfs.MakeDeviceID(node+1, slot), State: cfs.StateUp})
			}
		})
		c.start(node+1, 2)
	}
	c.addGroup(clusterPG, cfs.Geo1p2, dev(1, 0), dev(2, 0), dev(2, 1))
	there, missing := c.put(clusterPG, id(1), 32<<10), c.put(clusterPG, id(2), 4096)
	c.members[1].logs[dev(1, 0)].Delete([]nvme.Key{{Stripe: missing.id}})
	c.mend(1)
	c.members[1].store.StartScrub(dev(1, 0))
	c.wait("the missing shard is made", func() bool { return c.whole(dev(1, 0), missing, 0) })
	for _, d := range c.members[1].store.Inspect() {
		if cfs.DeviceID(d.Id) == dev(1, 0) && (!d.Scrubbing || d.LastScrubNs != 0) {
			t.Errorf("the scrub of %v is over: %v", there.id, d)
		}
	}
}

// A flipped bit that a scrub finds, one that a reader reports, and a shard that is missing are
// repaired from the others; each is counted.
func TestRepair(t *testing.T) {
	c := newCluster(t, 3, 2)
	c.addGroup(clusterPG, cfs.Geo4p2, dev(1, 0), dev(2, 0), dev(3, 0), dev(1, 1), dev(2, 1), dev(3, 1))
	var stripes []stripe
	for i := range 6 {
		stripes = append(stripes, c.put(clusterPG, id(i), sizes(i)))
	}
	c.mend(1)
	c.damage(clusterPG, stripes[0], 0)
	c.damage(clusterPG, stripes[1], 3)
	c.members[1].store.StartScrub(0)
	c.wait("the scrub's finds are repaired", func() bool {
		return c.whole(dev(1, 0), stripes[0], 0) && c.whole(dev(1, 1), stripes[1], 3)
	})
	c.damage(clusterPG, stripes[3], 0)
	c.report(dev(1, 0), stripes[3].id, 0)
	c.report(dev(1, 0), stripes[2].id, 0) // whole
	c.report(dev(1, 0), id(77), 0)        // no such stripe
	c.report(dev(1, 0), stripes[2].id, 5) // not of this device
	c.wait("what was reported is repaired", func() bool { return c.whole(dev(1, 0), stripes[3], 0) })
	c.members[1].logs[dev(1, 0)].Delete([]nvme.Key{{Stripe: stripes[4].id}})
	c.report(dev(1, 0), stripes[4].id, 0) // a report does not name the group
	c.wait("a missing shard that was reported is made", func() bool { return c.whole(dev(1, 0), stripes[4], 0) })
	c.members[1].logs[dev(1, 0)].Delete([]nvme.Key{{Stripe: stripes[5].id}})
	c.settle(1)
	if !c.whole(dev(1, 0), stripes[5], 0) {
		t.Error("a missing shard is not made")
	}
	if got := c.info(dev(1, 0)); got.Damaged != 2 || got.Missing != 2 || got.Repaired != 4 || got.Unrepaired != 0 {
		t.Errorf("%+v", got)
	}
	if n := c.records(dev(1, 0)); n != len(stripes) {
		t.Errorf("%d shards", n)
	}
}

// What cannot be repaired now is kept, and repaired when there is enough to repair it from.
func TestRepairIsTriedAgain(t *testing.T) {
	c := newCluster(t, 3, 2)
	c.addGroup(clusterPG, cfs.Geo2p2, dev(1, 0), dev(2, 0), dev(3, 0), dev(2, 1))
	st := c.put(clusterPG, id(1), 300_000)
	c.damage(clusterPG, st, 0)
	c.damage(clusterPG, st, 1)
	c.damage(clusterPG, st, 2)
	c.mend(1)
	c.members[1].store.StartScrub(dev(1, 0))
	c.wait("the attempt has failed", func() bool { return c.info(dev(1, 0)).Unrepaired == 1 })
	c.settle(1)
	if got := c.info(dev(1, 0)); got.Damaged != 1 || got.Unrepaired != 1 || got.Repaired != 0 {
		t.Errorf("%+v", got)
	}
	c.members[3].logs[dev(3, 0)].Delete([]nvme.Key{{Stripe: st.id, Shard: 2}})
	c.putShard(dev(3, 0), clusterPG, 1, nvme.Key{Stripe: st.id, Shard: 2}, st.shards[2], false)
	c.settle(1)
	if got := c.info(dev(1, 0)); got.Damaged != 1 || got.Unrepaired != 0 || got.Repaired != 1 || !c.whole(dev(1, 0), st, 0) {
		t.Errorf("%+v", got)
	}
}

// Devices come and go while the others are served.
func TestDevicesComeAndGo(t *testing.T) {
	c := newCluster(t, 2, 2)
	c.addGroup(clusterPG, cfs.Geo1p2, dev(2, 0), dev(1, 0), dev(2, 1))
	st := c.put(clusterPG, id(1), 64<<10)
	c.mend(1)
	n := c.members[1]
	added := dev(1, 2)
	c.setDevice(dev(2, 0), func(d *cfs.Device) { d.Draining = true })
	n.logs[added] = c.openLog(n, added)
	n.idle = n.arena.InUse()
	c.must(n.store.AddDevice(added, n.logs[added]))
	if err := n.store.AddDevice(added, n.logs[added]); cfs.KindOf(err) != cfs.Exists {
		t.Errorf("added twice: %v", err)
	}
	c.replan(clusterPG, 0, added)
	c.wait("the new device is filled", func() bool { return c.whole(added, st, 0) && !c.group(clusterPG).Slots[0].Filling })
	n.store.RemoveDevice(added)
	n.store.RemoveDevice(added)
	if ids := n.store.Devices(); len(ids) != 2 {
		t.Errorf("devices %v", ids)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := n.store.Settle(ctx, added); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("a device that is not served: %v", err)
	}
}

// A device is full above one mark and has room again below a lower one.
func TestFull(t *testing.T) {
	r := newRig(t)
	d := r.devices[0]
	if r.store.Full(d) {
		t.Error("an empty device is full")
	}
	var puts []cfs.StripeID
	for i := 0; ; i++ {
		st := cfs.StripeID{Session: 3, Counter: uint64(i)}
		err := r.put(d, st, 0, 5, content(st, 0, cfs.MaxShardSize))
		if cfs.KindOf(err) == cfs.NoSpace {
			break
		}
		r.must(err)
		puts = append(puts, st)
	}
	if !r.store.Full(d) || r.store.Full(r.devices[1]) {
		t.Error("full is not the device that is")
	}
	if _, err := r.store.DeleteFreed(d, puts, 1); err != nil {
		t.Error(err)
	}
	if !r.store.Full(d) {
		t.Error("a device that has just found no room is not full")
	}
}
