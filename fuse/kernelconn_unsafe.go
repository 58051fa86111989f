package fuse

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of ioctl(2) on /dev/fuse: linux/fuse.h, FUSE_DEV_IOC_BACKING_OPEN and _CLOSE.
const (
	iocBackingOpen  = 0x4010e501
	iocBackingClose = 0x4004e502
)

// openBacking registers a regular file of this machine as one that the kernel may read and write in place of an
// inode, and returns the id that an open names it by. EPERM without CAP_SYS_ADMIN, ELOOP where the file is
// on a FUSE mount that passes through itself.
func (k *kernelConn) openBacking(fd int) (int32, error) {
	arg := struct {
		fd, flags int32
		padding   uint64
	}{fd: int32(fd)}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.fd < 0 {
		return 0, unix.ENODEV
	}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.fd), iocBackingOpen, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return 0, os.NewSyscallError("register a backing file", errno)
	}
	return int32(id), nil
}

// closeBacking gives an id back. Files that were opened with it keep it.
func (k *kernelConn) closeBacking(id int32) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.fd < 0 {
		return nil // all ids went with the connection
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.fd), iocBackingClose, uintptr(unsafe.Pointer(&id))); errno != 0 {
		return os.NewSyscallError("give up a backing file", errno)
	}
	return nil
}
