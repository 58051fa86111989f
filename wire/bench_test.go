package wire

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/claudefs/claudefs/wire/wirepb"
)

// cpuNS is the processor time that this process has used so far.
func cpuNS() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// benchServer answers gets from one piece of memory, and puts.
func benchServer(b *testing.B, network string) string {
	return benchServerOf(b, network, ServerConfig{})
}

func benchServerOf(b *testing.B, network string, cfg ServerConfig) string {
	data := make([]byte, MaxPayload)
	free := make(chan Buffer, 64)
	cfg.Handler = handlerFunc(func(_ context.Context, r *Request) (Response, error) {
		if r.Op == OpGetShard {
			var m wirepb.GetShard
			if err := r.Decode(&m); err != nil {
				return Response{}, err
			}
			return Response{Body: &wirepb.GetShardReply{}, Payload: [][]byte{data[:m.Len]}}, nil
		}
		return Response{}, nil
	})
	cfg.Alloc = func(ctx context.Context, op Op, n int) (Buffer, error) {
		select {
		case f := <-free:
			if len(f.Bytes()) == n {
				return f, nil
			}
		default:
		}
		return &pooledBuffer{make([]byte, n), free}, nil
	}
	_, addr := serve(b, network, cfg)
	return addr
}

type pooledBuffer struct {
	b    []byte
	free chan Buffer
}

func (p *pooledBuffer) Bytes() []byte { return p.b }

func (p *pooledBuffer) Release() {
	select {
	case p.free <- p:
	default:
	}
}

// benchCalls runs callers goroutines, each calling in turn.
func benchCalls(b *testing.B, callers, bytes int, call func() error) {
	b.ReportAllocs()
	b.SetBytes(int64(bytes))
	left := make(chan struct{}, callers)
	errs := make(chan error, callers)
	start := cpuNS()
	b.ResetTimer()
	for g := range callers {
		go func() {
			defer func() { left <- struct{}{} }()
			for range b.N/callers + min(1, max(0, b.N%callers-g)) {
				if err := call(); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	for range callers {
		<-left
	}
	b.StopTimer()
	select {
	case err := <-errs:
		b.Fatal(err)
	default:
	}
	cpu := float64(cpuNS() - start)
	b.ReportMetric(cpu/float64(b.N), "cpu-ns/op")
	if bytes >= 4096 {
		b.ReportMetric(cpu/float64(b.N)/float64(bytes), "cpu-s/GB")
	}
}

func BenchmarkCall(b *testing.B) {
	for _, network := range networks {
		for _, what := range []Op{OpPing, OpQuery} {
			for _, callers := range []int{1, 8, 64} {
				b.Run(fmt.Sprintf("%s/%s/%d", network, what, callers), func(b *testing.B) {
					c := connectTo(b, benchServer(b, network))
					ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
					defer cancel()
					benchCalls(b, callers, 0, func() error {
						_, err := c.Call(ctx, what, &wirepb.Query{Kind: 2, Ino: 99}, nil, nil, nil)
						return err
					})
				})
			}
		}
	}
}

func BenchmarkPayload(b *testing.B) {
	for _, network := range networks {
		for _, n := range []int{4096, 64 << 10, 1 << 20} {
			for _, callers := range []int{1, 6} {
				payload := [][]byte{make([]byte, n)}
				b.Run(fmt.Sprintf("%s/put/%dKiB/%d", network, n>>10, callers), func(b *testing.B) {
					c := connectTo(b, benchServer(b, network))
					benchCalls(b, callers, n, func() error {
						_, err := c.Call(b.Context(), OpPutShard, &wirepb.PutShard{Device: 1}, payload, nil, nil)
						return err
					})
				})
				b.Run(fmt.Sprintf("%s/get/%dKiB/%d", network, n>>10, callers), func(b *testing.B) {
					c := connectTo(b, benchServer(b, network))
					memory := make(chan []byte, callers)
					for range callers {
						memory <- make([]byte, n)
					}
					benchCalls(b, callers, n, func() error {
						into := <-memory
						_, err := c.Call(b.Context(), OpGetShard, &wirepb.GetShard{Len: uint32(n)}, nil, nil, into)
						memory <- into
						return err
					})
				})
			}
		}
	}
}
