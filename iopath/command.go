package iopath

import (
	"fmt"
	"syscall"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// Command is one NVMe command for a character device, as struct nvme_uring_cmd of
// linux/nvme_ioctl.h has it. It is the engine's until the call returns.
type Command struct {
	Opcode uint8
	Flags  uint8
	NSID   uint32
	// The command's dwords that are its own.
	CDW2, CDW3, CDW10, CDW11, CDW12, CDW13, CDW14, CDW15 uint32
	// P is the data, read or written as the opcode says; nil for none.
	P []byte
	// TimeoutMS is when the driver gives the command up; 0 for the driver's own.
	TimeoutMS uint32

	// Result is the answer's dword 0, and dword 1 in the upper half.
	Result uint64
	// Status is 0, or the answer's NVMe status field without its phase bit: the
	// code in bits 0 to 7, its type in bits 8 to 10, Do Not Retry in bit 14.
	Status int32

	res int32 // the kernel's answer
}

// CommandSet is the queue that commands go to; its value is the kernel's number.
type CommandSet uint32

// The command sets: those of I/O queues, which a namespace's /dev/ngXnY takes, and
// of the admin queue, which the controller's /dev/nvmeX takes.
const (
	CommandIO    CommandSet = 0xC0484E80 // NVME_URING_CMD_IO
	CommandAdmin CommandSet = 0xC0484E82 // NVME_URING_CMD_ADMIN
)

// Commander is an engine that can send NVMe commands.
type Commander interface {
	// Commands sends a batch in one submission, in no order. The error is the
	// transport's: an errno, or an engine that is closed or was not made for
	// commands. It is the first one of the batch, and the others ran. What the
	// device answered is in each Command's Status and Result.
	Commands(f File, set CommandSet, cmds []Command) error
}

var _ Commander = (*Ring)(nil)

// Commands sends a batch; see Commander. Unsupported on a ring that was made
// without RingConfig.Commands, and on a file that takes no commands. Data in the
// ring's arena is not pinned anew.
func (r *Ring) Commands(f File, set CommandSet, cmds []Command) error {
	if !r.commands {
		return cfs.Errorf("NVMe commands on "+f.name, cfs.Unsupported, "the ring was not made for commands")
	}
	if len(cmds) == 0 {
		return nil
	}
	c := r.begin()
	defer r.end(c)
	r.run(c, batch{code: opCommand, file: f, set: set, cmds: cmds})
	var first error
	for i := range cmds {
		if err := r.finishCommand(c, f, set, cmds[i:i+1]); first == nil {
			first = err
		}
	}
	return first
}

// finishCommand turns the kernel's answer for one command into its Status or an
// error. A command that the kernel did not send is sent again: as is after
// EAGAIN, without the registered buffer after EINVAL, which is what a kernel
// answers that cannot use one here.
func (r *Ring) finishCommand(c *call, f File, set CommandSet, one []Command) error {
	cmd, unfixed := &one[0], false
	for {
		switch errno := syscall.Errno(-cmd.res); {
		case cmd.res >= 0:
			cmd.Status = cmd.res
			return nil
		case errno == unix.EINVAL && !unfixed && r.arena != nil && r.arena.chunkOf(cmd.P) >= 0:
			unfixed = true
		case errno != unix.EAGAIN:
			return refused(fmt.Sprintf("NVMe command %#02x on %s", cmd.Opcode, f.name), errno)
		}
		r.run(c, batch{code: opCommand, file: f, set: set, cmds: one, unfixed: unfixed})
	}
}

// prepareCommandLocked fills an SQE with a command.
func (r *Ring) prepareCommandLocked(s *sqe, b *batch, cmd *Command) {
	s.Off = uint64(b.set)
	if r.arena != nil && !b.unfixed {
		if chunk := r.arena.chunkOf(cmd.P); chunk >= 0 {
			s.OpFlags, s.BufIndex = commandFixed, uint16(chunk)
		}
	}
	*s.command() = nvmeCommand{
		Opcode: cmd.Opcode, Flags: cmd.Flags, NSID: cmd.NSID, CDW2: cmd.CDW2, CDW3: cmd.CDW3,
		Addr: address(cmd.P), DataLen: uint32(len(cmd.P)),
		CDW10: cmd.CDW10, CDW11: cmd.CDW11, CDW12: cmd.CDW12, CDW13: cmd.CDW13, CDW14: cmd.CDW14, CDW15: cmd.CDW15,
		TimeoutMS: cmd.TimeoutMS,
	}
}
