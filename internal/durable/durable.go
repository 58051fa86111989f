// Package durable makes small files and names survive a crash: fsync(2) of a file, rename(2), fsync of its directory.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// TempPrefix begins the names that Replace writes under, and that a crash leaves.
const TempPrefix = ".new-"

// Replace makes content the file at path, of mode 0600, so that a crash leaves the old or the new, whole.
// Several processes may do so at once: the last one's stays.
func Replace(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix+"*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
