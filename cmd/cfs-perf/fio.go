package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/perf"
)

func fioCommand() *cobra.Command {
	var f benchFlags
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "fio",
		Short: "the disk's own limit, by fio",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.out.measure(cmd, func(p perf.Progress) (*perf.Report, error) {
				return perf.BenchFio(cmd.Context(), perf.FioConfig{
					Disk: f.disk(), ReadOnly: readOnly, Runtime: f.runtime, Rounds: f.rounds, Seed: f.seed, Progress: p,
				})
			})
		},
	}
	f.add(cmd.Flags(), 3)
	f.addDevice(cmd, 1<<30, time.Second)
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "only the jobs that read")
	return cmd
}
