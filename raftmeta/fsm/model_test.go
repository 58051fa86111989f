package fsm

import (
	"maps"
	"slices"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// The model is POSIX as the manual pages tell it, in maps and byte arrays: no
// keys, no rows, no references. TestModel holds the machine against it.

// span is how many bytes of a file the model keeps.
const span = 2400

// cell is what one byte of a file reads: nothing (a hole or beyond the end), a
// byte carried inline, a byte of a stripe, or an allocated zero.
type cell struct {
	kind cfs.ExtentKind
	b    byte
	at   stripeAt
	soff uint32
	slen uint32
}

type node struct {
	ino, parent         cfs.Ino
	mode, nlink         uint32
	uid, gid, rdev      uint32
	size                uint64
	atime, mtime, ctime int64
	target              string
	xattrs              map[string]string
	names               map[string]cfs.Ino // of a directory
	holds               map[cfs.SessionID]bool
	acl, dacl           *modelACL // of access, and for what is made in it; never changed in place
	linkable            bool      // without a name, and may get its first
	data                []cell    // shared between copies: never changed in place
}

func (n *node) typ() uint32   { return n.mode & cfs.ModeType }
func (n *node) isDir() bool   { return n.typ() == cfs.ModeDir }
func (n *node) regular() bool { return n.typ() == cfs.ModeRegular }

type model struct {
	now     int64
	cred    cfs.Cred
	next    cfs.Ino
	nodes   map[cfs.Ino]*node
	floors  map[cfs.SessionID]uint64 // of the open sessions
	groups  map[cfs.PGID]cfs.PG      // as the cluster's map says
	nextPG  cfs.PGID                 // groups below it were once
	acls    map[string]*modelACL     // by their form: every valid one there is
	stripes map[stripeAt]uint32      // every stripe ever committed: its length
}

func newModel() *model {
	root := &node{ino: cfs.RootIno, parent: cfs.RootIno, mode: cfs.ModeDir | 0o755, nlink: 2, size: cfs.BlockSize, atime: 1000, mtime: 1000, ctime: 1000,
		names: map[string]cfs.Ino{}}
	return &model{next: 2, nodes: map[cfs.Ino]*node{cfs.RootIno: root}, floors: map[cfs.SessionID]uint64{}, stripes: map[stripeAt]uint32{},
		acls: map[string]*modelACL{"\x02\x00\x00\x00": nil}}
}

func (m *model) clone() *model {
	c := *m
	c.nodes = make(map[cfs.Ino]*node, len(m.nodes))
	for i, n := range m.nodes {
		k := *n
		k.xattrs, k.names, k.holds = maps.Clone(n.xattrs), maps.Clone(n.names), maps.Clone(n.holds)
		c.nodes[i] = &k
	}
	c.floors, c.stripes = maps.Clone(m.floors), maps.Clone(m.stripes)
	return &c
}

// apply is one operation of session s.
func (m *model) apply(s cfs.SessionID, op *cfs.Op) cfs.Kind {
	switch op.Kind {
	case cfs.OpCreate:
		if op.Name == "" && op.Hold {
			return m.tmpfile(s, op)
		}
		return m.create(op)
	case cfs.OpLink:
		return m.link(op)
	case cfs.OpUnlink:
		return m.unlink(s, op)
	case cfs.OpRmdir:
		return m.rmdir(op)
	case cfs.OpRename:
		return m.rename(s, op)
	case cfs.OpSetAttr:
		return m.setAttr(op)
	case cfs.OpSetXattr:
		return m.setXattr(op)
	case cfs.OpRemoveXattr:
		return m.removeXattr(op)
	case cfs.OpWrite:
		return m.write(s, op)
	case cfs.OpRelease:
		if n := m.nodes[op.Ino]; n != nil {
			delete(n.holds, s)
			m.collect(n)
		}
		return cfs.KindOK
	}
	panic("no such operation in the model")
}

// dir is a directory that the caller may look names up in.
func (m *model) dir(i cfs.Ino) (*node, cfs.Kind) {
	switch d := m.nodes[i]; {
	case d == nil || d.nlink == 0:
		return nil, cfs.NotFound
	case !d.isDir():
		return nil, cfs.NotDir
	case !m.may(d, 1):
		return nil, cfs.Access
	default:
		return d, cfs.KindOK
	}
}

func (m *model) dirent(dir cfs.Ino, name string) (d, n *node, k cfs.Kind) {
	if d, k = m.dir(dir); k == 0 && len(name) > 255 {
		k = cfs.NameTooLong
	}
	if k != 0 {
		return nil, nil, k
	}
	if i, ok := d.names[name]; ok {
		n = m.nodes[i]
	}
	return d, n, cfs.KindOK
}

func badName(name string) cfs.Kind {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return cfs.Invalid
	}
	if len(name) > 255 {
		return cfs.NameTooLong
	}
	return cfs.KindOK
}

func (m *model) changed(dirs ...*node) {
	for _, d := range dirs {
		d.mtime, d.ctime = m.now, m.now
	}
}

func (m *model) create(op *cfs.Op) cfs.Kind {
	if k := badName(op.Name); k != 0 {
		return k
	}
	d, old, k := m.dirent(op.Dir, op.Name)
	if k != 0 {
		return k
	}
	typ := op.Attr.Mode & cfs.ModeType
	if old != nil {
		switch wantsFile := typ == cfs.ModeRegular && !op.Exclusive; {
		case wantsFile && old.regular():
			return cfs.KindOK
		case wantsFile && old.isDir():
			return cfs.IsDir
		}
		return cfs.Exists
	}
	if !m.may(d, 3) {
		return cfs.Access
	}
	n, k := m.fresh(op, d)
	if k != 0 {
		return k
	}
	d.names[op.Name] = n.ino
	m.changed(d)
	return cfs.KindOK
}

func (m *model) tmpfile(s cfs.SessionID, op *cfs.Op) cfs.Kind {
	if op.Attr.Mode&cfs.ModeType != cfs.ModeRegular {
		return cfs.Invalid
	}
	d, k := m.dir(op.Dir)
	if k == 0 && !m.may(d, 3) {
		k = cfs.Access
	}
	if k != 0 {
		return k
	}
	n, k := m.fresh(op, d)
	if k != 0 {
		return k
	}
	n.nlink, n.linkable, n.holds[s] = 0, !op.Exclusive, true
	return cfs.KindOK
}

// fresh is a new inode in d, without a name.
func (m *model) fresh(op *cfs.Op, d *node) (*node, cfs.Kind) {
	n := &node{ino: m.next, mode: op.Attr.Mode & (cfs.ModeType | cfs.ModePerm), nlink: 1, uid: op.Attr.UID, gid: op.Attr.GID, atime: m.now, mtime: m.now,
		ctime: m.now, xattrs: map[string]string{}, holds: map[cfs.SessionID]bool{}}
	m.own(n, d, op.Flags)
	switch n.typ() {
	case cfs.ModeDir:
		n.nlink, n.size, n.parent, n.names = 2, 4096, d.ino, map[string]cfs.Ino{}
		d.nlink++
	case cfs.ModeSymlink:
		if op.Value == nil {
			return nil, cfs.NotFound
		}
		n.target, n.size = string(op.Value), uint64(len(op.Value))
	case cfs.ModeRegular:
		n.data = make([]cell, span)
	case cfs.ModeChar, cfs.ModeBlock:
		if m.bound() {
			return nil, cfs.Permission
		}
		n.rdev = op.Attr.Rdev
	case cfs.ModeFIFO, cfs.ModeSocket:
	default:
		return nil, cfs.Invalid
	}
	m.next++
	m.nodes[n.ino] = n
	return n, cfs.KindOK
}

func (m *model) link(op *cfs.Op) cfs.Kind {
	if k := badName(op.Name); k != 0 {
		return k
	}
	d, old, k := m.dirent(op.Dir, op.Name)
	n := m.nodes[op.Ino]
	switch {
	case k != 0:
		return k
	case n == nil:
		return cfs.NotFound
	case old != nil:
		return cfs.Exists
	case !m.may(d, 3):
		return cfs.Access
	case n.isDir():
		return cfs.Permission
	case n.nlink == 0 && !n.linkable:
		return cfs.NotFound
	}
	if n.nlink == 0 {
		n.linkable = false
		clear(n.holds)
	}
	n.nlink++
	n.ctime = m.now
	d.names[op.Name] = n.ino
	m.changed(d)
	return cfs.KindOK
}

// collect removes an inode that nothing refers to any more.
func (m *model) collect(n *node) {
	if n.nlink == 0 && len(n.holds) == 0 {
		delete(m.nodes, n.ino)
	}
}

func (m *model) lose(s cfs.SessionID, n *node, hold bool) {
	n.nlink--
	n.ctime = m.now
	if n.nlink == 0 && hold {
		n.holds[s] = true
	}
	m.collect(n)
}

func (m *model) unlink(s cfs.SessionID, op *cfs.Op) cfs.Kind {
	d, n, k := m.dirent(op.Dir, op.Name)
	switch {
	case k != 0:
		return k
	case n == nil:
		return cfs.NotFound
	case m.mayUnlink(d, n) != 0:
		return m.mayUnlink(d, n)
	case n.isDir():
		return cfs.IsDir
	}
	delete(d.names, op.Name)
	m.changed(d)
	m.lose(s, n, op.Hold)
	return cfs.KindOK
}

func (m *model) rmdir(op *cfs.Op) cfs.Kind {
	d, n, k := m.dirent(op.Dir, op.Name)
	switch {
	case k != 0:
		return k
	case n == nil:
		return cfs.NotFound
	case m.mayUnlink(d, n) != 0:
		return m.mayUnlink(d, n)
	case !n.isDir():
		return cfs.NotDir
	case len(n.names) > 0:
		return cfs.NotEmpty
	}
	delete(d.names, op.Name)
	delete(m.nodes, n.ino)
	d.nlink--
	m.changed(d)
	return cfs.KindOK
}

// below reports that directory i is top or lies under it.
func (m *model) below(i, top cfs.Ino) bool {
	for ; i != cfs.RootIno; i = m.nodes[i].parent {
		if i == top {
			return true
		}
	}
	return top == cfs.RootIno
}

func (m *model) rename(s cfs.SessionID, op *cfs.Op) cfs.Kind {
	noreplace, exchange := op.Flags == cfs.RenameNoreplace, op.Flags == cfs.RenameExchange
	if op.Flags != 0 && !noreplace && !exchange {
		return cfs.Invalid
	}
	if k := badName(op.NewName); k != 0 {
		return k
	}
	from, k := m.dir(op.Dir)
	if k != 0 {
		return k
	}
	to, dst, k := m.dirent(op.NewDir, op.NewName)
	if k != 0 {
		return k
	}
	_, src, k := m.dirent(op.Dir, op.Name)
	switch {
	case k != 0:
		return k
	case src == nil:
		return cfs.NotFound
	case dst != nil && noreplace:
		return cfs.Exists
	case dst == nil && exchange:
		return cfs.NotFound
	case src.isDir() && m.below(to.ino, src.ino):
		return cfs.Invalid
	case exchange && dst.isDir() && m.below(from.ino, dst.ino):
		return cfs.Invalid
	case dst != nil && dst.isDir() && m.below(from.ino, dst.ino):
		return cfs.NotEmpty
	case src == dst:
		return cfs.KindOK
	case m.mayRename(op, from, to, src, dst, exchange) != 0:
		return m.mayRename(op, from, to, src, dst, exchange)
	case dst != nil && !exchange && dst.isDir() && len(dst.names) > 0:
		return cfs.NotEmpty
	}
	delete(from.names, op.Name)
	if src.isDir() {
		from.nlink--
		to.nlink++
		src.parent = to.ino
	}
	to.names[op.NewName] = src.ino
	src.ctime = m.now
	m.changed(from, to)
	switch {
	case exchange:
		from.names[op.Name] = dst.ino
		dst.ctime = m.now
		if dst.isDir() {
			to.nlink--
			from.nlink++
			dst.parent = from.ino
		}
	case dst != nil && dst.isDir():
		to.nlink--
		delete(m.nodes, dst.ino)
	case dst != nil:
		m.lose(s, dst, op.Hold)
	}
	return cfs.KindOK
}

func (m *model) setAttr(op *cfs.Op) cfs.Kind {
	n := m.nodes[op.Ino]
	if n == nil {
		return cfs.Stale
	}
	set := func(bit cfs.SetMask) bool { return op.Mask&bit != 0 }
	if set(cfs.SetSize) {
		switch {
		case n.isDir():
			return cfs.IsDir
		case !n.regular():
			return cfs.Invalid
		case op.Attr.Size > cfs.MaxFileSize:
			return cfs.TooLarge
		}
	}
	if k := m.maySetAttr(n, op.Mask, &op.Attr); k != 0 {
		return k
	}
	if set(cfs.SetSize) {
		if op.Attr.Size < n.size {
			n.data = slices.Clone(n.data)
			clear(n.data[min(op.Attr.Size, span):])
		}
		n.size, n.mtime = op.Attr.Size, m.now
		if m.bound() {
			m.killPriv(n)
		}
	}
	n.ctime = m.now
	if m.cred.Enforce && (set(cfs.SetUID) || set(cfs.SetGID)) {
		m.killPriv(n)
	}
	if set(cfs.SetUID) {
		n.uid = op.Attr.UID
	}
	if set(cfs.SetGID) {
		n.gid = op.Attr.GID
	}
	if set(cfs.SetMode) {
		n.mode = n.typ() | op.Attr.Mode&0o7777
		if !m.member(n.gid) {
			n.mode &^= cfs.ModeSetgid
		}
		if n.acl != nil {
			n.acl = n.acl.withBits(n.mode)
		}
	}
	if set(cfs.SetKillPriv) {
		m.killPriv(n)
	}
	if set(cfs.SetAtime) {
		n.atime = op.Attr.AtimeNS
	}
	if set(cfs.SetMtime) {
		n.mtime = op.Attr.MtimeNS
	}
	if set(cfs.SetAtimeNow) {
		n.atime = m.now
	}
	if set(cfs.SetMtimeNow) {
		n.mtime = m.now
	}
	return cfs.KindOK
}

func (m *model) setXattr(op *cfs.Op) cfs.Kind {
	n := m.nodes[op.Ino]
	if n == nil {
		return cfs.Stale
	}
	if k := m.mayXattr(n, op.Name, true); k != 0 {
		return k
	}
	if strings.HasPrefix(op.Name, "system.") {
		a, valid := m.acls[string(op.Value)]
		if !valid {
			return cfs.Invalid
		}
		if k := m.setACL(n, op, a); k != 0 {
			return k
		}
		n.ctime = m.now
		return cfs.KindOK
	}
	_, exists := n.xattrs[op.Name]
	if exists && op.Flags == cfs.XattrCreate {
		return cfs.Exists
	}
	if !exists && op.Flags == cfs.XattrReplace {
		return cfs.NoAttr
	}
	if n.xattrs == nil {
		n.xattrs = map[string]string{}
	}
	n.xattrs[op.Name] = string(op.Value)
	n.ctime = m.now
	return cfs.KindOK
}

func (m *model) removeXattr(op *cfs.Op) cfs.Kind {
	n := m.nodes[op.Ino]
	if n == nil {
		return cfs.Stale
	}
	if k := m.mayXattr(n, op.Name, true); k != 0 {
		return k
	}
	acl := strings.HasPrefix(op.Name, "system.")
	if acl && !m.owner(n) {
		return cfs.Permission
	}
	if _, exists := n.allXattrs()[op.Name]; !exists {
		return cfs.NoAttr
	}
	if delete(n.xattrs, op.Name); acl {
		if op.Name == cfs.XattrACLAccess {
			n.acl = nil
		} else {
			n.dacl = nil
		}
	}
	n.ctime = m.now
	return cfs.KindOK
}

// referenced says which stripes some byte of some file is on.
func (m *model) referenced() map[stripeAt]bool {
	used := map[stripeAt]bool{}
	for _, n := range m.nodes {
		for i := range n.data {
			if n.data[i].kind == cfs.ExtentStripe {
				used[n.data[i].at] = true
			}
		}
	}
	return used
}

// commit says whether session s may name the stripe of x now.
func (m *model) commit(s cfs.SessionID, x *cfs.Extent, epochs []cfs.PGEpoch) cfs.Kind {
	g, ok := m.groups[x.PG]
	if !ok && x.PG < m.nextPG {
		return cfs.StaleEpoch
	}
	if !ok || uint64(x.StripeOff)+x.Len > uint64(x.StripeLen) {
		return cfs.Invalid
	}
	at := stripeAt{x.PG, x.Stripe}
	length, once := m.stripes[at]
	floor, open := m.floors[x.Stripe.Session]
	// A stripe exists for as long as a byte is on it, or its session may still name it.
	if once && (open && x.Stripe.Counter >= floor || m.referenced()[at]) {
		if length != x.StripeLen {
			return cfs.Invalid
		}
		return cfs.KindOK
	}
	if x.Stripe.Session != s || x.Stripe.Counter < floor {
		return cfs.BelowFloor
	}
	if !slices.Contains(epochs, cfs.PGEpoch{PG: g.ID, Epoch: g.Epoch}) || !g.Writable {
		return cfs.StaleEpoch
	}
	m.stripes[at] = x.StripeLen
	return cfs.KindOK
}

func (m *model) write(s cfs.SessionID, op *cfs.Op) cfs.Kind {
	n := m.nodes[op.Ino]
	switch {
	case n == nil:
		return cfs.Stale
	case n.isDir():
		return cfs.IsDir
	case !n.regular():
		return cfs.Invalid
	case !m.may(n, 2):
		return cfs.Access
	}
	for i := range op.Extents {
		if op.Extents[i].Kind == cfs.ExtentStripe {
			if k := m.commit(s, &op.Extents[i], op.Epochs); k != 0 {
				return k
			}
		}
	}
	n.data = slices.Clone(n.data)
	size := max(n.size, op.Attr.Size)
	for i := range op.Extents {
		x := &op.Extents[i]
		n.put(x)
		if x.Kind != cfs.ExtentHole {
			size = max(size, x.End())
		}
	}
	if !op.KeepSize {
		n.size = size
	}
	if n.mtime = m.now; op.Attr.MtimeNS != 0 {
		n.mtime = op.Attr.MtimeNS
	}
	n.ctime = max(n.ctime, n.mtime)
	if op.Mask&cfs.SetKillPriv != 0 || m.bound() {
		m.killPriv(n)
	}
	return cfs.KindOK
}

// put writes an extent's bytes; allocation leaves what is there.
func (n *node) put(x *cfs.Extent) {
	for i := range x.Len {
		c := &n.data[x.Off+i]
		switch x.Kind {
		case cfs.ExtentHole:
			*c = cell{}
		case cfs.ExtentInline:
			*c = cell{kind: x.Kind, b: x.Inline[i]}
		case cfs.ExtentStripe:
			*c = cell{kind: x.Kind, at: stripeAt{x.PG, x.Stripe}, soff: x.StripeOff + uint32(i), slen: x.StripeLen}
		case cfs.ExtentUnwritten:
			if c.kind == cfs.ExtentHole {
				*c = cell{kind: x.Kind}
			}
		}
	}
}

// expire ends a session.
func (m *model) expire(s cfs.SessionID) {
	delete(m.floors, s)
	for _, n := range m.nodes {
		delete(n.holds, s)
		m.collect(n)
	}
}
