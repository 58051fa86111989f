package test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// eventually waits for what a bounded cache delays, or what is done in the background;
// why says more when it does not come.
func eventually(t *testing.T, what string, ok func() bool, why ...func() string) {
	t.Helper()
	for begun := time.Now(); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > patience {
			for _, f := range why {
				what += ": " + f()
			}
			t.Fatalf("still not after %v: %s", patience, what)
		}
	}
}

func TestTwoMountsSeeEachOther(t *testing.T) {
	c := start(t, nil)
	a, b := mount(t, c, "a"), mount(t, c, "b")
	inA, inB := filepath.Join(a.Point, "shared"), filepath.Join(b.Point, "shared")

	// Close-to-open: what was closed before is read by whoever opens after, whatever is cached.
	for i, n := range []int{100, 5000, 5000, 3 << 20, 10} {
		writer, reader := inA, inB
		if i%2 == 1 {
			writer, reader = inB, inA
		}
		data := content(uint64(i), n)
		if err := writeFile(writer, data); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			eventually(t, "a new name is seen by the other mount", func() bool { _, err := os.Stat(reader); return err == nil })
		}
		got, err := os.ReadFile(reader)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("write %d: the other mount reads %d of %d bytes, right: %v, %v", i, len(got), len(data), bytes.Equal(got, data), err)
		}
	}

	// An append by one and then the other.
	for _, path := range []string{inA, inB} {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("more"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(inA); err != nil || string(got[10:]) != "moremore" {
		t.Errorf("after an append by each: %q, %v", got, err)
	}

	// Names: made, renamed and removed.
	if err := os.Mkdir(filepath.Join(a.Point, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new directory is seen by the other mount", func() bool { _, err := os.ReadDir(filepath.Join(b.Point, "dir")); return err == nil })
	if err := os.Rename(inB, filepath.Join(b.Point, "dir", "moved")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a rename is seen by the other mount", func() bool {
		_, gone := os.Stat(inA)
		_, here := os.Stat(filepath.Join(a.Point, "dir", "moved"))
		return errors.Is(gone, os.ErrNotExist) && here == nil
	})
	if err := os.RemoveAll(filepath.Join(a.Point, "dir")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a removal is seen by the other mount", func() bool {
		list, err := os.ReadDir(b.Point)
		return err == nil && len(list) == 0
	})
}

// The leader dies while several programs write: no call fails, and what was
// acknowledged is there.
func TestLeaderKilledUnderWrites(t *testing.T) {
	c := start(t, nil)
	m := mount(t, c, "mnt")
	const writers = 4
	var (
		mu    sync.Mutex
		sums  = map[string][sha256.Size]byte{}
		stop  = make(chan struct{})
		tasks sync.WaitGroup
		worst time.Duration
	)
	for w := range writers {
		tasks.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				rel := fmt.Sprintf("w%d-%d", w, i)
				data := content(uint64(w<<12|i), []int{700, 30000, 300000}[i%3])
				begun := time.Now()
				if err := writeFile(filepath.Join(m.Point, rel), data); err != nil {
					t.Errorf("write %s: %v", rel, err)
					return
				}
				mu.Lock()
				sums[rel] = sha256.Sum256(data)
				worst = max(worst, time.Since(begun))
				mu.Unlock()
			}
		})
	}
	time.Sleep(time.Second)
	leader, err := c.Leader(t.Context())
	if err == nil {
		err = c.Kill(leader)
	}
	if err == nil {
		err = c.WaitUsable(t.Context())
	}
	time.Sleep(time.Second) // writes go on with two nodes
	if err == nil {
		err = c.Restart(t.Context(), leader)
	}
	time.Sleep(time.Second) // and with three again
	close(stop)
	tasks.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files were written across the death of node %d, the slowest in %v", len(sums), leader, worst)
	remount(t, m)
	for rel, want := range sums {
		if got, _, err := sum(filepath.Join(m.Point, rel)); err != nil || got != want {
			t.Errorf("%s: right: %v, %v", rel, got == want, err)
		}
	}
	list, err := os.ReadDir(m.Point)
	if err != nil || len(list) != len(sums) {
		t.Errorf("%d names for %d files, %v", len(list), len(sums), err)
	}
}
