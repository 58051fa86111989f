package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// Stalled peers, in fake time and over pipes without a buffer.

// pipeServer is a server's connection whose other end the test plays, after the hellos.
func pipeServer(t *testing.T, h Handler) (client net.Conn, r *frameReader, ended chan struct{}) {
	s := NewServer(ServerConfig{Hello: Identity{ClusterID: "test"}, Handler: h})
	client, server := net.Pipe()
	c := s.newConn(server)
	ended = make(chan struct{})
	go func() {
		c.run()
		s.Close()
		close(ended)
	}()
	if _, err := client.Write(helloBytes(t)); err != nil {
		t.Fatal(err)
	}
	r = &frameReader{conn: client, peer: "server", buf: make([]byte, readBufferBytes), fixed: true}
	if _, err := readHello(r, flagReply); err != nil {
		t.Fatal(err)
	}
	return client, r, ended
}

func TestSilentClientIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(ServerConfig{})
		client, server := net.Pipe()
		defer client.Close()
		c := s.newConn(server)
		start := time.Now()
		c.run()
		if d := time.Since(start); d != helloTimeout {
			t.Errorf("without a hello: after %v", d)
		}
		s.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		client, _, ended := pipeServer(t, newBlocker())
		defer client.Close()
		time.Sleep(time.Hour) // idle between frames is no fault
		start := time.Now()
		client.Write(frameBytes(t, header{op: OpQuery, id: 1}, nil, make([]byte, 9000))[:5000])
		<-ended
		if d := time.Since(start); d < peerTimeout || d > 2*peerTimeout {
			t.Errorf("inside a frame: after %v", d)
		}
	})
}

func TestClientThatReadsNothingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, ended := pipeServer(t, handlerFunc(func(context.Context, *Request) (Response, error) { return Response{}, nil }))
		defer client.Close()
		start := time.Now()
		client.Write(frameBytes(t, header{op: OpQuery, id: 1}, nil, nil))
		<-ended
		if d := time.Since(start); d < peerTimeout || d > 2*peerTimeout {
			t.Errorf("after %v", d)
		}
	})
}

// pipeClient is a client whose server the test plays, after the hellos.
func pipeClient(t *testing.T) (*Conn, net.Conn, *frameReader) {
	client, server := net.Pipe()
	r := &frameReader{conn: server, peer: "client", buf: make([]byte, readBufferBytes), fixed: true}
	go func() {
		if _, err := readHello(r, 0); err != nil {
			t.Error(err)
		}
		server.Write(frameBytes(t, header{op: OpHello, flags: flagReply}, helloToPB(Identity{ClusterID: "test"}, 4), nil))
	}()
	c, err := newClient(t.Context(), client, "pipe", DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return c, server, r
}

func TestServerThatStallsIsGivenUp(t *testing.T) {
	for what, play := range map[string]func(server net.Conn, r *frameReader){
		"inside a reply": func(server net.Conn, r *frameReader) {
			h := request(t, r)
			server.Write(frameBytes(t, header{op: h.op, flags: flagReply, id: h.id}, nil, make([]byte, 9000))[:7000])
		},
		"before it reads": func(net.Conn, *frameReader) {},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, server, r := pipeClient(t)
			go play(server, r)
			start := time.Now()
			// Even a call that is given up waits for its memory: no longer than this.
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			_, err := c.Call(ctx, OpPutShard, nil, [][]byte{make([]byte, 9000)}, nil, make([]byte, 9000))
			if d := time.Since(start); err == nil || d < peerTimeout || d > 2*peerTimeout {
				t.Errorf("%s: %v after %v", what, err, d)
			}
			<-c.Done()
			if _, err := c.Call(t.Context(), OpPing, nil, nil, nil, nil); !errors.Is(err, cfs.Unavailable) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: afterwards: %v", what, err)
			}
			server.Close()
		})
	}
}

// A call whose frame nobody has begun to write is taken back whole, at once.
func TestCancelWhileTheSocketIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, server, r := pipeClient(t)
		call := func(ctx context.Context) chan error {
			done := make(chan error, 1)
			go func() {
				_, err := c.Call(ctx, OpPutShard, nil, [][]byte{make([]byte, 9000)}, nil, nil)
				done <- err
			}()
			synctest.Wait()
			return done
		}
		start := time.Now()
		stuck := call(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		queued := call(ctx)
		if n := len(c.w.queue); n != 1 {
			t.Errorf("%d frames queued behind the one being written", n)
		}
		cancel()
		if err := <-queued; !errors.Is(err, cfs.Canceled) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		go func() {
			for {
				var h header
				if err := r.next(&h); err != nil {
					return
				}
				if err := r.skip(int(h.bodyLen+h.payloadLen), "rest"); err != nil || h.id != 1 {
					t.Errorf("request %d: %v", h.id, err)
				}
				server.Write(frameBytes(t, header{op: h.op, flags: flagReply, id: h.id}, nil, nil))
			}
		}()
		if err := <-stuck; err != nil {
			t.Errorf("the call before it: %v", err)
		}
		synctest.Wait()
		if len(c.slots) != 0 || len(c.pending) != 0 {
			t.Errorf("%d places taken, %d calls pending", len(c.slots), len(c.pending))
		}
		c.Close()
		server.Close()
	})
}

// The deadline also ends a call that the server just does not answer; the connection lives.
func TestDeadlineWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, server, r := pipeClient(t)
		late := make(chan header, 1)
		go func() {
			late <- request(t, r)
			for {
				var h header
				if err := r.next(&h); err != nil {
					return
				}
				server.Write(frameBytes(t, header{op: h.op, flags: flagReply, id: h.id}, nil, nil))
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := c.Call(ctx, OpQuery, nil, nil, nil, nil); !errors.Is(err, cfs.Timeout) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if _, err := c.Call(t.Context(), OpPing, nil, nil, nil, nil); err != nil {
			t.Errorf("another call: %v", err)
		}
		h := <-late
		if h.timeoutMS != 3000 {
			t.Errorf("the request said %d ms", h.timeoutMS)
		}
		server.Write(frameBytes(t, header{op: h.op, flags: flagReply, id: h.id}, nil, nil))
		synctest.Wait()
		if len(c.slots) != 0 {
			t.Error("the late reply has not freed its place")
		}
		c.Close()
		server.Close()
	})
}

func TestPoolBacksOffAndComesBack(t *testing.T) {
	// Not in fake time: dialling is the kernel's. The bound is what is checked.
	p := newPool(t, 1)
	ln, addr := listen(t, "tcp")
	ln.Close()
	for range 200 {
		if err := ping(t.Context(), p, addr); !errors.Is(err, cfs.Unavailable) {
			t.Fatal(err)
		}
		p.mu.Lock()
		s := p.addrs[addr].slots[0]
		p.mu.Unlock()
		if s.backoff > maxBackoff || time.Until(s.retryAt) > maxBackoff {
			t.Fatalf("backoff %v, next in %v", s.backoff, time.Until(s.retryAt))
		}
	}
}

func TestSocketOptions(t *testing.T) {
	ln, addr := listen(t, "tcp")
	defer ln.Close()
	client := rawDial(t, addr)
	for what, c := range map[string]struct{ level, opt, want int }{
		"no delay":     {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		"user timeout": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout.Milliseconds())},
		"keepalive":    {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"idle":         {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepIdle.Seconds())},
		"interval":     {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepInterval.Seconds())},
		"count":        {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount},
	} {
		rc, err := client.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		got := -1
		rc.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), c.level, c.opt) })
		if err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", what, got, err, c.want)
		}
	}
}

func TestHungUp(t *testing.T) {
	for _, network := range networks {
		ln, addr := listen(t, network)
		client := rawDial(t, addr)
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		client.Write([]byte("unread"))
		if hungUp(server) {
			t.Errorf("%s: hung up while connected", network)
		}
		client.Close()
		for !hungUp(server) {
			time.Sleep(time.Millisecond)
		}
		server.Close()
		if !hungUp(server) {
			t.Errorf("%s: not hung up when closed here", network)
		}
		ln.Close()
	}
	if a, _ := net.Pipe(); hungUp(a) {
		t.Error("a pipe cannot tell")
	}
}

func TestReaderOffsets(t *testing.T) {
	client, server := net.Pipe()
	frame := frameBytes(t, header{op: OpPing, id: 1}, nil, make([]byte, 50_000))
	go func() {
		client.Write(frame)
		client.Write(frame[:HeaderSize+100])
		client.Close()
	}()
	r := frameReader{conn: server, peer: "p", buf: make([]byte, readBufferBytes)}
	var h header
	for range 2 {
		if err := r.next(&h); err != nil {
			t.Fatal(err)
		}
		if err := r.full(make([]byte, h.payloadLen), "payload"); err != nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "stream offset 50196") {
				t.Errorf("%v", err) // 2*48 + 50,000 + 100
			}
			return
		}
	}
	t.Error("the second payload was whole")
}
