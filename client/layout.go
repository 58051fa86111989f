package client

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// layout is the cluster's map, indexed.
type layout struct {
	cfs.Map
	groups  map[cfs.PGID]*cfs.PG
	devices map[cfs.DeviceID]*place
	addrs   []string  // of all nodes
	large   []*cfs.PG // writable groups for full stripes
	small   []*cfs.PG // writable groups of 1+2
}

// place is where a device is.
type place struct {
	addr  string
	state cfs.State // the worse of the device's and its node's
	full  bool      // as the cluster knows
}

func newLayout(m *cfs.Map) *layout {
	l := &layout{Map: *m, groups: map[cfs.PGID]*cfs.PG{}, devices: map[cfs.DeviceID]*place{}}
	nodes := map[cfs.NodeID]*cfs.Node{}
	for i := range l.Nodes {
		n := &l.Nodes[i]
		nodes[n.ID] = n
		if n.Addr != "" { // else it has enrolled, and was never heard of
			l.addrs = append(l.addrs, n.Addr)
		}
	}
	for _, d := range l.Devices {
		if n := nodes[d.ID.Node()]; n != nil {
			l.devices[d.ID] = &place{addr: n.Addr, state: max(d.State, n.State), full: d.Full}
		}
	}
	for i := range l.Groups {
		g := &l.Groups[i]
		l.groups[g.ID] = g
		switch {
		case !g.Writable:
		case g.Geometry == cfs.Geo1p2:
			l.small = append(l.small, g)
		default:
			l.large = append(l.large, g)
		}
	}
	return l
}

// layoutHolder keeps the newest layout.
type layoutHolder struct{ p atomic.Pointer[layout] }

func (h *layoutHolder) get() *layout {
	if l := h.p.Load(); l != nil {
		return l
	}
	return &layout{}
}

// refreshMap asks the leader for the map. Callers that come while one asks share
// its answer.
func (c *Client) refreshMap(ctx context.Context) error {
	before := c.layout.p.Load()
	if err := c.mapping.take(ctx); err != nil {
		return err
	}
	defer c.mapping.done()
	if c.layout.p.Load() != before {
		return nil
	}
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryMap})
	if err != nil {
		return err
	}
	if a.Map == nil {
		return cfs.Errorf("map", cfs.BadRequest, "answer without a map")
	}
	if a.Map.Version >= c.layout.get().Version {
		c.revoke(c.layout.get().Revoked, a.Map.Revoked)
		l := newLayout(a.Map)
		c.layout.p.Store(l)
		c.flights.passed(l)
	}
	return nil
}

// flights are the stripes being put. A map with another epoch of their group ends
// them: they could not be committed, and the device that made the epoch pass may
// never answer. The zero value is ready; maxPuts bounds it.
type flights struct {
	mu  sync.Mutex
	set map[*flight]struct{}
}

type flight struct {
	pg     cfs.PGID
	epoch  cfs.Epoch
	cancel context.CancelFunc
}

// begin notes a put to g; the context that it returns ends with the epoch, and by end.
func (f *flights) begin(ctx context.Context, g *cfs.PG) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	x := &flight{g.ID, g.Epoch, cancel}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.set == nil {
		f.set = map[*flight]struct{}{}
	}
	f.set[x] = struct{}{}
	return ctx, func() {
		cancel()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.set, x)
	}
}

func (f *flights) passed(l *layout) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for x := range f.set {
		if g := l.groups[x.pg]; g == nil || g.Epoch != x.epoch {
			x.cancel()
		}
	}
}

// pickGroup chooses the group for a stripe of up to n bytes, none of whose devices
// is suspect; nil when there is none. The stripe may hold less than n.
func (c *Client) pickGroup(l *layout, n int) *cfs.PG {
	classes := [2][]*cfs.PG{l.large, l.small}
	if n <= cfs.SmallStripe {
		classes = [2][]*cfs.PG{l.small, l.large}
	}
	for _, groups := range classes {
		if len(groups) == 0 {
			continue
		}
		start := rand.IntN(len(groups))
		for i := range groups {
			g := groups[(start+i)%len(groups)]
			if !slices.ContainsFunc(g.Slots, func(s cfs.Slot) bool { return c.suspects.has(s.Device) || c.full.has(s.Device) }) {
				return g
			}
		}
	}
	return nil
}

// reach says how willingly a device is asked for a shard; lower is better.
type reach uint8

const (
	reachGood    reach = iota
	reachSlow          // it has just lost against a hedge
	reachSuspect       // its node has been silent for a while: others first
	reachPoor          // it is down or out, or has just failed: when all else has failed
	reachNone          // nobody knows where it is
)

// reach is how willingly a device is asked. One that is draining or full is as good
// as any.
func (c *Client) reach(l *layout, d cfs.DeviceID) reach {
	at := l.devices[d]
	switch {
	case at == nil:
		return reachNone
	case at.state > cfs.StateSuspect || c.suspects.has(d):
		return reachPoor
	case at.state == cfs.StateSuspect:
		return reachSuspect
	case c.slow.losses(d) > 0:
		return reachSlow
	}
	return reachGood
}

// holder is the device that has a slot's shards: the one that a filling slot
// replaces has them, until the slot is full.
func holder(s cfs.Slot) cfs.DeviceID {
	if s.Filling {
		return s.Source
	}
	return s.Device
}

// degraded reports that some data shards of a group are not where they can be read.
func (c *Client) degraded(l *layout, g *cfs.PG) bool {
	for _, s := range g.Slots[:min(int(g.Geometry.K), len(g.Slots))] {
		if c.reach(l, holder(s)) > reachSlow {
			return true
		}
	}
	return false
}

// spaceless reports that no other group will be found to have room: the cluster knows
// of full devices in each, so that it has none without, or all devices are full.
func (c *Client) spaceless(l *layout) bool {
	known, all := true, true
	for _, groups := range [2][]*cfs.PG{l.large, l.small} {
		for _, g := range groups {
			any := false
			for _, s := range g.Slots {
				at := l.devices[s.Device]
				any = any || at != nil && at.full
				all = all && (at == nil || at.full || c.full.has(s.Device))
			}
			known = known && any
		}
	}
	return (known || all) && len(l.large)+len(l.small) > 0
}

// stripeBytes is the size of a full stripe in the groups that are writable now.
func (l *layout) stripeBytes() int {
	if len(l.large) > 0 {
		return int(l.large[0].Geometry.MaxData())
	}
	return int(cfs.Geo1p2.MaxData())
}

// turn is a lock that may be held across a network call: who waits for it gives
// up with its context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctxError("wait", ctx)
	}
}

func (t turn) done() { <-t }

// suspectFor is how long a device that failed a request is passed over.
const suspectFor = 500 * time.Millisecond

// suspects are devices that have just failed, before the cluster has agreed that
// they are down. The zero value is ready.
type suspects struct {
	mu    sync.Mutex
	until map[cfs.DeviceID]time.Time
	n     atomic.Int32
}

func (s *suspects) add(d cfs.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[cfs.DeviceID]time.Time{}
	}
	s.until[d] = time.Now().Add(suspectFor)
	s.n.Store(int32(len(s.until)))
}

func (s *suspects) has(d cfs.DeviceID) bool {
	if s.n.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.until[d]
	if ok && time.Now().After(t) {
		delete(s.until, d)
		s.n.Store(int32(len(s.until)))
		return false
	}
	return ok
}
