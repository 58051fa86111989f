package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxPayloadBytes bounds the memory of the entries of all queues, each of which has room for the
	// largest READ and WRITE. Depth and size of requests follow from it.
	maxPayloadBytes = maxInflightBytes
	// maxDepth bounds the requests of one queue that are served at a time, each by a thread; more wait in the kernel.
	maxDepth = 64
	// goodDepth is what a queue should have at least: rather smaller requests than fewer.
	goodDepth = 8
	// leastWriteBytes is the least size of the largest request.
	leastWriteBytes = 128 << 10

	// maxStrays bounds the requests that are served at a time of those that come by /dev/fuse though there are queues.
	maxStrays = 64
	// interruptTries is how often an INTERRUPT is tried that overtakes its request, at pauses that double.
	interruptTries = 10

	possibleCPUs = "/sys/devices/system/cpu/possible"
)

// Of linux/fuse.h.
const (
	inHeaderBytes  = 40 // struct fuse_in_header
	opcodeAt       = 4
	uniqueAt       = 8
	nodeAt         = 16
	opForget       = 2
	opInterrupt    = 36
	opBatchForget  = 42
	interruptBytes = inHeaderBytes + 8 // struct fuse_interrupt_in after it
)

// uring carries requests by FUSE over io_uring (Documentation/filesystems/fuse/fuse-io-uring.rst of the kernel): for each CPU that there
// may be, a queue with a thread of its own, which that CPU's processes ask. INIT, FORGET and INTERRUPT
// come by /dev/fuse all the same, as does everything should the kernel give the queues up.
type uring struct {
	cfg Config
	log *slog.Logger
	fs  *fileSystem
	fd  int // /dev/fuse; -1: nothing is mounted

	maxWrite, depth int
	all             *gofuse.ProtocolServer // answers any request

	queues  []*uringQueue
	made    chan error    // from each queue: its ring is made, and later: its entries are registered
	mounted chan struct{} // closed when fd is there
	loops   sync.WaitGroup
	working sync.WaitGroup // requests in goroutines
	strays  chan struct{}  // a place for each
	stirred atomic.Uint64  // twice the number of requests of our own

	mu     sync.Mutex
	flying map[uint64]struct{} // requests in goroutines, by their unique number
}

// shape is how deep queues are and how large a request may be, for so many queues.
func shape(queues int) (depth, maxWrite int) {
	maxWrite = maxWriteBytes
	for maxWrite > leastWriteBytes && queues*goodDepth*maxWrite > maxPayloadBytes {
		maxWrite /= 2
	}
	return max(1, min(maxDepth, maxPayloadBytes/(queues*maxWrite))), maxWrite
}

// countCPUs is the number of CPUs that a list of the kernel's names: 0-3,8.
func countCPUs(list string) (int, error) {
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, ok := strings.Cut(part, "-")
		if !ok {
			last = first
		}
		lo, err := strconv.Atoi(first)
		hi, err2 := strconv.Atoi(last)
		if err = errors.Join(err, err2); err != nil || lo < 0 || hi < lo || hi >= maxCPUs {
			return 0, fmt.Errorf("%q is no list of CPUs", list)
		}
		n += hi - lo + 1
	}
	return n, nil
}

// maxCPUs is more than any kernel has.
const maxCPUs = 1 << 14

func (u *uring) start(fs *fileSystem, mount func(int) (int, error)) error {
	list, err := os.ReadFile(possibleCPUs)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoURing, err)
	}
	n, err := countCPUs(string(list))
	if err != nil {
		return fmt.Errorf("%w: %w", errNoURing, err)
	}
	u.fs, u.fd, fs.losesSignals = fs, -1, true
	u.depth, u.maxWrite = shape(n)
	opts := mountOptions(u.cfg, u.maxWrite)
	opts.ExtraCapabilities |= gofuse.CAP_OVER_IO_URING
	u.all = gofuse.NewProtocolServer(fs, opts)
	u.made, u.mounted = make(chan error, n*min(firstServers, u.depth)), make(chan struct{})
	u.strays, u.flying = make(chan struct{}, maxStrays), map[uint64]struct{}{}
	for id := range n {
		q := &uringQueue{u: u, id: id}
		u.queues = append(u.queues, q)
		for range min(firstServers, u.depth) {
			q.add(true)
		}
	}
	if err = u.await(); err == nil {
		u.fd, err = mount(u.maxWrite)
		if err == nil {
			err = u.init()
		}
	}
	if err != nil && u.fd >= 0 {
		unix.Close(u.fd)
		u.fd = -1
	}
	close(u.mounted)
	if err == nil {
		err = u.await()
	}
	return err
}

// await waits for a word of each queue.
func (u *uring) await() error {
	var err error
	for range cap(u.made) {
		err = errors.Join(err, <-u.made)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errNoURing, err)
	}
	return err
}

// init answers INIT, the first request.
func (u *uring) init() error {
	in, out := make([]byte, u.readBytes()), make([]byte, gofuseBlock)
	n, err := u.readRequest(in)
	if err != nil {
		return os.NewSyscallError("read /dev/fuse", err)
	}
	settings, err := parseInit(in[:n])
	if err != nil {
		return err
	}
	if settings.Flags64()&gofuse.CAP_OVER_IO_URING == 0 {
		return fmt.Errorf("%w: the kernel does not offer it", errNoURing)
	}
	m, status := u.all.HandleRequest([][]byte{in[:n]}, [][]byte{out})
	if m < outHeaderBytes || !status.Ok() || binary.LittleEndian.Uint32(out[opcodeAt:]) != 0 {
		return errors.New("the kernel speaks another version of FUSE")
	}
	u.fs.learn(settings)
	_, err = unix.Write(u.fd, out[:m])
	return os.NewSyscallError("answer INIT", err)
}

// gofuseBlock is more than an answer without data has.
const gofuseBlock = 4096

// parseInit reads struct fuse_init_in, whose later part older kernels lack.
func parseInit(b []byte) (*gofuse.InitIn, error) {
	const flagsEnd = inHeaderBytes + 16
	if len(b) < flagsEnd || binary.LittleEndian.Uint32(b[opcodeAt:]) != opInit {
		return nil, errors.New("the first request is not INIT")
	}
	body := b[inHeaderBytes:]
	in := &gofuse.InitIn{
		Major: binary.LittleEndian.Uint32(body), Minor: binary.LittleEndian.Uint32(body[4:]),
		MaxReadAhead: binary.LittleEndian.Uint32(body[8:]), Flags: binary.LittleEndian.Uint32(body[12:]),
	}
	if len(body) >= 20 {
		in.Flags2 = binary.LittleEndian.Uint32(body[16:])
	}
	return in, nil
}

// opInit is FUSE_INIT.
const opInit = 26

// serve answers what comes by /dev/fuse until the mount is gone; the queues serve themselves, and end by themselves.
func (u *uring) serve() {
	u.read()
	u.interruptAll() // nobody waits for them any more
	u.loops.Wait()
	u.working.Wait()
	for _, q := range u.queues {
		for _, s := range q.servers {
			s.free()
		}
	}
	if err := unix.Close(u.fd); err != nil {
		u.log.Warn("closing /dev/fuse", "err", err)
	}
	u.fs.OnUnmount()
}

// readBytes is the least room that the kernel reads a request into.
func (u *uring) readBytes() int { return u.maxWrite + gofuseBlock }

// readRequest reads one request.
func (u *uring) readRequest(p []byte) (int, error) {
	for {
		n, err := unix.Read(u.fd, p)
		switch {
		case err == nil && n >= inHeaderBytes:
			return n, nil
		case err == nil:
			return 0, unix.EIO
		case err != unix.EINTR && err != unix.EAGAIN && err != unix.ENOENT: // ENOENT: the request was given up meanwhile
			return 0, err
		}
	}
}

// read deals with what comes by /dev/fuse.
func (u *uring) read() {
	buf := make([]byte, u.readBytes())
	for {
		n, err := u.readRequest(buf)
		if err != nil {
			if err != unix.ENODEV && err != unix.ECONNABORTED {
				u.log.Error("reading /dev/fuse", "err", err)
			}
			return
		}
		switch in := buf[:n]; binary.LittleEndian.Uint32(in[opcodeAt:]) {
		case opForget, opBatchForget:
			u.all.HandleRequest([][]byte{in}, nil)
		case opInterrupt:
			if n >= interruptBytes {
				u.interrupted(binary.LittleEndian.Uint64(in[inHeaderBytes:]))
			}
		default:
			u.strays <- struct{}{}
			u.working.Add(1)
			go u.stray(append([]byte(nil), in...))
		}
	}
}

// stray answers a request that has come by /dev/fuse: one from before the queues were there.
func (u *uring) stray(in []byte) {
	defer u.working.Done()
	defer func() { <-u.strays }()
	unique := binary.LittleEndian.Uint64(in[uniqueAt:])
	u.fly(unique)
	defer u.land(unique)
	out := make([]byte, u.readBytes())
	n := u.handle(unique, [][]byte{in}, out, nil)
	if _, err := unix.Write(u.fd, out[:n]); err != nil && err != unix.ENOENT && err != unix.ENODEV {
		u.log.Warn("answering a request", "err", err)
	}
}

// handle answers a request into head, and payload after it. An answer that go-fuse refuses to give is EIO.
func (u *uring) handle(unique uint64, in [][]byte, head, payload []byte) int {
	n, _ := u.all.HandleRequest(in, [][]byte{head, payload})
	if n < outHeaderBytes {
		n = putError(head, unique, unix.EIO)
	}
	return n
}

// putError makes head the answer that a request has failed.
func putError(head []byte, unique uint64, errno unix.Errno) int {
	binary.LittleEndian.PutUint32(head, outHeaderBytes)
	binary.LittleEndian.PutUint32(head[opcodeAt:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(head[uniqueAt:], unique)
	return outHeaderBytes
}

func (u *uring) fly(unique uint64) {
	u.mu.Lock()
	u.flying[unique] = struct{}{}
	u.mu.Unlock()
}

func (u *uring) land(unique uint64) {
	u.mu.Lock()
	delete(u.flying, unique)
	u.mu.Unlock()
}

// interrupted passes on an INTERRUPT. It may overtake its request, which comes by another way: it is tried again
// then, by us, as the kernel does not find the request where it looks for those of /dev/fuse.
func (u *uring) interrupted(unique uint64) {
	if u.interrupt(unique) {
		return
	}
	u.working.Go(func() {
		pause := time.Millisecond
		for range interruptTries {
			select {
			case <-time.After(pause):
			case <-u.fs.stop:
				return
			}
			if u.interrupt(unique) {
				return
			}
			pause *= 2
		}
	})
}

// interruptAll interrupts all that are served.
func (u *uring) interruptAll() {
	u.mu.Lock()
	all := slices.Collect(maps.Keys(u.flying))
	u.mu.Unlock()
	for _, q := range u.queues {
		q.mu.Lock()
		for _, s := range q.servers {
			if unique := s.serving.Load(); unique != 0 {
				all = append(all, unique)
			}
		}
		q.mu.Unlock()
	}
	for _, unique := range all {
		u.interrupt(unique)
	}
}

// interrupt ends the wait of a request; false if it is not known.
func (u *uring) interrupt(unique uint64) bool {
	var in [interruptBytes]byte
	binary.LittleEndian.PutUint32(in[:], interruptBytes)
	binary.LittleEndian.PutUint32(in[opcodeAt:], opInterrupt)
	binary.LittleEndian.PutUint64(in[uniqueAt:], unique|1) // FUSE_INT_REQ_BIT
	binary.LittleEndian.PutUint64(in[inHeaderBytes:], unique)
	n, _ := u.all.HandleRequest([][]byte{in[:]}, [][]byte{make([]byte, gofuseBlock)})
	return n == 0
}
