package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

func TestMountDev(t *testing.T) {
	link := t.TempDir() + "/link"
	if err := os.Symlink("/proc", link); err != nil {
		t.Fatal(err)
	}
	proc, err1 := mountDev("/proc")
	own, err2 := mountDev(link) // the link's own: who wants its target resolves it
	if err1 != nil || err2 != nil || proc == own {
		t.Errorf("/proc is %q (%v), a link to it %q (%v)", proc, err1, own, err2)
	}
	if _, err := mountDev(link + "/none/such"); err == nil {
		t.Error("a path that is not there has a device")
	}
}

func TestMountLockTellsTheLastWords(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	for _, words := range []error{nil, cfs.E("flush", cfs.NoSpace, nil)} {
		// A device number that no mount has, for the runtime directory is root's own.
		dev := "test-" + t.Name()
		daemon, err := holdMountLock(dev)
		if err != nil {
			t.Fatal(err)
		}
		waiter := openMountLock(dev)
		if waiter == nil {
			t.Fatal("no lock file")
		}
		done := make(chan error, 1)
		go func() { done <- waiter.wait(t.Context()) }()
		select {
		case err := <-done:
			t.Fatalf("the wait ended before the daemon: %v", err)
		case <-time.After(3 * lockPoll):
		}
		daemon.release(words)
		err = <-done
		if (words == nil) != (err == nil) || words != nil && !strings.Contains(err.Error(), words.Error()) {
			t.Errorf("last words %v came as %v", words, err)
		}
		if again := openMountLock(dev); again != nil {
			t.Error("the lock file stays behind")
		}
	}
}
