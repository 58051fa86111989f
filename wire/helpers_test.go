package wire

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/claudefs/claudefs/wire/wirepb"
)

// handlerFunc is a Handler of one function.
type handlerFunc func(ctx context.Context, r *Request) (Response, error)

func (f handlerFunc) Serve(ctx context.Context, r *Request) (Response, error) { return f(ctx, r) }

// countedAlloc hands out memory and counts what has not come back.
type countedAlloc struct {
	mu  sync.Mutex
	out int
	max int
}

type countedBuffer struct {
	a *countedAlloc
	b []byte
}

func (b *countedBuffer) Bytes() []byte { return b.b }

func (b *countedBuffer) Release() {
	b.a.mu.Lock()
	defer b.a.mu.Unlock()
	b.a.out--
	if b.b == nil {
		panic("released twice")
	}
	b.b = nil
}

func (a *countedAlloc) alloc(_ context.Context, _ Op, n int) (Buffer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out++
	a.max = max(a.max, a.out)
	return &countedBuffer{a, make([]byte, n)}, nil
}

func (a *countedAlloc) outstanding() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out
}

// listen is a listener on a free port or a socket file, and its address.
func listen(t testing.TB, network string) (net.Listener, string) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = unixPrefix + filepath.Join(t.TempDir(), "s")
	}
	ln, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	if network != "unix" {
		addr = ln.Addr().String()
	}
	return ln, addr
}

// serve starts a server that ends with the test, and is its address.
func serve(t testing.TB, network string, cfg ServerConfig) (*Server, string) {
	t.Helper()
	ln, addr := listen(t, network)
	if cfg.Hello.ClusterID == "" {
		cfg.Hello = Identity{ClusterID: "test", NodeID: 1, Name: "server"}
	}
	if cfg.Logger == nil && testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s := NewServer(cfg)
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

func connectTo(t testing.TB, addr string) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), addr, DialConfig{Hello: Identity{ClusterID: "test", Name: "client"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echo answers a put with nothing and a get with len bytes that depend on the key.
func echo(t testing.TB) Handler {
	return handlerFunc(func(ctx context.Context, r *Request) (Response, error) {
		switch r.Op {
		case OpPutShard:
			var m wirepb.PutShard
			if err := r.Decode(&m); err != nil {
				return Response{}, err
			}
			if r.Payload == nil {
				return Response{}, nil
			}
			for i, b := range r.Payload.Bytes() {
				if b != pattern(m.Device, i) {
					t.Errorf("put %d: byte %d is %#x", m.Device, i, b)
					break
				}
			}
			return Response{}, nil
		case OpGetShard:
			var m wirepb.GetShard
			if err := r.Decode(&m); err != nil {
				return Response{}, err
			}
			return Response{Body: &wirepb.GetShardReply{Crcs: []byte{byte(m.Device)}}, Payload: split(patterned(m.Device, int(m.Len)))}, nil
		}
		return Response{}, nil
	})
}

func pattern(seed uint32, i int) byte { return byte(i*7 + i>>8 + int(seed)*13) }

func patterned(seed uint32, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = pattern(seed, i)
	}
	return p
}

// split cuts p in three, one of them empty.
func split(p []byte) [][]byte {
	if len(p) == 0 {
		return nil
	}
	return [][]byte{p[:len(p)/3], nil, p[len(p)/3:]}
}
