package iopath

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// User data that is no slot's number.
const (
	bellData   = 1 << 32 // the owner's eventfd was written to
	cancelData = 2 << 32 // a cancellation has ended; what it canceled answers for itself
)

// maxEnterRetries bounds how often a submission that the kernel has no
// memory for is tried again before its operations fail.
const maxEnterRetries = 1000

// maxPolledBytes bounds a transfer that is polled. Before Linux 6.3 one that the
// block layer has to divide is tried again for ever, inside the kernel; and the
// time of a larger one is not the interrupt's.
const maxPolledBytes = 64 << 10

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
		switch {
		case r.owned:
			r.wakeLocked()
		case r.gathering: // whoever gathers submits for all
		case r.inFlightLocked() == 0 && r.q.canMute():
			r.waitAloneLocked(c)
		default:
			r.gatherLocked()
		}
	}
	r.mu.Unlock()
	<-c.wake
}

// waitAloneLocked waits in the kernel, as a plain read would, while nobody else
// has anything in flight: that saves the detour through the netpoller and the
// reaper, which is most of what a lone operation costs. Meanwhile nobody else
// reaps, so that the completion for which the kernel wakes this caller is there.
func (r *Ring) waitAloneLocked(c *call) {
	r.alone = true
	r.q.mute(true)
	for c.pending > 0 && r.inFlightLocked() <= c.pending {
		r.admitLocked()
		r.submitLocked(true)
		r.takeLocked()
	}
	r.alone = false
	r.q.mute(false)
	r.pumpLocked() // for those who came meanwhile
}

// gatherLocked submits what waits, but lets the goroutines that are about to
// submit come first, and submits for them too. Completions wake callers in
// groups, and those come back in groups: one system call for a group is what
// makes a shared ring cheap. With nothing in flight no group is on its way.
func (r *Ring) gatherLocked() {
	if r.inFlightLocked() > 0 {
		r.gathering = true
		r.mu.Unlock()
		runtime.Gosched()
		r.mu.Lock()
		r.gathering = false
	}
	r.pumpLocked()
}

// pumpLocked submits what waits as far as there are slots, and reaps. A ring that
// is closed and drained has no queues any more.
func (r *Ring) pumpLocked() {
	for more := true; more && (!r.closed || r.inFlightLocked() > 0); more = r.waiting.head != nil && len(r.free) > 0 {
		r.admitLocked()
		r.submitLocked(false)
		r.reapLocked()
	}
}

func (r *Ring) inFlightLocked() int { return len(r.slots) - len(r.free) }

// admitLocked gives slots to the operations that wait, and asks for cancellations.
func (r *Ring) admitLocked() {
	for r.waiting.head != nil && len(r.free) > 0 {
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
	s := r.sqeLocked()
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

// sqeLocked is a cleared SQE.
func (r *Ring) sqeLocked() *sqe {
	if r.q.unsubmitted() == r.q.entries {
		r.submitLocked(false)
	}
	return r.q.next()
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
			runtime.Gosched()
			continue
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

// reapLocked takes all completions that are there, unless a caller waits for them
// in the kernel.
func (r *Ring) reapLocked() {
	if !r.alone {
		r.takeLocked()
	}
}

func (r *Ring) takeLocked() {
	for {
		e, ok := r.q.pop()
		if !ok {
			return
		}
		r.completedLocked(e)
	}
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
		c.wake <- struct{}{} // has room: one batch, one wake
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
		if r.reapLocked(); r.waiting.head != nil && !r.gathering {
			r.pumpLocked()
		}
		r.mu.Unlock()
		return false
	})
}
