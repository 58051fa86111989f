package wire

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

func newPool(t testing.TB, perAddr int) *Pool {
	p := NewPool(DialConfig{Hello: Identity{ClusterID: "test"}}, perAddr)
	t.Cleanup(func() { p.Close() })
	return p
}

func ping(ctx context.Context, p *Pool, addr string) error {
	_, err := p.Call(ctx, addr, OpPing, nil, nil, nil, nil)
	return err
}

// countConns is a listener that counts what it accepts.
type countConns struct {
	net.Listener
	n atomic.Int32
}

func (l *countConns) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

func TestPoolKeepsItsConnections(t *testing.T) {
	for _, network := range networks {
		ln, addr := listen(t, network)
		counted := &countConns{Listener: ln}
		s := NewServer(ServerConfig{Hello: Identity{ClusterID: "test"}, Handler: echo(t)})
		var served sync.WaitGroup
		served.Go(func() { s.Serve(counted) })
		p := newPool(t, 3)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 20 {
					if _, err := p.Call(t.Context(), addr, OpPutShard, &wirepb.PutShard{Device: 1}, split(patterned(1, 3000)), nil, nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n := counted.n.Load(); n != 3 {
			t.Errorf("%s: %d connections, want 3", network, n)
		}
		s.Close()
		served.Wait()
	}
}

func TestPoolFailsAtOnceAndRedials(t *testing.T) {
	for _, network := range networks {
		ln, addr := listen(t, network)
		ln.Close()
		p := newPool(t, 2)
		for range 10 {
			if err := ping(t.Context(), p, addr); !errors.Is(err, cfs.Unavailable) || !strings.Contains(err.Error(), addr) {
				t.Fatalf("%s: nobody there: %v", network, err)
			}
		}
		for round := range 3 {
			ln, err := Listen(addr)
			if err != nil {
				t.Fatal(err)
			}
			s := NewServer(ServerConfig{Hello: Identity{ClusterID: "test"}, Handler: echo(t)})
			var served sync.WaitGroup
			served.Go(func() { s.Serve(ln) })
			for err = ping(t.Context(), p, addr); errors.Is(err, cfs.Unavailable); err = ping(t.Context(), p, addr) {
				time.Sleep(time.Millisecond)
			}
			if err != nil {
				t.Fatalf("%s, round %d: %v", network, round, err)
			}
			s.Close()
			served.Wait()
			for err == nil {
				err = ping(t.Context(), p, addr)
			}
			if !errors.Is(err, cfs.Unavailable) {
				t.Errorf("%s, round %d: after the server's end: %v", network, round, err)
			}
		}
	}
}

func TestPoolCallerGivesUpWhileAnotherDials(t *testing.T) {
	ln, addr := listen(t, "tcp") // accepts, says nothing
	defer ln.Close()
	p := newPool(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	go func() { errs <- ping(ctx, p, addr) }()
	waiting := make(chan error)
	go func() { waiting <- ping(t.Context(), p, addr) }()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	cancel()
	if err := <-errs; !errors.Is(err, cfs.Canceled) {
		t.Errorf("gave up: %v", err)
	}
	p.Close()
	if err := <-waiting; err == nil {
		t.Error("a call through a closed pool")
	}
	if err := ping(t.Context(), p, addr); !errors.Is(err, cfs.Closed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestPoolWrongClusterIsNotUnavailable(t *testing.T) {
	_, addr := serve(t, "tcp", ServerConfig{Hello: Identity{ClusterID: "other"}, Handler: echo(t)})
	p := newPool(t, 1)
	for range 3 {
		if err := ping(t.Context(), p, addr); !errors.Is(err, cfs.WrongCluster) {
			t.Fatal(err)
		}
	}
}

func TestPoolBoundsItsAddresses(t *testing.T) {
	p := newPool(t, 1)
	for i := range maxPoolAddrs {
		p.addrs[strings.Repeat("x", i)] = &poolAddr{}
	}
	if err := ping(t.Context(), p, "127.0.0.1:1"); !errors.Is(err, cfs.Overloaded) {
		t.Errorf("%v", err)
	}
}
