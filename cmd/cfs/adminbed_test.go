package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// testPace is fast.
func testPace() pace {
	return pace{poll: 2 * time.Millisecond, settle: time.Millisecond, grace: 50 * time.Millisecond, patience: time.Second}
}

// runAdmin runs `cfs admin` in this process.
func runAdmin(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	root := &cobra.Command{Use: "cfs"}
	root.AddCommand(adminCommand(testPace()))
	root.SetArgs(append([]string{"admin"}, args...))
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	code = cli.Run(ctx, root, &errOut)
	if ctx.Err() != nil {
		t.Fatalf("admin %v did not end; it printed %s%s", args, out.String(), errOut.String())
	}
	return code, out.String(), errOut.String()
}

// fakeShard is a shard on a device of a fake cluster.
type fakeShard struct {
	stripe cfs.StripeID
	shardSeen
}

// fake is servers that answer what they are told to.
type fake struct {
	t     *testing.T
	srvs  map[cfs.NodeID]*wire.Server
	addrs map[cfs.NodeID]string

	mu     sync.Mutex // held by hooks
	leader cfs.NodeID
	m      *cfs.Map
	usage  []cfs.GroupUsage
	statfs cfs.Statfs
	rows   []cfs.StripeInfo
	shards []fakeShard
	fates  map[cfs.StripeID]cfs.Fate // of stripes without a row; FateDead where absent
	info   map[cfs.DeviceID]*wirepb.DeviceInfo
	top    map[cfs.NodeID]*wirepb.TopReply
	// Of the namespace, where it is asked for.
	consumers []cfs.Consumer
	sessions  []cfs.SessionInfo
	changes   []cfs.Change
	dirs      map[cfs.Ino]cfs.Answer
	checks    map[cfs.NodeID]*wirepb.CheckReply
	page      int      // bound of one page
	verbs     []string // what was asked for, in order
	// Hooks, nil for none, are called with mu held before the request is answered.
	onAdmin func(at cfs.NodeID, r *wirepb.Admin) (*wirepb.AdminReply, error)
	onAsk   func(at cfs.NodeID, op wire.Op) error
}

type fakeNode struct {
	f  *fake
	id cfs.NodeID
}

// newFake starts three servers of two devices each: group 1 is 4+2 over all of
// them, group 2 is 1+2. Server 2 leads.
func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, srvs: map[cfs.NodeID]*wire.Server{}, addrs: map[cfs.NodeID]string{}, leader: 2, page: 3,
		m: &cfs.Map{ClusterID: "fake", Version: 7}, fates: map[cfs.StripeID]cfs.Fate{},
		info: map[cfs.DeviceID]*wirepb.DeviceInfo{}, checks: map[cfs.NodeID]*wirepb.CheckReply{},
		statfs: cfs.Statfs{TotalBytes: 4 << 30, FreeBytes: 3 << 30, Inodes: 12},
	}
	for id := cfs.NodeID(1); id <= 3; id++ {
		ln, err := wire.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := wire.NewServer(wire.ServerConfig{Hello: wire.Identity{ClusterID: "fake", NodeID: id, Name: "fake"}, Handler: &fakeNode{f, id}})
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
		f.srvs[id], f.addrs[id] = srv, ln.Addr().String()
		f.m.Nodes = append(f.m.Nodes, cfs.Node{ID: id, Addr: f.addrs[id], State: cfs.StateUp, Voter: true})
		f.checks[id] = &wirepb.CheckReply{AppliedIndex: 5, Inodes: 12, Extents: 30}
		for slot := uint16(0); slot < 2; slot++ {
			f.addDevice(cfs.MakeDeviceID(id, slot))
		}
	}
	f.m.Groups = []cfs.PG{
		{ID: 1, Geometry: cfs.Geo4p2, Epoch: 3, Writable: true, Slots: slots("1/0", "2/0", "3/0", "1/1", "2/1", "3/1")},
		{ID: 2, Geometry: cfs.Geo1p2, Epoch: 5, Writable: true, Slots: slots("1/0", "2/0", "3/0")},
	}
	return f
}

func (f *fake) addDevice(id cfs.DeviceID) {
	f.m.Devices = append(f.m.Devices, cfs.Device{ID: id, UUID: cfs.UUID{byte(id.Node()), byte(id.Slot())}, State: cfs.StateUp, Capacity: 1 << 30, Used: 100 << 20})
	f.info[id] = &wirepb.DeviceInfo{Id: uint32(id), Path: fmt.Sprintf("/dev/fake%d", id.Slot()), CapacityBytes: 1 << 30, UsedBytes: 100 << 20,
		LiveBytes: 90 << 20, OccupiedBytes: 128 << 20, Records: 10}
}

func dev(name string) cfs.DeviceID {
	id, err := parseDevice(name)
	if err != nil {
		panic(err)
	}
	return id
}

func slots(names ...string) []cfs.Slot {
	var out []cfs.Slot
	for _, n := range names {
		out = append(out, cfs.Slot{Device: dev(n)})
	}
	return out
}

// addStripe makes a stripe with all of its shards.
func (f *fake) addStripe(pg cfs.PGID, session cfs.SessionID, counter uint64, bytes uint32) cfs.StripeID {
	id := cfs.StripeID{Session: session, Counter: counter}
	g := &f.m.Groups[pg-1]
	f.rows = append(f.rows, cfs.StripeInfo{StripeRef: cfs.StripeRef{PG: pg, Stripe: id}, Len: bytes, Refs: 1, Live: uint64(bytes)})
	for i, s := range g.Slots {
		f.put(s.Device, id, uint8(i), pg, g.Epoch, g.Geometry.ShardSize(bytes))
	}
	i := slices.IndexFunc(f.usage, func(u cfs.GroupUsage) bool { return u.PG == pg })
	if i < 0 {
		i, f.usage = len(f.usage), append(f.usage, cfs.GroupUsage{PG: pg})
	}
	f.usage[i].Stripes++
	f.usage[i].RawBytes += uint64(g.Geometry.Total()) * uint64(g.Geometry.ShardSize(bytes))
	return id
}

func (f *fake) put(d cfs.DeviceID, id cfs.StripeID, shard uint8, pg cfs.PGID, epoch cfs.Epoch, bytes uint32) {
	f.shards = append(f.shards, fakeShard{id, shardSeen{device: d, shard: shard, pg: pg, epoch: epoch, len: bytes}})
}

// drop forgets shards and returns how many there were.
func (f *fake) drop(which func(*fakeShard) bool) int {
	n := len(f.shards)
	f.shards = slices.DeleteFunc(f.shards, func(s fakeShard) bool { return which(&s) })
	return n - len(f.shards)
}

// device is a device of the map, to be changed.
func (f *fake) device(name string) *cfs.Device {
	return &f.m.Devices[slices.IndexFunc(f.m.Devices, func(d cfs.Device) bool { return d.ID == dev(name) })]
}

// kill ends a server.
func (f *fake) kill(id cfs.NodeID) { f.srvs[id].Close() }

// Serve answers a request.
func (n *fakeNode) Serve(_ context.Context, r *wire.Request) (wire.Response, error) {
	f := n.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onAsk != nil {
		if err := f.onAsk(n.id, r.Op); err != nil {
			return wire.Response{}, err
		}
	}
	switch r.Op {
	case wire.OpStatus:
		return wire.Response{Body: f.status(n.id)}, nil
	case wire.OpInspect:
		reply := &wirepb.InspectReply{NodeId: uint32(n.id)}
		for _, d := range f.m.Devices {
			if d.ID.Node() == n.id {
				reply.Devices = append(reply.Devices, proto.Clone(f.info[d.ID]).(*wirepb.DeviceInfo))
			}
		}
		return wire.Response{Body: reply}, nil
	case wire.OpCheckState:
		return wire.Response{Body: f.checks[n.id]}, nil
	case wire.OpTop:
		return wire.Response{Body: proto.Clone(f.top[n.id])}, nil
	case wire.OpAdmin:
		return f.admin(n.id, r)
	case wire.OpListShards:
		return f.list(n.id, r)
	case wire.OpQuery:
		if n.id != f.leader {
			return wire.Response{}, wire.NotLeaderError("query", f.addrs[f.leader])
		}
		var m wirepb.Query
		if err := r.Decode(&m); err != nil {
			return wire.Response{}, err
		}
		q, err := wire.QueryFromPB(&m)
		if err != nil {
			return wire.Response{}, err
		}
		return wire.Response{Body: wire.AnswerToPB(f.query(q))}, nil
	}
	return wire.Response{}, cfs.Errorf(r.Op.String(), cfs.Unsupported, "not faked")
}

func (f *fake) status(at cfs.NodeID) *wirepb.StatusReply {
	r := &wirepb.StatusReply{ClusterId: "fake", NodeId: uint32(at), LeaderId: uint32(f.leader), LeaderAddr: f.addrs[f.leader],
		Term: 4, CommitIndex: 90, AppliedIndex: 90, FirstIndex: 1, Sessions: 2, Map: wire.MapToPB(f.m), Statfs: wire.StatfsToPB(&f.statfs)}
	for _, u := range f.usage {
		r.Usage = append(r.Usage, wire.UsageToPB(u))
	}
	if at != f.leader {
		for _, d := range r.Map.Devices {
			d.Used = 0
		}
	}
	return r
}

func (f *fake) admin(at cfs.NodeID, r *wire.Request) (wire.Response, error) {
	var m wirepb.Admin
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	switch wire.Verb(m.Verb) {
	case wire.VerbDeviceAdd, wire.VerbScrub, wire.VerbReconcile:
	default:
		if at != f.leader {
			return wire.Response{}, wire.NotLeaderError("admin", f.addrs[f.leader])
		}
	}
	f.verbs = append(f.verbs, fmt.Sprintf("%d at %d: %v %q %d %v", m.Verb, at, cfs.DeviceID(m.Device), m.Path, m.RateBytes, m.Force))
	reply := &wirepb.AdminReply{}
	if f.onAdmin != nil {
		var err error
		if reply, err = f.onAdmin(at, &m); err != nil {
			return wire.Response{}, err
		}
	}
	return wire.Response{Body: reply}, nil
}

func (f *fake) list(at cfs.NodeID, r *wire.Request) (wire.Response, error) {
	var m wirepb.ListShards
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	if cfs.DeviceID(m.Device).Node() != at {
		return wire.Response{}, cfs.Errorf("list", cfs.NotFound, "device %v at node %d", cfs.DeviceID(m.Device), at)
	}
	var after *item
	if m.After != nil {
		id, shard, err := wire.ShardKeyFromPB(m.After)
		if err != nil || id.Session == 0 {
			return wire.Response{}, cfs.Errorf("list", cfs.BadRequest, "%v", m.After)
		}
		after = &item{stripe: id, shard: shardSeen{shard: shard}}
	}
	var all []item
	for _, s := range f.shards {
		i := item{stripe: s.stripe, shard: s.shardSeen}
		if s.device == cfs.DeviceID(m.Device) && (after == nil || after.less(&i)) {
			all = append(all, i)
		}
	}
	order := func(a, b item) int {
		if a.less(&b) {
			return -1
		}
		return 1
	}
	if !slices.IsSortedFunc(all, order) {
		slices.SortFunc(all, order)
	}
	limit := min(int(m.Limit), f.page, len(all))
	reply := &wirepb.ListShardsReply{More: limit < len(all)}
	for _, i := range all[:limit] {
		reply.Shards = append(reply.Shards, &wirepb.ShardInfo{Key: wire.ShardKeyToPB(i.stripe, i.shard.shard), Pg: uint32(i.shard.pg), Epoch: uint32(i.shard.epoch), Len: i.shard.len})
	}
	return wire.Response{Body: reply}, nil
}

func (f *fake) query(q *cfs.Query) *cfs.Answer {
	a := &cfs.Answer{}
	switch q.Kind {
	case cfs.QueryMap:
		a.Map = f.m
	case cfs.QueryStripes:
		for _, r := range f.rows {
			if r.PG == q.PG && q.Stripe.Less(r.Stripe) {
				a.Stripes = append(a.Stripes, r)
			}
		}
		slices.SortFunc(a.Stripes, func(x, y cfs.StripeInfo) int {
			if x.Stripe.Less(y.Stripe) {
				return -1
			}
			return 1
		})
		limit := min(int(q.Limit), f.page, len(a.Stripes))
		a.More, a.Stripes = limit < len(a.Stripes), a.Stripes[:limit]
	case cfs.QueryConsumers:
		a.Consumers = f.consumers
	case cfs.QuerySessions:
		for _, s := range f.sessions {
			if s.ID > q.Session {
				a.Sessions = append(a.Sessions, s)
			}
		}
		limit := min(f.page, len(a.Sessions))
		a.More, a.Sessions = limit < len(a.Sessions), a.Sessions[:limit]
	case cfs.QueryJournal:
		if len(f.consumers) == 0 {
			a.Kind = cfs.NotFound
		}
		for _, c := range f.changes {
			if c.Index > q.Index || c.Index == q.Index && uint64(c.N) >= q.Off {
				a.Changes = append(a.Changes, c)
			}
		}
		limit := min(f.page, len(a.Changes))
		a.More, a.Changes = limit < len(a.Changes), a.Changes[:limit]
	case cfs.QueryReadDir:
		*a = f.dirs[q.Dir]
	case cfs.QueryFates:
		for _, ref := range q.Stripes {
			fate := cfs.FateDead
			if set, ok := f.fates[ref.Stripe]; ok {
				fate = set
			}
			if slices.ContainsFunc(f.rows, func(r cfs.StripeInfo) bool { return r.StripeRef == ref }) {
				fate = cfs.FateLive
			}
			a.Fates = append(a.Fates, fate)
		}
	default:
		a.Kind = cfs.BadRequest
	}
	return a
}
