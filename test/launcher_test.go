package test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cluster"
)

// Nodes in namespaces of their own, behind proxies, with one clock off: the
// cluster works, goes on when a node is cut off, and takes it back.
func TestNamespacesProxiesAndClocks(t *testing.T) {
	need(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip(8): ", err)
	}
	c := start(t, func(s *cluster.Spec) {
		s.Namespaces, s.Proxies = true, true
		s.ClockOffsets = map[int]time.Duration{2: 90 * time.Second, 3: -time.Hour}
	})
	m := mount(t, c, "mnt")
	for n := 1; n <= c.Nodes(); n++ {
		c.Proxy(n).SetDelay(time.Millisecond, time.Millisecond)
	}
	write := func(rel string, seed uint64) []byte {
		t.Helper()
		data := content(seed, 5<<20)
		if err := writeFile(filepath.Join(m.Point, rel), data); err != nil {
			t.Fatal(err)
		}
		return data
	}
	check := func(rel string, want []byte) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(m.Point, rel)); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: %d of %d bytes, right: %v, %v", rel, len(got), len(want), bytes.Equal(got, want), err)
		}
	}
	far := write("far", 1)

	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cut := leader%c.Nodes() + 1
	if err := c.Isolate(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	during := write("during", 2)
	t.Logf("node %d cut off, a write took %v", cut, time.Since(begun))
	check("far", far)
	if err := c.Rejoin(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitUsable(t.Context()); err != nil {
		t.Fatal(err)
	}
	remount(t, m)
	check("far", far)
	check("during", during)

	for n := 1; n <= c.Nodes(); n++ { // every connection breaks, and is made again
		c.Proxy(n).Drop()
	}
	dropped := write("dropped", 3)
	remount(t, m)
	check("dropped", dropped)
}

func TestDemoUpAndDown(t *testing.T) {
	need(t)
	dir := filepath.Join(newDir(t), "up")
	t.Cleanup(func() {
		if c, err := cluster.Load(dir, nil); err == nil {
			c.Destroy()
		}
	})
	out, err := exec.Command(binary, "demo", "up", "--dir", dir, "--device-size", "512MiB").CombinedOutput()
	if err != nil {
		t.Fatalf("demo up: %v\n%s", err, out)
	}
	point := filepath.Join(dir, "mnt")
	if !strings.Contains(string(out), point) {
		t.Errorf("demo up does not name the mount point:\n%s", out)
	}
	data := content(5, 1<<20)
	if err := writeFile(filepath.Join(point, "file"), data); err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"status"}, {"nodes"}, {"devices"}, {"groups"}, {"status", "--json"}} {
		out, err := exec.Command(binary, append([]string{"admin", "--server", c.AdminAddr(1)}, args...)...).CombinedOutput()
		if err != nil || len(out) == 0 {
			t.Errorf("admin %v: %v\n%s", args, err, out)
		}
	}
	if out, err := exec.Command(binary, "demo", "up", "--dir", dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "demo down") {
		t.Errorf("a second demo up in the same directory: %v\n%s", err, out)
	}
	if out, err := exec.Command(binary, "demo", "down", "--dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("demo down: %v\n%s", err, out)
	}
	for n := 1; n <= c.Nodes(); n++ {
		if c.Alive(n) {
			t.Errorf("node %d is still running", n)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if out, err := exec.Command(binary, "demo", "down", "--dir", dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "no cluster") {
		t.Errorf("demo down of nothing: %v\n%s", err, out)
	}
}

// Wrong command lines of the demo: one line, exit status 2, nothing made.
func TestDemoRefuses(t *testing.T) {
	need(t)
	for _, c := range []struct{ args, want string }{
		{"demo --frobnicate", "--frobnicate"},
		{"demo --nodes 2", "--nodes"},
		{"demo --nodes 0", "--nodes"},
		{"demo --device-size 1parsec", "1parsec"},
		{"demo --dir DIR --device-size 256MiB", "too small"},
		{"demo up", "dir"},
		{"demo down", "dir"},
		{"demo up --dir DIR --nodes 99", "99 nodes"},
		{"demo up --dir DIR --device-size 1MiB", "1048576"},
		{"demo sideways", "sideways"},
	} {
		dir := filepath.Join(newDir(t), "d")
		cmd := exec.Command(binary, strings.Fields(strings.ReplaceAll(c.args, "DIR", dir))...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.Run()
		text := stderr.String()
		if cmd.ProcessState.ExitCode() != 2 || strings.Count(text, "\n") != 1 || !strings.Contains(text, c.want) {
			t.Errorf("cfs %s: exit %d, %q; want 2 and a line with %q", c.args, cmd.ProcessState.ExitCode(), text, c.want)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("cfs %s: made %s", c.args, dir)
		}
	}
}
