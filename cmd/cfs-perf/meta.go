package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/perf"
	"github.com/claudefs/claudefs/raftmeta"
	"github.com/claudefs/claudefs/raftmeta/fsm"
)

func benchMetaCommand() *cobra.Command {
	var f benchFlags
	cfg := perf.MetaConfig{Load: loadBulk}
	cmd := &cobra.Command{
		Use:   "meta",
		Short: "the metadata service: three voters as processes, and the client library",
		Long: `Starts three servers below --dir and measures them through the client library, without
a mount, beside one log on the same disk, and removes them. Their fdatasyncs are counted
by the kernel where that can be had (needs root). The shapes:

  create     durable creates by 1, 8 and 64 clients, each in a directory of its own
  stat       attributes from the client's cache
  namespace  a namespace that was loaded in bulk: start, memory of a server, lookups over
             the wire beside those in an empty one, and the listing of a large directory
  failover   the leader is killed while 8 clients create`,
		Example: `  cfs-perf bench meta
  cfs-perf bench meta --shape create --rounds 10 --format benchfmt
  cfs-perf bench meta --shape namespace --inodes 10000000 --entries 1000000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Runtime, cfg.Rounds, cfg.Seed = perf.Duration(f.runtime), f.rounds, f.seed
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				cfg.Progress = p
				return perf.BenchMeta(cmd.Context(), cfg)
			})
		},
	}
	f.add(cmd.Flags(), 3)
	fl := cmd.Flags()
	fl.StringVar(&cfg.Cfs, "cfs", besideSelf("cfs"), "the program that servers are started with")
	fl.StringVar(&cfg.Dir, "dir", defaultDir(), "where the cluster is made, and removed at the end: the disk that counts")
	fl.StringSliceVar(&cfg.Shapes, "shape", nil, "of "+strings.Join(perf.MetaShapeNames(), ", ")+" (default: all)")
	fl.IntVar(&cfg.Inodes, "inodes", 200_000, "inodes of the namespace that is loaded")
	fl.IntVar(&cfg.Entries, "entries", 100_000, "of them in the directory that is listed")
	fl.DurationVar(&f.runtime, "runtime", 2*time.Second, "of each round of small operations")
	return cmd
}

// loadBulk makes the voters' state.
func loadBulk(_ context.Context, b perf.BulkNamespace) error {
	if len(b.Dirs) != b.Voters {
		return cfs.Errorf("load a namespace", cfs.Usage, "%d directories for %d voters", len(b.Dirs), b.Voters)
	}
	return raftmeta.BulkLoad(b.Dirs, b.ClusterID, fsm.BulkTree{
		Dirs: b.Files / perf.BulkDirFiles, PerDir: perf.BulkDirFiles, Listed: b.Listed,
		Dir: perf.BulkDir, File: perf.BulkFile, List: perf.BulkList,
	})
}
