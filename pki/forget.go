package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
)

// ForgetAuthority removes the authority's key, durably; none is no error. Its certificate stays.
func (s *Store) ForgetAuthority() error {
	path := filepath.Join(s.dir, authorityKeyFile)
	s.mu.Lock()
	defer s.mu.Unlock()
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return cfs.E(path, cfs.KindOf(err), err)
	}
	if err := durable.SyncDir(s.dir); err != nil {
		return cfs.E(path, cfs.KindOf(err), err)
	}
	return nil
}
