package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// Security: TCP connections are TLS 1.3 where TLS is configured, and the holder of the peer's
// certificate is who the peer is. It is judged after the handshake and not in it, so that
// a refusal is said in one line, as the answer to the hello, and not by the number of an alert.
// Unix sockets stay plain: the kernel says who is at the other end.

const (
	// maxHandshakes bounds the TLS handshakes that a server computes at a time: they cost it
	// more than anything else that a stranger can ask for. Others wait, as long as for a hello.
	maxHandshakes = 64
	// corkBytes is how much a TLS connection gathers before a system call.
	corkBytes = 64 << 10
	// recordTLS is the first byte of a connection that speaks TLS.
	recordTLS = 0x16
)

// Texts of refusals that both sides must understand.
const (
	textPlain = "this server's connections are encrypted, and this one is not: the cluster was made with certificates (enrol with a token, or use the unix socket of a server on its machine)"
	textTLS   = "the connection is encrypted, and this server's cluster was made without certificates (--tls off)"
)

// TLS is how the connections of one side are encrypted, and how it knows whom it talks to.
type TLS struct {
	// Config is how to encrypt a connection that is made or taken now, for that one alone.
	Config func() *tls.Config
	// Judge says who a peer is by the certificates that it has shown, at least one and its own
	// first, or why it is not trusted. The error is told to the peer. Of a server RoleNone
	// takes whatever it says of itself.
	Judge func(certs []*x509.Certificate) (cfs.Principal, error)
}

// corked is the socket below a TLS connection. While it is corked, what is written gathers,
// so that the records of a batch of frames are one system call. What the server has read to
// find out whether the peer speaks TLS is read again.
type corked struct {
	net.Conn
	in     []byte // of the one reader: several records in one system call
	again  []byte // what it has read and TLS has not
	before func() // what happens before the peer is waited for in the handshake; nil for nothing

	mu  sync.Mutex
	on  bool
	buf []byte
}

// Read is what was read too early, then the socket.
func (k *corked) Read(b []byte) (int, error) {
	if len(k.again) == 0 {
		if k.before != nil {
			k.before()
		}
		if len(b) >= corkBytes {
			return k.Conn.Read(b)
		}
		if k.in == nil {
			k.in = make([]byte, corkBytes)
		}
		n, err := k.Conn.Read(k.in)
		if k.again = k.in[:n]; n == 0 {
			return 0, err
		}
	}
	n := copy(b, k.again)
	k.again = k.again[n:]
	return n, nil
}

// Write writes, or gathers.
func (k *corked) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.on {
		return k.Conn.Write(b)
	}
	k.buf = append(k.buf, b...)
	if len(k.buf) < corkBytes {
		return len(b), nil
	}
	return len(b), k.flush()
}

// flush writes what was gathered. The caller holds k.mu.
func (k *corked) flush() error {
	_, err := k.Conn.Write(k.buf)
	k.buf = k.buf[:0]
	return err
}

// secured is a connection over TLS.
type secured struct {
	*tls.Conn
	under   *corked
	scratch []byte // of the one that writes
}

// Close does not say goodbye: that could wait for the peer, and frames have lengths.
func (s *secured) Close() error { return s.under.Conn.Close() }

// writeParts writes the parts in as few records and system calls as it can.
func (s *secured) writeParts(parts net.Buffers) error {
	s.under.mu.Lock()
	s.under.on = true
	s.under.mu.Unlock()
	err := s.encrypt(parts)
	s.under.mu.Lock()
	defer s.under.mu.Unlock()
	s.under.on = false
	return errors.Join(err, s.under.flush())
}

// encrypt makes records of the parts: small ones share them.
func (s *secured) encrypt(parts net.Buffers) error {
	const small, full = 4 << 10, 16 << 10
	s.scratch = s.scratch[:0]
	for i, p := range parts {
		if len(p) < small {
			s.scratch = append(s.scratch, p...)
		}
		if len(s.scratch) > 0 && (len(p) >= small || len(s.scratch) >= full || i == len(parts)-1) {
			if _, err := s.Conn.Write(s.scratch); err != nil {
				return err
			}
			s.scratch = s.scratch[:0]
		}
		if len(p) >= small {
			if _, err := s.Conn.Write(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// socketOf is the socket that a connection is made of.
func socketOf(nc net.Conn) net.Conn {
	if s, ok := nc.(*secured); ok {
		return s.under.Conn
	}
	return nc
}

// isTCP reports a connection that TLS is for.
func isTCP(nc net.Conn) bool {
	a := nc.LocalAddr()
	return a != nil && a.Network() != "unix"
}

// secureClient is the client's side of what comes before the hello: the connection to go on with, and who the server is.
func secureClient(ctx context.Context, nc net.Conn, cfg *TLS) (net.Conn, cfs.Principal, error) {
	if cfg == nil || !isTCP(nc) {
		return nc, cfs.Principal{}, nil
	}
	s := &secured{under: &corked{Conn: nc}}
	s.Conn = tls.Client(s.under, cfg.Config())
	if err := s.HandshakeContext(ctx); err != nil {
		var record tls.RecordHeaderError
		if errors.As(err, &record) {
			return nil, cfs.Principal{}, cfs.Errorf("", cfs.Denied, "the server's connections are not encrypted: its cluster was made without certificates (--tls off), and this side has one")
		}
		return nil, cfs.Principal{}, cfs.E("", cfs.Unavailable, err)
	}
	who, err := cfg.Judge(s.ConnectionState().PeerCertificates)
	if err == nil && who.Role != cfs.RoleStorage && who.Role != cfs.RoleNone {
		err = cfs.Errorf("", cfs.Denied, "it is of a %s, and not of a server", who.Role)
	}
	if err != nil {
		return nil, who, cfs.E("the server's", cfs.Denied, err)
	}
	return s, who, nil
}

// secure is the server's side. The error, for the answer to the hello, comes with a
// connection that it can be told by.
func (c *serverConn) secure() (who cfs.Principal, refusal, broken error) {
	if !isTCP(c.raw) {
		return socketPeer(c.raw), nil, nil
	}
	if c.s.cfg.TLS == nil {
		return who, nil, nil
	}
	first := make([]byte, 1)
	if _, err := c.raw.Read(first); err != nil {
		return who, nil, err
	}
	if first[0] != recordTLS {
		c.r.buf[0], c.r.w = first[0], 1
		return who, cfs.Errorf("", cfs.Denied, textPlain), nil
	}
	at := &place{s: c.s}
	s := &secured{under: &corked{Conn: c.raw, again: first, before: at.give}}
	config := c.s.cfg.TLS.Config()
	config.GetConfigForClient = at.take
	s.Conn = tls.Server(s.under, config)
	ctx, cancel := context.WithTimeout(c.ctx, c.s.helloWithin)
	defer cancel()
	err := s.HandshakeContext(ctx)
	at.give()
	s.under.before = nil
	if err != nil {
		return who, nil, cfs.E("TLS handshake with "+c.r.peer, cfs.Unavailable, err)
	}
	c.nc, c.r.conn, c.w.conn = s, s, s
	if certs := s.ConnectionState().PeerCertificates; len(certs) > 0 {
		who, refusal = c.s.cfg.TLS.Judge(certs)
	}
	return who, refusal, nil
}

// socketPeer is who is at the other end of a unix socket, by its process: root and whoever this
// process runs as may do everything, others are clients.
func socketPeer(nc net.Conn) cfs.Principal {
	client := cfs.Principal{Role: cfs.RoleClient}
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return client
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return client
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cerr != nil {
		return client
	}
	if cred.Uid == 0 || cred.Uid == uint32(unix.Geteuid()) {
		return cfs.Principal{Role: cfs.RoleAdmin}
	}
	return client
}

// is refuses a hello that says what the connection's certificate does not, and gives the peer its role.
func (p *Peer) is(who cfs.Principal) error {
	if p.NodeID != 0 && p.NodeID != who.Node {
		return cfs.Errorf("hello from "+p.Addr, cfs.Denied, "it says to be node %d, its certificate does not", p.NodeID)
	}
	if p.ClusterID != "" && who.ClusterID != "" && p.ClusterID != who.ClusterID {
		return cfs.Errorf("hello from "+p.Addr, cfs.Denied, "it says to be of cluster %q, its certificate of %q", p.ClusterID, who.ClusterID)
	}
	p.Role, p.Key, p.Certified = who.Role, who.Key, who.Node
	return nil
}

// Cut ends every connection whose peer gone says is not to be one any more, and tells it why. A peer that reads nothing is
// not told, and its connection lasts until that is noticed; one that has not said hello yet is passed over. Neither is
// served meanwhile where ServerConfig.Allow asks the same as gone.
func (s *Server) Cut(gone func(*Peer) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		p := c.greetedPeer.Load()
		if p == nil {
			continue
		}
		if err := gone(p); err != nil && c.cut.CompareAndSwap(nil, &err) && !s.closed {
			s.wg.Go(func() {
				c.farewell(OpPing, err)
				c.end()
			})
		}
	}
}

// Cut ends every connection of the pool whose peer gone says is not to be one any more. Those that are made later, until
// the next Cut, are asked for too: one that is being made now was judged before.
func (p *Pool) Cut(gone func(*Peer) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = gone
	for _, a := range p.addrs {
		for i := range a.slots {
			if c := a.slots[i].conn; c != nil {
				if err := gone(c.peer); err != nil {
					c.fail(err)
				}
			}
		}
	}
}
