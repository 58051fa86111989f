// Command cfs is ClaudeFS on the command line: servers, mounts, administration
// and the demo.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/cmd/internal/servercmd"
)

func main() {
	root := &cobra.Command{Use: "cfs", Short: "a distributed POSIX file system for clusters of NVMe machines"}
	root.AddCommand(servercmd.New("server"), newMountCmd(), newUmountCmd(), newAdminCmd(), demoCommand())
	os.Exit(cli.Main(root))
}
