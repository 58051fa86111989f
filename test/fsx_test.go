package test

import (
	"bytes"
	bytesof "encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

var (
	fsxOpsFlag = flag.Int("fsx.ops", 0, "how many operations each exerciser of a file does; 0: the short form")
	fsxDirs    = flag.String("fsx.dirs", "", "one directory, or several of the same file system separated by commas, to exercise instead of a cluster")
)

const (
	// fsxShort is the number of operations of the short form.
	fsxShort = 1500
	// fsxMaxFile bounds the file: more than one stripe's worth of chunks, so that all shapes of extents come up.
	fsxMaxFile = 5 << 20
	// fsxMaxOp bounds what one operation touches.
	fsxMaxOp = 300 << 10
	// fsxLogged is how many of the last operations a failure shows.
	fsxLogged = 120
	// fsxReport is how often the test says how far it is.
	fsxReport = 10_000
	// fsxSpell is the most operations in a row on one mount of several.
	fsxSpell = 12
)

// fsx does random operations on one file, which it sees through one mount or through several in turn,
// and holds what it reads against a copy in memory. Each word that it writes says by which operation and where, so
// that a byte at the wrong place tells where it comes from.
type fsx struct {
	rng   *rand.Rand
	paths []string // the file, by mount
	at    int      // the mount in use
	left  int      // operations until another mount's turn
	file  *os.File
	raw   *os.File // the same, opened with O_DIRECT
	want  []byte
	n     int // operations done
	log   []string
}

// fsxMoves are the operations; one that is listed twice comes twice as often.
var fsxMoves = []func(x *fsx) error{
	(*fsx).read, (*fsx).read, (*fsx).write, (*fsx).write, (*fsx).write, (*fsx).mapRead, (*fsx).mapWrite, (*fsx).mapWrite,
	(*fsx).directRead, (*fsx).directWrite, (*fsx).truncate, (*fsx).punch, (*fsx).zero, (*fsx).allocate, (*fsx).copyRange,
	(*fsx).append, (*fsx).sync, (*fsx).drop, (*fsx).reopen,
}

const fsxMultiplier, fsxInverse = 2654435769, 0x144cbc89 // inverse of each other modulo 1<<32

// stamped is n bytes for off, which tell the operation and the place.
func (x *fsx) stamped(off int64, n int) []byte {
	p := make([]byte, 0, n+8)
	for at := off &^ 3; len(p) < n+4; at += 4 {
		p = bytesof.LittleEndian.AppendUint32(p, uint32(x.n)*fsxMultiplier^uint32(at>>2))
	}
	return p[off&3:][:n]
}

// origin says which operation wrote the word around at, if it belongs there.
func origin(p []byte, at int) string {
	at &^= 3
	if at+4 > len(p) {
		return "at the end"
	}
	word := bytesof.LittleEndian.Uint32(p[at:])
	if word == 0 {
		return "zeros"
	}
	return fmt.Sprintf("operation %d, if it was written there", (word^uint32(at>>2))*fsxInverse)
}

// note adds an operation to the log, before it is carried out.
func (x *fsx) note(format string, args ...any) {
	line := fmt.Sprintf("%6d mount %d %s", x.n, x.at, fmt.Sprintf(format, args...))
	if x.log = append(x.log, line); len(x.log) > fsxLogged {
		x.log = x.log[1:]
	}
}

// area is a random range that begins within the file's bounds, aligned now and then.
func (x *fsx) area(limit int64) (off int64, n int) {
	if limit <= 0 {
		return 0, 0
	}
	off, n = x.rng.Int64N(limit), 1+x.rng.IntN(fsxMaxOp>>(2*x.rng.IntN(5)))
	switch x.rng.IntN(4) {
	case 0:
		off &^= cfs.BlockSize - 1
	case 1:
		off, n = off&^(cfs.BlockSize-1), (n+cfs.BlockSize-1)&^(cfs.BlockSize-1)
	}
	return off, int(min(int64(n), limit-off))
}

// grow makes the copy at least n long.
func (x *fsx) grow(n int64) {
	if more := n - int64(len(x.want)); more > 0 {
		x.want = append(x.want, make([]byte, more)...)
	}
}

// compare holds what was read at off against the copy.
func (x *fsx) compare(off int64, got []byte, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	i := firstDifference(got, want)
	if i == len(got) || i == len(want) {
		return fmt.Errorf("%d bytes at %d, want %d", len(got), off, len(want))
	}
	at := int(off) + i
	whole := append([]byte(nil), x.want[:min(len(x.want), at&^3)]...)
	whole = append(whole, got[max(0, i-at&3):]...)
	return fmt.Errorf("first difference at %d (%#x): %#x, from %s; want %#x, from %s", at, at, got[i], origin(whole, at), want[i], origin(x.want, at))
}

func (x *fsx) readThrough(f *os.File, what string, off int64, n int) error {
	x.note("%s %d +%d", what, off, n)
	got := make([]byte, n)
	k, err := f.ReadAt(got, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return x.compare(off, got[:k], x.want[min(off, int64(len(x.want))):min(off+int64(n), int64(len(x.want)))])
}

func (x *fsx) read() error {
	off, n := x.area(fsxMaxFile)
	if len(x.want) > 0 && x.rng.IntN(4) > 0 {
		off, n = x.area(int64(len(x.want)))
	}
	return x.readThrough(x.file, "read", off, n)
}

func (x *fsx) directRead() error {
	off, n := x.area(int64(len(x.want)))
	return x.readThrough(x.raw, "direct read", off, n)
}

func (x *fsx) writeThrough(f *os.File, what string) error {
	off, n := x.area(fsxMaxFile)
	x.note("%s %d +%d", what, off, n)
	p := x.stamped(off, n)
	x.grow(off + int64(n))
	copy(x.want[off:], p)
	_, err := f.WriteAt(p, off)
	return err
}

func (x *fsx) write() error       { return x.writeThrough(x.file, "write") }
func (x *fsx) directWrite() error { return x.writeThrough(x.raw, "direct write") }

// append writes at the end through a descriptor of its own that appends.
func (x *fsx) append() error {
	n := min(1+x.rng.IntN(fsxMaxOp), fsxMaxFile-len(x.want))
	if n <= 0 {
		return nil
	}
	x.note("append %d +%d", len(x.want), n)
	f, err := os.OpenFile(x.paths[x.at], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	p := x.stamped(int64(len(x.want)), n)
	x.want = append(x.want, p...)
	_, err = f.Write(p)
	return errors.Join(err, f.Close())
}

// mapping is a shared mapping of pages around a range, and the range in it.
func (x *fsx) mapping(off int64, n, prot int) (pages, part []byte, err error) {
	from := off &^ (cfs.BlockSize - 1)
	pages, err = unix.Mmap(int(x.file.Fd()), from, int(off-from)+n, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return pages, pages[off-from:][:n], nil
}

func (x *fsx) mapRead() error {
	off, n := x.area(int64(len(x.want)))
	if n == 0 {
		return nil
	}
	x.note("mapped read %d +%d", off, n)
	pages, part, err := x.mapping(off, n, unix.PROT_READ)
	if err != nil {
		return err
	}
	return errors.Join(x.compare(off, part, x.want[off:off+int64(n)]), unix.Munmap(pages))
}

func (x *fsx) mapWrite() error {
	off, n := x.area(int64(len(x.want)))
	if n == 0 {
		return nil
	}
	synced := x.rng.IntN(2) == 0
	x.note("mapped write %d +%d, msync: %v", off, n, synced)
	pages, part, err := x.mapping(off, n, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return err
	}
	copy(part, x.stamped(off, n))
	copy(x.want[off:], part)
	if synced {
		err = unix.Msync(pages, unix.MS_SYNC)
	}
	return errors.Join(err, unix.Munmap(pages))
}

func (x *fsx) truncate() error {
	size := x.rng.Int64N(fsxMaxFile)
	if x.rng.IntN(3) == 0 {
		size = max(0, int64(len(x.want))-x.rng.Int64N(3*cfs.BlockSize))
	}
	x.note("truncate %d to %d", len(x.want), size)
	if size < int64(len(x.want)) {
		x.want = x.want[:size:size]
	}
	x.grow(size)
	return x.file.Truncate(size)
}

func (x *fsx) punch() error {
	off, n := x.area(fsxMaxFile)
	x.note("punch %d +%d", off, n)
	if off < int64(len(x.want)) {
		clear(x.want[off:min(off+int64(n), int64(len(x.want)))])
	}
	return fallocate(x.file, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n))
}

func (x *fsx) zero() error {
	off, n := x.area(fsxMaxFile)
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if x.rng.IntN(2) == 0 {
		mode |= unix.FALLOC_FL_KEEP_SIZE
	} else {
		x.grow(off + int64(n))
	}
	x.note("zero %d +%d, mode %#x", off, n, mode)
	if off < int64(len(x.want)) {
		clear(x.want[off:min(off+int64(n), int64(len(x.want)))])
	}
	return fallocate(x.file, mode, off, int64(n))
}

func (x *fsx) allocate() error {
	off, n := x.area(fsxMaxFile)
	mode := uint32(0)
	if x.rng.IntN(2) == 0 {
		mode = unix.FALLOC_FL_KEEP_SIZE
	} else {
		x.grow(off + int64(n))
	}
	x.note("allocate %d +%d, mode %#x", off, n, mode)
	return fallocate(x.file, mode, off, int64(n))
}

// copyRange copies within the file; ranges that overlap are refused by the kernel and not tried.
func (x *fsx) copyRange() error {
	from, n := x.area(int64(len(x.want)))
	to, _ := x.area(fsxMaxFile)
	n = min(n, fsxMaxFile-int(to))
	if n <= 0 || from < to+int64(n) && to < from+int64(n) {
		return nil
	}
	x.note("copy %d +%d to %d", from, n, to)
	part := bytes.Clone(x.want[from : from+int64(n)])
	x.grow(to + int64(n))
	copy(x.want[to:], part)
	for n > 0 {
		k, err := unix.CopyFileRange(int(x.file.Fd()), &from, int(x.file.Fd()), &to, n, 0)
		if err != nil {
			return err
		}
		if k == 0 {
			return fmt.Errorf("copied nothing of %d bytes from %d", n, from)
		}
		n -= k
	}
	return nil
}

func (x *fsx) sync() error {
	x.note("fsync")
	return x.file.Sync()
}

// drop has the kernel forget the file's pages.
func (x *fsx) drop() error {
	x.note("drop pages")
	return errors.Join(x.file.Sync(), unix.Fadvise(int(x.file.Fd()), 0, 0, unix.FADV_DONTNEED))
}

func (x *fsx) close() error {
	if x.file == nil {
		return nil
	}
	err := errors.Join(x.file.Close(), x.raw.Close())
	x.file, x.raw = nil, nil
	return err
}

// reopen closes the file and opens it again: on another mount, if it is that one's turn.
func (x *fsx) reopen() error {
	err := x.close()
	x.at = x.rng.IntN(len(x.paths))
	x.left = fsxSpell
	x.note("open")
	if err != nil {
		return err
	}
	if x.file, err = os.OpenFile(x.paths[x.at], os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return err
	}
	x.raw, err = os.OpenFile(x.paths[x.at], os.O_RDWR|unix.O_DIRECT, 0)
	return err
}

// step does one operation and looks at the size after it.
func (x *fsx) step() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("fault in a mapping: %v", p)
		}
	}()
	x.n++
	x.left--
	if x.file == nil || len(x.paths) > 1 && x.left <= 0 {
		err = x.reopen()
	} else {
		err = fsxMoves[x.rng.IntN(len(fsxMoves))](x)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(x.file.Fd()), &st); err != nil {
		return err
	}
	if st.Size != int64(len(x.want)) {
		return fmt.Errorf("the size is %d, want %d", st.Size, len(x.want))
	}
	return nil
}

// run does n operations and compares the whole file at the end, through each mount.
func (x *fsx) run(t *testing.T, n int) error {
	for range n {
		if err := x.step(); err != nil {
			return err
		}
		if x.n%fsxReport == 0 {
			t.Logf("%d operations", x.n)
		}
	}
	if err := x.close(); err != nil {
		return err
	}
	for _, path := range x.paths {
		got, err := os.ReadFile(path)
		if err == nil {
			err = x.compare(0, got, x.want)
		}
		if err != nil {
			return fmt.Errorf("%s at the end: %w", path, err)
		}
	}
	return nil
}

// exercise runs an fsx on a file in dirs, which are one directory by several mounts.
func exercise(t *testing.T, dirs ...string) {
	t.Helper()
	seed := newSeed(t)
	x := &fsx{rng: newRand(seed, 7)}
	for _, dir := range dirs {
		x.paths = append(x.paths, filepath.Join(dir, fmt.Sprintf("fsx-%d", len(dirs))))
	}
	n := *fsxOpsFlag
	if n == 0 {
		n = fsxShort
	}
	if err := x.run(t, n); err != nil {
		t.Errorf("operation %d: %v\nthe last operations:\n%s", x.n, err, strings.Join(x.log, "\n"))
	}
	x.close()
}

// One file is written, read, mapped, cut and copied at random, through one mount and through two in turn.
func TestFSX(t *testing.T) {
	if *fsxDirs != "" {
		exercise(t, strings.Split(*fsxDirs, ",")...)
		return
	}
	c := start(t, nil)
	t.Run("one mount", func(t *testing.T) { exercise(t, mount(t, c, "one").Point) })
	t.Run("two mounts", func(t *testing.T) { exercise(t, mount(t, c, "a").Point, mount(t, c, "b").Point) })
}
