package client

import (
	"flag"
	"fmt"
	"runtime"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/raftmeta/fsm"
)

var walkFiles = flag.Int("walk.files", 50_000, "files of the tree that TestAllocatedByAWalk walks")

const (
	// walkDir is the files of each directory of the tree.
	walkDir = 1000
	// maxFootprint bounds what a client may keep of a tree, in bytes: the caches' bounds are numbers of entries, some
	// 500 bytes each where all are full.
	maxFootprint = 128 << 20
	// maxOpenFootprint bounds what a file that is open may cost, in bytes.
	maxOpenFootprint = 8 << 10
)

// noRace skips what runs without the race detector, with the tests that count allocations.
func noRace(t *testing.T) {
	t.Helper()
	if invariants.Race {
		t.Skip("the race detector has memory of its own")
	}
}

// heap is the bytes that are alive.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// plant makes n files in directories of walkDir.
func plant(b *bed, n int) {
	for d := range (n + walkDir - 1) / walkDir {
		dir := b.apply(b.sess, cfs.Op{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: fmt.Sprintf("d%04d", d), Attr: cfs.Attr{Mode: cfs.ModeDir | 0o755}}).Results[0].Attr.Ino
		for first := 0; first < walkDir; first += fsm.MaxOps {
			var ops []cfs.Op
			for i := first; i < min(first+fsm.MaxOps, walkDir); i++ {
				ops = append(ops, cfs.Op{Kind: cfs.OpCreate, Dir: dir, Name: fmt.Sprintf("file-%06d", i), Attr: cfs.Attr{Mode: cfs.ModeRegular | 0o644}})
			}
			b.apply(b.sess, ops...)
		}
	}
}

// walk visits every name below the root and looks at its attributes.
func walk(t *testing.T, c *Client, visit func(cfs.Attr)) (files int) {
	t.Helper()
	dirs := []cfs.Ino{cfs.RootIno}
	for len(dirs) > 0 {
		d, err := c.OpenDir(t.Context(), dirs[0])
		if err != nil {
			t.Fatal(err)
		}
		here := dirs[0]
		dirs = dirs[1:]
		for pos := uint64(0); ; pos++ {
			e, more, err := d.At(t.Context(), pos)
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				break
			}
			a, err := c.Lookup(t.Context(), here, e.Name)
			if err != nil {
				t.Fatal(err)
			}
			if a.IsDir() {
				dirs = append(dirs, a.Ino)
				continue
			}
			files++
			visit(a)
		}
	}
	return files
}

// A client that walks a tree keeps within its bounds, however large that is.
func TestAllocatedByAWalk(t *testing.T) {
	noRace(t)
	b := newBed(t, 3)
	plant(b, *walkFiles)
	c := b.mount(t)
	before := heap()
	if n := walk(t, c, func(cfs.Attr) {}); n != *walkFiles {
		t.Errorf("%d files, want %d", n, *walkFiles)
	}
	if grown := heap() - before; grown > maxFootprint {
		t.Errorf("a walk of %d files left %d bytes, more than %d", *walkFiles, grown, maxFootprint)
	} else {
		t.Logf("a walk of %d files left %d bytes", *walkFiles, grown)
	}
	for i := range c.cache.shard {
		s := &c.cache.shard[i]
		s.mu.Lock()
		for what, n := range map[string][2]int{
			"attributes": {len(s.attrs.young) + len(s.attrs.old), 2 * maxCached}, "names": {len(s.names.young) + len(s.names.old), 2 * maxCached},
			"values": {len(s.values.young) + len(s.values.old), 2 * maxValues}, "listings": {len(s.listings), maxListings},
		} {
			if n[0] > n[1] {
				t.Errorf("a shard of the cache has %d %s, more than %d", n[0], what, n[1])
			}
		}
		s.mu.Unlock()
	}
	if n := c.cache.names.Load(); n > maxListedAll {
		t.Errorf("listings have %d names, more than %d", n, maxListedAll)
	}
	if n := len(c.inodes.all()); n != 0 {
		t.Errorf("%d inodes are in the table, and none is open", n)
	}
}

// So does one that has many files open, and it forgets them when they are closed.
func TestAllocatedByOpenFiles(t *testing.T) {
	const open = 10_000
	noRace(t)
	b := newBed(t, 3)
	plant(b, open)
	c := b.mount(t)
	var inos []cfs.Ino
	walk(t, c, func(a cfs.Attr) { inos = append(inos, a.Ino) })
	before := heap()
	files := make([]*File, 0, len(inos))
	for _, i := range inos {
		f, err := c.Open(t.Context(), i, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if n := c.openCount(); n != open {
		t.Errorf("%d inodes are open, want %d", n, open)
	}
	if grown := heap() - before; grown > open*maxOpenFootprint {
		t.Errorf("%d open files take %d bytes, more than %d each", open, grown, maxOpenFootprint)
	} else {
		t.Logf("%d open files take %d bytes", open, grown)
	}
	for _, f := range files {
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.inodes.all()); n != 0 || c.openCount() != 0 {
		t.Errorf("%d inodes are in the table after all were closed", n)
	}
}
