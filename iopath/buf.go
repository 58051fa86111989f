package iopath

import "sync/atomic"

// Buf is a piece of an Arena: Headroom bytes and n usable ones behind them,
// both aligned to 4 KiB. It is reference counted: made with one reference, and
// given back to the arena when the last is released. Its bytes may be changed
// only by a holder who knows that no other reads them.
type Buf struct {
	arena *Arena
	mem   []byte // headroom and bytes, rounded up to pages
	page  int    // where mem starts in the arena
	n     int
	refs  atomic.Int32
	at    int       // its place in the arena's out
	taken []uintptr // where it was taken, see Arena.Trace
}

// Bytes is the usable bytes; their capacity is rounded up to whole blocks.
func (b *Buf) Bytes() []byte { return b.mem[Headroom : Headroom+b.n] }

// WithHeadroom is the headroom and the usable bytes, contiguous.
func (b *Buf) WithHeadroom() []byte { return b.mem[:Headroom+b.n] }

// Resize sets the number of usable bytes to n, up to what the Buf was cut for
// rounded up to a whole block. It panics beyond: that is a bug of the caller.
func (b *Buf) Resize(n int) {
	if n < 0 || Headroom+n > len(b.mem) {
		panic("iopath: Buf resized beyond its memory")
	}
	b.n = n
}

// Retain adds a reference.
func (b *Buf) Retain() {
	if b.refs.Add(1) < 2 {
		panic("iopath: Buf retained after its release")
	}
}

// Release drops a reference; the last one gives the memory back. It panics
// when there is none left.
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		b.arena.release(b)
	case n < 0:
		panic("iopath: Buf released more often than retained")
	}
}
