package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/claudefs/claudefs/cfs"
)

// lookupByNode is LOOKUP of "." and "..", which the kernel sends only for what it was given by a file
// handle (open_by_handle_at(2), the NFS server) and has forgotten: the inode itself, of any type, and
// a directory's parent. CAP_EXPORT_SUPPORT lets it ask. A node id is an inode number and those are never used
// twice, so that a handle stays good across mounts, and one of a removed inode is ESTALE.
func (fs *fileSystem) lookupByNode(r *request, node uint64, name string, out *gofuse.EntryOut) gofuse.Status {
	ino := cfs.Ino(node)
	if name == ".." {
		listing, err := fs.inodes.OpenDir(r, ino)
		if err != nil {
			return r.end(gone(err))
		}
		ino = listing.Parent()
	}
	a, err := fs.inodes.GetAttr(r, ino)
	if err == nil {
		out.NodeId = uint64(a.Ino) // no name is behind it, and nothing to keep
		fs.fillAttr(&out.Attr, &a)
	}
	return r.end(gone(err))
}
