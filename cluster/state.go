package cluster

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/claudefs/claudefs/cfs"
)

// StateFile is the name of the state file in a cluster's directory.
const StateFile = "cluster.json"

// stateVersion is the version of the state file's form.
const stateVersion = 2

// state is what the state file holds: all that belongs to the cluster.
type state struct {
	Version         int      `json:"version"`
	ClusterID       string   `json:"cluster_id"`
	Binary          string   `json:"binary"`
	Devices         int      `json:"devices"`
	DeviceSizeBytes int64    `json:"device_size_bytes"`
	ServerArgs      []string `json:"server_args,omitempty"`
	TLS             bool     `json:"tls,omitempty"`
	MountArgs       []string `json:"mount_args,omitempty"`
	Nodes           []*node  `json:"nodes"`
	Mounts          []*Mount `json:"mounts,omitempty"`
	Network         *network `json:"network,omitempty"`
}

// save replaces the state file whole: a reader sees the old or the new one.
func (s *state) save(dir string) error {
	path := filepath.Join(dir, StateFile)
	op := "write " + path
	raw, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return cfs.E(op, cfs.Invalid, err)
	}
	if err := os.WriteFile(path+".new", append(raw, '\n'), 0o600); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	return nil
}

// loadState reads the state file of a cluster's directory.
func loadState(dir string) (*state, error) {
	path := filepath.Join(dir, StateFile)
	op := "read " + path
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cfs.Errorf(op, cfs.NotFound, "no cluster was started in %s", dir)
	}
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	s := new(state)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, cfs.E(op, cfs.Corrupt, err)
	}
	if s.Version != stateVersion {
		return nil, cfs.Errorf(op, cfs.Corrupt, "version %d; this program knows %d", s.Version, stateVersion)
	}
	for i, n := range s.Nodes {
		if n == nil || n.ID != i+1 {
			return nil, cfs.Errorf(op, cfs.Corrupt, "node %d is missing", i+1)
		}
	}
	for _, m := range s.Mounts {
		if m == nil || m.Name == "" || m.Name != filepath.Base(m.Name) {
			return nil, cfs.Errorf(op, cfs.Corrupt, "a mount has no proper name")
		}
	}
	return s, nil
}
