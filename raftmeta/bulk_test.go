package raftmeta

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
)

// Voters start from a state that was made in bulk, and it survives another start of all.
func TestBulkLoad(t *testing.T) {
	dir := t.TempDir()
	var dirs []string
	for i := range 3 {
		dirs = append(dirs, filepath.Join(dir, fmt.Sprint(i), "raft"))
	}
	tree := fsm.BulkTree{Dirs: 4, PerDir: 3 * bulkRows / 4, Listed: 10, List: "list",
		Dir: func(i int) string { return fmt.Sprintf("d%d", i) }, File: func(i int) string { return fmt.Sprintf("f%06d", i) }}
	if err := BulkLoad(dirs, "test", tree); err != nil {
		t.Fatal(err)
	}
	if err := BulkLoad(dirs[2:], "test", tree); !errors.Is(err, cfs.Exists) {
		t.Errorf("over another state: %v", err)
	}
	c := newCluster(t, 3, func(cfg *Config) { cfg.Dir = dirs[cfg.NodeID-1] })
	c.mustFind("d3")
	c.mustCreate(c.session(), 1, "new")
	c.converge()
	for _, m := range c.members {
		c.close(m)
	}
	for _, m := range c.members {
		c.start(m, nil)
	}
	c.mustFind("new")
	a, err := c.query(&cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: "list"})
	if err != nil || a.Kind != cfs.KindOK {
		t.Fatal(a, err)
	}
	a, err = c.query(&cfs.Query{Kind: cfs.QueryReadDir, Dir: a.Attr.Ino})
	if err != nil || len(a.Entries) != 10 {
		t.Errorf("%d entries, %v", len(a.Entries), err)
	}
}
