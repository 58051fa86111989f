package cluster

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/rawdisk"
)

// maxPrewriters bounds the device files that are written at once.
const maxPrewriters = 2

// makeDevice makes a sparse file of sizeBytes; an existing one is refused.
func makeDevice(path string, sizeBytes int64) error {
	op := "make the device file " + path
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	err = errors.Join(f.Truncate(sizeBytes), f.Close())
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	return nil
}

// makeDevices makes the device files of all nodes.
func (c *Cluster) makeDevices(ctx context.Context) error {
	for _, n := range c.st.Nodes {
		if err := os.MkdirAll(c.dataDir(n.ID), 0o700); err != nil {
			return cfs.E("make "+c.dataDir(n.ID), cfs.KindOf(err), err)
		}
		for slot := range c.st.Devices {
			if err := makeDevice(c.DevicePath(n.ID, slot), c.st.DeviceSizeBytes); err != nil {
				return err
			}
		}
	}
	if c.spec.PrewriteBytes == 0 {
		return nil
	}
	c.log.Info("prewriting devices", "bytes_each", c.spec.PrewriteBytes)
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxPrewriters)
	errs := make([]error, len(c.st.Nodes)*c.st.Devices)
	for i := range errs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = rawdisk.Prewrite(ctx, c.DevicePath(i/c.st.Devices+1, i%c.st.Devices), c.spec.PrewriteBytes)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
