package fsm

import (
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// capabilityXattr is the file capability, which a write or a change of owner
// takes away as it does the set-id bits (capabilities(7)).
const capabilityXattr = "security.capability"

func (t *tx) setAttr(op *cfs.Op, res *cfs.Result) cfs.Kind {
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	if op.Mask&cfs.SetSize != 0 {
		if k := t.setSize(n, op.Attr.Size); k != cfs.KindOK {
			return k
		}
	}
	a := &op.Attr
	if op.Mask&cfs.SetMode != 0 {
		n.Mode = n.Mode&cfs.ModeType | a.Mode&cfs.ModePerm
	}
	if op.Mask&cfs.SetUID != 0 {
		n.UID = a.UID
	}
	if op.Mask&cfs.SetGID != 0 {
		n.GID = a.GID
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

// killPriv clears what a change by another than the owner must: set-user-ID,
// set-group-ID where group execute makes it one, and the file capability.
func (t *tx) killPriv(n *inode) {
	if n.IsDir() {
		return
	}
	n.Mode &^= cfs.ModeSetuid
	if n.Mode&0o010 != 0 {
		n.Mode &^= cfs.ModeSetgid
	}
	t.del(xattrKey(n.Ino, capabilityXattr))
}

// setSize truncates or extends a regular file; what it extends by is a hole.
func (t *tx) setSize(n *inode, size uint64) cfs.Kind {
	switch {
	case n.IsDir():
		return cfs.IsDir
	case !n.IsRegular():
		return cfs.Invalid
	case size > cfs.MaxFileSize:
		return cfs.TooLarge
	}
	if size < n.Size {
		t.truncate(n, size)
	}
	n.Size = size
	n.MtimeNS = t.now
	return cfs.KindOK
}

// checkXattr refuses names of namespaces that are not kept.
func checkXattr(name string) cfs.Kind {
	switch {
	case len(name) > cfs.MaxXattrName:
		return cfs.Range
	case strings.Contains(name, "\x00"):
		return cfs.Invalid
	}
	for _, p := range [...]string{"user.", "trusted.", "security."} {
		if len(name) > len(p) && strings.HasPrefix(name, p) {
			return cfs.KindOK
		}
	}
	return cfs.Unsupported
}

func (t *tx) setXattr(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if k := checkXattr(op.Name); k != cfs.KindOK {
		return k
	}
	if len(op.Value) > cfs.MaxXattrValue {
		return cfs.TooBig
	}
	if op.Flags&^(cfs.XattrCreate|cfs.XattrReplace) != 0 {
		return cfs.Invalid
	}
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	key := xattrKey(op.Ino, op.Name)
	switch _, exists := t.get(key); {
	case exists && op.Flags&cfs.XattrCreate != 0:
		return cfs.Exists
	case !exists && op.Flags&cfs.XattrReplace != 0:
		return cfs.NoAttr
	case !exists && t.xattrNames(op.Ino)+len(op.Name)+1 > cfs.MaxXattrList:
		return cfs.NoSpace
	}
	t.set(key, encodeBytes(op.Value))
	t.touch(n)
	res.Attr = n.Attr
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
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	key := xattrKey(op.Ino, op.Name)
	if _, exists := t.get(key); !exists {
		return cfs.NoAttr
	}
	t.del(key)
	t.touch(n)
	res.Attr = n.Attr
	return cfs.KindOK
}
