package fuse

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

// rooted is a backend whose root is a directory below the namespace's: the one place where the number that the
// kernel has for the root, cfs.RootIno, and the directory's own are exchanged. (kernelConn does it for what the daemon says
// by itself.) Everything else in this package knows numbers as the kernel does.
//
// The root of the namespace cannot be reached: the kernel answers ".." of a mount's root, and the
// parent that a listing shows there is the root itself. A root that is removed answers ESTALE from then on.
//
// It embeds none of the interfaces, so that a method that is added to one must be thought of here.
type rooted struct {
	b    backend
	root cfs.Ino
}

// rootedAt is b with another root; 0 for its own.
func rootedAt(b backend, root cfs.Ino) backend {
	if root == 0 || root == cfs.RootIno {
		return b
	}
	r := rooted{b, root}
	b.namespace, b.inodes, b.leases, b.xattrs, b.tmpfiles, b.locker = r, r, r, r, r, r
	return b
}

// in is the cluster's number of what the kernel calls i, and out the reverse.
func (r rooted) in(i cfs.Ino) cfs.Ino {
	if i == cfs.RootIno {
		return r.root
	}
	return i
}

func (r rooted) out(i cfs.Ino) cfs.Ino {
	if i == r.root {
		return cfs.RootIno
	}
	return i
}

// answer is an answer with the number changed.
func (r rooted) answer(a cfs.Attr, err error) (cfs.Attr, error) {
	a.Ino = r.out(a.Ino)
	return a, err
}

// Lookup is that of namespace.
func (r rooted) Lookup(ctx context.Context, dir cfs.Ino, name string) (cfs.Attr, error) {
	return r.answer(r.b.namespace.Lookup(ctx, r.in(dir), name))
}

// Create is that of namespace.
func (r rooted) Create(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, mode, rdev uint32, target string, exclusive bool) (cfs.Attr, error) {
	return r.answer(r.b.namespace.Create(ctx, cred, r.in(dir), name, mode, rdev, target, exclusive))
}

// Link is that of namespace.
func (r rooted) Link(ctx context.Context, cred cfs.Cred, ino, dir cfs.Ino, name string) (cfs.Attr, error) {
	return r.answer(r.b.namespace.Link(ctx, cred, r.in(ino), r.in(dir), name))
}

// Unlink is that of namespace.
func (r rooted) Unlink(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error {
	return r.b.namespace.Unlink(ctx, cred, r.in(dir), name)
}

// Rmdir is that of namespace.
func (r rooted) Rmdir(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error {
	return r.b.namespace.Rmdir(ctx, cred, r.in(dir), name)
}

// Rename is that of namespace.
func (r rooted) Rename(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, newDir cfs.Ino, newName string, flags uint32) error {
	return r.b.namespace.Rename(ctx, cred, r.in(dir), name, r.in(newDir), newName, flags)
}

// Readlink is that of namespace.
func (r rooted) Readlink(ctx context.Context, ino cfs.Ino) (string, error) {
	return r.b.namespace.Readlink(ctx, r.in(ino))
}

// GetAttr is that of inodes.
func (r rooted) GetAttr(ctx context.Context, ino cfs.Ino) (cfs.Attr, error) {
	return r.answer(r.b.inodes.GetAttr(ctx, r.in(ino)))
}

// SetAttr is that of inodes.
func (r rooted) SetAttr(ctx context.Context, cred cfs.Cred, ino cfs.Ino, mask cfs.SetMask, attr cfs.Attr) (cfs.Attr, error) {
	return r.answer(r.b.inodes.SetAttr(ctx, cred, r.in(ino), mask, attr))
}

// Statfs is the whole cluster's: a directory has no limit of its own.
func (r rooted) Statfs(ctx context.Context) (cfs.Statfs, error) { return r.b.inodes.Statfs(ctx) }

// LeasedAttr is that of leases.
func (r rooted) LeasedAttr(ino cfs.Ino) (cfs.Attr, client.Lease) {
	a, l := r.b.leases.LeasedAttr(r.in(ino))
	a.Ino = r.out(a.Ino)
	return a, l
}

// LeasedName is that of leases: the root is behind no name.
func (r rooted) LeasedName(dir cfs.Ino, name string) (cfs.Ino, time.Duration) {
	return r.b.leases.LeasedName(r.in(dir), name)
}

// rootedObserver is told of the root by the number that the kernel has for it.
type rootedObserver struct {
	client.Observer
	r rooted
}

// ForgetInode is that of client.Observer.
func (o rootedObserver) ForgetInode(i cfs.Ino) { o.Observer.ForgetInode(o.r.out(i)) }

// ForgetNames is that of client.Observer.
func (o rootedObserver) ForgetNames(dir cfs.Ino) { o.Observer.ForgetNames(o.r.out(dir)) }

// observerAt is an observer of a mount whose root is a directory; 0 for the namespace's.
func observerAt(o client.Observer, root cfs.Ino) client.Observer {
	if root == 0 || root == cfs.RootIno {
		return o
	}
	return rootedObserver{o, rooted{root: root}}
}

// Open is that of inodes.
func (r rooted) Open(ctx context.Context, ino cfs.Ino, flags int) (file, error) {
	return r.b.inodes.Open(ctx, r.in(ino), flags)
}

// OpenNew is that of inodes: what is new is not the root.
func (r rooted) OpenNew(a cfs.Attr, flags int) file { return r.b.inodes.OpenNew(a, flags) }

// OpenDir is that of inodes.
func (r rooted) OpenDir(ctx context.Context, ino cfs.Ino) (directory, error) {
	d, err := r.b.inodes.OpenDir(ctx, r.in(ino))
	if err != nil {
		return nil, err
	}
	return rootedDir{d, r, ino == cfs.RootIno}, nil
}

// SyncDir is that of inodes.
func (r rooted) SyncDir(ctx context.Context, ino cfs.Ino) error {
	return r.b.inodes.SyncDir(ctx, r.in(ino))
}

// rootedDir is a listing. The root is in no directory below it, so only the parent may be changed.
type rootedDir struct {
	directory
	r      rooted
	ofRoot bool
}

// Parent is the root's own number for the root, as in every file system.
func (d rootedDir) Parent() cfs.Ino {
	if d.ofRoot {
		return cfs.RootIno
	}
	return d.r.out(d.directory.Parent())
}

// GetXattr is that of xattrs.
func (r rooted) GetXattr(ctx context.Context, ino cfs.Ino, name string) ([]byte, error) {
	return r.b.xattrs.GetXattr(ctx, r.in(ino), name)
}

// SetXattr is that of xattrs.
func (r rooted) SetXattr(ctx context.Context, cred cfs.Cred, ino cfs.Ino, name string, value []byte, flags uint32) error {
	return r.b.xattrs.SetXattr(ctx, cred, r.in(ino), name, value, flags)
}

// ListXattr is that of xattrs.
func (r rooted) ListXattr(ctx context.Context, ino cfs.Ino) ([]string, error) {
	return r.b.xattrs.ListXattr(ctx, r.in(ino))
}

// RemoveXattr is that of xattrs.
func (r rooted) RemoveXattr(ctx context.Context, cred cfs.Cred, ino cfs.Ino, name string) error {
	return r.b.xattrs.RemoveXattr(ctx, cred, r.in(ino), name)
}

// Tmpfile is that of tmpfiles.
func (r rooted) Tmpfile(ctx context.Context, cred cfs.Cred, dir cfs.Ino, mode uint32, exclusive bool, flags int) (file, cfs.Attr, error) {
	return r.b.tmpfiles.Tmpfile(ctx, cred, r.in(dir), mode, exclusive, flags)
}

// SetLock is that of locker.
func (r rooted) SetLock(ctx context.Context, ino cfs.Ino, l cfs.Lock, wait bool) error {
	return r.b.locker.SetLock(ctx, r.in(ino), l, wait)
}

// GetLock is that of locker.
func (r rooted) GetLock(ctx context.Context, ino cfs.Ino, l cfs.Lock) (cfs.Lock, error) {
	return r.b.locker.GetLock(ctx, r.in(ino), l)
}

// ReleaseOwner is that of locker.
func (r rooted) ReleaseOwner(ctx context.Context, ino cfs.Ino, kind cfs.LockKind, owner uint64) error {
	return r.b.locker.ReleaseOwner(ctx, r.in(ino), kind, owner)
}
