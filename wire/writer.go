package wire

import (
	"hash/crc32"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
)

// maxRounds is how often a goroutine that came to write its own frame writes
// those that others have queued meanwhile; then a new goroutine goes on.
const maxRounds = 4

// maxWriteBytes is about how much one system call writes, under one deadline.
const maxWriteBytes = 4 << 20

// sender is told when its frame is written or will never be; after that
// nothing of the frame is touched any more.
type sender interface{ written(err error) }

// outFrame is a frame to be written. It is pooled.
type outFrame struct {
	id      uint64
	buf     []byte // header and body
	payload [][]byte
	sender  sender // nil: nobody waits
	counted int    // bytes in the writer's backlog; 0: in none
}

// size is the frame's bytes.
func (f *outFrame) size() int {
	n := len(f.buf)
	for _, part := range f.payload {
		n += len(part)
	}
	return n
}

// framePool recycles frames.
type framePool struct{ pool sync.Pool }

// make is a frame with room for the header, then the body. What body or payload
// is too large for a frame is refused.
func (p *framePool) make(body proto.Message, payload [][]byte) (*outFrame, header, error) {
	f, _ := p.pool.Get().(*outFrame)
	if f == nil {
		f = new(outFrame)
	}
	var h header
	f.buf = append(f.buf[:0], make([]byte, HeaderSize)...)
	if body != nil {
		b, err := proto.MarshalOptions{}.MarshalAppend(f.buf, body)
		if err != nil {
			p.free(f)
			return nil, h, cfs.E("encode body", cfs.BadRequest, err)
		}
		f.buf = b
	}
	size := 0
	for _, part := range payload {
		size += len(part)
	}
	if n := len(f.buf) - HeaderSize; n > MaxBody || size > MaxPayload {
		p.free(f)
		return nil, h, cfs.Errorf("encode frame", cfs.TooLarge, "body of %d bytes (at most %d), payload of %d (at most %d)", n, MaxBody, size, MaxPayload)
	}
	f.payload = append(f.payload[:0], payload...)
	h.bodyLen = uint32(len(f.buf) - HeaderSize)
	h.payloadLen = uint32(size)
	h.bodyCRC = crc32.Checksum(f.buf[HeaderSize:], castagnoli)
	return f, h, nil
}

func (p *framePool) free(f *outFrame) {
	clear(f.payload)
	*f = outFrame{buf: kept(f.buf), payload: f.payload[:0]}
	p.pool.Put(f)
}

// frameWriter writes frames to a socket for many goroutines without one of its
// own: whoever finds it idle writes, and goes on with what others have queued
// meanwhile, all in one system call. Frames in it are bounded by the calls in
// flight and, one-way frames, by the backlog.
type frameWriter struct {
	conn   net.Conn
	frames *framePool
	broken func(error)   // called once, when a write has failed
	slots  chan struct{} // taken by the calls in flight

	mu      sync.Mutex
	busy    bool
	queue   []*outFrame
	spare   []*outFrame // the other of the two slices that take turns
	err     error
	backlog backlog

	writing sync.WaitGroup // the one that is busy

	// Of the goroutine that has made it busy.
	parts   net.Buffers
	vec     net.Buffers
	armed   time.Time
	attempt attempt
}

// send writes the frame, or leaves it to the goroutine that is writing. The
// frame belongs to the writer; its sender is told what became of it.
func (w *frameWriter) send(f *outFrame) {
	w.mu.Lock()
	if w.err != nil {
		err := w.err
		w.mu.Unlock()
		w.finish(f, err)
		return
	}
	w.queue = append(w.queue, f)
	if w.busy {
		w.mu.Unlock()
		return
	}
	w.busy = true
	w.writing.Add(1)
	w.mu.Unlock()
	if w.crowded() {
		runtime.Gosched()
	}
	w.drain()
}

// crowded reports that others are likely to have a frame soon: it pays to let
// them run first and write all in one system call.
func (w *frameWriter) crowded() bool { return len(w.slots) > 1 }

// withdraw takes a frame back that nobody has begun to write; nil if there is none.
func (w *frameWriter) withdraw(id uint64) *outFrame {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.queue, func(f *outFrame) bool { return f.id == id })
	if i < 0 {
		return nil
	}
	f := w.queue[i]
	w.queue = slices.Delete(w.queue, i, i+1)
	return f
}

// drain writes until the queue is empty.
func (w *frameWriter) drain() {
	for round := 0; ; round++ {
		if w.rest() {
			return
		}
		if round == maxRounds {
			go w.drain()
			return
		}
		w.mu.Lock()
		batch := w.queue
		w.queue = w.spare[:0]
		w.spare = batch
		w.mu.Unlock()

		if !w.flush(batch) {
			w.writing.Done()
			return
		}
	}
}

// rest ends the writing if nothing is queued.
func (w *frameWriter) rest() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) > 0 {
		return false
	}
	w.busy = false
	w.writing.Done()
	return true
}

// flush writes and finishes the batch, in pieces of about maxWriteBytes. It
// reports false when the connection is broken; all of the batch is finished then too.
func (w *frameWriter) flush(batch []*outFrame) bool {
	var err error
	for len(batch) > 0 {
		k, size := 0, 0
		for k < len(batch) && (k == 0 || size < maxWriteBytes) {
			size += batch[k].size()
			k++
		}
		if err == nil {
			if err = w.write(batch[:k]); err != nil {
				w.close(err)
				w.broken(err)
			}
		}
		for i, f := range batch[:k] {
			batch[i] = nil
			w.finish(f, err)
		}
		batch = batch[k:]
	}
	return err == nil
}

// write puts the batch on the socket.
func (w *frameWriter) write(batch []*outFrame) error {
	if err := w.arm(); err != nil {
		return err
	}
	if len(batch) == 1 && len(batch[0].payload) == 0 {
		_, err := w.conn.Write(batch[0].buf)
		return err
	}
	w.parts = w.parts[:0]
	for _, f := range batch {
		w.parts = append(w.parts, f.buf)
		w.parts = append(w.parts, f.payload...)
	}
	if s, ok := w.conn.(*secured); ok {
		err := s.writeParts(w.parts)
		clear(w.parts)
		return err
	}
	w.vec = w.parts
	_, err := w.vec.WriteTo(w.conn)
	clear(w.parts)
	return err
}

// arm sees to it that a write ends.
func (w *frameWriter) arm() error {
	now := time.Now()
	if now.Sub(w.armed) <= rearm {
		return nil
	}
	w.armed = now
	return w.conn.SetWriteDeadline(now.Add(peerTimeout + rearm))
}

// finish tells the sender and recycles the frame.
func (w *frameWriter) finish(f *outFrame, err error) {
	if f.counted > 0 {
		w.mu.Lock()
		w.backlog.frames--
		w.backlog.bytes -= f.counted
		w.mu.Unlock()
	}
	s := f.sender
	w.frames.free(f)
	if s != nil {
		s.written(err)
	}
}

// close makes every later send fail with err, and those that are queued. The
// goroutine that is writing ends when the socket is closed; writing.Wait waits for it.
func (w *frameWriter) close(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = err
	queue := w.queue
	w.queue, w.spare = nil, nil
	w.mu.Unlock()
	for _, f := range queue {
		w.finish(f, err)
	}
}
