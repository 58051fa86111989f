package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/perf"
)

// benchFlags are what the benches share.
type benchFlags struct {
	out     output
	device  string
	size    units.Bytes
	force   bool
	runtime time.Duration
	rounds  int
	seed    uint64
}

// add adds the flags of all benches; rounds is the default.
func (f *benchFlags) add(fl *pflag.FlagSet, rounds int) {
	f.out.add(fl)
	f.out.addProfile(fl)
	fl.IntVar(&f.rounds, "rounds", rounds, "how often each is measured, in turns; the median counts")
	fl.Uint64Var(&f.seed, "seed", 1, "of everything random")
}

// addDevice adds those of a bench on a file or block device.
func (f *benchFlags) addDevice(cmd *cobra.Command, size units.Bytes, runtime time.Duration) {
	fl := cmd.Flags()
	f.size = size
	fl.StringVar(&f.device, "device", "", "a block device, a file, or a file to be made, written once in full and removed at the end")
	fl.Var(&f.size, "size", "how much of it is used, at most")
	fl.BoolVar(&f.force, "force", false, "write to what exists: what it holds is lost")
	fl.DurationVar(&f.runtime, "runtime", runtime, "of each round")
	// It fails only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("device")
}

func (f *benchFlags) disk() perf.DiskConfig {
	return perf.DiskConfig{Path: f.device, SizeBytes: int64(f.size), Force: f.force}
}

func benchCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "measure one mechanism"}
	cmd.AddCommand(benchIOCommand(), benchLogCommand(), benchOpenCommand(), benchCleanCommand(), benchECCommand(), benchFileCommand(), benchMetaCommand())
	return cmd
}

func benchIOCommand() *cobra.Command {
	var f benchFlags
	cfg := perf.IOConfig{BlockBytes: 4 << 10}
	cmd := &cobra.Command{
		Use:   "io",
		Short: "the same job through each I/O engine and through fio",
		Example: `  cfs-perf bench io --device /var/tmp/perf.dat --depth 1,32,128
  cfs-perf bench io --device /dev/nvme1n1 --rw write --bs 1MiB --depth 8 --force --format benchfmt | benchstat -col /engine -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Disk, cfg.Runtime, cfg.Rounds, cfg.Seed = f.disk(), perf.Duration(f.runtime), f.rounds, f.seed
			if len(cfg.Engines) == 0 {
				cfg.Engines = perf.DefaultEngines()
			}
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				cfg.Progress = p
				return perf.BenchIO(cmd.Context(), cfg)
			})
		},
	}
	f.add(cmd.Flags(), 5)
	f.addDevice(cmd, 1<<30, 2*time.Second)
	fl := cmd.Flags()
	fl.StringSliceVar(&cfg.Engines, "engine", nil, "of "+strings.Join(perf.EngineNames(), ", ")+" (default: those that can run here)")
	fl.StringVar(&cfg.RW, "rw", perf.RandRead, "read, write, randread or randwrite")
	fl.Var(&cfg.BlockBytes, "bs", "bytes of each operation")
	fl.IntSliceVar(&cfg.Depths, "depth", []int{32}, "operations in flight; several run one after the other")
	fl.BoolVar(&cfg.Sync, "sync", false, "answer a write when it is durable (O_DSYNC)")
	return cmd
}

func benchLogCommand() *cobra.Command {
	var f benchFlags
	var bs, segment units.Bytes = 256 << 10, 0
	var depths []int
	cmd := &cobra.Command{
		Use:   "log",
		Short: "puts and gets through the log on a device, beside fio",
		Long: `Puts records durably and gets them at random, on a log on the first half of the
device, beside fio's direct write (which is not durable when it is answered) and
random read on the second half. Then puts of 4 KiB from 1 and from 16 goroutines:
their ratio is what the group commit wins. The device's writes and syncs are
counted between the log and the device, and by the kernel on the disk.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := perf.LogConfig{Disk: f.disk(), SegmentBytes: segment, Runtime: perf.Duration(f.runtime), Rounds: f.rounds, Seed: f.seed}
			for _, op := range []string{perf.OpPut, perf.OpGet} {
				for _, depth := range depths {
					cfg.Jobs = append(cfg.Jobs, perf.LogJob{Op: op, BlockBytes: bs, Depth: depth, Fio: true})
				}
			}
			for _, depth := range []int{1, 16} {
				cfg.Jobs = append(cfg.Jobs, perf.LogJob{Op: perf.OpPut, BlockBytes: 4 << 10, Depth: depth})
			}
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				cfg.Progress = p
				return perf.BenchLog(cmd.Context(), cfg)
			})
		},
	}
	f.add(cmd.Flags(), 5)
	f.addDevice(cmd, 4<<30, 2*time.Second)
	fl := cmd.Flags()
	fl.Var(&bs, "bs", "bytes of each record")
	fl.IntSliceVar(&depths, "depth", []int{8}, "goroutines; several take turns")
	fl.Var(&segment, "segment-size", "bytes of a segment; 0 for the log's default")
	return cmd
}

func benchOpenCommand() *cobra.Command {
	var f benchFlags
	cfg := perf.OpenConfig{RecordBytes: 4 << 10}
	cmd := &cobra.Command{
		Use:   "open",
		Short: "the start of a log with many records",
		Long: `Fills a log and measures how long it takes to open it; with --unclean also after
the process that was filling it was ended under load. Fails when a start loses an
acknowledged record.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Disk = perf.DiskConfig{Path: f.device, Force: f.force}
			cfg.Rounds, cfg.Seed, cfg.Kill = f.rounds, f.seed, fillAndDie
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				cfg.Progress = p
				return perf.BenchOpen(cmd.Context(), cfg)
			})
		},
	}
	f.add(cmd.Flags(), 3)
	fl := cmd.Flags()
	fl.StringVar(&f.device, "device", "", "a block device, a file, or a file to be made and removed at the end")
	fl.BoolVar(&f.force, "force", false, "write to what exists: what it holds is lost")
	fl.Uint64Var(&cfg.Records, "records", 1_000_000, "records")
	fl.Var(&cfg.RecordBytes, "bs", "bytes of each record")
	fl.Var(&cfg.SegmentBytes, "segment-size", "bytes of a segment; 0 for the log's default")
	fl.BoolVar(&cfg.Unclean, "unclean", false, "open it after a kill, too")
	// It fails only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("device")
	return cmd
}

func benchCleanCommand() *cobra.Command {
	var f benchFlags
	cfg := perf.CleanConfig{SegmentBytes: 1 << 20, RecordBytes: 4 << 10}
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "what the cleaner writes for each byte that is put",
		Long: `Fills a log, overwrites records until the cleaner's work is steady, then counts
what is written for each byte that is put. Nothing is timed: by default the device is
in memory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Disk = perf.DiskConfig{Path: f.device, Force: f.force}
			cfg.Rounds, cfg.Seed = f.rounds, f.seed
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				cfg.Progress = p
				return perf.BenchClean(cmd.Context(), cfg)
			})
		},
	}
	f.add(cmd.Flags(), 3)
	fl := cmd.Flags()
	fl.StringVar(&f.device, "device", "", "a block device, a file, or a file to be made and removed at the end (default: memory)")
	fl.BoolVar(&f.force, "force", false, "write to what exists: what it holds is lost")
	fl.StringSliceVar(&cfg.Skews, "skew", []string{perf.SkewUniform, perf.SkewHot}, "which records are overwritten: "+perf.SkewNames())
	fl.IntVar(&cfg.Segments, "segments", 200, "segments of the device")
	fl.Var(&cfg.SegmentBytes, "segment-size", "bytes of a segment")
	fl.Var(&cfg.RecordBytes, "bs", "bytes of each record")
	fl.Float64Var(&cfg.Live, "live", 0.8, "part of the segments, less the log's reserve, that live records take")
	fl.Float64Var(&cfg.Warmup, "warmup", 2, "overwritten before the first round, in sizes of the device")
	return cmd
}
