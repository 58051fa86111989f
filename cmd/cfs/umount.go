package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/fuse"
)

// defaultUmountTimeout is how long an unmount waits for the last flush.
const defaultUmountTimeout = time.Minute

// newUmountCmd makes `cfs umount`.
func newUmountCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "umount MOUNTPOINT",
		Short: "unmount; returns when everything is written and the mount's daemon has ended",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return cli.Usage("--timeout", "want a positive duration")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return umount(ctx, args[0])
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", defaultUmountTimeout, "how long to wait for the last flush")
	return cmd
}

// umount takes the mount at path away and waits for its daemon.
func umount(ctx context.Context, path string) error {
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return cfs.E("unmount", cfs.KindOf(err), err)
		}
	}
	dev, err := mountDev(path)
	if err != nil {
		return err
	}
	// Opened before: afterwards the device number may be another mount's.
	lock := openMountLock(dev)
	if err := fuse.Unmount(path, false); err != nil {
		return err
	}
	if lock == nil {
		return nil
	}
	return lock.wait(ctx)
}
