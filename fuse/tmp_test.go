package fuse

import (
	"fmt"
	"os"
	"testing"
)

func TestTmpCalls(t *testing.T) {
	m := newMemFS()
	dir, _ := mounted(t, m)
	show := func(what string) { m.mu.Lock(); t.Log("XX", what, m.calls); m.calls = map[string]int{}; m.mu.Unlock() }
	show("mount")
	for i := range 10 {
		os.WriteFile(fmt.Sprint(dir, "/f", i), []byte("hello"), 0o644)
	}
	show("create+write+close 10")
	f, _ := os.OpenFile(dir+"/f1", os.O_RDWR, 0)
	for range 100 {
		f.WriteAt([]byte("x"), 0)
	}
	show("100 overwrites")
	for range 10 {
		f.WriteAt([]byte("x"), 0)
		f.ReadAt(make([]byte, 1), 0)
	}
	show("10 write+read")
	f.Close()
	show("close")
	os.Stat(dir + "/f1")
	show("stat")
	os.ReadFile(dir + "/f1")
	show("readfile")
	os.Remove(dir + "/f1")
	show("remove")
	os.ReadDir(dir)
	show("readdir")
	os.RemoveAll(dir + "/d")
}
