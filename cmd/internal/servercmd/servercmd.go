package servercmd

import (
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/node"
	"github.com/claudefs/claudefs/store"
)

// clockOffsetEnv sets the server's clock off, for tests: a duration.
const clockOffsetEnv = "CLAUDEFS_CLOCK_OFFSET"

// defaultScrubRate is what is read of each device, in bytes per second: 4 TiB in a day and a half.
const defaultScrubRate units.Bytes = 32 << 20

// defaultRestripeRate is what the node that leads reads and writes to restripe files, in
// bytes per second: a gibibyte of files in forty seconds.
const defaultRestripeRate units.Bytes = 64 << 20

// defaultOutAfter leaves time to start a server anew, and for the like.
const defaultOutAfter = 10 * time.Minute

// flags are the command line's values, as given.
type flags struct {
	cfg      node.Config
	nodeID   uint16
	scrub    units.Bytes
	restripe units.Bytes
	logLevel string
	profile  string
	tls      cli.OnOff
}

// New makes the command; use is its name.
func New(use string) *cobra.Command {
	f := newFlags()
	cmd := &cobra.Command{
		Use:   use,
		Short: "run one server: its devices' shards, a replica of the namespace, metrics",
		Long: `Runs one server until SIGINT or SIGTERM.

Node N of a cluster is the N-th of --seed-nodes. Blank devices are formatted;
devices and a data directory that belong to another cluster or node are refused.

A device that was added while the server ran is served after the next start too. One that
was removed is closed when nothing needs it any more; then it can be left out of --device.

More servers join a cluster with "join". What is left out here is taken from the data directory
where that has been used before.`,
		Example: "  " + use + ` --cluster-id lab --node-id 1 --listen 10.0.0.1:9400 --data-dir /var/lib/cfs \
      --device /dev/nvme0n1,/dev/nvme1n1 --seed-nodes 10.0.0.1:9400,10.0.0.2:9400,10.0.0.3:9400`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.common(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.cfg.ClusterID, "cluster-id", "", "the cluster's name: 1 to 63 characters of A-Z a-z 0-9 . _ -")
	fl.Uint16Var(&f.nodeID, "node-id", 0, "this node's number: its place in --seed-nodes, from 1")
	fl.StringSliceVar(&f.cfg.Seeds, "seed-nodes", nil, "HOST:PORT of every voter, in the order of node ids (default: this node alone)")
	fl.StringVar(&f.cfg.BootstrapToken, "bootstrap-token", "", "a long random secret that the seed nodes of a new cluster share, so that node 1 signs certificates for them alone, and they trust no other (default: it signs one for each seed node, whoever comes first)")
	// It fails only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("data-dir")
	cmd.AddCommand(newJoin(use))
	return cmd
}

func newFlags() *flags {
	return &flags{scrub: defaultScrubRate, restripe: defaultRestripeRate, tls: true}
}

// common adds the flags of every server.
func (f *flags) common(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.cfg.Listen, "listen", "", "HOST:PORT to serve on")
	fl.StringVar(&f.cfg.Advertise, "advertise", "", "HOST:PORT at which others reach this node (default: its place in --seed-nodes)")
	fl.StringVar(&f.cfg.DataDir, "data-dir", "", "directory for the node's own state")
	fl.StringSliceVar(&f.cfg.Devices, "device", nil, "device files or block devices, comma separated; may be repeated")
	fl.Uint8Var(&f.cfg.Site, "site-id", 0, "the site's number")
	fl.StringVar(&f.cfg.Metrics, "metrics", "", "HOST:PORT to serve /metrics and /healthz on (default: nowhere)")
	fl.BoolVar(&f.cfg.Force, "force", false, "format devices of another cluster, with other data or with a damaged superblock: what they hold is lost")
	fl.Var(&f.scrub, "scrub-rate", "bytes per second of each device that are read to compare all shards with their checksums, once a day; 0 turns it off")
	fl.Var(&f.restripe, "restripe-rate", "bytes per second that are read and written, by the node that leads, to write files anew whose stripes could lie better; 0 turns it off")
	fl.DurationVar(&f.cfg.ReclaimInterval, "reclaim-interval", store.DefaultReclaimInterval, "least time between two comparisons of a device's shards with the stripe table, which delete what nothing names; no device spends more than 2 % of its time on them")
	fl.DurationVar(&f.cfg.OutAfter, "out-after", defaultOutAfter, "how long a device is down before its shards are made anew on others")
	f.addSecurity(fl)
	fl.StringVar(&f.profile, "profile", "", "write a profile to the data directory: "+cli.ProfileHelp)
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
}

func (f *flags) run(cmd *cobra.Command) error {
	log, err := cli.NewLogger(cmd.ErrOrStderr(), f.logLevel)
	if err != nil {
		return err
	}
	prof, err := cli.NewProfile(f.profile)
	if err != nil {
		return err
	}
	if off := os.Getenv(clockOffsetEnv); off != "" {
		if f.cfg.ClockOffset, err = time.ParseDuration(off); err != nil {
			return cli.Usage(clockOffsetEnv, "%q is not a duration", off)
		}
	}
	faults := os.Getenv(faultDirEnv)
	f.cfg.ReadDelay = fault(cmd.Context(), faults, faultRead, f.nodeID)
	f.cfg.SyncDelay = fault(cmd.Context(), faults, faultSync, f.nodeID)
	f.cfg.ClockJump = fault(cmd.Context(), faults, faultClock, f.nodeID)
	f.cfg.TLS = bool(f.tls)
	f.cfg.ScrubBytesPerSecond = int64(f.scrub)
	f.cfg.RestripeBytesPerSecond = int64(f.restripe)
	f.cfg.NodeID, f.cfg.Logger = cfs.NodeID(f.nodeID), log.With("node", f.nodeID)
	tuneCollector()
	srv, err := node.Start(cmd.Context(), f.cfg)
	if err != nil {
		return err
	}
	if prof.Wanted() {
		dir := filepath.Join(f.cfg.DataDir, "profile")
		log.Info("profiling", "kind", f.profile, "dir", dir)
		defer prof.Start(dir)()
	}
	return srv.Wait(cmd.Context())
}
