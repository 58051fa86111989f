package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

// Up starts a cluster that outlives this process, mounts it at MountName in its
// directory and returns when both are usable. When it fails nothing is left.
func Up(ctx context.Context, opt Options) error {
	spec := opt.spec(opt.Dir)
	spec.Detach = true
	c, err := cluster.Start(ctx, spec)
	if err != nil {
		return err
	}
	m, err := c.Mount(ctx, MountName)
	if err != nil {
		return errors.Join(err, c.Destroy())
	}
	fmt.Fprintf(opt.Out, "cluster %s: %d nodes of %d devices\nmounted:   %s\nservers:   %s\nstop it:   %s demo down --dir %s\n",
		c.ClusterID(), opt.Nodes, opt.Devices, m.Point, c.AdminAddr(1), opt.Binary, c.Dir())
	return nil
}

// Kill ends a node of the cluster in dir with SIGKILL.
func Kill(dir string, nodeID int, logger *slog.Logger) error {
	c, err := cluster.Load(dir, logger)
	if err != nil {
		return err
	}
	return c.Kill(nodeID)
}

// Restart starts a dead node of the cluster in dir and returns when the cluster is usable with it.
func Restart(ctx context.Context, dir string, nodeID int, logger *slog.Logger) error {
	c, err := cluster.Load(dir, logger)
	if err != nil {
		return err
	}
	return c.Restart(ctx, nodeID)
}

// Lose removes a device file of a node of the cluster in dir: a node that has it open goes on with it
// until it ends.
func Lose(dir string, nodeID, slot int, logger *slog.Logger) error {
	c, err := cluster.Load(dir, logger)
	if err != nil {
		return err
	}
	return c.LoseDevice(cluster.DevicePlace{Node: nodeID, Slot: slot})
}

// Remount unmounts the cluster in dir and mounts it again: nothing is cached then.
func Remount(ctx context.Context, dir string, logger *slog.Logger) error {
	c, err := cluster.Load(dir, logger)
	if err != nil {
		return err
	}
	m := c.MountOf(MountName)
	if m == nil {
		return cfs.Errorf("remount", cfs.NotFound, "the cluster in %s has no mount %s", dir, MountName)
	}
	return m.Remount(ctx)
}

// Down stops the cluster that was started in dir, by Up or with Keep, and removes it.
func Down(ctx context.Context, dir string, logger *slog.Logger) error {
	c, err := cluster.Load(dir, logger)
	if err != nil {
		return err
	}
	return c.Remove(ctx)
}
