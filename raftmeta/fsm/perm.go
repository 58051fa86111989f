package fsm

import (
	"slices"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// What may is asked for, as the bits of a class in a mode.
const (
	mayExec  = 1 // of a directory: to look names up in it
	mayWrite = 2
	mayRead  = 4
)

// enforced reports that the namespace checks permissions and that they bind the
// caller: user 0 has every capability.
func (t *tx) enforced() bool { return t.cred.Enforce && t.cred.UID != 0 }

// owns reports that the caller may do what an inode's owner may.
func (t *tx) owns(n *inode) bool { return !t.enforced() || t.cred.UID == n.UID }

// inGroup reports that the caller may do what a member of a group may.
func (t *tx) inGroup(gid uint32) bool {
	return !t.enforced() || t.cred.GID == gid || slices.Contains(t.cred.Groups, gid)
}

// may checks that the caller has all the wanted permissions of an inode, in the
// order of acl_permission_check of Linux: the owner's bits for the owner, then the
// ACL, unless the group class has nothing, then the group's or the others' bits.
func (t *tx) may(n *inode, want uint32) cfs.Kind {
	if !t.enforced() {
		return cfs.KindOK
	}
	have := n.Mode
	switch {
	case t.cred.UID == n.UID:
		have >>= 6
	case n.flags&hasACL != 0 && n.Mode&0o070 != 0:
		a, k := t.acl(n.Ino, cfs.XattrACLAccess)
		if k == cfs.KindOK && !a.allows(n, t.cred.UID, t.inGroup, want) {
			k = cfs.Access
		}
		return k
	case t.inGroup(n.GID):
		have >>= 3
	}
	if have&want != want {
		return cfs.Access
	}
	return cfs.KindOK
}

// mayChange checks that the caller may change the names in a directory.
func (t *tx) mayChange(dir *inode) cfs.Kind { return t.may(dir, mayWrite|mayExec) }

// mayRemove checks that the caller may take the name of n from a directory: in a
// sticky one it must own the directory or what it removes.
func (t *tx) mayRemove(dir, n *inode) cfs.Kind {
	if k := t.mayChange(dir); k != cfs.KindOK {
		return k
	}
	if dir.Mode&cfs.ModeSticky != 0 && !t.owns(n) && !t.owns(dir) {
		return cfs.Permission
	}
	return cfs.KindOK
}

// maySetAttr checks what setattr_prepare and notify_change of Linux check.
func (t *tx) maySetAttr(n *inode, mask cfs.SetMask, a *cfs.Attr) cfs.Kind {
	if !t.enforced() {
		return cfs.KindOK
	}
	owner := t.cred.UID == n.UID
	set := func(bits cfs.SetMask) bool { return mask&bits != 0 }
	switch {
	case set(cfs.SetUID) && !(owner && a.UID == n.UID):
		return cfs.Permission
	case set(cfs.SetGID) && !(owner && (a.GID == n.GID || t.inGroup(a.GID))):
		return cfs.Permission
	case set(cfs.SetMode|cfs.SetAtime|cfs.SetMtime|cfs.SetCtime) && !owner:
		return cfs.Permission
	}
	now := mask & (cfs.SetAtimeNow | cfs.SetMtimeNow)
	if set(cfs.SetSize) {
		now &^= cfs.SetMtimeNow // a new size makes that time new anyway
		if k := t.may(n, mayWrite); k != cfs.KindOK {
			return k
		}
	}
	switch {
	case owner || now == 0:
	case now == cfs.SetAtimeNow|cfs.SetMtimeNow: // touching needs no more than writing
		return t.may(n, mayWrite)
	default:
		return cfs.Permission
	}
	return cfs.KindOK
}

// mayXattr checks what xattr_permission of Linux checks: want is mayRead or mayWrite.
func (t *tx) mayXattr(n *inode, name string, want uint32) cfs.Kind {
	refusal := cfs.Permission
	if want == mayRead {
		refusal = cfs.NoAttr
	}
	switch {
	case strings.HasPrefix(name, "trusted."):
		if t.enforced() {
			return refusal
		}
	case strings.HasPrefix(name, "security."):
		if t.enforced() && want == mayWrite {
			return cfs.Permission
		}
	case strings.HasPrefix(name, "user."):
		switch {
		case !n.IsRegular() && !n.IsDir():
			return refusal
		case n.IsDir() && n.Mode&cfs.ModeSticky != 0 && want == mayWrite && !t.owns(n):
			return cfs.Permission
		}
		return t.may(n, want)
	}
	return cfs.KindOK
}

// dropSetID takes set-user-ID away from what is no directory, and set-group-ID where
// group execute makes it one or the caller is not in the group.
func (t *tx) dropSetID(n *inode) {
	if n.IsDir() {
		return
	}
	n.Mode &^= cfs.ModeSetuid
	if n.Mode&0o010 != 0 || !t.inGroup(n.GID) {
		n.Mode &^= cfs.ModeSetgid
	}
}

// wrote clears what a write by this caller clears, if nobody else sees to that.
func (t *tx) wrote(n *inode) {
	if t.enforced() {
		t.killPriv(n)
	}
}
