package fuse

import (
	"encoding/binary"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// What the daemon tells the kernel unasked: enum fuse_notify_code of linux/fuse.h.
const (
	notifyInvalInode = 2
	notifyRetrieve   = 5
	notifyIncEpoch   = 8
)

const (
	outHeaderBytes = 16 // struct fuse_out_header
	// incEpochMinor is the minor version of the protocol that first knows notifyIncEpoch (Linux 6.16).
	incEpochMinor = 44
)

// kernelConn is the connection to the kernel as far as the daemon speaks first: notifications and backing
// files. Requests and answers are the transport's; this works beside any of them.
//
// A notification waits for locks of the kernel, and those may wait for answers of this daemon: it is
// sent with no lock held that an answer needs, and not by the goroutine of a request that holds the lock.
type kernelConn struct {
	mu sync.RWMutex // held for reading while fd is in use
	fd int          // a descriptor of its own; -1 once closed
	// minor is the kernel's version of the protocol: 7.minor.
	minor uint32
	// root is the inode that the kernel knows as cfs.RootIno; 0 where it is that one.
	root cfs.Ino
}

// newKernelConn duplicates fd, an open /dev/fuse that is mounted.
func newKernelConn(fd int) (*kernelConn, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup /dev/fuse", err)
	}
	return &kernelConn{fd: own}, nil
}

// Close ends it: what is told afterwards goes nowhere.
func (k *kernelConn) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd := k.fd
	if k.fd = -1; fd < 0 {
		return nil
	}
	return os.NewSyscallError("close /dev/fuse", unix.Close(fd))
}

// node is what the kernel calls an inode, whether that is named as the cluster or as the kernel does.
func (k *kernelConn) node(ino cfs.Ino) uint64 {
	if ino == k.root {
		return uint64(cfs.RootIno)
	}
	return uint64(ino)
}

// connected reports that there is still something mounted, here or in another mount namespace.
func (k *kernelConn) connected() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.fd < 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLOUT}}
	_, err := unix.Poll(fds, 0)
	return err != nil || fds[0].Revents&unix.POLLERR == 0
}

// notify sends one notification; ENOENT says that the kernel knows nothing of what it is about.
func (k *kernelConn) notify(code int32, body ...[]byte) error {
	head := make([]byte, outHeaderBytes, outHeaderBytes+64)
	for _, b := range body {
		head = append(head, b...)
	}
	binary.LittleEndian.PutUint32(head, uint32(len(head)))
	binary.LittleEndian.PutUint32(head[4:], uint32(code))
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.fd < 0 {
		return unix.ENODEV
	}
	_, err := unix.Write(k.fd, head)
	return os.NewSyscallError("notify the kernel", err)
}

// invalInode has the kernel forget an inode's attributes and ACLs and, from off on, n bytes of its pages; n 0 is up to
// the end, and a negative off leaves all pages. It waits for pages that are being read or written.
func (k *kernelConn) invalInode(ino cfs.Ino, off, n int64) error {
	b := make([]byte, 0, 24)
	b = binary.LittleEndian.AppendUint64(b, k.node(ino))
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	return k.notify(notifyInvalInode, binary.LittleEndian.AppendUint64(b, uint64(n)))
}

// stir has the kernel send a request, NOTIFY_REPLY of that number, which is even, to the queue of the CPU that this runs on.
// node is a regular file that the kernel knows, as it does one of which it has a request. It waits for nothing.
func (k *kernelConn) stir(unique, node uint64) error {
	b := make([]byte, 32) // struct fuse_notify_retrieve_out: no bytes of the file's pages
	binary.LittleEndian.PutUint64(b, unique)
	binary.LittleEndian.PutUint64(b[8:], node)
	return k.notify(notifyRetrieve, b)
}

// canIncEpoch reports that the kernel knows incEpoch.
func (k *kernelConn) canIncEpoch() bool { return k.minor >= incEpochMinor }

// incEpoch has the kernel look every name of the mount up anew when it is next used. It takes no lock.
func (k *kernelConn) incEpoch() error { return k.notify(notifyIncEpoch) }
