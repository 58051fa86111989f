package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
)

// partState is how far a part has come.
type partState uint8

const (
	partFetching partState = iota
	partLate               // still being fetched, for longer than is usual
	partHave               // its bytes are there, and right
	partLost
)

// part is a range of whole blocks of a shard. Its bytes are whoever's fetches or
// computes them until it is partHave; then they do not change.
type part struct {
	shard   int
	off     uint32 // in the shard
	b       []byte
	scratch bool // b is of Client.scratch
	extra   bool // begun for a reconstruction: no read's own
	state   partState
	err     error
}

// covers reports that the part has the blocks of r.
func (p *part) covers(r *ec.ShardRange) bool {
	return p.off <= r.Off && r.Off+r.Len <= p.off+uint32(len(p.b))
}

func (c *Client) freePart(p *part) {
	if p.scratch {
		c.scratch.put(p.b)
		p.b, p.scratch = nil, false
	}
}

// stripeRead is what the reads of one stripe's shards have in common: the parts that
// they fetch, so that those which must be reconstructed need none of them again.
type stripeRead struct {
	c       *Client
	parent  context.Context // of the read
	fetches sync.WaitGroup

	mu     sync.Mutex
	moved  sync.Cond // a part has changed its state, or a hedge is over
	parts  []*part
	room   [6]*part        // of parts, at first
	ctx    context.Context // of fetches for reconstruction; nil before the first
	cancel context.CancelFunc
}

// newStripeRead joins the reads of one stripe.
func newStripeRead(ctx context.Context, c *Client, jobs []shardRead) *stripeRead {
	s := &stripeRead{c: c, parent: ctx}
	s.parts = s.room[:0]
	s.moved.L = &s.mu
	for i := range jobs {
		s.adopt(&jobs[i])
	}
	return s
}

// adopt makes a read that has not begun, or is alone, one of the stripe's.
func (s *stripeRead) adopt(j *shardRead) {
	j.stripe = s
	s.parts = append(s.parts, &j.part)
}

// end gives up what is still being fetched and frees the parts.
func (s *stripeRead) end() {
	s.mu.Lock()
	if s.cancel != nil {
		s.cancel()
	}
	s.mu.Unlock()
	s.fetches.Wait()
	for _, p := range s.parts {
		s.c.freePart(p)
	}
}

// prepare says which blocks j fetches, and where to: in place where p is whole blocks.
func (c *Client) prepare(j *shardRead) {
	if j.g == nil {
		return
	}
	j.part = part{shard: j.r.Shard, off: j.r.Off, b: j.p}
	if uint32(len(j.p)) != j.r.Len {
		j.part.b, j.part.scratch = c.scratch.get(int(j.r.Len)), true
	}
}

// settle says how the fetching of j's blocks has ended.
func (j *shardRead) settle(state partState, err error) {
	if j.stripe == nil {
		j.part.state, j.part.err = state, err
		return
	}
	j.stripe.settle(&j.part, state, err)
}

func (s *stripeRead) settle(p *part, state partState, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.state, p.err = state, err
	s.moved.Broadcast()
}

// late says that others shall not wait for a part that is being fetched.
func (s *stripeRead) late(p *part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state == partFetching {
		p.state = partLate
		s.moved.Broadcast()
	}
}

// wake has a hedge that waits see that it is over.
func (s *stripeRead) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved.Broadcast()
}

// source says where the bytes for a reconstruction may come from.
type source struct {
	anyDevice bool         // that are down, out or have failed, and shards that failed before
	certain   bool         // the extents are: a shard that is not there is missing
	over      *atomic.Bool // becomes true when nobody needs the bytes any more; nil: never
}

// errOver says that a reconstruction is not needed any more.
var errOver = errors.New("not needed any more")

// gather waits for j's blocks of K other shards: parts that are there or on their way,
// then others, the best first. It begins one more for each that fails or is late.
func (s *stripeRead) gather(j *shardRead, shards [][]byte, from source) error {
	k := int(j.g.Geometry.K)
	rest := s.c.candidates(j, from.anyDevice)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer context.AfterFunc(s.parent, s.wake)()
	for {
		have, coming, late := s.count(j, shards)
		if have >= k {
			return nil
		}
		if from.over != nil && from.over.Load() {
			return errOver
		}
		if s.parent.Err() != nil {
			return ctxError("read", s.parent)
		}
		for have+coming < k && len(rest) > 0 {
			shard := rest[0]
			rest = rest[1:]
			if p := s.find(shard, &j.r); p == nil || p.state == partLost && from.anyDevice {
				s.begin(j, shard, from)
				coming++
			}
		}
		if have+coming+late < k {
			return cfs.E("reconstruct", cfs.Unavailable, s.failures(j))
		}
		s.moved.Wait()
	}
}

// count finds the parts that have j's blocks of other shards, puts the first K of those
// that are there into shards, and counts the others: on their way, and late. The caller holds mu.
func (s *stripeRead) count(j *shardRead, shards [][]byte) (have, coming, late int) {
	clear(shards)
	for i := range shards {
		p := s.find(i, &j.r)
		if i == j.r.Shard || p == nil {
			continue
		}
		switch p.state {
		case partHave:
			if have < int(j.g.Geometry.K) {
				skip := j.r.Off - p.off
				shards[i] = p.b[skip : skip+j.r.Len]
			}
			have++
		case partFetching:
			coming++
		case partLate:
			late++
		}
	}
	return have, coming, late
}

// find is the part that has r's blocks of a shard, or will have them soonest. The
// caller holds mu.
func (s *stripeRead) find(shard int, r *ec.ShardRange) *part {
	order := [...]int{partHave: 0, partFetching: 1, partLate: 2, partLost: 3}
	var best *part
	for _, p := range s.parts {
		if p.shard == shard && p.covers(r) && (best == nil || order[p.state] < order[best.state]) {
			best = p
		}
	}
	return best
}

// begin fetches j's blocks of another shard. The caller holds mu.
func (s *stripeRead) begin(j *shardRead, shard int, from source) {
	if s.cancel == nil {
		s.ctx, s.cancel = context.WithCancel(s.parent)
	}
	ctx, g, id := s.ctx, j.g, j.x.Stripe
	p := s.spare(shard, &j.r)
	if p == nil {
		p = &part{shard: shard, off: j.r.Off, b: s.c.scratch.get(int(j.r.Len)), scratch: true, extra: true}
		s.parts = append(s.parts, p)
	}
	p.state, p.err = partFetching, nil
	s.fetches.Go(func() {
		if err := s.c.fetch(ctx, g, id, p, from.anyDevice, from.certain); err != nil {
			s.settle(p, partLost, err)
			return
		}
		s.settle(p, partHave, nil)
	})
}

// spare is the part of an earlier attempt that failed to get r's blocks of a shard: so
// the attempts of one read need the memory of one. The caller holds mu.
func (s *stripeRead) spare(shard int, r *ec.ShardRange) *part {
	for _, p := range s.parts {
		if p.extra && p.state == partLost && p.shard == shard && p.off == r.Off && uint32(len(p.b)) == r.Len {
			return p
		}
	}
	return nil
}

// failures is why other shards than j's are lost, once for each. The caller holds mu.
func (s *stripeRead) failures(j *shardRead) error {
	all := make([]error, j.g.Geometry.Total())
	for _, p := range s.parts {
		if p.state == partLost && p.shard != j.r.Shard {
			all[p.shard] = p.err
		}
	}
	return errors.Join(all...)
}

// candidates are the other shards than j's that may be asked for, those first that
// are likely to answer soonest: on healthy devices, and on other nodes than j's.
func (c *Client) candidates(j *shardRead, anyDevice bool) []int {
	l := c.layout.get()
	slots := j.g.Slots
	node := holder(slots[j.r.Shard]).Node()
	rank := func(i int) int {
		d := holder(slots[i])
		r := 2 * int(c.reach(l, d))
		if d.Node() == node {
			r++
		}
		return r
	}
	worst := 2*int(reachSuspect) + 1
	if anyDevice {
		worst = 2*int(reachNone) + 1
	}
	out := make([]int, 0, len(slots))
	ranks := make([]int, len(slots))
	for i := range slots {
		if ranks[i] = rank(i); i != j.r.Shard && ranks[i] <= worst {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return ranks[a] - ranks[b] })
	return out
}
