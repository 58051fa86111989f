package filecache

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/internal/durable"
)

// File is a file of the cache in use: open for reading and writing.
type File struct {
	*os.File
	c *Cache
	e *entry
}

// Get opens the content k; nil if it is not here.
func (c *Cache) Get(k Key) *File {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.files[k.Ino]
	if e == nil || e.key != k || c.closed {
		return nil
	}
	f, err := os.OpenFile(c.path(k), os.O_RDWR, 0)
	if err != nil { // somebody has tidied up
		c.log.Warn("a file of the cache is lost", "err", err)
		c.unnameLocked(e)
		return nil
	}
	e.pins++
	c.used.MoveToFront(e.elem)
	if now := time.Now(); now.Sub(e.noted) > minUseAge {
		e.noted = now
		if err := os.Chtimes(f.Name(), now, now); err != nil {
			c.log.Debug("the time of use is not noted", "err", err)
		}
	}
	return &File{File: f, c: c, e: e}
}

// Detach takes the file's name away, durably: afterwards it may be changed.
func (f *File) Detach() error {
	if err := f.unname(); err != nil {
		return err
	}
	// Also when the name was gone already: that may not be durable.
	return durable.SyncDir(f.c.dir)
}

// unname takes the file's name away, unless another has it by now.
func (f *File) unname() error {
	c := f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.e.named {
		c.forgetLocked(f.e)
	} else if e := c.files[f.e.key.Ino]; e != nil && e.key == f.e.key {
		return nil
	}
	return c.removeLocked(f.e.key)
}

// InUse reports that the file is open or mapped by anybody else than by f, as the kernel knows: it grants a lease
// for writing to nobody else's only user. Where the file system of the cache has no leases nothing is known, and false.
func (f *File) InUse() bool {
	fd := f.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	if _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		f.c.log.Warn("a lease of a file of the cache is not given back", "err", err)
	}
	return false
}

// Shadow is a copy of the file as it is now, without a name.
func (f *File) Shadow() (*os.File, error) {
	s, err := os.CreateTemp(f.c.dir, "shadow-*"+partSuffix)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(s.Name()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if _, err = f.Seek(0, 0); err == nil {
		_, err = s.ReadFrom(f.File)
	}
	if err != nil {
		f.c.noteNoSpace(err)
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the use.
func (f *File) Close() error {
	f.c.mu.Lock()
	if f.e.pins--; f.e.pins == 0 && !f.e.named {
		f.c.bytes -= f.e.bytes
	}
	f.c.mu.Unlock()
	return f.File.Close()
}
