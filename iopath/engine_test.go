package iopath

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// engineEntries is small, so that the suite meets a full ring.
const engineEntries = 8

// engineSuite is the conformance suite of Engine.
func engineSuite() map[string]func(*testing.T, Engine, *Arena) {
	return map[string]func(*testing.T, Engine, *Arena){
		"RoundTrip":   engineRoundTrip,
		"EndOfFile":   engineEndOfFile,
		"Batches":     engineBatches,
		"Failures":    engineFailures,
		"Files":       engineFiles,
		"ClosedFiles": engineClosedFiles,
		"LetsGo":      engineLetsGo,
		"Concurrency": engineConcurrency,
		"Closed":      engineClosed,
	}
}

// testEngine runs the suite. open makes an engine whose arena, if it uses one, is a.
func testEngine(t *testing.T, open func(t *testing.T, a *Arena) Engine) {
	for name, test := range engineSuite() {
		t.Run(name, func(t *testing.T) { runEngineTest(t, open, test) })
	}
}

func runEngineTest(t *testing.T, open func(t *testing.T, a *Arena) Engine, test func(*testing.T, Engine, *Arena)) {
	a := testArena(t, 16<<20)
	e := open(t, a)
	test(t, e, a)
	if err := e.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func testFile(t testing.TB, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "file"), os.O_RDWR|os.O_CREATE|flags, 0o600)
	if err != nil {
		t.Skipf("cannot open a file with flags %#x here: %v", flags, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mustRegister(t testing.TB, e Engine, f *os.File) File {
	t.Helper()
	file, err := e.RegisterFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func fillRandom(p []byte, seed uint64) {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rng.Read(p)
}

func engineRoundTrip(t *testing.T, e Engine, a *Arena) {
	for _, flags := range []int{0, unix.O_DIRECT} {
		roundTrip(t, e, a, testFile(t, flags))
	}
}

func roundTrip(t *testing.T, e Engine, a *Arena, f *os.File) {
	file := mustRegister(t, e, f)
	for i, size := range []int{4096, 64 << 10, 1 << 20} {
		b := mustGet(t, a, size)
		fillRandom(b.Bytes(), uint64(i))
		off := int64(i) * 2 << 20
		sync := i%2 == 1
		if err := e.WriteMany(file, []WriteOp{{P: b.Bytes(), Off: off, Sync: sync}}); err != nil {
			t.Fatal(err)
		}
		if !sync {
			if err := e.Fdatasync(file); err != nil {
				t.Fatal(err)
			}
		}
		plain := make([]byte, size+4096) // memory outside the arena
		plain = plain[4096-address(plain)%4096:][:size]
		if n, err := e.Read(file, plain, off); n != size || err != nil {
			t.Fatalf("read %d bytes: %v", n, err)
		}
		if !bytes.Equal(plain, b.Bytes()) {
			t.Errorf("%d bytes: other bytes came back", size)
		}
		want := bytes.Clone(b.Bytes())
		clear(b.WithHeadroom())
		if n, err := e.Read(file, b.Bytes(), off); n != size || err != nil || !bytes.Equal(b.Bytes(), want) {
			t.Errorf("into the arena: %d bytes, %v", n, err)
		}
		b.Release()
	}
	if err := e.UnregisterFile(file); err != nil {
		t.Error(err)
	}
}

func engineEndOfFile(t *testing.T, e Engine, a *Arena) {
	for _, flags := range []int{0, unix.O_DIRECT} {
		f := testFile(t, flags)
		if err := f.Truncate(10000); err != nil {
			t.Fatal(err)
		}
		file := mustRegister(t, e, f)
		b := mustGet(t, a, 16384)
		fillRandom(b.Bytes(), 1)
		for _, c := range []struct {
			off  int64
			size int
			n    int
			err  error
		}{{0, 8192, 8192, nil}, {0, 16384, 10000, io.EOF}, {8192, 4096, 1808, io.EOF}, {12288, 4096, 0, io.EOF}, {1 << 40, 4096, 0, io.EOF}} {
			n, err := e.Read(file, b.Bytes()[:c.size], c.off)
			if n != c.n || err != c.err {
				t.Errorf("flags %#x, %d bytes at %d: %d, %v, want %d, %v", flags, c.size, c.off, n, err, c.n, c.err)
			}
			for _, x := range b.Bytes()[:c.n] {
				if x != 0 {
					t.Fatal("a hole is not zero")
				}
			}
		}
		err := e.ReadMany(file, []ReadOp{{P: b.Bytes()[:4096], Off: 0}, {P: b.Bytes()[4096:8192], Off: 8192}})
		if !errors.Is(err, io.ErrUnexpectedEOF) || cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), f.Name()) {
			t.Errorf("batch beyond the end: %v", err)
		}
		b.Release()
	}
}

// engineBatches writes and reads batches that are larger than the ring.
func engineBatches(t *testing.T, e Engine, a *Arena) { inBatches(t, e, a, testFile(t, unix.O_DIRECT)) }

func inBatches(t *testing.T, e Engine, a *Arena, f *os.File) {
	file := mustRegister(t, e, f)
	if err := e.WriteMany(file, nil); err != nil {
		t.Errorf("empty batch: %v", err)
	}
	const n, size = 5*engineEntries + 3, 8192
	b := mustGet(t, a, n*size)
	defer b.Release()
	fillRandom(b.Bytes(), 7)
	want := bytes.Clone(b.Bytes())
	ops := make([]WriteOp, n)
	for i := range ops {
		ops[i] = WriteOp{P: b.Bytes()[i*size : (i+1)*size], Off: int64(n-1-i) * size}
	}
	if err := e.WriteMany(file, ops); err != nil {
		t.Fatal(err)
	}
	clear(b.Bytes())
	if err := e.ReadMany(file, ops); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("other bytes came back")
	}
	if got, err := e.Read(file, b.Bytes()[:size], 0); got != size || err != nil || !bytes.Equal(b.Bytes()[:size], want[(n-1)*size:]) {
		t.Errorf("the pieces are not where they were put: %v", err)
	}
}

func engineFailures(t *testing.T, e Engine, a *Arena) {
	b := mustGet(t, a, 8192)
	defer b.Release()
	check := func(what string, err error, errno syscall.Errno, name string) {
		t.Helper()
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %v naming %s", what, err, errno, name)
		}
		var ce *cfs.Error
		if !errors.As(err, &ce) {
			t.Errorf("%s: not a *cfs.Error: %T", what, err)
		}
	}
	path := testFile(t, 0).Name()
	readOnly, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	file := mustRegister(t, e, readOnly)
	check("write to a read-only file", e.WriteMany(file, []WriteOp{{P: b.Bytes(), Off: 0}}), syscall.EBADF, path)
	writeOnly, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writeOnly.Close()
	_, err = e.Read(mustRegister(t, e, writeOnly), b.Bytes(), 0)
	check("read from a write-only file", err, syscall.EBADF, path)
	direct := testFile(t, unix.O_DIRECT)
	dfile := mustRegister(t, e, direct)
	// One bad transfer in the middle does not stop the others.
	err = e.WriteMany(dfile, []WriteOp{{P: b.Bytes()[:4096], Off: 0}, {P: b.Bytes()[:4096], Off: 4097}, {P: b.Bytes()[4096:], Off: 8192}})
	check("unaligned offset", err, syscall.EINVAL, direct.Name())
	if !strings.Contains(err.Error(), "4097") {
		t.Errorf("the error does not name the offset: %v", err)
	}
	if st, err := direct.Stat(); err != nil || st.Size() != 12288 {
		t.Errorf("the others were not written: %v, %v", st.Size(), err)
	}
	closed := testFile(t, 0)
	closed.Close()
	if _, err := e.RegisterFile(closed); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("register a closed file: %v", err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	check("sync of a pipe", e.Fdatasync(mustRegister(t, e, pw)), syscall.EINVAL, pw.Name())
}

// engineFiles checks that files are kept apart, outlive the os.File that named
// them, and that their number is bounded.
func engineFiles(t *testing.T, e Engine, a *Arena) {
	b := mustGet(t, a, 4096)
	defer b.Release()
	var files []File
	for {
		f := testFile(t, 0)
		file, err := e.RegisterFile(f)
		if err != nil {
			if cfs.KindOf(err) != cfs.Overloaded {
				t.Errorf("too many files: %v", err)
			}
			break
		}
		if files = append(files, file); len(files) > 4096 {
			t.Fatal("no bound on files")
		}
		fillRandom(b.Bytes(), uint64(len(files)))
		if err := e.WriteMany(file, []WriteOp{{P: b.Bytes(), Off: 0}}); err != nil {
			t.Fatal(err)
		}
	}
	want := make([]byte, 4096)
	for i, file := range files {
		if _, err := e.Read(file, b.Bytes(), 0); err != nil {
			t.Fatal(err)
		}
		if fillRandom(want, uint64(i+1)); !bytes.Equal(b.Bytes(), want) {
			t.Fatalf("file %d has the bytes of another", i)
		}
	}
	if err := e.UnregisterFile(files[3]); err != nil {
		t.Fatal(err)
	}
	if _, err := e.RegisterFile(testFile(t, 0)); err != nil {
		t.Errorf("a freed slot is not used again: %v", err)
	}
}

// engineClosedFiles checks that a file that its opener has closed lives on, and
// is kept apart from one that got the number of its descriptor.
func engineClosedFiles(t *testing.T, e Engine, a *Arena) {
	b := mustGet(t, a, 4096)
	defer b.Release()
	dir := t.TempDir()
	var files []File
	for i := range 3 {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, mustRegister(t, e, f))
		f.Close()
	}
	for i, file := range files {
		fillRandom(b.Bytes(), uint64(i))
		if err := e.WriteMany(file, []WriteOp{{P: b.Bytes()}}); err != nil {
			t.Fatalf("write to a closed file: %v", err)
		}
	}
	for i, file := range files {
		fillRandom(b.Bytes(), uint64(i))
		if got, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(i))); err != nil || !bytes.Equal(got, b.Bytes()) {
			t.Errorf("file %d has other bytes, or %v", i, err)
		}
		if err := e.UnregisterFile(file); err != nil {
			t.Error(err)
		}
	}
}

// engineLetsGo checks by a lock, which goes with the last hold on an open file,
// that UnregisterFile and Close end the engine's. The kernel may take its time.
func engineLetsGo(t *testing.T, e Engine, a *Arena) {
	path := testFile(t, 0).Name()
	lock := func() *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		await(func() bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil })
		return f
	}
	first := lock()
	file := mustRegister(t, e, first)
	first.Close()
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("a registered file's lock is gone: %v", err)
	}
	if err := e.UnregisterFile(file); err != nil {
		t.Error(err)
	}
	second := lock()
	mustRegister(t, e, second)
	second.Close()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	lock().Close()
}

func engineConcurrency(t *testing.T, e Engine, a *Arena) { concurrently(t, e, a, testFile(t, 0)) }

func concurrently(t *testing.T, e Engine, a *Arena, f *os.File) {
	file := mustRegister(t, e, f)
	const workers, rounds, size = 4 * engineEntries, 50, 4096
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			b, err := a.Get(context.Background(), 2*size)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Release()
			want := make([]byte, 2*size)
			at := int64(w) * 2 * size
			for r := range rounds {
				fillRandom(want, uint64(w*rounds+r))
				copy(b.Bytes(), want)
				err := e.WriteMany(file, []WriteOp{{P: b.Bytes()[size:], Off: at + size}, {P: b.Bytes()[:size], Off: at}})
				if err == nil && r%10 == 0 {
					err = e.Fdatasync(file)
				}
				clear(b.Bytes())
				if err == nil {
					_, err = e.Read(file, b.Bytes(), at)
				}
				if err != nil || !bytes.Equal(b.Bytes(), want) {
					t.Errorf("worker %d, round %d: wrong bytes or %v", w, r, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func engineClosed(t *testing.T, e Engine, a *Arena) {
	f := testFile(t, 0)
	file := mustRegister(t, e, f)
	b := mustGet(t, a, 4096)
	var wg sync.WaitGroup
	for range 3 * engineEntries { // some of these meet the Close
		wg.Go(func() {
			for {
				if err := e.WriteMany(file, []WriteOp{{P: b.Bytes(), Off: 0}}); err != nil {
					if cfs.KindOf(err) != cfs.Closed {
						t.Errorf("during Close: %v", err)
					}
					return
				}
			}
		})
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	b.Release()
	if _, err := e.Read(file, make([]byte, 10), 0); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("Read after Close: %v", err)
	}
	if err := e.Fdatasync(file); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("Fdatasync after Close: %v", err)
	}
	if _, err := e.RegisterFile(f); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("RegisterFile after Close: %v", err)
	}
}
