package wire

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
)

// defaultInFlight is how many requests a connection may have in flight where the
// configuration does not say.
const defaultInFlight = 128

// maxServerConns bounds the connections of a server; more are turned away.
const maxServerConns = 4096

// helloTimeout bounds the time that a new connection has to say hello.
const helloTimeout = 5 * time.Second

// lingerTimeout and lingerBytes bound the wait for a peer that was refused to end its side.
const (
	lingerTimeout = time.Second
	lingerBytes   = 64 << 10
)

// acceptPause is the wait after a failed accept (out of descriptors, mostly).
const acceptPause = 50 * time.Millisecond

// watchInterval is how often connections whose reader is blocked are looked at.
const watchInterval = time.Second

// Request is a request as the handler gets it.
type Request struct {
	Op      Op
	TraceID uint64
	Body    []byte // valid until Serve returns
	Payload Buffer // nil for none; released after Serve unless taken
	Peer    *Peer
}

// Decode reads the body into m; cfs.BadRequest where it cannot be.
func (r *Request) Decode(m proto.Message) error {
	if err := proto.Unmarshal(r.Body, m); err != nil {
		return cfs.E("decode "+r.Op.String(), cfs.BadRequest, err)
	}
	return nil
}

// Take makes the payload the caller's, to release when done with it.
func (r *Request) Take() Buffer {
	b := r.Payload
	r.Payload = nil
	return b
}

// Response is what a handler answers.
type Response struct {
	Body    proto.Message // nil: empty
	Payload [][]byte
	// Done, where it is not nil, is called exactly once, when nothing of Payload is
	// used any more: it is on the socket, or it never will be.
	Done func()
}

// Handler serves requests, each in a goroutine of its own. ctx ends with the
// request's deadline, its cancellation and the connection. An error is
// answered as its kind and text (see RemoteError); the Response's Done is called
// then too. A handler that takes one-way frames is a Receiver besides.
type Handler interface {
	Serve(ctx context.Context, r *Request) (Response, error)
}

// ServerConfig is what a server is made of.
type ServerConfig struct {
	Hello       Identity
	Handler     Handler
	Alloc       Alloc        // nil: ordinary memory
	MaxInFlight int          // requests at once on one connection; 0: 128
	Logger      *slog.Logger // nil: silence
	Metrics     *Metrics     // nil: none
	TLS         *TLS         // of TCP connections; nil: they are not encrypted
	// Allow says whether a peer may ask for an operation; nil: everything. It is asked for each request,
	// before anything of it but its header is taken in, and its error is the answer. So it is where a peer that
	// is not to be served any more is refused.
	Allow func(*Peer, Op) error
}

// Server accepts connections and serves their requests.
type Server struct {
	cfg      ServerConfig
	receiver Receiver // the handler; nil: it takes no one-way frames
	ctx      context.Context
	cancel   context.CancelFunc
	frames   framePool
	bodies   sync.Pool // *[]byte
	wg       sync.WaitGroup

	handshakes  chan struct{} // one for each that is being computed
	helloWithin time.Duration // helloTimeout, but in tests

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*serverConn]struct{}
	strangers int // of conns, those that have said hello without a certificate
}

// NewServer makes a server; Serve starts it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Alloc == nil {
		cfg.Alloc = allocHeap
	}
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = defaultInFlight
	}
	cfg.MaxInFlight = min(cfg.MaxInFlight, maxPending)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, listeners: map[net.Listener]struct{}{}, conns: map[*serverConn]struct{}{},
		handshakes: make(chan struct{}, maxHandshakes), helloWithin: helloTimeout}
	s.receiver, _ = cfg.Handler.(Receiver)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve accepts connections from ln, which it closes, until Close (nil) or
// until the listener fails. A server may serve several listeners.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return cfs.E("serve "+ln.Addr().String(), cfs.Closed, nil)
	}
	if len(s.listeners) == 0 {
		s.wg.Add(1)
		go s.watchdog()
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			s.start(nc)
		case s.isClosed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return cfs.E("accept on "+ln.Addr().String(), cfs.Closed, err)
		default:
			s.cfg.Logger.Warn("accept failed", "addr", ln.Addr().String(), "err", err)
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
			}
		}
	}
}

// start serves an accepted connection in a goroutine.
func (s *Server) start(nc net.Conn) {
	tune(nc)
	c := s.newConn(nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.room(isTCP(nc)) {
		if !s.closed {
			s.cfg.Logger.Warn("too many connections", "peer", peerAddr(nc), "max", maxServerConns)
		}
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// watchdog ends connections whose peer has gone while their reader was blocked.
func (s *Server) watchdog() {
	defer s.wg.Done()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		for c := range s.conns {
			if c.blocked.Load() && hungUp(c.raw) {
				c.end()
			}
		}
		s.mu.Unlock()
	}
}

// Close stops accepting, ends every connection and waits for the handlers.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for ln := range s.listeners {
		ln.Close()
	}
	for c := range s.conns {
		c.end()
	}
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	return nil
}
