package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

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
		c.ClusterID(), opt.Nodes, opt.Devices, m.Point, c.Addrs()[0], opt.Binary, c.Dir())
	return nil
}

// Down stops the cluster that was started in dir, by Up or with Keep, and removes it.
func Down(ctx context.Context, dir string, logger *slog.Logger) error {
	c, err := cluster.Load(dir, logger)
	if err != nil {
		return err
	}
	return c.Remove(ctx)
}
