package kv

import (
	"fmt"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/raftmeta/fsm"
)

// What is remembered and what is pending stay within their bounds, whether keys
// are written or only read, and nothing of it gets lost.
func TestRecentIsBounded(t *testing.T) {
	s := openPebble(t, t.TempDir()).(*pebbleStore)
	defer func() { must(t, s.Close()) }()
	const valBytes = 16 << 10
	val := strings.Repeat("v", valBytes)
	key := func(i int) string { return fmt.Sprintf("key-%06d", i) }
	const keys = 3 * recentBytes / valBytes
	for i := range keys {
		put(t, s, key(i), val)
		if r := &s.recent; r.bytes > recentBytes || r.pendingBytes >= pendingBytes {
			t.Fatalf("%d bytes are remembered, %d pending", r.bytes, r.pendingBytes)
		}
	}
	for i := range keys {
		b := s.NewBatch()
		equal(t, get(t, b, key(i)), val)
		must(t, b.Commit())
		must(t, b.Close())
		if s.recent.bytes > recentBytes {
			t.Fatalf("%d bytes are remembered", s.recent.bytes)
		}
	}
}

// A key that is written again while it is pending reaches Pebble as it was last.
func TestPendingIsSeenByEverybody(t *testing.T) {
	dir := t.TempDir()
	s := openPebble(t, dir)
	put(t, s, "a", "1", "b", "1")
	put(t, s, "a", "2", "c", "2")
	b := s.NewBatch()
	must(t, b.Delete([]byte("b")))
	must(t, b.Set([]byte("d"), nil))
	equal(t, scanAll(t, b, nil, nil), "a=2 c=2 d= ")
	must(t, b.Commit())
	must(t, b.Close())
	for _, look := range []func() (fsm.Reader, func() error){
		func() (fsm.Reader, func() error) { v := s.View(); return v, v.Close },
		func() (fsm.Reader, func() error) { b := s.NewBatch(); return b, b.Close },
	} {
		r, end := look()
		equal(t, get(t, r, "a")+get(t, r, "b")+get(t, r, "c")+get(t, r, "d"), "2-2")
		must(t, end())
	}
	put(t, s, "a", "3")
	must(t, s.Flush())
	put(t, s, "a", "4")
	must(t, s.Close())
	s = openPebble(t, dir)
	defer func() { must(t, s.Close()) }()
	if got := get(t, s.NewBatch(), "a"); got != "3" && got != "4" {
		t.Errorf("after a flush of 3 it is %s", got)
	}
}
