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

// What was written or read last stays at hand when older cells go.
func TestNewestCellsStay(t *testing.T) {
	s := openPebble(t, t.TempDir()).(*pebbleStore)
	defer func() { must(t, s.Close()) }()
	key := func(i int) string { return fmt.Sprintf("key-%06d", i) }
	val := strings.Repeat("v", 1000)
	const stay = recentBytes / 2 / (1000 + 10 + recentOverhead)
	const keys = 5 * stay
	for i := range keys {
		put(t, s, key(i), val)
		b := s.NewBatch()
		equal(t, get(t, b, key(0)), val) // is used all the time
		must(t, b.Close())
		for _, at := range []int{i, max(0, i-stay+1), 0} {
			k := key(at)
			if s.recent.young[k] == nil && s.recent.old[k] == nil {
				t.Fatalf("key %d is gone after %d", at, i)
			}
		}
	}
	if n := len(s.recent.young) + len(s.recent.old); n > 2*stay+2 {
		t.Errorf("%d cells are kept", n)
	}
}

// A write that is not committed leaves nothing, whether the key was known before or not.
func TestUncommittedIsForgotten(t *testing.T) {
	s := openPebble(t, t.TempDir()).(*pebbleStore)
	defer func() { must(t, s.Close()) }()
	put(t, s, "a", "1", "b", "1")
	for _, forget := range []bool{false, true} {
		for range 2 {
			if forget {
				forgetRecent(t, s)
			}
			bytes := s.recent.bytes
			b := s.NewBatch()
			must(t, b.Set([]byte("a"), []byte("longer")))
			must(t, b.Delete([]byte("b")))
			must(t, b.Set([]byte("c"), []byte("2")))
			equal(t, get(t, b, "a")+get(t, b, "b")+get(t, b, "c"), "longer-2")
			must(t, b.Close())
			if s.recent.bytes != bytes {
				t.Errorf("%d bytes are remembered, %d before", s.recent.bytes, bytes)
			}
			b = s.NewBatch()
			equal(t, get(t, b, "a")+get(t, b, "b")+get(t, b, "c"), "11-")
			must(t, b.Commit())
			must(t, b.Close())
		}
	}
}

// What comes and goes between two writes to Pebble does not reach it; what it has is deleted.
func TestCameAndWent(t *testing.T) {
	s := openPebble(t, t.TempDir()).(*pebbleStore)
	defer func() { must(t, s.Close()) }()
	del := func(key string) {
		t.Helper()
		b := s.NewBatch()
		must(t, b.Delete([]byte(key)))
		must(t, b.Commit())
		must(t, b.Close())
	}
	size := func() int64 {
		must(t, s.current())
		return int64(s.db.Metrics().MemTable.Size)
	}
	b := s.NewBatch()
	equal(t, get(t, b, "looked for"), "-")
	must(t, b.Close())
	before := size()
	for range 3 {
		put(t, s, "looked for", "1", "R: a reply", "1")
		del("looked for")
		del("R: a reply")
	}
	if size() != before {
		t.Errorf("Pebble's memtable had %d bytes and has %d", before, size())
	}
	for _, forget := range []bool{false, true} {
		put(t, s, "looked for", "1", "R: a reply", "1")
		must(t, s.current())
		if forget {
			forgetRecent(t, s)
		}
		del("looked for")
		del("R: a reply")
		v := s.View()
		equal(t, scanAll(t, v, nil, nil), "")
		must(t, v.Close())
	}
}
