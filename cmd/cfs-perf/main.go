// Command cfs-perf measures the mechanisms that ClaudeFS stands on, beside fio on
// the same disk, and holds the results against targets.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cmd/internal/cli"
)

func main() {
	root := &cobra.Command{
		Use:   "cfs-perf",
		Short: "measure the I/O engines, the log on a device and files in a cluster, beside fio",
		Long: `Measures beside fio on the same disk, in turns, and prints medians over the rounds.
A ratio means something on any machine, a rate on this one.`,
	}
	root.AddCommand(benchCommand(), fioCommand(), gateCommand(), fillCommand())
	os.Exit(cli.Main(root))
}
