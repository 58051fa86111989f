package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cluster"
)

// fileSizes meet every edge: inline, one block, one shard, one stripe and more.
var fileSizes = []int{0, 1, 4095, 4096, 4097, 16 << 10, 16<<10 + 1, 1<<20 - 1, 4<<20 + 1, 10 << 20}

// record is what files must hold.
type record struct {
	files map[string][sha256.Size]byte // by path below the mount
	sizes map[string]int64
}

func newRecord() *record {
	return &record{files: map[string][sha256.Size]byte{}, sizes: map[string]int64{}}
}

// add notes what a file holds.
func (r *record) add(rel string, data []byte) {
	r.files[rel], r.sizes[rel] = sha256.Sum256(data), int64(len(data))
}

// fill writes n files of size bytes each to a new directory.
func (r *record) fill(t *testing.T, point, dir string, n, size int) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(point, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		rel := filepath.Join(dir, fmt.Sprintf("%d", i))
		data := content(uint64(100<<8|i), size)
		if err := writeFile(filepath.Join(point, rel), data); err != nil {
			t.Fatalf("write %s: %v", rel, err)
		}
		r.add(rel, data)
	}
}

// writeAll writes a file of every size, and a sparse one, to a new directory.
func (r *record) writeAll(t *testing.T, point, dir string, generation uint64) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(point, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, n := range fileSizes {
		rel := filepath.Join(dir, fmt.Sprintf("size-%d", n))
		data := content(generation<<8|uint64(i), n)
		if err := writeFile(filepath.Join(point, rel), data); err != nil {
			t.Fatalf("write %s: %v", rel, err)
		}
		r.add(rel, data)
	}
	rel := filepath.Join(dir, "sparse")
	data := make([]byte, 24<<20)
	f, err := os.Create(filepath.Join(point, rel))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, at := range []int{3, 5<<20 - 1, 20<<20 + 4096} {
		piece := content(generation<<8|uint64(200+i), 70001)
		copy(data[at:], piece)
		if _, err := f.WriteAt(piece, int64(at)); err != nil {
			t.Fatalf("write %s: %v", rel, err)
		}
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	r.add(rel, data)
	if end, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil || end >= int64(len(data)) {
		t.Errorf("%s has no hole: %d, %v", rel, end, err)
	}
	d, err := os.Open(filepath.Join(point, dir))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
}

// readAll compares every file that was ever written.
func (r *record) readAll(t *testing.T, point, when string) {
	t.Helper()
	for rel, want := range r.files {
		got, n, err := sum(filepath.Join(point, rel))
		switch {
		case err != nil:
			t.Errorf("%s: read %s: %v", when, rel, err)
		case n != r.sizes[rel]:
			t.Errorf("%s: %s has %d bytes, want %d", when, rel, n, r.sizes[rel])
		case got != want:
			t.Errorf("%s: %s has other bytes", when, rel)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

func TestFilesSurviveEveryDeath(t *testing.T) {
	c := start(t, nil)
	m := mount(t, c, "mnt")
	r := newRecord()
	r.writeAll(t, m.Point, "gen-0", 0)
	remount(t, m)
	r.readAll(t, m.Point, "all nodes running")

	for n := 1; n <= c.Nodes(); n++ {
		when := fmt.Sprintf("node %d dead", n)
		if err := c.Kill(n); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		remount(t, m)
		r.readAll(t, m.Point, when)
		if got := counters(t, m)["claudefs_client_shards_reconstructed_total"]; got == 0 {
			t.Errorf("%s: nothing was reconstructed", when)
		}
		r.writeAll(t, m.Point, fmt.Sprintf("gen-%d", n), uint64(n))
		remount(t, m)
		r.readAll(t, m.Point, when+", after writing")
		t.Logf("%s: read, written and read again in %v", when, time.Since(begun))
		if err := c.Restart(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}

	if err := c.KillAll(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = mount(t, c, "mnt")
	r.readAll(t, m.Point, "all killed at once")
	r.writeAll(t, m.Point, "gen-last", 99)
	r.readAll(t, m.Point, "written since")
	overwrite(t, m, r)
}

// overwrite changes files in place, and shrinks and grows them.
func overwrite(t *testing.T, m *cluster.Mount, r *record) {
	t.Helper()
	path := filepath.Join(m.Point, "changed")
	want := content(7, 3<<20)
	if err := writeFile(path, want); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, at := range []int{0, 4095, 1<<20 - 5, 3<<20 - 100} {
		piece := content(uint64(8+i), 9001)
		if grow := at + len(piece) - len(want); grow > 0 {
			want = append(want, make([]byte, grow)...)
		}
		copy(want[at:], piece)
		if _, err := f.WriteAt(piece, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{1<<20 + 77, 2 << 20} { // shrink, then grow: zeros, never the old bytes
		if err := f.Truncate(int64(n)); err != nil {
			t.Fatal(err)
		}
		want = append(want[:min(n, len(want))], make([]byte, max(0, n-len(want)))...)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil { // an open file keeps a mount busy
		t.Fatal(err)
	}
	remount(t, m)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("a file changed in place has other bytes (%d of %d)", len(got), len(want))
	}
	r.readAll(t, m.Point, "at the end")
}
