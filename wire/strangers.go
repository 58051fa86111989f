package wire

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Strangers are peers of whom nothing is known: those that have not said hello yet, and those that show no certificate,
// who can do nothing but enrol. What they can take from others is bounded here.

const (
	// maxStrangers bounds the connections without a certificate, and strangerTime how long each lasts.
	maxStrangers = 256
	strangerTime = 10 * time.Second
	// maxStrangerBody bounds the body of what one asks for, in bytes.
	maxStrangerBody = 64 << 10
	// socketReserve is how many of a server's connections are for unix sockets alone.
	socketReserve = 64
)

// room reports that there is a place for one more connection. Where there is none, whoever has been the longest without
// saying hello goes: one that does say it is there for a moment only. The caller holds s.mu.
func (s *Server) room(tcp bool) bool {
	limit := maxServerConns
	if tcp {
		limit -= socketReserve
	}
	if len(s.conns) < limit {
		return true
	}
	var oldest *serverConn
	for c := range s.conns {
		if c.greetedPeer.Load() == nil && (oldest == nil || c.since.Before(oldest.since)) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	oldest.end()
	delete(s.conns, oldest)
	return true
}

// strange counts a connection whose peer has shown no certificate, until familiar is called at its end.
func (c *serverConn) strange() error {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.strangers >= maxStrangers {
		return cfs.Errorf("hello from "+c.r.peer, cfs.Overloaded, "there are %d connections without a certificate", s.strangers)
	}
	s.strangers++
	c.stranger = time.AfterFunc(strangerTime, c.end)
	return nil
}

// familiar undoes strange, when the connection ends.
func (c *serverConn) familiar() {
	if c.stranger == nil {
		return
	}
	c.stranger.Stop()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.strangers--
}

// place is one of the handshakes that a server makes at a time. It is taken when the peer's ClientHello is there, and
// given back when the peer is waited for again: so it is held as long as the server computes, and nobody who
// says nothing, or stops in the middle, holds one.
type place struct {
	s    *Server
	once sync.Once
	held bool
}

// take waits for a place, as tls.Config.GetConfigForClient.
func (p *place) take(h *tls.ClientHelloInfo) (*tls.Config, error) {
	select {
	case p.s.handshakes <- struct{}{}:
		p.held = true
		return nil, nil
	case <-h.Context().Done():
		return nil, cfs.Errorf("", cfs.Overloaded, "%d others are being made: %w", maxHandshakes, context.Cause(h.Context()))
	}
}

// give gives it back, if it was taken. It runs in the handshake's goroutine, as take does.
func (p *place) give() {
	if p.held {
		p.once.Do(func() { <-p.s.handshakes })
	}
}
