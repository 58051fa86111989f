package iopath

import (
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

const (
	// DefaultRingEntries bounds the operations in flight on a ring when RingConfig does not.
	DefaultRingEntries = 256
	// maxRingEntries leaves room in the kernel's largest completion queue (64 Ki) for
	// each operation, its cancellation and the owner's eventfd.
	maxRingEntries = 16384
	// maxFiles bounds the registered files of a ring.
	maxFiles = 64
	// sectorBytes is the least unit of direct I/O: a read that ends off it is at the end of the file.
	sectorBytes = 512
)

// RingConfig says how to make a Ring.
type RingConfig struct {
	// Entries bounds the operations in flight, rounded up to a power of two; 0 for DefaultRingEntries.
	Entries int
	// Arena is registered as fixed buffers; nil for none. It must outlive the ring.
	Arena *Arena
	// Commands makes a ring that takes NVMe commands too, which doubles the size
	// of its entries (SQE128 and CQE32, since Linux 5.19).
	Commands bool
	// SingleIssuer gives the ring a thread that alone enters the kernel, the
	// cheapest for large batches; see the package doc.
	SingleIssuer bool
	// Poll reads and writes files whose device can be polled (O_DIRECT, and a
	// driver with polling queues) without interrupts: a thread of the ring's spins
	// while any are in flight. Other files and operations go the usual way.
	Poll bool
	// Timeout is when an operation in flight is asked back from the kernel, to end
	// with kind Timeout; 0 for never. See Ring.Cancel for what cannot be.
	Timeout time.Duration
	// Logger is told what the kernel lacks; nil for none.
	Logger *slog.Logger
}

// Ring is an io_uring that any number of goroutines share. See the package doc.
type Ring struct {
	arena    *Arena // nil when not registered
	commands bool   // entries have room for commands
	owned    bool   // by a thread, see issuer.go
	polling  bool   // without interrupts; always owned
	hasTable bool   // there is a file table
	polled   *Ring  // takes the reads and writes of files that can be polled, nil for none
	log      *slog.Logger
	calls    sync.Pool     // of idle *call
	unpolled atomic.Bool   // the log was told of a file that cannot be polled
	poll     *os.File      // an eventfd in the netpoller, written to at completions; not of an owned ring
	reaped   chan struct{} // closed when nobody reaps any more

	mu        sync.Mutex
	q         *queues
	slots     []slot    // operations in flight
	free      []uint32  // slots without one
	waiting   callQueue // calls with operations that have no slot yet
	gathering int       // callers that are about to submit what waits
	leading   bool      // a caller waits in the kernel and reaps for all
	pumping   int       // callers that use the queues
	inKernel  int       // of them, those in a system call
	wakes     int       // calls that have been woken
	woken     int       // by the last reaping
	files     [maxFiles]bool
	asks      bool   // some slots are asked back, but not yet submitted so
	sweeps    uint32 // see sweep
	closed    bool
	drained   sync.Cond // closed, and perhaps nothing is in flight and nobody pumps

	// An owned ring's.
	work   sync.Cond // something was queued
	jobs   []func()  // see control; at most one for each caller
	called bool      // the owner was rung for in the kernel, and has not come yet
	bell   int       // eventfd
	armed  bool      // its read is in flight
	rung   [8]byte   // and goes here
}

// NewRing makes a ring. What the kernel lacks of the optional features is
// logged and done without. Unsupported when there is no io_uring at all (before
// Linux 5.6, or forbidden by sysctl or seccomp), or when it lacks what Commands needs.
func NewRing(cfg RingConfig) (*Ring, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Entries == 0 {
		cfg.Entries = DefaultRingEntries
	}
	if cfg.Entries < 1 || cfg.Entries > maxRingEntries {
		return nil, cfs.Errorf("make io_uring", cfs.Invalid, "%d entries, want 1 to %d", cfg.Entries, maxRingEntries)
	}
	r, err := newRing(cfg, 0, false)
	if err != nil || !cfg.Poll {
		return r, err
	}
	r.polled, err = newRing(RingConfig{Entries: cfg.Entries, Arena: cfg.Arena, SingleIssuer: true, Logger: cfg.Logger}, setupIOPoll, true)
	if err != nil {
		cfg.Logger.Info("io_uring without polling", "err", err)
		r.polled = nil
	}
	return r, nil
}

// newRing makes one io_uring with these setup flags and those that cfg asks for.
// Who owns a polling one looks for completions instead of waiting for them.
func newRing(cfg RingConfig, flags uint32, polling bool) (*Ring, error) {
	r := &Ring{
		log: cfg.Logger, commands: cfg.Commands, owned: cfg.SingleIssuer, polling: polling,
		reaped: make(chan struct{}), bell: -1,
	}
	r.calls.New = func() any { return &call{wake: make(chan struct{}, 2)} }
	r.drained.L, r.work.L = &r.mu, &r.mu
	var err error
	if r.owned {
		made := make(chan error)
		go r.own(cfg, flags, made)
		err = <-made
	} else if err = r.setup(cfg, flags); err == nil {
		err = r.startReaping()
	}
	if err != nil {
		r.release()
		return nil, cfs.Errorf("make io_uring", cfs.Unsupported, "%w", err)
	}
	if cfg.Timeout > 0 && !r.polling {
		go r.sweepLoop(cfg.Timeout)
	}
	return r, nil
}

// setup makes the queues and registers what there is to register, on the thread
// that is to use them.
func (r *Ring) setup(cfg RingConfig, flags uint32) (err error) {
	if cfg.Commands {
		flags |= setupSQE128 | setupCQE32
	}
	if r.q, err = setupNewest(uint32(cfg.Entries), flags, optionalFlags(cfg), cfg.Logger); err != nil {
		return err
	}
	if cfg.Arena != nil {
		if err := r.q.registerMemory(cfg.Arena.chunks()); err != nil {
			cfg.Logger.Warn("io_uring without fixed buffers", "bytes", cfg.Arena.SizeBytes(), "err", err)
		} else {
			r.arena = cfg.Arena
		}
	}
	if err := r.q.registerFileTable(maxFiles); err != nil {
		cfg.Logger.Warn("io_uring without fixed files", "err", err)
	} else {
		r.hasTable = true
	}
	n := int(r.q.entries)
	r.slots, r.free = make([]slot, n), make([]uint32, n)
	for i := range n {
		r.free[i] = uint32(i)
	}
	if r.owned && !r.polling {
		r.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	return err
}

// optionalFlag is a setup flag that is asked for and done without.
type optionalFlag struct {
	flag uint32
	name string
}

// optionalFlags are in the order of the kernels that brought them, the newest first.
func optionalFlags(cfg RingConfig) []optionalFlag {
	all := []optionalFlag{{setupSubmitAll, "SUBMIT_ALL"}} // 5.18
	if cfg.SingleIssuer {
		all = append([]optionalFlag{{setupDeferTaskrun, "DEFER_TASKRUN"}, {setupSingleIssuer, "SINGLE_ISSUER"}, {setupCoopTaskrun, "COOP_TASKRUN"}}, all...) // 6.1, 6.0, 5.19
	}
	return append([]optionalFlag{{setupNoSQArray, "NO_SQARRAY"}}, all...) // 6.6
}

// setupNewest makes queues with as many of the optional flags as the kernel
// knows: one that lacks a flag lacks the newer ones too.
func setupNewest(entries, flags uint32, optional []optionalFlag, log *slog.Logger) (*queues, error) {
	var lacking []string
	for {
		all := flags
		for _, o := range optional {
			all |= o.flag
		}
		q, err := setupQueues(entries, all)
		if err == unix.EINVAL && len(optional) > 0 {
			lacking = append(lacking, optional[0].name)
			optional = optional[1:]
			continue
		}
		if err == nil && len(lacking) > 0 {
			log.Info("io_uring of an older kernel", "without", lacking)
		}
		return q, err
	}
}

// startReaping has completions told to an eventfd, and that to the netpoller.
func (r *Ring) startReaping() error {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	r.poll = os.NewFile(uintptr(fd), "io_uring")
	if err = r.q.registerEventfd(int32(fd)); err == nil {
		err = r.poll.SetReadDeadline(time.Time{}) // refused when it cannot be polled
	}
	if err != nil {
		close(r.reaped)
		return err
	}
	go r.reapLoop()
	return nil
}

// RegisterFile gives f a fixed slot; see Engine. A ring without a file table
// uses f's descriptor, so f must then stay open until UnregisterFile.
func (r *Ring) RegisterFile(f *os.File) (File, error) {
	file, err := r.register(f)
	if err != nil || r.polled == nil {
		return file, err
	}
	if file.polled, err = r.polled.registerPolled(f); err != nil && !r.unpolled.Swap(true) {
		r.log.Info("io_uring without polling", "file", f.Name(), "err", err)
	}
	return file, nil
}

func (r *Ring) register(f *os.File) (File, error) {
	op := "register " + f.Name()
	conn, err := f.SyscallConn()
	if err != nil {
		return File{}, cfs.E(op, cfs.Closed, err)
	}
	out := File{name: f.Name(), slot: -1, polled: -1}
	open := true
	var regErr error
	err = conn.Control(func(fd uintptr) {
		out.fd = int32(fd)
		open = r.control(func() {
			if r.hasTable {
				out.slot, regErr = r.takeFileLocked(out.fd)
			}
		})
	})
	switch {
	case err != nil:
		return File{}, cfs.E(op, cfs.Closed, err)
	case !open:
		return File{}, cfs.E(op, cfs.Closed, nil)
	case regErr != nil:
		return File{}, cfs.E(op, cfs.KindOf(regErr), regErr)
	}
	return out, nil
}

func (r *Ring) takeFileLocked(fd int32) (int32, error) {
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
	var err error
	if r.polled != nil && f.polled >= 0 {
		err = r.polled.UnregisterFile(f.onPolled())
	}
	if f.slot < 0 {
		return err
	}
	// A closed ring's table went with it.
	r.control(func() {
		r.files[f.slot] = false
		if e := r.q.setFile(f.slot, -1); e != nil {
			err = cfs.E("unregister "+f.name, cfs.KindOf(e), e)
		}
	})
	return err
}

// control runs f with the lock held, on the thread that may register; false,
// and f does not run, when the ring is closed.
func (r *Ring) control(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if !r.owned {
		f()
		return true
	}
	done := make(chan struct{})
	r.jobs = append(r.jobs, func() { f(); close(done) })
	r.wakeLocked()
	r.mu.Unlock()
	<-done
	r.mu.Lock()
	return true
}

// Close waits for the operations in flight, then frees the ring. Later calls
// fail with Closed, as do those that wait for room.
func (r *Ring) Close() error {
	var first error
	if r.polled != nil {
		first = r.polled.Close()
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return first
	}
	r.closed = true
	for r.waiting.head != nil {
		r.abandonLocked(r.waiting.pop(), unix.ESHUTDOWN)
	}
	if r.owned {
		r.wakeLocked()
	}
	for r.inFlightLocked() > 0 || r.pumping > 0 {
		r.drained.Wait()
	}
	r.mu.Unlock()
	if !r.owned {
		r.q.unregister()
	}
	if err := r.release(); err != nil && first == nil {
		first = cfs.E("close io_uring", cfs.IO, err)
	}
	return first
}

// release frees what was made, when nothing is in flight.
func (r *Ring) release() error {
	if r.q == nil {
		return nil
	}
	if r.poll != nil {
		_ = r.poll.Close() // an eventfd has nothing to lose
	}
	if r.poll != nil || r.owned {
		<-r.reaped
	}
	r.q.unmap()
	if r.bell >= 0 {
		_ = unix.Close(r.bell)
	}
	return unix.Close(r.q.fd)
}
