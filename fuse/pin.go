package fuse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/fuse/filecache"
)

const (
	// copyBytes is how much of a file is compared or copied at a time.
	copyBytes = 256 << 10
	// lineBytes is the grain in which what a mapping has changed is found.
	lineBytes = 64
)

// pin is a version of an inode that the kernel reads, and has mapped, in a file of the cache.
//
// While it lasts, what this mount changes of the inode goes to the cluster and to the file, so that all on this
// machine see it. What is stored through a shared mapping is in the file alone: with a handle that may be mapped so there is a copy of the
// file, the shadow, which gets every change that the cluster has. Where the two differ, a mapping was written.
type pin struct {
	p    *passthrough
	ino  cfs.Ino
	id   int32
	key  filecache.Key
	file *filecache.File

	// Guarded by inodeIO.mu:
	users     int    // handles, and changes under way
	entries   uint64 // users that there have been
	lingering bool
	changed   bool // a writer has entered: the file is not what its key says

	// order is held over each change, so that cluster, file and shadow get them in one sequence.
	order    sync.Mutex
	detached bool // guarded by order: the file has lost its name
	shadow   atomic.Pointer[os.File]
	writer   file // guarded by order: what push writes through
}

// prepare makes the file one that may be changed; by mappings too if mapped says so.
func (n *pin) prepare(mapped bool) error {
	n.order.Lock()
	defer n.order.Unlock()
	if !n.detached {
		if err := n.file.Detach(); err != nil {
			return cfs.E("open", cfs.KindOf(err), err)
		}
		n.detached = true
	}
	if !mapped || n.shadow.Load() != nil {
		return nil
	}
	s, err := n.file.Shadow()
	if err != nil {
		return cfs.E("open", cfs.KindOf(err), err)
	}
	n.shadow.Store(s)
	return nil
}

// close ends the pin's files. Nobody uses it any more.
func (n *pin) close() {
	n.order.Lock()
	defer n.order.Unlock()
	err := n.p.fs.kernel.closeBacking(n.id)
	if s := n.shadow.Load(); s != nil {
		err = errors.Join(err, s.Close())
	}
	if n.writer != nil {
		err = errors.Join(err, n.writer.Close(context.WithoutCancel(n.p.ctx)))
	}
	if err = errors.Join(err, n.file.Close()); err != nil {
		n.p.log.Error("ending a pinned version", "ino", uint64(n.ino), "err", err)
	}
}

// write writes to the cluster through f, at the end if appending, and to the file.
func (n *pin) write(r *request, f file, data []byte, off uint64, appending bool) (int, error) {
	n.order.Lock()
	defer n.order.Unlock()
	done, err := f.Write(r, data, off)
	if done == 0 {
		return 0, err
	}
	if appending {
		a, err2 := n.p.fs.inodes.GetAttr(r, n.ino)
		if err2 != nil || a.Size < uint64(done) {
			n.p.log.Warn("an append is not seen by who has the file open", "ino", uint64(n.ino), "err", err2)
			return done, err
		}
		off = a.Size - uint64(done)
	}
	n.mirror(data[:done], off)
	return done, err
}

// mirror writes to file and shadow what the cluster has got. The file comes first: what did not reach it must not be
// taken for something that a mapping has changed.
func (n *pin) mirror(data []byte, off uint64) {
	done, err := n.file.WriteAt(data, int64(off))
	if s := n.shadow.Load(); s != nil && done > 0 {
		_, err2 := s.WriteAt(data[:done], int64(off))
		err = errors.Join(err, err2)
	}
	if err != nil {
		n.p.log.Error("a write is not seen by who has the file open", "ino", uint64(n.ino), "err", err)
	}
}

// resize carries out do, which sets the inode's size, and gives file and shadow the same.
func (n *pin) resize(do func() (cfs.Attr, error)) (cfs.Attr, error) {
	n.order.Lock()
	defer n.order.Unlock()
	a, err := do()
	if err == nil {
		n.trim(a.Size)
	}
	return a, err
}

func (n *pin) trim(size uint64) {
	err := n.file.Truncate(int64(size))
	if s := n.shadow.Load(); s != nil {
		err = errors.Join(err, s.Truncate(int64(size)))
	}
	if err != nil {
		n.p.log.Error("a new size is not seen by who has the file open", "ino", uint64(n.ino), "err", err)
	}
}

// changing carries out do, which changes length bytes from off on in the cluster and maybe the size, and brings them from f into the file.
func (n *pin) changing(r *request, f file, off, length uint64, do func() error) error {
	if err := n.push(r, off, length); err != nil {
		return err
	}
	n.order.Lock()
	defer n.order.Unlock()
	if err := do(); err != nil {
		return err
	}
	a, err := n.p.fs.inodes.GetAttr(r, n.ino)
	if err != nil {
		return err
	}
	n.trim(a.Size)
	buf := make([]byte, copyBytes)
	for at, end := off, min(off+length, a.Size); at < end; {
		got, err := f.Read(r, buf[:min(copyBytes, end-at)], at)
		if err != nil || got == 0 {
			return err
		}
		n.mirror(buf[:got], at)
		at += uint64(got)
	}
	return nil
}

// push writes to the cluster what was stored through mappings in length bytes from off on.
func (n *pin) push(ctx context.Context, off, length uint64) error {
	s := n.shadow.Load()
	if s == nil {
		return nil
	}
	n.order.Lock()
	defer n.order.Unlock()
	end := off + min(length, cfs.MaxFileSize-off)
	off -= off % lineBytes
	part := min(copyBytes, end-off+lineBytes)
	got, had := make([]byte, part), make([]byte, part)
	for off < end {
		want := min(part, end-off+lineBytes-end%lineBytes) // whole lines
		size, err := n.file.ReadAt(got[:want], int64(off))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		old, err := s.ReadAt(had[:size], int64(off))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		size = min(size, old)
		if err := n.pushChanged(ctx, s, got[:size], had[:size], off); err != nil || uint64(size) < want {
			return err
		}
		off += want
	}
	return nil
}

// pushChanged writes the runs of lines in which got, at off, differs from had.
func (n *pin) pushChanged(ctx context.Context, s *os.File, got, had []byte, off uint64) error {
	if bytes.Equal(got, had) {
		return nil
	}
	differs := func(at int) bool {
		end := min(at+lineBytes, len(got))
		return at < len(got) && !bytes.Equal(got[at:end], had[at:end])
	}
	for at := 0; at < len(got); at += lineBytes {
		from := at
		for differs(at) {
			at += lineBytes
		}
		if at == from {
			continue
		}
		run := got[from:min(at, len(got))]
		if err := n.pushRun(ctx, run, off+uint64(from)); err != nil {
			return err
		}
		if _, err := s.WriteAt(run, int64(off)+int64(from)); err != nil {
			return err
		}
	}
	return nil
}

func (n *pin) pushRun(ctx context.Context, run []byte, off uint64) error {
	if n.writer == nil {
		f, err := n.p.fs.inodes.Open(ctx, n.ino, syscall.O_RDWR)
		if err != nil {
			return err
		}
		n.writer = f
	}
	_, err := n.writer.Write(ctx, run, off)
	return err
}
