package filecache

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openAt(t testing.TB, dir string, size int64) *Cache {
	t.Helper()
	c, err := Open(Config{Dir: dir, SizeBytes: size, ClusterID: "one"})
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func key(i cfs.Ino, gen uint64, size int) Key {
	return Key{Ino: i, Gen: gen, BornNS: -1, WrittenNS: 1e18, SizeBytes: uint64(size)}
}

func put(t testing.TB, c *Cache, k Key) {
	t.Helper()
	w, err := c.Create(k)
	check(t, err)
	_, err = w.Write(bytes.Repeat([]byte{byte(k.Gen)}, int(k.SizeBytes)))
	check(t, err)
	check(t, w.Sync())
	check(t, w.Commit())
}

// has reports that k can be had and is what was put.
func has(t testing.TB, c *Cache, k Key) bool {
	t.Helper()
	f := c.Get(k)
	if (f != nil) != c.Has(k) {
		t.Errorf("Get and Has of %v differ", k)
	}
	if f == nil {
		return false
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(k.Gen)}, int(k.SizeBytes))) {
		t.Errorf("%v: %d bytes, %v", k, len(got), err)
	}
	check(t, f.Close())
	return true
}

func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(filepath.Join(dir, filesDir))
	check(t, err)
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

func TestVersions(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, 1<<20)
	if has(t, c, key(1, 1, 5000)) {
		t.Error("it has what was not put")
	}
	put(t, c, key(1, 1, 5000))
	put(t, c, key(2, 7, 0))
	for _, k := range []Key{key(1, 2, 5000), key(1, 1, 4999), {Ino: 1, Gen: 1, SizeBytes: 5000}} {
		if has(t, c, k) {
			t.Errorf("it has %v", k)
		}
	}
	if !has(t, c, key(1, 1, 5000)) || !has(t, c, key(2, 7, 0)) {
		t.Error("it lacks what was put")
	}
	old := c.Get(key(1, 1, 5000))
	put(t, c, key(1, 2, 100))
	if c.Has(key(1, 1, 5000)) || !has(t, c, key(1, 2, 100)) {
		t.Error("a new version does not take the place of the old")
	}
	p := make([]byte, 5000)
	if _, err := old.ReadAt(p, 0); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{1}, 5000)) {
		t.Errorf("the old version, open: %v", err)
	}
	if got := c.Stats(); got.Bytes != 8192+4096 || got.Files != 2 {
		t.Errorf("with the old version open %+v", got)
	}
	check(t, old.Close())
	put(t, c, key(1, 2, 100)) // once more
	c.Drop(2)
	if got := c.Stats(); got.Bytes != 4096 || got.Files != 1 || len(files(t, dir)) != 1 {
		t.Errorf("%+v, %v", got, files(t, dir))
	}
}

func TestRoom(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, 5*4096)
	for i := range cfs.Ino(5) {
		put(t, c, key(i+1, 1, 4096))
	}
	has(t, c, key(1, 1, 4096)) // used last now
	used := c.Get(key(2, 1, 4096))
	put(t, c, key(6, 1, 8192))
	var left []cfs.Ino
	for i := range cfs.Ino(6) {
		if c.files[i+1] != nil {
			left = append(left, i+1)
		}
	}
	if !slices.Equal(left, []cfs.Ino{1, 2, 5, 6}) {
		t.Errorf("left are %v", left)
	}
	if _, err := c.Create(key(7, 1, 5*4096)); !errors.Is(err, cfs.NoSpace) {
		t.Errorf("with a file in use, one as large as the cache: %v", err)
	}
	if _, err := c.Create(key(7, 1, 5*4096+1)); !errors.Is(err, cfs.NoSpace) {
		t.Errorf("larger than the cache: %v", err)
	}
	check(t, used.Close())
	put(t, c, key(7, 1, 5*4096))
	if st := c.Stats(); st.Files != 1 || st.Bytes != 5*4096 || st.Evicted == 0 {
		t.Errorf("%+v", st)
	}
	c.max = 2
	c.Drop(7)
	for i := range cfs.Ino(4) {
		put(t, c, key(i+1, 1, 1))
	}
	if st := c.Stats(); st.Files > 2 {
		t.Errorf("%d files, 2 are the bound", st.Files)
	}
}

func TestFillEndsWell(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, 1<<20)
	w, err := c.Create(key(1, 1, 100))
	check(t, err)
	if _, err := c.Create(key(1, 2, 100)); !errors.Is(err, cfs.Busy) {
		t.Errorf("an inode that is being filled: %v", err)
	}
	_, err = w.Write(make([]byte, 99))
	check(t, err)
	if w.Sync() == nil {
		t.Error("a file that is short is taken for complete")
	}
	if c.Has(key(1, 1, 100)) {
		t.Error("it has what is not complete")
	}
	check(t, w.Abort())
	if st := c.Stats(); st.Bytes != 0 || len(files(t, dir)) != 0 {
		t.Errorf("%+v, %v", st, files(t, dir))
	}
	c.noteNoSpace(unix.ENOSPC)
	if _, err := c.Create(key(1, 1, 100)); !errors.Is(err, cfs.NoSpace) || c.Stats().NoSpace != 1 {
		t.Errorf("after the disk was full: %v", err)
	}
	c.paused = time.Time{}
	put(t, c, key(1, 1, 100))
}

// A local file system that is full is no failure of the mount: nothing is cached for a while.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Skipf("needs root, to mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	c := openAt(t, dir, 1<<20)
	put(t, c, key(1, 1, 20<<10))
	w, err := c.Create(key(2, 1, 100<<10))
	check(t, err)
	if _, err = w.Write(make([]byte, 100<<10)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing more than there is: %v", err)
	}
	check(t, w.Abort())
	if _, err := c.Create(key(3, 1, 100)); !errors.Is(err, cfs.NoSpace) || c.Stats().NoSpace != 1 {
		t.Errorf("afterwards: %v, %+v", err, c.Stats())
	}
	if !has(t, c, key(1, 1, 20<<10)) {
		t.Error("what was there is lost")
	}
}

// What a restart finds: files that are complete, and in the order of their use.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, 1<<20)
	for i := range cfs.Ino(3) {
		put(t, c, key(i+1, 1, 4096))
		at := time.Now().Add(time.Duration(i-10) * time.Hour)
		check(t, os.Chtimes(c.path(key(i+1, 1, 4096)), at, at))
		c.files[i+1].noted = at
	}
	has(t, c, key(1, 1, 4096))
	_, err := c.Create(key(4, 1, 4096)) // cut off
	check(t, err)
	put(t, c, key(5, 1, 4096))
	check(t, os.Truncate(c.path(key(5, 1, 4096)), 4095))
	put(t, c, key(6, 1, 4096))
	f := c.Get(key(6, 1, 4096))
	check(t, f.Detach())
	check(t, f.Close())
	check(t, os.WriteFile(filepath.Join(dir, filesDir, "stray"), nil, 0o600))
	check(t, os.Mkdir(filepath.Join(dir, filesDir, "strays"), 0o700))
	if _, err := Open(Config{Dir: dir, ClusterID: "one"}); !errors.Is(err, cfs.Busy) {
		t.Errorf("a directory that is in use: %v", err)
	}
	check(t, c.Close())

	c = openAt(t, dir, 1<<20)
	if st := c.Stats(); st.Files != 3 || st.Bytes != 3*4096 || len(files(t, dir)) != 3 {
		t.Errorf("%+v, %v", st, files(t, dir))
	}
	for i := range cfs.Ino(3) {
		has(t, c, key(i+1, 1, 4096))
	}
	check(t, c.Close())
	c = openAt(t, dir, 2*4096)
	if c.Has(key(2, 1, 4096)) && c.Has(key(1, 1, 4096)) || c.Stats().Bytes > 2*4096 {
		t.Errorf("in a smaller cache: %v", files(t, dir))
	}
}

func TestWhoseDirectory(t *testing.T) {
	dir := t.TempDir()
	check(t, openAt(t, dir, 0).Close())
	_, err := Open(Config{Dir: dir, ClusterID: "two"})
	if !errors.Is(err, cfs.WrongCluster) || !strings.Contains(err.Error(), `"one"`) {
		t.Errorf("a directory of another cluster: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(dir, clusterFile), []byte("claudefs cache 9 of one"), 0o600))
	if _, err := Open(Config{Dir: dir, ClusterID: "one"}); !errors.Is(err, cfs.Exists) {
		t.Errorf("of another version: %v", err)
	}
	home := t.TempDir()
	check(t, os.Mkdir(filepath.Join(home, filesDir), 0o700))
	if _, err := Open(Config{Dir: home, ClusterID: "one"}); !errors.Is(err, cfs.Exists) {
		t.Errorf("no cache and not empty: %v", err)
	}
	if names, err := os.ReadDir(home); err != nil || len(names) != 1 {
		t.Errorf("it left %v, %v", names, err)
	}
	file := filepath.Join(home, "file")
	check(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(Config{Dir: file, ClusterID: "one"}); err == nil {
		t.Error("a file as the directory")
	}
	check(t, openAt(t, filepath.Join(home, "new", "one"), 0).Close())
}

func TestInUse(t *testing.T) {
	c := openAt(t, t.TempDir(), 1<<20)
	put(t, c, key(1, 1, 4096))
	f := c.Get(key(1, 1, 4096))
	defer f.Close()
	if f.InUse() {
		t.Error("nobody else uses it")
	}
	fd, err := unix.Open(f.Name(), unix.O_RDONLY, 0)
	check(t, err)
	if !f.InUse() {
		t.Error("it is open elsewhere")
	}
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	check(t, err)
	check(t, unix.Close(fd))
	if !f.InUse() {
		t.Error("it is mapped")
	}
	check(t, unix.Munmap(mem))
	if f.InUse() {
		t.Error("it was unmapped")
	}
}

func TestShadow(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, 1<<20)
	put(t, c, key(1, 9, 5000))
	f := c.Get(key(1, 9, 5000))
	defer f.Close()
	check(t, f.Detach())
	s, err := f.Shadow()
	check(t, err)
	defer s.Close()
	got := make([]byte, 5000)
	if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{9}, 5000)) {
		t.Errorf("%v", err)
	}
	if len(files(t, dir)) != 0 || c.Has(key(1, 9, 5000)) {
		t.Errorf("%v", files(t, dir))
	}
	check(t, f.Detach()) // again
}

func FuzzParseName(f *testing.F) {
	f.Add(key(1, 2, 3).name())
	f.Add(Key{Ino: math.MaxUint64, Gen: math.MaxUint64, BornNS: math.MinInt64, WrittenNS: -1, SizeBytes: cfs.MaxFileSize}.name())
	f.Add("1-2-3-4-5.part")
	f.Add("01-2-3-4-5")
	f.Fuzz(func(t *testing.T, name string) {
		if k, ok := parseName(name); ok && k.name() != name {
			t.Errorf("%q is %+v is %q", name, k, k.name())
		}
	})
}

func TestNames(t *testing.T) {
	for _, k := range []Key{key(1, 2, 3), {}, {Ino: math.MaxUint64, Gen: 1, BornNS: math.MinInt64, WrittenNS: -1, SizeBytes: 9}} {
		if got, ok := parseName(k.name()); !ok || got != k {
			t.Errorf("%+v: %+v, %v", k, got, ok)
		}
	}
	for _, bad := range []string{"", "1-2-3-4", "1-2-3-4-5-6", "1-2-3-4-5.part", "01-2-3-4-5", "1-2-3-4-ffffffffffffffff", "A-2-3-4-5", "1-2-3-4-+5"} {
		if _, ok := parseName(bad); ok {
			t.Errorf("%q is a name", bad)
		}
	}
}
