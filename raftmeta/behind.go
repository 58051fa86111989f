package raftmeta

import (
	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/raftmeta/lease"
)

// found is what a command meets in the state, as if its operations succeeded one after
// the other.
type found struct {
	c      *cfs.Command
	v      kv.View
	err    error
	keys   []lease.Key // of the inodes behind names
	owned  []owned     // by other sessions
	owners []owned     // who owns what the command names by number
	loses  []cfs.Ino   // by operation: what loses a name, 0 for nothing
	names  map[nameOf]cfs.Attr
}

type nameOf struct {
	dir  cfs.Ino
	name string
}

func (f *found) op(i int) {
	op := &f.c.Ops[i]
	var lost cfs.Ino
	switch op.Kind {
	case cfs.OpCreate:
		f.inode(op, op.Dir)
		var old cfs.Attr
		if !op.Exclusive {
			old = f.name(op.Dir, op.Name)
			f.see(&old)
		}
		f.put(op.Dir, op.Name, old)
	case cfs.OpLink:
		f.inode(op, op.Dir)
		f.put(op.Dir, op.Name, f.inode(op, op.Ino))
	case cfs.OpUnlink, cfs.OpRmdir:
		f.inode(op, op.Dir)
		old := f.name(op.Dir, op.Name)
		lost = f.change(&old, true)
		f.put(op.Dir, op.Name, cfs.Attr{})
	case cfs.OpRename:
		f.inode(op, op.Dir)
		if op.NewDir != op.Dir && !op.Lease { // with Lease the machine fences both
			f.inode(op, op.NewDir)
		}
		src, dst := f.name(op.Dir, op.Name), f.name(op.NewDir, op.NewName)
		exchange := op.Flags&cfs.RenameExchange != 0
		f.change(&src, false)
		lost = f.change(&dst, !exchange && dst.Ino != src.Ino)
		f.put(op.NewDir, op.NewName, src)
		if !exchange {
			dst = cfs.Attr{}
		}
		f.put(op.Dir, op.Name, dst)
	case cfs.OpSetAttr, cfs.OpSetXattr, cfs.OpRemoveXattr, cfs.OpWrite, cfs.OpSwap, cfs.OpRelease, cfs.OpLock:
		f.inode(op, op.Ino)
	}
	if lost != 0 {
		if f.loses == nil {
			f.loses = make([]cfs.Ino, len(f.c.Ops))
		}
		f.loses[i] = lost
	}
}

// inode looks whether another owns an inode, and is its attributes. The one whose exclusive lease
// the operation claims to have is not looked at: the machine refuses it where that is not so.
func (f *found) inode(op *cfs.Op, i cfs.Ino) (a cfs.Attr) {
	if fenced, ok := fsm.Fenced(op); f.err != nil || ok && fenced == i {
		return a
	}
	if a, f.err = fsm.Inode(f.v, i); f.err != nil || a.Ino == 0 {
		return a
	}
	others := len(f.owned)
	f.see(&a)
	switch {
	case a.Owner == 0 || a.Owner == f.c.Session:
		f.owners = append(f.owners, owned{ino: i, owner: a.Owner})
	case len(f.owned) == others && f.err == nil: // the owner is gone
		f.owners = append(f.owners, owned{ino: i})
	}
	return a
}

func (f *found) see(a *cfs.Attr) {
	if f.err != nil || a.Owner == 0 || a.Owner == f.c.Session {
		return
	}
	var owner cfs.SessionID
	if owner, f.err = fsm.Owner(f.v, a); owner != 0 {
		f.owned = append(f.owned, owned{a.Ino, owner, lease.Exclusive})
	}
}

// name is what is behind a name once the operations so far are done; Ino is 0 for nothing.
func (f *found) name(dir cfs.Ino, name string) (a cfs.Attr) {
	if a, moved := f.names[nameOf{dir, name}]; moved || f.err != nil {
		return a
	}
	a, f.err = fsm.Behind(f.v, dir, name)
	return a
}

func (f *found) put(dir cfs.Ino, name string, a cfs.Attr) {
	if len(f.c.Ops) == 1 {
		return
	}
	if f.names == nil {
		f.names = map[nameOf]cfs.Attr{}
	}
	f.names[nameOf{dir, name}] = a
}

// change takes in an inode behind a name that the command changes. It is what loses the
// name and may be open, 0 for nothing.
func (f *found) change(a *cfs.Attr, loses bool) cfs.Ino {
	if a.Ino == 0 {
		return 0
	}
	f.see(a)
	f.keys = append(f.keys, lease.Key{Kind: lease.Attr, Ino: a.Ino})
	if !loses || a.IsDir() {
		return 0
	}
	f.keys = append(f.keys, lease.Key{Kind: lease.Open, Ino: a.Ino})
	return a.Ino
}
