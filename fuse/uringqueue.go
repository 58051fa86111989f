package fuse

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/iopath"
)

// Of linux/fuse.h, for io_uring.
const (
	cmdRegister       = 1 // FUSE_IO_URING_CMD_REGISTER
	cmdCommitAndFetch = 2 // FUSE_IO_URING_CMD_COMMIT_AND_FETCH

	// struct fuse_uring_req_header: the header of request and answer, the operation's own, and this:
	opHeaderAt    = 128
	opHeaderBytes = 128
	commitAt      = 264 // fuse_uring_ent_in_out.commit_id
	payloadSizeAt = 272 // fuse_uring_ent_in_out.payload_sz
	headBytes     = 288
	payloadAt     = 4096 // ours, in the memory of an entry: a page's border

	opSetlkw      = 33 // FUSE_SETLKW
	opNotifyReply = 41 // FUSE_NOTIFY_REPLY
	// firstStir is where the numbers of our own requests begin: the kernel counts its from 0.
	firstStir = 1 << 62
)

const (
	// firstServers is how many threads a queue has at first.
	firstServers = 3
	// serverEntries is how many commands of a thread go in one system call.
	serverEntries = 16
	// keptBytes is what an entry that was added for a lock keeps of the memory of its payload.
	keptBytes = 64 << 10
)

// uringQueue is the requests of one CPU. The kernel has an entry for each thread that waits for a request, and
// gives the next one to the thread that was the last to become free: a thread is never given a second one
// while it works on a first, may wait for whatever that needs, and nothing is handed over.
type uringQueue struct {
	u    *uring
	id   int
	busy atomic.Int32 // threads with a request
	size atomic.Int32 // threads

	mu      sync.Mutex
	servers []*uringServer
}

// uringServer is one thread of a queue. All of it is the thread's, but what is atomic.
type uringServer struct {
	q       *uringQueue
	first   bool // the mount waits for it
	begun   bool
	loop    *iopath.Loop
	entries []*uringEntry
	live    int           // entries that the kernel has not let go of
	lent    int           // of those, with goroutines
	serving atomic.Uint64 // the unique number of the request that it works on, 0 for none
}

// uringEntry is a place for one request: the kernel puts it there, we put the answer there.
type uringEntry struct {
	tag           uint32
	mem           []byte
	head, payload []byte // of mem
	vec           [2]unix.Iovec

	// Of the request that it holds.
	in           [3][]byte
	op           uint32
	unique       uint64
	commit       uint64
	size, answer int // bytes of the payload as it came, and of the answer with its header
}

// add starts another thread, if there may be one.
func (q *uringQueue) add(first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.servers) < q.u.depth {
		s := &uringServer{q: q, first: first}
		q.servers = append(q.servers, s)
		q.size.Add(1)
		q.u.loops.Go(s.run)
	}
}

// enter notes that a thread has a request. There will be one more than need be: what comes while the kernel
// has no entry waits until one is given back, though new ones come (see stir).
func (q *uringQueue) enter() {
	if q.busy.Add(1)+1 >= q.size.Load() {
		q.add(false)
	}
}

func (q *uringQueue) leave() { q.busy.Add(-1) }

// run is the life of the thread.
func (s *uringServer) run() {
	err := iopath.RunLoop(iopath.LoopConfig{Entries: serverEntries, CPU: s.q.id, Logger: s.q.u.log}, s.begin)
	switch {
	case s.first && !s.begun:
		s.q.u.made <- err
	case err != nil && !errors.Is(err, errNoURing):
		s.q.u.log.Error("a thread of FUSE over io_uring has ended", "queue", s.q.id, "err", err)
	}
}

// begin waits for the mount and registers an entry.
func (s *uringServer) begin(l *iopath.Loop) (iopath.LoopHandler, error) {
	s.loop, s.begun = l, true
	if s.first {
		s.q.u.made <- nil
	}
	<-s.q.u.mounted
	if s.q.u.fd < 0 {
		return nil, errNoURing
	}
	err := l.SetFile(s.q.u.fd)
	if err == nil {
		err = s.register()
	}
	l.Flush()
	if s.first {
		s.q.u.made <- err
	}
	return s, err
}

// stir has the queue go on: the kernel gives an entry that is new to the next request that comes, and those
// that wait already only to one that is given back. So a request is made, which takes the entry. node is a file's.
func (s *uringServer) stir(node uint64) {
	if err := s.q.u.fs.kernel.stir(firstStir+s.q.u.stirred.Add(2), node); err != nil {
		s.q.u.log.Warn("a queue may wait for its next request", "queue", s.q.id, "err", err)
	}
}

// register makes an entry and gives it to the kernel.
func (s *uringServer) register() error {
	mem, err := unix.Mmap(-1, 0, payloadAt+s.q.u.maxWrite, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	e := &uringEntry{tag: uint32(len(s.entries)), mem: mem, head: mem[:headBytes], payload: mem[payloadAt:]}
	for i, part := range [][]byte{e.head, e.payload} {
		e.vec[i].Base = &part[0]
		e.vec[i].SetLen(len(part))
	}
	s.entries = append(s.entries, e)
	s.live++
	c := iopath.FileCommand{Tag: e.tag, Op: cmdRegister, Vec: e.vec[:]}
	putCommand(&c, 0, s.q.id)
	s.loop.Submit(&c)
	return nil
}

// putCommand fills struct fuse_uring_cmd_req.
func putCommand(c *iopath.FileCommand, commit uint64, queue int) {
	binary.LittleEndian.PutUint64(c.Own[8:], commit)
	binary.LittleEndian.PutUint16(c.Own[16:], uint16(queue))
}

// Answered is told of a request in an entry, or that the kernel has let go of the entry.
func (s *uringServer) Answered(tag uint32, res int32) {
	e := s.entries[tag]
	switch {
	case res != 0:
		s.lost(unix.Errno(-res))
	case !e.parse():
		e.answer = putError(e.head, e.unique, unix.EIO)
		s.send(e)
	case e.op == opNotifyReply: // see stir
		e.answer = putError(e.head, e.unique, 0)
		s.send(e)
	case e.op == opSetlkw || s.live-s.lent > 1:
		s.lend(e)
	default:
		s.q.enter()
		s.serving.Store(e.unique)
		e.answer = s.q.u.handle(e.unique, e.in[:], e.head[:outHeaderBytes], e.payload)
		s.serving.Store(0)
		s.q.leave()
		s.send(e)
	}
}

// lost notes that an entry is gone. Without any the thread ends.
func (s *uringServer) lost(errno unix.Errno) {
	if errno != unix.ENOTCONN && errno != unix.ECONNABORTED && errno != unix.ECANCELED {
		s.q.u.log.Error("the kernel refuses an entry of a queue", "queue", s.q.id, "err", errno)
	}
	if s.live--; s.live == 0 {
		s.loop.Stop()
	}
}

// lend has a request answered in a goroutine: a wait for a lock, since there may be more of those than there are
// to be threads; and any request while the kernel has other entries of this thread, to which
// it may give requests that would wait for this one. The last entry that is lent is made up
// for, so that who unlocks always finds one: that costs addresses, and no memory until
// something else is put there.
func (s *uringServer) lend(e *uringEntry) {
	node := binary.LittleEndian.Uint64(e.head[nodeAt:])
	s.lent++
	s.q.u.working.Add(1)
	go s.work(e)
	if s.lent < s.live {
		return
	}
	if err := s.register(); err != nil {
		s.q.u.log.Warn("a queue has fewer entries while locks are waited for", "queue", s.q.id, "err", err)
		return
	}
	s.loop.Flush()
	s.stir(node)
}

// work answers a request that was lent.
func (s *uringServer) work(e *uringEntry) {
	u := s.q.u
	defer u.working.Done()
	u.fly(e.unique)
	e.answer = u.handle(e.unique, e.in[:], e.head[:outHeaderBytes], e.payload)
	u.land(e.unique)
	if err := s.loop.Post(e.tag); err != nil {
		u.log.Error("an answer is lost", "queue", s.q.id, "err", err)
	}
}

// Posted is told of an answer.
func (s *uringServer) Posted(tag uint32) {
	s.lent--
	s.send(s.entries[tag])
}

// parse finds the parts of the request in an entry.
func (e *uringEntry) parse() bool {
	total, size := int(binary.LittleEndian.Uint32(e.head)), int(binary.LittleEndian.Uint32(e.head[payloadSizeAt:]))
	e.op, e.unique = binary.LittleEndian.Uint32(e.head[opcodeAt:]), binary.LittleEndian.Uint64(e.head[uniqueAt:])
	e.commit = binary.LittleEndian.Uint64(e.head[commitAt:])
	own := total - inHeaderBytes - size
	if e.size = size; own < 0 || own > opHeaderBytes || size > len(e.payload) {
		return false
	}
	e.in = [3][]byte{e.head[:inHeaderBytes], e.head[opHeaderAt : opHeaderAt+own], e.payload[:size]}
	return true
}

// send gives the kernel the answer, and the entry for another request.
func (s *uringServer) send(e *uringEntry) {
	payload := e.answer - outHeaderBytes
	if keep := max(payload, keptBytes); e.tag > 0 && e.size > keep {
		// The next request may be long in coming, and there may be many of these.
		_ = unix.Madvise(e.payload[(keep+payloadAt-1)/payloadAt*payloadAt:], unix.MADV_DONTNEED)
	}
	binary.LittleEndian.PutUint32(e.head[payloadSizeAt:], uint32(payload))
	c := iopath.FileCommand{Tag: e.tag, Op: cmdCommitAndFetch}
	putCommand(&c, e.commit, s.q.id)
	s.loop.Submit(&c)
}

// free gives the memory back, when the thread has ended.
func (s *uringServer) free() {
	for _, e := range s.entries {
		_ = unix.Munmap(e.mem)
	}
	s.entries = nil
}
