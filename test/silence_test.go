package test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountWith mounts in a process of the test, for what a cluster's mounts cannot be told one by one.
func mountWith(t *testing.T, servers []string, args ...string) (point string) {
	t.Helper()
	point = filepath.Join(newDir(t), "mnt")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(binary, append([]string{"mount", point, "--foreground", "--tls=off", "--server=" + strings.Join(servers, ",")}, args...)...)
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = unix.Unmount(point, unix.MNT_DETACH)
		if t.Failed() {
			t.Logf("mount %s:\n%s", point, log.String())
		}
	})
	eventually(t, "the mount is there", func() bool {
		var st unix.Statfs_t
		return unix.Statfs(point, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC
	})
	return point
}

// All servers fall silent: operations wait, which the log says, and go on when they are back. With --timeout they fail
// with EIO instead.
func TestSilentServers(t *testing.T) {
	t.Parallel() // it waits for most of its time
	c := start(t, nil)
	waiting := mount(t, c, "mnt")
	limited := mountWith(t, c.Addrs(), "-o", "timeout=2s")
	data := content(1, 3<<20)
	if err := writeFile(filepath.Join(limited, "data"), data); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(waiting.Point, "data")); err != nil {
		t.Fatal(err)
	}
	operations := func(point string) map[string]chan error {
		all := map[string]chan error{}
		for name, do := range map[string]func() error{
			"read": func() error {
				got, err := os.ReadFile(filepath.Join(point, "data"))
				if err == nil && !bytes.Equal(got, data) {
					err = errors.New("other bytes")
				}
				return err
			},
			"lookup": func() error {
				_, err := os.Stat(filepath.Join(point, "none"))
				if errors.Is(err, fs.ErrNotExist) {
					err = nil
				}
				return err
			},
			"write": func() error { return writeFile(filepath.Join(point, "new-"+filepath.Base(filepath.Dir(point))), data) },
		} {
			ended := make(chan error, 1)
			all[name] = ended
			go func() { ended <- do() }()
		}
		return all
	}
	for n := range c.Nodes() {
		if err := c.Pause(n + 1); err != nil {
			t.Fatal(err)
		}
	}
	wait, limit := operations(waiting.Point), operations(limited)
	for name, ended := range limit {
		select {
		case err := <-ended:
			// What was read before is answered from memory.
			if !errors.Is(err, syscall.EIO) && (name != "read" || err != nil) {
				t.Errorf("with a timeout: %s: %v", name, err)
			}
		case <-time.After(patience):
			t.Errorf("with a timeout: %s does not end", name)
		}
	}
	eventually(t, "the log says that operations wait", func() bool {
		log, err := os.ReadFile(waiting.LogPath())
		return err == nil && bytes.Contains(log, []byte("waiting for the cluster"))
	})
	for name, ended := range wait {
		select {
		case err := <-ended:
			t.Errorf("%s ended while no server answered: %v", name, err)
			ended <- err
		default:
		}
	}
	for n := range c.Nodes() {
		if err := c.Resume(n + 1); err != nil {
			t.Fatal(err)
		}
	}
	for name, ended := range wait {
		select {
		case err := <-ended:
			log, _ := os.ReadFile(waiting.LogPath())
			if err != nil && !bytes.Contains(log, []byte("session expired")) { // on a machine that is slow enough
				t.Errorf("%s after the servers came back: %v", name, err)
			}
		case <-time.After(patience):
			t.Errorf("%s does not go on", name)
		}
	}
	eventually(t, "the mount with the timeout goes on", func() bool {
		_, err := os.ReadDir(limited)
		return err == nil
	})
}
