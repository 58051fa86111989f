package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// counting serves any request and counts those of each op.
type counting struct {
	mu   sync.Mutex
	seen map[wire.Op]int
}

func (h *counting) Serve(_ context.Context, r *wire.Request) (wire.Response, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[r.Op]++
	return wire.Response{Body: &wirepb.Empty{}}, nil
}

func (h *counting) count(op wire.Op) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen[op]
}

// behind is a server of package wire behind a proxy.
func behind(t *testing.T) (*Proxy, *counting) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &counting{seen: map[wire.Op]int{}}
	srv := wire.NewServer(wire.ServerConfig{Hello: wire.Identity{ClusterID: "lab", Name: "target"}, Handler: h})
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	p, err := New("127.0.0.1:0", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, h
}

func dial(t *testing.T, p *Proxy) *wire.Conn {
	t.Helper()
	c, err := wire.Dial(t.Context(), p.Addr(), wire.DialConfig{Hello: wire.Identity{ClusterID: "lab", Name: "caller"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func put(t *testing.T, c *wire.Conn) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := c.Call(ctx, wire.OpPutShard, &wirepb.PutShard{Pg: 7}, [][]byte{make([]byte, 8192)}, &wirepb.Empty{}, nil)
	return err
}

// Each fate does what it says to puts, and to nothing else.
func TestFates(t *testing.T) {
	for _, c := range []struct {
		name string
		fate Fate
		ok   bool // the caller gets its answer
		puts int  // that reach the target
	}{
		{"passes", Fate{}, true, 1},
		{"delayed", Fate{Delay: 50 * time.Millisecond}, true, 1},
		{"twice", Fate{Twice: true}, true, 2},
		{"twice, late", Fate{Twice: true, Again: 50 * time.Millisecond}, true, 2},
		{"cut request", Fate{CutRequest: true}, false, 0},
		{"cut reply", Fate{CutReply: true}, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, h := behind(t)
			p.SetFates(func(r Request) Fate {
				if r.Op != wire.OpPutShard {
					return Fate{}
				}
				if r.Bytes < 8192+wire.HeaderSize {
					t.Errorf("a put of %d bytes", r.Bytes)
				}
				return c.fate
			})
			conn := dial(t, p)
			begun := time.Now()
			if err := put(t, conn); (err == nil) != c.ok {
				t.Errorf("put: %v", err)
			}
			if took := time.Since(begun); took < c.fate.Delay {
				t.Errorf("a put that is held for %v took %v", c.fate.Delay, took)
			}
			if c.ok {
				for range 3 { // the connection is whole: copies have confused nobody
					if _, err := conn.Call(t.Context(), wire.OpStatus, &wirepb.Empty{}, nil, &wirepb.Empty{}, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			for begun := time.Now(); h.count(wire.OpPutShard) < c.puts; time.Sleep(time.Millisecond) {
				if time.Since(begun) > 20*time.Second {
					t.Fatalf("%d puts arrived, want %d", h.count(wire.OpPutShard), c.puts)
				}
			}
			p.SetFates(nil)
			if err := put(t, dial(t, p)); err != nil {
				t.Errorf("after the faults: %v", err)
			}
			if got := h.count(wire.OpPutShard); got != c.puts+1 {
				t.Errorf("%d puts arrived in all, want %d", got, c.puts+1)
			}
		})
	}
}

// A request that is held back is overtaken.
func TestDelayedRequestIsOvertaken(t *testing.T) {
	p, h := behind(t)
	hold := 300 * time.Millisecond
	p.SetFates(func(r Request) Fate {
		if r.Op == wire.OpPutShard {
			return Fate{Delay: hold}
		}
		return Fate{}
	})
	c := dial(t, p)
	done := make(chan error)
	go func() { done <- put(t, c) }()
	for range 10 {
		if _, err := c.Call(t.Context(), wire.OpStatus, &wirepb.Empty{}, nil, &wirepb.Empty{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if h.count(wire.OpStatus) != 10 || h.count(wire.OpPutShard) != 1 {
		t.Errorf("%v", h.seen)
	}
}

// What is no frame ends the connection, and the proxy lives.
func TestNoFrames(t *testing.T) {
	p, c := start(t)
	p.SetFates(func(Request) Fate { return Fate{} })
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection from before lives on")
	}
	again, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Read(make([]byte, 1)); err == nil {
		t.Error("the proxy answers what is no frame")
	}
}

func FuzzReadFrame(f *testing.F) {
	head := make([]byte, wire.HeaderSize+5)
	binary.LittleEndian.PutUint32(head, magic)
	binary.LittleEndian.PutUint32(head[atBody:], 5)
	f.Add(head)
	f.Add(head[:20])
	f.Fuzz(func(t *testing.T, raw []byte) {
		frame, err := readFrame(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(raw, frame) || len(frame) < wire.HeaderSize {
			t.Errorf("% x became % x", raw, frame)
		}
		if again := renumbered(frame, 5); !bytes.Equal(again[wire.HeaderSize:], frame[wire.HeaderSize:]) {
			t.Error("a copy has other bytes")
		}
	})
}
