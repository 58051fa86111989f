package wire

import (
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// readBufferBytes is the buffer of a connection's reader: many small frames in
// one system call, and no more than this of a payload copied instead of read
// into place.
const readBufferBytes = 16 << 10

// rearm is how stale a deadline may get before it is set anew: setting one for
// each system call costs more than being this much late.
const rearm = time.Second

// frameReader reads frames from a socket. One goroutine uses it.
type frameReader struct {
	conn  net.Conn
	peer  string // for errors
	buf   []byte
	r, w  int    // buf[r:w] is read and not consumed
	frame uint64 // stream offset of the present frame
	pos   uint64 // stream offset of buf[r]
	armed time.Time
	fixed bool // the deadline is somebody else's (the handshake's)
}

// next reads the header of the next frame. It waits for the first byte for
// ever, for the others peerTimeout. The end of the stream between two frames
// is io.EOF as it is.
func (f *frameReader) next(h *header) error {
	f.frame = f.pos
	for f.w-f.r < HeaderSize {
		if f.r > 0 {
			f.w = copy(f.buf, f.buf[f.r:f.w])
			f.r = 0
		}
		inside := f.w > 0
		f.deadline(inside)
		n, err := f.conn.Read(f.buf[f.w:])
		f.w += n
		if n > 0 {
			continue
		}
		if inside {
			return f.cut("header", err)
		}
		return err
	}
	flt := h.decode(f.buf[f.r : f.r+HeaderSize])
	if flt != nil {
		return f.fault(flt)
	}
	f.r += HeaderSize
	f.pos += HeaderSize
	return nil
}

// body fills dst with the frame's body and checks it against the header.
func (f *frameReader) body(dst []byte, h *header) error {
	if err := f.full(dst, "body"); err != nil {
		return err
	}
	if crc := crc32.Checksum(dst, castagnoli); crc != h.bodyCRC {
		return cfs.Errorf("read frame from "+f.peer, cfs.Corrupt, "body CRC %#08x, header says %#08x, in the frame at stream offset %d", crc, h.bodyCRC, f.frame)
	}
	return nil
}

// full fills dst: first with what the buffer has, then directly from the
// socket, the last of it through the buffer where it is small.
func (f *frameReader) full(dst []byte, field string) error {
	for {
		n := copy(dst, f.buf[f.r:f.w])
		f.r += n
		f.pos += uint64(n)
		if dst = dst[n:]; len(dst) == 0 {
			return nil
		}
		into := dst
		if len(dst) < len(f.buf)/4 {
			into = f.buf
			f.r, f.w = 0, 0
		}
		f.deadline(true)
		n, err := f.conn.Read(into)
		switch {
		case n == 0:
			return f.cut(field, err)
		case len(dst) < len(f.buf)/4:
			f.w = n
		default:
			f.pos += uint64(n)
			dst = dst[n:]
		}
	}
}

// skip throws the next n bytes of the frame away.
func (f *frameReader) skip(n int, field string) error {
	for {
		k := min(n, f.w-f.r)
		f.r += k
		f.pos += uint64(k)
		if n -= k; n == 0 {
			return nil
		}
		f.deadline(true)
		k, err := f.conn.Read(f.buf)
		if f.r, f.w = 0, k; k == 0 {
			return f.cut(field, err)
		}
	}
}

// deadline sees to it that a read inside a frame ends and one between frames waits.
func (f *frameReader) deadline(inside bool) {
	if f.fixed || !inside && f.armed.IsZero() {
		return
	}
	if !inside {
		f.armed = time.Time{}
		f.conn.SetReadDeadline(f.armed)
		return
	}
	if now := time.Now(); now.Sub(f.armed) > rearm {
		f.armed = now
		f.conn.SetReadDeadline(now.Add(peerTimeout))
	}
}

// cut is the error of a stream that ends, or stalls, inside a frame.
func (f *frameReader) cut(field string, err error) error {
	kind := cfs.Unavailable
	switch {
	case err == nil:
		err = io.ErrNoProgress
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		kind = cfs.Timeout
	}
	return cfs.Errorf("read frame from "+f.peer, kind, "%s cut short at stream offset %d: %w", field, f.pos+uint64(f.w-f.r), err)
}

// fault is the error of a header that says what it may not.
func (f *frameReader) fault(flt *fault) error {
	return cfs.Errorf("read frame from "+f.peer, flt.kind, "%s at stream offset %d: %s", flt.field, f.frame+uint64(flt.off), flt.text)
}

// refuse is the error of a frame that is intact but has no place here.
func (f *frameReader) refuse(field, text string) error {
	return cfs.Errorf("read frame from "+f.peer, cfs.BadRequest, "%s in the frame at stream offset %d: %s", field, f.frame, text)
}
