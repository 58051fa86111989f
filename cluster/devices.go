package cluster

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// prewriteChunkBytes is the size of one write of Prewrite.
const prewriteChunkBytes = 4 << 20

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

// Prewrite writes zeros to the first n bytes of a file, past the page cache
// where the file system can, and makes them durable; the file grows as needed.
func Prewrite(ctx context.Context, path string, n int64) error {
	op := "prewrite " + path
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer f.Close()
	zeros, err := unix.Mmap(-1, 0, prewriteChunkBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer unix.Munmap(zeros)
	for off := int64(0); off < n; {
		if ctx.Err() != nil {
			return cfs.E(op, cfs.Canceled, ctx.Err())
		}
		w, err := f.WriteAt(zeros[:min(n-off, prewriteChunkBytes)], off)
		if err != nil {
			return cfs.E(op, cfs.KindOf(err), err)
		}
		off += int64(w)
	}
	if err := f.Sync(); err != nil {
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
			errs[i] = Prewrite(ctx, c.DevicePath(i/c.st.Devices+1, i%c.st.Devices), c.spec.PrewriteBytes)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
