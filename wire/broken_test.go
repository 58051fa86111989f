package wire

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// frameBytes is a whole frame.
func frameBytes(t testing.TB, h header, body proto.Message, payload []byte) []byte {
	t.Helper()
	var b []byte
	if body != nil {
		var err error
		if b, err = proto.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	h.bodyLen, h.payloadLen = uint32(len(b)), uint32(len(payload))
	h.bodyCRC = crc32.Checksum(b, castagnoli)
	out := make([]byte, HeaderSize)
	h.encode(out)
	return append(append(out, b...), payload...)
}

func helloBytes(t testing.TB) []byte {
	return frameBytes(t, header{op: OpHello}, helloToPB(Identity{ClusterID: "test", Name: "raw"}, 0), nil)
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// rawDial connects without a hello.
func rawDial(t testing.TB, addr string) net.Conn {
	t.Helper()
	nc, err := dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// farewellOf reads frames until the end of the stream and is the error in the last.
func farewellOf(t *testing.T, nc net.Conn) *RemoteError {
	t.Helper()
	r := frameReader{conn: nc, peer: "server", buf: make([]byte, readBufferBytes)}
	var last *RemoteError
	for {
		var h header
		if err := r.next(&h); err != nil {
			return last
		}
		body := make([]byte, h.bodyLen)
		if err := r.body(body, &h); err != nil {
			t.Fatal(err)
		}
		if err := r.skip(int(h.payloadLen), "payload"); err != nil {
			t.Fatal(err)
		}
		if h.flags&flagError != 0 {
			last = errorFromPB(body)
		}
	}
}

func TestServerSurvivesBrokenClients(t *testing.T) {
	get := func(id uint64) []byte {
		return frameBytes(t, header{op: OpGetShard, id: id, trace: 1}, &wirepb.GetShard{Len: 10}, nil)
	}
	hello := helloBytes(t)
	edit := func(b []byte, seal bool, f func(b []byte)) []byte {
		b = bytes.Clone(b)
		f(b)
		if seal {
			reseal(b)
		}
		return b
	}
	put := frameBytes(t, header{op: OpPutShard, id: 1}, &wirepb.PutShard{Device: 1}, patterned(1, 4096))
	for name, c := range map[string]struct {
		bytes []byte
		told  cfs.Kind // what the server answers before it ends the connection; KindOK: nothing
		log   string
	}{
		"nothing":                   {nil, 0, ""},
		"half a hello":              {hello[:20], 0, "header cut short at stream offset 20"},
		"hello without its body":    {hello[:HeaderSize], 0, "body cut short at stream offset 48"},
		"http":                      {[]byte("GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: something\r\n\r\n"), cfs.BadRequest, "magic at stream offset 0"},
		"zeros":                     {make([]byte, 1000), cfs.BadRequest, "magic at stream offset 0"},
		"another version":           {edit(hello, true, func(b []byte) { b[offVersion] = 2 }), cfs.Unsupported, "version at stream offset 4"},
		"no hello":                  {get(1), cfs.BadRequest, "op in the frame at stream offset 0"},
		"hello too long":            {edit(hello, true, func(b []byte) { b[offBodyLen+1] = 0xff }), cfs.BadRequest, "body length"},
		"hello corrupt":             {edit(hello, false, func(b []byte) { b[HeaderSize+3] ^= 4 }), cfs.Corrupt, "body CRC"},
		"hello that is none":        {frameBytes(t, header{op: OpHello}, &wirepb.Dirent{Name: []byte("\xff")}, nil), cfs.BadRequest, "hello from"},
		"hello without features":    {frameBytes(t, header{op: OpHello}, &wirepb.Hello{}, nil), cfs.Unsupported, "lacks feature bits 0x3"},
		"hello of a node too large": {frameBytes(t, header{op: OpHello}, &wirepb.Hello{NodeId: 1 << 16, Features: 1}, nil), cfs.BadRequest, "node id"},
		"corrupt header":            {append(bytes.Clone(hello), edit(get(1), false, func(b []byte) { b[9] ^= 1 })...), cfs.Corrupt, "header CRC at stream offset "},
		"corrupt body":              {append(bytes.Clone(hello), edit(get(1), false, func(b []byte) { b[HeaderSize] ^= 1 })...), cfs.Corrupt, "body CRC"},
		"oversize body":             {append(bytes.Clone(hello), edit(get(1), true, func(b []byte) { b[offBodyLen+3] = 0x7f })...), cfs.BadRequest, "body length"},
		"oversize payload":          {append(bytes.Clone(hello), edit(get(1), true, func(b []byte) { b[offPayloadLen+3] = 0xff })...), cfs.BadRequest, "payload length"},
		"id 0":                      {append(bytes.Clone(hello), get(0)...), cfs.BadRequest, "request id"},
		"a reply":                   {append(bytes.Clone(hello), frameBytes(t, header{op: OpGetShard, id: 1, flags: flagReply}, nil, nil)...), cfs.BadRequest, "flags"},
		"half a header":             {append(bytes.Clone(hello), get(1)[:30]...), 0, "header cut short"},
		"half a payload":            {append(bytes.Clone(hello), put[:len(put)-1]...), 0, "payload cut short"},
		"one-way with an id":        {append(bytes.Clone(hello), frameBytes(t, header{op: OpRaft, id: 1, flags: flagOneWay}, nil, nil)...), cfs.BadRequest, "flags"},
		"one-way with a payload":    {append(bytes.Clone(hello), frameBytes(t, header{op: OpRaft, flags: flagOneWay}, nil, []byte("x"))...), cfs.BadRequest, "flags"},
		"one-way to no receiver":    {append(bytes.Clone(hello), frameBytes(t, header{op: OpRaft, flags: flagOneWay}, nil, nil)...), cfs.BadRequest, "raft is not taken one-way"},
		"cancel of nothing":         {append(bytes.Clone(hello), frameBytes(t, header{op: OpPing, id: 5, flags: flagCancel}, nil, nil)...), 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log syncBuffer
			var mem countedAlloc
			srv, addr := serve(t, "tcp", ServerConfig{Handler: echo(t), Alloc: mem.alloc, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			nc := rawDial(t, addr)
			if _, err := nc.Write(c.bytes); err != nil {
				t.Fatal(err)
			}
			if c.told == 0 {
				nc.(*net.TCPConn).CloseWrite()
			}
			last := farewellOf(t, nc)
			if c.told != 0 && (last == nil || last.Kind != c.told) || c.told == 0 && last != nil {
				t.Errorf("told %v, want %v", last, c.told.Name())
			}
			good := connectTo(t, addr)
			if _, err := good.Call(t.Context(), OpPing, nil, nil, nil, nil); err != nil {
				t.Errorf("another client: %v", err)
			}
			srv.Close()
			if c.log != "" && (!strings.Contains(log.String(), c.log) || !strings.Contains(log.String(), nc.LocalAddr().String())) {
				t.Errorf("log lacks %q or the peer: %s", c.log, log.String())
			}
			if n := mem.outstanding(); n != 0 {
				t.Errorf("%d payload buffers were not released", n)
			}
		})
	}
}

func TestDuplicateRequestIDEndsTheConnection(t *testing.T) {
	b := newBlocker()
	_, addr := serve(t, "tcp", ServerConfig{Handler: b})
	nc := rawDial(t, addr)
	q := frameBytes(t, header{op: OpQuery, id: 9}, nil, nil)
	if _, err := nc.Write(append(append(helloBytes(t), q...), q...)); err != nil {
		t.Fatal(err)
	}
	if last := farewellOf(t, nc); last == nil || last.Kind != cfs.BadRequest || !strings.Contains(last.Text, "already in flight") {
		t.Errorf("told %v", last)
	}
	<-b.ended
}

// A caller that does not hold back is not read from, and its going away is noticed all the same.
func TestServerStopsReadingAtItsBound(t *testing.T) {
	const bound = 2
	for _, network := range networks {
		var served atomic.Int32
		b := newBlocker()
		var mem countedAlloc
		_, addr := serve(t, network, ServerConfig{MaxInFlight: bound, Alloc: mem.alloc, Handler: handlerFunc(func(ctx context.Context, r *Request) (Response, error) {
			served.Add(1)
			return b.Serve(ctx, r)
		})})
		nc := rawDial(t, addr)
		if _, err := nc.Write(helloBytes(t)); err != nil {
			t.Fatal(err)
		}
		full := make(chan int64)
		go func() {
			var n int64
			for id := uint64(1); ; id++ {
				k, err := nc.Write(frameBytes(t, header{op: OpQuery, id: id}, nil, make([]byte, 1<<16)))
				n += int64(k)
				if err != nil {
					full <- n
					return
				}
			}
		}()
		for range bound {
			<-b.running
		}
		// The socket's buffers fill up, then the writer stops; we go away.
		for range bound {
			if served.Load() != bound {
				t.Errorf("%s: %d requests at once, bound %d", network, served.Load(), bound)
			}
		}
		nc.Close()
		<-full
		for range bound {
			<-b.ended
		}
		if mem.max > bound+1 {
			t.Errorf("%s: memory for %d payloads at once, bound %d", network, mem.max, bound)
		}
	}
}

// rawServer accepts one connection, greets, and plays what play says.
func rawServer(t *testing.T, play func(nc net.Conn, r *frameReader)) string {
	t.Helper()
	ln, addr := listen(t, "tcp")
	var wg sync.WaitGroup
	wg.Go(func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		r := &frameReader{conn: nc, peer: "client", buf: make([]byte, readBufferBytes)}
		if _, err := readHello(r, 0); err != nil {
			t.Error(err)
			return
		}
		nc.Write(frameBytes(t, header{op: OpHello, flags: flagReply}, helloToPB(Identity{ClusterID: "test"}, 4), nil))
		play(nc, r)
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return addr
}

// request reads a request and drops what it carries.
func request(t *testing.T, r *frameReader) header {
	var h header
	if err := r.next(&h); err != nil {
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		return h
	}
	if err := r.skip(int(h.bodyLen+h.payloadLen), "rest"); err != nil {
		t.Error(err)
	}
	return h
}

func TestClientSurvivesBrokenServers(t *testing.T) {
	reply := func(h header, n int) []byte {
		return frameBytes(t, header{op: h.op, flags: flagReply, id: h.id}, &wirepb.GetShardReply{Crcs: []byte("abcd")}, make([]byte, n))
	}
	for name, c := range map[string]struct {
		answer func(h header) []byte
		kind   cfs.Kind
		text   string
	}{
		"nothing":        {func(header) []byte { return nil }, cfs.Unavailable, "EOF"},
		"garbage":        {func(header) []byte { return bytes.Repeat([]byte("garbage "), 100) }, cfs.BadRequest, "magic at stream offset "},
		"half a header":  {func(h header) []byte { return reply(h, 0)[:20] }, cfs.Unavailable, "header cut short at stream offset "},
		"half a body":    {func(h header) []byte { return reply(h, 0)[:HeaderSize+2] }, cfs.Unavailable, "body cut short"},
		"half a payload": {func(h header) []byte { b := reply(h, 90_000); return b[:len(b)-1] }, cfs.Unavailable, "payload cut short"},
		"corrupt header": {func(h header) []byte { b := reply(h, 0); b[10] ^= 1; return b }, cfs.Corrupt, "header CRC"},
		"corrupt body":   {func(h header) []byte { b := reply(h, 0); b[HeaderSize+3] ^= 1; return b }, cfs.Corrupt, "body CRC"},
		"unknown id":     {func(h header) []byte { h.id += 100; return reply(h, 0) }, cfs.BadRequest, "no call in flight"},
		"a request":      {func(h header) []byte { return frameBytes(t, header{op: OpPing, id: h.id}, nil, nil) }, cfs.BadRequest, "from a server"},
		"id 0":           {func(h header) []byte { h.id = 0; return reply(h, 0) }, cfs.BadRequest, "request id"},
		"oversize":       {func(h header) []byte { b := reply(h, 0); b[offPayloadLen+3] = 9; reseal(b); return b }, cfs.BadRequest, "payload length"},
		"a farewell": {func(header) []byte {
			return frameBytes(t, header{op: OpPing, flags: flagReply | flagError}, errorToPB(cfs.Errorf("serve", cfs.Overloaded, "go away")), nil)
		}, cfs.Overloaded, "go away"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := rawServer(t, func(nc net.Conn, r *frameReader) {
				first := request(t, r)
				request(t, r)
				nc.Write(c.answer(first))
				nc.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, nc)
			})
			conn := connectTo(t, addr)
			errs := make(chan error, 2)
			for range 2 {
				go func() {
					_, err := conn.Call(t.Context(), OpGetShard, &wirepb.GetShard{}, nil, nil, make([]byte, 100_000))
					errs <- err
				}()
			}
			for range 2 {
				err := <-errs
				if !errors.Is(err, cfs.Unavailable) || cfs.KindOf(err) != cfs.Unavailable || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), addr) {
					t.Errorf("%v", err)
				}
			}
			<-conn.Done()
		})
	}
}

func TestUndecodableReplyIsAnErrorOfThatCall(t *testing.T) {
	addr := rawServer(t, func(nc net.Conn, r *frameReader) {
		for {
			h := request(t, r)
			if h.id == 0 {
				return
			}
			body := []byte{0xff, 0xff}
			out := make([]byte, HeaderSize)
			(&header{op: h.op, flags: flagReply, id: h.id, bodyLen: 2, bodyCRC: crc32.Checksum(body, castagnoli)}).encode(out)
			nc.Write(append(out, body...))
		}
	})
	c := connectTo(t, addr)
	if _, err := c.Call(t.Context(), OpGetShard, nil, nil, &wirepb.GetShardReply{}, nil); !errors.Is(err, cfs.BadRequest) {
		t.Errorf("%v", err)
	}
	if _, err := c.Call(t.Context(), OpGetShard, nil, nil, nil, nil); err != nil {
		t.Errorf("a call that does not want the body: %v", err)
	}
}

// An error may be answered before the request's payload is read; the call does
// not return while the payload is still being written.
func TestEarlyErrorReply(t *testing.T) {
	addr := rawServer(t, func(nc net.Conn, r *frameReader) {
		var h header
		if err := r.next(&h); err != nil {
			t.Error(err)
			return
		}
		nc.Write(frameBytes(t, header{op: h.op, flags: flagReply | flagError, id: h.id}, errorToPB(cfs.StaleEpoch), nil))
		if err := r.skip(int(h.bodyLen+h.payloadLen), "rest"); err != nil {
			t.Error(err)
		}
		request(t, r)
	})
	c := connectTo(t, addr)
	payload := make([]byte, MaxPayload)
	if _, err := c.Call(t.Context(), OpPutShard, nil, [][]byte{payload}, nil, nil); !errors.Is(err, cfs.StaleEpoch) {
		t.Errorf("%v", err)
	}
	clear(payload) // the race detector sees a writer that still reads it
}

// Whatever bytes come in, the server ends the connection or waits for more; it
// neither panics nor keeps memory.
func FuzzServer(f *testing.F) {
	hello := helloBytes(f)
	f.Add([]byte{})
	f.Add(hello)
	f.Add(append(bytes.Clone(hello), frameBytes(f, header{op: OpGetShard, id: 1}, &wirepb.GetShard{Device: 1, Len: 10}, nil)...))
	f.Add(append(bytes.Clone(hello), frameBytes(f, header{op: OpPutShard, id: 1, timeoutMS: 50}, &wirepb.PutShard{Device: 1}, patterned(1, 64))...))
	f.Add(append(bytes.Clone(hello), frameBytes(f, header{op: OpPing, id: 1, flags: flagCancel}, nil, nil)...))
	f.Add(append(bytes.Clone(hello), frameBytes(f, header{op: 77, id: 1}, nil, []byte("x"))...))
	f.Add(append(bytes.Clone(hello), "garbage after a good hello, longer than a header is"...))
	f.Fuzz(func(t *testing.T, in []byte) {
		var mem countedAlloc
		var done, served atomic.Int32
		s := NewServer(ServerConfig{Hello: Identity{ClusterID: "test"}, Alloc: mem.alloc, MaxInFlight: 4, Handler: handlerFunc(func(_ context.Context, r *Request) (Response, error) {
			served.Add(1)
			var m wirepb.GetShard
			resp := Response{Done: func() { done.Add(1) }}
			if err := r.Decode(&m); err != nil {
				return resp, err
			}
			resp.Payload = [][]byte{make([]byte, min(m.Len, MaxPayload))}
			return resp, nil
		})})
		client, server := net.Pipe()
		c := s.newConn(server)
		ended := make(chan struct{})
		go func() { c.run(); close(ended) }()
		go io.Copy(io.Discard, client)
		client.Write(in)
		client.Close()
		<-ended
		if n := mem.outstanding(); n != 0 {
			t.Errorf("%d payload buffers were not released", n)
		}
		if done.Load() != served.Load() {
			t.Errorf("%d responses, %d done", served.Load(), done.Load())
		}
		if len(c.slots) != 0 || len(c.calls) != 0 {
			t.Errorf("%d places, %d calls left", len(c.slots), len(c.calls))
		}
	})
}

// The same for a client and what a server sends it.
func FuzzClient(f *testing.F) {
	hello := frameBytes(f, header{op: OpHello, flags: flagReply}, helloToPB(Identity{ClusterID: "test"}, 4), nil)
	f.Add([]byte{})
	f.Add(hello)
	f.Add(append(bytes.Clone(hello), frameBytes(f, header{op: OpGetShard, flags: flagReply, id: 1}, &wirepb.GetShardReply{}, []byte("four"))...))
	f.Add(append(bytes.Clone(hello), frameBytes(f, header{op: OpGetShard, flags: flagReply | flagError, id: 1}, &wirepb.Error{Kind: 300}, nil)...))
	f.Add(append(bytes.Clone(hello), frameBytes(f, header{op: OpGetShard, flags: flagReply, id: 1}, nil, make([]byte, 5000))...))
	f.Fuzz(func(t *testing.T, in []byte) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			go io.Copy(io.Discard, server)
			server.Write(in)
		}()
		c, err := newClient(t.Context(), client, "pipe", DialConfig{})
		if err != nil {
			return
		}
		defer c.Close()
		into := make([]byte, 100)
		var resp wirepb.GetShardReply
		if n, err := c.Call(t.Context(), OpGetShard, &wirepb.GetShard{}, nil, &resp, into); err == nil && n > len(into) {
			t.Errorf("%d bytes in %d", n, len(into))
		}
		<-c.Done()
		for range cap(c.slots) + 1 {
			if _, err := c.Call(t.Context(), OpGetShard, nil, nil, nil, nil); !errors.Is(err, cfs.Unavailable) {
				t.Errorf("call after the end: %v", err)
			}
		}
	})
}
