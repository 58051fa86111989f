package fuse

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// commFD is the descriptor of the child on which fusermount3 sends the connection: the first of ExtraFiles.
const commFD = 3

// fusermount mounts for a user who may not: the setuid program fusermount3 opens /dev/fuse, mounts, and sends
// the descriptor over a socket (fusermount3(1), libfuse's lib/mount.c).
func fusermount(point string, cfg Config, maxBytes int) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	opts := fmt.Sprintf("fsname=%s,subtype=%s,max_read=%d,default_permissions", escapeOption(cfg.Source), fsName, maxBytes)
	opts = strings.Join(append([]string{opts}, cfg.names()...), ",")
	cmd := exec.Command("fusermount3", "-o", opts, "--", point)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), fmt.Sprintf("_FUSE_COMMFD=%d", commFD))
	out, err := cmd.CombinedOutput()
	err = errors.Join(err, theirs.Close())
	if err != nil {
		return -1, fmt.Errorf("fusermount3: %s: %w", strings.TrimSpace(string(out)), err)
	}
	return receiveFD(pair[0])
}

// escapeOption quotes what separates mount options.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(s)
}

// receiveFD takes one descriptor from a socket.
func receiveFD(sock int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) == 0 {
		return -1, errors.Join(errors.New("fusermount3 sent no descriptor"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(errors.New("fusermount3 sent no descriptor"), err)
	}
	return fds[0], nil
}
