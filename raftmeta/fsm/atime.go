package fsm

import "github.com/claudefs/claudefs/cfs"

// accessed keeps the time of a reading. Change time and generation stay as they are: nothing that anybody keeps of
// the inode's content is old by it, and the journal does not tell of it.
func (t *tx) accessed(op *cfs.Op, res *cfs.Result) cfs.Kind {
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.KindOK
	}
	if n.AtimeDue(op.Attr.AtimeNS) {
		n.AtimeNS = op.Attr.AtimeNS
		t.set(inodeKey(n.Ino), t.encode().inode(n))
	}
	res.Attr = n.Attr
	return cfs.KindOK
}
