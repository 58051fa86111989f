package iopath

import (
	"log/slog"
	"runtime"
	"sync"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// CommandBytes is how much of a FileCommand is the driver's own.
const CommandBytes = 80

// maxPosted bounds what is posted to a Loop and not yet taken.
const maxPosted = 1 << 16

// FileCommand is a command for the driver of a file (IORING_OP_URING_CMD).
type FileCommand struct {
	Tag uint32 // comes back with the answer
	Op  uint32 // the driver's number of it
	// Vec is memory that the command names. It is the kernel's until the driver lets go of it.
	Vec []unix.Iovec
	// Own is the driver's part.
	Own [CommandBytes]byte
}

// LoopHandler is told of all that happens, on the loop's thread. It may call Submit and Stop; while it
// works nothing else is dealt with.
type LoopHandler interface {
	// Answered is told of the end of a command: the driver's number, or a negative errno.
	Answered(tag uint32, res int32)
	// Posted is told of what was posted.
	Posted(tag uint32)
}

// Loop is a ring of one thread, which submits commands and deals with each answer where it comes: for a
// driver that answers when it has something to ask, so that nobody waits for any one command. One
// system call takes what is to be submitted, and waits for the next answer.
//
// It differs from Ring in who waits: in a Ring each caller waits for its own operations.
type Loop struct {
	q    *queues
	stop bool

	mu     sync.Mutex
	posted []uint32
	asleep bool // the thread waits in the kernel: who posts wakes it
	closed bool
	spare  []uint32 // what posted was, to be used again
}

// LoopConfig says how to make a Loop.
type LoopConfig struct {
	// Entries bounds what is submitted in one system call. Four times as many commands
	// have room for their answers.
	Entries int
	// CPU is what the thread is to run on; a CPU that it may not run on is ignored.
	CPU int
	// Logger is told what the kernel lacks; nil for none.
	Logger *slog.Logger
}

// RunLoop makes a loop on a thread of its own, which is the caller's goroutine's from now on and ends with it,
// and runs it until Stop. begin gets the loop when it is made; an error of it ends the loop.
// Unsupported where there is no such ring.
func RunLoop(cfg LoopConfig, begin func(*Loop) (LoopHandler, error)) error {
	runtime.LockOSThread() // and is not unlocked: a thread that is pinned is of no use to others
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var set unix.CPUSet
	set.Set(cfg.CPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		cfg.Logger.Debug("a thread is not bound to its CPU", "cpu", cfg.CPU, "err", err)
	}
	l := &Loop{}
	var err error
	if l.q, err = setupNewest(uint32(cfg.Entries), setupSQE128, optionalFlags(RingConfig{SingleIssuer: true}), cfg.Logger); err != nil {
		return cfs.Errorf("make io_uring", cfs.Unsupported, "%w", err)
	}
	defer l.close()
	h, err := begin(l)
	if err != nil {
		return err
	}
	return l.run(h)
}

// SetFile says which file the commands are for. It stays open until the loop ends, whatever becomes of fd.
func (l *Loop) SetFile(fd int) error {
	err := l.q.registerFileTable(1)
	if err == nil {
		err = l.q.setFile(0, int32(fd))
	}
	if err != nil {
		return cfs.Errorf("register a file", cfs.KindOf(err), "%w", err)
	}
	return nil
}

// Submit has a command sent when the handler returns. On the loop's thread only.
func (l *Loop) Submit(c *FileCommand) {
	for l.q.full() {
		l.flush()
	}
	s := l.q.next()
	s.Op, s.Flags, s.UserData = opCommand, sqeFixedFile, uint64(c.Tag)
	s.Off = uint64(c.Op)
	if len(c.Vec) > 0 {
		s.Addr, s.Len = vecAddress(c.Vec), uint32(len(c.Vec))
	}
	*s.own() = c.Own
}

// Flush sends what was submitted now.
func (l *Loop) Flush() {
	for l.q.unsubmitted() > 0 {
		l.flush()
	}
}

// flush is one system call that waits for nothing. What the kernel has no memory for is tried again.
func (l *Loop) flush() {
	if err := l.q.enter(l.q.publish(), 0, 0); err != nil && err != unix.EINTR {
		runtime.Gosched()
	}
}

// Stop ends the loop when the handler returns. On the loop's thread only.
func (l *Loop) Stop() { l.stop = true }

// Post has the handler told of tag, from any goroutine. After the loop's end it does nothing.
// Overloaded where the loop is too far behind.
func (l *Loop) Post(tag uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	if len(l.posted) >= maxPosted {
		return cfs.Errorf("post", cfs.Overloaded, "%d are posted", maxPosted)
	}
	l.posted = append(l.posted, tag)
	if !l.asleep {
		return nil
	}
	l.asleep = false
	if err := l.q.wake(bellData); err != nil {
		return cfs.Errorf("wake a loop", cfs.KindOf(err), "%w", err)
	}
	return nil
}

// run is the loop's life.
func (l *Loop) run(h LoopHandler) error {
	for !l.stop {
		for all := l.take(); len(all) > 0; all = l.take() {
			for _, tag := range all {
				h.Posted(tag)
			}
		}
		if l.stop {
			return nil
		}
		wait := uint32(1)
		if !l.q.empty() {
			wait = 0
		}
		err := l.q.enter(l.q.publish(), wait, enterGetEvents)
		l.awake()
		if err != nil && err != unix.EINTR && err != unix.EAGAIN && err != unix.EBUSY {
			return cfs.Errorf("wait for commands", cfs.IO, "%w", err)
		}
		for !l.stop {
			e, ok := l.q.pop()
			if !ok {
				break
			}
			if e.UserData != bellData {
				h.Answered(uint32(e.UserData), e.Res)
			}
		}
	}
	return nil
}

// take takes what is posted. When that is nothing, who posts from now on wakes the thread.
func (l *Loop) take() []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.posted
	l.posted, l.spare = l.spare[:0], all
	l.asleep = len(all) == 0
	return all
}

// awake has those who post leave the thread alone: it looks before it waits again.
func (l *Loop) awake() {
	l.mu.Lock()
	l.asleep = false
	l.mu.Unlock()
}

func (l *Loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.q.unregister()
	l.q.unmap()
	_ = unix.Close(l.q.fd) // it has nothing to lose
}
