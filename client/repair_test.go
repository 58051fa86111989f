package client

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

func (b *bed) reports(id shardID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reported[id]
}

// TestDamageIsReported: once, to the owner, and no good shard is; a read of the whole
// stripe fetches one shard more for a damaged one, not all again.
func TestDamageIsReported(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	ino := put(t, b.mount(t), "f", data)
	shards := b.dataShards(ino)
	c := b.mount(t)
	f := open(t, c, "f", unix.O_RDONLY)
	p := make([]byte, len(data))
	c.hedgeAfter(time.Hour)
	read := func() {
		t.Helper()
		clear(p)
		_, err := f.Read(t.Context(), p, 0)
		must(t, err)
		same(t, "read", p, data)
	}
	b.spoil(shards[1])
	read()
	if got := c.Stats().BytesFetched(); got != uint64(len(data)) {
		t.Errorf("%d good bytes fetched for %d", got, len(data))
	}
	wait(t, "the damaged shard is reported", func() bool { return b.reports(shards[1]) > 0 })
	read()
	b.drop(shards[2])
	read()
	wait(t, "the missing shard is reported", func() bool { return b.reports(shards[2]) > 0 })
	read()
	wait(t, "both are counted", func() bool { return c.Stats().ShardsReported() == 2 })
	for _, id := range shards {
		want := 0
		if id == shards[1] || id == shards[2] {
			want = 1
		}
		if got := b.reports(id); got != want {
			t.Errorf("shard %d was reported %d times, want %d", id.shard, got, want)
		}
	}
	must(t, f.Close(t.Context()))
}

func TestReportsAreBounded(t *testing.T) {
	r := newReports()
	now := time.Now()
	d := func(i int) damage { return damage{stripe: cfs.StripeID{Counter: uint64(i)}} }
	for i := range maxReports {
		if !r.add(d(i), now) {
			t.Fatalf("report %d refused", i)
		}
	}
	if r.add(d(maxReports), now) || len(r.seen) != maxReports {
		t.Error("a report for which there is no room is remembered")
	}
	if r.add(d(0), now.Add(reportAgain/2)) {
		t.Error("a report twice")
	}
	<-r.queue
	if !r.add(d(0), now.Add(2*reportAgain)) {
		t.Error("a shard that is still damaged is not reported again")
	}
	for i := 0; len(r.seen) < maxReported; i++ {
		r.seen[d(10_000+i)] = now
	}
	<-r.queue
	if r.add(d(1_000_000), now) {
		t.Error("more are remembered than the bound")
	}
	if !r.add(d(1_000_000), now.Add(2*reportAgain)) || len(r.seen) > 2 {
		t.Errorf("%d old reports are still remembered", len(r.seen))
	}
}

// TestFillingSlots: the device that a slot is moving from is asked, the new one only
// when all else has failed.
func TestFillingSlots(t *testing.T) {
	b := newBed(t, 4)
	data := randomBytes(1, 4<<20)
	ino := put(t, b.mount(t), "f", data)
	x := b.extents(ino)[0]
	g := *b.group(x.PG)
	g.Slots = append([]cfs.Slot(nil), g.Slots...)
	old := g.Slots[0].Device
	inGroup := map[cfs.DeviceID]bool{}
	for _, s := range g.Slots {
		inGroup[s.Device] = true
	}
	var other cfs.DeviceID
	for _, d := range b.cmap.Load().Devices {
		if !inGroup[d.ID] {
			other = d.ID
		}
	}
	g.Slots[0] = cfs.Slot{Device: other, Filling: true, Source: old}
	g.Writable = false
	b.apply(0, cfs.Op{Kind: cfs.OpSetGroups, Groups: []cfs.PG{g}, MapVersion: b.cmap.Load().Version})
	c := b.mount(t)
	c.hedgeAfter(time.Hour)
	f := open(t, c, "f", unix.O_RDONLY)
	p := make([]byte, len(data))
	read := func() {
		t.Helper()
		clear(p)
		_, err := f.Read(t.Context(), p, 0)
		must(t, err)
		same(t, "read", p, data)
	}
	read()
	asked := func(d cfs.DeviceID) int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.asked[d]
	}
	if asked(old) == 0 || asked(other) != 0 || c.Stats().ShardsReconstructed() != 0 {
		t.Errorf("the source was asked %d times, the new device %d; %d shards reconstructed", asked(old), asked(other), c.Stats().ShardsReconstructed())
	}
	b.drop(shardID{old, x.Stripe, 0})
	read() // reconstructed, and nobody owes the shard yet
	if c.Stats().ShardsReconstructed() == 0 {
		t.Error("nothing was reconstructed")
	}
	// Two more shards gone: only with what the new device has are there four.
	b.mu.Lock()
	b.shards[shardID{other, x.Stripe, 0}] = &stored{data: data[:1<<20], crcs: crcsOf(x.Stripe, 0, data[:1<<20])}
	b.mu.Unlock()
	b.drop(shardID{g.Slots[4].Device, x.Stripe, 4})
	b.drop(shardID{g.Slots[5].Device, x.Stripe, 5})
	read()
	if asked(other) == 0 {
		t.Error("the new device was not asked")
	}
	if n := b.reports(shardID{old, x.Stripe, 0}) + b.reports(shardID{other, x.Stripe, 0}); n != 0 {
		t.Errorf("a shard of a filling slot was reported %d times", n)
	}
	must(t, f.Close(t.Context()))
}

// TestSuspectsAreAskedLast: a node that has been silent for a while is left alone as
// long as others have enough, and asked when they have not.
func TestSuspectsAreAskedLast(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(1, 4<<20)
	put(t, b.mount(t), "f", data)
	b.apply(0, cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: b.nodes[0].node, Addr: b.nodes[0].addr, State: cfs.StateSuspect}})
	c := b.mount(t)
	c.hedgeAfter(time.Hour)
	check(t, c, "f", data)
	if n := b.askedOf(b.nodes[0]); n != 0 {
		t.Errorf("the suspect was asked %d times", n)
	}
	b.apply(0, cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: b.nodes[1].node, Addr: b.nodes[1].addr, State: cfs.StateOut}})
	m := b.mount(t)
	check(t, m, "f", data)
	if b.askedOf(b.nodes[0]) == 0 {
		t.Error("the suspect was not asked though only two other devices are up")
	}
}

// TestIdleFloor: a session that does nothing more still lets go of what it overwrote
// and of what it put in vain.
func TestIdleFloor(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "f")
	for i := range 3 {
		write(t, f, randomBytes(uint64(i), 1<<20), 0)
		must(t, f.Sync(t.Context()))
	}
	s := c.session.Load()
	s.stripes.settle(s.stripes.take()) // put and abandoned
	wait(t, "the floor is told", func() bool { return b.floor(s.id) == s.stripes.lowest() })
	if n := len(b.stripeTable()); n != 1 {
		t.Errorf("%d stripes are in the table, want 1", n)
	}
	sent := s.sent.Load()
	time.Sleep(2*heartbeatEvery + floorAfter)
	if s.sent.Load() != sent {
		t.Error("a session whose floor does not move sends commands")
	}
	must(t, f.Close(t.Context()))
}

// TestOneFullDevice: writes wait for groups without it.
func TestOneFullDevice(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	b.nodes[1].noSpace.Store(true)
	data := randomBytes(2, 6<<20)
	f := create(t, c, "f")
	write(t, f, data, 0)
	f.n.sealAll()
	wait(t, "a put meets the full node", func() bool { return c.Stats().putRetries.Load() > 0 })
	b.setState(b.nodes[1], cfs.StateDown) // as the cluster plans without what is full
	b.apply(0, cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: b.nodes[1].node, Addr: b.nodes[1].addr, State: cfs.StateUp}})
	must(t, f.Sync(t.Context()))
	must(t, f.Close(t.Context()))
	check(t, c, "f", data)
	b.checkStripes(t, c)
}

// TestFullForAMoment: a device that was full once does not fail a put that other failures
// hold up, nor does one that is full in one version of the map after another.
func TestFullForAMoment(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	c.forSpace = 100 * time.Millisecond
	full := b.nodes[1]
	data := randomBytes(2, 1<<20)
	begin := func(name string) *File {
		t.Helper()
		full.noSpace.Store(true)
		before := c.Stats().putRetries.Load()
		f := create(t, c, name)
		write(t, f, data, 0)
		f.n.sealAll()
		wait(t, "a put meets the full node", func() bool { return c.Stats().putRetries.Load() > before })
		return f
	}
	f := begin("f")
	full.blind.Store(true)
	full.noSpace.Store(false)
	tries := c.Stats().putRetries.Load()
	time.Sleep(2 * c.forSpace)
	wait(t, "another failure", func() bool { return c.Stats().putRetries.Load() > tries })
	full.blind.Store(false)
	must(t, f.Sync(t.Context()))
	must(t, f.Close(t.Context()))
	f = begin("g")
	for range 15 {
		b.bumpEpochs(b.nodes[2])
		time.Sleep(50 * time.Millisecond)
	}
	full.noSpace.Store(false)
	must(t, f.Sync(t.Context()))
	must(t, f.Close(t.Context()))
	check(t, c, "f", data)
	check(t, c, "g", data)
	b.checkStripes(t, c)
}

// TestFullForGood: no groups without the full node come.
func TestFullForGood(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	b.nodes[1].noSpace.Store(true)
	f := create(t, c, "f")
	write(t, f, randomBytes(2, 1<<20), 0)
	wantKind(t, f.Close(t.Context()), cfs.NoSpace)
	// The tries have left nothing on the devices that had room.
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.shards) != 0 {
		t.Errorf("%d shards of stripes that were given up", len(b.shards))
	}
}

func TestSpaceless(t *testing.T) {
	dev := func(i int) cfs.DeviceID { return cfs.MakeDeviceID(cfs.NodeID(i), 0) }
	group := func(id int, devs ...int) cfs.PG {
		g := cfs.PG{ID: cfs.PGID(id), Geometry: cfs.Geo1p2, Writable: true}
		for _, d := range devs {
			g.Slots = append(g.Slots, cfs.Slot{Device: dev(d)})
		}
		return g
	}
	build := func(full ...int) *layout {
		m := &cfs.Map{Groups: []cfs.PG{group(1, 1, 2, 3), group(2, 2, 3, 4)}}
		for i := 1; i <= 4; i++ {
			m.Nodes = append(m.Nodes, cfs.Node{ID: cfs.NodeID(i), State: cfs.StateUp})
			d := cfs.Device{ID: dev(i), State: cfs.StateUp}
			for _, x := range full {
				d.Full = d.Full || x == i
			}
			m.Devices = append(m.Devices, d)
		}
		return newLayout(m)
	}
	c := &Client{}
	for _, x := range []struct {
		full []int
		want bool
	}{{nil, false}, {[]int{1}, false}, {[]int{2}, true}, {[]int{1, 4}, true}} {
		if got := c.spaceless(build(x.full...)); got != x.want {
			t.Errorf("devices %v full: %v", x.full, got)
		}
	}
	for i := 1; i <= 4; i++ {
		c.full.add(dev(i))
		if got := c.spaceless(build()); got != (i == 4) {
			t.Errorf("%d devices have said that they are full: %v", i, got)
		}
	}
	if c.spaceless(&layout{}) {
		t.Error("no groups at all are taken for full ones")
	}
}
