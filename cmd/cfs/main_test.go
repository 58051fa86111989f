package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testPatience bounds every wait; a test that reaches it has failed.
const testPatience = 60 * time.Second

// bin is where TestMain has built the commands.
var bin string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cfs-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir+"/", ".", "../cfs-storaged")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	bin = dir
	return m.Run()
}

// run runs a command and returns its exit status and output.
func run(t *testing.T, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, errOut.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// mustRun is run for a command that succeeds; it returns its standard output.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	code, stdout, stderr := run(t, name, args...)
	if code != 0 {
		t.Fatalf("%s %v: exit %d: %s", name, args, code, stderr)
	}
	return stdout
}

// server is a `cfs server` of one node, in a process of its own.
type server struct {
	cmd   *exec.Cmd
	addr  string
	dir   string
	log   *bytes.Buffer
	ended chan error
}

func deviceFile(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// freeAddr is an address that nobody listened on a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// startServer starts a server and waits until it answers.
func startServer(t *testing.T, name string, args ...string) *server {
	t.Helper()
	s := &server{dir: t.TempDir(), addr: freeAddr(t), log: &bytes.Buffer{}, ended: make(chan error, 1)}
	a := deviceFile(t, filepath.Join(s.dir, "a"), 160<<20)
	b := deviceFile(t, filepath.Join(s.dir, "b"), 160<<20)
	args = append(args, "--cluster-id", "test", "--tls", "off", "--node-id", "1", "--listen", s.addr, "--data-dir", filepath.Join(s.dir, "data"), "--device", a+","+b)
	s.cmd = exec.Command(filepath.Join(bin, name), args...)
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.cmd.Wait() }()
	t.Cleanup(func() { s.stop(t) })
	deadline := time.Now().Add(testPatience)
	for {
		if code, out, _ := run(t, "cfs", "admin", "status", "--json", "--timeout", "5s", "--server", s.addr); code == 0 {
			var doc statusDoc
			if err := json.Unmarshal([]byte(out), &doc); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if doc.Leader == 1 && len(doc.Devices) == 2 {
				return s
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the server did not become ready: see its log")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// stop ends the server as an operator does and looks at its exit status.
func (s *server) stop(t *testing.T) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.ended:
		if err != nil || t.Failed() {
			t.Errorf("the server ended with %v:\n%s", err, s.log)
		}
	case <-time.After(testPatience):
		_ = s.cmd.Process.Kill()
		<-s.ended
		t.Errorf("the server did not end:\n%s", s.log)
	}
	s.cmd = nil
}

func TestBadCommandLines(t *testing.T) {
	s := startServer(t, "cfs-storaged")
	dir := t.TempDir()
	small := deviceFile(t, filepath.Join(dir, "small"), 1<<20)
	good := deviceFile(t, filepath.Join(dir, "good"), 160<<20)
	nobody, data := freeAddr(t), filepath.Join(dir, "data")
	foreign := filepath.Join(dir, "foreign")
	copyFile(t, filepath.Join(s.dir, "a"), foreign, 1<<20, 160<<20)
	srv := func(change ...string) []string {
		args := []string{"server", "--tls=off", "--cluster-id=c", "--node-id=1", "--listen=127.0.0.1:0", "--data-dir=" + data, "--device=" + good}
		return append(args, change...) // the last one of a flag counts, but for devices
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"nothing", nil, 2, "missing command"},
		{"unknown command", []string{"frobnicate"}, 2, "frobnicate"},
		{"unknown admin command", []string{"admin", "frobnicate"}, 2, "frobnicate"},
		{"unknown flag", []string{"mount", "/mnt", "--no-such-flag", "x"}, 2, "--no-such-flag"},
		{"missing flags", []string{"server"}, 2, "data-dir"},
		{"a directory that remembers nothing", []string{"server", "--data-dir", "/nonexistent"}, 2, "cluster id"},
		{"missing flags of join", []string{"server", "join"}, 2, "seed"},
		{"malformed node id", srv("--node-id=one"), 2, "--node-id"},
		{"node id 0", srv("--node-id=0"), 2, "node id"},
		{"node id too large", srv("--node-id=70000"), 2, "--node-id"},
		{"malformed cluster id", srv("--cluster-id=a/b"), 2, "cluster id"},
		{"malformed address", srv("--listen=here"), 2, "listen address"},
		{"malformed seeds", srv("--seed-nodes=a,b"), 2, "seed nodes"},
		{"not among the seeds", srv("--node-id=3", "--seed-nodes=127.0.0.1:0,b:1"), 2, "node 3"},
		{"unknown profile", srv("--profile=heat"), 2, "--profile"},
		{"malformed restripe rate", srv("--restripe-rate=fast"), 2, "--restripe-rate"},
		{"malformed scrub rate", srv("--scrub-rate=fast"), 2, "--scrub-rate"},
		{"unknown log level", srv("--log-level=loud"), 2, "--log-level"},
		{"surplus argument", srv("surplus"), 2, "surplus"},
		{"port in use", srv("--listen=" + s.addr), 1, s.addr},
		{"metrics port in use", srv("--metrics=" + s.addr), 1, s.addr},
		{"missing device", srv("--device=" + filepath.Join(dir, "none")), 1, "none"},
		{"small device", srv("--device=" + small), 1, "too small"},
		{"device in use", srv("--device=" + filepath.Join(s.dir, "a")), 1, filepath.Join(s.dir, "a")},
		{"device of another cluster", srv("--device=" + foreign), 1, `"test"`},
		{"admin without server", []string{"admin", "nodes", "--server", nobody}, 1, nobody},
		{"admin malformed server", []string{"admin", "nodes", "--server", "x"}, 2, "--server"},
		{"admin missing socket", []string{"admin", "nodes", "--server", "unix:" + dir + "/none.sock"}, 1, "none.sock"},
		{"admin bad timeout", []string{"admin", "nodes", "--timeout", "soon"}, 2, "--timeout"},
		{"mount without server", []string{"mount", dir}, 2, "server"},
		{"mount without mount point", []string{"mount", "--server", s.addr}, 2, "arg"},
		{"mount at nothing", []string{"mount", filepath.Join(dir, "none"), "--server", s.addr}, 1, "none"},
		{"mount at a file", []string{"mount", good, "--server", s.addr}, 1, "not a directory"},
		{"mount of nobody", []string{"mount", dir, "--server", nobody, "--timeout", "1s"}, 1, nobody},
		{"mount of nobody in the foreground", []string{"mount", dir, "--server", nobody, "--timeout", "1s", "--foreground", "--log-level", "error"}, 1, nobody},
		{"mount of another cluster", []string{"mount", dir, "--server", s.addr, "--cluster-id", "other"}, 1, `"test"`},
		{"mount malformed cluster", []string{"mount", dir, "--server", s.addr, "--cluster-id", "?"}, 2, "cluster id"},
		{"mount bad cache size", []string{"mount", dir, "--server", s.addr, "--cache-size", "0"}, 2, "--cache-size"},
		{"mount bad ttl", []string{"mount", dir, "--server", s.addr, "--cache-ttl", "-1s"}, 2, "--cache-ttl"},
		{"mount by no transport", []string{"mount", dir, "--server", s.addr, "--transport", "pigeon"}, 2, "--transport"},
		{"umount of nothing", []string{"umount", dir}, 1, dir},
		{"umount of a path that is not", []string{"umount", filepath.Join(dir, "none")}, 1, "none"},
		{"umount of another type", []string{"umount", "/proc"}, 1, "/proc"},
		{"umount without path", []string{"umount"}, 2, "arg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := listing(t, dir)
			code, stdout, stderr := run(t, "cfs", c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
				t.Errorf("exit %d, want %d; stdout %q; stderr %q, want one line with %q", code, c.code, stdout, stderr, c.want)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("changed:\n%s\nto:\n%s", before, after)
			}
		})
	}
}

// copyFile copies the first n bytes of a file into a new one of a given size.
func copyFile(t *testing.T, from, to string, n int, size int64) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, raw[:n], 0o600)
	}
	if err == nil {
		err = os.Truncate(to, size)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// listing is the names, sizes and times of what is below dir.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil && !d.IsDir() {
			fmt.Fprintln(&b, path, fi.Size(), fi.ModTime().UnixNano())
		} else if err == nil {
			fmt.Fprintln(&b, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestAdminViews(t *testing.T) {
	s := startServer(t, "cfs", "server")
	for view, want := range map[string][]string{
		"status":  {"cluster", "test", "node 1 (" + s.addr + ")", "2 of 2 up"},
		"nodes":   {"NODE", s.addr, "up", "leader"},
		"devices": {"DEVICE", "1/0", "1/1", "MiB", "up"},
		"groups":  {"GROUP", "GEOMETRY"},
	} {
		for _, addr := range []string{s.addr, "unix:" + filepath.Join(s.dir, "data", "node.sock")} {
			out := mustRun(t, "cfs", "admin", view, "--server", addr)
			for _, w := range want {
				if !strings.Contains(out, w) {
					t.Errorf("admin %s at %s lacks %q:\n%s", view, addr, w, out)
				}
			}
		}
		var doc map[string]any
		if err := json.Unmarshal([]byte(mustRun(t, "cfs", "admin", view, "--json", "--server", s.addr)), &doc); err != nil {
			t.Errorf("admin %s --json: %v", view, err)
		}
		if view != "status" && doc[view] == nil {
			t.Errorf("admin %s --json: %v", view, doc)
		}
	}
}

func TestProfileIsWritten(t *testing.T) {
	s := startServer(t, "cfs-storaged", "--profile", "cpu")
	s.stop(t)
	if fi, err := os.Stat(filepath.Join(s.dir, "data", "profile", "cpu.pprof")); err != nil || fi.Size() == 0 {
		t.Errorf("profile: %v, %v", fi, err)
	}
}

// A mount as a daemon: usable on return, refused twice, busy while in use, and
// everything is there again after it was unmounted.
func TestMountAndUmount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
	s := startServer(t, "cfs", "server")
	point := filepath.Join(t.TempDir(), "mount point")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(s.dir, "mount.log")
	mount := func() (int, string, string) {
		return run(t, "cfs", "mount", point, "--server", s.addr, "--cluster-id", "test", "--log-file", log)
	}
	if code, _, stderr := mount(); code != 0 {
		t.Fatalf("mount: exit %d: %s", code, stderr)
	}
	t.Cleanup(func() { _ = syscall.Unmount(point, syscall.MNT_DETACH) })
	file := filepath.Join(point, "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := mount(); code != 1 || !strings.Contains(stderr, point) || strings.Count(stderr, "\n") != 1 {
		t.Errorf("a second mount: exit %d: %s", code, stderr)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t, "cfs", "umount", point); code != 1 || !strings.Contains(stderr, "busy") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("unmount while a file is open: exit %d: %s", code, stderr)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "cfs", "umount", point)
	if entries, err := os.ReadDir(point); err != nil || len(entries) != 0 {
		t.Errorf("the directory below: %v, %v", entries, err)
	}
	if code, _, stderr := mount(); code != 0 {
		t.Fatalf("mount again: exit %d: %s", code, stderr)
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != "content" {
		t.Errorf("after another mount: %q, %v", got, err)
	}
	mustRun(t, "cfs", "umount", point)
	if raw, err := os.ReadFile(log); err != nil || !bytes.Contains(raw, []byte("mounted")) {
		t.Errorf("the daemon's log: %q, %v", raw, err)
	}
}
