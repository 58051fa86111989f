package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/claudefs/claudefs/internal/invariants"
)

// entryKey is the key of a directory's entry.
func entryKey(dir uint64, name string) string {
	return string(binary.BigEndian.AppendUint64([]byte{'D'}, dir)) + name
}

// forgetRecent lets a store answer from what it has and from the names that it knows.
func forgetRecent(t *testing.T, s *pebbleStore) {
	t.Helper()
	must(t, s.current())
	s.recent = newRecent()
}

// Batches over directories of several sizes say what a map says, whatever of the names is
// known: after batches that came to nothing, deletions, and a restart.
func TestNamesModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	dir := t.TempDir()
	s := openPebble(t, dir).(*pebbleStore)
	model := map[string]string{}
	pick := func() string {
		d := uint64(rng.IntN(4))
		return entryKey(d, fmt.Sprint(rng.IntN(10<<(3*d))))
	}
	known := 0
	for i := range 600 {
		b := s.NewBatch()
		next := map[string]*string{}
		for range 1 + rng.IntN(60) {
			k := pick()
			switch rng.IntN(6) {
			case 0:
				must(t, b.Delete([]byte(k)))
				next[k] = nil
			case 1, 2:
				v := fmt.Sprint(rng.Uint32())
				must(t, b.Set([]byte(k), []byte(v)))
				next[k] = &v
			default:
				want, ok := model[k]
				if !ok {
					want = "-"
				}
				if v, written := next[k]; written {
					if want = "-"; v != nil {
						want = *v
					}
				}
				equal(t, get(t, b, k), want)
			}
		}
		if rng.IntN(4) > 0 {
			must(t, b.Commit())
			for k, v := range next {
				if delete(model, k); v != nil {
					model[k] = *v
				}
			}
		}
		must(t, b.Close())
		for _, looks := range s.names.folders {
			if looks == folderKnown {
				known++
			}
		}
		switch {
		case i%150 == 149:
			must(t, s.Flush())
			must(t, s.Close())
			s = openPebble(t, dir).(*pebbleStore)
		case i%5 == 4:
			forgetRecent(t, s)
		}
		v := s.View()
		same(t, v, model)
		must(t, v.Close())
	}
	must(t, s.Close())
	if known < 600 {
		t.Errorf("a directory was known after %d batches only", known)
	}
}

// A directory is read when it has been looked into in vain often enough for its size.
func TestDirectoryIsReadInProportion(t *testing.T) {
	s := openPebble(t, t.TempDir()).(*pebbleStore)
	defer func() { must(t, s.Close()) }()
	const rows = 1000
	b := s.NewBatch()
	for i := range rows {
		must(t, b.Set([]byte(entryKey(7, fmt.Sprint("old", i))), []byte("x")))
	}
	must(t, b.Commit())
	must(t, b.Close())
	b = s.NewBatch()
	must(t, b.Set([]byte(entryKey(7, "own")), []byte("x")))
	folder := entryKey(7, "")
	looks := 0
	for ; s.names.folders[folder] != folderKnown; looks++ {
		if looks > rows {
			t.Fatal("it is never read")
		}
		equal(t, get(t, b, entryKey(7, fmt.Sprint("new", looks))), "-")
	}
	if looks*rowsPerLook < rows || looks > rows/rowsPerLook*2 {
		t.Errorf("%d rows were read after %d looks", rows, looks)
	}
	for name, lacks := range map[string]bool{"old0": false, "old999": false, "own": false, "new": true} {
		if s.names.lacks([]byte(entryKey(7, name))) != lacks {
			t.Errorf("lacks %s: %v", name, !lacks)
		}
	}
	if s.names.lacks([]byte(folder)) || s.names.lacks([]byte(entryKey(8, "new"))) || s.names.lacks([]byte("x")) {
		t.Error("it knows of what it has not read")
	}
	must(t, b.Close())
}

// What is known stays within its bounds; what does not fit is not known.
func TestNamesAreBounded(t *testing.T) {
	n := newNames()
	n.folders[entryKey(1, "")] = folderKnown
	for i := range maxNames + 1 {
		n.wrote([]byte(entryKey(1, fmt.Sprint(i))))
	}
	if len(n.noted) > maxNames || n.lacks([]byte(entryKey(1, "other"))) {
		t.Errorf("%d names are noted", len(n.noted))
	}
	for i := range uint64(maxFolders + 1) {
		if _, rows := n.missed([]byte(entryKey(i, "a"))); rows != 0 {
			t.Fatalf("%d rows are to be read for one look", rows)
		}
		if len(n.folders) > maxFolders {
			t.Fatalf("%d directories", len(n.folders))
		}
	}
}

func TestLooksAllocNothing(t *testing.T) {
	if invariants.Race {
		t.Skip("the race detector allocates")
	}
	s := openPebble(t, t.TempDir()).(*pebbleStore)
	defer func() { must(t, s.Close()) }()
	s.names.folders[entryKey(1, "")] = folderKnown
	key, val := []byte(entryKey(1, "a")), make([]byte, 100)
	b := s.NewBatch()
	must(t, b.Set(key, val))
	must(t, b.Commit())
	for what, fn := range map[string]func(){
		"look":   func() { s.names.lacks(key) },
		"get":    func() { _, _, _ = b.Get(key) },
		"set":    func() { must(t, b.Set(key, val)) },
		"commit": func() { must(t, errors.Join(b.Set(key, val), b.Commit())) },
	} {
		fn() // the first time makes what it needs
		fn()
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
	must(t, b.Close())
}
