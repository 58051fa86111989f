package test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/cluster/demo"
)

const (
	// dirPrefix names the directories of these tests, so that a later run finds what a killed one left.
	dirPrefix = "claudefs-test-"
	// leftoverAge is how old a directory without processes must be to count as left behind.
	leftoverAge = 10 * time.Minute
	// patience bounds every wait for a cluster in these tests.
	patience = 60 * time.Second
	// mountLife ends a mount whose test has not ended: calls that hang fail then.
	mountLife = 150 * time.Second
)

// binary is cfs, built once.
var binary string

func TestMain(m *testing.M) {
	if path := os.Getenv(lockerEnv); path != "" {
		if err := runLocker(path); err != nil {
			fmt.Fprintln(os.Stderr, "locker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(stressEnv); dir != "" {
		if err := stress(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) // it goes on until it is killed
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	if reason() != "" {
		return m.Run() // everything is skipped: nothing to build
	}
	sweep()
	dir, err := os.MkdirTemp("", "claudefs-test-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "cfs")
	cmd := exec.Command("go", "build", "-o", binary, "../cmd/cfs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build cfs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// sweep removes what a run that was killed has left: its processes died with it.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(demo.DefaultParent(), dirPrefix+"*"))
	for _, dir := range dirs {
		st, err := os.Stat(dir)
		if err != nil || time.Since(st.ModTime()) < leftoverAge {
			continue
		}
		c, err := cluster.Load(dir, nil)
		if err != nil {
			continue
		}
		running := false
		for n := range c.Nodes() {
			running = running || c.Alive(n+1)
		}
		if !running {
			c.Destroy()
			os.RemoveAll(dir) // what is mounted there, if anything, is in use and fails
		}
	}
}

// reason is why these tests cannot run here.
func reason() string {
	if os.Geteuid() != 0 {
		return "mounting needs root"
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return "there is no /dev/fuse"
	}
	return ""
}

func need(t *testing.T) {
	t.Helper()
	if why := reason(); why != "" {
		t.Skip(why)
	}
}

// newDir is a directory on the disk that is gone after the test.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(demo.DefaultParent(), dirPrefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start starts a cluster of three nodes of two devices that is gone after the test.
func start(t *testing.T, change func(*cluster.Spec)) *cluster.Cluster {
	t.Helper()
	need(t)
	spec := cluster.Spec{
		Dir: filepath.Join(newDir(t), "c"), Binary: binary, Nodes: 3, Devices: 2, DeviceSizeBytes: 2 << 30,
		StartTimeout: patience, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if change != nil {
		change(&spec)
	}
	c, err := cluster.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for n := range c.Nodes() {
				t.Logf("node %d (running: %v):\n%s", n+1, c.Alive(n+1), cluster.Tail(c.LogPath(n+1), 15))
			}
		}
		if err := c.Destroy(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// testWriter gives the launcher's log to the test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// mount mounts the cluster; a test that hangs in the mount fails when mountLife has passed.
func mount(t *testing.T, c *cluster.Cluster, name string) *cluster.Mount {
	t.Helper()
	m, err := c.Mount(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	most := mountLife + 2**chaosFlag
	life := time.AfterFunc(most, func() {
		t.Errorf("the test has used its mount for %v: taking it away", most)
		m.Kill()
	})
	t.Cleanup(func() {
		life.Stop()
		if t.Failed() {
			t.Logf("mount %s:\n%s", name, cluster.Tail(m.LogPath(), 15))
		}
	})
	return m
}

func remount(t *testing.T, m *cluster.Mount) {
	t.Helper()
	if err := m.Remount(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// counters are those of a mount.
func counters(t *testing.T, m *cluster.Mount) map[string]float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v, err := m.Counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// content is n bytes that seed decides.
func content(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

// writeFile writes, fsyncs and closes a file.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// sum is the SHA-256 and the size of a file.
func sum(path string) (sum [sha256.Size]byte, n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err = io.Copy(h, f)
	return [sha256.Size]byte(h.Sum(nil)), n, err
}
