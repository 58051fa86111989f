package proxy

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// Offsets in a frame's header and its flags; docs/format/wire.md has the whole of it.
const (
	atMagic   = 0
	atOp      = 5
	atFlags   = 6
	atID      = 8
	atBody    = 28
	atPayload = 32
	atCRC     = 44

	magic     = 0x57534643
	flagsNone = 0 // of a request

	// copyID marks the request ids of copies: clients count from 1.
	copyID = 1 << 63
	// maxLate bounds the frames of a connection that wait for their time; beyond it the connection waits.
	maxLate = 64
)

// Request is a request on its way to the target.
type Request struct {
	Op    wire.Op
	Bytes int // of the whole frame
}

// Fate is what becomes of a request. The zero value lets it pass.
type Fate struct {
	// Delay holds the request back; those behind it overtake it.
	Delay time.Duration
	// CutRequest ends the connection in the middle of the request.
	CutRequest bool
	// CutReply ends the connection in the middle of the answer: the target has done what it was asked.
	CutReply bool
	// Twice sends the request a second time, Again after the first; nobody sees the second answer.
	Twice bool
	Again time.Duration
}

// SetFates has decide choose the fate of every request from now on; nil lets all pass.
// The connections that are open end, as their place in a frame is not known.
// decide is called by several goroutines at once. Only frames of package wire can pass.
func (p *Proxy) SetFates(decide func(Request) Fate) {
	p.mu.Lock()
	p.decide = decide
	p.mu.Unlock()
	p.Drop()
}

// frames is what a connection has to remember of the requests that it has passed on.
type frames struct {
	decide func(Request) Fate
	closed <-chan struct{}
	late   chan struct{} // a place for each frame that waits for its time
	mu     sync.Mutex
	copies uint64
	hidden map[uint64]bool // answers that nobody is to see, by request id
	cut    map[uint64]bool // answers that end the connection
}

func newFrames(decide func(Request) Fate, closed <-chan struct{}) *frames {
	return &frames{decide: decide, closed: closed, late: make(chan struct{}, maxLate), hidden: map[uint64]bool{}, cut: map[uint64]bool{}}
}

// readFrame reads one frame whole.
func readFrame(r io.Reader) ([]byte, error) {
	var head [wire.HeaderSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	body, payload := le.Uint32(head[atBody:]), le.Uint32(head[atPayload:])
	if le.Uint32(head[atMagic:]) != magic || body > wire.MaxBody || payload > wire.MaxPayload {
		return nil, cfs.Errorf("read a frame", cfs.Corrupt, "the header is none: % x", head)
	}
	frame := make([]byte, len(head)+int(body)+int(payload))
	copy(frame, head[:])
	_, err := io.ReadFull(r, frame[len(head):])
	return frame, err
}

// renumbered is a copy of a frame under another request id.
func renumbered(frame []byte, id uint64) []byte {
	again := append([]byte(nil), frame...)
	le := binary.LittleEndian
	le.PutUint64(again[atID:], id)
	le.PutUint32(again[atCRC:], crc32.Checksum(again[:atCRC], crc32.MakeTable(crc32.Castagnoli)))
	return again
}

// requests passes frames from src on as their fates say.
func (f *frames) requests(src net.Conn, send func(chunk)) {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	later := func(frame []byte, after time.Duration) {
		if after <= 0 {
			send(chunk{data: frame})
			return
		}
		f.late <- struct{}{}
		waiting.Go(func() {
			defer func() { <-f.late }()
			select {
			case <-time.After(after):
				send(chunk{data: frame})
			case <-f.closed:
			}
		})
	}
	for {
		frame, err := readFrame(src)
		if err != nil {
			return
		}
		id := binary.LittleEndian.Uint64(frame[atID:])
		if id == 0 || binary.LittleEndian.Uint16(frame[atFlags:]) != flagsNone {
			send(chunk{data: frame}) // a hello, a one-way frame or a cancellation: their order matters
			continue
		}
		fate := f.decide(Request{wire.Op(frame[atOp]), len(frame)})
		if fate.CutRequest {
			send(chunk{data: frame[:len(frame)/2], last: true})
			return
		}
		var again []byte
		f.mu.Lock()
		if fate.CutReply {
			f.cut[id] = true
		}
		if fate.Twice {
			f.copies++
			again = renumbered(frame, copyID|f.copies)
			f.hidden[copyID|f.copies] = true
		}
		f.mu.Unlock()
		later(frame, fate.Delay)
		if fate.Twice {
			later(again, fate.Delay+fate.Again)
		}
	}
}

// replies passes the target's answers on, but for those that fates have spoilt.
func (f *frames) replies(src net.Conn, send func(chunk)) {
	for {
		frame, err := readFrame(src)
		if err != nil {
			return
		}
		id := binary.LittleEndian.Uint64(frame[atID:])
		f.mu.Lock()
		hidden, cut := f.hidden[id], f.cut[id]
		delete(f.hidden, id)
		f.mu.Unlock()
		switch {
		case cut:
			send(chunk{data: frame[:len(frame)/2], last: true})
			return
		case !hidden:
			send(chunk{data: frame})
		}
	}
}
