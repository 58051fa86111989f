package iopath

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

const (
	// Headroom is the room in front of a Buf's bytes, in bytes: one block.
	Headroom = cfs.BlockSize
	// MinArenaBytes is the least size of an arena: one shard of the largest size.
	MinArenaBytes = Headroom + cfs.MaxShardSize
	// maxChunkBytes is the most that one registered buffer can have (io_sqe_buffer_register
	// refuses an iovec above 1 GiB). No Buf crosses a chunk's end.
	maxChunkBytes = 1 << 30
	// maxArenaWaiters bounds the Gets that wait for memory.
	maxArenaWaiters = 8192

	pageBytes   = cfs.BlockSize
	pagesInWord = 64
)

// Arena is page-aligned memory from which Bufs are cut, by first fit in units
// of 4 KiB. The bound is its size: Get waits while it is exhausted.
type Arena struct {
	mem        []byte
	chunkPages int
	trace      atomic.Bool

	mu      sync.Mutex
	used    []uint64 // bitmap of pages, 1 for used
	pages   int
	low     int // no page below it is free
	inUse   int // pages
	waiters []*arenaWaiter
	spare   []*Buf // released Bufs to use again
	out     []*Buf // those that are not released
	closed  bool
}

// arenaWaiter is a Get that waits; granted receives its Buf, or nil at Close.
type arenaWaiter struct {
	bytes   int
	granted chan *Buf
}

// NewArena maps an arena of sizeBytes (rounded up to whole 256 KiB, at least
// MinArenaBytes), on huge pages where the kernel has some: a GiB of them is
// registered with a ring in 3 ms instead of 49, and read into from the page cache
// in 200 ms instead of 220 (BenchmarkHugePages). It is Invalid when too small,
// and NoSpace or Invalid as mmap(2) says.
func NewArena(sizeBytes int) (*Arena, error) { return newArena(sizeBytes, maxChunkBytes) }

func newArena(sizeBytes, chunkBytes int) (*Arena, error) {
	const op = "make arena"
	if sizeBytes < MinArenaBytes {
		return nil, cfs.Errorf(op, cfs.Invalid, "%d bytes are fewer than the least, %d", sizeBytes, MinArenaBytes)
	}
	const unit = pagesInWord * pageBytes
	sizeBytes = (sizeBytes + unit - 1) / unit * unit
	mem, err := unix.Mmap(-1, 0, sizeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	// A hint: a kernel without huge pages refuses it and nothing is lost but speed.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	pages := sizeBytes / pageBytes
	return &Arena{mem: mem, chunkPages: chunkBytes / pageBytes, pages: pages, used: make([]uint64, pages/pagesInWord)}, nil
}

// SizeBytes is the arena's bound.
func (a *Arena) SizeBytes() int { return len(a.mem) }

// InUse is the bytes of all Bufs that are not released, headroom and rounding
// included; 0 when nothing leaks.
func (a *Arena) InUse() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inUse * pageBytes
}

// Get cuts a Buf of n usable bytes, 1 to cfs.MaxShardSize, with one reference.
// Its contents are whatever was there. While the arena is exhausted Get waits
// its turn; it fails with Canceled or Timeout when ctx ends, Overloaded when
// too many wait already, Closed after Close.
func (a *Arena) Get(ctx context.Context, n int) (*Buf, error) {
	const op = "get buffer"
	if n < 1 || n > cfs.MaxShardSize {
		return nil, cfs.Errorf(op, cfs.Invalid, "%d bytes, want 1 to %d", n, cfs.MaxShardSize)
	}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, cfs.E(op, cfs.Closed, nil)
	}
	if len(a.waiters) == 0 {
		if b := a.cutLocked(n); b != nil {
			a.mu.Unlock()
			return a.taken(b), nil
		}
	}
	if len(a.waiters) >= maxArenaWaiters {
		a.mu.Unlock()
		return nil, cfs.Errorf(op, cfs.Overloaded, "%d others wait for memory", maxArenaWaiters)
	}
	w := &arenaWaiter{bytes: n, granted: make(chan *Buf, 1)}
	a.waiters = append(a.waiters, w)
	a.mu.Unlock()

	select {
	case b := <-w.granted:
		if b == nil {
			return nil, cfs.E(op, cfs.Closed, nil)
		}
		return a.taken(b), nil
	case <-ctx.Done():
		a.abandon(w)
		return nil, contextError(op, ctx)
	}
}

// Close unmaps the arena. It is Busy, and changes nothing, while Bufs are in use.
// Close the rings that the arena is registered with first.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inUse > 0 {
		return cfs.Errorf("close arena", cfs.Busy, "%d bytes are in use", a.inUse*pageBytes)
	}
	if a.closed {
		return nil
	}
	a.closed = true
	for _, w := range a.waiters {
		w.granted <- nil
	}
	a.waiters = nil
	mem := a.mem
	a.mem = nil
	if err := unix.Munmap(mem); err != nil {
		return cfs.E("close arena", cfs.KindOf(err), err)
	}
	return nil
}

// abandon removes a waiter, or gives back what it was granted meanwhile.
func (a *Arena) abandon(w *arenaWaiter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, o := range a.waiters {
		if o == w {
			a.waiters = append(a.waiters[:i], a.waiters[i+1:]...)
			a.serveLocked() // a smaller one may have been behind it
			return
		}
	}
	if b := <-w.granted; b != nil {
		b.refs.Store(0)
		a.freeLocked(b)
	}
}

// release takes back a Buf whose last reference is gone.
func (a *Arena) release(b *Buf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.freeLocked(b)
}

func (a *Arena) freeLocked(b *Buf) {
	first, n := b.page, len(b.mem)/pageBytes
	a.markLocked(first, n, false)
	a.inUse -= n
	a.low = min(a.low, first)
	last := len(a.out) - 1
	a.out[b.at] = a.out[last]
	a.out[b.at].at = b.at
	a.out = a.out[:last]
	b.mem, b.taken = nil, nil
	a.spare = append(a.spare, b)
	a.serveLocked()
}

// serveLocked grants memory to the waiters in order, until one does not fit.
func (a *Arena) serveLocked() {
	for len(a.waiters) > 0 {
		b := a.cutLocked(a.waiters[0].bytes)
		if b == nil {
			return
		}
		a.waiters[0].granted <- b
		a.waiters = append(a.waiters[:0], a.waiters[1:]...)
	}
}

// cutLocked cuts a Buf of n usable bytes, nil when there is no room.
func (a *Arena) cutLocked(n int) *Buf {
	pages := Headroom/pageBytes + (n+pageBytes-1)/pageBytes
	first := a.findLocked(pages)
	if first < 0 {
		return nil
	}
	a.markLocked(first, pages, true)
	a.inUse += pages
	if first == a.low {
		a.low = first + pages
	}
	var b *Buf
	if k := len(a.spare); k > 0 {
		b, a.spare = a.spare[k-1], a.spare[:k-1]
	} else {
		b = &Buf{arena: a}
	}
	lo, hi := first*pageBytes, (first+pages)*pageBytes
	b.mem, b.page, b.n = a.mem[lo:hi:hi], first, n
	b.refs.Store(1)
	b.at = len(a.out)
	a.out = append(a.out, b)
	return b
}

// findLocked is the first page of the lowest run of n free pages within one
// chunk, -1 when there is none.
func (a *Arena) findLocked(n int) int {
	run := 0
	for i := a.low; i < a.pages; {
		if i%a.chunkPages == 0 {
			run = 0
		}
		left := pagesInWord - i%pagesInWord
		word := a.used[i/pagesInWord] >> (i % pagesInWord)
		if free := min(bits.TrailingZeros64(word), left); free > 0 {
			run += free
			i += free
			if run >= n {
				return i - run
			}
			continue
		}
		run = 0
		i += min(bits.TrailingZeros64(^word), left)
	}
	return -1
}

// markLocked sets or clears n pages from first.
func (a *Arena) markLocked(first, n int, used bool) {
	for n > 0 {
		bit := first % pagesInWord
		k := min(n, pagesInWord-bit)
		mask := (^uint64(0) >> (pagesInWord - k)) << bit
		if used {
			a.used[first/pagesInWord] |= mask
		} else {
			a.used[first/pagesInWord] &^= mask
		}
		first += k
		n -= k
	}
}

// chunks are the pieces to register, in order.
func (a *Arena) chunks() [][]byte {
	var out [][]byte
	for lo, step := 0, a.chunkPages*pageBytes; lo < len(a.mem); lo += step {
		out = append(out, a.mem[lo:min(lo+step, len(a.mem))])
	}
	return out
}

// contextError is the end of ctx as an Error.
func contextError(op string, ctx context.Context) error {
	kind := cfs.Canceled
	if ctx.Err() == context.DeadlineExceeded {
		kind = cfs.Timeout
	}
	return cfs.E(op, kind, context.Cause(ctx))
}
