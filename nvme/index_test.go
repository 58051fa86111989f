package nvme

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"unsafe"

	"github.com/claudefs/claudefs/cfs"
)

// TestIndexMemory holds the stated cost of a record.
func TestIndexMemory(t *testing.T) {
	if n := unsafe.Sizeof(entry{}); n != 32 {
		t.Errorf("an entry has %d bytes", n)
	}
	const n = 200000
	for name, key := range map[string]func(i int) Key{
		"ascending": func(i int) Key { return Key{Stripe: cfs.StripeID{Session: 1, Counter: uint64(i)}} },
		"random":    func(int) Key { return Key{Stripe: cfs.StripeID{Session: 1, Counter: rand.Uint64()}} },
	} {
		before := heapBytes()
		x := newIndex()
		for i := range n {
			rec := Record{Key: key(i), PG: cfs.PGID(i % 64), Epoch: 3, Len: 4096}
			x.put(&rec, i%1000, 2, 3)
		}
		each := float64(heapBytes()-before) / n
		t.Logf("%s: %.0f bytes a record", name, each)
		if each > 70 {
			t.Errorf("%s: %.0f bytes a record, want at most 70", name, each)
		}
		runtime.KeepAlive(x)
	}
}

func heapBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestCRCCacheBound(t *testing.T) {
	const bound = 10000
	c := newCRCCache(bound)
	for i := range uint64(1000) {
		c.put(i, make([]byte, 64))
		if c.get(5) == nil && i >= 5 {
			t.Fatalf("an entry that is asked for all the time was dropped at %d", i)
		}
		if n := (len(c.young) + len(c.old)) * (64 + cacheEntryBytes); n > bound {
			t.Fatalf("%d bytes in a cache of %d", n, bound)
		}
	}
	if c.get(0) != nil {
		t.Error("nothing was dropped")
	}
	c.delete(5)
	if c.get(5) != nil {
		t.Error("deleted, and there")
	}
	c.put(7, make([]byte, bound))
	if c.get(7) != nil {
		t.Error("an entry above the bound was kept")
	}
}
