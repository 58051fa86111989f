package client

import "sync"

// window hands out increasing numbers and knows the lowest that is not settled:
// a session's low-water mark (sequences) and floor (stripe counters).
type window struct {
	mu      sync.Mutex
	next    uint64
	low     uint64
	settled map[uint64]struct{} // settled numbers above low
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
		w.settled[n] = struct{}{}
		return
	}
	for w.low++; ; w.low++ {
		if _, ok := w.settled[w.low]; !ok {
			return
		}
		delete(w.settled, w.low)
	}
}
