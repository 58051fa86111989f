package wire

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
)

// Redialling: after a failure the next attempt waits; until then calls fail at
// once with what went wrong.
const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = 500 * time.Millisecond
)

// maxPoolAddrs bounds the addresses that a pool keeps connections to.
const maxPoolAddrs = 1024

// Pool keeps connections to servers, made when first needed and again when
// they break, for any number of goroutines.
type Pool struct {
	cfg     DialConfig
	perAddr int
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	frames  framePool

	mu     sync.Mutex
	closed bool
	gone   func(*Peer) error // of the last Cut; nil for none
	addrs  map[string]*poolAddr
}

// poolAddr is the connections to one address.
type poolAddr struct {
	next  uint32
	slots []poolSlot
}

// poolSlot is one connection, or the want of one.
type poolSlot struct {
	conn    *Conn
	dialing chan struct{} // not nil while somebody dials; closed at the end
	err     error         // of the last attempt
	retryAt time.Time
	backoff time.Duration
	early   []*outFrame // one-way, to go first once there is a connection
	backlog backlog     // of early
}

// NewPool makes a pool of perAddr connections to each address; 0 is one.
func NewPool(cfg DialConfig, perAddr int) *Pool {
	p := &Pool{cfg: cfg, perAddr: max(perAddr, 1), addrs: map[string]*poolAddr{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Call is Conn.Call on one of the connections to addr. A server that cannot be
// reached is cfs.Unavailable at once, and so are all calls to it until the
// next attempt is due (at most maxBackoff later): callers that retry pause themselves.
func (p *Pool) Call(ctx context.Context, addr string, op Op, req proto.Message, payload [][]byte, resp proto.Message, into []byte) (int, error) {
	c, err := p.Conn(ctx, addr)
	if err != nil {
		return 0, cfs.E(op.String()+" to "+addr, cfs.KindOf(err), err)
	}
	return c.Call(ctx, op, req, payload, resp, into)
}

// Conn is one of the connections to addr, in turn; it stays the pool's.
func (p *Pool) Conn(ctx context.Context, addr string) (*Conn, error) {
	p.mu.Lock()
	a, err := p.addr(addr)
	if err != nil {
		p.mu.Unlock()
		return nil, err
	}
	a.next++
	s := &a.slots[a.next%uint32(len(a.slots))]
	c, err := p.ready(addr, s)
	dialing := s.dialing
	p.mu.Unlock()
	if c != nil || err != nil {
		return c, err
	}
	select {
	case <-dialing:
	case <-ctx.Done():
		return nil, contextError(ctx, "")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case s.conn != nil:
		return s.conn, nil
	case s.err != nil:
		return nil, s.err
	}
	return nil, cfs.Errorf("connect to "+addr, cfs.Unavailable, "connection lost at once")
}

// addr is the address's connections. The caller holds p.mu.
func (p *Pool) addr(addr string) (*poolAddr, error) {
	if p.closed {
		return nil, cfs.E("pool", cfs.Closed, nil)
	}
	a := p.addrs[addr]
	if a == nil {
		if len(p.addrs) >= maxPoolAddrs {
			return nil, cfs.Errorf("pool", cfs.Overloaded, "%d addresses", maxPoolAddrs)
		}
		a = &poolAddr{slots: make([]poolSlot, p.perAddr)}
		p.addrs[addr] = a
	}
	return a, nil
}

// ready is the slot's connection, or why there is none; neither while it is
// being made, which begins here. The caller holds p.mu.
func (p *Pool) ready(addr string, s *poolSlot) (*Conn, error) {
	if s.conn != nil {
		select {
		case <-s.conn.Done():
			s.conn = nil
		default:
			return s.conn, nil
		}
	}
	if s.dialing != nil {
		return nil, nil
	}
	if s.err != nil && time.Now().Before(s.retryAt) {
		return nil, s.err
	}
	s.dialing = make(chan struct{})
	go p.dial(addr, s)
	return nil, nil
}

// dial fills the slot for all who wait for it; it outlives the one who came first.
func (p *Pool) dial(addr string, s *poolSlot) {
	c, err := Dial(p.ctx, addr, p.cfg)
	p.mu.Lock()
	defer p.mu.Unlock()
	close(s.dialing)
	s.dialing = nil
	if p.closed && err == nil {
		c.Close()
		c, err = nil, cfs.E("pool", cfs.Closed, nil)
	}
	if err == nil && p.gone != nil {
		if err = p.gone(c.peer); err != nil {
			c.fail(err)
			c = nil
		}
	}
	s.conn, s.err = c, err
	s.flushEarly()
	if err == nil {
		s.backoff = 0
		return
	}
	s.backoff = min(max(2*s.backoff, minBackoff), maxBackoff)
	s.retryAt = time.Now().Add(s.backoff/2 + rand.N(s.backoff/2))
}

// Close closes every connection; calls in flight fail with cfs.Unavailable, later ones with cfs.Closed.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.cancel()
	for _, a := range p.addrs {
		for i := range a.slots {
			if c := a.slots[i].conn; c != nil {
				c.Close()
			}
		}
	}
	return nil
}
