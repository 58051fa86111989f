package fuse

import (
	"bytes"
	"strings"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// GetAttr is stat(2).
func (fs *fileSystem) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	r := fs.begin(opGetAttr, cancel, &in.InHeader)
	a, err := fs.inodes.GetAttr(r, cfs.Ino(in.NodeId))
	if err == nil {
		out.SetTimeout(fs.attrTTL(&a))
		fs.fillAttr(&out.Attr, &a)
	}
	return r.end(gone(err))
}

// Statx is statx(2) where it asks for what GETATTR lacks: the time of birth.
func (fs *fileSystem) Statx(cancel <-chan struct{}, in *gofuse.StatxIn, out *gofuse.StatxOut) gofuse.Status {
	r := fs.begin(opStatx, cancel, &in.InHeader)
	a, err := fs.inodes.GetAttr(r, cfs.Ino(in.NodeId))
	if err != nil {
		return r.end(gone(err))
	}
	out.SetTimeout(fs.attrTTL(&a))
	out.Mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	out.Blksize = preferredIOBytes
	out.Ino, out.Size, out.Blocks = uint64(a.Ino), a.Size, a.Blocks
	out.Mode, out.Nlink = uint16(a.Mode), a.Nlink
	out.Uid, out.Gid = fs.owners.show(a.UID, a.GID)
	// The reverse of new_encode_dev of linux/kdev_t.h, which is how Rdev came.
	out.RdevMajor, out.RdevMinor = a.Rdev&0xfff00>>8, a.Rdev&0xff|a.Rdev>>12&0xfff00
	out.Atime.Sec, out.Atime.Nsec = splitNS(a.AtimeNS)
	out.Mtime.Sec, out.Mtime.Nsec = splitNS(a.MtimeNS)
	out.Ctime.Sec, out.Ctime.Nsec = splitNS(a.CtimeNS)
	out.Btime.Sec, out.Btime.Nsec = splitNS(a.BtimeNS)
	return r.end(nil)
}

// SetAttr is chmod, chown, truncate and utimensat. A size set through a handle
// needs no handle here: all handles of an inode share its buffers.
func (fs *fileSystem) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	r := fs.begin(opSetAttr, cancel, &in.InHeader)
	mask, want := setAttrMask(in)
	ino := cfs.Ino(in.NodeId)
	var a cfs.Attr
	owned := mask&(cfs.SetUID|cfs.SetGID) != 0
	mask, err := fs.owners.chown(mask, &want)
	if err == nil && owned {
		// chown takes set-user-ID and set-group-ID away from all but directories, where they mean something else.
		if a, err = fs.inodes.GetAttr(r, ino); err == nil && !a.IsDir() {
			mask |= cfs.SetKillPriv
		}
	}
	switch {
	case err == nil && mask&cfs.SetSize != 0:
		a, err = fs.resizing(ino, func() (cfs.Attr, error) { return fs.inodes.SetAttr(r, cred(&in.InHeader), ino, mask, want) })
	case err == nil && mask != 0:
		a, err = fs.inodes.SetAttr(r, cred(&in.InHeader), ino, mask, want)
	case err == nil:
		a, err = fs.inodes.GetAttr(r, ino)
	}
	if err == nil {
		out.SetTimeout(fs.attrTTL(&a))
		fs.fillAttr(&out.Attr, &a)
	}
	return r.end(gone(err))
}

// setAttrMask translates the kernel's FATTR_* bits.
func setAttrMask(in *gofuse.SetAttrIn) (cfs.SetMask, cfs.Attr) {
	var mask cfs.SetMask
	want := cfs.Attr{
		Mode: in.Mode & cfs.ModePerm, UID: in.Uid, GID: in.Gid, Size: in.Size,
		AtimeNS: joinNS(in.Atime, in.Atimensec), MtimeNS: joinNS(in.Mtime, in.Mtimensec), CtimeNS: joinNS(in.Ctime, in.Ctimensec),
	}
	set := func(valid uint32, bit cfs.SetMask) {
		if in.Valid&valid == valid {
			mask |= bit
		}
	}
	set(gofuse.FATTR_MODE, cfs.SetMode)
	set(gofuse.FATTR_UID, cfs.SetUID)
	set(gofuse.FATTR_GID, cfs.SetGID)
	set(gofuse.FATTR_SIZE, cfs.SetSize)
	set(gofuse.FATTR_CTIME, cfs.SetCtime)
	set(gofuse.FATTR_KILL_SUIDGID, cfs.SetKillPriv)
	if in.Valid&gofuse.FATTR_ATIME_NOW != 0 {
		mask |= cfs.SetAtimeNow
	} else {
		set(gofuse.FATTR_ATIME, cfs.SetAtime)
	}
	if in.Valid&gofuse.FATTR_MTIME_NOW != 0 {
		mask |= cfs.SetMtimeNow
	} else {
		set(gofuse.FATTR_MTIME, cfs.SetMtime)
	}
	return mask, want
}

// StatFs is statfs(2). There are as many free inodes as blocks: nothing else limits them.
func (fs *fileSystem) StatFs(cancel <-chan struct{}, h *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	r := fs.begin(opStatfs, cancel, h)
	st, err := fs.inodes.Statfs(r)
	if err == nil {
		out.Bsize, out.Frsize, out.NameLen = cfs.BlockSize, cfs.BlockSize, cfs.MaxName
		out.Blocks = st.TotalBytes / cfs.BlockSize
		out.Bfree = st.FreeBytes / cfs.BlockSize
		out.Bavail = out.Bfree
		out.Files, out.Ffree = st.Inodes+out.Bfree, out.Bfree
	}
	return r.end(err)
}

// checkXattr refuses the namespaces that have a meaning which is not kept: in
// system.* all but the ACLs.
func checkXattr(name string) error {
	if name == cfs.XattrACLAccess || name == cfs.XattrACLDefault {
		return nil
	}
	for _, prefix := range [...]string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(name, prefix) {
			if len(name) > cfs.MaxXattrName {
				return cfs.Errorf("xattr", cfs.Range, "name of %d bytes", len(name))
			}
			return nil
		}
	}
	return cfs.Errorf("xattr", cfs.Unsupported, "namespace of %q", name)
}

// capabilityXattr holds the capabilities of a program file; a write removes it.
const capabilityXattr = "security.capability"

// absence is the table of the inodes that are known not to have an attribute, which the
// kernel asks for over and over; nil for other attributes.
func (fs *fileSystem) absence(name string) *inoTable {
	switch name {
	case capabilityXattr:
		return &fs.bare
	case cfs.XattrACLAccess:
		return &fs.plain
	}
	return nil
}

// mark is that of the lease of ino of now; 0 for none.
func (fs *fileSystem) mark(ino cfs.Ino) uint64 {
	_, l := fs.LeasedAttr(ino)
	return l.Mark
}

// setAbsent takes note that ino lacks an attribute, under the lease of a mark; isAbsent believes it for as long
// as that goes on.
func (fs *fileSystem) setAbsent(t *inoTable, ino cfs.Ino, mark uint64) {
	if t != nil && mark != 0 {
		t.swap(ino, mark)
	}
}

func (fs *fileSystem) isAbsent(t *inoTable, ino cfs.Ino) bool {
	if t == nil {
		return false
	}
	mark, known := t.get(ino)
	return known && mark == fs.mark(ino)
}

// setBare takes note that ino, which is new, has no capabilities.
func (fs *fileSystem) setBare(ino cfs.Ino) { fs.setAbsent(&fs.bare, ino, fs.mark(ino)) }

// GetXAttr copies a value to dest; an empty dest asks for its size alone.
func (fs *fileSystem) GetXAttr(cancel <-chan struct{}, h *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	r := fs.begin(opGetXattr, cancel, h)
	if err := checkXattr(name); err != nil {
		return 0, r.end(err)
	}
	ino := cfs.Ino(h.NodeId)
	lacking := fs.absence(name)
	if fs.isAbsent(lacking, ino) {
		return 0, r.end(cfs.NoAttr)
	}
	mark := fs.mark(ino)
	value, err := fs.xattrs.GetXattr(r, ino, name)
	if err != nil {
		if cfs.KindOf(err) == cfs.NoAttr {
			fs.setAbsent(lacking, ino, mark)
		}
		return 0, r.end(gone(err))
	}
	return r.copyOut(dest, value)
}

// copyOut answers with value, or with its size if dest is empty; ERANGE if it does not fit.
func (r *request) copyOut(dest, value []byte) (uint32, gofuse.Status) {
	if len(dest) > 0 && len(dest) < len(value) {
		return uint32(len(value)), r.end(cfs.Range)
	}
	copy(dest, value)
	return uint32(len(value)), r.end(nil)
}

// ListXAttr copies the names, each with its NUL, to dest; an empty dest asks for their size.
func (fs *fileSystem) ListXAttr(cancel <-chan struct{}, h *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	r := fs.begin(opListXattr, cancel, h)
	names, err := fs.xattrs.ListXattr(r, cfs.Ino(h.NodeId))
	if err != nil {
		return 0, r.end(gone(err))
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return r.copyOut(dest, list)
}

// SetXAttr sets a value; Flags are those of setxattr(2). An ACL changes the mode as well, which
// the kernel asks for anew by itself.
func (fs *fileSystem) SetXAttr(cancel <-chan struct{}, in *gofuse.SetXAttrIn, name string, value []byte) gofuse.Status {
	r := fs.begin(opSetXattr, cancel, &in.InHeader)
	if err := checkXattr(name); err != nil {
		return r.end(err)
	}
	if len(value) > cfs.MaxXattrValue {
		return r.end(cfs.Errorf("xattr", cfs.TooBig, "value of %d bytes", len(value)))
	}
	if lacking := fs.absence(name); lacking != nil {
		lacking.forget(cfs.Ino(in.NodeId))
	}
	flags := in.Flags & (cfs.XattrCreate | cfs.XattrReplace)
	if fs.setxattrExt && in.SetXAttrFlags&gofuse.SETXATTR_ACL_KILL_SGID != 0 {
		flags |= cfs.XattrKillSgid
	}
	// The kernel's buffer is reused after the answer, and a command may be retried after an interrupt.
	return r.end(gone(fs.xattrs.SetXattr(r, cred(&in.InHeader), cfs.Ino(in.NodeId), name, bytes.Clone(value), flags)))
}

// RemoveXAttr removes an attribute.
func (fs *fileSystem) RemoveXAttr(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	r := fs.begin(opRemoveXattr, cancel, h)
	if err := checkXattr(name); err != nil {
		return r.end(err)
	}
	return r.end(gone(fs.xattrs.RemoveXattr(r, cred(h), cfs.Ino(h.NodeId), name)))
}
