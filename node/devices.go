package node

import (
	"crypto/rand"
	"errors"
	"path/filepath"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// The arena is the sum of what uses it at a time; who finds it empty waits,
// which stops the reading of sockets.
const (
	// putBytes are shards between socket and device: 64 of the largest.
	putBytes = 64 * (cfs.MaxShardSize + iopath.Headroom)
	// getBytes are shards between device and socket: 64 of the largest.
	getBytes = 64 * (cfs.MaxShardSize + iopath.Headroom)

	// ringEntries bounds the requests that one device has in the kernel at a time.
	ringEntries = 256
)

// deviceSet is the node's devices, opened, and the memory and rings they use.
type deviceSet struct {
	arena  *iopath.Arena
	logs   map[cfs.DeviceID]*nvme.Log
	uuids  map[cfs.DeviceID]cfs.UUID
	failed []failedDevice
	opened []*candidate
}

// failedDevice is a device that belongs to the node and that it runs without.
type failedDevice struct {
	path string
	err  error
}

// candidate is a device that has been opened and looked at.
type candidate struct {
	path  string
	ring  *iopath.Ring
	dev   nvme.Device
	sb    nvme.Superblock
	blank bool // to be formatted
	force bool // whatever it holds
}

// openDevices opens all devices, formats the blank ones and opens their logs.
// It looks at all of them before it changes any. A device that the node has had
// before and that does not open now is left out with a log line; any other that
// does not open, and any that belongs to somebody else, is refused.
func openDevices(cfg *Config, dir *dataDir) (*deviceSet, error) {
	arena, err := iopath.NewArena(putBytes + getBytes + len(cfg.Devices)*nvme.LogArenaBytes)
	if err != nil {
		return nil, err
	}
	s := &deviceSet{arena: arena, logs: map[cfs.DeviceID]*nvme.Log{}, uuids: map[cfs.DeviceID]cfs.UUID{}}
	err = s.openAll(cfg, dir)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *deviceSet) openAll(cfg *Config, dir *dataDir) error {
	var found []*candidate
	for _, path := range cfg.Devices {
		abs, err := filepath.Abs(path)
		if err != nil {
			return cfs.E("device "+path, cfs.KindOf(err), err)
		}
		c, err := s.open(cfg, abs)
		if c != nil {
			s.opened = append(s.opened, c)
		}
		if err == nil {
			err = c.belongs(cfg, dir)
		}
		switch {
		case err == nil:
			found = append(found, c)
		case dir.state.byPath(abs) != nil && mayBeMissing(err):
			s.fail(cfg, abs, err)
		default:
			return err
		}
	}
	if err := refuseTwins(found); err != nil {
		return err
	}
	if err := s.format(cfg, dir, found); err != nil {
		return err
	}
	for _, c := range found {
		log, err := nvme.OpenLog(c.dev, s.arena, nvme.LogOptions{Logger: cfg.Logger})
		if err != nil {
			s.fail(cfg, c.path, err)
			continue
		}
		s.logs[c.sb.Device], s.uuids[c.sb.Device] = log, c.sb.UUID
		cfg.Logger.Info("device opened", "device", c.sb.Device.String(), "path", c.path, "records", log.Stats().Records)
	}
	if len(s.logs) == 0 {
		return s.failed[len(s.failed)-1].err
	}
	return nil
}

// fail notes that the node runs without a device.
func (s *deviceSet) fail(cfg *Config, path string, err error) {
	cfg.Logger.Error("a device does not open: going on without it", "path", path, "err", err)
	s.failed = append(s.failed, failedDevice{path: path, err: err})
}

// mayBeMissing tells failing hardware from a wrong command line.
func mayBeMissing(err error) bool {
	switch cfs.KindOf(err) {
	case cfs.NotFound, cfs.IO, cfs.Corrupt:
		return true
	}
	return false
}

// open opens a device and reads its superblock. The candidate is returned with
// an error too when there is something to close.
func (s *deviceSet) open(cfg *Config, path string) (*candidate, error) {
	kind, err := nvme.DeviceKind(path)
	if err != nil {
		return nil, err
	}
	ring, err := iopath.NewRing(iopath.RingConfig{
		Entries: ringEntries, Arena: s.arena, Commands: kind == nvme.KindPassthrough, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	c := &candidate{path: path, ring: ring}
	if c.dev, err = nvme.OpenDevice(path, ring); err != nil {
		return c, err
	}
	c.sb, err = nvme.ReadSuperblock(c.dev)
	switch {
	case errors.Is(err, cfs.NotFound):
		c.blank = true
		return c, nil
	case errors.Is(err, cfs.Corrupt) && cfg.Force:
		cfg.Logger.Warn("formatting a device whose superblock is damaged", "path", path, "err", err)
		c.blank = true
		return c, nil
	}
	return c, err
}

// belongs refuses a device of another cluster or node, unless it is to be
// formatted by force, and one that is not what its slot is known to hold.
func (c *candidate) belongs(cfg *Config, dir *dataDir) error {
	op := "device " + c.path
	switch {
	case c.blank:
		c.force = cfg.Force
		return c.formattable(cfg)
	case c.sb.ClusterID != cfg.ClusterID && cfg.Force:
		c.blank, c.force = true, true
		return c.formattable(cfg)
	case c.sb.ClusterID != cfg.ClusterID:
		return cfs.Errorf(op, cfs.WrongCluster, "it is formatted for cluster %q, not %q", c.sb.ClusterID, cfg.ClusterID)
	case c.sb.Device.Node() != cfg.NodeID:
		return cfs.Errorf(op, cfs.Usage, "it is device %s of this cluster, not one of node %d", c.sb.Device, cfg.NodeID)
	}
	for _, e := range dir.state.Devices {
		if e.Slot == c.sb.Device.Slot() && e.UUID != c.sb.UUID.String() {
			return cfs.Errorf(op, cfs.Usage, "it says that it is device %s, which is another: %s, not %s", c.sb.Device, e.UUID, c.sb.UUID)
		}
	}
	return nil
}

// formattable refuses a device that Format would refuse later, for its size or what it holds.
func (c *candidate) formattable(cfg *Config) error {
	size := c.dev.Info().SizeBytes
	segment := cfg.SegmentBytes
	if segment == 0 {
		segment = nvme.DefaultSegment(size)
	}
	if least := nvme.HeaderAreaBytes + nvme.MinSegments*int64(segment); size < least {
		return cfs.Errorf("device "+c.path, cfs.Invalid, "%d bytes are too small, the least is %d", size, least)
	}
	if c.force {
		return nil
	}
	return nvme.CheckBlank(c.dev)
}

// refuseTwins refuses two devices with one id: copies of an image.
func refuseTwins(found []*candidate) error {
	seen := map[cfs.DeviceID]string{}
	for _, c := range found {
		if c.blank {
			continue
		}
		if other := seen[c.sb.Device]; other != "" {
			return cfs.Errorf("device "+c.path, cfs.Usage, "it and %s both say that they are device %s", other, c.sb.Device)
		}
		seen[c.sb.Device] = c.path
	}
	return nil
}

// format gives the blank devices their slots, records all slots durably, and
// only then writes superblocks: a crash between leaves a slot unused for ever.
func (s *deviceSet) format(cfg *Config, dir *dataDir, found []*candidate) error {
	for _, c := range found {
		// Before any slot is given out: node.json may have been lost.
		if !c.blank {
			dir.state.set(deviceEntry{Slot: c.sb.Device.Slot(), UUID: c.sb.UUID.String(), Path: c.path})
		}
	}
	for _, c := range found {
		if !c.blank {
			continue
		}
		slot, err := dir.state.takeSlot()
		if err != nil {
			return err
		}
		uuid := newUUID()
		c.sb = nvme.Superblock{
			ClusterID: cfg.ClusterID, Device: cfs.MakeDeviceID(cfg.NodeID, slot), UUID: uuid, SegmentBytes: cfg.SegmentBytes,
		}
		dir.state.set(deviceEntry{Slot: slot, UUID: c.sb.UUID.String(), Path: c.path})
	}
	if err := dir.save(); err != nil {
		return err
	}
	for _, c := range found {
		if !c.blank {
			continue
		}
		if err := nvme.Format(c.dev, c.sb, c.force); err != nil {
			return err
		}
		cfg.Logger.Info("device formatted", "device", c.sb.Device.String(), "path", c.path)
	}
	return nil
}

// close closes logs, devices, rings and memory, in this order.
func (s *deviceSet) close() error {
	var errs []error
	for _, log := range s.logs {
		errs = append(errs, log.Close())
	}
	for _, c := range s.opened {
		if c.dev != nil {
			errs = append(errs, c.dev.Close())
		}
		errs = append(errs, c.ring.Close())
	}
	return errors.Join(append(errs, s.arena.Close())...)
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() cfs.UUID {
	var u cfs.UUID
	rand.Read(u[:]) // never fails (crypto/rand)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}
