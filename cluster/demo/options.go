package demo

import (
	"io"
	"log/slog"
	"os"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

// Options is what a demo is told.
type Options struct {
	// Dir holds the cluster; a new directory below DefaultParent where empty.
	Dir             string
	Nodes           int
	Devices         int // of each node
	DeviceSizeBytes int64
	// PrewriteBytes of each device are written once before Up starts the cluster. The demo chooses itself.
	PrewriteBytes int64
	// TLS makes it a cluster with certificates.
	TLS bool
	// Keep leaves the cluster mounted.
	Keep bool
	// Short takes a smaller tree and smaller files.
	Short bool
	// Binary is the path of cfs.
	Binary string
	// Out is told of each step; Terminal says that it is one.
	Out      io.Writer
	Terminal bool
	Logger   *slog.Logger
}

// MountName is the name of the mount point in the demo's directory.
const MountName = "mnt"

// DefaultParent is where the demo makes its directory: on the disk rather than in memory.
func DefaultParent() string {
	const disk = "/var/tmp"
	if st, err := os.Stat(disk); err == nil && st.IsDir() {
		return disk
	}
	return os.TempDir()
}

// check refuses a cluster that the demo could not break.
func (o *Options) check() error {
	// One node dies: the others must have a majority and hold redundant stripes.
	_, redundant := cluster.BestGeometry(o.Nodes-1, o.Devices)
	if o.Nodes < 3 || !redundant {
		return cfs.Errorf("--nodes, --devices", cfs.Usage, "with one of %d nodes of %d devices dead nothing redundant could be written: at least 3 of 2, or 4 of 1, are needed", o.Nodes, o.Devices)
	}
	return nil
}

// spec is the cluster that the options ask for.
func (o *Options) spec(dir string) cluster.Spec {
	return cluster.Spec{
		Dir: dir, Binary: o.Binary, Nodes: o.Nodes, Devices: o.Devices,
		DeviceSizeBytes: o.DeviceSizeBytes, PrewriteBytes: o.PrewriteBytes, Logger: o.Logger, TLS: o.TLS,
	}
}
