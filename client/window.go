package client

import (
	"context"
	"sync"
)

// window hands out increasing numbers and knows the lowest that is not settled:
// a session's low-water mark (sequences) and floor (stripe counters).
type window struct {
	mu      sync.Mutex
	next    uint64
	low     uint64
	settled map[uint64]struct{} // settled numbers above low
	rose    chan struct{}       // closed when low rises, where somebody waits for it
}

func newWindow() *window {
	return &window{next: 1, low: 1, settled: map[uint64]struct{}{}}
}

// take hands out the next number.
func (w *window) take() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.next
	w.next++
	return n
}

// takeWithin hands out the next number once it is less than bound above the
// lowest that is not settled.
func (w *window) takeWithin(ctx context.Context, bound uint64) (uint64, error) {
	for {
		w.mu.Lock()
		if w.next-w.low < bound {
			n := w.next
			w.next++
			w.mu.Unlock()
			return n, nil
		}
		if w.rose == nil {
			w.rose = make(chan struct{})
		}
		rose := w.rose
		w.mu.Unlock()
		select {
		case <-rose:
		case <-ctx.Done():
			return 0, ctxError("command", ctx)
		}
	}
}

// lowest is the lowest number that is not settled; all below it are.
func (w *window) lowest() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.low
}

// settle says that n will not be used any more.
func (w *window) settle(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n != w.low {
		if n > w.low {
			w.settled[n] = struct{}{}
		}
		return
	}
	if w.rose != nil {
		close(w.rose)
		w.rose = nil
	}
	for w.low++; ; w.low++ {
		if _, ok := w.settled[w.low]; !ok {
			return
		}
		delete(w.settled, w.low)
	}
}
