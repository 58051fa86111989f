package servercmd

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFaultFollowsItsFile(t *testing.T) {
	if fault(t.Context(), "", faultRead, 1) != nil {
		t.Error("a fault without a directory")
	}
	dir := t.TempDir()
	delay := fault(t.Context(), dir, faultRead, 2)
	until := func(want time.Duration) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); delay() != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("delay %s, want %s", delay(), want)
			}
		}
	}
	for _, c := range []struct {
		text string
		want time.Duration
	}{{"200ms\n", 200 * time.Millisecond}, {"soon", 0}, {"-1s", -time.Second}} {
		if err := os.WriteFile(filepath.Join(dir, "node-2-read"), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		until(c.want)
	}
	if err := os.Remove(filepath.Join(dir, "node-2-read")); err != nil {
		t.Fatal(err)
	}
	until(0)
}
