package wire

import (
	"context"
	"strings"
)

// keepBytes is the largest body buffer that is kept for the next frame; larger
// ones, which are rare, go back to the collector.
const keepBytes = 64 << 10

// Buffer is memory of a payload, exactly as long as was asked for.
type Buffer interface {
	Bytes() []byte
	// Release gives the memory back; it is called exactly once by the owner.
	Release()
}

// Alloc gives memory for the n bytes of an incoming payload of a request for
// op. It may block, which holds up the connection that the payload comes by
// (back-pressure); ctx is the request's. On an error the payload is thrown
// away and the error answered.
type Alloc func(ctx context.Context, op Op, n int) (Buffer, error)

// heapBuffer is a payload in ordinary memory.
type heapBuffer []byte

// Bytes is the memory.
func (b heapBuffer) Bytes() []byte { return b }

// Release leaves it to the collector.
func (b heapBuffer) Release() {}

// allocHeap is the Alloc of a server that was given none.
func allocHeap(_ context.Context, _ Op, n int) (Buffer, error) { return make(heapBuffer, n), nil }

// sized is a slice of n bytes that reuses b where it is large enough.
func sized(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:n]
	}
	return make([]byte, n)
}

// kept is b emptied for the next use, or nil where it is too large to keep.
func kept(b []byte) []byte {
	if cap(b) > keepBytes {
		return nil
	}
	return b[:0]
}

// validUTF8 replaces what protobuf would refuse in a string.
func validUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
