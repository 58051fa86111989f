package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// identified is TLS with a certificate of an authority, judged by it.
func identified(t testing.TB, ca *cfs.CA, who cfs.Principal) *TLS {
	t.Helper()
	store, err := pki.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := store.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Sign(ca, pki.Request{Who: who, PublicKey: key}, time.Now())
	if err == nil {
		err = store.Save(cert, ca.Cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &TLS{Config: store.Config, Judge: func(certs []*x509.Certificate) (cfs.Principal, error) { return store.Judge(certs, time.Now()) }}
}

func newAuthority(t testing.TB) *cfs.CA {
	t.Helper()
	ca, err := pki.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &ca
}

func storageOf(node cfs.NodeID) cfs.Principal {
	return cfs.Principal{ClusterID: "test", Role: cfs.RoleStorage, Node: node}
}

func clientOf() cfs.Principal { return cfs.Principal{ClusterID: "test", Role: cfs.RoleClient} }

// dialAs is Dial with an identity.
func dialAs(t testing.TB, addr string, node cfs.NodeID, security *TLS) (*Conn, error) {
	t.Helper()
	c, err := Dial(t.Context(), addr, DialConfig{Hello: Identity{ClusterID: "test", NodeID: node, Name: "client"}, DialTimeout: 30 * time.Second, TLS: security})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// deniedIn wants a refusal in one line.
func deniedIn(t *testing.T, what string, err error, why string) {
	t.Helper()
	if cfs.KindOf(err) != cfs.Denied || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v, want one line with %q", what, err, why)
	}
}

// TestTLSCarriesEverything: payloads of all sizes both ways, many at a time, and one-way frames in order.
func TestTLSCarriesEverything(t *testing.T) {
	ca := newAuthority(t)
	_, addr := serve(t, "tcp", ServerConfig{Handler: echo(t), TLS: identified(t, ca, storageOf(1))})
	c, err := dialAs(t, addr, 0, identified(t, ca, clientOf()))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.Peer(); p.Role != cfs.RoleStorage || p.Certified != 1 || p.NodeID != 1 || !cfs.ValidKey(p.Key) {
		t.Errorf("the server is %+v", p)
	}
	errs := make(chan error, 16)
	for g := range cap(errs) {
		go func() {
			errs <- func() error {
				for i, n := range []int{0, 1, 100, 4095, 4096, 16 << 10, 16<<10 + 1, 100000, 1 << 20, MaxPayload} {
					key := uint32(100*g + i)
					if _, err := c.Call(t.Context(), OpPutShard, &wirepb.PutShard{Device: key}, split(patterned(key, n)), nil, nil); err != nil {
						return err
					}
					into := make([]byte, n)
					got, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Device: key, Len: uint32(n)}, nil, nil, into)
					if err != nil {
						return err
					}
					if got != n || !bytes.Equal(into, patterned(key, n)) {
						return errors.New("other bytes came back")
					}
				}
				return nil
			}()
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestTLSOneWay(t *testing.T) {
	ca := newAuthority(t)
	h := newCollector(nil)
	_, addr := serve(t, "tcp", ServerConfig{Handler: h, TLS: identified(t, ca, storageOf(1))})
	p := NewPool(DialConfig{Hello: Identity{ClusterID: "test", NodeID: 2}, DialTimeout: 30 * time.Second, TLS: identified(t, ca, storageOf(2))}, 1)
	defer p.Close()
	const frames = 300
	for i := range uint64(frames) {
		if err := p.Send(addr, OpRaft, numbered(i, int(i)*97)); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(60 * time.Second)
	for n := 0; n < frames; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		n = len(h.got)
		for i, got := range h.got {
			if got != uint64(i) {
				t.Fatalf("frame %d is number %d", i, got)
			}
		}
		h.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d frames came", n, frames)
		}
	}
}

// TestTLSRefusals: who may not be here is told why, in one line.
func TestTLSRefusals(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	_, addr := serve(t, "tcp", ServerConfig{Handler: echo(t), TLS: identified(t, ca, storageOf(1))})
	_, plain := serve(t, "tcp", ServerConfig{Handler: echo(t)})
	blind := func(s *TLS) *TLS {
		s.Judge = func([]*x509.Certificate) (cfs.Principal, error) { return cfs.Principal{}, nil }
		return s
	}
	for _, c := range []struct {
		what     string
		addr     string
		node     cfs.NodeID
		security *TLS
		why      string // "": let in
	}{
		{"a client", addr, 0, identified(t, ca, clientOf()), ""},
		{"a server", addr, 2, identified(t, ca, storageOf(2)), ""},
		{"a server as a client", addr, 0, identified(t, ca, storageOf(2)), ""},
		{"a stranger, who can only enrol", addr, 0, blind(&TLS{Config: pki.Anonymous}), ""},
		{"a stranger as a server", addr, 2, blind(&TLS{Config: pki.Anonymous}), "says to be node 2"},
		{"a client as a server", addr, 2, identified(t, ca, clientOf()), "says to be node 2"},
		{"a server as another", addr, 3, identified(t, ca, storageOf(2)), "says to be node 3"},
		{"another authority's", addr, 0, blind(identified(t, foreign, clientOf())), "not signed by this cluster's authority"},
		{"a server of another authority", addr, 0, identified(t, foreign, clientOf()), "the server's"},
		{"no TLS", addr, 0, nil, "this server's connections are encrypted"},
		{"TLS to a server without", plain, 0, identified(t, ca, clientOf()), "not encrypted"},
	} {
		conn, err := dialAs(t, c.addr, c.node, c.security)
		if c.why != "" {
			deniedIn(t, c.what, err, c.why)
			continue
		}
		if err == nil {
			_, err = conn.Call(t.Context(), OpPing, nil, nil, nil, nil)
		}
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	_, notServer := serve(t, "tcp", ServerConfig{Hello: Identity{ClusterID: "test", Name: "x"}, Handler: echo(t), TLS: identified(t, ca, clientOf())})
	_, err := dialAs(t, notServer, 0, identified(t, ca, clientOf()))
	deniedIn(t, "a client's certificate as a server's", err, "not of a server")
}

// TestAllow: what a peer may not do costs no memory and reaches no handler, and the connection goes on.
func TestAllow(t *testing.T) {
	ca := newAuthority(t)
	var allocated atomic.Bool
	_, addr := serve(t, "tcp", ServerConfig{
		Handler: echo(t), TLS: identified(t, ca, storageOf(1)),
		Alloc: func(ctx context.Context, op Op, n int) (Buffer, error) {
			allocated.Store(true)
			return allocHeap(ctx, op, n)
		},
		Allow: func(p *Peer, op Op) error {
			if p.Role == cfs.RoleClient && op != OpGetShard {
				return cfs.Errorf("", cfs.Denied, "not for a %s", p.Role)
			}
			return nil
		},
	})
	c, err := dialAs(t, addr, 0, identified(t, ca, clientOf()))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Call(t.Context(), OpPutShard, &wirepb.PutShard{Device: 1}, split(patterned(1, 1<<20)), nil, nil)
	deniedIn(t, "a put", err, "not for a client")
	if allocated.Load() {
		t.Error("memory was taken for it")
	}
	if _, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Device: 1, Len: 10}, nil, nil, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := c.Send(OpRaft, numbered(1, 1)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("a one-way frame that is not allowed did not end the connection")
	}
}

func TestCut(t *testing.T) {
	ca := newAuthority(t)
	s, addr := serve(t, "tcp", ServerConfig{Handler: echo(t), TLS: identified(t, ca, storageOf(1))})
	bad, err := dialAs(t, addr, 0, identified(t, ca, clientOf()))
	if err != nil {
		t.Fatal(err)
	}
	good, err := dialAs(t, addr, 0, identified(t, ca, storageOf(2)))
	if err != nil {
		t.Fatal(err)
	}
	// The server has its side when it has answered a call.
	for _, c := range []*Conn{bad, good} {
		if _, err := c.Call(t.Context(), OpPing, nil, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	pool := NewPool(DialConfig{Hello: Identity{ClusterID: "test"}, DialTimeout: 30 * time.Second, TLS: identified(t, ca, clientOf())}, 1)
	defer pool.Close()
	pooled, err := pool.Conn(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	pool.Cut(func(p *Peer) error { return cfs.Errorf("", cfs.Denied, "no %s", p.Role) })
	if _, err := pooled.Call(t.Context(), OpPing, nil, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "no storage") {
		t.Errorf("the pool's own: %v", err)
	}
	s.Cut(func(p *Peer) error {
		if p.Role == cfs.RoleClient {
			return cfs.Errorf("", cfs.Denied, "enough")
		}
		return nil
	})
	select {
	case <-bad.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("not cut")
	}
	if _, err := bad.Call(t.Context(), OpPing, nil, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("the one that was cut: %v", err)
	}
	if _, err := good.Call(t.Context(), OpPing, nil, nil, nil, nil); err != nil {
		t.Errorf("the other: %v", err)
	}
}

// TestUnixPeer: the kernel says who is at the other end of a unix socket, which stays plain.
func TestUnixPeer(t *testing.T) {
	roles := make(chan cfs.Role, 1)
	h := handlerFunc(func(_ context.Context, r *Request) (Response, error) {
		roles <- r.Peer.Role
		return Response{}, nil
	})
	ca := newAuthority(t)
	_, addr := serve(t, "unix", ServerConfig{Handler: h, TLS: identified(t, ca, storageOf(1))})
	c, err := dialAs(t, addr, 0, identified(t, ca, clientOf()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Call(t.Context(), OpStatus, nil, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-roles; got != cfs.RoleAdmin {
		t.Errorf("this process is a %s to itself", got)
	}
	_, err = dialAs(t, addr, 1, nil)
	deniedIn(t, "a unix socket's peer as a server", err, "says to be node 1")
}

// stalling says its part of a handshake, and after the server's first answer, which it tells of, nothing any more.
type stalling struct {
	net.Conn
	answered chan<- error
}

func (s *stalling) Read([]byte) (int, error) {
	_, err := s.Conn.Read(make([]byte, 1))
	s.answered <- err
	return 0, net.ErrClosed
}

// lasting is a server on which a peer has for ever to say hello, and its address.
func lasting(t *testing.T, cfg ServerConfig) (*Server, string) {
	t.Helper()
	ln, addr := listen(t, "tcp")
	cfg.Hello = Identity{ClusterID: "test", NodeID: 1, Name: "server"}
	s := NewServer(cfg)
	s.helloWithin = time.Hour
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, addr
}

// TestStalledHandshake: a peer that says nothing, or stops in the middle, is in nobody's way, however long
// it is waited for.
func TestStalledHandshake(t *testing.T) {
	ca := newAuthority(t)
	_, addr := lasting(t, ServerConfig{Handler: echo(t), TLS: identified(t, ca, storageOf(1))})
	answered := make(chan error, 2*maxHandshakes)
	for i := range 3 * maxHandshakes {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		switch {
		case i < maxHandshakes && i%2 == 0: // says nothing
		case i < maxHandshakes:
			if _, err := nc.Write([]byte{recordTLS, 3}); err != nil {
				t.Fatal(err)
			}
		default: // the server computes, and waits for the rest
			if err := nc.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
				t.Fatal(err)
			}
			config := pki.Anonymous()
			config.NextProtos = []string{fmt.Sprint(i)}
			if err := tls.Client(&stalling{nc, answered}, config).HandshakeContext(t.Context()); err == nil {
				t.Fatal("the handshake is over")
			}
		}
	}
	for range cap(answered) {
		if err := <-answered; err != nil {
			t.Fatalf("not answered: %v", err)
		}
	}
	if _, err := dialAs(t, addr, 0, identified(t, ca, clientOf())); err != nil {
		t.Error(err)
	}
}

// TestRoom: where every place is taken whoever has not said hello the longest goes, and unix sockets have a reserve.
func TestRoom(t *testing.T) {
	s := NewServer(ServerConfig{})
	defer s.Close()
	var conns []*serverConn
	for i := range maxServerConns {
		nc, _ := net.Pipe()
		c := s.newConn(nc)
		c.since = time.Unix(int64(i), 0)
		if i < maxServerConns-2 {
			c.greetedPeer.Store(&Peer{})
		}
		conns = append(conns, c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range conns {
		tcp, unix := s.room(true), s.room(false)
		if want := i < maxServerConns-socketReserve; tcp != want && i < maxServerConns-2 || !unix {
			t.Fatalf("with %d connections: TCP %v, unix %v", i, tcp, unix)
		}
		s.conns[c] = struct{}{}
	}
	slow, later := conns[maxServerConns-2], conns[maxServerConns-1]
	if _, there := s.conns[slow]; there || slow.ctx.Err() == nil {
		t.Error("the first that has not said hello is still there")
	}
	s.conns[slow] = struct{}{}
	slow.greetedPeer.Store(&Peer{})
	if !s.room(false) || later.ctx.Err() == nil {
		t.Error("the second is still there")
	}
	s.conns[later] = struct{}{}
	later.greetedPeer.Store(&Peer{})
	if s.room(false) {
		t.Error("there is room, and nobody to go")
	}
	clear(s.conns)
}

// TestStrangers: peers without a certificate are few, do not stay, and get little memory.
func TestStrangers(t *testing.T) {
	ca := newAuthority(t)
	asked := make(chan int, 1)
	h := handlerFunc(func(_ context.Context, r *Request) (Response, error) {
		asked <- len(r.Body)
		return Response{}, nil
	})
	s, addr := serve(t, "tcp", ServerConfig{Handler: h, TLS: identified(t, ca, storageOf(1))})
	nobody := &TLS{Config: pki.Anonymous, Judge: func([]*x509.Certificate) (cfs.Principal, error) { return cfs.Principal{}, nil }}
	c, err := dialAs(t, addr, 0, nobody)
	if err != nil {
		t.Fatal(err)
	}
	big := &wirepb.Enrol{PublicKey: make([]byte, maxStrangerBody)}
	if _, err := c.Call(t.Context(), OpEnrol, big, nil, nil, nil); cfs.KindOf(err) != cfs.TooBig {
		t.Errorf("a big body: %v", err)
	}
	if _, err := c.Call(t.Context(), OpEnrol, &wirepb.Enrol{PublicKey: make([]byte, 100)}, nil, nil, nil); err != nil || <-asked < 100 {
		t.Errorf("a small body: %v", err)
	}
	known, err := dialAs(t, addr, 0, identified(t, ca, clientOf()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := known.Call(t.Context(), OpEnrol, big, nil, nil, nil); err != nil || <-asked < maxStrangerBody {
		t.Errorf("a big body of a peer with a certificate: %v", err)
	}
	count := func(n int) int {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.strangers += n
		return s.strangers
	}
	if n := count(maxStrangers - 1); n != maxStrangers {
		t.Errorf("%d strangers are counted, want 1", n-maxStrangers+1)
	}
	if _, err := dialAs(t, addr, 0, nobody); cfs.KindOf(err) != cfs.Overloaded {
		t.Errorf("one too many: %v", err)
	}
	if _, err := dialAs(t, addr, 0, identified(t, ca, clientOf())); err != nil {
		t.Errorf("one with a certificate: %v", err)
	}
	count(1 - maxStrangers)
	ends := 0
	s.mu.Lock()
	for sc := range s.conns {
		if sc.stranger != nil && sc.stranger.Reset(0) { // as if its time were over
			ends++
		}
	}
	s.mu.Unlock()
	if ends != 1 {
		t.Errorf("%d connections have an end, want the stranger's", ends)
	}
	select {
	case <-c.Done():
	case <-time.After(60 * time.Second):
		t.Fatal("it stays")
	}
	if _, err := known.Call(t.Context(), OpPing, nil, nil, nil, nil); err != nil {
		t.Errorf("the one with a certificate: %v", err)
	}
	for deadline := time.Now().Add(60 * time.Second); count(0) != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is counted for ever")
		}
	}
}

// TestRevokedLate: who is revoked between its handshake and its hello gets nothing, and no pool keeps a connection to it.
func TestRevokedLate(t *testing.T) {
	ca := newAuthority(t)
	var revoked atomic.Value
	revoked.Store("")
	gone := func(p *Peer) error {
		if p.Key == revoked.Load() {
			return cfs.Errorf("", cfs.Denied, "key %s was revoked", p.Key)
		}
		return nil
	}
	// after has something happen when a certificate has been judged, and before the hello.
	after := func(security *TLS, do func(key string)) *TLS {
		judge := security.Judge
		security.Judge = func(certs []*x509.Certificate) (cfs.Principal, error) {
			who, err := judge(certs)
			do(who.Key)
			return who, err
		}
		return security
	}
	keys := make(chan string, 2)
	s, addr := serve(t, "tcp", ServerConfig{Handler: echo(t), Allow: func(p *Peer, _ Op) error { return gone(p) },
		TLS: after(identified(t, ca, storageOf(1)), func(key string) { keys <- key })})
	late := after(identified(t, ca, clientOf()), func(string) {
		revoked.Store(<-keys)
		s.Cut(gone)
	})
	c, err := dialAs(t, addr, 0, late)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Device: 1}, nil, nil, nil)
	deniedIn(t, "a client that says hello late", err, "was revoked")

	var pool *Pool
	pool = NewPool(DialConfig{Hello: Identity{ClusterID: "test"}, DialTimeout: 30 * time.Second, TLS: after(identified(t, ca, clientOf()), func(key string) {
		revoked.Store(key)
		pool.Cut(gone)
	})}, 1)
	defer pool.Close()
	_, err = pool.Conn(t.Context(), addr)
	deniedIn(t, "a server that is revoked meanwhile", err, "was revoked")
}

// BenchmarkTLS is BenchmarkCall and BenchmarkPayload with and without.
func BenchmarkTLS(b *testing.B) {
	ca := newAuthority(b)
	for _, mode := range []string{"plain", "tls"} {
		cfg := ServerConfig{}
		var security *TLS
		if mode == "tls" {
			cfg.TLS, security = identified(b, ca, storageOf(1)), identified(b, ca, clientOf())
		}
		addr := benchServerOf(b, "tcp", cfg)
		c, err := dialAs(b, addr, 0, security)
		if err != nil {
			b.Fatal(err)
		}
		for _, size := range []int{0, 4 << 10, 512 << 10} {
			for _, callers := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/get=%d/callers=%d", mode, size, callers), func(b *testing.B) {
					bufs := make(chan []byte, callers)
					for range callers {
						bufs <- make([]byte, size)
					}
					benchCalls(b, callers, size, func() error {
						into := <-bufs
						defer func() { bufs <- into }()
						_, err := c.Call(context.Background(), OpGetShard, &wirepb.GetShard{Len: uint32(size)}, nil, nil, into)
						return err
					})
				})
			}
		}
	}
}
