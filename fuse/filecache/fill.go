package filecache

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// Fill is a file on its way into the cache. It is used by one goroutine, and ends with Commit or Abort.
type Fill struct {
	c    *Cache
	e    *entry
	f    *os.File
	done uint64 // bytes written
}

// Create begins to fill the content k, having made room for all of it. cfs.NoSpace where there is none, cfs.Busy
// while the inode is being filled already.
func (c *Cache) Create(k Key) (*Fill, error) {
	const op = "fill the cache"
	e := &entry{key: k, bytes: roundUp(k.SizeBytes)}
	if err := c.reserve(op, e); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(c.path(k)+partSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		c.give(e)
		c.noteNoSpace(err)
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return &Fill{c: c, e: e, f: f}, nil
}

// reserve counts the bytes of a file that is to be filled.
func (c *Cache) reserve(op string, e *entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return cfs.E(op, cfs.Closed, nil)
	case c.filling[e.key.Ino]:
		return cfs.Errorf(op, cfs.Busy, "inode %d is being filled", uint64(e.key.Ino))
	case time.Now().Before(c.paused):
		return cfs.Errorf(op, cfs.NoSpace, "the local file system was full a short while ago")
	case e.bytes > c.limit || !c.makeRoomLocked(e.bytes):
		return cfs.Errorf(op, cfs.NoSpace, "no room for %d bytes: %s", e.bytes, c.errString())
	}
	c.filling[e.key.Ino] = true
	c.bytes += e.bytes
	return nil
}

// give takes reserve back.
func (c *Cache) give(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.filling, e.key.Ino)
	c.bytes -= e.bytes
}

// noteNoSpace stops filling for a while where the local file system is full.
func (c *Cache) noteNoSpace(err error) {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return
	}
	c.stats.noSpace.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = time.Now().Add(noSpacePause)
}

// Write adds the next bytes of the file.
func (w *Fill) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.done += uint64(n)
	w.c.noteNoSpace(err)
	return n, err
}

// Sync makes the bytes durable, which Commit relies on.
func (w *Fill) Sync() error {
	if w.done != w.e.key.SizeBytes {
		return cfs.Errorf("fill the cache", cfs.Invalid, "%d bytes of %d", w.done, w.e.key.SizeBytes)
	}
	err := unix.Fdatasync(int(w.f.Fd()))
	w.c.noteNoSpace(err)
	return err
}

// Commit makes the file one of the cache. It does not wait for the disk.
func (w *Fill) Commit() error {
	err := w.f.Close()
	if err == nil {
		err = os.Rename(w.f.Name(), w.c.path(w.e.key))
	}
	if err != nil {
		return errors.Join(err, w.remove())
	}
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.filling, w.e.key.Ino)
	if old := c.files[w.e.key.Ino]; old != nil && old.key == w.e.key {
		c.forgetLocked(old) // the same name: the file is replaced already
	}
	w.e.noted = time.Now()
	c.addLocked(w.e)
	c.stats.filled.Add(1)
	c.stats.filledBytes.Add(w.e.key.SizeBytes)
	return nil
}

// Abort gives the file up.
func (w *Fill) Abort() error { return errors.Join(w.f.Close(), w.remove()) }

func (w *Fill) remove() error {
	w.c.give(w.e)
	return os.Remove(w.f.Name())
}
