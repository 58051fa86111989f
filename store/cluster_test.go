package store_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/store"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	clusterDeviceBytes = 64 << 20
	clusterPatience    = 60 * time.Second
)

// table stands for the namespace: the map and the stripe table, in memory.
type table struct {
	m atomic.Pointer[cfs.Map]

	mu     sync.Mutex
	rows   map[cfs.PGID]map[cfs.StripeID]uint32 // data bytes of each stripe
	floors map[cfs.SessionID]uint64             // of open sessions; others have ended
	filled []cfs.PGID                           // slots that were reported full
	hook   func(*cfs.Query)                     // called with each question, if set
}

// change replaces the map by a changed copy.
func (tb *table) change(f func(*cfs.Map)) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	old := tb.m.Load()
	m := *old
	m.Version++
	m.Nodes, m.Devices, m.Jobs = slices.Clone(old.Nodes), slices.Clone(old.Devices), slices.Clone(old.Jobs)
	m.Groups = slices.Clone(old.Groups)
	for i := range m.Groups {
		m.Groups[i].Slots = slices.Clone(m.Groups[i].Slots)
	}
	f(&m)
	tb.m.Store(&m)
}

func (tb *table) ask(_ context.Context, q *cfs.Query) (*cfs.Answer, error) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if tb.hook != nil {
		tb.hook(q)
	}
	ans := &cfs.Answer{}
	switch q.Kind {
	case cfs.QueryMap:
		ans.Map = tb.m.Load()
	case cfs.QueryStripes:
		for st, n := range tb.rows[q.PG] {
			if q.Stripe.Less(st) {
				ans.Stripes = append(ans.Stripes, cfs.StripeInfo{StripeRef: cfs.StripeRef{PG: q.PG, Stripe: st}, Len: n})
			}
		}
		slices.SortFunc(ans.Stripes, func(a, b cfs.StripeInfo) int {
			return cmp.Or(cmp.Compare(a.Stripe.Session, b.Stripe.Session), cmp.Compare(a.Stripe.Counter, b.Stripe.Counter))
		})
		if limit := min(int(q.Limit), 3); len(ans.Stripes) > limit { // small pages
			ans.Stripes, ans.More = ans.Stripes[:limit], true
		}
	case cfs.QueryFates:
		for _, ref := range q.Stripes {
			floor, open := tb.floors[ref.Stripe.Session]
			fate := cfs.FateDead
			if _, live := tb.rows[ref.PG][ref.Stripe]; live {
				fate = cfs.FateLive
			} else if open && ref.Stripe.Counter >= floor {
				fate = cfs.FatePending
			}
			ans.Fates = append(ans.Fates, fate)
		}
	default:
		ans.Kind = cfs.BadRequest
	}
	return ans, nil
}

func (tb *table) fillDone(_ context.Context, pg cfs.PGID, device cfs.DeviceID, epoch cfs.Epoch) error {
	err := error(cfs.E("fill done", cfs.Conflict, nil))
	tb.change(func(m *cfs.Map) {
		for i := range m.Groups {
			if g := &m.Groups[i]; g.ID == pg && g.Epoch == epoch {
				for j := range g.Slots {
					if sl := &g.Slots[j]; sl.Device == device && sl.Filling {
						sl.Filling, sl.Source = false, 0
						g.Epoch++
						tb.filled = append(tb.filled, pg)
						err = nil
					}
				}
			}
		}
	})
	return err
}

// member is one node: real logs on files, behind a real server on loopback.
type member struct {
	id      cfs.NodeID
	arena   *iopath.Arena
	logs    map[cfs.DeviceID]*nvme.Log
	store   *store.Store
	idle    int
	mending context.CancelFunc
	ended   sync.WaitGroup
	closers []func() error
}

// group of nodes with a table.
type testCluster struct {
	t       *testing.T
	dir     string
	table   *table
	rate    int64                          // of scrubs, in bytes a second
	stale   atomic.Pointer[cfs.Map]        // what the nodes know instead of the table's map; nil for nothing
	mapped  atomic.Pointer[func(*cfs.Map)] // called with each map that a node takes, before it has it; nil for nothing
	members map[cfs.NodeID]*member
}

const clusterPG = cfs.PGID(5)

// newCluster makes nodes 1 to n with so many devices each, all up.
func newCluster(t *testing.T, nodes, devices int) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir(), rate: 1 << 30, members: map[cfs.NodeID]*member{},
		table: &table{rows: map[cfs.PGID]map[cfs.StripeID]uint32{}, floors: map[cfs.SessionID]uint64{}}}
	c.table.m.Store(&cfs.Map{ClusterID: "t"})
	for i := range nodes {
		id := cfs.NodeID(i + 1)
		c.table.change(func(m *cfs.Map) {
			m.Nodes = append(m.Nodes, cfs.Node{ID: id, State: cfs.StateUp})
			for slot := range devices {
				m.Devices = append(m.Devices, cfs.Device{ID: cfs.MakeDeviceID(id, uint16(slot)), State: cfs.StateUp})
			}
		})
		c.start(id, devices)
	}
	t.Cleanup(func() {
		for id := range c.members {
			c.stop(id)
		}
	})
	return c
}

func (c *testCluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) start(id cfs.NodeID, devices int) {
	c.t.Helper()
	n := &member{id: id, logs: map[cfs.DeviceID]*nvme.Log{}}
	arena, err := iopath.NewArena(96 << 20)
	c.must(err)
	n.arena = arena
	n.closers = append(n.closers, arena.Close)
	for slot := range devices {
		dev := cfs.MakeDeviceID(id, uint16(slot))
		n.logs[dev] = c.openLog(n, dev)
	}
	n.idle = arena.InUse()
	pool := wire.NewPool(wire.DialConfig{Hello: wire.Identity{ClusterID: "t", NodeID: id}, DialTimeout: time.Second}, 1)
	n.closers = append(n.closers, pool.Close)
	n.store = store.New(store.Config{
		Node: id, Devices: n.logs, Arena: arena, Pool: pool, Ask: c.table.ask, Map: c.takeMap, FillDone: c.table.fillDone,
		ScrubBytesPerSecond: c.rate,
	})
	srv := wire.NewServer(wire.ServerConfig{Hello: wire.Identity{ClusterID: "t", NodeID: id}, Handler: n.store, Alloc: n.store.Alloc})
	ln, err := wire.Listen("127.0.0.1:0")
	c.must(err)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	n.closers = append(n.closers, func() error { return errors.Join(srv.Close(), <-served) })
	c.table.change(func(m *cfs.Map) {
		for i := range m.Nodes {
			if m.Nodes[i].ID == id {
				m.Nodes[i].Addr = ln.Addr().String()
			}
		}
	})
	c.members[id] = n
}

func (c *testCluster) takeMap() *cfs.Map {
	m := c.table.m.Load()
	if old := c.stale.Load(); old != nil {
		m = old
	}
	if f := c.mapped.Load(); f != nil {
		(*f)(m)
	}
	return m
}

func (c *testCluster) openLog(n *member, id cfs.DeviceID) *nvme.Log {
	c.t.Helper()
	path := filepath.Join(c.dir, fmt.Sprintf("%d-%d", id.Node(), id.Slot()))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	c.must(err)
	c.must(errors.Join(f.Truncate(clusterDeviceBytes), f.Close()))
	ring, err := iopath.NewRing(iopath.RingConfig{Arena: n.arena, Entries: 64})
	c.must(err)
	dev, err := nvme.OpenDevice(path, ring)
	c.must(err)
	if _, err := nvme.ReadSuperblock(dev); errors.Is(err, cfs.NotFound) {
		c.must(nvme.Format(dev, nvme.Superblock{ClusterID: "t", Device: id, UUID: cfs.UUID{1}, SegmentBytes: 4 << 20}, false))
	}
	log, err := nvme.OpenLog(dev, n.arena, nvme.LogOptions{})
	c.must(err)
	n.closers = append(n.closers, ring.Close, dev.Close, log.Close)
	return log
}

// mend starts the work of a node.
func (c *testCluster) mend(id cfs.NodeID) {
	n := c.members[id]
	ctx, cancel := context.WithCancel(context.Background())
	n.mending = cancel
	n.ended.Go(func() { n.store.Mend(ctx) })
	n.ended.Go(func() { n.store.Scrub(ctx) })
}

// rest stops the work of a node, as a crash would: in the middle.
func (c *testCluster) rest(id cfs.NodeID) {
	n := c.members[id]
	if n.mending != nil {
		n.mending()
		n.mending = nil
	}
	n.ended.Wait()
}

func (c *testCluster) stop(id cfs.NodeID) {
	c.t.Helper()
	n := c.members[id]
	c.rest(id)
	for deadline := time.Now().Add(clusterPatience); n.arena.InUse() != n.idle; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Errorf("node %d: %d bytes of the arena leak", id, n.arena.InUse()-n.idle)
			break
		}
	}
	for i := len(n.closers) - 1; i >= 0; i-- {
		if err := n.closers[i](); err != nil && !errors.Is(err, cfs.Closed) {
			c.t.Errorf("close: %v", err)
		}
	}
	delete(c.members, id)
}

func dev(node, slot int) cfs.DeviceID { return cfs.MakeDeviceID(cfs.NodeID(node), uint16(slot)) }

// addGroup makes a group with these devices at epoch 1.
func (c *testCluster) addGroup(pg cfs.PGID, g cfs.Geometry, devices ...cfs.DeviceID) {
	c.table.change(func(m *cfs.Map) {
		slots := make([]cfs.Slot, len(devices))
		for i, d := range devices {
			slots[i].Device = d
		}
		m.Groups = append(m.Groups, cfs.PG{ID: pg, Geometry: g, Slots: slots, Epoch: 1, Writable: true})
	})
}

// replan has a slot filled from what another device has.
func (c *testCluster) replan(pg cfs.PGID, slot int, to cfs.DeviceID) {
	c.table.change(func(m *cfs.Map) {
		for i := range m.Groups {
			if g := &m.Groups[i]; g.ID == pg {
				g.Slots[slot] = cfs.Slot{Device: to, Filling: true, Source: g.Slots[slot].Device}
				g.Epoch++
				g.Writable = false
			}
		}
	})
}

func (c *testCluster) setDevice(id cfs.DeviceID, f func(*cfs.Device)) {
	c.table.change(func(m *cfs.Map) {
		for i := range m.Devices {
			if m.Devices[i].ID == id {
				f(&m.Devices[i])
			}
		}
	})
}

func (c *testCluster) group(pg cfs.PGID) cfs.PG {
	for _, g := range c.table.m.Load().Groups {
		if g.ID == pg {
			return g
		}
	}
	c.t.Fatalf("no group %d", pg)
	return cfs.PG{}
}

// stripe is one that was put, whole.
type stripe struct {
	id     cfs.StripeID
	shards [][]byte
}

// put writes a stripe to the devices of its group, and commits it.
func (c *testCluster) put(pg cfs.PGID, id cfs.StripeID, n uint32) stripe {
	c.t.Helper()
	st := c.putOnly(pg, id, n)
	c.commit(pg, id, n)
	return st
}

func (c *testCluster) commit(pg cfs.PGID, id cfs.StripeID, n uint32) {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	if c.table.rows[pg] == nil {
		c.table.rows[pg] = map[cfs.StripeID]uint32{}
	}
	c.table.rows[pg][id] = n
}

func (c *testCluster) putOnly(pg cfs.PGID, id cfs.StripeID, n uint32) stripe {
	c.t.Helper()
	g := c.group(pg)
	shards := c.encode(pg, id, n)
	for i, p := range shards {
		c.putShard(g.Slots[i].Device, pg, g.Epoch, nvme.Key{Stripe: id, Shard: uint8(i)}, p, false)
	}
	return stripe{id, shards}
}

// encode is the shards of a stripe of random bytes.
func (c *testCluster) encode(pg cfs.PGID, id cfs.StripeID, n uint32) [][]byte {
	c.t.Helper()
	g := c.group(pg)
	rnd := rand.NewChaCha8([32]byte{byte(id.Session), byte(id.Counter), byte(pg)})
	data := make([]byte, ec.StripeBytes(g.Geometry, n))
	_, _ = rnd.Read(data[:n]) // never fails
	shards, err := ec.Split(nil, g.Geometry, n, data)
	c.must(err)
	for range g.Geometry.M {
		shards = append(shards, make([]byte, g.Geometry.ShardSize(n)))
	}
	codec, err := ec.New(g.Geometry)
	c.must(err)
	c.must(codec.Encode(shards))
	return shards
}

// putShard puts a shard into a log; a damaged one does not fit its checksums.
func (c *testCluster) putShard(id cfs.DeviceID, pg cfs.PGID, epoch cfs.Epoch, key nvme.Key, p []byte, damaged bool) {
	c.t.Helper()
	n := c.members[id.Node()]
	buf, err := n.arena.Get(c.t.Context(), len(p))
	c.must(err)
	defer buf.Release()
	copy(buf.Bytes(), p)
	if damaged {
		buf.Bytes()[len(p)/2] ^= 0x10
	}
	crcs := ec.BlockCRCs(nil, key.Stripe, key.Shard, 0, p)
	c.must(n.logs[id].Put(c.t.Context(), nvme.Record{Key: key, PG: pg, Epoch: epoch, Len: uint32(len(p))}, crcs, buf))
}

// damage flips a bit of a shard on its device.
func (c *testCluster) damage(pg cfs.PGID, st stripe, shard int) {
	c.t.Helper()
	id := c.group(pg).Slots[shard].Device
	key := nvme.Key{Stripe: st.id, Shard: uint8(shard)}
	rec, ok := c.members[id.Node()].logs[id].Has(key)
	if !ok {
		c.t.Fatalf("%v is not on %v", key, id)
	}
	c.members[id.Node()].logs[id].Delete([]nvme.Key{key})
	c.putShard(id, pg, rec.Epoch, key, st.shards[shard], true)
}

// whole reports whether a device has a shard, as it should be.
func (c *testCluster) whole(id cfs.DeviceID, st stripe, shard int) bool {
	c.t.Helper()
	n := c.members[id.Node()]
	key := nvme.Key{Stripe: st.id, Shard: uint8(shard)}
	buf, err := n.arena.Get(c.t.Context(), cfs.MaxShardSize)
	c.must(err)
	defer buf.Release()
	rec, ok := n.logs[id].Has(key)
	if !ok || int(rec.Len) != len(st.shards[shard]) {
		return false
	}
	crcs, err := n.logs[id].Get(c.t.Context(), key, 0, rec.Len, buf)
	if err != nil {
		return false
	}
	p := buf.Bytes()[:rec.Len]
	return ec.CheckBlockCRCs(crcs, st.id, uint8(shard), 0, p) < 0 && bytes.Equal(p, st.shards[shard])
}

func (c *testCluster) has(id cfs.DeviceID, st cfs.StripeID, shard int) bool {
	_, ok := c.members[id.Node()].logs[id].Has(nvme.Key{Stripe: st, Shard: uint8(shard)})
	return ok
}

func (c *testCluster) records(id cfs.DeviceID) int {
	return c.members[id.Node()].logs[id].Stats().Records
}

func (c *testCluster) wait(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(clusterPatience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("it never came to this: %s", what)
		}
	}
}

func (c *testCluster) settle(node cfs.NodeID) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), clusterPatience)
	defer cancel()
	c.must(c.members[node].store.Settle(ctx, 0))
}

// info is what a node says of a device.
func (c *testCluster) info(id cfs.DeviceID) (got struct{ Damaged, Missing, Repaired, Unrepaired, Reclaimed uint64 }) {
	for _, i := range c.members[id.Node()].store.Inspect() {
		if cfs.DeviceID(i.Id) == id {
			got.Damaged, got.Missing, got.Repaired, got.Unrepaired, got.Reclaimed = i.Damaged, i.Missing, i.Repaired, i.Unrepaired, i.Reclaimed
		}
	}
	return got
}

// report says to node 1 that a reader found a shard damaged.
func (c *testCluster) report(d cfs.DeviceID, st cfs.StripeID, shard int) {
	c.t.Helper()
	addr := c.table.m.Load().Nodes[0].Addr
	conn, err := wire.Dial(c.t.Context(), addr, wire.DialConfig{Hello: wire.Identity{ClusterID: "t", Name: "test"}})
	c.must(err)
	defer conn.Close()
	_, err = conn.Call(c.t.Context(), wire.OpReportShard, &wirepb.ReportShard{Device: uint32(d), Key: key(st, uint8(shard))}, nil, &wirepb.Empty{}, nil)
	c.must(err)
}
