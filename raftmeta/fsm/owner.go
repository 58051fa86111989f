package fsm

import "github.com/claudefs/claudefs/cfs"

// Owner is the session that has the exclusive lease of an inode with these attributes;
// 0 for nobody. A session that is gone owns nothing: its id is never given again, so its
// rows need no visit when it ends.
func Owner(r Reader, a *cfs.Attr) (cfs.SessionID, error) {
	t := &tx{kv: r}
	return t.owner(a), t.err
}

// Inode reads the attributes of an inode; Ino is 0 where there is none.
func Inode(r Reader, i cfs.Ino) (cfs.Attr, error) {
	t := &tx{kv: r}
	n, ok := t.inode(i)
	if !ok {
		return cfs.Attr{}, t.err
	}
	return n.Attr, t.err
}

// Behind reads the attributes of what is behind a name; Ino is 0 where there is nothing.
func Behind(r Reader, dir cfs.Ino, name string) (cfs.Attr, error) {
	t := &tx{kv: r}
	n, k := t.entry(dir, name)
	if k != cfs.KindOK {
		return cfs.Attr{}, t.err
	}
	return n.Attr, t.err
}

func (t *tx) owner(a *cfs.Attr) cfs.SessionID {
	if a.Owner == 0 {
		return 0
	}
	if _, open := t.get(sessionKey(a.Owner)); !open {
		return 0
	}
	return a.Owner
}

// Fenced is the one inode whose exclusive lease an operation claims to have; false where it
// claims none.
func Fenced(op *cfs.Op) (cfs.Ino, bool) {
	if op.Kind == cfs.OpCreate {
		return op.Dir, op.Ino != 0
	}
	if !op.Lease {
		return 0, false
	}
	switch op.Kind {
	case cfs.OpLink, cfs.OpUnlink, cfs.OpRmdir, cfs.OpRename:
		return op.Dir, true
	}
	return op.Ino, true
}

// fenced refuses an operation that is to be made under an exclusive lease which the session
// does not have: of the inode, or of the directory whose names it changes.
func (t *tx) fenced(op *cfs.Op) cfs.Kind {
	i, ok := Fenced(op)
	if !ok {
		return cfs.KindOK
	}
	if !t.has(i) || op.Kind == cfs.OpRename && !t.has(op.NewDir) {
		return cfs.NoLease
	}
	return cfs.KindOK
}

// has reports that the session has the exclusive lease of an inode.
func (t *tx) has(i cfs.Ino) bool {
	n, ok := t.inode(i)
	return ok && t.sess != 0 && n.Owner == t.sess
}

// surrender gives up the session's exclusive lease; without one it does nothing.
func (t *tx) surrender(op *cfs.Op, res *cfs.Result) cfs.Kind {
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.KindOK
	}
	if n.Owner == t.sess {
		n.Owner = 0
		t.putInode(n)
	}
	res.Attr = n.Attr
	return cfs.KindOK
}

// hold keeps an inode that has lost its last name for a session; one that is gone needs it no more.
func (t *tx) hold(i cfs.Ino, s cfs.SessionID) bool {
	if s != t.sess {
		if _, open := t.get(sessionKey(s)); !open {
			return false
		}
	}
	t.set(holdKey(i, s), []byte{recordVersion})
	t.set(heldByKey(s, i), []byte{recordVersion})
	return true
}
