package iopath

import (
	"io"
	"syscall"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// batch is what a call submits: Transfers, or commands.
type batch struct {
	code    uint8
	unfixed bool // commands: use no registered buffer
	file    File
	ops     []Transfer
	set     CommandSet
	cmds    []Command
}

func (b *batch) len() int { return len(b.ops) + len(b.cmds) }

// call is one caller's batch on its way through a ring. The ring's mutex guards
// it from run until its wake.
type call struct {
	one      [1]Transfer // the batch of a caller that has a single operation
	batch    batch
	next     int   // the first operation of the batch that has no slot yet
	pending  int   // operations of the batch that have not ended
	behind   *call // the next in the callQueue
	canceled bool  // by Cancel; holds for what the caller still continues
	baton    bool  // the caller is woken to see to the queue; its call has not ended by that
	wake     chan struct{}
}

// slot says where the answer to operation i goes.
func (c *call) slot(i int) slot {
	if c.batch.code == opCommand {
		return slot{call: c, res: &c.batch.cmds[i].res, result: &c.batch.cmds[i].Result}
	}
	return slot{call: c, res: &c.batch.ops[i].res}
}

// slot is an operation in flight: where its answer goes. It keeps the batch,
// and so the memory, reachable.
type slot struct {
	call   *call
	res    *int32
	result *uint64       // a command's
	sweep  uint32        // Ring.sweeps when it was submitted
	asked  syscall.Errno // why the kernel is asked to cancel it, 0 when it is not
	sent   bool          // it was asked
}

// callQueue is the calls that wait for slots, first come first served. Each is
// a caller that waits, so there are never more than callers.
type callQueue struct{ head, tail *call }

func (q *callQueue) push(c *call) {
	if q.head == nil {
		q.head = c
	} else {
		q.tail.behind = c
	}
	q.tail = c
}

func (q *callQueue) pop() *call {
	c := q.head
	q.head, c.behind = c.behind, nil
	return c
}

// Read fills p from off; see Engine. Memory in the ring's arena is read into
// without pinning it anew.
func (r *Ring) Read(f File, p []byte, off int64) (int, error) {
	return r.transfer(opRead, f, Transfer{P: p, Off: off})
}

// Write writes p at off and returns the bytes written: fewer than len(p) only with an error.
func (r *Ring) Write(f File, p []byte, off int64) (int, error) {
	return r.transfer(opWrite, f, Transfer{P: p, Off: off})
}

// ReadMany reads a batch; see Engine.
func (r *Ring) ReadMany(f File, ops []ReadOp) error { return r.many(opRead, f, ops) }

// WriteMany writes a batch; see Engine.
func (r *Ring) WriteMany(f File, ops []WriteOp) error { return r.many(opWrite, f, ops) }

func (r *Ring) transfer(code uint8, f File, op Transfer) (int, error) {
	c := r.begin()
	defer r.end(c)
	c.one[0] = op
	r.run(c, batch{code: code, file: f, ops: c.one[:]})
	return r.finish(c, code, f, c.one[0])
}

func (r *Ring) many(code uint8, f File, ops []Transfer) error {
	if len(ops) == 0 {
		return nil
	}
	c := r.begin()
	defer r.end(c)
	r.run(c, batch{code: code, file: f, ops: ops})
	var first error
	for i := range ops {
		_, err := r.finish(c, code, f, ops[i])
		if err == io.EOF {
			err = cfs.E(describe(code, f, ops[i].Off), cfs.IO, io.ErrUnexpectedEOF)
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// Fdatasync flushes f's data and, on a block device, its cache; see Engine.
func (r *Ring) Fdatasync(f File) error {
	c := r.begin()
	defer r.end(c)
	for {
		c.one[0] = Transfer{}
		r.run(c, batch{code: opFsync, file: f, ops: c.one[:]})
		switch errno := syscall.Errno(-c.one[0].res); {
		case errno == 0:
			return nil
		case errno != syscall.EINTR && errno != syscall.EAGAIN:
			return refused(describe(opFsync, f, 0), errno)
		}
	}
}

func (r *Ring) begin() *call { return r.calls.Get().(*call) }

// end gives c back, without what would keep the caller's memory reachable.
func (r *Ring) end(c *call) {
	c.one[0], c.batch, c.canceled = Transfer{}, batch{}, false
	r.calls.Put(c)
}

// finish turns the kernel's answer for one transfer into a count and an error,
// and continues the transfer until it is over.
func (r *Ring) finish(c *call, code uint8, f File, op Transfer) (int, error) {
	done := 0
	for {
		n, over, err := op.outcome(code, f)
		if done += n; over {
			return done, err
		}
		c.one[0] = op.rest(n)
		r.run(c, batch{code: code, file: f, ops: c.one[:]})
		op = c.one[0]
	}
}

// outcome is what the kernel's answer means: the bytes transferred, and whether
// that is all. The kernel may interrupt or split a transfer at will.
func (op *Transfer) outcome(code uint8, f File) (n int, over bool, err error) {
	switch n = max(int(op.res), 0); {
	case op.res == -int32(unix.EINTR) || op.res == -int32(unix.EAGAIN):
		return 0, false, nil
	case op.res < 0:
		return 0, true, refused(describe(code, f, op.Off), syscall.Errno(-op.res))
	case n == len(op.P):
		return n, true, nil
	case code == opWrite && n == 0:
		return 0, true, cfs.E(describe(code, f, op.Off), cfs.IO, io.ErrShortWrite)
	case code == opRead && (n == 0 || n%sectorBytes != 0):
		return n, true, io.EOF
	}
	return n, false, nil
}

// rest is what is left to do after n bytes.
func (op *Transfer) rest(n int) Transfer {
	return Transfer{P: op.P[n:], Off: op.Off + int64(n), Sync: op.Sync}
}

// refused is the kernel's refusal as an Error.
func refused(op string, errno syscall.Errno) error {
	kind := cfs.KindOf(errno)
	switch errno {
	case unix.ESHUTDOWN:
		kind = cfs.Closed
	case unix.ECANCELED:
		kind = cfs.Canceled
	}
	return cfs.E(op, kind, errno)
}
