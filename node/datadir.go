package node

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
)

const (
	stateVersion = 1
	stateFile    = "node.json"
	lockFile     = "lock"
	socketFile   = "node.sock"
	raftDir      = "raft"
	// maxSlot is the last slot number that a node can give out.
	maxSlot = 1<<16 - 1
)

// state is node.json: who the node is, for good, and what is in its slots.
type state struct {
	Version   int           `json:"version"`
	ClusterID string        `json:"cluster_id"`
	NodeID    cfs.NodeID    `json:"node_id"`
	Site      uint8         `json:"site_id"`
	TLS       string        `json:"tls,omitempty"` // "on" or "off", as the cluster was made, or "undecided"
	NextSlot  uint32        `json:"next_slot"`     // slots below it have been given out
	Devices   []deviceEntry `json:"devices"`
	// Joined says that the node is no founder of its cluster, or no longer a voter of it. Servers are
	// voters that it knew last; the others are what a start without flags takes.
	Joined  bool     `json:"joined,omitempty"`
	Servers []string `json:"servers,omitempty"`
	// Replica says that the node has a replica that has taken part: without its directory it does not begin another.
	Replica bool `json:"replica,omitempty"`
	// Seeds are those of the last start that named any.
	Seeds []string `json:"seeds,omitempty"`
	// Members are the voters when the node became a learner, whose replica does not know them yet.
	Members   map[cfs.NodeID]string `json:"members,omitempty"`
	Listen    string                `json:"listen,omitempty"`
	Advertise string                `json:"advertise,omitempty"`
}

// deviceEntry is what was last seen in a slot.
type deviceEntry struct {
	Slot uint16 `json:"slot"`
	UUID string `json:"uuid"`
	Path string `json:"path"`
	// Added says that it was added while the node ran: the next start opens it though it is not told to.
	Added bool `json:"added,omitempty"`
}

// byPath finds the slot that was last seen at a path.
func (s *state) byPath(path string) *deviceEntry {
	for i := range s.Devices {
		if s.Devices[i].Path == path {
			return &s.Devices[i]
		}
	}
	return nil
}

// added is the paths of devices that were added and that the configuration does not name.
func (s *state) added(cfg *Config) []string {
	var paths []string
	for _, e := range s.Devices {
		named := slices.ContainsFunc(cfg.Devices, func(p string) bool {
			abs, err := filepath.Abs(p)
			return err == nil && abs == e.Path
		})
		if e.Added && !named {
			paths = append(paths, e.Path)
		}
	}
	return paths
}

// leave makes the next start open a slot's device only if it is told to.
func (s *state) leave(slot uint16) {
	for i := range s.Devices {
		if s.Devices[i].Slot == slot {
			s.Devices[i].Added = false
		}
	}
}

// set records what is in a slot; the slot counts as given out from then on. A
// path names one slot: an older entry for it is forgotten.
func (s *state) set(e deviceEntry) {
	kept := s.Devices[:0]
	for _, d := range s.Devices {
		if d.Slot != e.Slot && d.Path != e.Path {
			kept = append(kept, d)
		}
	}
	s.Devices = append(kept, e)
	s.NextSlot = max(s.NextSlot, uint32(e.Slot)+1)
}

// takeSlot gives out a slot that was never used.
func (s *state) takeSlot() (uint16, error) {
	if s.NextSlot > maxSlot {
		return 0, cfs.Errorf("format", cfs.NoSpace, "all %d device slots of the node have been used", maxSlot+1)
	}
	slot := uint16(s.NextSlot)
	s.NextSlot++
	return slot, nil
}

// dataDir is the node's directory, locked while the node runs.
type dataDir struct {
	path string
	lock *os.File
	made bool // by this start

	// mu guards state and its file from the start on, for moments. Devices and NextSlot are changed under adminMu
	// too, which suffices to read them.
	mu    sync.Mutex
	state state
}

// change makes a change of the state durable, unless fn says that there is none.
func (d *dataDir) change(fn func(*state) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !fn(&d.state) {
		return nil
	}
	return d.save()
}

// servers are the other voters that the node knew last.
func (d *dataDir) servers() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.state.Servers)
}

// openDataDir makes and locks the directory and reads who lives there. A
// directory of another node or cluster is refused.
func openDataDir(cfg *Config) (*dataDir, error) {
	op := "data directory " + cfg.DataDir
	_, err := os.Stat(cfg.DataDir)
	d := &dataDir{path: cfg.DataDir, made: errors.Is(err, fs.ErrNotExist)}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	d.lock, err = os.OpenFile(d.file(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = d.lock.Close()
		return nil, cfs.Errorf(op, cfs.Busy, "another server uses it")
	}
	if err := d.load(cfg, op); err != nil {
		d.abandon()
		return nil, err
	}
	return d, nil
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// load reads node.json, or starts a new one for cfg.
func (d *dataDir) load(cfg *Config, op string) error {
	raw, err := os.ReadFile(d.file(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		d.state = state{Version: stateVersion, ClusterID: cfg.ClusterID, NodeID: cfg.NodeID, Site: cfg.Site}
		if cfg.joined {
			d.state.Joined, d.state.Servers = true, cfg.Join
		}
		d.state.Listen, d.state.Advertise = cfg.Listen, cfg.Advertise
		d.state.keepSeeds(cfg)
		return d.checkMode(cfg, op)
	}
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	d.state, err = parseState(raw)
	if err != nil {
		return cfs.E(d.file(stateFile), cfs.Corrupt, err)
	}
	s := &d.state
	switch {
	case s.ClusterID != cfg.ClusterID:
		return cfs.Errorf(op, cfs.WrongCluster, "it belongs to cluster %q, not %q", s.ClusterID, cfg.ClusterID)
	case s.NodeID != cfg.NodeID:
		return cfs.Errorf(op, cfs.Usage, "it belongs to node %d, not node %d", s.NodeID, cfg.NodeID)
	case s.Site != cfg.Site:
		return cfs.Errorf(op, cfs.Usage, "it belongs to site %d, not site %d", s.Site, cfg.Site)
	}
	s.Listen, s.Advertise = cfg.Listen, cfg.Advertise
	s.keepSeeds(cfg)
	return d.checkMode(cfg, op)
}

// parseState reads node.json; it refuses other versions and slots that clash.
func parseState(raw []byte) (state, error) {
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return state{}, err
	}
	if s.Version != stateVersion {
		return state{}, cfs.Errorf("", cfs.Unsupported, "version %d, this program knows %d", s.Version, stateVersion)
	}
	if err := CheckClusterID(s.ClusterID); err != nil {
		return state{}, err
	}
	seen := map[uint16]bool{}
	for _, e := range s.Devices {
		if seen[e.Slot] || uint32(e.Slot) >= s.NextSlot {
			return state{}, cfs.Errorf("", cfs.Corrupt, "slot %d is listed twice or was never given out", e.Slot)
		}
		seen[e.Slot] = true
	}
	return s, nil
}

// keepSeeds remembers the seeds that the configuration names.
func (s *state) keepSeeds(cfg *Config) {
	if len(cfg.Seeds) > 0 && !cfg.alone {
		s.Seeds = cfg.Seeds
	}
}

// save replaces node.json durably. The caller holds mu, or is the start.
func (d *dataDir) save() error {
	raw, err := json.MarshalIndent(&d.state, "", "  ")
	if err != nil {
		return cfs.E(d.file(stateFile), cfs.IO, err)
	}
	if err := durable.Replace(d.file(stateFile), append(raw, '\n')); err != nil {
		return cfs.E(d.file(stateFile), cfs.KindOf(err), err)
	}
	return nil
}

// close unlocks the directory.
func (d *dataDir) close() error { return d.lock.Close() }

// abandon unlocks the directory after a start that was refused, and removes it
// if that start made it and nothing is in it.
func (d *dataDir) abandon() {
	if d.made {
		// Remove leaves a directory that has anything in it.
		_ = os.Remove(d.file(lockFile))
		_ = os.Remove(d.path)
	}
	_ = d.lock.Close()
}
