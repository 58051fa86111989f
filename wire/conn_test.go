package wire

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

var networks = []string{"tcp", "unix"}

func TestCallsOfAllSizesConcurrently(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			var mem countedAlloc
			srv, addr := serve(t, network, ServerConfig{Handler: echo(t), Alloc: mem.alloc})
			c := connectTo(t, addr)
			if p := c.Peer(); p.ClusterID != "test" || p.NodeID != 1 || p.Name != "server" || p.Addr != addr || p.Features != features {
				t.Errorf("peer %+v", p)
			}
			sizes := []int{0, 1, 47, 4096, readBufferBytes/4 - 1, readBufferBytes - HeaderSize, 100_000, 1 << 20, MaxPayload}
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 0))
					into := make([]byte, MaxPayload)
					for range 60 {
						n := sizes[rng.IntN(len(sizes))]
						if rng.IntN(3) > 0 {
							n = rng.IntN(40_000)
						}
						dev := rng.Uint32N(200)
						if rng.IntN(2) == 0 {
							if _, err := c.Call(t.Context(), OpPutShard, &wirepb.PutShard{Device: dev}, split(patterned(dev, n)), nil, nil); err != nil {
								t.Errorf("put %d bytes: %v", n, err)
							}
							continue
						}
						var resp wirepb.GetShardReply
						got, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Device: dev, Len: uint32(n)}, nil, &resp, into)
						if err != nil || got != n || len(resp.Crcs) != 1 || resp.Crcs[0] != byte(dev) || !bytes.Equal(into[:n], patterned(dev, n)) {
							t.Errorf("get %d bytes: %d, %v, crcs %v", n, got, err, resp.Crcs)
						}
					}
				})
			}
			wg.Wait()
			c.Close()
			srv.Close()
			if n := mem.outstanding(); n != 0 {
				t.Errorf("%d payload buffers were not released", n)
			}
		})
	}
}

func TestPing(t *testing.T) {
	_, addr := serve(t, "tcp", ServerConfig{Handler: handlerFunc(func(context.Context, *Request) (Response, error) {
		t.Error("a ping reached the handler")
		return Response{}, nil
	})})
	c := connectTo(t, addr)
	for range 10 {
		if _, err := c.Call(t.Context(), OpPing, nil, nil, &wirepb.Empty{}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestErrorsTravel(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	answers := map[uint32]error{
		1: cfs.Errorf("put shard 1.2/3", cfs.StaleEpoch, "epoch 4, now 5"),
		2: NotLeaderError("command", "10.0.0.7:9400"),
		3: errors.New("plain"),
		4: cfs.NotFound,
		5: cfs.E(long, cfs.NoSpace, errors.New(long+"\xff")),
		6: context.DeadlineExceeded,
	}
	_, addr := serve(t, "tcp", ServerConfig{Handler: handlerFunc(func(_ context.Context, r *Request) (Response, error) {
		var m wirepb.GetShard
		if err := r.Decode(&m); err != nil {
			return Response{}, err
		}
		return Response{Body: &wirepb.Empty{}}, answers[m.Device]
	})})
	c := connectTo(t, addr)
	call := func(dev uint32) (*RemoteError, error) {
		_, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Device: dev}, nil, nil, nil)
		var local *cfs.Error
		var remote *RemoteError
		if !errors.As(err, &local) || !errors.As(err, &remote) || !strings.Contains(err.Error(), addr) {
			t.Fatalf("answer %d: %v", dev, err)
		}
		return remote, err
	}
	if r, err := call(1); !errors.Is(err, cfs.StaleEpoch) || r.Op != "put shard 1.2/3" || !strings.Contains(r.Text, "epoch 4, now 5") {
		t.Errorf("%v: %+v", err, r)
	}
	if r, err := call(2); !errors.Is(err, cfs.NotLeader) || r.Leader != "10.0.0.7:9400" {
		t.Errorf("%v: %+v", err, r)
	}
	if r, err := call(3); !errors.Is(err, cfs.IO) || r.Text != "plain" {
		t.Errorf("%v: %+v", err, r)
	}
	if _, err := call(4); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("%v", err)
	}
	if r, err := call(5); !errors.Is(err, cfs.NoSpace) || len(r.Text) > 2*maxErrorText || len(r.Op) > maxErrorText {
		t.Errorf("%v: %d bytes of text", cfs.KindOf(err), len(r.Text))
	}
	if _, err := call(6); !errors.Is(err, cfs.Timeout) {
		t.Errorf("%v", err)
	}
}

func TestUnknownOpAndUndecodableBody(t *testing.T) {
	_, addr := serve(t, "tcp", ServerConfig{Handler: echo(t)})
	c := connectTo(t, addr)
	if _, err := c.Call(t.Context(), Op(200), &wirepb.Empty{}, split(make([]byte, 5000)), nil, nil); !errors.Is(err, cfs.Unsupported) {
		t.Errorf("unknown op: %v", err)
	}
	if _, err := c.Call(t.Context(), OpHello, &wirepb.Empty{}, nil, nil, nil); !errors.Is(err, cfs.Unsupported) {
		t.Errorf("second hello: %v", err)
	}
	// A bytes field where the request has a submessage: its bytes are none.
	if _, err := c.Call(t.Context(), OpPutShard, &wirepb.DeleteShards{Keys: nil, Device: 1}, nil, nil, nil); err != nil {
		t.Errorf("compatible body: %v", err)
	}
	if _, err := c.Call(t.Context(), OpPutShard, &wirepb.Answer{Value: []byte{0xff}, Dir: &wirepb.Attr{}, Names: [][]byte{{0xff}}, Entries: []*wirepb.Dirent{{Name: []byte("x")}}}, nil, nil, nil); err != nil && !errors.Is(err, cfs.BadRequest) {
		t.Errorf("incompatible body: %v", err)
	}
	if _, err := c.Call(t.Context(), OpPing, nil, nil, nil, nil); err != nil {
		t.Errorf("after them: %v", err)
	}
}

func TestTooLargeIsRefusedBeforeItIsSent(t *testing.T) {
	_, addr := serve(t, "tcp", ServerConfig{Handler: handlerFunc(func(_ context.Context, r *Request) (Response, error) {
		return Response{Payload: [][]byte{make([]byte, MaxPayload), {1}}}, nil
	})})
	c := connectTo(t, addr)
	if _, err := c.Call(t.Context(), OpPutShard, nil, [][]byte{make([]byte, MaxPayload+1)}, nil, nil); !errors.Is(err, cfs.TooLarge) {
		t.Errorf("payload: %v", err)
	}
	if _, err := c.Call(t.Context(), OpPutShard, &wirepb.PutShard{Crcs: make([]byte, MaxBody)}, nil, nil, nil); !errors.Is(err, cfs.TooLarge) {
		t.Errorf("body: %v", err)
	}
	if _, err := c.Call(t.Context(), OpGetShard, nil, nil, nil, make([]byte, MaxPayload)); !errors.Is(err, cfs.TooLarge) {
		t.Errorf("reply: %v", err)
	}
}

func TestReplyLongerThanInto(t *testing.T) {
	_, addr := serve(t, "tcp", ServerConfig{Handler: echo(t)})
	c := connectTo(t, addr)
	into := make([]byte, 100_000)
	if n, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Len: 100_001}, nil, nil, into); !errors.Is(err, cfs.BadRequest) || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Len: 100_000}, nil, nil, into); err != nil || n != 100_000 {
		t.Errorf("the connection afterwards: %d, %v", n, err)
	}
}

// blocker is a handler that tells that it runs and waits for its context.
type blocker struct {
	running chan struct{}
	ended   chan error
}

func newBlocker() *blocker { return &blocker{make(chan struct{}, 1024), make(chan error, 1024)} }

func (b *blocker) Serve(ctx context.Context, r *Request) (Response, error) {
	if r.Op != OpQuery {
		return Response{}, nil
	}
	b.running <- struct{}{}
	<-ctx.Done()
	b.ended <- ctx.Err()
	return Response{}, ctx.Err()
}

func TestCancelReachesTheHandler(t *testing.T) {
	for _, network := range networks {
		b := newBlocker()
		_, addr := serve(t, network, ServerConfig{Handler: b})
		c := connectTo(t, addr)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-b.running
			cancel()
		}()
		if _, err := c.Call(ctx, OpQuery, &wirepb.Query{}, nil, nil, nil); !errors.Is(err, cfs.Canceled) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", network, err)
		}
		if err := <-b.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: handler saw %v", network, err)
		}
		if _, err := c.Call(t.Context(), OpPing, nil, nil, nil, nil); err != nil {
			t.Errorf("%s: the connection afterwards: %v", network, err)
		}
	}
}

func TestDeadlineTravels(t *testing.T) {
	b := newBlocker()
	_, addr := serve(t, "tcp", ServerConfig{Handler: b})
	c := connectTo(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, OpQuery, nil, nil, nil, nil); !errors.Is(err, cfs.Timeout) {
		t.Errorf("call: %v", err)
	}
	if err := <-b.ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handler saw %v", err)
	}
	if _, err := c.Call(ctx, OpQuery, nil, nil, nil, nil); !errors.Is(err, cfs.Timeout) {
		t.Errorf("call under a context that has ended: %v", err)
	}
	for _, d := range []time.Duration{-time.Hour, 0, time.Microsecond, time.Millisecond, 100 * 365 * 24 * time.Hour} {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		if ms := timeoutMS(ctx); ms == 0 || d <= time.Millisecond && ms != 1 {
			t.Errorf("%v: %d ms", d, ms)
		}
	}
}

func TestConnectionLossEndsHandlersAndCalls(t *testing.T) {
	for _, network := range networks {
		b := newBlocker()
		srv, addr := serve(t, network, ServerConfig{Handler: b})
		c := connectTo(t, addr)
		errs := make(chan error, 4)
		for range 4 {
			go func() {
				_, err := c.Call(t.Context(), OpQuery, nil, nil, nil, nil)
				errs <- err
			}()
			<-b.running
		}
		c.Close()
		for range 4 {
			if err := <-errs; !errors.Is(err, cfs.Unavailable) || !errors.Is(err, cfs.Closed) {
				t.Errorf("%s: closed here: %v", network, err)
			}
			<-b.ended
		}
		<-c.Done()
		if _, err := c.Call(t.Context(), OpPing, nil, nil, nil, nil); !errors.Is(err, cfs.Unavailable) {
			t.Errorf("%s: call after the end: %v", network, err)
		}

		c = connectTo(t, addr)
		go func() {
			_, err := c.Call(t.Context(), OpQuery, nil, nil, nil, nil)
			errs <- err
		}()
		<-b.running
		srv.Close()
		if err := <-errs; !errors.Is(err, cfs.Unavailable) {
			t.Errorf("%s: closed there: %v", network, err)
		}
		<-b.ended
	}
}

// Callers hold back at the server's bound, and one that waits can give up.
func TestCallersHoldBackAtTheServersBound(t *testing.T) {
	const bound = 3
	var now, most atomic.Int32
	release := make(chan struct{})
	_, addr := serve(t, "tcp", ServerConfig{MaxInFlight: bound, Handler: handlerFunc(func(context.Context, *Request) (Response, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		return Response{}, nil
	})})
	c := connectTo(t, addr)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Call(t.Context(), OpQuery, nil, nil, nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	for len(c.slots) < bound {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error)
	go func() {
		_, err := c.Call(ctx, OpQuery, nil, nil, nil, nil)
		cancelled <- err
	}()
	cancel()
	if err := <-cancelled; !errors.Is(err, cfs.Canceled) {
		t.Errorf("gave up waiting: %v", err)
	}
	close(release)
	wg.Wait()
	if most.Load() > bound {
		t.Errorf("%d requests at once, bound %d", most.Load(), bound)
	}
}

// An abandoned call holds its place until its reply is in: the server is not overrun.
func TestAbandonedRepliesAreDrained(t *testing.T) {
	release := make(chan struct{})
	running := make(chan struct{}, 2)
	_, addr := serve(t, "tcp", ServerConfig{MaxInFlight: 2, Handler: handlerFunc(func(_ context.Context, r *Request) (Response, error) {
		if r.Op == OpGetShard {
			running <- struct{}{}
			<-release
			return Response{Payload: [][]byte{make([]byte, 1<<20)}}, nil
		}
		return Response{}, nil
	})})
	c := connectTo(t, addr)
	into := make([]byte, 1<<20)
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-running
			cancel()
		}()
		if _, err := c.Call(ctx, OpGetShard, nil, nil, nil, into); !errors.Is(err, cfs.Canceled) {
			t.Fatal(err)
		}
		into[0] = 7
	}
	if n := len(c.slots); n != 2 {
		t.Errorf("%d places taken by two abandoned calls", n)
	}
	close(release)
	if _, err := c.Call(t.Context(), OpQuery, nil, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if into[0] != 7 {
		t.Error("a late reply was written to the memory of a call that had returned")
	}
}

func TestDoneIsCalledOnceWhateverHappens(t *testing.T) {
	var done, served atomic.Int32
	b := make(chan struct{})
	srv, addr := serve(t, "tcp", ServerConfig{Handler: handlerFunc(func(ctx context.Context, r *Request) (Response, error) {
		served.Add(1)
		resp := Response{Payload: [][]byte{make([]byte, 1<<20)}, Done: func() { done.Add(1) }}
		var m wirepb.GetShard
		if err := r.Decode(&m); err != nil {
			return resp, err
		}
		switch m.Device {
		case 1:
			return resp, cfs.NotFound
		case 2:
			resp.Payload = [][]byte{make([]byte, MaxPayload+1)}
		case 3:
			b <- struct{}{}
			<-ctx.Done()
		}
		return resp, nil
	})})
	c := connectTo(t, addr)
	into := make([]byte, 1<<20)
	for dev, want := range []cfs.Kind{cfs.KindOK, cfs.NotFound, cfs.TooLarge} {
		if _, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Device: uint32(dev)}, nil, nil, into); cfs.KindOf(err) != want {
			t.Errorf("%d: %v", dev, err)
		}
	}
	go c.Call(t.Context(), OpGetShard, &wirepb.GetShard{Device: 3}, nil, nil, into)
	<-b
	c.Close()
	srv.Close()
	if done.Load() != 4 || served.Load() != 4 {
		t.Errorf("%d calls of Done for %d responses", done.Load(), served.Load())
	}
}

func TestTakenPayloadOutlivesTheRequest(t *testing.T) {
	var mem countedAlloc
	taken := make(chan Buffer, 1)
	_, addr := serve(t, "unix", ServerConfig{Alloc: mem.alloc, Handler: handlerFunc(func(_ context.Context, r *Request) (Response, error) {
		taken <- r.Take()
		return Response{}, nil
	})})
	c := connectTo(t, addr)
	if _, err := c.Call(t.Context(), OpPutShard, nil, [][]byte{patterned(1, 5000)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	b := <-taken
	if !bytes.Equal(b.Bytes(), patterned(1, 5000)) {
		t.Error("payload differs")
	}
	b.Release()
	if mem.outstanding() != 0 {
		t.Error("not released")
	}
}

func TestAllocFailureIsAnswered(t *testing.T) {
	var fail atomic.Bool
	fail.Store(true)
	_, addr := serve(t, "tcp", ServerConfig{Handler: echo(t), Alloc: func(ctx context.Context, op Op, n int) (Buffer, error) {
		if n == 3 {
			return make(heapBuffer, 4), nil
		}
		if fail.Load() {
			return nil, cfs.Errorf("take memory", cfs.Overloaded, "none for %d bytes of %s", n, op)
		}
		return allocHeap(ctx, op, n)
	}})
	c := connectTo(t, addr)
	put := func(n int) error {
		_, err := c.Call(t.Context(), OpPutShard, &wirepb.PutShard{Device: 1}, split(patterned(1, n)), nil, nil)
		return err
	}
	if err := put(1 << 20); !errors.Is(err, cfs.Overloaded) {
		t.Errorf("no memory: %v", err)
	}
	if err := put(3); !errors.Is(err, cfs.Invalid) {
		t.Errorf("wrong memory: %v", err)
	}
	fail.Store(false)
	if err := put(1 << 20); err != nil {
		t.Errorf("memory again: %v", err)
	}
}

func TestTraceIDs(t *testing.T) {
	seen := make(chan [2]uint64, 1)
	_, addr := serve(t, "tcp", ServerConfig{Handler: handlerFunc(func(ctx context.Context, r *Request) (Response, error) {
		sub, cancel := context.WithCancel(ctx)
		defer cancel()
		seen <- [2]uint64{r.TraceID, TraceID(sub)}
		return Response{}, nil
	})})
	c := connectTo(t, addr)
	if _, err := c.Call(WithTraceID(t.Context(), 42), OpQuery, nil, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-seen; got != [2]uint64{42, 42} {
		t.Errorf("given: %v", got)
	}
	if _, err := c.Call(t.Context(), OpQuery, nil, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-seen; got[0] == 0 || got[0] != got[1] {
		t.Errorf("not given: %v", got)
	}
}

func TestHelloChecksTheCluster(t *testing.T) {
	_, addr := serve(t, "tcp", ServerConfig{Hello: Identity{ClusterID: "alpha", NodeID: 3}, Handler: echo(t)})
	_, err := Dial(t.Context(), addr, DialConfig{Hello: Identity{ClusterID: "beta"}})
	if !errors.Is(err, cfs.WrongCluster) || !strings.Contains(err.Error(), `"alpha"`) || !strings.Contains(err.Error(), `"beta"`) {
		t.Errorf("%v", err)
	}
	c, err := Dial(t.Context(), addr, DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Peer().ClusterID != "alpha" || c.Peer().NodeID != 3 {
		t.Errorf("peer %v", c.Peer())
	}
}

func TestListenErrors(t *testing.T) {
	for _, network := range networks {
		_, addr := listen(t, network)
		if _, err := Listen(addr); !errors.Is(err, cfs.Busy) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s in use: %v", network, err)
		}
	}
	for _, addr := range []string{"nonsense", "127.0.0.1:999999", "unix:"} {
		if _, err := Listen(addr); !errors.Is(err, cfs.Usage) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(unixPrefix + path); !errors.Is(err, cfs.Busy) {
		t.Errorf("an ordinary file: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("an ordinary file was removed: %v", err)
	}
}

func TestListenReplacesADeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	ln, err := Listen(unixPrefix + path)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

func TestDialNobody(t *testing.T) {
	ln, addr := listen(t, "tcp")
	ln.Close()
	for _, a := range []string{addr, unixPrefix + filepath.Join(t.TempDir(), "none")} {
		if _, err := Dial(t.Context(), a, DialConfig{}); !errors.Is(err, cfs.Unavailable) || !strings.Contains(err.Error(), a) {
			t.Errorf("%v", err)
		}
	}
}

// In a time of its own: a server that accepts and says nothing.
func TestDialTimesOut(t *testing.T) {
	ln, addr := listen(t, "tcp")
	defer ln.Close()
	if _, err := Dial(t.Context(), addr, DialConfig{DialTimeout: 20 * time.Millisecond}); !errors.Is(err, cfs.Unavailable) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, addr, DialConfig{}); !errors.Is(err, cfs.Timeout) {
		t.Errorf("%v", err)
	}
}

// value is a counter's or gauge's.
func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	srv, addr := serve(t, "tcp", ServerConfig{Handler: echo(t), Metrics: m})
	p := NewPool(DialConfig{Metrics: m}, 1)
	if _, err := p.Call(t.Context(), addr, OpPutShard, &wirepb.PutShard{Device: 1}, split(patterned(1, 4096)), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Call(t.Context(), addr, Op(99), nil, nil, nil, nil); err == nil {
		t.Fatal("op 99 was served")
	}
	p.Close()
	srv.Close()
	if all, err := reg.Gather(); err != nil || len(all) != 7 {
		t.Errorf("%d families, %v", len(all), err)
	}
	for s := range sideEnd {
		if v := value(t, m.inFlight[s]); v != 0 {
			t.Errorf("%s: %v in flight at the end", sideNames[s], v)
		}
		if v := value(t, m.conns[s]); v != 0 {
			t.Errorf("%s: %v connections at the end", sideNames[s], v)
		}
		if v := value(t, m.errors.WithLabelValues(sideNames[s], "op_0", "unsupported")); v != 1 {
			t.Errorf("%s: %v unsupported", sideNames[s], v)
		}
	}
	if a, b := value(t, m.sentBytes[sideClient]), value(t, m.recvBytes[sideServer]); a != b || a < 4096 {
		t.Errorf("%v bytes sent, %v received", a, b)
	}
	if a, b := value(t, m.sentBytes[sideServer]), value(t, m.recvBytes[sideClient]); a != b || a == 0 {
		t.Errorf("%v bytes sent, %v received", a, b)
	}
}
