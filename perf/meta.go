package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// The shapes of load of a MetaConfig.
const (
	ShapeCreate    = "create"    // durable creates by 1, 8 and 64 clients, beside one log on the disk
	ShapeStat      = "stat"      // attributes from a client's cache
	ShapeNamespace = "namespace" // start, memory, lookups and a large listing of a namespace that was loaded in bulk
	ShapeFailover  = "failover"  // the leader is killed
)

// MetaShapeNames are all of them, in the order in which they take their turns.
func MetaShapeNames() []string {
	return []string{ShapeCreate, ShapeStat, ShapeNamespace, ShapeFailover}
}

const (
	// maxInodes bounds a namespace that is loaded in bulk, its listing included.
	maxInodes = 100_000_000
	// leastInodes is the least that says something.
	leastInodes = 1000
)

// BulkNamespace is a namespace that is made as the voters' state, without commands:
// Files regular files, BulkDirFiles in each of the directories that BulkDir names, and
// the directory BulkList with Listed files.
type BulkNamespace struct {
	ClusterID string
	Voters    int
	Dirs      []string // one for each voter: what raftmeta.Config.Dir is, without a state
	Files     int
	Listed    int
}

// Names in a BulkNamespace.
const (
	BulkDirFiles = 1000
	BulkList     = "list"
)

// BulkDir is the name of the i-th directory, in the root.
func BulkDir(i int) string { return fmt.Sprintf("d%06d", i) }

// BulkFile is the name of the i-th file of a directory.
func BulkFile(i int) string { return fmt.Sprintf("f%07d", i) }

// MetaConfig is a bench of the metadata service: three voters as processes on this
// machine, and the client library in this one, without a mount.
type MetaConfig struct {
	// Cfs is the path of cfs, by which servers are started below Dir, on the disk that counts.
	Cfs string `json:"-"`
	Dir string `json:"-"`
	// Load makes a namespace in bulk. It is the caller's, because it writes the
	// replicas' state itself.
	Load func(ctx context.Context, b BulkNamespace) error `json:"-"`

	Shapes  []string `json:"shapes"`  // of MetaShapeNames; empty for all
	Inodes  int      `json:"inodes"`  // of ShapeNamespace, the large listing included
	Entries int      `json:"entries"` // of the large listing
	Runtime Duration `json:"runtime"` // of each round of small operations
	Rounds  int      `json:"rounds"`
	Seed    uint64   `json:"seed"`

	Progress Progress `json:"-"`
}

func (c *MetaConfig) has(shape string) bool {
	return len(c.Shapes) == 0 || slices.Contains(c.Shapes, shape)
}

// check refuses what cannot be run. The kind is Usage.
func (c *MetaConfig) check() error {
	for _, name := range c.Shapes {
		if !slices.Contains(MetaShapeNames(), name) {
			return cfs.Errorf("--shape", cfs.Usage, "%q is none of %s", name, strings.Join(MetaShapeNames(), ", "))
		}
	}
	if c.has(ShapeNamespace) && (c.Entries < leastInodes || c.Inodes < c.Entries+leastInodes || c.Inodes > maxInodes) {
		return cfs.Errorf("--inodes, --entries", cfs.Usage, "%d, %d of them in one directory: want at least %d in it and besides, at most %d",
			c.Inodes, c.Entries, leastInodes, maxInodes)
	}
	if c.Runtime <= 0 {
		return cfs.Errorf("--runtime", cfs.Usage, "want a positive duration")
	}
	return checkRounds(c.Rounds)
}

// BenchMeta measures the metadata service. Rows have the labels op and, where
// it applies, depth (clients) and records (inodes). It fails when a voter takes
// part in commits without syncing its log, or an operation meets an error while
// the leader is killed.
func BenchMeta(ctx context.Context, cfg MetaConfig) (rep *Report, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	b := &metaBench{cfg: &cfg}
	if b.dir, err = os.MkdirTemp(cfg.Dir, "cfs-perf-"); err != nil {
		return nil, cfs.E("make a directory on the disk", cfs.KindOf(err), err)
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return nil, cfs.E("find "+b.dir, cfs.KindOf(err), err)
	}
	defer func() {
		if cerr := b.close(); cerr != nil {
			rep, err = nil, errors.Join(err, cerr)
		}
	}()
	b.rep = newReport("meta", fmt.Sprintf("%d voters as processes over TCP, logs synced, in %s", voters, cfg.Dir))
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	return b.rep.finish(), nil
}

// metaBench is a MetaConfig at work.
type metaBench struct {
	cfg     *MetaConfig
	rep     *Report
	dir     string
	cluster *voterSet // that starts empty
	bulk    *voterSet // that was loaded; runs during the turns of ShapeNamespace alone
	raw     *rawLog
	users   users
	bulkFew []cfs.Ino // its directories
}

func (b *metaBench) close() error {
	err := b.users.close()
	for _, v := range []*voterSet{b.cluster, b.bulk} {
		if v != nil {
			err = errors.Join(err, v.stop())
		}
	}
	if b.raw != nil {
		err = errors.Join(err, b.raw.close())
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// run prepares and measures every shape.
func (b *metaBench) run(ctx context.Context) error {
	b.cfg.Progress.say("starting %d servers", voters)
	var err error
	if b.cluster, err = newVoters(b.cfg.Cfs, filepath.Join(b.dir, "empty")); err != nil {
		return err
	}
	b.cluster.notes = b.rep.note
	if err := b.cluster.startAll(ctx); err != nil {
		return err
	}
	b.users.servers = b.cluster.addrs
	var turns []turn
	for _, s := range []struct {
		name    string
		prepare func(context.Context) ([]turn, error)
	}{
		{ShapeCreate, b.createTurns}, {ShapeStat, b.statTurns},
		{ShapeNamespace, b.namespaceTurns}, {ShapeFailover, b.failoverTurns},
	} {
		if !b.cfg.has(s.name) {
			continue
		}
		more, err := s.prepare(ctx)
		if err != nil {
			return cfs.E(s.name, cfs.KindOf(err), err)
		}
		turns = append(turns, more...)
	}
	return interleave(ctx, b.cfg.Rounds, turns, b.cfg.Progress)
}
