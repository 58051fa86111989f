package nvme

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// discard is ioctl BLKDISCARD of linux/fs.h, whose argument is {offset, length} in bytes.
func discard(fd uintptr, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKDISCARD, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}
