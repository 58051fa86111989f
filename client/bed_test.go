package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/btree"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// memKV is the state of the namespace in an ordered map.
type memKV struct{ t *btree.BTreeG[pair] }

type pair struct{ k, v []byte }

func newMemKV() *memKV {
	return &memKV{btree.NewBTreeGOptions(func(a, b pair) bool { return bytes.Compare(a.k, b.k) < 0 }, btree.Options{NoLocks: true})}
}

func (m *memKV) Get(key []byte) ([]byte, bool, error) {
	p, ok := m.t.Get(pair{k: key})
	return p.v, ok, nil
}

func (m *memKV) Set(key, val []byte) error {
	m.t.Set(pair{bytes.Clone(key), bytes.Clone(val)})
	return nil
}

func (m *memKV) Delete(key []byte) error {
	m.t.Delete(pair{k: key})
	return nil
}

func (m *memKV) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	var err error
	m.t.Ascend(pair{k: lo}, func(p pair) bool {
		if hi != nil && bytes.Compare(p.k, hi) >= 0 {
			return false
		}
		var more bool
		more, err = fn(p.k, p.v)
		return more && err == nil
	})
	return err
}

// endpoint is a wire server that can be stopped, started again at the same
// address, and have its connections cut.
type endpoint struct {
	t       testing.TB
	id      wire.Identity
	handler wire.Handler
	addr    string

	mu    sync.Mutex
	srv   *wire.Server
	conns []net.Conn
}

type tracked struct {
	net.Listener
	e *endpoint
}

func (l tracked) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.e.mu.Lock()
		l.e.conns = append(l.e.conns, c)
		l.e.mu.Unlock()
	}
	return c, err
}

func (e *endpoint) start() {
	e.t.Helper()
	addr := e.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := wire.Listen(addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.addr = ln.Addr().String()
	srv := wire.NewServer(wire.ServerConfig{Hello: e.id, Handler: e.handler, MaxInFlight: 1024})
	e.mu.Lock()
	e.srv = srv
	e.mu.Unlock()
	go srv.Serve(tracked{ln, e})
}

func (e *endpoint) stop() {
	e.mu.Lock()
	srv := e.srv
	e.srv, e.conns = nil, nil
	e.mu.Unlock()
	if srv != nil {
		srv.Close()
	}
}

// cut ends the connections that there are.
func (e *endpoint) cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.conns {
		c.Close()
	}
	e.conns = nil
}

type serveFunc func(ctx context.Context, r *wire.Request) (wire.Response, error)

func (f serveFunc) Serve(ctx context.Context, r *wire.Request) (wire.Response, error) {
	return f(ctx, r)
}

type shardID struct {
	dev    cfs.DeviceID
	stripe cfs.StripeID
	shard  uint8
}

type stored struct {
	data, crcs []byte
	pg         cfs.PGID
}

// storage is a node that keeps shards in memory.
type storage struct {
	*endpoint
	b       *bed
	node    cfs.NodeID
	noSpace atomic.Bool
	delay   atomic.Int64 // ns, of each request
	late    atomic.Int64 // ns, of each get's answer, which comes whether it is wanted or not
	blind   atomic.Bool  // knows no map yet
}

// bed is a cluster in this process: a namespace with two metadata addresses, one of
// which leads, and storage nodes, all over real connections.
type bed struct {
	t     testing.TB
	metas [2]*endpoint
	nodes []*storage
	cmap  atomic.Pointer[cfs.Map]

	mu      sync.Mutex
	kv      *memKV
	machine fsm.Machine
	index   uint64
	leader  int // index of metas; -1: none, each names the other
	sess    cfs.SessionID
	seq     uint64
	shards  map[shardID]*stored

	reported map[shardID]int      // by clients; guarded by mu
	asked    map[cfs.DeviceID]int // for shards; guarded by mu
	// stuck are shards whose gets wait for the channel, or to be given up, and fail; guarded by mu
	stuck      map[shardID]chan struct{}
	inlineFull atomic.Bool
	requests   atomic.Uint64 // that metadata servers have seen
	// before is called with a client's command before it is applied, after with it
	// afterwards: true loses the reply and every connection. answered is called with
	// a query that has been answered and not sent. Each may block.
	before   atomic.Pointer[func(*cfs.Command)]
	after    atomic.Pointer[func(*cfs.Command) bool]
	answered atomic.Pointer[func(*cfs.Query)]
	leases   *bedLeases
	// windows answers QueryWindows instead of the namespace.
	windows atomic.Pointer[func(*cfs.Query) *cfs.Answer]
	// waiting sees each OpWaitLock, and answers it where it returns an error.
	waiting   atomic.Pointer[func() error]
	lockWaits atomic.Int32 // OpWaitLock that are being served
}

const testCluster = "bed"

// newBed starts nodes with two devices each.
func newBed(t testing.TB, nodes int) *bed {
	t.Helper()
	b := &bed{t: t, kv: newMemKV(), shards: map[shardID]*stored{}, reported: map[shardID]int{}, asked: map[cfs.DeviceID]int{}}
	b.leases = newBedLeases(b)
	if err := fsm.Bootstrap(b.kv, testCluster, 1); err != nil {
		t.Fatal(err)
	}
	for i := range b.metas {
		b.metas[i] = &endpoint{t: t, id: wire.Identity{ClusterID: testCluster, NodeID: cfs.NodeID(100 + i), Name: "meta"},
			handler: serveFunc(func(ctx context.Context, r *wire.Request) (wire.Response, error) { return b.serveMeta(ctx, i, r) })}
		b.metas[i].start()
	}
	var ops []cfs.Op
	for i := 1; i <= nodes; i++ {
		n := &storage{b: b, node: cfs.NodeID(i)}
		n.endpoint = &endpoint{t: t, id: wire.Identity{ClusterID: testCluster, NodeID: n.node, Name: "node"}, handler: serveFunc(n.serve)}
		n.start()
		b.nodes = append(b.nodes, n)
		ops = append(ops, cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: n.node, Addr: n.addr, State: cfs.StateUp}})
		for d := range 2 {
			ops = append(ops, cfs.Op{Kind: cfs.OpSetDevice, Device: cfs.Device{ID: cfs.MakeDeviceID(n.node, uint16(d)),
				UUID: cfs.UUID{byte(i), byte(d)}, State: cfs.StateUp, Capacity: 1 << 40}})
		}
	}
	b.apply(0, ops...)
	b.plan()
	b.sess = b.apply(0, cfs.Op{Kind: cfs.OpOpenSession, Name: "bed"}).Results[0].Session
	t.Cleanup(func() {
		for _, m := range b.metas {
			m.stop()
		}
		for _, n := range b.nodes {
			n.stop()
		}
		noGoroutines(t)
	})
	return b
}

// noGoroutines waits until no goroutine of this package or of wire is left.
func noGoroutines(t testing.TB) {
	t.Helper()
	var left string
	for range 500 {
		buf := make([]byte, 4<<20)
		buf = buf[:runtime.Stack(buf, true)]
		left = ""
		for _, g := range strings.Split(string(buf), "\n\n") {
			if strings.Contains(g, "claudefs/client.(*") && !strings.Contains(g, "testing.") || strings.Contains(g, "claudefs/wire.(*") {
				left = g
			}
		}
		if left == "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("a goroutine is left:\n%s", left)
}

// do applies a command to the state; b.mu is held.
func (b *bed) doLocked(cmd *cfs.Command) *cfs.Reply {
	b.index++
	r, err := b.machine.Apply(b.kv, b.index, time.Now().UnixNano(), cmd)
	if err != nil {
		b.t.Errorf("apply: %v", err)
		return &cfs.Reply{Kind: cfs.IO}
	}
	if m, err := fsm.ReadMap(b.kv); cmd.Session == 0 && err == nil {
		b.cmap.Store(m)
	}
	return r
}

// apply carries out operations of the leader (session 0) or of the bed's own session.
func (b *bed) apply(s cfs.SessionID, ops ...cfs.Op) *cfs.Reply {
	b.t.Helper()
	cmd := &cfs.Command{Session: s, Ops: ops}
	ch := b.leases.begin(context.Background(), cmd)
	b.mu.Lock()
	if s != 0 {
		b.seq++
		cmd.Seq, cmd.LowWater = b.seq, b.seq
	}
	r := b.doLocked(cmd)
	b.mu.Unlock()
	b.leases.end(cmd, ch, r)
	if r.Kind != cfs.KindOK {
		b.t.Fatalf("operation %d: %v", r.Failed, r.Kind)
	}
	return r
}

func (b *bed) plan() {
	b.t.Helper()
	m := b.cmap.Load()
	empty := func(cfs.PGID) cfs.GroupUsage { return cfs.GroupUsage{} }
	if groups := fsm.PlanGroups(m, empty); groups != nil {
		b.apply(0, cfs.Op{Kind: cfs.OpSetGroups, Groups: groups, MapVersion: m.Version})
	}
}

// setState says what the cluster thinks of a node, and plans groups for it.
func (b *bed) setState(n *storage, s cfs.State) {
	b.t.Helper()
	b.apply(0, cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: n.node, Addr: n.addr, State: s}})
	b.plan()
}

// bumpEpochs changes the epoch of every group that n's devices are in.
func (b *bed) bumpEpochs(n *storage) {
	b.t.Helper()
	b.setState(n, cfs.StateDown)
	b.setState(n, cfs.StateUp)
}

func (b *bed) expire(s cfs.SessionID) {
	b.t.Helper()
	b.apply(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s})
}

func (b *bed) read(q *cfs.Query) *cfs.Answer {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	a, err := fsm.Read(b.kv, q)
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

func (b *bed) extents(i cfs.Ino) (all []cfs.Extent) {
	b.t.Helper()
	var off uint64
	for {
		a := b.read(&cfs.Query{Kind: cfs.QueryExtents, Ino: i, Off: off, End: ^uint64(0)})
		if a.Kind != cfs.KindOK {
			b.t.Fatalf("extents of %d: %v", i, a.Kind)
		}
		all = append(all, a.Extents...)
		if !a.More {
			return all
		}
		off = all[len(all)-1].End()
	}
}

func (b *bed) group(id cfs.PGID) *cfs.PG {
	for _, g := range b.cmap.Load().Groups {
		if g.ID == id {
			return &g
		}
	}
	b.t.Fatalf("no group %d", id)
	return nil
}

func (b *bed) serveMeta(ctx context.Context, self int, r *wire.Request) (wire.Response, error) {
	b.requests.Add(1)
	b.mu.Lock()
	leader := b.leader
	b.mu.Unlock()
	if leader != self {
		return wire.Response{}, wire.NotLeaderError(r.Op.String(), b.metas[1-self].addr)
	}
	b.leases.lead(self)
	switch r.Op {
	case wire.OpCommand:
		var pb wirepb.Command
		if err := r.Decode(&pb); err != nil {
			return wire.Response{}, err
		}
		cmd, err := wire.CommandFromPB(&pb)
		if err != nil {
			return wire.Response{}, err
		}
		return b.command(ctx, self, cmd)
	case wire.OpQuery:
		var pb wirepb.Query
		if err := r.Decode(&pb); err != nil {
			return wire.Response{}, err
		}
		q, err := wire.QueryFromPB(&pb)
		if err != nil {
			return wire.Response{}, err
		}
		a := b.leases.answer(ctx, q)
		if fn := b.windows.Load(); fn != nil && q.Kind == cfs.QueryWindows {
			a = (*fn)(q)
		}
		if fn := b.answered.Load(); fn != nil {
			(*fn)(q)
		}
		return wire.Response{Body: wire.AnswerToPB(a)}, nil
	case wire.OpWaitLock:
		return b.waitLock(ctx, r)
	case wire.OpHeartbeat:
		var pb wirepb.Heartbeat
		if err := r.Decode(&pb); err != nil {
			return wire.Response{}, err
		}
		if err := b.knows(pb.Session); err != nil {
			return wire.Response{}, err
		}
		reply := b.leases.heartbeat(&pb)
		reply.MapVersion, reply.InlineFull = b.cmap.Load().Version, b.inlineFull.Load()
		return wire.Response{Body: reply}, nil
	case wire.OpWatch:
		var pb wirepb.Watch
		if err := r.Decode(&pb); err != nil {
			return wire.Response{}, err
		}
		if err := b.knows(pb.Session); err != nil {
			return wire.Response{}, err
		}
		return wire.Response{Body: b.leases.watch(ctx, &pb)}, nil
	}
	return wire.Response{}, cfs.E(r.Op.String(), cfs.Unsupported, nil)
}

// knows refuses a session that the state does not have.
func (b *bed) knows(session uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, err := fsm.Sessions(b.kv)
	if err == nil && !slices.ContainsFunc(all, func(s fsm.Session) bool { return uint64(s.ID) == session }) {
		err = cfs.E("session", cfs.NoSession, nil)
	}
	return err
}

func (b *bed) command(ctx context.Context, self int, cmd *cfs.Command) (wire.Response, error) {
	if fn := b.before.Load(); fn != nil && len(cmd.Ops) > 0 {
		(*fn)(cmd)
	}
	if b.inlineFull.Load() {
		for _, op := range cmd.Ops {
			if len(op.Extents) > 0 && op.Extents[0].Kind == cfs.ExtentInline {
				return wire.Response{Body: wire.ReplyToPB(&cfs.Reply{Kind: cfs.InlineFull})}, nil
			}
		}
	}
	ch := b.leases.begin(ctx, cmd)
	b.mu.Lock()
	r := b.doLocked(cmd)
	b.mu.Unlock()
	b.leases.end(cmd, ch, r)
	if fn := b.after.Load(); fn != nil && (*fn)(cmd) {
		b.metas[self].cut()
		return wire.Response{}, errors.New("nobody hears this")
	}
	return wire.Response{Body: wire.ReplyToPB(r)}, nil
}

func (n *storage) serve(ctx context.Context, r *wire.Request) (wire.Response, error) {
	if d := n.delay.Load(); d > 0 {
		select {
		case <-time.After(time.Duration(d)):
		case <-ctx.Done():
			return wire.Response{}, ctx.Err()
		}
	}
	switch r.Op {
	case wire.OpPutShard:
		return wire.Response{}, n.put(r)
	case wire.OpGetShard:
		return n.get(ctx, r)
	case wire.OpReportShard:
		return wire.Response{}, n.report(r)
	case wire.OpDeleteShards:
		return wire.Response{}, n.deleteShards(r)
	}
	return wire.Response{}, wire.NotLeaderError(r.Op.String(), "") // a voter that does not lead
}

func (n *storage) put(r *wire.Request) error {
	var m wirepb.PutShard
	if err := r.Decode(&m); err != nil {
		return err
	}
	stripe, shard, err := wire.ShardKeyFromPB(m.Key)
	if err != nil {
		return err
	}
	id := shardID{cfs.DeviceID(m.Device), stripe, shard}
	data := bytes.Clone(r.Payload.Bytes())
	switch g := n.b.group(cfs.PGID(m.Pg)); {
	case id.dev.Node() != n.node || len(data)%cfs.BlockSize != 0 || len(m.Crcs) != 4*len(data)/cfs.BlockSize:
		return cfs.E("put", cfs.BadRequest, nil)
	case n.noSpace.Load():
		return cfs.E("put", cfs.NoSpace, nil)
	case n.blind.Load():
		return cfs.E("put", cfs.Unavailable, nil)
	case g.Epoch != cfs.Epoch(m.Epoch):
		return cfs.E("put", cfs.StaleEpoch, nil)
	case g.Slots[shard].Device != id.dev:
		return cfs.E("put", cfs.BadRequest, nil)
	}
	n.b.mu.Lock()
	defer n.b.mu.Unlock()
	if n.b.shards[id] != nil {
		return cfs.E("put", cfs.Exists, nil)
	}
	n.b.shards[id] = &stored{data, bytes.Clone(m.Crcs), cfs.PGID(m.Pg)}
	return nil
}

func (n *storage) deleteShards(r *wire.Request) error {
	var m wirepb.DeleteShards
	if err := r.Decode(&m); err != nil {
		return err
	}
	n.b.mu.Lock()
	defer n.b.mu.Unlock()
	for _, k := range m.Keys {
		stripe, shard, err := wire.ShardKeyFromPB(k)
		if err != nil {
			return err
		}
		delete(n.b.shards, shardID{cfs.DeviceID(m.Device), stripe, shard})
	}
	return nil
}

func (n *storage) report(r *wire.Request) error {
	var m wirepb.ReportShard
	if err := r.Decode(&m); err != nil {
		return err
	}
	stripe, shard, err := wire.ShardKeyFromPB(m.Key)
	if err != nil {
		return err
	}
	n.b.mu.Lock()
	defer n.b.mu.Unlock()
	n.b.reported[shardID{cfs.DeviceID(m.Device), stripe, shard}]++
	return nil
}

func (n *storage) get(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var m wirepb.GetShard
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	stripe, shard, err := wire.ShardKeyFromPB(m.Key)
	if err != nil {
		return wire.Response{}, err
	}
	id := shardID{cfs.DeviceID(m.Device), stripe, shard}
	n.b.mu.Lock()
	n.b.asked[id.dev]++
	stuck := n.b.stuck[id]
	n.b.mu.Unlock()
	time.Sleep(time.Duration(n.late.Load()))
	if stuck != nil {
		select {
		case <-stuck:
		case <-ctx.Done():
		}
		return wire.Response{}, cfs.E("get", cfs.Unavailable, nil)
	}
	n.b.mu.Lock()
	defer n.b.mu.Unlock()
	s := n.b.shards[id]
	switch {
	case s == nil:
		return wire.Response{}, cfs.E("get", cfs.NotFound, nil)
	case m.Off%cfs.BlockSize != 0 || m.Len%cfs.BlockSize != 0 || m.Len == 0 || uint64(m.Off)+uint64(m.Len) > uint64(len(s.data)):
		return wire.Response{}, cfs.E("get", cfs.BadRequest, nil)
	}
	first, count := m.Off/cfs.BlockSize, m.Len/cfs.BlockSize
	return wire.Response{Body: &wirepb.GetShardReply{Crcs: s.crcs[4*first : 4*(first+count)]},
		Payload: [][]byte{bytes.Clone(s.data[m.Off : m.Off+m.Len])}}, nil
}

// dataShards are the shards of a file that hold its bytes.
func (b *bed) dataShards(i cfs.Ino) (ids []shardID) {
	b.t.Helper()
	for _, x := range b.extents(i) {
		if x.Kind != cfs.ExtentStripe {
			continue
		}
		g := b.group(x.PG)
		size := g.Geometry.ShardSize(x.StripeLen)
		for s := range (x.StripeLen + size - 1) / size {
			ids = append(ids, shardID{g.Slots[s].Device, x.Stripe, uint8(s)})
		}
	}
	return ids
}

// spoil changes a byte of a stored shard.
func (b *bed) spoil(id shardID) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.shards[id]
	if s == nil {
		b.t.Fatalf("no shard %v", id)
	}
	s.data[len(s.data)/2] ^= 0x40
}

func (b *bed) drop(id shardID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.shards, id)
}

// reclaim deletes the shards of all stripes in the delete feed.
func (b *bed) reclaim() int {
	b.t.Helper()
	freed := 0
	for _, f := range b.read(&cfs.Query{Kind: cfs.QueryFeed}).Freed {
		b.mu.Lock()
		for id := range b.shards {
			if id.stripe == f.Stripe {
				delete(b.shards, id)
				freed++
			}
		}
		b.mu.Unlock()
	}
	return freed
}

// stripeTable lists the stripes that the state knows.
func (b *bed) stripeTable() map[cfs.StripeID]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[cfs.StripeID]bool{}
	b.kv.Scan([]byte{'S'}, []byte{'T'}, func(k, _ []byte) (bool, error) {
		out[cfs.StripeID{Session: cfs.SessionID(binary.BigEndian.Uint64(k[5:])), Counter: binary.BigEndian.Uint64(k[13:])}] = true
		return true, nil
	})
	return out
}

// floor is a session's floor as the state has it.
func (b *bed) floor(s cfs.SessionID) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok, _ := b.kv.Get(binary.BigEndian.AppendUint64([]byte{'T'}, uint64(s)))
	if !ok || len(v) < 9 {
		b.t.Fatalf("no session %d", s)
	}
	return binary.LittleEndian.Uint64(v[1:])
}

// hook installs a hook until the test ends or it is replaced.
func hook[F any](p *atomic.Pointer[F], fn F) { p.Store(&fn) }

// mount is a client of the bed that is closed, and found without leaks, at the end. It owns
// nothing of what it creates; mountLeased makes one that does.
func (b *bed) mount(t testing.TB, change ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{Servers: []string{b.metas[0].addr, b.metas[1].addr}, Name: t.Name(), CacheTTL: time.Second,
		Logger: slog.New(slog.DiscardHandler)}
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for _, fn := range change {
		fn(&cfg)
	}
	c, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.shares.Store(true)
	t.Cleanup(func() { unmount(t, c) })
	return c
}

func unmount(t testing.TB, c *Client) {
	t.Helper()
	if c.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	c.memory.mu.Lock()
	used := c.memory.used
	c.memory.mu.Unlock()
	if used != 0 {
		t.Errorf("%d bytes of memory are still in use after Close", used)
	}
}

func (b *bed) sessions() (ids []cfs.SessionID, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, err := fsm.Sessions(b.kv)
	for _, s := range all {
		ids = append(ids, s.ID)
	}
	return ids, err
}
