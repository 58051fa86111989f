package proxy

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// chunkBytes is the most that one read takes from a connection.
	chunkBytes = 64 << 10
	// maxDelayedChunks bounds what waits in one direction of a connection: beyond it the sender is held up.
	maxDelayedChunks = 256
	// dialTimeout bounds the connection to the target.
	dialTimeout = 5 * time.Second
)

// Proxy forwards connections to one target. Its methods may be used by several
// goroutines at once.
type Proxy struct {
	target      string
	ln          net.Listener
	toTarget    atomic.Int64 // nanoseconds of delay
	fromTarget  atomic.Int64
	closed      chan struct{}
	goroutines  sync.WaitGroup
	mu          sync.Mutex
	conns       map[net.Conn]struct{}
	healed      chan struct{} // closed while nothing is cut
	closedBegun bool
	decide      func(Request) Fate // nil: bytes pass as they come
}

// New listens at addr ("HOST:PORT", port 0 for any) and forwards to target.
func New(addr, target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, cfs.E("listen for the proxy of "+target, cfs.KindOf(err), err)
	}
	p := &Proxy{target: target, ln: ln, closed: make(chan struct{}), conns: map[net.Conn]struct{}{}, healed: make(chan struct{})}
	close(p.healed)
	p.goroutines.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// SetDelay delays every byte from now on, in each direction.
func (p *Proxy) SetDelay(toTarget, fromTarget time.Duration) {
	p.toTarget.Store(int64(toTarget))
	p.fromTarget.Store(int64(fromTarget))
}

// Cut swallows everything: connections stay open and nothing passes, either way.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.healed:
		p.healed = make(chan struct{})
	default: // it is cut already
	}
}

// Heal ends a Cut. What was swallowed passes now, as after TCP's retransmission.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.healed:
	default:
		close(p.healed)
	}
}

// Drop closes every connection that is open; new ones are welcome.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Close ends the proxy and its connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	begun := p.closedBegun
	p.closedBegun = true
	p.mu.Unlock()
	if !begun {
		close(p.closed)
		p.ln.Close()
	}
	p.Drop()
	p.goroutines.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // out of files, or the like: the caller tries again
			continue
		}
		p.goroutines.Go(func() { p.serve(c) })
	}
}

// serve forwards one connection until both directions have ended.
func (p *Proxy) serve(near net.Conn) {
	if !p.track(near) {
		return
	}
	defer p.untrack(near)
	if !p.whole() {
		return
	}
	far, err := net.DialTimeout("tcp", p.target, dialTimeout)
	if err != nil || !p.track(far) {
		return
	}
	defer p.untrack(far)
	to, from := readBytes, readBytes
	p.mu.Lock()
	if p.decide != nil {
		f := newFrames(p.decide, p.closed)
		to, from = f.requests, f.replies
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.pump(far, near, to, &p.toTarget)
	}()
	p.pump(near, far, from, &p.fromTarget)
	<-done
}

func (p *Proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closedBegun {
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) untrack(c net.Conn) {
	c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// whole waits while the proxy is cut; false when it is closed instead.
func (p *Proxy) whole() bool {
	p.mu.Lock()
	healed := p.healed
	p.mu.Unlock()
	select {
	case <-healed:
		return true
	case <-p.closed:
		return false
	}
}

type chunk struct {
	data []byte
	due  time.Time
	last bool // the connection ends after it
}

// readBytes sends what comes, as it comes.
func readBytes(src net.Conn, send func(chunk)) {
	buf := make([]byte, chunkBytes)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			send(chunk{data: bytes.Clone(buf[:n])})
		}
		if err != nil {
			return
		}
	}
}

// pump moves what read takes from src to dst, each chunk after its delay. When src
// ends dst is told; when dst fails src is closed, so that its sender learns of it.
func (p *Proxy) pump(dst, src net.Conn, read func(net.Conn, func(chunk)), delayNS *atomic.Int64) {
	queue := make(chan chunk, maxDelayedChunks)
	go func() {
		defer close(queue)
		read(src, func(c chunk) {
			c.due = time.Now().Add(time.Duration(delayNS.Load()))
			queue <- c
		})
	}()
	broken := false
	for c := range queue {
		if broken {
			continue
		}
		time.Sleep(time.Until(c.due))
		if !p.whole() {
			broken = true
		} else if _, err := dst.Write(c.data); err != nil || c.last {
			broken = true
		}
		if broken {
			src.Close()
		}
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok && !broken {
		half.CloseWrite()
		return
	}
	dst.Close()
}
