package perf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// tracepoints is where the kernel says the numbers of its tracepoints.
const tracepoints = "/sys/kernel/tracing/events/syscalls/"

// syncCounter counts the calls by which a process makes files durable, in the
// kernel: what the process says of itself does not matter.
type syncCounter struct{ fds []int }

// countSyncs begins to count the fdatasyncs and fsyncs of a child process. It is stopped
// for the moment in which its threads are found; those that they start later count too.
func countSyncs(process *os.Process) (_ *syncCounter, err error) {
	op := fmt.Sprintf("count the syncs of process %d", process.Pid)
	var ids []uint64
	for _, call := range []string{"fdatasync", "fsync"} {
		text, err := os.ReadFile(tracepoints + "sys_enter_" + call + "/id")
		if err != nil {
			return nil, cfs.E(op, cfs.KindOf(err), err)
		}
		id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			return nil, cfs.E(op, cfs.Corrupt, err)
		}
		ids = append(ids, id)
	}
	if err := process.Signal(unix.SIGSTOP); err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	c := &syncCounter{}
	defer func() {
		if cerr := process.Signal(unix.SIGCONT); err == nil && cerr != nil {
			err = cfs.E(op, cfs.KindOf(cerr), cerr)
		}
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if err := waitStopped(process.Pid); err != nil {
		return nil, err
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", process.Pid))
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return nil, cfs.E(op, cfs.Corrupt, err)
		}
		for _, id := range ids {
			attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Size: unix.PERF_ATTR_SIZE_VER0, Config: id, Bits: unix.PerfBitInherit}
			fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if err != nil {
				return nil, cfs.E(op, cfs.KindOf(err), err)
			}
			c.fds = append(c.fds, fd)
		}
	}
	return c, nil
}

// waitStopped returns when all threads of a process stand still. The kernel says T of the
// process when the last one has.
func waitStopped(pid int) error {
	op := fmt.Sprintf("stop process %d", pid)
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return cfs.E(op, cfs.KindOf(err), err)
		}
		state := statFields(text)
		switch {
		case len(state) == 0 || state[0] == "Z" || state[0] == "X":
			return cfs.Errorf(op, cfs.Unavailable, "it has ended")
		case state[0] == "T" || state[0] == "t":
			return nil
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 1e5}, nil)
	}
}

// statFields are the fields of /proc/PID/stat from the state on: the name before it may
// hold anything.
func statFields(text []byte) []string {
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// count is how many calls there have been.
func (c *syncCounter) count() (uint64, error) {
	var sum uint64
	var buf [8]byte
	for _, fd := range c.fds {
		n, err := unix.Read(fd, buf[:])
		if err == nil && n != len(buf) {
			err = unix.EIO
		}
		if err != nil {
			return 0, cfs.E("count syncs", cfs.KindOf(err), err)
		}
		sum += binary.NativeEndian.Uint64(buf[:])
	}
	return sum, nil
}

func (c *syncCounter) close() error {
	var err error
	for _, fd := range c.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	c.fds = nil
	return err
}
