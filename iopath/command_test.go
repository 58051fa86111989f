package iopath

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"golang.org/x/sys/unix"
)

func commandRing(t testing.TB, a *Arena) *Ring {
	t.Helper()
	r, err := NewRing(RingConfig{Entries: engineEntries, Arena: a, Commands: true})
	if cfs.KindOf(err) == cfs.Unsupported {
		t.Skipf("no ring for commands here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRingCommands is the suite on a ring whose entries have the doubled size.
func TestRingCommands(t *testing.T) {
	testEngine(t, func(t *testing.T, a *Arena) Engine { return commandRing(t, a) })
}

func TestCommandsRefused(t *testing.T) {
	a := testArena(t, 4<<20)
	b := mustGet(t, a, 4096)
	defer b.Release()
	identify := []Command{{Opcode: 0x06, P: b.Bytes(), CDW10: 1}, {Opcode: 0x06, P: make([]byte, 4096), CDW10: 1}, {Opcode: 0x00}}

	plain := testRing(t, a, engineEntries)
	defer plain.Close()
	file := mustRegister(t, plain, testFile(t, 0))
	if err := plain.Commands(file, CommandAdmin, identify); cfs.KindOf(err) != cfs.Unsupported || !strings.Contains(err.Error(), file.Name()) {
		t.Errorf("a ring without commands: %v", err)
	}

	r := commandRing(t, a)
	file = mustRegister(t, r, testFile(t, 0))
	for _, set := range []CommandSet{CommandIO, CommandAdmin} {
		err := r.Commands(file, set, identify)
		if cfs.KindOf(err) != cfs.Unsupported || !strings.Contains(err.Error(), file.Name()) || !strings.Contains(err.Error(), "0x06") {
			t.Errorf("a regular file: %v", err)
		}
	}
	if err := r.Commands(file, CommandIO, nil); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Commands(file, CommandIO, identify); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("after Close: %v", err)
	}
}

// TestCommandsArrive sends a command to the one thing other than NVMe that takes
// any: a socket, which answers command 0 with the bytes that wait in it (Linux 6.7).
func TestCommandsArrive(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Skipf("no socket here: %v", err)
	}
	defer conn.Close()
	if _, err := conn.WriteTo(make([]byte, 123), conn.LocalAddr()); err != nil {
		t.Skipf("no loopback here: %v", err)
	}
	f, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, -1); err != nil {
		t.Fatal(err)
	}
	r := commandRing(t, nil)
	defer r.Close()
	file := mustRegister(t, r, f)
	cmds := make([]Command, 3*engineEntries)
	err = r.Commands(file, 0, cmds)
	if cfs.KindOf(err) == cfs.Unsupported {
		t.Skipf("sockets take no commands here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cmds {
		if c.Status != 123 || c.Result != 0 {
			t.Errorf("command %d: status %d, result %d, want 123 and 0", i, c.Status, c.Result)
		}
	}
	if n := testing.AllocsPerRun(100, func() { err = r.Commands(file, 0, cmds) }); n != 0 && !invariants.Race || err != nil {
		t.Errorf("%v allocations, %v", n, err)
	}
}

// prepared is a copy of the SQE that operation 0 of b is turned into.
func prepared(r *Ring, b batch) [sqeCommandBytes]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &call{batch: b, pending: 2, wake: make(chan struct{}, 2)}
	r.prepareLocked(c, 0)
	var out [sqeCommandBytes]byte
	copy(out[:], r.q.sqeMem[((r.q.localTail-1)&r.q.sqMask)*r.q.sqeStep:][:r.q.sqeStep])
	r.completedLocked(cqe{UserData: r.q.withdraw()})
	return out
}

// TestSubmissions checks what the kernel is told, at the places where it reads it.
func TestSubmissions(t *testing.T) {
	a := testArena(t, 4<<20)
	b := mustGet(t, a, 4096)
	defer b.Release()
	r := commandRing(t, a)
	defer r.Close()
	file := mustRegister(t, r, testFile(t, 0))
	u8 := func(e [sqeCommandBytes]byte, off int) uint64 { return uint64(e[off]) }
	u32 := func(e [sqeCommandBytes]byte, off int) uint64 { return uint64(*(*uint32)(unsafe.Pointer(&e[off]))) }
	u64 := func(e [sqeCommandBytes]byte, off int) uint64 { return *(*uint64)(unsafe.Pointer(&e[off])) }
	check := func(what string, got, want uint64) {
		t.Helper()
		if got != want {
			t.Errorf("%s is %#x, want %#x", what, got, want)
		}
	}

	write := prepared(r, batch{code: opWrite, file: file, ops: []Transfer{{P: b.Bytes(), Off: 8192, Sync: true}}})
	check("flags of a durable write", u32(write, 28), unix.RWF_DSYNC)
	check("offset", u64(write, 8), 8192)
	check("flags of a plain write", u32(prepared(r, batch{code: opWrite, file: file, ops: []Transfer{{P: b.Bytes()}}}), 28), 0)
	check("flags of a read", u32(prepared(r, batch{code: opRead, file: file, ops: []Transfer{{P: b.Bytes(), Sync: true}}}), 28), 0)

	cmd := Command{Opcode: 1, Flags: 2, NSID: 3, CDW2: 4, CDW3: 5, CDW10: 10, CDW11: 11, CDW12: 12, CDW13: 13, CDW14: 14, CDW15: 15, P: b.Bytes(), TimeoutMS: 16}
	e := prepared(r, batch{code: opCommand, file: file, set: CommandAdmin, cmds: []Command{cmd}})
	check("operation", u8(e, 0), opCommand)
	check("command number", u64(e, 8), uint64(CommandAdmin))
	for i, want := range map[int]uint64{48: 1, 49: 2, 52: 3, 56: 4, 60: 5, 80: 0, 84: 4096, 88: 10, 92: 11, 96: 12, 100: 13, 104: 14, 108: 15, 112: 16, 116: 0} {
		if i < 52 {
			check(fmt.Sprintf("byte %d", i), u8(e, i), want)
		} else {
			check(fmt.Sprintf("word at %d", i), u32(e, i), want)
		}
	}
	check("address", u64(e, 72), address(b.Bytes()))
	if r.arena != nil {
		check("flags of a command with registered data", u32(e, 28), commandFixed)
		check("flags of one without", u32(prepared(r, batch{code: opCommand, unfixed: true, file: file, cmds: []Command{cmd}}), 28), 0)
	}
}

// layouts are the sizes and offsets that the kernel's headers must agree with.
func layouts() map[string]uintptr {
	var s sqe
	var c cqe
	var n nvmeCommand
	return map[string]uintptr{
		"sizeof(struct io_uring_sqe)":                    unsafe.Sizeof(s),
		"offsetof(struct io_uring_sqe, cmd_op)":          unsafe.Offsetof(s.Off),
		"offsetof(struct io_uring_sqe, rw_flags)":        unsafe.Offsetof(s.OpFlags),
		"offsetof(struct io_uring_sqe, uring_cmd_flags)": unsafe.Offsetof(s.OpFlags),
		"offsetof(struct io_uring_sqe, cancel_flags)":    unsafe.Offsetof(s.OpFlags),
		"offsetof(struct io_uring_sqe, user_data)":       unsafe.Offsetof(s.UserData),
		"offsetof(struct io_uring_sqe, buf_index)":       unsafe.Offsetof(s.BufIndex),
		"offsetof(struct io_uring_sqe, cmd)":             unsafe.Offsetof(s.Pad),
		"sizeof(struct io_uring_cqe) + 16":               cqeCommandBytes,
		"offsetof(struct io_uring_cqe, res)":             unsafe.Offsetof(c.Res),
		"offsetof(struct io_uring_cqe, big_cqe)":         unsafe.Offsetof(c.Extra),
		"sizeof(struct io_uring_params)":                 unsafe.Sizeof(uringParams{}),
		"sizeof(struct nvme_uring_cmd)":                  unsafe.Sizeof(n),
		"offsetof(struct nvme_uring_cmd, nsid)":          unsafe.Offsetof(n.NSID),
		"offsetof(struct nvme_uring_cmd, cdw2)":          unsafe.Offsetof(n.CDW2),
		"offsetof(struct nvme_uring_cmd, metadata)":      unsafe.Offsetof(n.Metadata),
		"offsetof(struct nvme_uring_cmd, addr)":          unsafe.Offsetof(n.Addr),
		"offsetof(struct nvme_uring_cmd, metadata_len)":  unsafe.Offsetof(n.MetadataLen),
		"offsetof(struct nvme_uring_cmd, data_len)":      unsafe.Offsetof(n.DataLen),
		"offsetof(struct nvme_uring_cmd, cdw10)":         unsafe.Offsetof(n.CDW10),
		"offsetof(struct nvme_uring_cmd, cdw15)":         unsafe.Offsetof(n.CDW15),
		"offsetof(struct nvme_uring_cmd, timeout_ms)":    unsafe.Offsetof(n.TimeoutMS),
		"NVME_URING_CMD_IO":                              uintptr(CommandIO),
		"NVME_URING_CMD_ADMIN":                           uintptr(CommandAdmin),
		"IORING_OP_URING_CMD":                            opCommand,
		"IORING_OP_READ":                                 opRead,
		"IORING_OP_WRITE":                                opWrite,
		"IORING_OP_FSYNC":                                opFsync,
		"IORING_URING_CMD_FIXED":                         commandFixed,
		"IORING_SETUP_SQE128 | IORING_SETUP_CQE32":       setupSQE128 | setupCQE32,
		"RWF_DSYNC": rwDsync,
	}
}

// TestLayouts compiles a C program against the kernel's headers and compares.
func TestLayouts(t *testing.T) {
	compiler, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no C compiler to ask for the kernel's layouts")
	}
	var source, names strings.Builder
	var want []uintptr
	source.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/fs.h>\n#include <linux/io_uring.h>\n#include <linux/nvme_ioctl.h>\nint main(void) {\n")
	for name, value := range layouts() {
		fmt.Fprintf(&source, "printf(\"%%lu\\n\", (unsigned long)(%s));\n", name)
		fmt.Fprintln(&names, name)
		want = append(want, value)
	}
	source.WriteString("return 0; }\n")
	dir := t.TempDir()
	file, program := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(file, []byte(source.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(compiler, "-o", program, file).CombinedOutput(); err != nil {
		t.Skipf("the kernel's headers are missing or too old: %v\n%s", err, out)
	}
	out, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	got, name := strings.Fields(string(out)), strings.Split(names.String(), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d answers to %d questions", len(got), len(want))
	}
	for i := range want {
		if got[i] != fmt.Sprint(want[i]) {
			t.Errorf("%s is %s, here %d", name[i], got[i], want[i])
		}
	}
}
