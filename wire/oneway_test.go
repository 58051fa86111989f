package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// numbered is a frame that says which it is, n bytes long at least.
func numbered(i uint64, n int) *wirepb.Raft {
	return &wirepb.Raft{Messages: [][]byte{binary.LittleEndian.AppendUint64(make([]byte, n), i)}}
}

// collector takes OpRaft one-way and keeps the numbers, once gate is closed.
type collector struct {
	gate chan struct{} // nil: open
	mu   sync.Mutex
	got  []uint64
	news chan struct{} // room for one
}

func newCollector(gate chan struct{}) *collector {
	return &collector{gate: gate, news: make(chan struct{}, 1)}
}

func (c *collector) Serve(context.Context, *Request) (Response, error) { return Response{}, nil }

func (c *collector) Receive(r *Request) error {
	if c.gate != nil {
		<-c.gate
	}
	if r.Op != OpRaft {
		return cfs.Errorf(r.Op.String(), cfs.Unsupported, "not taken one-way")
	}
	var m wirepb.Raft
	if err := r.Decode(&m); err != nil {
		return err
	}
	b := m.Messages[0]
	c.mu.Lock()
	c.got = append(c.got, binary.LittleEndian.Uint64(b[len(b)-8:]))
	c.mu.Unlock()
	select {
	case c.news <- struct{}{}:
	default:
	}
	return nil
}

// expect waits for frames 0 to n-1, in order and each once.
func (c *collector) expect(t *testing.T, n int) {
	t.Helper()
	for have := 0; have < n; {
		select {
		case <-c.news:
		case <-time.After(time.Minute):
			t.Fatalf("%d frames came, want %d", have, n)
		}
		c.mu.Lock()
		have = len(c.got)
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, v := range c.got {
		if v != uint64(i) {
			t.Fatalf("frame %d came in place %d", v, i)
		}
	}
}

// Frames come in order whether they go out at once, behind a stuck one, or
// between calls.
func TestOneWayKeepsOrder(t *testing.T) {
	for _, network := range networks {
		gate := make(chan struct{})
		h := newCollector(gate)
		_, addr := serve(t, network, ServerConfig{Handler: h})
		c := connectTo(t, addr)
		const n, stuck = 600, 200
		send := func(i int) {
			size := 100
			if i < stuck {
				size = 128 << 10 // more than the socket takes before the gate opens
			}
			if err := c.Send(OpRaft, numbered(uint64(i), size)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range stuck {
			send(i)
		}
		close(gate)
		var calls sync.WaitGroup
		for range 4 {
			calls.Go(func() {
				for range 50 {
					if _, err := c.Call(t.Context(), OpPutShard, &wirepb.PutShard{}, split(patterned(1, 5000)), nil, nil); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for i := stuck; i < n; i++ {
			send(i)
		}
		calls.Wait()
		h.expect(t, n)
		c.w.mu.Lock()
		if c.w.backlog != (backlog{}) {
			t.Errorf("backlog %+v after all", c.w.backlog)
		}
		c.w.mu.Unlock()
	}
}

// A peer that reads nothing fills its bound and holds nobody up; what was taken
// on arrives when it reads again.
func TestOneWayBacklogIsBounded(t *testing.T) {
	gate := make(chan struct{})
	slow, quick := newCollector(gate), newCollector(nil)
	_, slowAddr := serve(t, "tcp", ServerConfig{Handler: slow})
	_, quickAddr := serve(t, "tcp", ServerConfig{Handler: quick})
	p := newPool(t, 1)
	for _, addr := range []string{slowAddr, quickAddr} {
		if err := ping(t.Context(), p, addr); err != nil {
			t.Fatal(err)
		}
	}
	taken := 0
	for {
		err := p.Send(slowAddr, OpRaft, numbered(uint64(taken), 256<<10))
		if errors.Is(err, cfs.Overloaded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if taken++; taken > 10*maxOneWayBytes/(256<<10) {
			t.Fatal("no bound")
		}
		if err := p.Send(quickAddr, OpRaft, numbered(uint64(taken-1), 10)); err != nil {
			t.Fatal(err)
		}
	}
	quick.expect(t, taken)
	close(gate)
	slow.expect(t, taken)
	if err := p.Send(slowAddr, OpRaft, numbered(uint64(taken), 10)); err != nil {
		t.Fatal(err)
	}
	slow.expect(t, taken+1)
}

// A peer that takes nothing at all is given up, and Send says so.
func TestOneWayToAStalledPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, server, _ := pipeClient(t)
		defer server.Close()
		start := time.Now()
		for i := range maxOneWay {
			if err := c.Send(OpRaft, numbered(uint64(i), 0)); err != nil {
				t.Fatalf("frame %d: %v", i, err)
			}
		}
		if err := c.Send(OpRaft, nil); !errors.Is(err, cfs.Overloaded) {
			t.Errorf("frame %d: %v", maxOneWay, err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("sending took %v", d)
		}
		<-c.Done()
		if d := time.Since(start); d < peerTimeout || d > 2*peerTimeout {
			t.Errorf("given up after %v", d)
		}
		if err := c.Send(OpRaft, nil); !errors.Is(err, cfs.Unavailable) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestOneWayRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		h    Handler
		op   Op
		body []byte
		want string
	}{
		"no receiver":      {echo(t), OpRaft, nil, "raft is not taken one-way"},
		"an op of the two": {newCollector(nil), OpPing, nil, "ping is not taken one-way"},
		"unknown op":       {newCollector(nil), Op(99), nil, "op_99 is not taken one-way"},
		"another op":       {newCollector(nil), OpCommand, nil, "command"},
		"garbage":          {newCollector(nil), OpRaft, []byte{0xff, 0xff, 0xff}, "decode raft"},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := serve(t, "tcp", ServerConfig{Handler: c.h})
			nc := rawDial(t, addr)
			b := frameBytes(t, header{op: c.op, flags: flagOneWay}, nil, nil)
			if c.body != nil {
				var frames framePool
				f, h, err := frames.make(nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				h.op, h.flags, h.bodyLen, h.bodyCRC = c.op, flagOneWay, uint32(len(c.body)), crc32.Checksum(c.body, castagnoli)
				h.encode(f.buf)
				b = append(f.buf, c.body...)
			}
			if _, err := nc.Write(append(helloBytes(t), b...)); err != nil {
				t.Fatal(err)
			}
			last := farewellOf(t, nc)
			if last == nil || !strings.Contains(last.Error(), c.want) {
				t.Errorf("told %v, want %q", last, c.want)
			}
		})
	}
}

// The sender learns why the connection has ended.
func TestOneWayRefusedSenderIsTold(t *testing.T) {
	_, addr := serve(t, "tcp", ServerConfig{Handler: echo(t)})
	c := connectTo(t, addr)
	if err := c.Send(OpRaft, nil); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if err := c.Send(OpRaft, nil); !errors.Is(err, cfs.Unavailable) {
		t.Errorf("afterwards: %v", err)
	}
	if err := c.failure(); !strings.Contains(err.Error(), "raft is not taken one-way") {
		t.Errorf("the connection ended with: %v", err)
	}
	if err := c.Send(OpRaft, numbered(0, MaxBody)); !errors.Is(err, cfs.TooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// The first frames wait for the connection; without one Send fails at once.
func TestPoolSend(t *testing.T) {
	h := newCollector(nil)
	s, addr := serve(t, "tcp", ServerConfig{Handler: h})
	p := newPool(t, 2)
	for i := range 100 {
		if err := p.Send(addr, OpRaft, numbered(uint64(i), 10)); err != nil {
			t.Fatal(err)
		}
	}
	h.expect(t, 100)
	s.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := p.Send(addr, OpRaft, nil)
		if errors.Is(err, cfs.Unavailable) && strings.Contains(err.Error(), "refused") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no server, but Send: %v", err)
		}
	}
	p.Close()
	if err := p.Send(addr, OpRaft, nil); !errors.Is(err, cfs.Closed) {
		t.Errorf("after Close: %v", err)
	}
}

// While a connection is being made, no more waits for it than for a slow peer.
func TestPoolSendWhileDialling(t *testing.T) {
	ln, addr := listen(t, "tcp") // accepts, says nothing
	defer ln.Close()
	p := newPool(t, 1)
	for i := range maxOneWay {
		if err := p.Send(addr, OpRaft, numbered(uint64(i), 0)); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if err := p.Send(addr, OpRaft, nil); !errors.Is(err, cfs.Overloaded) {
		t.Errorf("one more: %v", err)
	}
}

func TestSendNoAllocations(t *testing.T) {
	ln, addr := listen(t, "tcp")
	defer ln.Close()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		r := &frameReader{conn: nc, peer: "client", buf: make([]byte, readBufferBytes), fixed: true}
		if _, err := readHello(r, 0); err != nil {
			t.Error(err)
			return
		}
		nc.Write(frameBytes(t, header{op: OpHello, flags: flagReply}, helloToPB(Identity{ClusterID: "test"}, 4), nil))
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ net.Conn }{nc}, r.buf)
	}()
	c := connectTo(t, addr)
	m := numbered(1, 200)
	if n := testing.AllocsPerRun(200, func() {
		if err := c.Send(OpRaft, m); err != nil {
			panic(err)
		}
	}); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkSend is a one-way frame to a server in this process.
func BenchmarkSend(b *testing.B) {
	h := newCollector(nil)
	_, addr := serve(b, "tcp", ServerConfig{Handler: h})
	c := connectTo(b, addr)
	m := numbered(1, 200)
	for b.Loop() {
		for c.Send(OpRaft, m) != nil {
			time.Sleep(time.Millisecond)
		}
	}
}
