package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// sourceTree makes a small tree of every kind of thing.
func sourceTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"a", "a/b", "empty", "z"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"a/one": "1", "a/b/two": strings.Repeat("two", 1<<20), "a/b/nothing": "", "z/last": "x", "top": "t"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a/one", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	return root
}

// copied is the tree copied to a plain directory, with its manifest.
func copied(t *testing.T) (point string, m *manifest) {
	t.Helper()
	d := &demo{point: t.TempDir(), out: &printer{w: io.Discard}}
	d.tools.goSource = sourceTree(t)
	if err := d.copyTree(context.Background()); err != nil {
		t.Fatal(err)
	}
	return d.point, &d.want
}

func TestCopiedTreeVerifies(t *testing.T) {
	point, m := copied(t)
	if m.files != 5 || m.bytes != 3<<20+3 {
		t.Errorf("%d files of %d bytes", m.files, m.bytes)
	}
	var seen atomic.Int64
	ctx := context.Background()
	if err := m.verify(ctx, point, func(int64) { seen.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if seen.Load() != int64(len(m.entries)) {
		t.Errorf("progress was told %d times of %d", seen.Load(), len(m.entries))
	}
	if err := m.syncAll(ctx, point); err != nil {
		t.Error(err)
	}
	list, err := scan(ctx, point, treeDir)
	if err != nil || len(list) != len(m.entries) {
		t.Fatalf("scan: %d entries, %v", len(list), err)
	}
	scanned := manifest{}
	scanned.add(list...)
	if err := scanned.verify(ctx, point, func(int64) {}); err != nil {
		t.Error(err)
	}
}

// Whatever is wrong is found, and named.
func TestVerifyFindsWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(src string) error
		want  string
	}{
		{"a byte", func(s string) error {
			f, err := os.OpenFile(s+"/a/b/two", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("x"), 2<<20)
			return err
		}, "a/b/two"},
		{"shorter", func(s string) error { return os.Truncate(s+"/a/b/two", 5) }, "a/b/two"},
		{"longer", func(s string) error { return os.Truncate(s+"/a/b/nothing", 1) }, "nothing"},
		{"gone", func(s string) error { return os.Remove(s + "/z/last") }, "last is missing"},
		{"surplus", func(s string) error { return os.WriteFile(s+"/empty/ghost", nil, 0o644) }, "empty"},
		{"mode", func(s string) error { return os.Chmod(s+"/top", 0o600) }, "top"},
		{"type", func(s string) error {
			os.Remove(s + "/a/one")
			return os.Mkdir(s+"/a/one", 0o755)
		}, "one"},
		{"target", func(s string) error {
			os.Remove(s + "/link")
			return os.Symlink("a/two", s+"/link")
		}, "link"},
	} {
		point, m := copied(t)
		if err := c.spoil(filepath.Join(point, treeDir)); err != nil {
			t.Fatal(err)
		}
		err := m.verify(context.Background(), point, func(int64) {})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestParallelStopsAtTheFirstFailure(t *testing.T) {
	err := parallel(context.Background(), 1000, func(i int, _ *[2][]byte) error {
		if i == 3 {
			return cfs.Corrupt
		}
		return nil
	})
	if cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := parallel(ctx, 3, func(int, *[2][]byte) error { return nil }); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPatternFileHasItsSum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for seed, n := range []int64{0, 1, ioBytes, 3*ioBytes + 5} {
		os.Remove(path)
		sum, err := writePattern(path, uint64(seed), n)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil || int64(len(raw)) != n || sha256.Sum256(raw) != sum {
			t.Errorf("%d bytes: %d are there, %v", n, len(raw), err)
		}
	}
	a, b := make([]byte, 64), make([]byte, 64)
	newPattern(1).Read(a)
	newPattern(2).Read(b)
	if bytes.Equal(a, b) {
		t.Error("two seeds give the same bytes")
	}
}

// The program that is built in the mount and treeSum agree.
func TestProgramAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), program, 0o644); err != nil {
		t.Fatal(err)
	}
	root := sourceTree(t)
	list, err := listTree(context.Background(), root, treeDir, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	want, err := treeSum(list)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "run", filepath.Join(dir, "main.go"), root).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("the program prints %q, want %q", got, want)
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if _, err := writePattern(big, 1, 4*probeBytes); err != nil {
		t.Fatal(err)
	}
	p, err := startProbe(filepath.Join(dir, "probe"), big, 4*probeBytes)
	if err != nil {
		t.Fatal(err)
	}
	p.mark()
	p.timed("slow", func() error { time.Sleep(20 * time.Millisecond); return nil })
	longest, which, ops, err := p.end(context.Background())
	if err != nil || longest < 20*time.Millisecond || which == "" || ops == 0 {
		t.Errorf("longest %v (%s) of %d, %v", longest, which, ops, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "probe")); err == nil {
		t.Error("the probe's files stay")
	}

	if p, err = startProbe(filepath.Join(dir, "probe"), filepath.Join(dir, "none"), probeBytes); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); ; time.Sleep(time.Millisecond) { // until the reader has failed
		p.mu.Lock()
		failed := p.failed
		p.mu.Unlock()
		if failed != nil || time.Since(begun) > 20*time.Second {
			break
		}
	}
	if _, _, _, err := p.end(context.Background()); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("a probe that failed: %v", err)
	}
}

func TestPrinting(t *testing.T) {
	var out bytes.Buffer
	p := &printer{w: &out, terminal: true, steps: 2}
	p.step("first")
	p.progress("half way")
	p.result("done %d", 7)
	if got := out.String(); got != "[ 1/2] first\n\r\x1b[K        half way\r\x1b[K        done 7\n" {
		t.Errorf("%q", got)
	}
	if got := count(1234567) + " " + count(12) + " " + count(123456); got != "1,234,567 12 123,456" {
		t.Error(got)
	}
	if got := table([][]string{{"A", "BB"}, {"long", "x"}}); got != "A     BB\nlong  x\n" {
		t.Errorf("%q", got)
	}
}

func TestVerdicts(t *testing.T) {
	r := rates{write: 5e8, diskWrite: 1e9, read: 3e8, diskRead: 1e9, creates: 900, stall: 4 * time.Second, stallOp: "fsync"}
	rows := r.rows()
	for i, want := range map[int]string{1: "met", 3: "MISSED", 4: "met", 5: "MISSED"} {
		if got := rows[i][5]; got != want {
			t.Errorf("%s: %s, want %s", rows[i][0], got, want)
		}
	}
	r.diskWrite = 0
	if got := r.rows()[1][5]; got != "not measured" {
		t.Errorf("without fio: %s", got)
	}
}

func TestInterruptedStepEnds(t *testing.T) {
	d := &demo{out: &printer{w: io.Discard}}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.runStep(ctx, func(ctx context.Context) error { <-ctx.Done(); return nil }); cfs.KindOf(err) != cfs.Canceled && err != nil {
		t.Errorf("got %v", err)
	}
}

func TestDirIsEmptyOrNew(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "new")
	for range 2 { // new, then empty
		if got, err := makeDir(dir); err != nil || got != dir {
			t.Fatalf("%s, %v", got, err)
		}
	}
	if _, err := makeDir(parent); cfs.KindOf(err) != cfs.NotEmpty {
		t.Errorf("a directory with something in it: %v", err)
	}
}

func TestUnbreakableClustersAreRefused(t *testing.T) {
	for _, c := range []struct {
		nodes, devices int
		ok             bool
	}{{3, 2, true}, {4, 1, true}, {3, 1, false}, {2, 2, false}, {0, 0, false}} {
		err := Run(context.Background(), Options{Nodes: c.nodes, Devices: c.devices, Dir: filepath.Join(t.TempDir(), "x", "\x00"), Out: io.Discard})
		if (cfs.KindOf(err) == cfs.Usage) == c.ok {
			t.Errorf("%d nodes of %d devices: %v", c.nodes, c.devices, err)
		}
	}
}

func TestPlanSizes(t *testing.T) {
	for _, c := range []struct {
		short       bool
		deviceBytes int64
		want        cfs.Kind
	}{{false, 8 << 30, cfs.KindOK}, {true, 1 << 30, cfs.KindOK}, {false, 1 << 30, cfs.Usage}, {true, 256 << 20, cfs.Usage}} {
		s, err := planSizes(t.TempDir(), c.short, 6, c.deviceBytes)
		if errors.Is(err, cfs.NoSpace) {
			t.Skip("this disk is full: ", err)
		}
		if cfs.KindOf(err) != c.want || err == nil && s.prewriteBytes > c.deviceBytes {
			t.Errorf("short %v on devices of %d: %+v, %v", c.short, c.deviceBytes, s, err)
		}
	}
}
