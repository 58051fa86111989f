// Command cfs-storaged runs one ClaudeFS server, the same as `cfs server`, and
// checks a device that no server has open.
package main

import (
	"os"

	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/cmd/internal/servercmd"
)

func main() {
	root := servercmd.New("cfs-storaged")
	root.AddCommand(fsckCommand())
	os.Exit(cli.Main(root))
}
