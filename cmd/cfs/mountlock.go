package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// lockPoll is the rhythm in which an unmount looks whether the daemon is done.
	lockPoll = 20 * time.Millisecond
	// maxLastWords bounds the error that a daemon leaves behind, in bytes.
	maxLastWords = 4096
)

// mountLock is a file that a mount's daemon holds locked (flock(2)) for as long
// as it lives, whatever ends it. Whoever unmounts waits for the lock, and reads
// what the daemon wrote there if its last flush failed.
type mountLock struct {
	f *os.File
}

// mountDev is the device number of the mount at path, which differs among all
// mounts that are alive. It asks the kernel alone: a daemon that is dead, slow,
// or this very process has nothing to answer.
func mountDev(path string) (string, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if err != nil {
		return "", cfs.E("look at "+path, cfs.KindOf(err), err)
	}
	return fmt.Sprintf("%d-%d", st.Dev_major, st.Dev_minor), nil
}

// lockPath is the file of the mount with a device number.
func lockPath(dev string) string {
	dir := "/run/claudefs"
	if os.Geteuid() != 0 {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("claudefs-%d", os.Geteuid()))
		if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
			dir = filepath.Join(run, "claudefs")
		}
	}
	return filepath.Join(dir, "mount-"+dev)
}

// holdMountLock makes and locks the file of the mount dev. The file of an
// earlier mount with that number is replaced; who waits for that one has it open.
func holdMountLock(dev string) (*mountLock, error) {
	path := lockPath(dev)
	op := "lock " + path
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return &mountLock{f: f}, nil
}

// release ends the hold; lastWords, if there are any, stay for who unmounts.
func (l *mountLock) release(lastWords error) {
	if lastWords != nil {
		_, _ = l.f.WriteString(lastWords.Error())
	}
	own, err1 := l.f.Stat()
	now, err2 := os.Stat(l.f.Name())
	if err1 == nil && err2 == nil && os.SameFile(own, now) {
		_ = os.Remove(l.f.Name())
	}
	_ = l.f.Close()
}

// openMountLock opens the file of the mount dev to wait for its daemon; nil
// when no daemon has left one.
func openMountLock(dev string) *mountLock {
	f, err := os.Open(lockPath(dev))
	if err != nil {
		return nil
	}
	return &mountLock{f: f}
}

// wait returns when the daemon has ended, with its last words as an error.
func (l *mountLock) wait(ctx context.Context) error {
	defer l.f.Close()
	const op = "wait for the mount's daemon"
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(l.f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return cfs.E(op, cfs.KindOf(err), err)
		}
		select {
		case <-ctx.Done():
			return cfs.Errorf(op, cfs.Timeout, "it is still writing what it holds back to the cluster")
		case <-tick.C:
		}
	}
	words, err := io.ReadAll(io.LimitReader(l.f, maxLastWords))
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if len(words) > 0 {
		return cfs.Errorf("the mount's daemon", cfs.IO, "%s", words)
	}
	return nil
}
