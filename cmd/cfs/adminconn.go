package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/node"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxAsks bounds the requests that an admin command has on their way at once.
	maxAsks = 16
	// maxDialTime bounds the making of a connection: a machine that is off costs so much.
	maxDialTime = 3 * time.Second
	// leaderPause is the wait before all servers are asked again who leads.
	leaderPause = 200 * time.Millisecond
)

// conn is how one admin command reaches a cluster, from any number of goroutines.
type conn struct {
	pool    *wire.Pool
	timeout time.Duration // of each request
	server  string        // that the command line names

	mu     sync.Mutex
	leader string   // who is believed to lead; "" for nobody
	others []string // the addresses of all servers, from the last map; never changed in place
	addrs  map[cfs.NodeID]string
}

// connect makes a conn; the first request makes connections.
func (f *adminFlags) connect(ctx context.Context) (*conn, error) {
	if err := checkServer(f.server); err != nil {
		return nil, err
	}
	if f.timeout <= 0 {
		return nil, cli.Usage("--timeout", "want a positive duration")
	}
	finding, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	store, err := f.identity.open(finding, []string{f.server}, "", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	pool := wire.NewPool(wire.DialConfig{Hello: wire.Identity{Name: "cfs admin"}, DialTimeout: min(f.timeout, maxDialTime), TLS: tlsOf(store)}, 1)
	return &conn{pool: pool, timeout: f.timeout, server: f.server}, nil
}

func (c *conn) close() { _ = c.pool.Close() }

// checkServer refuses what is neither HOST:PORT nor unix:PATH.
func checkServer(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return cli.Usage("--server", "unix: needs a path")
		}
		return nil
	}
	return node.CheckAddr("--server", addr)
}

// ask asks one server.
func (c *conn) ask(ctx context.Context, addr string, op wire.Op, req, resp proto.Message) error {
	return c.askWithin(ctx, c.timeout, addr, op, req, resp)
}

// askWithin is ask for what takes its time.
func (c *conn) askWithin(ctx context.Context, most time.Duration, addr string, op wire.Op, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	_, err := c.pool.Call(ctx, addr, op, req, nil, resp, nil)
	return err
}

// known is who is believed to lead, and all servers.
func (c *conn) known() (leader string, all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader, c.others
}

// addrOf is where a server of the last map listens.
func (c *conn) addrOf(id cfs.NodeID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addrs[id]
}

// askLeader asks whoever leads: it follows what servers say about that, and goes
// round all known ones, until there is an answer or the time is up. A request
// that may have been carried out already is not sent again.
func (c *conn) askLeader(ctx context.Context, op wire.Op, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	addr, all := c.known()
	if addr == "" {
		addr = c.server
	}
	for hints := 0; ; {
		hint, again, err := c.tryLeader(ctx, addr, op, req, resp)
		if err == nil {
			c.mu.Lock()
			c.leader = addr
			c.mu.Unlock()
			return nil
		}
		if !again || ctx.Err() != nil || hint == "" && len(all) == 0 {
			return err
		}
		if hint != "" && hint != addr && hints <= len(all) {
			addr, hints = hint, hints+1
			continue
		}
		if hints = 0; len(all) > 0 {
			addr = all[(slices.Index(all, addr)+1)%len(all)]
		}
		select {
		case <-time.After(leaderPause):
		case <-ctx.Done():
			return err
		}
	}
}

// tryLeader asks one server as the leader. It says whether another may be asked,
// and which one the server names.
func (c *conn) tryLeader(ctx context.Context, addr string, op wire.Op, req, resp proto.Message) (hint string, again bool, err error) {
	wc, err := c.pool.Conn(ctx, addr)
	if err != nil {
		return "", true, err
	}
	_, err = wc.Call(ctx, op, req, nil, resp, nil)
	var remote *wire.RemoteError
	if errors.As(err, &remote) {
		hint = remote.Leader
	}
	switch cfs.KindOf(err) {
	case cfs.NotLeader, cfs.Overloaded:
		return hint, true, err
	case cfs.Unavailable, cfs.Timeout, cfs.Closed:
		return "", op != wire.OpAdmin, err
	}
	return "", false, err
}

// admin asks the leader to carry out a verb.
func (c *conn) admin(ctx context.Context, req *wirepb.Admin) (*wirepb.AdminReply, error) {
	reply := &wirepb.AdminReply{}
	return reply, c.askLeader(ctx, wire.OpAdmin, req, reply)
}

// query asks the leader for a linearizable read.
func (c *conn) query(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	reply := &wirepb.Answer{}
	if err := c.askLeader(ctx, wire.OpQuery, wire.QueryToPB(q), reply); err != nil {
		return nil, err
	}
	a, err := wire.AnswerFromPB(reply)
	if err == nil && a.Kind != cfs.KindOK {
		err = cfs.E("query", a.Kind, nil)
	}
	return a, err
}

// state is a cluster as a server described it.
type state struct {
	reply *wirepb.StatusReply
	m     *cfs.Map
	usage map[cfs.PGID]cfs.GroupUsage
	led   bool // the leader itself answered

	readers      []cfs.Consumer // of the journal, where they were asked for
	consumersErr error          // why they are not known
}

// status asks a server, then the leader that it names, which alone knows how
// full devices are; without an answer from the leader the server's own stands.
func (c *conn) status(ctx context.Context) (*state, error) {
	reply, err := c.anyStatus(ctx)
	if err != nil {
		return nil, err
	}
	if addr := reply.LeaderAddr; addr != "" && reply.LeaderId != reply.NodeId {
		if led, err := c.statusOf(ctx, addr); err == nil {
			reply = led
		}
	}
	s := &state{reply: reply, led: reply.LeaderId != 0 && reply.LeaderId == reply.NodeId, usage: map[cfs.PGID]cfs.GroupUsage{}}
	if s.m, err = wire.MapFromPB(reply.Map); err != nil {
		return nil, err
	}
	for _, u := range reply.Usage {
		s.usage[cfs.PGID(u.Pg)] = wire.UsageFromPB(u)
	}
	var leader string
	var all []string
	addrs := map[cfs.NodeID]string{}
	for _, n := range s.m.Nodes {
		all, addrs[n.ID] = append(all, n.Addr), n.Addr
		if s.led && n.ID == cfs.NodeID(reply.LeaderId) {
			leader = n.Addr
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader, c.others, c.addrs = leader, all, addrs
	return s, nil
}

// anyStatus is the first status that a server gives: the leader, the one of the
// command line, any other. Without one it is the first failure.
func (c *conn) anyStatus(ctx context.Context) (*wirepb.StatusReply, error) {
	leader, all := c.known()
	var first error
	for _, addr := range append([]string{leader, c.server}, all...) {
		if addr == "" {
			continue
		}
		reply, err := c.statusOf(ctx, addr)
		if err == nil || ctx.Err() != nil {
			return reply, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func (c *conn) statusOf(ctx context.Context, addr string) (*wirepb.StatusReply, error) {
	reply := &wirepb.StatusReply{}
	return reply, c.ask(ctx, addr, wire.OpStatus, &wirepb.Empty{}, reply)
}

// node is a server of the map.
func (s *state) node(id cfs.NodeID) (*cfs.Node, error) {
	i := slices.IndexFunc(s.m.Nodes, func(n cfs.Node) bool { return n.ID == id })
	if i < 0 {
		return nil, cfs.Errorf("", cfs.NotFound, "there is no node %d in cluster %s", id, s.reply.ClusterId)
	}
	return &s.m.Nodes[i], nil
}

// find is a device of the map, nil for none.
func (s *state) find(id cfs.DeviceID) *cfs.Device {
	i := slices.IndexFunc(s.m.Devices, func(d cfs.Device) bool { return d.ID == id })
	if i < 0 {
		return nil
	}
	return &s.m.Devices[i]
}

// device is a device of the map.
func (s *state) device(id cfs.DeviceID) (*cfs.Device, error) {
	if d := s.find(id); d != nil {
		return d, nil
	}
	return nil, cfs.Errorf("", cfs.NotFound, "there is no device %v in cluster %s", id, s.reply.ClusterId)
}

// job is the job of a device, nil for none.
func (s *state) job(id cfs.DeviceID) *cfs.Job {
	i := slices.IndexFunc(s.m.Jobs, func(j cfs.Job) bool { return j.Device == id })
	if i < 0 {
		return nil
	}
	return &s.m.Jobs[i]
}

// holds reports that groups with stripes still count on a device.
func (s *state) holds(id cfs.DeviceID) bool {
	return slices.ContainsFunc(s.m.Groups, func(g cfs.PG) bool {
		return s.usage[g.ID].Stripes > 0 && slices.ContainsFunc(g.Slots, func(l cfs.Slot) bool {
			return l.Device == id || l.Filling && l.Source == id
		})
	})
}

// inspection is what a server said of its own devices, or why it said nothing.
type inspection struct {
	node  cfs.Node
	reply *wirepb.InspectReply
	err   error
}

// inspect asks all servers of their devices, in the order of the map.
func (c *conn) inspect(ctx context.Context, s *state) []inspection {
	out := make([]inspection, len(s.m.Nodes))
	each(len(out), func(i int) {
		out[i] = inspection{node: s.m.Nodes[i], reply: &wirepb.InspectReply{}}
		out[i].err = c.ask(ctx, s.m.Nodes[i].Addr, wire.OpInspect, &wirepb.Empty{}, out[i].reply)
	})
	return out
}

// each calls f with 0 to n-1, a bounded number of them at once.
func each(n int, f func(i int)) {
	var g errgroup.Group
	g.SetLimit(maxAsks)
	for i := range n {
		g.Go(func() error {
			f(i)
			return nil
		})
	}
	_ = g.Wait() // none of them returns an error
}
