package store_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/store"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	testNode  = cfs.NodeID(3)
	testPG    = cfs.PGID(7)
	deviceLen = 64 << 20
)

// rig is a store over two real logs on files, behind a real server on loopback.
type rig struct {
	t       *testing.T
	dir     string
	arena   *iopath.Arena
	idle    int // bytes that the logs hold for themselves
	devices []cfs.DeviceID
	logs    map[cfs.DeviceID]*nvme.Log
	epoch   atomic.Uint32
	reg     *prometheus.Registry
	store   *store.Store
	conn    *wire.Conn
	closers []func() error
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir()}
	r.epoch.Store(5)
	r.start()
	t.Cleanup(r.stop)
	return r
}

func (r *rig) start() {
	r.t.Helper()
	r.reg, r.devices = prometheus.NewRegistry(), nil
	arena, err := iopath.NewArena(32 << 20)
	r.must(err)
	r.arena = arena
	r.closers = append(r.closers, arena.Close)
	r.logs = map[cfs.DeviceID]*nvme.Log{}
	for slot := range uint16(2) {
		id := cfs.MakeDeviceID(testNode, slot)
		r.devices = append(r.devices, id)
		r.logs[id] = r.openLog(id)
	}
	r.idle = arena.InUse()
	r.store = store.New(store.Config{
		Node: testNode, Devices: r.logs, Arena: arena, Metrics: store.NewMetrics(r.reg),
		Map: func() *cfs.Map {
			return &cfs.Map{Groups: []cfs.PG{{ID: testPG, Epoch: cfs.Epoch(r.epoch.Load())}}}
		},
	})
	srv := wire.NewServer(wire.ServerConfig{
		Hello: wire.Identity{ClusterID: "t", NodeID: testNode}, Handler: r.store, Alloc: r.store.Alloc,
	})
	ln, err := wire.Listen("127.0.0.1:0")
	r.must(err)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	r.closers = append(r.closers, func() error { return errors.Join(srv.Close(), <-served) })
	r.conn, err = wire.Dial(r.t.Context(), ln.Addr().String(), wire.DialConfig{Hello: wire.Identity{ClusterID: "t", Name: "test"}})
	r.must(err)
	r.closers = append(r.closers, r.conn.Close)
}

func (r *rig) openLog(id cfs.DeviceID) *nvme.Log {
	r.t.Helper()
	path := filepath.Join(r.dir, strings.ReplaceAll(id.String(), "/", "-"))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	r.must(err)
	r.must(errors.Join(f.Truncate(deviceLen), f.Close()))
	ring, err := iopath.NewRing(iopath.RingConfig{Arena: r.arena})
	r.must(err)
	r.closers = append(r.closers, ring.Close)
	dev, err := nvme.OpenDevice(path, ring)
	r.must(err)
	r.closers = append(r.closers, dev.Close)
	if _, err := nvme.ReadSuperblock(dev); errors.Is(err, cfs.NotFound) {
		r.must(nvme.Format(dev, nvme.Superblock{ClusterID: "t", Device: id, UUID: cfs.UUID{1}, SegmentBytes: 4 << 20}, false))
	}
	log, err := nvme.OpenLog(dev, r.arena, nvme.LogOptions{})
	r.must(err)
	r.closers = append(r.closers, log.Close)
	return log
}

func (r *rig) stop() {
	for i := len(r.closers) - 1; i >= 0; i-- {
		if err := r.closers[i](); err != nil && !errors.Is(err, cfs.Closed) {
			r.t.Errorf("close: %v", err)
		}
	}
	r.closers = nil
}

// checkArena waits until what the requests used is given back: a get's buffer
// is a moment after the client has its answer.
func (r *rig) checkArena() {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); r.arena.InUse() != r.idle; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%d bytes of the arena leak", r.arena.InUse()-r.idle)
		}
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) call(op wire.Op, req, resp proto.Message, payload [][]byte, into []byte) (int, error) {
	return r.conn.Call(r.t.Context(), op, req, payload, resp, into)
}

func (r *rig) put(dev cfs.DeviceID, st cfs.StripeID, shard uint8, epoch cfs.Epoch, data []byte) error {
	_, err := r.call(wire.OpPutShard, &wirepb.PutShard{
		Device: uint32(dev), Pg: uint32(testPG), Epoch: uint32(epoch), Key: key(st, shard),
		Crcs: ec.BlockCRCs(nil, st, shard, 0, data),
	}, &wirepb.Empty{}, [][]byte{data}, nil)
	return err
}

// get reads a range and checks it end to end as a client does.
func (r *rig) get(dev cfs.DeviceID, st cfs.StripeID, shard uint8, off, n uint32) ([]byte, error) {
	into := make([]byte, n)
	var reply wirepb.GetShardReply
	got, err := r.call(wire.OpGetShard, &wirepb.GetShard{Device: uint32(dev), Key: key(st, shard), Off: off, Len: n}, &reply, nil, into)
	if err != nil {
		return nil, err
	}
	if bad := ec.CheckBlockCRCs(reply.Crcs, st, shard, off/cfs.BlockSize, into[:got]); bad >= 0 {
		r.t.Errorf("shard %v/%d: block %d of the range at %d does not match its checksum", st, shard, bad, off)
	}
	return into[:got], nil
}

func (r *rig) list(dev cfs.DeviceID, after *wirepb.ShardKey, limit uint32) *wirepb.ListShardsReply {
	r.t.Helper()
	var reply wirepb.ListShardsReply
	_, err := r.call(wire.OpListShards, &wirepb.ListShards{Device: uint32(dev), After: after, Limit: limit}, &reply, nil, nil)
	r.must(err)
	return &reply
}

func key(st cfs.StripeID, shard uint8) *wirepb.ShardKey {
	return &wirepb.ShardKey{StripeSession: uint64(st.Session), StripeCounter: st.Counter, Shard: uint32(shard)}
}

// content is bytes that differ for every shard.
func content(st cfs.StripeID, shard uint8, n int) []byte {
	rnd := rand.NewChaCha8([32]byte{byte(st.Session), byte(st.Counter), byte(st.Counter >> 8), shard})
	p := make([]byte, n)
	_, _ = rnd.Read(p) // never fails
	return p
}

func TestPutGetListDelete(t *testing.T) {
	r := newRig(t)
	sizes := []int{cfs.BlockSize, 3 * cfs.BlockSize, 256 << 10, cfs.MaxShardSize}
	for i, size := range sizes {
		st := cfs.StripeID{Session: 9, Counter: uint64(i)}
		r.must(r.put(r.devices[i%2], st, 2, 5, content(st, 2, size)))
	}
	for i, size := range sizes {
		st := cfs.StripeID{Session: 9, Counter: uint64(i)}
		want := content(st, 2, size)
		for _, rng := range [][2]int{{0, size}, {size - cfs.BlockSize, cfs.BlockSize}, {size / 2 &^ (cfs.BlockSize - 1), cfs.BlockSize}} {
			got, err := r.get(r.devices[i%2], st, 2, uint32(rng[0]), uint32(rng[1]))
			if err != nil || !bytes.Equal(got, want[rng[0]:rng[0]+rng[1]]) {
				t.Errorf("stripe %v range %v: %d bytes, %v", st, rng, len(got), err)
			}
		}
		if _, err := r.get(r.devices[1-i%2], st, 2, 0, cfs.BlockSize); !errors.Is(err, cfs.NotFound) {
			t.Errorf("a shard on the device that does not have it: %v", err)
		}
	}
	if l := r.list(r.devices[0], nil, 1); len(l.Shards) != 1 || !l.More || l.Shards[0].Key.StripeCounter != 0 || l.Shards[0].Epoch != 5 {
		t.Errorf("first page %v", l)
	} else if l := r.list(r.devices[0], l.Shards[0].Key, 1); len(l.Shards) != 1 || l.More || l.Shards[0].Key.StripeCounter != 2 {
		t.Errorf("second page %v", l)
	}
	_, err := r.call(wire.OpDeleteShards, &wirepb.DeleteShards{Device: uint32(r.devices[0]), Keys: []*wirepb.ShardKey{
		key(cfs.StripeID{Session: 9}, 2), key(cfs.StripeID{Session: 9, Counter: 77}, 0)}}, &wirepb.Empty{}, nil, nil)
	r.must(err)
	if _, err := r.get(r.devices[0], cfs.StripeID{Session: 9}, 2, 0, cfs.BlockSize); !errors.Is(err, cfs.NotFound) {
		t.Errorf("a deleted shard: %v", err)
	}
	r.checkArena()
}

func TestPutIsIdempotent(t *testing.T) {
	r := newRig(t)
	st := cfs.StripeID{Session: 1, Counter: 1}
	data := content(st, 0, 2*cfs.BlockSize)
	r.must(r.put(r.devices[0], st, 0, 5, data))
	r.must(r.put(r.devices[0], st, 0, 5, data)) // a retry
	if err := r.put(r.devices[0], st, 0, 5, data[:cfs.BlockSize]); !errors.Is(err, cfs.Exists) {
		t.Errorf("another shard under the same key: %v", err)
	}
}

func TestSurvivesRestart(t *testing.T) {
	r := newRig(t)
	st := cfs.StripeID{Session: 1, Counter: 1}
	data := content(st, 4, 64<<10)
	r.must(r.put(r.devices[1], st, 4, 6, data))
	r.stop()
	r.start()
	got, err := r.get(r.devices[1], st, 4, 0, uint32(len(data)))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("after a restart: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	st := cfs.StripeID{Session: 2, Counter: 2}
	block := content(st, 0, cfs.BlockSize)
	crcs := ec.BlockCRCs(nil, st, 0, 0, block)
	dev := uint32(r.devices[0])
	put := func(change func(*wirepb.PutShard), payload []byte) func() error {
		return func() error {
			req := &wirepb.PutShard{Device: dev, Pg: uint32(testPG), Epoch: 5, Key: key(st, 0), Crcs: crcs}
			change(req)
			var parts [][]byte
			if payload != nil {
				parts = [][]byte{payload}
			}
			_, err := r.call(wire.OpPutShard, req, &wirepb.Empty{}, parts, nil)
			return err
		}
	}
	get := func(req *wirepb.GetShard) func() error {
		return func() error {
			_, err := r.call(wire.OpGetShard, req, &wirepb.GetShardReply{}, nil, make([]byte, cfs.MaxShardSize))
			return err
		}
	}
	r.must(put(func(*wirepb.PutShard) {}, block)())
	r.must(put(func(p *wirepb.PutShard) { p.Epoch, p.Key.StripeCounter = 6, 3 }, block)()) // newer than the node knows
	for _, c := range []struct {
		name string
		do   func() error
		want cfs.Kind
	}{
		{"older epoch", put(func(p *wirepb.PutShard) { p.Epoch = 4 }, block), cfs.StaleEpoch},
		{"unknown group", put(func(p *wirepb.PutShard) { p.Pg = 99 }, block), cfs.Unavailable},
		{"unknown device", put(func(p *wirepb.PutShard) { p.Device = 12345 }, block), cfs.NotFound},
		{"no payload", put(func(*wirepb.PutShard) {}, nil), cfs.BadRequest},
		{"not whole blocks", put(func(*wirepb.PutShard) {}, block[:100]), cfs.BadRequest},
		{"larger than a shard", put(func(*wirepb.PutShard) {}, make([]byte, cfs.MaxShardSize+cfs.BlockSize)), cfs.BadRequest},
		{"too few checksums", put(func(p *wirepb.PutShard) { p.Crcs = crcs[:3] }, block), cfs.BadRequest},
		{"no key", put(func(p *wirepb.PutShard) { p.Key = nil }, block), cfs.BadRequest},
		{"no session", put(func(p *wirepb.PutShard) { p.Key.StripeSession = 0 }, block), cfs.BadRequest},
		{"shard of no geometry", put(func(p *wirepb.PutShard) { p.Key.Shard = 6 }, block), cfs.BadRequest},
		{"get nothing", get(&wirepb.GetShard{Device: dev, Key: key(st, 0)}), cfs.BadRequest},
		{"get part of a block", get(&wirepb.GetShard{Device: dev, Key: key(st, 0), Len: 100}), cfs.BadRequest},
		{"get at part of a block", get(&wirepb.GetShard{Device: dev, Key: key(st, 0), Off: 1, Len: 4096}), cfs.BadRequest},
		{"get too much", get(&wirepb.GetShard{Device: dev, Key: key(st, 0), Len: cfs.MaxShardSize + 4096}), cfs.BadRequest},
		{"get of an unknown device", get(&wirepb.GetShard{Device: 1, Key: key(st, 0), Len: 4096}), cfs.NotFound},
		{"get an unknown shard", get(&wirepb.GetShard{Device: dev, Key: key(st, 5), Len: 4096}), cfs.NotFound},
	} {
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if err := get(&wirepb.GetShard{Device: dev, Key: key(st, 0), Off: 4096, Len: 4096})(); err == nil {
		t.Error("a range beyond the shard was answered")
	}
	r.checkArena()
	got, err := r.get(r.devices[0], st, 0, 0, cfs.BlockSize)
	if err != nil || !bytes.Equal(got, block) {
		t.Errorf("the refusals changed the shard: %v", err)
	}
}

func TestDeleteFreed(t *testing.T) {
	r := newRig(t)
	freed, kept := cfs.StripeID{Session: 4, Counter: 1}, cfs.StripeID{Session: 4, Counter: 2}
	for _, st := range []cfs.StripeID{freed, kept} {
		for shard := range uint8(3) {
			r.must(r.put(r.devices[0], st, shard, 5, content(st, shard, cfs.BlockSize)))
		}
	}
	n, err := r.store.DeleteFreed(r.devices[0], []cfs.StripeID{freed, {Session: 99, Counter: 1}}, 7)
	if err != nil || n != 3 {
		t.Errorf("deleted %d, %v", n, err)
	}
	if l := r.list(r.devices[0], nil, 0); len(l.Shards) != 3 || l.Shards[0].Key.StripeCounter != kept.Counter {
		t.Errorf("left: %v", l)
	}
	if _, err := r.store.DeleteFreed(cfs.MakeDeviceID(9, 9), nil, 7); !errors.Is(err, cfs.NotFound) {
		t.Errorf("an unknown device: %v", err)
	}
}

// Many goroutines put and get through an arena that holds a fraction of what is
// in flight: everything comes back right, and all memory.
func TestManyAtOnce(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for w := range 48 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			st := cfs.StripeID{Session: 11, Counter: uint64(w)}
			dev, data := r.devices[w%2], content(st, 1, 512<<10)
			if err := r.put(dev, st, 1, 5, data); err != nil {
				t.Errorf("put %v: %v", st, err)
				return
			}
			got, err := r.get(dev, st, 1, 0, uint32(len(data)))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("get %v: %v", st, err)
			}
		}()
	}
	wg.Wait()
	r.checkArena()
}

// A caller that goes away in the middle leaves nothing behind.
func TestCanceledCaller(t *testing.T) {
	r := newRig(t)
	st := cfs.StripeID{Session: 12, Counter: 1}
	data := content(st, 0, cfs.MaxShardSize)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := r.conn.Call(ctx, wire.OpPutShard, &wirepb.PutShard{
		Device: uint32(r.devices[0]), Pg: uint32(testPG), Epoch: 5, Key: key(st, 0), Crcs: ec.BlockCRCs(nil, st, 0, 0, data),
	}, [][]byte{data}, &wirepb.Empty{}, nil)
	if err == nil {
		t.Error("a call under an ended context succeeded")
	}
	r.must(r.put(r.devices[0], st, 0, 5, data))
}

func TestMetrics(t *testing.T) {
	r := newRig(t)
	st := cfs.StripeID{Session: 13, Counter: 1}
	r.must(r.put(r.devices[0], st, 0, 5, content(st, 0, 8192)))
	_, err := r.get(r.devices[0], st, 0, 0, 4096)
	r.must(err)
	if err := r.put(r.devices[0], st, 1, 1, content(st, 1, 4096)); err == nil {
		t.Error("a stale put succeeded")
	}
	families, err := r.reg.Gather()
	r.must(err)
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			labels := ""
			for _, l := range m.Label {
				labels += "," + l.GetValue()
			}
			got[f.GetName()+labels] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"claudefs_store_requests_total,put":           2,
		"claudefs_store_bytes_total,put":              8192,
		"claudefs_store_bytes_total,get":              4096,
		"claudefs_store_latency_seconds,get":          1,
		"claudefs_store_errors_total,stale_epoch,put": 1,
		"claudefs_store_device_records,3/0":           1,
		"claudefs_store_device_records,3/1":           0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %v (present %v), want %v", name, v, ok, want)
		}
	}
	if got["claudefs_store_device_capacity_bytes,3/0"] == 0 {
		t.Error("no capacity")
	}
}
