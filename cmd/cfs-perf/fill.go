package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/perf"
)

// fillCommand fills a log and ends without closing it: what `bench open --unclean`
// and the gate run in a process of its own.
func fillCommand() *cobra.Command {
	cfg := perf.FillConfig{RecordBytes: 4 << 10}
	cmd := &cobra.Command{
		Use:    "fill",
		Short:  "put records into a log and die, with more on their way",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Abandon = func() { os.Exit(cli.ExitOK) }
			return perf.Fill(cmd.Context(), cfg)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&cfg.Path, "device", "", "a file or block device")
	fl.BoolVar(&cfg.Format, "format", false, "format it first, whatever it holds")
	fl.Var(&cfg.SegmentBytes, "segment-size", "bytes of a segment; 0 for the log's default")
	fl.Var(&cfg.RecordBytes, "bs", "bytes of each record")
	fl.Uint64Var(&cfg.First, "first", 1, "number of the first record")
	fl.Uint64Var(&cfg.Records, "records", 0, "records")
	// They fail only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("device")
	_ = cmd.MarkFlagRequired("records")
	return cmd
}

// fillAndDie runs this program's fill.
func fillAndDie(ctx context.Context, cfg perf.FillConfig) error {
	op := "fill " + cfg.Path + " in a process of its own"
	self, err := os.Executable()
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	cmd := exec.CommandContext(ctx, self, "fill", "--device", cfg.Path, fmt.Sprintf("--format=%t", cfg.Format),
		"--segment-size", cfg.SegmentBytes.String(), "--bs", cfg.RecordBytes.String(),
		"--first", fmt.Sprint(cfg.First), "--records", fmt.Sprint(cfg.Records))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return cfs.Errorf(op, cfs.IO, "%w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}
