package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// serverConn is one connection of a server. Its goroutine reads; each request
// has a goroutine; one-way frames are the reader's own work; whoever has a reply
// writes it.
type serverConn struct {
	s      *Server
	raw    net.Conn // the socket
	nc     net.Conn // what frames go by: raw, or TLS over it from the handshake on
	r      frameReader
	w      frameWriter
	peer   *Peer // of the reader; others look at greetedPeer
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{} // one for each request, until its reply is written
	// blocked: the reader waits for a slot or for memory, and so does not see the
	// connection end; the server's watchdog looks for it.
	blocked     atomic.Bool
	greetedPeer atomic.Pointer[Peer]
	since       time.Time             // when it was accepted
	stranger    *time.Timer           // ends it; nil for a peer with a certificate, and where there are none
	cut         atomic.Pointer[error] // why the connection is to end
	wg          sync.WaitGroup

	// Of the reader: the one-way frame at hand.
	oneWay Request
	body   []byte

	mu    sync.Mutex
	calls map[uint64]*call
}

// call is a request being served. Handlers may keep what they should not, so it is not pooled.
type call struct {
	Request
	c      *serverConn
	ctx    tracedContext
	cancel context.CancelFunc
	id     uint64
	body   *[]byte
	start  time.Time
	err    error  // answered
	done   func() // of the response
}

func (s *Server) newConn(nc net.Conn) *serverConn {
	c := &serverConn{
		s: s, raw: nc, nc: nc, since: time.Now(),
		r:     frameReader{conn: nc, peer: peerAddr(nc), buf: make([]byte, readBufferBytes)},
		slots: make(chan struct{}, s.cfg.MaxInFlight),
		calls: map[uint64]*call{},
	}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.w = frameWriter{conn: nc, frames: &s.frames, slots: c.slots, broken: func(error) { c.end() }}
	return c
}

// end closes the connection, then ends the handlers: in this order, so that no
// caller is told "canceled" that has canceled nothing.
func (c *serverConn) end() {
	c.raw.Close()
	c.cancel()
}

// run serves the connection to its end.
func (c *serverConn) run() {
	c.s.cfg.Metrics.connOpened(sideServer)
	defer c.s.cfg.Metrics.connClosed(sideServer)
	log := c.s.cfg.Logger.With("peer", c.r.peer)
	defer c.familiar()
	err := c.greeted()
	if err != nil {
		c.farewell(OpHello, err)
	}
	for err == nil {
		var h header
		if err = c.r.next(&h); err == nil {
			err = c.frame(&h)
		}
	}
	if why := c.cut.Load(); why != nil {
		err = *why
	}
	if c.peer == nil {
		c.linger()
	} else {
		log = log.With("name", c.peer.Name)
		c.farewell(OpPing, err)
	}
	c.end()
	c.w.close(cfs.E("", cfs.Unavailable, err))
	c.wg.Wait()
	c.w.writing.Wait()
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled):
		log.Debug("connection ended")
	default:
		log.Warn("connection ended", "err", err)
	}
}

// greeted is the server's side of the hello.
func (c *serverConn) greeted() error {
	c.raw.SetDeadline(time.Now().Add(c.s.helloWithin))
	c.r.fixed = true
	who, refusal, err := c.secure()
	if err != nil {
		return err
	}
	body, err := readHello(&c.r, 0)
	switch {
	case err != nil && c.s.cfg.TLS == nil && c.r.buf[0] == recordTLS:
		return cfs.Errorf("hello from "+c.r.peer, cfs.Denied, textTLS)
	case err != nil:
		return err
	case refusal != nil:
		return cfs.E("hello from "+c.r.peer, cfs.Denied, refusal)
	}
	own := c.s.cfg.Hello
	peer, err := helloFromPB(body, own, c.r.peer)
	if err != nil {
		return err
	}
	if c.s.cfg.TLS != nil {
		if err := peer.is(who); err != nil {
			return err
		}
		if peer.Role == cfs.RoleNone {
			if err := c.strange(); err != nil {
				return err
			}
		}
	}
	frame, err := connFrame(OpHello, flagReply, helloToPB(own, c.s.cfg.MaxInFlight))
	if err != nil {
		return err
	}
	if _, err := c.nc.Write(frame); err != nil {
		return err
	}
	c.raw.SetDeadline(time.Time{})
	c.r.fixed = false
	c.peer = peer
	c.greetedPeer.Store(peer)
	return nil
}

// farewell tells the peer why the connection ends, where it is the peer's
// fault and there is something to tell.
func (c *serverConn) farewell(op Op, cause error) {
	var e *cfs.Error
	if !errors.As(cause, &e) || e.Kind == cfs.Unavailable || e.Kind == cfs.Timeout {
		return
	}
	f, h, err := c.s.frames.make(errorToPB(cause), nil)
	if err != nil {
		return
	}
	h.op, h.flags = op, flagReply|flagError
	h.encode(f.buf)
	if c.peer == nil {
		c.nc.Write(f.buf)
		return
	}
	c.w.send(f)
}

// linger lets a peer that was refused read why: what it has sent and nobody has read
// would make the kernel throw our answer away.
func (c *serverConn) linger() {
	t, ok := c.raw.(*net.TCPConn)
	if !ok || t.CloseWrite() != nil {
		return
	}
	t.SetReadDeadline(time.Now().Add(lingerTimeout))
	// However it ends, it has served its purpose.
	_, _ = io.CopyN(io.Discard, t, lingerBytes)
}

// frame takes in one frame: a cancellation, a one-way frame, or a request that it starts.
func (c *serverConn) frame(h *header) error {
	if h.flags&flagReply != 0 {
		return c.r.refuse("flags", fmt.Sprintf("%#x from a client", h.flags))
	}
	if h.flags&flagOneWay != 0 {
		return c.receive(h)
	}
	if h.id == 0 {
		return c.r.refuse("request id", "0 in a request")
	}
	if h.flags&flagCancel != 0 {
		c.mu.Lock()
		if k := c.calls[h.id]; k != nil {
			k.cancel()
		}
		c.mu.Unlock()
		return nil
	}
	if err := c.acquire(); err != nil {
		return err
	}
	k, err := c.accept(h)
	if err != nil {
		return err
	}
	err = k.receive(h)
	switch {
	case err != nil:
		k.abort()
	case k.err != nil:
		k.reply(Response{}, k.err)
	case k.Op == OpPing:
		k.reply(Response{}, nil)
	default:
		c.wg.Add(1)
		go k.serve()
	}
	return err
}

// acquire takes a place among the requests in flight. A caller that keeps to what
// our hello said never makes us wait; one that does not is not read from.
func (c *serverConn) acquire() error {
	select {
	case c.slots <- struct{}{}:
		return nil
	default:
	}
	c.blocked.Store(true)
	defer c.blocked.Store(false)
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-c.ctx.Done():
		return cfs.E("wait for a place", cfs.Unavailable, c.ctx.Err())
	}
}

// accept makes the call of a request's header.
func (c *serverConn) accept(h *header) (*call, error) {
	m := c.s.cfg.Metrics
	m.received(sideServer, HeaderSize+int(h.bodyLen)+int(h.payloadLen))
	k := &call{
		Request: Request{Op: h.op, TraceID: h.trace, Peer: c.peer},
		c:       c, id: h.id,
	}
	k.ctx.id = h.trace
	if h.timeoutMS != 0 {
		k.ctx.Context, k.cancel = context.WithTimeout(c.ctx, time.Duration(h.timeoutMS)*time.Millisecond)
	} else {
		k.ctx.Context, k.cancel = context.WithCancel(c.ctx)
	}
	c.mu.Lock()
	_, dup := c.calls[h.id]
	if !dup {
		c.calls[h.id] = k
	}
	c.mu.Unlock()
	if dup {
		k.cancel()
		<-c.slots
		return nil, c.r.refuse("request id", fmt.Sprintf("%d is already in flight", h.id))
	}
	k.start = m.begin(sideServer)
	return k, nil
}

// receive reads the request's body and payload. An error of the connection is
// returned, one to answer is left in k.err.
func (k *call) receive(h *header) error {
	c := k.c
	if k.err = c.allow(h.op); k.err != nil {
		return c.r.skip(int(h.bodyLen)+int(h.payloadLen), "request that is not allowed")
	}
	if c.stranger != nil && h.bodyLen > maxStrangerBody {
		k.err = cfs.Errorf("", cfs.TooBig, "a body of %d bytes without a certificate, at most %d", h.bodyLen, maxStrangerBody)
		return c.r.skip(int(h.bodyLen)+int(h.payloadLen), "request that is too big")
	}
	k.body, _ = c.s.bodies.Get().(*[]byte)
	if k.body == nil {
		k.body = new([]byte)
	}
	*k.body = sized(*k.body, int(h.bodyLen))
	k.Body = *k.body
	if err := c.r.body(k.Body, h); err != nil {
		return err
	}
	n := int(h.payloadLen)
	if n == 0 {
		return nil
	}
	if h.op >= opEnd || h.op == OpPing {
		k.err = cfs.Errorf("", cfs.Unsupported, "payload with %s", h.op)
		return c.r.skip(n, "payload")
	}
	c.blocked.Store(true)
	buf, err := c.s.cfg.Alloc(&k.ctx, h.op, n)
	c.blocked.Store(false)
	if err == nil && len(buf.Bytes()) != n {
		buf.Release()
		err = cfs.Errorf("allocate payload", cfs.Invalid, "memory of %d bytes for %d", len(buf.Bytes()), n)
	}
	if err != nil {
		k.err = err
		return c.r.skip(n, "payload")
	}
	k.Payload = buf
	return c.r.full(buf.Bytes(), "payload")
}

// allow says whether the peer may ask for an operation. Anybody may ping.
func (c *serverConn) allow(op Op) error {
	if c.s.cfg.Allow == nil || op == OpPing {
		return nil
	}
	return c.s.cfg.Allow(c.peer, op)
}

// serve runs the handler and sends its answer.
func (k *call) serve() {
	defer k.c.wg.Done()
	if k.Op >= opEnd || k.Op == OpHello {
		k.reply(Response{}, cfs.Errorf("", cfs.Unsupported, "%s is no operation of this version", k.Op))
		return
	}
	resp, err := k.c.s.cfg.Handler.Serve(&k.ctx, &k.Request)
	k.reply(resp, err)
}

// reply answers the call. After it nothing of the request is used any more.
func (k *call) reply(resp Response, err error) {
	k.release()
	k.done = resp.Done
	flags := uint16(flagReply)
	body, payload := resp.Body, resp.Payload
	if err != nil {
		flags, body, payload = flagReply|flagError, errorToPB(err), nil
	}
	f, h, ferr := k.c.s.frames.make(body, payload)
	if ferr != nil {
		err = ferr
		flags = flagReply | flagError
		if f, h, ferr = k.c.s.frames.make(errorToPB(err), nil); ferr != nil {
			k.written(ferr)
			return
		}
	}
	k.err = err
	f.id, f.sender = k.id, k
	h.id, h.op, h.flags, h.trace = k.id, k.Op, flags, k.TraceID
	h.encode(f.buf)
	k.c.s.cfg.Metrics.sent(sideServer, f.size())
	// Out of the table before the reply is out: from then on the id may come again.
	k.forget()
	k.c.w.send(f)
}

// abort ends a call whose request never came in whole.
func (k *call) abort() {
	k.release()
	k.forget()
	k.err = cfs.E("read request", cfs.Unavailable, nil)
	k.written(k.err)
}

// release gives the request's memory back.
func (k *call) release() {
	if p := k.Take(); p != nil {
		p.Release()
	}
	if k.body != nil {
		k.Body = nil
		*k.body = kept(*k.body)
		k.c.s.bodies.Put(k.body)
		k.body = nil
	}
}

func (k *call) forget() {
	k.cancel()
	k.c.mu.Lock()
	delete(k.c.calls, k.id)
	k.c.mu.Unlock()
}

// written ends the call: the reply is on the socket or never will be.
func (k *call) written(err error) {
	if k.err == nil {
		k.err = err
	}
	if k.done != nil {
		k.done()
	}
	k.c.s.cfg.Metrics.end(sideServer, k.Op, k.start, k.err)
	<-k.c.slots
}
