package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/perf"
)

func benchECCommand() *cobra.Command {
	var f benchFlags
	cfg := perf.ECConfig{WorkingSetBytes: 256 << 20}
	cmd := &cobra.Command{
		Use:   "ec",
		Short: "the arithmetic of full 4+2 stripes on one goroutine over cold memory",
		Long: `Encodes stripes and sums the blocks of all six shards, and reconstructs one and two
data shards, each stripe in memory that the caches have forgotten. Rates are those
of the stripes' data.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Runtime, cfg.Rounds, cfg.Seed = perf.Duration(f.runtime), f.rounds, f.seed
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				cfg.Progress = p
				return perf.BenchEC(cmd.Context(), cfg)
			})
		},
	}
	f.add(cmd.Flags(), 5)
	fl := cmd.Flags()
	fl.Var(&cfg.WorkingSetBytes, "working-set", "data that is gone through again and again")
	fl.DurationVar(&f.runtime, "runtime", time.Second, "of each round")
	return cmd
}

func benchFileCommand() *cobra.Command {
	var f benchFlags
	cfg := perf.FileConfig{FileBytes: 1 << 30}
	var settle time.Duration
	cmd := &cobra.Command{
		Use:   "file",
		Short: "files in a mounted cluster, beside fio on the disk below it",
		Long: `Starts a cluster of three nodes of two devices below --dir, whose devices are written
once in full, mounts and measures it, breaks it where a shape says so, and removes it
(needs root); or with --mount measures a cluster that is mounted. The shapes:

  write      in order, 1 MiB each, fsync at the end
  read       in order, cold
  degraded   the same with a node killed
  randread   4 KiB, direct, 16 at a time
  slow       4 KiB, direct, one at a time, a node answering 200 ms late
  syncwrite  4 KiB at random, each with its fsync
  overwrite  as many bytes as the file at random, 4 KiB each: what devices hold once
             they are at rest, and the file read back
  rebuild    a device is lost in a cluster of three devices a node: what the rebuild
             moves when nothing else is done, and what a limited one takes from a writer`,
		Example: `  cfs-perf bench file
  cfs-perf bench file --shape write,read --file 256MiB --rounds 5
  cfs-perf bench file --mount /mnt/claudefs --disk /var/lib/cfs --server 10.0.0.1:9400`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Runtime, cfg.Settle = perf.Duration(f.runtime), perf.Duration(settle)
			cfg.Rounds, cfg.Seed = f.rounds, f.seed
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				cfg.Progress = p
				return perf.BenchFile(cmd.Context(), cfg)
			})
		},
	}
	f.add(cmd.Flags(), 3)
	fl := cmd.Flags()
	fl.StringVar(&cfg.Cfs, "cfs", besideSelf("cfs"), "the program that the cluster is started with")
	fl.StringVar(&cfg.Dir, "dir", defaultDir(), "where the cluster is made, and removed at the end: the disk that counts")
	fl.StringVar(&cfg.Mount, "mount", "", "a directory of a mounted cluster, to be measured instead")
	fl.StringVar(&cfg.Disk, "disk", "", "with --mount: a directory on the disk of its devices, for fio (default: --dir)")
	fl.StringVar(&cfg.Server, "server", "", "with --mount: HOST:PORT of one of its servers, for overwrite")
	fl.StringSliceVar(&cfg.Shapes, "shape", nil, "of "+strings.Join(perf.ShapeNames(), ", ")+" (default: all that can be)")
	fl.Var(&cfg.FileBytes, "file", "bytes of each file that a rate is taken of")
	fl.Var(&cfg.OverwriteBytes, "overwrite", "bytes of the file that is overwritten; 0 for those of --file")
	fl.Var(&cfg.DeviceBytes, "device-size", "bytes of each device; 0 for what is needed")
	fl.DurationVar(&f.runtime, "runtime", 2*time.Second, "of each round of small operations")
	fl.DurationVar(&settle, "settle", 5*time.Minute, "how long devices may take to come to rest")
	return cmd
}
