package raftmeta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// patience bounds every wait of these tests; none measures time.
const patience = 60 * time.Second

// member is one voter of a test cluster behind a real listener.
type member struct {
	id     cfs.NodeID
	dir    string
	addr   string
	node   *Node
	server *wire.Server
	pool   *wire.Pool
	stop   chan struct{} // ends the beats
	beats  sync.WaitGroup
	joins  bool // is no founder
	ln     net.Listener
}

// cluster is three voters in this process, on loopback listeners.
type cluster struct {
	t        testing.TB
	members  []*member
	seeds    []string                 // addresses by node id
	wrap     func(*Node) wire.Handler // what is served in the place of the node, where it is set
	founders int                      // of them, from the first on
	pool     *wire.Pool               // a client's
	adjust   func(*Config)
	mute     [8]bool // by node id: sends no node heartbeats
	// reports is what the nodes say of their devices and fills, where it is set.
	reports func(cfs.NodeID) ([]*wirepb.Device, []*wirepb.Fill)
	mu      sync.Mutex
}

func newCluster(t testing.TB, n int, adjust func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, adjust: adjust, founders: n}
	var lns []net.Listener
	for i := range n {
		ln, err := wire.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
		c.seeds = append(c.seeds, ln.Addr().String())
		c.members = append(c.members, &member{id: cfs.NodeID(i + 1), dir: filepath.Join(t.TempDir(), "raft"), addr: ln.Addr().String()})
	}
	c.pool = wire.NewPool(wire.DialConfig{Hello: wire.Identity{ClusterID: "test", Name: "client"}}, 2)
	t.Cleanup(func() {
		for _, m := range c.members {
			c.close(m)
		}
		c.pool.Close()
	})
	for i, m := range c.members {
		c.start(m, lns[i])
	}
	for _, m := range c.members {
		c.wait("a voter to take part", m.node.standing.admitted.Load)
	}
	first := c.members[0].node.loop // rather than wait for a timeout
	first.do(func() error { return first.raft.Campaign() })
	return c
}

func testLogger(t testing.TB) *slog.Logger {
	if os.Getenv("RAFTMETA_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func (c *cluster) config(m *member) Config {
	cfg := Config{ClusterID: "test", NodeID: m.id, Dir: m.dir, Seeds: c.seeds, Pool: m.pool, SegmentBytes: 1 << 20,
		Logger: testLogger(c.t).With("self", m.id), CacheBytes: 1 << 20, SessionTimeout: time.Hour}
	if m.joins {
		cfg.Seeds, cfg.Peers = nil, map[cfs.NodeID]string{}
		for _, o := range c.members {
			if o != m {
				cfg.Peers[o.id] = o.addr
			}
		}
	} else {
		cfg.Seeds = c.seeds[:c.founders]
	}
	if c.adjust != nil {
		c.adjust(&cfg)
	}
	return cfg
}

// start opens the member's node and serves it; ln is nil to listen again.
func (c *cluster) start(m *member, ln net.Listener) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ln == nil; {
		var err error
		if ln, err = wire.Listen(m.addr); err != nil && time.Now().After(deadline) {
			c.t.Fatal(err)
		}
	}
	id := wire.Identity{ClusterID: "test", NodeID: m.id, Name: fmt.Sprint("node ", m.id)}
	m.pool = wire.NewPool(wire.DialConfig{Hello: id}, 1)
	var err error
	if m.node, err = Open(c.config(m)); err != nil {
		c.t.Fatalf("open node %d: %v", m.id, err)
	}
	var h wire.Handler = m.node
	if c.wrap != nil {
		h = c.wrap(m.node)
	}
	m.server = wire.NewServer(wire.ServerConfig{Hello: id, Handler: h})
	go m.server.Serve(ln)
	m.stop = make(chan struct{})
}

// crash ends a member as if its process had died: nothing is flushed or said.
func (c *cluster) crash(m *member) { c.end(m, true) }

func (c *cluster) close(m *member) { c.end(m, false) }

func (c *cluster) end(m *member, crash bool) {
	if m.node == nil {
		return
	}
	close(m.stop)
	m.beats.Wait()
	if crash {
		lose(m.node)
	} else if err := m.node.Close(); err != nil {
		c.t.Errorf("close node %d: %v", m.id, err)
	}
	m.server.Close()
	m.pool.Close()
	m.node = nil
}

var errCrash = errors.New("crash of the test")

// lose ends a node without flushing its state: what the store holds only in
// memory is gone, since it keeps no log.
func lose(n *Node) {
	n.loop.do(func() error { return errCrash })
	<-n.done
	n.closeOnce.Do(func() { close(n.stop) })
	n.background.Wait()
	n.incoming.discard()
	n.loop.wal.Close()
	n.state.replace(nil, "")
	n.lock.Close()
}

// leader waits for a member that leads and has caught up.
func (c *cluster) leader() *member {
	c.t.Helper()
	var found *member
	c.wait("a leader", func() bool {
		for _, m := range c.members {
			if m.node != nil && m.node.duties.Load() != nil && m.node.lead.Load().mine {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) others(m *member) []*member {
	var out []*member
	for _, o := range c.members {
		if o != m {
			out = append(out, o)
		}
	}
	return out
}

func (c *cluster) wait(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// known is the seeds of now, for goroutines beside the test's.
func (c *cluster) known() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seeds)
}

// call sends to whoever leads, again until it is answered, as clients do. It is
// for other goroutines too, so it returns what it cannot do.
func (c *cluster) call(op wire.Op, req, resp protoMessage) error {
	var err error
	next := 0
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		seeds := c.known()
		_, err = c.pool.Call(ctx, seeds[next%len(seeds)], op, req, nil, resp, nil)
		cancel()
		var remote *wire.RemoteError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &remote) && remote.Kind == cfs.NotLeader && remote.Leader != "":
			for i, s := range seeds {
				if s == remote.Leader {
					next = i
				}
			}
			time.Sleep(2 * time.Millisecond)
		case errors.Is(err, cfs.NotLeader), errors.Is(err, cfs.Unavailable), errors.Is(err, cfs.Timeout), errors.Is(err, cfs.Overloaded):
			next++
			time.Sleep(5 * time.Millisecond)
		default:
			return err
		}
	}
	return err
}

func (c *cluster) command(cmd *cfs.Command) (*cfs.Reply, error) {
	var m wirepb.Reply
	if err := c.call(wire.OpCommand, wire.CommandToPB(cmd), &m); err != nil {
		return nil, err
	}
	return wire.ReplyFromPB(&m)
}

func (c *cluster) query(q *cfs.Query) (*cfs.Answer, error) {
	var m wirepb.Answer
	if err := c.call(wire.OpQuery, wire.QueryToPB(q), &m); err != nil {
		return nil, err
	}
	return wire.AnswerFromPB(&m)
}

// session opens one.
func (c *cluster) session() cfs.SessionID {
	c.t.Helper()
	r, err := c.command(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpOpenSession, Name: "test"}}})
	if err != nil || r.Kind != cfs.KindOK {
		c.t.Fatalf("open session: %v %+v", err, r)
	}
	return r.Results[0].Session
}

func create(s cfs.SessionID, seq uint64, name string) *cfs.Command {
	return &cfs.Command{Session: s, Seq: seq, LowWater: seq, Ops: []cfs.Op{{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: name,
		Attr: cfs.Attr{Mode: cfs.ModeRegular | 0o644}, Exclusive: true}}}
}

func (c *cluster) mustCreate(s cfs.SessionID, seq uint64, name string) {
	c.t.Helper()
	r, err := c.command(create(s, seq, name))
	if err != nil || r.Kind != cfs.KindOK {
		c.t.Fatalf("create %s: %v %+v", name, err, r)
	}
}

func (c *cluster) mustFind(name string) {
	c.t.Helper()
	a, err := c.query(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: name})
	if err != nil || a.Kind != cfs.KindOK {
		c.t.Fatalf("lookup %s: %v %+v", name, err, a)
	}
}

type protoMessage = proto.Message

// dump is a hash of a node's whole state.
func dump(t testing.TB, n *Node) string {
	t.Helper()
	h := sha256.New()
	err := n.state.view(func(v kv.View) error {
		return v.Scan(nil, nil, func(k, val []byte) (bool, error) {
			h.Write(kv.AppendPair(nil, k, val))
			return true, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// converge waits until all members that run have applied the same index, while the states
// are read too, and compares their states byte for byte.
func (c *cluster) converge() {
	c.t.Helper()
	var states map[cfs.NodeID]string
	c.wait("equal applied indexes", func() bool {
		states = map[cfs.NodeID]string{}
		want := c.leader().node.indexes.applied.Load()
		for _, m := range c.members {
			if m.node != nil && m.node.indexes.applied.Load() == want {
				states[m.id] = dump(c.t, m.node)
			}
		}
		for _, m := range c.members {
			if m.node != nil && (states[m.id] == "" || m.node.indexes.applied.Load() != want) {
				return false
			}
		}
		return true
	})
	want := ""
	for id, got := range states {
		switch {
		case want == "":
			want = got
		case got != want:
			c.t.Errorf("the state of node %d differs", id)
		}
	}
}

// beat sends the member's heartbeats with two devices until it ends or is muted.
func (c *cluster) beat(m *member) {
	stop := m.stop
	m.beats.Go(func() {
		for {
			if !c.muted(m.id) {
				c.beatOnce(m)
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
}

func (c *cluster) muted(id cfs.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mute[id]
}

func (c *cluster) setMute(id cfs.NodeID, mute bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute[id] = mute
}

func devices(id cfs.NodeID) []*wirepb.Device {
	var out []*wirepb.Device
	for slot := range uint16(2) {
		out = append(out, wire.DeviceToPB(cfs.Device{ID: cfs.MakeDeviceID(id, slot), UUID: cfs.UUID{byte(id), byte(slot), 1},
			State: cfs.StateUp, Capacity: 1 << 30, Used: 1000 * uint64(id)}))
	}
	return out
}

func (c *cluster) beatOnce(m *member) {
	req := &wirepb.Heartbeat{Node: wire.NodeToPB(cfs.Node{ID: m.id, Addr: m.addr, State: cfs.StateUp}), Devices: devices(m.id)}
	c.mu.Lock()
	if c.reports != nil {
		req.Devices, req.Fills = c.reports(m.id)
	}
	c.mu.Unlock()
	for _, addr := range c.seeds {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := m.pool.Call(ctx, addr, wire.OpHeartbeat, req, nil, nil, nil)
		cancel()
		if err == nil {
			return
		}
	}
}

func contextWithin(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
