package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/cluster/demo"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/internal/units"
)

// demoFlags are the flags that the demo and its two sub-commands share.
type demoFlags struct {
	opt        demo.Options
	deviceSize units.Bytes
	prewrite   units.Bytes
	logLevel   string
	tls        string
}

// demoCommand is `cfs demo`, with the commands on a cluster that stays below it.
func demoCommand() *cobra.Command {
	f := &demoFlags{deviceSize: cluster.DefaultDeviceSizeBytes}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "start a cluster on this machine, mount it, work on it, break it, verify every byte",
		Long: `Starts a cluster on this machine whose devices are files, mounts it, copies Go's
own source tree in, builds a program there, writes a big file, kills a node and
then every process, and verifies every byte after each of these. Prints the rates
it saw beside those of the disk. Needs root. Nothing is left behind, unless --keep.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.complete(cmd); err != nil {
				return err
			}
			// A terminal that goes away is no reason to leave processes behind.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
			defer stop()
			return demo.Run(ctx, f.opt)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.opt.Dir, "dir", "", "an empty or new directory for everything (default: a new one in "+demo.DefaultParent()+")")
	cmd.Flags().BoolVar(&f.opt.Keep, "keep", false, "leave the cluster mounted at the end")
	cmd.Flags().BoolVar(&f.opt.Short, "short", false, "a smaller tree and smaller files")
	cmd.AddCommand(f.upCommand())
	cmd.AddCommand(demoDirCommands()...)
	return cmd
}

// add adds the flags that say what the cluster is like.
func (f *demoFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.IntVar(&f.opt.Nodes, "nodes", 3, "number of nodes")
	fl.IntVar(&f.opt.Devices, "devices", 2, "devices of each node")
	fl.Var(&f.deviceSize, "device-size", "size of each device, a sparse file")
	fl.StringVar(&f.tls, "tls", "on", "on: connections are encrypted, and certificates say who is who; off: not")
	fl.StringVar(&f.logLevel, "log-level", "warn", "of the launcher: debug, info, warn or error")
}

// complete finishes the options.
func (f *demoFlags) complete(cmd *cobra.Command) error {
	log, err := cli.NewLogger(cmd.ErrOrStderr(), f.logLevel)
	if err != nil {
		return err
	}
	if f.tls != "on" && f.tls != "off" {
		return cli.Usage("--tls", "want on or off, not %q", f.tls)
	}
	f.opt.TLS = f.tls == "on"
	self, err := os.Executable()
	if err != nil {
		return cfs.E("find this program", cfs.KindOf(err), err)
	}
	_, notTerminal := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	f.opt.Binary, f.opt.Logger = self, log
	f.opt.Out, f.opt.Terminal = cmd.OutOrStdout(), notTerminal == nil
	f.opt.DeviceSizeBytes, f.opt.PrewriteBytes = int64(f.deviceSize), int64(f.prewrite)
	return nil
}

func (f *demoFlags) upCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "only start a cluster and mount it at DIR/" + demo.MountName + "; it stays",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.complete(cmd); err != nil {
				return err
			}
			return demo.Up(cmd.Context(), f.opt)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.opt.Dir, "dir", "", "directory for everything")
	cmd.Flags().Var(&f.prewrite, "prewrite", "write so much of each device once before, as rates want it")
	// It fails only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

// demoDirCommand is a command on the cluster that was started in a directory.
func demoDirCommand(use, short string, run func(cmd *cobra.Command, dir string) error) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd, dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the directory that demo up was given")
	// It fails only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

// demoNodeCommand is a command on one of its nodes.
func demoNodeCommand(use, short string, run func(cmd *cobra.Command, dir string, node int) error) *cobra.Command {
	var node int
	cmd := demoDirCommand(use, short, func(cmd *cobra.Command, dir string) error { return run(cmd, dir, node) })
	cmd.Flags().IntVar(&node, "node", 0, "the node's number, from 1")
	// It fails only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("node")
	return cmd
}

// demoLoseCommand loses a device file.
func demoLoseCommand(logger *slog.Logger) *cobra.Command {
	var slot int
	cmd := demoNodeCommand("lose", "remove a device file of a node, which finds that out when it is started anew",
		func(_ *cobra.Command, dir string, node int) error { return demo.Lose(dir, node, slot, logger) })
	cmd.Flags().IntVar(&slot, "slot", 0, "which of the node's devices, from 0")
	return cmd
}

// demoDirCommands work on a cluster that stays.
func demoDirCommands() []*cobra.Command {
	silent := slog.New(slog.DiscardHandler)
	return []*cobra.Command{
		demoDirCommand("down", "stop and remove the cluster that was started in DIR", func(cmd *cobra.Command, dir string) error {
			return demo.Down(cmd.Context(), dir, silent)
		}),
		demoDirCommand("remount", "unmount and mount again what demo up has mounted, so that nothing is cached", func(cmd *cobra.Command, dir string) error {
			return demo.Remount(cmd.Context(), dir, silent)
		}),
		demoNodeCommand("kill", "end a node with SIGKILL", func(_ *cobra.Command, dir string, node int) error {
			return demo.Kill(dir, node, silent)
		}),
		demoLoseCommand(silent),
		demoNodeCommand("restart", "start a node that was killed", func(cmd *cobra.Command, dir string, node int) error {
			return demo.Restart(cmd.Context(), dir, node, silent)
		}),
	}
}
