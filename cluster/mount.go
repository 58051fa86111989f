package cluster

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/scrape"
)

const (
	// mountTimeout bounds how long a mount may take to answer.
	mountTimeout = 30 * time.Second
	// unmountTimeout bounds the orderly unmount, which writes back what the client holds.
	unmountTimeout = 60 * time.Second
)

// Mount is a mount of the cluster on this machine, served by a daemon of its own.
type Mount struct {
	Name    string   `json:"name"`
	Point   string   `json:"point"`   // the mount point
	Metrics string   `json:"metrics"` // HOST:PORT of the daemon's /metrics
	Process *process `json:"process,omitempty"`

	c *Cluster
}

// Mount mounts the cluster at a directory called name inside the cluster's.
func (c *Cluster) Mount(ctx context.Context, name string) (*Mount, error) {
	op := "mount " + name
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, "node-") {
		return nil, cfs.Errorf(op, cfs.Invalid, "the name of a mount is one path element, and not a node's")
	}
	m := c.MountOf(name)
	if m == nil {
		m = &Mount{Name: name, Point: filepath.Join(c.spec.Dir, name), c: c}
		if err := os.Mkdir(m.Point, 0o755); err != nil {
			return nil, cfs.E(op, cfs.KindOf(err), err)
		}
		c.st.Mounts = append(c.st.Mounts, m)
	}
	if m.Process.alive() {
		return nil, cfs.Errorf(op, cfs.Busy, "it is mounted already")
	}
	return m, m.start(ctx)
}

// MountOf is the mount that was made under a name; nil for none.
func (c *Cluster) MountOf(name string) *Mount {
	for _, m := range c.st.Mounts {
		if m.Name == name {
			return m
		}
	}
	return nil
}

func (c *Cluster) mountLog(name string) string { return filepath.Join(c.spec.Dir, name+".log") }

// LogPath is what the daemon has printed.
func (m *Mount) LogPath() string { return m.c.mountLog(m.Name) }

// start starts the daemon and returns when the mount answers.
func (m *Mount) start(ctx context.Context) error {
	op := "mount " + m.Point
	ports, err := freePorts(loopback, 1)
	if err != nil {
		return err
	}
	m.Metrics = joinPort(loopback, ports[0])
	argv := []string{
		m.c.st.Binary, "mount", m.Point, "--server", strings.Join(m.c.Addrs(), ","),
		"--metrics", m.Metrics, "--foreground",
	}
	identity, err := m.identityArgs(ctx)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	argv = append(argv, identity...)
	death := syscall.SIGKILL // not SIGTERM: it would wait for servers that die with it
	if m.c.spec.Detach {
		death = 0
	}
	m.Process, err = m.c.spawn.start(append(argv, m.c.st.MountArgs...), nil, m.LogPath(), death)
	if err != nil {
		return err
	}
	if err := m.c.save(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	answer := make(chan error, 1)
	for asked := false; ; {
		select {
		case err := <-answer:
			if err != nil {
				return cfs.E(op, cfs.KindOf(err), err)
			}
			m.c.log.Info("mounted", "point", m.Point, "pid", m.Process.PID)
			return nil
		case <-ctx.Done():
			m.Process.kill() // which ends a call that the mount does not answer
			m.detach()
			return cfs.Errorf(op, cfs.Timeout, "%w; the log of the daemon ends:\n%s", ctx.Err(), Tail(m.LogPath(), 8))
		case <-time.After(pollInterval):
		}
		if !m.Process.alive() {
			m.detach()
			return m.Process.died(op)
		}
		if !asked && m.mounted() {
			asked = true
			go func() {
				_, err := os.ReadDir(m.Point)
				answer <- err
			}()
		}
	}
}

// Unmount takes the mount off and returns when its daemon, having written
// everything back, has ended. When that fails it is taken off by force.
func (m *Mount) Unmount(ctx context.Context) error {
	op := "unmount " + m.Point
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.c.st.Binary, "umount", m.Point)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = cfs.Errorf(op, cfs.IO, "%w: %s", err, strings.TrimSpace(string(out)))
	} else {
		err = m.Process.wait(ctx)
	}
	if err != nil {
		m.Process.kill()
		m.detach()
		return err
	}
	m.c.log.Info("unmounted", "point", m.Point)
	return nil
}

// Remount unmounts and mounts again: the daemon starts with an empty cache and
// the kernel has dropped its pages.
func (m *Mount) Remount(ctx context.Context) error {
	if err := m.Unmount(ctx); err != nil {
		return err
	}
	return m.start(ctx)
}

// Kill ends the daemon with SIGKILL and takes the dead mount off.
func (m *Mount) Kill() error {
	m.Process.kill()
	return m.detach()
}

// Counters are the values that the daemon's /metrics serves, those of one name added up.
func (m *Mount) Counters(ctx context.Context) (map[string]float64, error) {
	samples, err := scrape.Read(ctx, m.Metrics)
	return scrape.Sums(samples), err
}

// mounted reports that the kernel has a file system of ours at the mount point.
func (m *Mount) mounted() bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	// Spaces and the like are escaped in octal (proc_pid_mountinfo(5)).
	want := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(m.Point)
	for s := bufio.NewScanner(f); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 4 && f[4] == want {
			return true
		}
	}
	return false
}

// detach takes a mount off whose daemon is dead.
func (m *Mount) detach() error {
	for m.mounted() {
		if err := unix.Unmount(m.Point, unix.MNT_DETACH); err != nil {
			return cfs.E("detach "+m.Point, cfs.KindOf(err), err)
		}
	}
	return nil
}
