package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/fuse/filecache"
)

// passBed is a mount with a cache directory.
type passBed struct {
	testing.TB
	m       *memFS
	dir     string // the mount
	keep    string // the cache directory
	cache   *filecache.Cache
	s       *Server
	metrics *Metrics
}

const passBytes = 300<<10 + 123

func newPassBed(t testing.TB, size int64) *passBed {
	b := &passBed{TB: t, m: newMemFS(), keep: t.TempDir(), metrics: NewMetrics(nil)}
	b.m.ttl = 0 // another mount's change is seen at once
	b.open(t, size)
	return b
}

func (b *passBed) open(t testing.TB, size int64) {
	t.Helper()
	needFUSE(t)
	var err error
	b.cache, err = filecache.Open(filecache.Config{Dir: b.keep, SizeBytes: size, ClusterID: "c", Logger: testLogger(t)})
	check(t, err)
	t.Cleanup(func() { b.cache.Close() })
	base := t.TempDir()
	check(t, os.Chmod(filepath.Dir(base), 0o755)) // other users come here too
	b.dir = filepath.Join(base, "mnt")
	check(t, os.Mkdir(b.dir, 0o755))
	b.s = mountWith(t, b.m, Config{Mountpoint: b.dir, Source: "a:9400", Logger: testLogger(t), Cache: b.cache, Metrics: b.metrics})
	if !b.s.fs.pass.able.Load() {
		t.Skip("needs a kernel with passthrough, CAP_SYS_ADMIN, and a cache directory on a file system that is not stacked")
	}
}

func (b *passBed) path(name string) string { return b.dir + "/" + name }

// until waits for what happens in the background.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in a minute not: %s", what)
		}
	}
}

// node is the inode behind a name of the root.
func (b *passBed) node(name string) *memNode {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	return b.m.nodes[b.m.nodes[1].names[name]]
}

func (b *passBed) attr(name string) cfs.Attr {
	n := b.node(name)
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	return n.attr
}

// elsewhere changes a file as another mount does.
func (b *passBed) elsewhere(name string, do func(f *memFile)) {
	n := b.node(name)
	b.m.mu.Lock()
	n.holders++
	b.m.mu.Unlock()
	f := &memFile{m: b.m, n: n, flags: syscall.O_RDWR}
	do(f)
	check(b, f.Close(context.Background()))
}

// cluster is the content of a file as the cluster has it.
func (b *passBed) cluster(name string) []byte {
	var got []byte
	b.elsewhere(name, func(f *memFile) {
		got = make([]byte, b.attr(name).Size)
		_, err := f.Read(context.Background(), got, 0)
		check(b, err)
	})
	return got
}

func (b *passBed) cached(name string) bool {
	a := b.attr(name)
	return b.cache.Has(filecache.KeyOf(&a))
}

// fetch reads a file to its end, which brings it into the cache.
func (b *passBed) fetch(name string) {
	b.Helper()
	check(b, unix.Access(b.path(name), unix.R_OK))
	drop(b, b.path(name))
	_, err := os.ReadFile(b.path(name))
	check(b, err)
	until(b, name+" is in the cache", func() bool { return b.cached(name) })
}

// drop has the kernel forget a file's pages, so that reading it is READ requests.
func drop(t testing.TB, path string) {
	f, err := os.Open(path)
	check(t, err)
	check(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	check(t, f.Close())
}

// make makes a file that is in the cache.
func (b *passBed) make(name string, content []byte) {
	b.Helper()
	check(b, os.WriteFile(b.path(name), content, 0o644))
	b.idle(name)
	b.fetch(name)
}

// idle waits until the daemon has closed all handles of a file.
func (b *passBed) idle(name string) {
	b.Helper()
	n := b.node(name)
	until(b, name+" is closed", func() bool {
		b.m.mu.Lock()
		defer b.m.mu.Unlock()
		return n.holders == 0
	})
	ino := b.attr(name).Ino
	until(b, name+" has no I/O mode", func() bool {
		s := &b.s.fs.pass.inodes.shard[uint64(ino)%inoTableShards]
		s.Lock()
		defer s.Unlock()
		return s.inode[ino] == nil
	})
}

func (b *passBed) count(why passReason) int {
	var m dto.Metric
	check(b, b.metrics.passed[why].Write(&m))
	return int(m.GetCounter().GetValue())
}

// passed opens a file for reading, which must pass through.
func (b *passBed) passed(name string) *os.File {
	b.Helper()
	before := b.count(passedOpen)
	f, err := os.Open(b.path(name))
	check(b, err)
	b.Cleanup(func() { f.Close() })
	if b.count(passedOpen) != before+1 {
		b.Fatalf("%s is not passed through", name)
	}
	return f
}

func content(t testing.TB, f *os.File) []byte {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	check(t, err)
	return got
}

func (b *passBed) want(what string, got, want []byte) {
	b.Helper()
	if !bytes.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		b.Errorf("%s: %d bytes, want %d; the first difference is at %d", what, len(got), len(want), at)
	}
}

func TestPassthroughReadsWithoutRequests(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	b.make("f", want)
	b.idle("f")
	before := b.m.count("read")
	f := b.passed("f")
	b.want("sequentially", content(t, f), want)
	p := make([]byte, 4096)
	for range 100 {
		off := rand.IntN(passBytes)
		n, err := f.ReadAt(p, int64(off))
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		b.want("at random", p[:n], want[off:min(off+4096, passBytes)])
	}
	direct, err := unix.Open(b.path("f"), unix.O_RDONLY|unix.O_DIRECT, 0)
	check(t, err)
	defer unix.Close(direct)
	n, err := unix.Pread(direct, alignedPage(), 4096)
	if err != nil || n != 4096 {
		t.Errorf("O_DIRECT: %d, %v", n, err)
	}
	if got := b.m.count("read"); got != before {
		t.Errorf("%d READ requests", got-before)
	}
	if st := lstat(t, b.path("f")); st.Size != passBytes {
		t.Errorf("size %d", st.Size)
	}
	if off, err := f.Seek(0, io.SeekEnd); err != nil || off != passBytes {
		t.Errorf("the end is at %d, %v", off, err)
	}
}

func alignedPage() []byte {
	p, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return p
}

// The version that is open stays, whatever another mount does; who opens the file later reads what is there then.
func TestPassthroughPinsItsVersion(t *testing.T) {
	b := newPassBed(t, 1<<20)
	old, changed := pattern(1, passBytes), pattern(2, passBytes+5000)
	b.make("f", old)
	f := b.passed("f")
	b.elsewhere("f", func(mf *memFile) {
		_, err := mf.Write(context.Background(), changed, 0)
		check(t, err)
	})
	b.want("the pinned version", content(t, f), old)
	g, err := os.Open(b.path("f"))
	check(t, err)
	defer g.Close()
	b.want("a later open", content(t, g), changed)
	if b.count(passDirect) != 1 {
		t.Errorf("%d opens past the kernel's pages", b.count(passDirect))
	}
	if st := lstat(t, b.path("f")); st.Size != int64(len(changed)) {
		t.Errorf("size %d", st.Size)
	}
	b.want("the pinned version still", content(t, f), old)
	check(t, f.Close())
	check(t, g.Close())
	b.idle("f")
	b.fetch("f")
	b.idle("f")
	b.want("the next version", content(t, b.passed("f")), changed)
}

// What this machine writes is seen by who has the file open here, and by the cluster.
func TestPassthroughWritingOpenOfAPinnedInode(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	b.make("f", bytes.Clone(want))
	f := b.passed("f")
	same := func(what string) {
		t.Helper()
		b.want(what+": the reader", content(t, f), want)
		b.want(what+": the cluster", b.cluster("f"), want)
		got, err := os.ReadFile(b.path("f"))
		check(t, err)
		b.want(what+": a later open", got, want)
	}
	for _, c := range []struct {
		what  string
		flags int
		do    func(w *os.File) error
	}{
		{"write", os.O_WRONLY, func(w *os.File) error {
			copy(want[5000:], "in the middle")
			_, err := w.WriteAt([]byte("in the middle"), 5000)
			return err
		}},
		{"write and read", os.O_RDWR, func(w *os.File) error {
			copy(want[70000:], "again")
			if _, err := w.WriteAt([]byte("again"), 70000); err != nil {
				return err
			}
			b.want("by the writer", content(t, w), want)
			return nil
		}},
		{"append", os.O_WRONLY | os.O_APPEND, func(w *os.File) error {
			want = append(want, "at the end"...)
			_, err := w.WriteString("at the end")
			return err
		}},
		{"ftruncate", os.O_RDWR, func(w *os.File) error {
			want = want[:250000]
			return w.Truncate(250000)
		}},
		{"extend", os.O_WRONLY, func(w *os.File) error {
			want = append(want, make([]byte, 10000)...)
			return w.Truncate(260000)
		}},
		{"punch a hole", os.O_RDWR, func(w *os.File) error {
			clear(want[4096:20000])
			return unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 20000-4096)
		}},
		{"allocate", os.O_RDWR, func(w *os.File) error {
			want = append(want, make([]byte, 40000)...)
			return unix.Fallocate(int(w.Fd()), 0, 0, 300000)
		}},
		{"O_TRUNC", os.O_WRONLY | os.O_TRUNC, func(w *os.File) error {
			want = pattern(7, 100000)
			_, err := w.Write(want)
			return err
		}},
	} {
		w, err := os.OpenFile(b.path("f"), c.flags, 0)
		check(t, err)
		if err := c.do(w); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		same(c.what + ", open")
		check(t, w.Close())
		same(c.what)
	}
	check(t, os.Truncate(b.path("f"), 90000))
	want = want[:90000]
	same("truncate by path")
	check(t, f.Close())
	b.idle("f")
	if b.cached("f") {
		t.Error("what is not the version of its name is in the cache")
	}
	got, err := os.ReadFile(b.path("f"))
	check(t, err)
	b.want("when nothing is pinned any more", got, want)
}

func TestPassthroughCopyIntoAPinnedInode(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	b.make("f", want)
	check(t, os.WriteFile(b.path("src"), pattern(2, 50000), 0o644))
	f := b.passed("f")
	src, err := os.Open(b.path("src"))
	check(t, err)
	defer src.Close()
	dst, err := os.OpenFile(b.path("f"), os.O_WRONLY, 0)
	check(t, err)
	defer dst.Close()
	off := int64(8192)
	n, err := unix.CopyFileRange(int(src.Fd()), nil, int(dst.Fd()), &off, 50000, 0)
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	copy(want[8192:], pattern(2, 50000)[:n])
	b.want("the reader", content(t, f), want)
	b.want("the cluster", b.cluster("f"), want)
}

// While handles use the kernel's pages nothing is passed through, and it is again when they are closed.
func TestPassthroughWaitsForCachedHandles(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	check(t, os.WriteFile(b.path("f"), want, 0o644))
	b.idle("f")
	f, err := os.Open(b.path("f"))
	check(t, err)
	defer f.Close()
	b.fetch("f")
	before := b.count(passMode)
	got, err := os.ReadFile(b.path("f"))
	check(t, err)
	b.want("with the pages in use", got, want)
	if b.count(passMode) != before+1 {
		t.Error("the mode of the inode did not keep it")
	}
	check(t, f.Close())
	b.idle("f")
	w, err := os.OpenFile(b.path("f"), os.O_RDWR, 0)
	check(t, err)
	defer w.Close()
	got, err = os.ReadFile(b.path("f"))
	check(t, err)
	b.want("while it is open for writing", got, want)
	check(t, w.Close())
	b.idle("f")
	b.want("when nobody has it open", content(t, b.passed("f")), want)
}

func TestPassthroughLeavesWhatItCannotHold(t *testing.T) {
	b := newPassBed(t, 100<<10)
	want := pattern(1, passBytes)
	check(t, os.WriteFile(b.path("large"), want, 0o644))
	check(t, os.WriteFile(b.path("small"), want[:1000], 0o644))
	for range 3 {
		for _, name := range []string{"large", "small"} {
			b.idle(name)
			drop(t, b.path(name))
			got, err := os.ReadFile(b.path(name))
			check(t, err)
			b.want(name, got, want[:len(got)])
		}
	}
	if b.count(passAbsent) == 0 || b.count(passSmall) == 0 || b.count(passedOpen) != 0 {
		t.Errorf("absent %d, small %d, passed %d", b.count(passAbsent), b.count(passSmall), b.count(passedOpen))
	}
	if st := b.cache.Stats(); st.Files != 0 || st.Bytes != 0 {
		t.Errorf("%+v", st)
	}
}

// chmod +s of a file that is open: readers read on, and a write takes it away.
func TestPassthroughSetuidWhileOpen(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	b.make("f", want)
	f := b.passed("f")
	check(t, os.Chmod(b.path("f"), 0o777|os.ModeSetuid))
	b.want("the reader", content(t, f), want)
	check(t, asUserInTest(1000, func() error {
		w, err := os.OpenFile(b.path("f"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer w.Close()
		_, err = w.WriteAt([]byte("x"), 0)
		return err
	}))
	if a := b.attr("f"); a.Mode&cfs.ModeSetuid != 0 {
		t.Error("a write through the pinned inode leaves set-user-ID")
	}
	want[0] = 'x'
	b.want("the reader, after the write", content(t, f), want)
}

func asUserInTest(id int, f func() error) error {
	done := make(chan error)
	go func() { done <- asUser(id, f) }()
	return <-done
}

func TestPassthroughUnlinkAndRenameWhileOpen(t *testing.T) {
	b := newPassBed(t, 2<<20)
	want, other := pattern(1, passBytes), pattern(2, passBytes)
	b.make("f", want)
	b.make("g", other)
	f, g := b.passed("f"), b.passed("g")
	check(t, os.Rename(b.path("g"), b.path("f")))
	b.want("of the replaced file", content(t, f), want)
	b.want("of the renamed file", content(t, g), other)
	got, err := os.ReadFile(b.path("f"))
	check(t, err)
	b.want("by the new name", got, other)
	check(t, os.Remove(b.path("f")))
	b.want("of the removed file", content(t, g), other)
}

// runIn has a copy of the shell run what. Another process starts it: this one serves the mount, and while one of its threads waits for
// exec(2) the collector may wait for that thread, and all others for the collector.
func runIn(shell, what string) *exec.Cmd {
	return exec.Command("/bin/sh", "-c", `exec "$0" -c "$1"`, shell, what)
}

func TestPassthroughRunsPrograms(t *testing.T) {
	b := newPassBed(t, 64<<20)
	prog, err := os.ReadFile("/bin/sh")
	check(t, err)
	check(t, os.WriteFile(b.path("sh"), prog, 0o755))
	b.idle("sh")
	b.fetch("sh")
	b.idle("sh")
	before := b.m.count("read")
	out, err := runIn(b.path("sh"), "echo from the mount").CombinedOutput()
	if err != nil || string(out) != "from the mount\n" {
		t.Errorf("%q, %v", out, err)
	}
	if b.count(passedOpen) == 0 || b.m.count("read") != before {
		t.Errorf("%d opens passed through, %d READ requests", b.count(passedOpen), b.m.count("read")-before)
	}
}

// A program that has been replaced in place elsewhere is run as the version that is pinned, not as a mix of two.
func TestPassthroughRunsThePinnedVersion(t *testing.T) {
	b := newPassBed(t, 64<<20)
	prog, err := os.ReadFile("/bin/sh")
	check(t, err)
	check(t, os.WriteFile(b.path("sh"), prog, 0o755))
	b.idle("sh")
	b.fetch("sh")
	b.idle("sh")
	b.passed("sh")
	b.elsewhere("sh", func(f *memFile) {
		_, err := f.Write(context.Background(), []byte("no program"), 0)
		check(t, err)
	})
	if got, err := os.ReadFile(b.path("sh")); err != nil || !bytes.HasPrefix(got, []byte("no program")) {
		t.Errorf("a later open reads %q, %v", got[:20], err)
	}
	if out, err := runIn(b.path("sh"), "echo run").CombinedOutput(); err != nil || string(out) != "run\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// A new daemon finds what the one before it has left.
func TestPassthroughAfterARestart(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	b.make("f", want)
	b.idle("f")
	check(t, b.s.Unmount())
	check(t, b.cache.Close())
	b.open(t, 1<<20)
	before := b.m.count("read")
	b.want("after a restart", content(t, b.passed("f")), want)
	if got := b.m.count("read"); got != before {
		t.Errorf("%d READ requests", got-before)
	}
}

// What changes while it is fetched is not kept.
func TestPassthroughFillMeetsAChange(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b *passBed)
	}{
		{"here", func(b *passBed) {
			w, err := os.OpenFile(b.path("f"), os.O_WRONLY, 0)
			check(b, err)
			_, err = w.WriteAt([]byte("new"), 0)
			check(b, err)
			check(b, w.Close())
		}},
		{"here, not yet committed", func(b *passBed) {
			was := b.attr("f")
			w, err := os.OpenFile(b.path("f"), os.O_WRONLY, 0)
			check(b, err)
			_, err = w.WriteAt([]byte("new"), 0)
			check(b, err)
			check(b, w.Close())
			n := b.node("f")
			b.m.mu.Lock()
			defer b.m.mu.Unlock()
			n.attr.Gen, n.attr.MtimeNS = was.Gen, was.MtimeNS // as the cluster has them, and utimes(2)
		}},
		{"elsewhere", func(b *passBed) {
			b.elsewhere("f", func(f *memFile) {
				_, err := f.Write(context.Background(), []byte("new"), 0)
				check(b, err)
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newPassBed(t, 1<<20)
			want := pattern(1, passBytes)
			check(t, os.WriteFile(b.path("f"), want, 0o644))
			b.idle("f")
			ino := b.attr("f").Ino
			// The fetch alone syncs it, reads it, and looks at its attributes again.
			reached, goOn := make(chan struct{}), make(chan struct{})
			var step atomic.Int32
			hook := func(_ context.Context, call string, i cfs.Ino) error {
				switch {
				case i != ino:
				case call == "sync":
					step.CompareAndSwap(0, 1)
				case call == "read":
					step.CompareAndSwap(1, 2)
				case call == "getattr" && step.CompareAndSwap(2, 3):
					close(reached)
					<-goOn
				}
				return nil
			}
			b.m.before.Store(&hook)
			drop(t, b.path("f"))
			_, err := os.ReadFile(b.path("f"))
			check(t, err)
			<-reached
			c.change(b)
			close(goOn)
			b.m.before.Store(nil)
			copy(want, "new")
			b.idle("f")
			got, err := os.ReadFile(b.path("f"))
			check(t, err)
			b.want("after the change", got, want)
			b.fetch("f")
			b.idle("f")
			b.want("passed through", content(t, b.passed("f")), want)
		})
	}
}

// Where the kernel has no passthrough nothing is different, and one line says so.
func TestPassthroughWithoutAKernelForIt(t *testing.T) {
	cache, err := filecache.Open(filecache.Config{Dir: t.TempDir(), ClusterID: "c"})
	check(t, err)
	defer cache.Close()
	var lines bytes.Buffer
	fs := newFileSystem(newMemFS().backend(), slog.New(slog.NewTextHandler(&lines, nil)), NewMetrics(nil))
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer null.Close()
	if fs.kernel, err = newKernelConn(int(null.Fd())); err != nil {
		t.Fatal(err)
	}
	defer fs.kernel.Close()
	p := newPassthrough(fs, cache)
	p.start()
	p.stop()
	if p.able.Load() || strings.Count(lines.String(), "\n") != 1 || !strings.Contains(lines.String(), "Linux 6.9") {
		t.Errorf("%v, %q", p.able.Load(), lines.String())
	}
	if why := p.fallback(&cfs.Attr{Size: 1 << 20}); why != passUnable {
		t.Errorf("%s", passNames[why])
	}
}

// Opens of all kinds, at the same time, never meet EIO, and readers never anything but one of the writer's versions.
func TestPassthroughModesUnderLoad(t *testing.T) {
	b := newPassBed(t, 1<<20)
	const size, files = 128 << 10, 3
	name := func() string { return fmt.Sprintf("f%d", rand.IntN(files)) }
	for i := range files {
		b.make(fmt.Sprintf("f%d", i), bytes.Repeat([]byte{'a'}, size))
	}
	stop := time.Now().Add(3 * time.Second)
	var wg sync.WaitGroup
	run := func(do func() error) {
		wg.Go(func() {
			for time.Now().Before(stop) {
				if err := do(); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
			}
		})
	}
	read := func(flags int) error {
		f, err := os.OpenFile(b.path(name()), flags, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		p := make([]byte, 4096)
		for off := int64(0); off < size; off += 4096 {
			if _, err := f.ReadAt(p, off); err != nil {
				return err
			}
			if p[0] < 'a' || p[0] > 'z' || !bytes.Equal(p, bytes.Repeat(p[:1], 4096)) {
				return fmt.Errorf("at %d: %q and others", off, p[0])
			}
		}
		return nil
	}
	for range 3 {
		run(func() error { return read(os.O_RDONLY) })
	}
	run(func() error {
		time.Sleep(30 * time.Millisecond)
		return read(os.O_RDWR)
	})
	v := byte('a')
	run(func() error {
		time.Sleep(50 * time.Millisecond)
		v = 'a' + (v-'a'+1)%26
		w, err := os.OpenFile(b.path(name()), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer w.Close()
		for off := int64(0); off < size; off += 4096 {
			if _, err := w.WriteAt(bytes.Repeat([]byte{v}, 4096), off); err != nil {
				return err
			}
		}
		return nil
	})
	run(func() error {
		time.Sleep(50 * time.Millisecond)
		if st := lstat(t, b.path(name())); st.Size != size {
			return fmt.Errorf("size %d", st.Size)
		}
		return nil
	})
	wg.Wait()
	t.Logf("passed %d, direct %d, mode %d, absent %d", b.count(passedOpen), b.count(passDirect), b.count(passMode), b.count(passAbsent))
	for i := range files {
		name := fmt.Sprintf("f%d", i)
		b.idle(name)
		got, err := os.ReadFile(b.path(name))
		check(t, err)
		b.want("at the end", got, b.cluster(name))
	}
}

// mapping is a child that maps a file, closes it, and does what it is told by its standard input.
type mapping struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func mapFile(t *testing.T, path, how string) *mapping {
	t.Helper()
	m := &mapping{t: t, cmd: child("mapAndObey", path+","+how)}
	m.cmd.Stderr = os.Stderr
	var err error
	m.in, err = m.cmd.StdinPipe()
	check(t, err)
	out, err := m.cmd.StdoutPipe()
	check(t, err)
	m.out = bufio.NewReader(out)
	check(t, m.cmd.Start())
	t.Cleanup(func() {
		m.in.Close()
		m.cmd.Wait()
	})
	if got := m.tell("ready?"); got != "mapped" {
		t.Fatalf("%q", got)
	}
	return m
}

func (m *mapping) tell(what string) string {
	m.t.Helper()
	_, err := io.WriteString(m.in, what+"\n")
	check(m.t, err)
	line, err := m.out.ReadString('\n')
	check(m.t, err)
	return strings.TrimSpace(line)
}

// end has the child unmap and exit.
func (m *mapping) end() {
	check(m.t, m.in.Close())
	check(m.t, m.cmd.Wait())
}

// mapAndObey is the child: "peek" tells the byte at 100000, "poke" sets it to a Z.
func mapAndObey(arg string) error {
	path, how, _ := strings.Cut(arg, ",")
	flags, prot := os.O_RDONLY, unix.PROT_READ
	if how == "rw" {
		flags, prot = os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, passBytes, prot, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		switch orders.Text() {
		case "peek":
			fmt.Printf("%c\n", mem[mapByte])
		case "poke":
			mem[mapByte] = 'Z'
			fmt.Println("done")
		default:
			fmt.Println("mapped")
		}
	}
	return unix.Munmap(mem)
}

const mapByte = 100000

// A mapping outlives its descriptor: what is written here later is seen through it.
func TestPassthroughMmapThenClose(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	want[mapByte] = 'A'
	b.make("f", want)
	b.idle("f")
	before := b.count(passedOpen)
	m := mapFile(t, b.path("f"), "ro")
	if b.count(passedOpen) != before+1 {
		t.Fatal("not passed through")
	}
	until(t, "the daemon knows of the close", func() bool { return testGauge(t, b.metrics.open) == 0 })
	if got := m.tell("peek"); got != "A" {
		t.Errorf("the mapping has %q", got)
	}
	w, err := os.OpenFile(b.path("f"), os.O_WRONLY, 0)
	check(t, err)
	_, err = w.WriteAt([]byte("B"), mapByte)
	check(t, err)
	check(t, w.Close())
	want[mapByte] = 'B'
	if got := m.tell("peek"); got != "B" {
		t.Errorf("after a write the mapping has %q", got)
	}
	b.want("the cluster", b.cluster("f"), want)
	m.end()
	b.idle("f") // nothing is pinned for ever
}

// What is stored through a mapping of a pinned inode reaches the cluster: by fsync, by a read of another handle, and in the
// end by itself, though the descriptor was closed before the store.
func TestPassthroughStoresOfAPinnedInode(t *testing.T) {
	b := newPassBed(t, 1<<20)
	want := pattern(1, passBytes)
	want[mapByte] = 'A'
	b.make("f", want)
	f := b.passed("f")
	m := mapFile(t, b.path("f"), "rw")
	if got := m.tell("poke"); got != "done" {
		t.Fatal(got)
	}
	want[mapByte] = 'Z'
	b.want("the reader", content(t, f), want)
	g, err := os.Open(b.path("f"))
	check(t, err)
	defer g.Close()
	b.want("a later open", content(t, g), want)
	check(t, g.Close())
	w, err := os.OpenFile(b.path("f"), os.O_RDWR, 0)
	check(t, err)
	defer w.Close()
	_, err = w.WriteAt([]byte("A and"), mapByte)
	check(t, err)
	m.tell("poke")
	check(t, w.Sync())
	copy(want[mapByte:], "Z and")
	b.want("the cluster after fsync", b.cluster("f"), want)
	_, err = w.WriteAt([]byte("C"), mapByte)
	check(t, err)
	check(t, w.Close())
	check(t, f.Close())
	until(t, "the daemon knows of the close", func() bool { return testGauge(t, b.metrics.open) == 0 })
	m.tell("poke")
	until(t, "the store is in the cluster", func() bool { return b.cluster("f")[mapByte] == 'Z' })
	w, err = os.OpenFile(b.path("f"), os.O_WRONLY, 0)
	check(t, err)
	_, err = w.WriteAt([]byte("D"), mapByte)
	check(t, err)
	check(t, w.Close())
	if got := m.tell("peek"); got != "D" {
		t.Errorf("after a write the mapping has %q", got)
	}
	m.tell("poke")
	m.end()
	b.idle("f")
	b.want("the cluster in the end", b.cluster("f"), want)
	got, err := os.ReadFile(b.path("f"))
	check(t, err)
	b.want("read in the end", got, want)
}

func testGauge(t testing.TB, g prometheus.Gauge) float64 {
	var m dto.Metric
	check(t, g.Write(&m))
	return m.GetGauge().GetValue()
}
