package fuse

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// busyTries and busyPause are how long an unmount waits for the last users to
	// go: a process that has just exited may still be closing its files.
	busyTries = 10
	busyPause = 20 * time.Millisecond
	// drainTimeout is how long requests that are being served may take before they are given up.
	drainTimeout = 10 * time.Second
)

// Unmount takes the mount away. If it is in use it is detached: it can no longer
// be reached by its path, and files that are open work until the last is closed
// or the daemon exits. Requests that do not end within drainTimeout are given up.
// After the first call, and after umount(8), it does nothing.
func (s *Server) Unmount() error {
	select {
	case <-s.done:
		return nil
	default:
	}
	err := s.retry()
	detached := false
	if errors.Is(err, syscall.EBUSY) {
		s.log.Warn("in use: detaching the mount", "mountpoint", s.point)
		detached = true
		err = unmount(s.point, true)
	}
	if err != nil && !s.gone() {
		return cfs.E("unmount "+s.point, cfs.KindOf(err), err)
	}
	if detached || s.livesElsewhere() {
		return nil
	}
	if !s.wait(drainTimeout) {
		s.log.Warn("giving up requests that do not end", "mountpoint", s.point)
		s.Abort()
		if !s.wait(drainTimeout) {
			return cfs.Errorf("unmount "+s.point, cfs.Timeout, "requests are still being served")
		}
	}
	return nil
}

// Abort gives up every request that still waits, with EINTR: for a daemon that
// must end though the cluster does not answer.
func (s *Server) Abort() { s.stop.Do(func() { close(s.fs.stop) }) }

// retry unmounts, waiting a little for the last users.
func (s *Server) retry() error {
	for try := 1; ; try++ {
		err := unmount(s.point, false)
		if try == busyTries || !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(busyPause)
	}
}

// gone reports that nothing of ours is mounted there any more.
func (s *Server) gone() bool {
	all, err := mounts()
	return err == nil && !slices.ContainsFunc(all, func(m mountEntry) bool {
		return m.point == s.point && m.fsType == fsType && (m.dev == s.dev || s.dev == "")
	})
}

// wait waits for the last request, at most limit.
func (s *Server) wait(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-s.done:
		return true
	case <-timer.C:
		return false
	}
}

// Unmount takes a ClaudeFS mount away that another process serves; lazily, though
// it is in use or its daemon is dead. cfs.NotFound when there is none.
func Unmount(mountpoint string, lazy bool) error {
	point, err := filepath.Abs(mountpoint)
	if err != nil {
		return cfs.E("unmount "+mountpoint, cfs.IO, err)
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(point)); err == nil {
		point = filepath.Join(parent, filepath.Base(point))
	}
	op := "unmount " + point
	m, ok, err := mountedAt(point)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if !ok || m.fsType != fsType {
		return cfs.Errorf(op, cfs.NotFound, "no ClaudeFS is mounted there")
	}
	if err := unmount(point, lazy); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	return nil
}

// unmount is umount2(2), by fusermount3 where that is not allowed.
func unmount(point string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(point, flags)
	if !errors.Is(err, syscall.EPERM) || os.Geteuid() == 0 {
		return err
	}
	args := []string{"-u", point}
	if lazy {
		args = []string{"-u", "-z", point}
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil && strings.Contains(string(out), "busy") {
		return syscall.EBUSY
	}
	if err != nil {
		return fmt.Errorf("fusermount3: %s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// departurePoll is how often it is looked whether the mount has left its place.
const departurePoll = 500 * time.Millisecond

// livesElsewhere reports, and logs, that the mount is gone from its place and goes on: as a copy in another mount
// namespace (a container, ip netns exec), as a bind mount, or by files that are open. The kernel ends the connection with
// the last of them.
func (s *Server) livesElsewhere() bool {
	select {
	case <-s.done:
		return false
	default:
	}
	if !s.fs.kernel.connected() {
		return false
	}
	s.log.Warn("unmounted, and still in use elsewhere: in another mount namespace (a container?), a bind mount, or open files", "mountpoint", s.point)
	return true
}

// Departed is closed when somebody has unmounted while a copy of the mount lives elsewhere, or files are open: what is
// there is served on, until Done.
func (s *Server) Departed() <-chan struct{} { return s.departed }

// watchDeparture looks for that, and for what is mounted on our directories. The kernel tells a daemon of the end of the last copy alone, but poll(2) tells of
// every change of the table of mounts.
func (s *Server) watchDeparture() {
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.log.Warn("the table of mounts cannot be watched", "err", err)
		return
	}
	defer unix.Close(table)
	tick := time.NewTicker(departurePoll)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		changed, err := unix.Poll([]unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}}, 0)
		if err != nil || changed == 0 {
			continue
		}
		s.fs.caches.lookBelow()
		if !s.gone() {
			continue
		}
		if s.livesElsewhere() {
			close(s.departed)
		}
		return
	}
}
