package iopath

import (
	"math"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// User data that is no slot's number.
const (
	bellData   = 1 << 32 // the owner's eventfd was written to
	cancelData = 2 << 32 // a cancellation has ended; what it canceled answers for itself
)

const (
	// maxEnterRetries bounds how often a submission that the kernel has no
	// memory for is tried again before its operations fail.
	maxEnterRetries = 1000
	// groupsInFlight is how many groups are made of the operations in flight.
	groupsInFlight = 8
	// maxPolledBytes bounds a transfer that is polled. Before Linux 6.3 one that the
	// block layer has to divide is tried again for ever, inside the kernel; and the
	// time of a larger one is not the interrupt's.
	maxPolledBytes = 64 << 10
)

// pollable reports that a batch may go to a polled ring.
func (b *batch) pollable() bool {
	if b.code != opRead && b.code != opWrite {
		return false
	}
	for i := range b.ops {
		if len(b.ops[i].P) > maxPolledBytes {
			return false
		}
	}
	return true
}

// run submits a batch and waits until all of it has ended; each operation has
// the kernel's answer then.
func (r *Ring) run(c *call, b batch) {
	if r.polled != nil && b.file.polled >= 0 && b.pollable() {
		b.file = b.file.onPolled()
		r.polled.run(c, b)
		return
	}
	r.mu.Lock()
	c.batch, c.next, c.pending = b, 0, b.len()
	switch {
	case r.closed:
		r.abandonLocked(c, unix.ESHUTDOWN)
	case c.canceled:
		r.abandonLocked(c, unix.ECANCELED)
	default:
		r.waiting.push(c)
		r.seeToLocked(c)
	}
	r.mu.Unlock()
	for <-c.wake; c.baton; <-c.wake {
		r.takeOver(c)
	}
}

// seeToLocked has what is queued submitted: by c's caller, who waits for it, or,
// when c is nil, on somebody's behalf.
func (r *Ring) seeToLocked(c *call) {
	switch {
	case r.owned:
		r.wakeLocked()
	case r.gathering > 0: // who is about to submit looks again afterwards
	case c != nil && !r.leading && r.q.canMute():
		r.leadLocked(c)
	default:
		if c != nil {
			r.yieldLocked()
		}
		r.pumpLocked()
	}
}

// leadLocked drives the ring for everybody until c has ended: c's caller, who has
// to wait anyway, waits in the kernel for completions instead of on its
// channel. For a lone operation that is a plain read's way, without the detour
// through the netpoller and the reaper. Under load it makes groups: completions
// wake callers, the leader yields to them, they queue their next operations and
// need no system call, and the leader submits them all. Nobody else reaps
// meanwhile, so that what the kernel wakes the leader for is there.
func (r *Ring) leadLocked(c *call) {
	r.pumping++
	r.leading = true
	r.q.mute(true)
	if r.inFlightLocked() > 0 || r.woken > 1 {
		r.yieldLocked()
	}
	for c.pending > 0 {
		r.admitLocked()
		r.submitLocked(r.q.empty())
		if r.takeLocked(r.groupLocked()); r.woken > 0 && c.pending > 0 {
			r.yieldLocked()
		}
	}
	r.leading = false
	r.q.mute(false)
	r.pumpLocked() // what came meanwhile
	r.pumpedLocked()
}

// yieldLocked lets the goroutines run that are about to submit; what they queue
// is submitted by who yields.
func (r *Ring) yieldLocked() {
	r.gathering++
	r.mu.Unlock()
	runtime.Gosched()
	r.mu.Lock()
	r.gathering--
}

// pumpLocked submits what waits, as far as there are slots, and reaps. What comes
// meanwhile it leaves to the next, so that no caller is kept when it has its answer.
func (r *Ring) pumpLocked() {
	if r.closed && r.inFlightLocked() == 0 {
		return // there are no queues any more
	}
	r.pumping++
	for more := true; more; more = r.asks {
		r.admitLocked()
		r.submitLocked(false)
		r.reapLocked()
	}
	if c := r.waiting.head; c != nil && len(r.free) > 0 && r.gathering == 0 {
		r.gathering++
		c.baton = true
		c.wake <- struct{}{} // has room, see endedLocked
	}
	r.pumpedLocked()
}

// takeOver is for a caller that was woken to see to the queue.
func (r *Ring) takeOver(c *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gathering--
	if c.baton = false; c.pending == 0 {
		c = nil
	}
	r.seeToLocked(c)
}

// pumpedLocked tells Close of a caller that has done with the queues.
func (r *Ring) pumpedLocked() {
	if r.pumping--; r.closed {
		r.drained.Broadcast()
	}
}

// groupLocked is how many completions are dealt with before the device is given
// new work: when it is given all of it at once, it idles meanwhile.
func (r *Ring) groupLocked() int { return 1 + r.inFlightLocked()/groupsInFlight }

func (r *Ring) inFlightLocked() int { return len(r.slots) - len(r.free) }

// admitLocked gives slots to the operations that wait, and asks for cancellations.
func (r *Ring) admitLocked() {
	for r.waiting.head != nil && len(r.free) > 0 && !r.q.full() {
		c := r.waiting.head
		r.prepareLocked(c, c.next)
		if c.next++; c.next == c.batch.len() {
			r.waiting.pop()
		}
	}
	if r.asks {
		r.prepareCancelsLocked()
	}
}

// abandonLocked ends the operations of c that have no slot.
func (r *Ring) abandonLocked(c *call, errno syscall.Errno) {
	for range c.batch.len() - c.next { // c is the caller's again after the last
		res := c.slot(c.next).res
		c.next++
		*res = -int32(errno)
		r.endedLocked(c)
	}
}

// prepareLocked fills an SQE with operation i of c's batch.
func (r *Ring) prepareLocked(c *call, i int) {
	s := r.q.next()
	at := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	r.slots[at] = c.slot(i)
	r.slots[at].sweep = r.sweeps
	b := &c.batch
	s.Op, s.Fd, s.UserData = b.code, b.file.fd, uint64(at)
	if b.file.slot >= 0 {
		s.Fd, s.Flags = b.file.slot, sqeFixedFile
	}
	switch b.code {
	case opCommand:
		r.prepareCommandLocked(s, b, &b.cmds[i])
	case opFsync:
		s.OpFlags = fsyncDataSync
	default:
		r.prepareTransferLocked(s, &b.ops[i])
	}
}

// prepareTransferLocked fills an SQE with a read or write.
func (r *Ring) prepareTransferLocked(s *sqe, op *Transfer) {
	s.Off, s.Addr, s.Len = uint64(op.Off), address(op.P), uint32(len(op.P))
	if op.Sync && s.Op == opWrite {
		s.OpFlags = rwDsync
	}
	if r.arena == nil {
		return
	}
	if chunk := r.arena.chunkOf(op.P); chunk >= 0 {
		s.BufIndex = uint16(chunk)
		if s.Op == opRead {
			s.Op = opReadFixed
		} else {
			s.Op = opWriteFixed
		}
	}
}

// submitLocked gives the prepared operations to the kernel. Those that it does
// not take end with its error. With look it enters at least once; see enterLocked.
func (r *Ring) submitLocked(look bool) {
	for tries := 0; look || r.q.unsubmitted() > 0; tries++ {
		err := r.enterLocked(look)
		switch {
		case err == nil:
			look = false
			continue
		case err == unix.EINTR:
			continue
		case (err == unix.EAGAIN || err == unix.EBUSY) && tries < maxEnterRetries:
			r.reapLocked()
			r.yieldLocked()
			continue
		case r.inKernel > 0: // who may be taking them just now; and submits again when it is back
			return
		}
		errno, ok := err.(syscall.Errno)
		if !ok {
			errno = unix.EIO
		}
		for r.q.unsubmitted() > 0 {
			r.completedLocked(cqe{UserData: r.q.withdraw(), Res: -int32(errno)})
		}
		return
	}
}

// enterLocked is one system call, during which the lock is free. It submits what
// is prepared; who queues something meanwhile leaves it to this caller. With
// look it waits for a completion too, or polls once, and does not keep others
// from submitting.
func (r *Ring) enterLocked(look bool) error {
	n, wait, flags := r.q.publish(), uint32(0), uint32(0)
	if look {
		flags = enterGetEvents
		if !r.polling {
			wait = 1
		}
	} else {
		r.gathering++
	}
	r.inKernel++
	r.mu.Unlock()
	err := r.q.enter(n, wait, flags)
	r.mu.Lock()
	r.inKernel--
	if !look {
		r.gathering--
	}
	return err
}

// reapLocked takes all completions that are there, unless a caller waits for them
// in the kernel.
func (r *Ring) reapLocked() {
	if !r.leading {
		r.takeLocked(math.MaxInt)
	}
}

// takeLocked takes at most so many completions, and notes how many calls it woke.
func (r *Ring) takeLocked(most int) {
	woken := r.wakes
	for range most {
		e, ok := r.q.pop()
		if !ok {
			break
		}
		r.completedLocked(e)
	}
	r.woken = r.wakes - woken
}

func (r *Ring) completedLocked(e cqe) {
	switch e.UserData {
	case bellData:
		r.armed = false
		return
	case cancelData:
		return
	}
	at := uint32(e.UserData)
	s := r.slots[at]
	r.slots[at] = slot{}
	r.free = append(r.free, at)
	*s.res = s.answer(e.Res)
	if s.result != nil {
		*s.result = e.Extra
	}
	r.endedLocked(s.call)
	if r.closed && r.inFlightLocked() == 0 {
		r.drained.Broadcast()
	}
}

// endedLocked counts an operation of c that has ended; the last wakes the caller.
func (r *Ring) endedLocked(c *call) {
	if c.pending--; c.pending == 0 {
		r.wakes++
		c.wake <- struct{}{} // has room for two: the baton, and the end
	}
}

// reapLoop reaps what no submitter does, parked in the netpoller meanwhile.
func (r *Ring) reapLoop() {
	defer close(r.reaped)
	conn, err := r.poll.SyscallConn()
	if err != nil {
		return
	}
	// Read parks after each call that returns false, and ends at Close.
	_ = conn.Read(func(uintptr) bool {
		r.mu.Lock()
		if r.reapLocked(); r.waiting.head != nil {
			r.seeToLocked(nil)
		}
		r.mu.Unlock()
		return false
	})
}
