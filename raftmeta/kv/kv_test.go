package kv

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
)

// suite is what every Store must do.
func suite(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(*testing.T, Store){
		"batch reads its writes": testBatchReads,
		"batch is atomic":        testAtomic,
		"scan bounds and order":  testScan,
		"views are isolated":     testViews,
		"values do not alias":    testAlias,
		"scan errors":            testScanErrors,
		"model":                  testModel,
		"checkpoint":             testCheckpoint,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			defer func() { must(t, s.Close()) }()
			test(t, s)
		})
	}
}

func TestMem(t *testing.T) { suite(t, func(*testing.T) Store { return NewMem() }) }

func openPebble(t *testing.T, dir string) Store {
	t.Helper()
	s, err := OpenPebble(dir, Options{CacheBytes: 1 << 20})
	must(t, err)
	return s
}

func TestPebble(t *testing.T) {
	suite(t, func(t *testing.T) Store { return openPebble(t, t.TempDir()) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, s Store, pairs ...string) {
	t.Helper()
	b := s.NewBatch()
	for i := 0; i < len(pairs); i += 2 {
		must(t, b.Set([]byte(pairs[i]), []byte(pairs[i+1])))
	}
	must(t, b.Commit())
	must(t, b.Close())
}

func get(t *testing.T, r fsm.Reader, key string) string {
	t.Helper()
	v, ok, err := r.Get([]byte(key))
	must(t, err)
	if !ok {
		return "-"
	}
	return string(v)
}

func scanAll(t *testing.T, r fsm.Reader, lo, hi []byte) string {
	t.Helper()
	out := ""
	must(t, r.Scan(lo, hi, func(k, v []byte) (bool, error) {
		out += fmt.Sprintf("%s=%s ", k, v)
		return true, nil
	}))
	return out
}

func equal(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func testBatchReads(t *testing.T, s Store) {
	put(t, s, "a", "1", "b", "2", "c", "3")
	b := s.NewBatch()
	must(t, b.Set([]byte("b"), []byte("two")))
	must(t, b.Delete([]byte("c")))
	must(t, b.Set([]byte("d"), []byte("4")))
	must(t, b.Set([]byte("e"), nil))
	equal(t, get(t, b, "a")+get(t, b, "b")+get(t, b, "c")+get(t, b, "d")+get(t, b, "e"), "1two-4")
	equal(t, scanAll(t, b, nil, nil), "a=1 b=two d=4 e= ")
	must(t, b.Set([]byte("c"), []byte("again")))
	equal(t, scanAll(t, b, []byte("b"), []byte("d")), "b=two c=again ")
	must(t, b.Commit())
	must(t, b.Close())
	v := s.View()
	defer v.Close()
	equal(t, scanAll(t, v, nil, nil), "a=1 b=two c=again d=4 e= ")
}

func testAtomic(t *testing.T, s Store) {
	put(t, s, "a", "1")
	b := s.NewBatch()
	must(t, b.Set([]byte("a"), []byte("2")))
	must(t, b.Set([]byte("b"), []byte("2")))
	v := s.View()
	equal(t, scanAll(t, v, nil, nil), "a=1 ")
	must(t, v.Close())
	must(t, b.Close())
	v = s.View()
	equal(t, scanAll(t, v, nil, nil), "a=1 ")
	must(t, v.Close())
}

func testScan(t *testing.T, s Store) {
	put(t, s, "b", "2", "a", "1", "c\x00", "4", "c", "3", "\xff", "5")
	v := s.View()
	defer v.Close()
	equal(t, scanAll(t, v, []byte("a"), []byte("c")), "a=1 b=2 ")
	equal(t, scanAll(t, v, []byte("aa"), []byte("c\x00")), "b=2 c=3 ")
	equal(t, scanAll(t, v, []byte("c"), nil), "c=3 c\x00=4 \xff=5 ")
	equal(t, scanAll(t, v, []byte("x"), []byte("y")), "")
	n := 0
	must(t, v.Scan(nil, nil, func(k, _ []byte) (bool, error) { n++; return n < 2, nil }))
	equal(t, fmt.Sprint(n), "2")
}

func testViews(t *testing.T, s Store) {
	put(t, s, "a", "1")
	v1 := s.View()
	put(t, s, "a", "2", "b", "2")
	v2 := s.View()
	must(t, s.Flush())
	put(t, s, "b", "3")
	equal(t, scanAll(t, v1, nil, nil), "a=1 ")
	equal(t, scanAll(t, v2, nil, nil), "a=2 b=2 ")
	equal(t, get(t, v1, "b")+get(t, v2, "b"), "-2")
	must(t, v1.Close())
	must(t, v2.Close())
}

func testAlias(t *testing.T, s Store) {
	key, val := []byte("key"), []byte("val")
	b := s.NewBatch()
	must(t, b.Set(key, val))
	key[0], val[0] = 'X', 'X'
	equal(t, scanAll(t, b, nil, nil), "key=val ")
	must(t, b.Commit())
	must(t, b.Close())
}

var errStop = errors.New("stop")

func testScanErrors(t *testing.T, s Store) {
	put(t, s, "a", "1", "b", "2")
	b := s.NewBatch()
	defer b.Close()
	err := b.Scan(nil, nil, func(_, _ []byte) (bool, error) { return true, errStop })
	if !errors.Is(err, errStop) {
		t.Errorf("scan returns %v", err)
	}
	// Writing, reading and scanning within a scan is allowed; the scan goes on as it began.
	seen := ""
	must(t, b.Scan(nil, nil, func(k, v []byte) (bool, error) {
		seen += string(k) + string(v)
		if err := b.Set([]byte("c"), []byte("3")); err != nil {
			return false, err
		}
		if _, _, err := b.Get([]byte("b")); err != nil {
			return false, err
		}
		return true, b.Delete([]byte("b"))
	}))
	equal(t, seen, "a1b2")
	equal(t, scanAll(t, b, nil, nil), "a=1 c=3 ")
}

// testModel compares random batches with a map.
func testModel(t *testing.T, s Store) {
	rng := rand.New(rand.NewPCG(1, 2))
	model := map[string]string{}
	for range 200 {
		b := s.NewBatch()
		next := map[string]string{}
		for k, v := range model {
			next[k] = v
		}
		for range rng.IntN(20) {
			k := fmt.Sprint(rng.IntN(50))
			if rng.IntN(3) == 0 {
				delete(next, k)
				must(t, b.Delete([]byte(k)))
			} else {
				next[k] = fmt.Sprint(rng.Uint32())
				must(t, b.Set([]byte(k), []byte(next[k])))
			}
		}
		same(t, b, next)
		if rng.IntN(4) > 0 {
			must(t, b.Commit())
			model = next
		}
		must(t, b.Close())
		if rng.IntN(20) == 0 {
			must(t, s.Flush())
		}
		v := s.View()
		same(t, v, model)
		must(t, v.Close())
	}
}

func same(t *testing.T, r fsm.Reader, want map[string]string) {
	t.Helper()
	n, last := 0, ""
	must(t, r.Scan(nil, nil, func(k, v []byte) (bool, error) {
		if want[string(k)] != string(v) || n > 0 && string(k) <= last {
			t.Fatalf("%q=%q after %q, want %q", k, v, last, want[string(k)])
		}
		n, last = n+1, string(k)
		return true, nil
	}))
	if n != len(want) {
		t.Fatalf("%d pairs, want %d", n, len(want))
	}
}

func testCheckpoint(t *testing.T, s Store) {
	put(t, s, "a", "1", "b", "2")
	dir := filepath.Join(t.TempDir(), "copy")
	must(t, s.Checkpoint(dir))
	put(t, s, "a", "changed")
	if _, ok := s.(*mem); ok {
		raw, err := os.ReadFile(filepath.Join(dir, "pairs"))
		must(t, err)
		out := ""
		must(t, EachPair(raw, func(k, v []byte) error { out += fmt.Sprintf("%s=%s ", k, v); return nil }))
		equal(t, out, "a=1 b=2 ")
	} else {
		c := openPebble(t, dir)
		v := c.View()
		equal(t, scanAll(t, v, nil, nil), "a=1 b=2 ")
		must(t, v.Close())
		must(t, c.Close())
	}
	if err := s.Checkpoint(dir); err == nil {
		t.Error("a checkpoint over another one succeeded")
	}
}

func TestPebbleFlushIsDurable(t *testing.T) {
	dir := t.TempDir()
	s := openPebble(t, dir)
	put(t, s, "a", "1")
	must(t, s.Flush())
	put(t, s, "b", "lost or kept, but never in part")
	must(t, s.Checkpoint(filepath.Join(t.TempDir(), "c")))
	must(t, s.Close())
	s = openPebble(t, dir)
	v := s.View()
	equal(t, get(t, v, "a"), "1")
	must(t, v.Close())
	must(t, s.Close())
}

func TestPebbleDamage(t *testing.T) {
	dir := t.TempDir()
	s := openPebble(t, dir)
	put(t, s, "a", strings.Repeat("1", 10000))
	must(t, s.Flush())
	must(t, s.Close())
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	must(t, err)
	if len(tables) != 1 {
		t.Fatalf("tables %v", tables)
	}
	raw, err := os.ReadFile(tables[0])
	must(t, err)
	raw[20] ^= 0xff
	must(t, os.WriteFile(tables[0], raw, 0o600))
	s = openPebble(t, dir)
	defer s.Close()
	v := s.View()
	defer v.Close()
	if _, _, err := v.Get([]byte("a")); !errors.Is(err, cfs.Corrupt) || !strings.Contains(err.Error(), tables[0]) || !strings.Contains(err.Error(), "block 0/") {
		t.Errorf("get from a damaged table: %v", err)
	}
	if err := v.Scan(nil, nil, func(_, _ []byte) (bool, error) { return true, nil }); !errors.Is(err, cfs.Corrupt) {
		t.Errorf("scan of a damaged table: %v", err)
	}
}

func TestPebbleMissingTable(t *testing.T) {
	dir := t.TempDir()
	s := openPebble(t, dir)
	put(t, s, "a", "1")
	must(t, s.Flush())
	must(t, s.Close())
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	must(t, err)
	must(t, os.Remove(tables[0]))
	if s, err = OpenPebble(dir, Options{}); err == nil {
		s.Close()
		t.Fatal("opened a store that lacks a table")
	}
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v does not name the directory", err)
	}
}

func FuzzEachPair(f *testing.F) {
	f.Add(AppendPair(AppendPair(nil, []byte("k"), []byte("v")), nil, []byte("x")))
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		err := EachPair(b, func(k, v []byte) error {
			again = AppendPair(again, k, v)
			return nil
		})
		if err == nil && !bytes.Equal(again, b) {
			t.Errorf("pairs of %x are %x", b, again)
		}
		if err != nil && !errors.Is(err, cfs.Corrupt) {
			t.Errorf("error %v is not Corrupt", err)
		}
	})
}
