package main

import (
	"log/slog"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/fuse/filecache"
	"github.com/claudefs/claudefs/internal/units"
)

// cacheFlags say where a mount keeps whole files on this machine.
type cacheFlags struct {
	dir  string
	size units.Bytes
}

func (f *cacheFlags) add(fl *pflag.FlagSet) {
	f.size = filecache.DefaultSizeBytes
	fl.StringVar(&f.dir, "cache-dir", "", "keep files that are read whole in this local directory, where the kernel reads them by itself (default: nowhere)")
	fl.Var(&f.size, "cache-size", "how large the cache directory may get")
}

// check refuses what cannot be meant, and makes the directory absolute for the daemon.
func (f *cacheFlags) check() error {
	if f.size <= 0 {
		return cli.Usage("--cache-size", "want a size that is not 0")
	}
	if f.dir == "" {
		return nil
	}
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return cfs.E("--cache-dir", cfs.KindOf(err), err)
	}
	f.dir = dir
	return nil
}

// open opens the cache; nil where there is to be none.
func (f *cacheFlags) open(cluster string, log *slog.Logger, reg prometheus.Registerer) (*filecache.Cache, error) {
	if f.dir == "" {
		return nil, nil
	}
	c, err := filecache.Open(filecache.Config{Dir: f.dir, SizeBytes: int64(f.size), ClusterID: cluster, Logger: log.With("part", "filecache")})
	if err != nil {
		return nil, err
	}
	c.Register(reg)
	return c, nil
}
