package cluster

import (
	"context"
	"errors"
	"os"
	"slices"
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

// file is a device file as the launcher sees it.
type file struct {
	// Lost files are gone from the disk. The server is told of them as before, and once
	// it has started without them it has fewer devices up.
	Lost bool `json:"lost,omitempty"`
	// Dropped files belong to nobody any more: the server is not told of them.
	Dropped bool `json:"dropped,omitempty"`
}

// serve notes that the node has what its files allow. Nodes number devices in the order
// in which they get them, so that a file's slot is the device's.
func (n *node) serve() {
	n.Serving = nil
	for slot, f := range n.Files {
		if !f.Lost && !f.Dropped {
			n.Serving = append(n.Serving, slot)
		}
	}
}

// deviceFiles are the paths that a node is started with.
func (c *Cluster) deviceFiles(n *node) []string {
	var paths []string
	for slot, f := range n.Files {
		if !f.Dropped {
			paths = append(paths, c.DevicePath(n.ID, slot))
		}
	}
	return paths
}

// AddDevice makes another device file for a node, which takes it into use when an
// administrator says so; it then is named when the node starts. The slot is the next.
func (c *Cluster) AddDevice(nodeID int) (slot int, path string, err error) {
	n, err := c.node(nodeID)
	if err != nil {
		return 0, "", err
	}
	slot = len(n.Files)
	path = c.DevicePath(nodeID, slot)
	if err := makeDevice(path, c.st.DeviceSizeBytes); err != nil {
		return 0, "", err
	}
	n.Files = append(n.Files, file{})
	n.Serving = append(n.Serving, slot)
	return slot, path, c.save()
}

// LoseDevice removes a device file. A server that has it open goes on with it, as
// with any removed file; one that starts finds it gone.
func (c *Cluster) LoseDevice(at DevicePlace) error {
	f, _, err := c.file(at)
	if err != nil {
		return err
	}
	path := c.DevicePath(at.Node, at.Slot)
	if err := os.Remove(path); err != nil {
		return cfs.E("lose "+path, cfs.KindOf(err), err)
	}
	f.Lost = true
	c.log.Info("lost a device file", "path", path)
	return c.save()
}

// DropDevice says that a device is not the cluster's any more: an administrator has
// removed it. The file stays where it is, if it is there.
func (c *Cluster) DropDevice(at DevicePlace) error {
	f, n, err := c.file(at)
	if err != nil {
		return err
	}
	f.Dropped = true
	n.Serving = slices.DeleteFunc(n.Serving, func(slot int) bool { return slot == at.Slot })
	return c.save()
}

func (c *Cluster) file(at DevicePlace) (*file, *node, error) {
	n, err := c.node(at.Node)
	if err != nil {
		return nil, nil, err
	}
	if at.Slot < 0 || at.Slot >= len(n.Files) {
		return nil, nil, cfs.Errorf("find a device", cfs.NotFound, "node %d has %d device files, and none in slot %d", at.Node, len(n.Files), at.Slot)
	}
	return &n.Files[at.Slot], n, nil
}

// makeDevicesOf makes the directory and the device files of a node.
func (c *Cluster) makeDevicesOf(n *node) error {
	if err := os.MkdirAll(c.dataDir(n.ID), 0o700); err != nil {
		return cfs.E("make "+c.dataDir(n.ID), cfs.KindOf(err), err)
	}
	for slot := range n.Files {
		if err := makeDevice(c.DevicePath(n.ID, slot), c.spec.deviceSize(DevicePlace{n.ID, slot})); err != nil {
			return err
		}
	}
	return nil
}

// makeDevices makes the device files of all nodes.
func (c *Cluster) makeDevices(ctx context.Context) error {
	for _, n := range c.st.Nodes {
		if err := c.makeDevicesOf(n); err != nil {
			return err
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
