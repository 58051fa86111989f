package fsm

import (
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// capabilityXattr is the file capability, which a write or a change of owner
// takes away as it does the set-id bits (capabilities(7)).
const capabilityXattr = "security.capability"

func (t *tx) setAttr(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if op.Mask == cfs.SetRelatime {
		return t.accessed(op, res)
	}
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	a := &op.Attr
	if op.Mask&cfs.SetSize != 0 {
		if k := sizeable(n, a.Size); k != cfs.KindOK {
			return k
		}
	}
	if k := t.maySetAttr(n, op.Mask, a); k != cfs.KindOK {
		return k
	}
	if op.Mask&cfs.SetSize != 0 {
		if k := t.setSize(n, a.Size); k != cfs.KindOK {
			return k
		}
	}
	if k := t.setOwner(n, op); k != cfs.KindOK {
		return k
	}
	if op.Mask&cfs.SetKillPriv != 0 {
		t.killPriv(n)
	}
	switch {
	case op.Mask&cfs.SetAtimeNow != 0:
		n.AtimeNS = t.now
	case op.Mask&cfs.SetAtime != 0:
		n.AtimeNS = a.AtimeNS
	}
	switch {
	case op.Mask&cfs.SetMtimeNow != 0:
		n.MtimeNS = t.now
	case op.Mask&cfs.SetMtime != 0:
		n.MtimeNS = a.MtimeNS
	}
	n.CtimeNS = t.now
	if op.Mask&cfs.SetCtime != 0 {
		n.CtimeNS = a.CtimeNS
	}
	t.putInode(n)
	res.Attr = n.Attr
	return cfs.KindOK
}

// setOwner changes mode, owner and group, and clears what goes with them where nobody
// else sees to that.
func (t *tx) setOwner(n *inode, op *cfs.Op) cfs.Kind {
	if t.cred.Enforce && op.Mask&(cfs.SetUID|cfs.SetGID) != 0 {
		t.killPriv(n)
	}
	if op.Mask&cfs.SetUID != 0 {
		n.UID = op.Attr.UID
	}
	if op.Mask&cfs.SetGID != 0 {
		n.GID = op.Attr.GID
	}
	if op.Mask&cfs.SetMode == 0 {
		return cfs.KindOK
	}
	mode := op.Attr.Mode
	if !t.inGroup(n.GID) {
		mode &^= cfs.ModeSetgid
	}
	return t.chmod(n, mode)
}

// killPriv clears what a change by another than the owner must: set-user-ID,
// set-group-ID where group execute makes it one, and the file capability.
func (t *tx) killPriv(n *inode) {
	if n.IsDir() {
		return
	}
	t.dropSetID(n)
	t.del(xattrKey(n.Ino, capabilityXattr))
}

// sizeable refuses to give an inode a size that it cannot have.
func sizeable(n *inode, size uint64) cfs.Kind {
	switch {
	case n.IsDir():
		return cfs.IsDir
	case !n.IsRegular():
		return cfs.Invalid
	case size > cfs.MaxFileSize:
		return cfs.TooLarge
	}
	return cfs.KindOK
}

// setSize truncates or extends a regular file; what it extends by is a hole.
func (t *tx) setSize(n *inode, size uint64) cfs.Kind {
	if size < n.Size {
		if k := t.truncate(n, size); k != cfs.KindOK {
			return k
		}
	}
	t.wrote(n)
	n.Size = size
	n.MtimeNS = t.now
	return cfs.KindOK
}

// checkXattr refuses names of namespaces that are not kept.
func checkXattr(name string) cfs.Kind {
	switch {
	case name == "" || len(name) > cfs.MaxXattrName:
		return cfs.Range
	case strings.Contains(name, "\x00"):
		return cfs.Invalid
	case aclFlag(name) != 0:
		return cfs.KindOK
	}
	for _, p := range [...]string{"user.", "trusted.", "security."} {
		if name == p {
			return cfs.Invalid
		}
		if strings.HasPrefix(name, p) {
			return cfs.KindOK
		}
	}
	return cfs.Unsupported
}

func (t *tx) setXattr(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if op.Flags&^(cfs.XattrCreate|cfs.XattrReplace|cfs.XattrKillSgid) != 0 {
		return cfs.Invalid
	}
	if k := checkXattr(op.Name); k != cfs.KindOK {
		return k
	}
	if len(op.Value) > cfs.MaxXattrValue {
		return cfs.TooBig
	}
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	k := t.mayXattr(n, op.Name, mayWrite)
	if k == cfs.KindOK {
		if aclFlag(op.Name) != 0 {
			k = t.setACL(n, op)
		} else {
			k = t.setValue(n, op)
		}
	}
	if k != cfs.KindOK {
		return k
	}
	t.touch(n)
	res.Attr = n.Attr
	return cfs.KindOK
}

// setValue is setXattr of what is only kept.
func (t *tx) setValue(n *inode, op *cfs.Op) cfs.Kind {
	key := xattrKey(n.Ino, op.Name)
	switch _, exists := t.get(key); {
	case exists && op.Flags&cfs.XattrCreate != 0:
		return cfs.Exists
	case !exists && op.Flags&cfs.XattrReplace != 0:
		return cfs.NoAttr
	case !exists && t.xattrNames(n.Ino)+len(op.Name)+1 > cfs.MaxXattrList:
		return cfs.NoSpace
	}
	t.set(key, encodeBytes(op.Value))
	return cfs.KindOK
}

// xattrNames is the length of an inode's list of names, each with its NUL.
func (t *tx) xattrNames(i cfs.Ino) int {
	total := 0
	prefix := key1(prefixXattr, uint64(i))
	t.scan(prefix, after(prefix), func(k, _ []byte) bool {
		total += len(k) - len(prefix) + 1
		return true
	})
	return total
}

func (t *tx) removeXattr(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if k := checkXattr(op.Name); k != cfs.KindOK {
		return k
	}
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	k := t.mayXattr(n, op.Name, mayWrite)
	if k == cfs.KindOK && aclFlag(op.Name) != 0 && !t.owns(n) {
		k = cfs.Permission
	}
	if k != cfs.KindOK {
		return k
	}
	key := xattrKey(op.Ino, op.Name)
	if _, exists := t.get(key); !exists {
		return cfs.NoAttr
	}
	t.del(key)
	n.flags &^= aclFlag(op.Name)
	t.touch(n)
	res.Attr = n.Attr
	return cfs.KindOK
}
