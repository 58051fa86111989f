package fuse

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// needFUSE skips the test where the kernel or the user cannot mount.
func needFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	f.Close()
	if os.Geteuid() != 0 {
		t.Skip("needs root: credentials, device nodes and unmounting are tested")
	}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testLog{t}, nil))
}

// mounted is a mount of m at a fresh directory, taken away at the test's end.
func mounted(t testing.TB, m *memFS) (string, *Server) {
	t.Helper()
	needFUSE(t)
	base := t.TempDir()
	check(t, os.Chmod(filepath.Dir(base), 0o755)) // other users come here too
	dir := filepath.Join(base, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, mountAt(t, m, dir)
}

func mountAt(t testing.TB, m *memFS, dir string) *Server {
	t.Helper()
	return mountWith(t, m, Config{Mountpoint: dir, Source: "host-a:9400,host-b:9400", Transport: os.Getenv(transportEnv), Logger: testLogger(t)})
}

func mountWith(t testing.TB, m *memFS, cfg Config) *Server {
	t.Helper()
	t.Cleanup(func() { unix.Unmount(cfg.Mountpoint, unix.MNT_DETACH) })
	s, err := mount(cfg, m.backend())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if !s.wait(drainTimeout) {
			t.Error("the mount is still served after its last file was closed")
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		for ino, n := range m.nodes {
			if n.holders != 0 {
				t.Errorf("inode %d: %d files were never closed", ino, n.holders)
			}
		}
	})
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErrno(t testing.TB, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestMountShowsSourceAndType(t *testing.T) {
	dir, s := mounted(t, newMemFS())
	m, ok, err := mountedAt(dir)
	check(t, err)
	if !ok || m.source != "host-a:9400,host-b:9400" || m.fsType != "fuse.cfs" {
		t.Errorf("mounted as %+v (%v)", m, ok)
	}
	if s.Mountpoint() != dir {
		t.Errorf("mount point %s, want %s", s.Mountpoint(), dir)
	}
	kb, err := os.ReadFile("/sys/class/bdi/" + m.dev + "/read_ahead_kb")
	check(t, err)
	if got := strings.TrimSpace(string(kb)); got != strconv.Itoa(DefaultReadAheadBytes>>10) {
		t.Errorf("readahead of %s KiB", got)
	}
	var st unix.Statfs_t
	check(t, unix.Statfs(dir, &st))
	if st.Blocks*uint64(st.Bsize) != 4<<30 || st.Bavail*uint64(st.Bsize) != 1<<30 || st.Namelen != 255 {
		t.Errorf("statfs %+v", st)
	}
}

func TestMountRefusals(t *testing.T) {
	needFUSE(t)
	base := t.TempDir()
	file := filepath.Join(base, "file")
	check(t, os.WriteFile(file, nil, 0o644))
	m := newMemFS()
	for _, c := range []struct {
		point string
		want  cfs.Kind
	}{{filepath.Join(base, "missing"), cfs.NotFound}, {filepath.Join(base, "no", "parent"), cfs.NotFound}, {file, cfs.NotDir}} {
		_, err := mount(Config{Mountpoint: c.point, Logger: testLogger(t)}, m.backend())
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.point) {
			t.Errorf("%s: %v", c.point, err)
		}
	}
	dir, _ := mounted(t, m)
	_, err := mount(Config{Mountpoint: dir, Logger: testLogger(t)}, m.backend())
	if !errors.Is(err, cfs.Busy) || !strings.Contains(err.Error(), "host-a:9400") {
		t.Errorf("mounting twice: %v", err)
	}
	link := filepath.Join(base, "link")
	check(t, os.Symlink(dir, link))
	if _, err = mount(Config{Mountpoint: link, Logger: testLogger(t)}, m.backend()); !errors.Is(err, cfs.Busy) {
		t.Errorf("mounting twice by a link: %v", err)
	}
}

func TestUnmountIsIdempotentAndFollowsUmount(t *testing.T) {
	dir, s := mounted(t, newMemFS())
	check(t, Unmount(dir, false))
	s.Wait()
	check(t, s.Unmount())
	if err := Unmount(dir, false); !errors.Is(err, cfs.NotFound) {
		t.Errorf("unmounting what is not mounted: %v", err)
	}
}

func TestUnmountOfABusyMountDetaches(t *testing.T) {
	m := newMemFS()
	dir, s := mounted(t, m)
	f, err := os.Create(dir + "/f")
	check(t, err)
	defer f.Close()
	if err := Unmount(dir, false); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("unmounting a busy mount: %v", err)
	}
	check(t, s.Unmount())
	if _, ok, err := mountedAt(dir); ok || err != nil {
		t.Errorf("still mounted (%v)", err)
	}
	_, err = f.WriteString("an open file goes on")
	check(t, err)
	check(t, f.Close())
	s.Wait()
}

// A daemon that dies leaves a mount that answers ENOTCONN; the next takes it away.
func TestMountOverADeadDaemon(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	daemon := exec.Command(os.Args[0])
	daemon.Env = append(os.Environ(), childEnv+"=serve", childArg+"="+dir)
	daemon.Stderr = os.Stderr
	out, err := daemon.StdoutPipe()
	check(t, err)
	check(t, daemon.Start())
	ready := make([]byte, 1)
	if _, err := out.Read(ready); err != nil {
		t.Fatalf("the daemon did not start: %v", err)
	}
	check(t, daemon.Process.Kill())
	daemon.Wait()
	if err := probe(dir); !errors.Is(err, syscall.ENOTCONN) {
		t.Fatalf("statfs of the dead mount: %v", err)
	}
	m := newMemFS()
	mountAt(t, m, dir)
	check(t, os.WriteFile(dir+"/f", nil, 0o644))
}

func TestParseMountinfo(t *testing.T) {
	text := `22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
91 22 0:43 / /mnt/with\040blank rw,nosuid - fuse.cfs a:1,b:2 rw,user_id=0
92 22 0:44 / /short rw
93 22 0:45 / /many rw shared:1 master:2 - fuse.x src\134y rw
`
	want := []mountEntry{
		{"252:0", "/", "ext4", "/dev/vda"},
		{"0:43", "/mnt/with blank", "fuse.cfs", "a:1,b:2"},
		{"0:45", "/many", "fuse.x", `src\y`},
	}
	got := parseMountinfo([]byte(text))
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add([]byte("22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"))
	f.Add([]byte("1 2 0:1 / /a\\040b rw -"))
	f.Add([]byte("1 2 0:1 / /a\\04 rw - x \\\n\n - - - - - - - -"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, e := range parseMountinfo(text) {
			if e.dev == "" || e.fsType == "" {
				t.Errorf("empty field in %+v", e)
			}
		}
	})
}

// serveForever is the child of TestMountOverADeadDaemon.
func serveForever(dir string) error {
	_, err := mount(Config{Mountpoint: dir, Source: "dead:9400", Logger: slog.New(slog.DiscardHandler)}, newMemFS().backend())
	if err != nil {
		return err
	}
	os.Stdout.Write([]byte("."))
	time.Sleep(time.Hour)
	return nil
}
