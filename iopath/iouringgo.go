//go:build iouringgo

package iopath

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/claudefs/claudefs/cfs"
	iouring "github.com/iceber/iouring-go"
	isys "github.com/iceber/iouring-go/syscall"
)

// IouringGo is the reference engine: github.com/iceber/iouring-go behind Engine,
// there to be measured against. It is the library as it is, with its file table
// and registered buffers, and with the library's faults: see iouringgo_test.go
// for those that Engine's conformance suite finds. Building it takes the tag
// iouringgo and -ldflags=-checklinkname=0, because the library reaches into the
// standard library in a way that the linker refuses.
type IouringGo struct {
	ring    *iouring.IOURing
	arena   *Arena // nil when not registered
	entries int
	taking  sync.Mutex    // who takes room takes all that it needs before the next does
	room    chan struct{} // one for each operation in flight

	mu     sync.RWMutex // held for reading by every call, so that Close waits for them
	files  int
	closed bool
}

var _ Engine = (*IouringGo)(nil)

// NewIouringGo makes the reference engine. Of cfg it knows Entries, Arena and Logger.
func NewIouringGo(cfg RingConfig) (*IouringGo, error) {
	if cfg.Entries == 0 {
		cfg.Entries = DefaultRingEntries
	}
	ring, err := iouring.New(uint(cfg.Entries))
	if err != nil {
		return nil, cfs.Errorf("make iouring-go", cfs.Unsupported, "%w", err)
	}
	e := &IouringGo{ring: ring, entries: ring.Size(), room: make(chan struct{}, ring.Size())}
	if cfg.Arena != nil {
		if err := ring.RegisterBuffers(cfg.Arena.chunks()); err == nil {
			e.arena = cfg.Arena
		} else if cfg.Logger != nil {
			cfg.Logger.Warn("iouring-go without fixed buffers", "bytes", cfg.Arena.SizeBytes(), "err", err)
		}
	}
	return e, nil
}

// RegisterFile uses the library's file table.
func (e *IouringGo) RegisterFile(f *os.File) (File, error) {
	op := "register " + f.Name()
	conn, err := f.SyscallConn()
	if err != nil {
		return File{}, cfs.E(op, cfs.Closed, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return File{}, cfs.E(op, cfs.Closed, nil)
	}
	if e.files == maxFiles {
		return File{}, cfs.Errorf(op, cfs.Overloaded, "a ring takes %d files", maxFiles)
	}
	out := File{name: f.Name(), slot: -1, polled: -1}
	var regErr error
	if err := conn.Control(func(fd uintptr) {
		out.fd = int32(fd)
		regErr = e.ring.FileRegister().RegisterFile(out.fd)
	}); err != nil {
		return File{}, cfs.E(op, cfs.Closed, err)
	}
	if regErr != nil {
		return File{}, cfs.E(op, cfs.KindOf(regErr), regErr)
	}
	e.files++
	return out, nil
}

// UnregisterFile frees f's slot.
func (e *IouringGo) UnregisterFile(f File) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.files--
	if err := e.ring.FileRegister().UnregisterFile(f.fd); err != nil {
		return cfs.E("unregister "+f.name, cfs.KindOf(err), err)
	}
	return nil
}

// Read fills p from off.
func (e *IouringGo) Read(f File, p []byte, off int64) (int, error) {
	ops := []Transfer{{P: p, Off: off}}
	e.run(opRead, f, ops)
	return e.finish(opRead, f, ops[0])
}

// ReadMany reads a batch.
func (e *IouringGo) ReadMany(f File, ops []ReadOp) error { return e.many(opRead, f, ops) }

// WriteMany writes a batch.
func (e *IouringGo) WriteMany(f File, ops []WriteOp) error { return e.many(opWrite, f, ops) }

// Fdatasync flushes f's data.
func (e *IouringGo) Fdatasync(f File) error {
	ops := make([]Transfer, 1)
	e.run(opFsync, f, ops)
	if res := ops[0].res; res < 0 {
		return refused(describe(opFsync, f, 0), syscall.Errno(-res))
	}
	return nil
}

// Close waits for what is running and frees the engine.
func (e *IouringGo) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	if err := e.ring.Close(); err != nil {
		return cfs.E("close iouring-go", cfs.IO, err)
	}
	return nil
}

func (e *IouringGo) many(code uint8, f File, ops []Transfer) error {
	e.run(code, f, ops)
	var first error
	for i := range ops {
		_, err := e.finish(code, f, ops[i])
		if err == io.EOF {
			err = cfs.E(describe(code, f, ops[i].Off), cfs.IO, io.ErrUnexpectedEOF)
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (e *IouringGo) finish(code uint8, f File, op Transfer) (int, error) {
	done := 0
	for {
		n, over, err := op.outcome(code, f)
		if done += n; over {
			return done, err
		}
		rest := []Transfer{op.rest(n)}
		e.run(code, f, rest)
		op = rest[0]
	}
}

// run submits ops, as many in one go as the ring has entries, and waits for them.
func (e *IouringGo) run(code uint8, f File, ops []Transfer) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for len(ops) > 0 {
		some := ops[:min(len(ops), e.entries)]
		ops = ops[len(some):]
		if err := e.submit(code, f, some); err != nil {
			errno := syscall.EIO
			if errors.Is(err, iouring.ErrIOURingClosed) {
				errno = syscall.ESHUTDOWN
			} else {
				errors.As(err, &errno)
			}
			for i := range some {
				some[i].res = -int32(errno)
			}
		}
	}
}

// submit has the library carry out ops. It bounds what is in flight, which the
// library does not.
func (e *IouringGo) submit(code uint8, f File, ops []Transfer) error {
	requests := make([]iouring.PrepRequest, len(ops))
	for i := range ops {
		requests[i] = e.prepare(code, f, &ops[i])
	}
	e.taking.Lock()
	for range ops {
		e.room <- struct{}{}
	}
	e.taking.Unlock()
	defer func() {
		for range ops {
			<-e.room
		}
	}()
	set, err := e.ring.SubmitRequests(requests, nil)
	if err != nil {
		return err
	}
	<-set.Done()
	for i, request := range set.Requests() {
		res, err := request.GetRes()
		if err != nil {
			return err
		}
		ops[i].res = int32(res)
	}
	return nil
}

// prepare fills the library's SQE.
func (e *IouringGo) prepare(code uint8, f File, op *Transfer) iouring.PrepRequest {
	if code == opFsync {
		return iouring.Fdatasync(int(f.fd))
	}
	return func(s isys.SubmissionQueueEntry, data *iouring.UserData) {
		data.SetRequestBuffer(op.P, nil)
		chunk := -1
		if e.arena != nil {
			chunk = e.arena.chunkOf(op.P)
		}
		switch {
		case code == opRead && chunk >= 0:
			code = opReadFixed
		case code == opWrite && chunk >= 0:
			code = opWriteFixed
		}
		s.PrepOperation(code, f.fd, address(op.P), uint32(len(op.P)), uint64(op.Off))
		if chunk >= 0 {
			s.SetBufIndex(uint16(chunk))
		}
		if op.Sync && (code == opWrite || code == opWriteFixed) {
			s.SetOpFlags(rwDsync)
		}
	}
}
