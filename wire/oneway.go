package wire

import (
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
)

// One-way frames: nobody answers them, so they cost neither side a goroutine,
// a place among the calls in flight or a frame back. Whether one has arrived,
// the sender does not learn; those that have, came in the order of their
// sending as long as the connection was the same.

// Bounds of the one-way frames that a connection, or an address that is being
// connected to, keeps while its socket takes nothing more.
const (
	maxOneWay      = 4096
	maxOneWayBytes = 32 << 20
)

// Receiver is what a Handler is besides when it takes one-way frames.
type Receiver interface {
	// Receive takes a one-way frame. It runs on the goroutine that reads the
	// connection, frame by frame in the order of their sending, so it must not
	// block; r and its Body are valid until it returns. An error, for an op that is
	// not taken one-way too, ends the connection, and the sender is told why.
	Receive(r *Request) error
}

// Send sends a one-way frame without waiting: a frame that the socket does not
// take at once is written behind the caller's back, in order. The error is
// cfs.Unavailable when the connection has broken and cfs.Overloaded when too much
// waits for the peer already; without one the frame may still be lost.
func (c *Conn) Send(op Op, body proto.Message) error {
	f, err := c.frames.oneWay(op, body)
	if err == nil {
		err = c.post(f)
	}
	if err != nil {
		err = cfs.E(op.String()+" to "+c.peer.Addr, cfs.KindOf(err), err)
	}
	c.metrics.oneWay(sideClient, op, err)
	return err
}

// post sends an encoded one-way frame.
func (c *Conn) post(f *outFrame) error {
	if why := c.failure(); why != nil { // the writer hears of it a moment after Done
		c.w.frames.free(f)
		return why
	}
	c.metrics.sent(sideClient, len(f.buf))
	err := c.w.post(f)
	if err == nil || cfs.KindOf(err) == cfs.Overloaded {
		return err
	}
	if why := c.failure(); why != nil {
		return why
	}
	return c.broken(err)
}

// oneWay is a one-way frame, encoded.
func (p *framePool) oneWay(op Op, body proto.Message) (*outFrame, error) {
	f, h, err := p.make(body, nil)
	if err != nil {
		return nil, err
	}
	h.op, h.flags, h.trace = op, flagOneWay, rand.Uint64()|1
	h.encode(f.buf)
	return f, nil
}

// backlog is what one-way frames take up that wait to be written.
type backlog struct{ frames, bytes int }

// add counts a frame of n bytes, if there is room for it.
func (b *backlog) add(n int) bool {
	if b.frames >= maxOneWay || b.bytes+n > maxOneWayBytes {
		return false
	}
	b.frames++
	b.bytes += n
	return true
}

func overloaded() error {
	return cfs.Errorf("", cfs.Overloaded, "%d frames or %d bytes wait for the peer to read", maxOneWay, maxOneWayBytes)
}

// post writes a one-way frame from the calling goroutine as far as that does not
// wait, and leaves the rest, and whatever else is to be written, to another.
func (w *frameWriter) post(f *outFrame) error {
	w.mu.Lock()
	switch {
	case w.err != nil:
		err := w.err
		w.mu.Unlock()
		w.frames.free(f)
		return err
	case !w.backlog.add(len(f.buf)):
		w.mu.Unlock()
		w.frames.free(f)
		return overloaded()
	}
	f.counted = len(f.buf)
	if w.busy {
		w.queue = append(w.queue, f)
		w.mu.Unlock()
		return nil
	}
	w.busy = true
	w.writing.Add(1)
	w.mu.Unlock()

	n, err := w.try(f.buf)
	switch {
	case err != nil:
		w.close(err)
		w.broken(err)
		w.finish(f, err)
		w.writing.Done()
		return err
	case n < len(f.buf):
		f.buf = f.buf[n:]
		go w.proceed(f)
		return nil
	}
	w.finish(f, nil)
	if !w.rest() {
		go w.drain()
	}
	return nil
}

// proceed writes the rest of a frame, then what has been queued meanwhile.
func (w *frameWriter) proceed(f *outFrame) {
	if !w.flush([]*outFrame{f}) {
		w.writing.Done()
		return
	}
	w.drain()
}

// attempt is a write that does not wait. Its parts are made once, so that it
// costs no memory.
type attempt struct {
	raw syscall.RawConn // nil: the connection has none, each write may wait
	fn  func(fd uintptr) bool
	buf []byte
	n   int
	err error
}

// prepare finds out how to write to nc without waiting.
func (a *attempt) prepare(nc net.Conn) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	a.raw = raw
	a.fn = func(fd uintptr) bool {
		for a.err = unix.EINTR; a.err == unix.EINTR; {
			a.n, a.err = unix.Write(int(fd), a.buf)
		}
		return true
	}
}

// try writes what the socket takes of b at once, and is how much that is. The
// caller has made the writer busy.
func (w *frameWriter) try(b []byte) (int, error) {
	a := &w.attempt
	if a.raw == nil {
		return 0, nil
	}
	if err := w.arm(); err != nil {
		return 0, err
	}
	a.buf = b
	err := a.raw.Write(a.fn)
	a.buf = nil
	switch {
	case err != nil:
		return 0, err
	case a.err == unix.EAGAIN:
		return 0, nil
	case a.err != nil:
		return 0, a.err
	}
	return a.n, nil
}

// receive takes in a one-way frame and hands it to the handler, here and now.
func (c *serverConn) receive(h *header) error {
	if c.s.receiver == nil || h.op >= opEnd || h.op == OpHello || h.op == OpPing {
		return c.r.refuse("op", fmt.Sprintf("%s is not taken one-way", h.op))
	}
	if err := c.allow(h.op); err != nil {
		return err
	}
	m := c.s.cfg.Metrics
	m.received(sideServer, HeaderSize+int(h.bodyLen))
	c.body = sized(c.body, int(h.bodyLen))
	if err := c.r.body(c.body, h); err != nil {
		return err
	}
	c.oneWay = Request{Op: h.op, TraceID: h.trace, Body: c.body, Peer: c.peer}
	err := c.s.receiver.Receive(&c.oneWay)
	c.body = kept(c.body)
	m.oneWay(sideServer, h.op, err)
	if err != nil {
		return cfs.E("receive "+h.op.String()+" from "+c.r.peer, cfs.KindOf(err), err)
	}
	return nil
}

// Send is Conn.Send on the first of the connections to addr, so that frames to an
// address keep their order. While that is being made, frames wait for it, as
// many as for a peer that reads slowly, and are lost when it cannot be made.
// After that Send fails with cfs.Unavailable until the next attempt is due.
func (p *Pool) Send(addr string, op Op, body proto.Message) error {
	c, err := p.early(addr, op, body)
	if err != nil {
		err = cfs.E(op.String()+" to "+addr, cfs.KindOf(err), err)
		p.cfg.Metrics.oneWay(sideClient, op, err)
		return err
	}
	if c == nil {
		p.cfg.Metrics.oneWay(sideClient, op, nil)
		return nil
	}
	return c.Send(op, body)
}

// early is the connection to send by; nil when it is being made and the frame
// waits for it.
func (p *Pool) early(addr string, op Op, body proto.Message) (*Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, err := p.addr(addr)
	if err != nil {
		return nil, err
	}
	s := &a.slots[0]
	if c, err := p.ready(addr, s); c != nil || err != nil {
		return c, err
	}
	f, err := p.frames.oneWay(op, body)
	if err != nil {
		return nil, err
	}
	if !s.backlog.add(len(f.buf)) {
		p.frames.free(f)
		return nil, overloaded()
	}
	s.early = append(s.early, f)
	return nil, nil
}

// flushEarly ends the wait of the frames that came before the connection did.
func (s *poolSlot) flushEarly() {
	for _, f := range s.early {
		if s.conn == nil || s.conn.post(f) != nil {
			break
		}
	}
	s.early, s.backlog = nil, backlog{}
}
