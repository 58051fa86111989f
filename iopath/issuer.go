package iopath

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// A ring with SingleIssuer has an owner: a goroutine locked to a thread of its
// own, which alone enters the kernel. The kernel then takes no lock for it and
// runs completions when the owner asks for them (DEFER_TASKRUN) and not in the
// middle of something else. Callers queue their batches and wake the owner: by
// the condition when nothing is in flight, otherwise by an eventfd on which a
// read is always in flight, so that the owner waits for one thing only. The
// owner of a polled ring never waits while something is in flight.

// own is the owner's life, on a thread that ends with it: it makes the ring, and
// ends when the ring is closed and nothing is in flight.
func (r *Ring) own(cfg RingConfig, flags uint32, made chan<- error) {
	runtime.LockOSThread()
	defer close(r.reaped)
	err := r.setup(cfg, flags)
	made <- err
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		for _, job := range r.jobs {
			job()
		}
		r.jobs = r.jobs[:0]
		r.admitLocked()
		switch {
		case r.inFlightLocked() > 0:
			r.armLocked()
			r.submitLocked(r.q.empty())
			r.called = false
			r.takeLocked(r.groupLocked())
		case r.closed:
			r.silenceLocked()
			r.q.unregister()
			return
		default:
			r.work.Wait()
		}
	}
}

// wakeLocked makes the owner look at what was queued.
func (r *Ring) wakeLocked() {
	switch {
	case r.inKernel == 0:
		r.work.Signal()
	case !r.polling && !r.called: // one ring is enough
		r.called = true
		r.ringLocked()
	}
}

// armLocked keeps a read of the eventfd in flight.
func (r *Ring) armLocked() {
	if r.armed || r.polling {
		return
	}
	if r.q.full() {
		r.submitLocked(false)
	}
	s := r.q.next()
	s.Op, s.Fd, s.UserData = opRead, int32(r.bell), bellData
	s.Addr, s.Len = address(r.rung[:]), uint32(len(r.rung))
	r.armed = true
}

// silenceLocked ends the read of the eventfd, whose memory the kernel would keep.
func (r *Ring) silenceLocked() {
	for r.armed {
		r.ringLocked()
		r.submitLocked(true)
		r.reapLocked()
	}
}

func (r *Ring) ringLocked() {
	one := [8]byte{1}                 // any number other than 0, in either byte order
	_, _ = unix.Write(r.bell, one[:]) // fails only when it has been rung 2^63 times
}
