package fuse

import (
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/claudefs/claudefs/cfs"
)

// dots is the number of entries before the first name: "." at cookie 0 and ".."
// at 1. The name at position p of the client's listing is at cookie p + dots, for
// as long as the directory is open.
const dots = 2

// openDir is a directory that a process has open.
type openDir struct {
	ino cfs.Ino

	mu      sync.Mutex
	listing directory // nil until it is needed
	started bool      // has been read: a read from the start begins a new listing
	gen     uint64    // of the directory at open
	shift   uint64    // cookies that came before the listing's first
}

// OpenDir opens a directory. The kernel keeps what it reads of it, for as long as nobody else changes the directory: then
// the names are not even looked for here, unless it asks.
func (fs *fileSystem) OpenDir(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	r := fs.begin(opOpenDir, cancel, &in.InHeader)
	d := &openDir{ino: cfs.Ino(in.NodeId)}
	out.OpenFlags |= gofuse.FOPEN_CACHE_DIR
	a, err := fs.inodes.GetAttr(r, d.ino)
	d.gen = a.Gen
	switch {
	case err != nil:
	case fs.pagesOf(&a):
		out.OpenFlags |= gofuse.FOPEN_KEEP_CACHE
	default:
		d.listing, err = fs.inodes.OpenDir(r, d.ino)
	}
	if err == nil {
		out.Fh, err = fs.dirs.add(d)
	}
	return r.end(gone(err))
}

// ReadDir lists names.
func (fs *fileSystem) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	r := fs.begin(opReadDir, cancel, &in.InHeader)
	return r.end(fs.list(r, in, func(e *gofuse.DirEntry, _ *cfs.Attr) bool { return out.AddDirEntry(*e) }))
}

// ReadDirPlus lists names with their attributes, which saves a lookup of each.
// An entry with node 0 is a name alone: the kernel learns nothing else from it.
func (fs *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	r := fs.begin(opReadDirPlus, cancel, &in.InHeader)
	dir, kept := cfs.Ino(in.NodeId), false
	err := fs.list(r, in, func(e *gofuse.DirEntry, a *cfs.Attr) bool {
		entry := out.AddDirLookupEntry(*e)
		if entry == nil {
			return false
		}
		if a != nil {
			fs.fillEntry(entry, dir, e.Name, a)
			kept = kept || entry.EntryTimeout() > 0
		}
		return true
	})
	fs.caches.namesListed(dir, kept)
	return r.end(err)
}

// relist begins a listing where the kernel goes on from the names that it had kept, at a cookie. If the directory has changed since
// it was opened the positions are others now: all names come again rather than that one is left out.
func (fs *fileSystem) relist(r *request, d *openDir, cookie uint64) error {
	listing, err := fs.inodes.OpenDir(r, d.ino)
	if err != nil {
		return err
	}
	if cookie > dots {
		a, err := fs.inodes.GetAttr(r, d.ino)
		if err != nil {
			return err
		}
		if a.Gen != d.gen {
			d.shift = cookie - dots
		}
	}
	d.listing = listing
	return nil
}

// list calls add for each entry from in.Offset until it says that there is no more room.
func (fs *fileSystem) list(r *request, in *gofuse.ReadIn, add func(*gofuse.DirEntry, *cfs.Attr) bool) error {
	d, ok := fs.dirs.get(in.Fh)
	if !ok {
		return cfs.Errorf("readdir", cfs.Closed, "handle %d", in.Fh)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listing == nil {
		if err := fs.relist(r, d, in.Offset); err != nil {
			return gone(err)
		}
	} else if in.Offset == 0 && d.started {
		d.listing.Rewind() // rewinddir(3)
		d.shift = 0
	}
	d.started = true
	cookie, added := in.Offset, false
	for ; cookie < dots; cookie++ {
		e := gofuse.DirEntry{Name: "..", Ino: uint64(d.listing.Parent()), Mode: cfs.ModeDir, Off: cookie + 1}
		if cookie == 0 {
			e.Name, e.Ino = ".", uint64(d.ino)
		}
		if !add(&e, nil) {
			return nil
		}
		added = true
	}
	for ; ; cookie++ {
		ent, more, err := d.listing.At(r, cookie-dots-d.shift)
		if err != nil && added {
			return nil // what there is; the next read meets the error again
		}
		if err != nil || !more {
			return gone(err)
		}
		e := gofuse.DirEntry{Name: ent.Name, Ino: uint64(ent.Ino), Mode: ent.Mode, Off: cookie + 1}
		if !add(&e, ent.Attr) {
			return nil
		}
		added = true
	}
}

// ReleaseDir closes a directory.
func (fs *fileSystem) ReleaseDir(in *gofuse.ReleaseIn) {
	r := fs.begin(opReleaseDir, nil, &in.InHeader)
	fs.dirs.remove(in.Fh)
	r.end(nil)
}

// FsyncDir makes what was done to the names of a directory durable.
func (fs *fileSystem) FsyncDir(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	r := fs.begin(opFsyncDir, cancel, &in.InHeader)
	return r.end(gone(fs.SyncDir(r, cfs.Ino(in.NodeId))))
}
