package test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

// sleepTime is longer than a session lives without a heartbeat.
const sleepTime = 13 * time.Second

// A mount stands still for longer than its session lives, in the middle of writing, and
// everything is reclaimed that it might have put. When it goes on it must say what it
// has lost, by EIO, and lose nothing else; whoever wrote meanwhile is not overwritten.
func TestSleepingMount(t *testing.T) {
	t.Parallel() // it waits for most of its time
	c := start(t, func(s *cluster.Spec) { s.ServerArgs = []string{"--reclaim-interval", "1s"} })
	mt, other := mount(t, c, "mnt"), mount(t, c, "other")
	m := newModel(t, mt.Point, newSeed(t))
	m.doubtful = true
	m.bearable = func(err error) bool { return errors.Is(err, unix.EIO) }

	old, data := content(1, 3<<20), content(2, 3<<20)
	path := filepath.Join(mt.Point, "slept-on")
	if err := writeFile(path, old); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m.run()
	time.Sleep(time.Second)
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	mt.Pause()
	taken := content(3, 2<<20)
	begun := time.Now()
	if err := writeFile(filepath.Join(other.Point, "meanwhile"), taken); err != nil {
		t.Fatal(err)
	}
	time.Sleep(sleepTime - time.Since(begun))
	mt.Resume()
	// A child drops its copy of the descriptor when it execs, which flushes the file: what that
	// is told must not be kept from us.
	if err := exec.Command("true").Run(); err != nil {
		t.Fatal(err)
	}
	serr := f.Sync()
	cerr := f.Close()
	t.Logf("fsync after a sleep of %v: %v, close: %v", sleepTime, serr, cerr)
	for _, err := range []error{serr, cerr} {
		if err != nil && !errors.Is(err, unix.EIO) {
			t.Errorf("after the sleep: %v, want EIO or nothing", err)
		}
	}
	time.Sleep(time.Second) // it works again
	m.stop()
	m.remount(mt)
	m.verify("after a sleep")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if serr == nil && cerr == nil && !bytes.Equal(got, data) {
		t.Error("fsync and close said that all is well, and it is not")
	}
	for off := 0; off < len(old); off += cfs.BlockSize {
		if b := got[off:min(off+cfs.BlockSize, len(got))]; !bytes.Equal(b, old[off:off+len(b)]) && !bytes.Equal(b, data[off:off+len(b)]) {
			t.Fatalf("the block at %d is neither the old one nor the new", off)
		}
	}
	if got, err := os.ReadFile(filepath.Join(mt.Point, "meanwhile")); err != nil || !bytes.Equal(got, taken) {
		t.Errorf("what another mount wrote meanwhile is right: %v, %v", bytes.Equal(got, taken), err)
	}
	settle(t, c, mt)
}
