package fsm

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// Who may do what in the model: chmod(2), chown(2), acl(5) and so on, as told there.

type named struct{ id, perm uint32 }

// modelACL is an ACL of the model.
type modelACL struct {
	owner, group, other uint32
	users, groups       []named
	mask                uint32
	masked              bool
}

// blob is the ACL as an extended attribute.
func (a *modelACL) blob() []byte {
	b := []byte{2, 0, 0, 0}
	put := func(tag uint16, perm, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(perm))
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	put(1, a.owner, 0xffffffff)
	for _, u := range a.users {
		put(2, u.perm, u.id)
	}
	put(4, a.group, 0xffffffff)
	for _, g := range a.groups {
		put(8, g.perm, g.id)
	}
	if a.masked {
		put(16, a.mask, 0xffffffff)
	}
	put(32, a.other, 0xffffffff)
	return b
}

// groupClass is the permissions that the mode's group bits show.
func (a *modelACL) groupClass() *uint32 {
	if a.masked {
		return &a.mask
	}
	return &a.group
}

func (a *modelACL) bits() uint32 { return a.owner<<6 | *a.groupClass()<<3 | a.other }

func (a *modelACL) plain() bool { return !a.masked && len(a.users) == 0 && len(a.groups) == 0 }

func (a *modelACL) withBits(mode uint32) *modelACL {
	c := *a
	c.owner, c.other = mode>>6&7, mode&7
	*c.groupClass() = mode >> 3 & 7
	return &c
}

func (m *model) bound() bool { return m.cred.Enforce && m.cred.UID != 0 }

func (m *model) member(gid uint32) bool {
	return !m.bound() || m.cred.GID == gid || slices.Contains(m.cred.Groups, gid)
}

func (m *model) owner(n *node) bool { return !m.bound() || m.cred.UID == n.uid }

// may says whether the caller has rwx bits of n.
func (m *model) may(n *node, want uint32) bool {
	all := func(have uint32) bool { return have&want == want }
	switch {
	case !m.bound():
		return true
	case m.cred.UID == n.uid:
		return all(n.mode >> 6)
	case n.acl == nil || n.mode&0o070 == 0:
		if m.member(n.gid) {
			return all(n.mode >> 3)
		}
		return all(n.mode)
	}
	limit := uint32(7)
	if n.acl.masked {
		limit = n.acl.mask
	}
	for _, u := range n.acl.users {
		if u.id == m.cred.UID {
			return all(u.perm & limit)
		}
	}
	classes := append([]named{{n.gid, n.acl.group}}, n.acl.groups...)
	if !slices.ContainsFunc(classes, func(g named) bool { return m.member(g.id) }) {
		return all(n.acl.other)
	}
	return slices.ContainsFunc(classes, func(g named) bool { return m.member(g.id) && all(g.perm&limit) })
}

// mayUnlink: EACCES without write and search, EPERM of a sticky directory.
func (m *model) mayUnlink(d, n *node) cfs.Kind {
	switch {
	case !m.may(d, 3):
		return cfs.Access
	case d.mode&cfs.ModeSticky != 0 && !m.owner(d) && !m.owner(n):
		return cfs.Permission
	}
	return cfs.KindOK
}

func (m *model) mayRename(op *cfs.Op, from, to, src, dst *node, exchange bool) cfs.Kind {
	if k := m.mayUnlink(from, src); k != 0 {
		return k
	}
	if dst == nil && !m.may(to, 3) {
		return cfs.Access
	}
	if dst != nil {
		if k := m.mayUnlink(to, dst); k != 0 {
			return k
		}
		if !exchange && src.isDir() && !dst.isDir() {
			return cfs.NotDir
		}
		if !exchange && !src.isDir() && dst.isDir() {
			return cfs.IsDir
		}
	}
	if from != to && (src.isDir() && !m.may(src, 2) || exchange && dst.isDir() && !m.may(dst, 2)) {
		return cfs.Access
	}
	return cfs.KindOK
}

// killPriv is what a write or chown by another takes away.
func (m *model) killPriv(n *node) {
	if n.isDir() {
		return
	}
	n.mode &^= cfs.ModeSetuid
	if n.mode&0o010 != 0 || !m.member(n.gid) {
		n.mode &^= cfs.ModeSetgid
	}
	delete(n.xattrs, "security.capability")
}

// own gives a new inode its owner and permissions.
func (m *model) own(n, d *node, umask uint32) {
	if m.bound() {
		n.uid, n.gid = m.cred.UID, m.cred.GID
	}
	if d.mode&cfs.ModeSetgid != 0 {
		n.gid = d.gid
		if n.isDir() {
			n.mode |= cfs.ModeSetgid
		} else if n.mode&0o010 != 0 && !m.member(n.gid) {
			n.mode &^= cfs.ModeSetgid
		}
	}
	switch {
	case n.typ() == cfs.ModeSymlink:
	case d.dacl == nil:
		n.mode &^= umask & 0o777
	default:
		a := d.dacl.withBits(d.dacl.bits() & n.mode)
		n.mode = n.mode&^0o777 | a.bits()
		if !a.plain() {
			n.acl = a
		}
		if n.isDir() {
			n.dacl = d.dacl
		}
	}
}

// maySetAttr is who may: EPERM for what is the owner's, EACCES for what takes writing.
func (m *model) maySetAttr(n *node, mask cfs.SetMask, a *cfs.Attr) cfs.Kind {
	if !m.bound() {
		return cfs.KindOK
	}
	owner := m.owner(n)
	if mask&cfs.SetUID != 0 && (!owner || a.UID != n.uid) || mask&cfs.SetGID != 0 && (!owner || a.GID != n.gid && !m.member(a.GID)) {
		return cfs.Permission
	}
	if mask&(cfs.SetMode|cfs.SetAtime|cfs.SetMtime) != 0 && !owner {
		return cfs.Permission
	}
	if mask&cfs.SetSize != 0 && !m.may(n, 2) {
		return cfs.Access
	}
	if owner {
		return cfs.KindOK
	}
	switch atime, mtime := mask&cfs.SetAtimeNow != 0, mask&cfs.SetMtimeNow != 0 && mask&cfs.SetSize == 0; {
	case atime && mtime && !m.may(n, 2):
		return cfs.Access
	case atime != mtime:
		return cfs.Permission
	}
	return cfs.KindOK
}

func (m *model) mayXattr(n *node, name string, write bool) cfs.Kind {
	no, want := cfs.NoAttr, uint32(4)
	if write {
		no, want = cfs.Permission, 2
	}
	space, _, _ := strings.Cut(name, ".")
	switch {
	case space == "trusted" && m.bound(), space == "user" && !n.regular() && !n.isDir():
		return no
	case space == "security" && write && m.bound():
		return cfs.Permission
	case space == "user" && write && n.isDir() && n.mode&cfs.ModeSticky != 0 && !m.owner(n):
		return cfs.Permission
	case space == "user" && !m.may(n, want):
		return cfs.Access
	}
	return cfs.KindOK
}

// setACL sets the ACL that op.Value is the form of; nil takes it away.
func (m *model) setACL(n *node, op *cfs.Op, a *modelACL) cfs.Kind {
	access := op.Name == cfs.XattrACLAccess
	switch {
	case n.typ() == cfs.ModeSymlink:
		return cfs.Unsupported
	case !access && !n.isDir() && a == nil:
		return cfs.KindOK
	case !access && !n.isDir():
		return cfs.Access
	case !m.owner(n):
		return cfs.Permission
	case !access:
		n.dacl = a
		return cfs.KindOK
	}
	if n.acl = a; a != nil {
		n.mode = n.mode&^0o777 | a.bits()
		if op.Flags&cfs.XattrKillSgid != 0 || !m.member(n.gid) {
			n.mode &^= cfs.ModeSetgid
		}
		if a.plain() {
			n.acl = nil
		}
	}
	return cfs.KindOK
}

// answer says how a query by the model's caller goes.
func (m *model) answer(q *cfs.Query) cfs.Kind {
	switch q.Kind {
	case cfs.QueryLookup, cfs.QueryReadDir:
		if len(q.Name) > 255 && q.Kind == cfs.QueryLookup {
			return cfs.NameTooLong
		}
		d := m.nodes[q.Dir]
		switch {
		case d == nil || d.nlink == 0:
			return cfs.NotFound
		case !d.isDir():
			return cfs.NotDir
		case q.Kind == cfs.QueryReadDir && !m.may(d, 4), q.Kind == cfs.QueryLookup && !m.may(d, 1):
			return cfs.Access
		}
		if _, ok := d.names[q.Name]; !ok && q.Kind == cfs.QueryLookup {
			return cfs.NotFound
		}
		return cfs.KindOK
	}
	n := m.nodes[q.Ino]
	switch {
	case n == nil:
		return cfs.Stale
	case q.Kind == cfs.QueryExtents && !m.may(n, 4):
		return cfs.Access
	case q.Kind == cfs.QueryGetXattr:
		if k := m.mayXattr(n, q.Name, false); k != 0 {
			return k
		}
		if _, ok := n.allXattrs()[q.Name]; !ok {
			return cfs.NoAttr
		}
	}
	return cfs.KindOK
}

// allXattrs is an inode's extended attributes, its ACLs among them.
func (n *node) allXattrs() map[string]string {
	all := map[string]string{}
	for k, v := range n.xattrs {
		all[k] = v
	}
	for name, a := range map[string]*modelACL{cfs.XattrACLAccess: n.acl, cfs.XattrACLDefault: n.dacl} {
		if a != nil {
			all[name] = string(a.blob())
		}
	}
	return all
}
