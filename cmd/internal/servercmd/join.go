package servercmd

import (
	"github.com/spf13/cobra"
)

// newJoin makes `server join`.
func newJoin(parent string) *cobra.Command {
	f := newFlags()
	cmd := &cobra.Command{
		Use:   "join",
		Short: "run one more server of a cluster that is there",
		Long: `Runs a server with devices alone, and no voice in the namespace, until SIGINT or SIGTERM.
"cfs admin voter add" makes it a voter.

The cluster is asked through --seed what it is called and who is in it: the node id must be
free, or that of a server that is gone and whose devices these are. The data directory remembers
all of it, and the certificate that the token is for; the next start can be the same command, or "` + parent + ` --data-dir DIR" alone.`,
		Example: "  cfs server join --seed 10.0.0.1:9400 --token TOKEN --node-id 4 --listen 10.0.0.4:9400 --data-dir /var/lib/cfs --device /dev/nvme0n1",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.common(cmd)
	fl := cmd.Flags()
	fl.StringSliceVar(&f.cfg.Join, "seed", nil, "HOST:PORT of servers of the cluster, comma separated; one that answers is enough")
	fl.Uint16Var(&f.nodeID, "node-id", 0, "this node's number: one that no other server has")
	for _, name := range []string{"seed", "node-id", "listen", "data-dir", "device"} {
		// It fails only for a name that is not a flag.
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}
