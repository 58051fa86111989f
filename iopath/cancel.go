package iopath

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sweepsInTimeout is how often the operations in flight are looked at within
// RingConfig.Timeout, so that it is exceeded by at most a quarter.
const sweepsInTimeout = 4

// Cancel ends what is running on f with kind Canceled, as far as the kernel can:
// what it has not begun, and what waits for something (a pipe's other end). A
// block device cannot be asked back what was dispatched to it: such operations
// end as if Cancel had not been called, and until they do their memory is the
// kernel's. Cancel does not wait for the calls to return. Calls that begin later
// are not affected.
func (r *Ring) Cancel(f File) {
	if r.polled != nil && f.polled >= 0 {
		r.polled.Cancel(f.onPolled())
	}
	same := func(c *call) bool { return c.batch.file.fd == f.fd && c.batch.file.slot == f.slot }
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.slots {
		if s := &r.slots[i]; s.call != nil && same(s.call) {
			s.call.canceled = true
			r.askBackLocked(s, unix.ECANCELED)
		}
	}
	waiting := r.waiting
	r.waiting = callQueue{}
	for waiting.head != nil {
		if c := waiting.pop(); same(c) {
			c.canceled = true
			r.abandonLocked(c, unix.ECANCELED)
		} else {
			r.waiting.push(c)
		}
	}
	r.seeToLocked(nil)
}

// askBackLocked notes that the kernel is to be asked to cancel an operation.
func (r *Ring) askBackLocked(s *slot, why syscall.Errno) {
	if s.asked == 0 && !r.polling { // what is polled cannot be canceled
		s.asked, r.asks = why, true
	}
}

// prepareCancelsLocked fills SQEs with the cancellations that were asked for, as
// far as there is room. They are submitted before any slot is used again.
func (r *Ring) prepareCancelsLocked() {
	r.asks = false
	for i := range r.slots {
		if s := &r.slots[i]; s.asked != 0 && !s.sent {
			if r.asks = r.q.full(); r.asks {
				return
			}
			s.sent = true
			e := r.q.next()
			e.Op, e.Fd, e.Addr, e.UserData = opCancel, -1, uint64(i), cancelData
		}
	}
}

// answer is the kernel's answer to an operation, with the reason of its
// cancellation if it had one.
func (s *slot) answer(res int32) int32 {
	if s.asked != 0 && (res == -int32(unix.ECANCELED) || res == -int32(unix.EINTR)) {
		return -int32(s.asked)
	}
	return res
}

// sweepLoop asks back what has been in flight for longer than timeout.
func (r *Ring) sweepLoop(timeout time.Duration) {
	tick := time.NewTicker(max(timeout/sweepsInTimeout, 1))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.sweep()
		case <-r.reaped:
			return
		}
	}
}

func (r *Ring) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweeps++
	for i := range r.slots {
		if s := &r.slots[i]; s.call != nil && r.sweeps-s.sweep > sweepsInTimeout {
			r.askBackLocked(s, unix.ETIMEDOUT)
		}
	}
	if r.asks {
		r.seeToLocked(nil)
	}
}
