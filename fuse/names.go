package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/claudefs/claudefs/cfs"
)

// Lookup finds a name. An absent one is an answer too, which the kernel may
// keep: node 0 with a timeout.
func (fs *fileSystem) Lookup(cancel <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	r := fs.begin(opLookup, cancel, h)
	if name == "." || name == ".." {
		return fs.lookupByNode(r, h.NodeId, name, out)
	}
	if err := checkName(name); err != nil {
		return r.end(err)
	}
	a, err := fs.namespace.Lookup(r, cfs.Ino(h.NodeId), name)
	if cfs.KindOf(err) == cfs.NotFound {
		if ttl := fs.nameTTL(cfs.Ino(h.NodeId), name, 0); ttl > 0 {
			out.NodeId = 0
			out.SetEntryTimeout(ttl)
			return r.end(nil)
		}
	}
	if err == nil {
		fs.fillEntry(out, cfs.Ino(h.NodeId), name, &a)
	}
	return r.end(err)
}

// Forget does nothing: a node id is an inode number, and no node is kept.
func (fs *fileSystem) Forget(_, _ uint64) {}

// make creates an inode of any type for Mknod, Mkdir and Symlink.
func (fs *fileSystem) make(r *request, h *gofuse.InHeader, name string, mode, umask, rdev uint32, target string, out *gofuse.EntryOut) gofuse.Status {
	if err := checkName(name); err != nil {
		return r.end(err)
	}
	a, err := fs.namespace.Create(r, maker(h, umask), cfs.Ino(h.NodeId), name, mode, rdev, target, true)
	if err == nil {
		fs.setBare(a.Ino)
		fs.fillEntry(out, cfs.Ino(h.NodeId), name, &a)
	}
	return r.end(err)
}

// Mknod makes a file, FIFO, socket or device node.
func (fs *fileSystem) Mknod(cancel <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	mode := in.Mode
	if mode&cfs.ModeType == 0 {
		mode |= cfs.ModeRegular // as mknod(2) has it
	}
	return fs.make(fs.begin(opMknod, cancel, &in.InHeader), &in.InHeader, name, mode, in.Umask, in.Rdev, "", out)
}

// Mkdir makes a directory.
func (fs *fileSystem) Mkdir(cancel <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	mode := in.Mode&cfs.ModePerm | cfs.ModeDir
	return fs.make(fs.begin(opMkdir, cancel, &in.InHeader), &in.InHeader, name, mode, in.Umask, 0, "", out)
}

// Symlink makes a symbolic link.
func (fs *fileSystem) Symlink(cancel <-chan struct{}, h *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	r := fs.begin(opSymlink, cancel, h)
	if len(target) > cfs.MaxSymlink {
		return r.end(cfs.Errorf("symlink", cfs.NameTooLong, "target of %d bytes", len(target)))
	}
	return fs.make(r, h, name, cfs.ModeSymlink|0o777, 0, 0, target, out)
}

// Readlink reads a symbolic link. An inode's target never changes, so the kernel
// keeps it.
func (fs *fileSystem) Readlink(cancel <-chan struct{}, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	r := fs.begin(opReadlink, cancel, h)
	target, err := fs.namespace.Readlink(r, cfs.Ino(h.NodeId))
	return []byte(target), r.end(gone(err))
}

// Link adds a name to an inode.
func (fs *fileSystem) Link(cancel <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	r := fs.begin(opLink, cancel, &in.InHeader)
	if err := checkName(name); err != nil {
		return r.end(err)
	}
	a, err := fs.namespace.Link(r, cred(&in.InHeader), cfs.Ino(in.Oldnodeid), cfs.Ino(in.NodeId), name)
	if err == nil {
		fs.fillEntry(out, cfs.Ino(in.NodeId), name, &a)
	}
	return r.end(err)
}

// Unlink removes a name that is not a directory.
func (fs *fileSystem) Unlink(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	r := fs.begin(opUnlink, cancel, h)
	return r.end(fs.namespace.Unlink(r, cred(h), cfs.Ino(h.NodeId), name))
}

// Rmdir removes an empty directory.
func (fs *fileSystem) Rmdir(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	r := fs.begin(opRmdir, cancel, h)
	return r.end(fs.namespace.Rmdir(r, cred(h), cfs.Ino(h.NodeId), name))
}

// Rename moves a name; Flags is that of renameat2(2). Whiteouts belong to
// overlayfs's upper layer, which nothing here serves yet.
func (fs *fileSystem) Rename(cancel <-chan struct{}, in *gofuse.RenameIn, name, newName string) gofuse.Status {
	r := fs.begin(opRename, cancel, &in.InHeader)
	if in.Flags&^(cfs.RenameNoreplace|cfs.RenameExchange) != 0 {
		return r.end(cfs.Errorf("rename", cfs.Invalid, "flags %#x", in.Flags))
	}
	if err := checkName(newName); err != nil {
		return r.end(err)
	}
	return r.end(fs.namespace.Rename(r, cred(&in.InHeader), cfs.Ino(in.NodeId), name, cfs.Ino(in.Newdir), newName, in.Flags))
}
