package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cluster"
)

// fileBytes is what each file of these tests holds.
const fileBytes = 4 << 20

// filler writes files until there is no room.
type filler struct {
	t     *testing.T
	point string
	*record
	n int
}

// one writes another file; what failed holds nothing that was acknowledged.
func (f *filler) one() error {
	rel := fmt.Sprintf("fill-%d", f.n)
	data := content(uint64(1<<20|f.n), fileBytes)
	f.n++
	if err := writeFile(filepath.Join(f.point, rel), data); err != nil {
		return errors.Join(err, os.Remove(filepath.Join(f.point, rel)))
	}
	f.add(rel, data)
	return nil
}

// until writes files until stop says so or there is no room; that must be said as ENOSPC.
func (f *filler) until(most int, stop func() bool) (full bool) {
	f.t.Helper()
	for range most {
		if stop() {
			return false
		}
		err := f.one()
		if errors.Is(err, unix.ENOSPC) {
			return true
		}
		if err != nil {
			f.t.Fatalf("file %d: %v, want ENOSPC", f.n, err)
		}
	}
	f.t.Fatalf("%d files were not enough", most)
	return false
}

// rooms says how full each device is.
func rooms(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	s := ""
	for _, d := range clusterMap(t, c).Devices {
		s += fmt.Sprintf("device %v: %d of %d bytes used, full: %v\n", d.ID, d.Used, d.Capacity, d.Full)
	}
	return s
}

func freeBytes(t *testing.T, point string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(point, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}

// One device is full: writing goes on elsewhere. All are full: ENOSPC, at the call where
// it is met, and nothing that was acknowledged is lost. Files are deleted: there is room again.
func TestNoSpace(t *testing.T) {
	small := cluster.DevicePlace{Node: 2, Slot: 0}
	c := start(t, func(s *cluster.Spec) {
		s.DeviceSizeBytes = 160 << 20 // the others have room when the small one has none
		s.OtherSizeBytes = map[cluster.DevicePlace]int64{small: cluster.MinDeviceSizeBytes}
		s.ServerArgs = []string{"--reclaim-interval", "2s"}
	})
	mt := mount(t, c, "mnt")
	f := &filler{t: t, point: mt.Point, record: newRecord()}
	total := freeBytes(t, mt.Point)

	if f.until(200, func() bool { return device(t, c, deviceID(small)).Full }) {
		t.Fatalf("no room after %d files, with one device full", f.n)
	}
	t.Logf("device %v is full after %d files", deviceID(small), f.n)
	for range 4 {
		if err := f.one(); err != nil {
			t.Fatalf("with one device full: %v\n%s", err, rooms(t, c))
		}
	}
	f.until(200, func() bool { return false })
	t.Logf("no room after %d files of %d bytes; %d of %d bytes were free in the beginning, %d are now", len(f.files), fileBytes, total, total, freeBytes(t, mt.Point))

	// The model under ENOSPC: what it was told is there is there.
	seed := newSeed(t)
	m := newModel(t, mt.Point, seed)
	m.bearable = func(err error) bool { return errors.Is(err, unix.ENOSPC) }
	m.doubtful = true // what found no room is read as it was before the writer is told
	m.run()
	time.Sleep(chaosTime(3 * time.Second))
	m.stop()
	remount(t, mt)
	f.readAll(t, mt.Point, "no room")
	m.verify("no room")
	if len(m.fails) == 0 {
		t.Error("the model never met ENOSPC: there was room")
	}

	freed, before := 0, freeBytes(t, mt.Point)
	for i := 0; i < f.n; i += 2 {
		rel := fmt.Sprintf("fill-%d", i)
		if _, ok := f.files[rel]; !ok {
			continue
		}
		if err := os.Remove(filepath.Join(mt.Point, rel)); err != nil {
			t.Fatal(err)
		}
		freed++
		delete(f.files, rel)
	}
	begun := time.Now()
	eventually(t, "the space of deleted files is free", func() bool {
		return freeBytes(t, mt.Point) >= before+int64(freed)*fileBytes*8/10
	}, func() string {
		return fmt.Sprintf("%d free, %d before, %d files of %d deleted", freeBytes(t, mt.Point), before, freed, fileBytes)
	})
	t.Logf("statfs shows the space after %v", time.Since(begun))
	again := 0
	eventually(t, "the space of deleted files can be written", func() bool {
		switch err := f.one(); {
		case err == nil:
			again++
		case !errors.Is(err, unix.ENOSPC):
			t.Fatal(err)
		}
		return again >= freed/2
	}, func() string { return fmt.Sprintf("%d files of %d", again, freed) })
	t.Logf("%d files were written anew after %v", again, time.Since(begun))
	m.remount(mt)
	f.readAll(t, mt.Point, "after room was made")
	m.verify("after room was made")
	settle(t, c, mt)
}
