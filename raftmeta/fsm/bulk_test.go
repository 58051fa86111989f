package fsm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func bulkTree() BulkTree {
	return BulkTree{Dirs: 3, PerDir: 5, Listed: 40, List: "list",
		Dir: func(i int) string { return fmt.Sprintf("d%02d", i) }, File: func(i int) string { return fmt.Sprintf("f%02d", i) }}
}

// A state made in bulk is one that commands could have made, and goes on as such.
func TestBulkLoad(t *testing.T) {
	h := newHarness(t)
	if err := BulkLoad(h.kv, bulkTree(), h.kv.Set); err != nil {
		t.Fatal(err)
	}
	if found := checkState(h.kv); found != "" {
		t.Fatal(found)
	}
	h.index = bulkIndex
	s := h.open("x")
	h.create(s, "new")
	if found := checkState(h.kv); found != "" {
		t.Fatal(found)
	}
	a, err := Read(h.kv, &cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: "list"})
	if err != nil || a.Kind != cfs.KindOK {
		t.Fatal(a, err)
	}
	a, err = Read(h.kv, &cfs.Query{Kind: cfs.QueryReadDir, Dir: a.Attr.Ino})
	if err != nil || len(a.Entries) != 40 || a.Entries[39].Name != "f39" {
		t.Errorf("%d entries, %v", len(a.Entries), err)
	}
	if err := BulkLoad(h.kv, bulkTree(), h.kv.Set); !errors.Is(err, cfs.Conflict) {
		t.Errorf("over another state: %v", err)
	}
}
