package node

import (
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"sync"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/store"
)

// The arena is the sum of what uses it at a time; who finds it empty waits,
// which stops the reading of sockets. The mender's part and that of the logs come on top.
const (
	// putBytes are shards between socket and device: 64 of the largest.
	putBytes = 64 * (cfs.MaxShardSize + iopath.Headroom)
	// getBytes are shards between device and socket: 64 of the largest.
	getBytes = 64 * (cfs.MaxShardSize + iopath.Headroom)

	// spareDevices bounds the devices that can be added while the node runs: there is memory for their logs.
	spareDevices = 8
	// ringEntries bounds the requests that one device has in the kernel at a time.
	ringEntries = 256
)

// deviceSet is the node's devices, opened, and the memory and rings they use.
type deviceSet struct {
	arena  *iopath.Arena
	room   int            // devices that the arena has memory for
	failed []failedDevice // at the start

	mu     sync.Mutex
	opened []*candidate // those without a log are being looked at
}

// failedDevice is a device that belongs to the node and that it runs without.
type failedDevice struct {
	path string
	err  error
}

// candidate is a device that has been opened and looked at.
type candidate struct {
	path  string
	added bool // while a node ran, and not named by the command line
	ring  *iopath.Ring
	dev   nvme.Device
	sb    nvme.Superblock
	blank bool      // to be formatted
	force bool      // whatever it holds
	made  bool      // has been formatted now
	log   *nvme.Log // nil before it is opened
}

// openDevices opens all devices, formats the blank ones and opens their logs.
// It looks at all of them before it changes any. A device that the node has had
// before and that does not open now is left out with a log line; any other that
// does not open, and any that belongs to somebody else, is refused.
// Devices that were added while the node ran are opened too: nobody has named
// them now, so whatever is wrong with one, it is left out.
func openDevices(cfg *Config, dir *dataDir) (*deviceSet, error) {
	added := dir.state.added(cfg)
	room := len(cfg.Devices) + len(added) + spareDevices
	arena, err := iopath.NewArena(putBytes + getBytes + store.MendArenaBytes + room*nvme.LogArenaBytes)
	if err != nil {
		return nil, err
	}
	s := &deviceSet{arena: arena, room: room}
	err = s.openAll(cfg, dir, added)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *deviceSet) openAll(cfg *Config, dir *dataDir, added []string) error {
	var found []*candidate
	for i, path := range slices.Concat(cfg.Devices, added) {
		named := i < len(cfg.Devices)
		abs, err := filepath.Abs(path)
		if err != nil {
			return cfs.E("device "+path, cfs.KindOf(err), err)
		}
		c, err := s.look(cfg, dir, abs)
		switch {
		case err == nil && (named || !c.blank):
			c.added = !named
			found = append(found, c)
		case err == nil: // what was here is not, and nobody asks for what is here now
			s.fail(cfg, c, abs, cfs.Errorf("device "+abs, cfs.NotFound, "it is blank"))
		case !named || dir.state.byPath(abs) != nil && mayBeMissing(err):
			s.fail(cfg, c, abs, err)
		default:
			return err
		}
	}
	if err := refuseTwins(found); err != nil {
		return err
	}
	if err := format(cfg, dir, found); err != nil {
		return err
	}
	opened := 0
	for _, c := range found {
		if err := s.start(cfg, c); err != nil {
			s.fail(cfg, c, c.path, err)
			continue
		}
		opened++
	}
	if opened == 0 {
		return s.failed[len(s.failed)-1].err
	}
	return nil
}

// look opens a device and says whether it is, or can be made, one of the node's. The
// candidate is returned with an error too when there is something to close.
func (s *deviceSet) look(cfg *Config, dir *dataDir, abs string) (*candidate, error) {
	c, err := s.open(cfg, abs)
	if c != nil {
		s.mu.Lock()
		s.opened = append(s.opened, c)
		s.mu.Unlock()
	}
	if err != nil {
		return c, err
	}
	return c, c.belongs(cfg, dir)
}

// start opens the log of a device that is formatted.
func (s *deviceSet) start(cfg *Config, c *candidate) error {
	log, err := nvme.OpenLog(c.dev, s.arena, nvme.LogOptions{Logger: cfg.Logger})
	if err != nil {
		return err
	}
	s.mu.Lock()
	c.log = log
	s.mu.Unlock()
	cfg.Logger.Info("device opened", "device", c.sb.Device.String(), "path", c.path, "records", log.Stats().Records)
	return nil
}

// add opens one more device, and formats it when it is blank, under the rules of the start. One that the
// cluster has removed is refused, or with force formatted as another if nothing needs what it holds.
func (s *deviceSet) add(cfg *Config, dir *dataDir, path string, m *cfs.Map) (*candidate, error) {
	op := "add device " + path
	abs, err := filepath.Abs(path)
	if err != nil || path == "" {
		return nil, cfs.Errorf(op, cfs.Invalid, "%q is not a path", path)
	}
	s.mu.Lock()
	open := slices.Clone(s.opened)
	s.mu.Unlock()
	if len(open) >= min(s.room, maxDevices) {
		return nil, cfs.Errorf(op, cfs.NoSpace, "the node has %d devices, and memory for no more until it is started anew", len(open))
	}
	if slices.ContainsFunc(open, func(o *candidate) bool { return o.path == abs }) {
		return nil, cfs.Errorf(op, cfs.Busy, "this node has it already")
	}
	c, err := s.look(cfg, dir, abs)
	if err == nil && !c.blank && removed(m, c.sb.Device) {
		switch {
		case !cfg.Force:
			err = cfs.Errorf(op, cfs.Exists, "it is device %s, which was removed from the cluster: by force it is formatted, and becomes another", c.sb.Device)
		case !needless(m, c.sb.Device):
			err = cfs.Errorf(op, cfs.Invalid, "groups still need it: it is device %s, which was removed from the cluster, and what it had is not everywhere else yet", c.sb.Device)
		default:
			c.blank, c.force = true, true
			err = c.formattable(cfg)
		}
	}
	if err == nil {
		err = refuseTwins(append(open, c))
	}
	if err == nil {
		c.added = true
		err = format(cfg, dir, []*candidate{c})
	}
	if err == nil {
		err = s.start(cfg, c)
	}
	if err != nil && c != nil {
		return nil, errors.Join(err, s.drop(c))
	}
	return c, err
}

// drop closes a device and forgets it.
func (s *deviceSet) drop(c *candidate) error {
	s.mu.Lock()
	s.opened = slices.DeleteFunc(s.opened, func(o *candidate) bool { return o == c })
	s.mu.Unlock()
	return c.close()
}

// find is a device that is open, nil for another.
func (s *deviceSet) find(id cfs.DeviceID) *candidate {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.opened {
		if c.log != nil && c.sb.Device == id {
			return c
		}
	}
	return nil
}

// logs are those of the devices that are open.
func (s *deviceSet) logs() map[cfs.DeviceID]*nvme.Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	logs := map[cfs.DeviceID]*nvme.Log{}
	for _, c := range s.opened {
		if c.log != nil {
			logs[c.sb.Device] = c.log
		}
	}
	return logs
}

// fail notes that the node runs without a device, and closes it.
func (s *deviceSet) fail(cfg *Config, c *candidate, path string, err error) {
	if c != nil {
		err = errors.Join(err, s.drop(c))
	}
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
func format(cfg *Config, dir *dataDir, found []*candidate) error {
	var err error
	saveErr := dir.change(func(s *state) bool {
		err = s.giveSlots(cfg, found)
		return err == nil
	})
	if err = errors.Join(err, saveErr); err != nil {
		return err
	}
	for _, c := range found {
		if !c.blank {
			continue
		}
		if err := nvme.Format(c.dev, c.sb, c.force); err != nil {
			return err
		}
		c.blank, c.made = false, true
		cfg.Logger.Info("device formatted", "device", c.sb.Device.String(), "path", c.path)
	}
	return nil
}

// giveSlots records what devices are, and gives the blank ones slots.
func (s *state) giveSlots(cfg *Config, found []*candidate) error {
	for _, c := range found {
		// Before any slot is given out: node.json may have been lost.
		if !c.blank {
			s.set(deviceEntry{Slot: c.sb.Device.Slot(), UUID: c.sb.UUID.String(), Path: c.path, Added: c.added})
		}
	}
	for _, c := range found {
		if !c.blank {
			continue
		}
		slot, err := s.takeSlot()
		if err != nil {
			return err
		}
		uuid := newUUID()
		c.sb = nvme.Superblock{
			ClusterID: cfg.ClusterID, Device: cfs.MakeDeviceID(cfg.NodeID, slot), UUID: uuid, SegmentBytes: cfg.SegmentBytes,
		}
		s.set(deviceEntry{Slot: slot, UUID: c.sb.UUID.String(), Path: c.path, Added: c.added})
	}
	return nil
}

// close closes a device from the log down.
func (c *candidate) close() error {
	var errs []error
	if c.log != nil {
		errs = append(errs, c.log.Close())
	}
	if c.dev != nil {
		errs = append(errs, c.dev.Close())
	}
	return errors.Join(append(errs, c.ring.Close())...)
}

// close closes all devices, and then the memory.
func (s *deviceSet) close() error {
	var errs []error
	for _, c := range s.opened {
		errs = append(errs, c.close())
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
