package iopath

import (
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

const (
	// DefaultRingEntries bounds the operations in flight on a ring when RingConfig does not.
	DefaultRingEntries = 256
	// maxRingEntries is the kernel's own bound (IORING_MAX_ENTRIES).
	maxRingEntries = 32768
	// maxFiles bounds the registered files of a ring.
	maxFiles = 64
	// maxEnterRetries bounds how often a submission that the kernel has no
	// memory for is tried again before its operations fail.
	maxEnterRetries = 1000
	// sectorBytes is the least unit of direct I/O: a read that ends off it is at the end of the file.
	sectorBytes = 512
)

// RingConfig says how to make a Ring.
type RingConfig struct {
	// Entries bounds the operations in flight, rounded up to a power of two; 0 for DefaultRingEntries.
	Entries int
	// Arena is registered as fixed buffers; nil for none. It must outlive the ring.
	Arena *Arena
	// Logger is told what the kernel lacks; nil for none.
	Logger *slog.Logger
}

// Ring is an io_uring that any number of goroutines share. See the package doc.
type Ring struct {
	arena   *Arena     // nil when not registered
	poll    *os.File   // the ring's descriptor in the netpoller
	calls   chan *call // idle calls; as many as entries
	reaped  chan struct{}
	hasSlot bool // there is a file table

	mu     sync.Mutex
	q      *queues
	slots  []slot
	free   []uint32   // slots not in flight
	room   *sync.Cond // a slot became free, or Close
	files  [maxFiles]bool
	closed bool
}

// call is one caller's batch.
type call struct {
	one     [1]Transfer // the batch of a caller that has a single operation
	pending int         // operations of the batch that have not completed; under Ring.mu
	wake    chan struct{}
}

// slot is an operation in flight. It keeps the memory reachable.
type slot struct {
	call *call
	op   *Transfer
}

// NewRing makes a ring. What the kernel lacks of the optional features is
// logged and done without. Unsupported when there is no io_uring at all (before
// Linux 5.6, or forbidden by sysctl or seccomp).
func NewRing(cfg RingConfig) (*Ring, error) {
	const op = "make io_uring"
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Entries == 0 {
		cfg.Entries = DefaultRingEntries
	}
	if cfg.Entries < 1 || cfg.Entries > maxRingEntries {
		return nil, cfs.Errorf(op, cfs.Invalid, "%d entries, want 1 to %d", cfg.Entries, maxRingEntries)
	}
	const must, may = setupClamp | setupCQSize, setupSubmitAll | setupNoSQArray
	q, err := setupQueues(uint32(cfg.Entries), must|may)
	if err == unix.EINVAL {
		log.Info("io_uring without SUBMIT_ALL and NO_SQARRAY", "err", err)
		q, err = setupQueues(uint32(cfg.Entries), must)
	}
	if err != nil {
		return nil, cfs.Errorf(op, cfs.Unsupported, "%w", err)
	}
	r := &Ring{q: q, hasSlot: true, reaped: make(chan struct{})}
	r.room = sync.NewCond(&r.mu)
	if cfg.Arena != nil {
		if err := q.registerMemory(cfg.Arena.chunks()); err != nil {
			log.Warn("io_uring without fixed buffers", "bytes", cfg.Arena.SizeBytes(), "err", err)
		} else {
			r.arena = cfg.Arena
		}
	}
	if err := q.registerFileTable(maxFiles); err != nil {
		log.Warn("io_uring without fixed files", "err", err)
		r.hasSlot = false
	}
	n := int(q.entries)
	r.slots, r.free, r.calls = make([]slot, n), make([]uint32, n), make(chan *call, n)
	for i := range n {
		r.free[i] = uint32(i)
		r.calls <- &call{wake: make(chan struct{}, 1)}
	}
	// Non-blocking, so that os.NewFile hands it to the netpoller.
	_ = unix.SetNonblock(q.fd, true)
	r.poll = os.NewFile(uintptr(q.fd), "io_uring")
	if err := r.poll.SetReadDeadline(time.Time{}); err != nil {
		q.unmap()
		r.poll.Close()
		return nil, cfs.Errorf(op, cfs.Unsupported, "the ring cannot be polled: %w", err)
	}
	go r.reapLoop()
	return r, nil
}

// RegisterFile gives f a fixed slot; see Engine. A ring without a file table
// uses f's descriptor, so f must then stay open until UnregisterFile.
func (r *Ring) RegisterFile(f *os.File) (File, error) {
	op := "register " + f.Name()
	conn, err := f.SyscallConn()
	if err != nil {
		return File{}, cfs.E(op, cfs.Closed, err)
	}
	out := File{name: f.Name(), slot: -1}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return File{}, cfs.E(op, cfs.Closed, nil)
	}
	var regErr error
	err = conn.Control(func(fd uintptr) {
		out.fd = int32(fd)
		if r.hasSlot {
			out.slot, regErr = r.takeSlotLocked(out.fd)
		}
	})
	if err != nil {
		return File{}, cfs.E(op, cfs.Closed, err)
	}
	if regErr != nil {
		return File{}, cfs.E(op, cfs.KindOf(regErr), regErr)
	}
	return out, nil
}

func (r *Ring) takeSlotLocked(fd int32) (int32, error) {
	for i, used := range r.files {
		if used {
			continue
		}
		if err := r.q.setFile(int32(i), fd); err != nil {
			return -1, err
		}
		r.files[i] = true
		return int32(i), nil
	}
	return -1, cfs.Errorf("", cfs.Overloaded, "a ring takes %d files", maxFiles)
}

// UnregisterFile frees f's slot; see Engine.
func (r *Ring) UnregisterFile(f File) error {
	if f.slot < 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil // the table went with the ring
	}
	r.files[f.slot] = false
	if err := r.q.setFile(f.slot, -1); err != nil {
		return cfs.E("unregister "+f.name, cfs.KindOf(err), err)
	}
	return nil
}

// Read fills p from off; see Engine. Memory in the ring's arena is read into
// without pinning it anew.
func (r *Ring) Read(f File, p []byte, off int64) (int, error) {
	c := <-r.calls
	c.one[0] = Transfer{P: p, Off: off}
	r.run(c, opRead, f, c.one[:])
	n, err := r.finish(c, opRead, f, p, off, c.one[0].res)
	r.idle(c)
	return n, err
}

// Write writes p at off and returns the bytes written: fewer than len(p) only with an error.
func (r *Ring) Write(f File, p []byte, off int64) (int, error) {
	c := <-r.calls
	c.one[0] = Transfer{P: p, Off: off}
	r.run(c, opWrite, f, c.one[:])
	n, err := r.finish(c, opWrite, f, p, off, c.one[0].res)
	r.idle(c)
	return n, err
}

// ReadMany reads a batch; see Engine.
func (r *Ring) ReadMany(f File, ops []ReadOp) error { return r.many(opRead, f, ops) }

// WriteMany writes a batch; see Engine.
func (r *Ring) WriteMany(f File, ops []WriteOp) error { return r.many(opWrite, f, ops) }

func (r *Ring) many(code uint8, f File, ops []Transfer) error {
	if len(ops) == 0 {
		return nil
	}
	c := <-r.calls
	r.run(c, code, f, ops)
	var first error
	for i := range ops {
		_, err := r.finish(c, code, f, ops[i].P, ops[i].Off, ops[i].res)
		if err == io.EOF {
			err = cfs.E(describe(code, f, ops[i].Off), cfs.IO, io.ErrUnexpectedEOF)
		}
		if first == nil {
			first = err
		}
	}
	r.idle(c)
	return first
}

// Fdatasync flushes f's data and, on a block device, its cache; see Engine.
func (r *Ring) Fdatasync(f File) error {
	c := <-r.calls
	defer r.idle(c)
	for {
		c.one[0] = Transfer{}
		r.run(c, opFsync, f, c.one[:])
		switch errno := syscall.Errno(-c.one[0].res); {
		case errno == 0:
			return nil
		case errno != syscall.EINTR && errno != syscall.EAGAIN:
			return failed(opFsync, f, 0, errno)
		}
	}
}

// Close waits for the operations in flight, then frees the ring. Later calls
// fail with Closed.
func (r *Ring) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.room.Broadcast()
	for len(r.free) < len(r.slots) {
		r.room.Wait()
	}
	r.mu.Unlock()
	err := r.poll.Close()
	<-r.reaped
	r.q.unmap()
	if err != nil {
		return cfs.E("close io_uring", cfs.IO, err)
	}
	return nil
}

func (r *Ring) idle(c *call) {
	c.one[0] = Transfer{}
	r.calls <- c
}

// run submits a batch and waits until all of it has completed; each Transfer
// has the kernel's answer then.
func (r *Ring) run(c *call, code uint8, f File, ops []Transfer) {
	r.mu.Lock()
	c.pending = len(ops)
	open := true
	for i := range ops {
		if open = open && r.roomLocked(); !open {
			ops[i].res = -int32(unix.ESHUTDOWN)
			r.completeLocked(c)
			continue
		}
		r.prepareLocked(c, code, f, &ops[i])
	}
	if open { // otherwise the mapping may be gone, and nothing is unsubmitted
		r.submitLocked()
		r.reapLocked()
	}
	r.mu.Unlock()
	<-c.wake
}

// roomLocked waits for a free slot; false when the ring is closed.
func (r *Ring) roomLocked() bool {
	for len(r.free) == 0 && !r.closed {
		r.submitLocked() // what this batch has prepared: others may wait for it
		if r.reapLocked(); len(r.free) == 0 {
			r.room.Wait()
		}
	}
	return !r.closed
}

func (r *Ring) prepareLocked(c *call, code uint8, f File, op *Transfer) {
	op.res = 0
	i := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	r.slots[i] = slot{call: c, op: op}
	s := r.q.next()
	s.Op, s.Fd, s.Off, s.UserData = code, f.fd, uint64(op.Off), uint64(i)
	if f.slot >= 0 {
		s.Fd = f.slot
		s.Flags = sqeFixedFile
	}
	if code == opFsync {
		s.OpFlags = fsyncDataSync
		return
	}
	s.Addr, s.Len = address(op.P), uint32(len(op.P))
	if r.arena == nil {
		return
	}
	if chunk := r.arena.chunkOf(op.P); chunk >= 0 {
		s.BufIndex = uint16(chunk)
		s.Op = opReadFixed
		if code == opWrite {
			s.Op = opWriteFixed
		}
	}
}

// submitLocked gives the prepared operations to the kernel. Those that it does
// not take complete with its error.
func (r *Ring) submitLocked() {
	for tries := 0; r.q.unsubmitted() > 0; tries++ {
		err := r.q.enter()
		switch {
		case err == nil || err == unix.EINTR:
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
			r.slotDoneLocked(uint32(r.q.withdraw()), -int32(errno))
		}
	}
}

// reapLocked takes all completions that are there.
func (r *Ring) reapLocked() {
	for {
		e, ok := r.q.pop()
		if !ok {
			return
		}
		r.slotDoneLocked(uint32(e.UserData), e.Res)
	}
}

func (r *Ring) slotDoneLocked(i uint32, res int32) {
	s := r.slots[i]
	r.slots[i] = slot{}
	r.free = append(r.free, i)
	s.op.res = res
	r.completeLocked(s.call)
	if len(r.free) == 1 || r.closed {
		r.room.Broadcast()
	}
}

func (r *Ring) completeLocked(c *call) {
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
		r.reapLocked()
		r.mu.Unlock()
		return false
	})
}

// finish turns the kernel's answer for one transfer into a count and an error.
// A short transfer is continued: the kernel may split one at will.
func (r *Ring) finish(c *call, code uint8, f File, p []byte, off int64, res int32) (int, error) {
	done := 0
	for {
		if res < 0 {
			if errno := syscall.Errno(-res); errno != syscall.EINTR && errno != syscall.EAGAIN {
				return done, failed(code, f, off+int64(done), errno)
			}
			res = 0
		} else if res == 0 && done < len(p) {
			if code == opRead {
				return done, io.EOF
			}
			return done, cfs.E(describe(code, f, off+int64(done)), cfs.IO, io.ErrShortWrite)
		}
		if done += int(res); done == len(p) {
			return done, nil
		}
		if code == opRead && res%sectorBytes != 0 {
			return done, io.EOF
		}
		c.one[0] = Transfer{P: p[done:], Off: off + int64(done)}
		r.run(c, code, f, c.one[:])
		res = c.one[0].res
	}
}

// failed is the kernel's refusal as an Error.
func failed(code uint8, f File, off int64, errno syscall.Errno) error {
	kind := cfs.KindOf(errno)
	if errno == unix.ESHUTDOWN {
		kind = cfs.Closed
	}
	return cfs.E(describe(code, f, off), kind, errno)
}
