package iopath

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface, from include/uapi/linux/io_uring.h. x/sys has only
// the system calls' numbers.
const (
	setupIOPoll       = 1 << 0
	setupCQSize       = 1 << 3
	setupClamp        = 1 << 4
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupSQE128       = 1 << 10
	setupCQE32        = 1 << 11
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	setupNoSQArray    = 1 << 16
	featSingleMmap    = 1 << 0
	featNoDrop        = 1 << 1
	enterGetEvents    = 1 << 0
	registerBuffers   = 0
	unregisterBuffers = 1
	registerFiles     = 2
	unregisterFiles   = 3
	registerEventfd   = 4
	filesUpdate       = 6
	sendMsgRing       = 31 // since Linux 6.13
	offSQRing         = 0
	offSQEs           = 0x10000000

	opFsync      = 3
	opReadFixed  = 4
	opWriteFixed = 5
	opCancel     = 14 // IORING_OP_ASYNC_CANCEL
	opRead       = 22
	opWrite      = 23
	opMsgRing    = 40
	opCommand    = 46 // IORING_OP_URING_CMD

	sqeFixedFile  = 1 << 0
	fsyncDataSync = 1 << 0
	rwDsync       = 1 << 1
	commandFixed  = 1 << 0

	cqEventfdDisabled = 1 << 0

	sqeBytes        = 64
	sqeCommandBytes = 128
	cqeBytes        = 16
	cqeCommandBytes = 32
)

type sqOffsets struct {
	Head, Tail, RingMask, RingEntries, Flags, Dropped, Array, Resv1 uint32
	UserAddr                                                        uint64
}

type cqOffsets struct {
	Head, Tail, RingMask, RingEntries, Overflow, Cqes, Flags, Resv1 uint32
	UserAddr                                                        uint64
}

type uringParams struct {
	SQEntries, CQEntries, Flags, SQThreadCPU, SQThreadIdle, Features, WQFd uint32
	Resv                                                                   [3]uint32
	SQ                                                                     sqOffsets
	CQ                                                                     cqOffsets
}

// sqe is a submission. In a ring for commands it has 64 bytes more, and a command's
// own 80 bytes begin where Pad does.
type sqe struct {
	Op, Flags uint8
	IOPrio    uint16
	Fd        int32
	Off, Addr uint64 // the low half of Off is a command's number
	Len       uint32
	OpFlags   uint32
	UserData  uint64
	BufIndex  uint16
	_         uint16
	_         uint32
	Pad       [2]uint64
}

// nvmeCommand is struct nvme_uring_cmd of linux/nvme_ioctl.h.
type nvmeCommand struct {
	Opcode, Flags                            uint8
	_                                        uint16
	NSID, CDW2, CDW3                         uint32
	Metadata, Addr                           uint64
	MetadataLen, DataLen                     uint32
	CDW10, CDW11, CDW12, CDW13, CDW14, CDW15 uint32
	TimeoutMS                                uint32
	_                                        uint32
}

// cqe is a completion. Extra is there only in a ring for commands.
type cqe struct {
	UserData uint64
	Res      int32
	Flags    uint32
	Extra    uint64
}

type filesUpdateArg struct {
	Offset uint32
	_      uint32
	Fds    uint64
}

// queues are the two rings that are shared with the kernel. Not safe for
// concurrent use: Ring's mutex guards them.
type queues struct {
	fd                      int
	params                  uringParams
	ringMem, sqeMem         []byte
	sqHead, sqTail          *uint32
	cqHead, cqTail          *uint32
	cqFlags                 *uint32 // nil before Linux 5.8
	sqMask, cqMask, entries uint32
	localTail               uint32 // SQEs filled; the kernel sees them at enter
	sqeStep, cqeStep        uint32 // bytes of an entry
	fileArg                 int32
}

// setupQueues makes an io_uring of so many entries and maps it. Completions have
// room for twice as many operations, cancellations, and more.
func setupQueues(entries, flags uint32) (*queues, error) {
	q := &queues{params: uringParams{Flags: flags | setupClamp | setupCQSize, CQEntries: 4 * entries}, sqeStep: sqeBytes, cqeStep: cqeBytes}
	if flags&setupSQE128 != 0 {
		q.sqeStep = sqeCommandBytes
	}
	if flags&setupCQE32 != 0 {
		q.cqeStep = cqeCommandBytes
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&q.params)), 0)
	if errno != 0 {
		return nil, errno
	}
	q.fd = int(fd)
	if q.params.Features&featSingleMmap == 0 || q.params.Features&featNoDrop == 0 {
		unix.Close(q.fd)
		return nil, unix.ENOSYS // Linux 5.4 and 5.5; nothing older is supported
	}
	sq, cq := &q.params.SQ, &q.params.CQ
	sizeBytes := max(cq.Cqes+q.params.CQEntries*q.cqeStep, sq.Array+q.params.SQEntries*4)
	var err error
	const prot, share = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if q.ringMem, err = unix.Mmap(q.fd, offSQRing, int(sizeBytes), prot, share); err == nil {
		q.sqeMem, err = unix.Mmap(q.fd, offSQEs, int(q.params.SQEntries*q.sqeStep), prot, share)
	}
	if err != nil {
		q.unmap()
		unix.Close(q.fd)
		return nil, err
	}
	q.sqHead, q.sqTail = q.word(sq.Head), q.word(sq.Tail)
	q.cqHead, q.cqTail = q.word(cq.Head), q.word(cq.Tail)
	if cq.Flags != 0 {
		q.cqFlags = q.word(cq.Flags)
	}
	q.sqMask, q.cqMask = *q.word(sq.RingMask), *q.word(cq.RingMask)
	q.entries = *q.word(sq.RingEntries)
	if flags&setupNoSQArray == 0 {
		for i := range q.entries { // entry i is always SQE i
			*q.word(sq.Array + 4*i) = i
		}
	}
	return q, nil
}

func (q *queues) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&q.ringMem[off])) }

// unmap frees the mappings; the descriptor is closed by its owner.
func (q *queues) unmap() {
	if q.ringMem != nil {
		_ = unix.Munmap(q.ringMem)
	}
	if q.sqeMem != nil {
		_ = unix.Munmap(q.sqeMem)
	}
	q.ringMem, q.sqeMem = nil, nil
}

// register is io_uring_register(2) for a slice of arguments.
func register[T any](fd int, op uintptr, args []T) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), op,
		uintptr(unsafe.Pointer(unsafe.SliceData(args))), uintptr(len(args)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// registerMemory registers pieces of memory as fixed buffers 0, 1, ..
func (q *queues) registerMemory(pieces [][]byte) error {
	iov := make([]unix.Iovec, len(pieces))
	for i, p := range pieces {
		iov[i].Base = unsafe.SliceData(p)
		iov[i].SetLen(len(p))
	}
	return register(q.fd, registerBuffers, iov)
}

// registerFileTable makes a table of n empty slots.
func (q *queues) registerFileTable(n int) error {
	fds := make([]int32, n)
	for i := range fds {
		fds[i] = -1
	}
	return register(q.fd, registerFiles, fds)
}

// registerEventfd has fd written to when there are completions.
func (q *queues) registerEventfd(fd int32) error {
	return register(q.fd, registerEventfd, []int32{fd})
}

// canMute reports that mute works.
func (q *queues) canMute() bool { return q.cqFlags != nil }

// mute stops the writing to the eventfd, or starts it again. The kernel looks at
// this after it has stored a completion: who looks for completions after
// unmuting misses none.
func (q *queues) mute(on bool) {
	if on {
		atomic.StoreUint32(q.cqFlags, cqEventfdDisabled)
	} else {
		atomic.StoreUint32(q.cqFlags, 0)
	}
}

// setFile puts fd into a slot of the table; -1 empties it.
func (q *queues) setFile(slot, fd int32) error {
	q.fileArg = fd // on the heap with q: its address goes to the kernel inside the argument
	return register(q.fd, filesUpdate, []filesUpdateArg{
		{Offset: uint32(slot), Fds: uint64(uintptr(unsafe.Pointer(&q.fileArg)))},
	})
}

// unregister lets go of the registered files and memory now: left to the kernel,
// that comes some time after the ring's descriptor is closed.
func (q *queues) unregister() {
	for _, op := range []uintptr{unregisterFiles, unregisterBuffers} {
		_ = register[byte](q.fd, op, nil) // refused when there are none
	}
}

// next is a cleared SQE. The caller has checked that there is room.
func (q *queues) next() *sqe {
	s := q.sqe(q.localTail)
	q.localTail++
	*s = sqe{}
	return s
}

func (q *queues) sqe(i uint32) *sqe {
	return (*sqe)(unsafe.Pointer(&q.sqeMem[(i&q.sqMask)*q.sqeStep]))
}

// command is the command area of an SQE in a ring for commands.
func (s *sqe) command() *nvmeCommand {
	return (*nvmeCommand)(unsafe.Add(unsafe.Pointer(s), unsafe.Offsetof(s.Pad)))
}

// own is the same for the driver of any file.
func (s *sqe) own() *[CommandBytes]byte {
	return (*[CommandBytes]byte)(unsafe.Add(unsafe.Pointer(s), unsafe.Offsetof(s.Pad)))
}

// vecAddress is where a vector starts, for the kernel.
func vecAddress(v []unix.Iovec) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(v)))) }

// wake adds a completion with data to the queue, from any thread.
func (q *queues) wake(data uint64) error {
	return register(-1, sendMsgRing, []sqe{{Op: opMsgRing, Fd: int32(q.fd), Off: data}})
}

// full reports that there is no SQE left for next.
func (q *queues) full() bool { return q.unsubmitted() >= q.entries }

// empty reports that pop would find nothing.
func (q *queues) empty() bool { return *q.cqHead == atomic.LoadUint32(q.cqTail) }

// unsubmitted is the number of filled SQEs that the kernel has not taken.
func (q *queues) unsubmitted() uint32 { return q.localTail - atomic.LoadUint32(q.sqHead) }

// withdraw takes back the newest SQE that the kernel has not taken and returns its user data.
func (q *queues) withdraw() uint64 {
	q.localTail--
	atomic.StoreUint32(q.sqTail, q.localTail)
	return q.sqe(q.localTail).UserData
}

// publish lets the kernel see the filled SQEs, and returns how many it has not taken.
func (q *queues) publish() uint32 {
	atomic.StoreUint32(q.sqTail, q.localTail)
	return q.unsubmitted()
}

// enter gives n published SQEs to the kernel, and waits for so many completions.
func (q *queues) enter(n, wait, flags uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(q.fd), uintptr(n), uintptr(wait), uintptr(flags), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// pop takes one completion.
func (q *queues) pop() (cqe, bool) {
	if q.empty() {
		return cqe{}, false
	}
	head := *q.cqHead // written by us alone
	at := unsafe.Pointer(&q.ringMem[q.params.CQ.Cqes+(head&q.cqMask)*q.cqeStep])
	c := cqe{UserData: (*cqe)(at).UserData, Res: (*cqe)(at).Res}
	if q.cqeStep == cqeCommandBytes {
		c.Extra = (*cqe)(at).Extra
	}
	atomic.StoreUint32(q.cqHead, head+1)
	return c, true
}

// address is where p starts, for the kernel.
func address(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

// chunkOf is the index of the arena's chunk that p lies in, -1 for none.
func (a *Arena) chunkOf(p []byte) int {
	if len(p) == 0 || len(a.mem) == 0 {
		return -1
	}
	off := address(p) - address(a.mem) // wraps to something large when below
	if off >= uint64(len(a.mem)) || off+uint64(len(p)) > uint64(len(a.mem)) {
		return -1
	}
	chunkBytes := uint64(a.chunkPages * pageBytes)
	if off/chunkBytes != (off+uint64(len(p))-1)/chunkBytes {
		return -1
	}
	return int(off / chunkBytes)
}
