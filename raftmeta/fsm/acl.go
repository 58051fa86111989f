package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// The form of an ACL in an extended attribute: linux/posix_acl_xattr.h.
const (
	aclVersion    = 2
	aclHeaderSize = 4
	aclEntrySize  = 8
	aclNoID       = ^uint32(0)

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// aclEntry gives permissions to a class, or to the user or group id.
type aclEntry struct {
	tag  uint16
	perm uint16
	id   uint32
}

// acl is a POSIX ACL, its entries in their order.
type acl []aclEntry

// parseACL reads an ACL; one without entries is nil. What Linux would not take is
// refused as it does.
func parseACL(b []byte) (acl, cfs.Kind) {
	switch {
	case len(b) < aclHeaderSize:
		return nil, cfs.Invalid
	case binary.LittleEndian.Uint32(b) != aclVersion:
		return nil, cfs.Unsupported
	}
	b = b[aclHeaderSize:]
	if len(b)%aclEntrySize != 0 {
		return nil, cfs.Invalid
	}
	if len(b) == 0 {
		return nil, cfs.KindOK
	}
	a := make(acl, 0, len(b)/aclEntrySize)
	for ; len(b) > 0; b = b[aclEntrySize:] {
		e := aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])}
		switch e.tag {
		case aclUser, aclGroup:
			if e.id == aclNoID {
				return nil, cfs.Invalid
			}
		default:
			e.id = aclNoID
		}
		a = append(a, e)
	}
	if !a.valid() {
		return nil, cfs.Invalid
	}
	return a, cfs.KindOK
}

// valid reports that the entries are those of an ACL, in order: the owner, users,
// the group, groups, the mask, which users and groups need, and the others.
func (a acl) valid() bool {
	next, named := uint16(aclUserObj), false // the least tag that may follow
	for _, e := range a {
		if e.perm&^7 != 0 || next == 0 {
			return false
		}
		switch {
		case e.tag == aclUserObj && next == aclUserObj:
			next = aclUser
		case e.tag == aclUser && next == aclUser:
			named = true
		case e.tag == aclGroupObj && next == aclUser:
			next = aclGroup
		case e.tag == aclGroup && next == aclGroup:
			named = true
		case e.tag == aclMask && next == aclGroup:
			next = aclOther
		case e.tag == aclOther && (next == aclOther || next == aclGroup && !named):
			next = 0
		default:
			return false
		}
	}
	return next == 0
}

func (a acl) encode() []byte {
	b := make([]byte, 0, aclHeaderSize+aclEntrySize*len(a))
	b = binary.LittleEndian.AppendUint32(b, aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// classes finds the entries that the mode's bits stand for: the group's are the
// mask's where there is one.
func (a acl) classes() (user, group, other *aclEntry) {
	for i := range a {
		switch e := &a[i]; e.tag {
		case aclUserObj:
			user = e
		case aclGroupObj, aclMask: // the mask comes later
			group = e
		case aclOther:
			other = e
		}
	}
	return user, group, other
}

// isMode reports that a mode says all that the ACL does.
func (a acl) isMode() bool { return len(a) == 3 }

// mode is the permission bits that the ACL stands for.
func (a acl) mode() uint32 {
	user, group, other := a.classes()
	return uint32(user.perm)<<6 | uint32(group.perm)<<3 | uint32(other.perm)
}

// chmod makes the ACL that of an inode with a new mode.
func (a acl) chmod(mode uint32) {
	user, group, other := a.classes()
	user.perm, group.perm, other.perm = uint16(mode>>6&7), uint16(mode>>3&7), uint16(mode&7)
}

// inherit makes a default ACL that of a new inode, which its maker wants to have a mode,
// and returns the mode that it has.
func (a acl) inherit(mode uint32) uint32 {
	a.chmod(mode & a.mode())
	return mode&^0o777 | a.mode()
}

// allows reports that the ACL of n gives a user, who does not own n, what it wants, as
// posix_acl_permission of Linux has it.
func (a acl) allows(n *inode, uid uint32, inGroup func(uint32) bool, want uint32) bool {
	_, group, _ := a.classes()
	mask := uint32(7)
	if group.tag == aclMask {
		mask = uint32(group.perm)
	}
	member := false
	for _, e := range a {
		has := uint32(e.perm)&want == want
		switch {
		case e.tag == aclUser && e.id == uid:
			return has && mask&want == want
		case e.tag == aclGroupObj && inGroup(n.GID), e.tag == aclGroup && inGroup(e.id):
			if member = true; has {
				return mask&want == want
			}
		case e.tag == aclOther:
			return has && !member
		}
	}
	return false
}

// hasACL and hasDefaultACL say that an inode has a row of that name, which spares
// most a look for it.
const (
	hasACL uint8 = 1 << iota
	hasDefaultACL
	// linkable: made without a name, and may still get its first one.
	linkable

	inodeFlags = hasACL | hasDefaultACL | linkable
)

// aclFlag is the flag of an ACL's attribute, 0 for another attribute.
func aclFlag(name string) uint8 {
	switch name {
	case cfs.XattrACLAccess:
		return hasACL
	case cfs.XattrACLDefault:
		return hasDefaultACL
	}
	return 0
}

// acl loads an ACL that an inode has.
func (t *tx) acl(i cfs.Ino, name string) (acl, cfs.Kind) {
	key := xattrKey(i, name)
	b, ok := load(t, key, decodeBytes)
	a, k := parseACL(b)
	if !ok || k != cfs.KindOK || a == nil {
		t.corrupt(key)
		return nil, cfs.Corrupt
	}
	return a, cfs.KindOK
}

// storeACL stores an ACL, or takes it away where it is nil.
func (t *tx) storeACL(n *inode, name string, a acl) {
	if a == nil {
		n.flags &^= aclFlag(name)
		t.del(xattrKey(n.Ino, name))
		return
	}
	n.flags |= aclFlag(name)
	t.set(xattrKey(n.Ino, name), encodeBytes(a.encode()))
}

// setACL is setXattr of an ACL. That of access sets the mode too, and is not kept where
// the mode says as much.
func (t *tx) setACL(n *inode, op *cfs.Op) cfs.Kind {
	a, k := parseACL(op.Value)
	switch {
	case k != cfs.KindOK:
		return k
	case n.Mode&cfs.ModeType == cfs.ModeSymlink:
		return cfs.Unsupported
	case op.Name == cfs.XattrACLDefault && !n.IsDir():
		if a == nil {
			return cfs.KindOK
		}
		return cfs.Access
	case !t.owns(n):
		return cfs.Permission
	case n.flags&aclFlag(op.Name) == 0 && a != nil && t.xattrNames(n.Ino)+len(op.Name)+1 > cfs.MaxXattrList:
		return cfs.NoSpace
	}
	if op.Name == cfs.XattrACLAccess && a != nil {
		n.Mode = n.Mode&^0o777 | a.mode()
		if op.Flags&cfs.XattrKillSgid != 0 || !t.inGroup(n.GID) {
			n.Mode &^= cfs.ModeSetgid
		}
		if a.isMode() {
			a = nil
		}
	}
	t.storeACL(n, op.Name, a)
	return cfs.KindOK
}

// chmod gives an inode permission bits; its ACL follows.
func (t *tx) chmod(n *inode, mode uint32) cfs.Kind {
	n.Mode = n.Mode&cfs.ModeType | mode&cfs.ModePerm
	if n.flags&hasACL == 0 {
		return cfs.KindOK
	}
	a, k := t.acl(n.Ino, cfs.XattrACLAccess)
	if k != cfs.KindOK {
		return k
	}
	a.chmod(mode)
	t.storeACL(n, cfs.XattrACLAccess, a)
	return cfs.KindOK
}

// inheritACL gives a new inode the default ACL of its directory; without one the umask
// counts.
func (t *tx) inheritACL(n, dir *inode, umask uint32) cfs.Kind {
	if n.Mode&cfs.ModeType == cfs.ModeSymlink {
		return cfs.KindOK
	}
	if dir.flags&hasDefaultACL == 0 {
		n.Mode &^= umask & 0o777
		return cfs.KindOK
	}
	a, k := t.acl(dir.Ino, cfs.XattrACLDefault)
	if k != cfs.KindOK {
		return k
	}
	if n.IsDir() {
		t.storeACL(n, cfs.XattrACLDefault, a)
	}
	if n.Mode = a.inherit(n.Mode); !a.isMode() {
		t.storeACL(n, cfs.XattrACLAccess, a)
	}
	return cfs.KindOK
}
