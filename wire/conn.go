package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
)

// maxPending bounds the calls in flight on one connection, whatever the server allows.
const maxPending = 1024

// defaultDialTimeout bounds the making of a connection, hello included.
const defaultDialTimeout = 3 * time.Second

// DialConfig is how connections are made.
type DialConfig struct {
	Hello       Identity
	DialTimeout time.Duration // 0: three seconds
	Metrics     *Metrics      // nil: none
	TLS         *TLS          // of TCP connections; nil: they are not encrypted
}

// Conn is a connection to a server, for any number of goroutines.
type Conn struct {
	nc      net.Conn
	r       frameReader
	w       frameWriter
	peer    *Peer
	metrics *Metrics
	frames  framePool
	waiting sync.Pool     // *pending
	slots   chan struct{} // one for each call in flight
	done    chan struct{}

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]*pending // nil: the caller has given up, the reply is thrown away
	err     error
}

// pending is a call that waits. It ends with its reply (or what stands for
// one) and, where the caller's payload is being written, the end of that.
type pending struct {
	events atomic.Int32 // outstanding
	ch     chan struct{}
	into   []byte
	body   []byte
	n      int // payload bytes in into
	flags  uint16
	err    error
}

// happened counts one of the events that the call waits for.
func (p *pending) happened() {
	if p.events.Add(-1) == 0 {
		p.ch <- struct{}{}
	}
}

// written is the end of the payload's use. Why it failed, the connection's end says.
func (p *pending) written(error) { p.happened() }

// Dial connects to addr, "HOST:PORT" or "unix:/path", and exchanges hellos. A server
// that cannot be reached is cfs.Unavailable, one of another cluster cfs.WrongCluster.
func Dial(ctx context.Context, addr string, cfg DialConfig) (*Conn, error) {
	timeout := cfg.DialTimeout
	if timeout <= 0 {
		timeout = defaultDialTimeout
	}
	dctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := connect(dctx, addr, cfg)
	if err == nil {
		return c, nil
	}
	cfg.Metrics.dialFailed()
	switch {
	case ctx.Err() != nil:
		return nil, contextError(ctx, "connect to "+addr)
	case dctx.Err() != nil:
		return nil, cfs.Errorf("connect to "+addr, cfs.Unavailable, "no answer within %v", timeout)
	}
	return nil, err
}

func connect(ctx context.Context, addr string, cfg DialConfig) (*Conn, error) {
	nc, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return newClient(ctx, nc, addr, cfg)
}

// newClient is the client's side of a connection that has been made, after the hello.
func newClient(ctx context.Context, nc net.Conn, addr string, cfg DialConfig) (*Conn, error) {
	socket := nc
	nc, who, err := secureClient(ctx, nc, cfg.TLS)
	if err != nil {
		socket.Close()
		return nil, cfs.E("connect to "+addr, cfs.KindOf(err), err)
	}
	c := &Conn{
		nc: nc, metrics: cfg.Metrics,
		r:       frameReader{conn: nc, peer: addr, buf: make([]byte, readBufferBytes)},
		pending: map[uint64]*pending{},
		done:    make(chan struct{}),
	}
	c.w = frameWriter{conn: nc, frames: &c.frames, broken: c.fail}
	c.w.attempt.prepare(nc)
	if c.peer, err = greet(ctx, nc, &c.r, cfg.Hello); err == nil && who.Role != cfs.RoleNone {
		err = c.peer.is(who)
	}
	if err != nil {
		nc.Close()
		kind := cfs.KindOf(err)
		if kind == cfs.IO || errors.Is(err, io.EOF) {
			kind = cfs.Unavailable
		}
		return nil, cfs.E("connect to "+addr, kind, err)
	}
	c.slots = make(chan struct{}, c.peer.maxInFlight)
	c.w.slots = c.slots
	c.metrics.connOpened(sideClient)
	go c.readLoop()
	return c, nil
}

// Peer is the server as it presented itself.
func (c *Conn) Peer() *Peer { return c.peer }

// Done is closed when the connection has broken or was closed.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection; calls in flight fail with cfs.Unavailable.
func (c *Conn) Close() error {
	c.fail(cfs.E("", cfs.Closed, nil))
	return nil
}

// Call sends a request and waits for its reply. The payload's slices are
// written as they are. The reply's body is decoded into resp (nil: not wanted),
// its payload read into into; n is the payload's length, and one longer than
// into is an error. Errors are *cfs.Error; the server's own hold a *RemoteError.
func (c *Conn) Call(ctx context.Context, op Op, req proto.Message, payload [][]byte, resp proto.Message, into []byte) (n int, err error) {
	start := c.metrics.begin(sideClient)
	n, err = c.call(ctx, op, req, payload, resp, into)
	if err != nil {
		err = cfs.E(op.String()+" to "+c.peer.Addr, cfs.KindOf(err), err)
	}
	c.metrics.end(sideClient, op, start, err)
	return n, err
}

func (c *Conn) call(ctx context.Context, op Op, req proto.Message, payload [][]byte, resp proto.Message, into []byte) (int, error) {
	if ctx.Err() != nil {
		return 0, contextError(ctx, "")
	}
	f, h, err := c.frames.make(req, payload)
	if err != nil {
		return 0, err
	}
	h.op, h.trace, h.timeoutMS = op, traceOf(ctx), timeoutMS(ctx)
	p, err := c.register(ctx, f, into)
	if err != nil {
		c.frames.free(f)
		return 0, err
	}
	h.id = f.id
	h.encode(f.buf)
	id := f.id
	c.metrics.sent(sideClient, len(f.buf)+int(h.payloadLen))
	c.w.send(f)
	select {
	case <-p.ch:
	case <-ctx.Done():
		c.abandon(ctx, id, p)
		<-p.ch
	}
	n, err := p.result(resp)
	c.recycle(p)
	return n, err
}

// register takes a place among the calls in flight and gives the frame its id.
func (c *Conn) register(ctx context.Context, f *outFrame, into []byte) (*pending, error) {
	select {
	case c.slots <- struct{}{}:
	default:
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, contextError(ctx, "wait for a place")
		case <-c.done:
			return nil, c.failure()
		}
	}
	p, _ := c.waiting.Get().(*pending)
	if p == nil {
		p = &pending{ch: make(chan struct{}, 1)}
	}
	p.into = into
	p.events.Store(1)
	if len(f.payload) > 0 {
		p.events.Store(2)
		f.sender = p
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	c.lastID++
	f.id = c.lastID
	c.pending[f.id] = p
	return p, nil
}

// abandon gives a call up, unless its reply is already being read. The caller
// waits for p afterwards: its memory may be on its way to the socket.
func (c *Conn) abandon(ctx context.Context, id uint64, p *pending) {
	unsent := c.w.withdraw(id)
	c.mu.Lock()
	mine := c.pending[id] == p
	if mine && unsent != nil {
		delete(c.pending, id)
	} else if mine {
		c.pending[id] = nil
	}
	c.mu.Unlock()
	if mine {
		p.err = contextError(ctx, "")
		p.happened()
	}
	switch {
	case unsent != nil:
		c.w.finish(unsent, nil)
		if mine {
			<-c.slots
		}
	case mine && errors.Is(ctx.Err(), context.Canceled):
		// In a goroutine: the socket may be stuck, the caller is in a hurry. There
		// are at most as many as calls in flight. Deadlines the server sees itself.
		go c.sendCancel(id)
	}
}

// sendCancel tells the server that nobody waits for the reply any more.
func (c *Conn) sendCancel(id uint64) {
	f, h, err := c.frames.make(nil, nil)
	if err != nil {
		return
	}
	f.id, h.id, h.op, h.flags = id, id, OpPing, flagCancel
	h.encode(f.buf)
	c.w.send(f)
}

// result is what came of the call, for the caller.
func (p *pending) result(resp proto.Message) (int, error) {
	switch {
	case p.err != nil:
		return 0, p.err
	case p.flags&flagError != 0:
		return 0, errorFromPB(p.body)
	case resp != nil:
		if err := proto.Unmarshal(p.body, resp); err != nil {
			return 0, cfs.E("decode reply", cfs.BadRequest, err)
		}
	}
	return p.n, nil
}

func (c *Conn) recycle(p *pending) {
	p.into, p.body, p.n, p.flags, p.err = nil, kept(p.body), 0, 0, nil
	c.waiting.Put(p)
}

// readLoop reads replies until the connection ends.
func (c *Conn) readLoop() {
	for {
		var h header
		err := c.r.next(&h)
		if err == nil {
			err = c.reply(&h)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// reply takes in one frame.
func (c *Conn) reply(h *header) error {
	if h.flags&flagReply == 0 {
		return c.r.refuse("flags", fmt.Sprintf("%#x from a server", h.flags))
	}
	c.metrics.received(sideClient, HeaderSize+int(h.bodyLen)+int(h.payloadLen))
	if h.id == 0 {
		return c.farewell(h)
	}
	c.mu.Lock()
	p, ok := c.pending[h.id]
	delete(c.pending, h.id)
	c.mu.Unlock()
	if !ok {
		return c.r.refuse("request id", fmt.Sprintf("a reply to %d, which is no call in flight", h.id))
	}
	var err error
	if p == nil {
		err = c.r.skip(int(h.bodyLen)+int(h.payloadLen), "abandoned reply")
	} else {
		err = c.receive(h, p)
	}
	if err != nil && p != nil {
		p.err = c.broken(err)
	}
	<-c.slots
	if p != nil {
		p.happened()
	}
	return err
}

// receive reads the reply's body and payload to where the caller wants them.
func (c *Conn) receive(h *header, p *pending) error {
	p.flags = h.flags
	p.body = sized(p.body, int(h.bodyLen))
	if err := c.r.body(p.body, h); err != nil {
		return err
	}
	p.n = int(h.payloadLen)
	if p.n > len(p.into) {
		if p.flags&flagError == 0 {
			p.err = cfs.Errorf("read reply", cfs.BadRequest, "payload of %d bytes where at most %d were asked for", p.n, len(p.into))
		}
		return c.r.skip(p.n, "payload")
	}
	return c.r.full(p.into[:p.n], "payload")
}

// farewell is the server's reason for ending the connection.
func (c *Conn) farewell(h *header) error {
	if h.flags&flagError == 0 || h.bodyLen > maxHello || h.payloadLen != 0 {
		return c.r.refuse("request id", "0 in a reply")
	}
	body := make([]byte, h.bodyLen)
	if err := c.r.body(body, h); err != nil {
		return err
	}
	return errorFromPB(body)
}

// broken is the error of calls that the connection's end has cut off.
func (c *Conn) broken(cause error) error {
	return cfs.Errorf("", cfs.Unavailable, "connection lost: %w", cause)
}

// failure is why the connection ended.
func (c *Conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// fail ends the connection and every call in flight, once.
func (c *Conn) fail(cause error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = c.broken(cause)
	lost := c.pending
	c.pending = nil
	close(c.done)
	c.mu.Unlock()
	c.nc.Close()
	c.w.close(c.err)
	for _, p := range lost {
		if p != nil {
			p.err = c.err
			p.happened()
		}
	}
	c.metrics.connClosed(sideClient)
}

// timeoutMS is what is left of ctx in milliseconds, rounded up; 0 without a deadline.
func timeoutMS(ctx context.Context) uint32 {
	t, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	left := time.Until(t)
	ms := (left + time.Millisecond - 1) / time.Millisecond
	return uint32(min(max(ms, 1), math.MaxUint32))
}
