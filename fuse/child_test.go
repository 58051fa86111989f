package fuse

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What must not run in the process that serves the mount (page faults of
// mappings, a death by SIGKILL) runs in a child: this test binary again, told
// what to do by its environment.
const (
	childEnv = "CFS_FUSE_TEST_CHILD"
	childArg = "CFS_FUSE_TEST_ARG"
	// transportEnv names the transport of the mounts that are tested.
	transportEnv = "CFS_FUSE_TEST_TRANSPORT"
)

var children = map[string]func(arg string) error{
	"serve":      serveForever,
	"closeLocks": closeLocks,
	"mmapRead":   mmapRead,
	"mmapWrite":  mmapWrite,
	"mmapAppend": mmapAppend,
	"mapAndObey": mapAndObey,
	"readFile":   func(arg string) error { _, err := os.ReadFile(arg); return err },
}

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := children[what](os.Getenv(childArg)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(what, arg string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what, childArg+"="+arg)
	return cmd
}

func runChild(t *testing.T, what, arg string) {
	t.Helper()
	if out, err := child(what, arg).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", what, err, out)
	}
}

// pattern is n bytes that differ from block to block and from seed to seed.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

const mmapBytes = 3<<20 + 123

// mmapRead compares a shared mapping with what the parent wrote.
func mmapRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, mmapBytes, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	defer syscall.Munmap(mem)
	if !bytes.Equal(mem, pattern(1, mmapBytes)) {
		return fmt.Errorf("the mapping differs from the file")
	}
	return nil
}

// mmapWrite writes a file through a shared mapping.
func mmapWrite(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(mmapBytes); err != nil {
		return err
	}
	return throughMapping(f, pattern(2, mmapBytes))
}

func throughMapping(f *os.File, want []byte) error {
	mem, err := syscall.Mmap(int(f.Fd()), 0, len(want), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(mem, want)
	if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
		return err
	}
	return syscall.Munmap(mem)
}

// mmapAppend writes through a mapping of a descriptor that appends.
func mmapAppend(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 8192)); err != nil {
		return err
	}
	return throughMapping(f, pattern(3, 8192))
}
