package perf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

func TestNewFileIsWrittenAndRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := openDisk(t.Context(), DiskConfig{Path: path, SizeBytes: 1<<20 + 17}, toWrite, nil)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size != 1<<20 || st.Blocks*512 < st.Size || d.sizeBytes != st.Size {
		t.Errorf("size %d of %d, %d allocated: %v", st.Size, d.sizeBytes, st.Blocks*512, err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestWhatExistsIsNotOverwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, make([]byte, 8<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DiskConfig{Path: path, SizeBytes: 1 << 20}
	if _, err := openDisk(t.Context(), cfg, toWrite, nil); cfs.KindOf(err) != cfs.Exists || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("without --force: %v", err)
	}
	for _, use := range []diskUse{toRead, toWrite, forLog} {
		cfg.Force = use != toRead
		d, err := openDisk(t.Context(), cfg, use, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d.sizeBytes != 8<<10 || len(d.notes) == 0 || !strings.Contains(d.notes[0], "8KiB") {
			t.Errorf("%d bytes are used, notes %q", d.sizeBytes, d.notes)
		}
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 8<<10 {
		t.Errorf("afterwards: %v, %v", st, err)
	}
}

func TestFormattedDeviceIsNamed(t *testing.T) {
	testEngines(t)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	rig, err := openRig(rigConfig{path: path, format: true, segmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := rig.close(); err != nil {
		t.Fatal(err)
	}
	_, err = openDisk(t.Context(), DiskConfig{Path: path, SizeBytes: 1 << 20}, forLog, nil)
	if cfs.KindOf(err) != cfs.Exists || !strings.Contains(err.Error(), `cluster "cfs-perf"`) {
		t.Errorf("got %v", err)
	}
	d, err := openDisk(t.Context(), DiskConfig{Path: path, SizeBytes: 1 << 20}, toRead, nil)
	if err != nil {
		t.Fatal("to read it: ", err)
	}
	if len(d.notes) != 1 || !strings.Contains(d.notes[0], "sparse") {
		t.Errorf("notes %q", d.notes)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

func TestDiskInUseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := openDisk(t.Context(), DiskConfig{Path: path, SizeBytes: 1 << 20}, toWrite, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := lockFile(f, 0); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := lockFile(other, 0); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("locked twice: %v", err)
	}
}

func TestDiskRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		cfg  DiskConfig
		kind cfs.Kind
	}{
		{DiskConfig{Path: dir, SizeBytes: 1 << 20, Force: true}, cfs.Invalid},
		{DiskConfig{Path: "/dev/null", SizeBytes: 1 << 20, Force: true}, cfs.Invalid},
		{DiskConfig{Path: filepath.Join(dir, "none", "data"), SizeBytes: 1 << 20}, cfs.NotFound},
		{DiskConfig{Path: filepath.Join(dir, "data"), SizeBytes: 10}, cfs.Usage},
	} {
		if _, err := openDisk(t.Context(), c.cfg, toWrite, nil); cfs.KindOf(err) != c.kind {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestParseDiskStat(t *testing.T) {
	text := " 1102221   118060 250865626  3025291  6698921   189602 1180413608 20789169        0  2245168 25574870   230049      745 806986192   640851  2130933  1119556\n"
	if c, ok := parseDiskStat([]byte(text)); !ok || c.writtenBytes != 1180413608*512 || c.flushes != 2130933 {
		t.Errorf("%+v, %t", c, ok)
	}
	for _, bad := range []string{"", "1 2 3", strings.Replace(text, "2130933", "x", 1), strings.Fields(text)[0]} {
		if c, ok := parseDiskStat([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}

func TestNoBlockDeviceIsNotMounted(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/null", "/nowhere"} {
		if got := mountedAt(path); got != "" {
			t.Errorf("%s is mounted at %s", path, got)
		}
	}
}
