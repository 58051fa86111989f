package fsm

import (
	"encoding/binary"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// checkName refuses what cannot be a name in a directory.
func checkName(name string) cfs.Kind {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return cfs.Invalid
	case len(name) > cfs.MaxName:
		return cfs.NameTooLong
	}
	return cfs.KindOK
}

// dir loads a directory in which the caller may look names up.
func (t *tx) dir(i cfs.Ino) (*inode, cfs.Kind) {
	n, ok := t.inode(i)
	if !ok || n.Nlink == 0 {
		return nil, cfs.NotFound
	}
	if !n.IsDir() {
		return nil, cfs.NotDir
	}
	return n, t.may(n, mayExec)
}

// entry loads a name and the inode behind it.
func (t *tx) entry(dir cfs.Ino, name string) (*inode, cfs.Kind) {
	if len(name) > cfs.MaxName {
		return nil, cfs.NameTooLong
	}
	d, ok := load(t, direntKey(dir, name), decodeDirent)
	if !ok {
		return nil, cfs.NotFound
	}
	n, ok := t.inode(d.ino)
	if !ok {
		t.corrupt(inodeKey(d.ino))
		return nil, cfs.Corrupt
	}
	return n, cfs.KindOK
}

func (t *tx) setEntry(dir cfs.Ino, name string, n *inode) {
	t.set(direntKey(dir, name), t.encode().dirent(dirent{n.Ino, n.Mode & cfs.ModeType}))
}

func (t *tx) isEmpty(dir cfs.Ino) bool {
	empty := true
	prefix := key1(prefixDirent, uint64(dir))
	t.scan(prefix, after(prefix), func(_, _ []byte) bool {
		empty = false
		return false
	})
	return empty
}

func (t *tx) create(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if op.Name == "" && op.Hold {
		return t.tmpfile(op, res)
	}
	if k := checkName(op.Name); k != cfs.KindOK {
		return k
	}
	dir, k := t.dir(op.Dir)
	if k != cfs.KindOK {
		return k
	}
	open := !op.Exclusive && op.Attr.Mode&cfs.ModeType == cfs.ModeRegular
	switch old, k := t.entry(op.Dir, op.Name); {
	case k == cfs.KindOK && open && old.IsRegular():
		res.Attr, res.Dir = old.Attr, dir.Attr
		return cfs.KindOK
	case k == cfs.KindOK && open && old.IsDir():
		return cfs.IsDir
	case k == cfs.KindOK:
		return cfs.Exists
	case k != cfs.NotFound:
		return k
	}
	if k := t.mayChange(dir); k != cfs.KindOK {
		return k
	}
	n, k := t.newInode(op, dir)
	if k != cfs.KindOK {
		return k
	}
	t.setEntry(op.Dir, op.Name, n)
	t.touch(n)
	t.changedDir(dir, res)
	res.Attr = n.Attr
	return cfs.KindOK
}

// tmpfile makes a regular file that has no name and that the session holds.
func (t *tx) tmpfile(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if op.Attr.Mode&cfs.ModeType != cfs.ModeRegular {
		return cfs.Invalid
	}
	dir, k := t.dir(op.Dir)
	if k == cfs.KindOK {
		k = t.mayChange(dir)
	}
	if k != cfs.KindOK {
		return k
	}
	n, k := t.newInode(op, dir)
	if k != cfs.KindOK {
		return k
	}
	n.Nlink = 0
	if !op.Exclusive {
		n.flags |= linkable
	}
	t.hold(n.Ino, t.sess)
	t.touch(n)
	res.Attr = n.Attr
	return cfs.KindOK
}

// ownNew gives a new inode its owner, group and permissions.
func (t *tx) ownNew(n, dir *inode, umask uint32) cfs.Kind {
	if t.enforced() {
		n.UID, n.GID = t.cred.UID, t.cred.GID
	}
	if dir.Mode&cfs.ModeSetgid != 0 { // BSD group semantics: the new inode takes the directory's group
		n.GID = dir.GID
		switch {
		case n.IsDir():
			n.Mode |= cfs.ModeSetgid
		case n.Mode&0o010 != 0 && !t.inGroup(n.GID):
			n.Mode &^= cfs.ModeSetgid
		}
	}
	return t.inheritACL(n, dir, umask)
}

// newInode makes the inode that op describes, in dir, which it may change.
func (t *tx) newInode(op *cfs.Op, dir *inode) (*inode, cfs.Kind) {
	n := &inode{}
	n.Attr = cfs.Attr{Mode: op.Attr.Mode & (cfs.ModeType | cfs.ModePerm), Nlink: 1, UID: op.Attr.UID, GID: op.Attr.GID,
		Map: 1, AtimeNS: t.now, MtimeNS: t.now, CtimeNS: t.now, BtimeNS: t.now}
	if op.Lease && (n.IsDir() || n.IsRegular()) {
		n.Owner = t.sess
	}
	counter := t.mark(markNextIno)
	if n.Ino = op.Ino; n.Ino == 0 {
		n.Ino = cfs.MakeIno(dir.Ino.Site(), dir.Ino.Partition(), counter)
		counter++
	} else if n.Ino.Site() != dir.Ino.Site() || n.Ino.Partition() != dir.Ino.Partition() || !t.takeIno(n.Ino) {
		return nil, cfs.Conflict
	}
	if k := t.ownNew(n, dir, op.Flags); k != cfs.KindOK {
		return nil, k
	}
	switch n.Mode & cfs.ModeType {
	case cfs.ModeDir:
		if dir.Nlink >= cfs.MaxLinks {
			return nil, cfs.TooManyLinks
		}
		n.Nlink, n.Size, n.parent = 2, cfs.BlockSize, dir.Ino
		dir.Nlink++
	case cfs.ModeSymlink:
		if len(op.Value) == 0 {
			return nil, cfs.NotFound // as symlink(2) says
		}
		if len(op.Value) > cfs.MaxSymlink {
			return nil, cfs.NameTooLong
		}
		n.Size = uint64(len(op.Value))
		t.set(targetKey(n.Ino), encodeBytes(op.Value))
	case cfs.ModeChar, cfs.ModeBlock:
		if t.enforced() {
			return nil, cfs.Permission
		}
		n.Rdev = op.Attr.Rdev
	case cfs.ModeRegular, cfs.ModeFIFO, cfs.ModeSocket:
	default:
		return nil, cfs.Invalid
	}
	t.setMark(markNextIno, counter)
	t.addMark(markInodes, 1)
	return n, cfs.KindOK
}

func (t *tx) link(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if k := checkName(op.Name); k != cfs.KindOK {
		return k
	}
	dir, k := t.dir(op.Dir)
	if k != cfs.KindOK {
		return k
	}
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.NotFound
	}
	if _, exists := t.get(direntKey(op.Dir, op.Name)); exists {
		return cfs.Exists
	}
	switch k := t.mayChange(dir); {
	case k != cfs.KindOK:
		return k
	case n.IsDir():
		return cfs.Permission
	case n.Nlink == 0 && n.flags&linkable == 0:
		return cfs.NotFound
	case n.Nlink >= cfs.MaxLinks:
		return cfs.TooManyLinks
	}
	if n.Nlink == 0 {
		n.flags &^= linkable
		t.dropHolds(n.Ino)
	}
	n.Nlink++
	t.setEntry(op.Dir, op.Name, n)
	t.touch(n)
	t.changedDir(dir, res)
	res.Attr = n.Attr
	return cfs.KindOK
}

func (t *tx) unlink(op *cfs.Op, res *cfs.Result) cfs.Kind {
	dir, k := t.dir(op.Dir)
	if k != cfs.KindOK {
		return k
	}
	n, k := t.entry(op.Dir, op.Name)
	if k != cfs.KindOK {
		return k
	}
	if op.Ino != 0 && n.Ino != op.Ino {
		return cfs.Conflict
	}
	if k := t.mayRemove(dir, n); k != cfs.KindOK {
		return k
	}
	if n.IsDir() {
		return cfs.IsDir
	}
	t.del(direntKey(op.Dir, op.Name))
	t.changedDir(dir, res)
	t.dropLink(n, op)
	res.Attr = n.Attr
	return cfs.KindOK
}

// dropLink takes one name from an inode that is not a directory. With the last
// one the inode goes, unless the session, or another, holds it.
func (t *tx) dropLink(n *inode, op *cfs.Op) {
	n.Nlink--
	t.touch(n)
	if n.Nlink > 0 {
		return
	}
	held := op.Hold && t.hold(n.Ino, t.sess)
	for _, s := range op.Holds {
		held = t.hold(n.Ino, s) || held
	}
	if !held {
		t.destroy(n)
	}
}

// dropHolds ends all holds of an inode, which has got a name.
func (t *tx) dropHolds(i cfs.Ino) {
	var holders []cfs.SessionID
	t.scan(holdKey(i, 0), after(key1(prefixHold, uint64(i))), func(k, _ []byte) bool {
		holders = append(holders, cfs.SessionID(binary.BigEndian.Uint64(k[9:])))
		return true
	})
	for _, s := range holders {
		t.del(holdKey(i, s))
		t.del(heldByKey(s, i))
	}
}

// release ends a session's hold; the last one takes an inode without names away.
func (t *tx) release(i cfs.Ino, s cfs.SessionID) cfs.Kind {
	t.del(holdKey(i, s))
	t.del(heldByKey(s, i))
	n, ok := t.inode(i)
	if !ok || n.Nlink > 0 {
		return cfs.KindOK
	}
	held := false
	t.scan(holdKey(i, 0), after(key1(prefixHold, uint64(i))), func(_, _ []byte) bool {
		held = true
		return false
	})
	if !held {
		t.destroy(n)
	}
	return cfs.KindOK
}

func (t *tx) rmdir(op *cfs.Op, res *cfs.Result) cfs.Kind {
	dir, k := t.dir(op.Dir)
	if k != cfs.KindOK {
		return k
	}
	n, k := t.entry(op.Dir, op.Name)
	if k == cfs.KindOK {
		k = t.mayRemove(dir, n)
	}
	switch {
	case k != cfs.KindOK:
		return k
	case !n.IsDir():
		return cfs.NotDir
	case !t.isEmpty(n.Ino):
		return cfs.NotEmpty
	}
	t.del(direntKey(op.Dir, op.Name))
	dir.Nlink--
	t.changedDir(dir, res)
	t.destroy(n)
	n.Nlink = 0
	res.Attr = n.Attr
	return cfs.KindOK
}

// move is what a rename has found: both directories (the same one perhaps), what
// is moved, and what has the new name now (nil for nothing).
type move struct {
	from, to *inode
	src, dst *inode
}

func (t *tx) rename(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if op.Flags&^(cfs.RenameNoreplace|cfs.RenameExchange) != 0 || op.Flags == cfs.RenameNoreplace|cfs.RenameExchange {
		return cfs.Invalid
	}
	if k := checkName(op.NewName); k != cfs.KindOK {
		return k
	}
	mv, k := t.findMove(op)
	if k != cfs.KindOK {
		return k
	}
	switch {
	case op.Ino != 0 && (mv.dst == nil || mv.dst.Ino != op.Ino):
		return cfs.Conflict
	case mv.dst != nil && op.Flags == cfs.RenameNoreplace:
		return cfs.Exists
	case mv.dst == nil && op.Flags == cfs.RenameExchange:
		return cfs.NotFound
	}
	if k := t.mayMove(op, mv); k != cfs.KindOK {
		return k
	}
	switch {
	case mv.dst != nil && mv.dst.Ino == mv.src.Ino: // two names of one file: nothing to do
	case op.Flags == cfs.RenameExchange:
		k = t.exchange(op, mv)
	default:
		k = t.replace(op, mv)
		if mv.dst != nil {
			res.Attr = mv.dst.Attr
		}
	}
	if k != cfs.KindOK {
		return k
	}
	res.Dir = mv.from.Attr
	if mv.to != mv.from {
		res.NewDir = mv.to.Attr
	}
	return cfs.KindOK
}

func (t *tx) findMove(op *cfs.Op) (mv move, k cfs.Kind) {
	if mv.from, k = t.dir(op.Dir); k != cfs.KindOK {
		return mv, k
	}
	mv.to = mv.from
	if op.NewDir != op.Dir {
		if mv.to, k = t.dir(op.NewDir); k != cfs.KindOK {
			return mv, k
		}
	}
	if mv.src, k = t.entry(op.Dir, op.Name); k != cfs.KindOK {
		return mv, k
	}
	if mv.dst, k = t.entry(op.NewDir, op.NewName); k != cfs.KindOK && k != cfs.NotFound {
		return mv, k
	}
	return mv, cfs.KindOK
}

// isWithin reports that directory i is n or lies below it.
func (t *tx) isWithin(i cfs.Ino, n *inode) bool {
	if !n.IsDir() {
		return false
	}
	for {
		if i == n.Ino {
			return true
		}
		up, ok := t.inode(i)
		if !ok || up.parent == i {
			return false
		}
		i = up.parent
	}
}

// mayMove refuses what a rename cannot do, and what its caller may not, in the order of
// do_renameat2 and vfs_rename of Linux.
func (t *tx) mayMove(op *cfs.Op, mv move) cfs.Kind {
	exchange := op.Flags == cfs.RenameExchange
	switch {
	case t.isWithin(mv.to.Ino, mv.src):
		return cfs.Invalid
	case mv.dst == nil:
	case t.isWithin(mv.from.Ino, mv.dst):
		if exchange {
			return cfs.Invalid
		}
		return cfs.NotEmpty
	case mv.dst.Ino == mv.src.Ino:
		return cfs.KindOK
	}
	k := t.mayRemove(mv.from, mv.src)
	if k == cfs.KindOK && mv.dst == nil {
		k = t.mayChange(mv.to)
	} else if k == cfs.KindOK {
		k = t.mayRemove(mv.to, mv.dst)
	}
	switch {
	case k != cfs.KindOK:
		return k
	case mv.dst == nil || exchange:
	case mv.src.IsDir() && !mv.dst.IsDir():
		return cfs.NotDir
	case !mv.src.IsDir() && mv.dst.IsDir():
		return cfs.IsDir
	}
	if mv.from == mv.to {
		return cfs.KindOK
	}
	// A directory that moves gets another "..", which is a change of it.
	if mv.src.IsDir() {
		k = t.may(mv.src, mayWrite)
	}
	if k == cfs.KindOK && exchange && mv.dst.IsDir() {
		k = t.may(mv.dst, mayWrite)
	}
	return k
}

// replace gives the source its new name; what had it loses it.
func (t *tx) replace(op *cfs.Op, mv move) cfs.Kind {
	if d := mv.dst; d != nil && d.IsDir() && !t.isEmpty(d.Ino) {
		return cfs.NotEmpty
	}
	if mv.src.IsDir() {
		if mv.from != mv.to && mv.dst == nil && mv.to.Nlink >= cfs.MaxLinks {
			return cfs.TooManyLinks
		}
		mv.from.Nlink--
		mv.to.Nlink++
		mv.src.parent = mv.to.Ino
	}
	t.del(direntKey(op.Dir, op.Name))
	t.setEntry(op.NewDir, op.NewName, mv.src)
	t.touch(mv.src)
	if d := mv.dst; d != nil {
		if d.IsDir() {
			mv.to.Nlink--
			t.destroy(d)
			d.Nlink = 0
		} else {
			t.dropLink(d, op)
		}
	}
	t.touchDir(mv.from)
	if mv.to != mv.from {
		t.touchDir(mv.to)
	}
	return cfs.KindOK
}

// exchange swaps two names.
func (t *tx) exchange(op *cfs.Op, mv move) cfs.Kind {
	if mv.src.IsDir() != mv.dst.IsDir() && mv.from != mv.to {
		into, out := mv.to, mv.from
		if mv.dst.IsDir() {
			into, out = out, into
		}
		if into.Nlink >= cfs.MaxLinks {
			return cfs.TooManyLinks
		}
		into.Nlink++
		out.Nlink--
	}
	t.setEntry(op.Dir, op.Name, mv.dst)
	t.setEntry(op.NewDir, op.NewName, mv.src)
	if mv.src.IsDir() {
		mv.src.parent = mv.to.Ino
	}
	if mv.dst.IsDir() {
		mv.dst.parent = mv.from.Ino
	}
	t.touch(mv.src)
	t.touch(mv.dst)
	t.touchDir(mv.from)
	if mv.to != mv.from {
		t.touchDir(mv.to)
	}
	return cfs.KindOK
}
