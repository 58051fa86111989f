package nvme

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface, from linux/nvme_ioctl.h.
const (
	nvmeIoctlID    = 0x4e40     // NVME_IOCTL_ID
	nvmeIoctlAdmin = 0xc0484e41 // NVME_IOCTL_ADMIN_CMD
)

// adminCommand is struct nvme_passthru_cmd.
type adminCommand struct {
	Opcode, Flags                            uint8
	_                                        uint16
	NSID, CDW2, CDW3                         uint32
	Metadata, Addr                           uint64
	MetadataLen, DataLen                     uint32
	CDW10, CDW11, CDW12, CDW13, CDW14, CDW15 uint32
	TimeoutMS                                uint32
	Result                                   uint32
}

// discard is ioctl BLKDISCARD of linux/fs.h, whose argument is {offset, length} in bytes.
func discard(fd uintptr, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKDISCARD, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// dropCache is ioctl BLKFLSBUF: what the page cache has of a block device is
// written and forgotten.
func dropCache(fd uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKFLSBUF, 0); errno != 0 {
		return errno
	}
	return nil
}

// namespaceID is ioctl NVME_IOCTL_ID.
func namespaceID(fd uintptr) (uint32, error) {
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, nvmeIoctlID, 0)
	if errno != 0 {
		return 0, errno
	}
	return uint32(id), nil
}

// sendAdmin is ioctl NVME_IOCTL_ADMIN_CMD with the data p, which must not be on
// a goroutine's stack. The status is that of the device.
func sendAdmin(fd uintptr, c *adminCommand, p []byte) (status int32, err error) {
	c.Addr, c.DataLen = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), uint32(len(p))
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, nvmeIoctlAdmin, uintptr(unsafe.Pointer(c)))
	runtime.KeepAlive(p)
	if errno != 0 {
		return 0, errno
	}
	return int32(r), nil
}
