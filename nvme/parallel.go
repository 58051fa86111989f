package nvme

import "sync"

// inParallel calls do for 0 to n-1 from up to maxScanners goroutines that have
// scanWindow bytes of aligned memory each. They are started in that order,
// each after admit (nil for at once), which may wait; false ends it all. It returns an
// error of one of them; after an error no further one is started.
func inParallel(n int, admit func() bool, do func(i int, mem []byte) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // next; held while admit waits, so that the order is kept
		next  int
		errs  sync.Mutex
		first error
	)
	fail := func(err error) {
		errs.Lock()
		defer errs.Unlock()
		if first == nil {
			first = err
		}
	}
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		errs.Lock()
		failed := first != nil
		errs.Unlock()
		if failed || next == n || admit != nil && !admit() {
			next = n
			return none
		}
		next++
		return next - 1
	}
	for range min(n, maxScanners) {
		wg.Go(func() {
			mem, err := newScratch(scanWindow)
			if err != nil {
				fail(err)
				return
			}
			defer mem.free()
			for i := take(); i != none; i = take() {
				if err := do(i, mem.p); err != nil {
					fail(err)
				}
			}
		})
	}
	wg.Wait()
	return first
}
