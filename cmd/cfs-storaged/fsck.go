package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

func fsckCommand() *cobra.Command {
	var asJSON, quick bool
	var most int
	cmd := &cobra.Command{
		Use:   "fsck DEVICE",
		Short: "check a device that no server has open; nothing on it is changed",
		Long: `Reads a whole device, finds its records by their own headers, compares each with
its checksums, and holds them against everything else that the device says: its
superblocks, the state, and the headers, bitmaps and footers of its segments.
DEVICE is a file, a block device or an NVMe character device (/dev/ngXnY).

What a crash leaves is counted and no problem: the next start knows it. A damaged
copy or slot whose other one is whole is a problem that a power cut can leave; it
is marked so. Exit status: 0 clean, 1 problems or a failure, 2 a wrong command line.`,
		Example: "  cfs-storaged fsck /dev/nvme0n1\n  cfs-storaged fsck --quick --json /var/lib/cfs/disk0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opt := nvme.CheckOptions{Quick: quick, MaxProblems: most}
			if most < 1 {
				return cli.Usage("--problems", "%d, want 1 or more", most)
			}
			progress := cli.NewProgress(cmd.ErrOrStderr())
			opt.Progress = func(done, all int) {
				progress.Show("%d of %d segments, %s", done, all, cli.Percent(uint64(done), uint64(all)))
			}
			report, err := fsck(cmd.Context(), args[0], opt)
			progress.Clear()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				err = cli.PrintJSON(out, report)
			} else {
				err = printReport(out, report)
			}
			switch {
			case err != nil:
			case !report.Clean():
				err = cfs.Errorf(report.Path, cfs.Corrupt, "%d problems", report.Found)
			case report.StartError != "":
				err = cfs.Errorf(report.Path, cfs.Invalid, "a start would fail: %s", report.StartError)
			}
			return err
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&asJSON, "json", false, "print the whole report as JSON, each segment included")
	fl.BoolVar(&quick, "quick", false, "read no payloads, but for the last ones that a crash may have torn")
	fl.IntVar(&most, "problems", 100, "how many problems are listed; all are counted")
	return cmd
}

// fsck opens a device and checks it.
func fsck(ctx context.Context, path string, opt nvme.CheckOptions) (report *nvme.CheckReport, err error) {
	var cfg iopath.RingConfig
	if st, err := os.Stat(path); err == nil {
		cfg.Commands = st.Mode()&os.ModeCharDevice != 0
	}
	ring, err := iopath.NewRing(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ring.Close()) }()
	dev, err := nvme.OpenDevice(path, ring)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	return nvme.Check(ctx, dev, opt)
}

// printReport prints what a person wants to know.
func printReport(out io.Writer, r *nvme.CheckReport) error {
	fmt.Fprintf(out, "device %s of cluster %s, formatting %s: %s in %d segments of %s\n", r.Device, r.ClusterID, r.UUID,
		cli.Size(uint64(r.SizeBytes)), len(r.Segments), cli.Size(uint64(r.SegmentBytes)))
	fmt.Fprintf(out, "position in the delete feed: %d\n\n", r.FeedPosition)
	segments := cli.NewTable(out, "SEGMENTS", "NUMBER", "RECORDS", "LIVE", "LIVE BYTES")
	for _, state := range []nvme.SegmentState{nvme.SegmentUnused, nvme.SegmentFree, nvme.SegmentOpen, nvme.SegmentSealed} {
		var sum nvme.SegmentReport
		n := 0
		for _, s := range r.Segments {
			if s.State == state {
				n, sum.Records, sum.Live, sum.LiveBytes = n+1, sum.Records+s.Records, sum.Live+s.Live, sum.LiveBytes+s.LiveBytes
			}
		}
		segments.Row(state, n, sum.Records, sum.Live, cli.Size(uint64(sum.LiveBytes)))
	}
	segments.Row("all", len(r.Segments), r.Records, r.Live, cli.Size(uint64(r.LiveBytes)))
	if err := segments.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\npayloads compared with their checksums: %s\n", cli.Size(uint64(r.VerifiedBytes)))
	if r.StartError != "" {
		fmt.Fprintf(out, "a start would fail: %s\n", r.StartError)
	} else {
		fmt.Fprintf(out, "a start would find: %d records\n", r.StartRecords)
	}
	printCrash(out, r)
	return printProblems(out, r)
}

// printCrash prints what a crash has left.
func printCrash(out io.Writer, r *nvme.CheckReport) {
	for _, c := range []struct {
		n    int
		what string
	}{
		{r.Torn, "records torn before they were acknowledged"},
		{r.TornHeaders, "batch headers torn before their records were acknowledged"},
		{r.Gaps, "places between batches where one was lost before it was acknowledged"},
		{r.Copies, "records in two places: their move was interrupted, or they were replaced"},
		{r.HalfHeaders, "segments whose header copies differ: their start or end was interrupted"},
		{r.Omitted, "records that only a footer knows to be deleted, or to have failed"},
	} {
		if c.n > 0 {
			fmt.Fprintf(out, "no problem: %d %s\n", c.n, c.what)
		}
	}
}

// printProblems prints the problems.
func printProblems(out io.Writer, r *nvme.CheckReport) error {
	if r.Clean() {
		_, err := fmt.Fprintln(out, "\nno problems")
		return err
	}
	fmt.Fprintf(out, "\n%d problems, of which a power cut can have left %d\n", r.Found, r.Found-r.Unexplained)
	table := cli.NewTable(out, "PROBLEM", "SEGMENT", "OFFSET", "KEY", "WHAT")
	for _, p := range r.Problems {
		segment, key, text := fmt.Sprint(p.Segment), p.Key, p.Text
		if p.Segment < 0 {
			segment = "-"
		}
		if key == "" {
			key = "-"
		}
		if p.Crash {
			text += " (a power cut can leave this)"
		}
		table.Row(p.Kind, segment, p.Offset, key, text)
	}
	if rest := r.Found - len(r.Problems); rest > 0 {
		table.Row("...", "", "", "", fmt.Sprintf("and %d more", rest))
	}
	return table.Flush()
}
