package fuse

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

// namespace is what the front end asks about names. Credentials come without
// Enforce: the kernel has checked permissions (default_permissions).
type namespace interface {
	Lookup(ctx context.Context, dir cfs.Ino, name string) (cfs.Attr, error)
	Create(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, mode, rdev uint32, target string, exclusive bool) (cfs.Attr, error)
	Link(ctx context.Context, cred cfs.Cred, ino, dir cfs.Ino, name string) (cfs.Attr, error)
	Unlink(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error
	Rmdir(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error
	Rename(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, newDir cfs.Ino, newName string, flags uint32) error
	Readlink(ctx context.Context, ino cfs.Ino) (string, error)
}

// inodes is what it asks about an inode, and how it opens one. Open gets O_*
// flags without O_CREAT, O_EXCL and O_TRUNC, which are done apart; OpenNew opens
// what Create has just made, and asks nobody. SyncDir returns when all that was done to a directory's names is durable.
type inodes interface {
	GetAttr(ctx context.Context, ino cfs.Ino) (cfs.Attr, error)
	SetAttr(ctx context.Context, cred cfs.Cred, ino cfs.Ino, mask cfs.SetMask, attr cfs.Attr) (cfs.Attr, error)
	Statfs(ctx context.Context) (cfs.Statfs, error)
	Open(ctx context.Context, ino cfs.Ino, flags int) (file, error)
	OpenNew(a cfs.Attr, flags int) file
	OpenDir(ctx context.Context, ino cfs.Ino) (directory, error)
	SyncDir(ctx context.Context, ino cfs.Ino) error
}

// leases is what the kernel may keep, of what this front end has asked for: an inode's attributes, and what is behind a name
// (0 for nothing). It may keep nothing where the time to live is 0.
type leases interface {
	LeasedAttr(ino cfs.Ino) (cfs.Attr, client.Lease)
	LeasedName(dir cfs.Ino, name string) (cfs.Ino, time.Duration)
}

// xattrs is extended attributes. An absent one is cfs.NoAttr.
type xattrs interface {
	GetXattr(ctx context.Context, ino cfs.Ino, name string) ([]byte, error)
	SetXattr(ctx context.Context, cred cfs.Cred, ino cfs.Ino, name string, value []byte, flags uint32) error
	ListXattr(ctx context.Context, ino cfs.Ino) ([]string, error)
	RemoveXattr(ctx context.Context, cred cfs.Cred, ino cfs.Ino, name string) error
}

// tmpfiles makes files without a name and opens them (O_TMPFILE).
type tmpfiles interface {
	Tmpfile(ctx context.Context, cred cfs.Cred, dir cfs.Ino, mode uint32, exclusive bool, flags int) (file, cfs.Attr, error)
}

// file is one open file. Read is short only at the end; neither Read nor Write
// keeps p after it returns.
type file interface {
	Read(ctx context.Context, p []byte, off uint64) (int, error)
	Write(ctx context.Context, p []byte, off uint64) (int, error)
	Flush(ctx context.Context) error
	Sync(ctx context.Context) error
	Close(ctx context.Context) error
	Allocate(ctx context.Context, mode uint32, off, n uint64) error
	Seek(ctx context.Context, off uint64, whence int) (uint64, error)
}

// directory is one listing; position 0 is the first name, . and .. not counted.
// A position means the same name for as long as the listing is open.
// Rewind makes the next read of position 0 see what is there then.
type directory interface {
	At(ctx context.Context, pos uint64) (cfs.Dirent, bool, error)
	Rewind()
	Parent() cfs.Ino
}

// copier copies between open files, both of its own, without moving bytes through
// the kernel. It is short at the source's end, and where it fails after a part. mask is SetKillPriv
// where the copy takes set-user-ID and set-group-ID away, else nothing.
type copier interface {
	CopyRange(ctx context.Context, src, dst file, srcOff, dstOff, n uint64, mask cfs.SetMask) (uint64, error)
}

// locker is locks. One in the way is cfs.Locked; with wait it is waited for until ctx ends.
type locker interface {
	SetLock(ctx context.Context, ino cfs.Ino, l cfs.Lock, wait bool) error
	GetLock(ctx context.Context, ino cfs.Ino, l cfs.Lock) (cfs.Lock, error)
	ReleaseOwner(ctx context.Context, ino cfs.Ino, kind cfs.LockKind, owner uint64) error
}

// backend is all of it: a client, or a test's double of one.
type backend struct {
	namespace
	inodes
	leases
	xattrs
	copier
	tmpfiles
	locker
}

// clientInodes gives the client's files and listings as the interfaces here.
type clientInodes struct{ *client.Client }

// Open opens ino; see inodes.
func (c clientInodes) Open(ctx context.Context, ino cfs.Ino, flags int) (file, error) {
	f, err := c.Client.Open(ctx, ino, flags)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// OpenNew opens what Create has just made.
func (c clientInodes) OpenNew(a cfs.Attr, flags int) file { return c.Client.OpenNew(a, flags) }

// Tmpfile makes and opens a file without a name.
func (c clientInodes) Tmpfile(ctx context.Context, cred cfs.Cred, dir cfs.Ino, mode uint32, exclusive bool, flags int) (file, cfs.Attr, error) {
	f, a, err := c.Client.Tmpfile(ctx, cred, dir, mode, exclusive, flags)
	if err != nil {
		return nil, a, err
	}
	return f, a, nil
}

// OpenDir opens a listing of ino.
func (c clientInodes) OpenDir(ctx context.Context, ino cfs.Ino) (directory, error) {
	d, err := c.Client.OpenDir(ctx, ino)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// clientCopier copies between the client's files.
type clientCopier struct{}

// CopyRange copies by reference; see copier.
func (clientCopier) CopyRange(ctx context.Context, src, dst file, srcOff, dstOff, n uint64, mask cfs.SetMask) (uint64, error) {
	from, ok := src.(*client.File)
	to, ok2 := dst.(*client.File)
	if !ok || !ok2 {
		return 0, cfs.E("copy range", cfs.Unsupported, nil)
	}
	return from.CopyRange(ctx, to, srcOff, dstOff, n, mask)
}

func clientBackend(c *client.Client) backend {
	return backend{namespace: c, inodes: clientInodes{c}, leases: c, xattrs: c, copier: clientCopier{}, tmpfiles: clientInodes{c}, locker: c}
}
