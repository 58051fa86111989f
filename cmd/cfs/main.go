// Command cfs is ClaudeFS on the command line: servers, mounts, administration
// and the demo.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/cmd/internal/servercmd"
)

// programName is what this program is called unless it is a helper of mount(8).
const programName = "cfs"

func main() {
	if helper := newHelper(os.Args[0]); helper != nil {
		os.Exit(helperStatus(cli.Main(helper)))
	}
	root := &cobra.Command{Use: programName, Short: "a distributed POSIX file system for clusters of NVMe machines"}
	root.AddCommand(servercmd.New("server"), newMountCmd(), newUmountCmd(), newAdminCmd(), demoCommand())
	os.Exit(cli.Main(root))
}
