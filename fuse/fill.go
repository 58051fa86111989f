package fuse

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/fuse/filecache"
)

const (
	// fillWorkers is how many files are fetched into the cache directory at a time, and fillBytes what each has in memory.
	fillWorkers = 2
	fillBytes   = 4 << 20
	// maxFills bounds the files that wait to be fetched; more are not.
	maxFills = 1024
	// fillAfterBytes is how much of a large file a handle must have read in sequence for it to be fetched.
	fillAfterBytes = 8 << 20
	// runSlackBytes is how far a READ may be from the end of the one before it and still be in sequence: the kernel
	// reads ahead, and its requests overtake each other.
	runSlackBytes = 2 * DefaultReadAheadBytes
)

// readRun is how much of a file a handle has read in sequence. It is not exact.
type readRun struct{ end, bytes atomic.Uint64 }

// note takes note of a READ.
func (x *readRun) note(off, n uint64) {
	end := x.end.Swap(off + n)
	if off > end+runSlackBytes || off+runSlackBytes < end {
		x.bytes.Store(0)
	}
	x.bytes.Add(n)
}

// filler fetches files into the cache directory in the background.
type filler struct {
	mu    sync.Mutex
	queue []cfs.Ino
	more  *sync.Cond
	ended bool
}

// startFilling starts the workers.
func (p *passthrough) startFilling() {
	f := &p.filler
	f.more = sync.NewCond(&f.mu)
	context.AfterFunc(p.ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ended = true
		f.more.Broadcast()
	})
	for range fillWorkers {
		p.wg.Go(func() {
			for i, ok := f.next(); ok; i, ok = f.next() {
				if err := p.fill(i); err != nil && p.ctx.Err() == nil {
					p.log.Debug("a file is not fetched into the cache directory", "ino", uint64(i), "err", err)
				}
			}
		})
	}
}

// next waits for a file that is to be fetched; false when the mount ends.
func (f *filler) next() (cfs.Ino, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) == 0 && !f.ended {
		f.more.Wait()
	}
	if f.ended {
		return 0, false
	}
	i := f.queue[0]
	f.queue = f.queue[1:]
	return i, true
}

// consider has a file fetched if h, which is being closed, has read it from one end to the other, or much of it.
func (p *passthrough) consider(h *openFile) {
	if read := h.run.bytes.Load(); !p.able.Load() || h.use.mode != ioCached || h.use.write || read < min(h.size, fillAfterBytes) || h.size < p.least {
		return
	}
	f := &p.filler
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.queue {
		if i == h.ino {
			return
		}
	}
	if len(f.queue) < maxFills {
		f.queue = append(f.queue, h.ino)
		f.more.Signal()
	}
}

// errChanged says that a file has changed while it was fetched.
var errChanged = errors.New("the file is being changed")

// fill fetches an inode's content into the cache directory, unless it is there.
func (p *passthrough) fill(i cfs.Ino) error {
	n := p.inodes.hold(i)
	defer p.inodes.release(n)
	n.mu.Lock()
	changes, busy := n.changes, n.writers > 0 || n.pinned != nil
	n.mu.Unlock()
	if busy {
		return errChanged
	}
	f, err := p.fs.inodes.Open(p.ctx, i, syscall.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() {
		if err := f.Close(context.WithoutCancel(p.ctx)); err != nil {
			p.log.Debug("closing a file that was fetched", "ino", uint64(i), "err", err)
		}
	}()
	// The key is of what is committed: what is not, and was written here, would be lost with this client and live on there.
	if err := f.Sync(p.ctx); err != nil {
		return err
	}
	a, err := p.fs.inodes.GetAttr(p.ctx, i)
	if err != nil {
		return err
	}
	key := filecache.KeyOf(&a)
	if p.fallback(&a) != passedOpen || p.cache.Has(key) {
		return nil
	}
	w, err := p.cache.Create(key)
	if err != nil {
		return err
	}
	if err = p.copyIn(f, w, a.Size); err == nil {
		err = w.Sync()
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	return p.commitFill(n, w, key, changes)
}

// copyIn reads a file of size bytes into w.
func (p *passthrough) copyIn(f file, w *filecache.Fill, size uint64) error {
	buf := make([]byte, min(fillBytes, size))
	for off := uint64(0); off < size; {
		n, err := f.Read(p.ctx, buf[:min(fillBytes, size-off)], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return errChanged
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += uint64(n)
	}
	return nil
}

// commitFill ends a fetch: what was read is key's content if it is the file's key still and nobody here has changed the file since.
func (p *passthrough) commitFill(n *inodeIO, w *filecache.Fill, key filecache.Key, changes uint64) error {
	a, err := p.fs.inodes.GetAttr(p.ctx, n.ino)
	if err == nil && filecache.KeyOf(&a) != key {
		err = errChanged
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.writers > 0 || n.changes != changes {
		err = errors.Join(err, errChanged)
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}
