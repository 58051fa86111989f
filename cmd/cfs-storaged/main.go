// Command cfs-storaged runs one ClaudeFS server: the same as `cfs server`.
package main

import (
	"os"

	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/cmd/internal/servercmd"
)

func main() { os.Exit(cli.Main(servercmd.New("cfs-storaged"))) }
