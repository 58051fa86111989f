package fuse

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// interruptPollFirst and interruptPollMax are how often a signalled thread is looked at again.
	interruptPollFirst = 10 * time.Millisecond
	interruptPollMax   = 500 * time.Millisecond
	// lostSignalAfter is when a request that waits is looked at for a signal that was not told of.
	lostSignalAfter = 100 * time.Millisecond
)

// request is one request of the kernel from its arrival to its answer. It is the
// context that the client is given: done when the thread that asked is dying, or
// the mount is being forced down.
//
// The kernel tells of a request's first signal only, whatever the signal, and a
// thread that was killed waits for the answer all the same. A program does not
// expect EINTR from a disk, so a signalled request goes on, while its thread is
// looked at from time to time; it is given up once a SIGKILL is pending (any
// signal that ends the process becomes one for each of its threads).
//
// Watching costs a goroutine, so it begins when somebody first calls Done, which
// an answer from memory never does.
type request struct {
	fs    *fileSystem
	op    op
	pid   uint32 // the thread that asked; 0 if it is not of our pid namespace
	start time.Time
	// interrupt is closed by go-fuse when the kernel sends INTERRUPT; nil for never.
	interrupt <-chan struct{}
	// anySignal gives the request up at any signal, as it is with a wait that a program
	// may end by one: set before the request is first used as a context.
	anySignal bool
	dead      atomic.Bool
	late      atomic.Bool // dead because it took longer than the mount's timeout

	mu       sync.Mutex
	done     chan struct{} // made by the first call of Done
	finished chan struct{} // made with done; closed by end
	after    []*func()     // called in goroutines of their own when done is closed
}

var _ context.Context = (*request)(nil)

// begin starts a request; each ends with end.
func (fs *fileSystem) begin(o op, interrupt <-chan struct{}, h *gofuse.InHeader) *request {
	return &request{fs: fs, op: o, pid: h.Pid, start: time.Now(), interrupt: interrupt}
}

// end counts the answer and gives it as the kernel wants it.
func (r *request) end(err error) gofuse.Status {
	r.mu.Lock()
	if r.finished != nil {
		close(r.finished)
		r.finished = nil
	}
	r.mu.Unlock()
	errno := errnoOf(err)
	// What gave up says so in its own way: it was canceled, or its last attempt has timed out.
	if r.late.Load() && (errno == syscall.EINTR || errno == syscall.ETIMEDOUT) {
		errno = syscall.EIO
	}
	r.fs.metrics.record(r.op, time.Since(r.start), errno)
	if errno == syscall.EIO {
		r.fs.log.Warn("request failed", "op", opNames[r.op], "err", err)
	}
	return gofuse.Status(errno)
}

// errnoOf is cfs.Errno, which knows nothing of contexts.
func errnoOf(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	}
	return cfs.Errno(err)
}

// gone turns the absence of an inode that the kernel names by number into
// ESTALE: the kernel then looks the path up again instead of believing it gone.
func gone(err error) error {
	if err != nil && cfs.KindOf(err) == cfs.NotFound {
		return cfs.E("inode", cfs.Stale, err)
	}
	return err
}

// Deadline is none: the mount's timeout shows in Done, when somebody asks for it.
func (r *request) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value has none.
func (r *request) Value(any) any { return nil }

// Err is context.Canceled after Done is closed.
func (r *request) Err() error {
	if r.dead.Load() {
		return context.Canceled
	}
	return nil
}

// Done is closed when the request need not be answered any more.
func (r *request) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil {
		r.done = make(chan struct{})
		r.finished = make(chan struct{})
		go r.watch(r.done, r.finished)
	}
	return r.done
}

// watch closes done when the request is to be given up, and returns at the
// latest when it is finished.
func (r *request) watch(done chan<- struct{}, finished <-chan struct{}) {
	if !r.wait(finished) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead.Store(true)
	close(done)
	for _, f := range r.after {
		go (*f)()
	}
	r.after = nil
}

// AfterFunc is what package context looks for in a parent: without it each context that
// is made of a request costs a goroutine.
func (r *request) AfterFunc(f func()) (stop func() bool) {
	r.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead.Load() {
		go f()
		return func() bool { return false }
	}
	r.after = append(r.after, &f)
	return func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.Index(r.after, &f)
		if i >= 0 {
			r.after = slices.Delete(r.after, i, i+1)
		}
		return i >= 0
	}
}

// wait reports that the request is to be given up; false when it is finished.
func (r *request) wait(finished <-chan struct{}) bool {
	var expired <-chan time.Time
	if limit := r.fs.timeout; limit > 0 && !r.anySignal {
		t := time.NewTimer(limit - time.Since(r.start))
		defer t.Stop()
		expired = t.C
	}
	// A signal that comes before the request has left the kernel by io_uring is never told of: it is still
	// pending, and looked for once.
	timer := time.NewTimer(lostSignalAfter)
	defer timer.Stop()
	interrupt, signalled := r.interrupt, false
	for pause := interruptPollFirst; ; {
		select {
		case <-finished:
			return false
		case <-r.fs.stop:
			return true
		case <-expired:
			r.late.Store(true)
			return true
		case <-interrupt:
			interrupt, signalled = nil, true
		case <-timer.C:
			signalled = signalled || r.fs.losesSignals && r.pid != 0 && pending(r.pid)
		}
		if !signalled {
			continue
		}
		if r.anySignal || dying(r.pid) {
			return true
		}
		timer.Reset(pause)
		pause = min(2*pause, interruptPollMax)
	}
}

// dying reports that a thread is gone or has SIGKILL pending. Of a thread that
// cannot be seen (0) nothing is known: it is taken at its signal's word.
func dying(tid uint32) bool {
	if tid == 0 {
		return true
	}
	status, err := statusOf(tid)
	return err != nil || killPending(status)
}

// pending reports that a thread has a signal pending that it does not block.
func pending(tid uint32) bool {
	status, err := statusOf(tid)
	return err != nil || signalPending(status)
}

// statusOf is a thread's /proc/PID/status.
func statusOf(tid uint32) ([]byte, error) {
	return os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
}

// signalPending finds signals that are pending and not blocked in a /proc/PID/status.
func signalPending(status []byte) bool {
	sets := map[string]uint64{}
	for line := range bytes.Lines(status) {
		name, set, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) != len("SigPnd") && len(name) != len("ShdPnd") {
			continue
		}
		if bits, err := strconv.ParseUint(string(bytes.TrimSpace(set)), 16, 64); err == nil {
			sets[string(name)] = bits
		}
	}
	return (sets["SigPnd"]|sets["ShdPnd"])&^sets["SigBlk"] != 0
}

// killPending finds SIGKILL in the pending sets of a /proc/PID/status.
func killPending(status []byte) bool {
	for line := range bytes.Lines(status) {
		set, ok := bytes.CutPrefix(line, []byte("SigPnd:"))
		if !ok {
			set, ok = bytes.CutPrefix(line, []byte("ShdPnd:"))
		}
		if !ok {
			continue
		}
		bits, err := strconv.ParseUint(string(bytes.TrimSpace(set)), 16, 64)
		if err == nil && bits&(1<<(uint(syscall.SIGKILL)-1)) != 0 {
			return true
		}
	}
	return false
}
