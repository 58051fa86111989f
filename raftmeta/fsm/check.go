package fsm

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxCheckExamples bounds the faults that a report describes; others are counted.
	maxCheckExamples = 100
	// checkSlice is how many inodes, and how many stripes, Check recounts at a time.
	checkSlice = 1 << 20
)

// CheckReport is what Check has found.
type CheckReport struct {
	AppliedIndex uint64
	Inodes       uint64
	Extents      uint64
	Stripes      uint64
	Faults       uint64
	Examples     []string // of the faults, at most maxCheckExamples
}

// Check recounts a whole state: names against links, extents against the stripe
// table, both against the counters, and every record's form. A fault in what it
// reads is part of the report; an error means that it cannot be read. Beside what is
// bounded anyway (sessions, groups) it keeps a million inodes or stripes in memory
// at a time, and goes through all names, or all extents, once for each million.
func Check(r Reader) (*CheckReport, error) { return check(r, checkSlice) }

func check(r Reader, slice int) (*CheckReport, error) {
	c := &checker{t: &tx{kv: r}, slice: slice, marks: map[string]uint64{}, sessions: map[cfs.SessionID]*session{}, groups: map[cfs.PGID]*groupCount{}}
	for _, part := range []func(){c.strays, c.cluster, c.identity, c.names, c.holds, c.locks, c.belongings, c.data, c.feed, c.counters, c.journal} {
		if part(); c.t.err != nil {
			return nil, c.t.err
		}
	}
	c.report.AppliedIndex = c.marks[markApplied]
	return &c.report, nil
}

// checker is one run of Check.
type checker struct {
	t      *tx
	slice  int
	report CheckReport

	marks    map[string]uint64
	sessions map[cfs.SessionID]*session
	groups   map[cfs.PGID]*groupCount
	inline   uint64 // bytes in inline extents
	stored   uint64 // bytes in extents, as the inodes say
	lockRows uint64
}

// groupCount is a group and what was counted in it.
type groupCount struct {
	geometry cfs.Geometry
	usage
}

func (c *checker) bad(format string, args ...any) {
	if c.report.Faults++; len(c.report.Examples) < maxCheckExamples {
		c.report.Examples = append(c.report.Examples, fmt.Sprintf(format, args...))
	}
}

// each goes through the rows of a prefix.
func (c *checker) each(prefix byte, fn func(k, v []byte)) {
	c.t.scan([]byte{prefix}, []byte{prefix + 1}, func(k, v []byte) bool {
		fn(k, v)
		return c.t.err == nil
	})
}

// sized is each for rows whose keys have the given length.
func (c *checker) sized(prefix byte, size int, fn func(k, v []byte)) {
	c.each(prefix, func(k, v []byte) {
		if len(k) != size {
			c.bad("key %q of %d bytes, want %d", k, len(k), size)
			return
		}
		fn(k, v)
	})
}

func (c *checker) has(key []byte) bool {
	_, ok := c.t.get(key)
	return ok
}

// look reads a record; one that is broken is reported where its row is checked.
func look[T any](c *checker, key []byte, decode func([]byte) (T, bool)) (rec T, ok bool) {
	v, ok := c.t.get(key)
	if !ok {
		return rec, false
	}
	return decode(v)
}

func u64of(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
func u32of(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// prefixes are all there are, in order.
const prefixes = "ACDEFGHIJKLMNPQRSTUVXZchiklq"

// strays looks for keys that nothing reads.
func (c *checker) strays() {
	lo := []byte{0}
	for i := 0; i <= len(prefixes); i++ {
		var hi []byte
		if i < len(prefixes) {
			hi = []byte{prefixes[i]}
		}
		if hi == nil || string(lo) < string(hi) {
			c.t.scan(lo, hi, func(k, _ []byte) bool {
				c.bad("key %q of an unknown prefix", k)
				return c.t.err == nil
			})
		}
		if hi != nil {
			lo = []byte{hi[0] + 1}
		}
	}
}

// cluster checks marks, sessions and the layout.
func (c *checker) cluster() {
	c.each(prefixMark, func(k, v []byte) {
		switch name := string(k[1:]); {
		case name == markCluster:
		case len(v) != 8:
			c.bad("mark %s of %d bytes", name, len(v))
		default:
			c.marks[name] = binary.LittleEndian.Uint64(v)
		}
	})
	c.sized(prefixSession, 9, func(k, v []byte) {
		s, ok := decodeSession(v)
		if !ok || u64of(k[1:]) >= c.marks[markNextSession] {
			c.bad("session record %x", k)
			return
		}
		c.sessions[cfs.SessionID(u64of(k[1:]))] = s
	})
	c.sized(prefixNode, 3, func(k, v []byte) {
		if n, ok := decodeNode(v); !ok || n.ID != cfs.NodeID(binary.BigEndian.Uint16(k[1:])) {
			c.bad("node record %x", k)
		}
	})
	c.sized(prefixMember, 3, func(k, v []byte) {
		if m, ok := DecodeMember(v); !ok || m.ID != cfs.NodeID(binary.BigEndian.Uint16(k[1:])) {
			c.bad("member record %x", k)
		}
	})
	c.sized(prefixDevice, 5, func(k, v []byte) {
		if d, ok := decodeDevice(v); !ok || uint32(d.ID) != u32of(k[1:]) || d.FeedPos >= c.marks[markFeedNext] {
			c.bad("device record %x", k)
		}
	})
	c.sized(prefixGroup, 5, func(k, v []byte) {
		g, ok := decodePG(v)
		if !ok || uint32(g.ID) != u32of(k[1:]) || uint64(g.ID) >= c.marks[markNextPG] {
			c.bad("group record %x", k)
			return
		}
		c.groups[g.ID] = &groupCount{geometry: g.Geometry}
		if c.t.checkGroup(g) != cfs.KindOK {
			c.bad("group %+v breaks the rule of placement", *g)
		}
	})
	c.sized(prefixJob, 5, func(k, v []byte) {
		if j, ok := decodeJob(v); !ok || uint32(j.Device) != u32of(k[1:]) || !validJob(j) || !c.has(deviceKey(j.Device)) {
			c.bad("job record %x", k)
		}
	})
}

// counted is an inode and the names that were found for it.
type counted struct {
	ino, parent cfs.Ino
	mode, nlink uint32
	names       uint32
	subdirs     uint32 // that a directory has
}

// names checks inodes, directory entries, link counts and parents, a slice of the
// inodes at a time.
func (c *checker) names() {
	from, lo := key1(prefixInode, 0), cfs.Ino(0)
	for first := true; c.t.err == nil; first = false {
		var part []counted
		more := false
		c.t.scan(from, []byte{prefixInode + 1}, func(k, v []byte) bool {
			if len(part) == c.slice {
				more = true
				from = append([]byte(nil), k...)
				return false
			}
			if n := c.inode(k, v); n != nil {
				part = append(part, counted{ino: n.Ino, parent: n.parent, mode: n.Mode, nlink: n.Nlink})
			}
			return c.t.err == nil
		})
		hi := ^cfs.Ino(0)
		if more {
			hi = part[len(part)-1].ino
		}
		c.entries(part, lo, hi, first)
		c.links(part)
		if !more {
			return
		}
		lo = hi + 1
	}
}

// inode checks an inode's record by itself.
func (c *checker) inode(k, v []byte) *inode {
	n, ok := decodeInode(v)
	if !ok || len(k) != 9 || uint64(n.Ino) != u64of(k[1:]) {
		c.bad("inode record %x", k)
		return nil
	}
	c.report.Inodes++
	c.stored += n.stored
	if n.Ino.Counter() >= c.marks[markNextIno] {
		c.bad("inode %d: the next is %d", n.Ino, c.marks[markNextIno])
	}
	if n.Mode&cfs.ModeType == cfs.ModeSymlink && !c.has(targetKey(n.Ino)) {
		c.bad("symbolic link %d has no target", n.Ino)
	}
	if queued := c.has(mapKey(prefixQueue, n.Ino, n.Map)); queued != (n.cut > 0) {
		c.bad("inode %d: cut at %d and queued for deletion %v", n.Ino, n.cut, queued)
	}
	for _, name := range [...]string{cfs.XattrACLAccess, cfs.XattrACLDefault} {
		if n.flags&aclFlag(name) != 0 && !c.has(xattrKey(n.Ino, name)) {
			c.bad("inode %d has no %s, which it says it has", n.Ino, name)
		}
	}
	return n
}

// ended reports that a session is gone and that what it left is being deleted.
func (c *checker) ended(s cfs.SessionID) bool { return c.sessions[s] == nil && c.has(endedKey(s)) }

// entries counts the names of the inodes of part, which are all from lo to hi. What
// concerns the directories alone is checked the first time.
func (c *checker) entries(part []counted, lo, hi cfs.Ino, first bool) {
	find := func(i cfs.Ino) *counted {
		at, ok := slices.BinarySearchFunc(part, i, func(n counted, i cfs.Ino) int { return cmp.Compare(n.ino, i) })
		if !ok {
			return nil
		}
		return &part[at]
	}
	last := cfs.Ino(0)
	c.each(prefixDirent, func(k, v []byte) {
		d, ok := decodeDirent(v)
		if !ok || len(k) < 10 {
			if first {
				c.bad("entry record %q", k)
			}
			return
		}
		dir := cfs.Ino(u64of(k[1:]))
		if first && dir != last {
			if n, ok := look(c, inodeKey(dir), decodeInode); !ok || !n.IsDir() {
				c.bad("entry %q: in inode %d, which is no directory", k, dir)
			}
			last = dir
		}
		if up := find(dir); up != nil && d.mode == cfs.ModeDir {
			up.subdirs++
		}
		if d.ino < lo || d.ino > hi {
			return
		}
		n := find(d.ino)
		switch {
		case n == nil:
			c.bad("entry %q: there is no inode %d", k, d.ino)
			return
		case d.mode != n.mode&cfs.ModeType:
			c.bad("entry %q: type %o of inode %o", k, d.mode, n.mode)
		case d.mode == cfs.ModeDir && n.parent != dir:
			c.bad("entry %q: directory %d has parent %d", k, n.ino, n.parent)
		}
		n.names++
	})
}

// links compares the names that were counted with the inodes.
func (c *checker) links(part []counted) {
	for i := range part {
		n := &part[i]
		if n.ino == cfs.RootIno {
			n.names++
		}
		want := n.names
		if n.mode&cfs.ModeType == cfs.ModeDir {
			if want != 1 {
				c.bad("directory %d has %d names", n.ino, want)
			}
			want = 2 + n.subdirs
		}
		if n.nlink != want {
			c.bad("inode %d: nlink %d, want %d", n.ino, n.nlink, want)
		}
		if n.nlink == 0 {
			held := false
			c.t.scan(holdKey(n.ino, 0), after(key1(prefixHold, uint64(n.ino))), func(_, _ []byte) bool {
				held = true
				return false
			})
			if !held {
				c.bad("inode %d has neither name nor hold", n.ino)
			}
		}
	}
}

// holds checks those of inodes without names, in both orders.
func (c *checker) holds() {
	c.sized(prefixHold, 17, func(k, _ []byte) {
		i, s := cfs.Ino(u64of(k[1:])), cfs.SessionID(u64of(k[9:]))
		if n, ok := look(c, inodeKey(i), decodeInode); !ok || n.Nlink != 0 || c.sessions[s] == nil && !c.ended(s) {
			c.bad("hold of inode %d by session %d: inode gone or named, or session gone", i, s)
		}
		if !c.has(heldByKey(s, i)) {
			c.bad("hold of inode %d by session %d is not in the session's list", i, s)
		}
	})
	c.sized(prefixHeldBy, 17, func(k, _ []byte) {
		s, i := cfs.SessionID(u64of(k[1:])), cfs.Ino(u64of(k[9:]))
		if !c.has(holdKey(i, s)) {
			c.bad("session %d lists a hold of inode %d, which it has not", s, i)
		}
	})
}

// belongings checks what belongs to inodes and sessions.
func (c *checker) belongings() {
	c.sized(prefixLink, 9, func(k, v []byte) {
		target, ok := decodeBytes(v)
		n, known := look(c, inodeKey(cfs.Ino(u64of(k[1:]))), decodeInode)
		if !ok || !known || n.Mode&cfs.ModeType != cfs.ModeSymlink || n.Size != uint64(len(target)) {
			c.bad("target %x is of no symbolic link of its length", k)
		}
	})
	last, known := cfs.Ino(0), false
	c.each(prefixXattr, func(k, v []byte) {
		if len(k) < 10 {
			c.bad("attribute %q", k)
			return
		}
		if i := cfs.Ino(u64of(k[1:])); i != last {
			last, known = i, c.has(mapKey(prefixQueue, i, xattrMap)) != c.has(inodeKey(i))
		}
		b, ok := decodeBytes(v)
		if !ok || !known {
			c.bad("attribute %q is broken or of no inode", k)
		}
		if flag := aclFlag(string(k[9:])); ok && flag != 0 {
			c.acl(last, flag, b)
		}
	})
	c.sized(prefixEnded, 9, func(k, _ []byte) {
		if u64of(k[1:]) >= c.marks[markNextSession] {
			c.bad("session %d has ended before it began", u64of(k[1:]))
		}
	})
	c.sized(prefixInos, 9, func(k, v []byte) {
		id := cfs.SessionID(u64of(k[1:]))
		rs, ok := decodeInos(v)
		if !ok || c.sessions[id] == nil || rs[len(rs)-1].end.Counter() > c.marks[markNextIno] {
			c.bad("numbers %x of session %d are broken, of no session, or not given yet", v, id)
		}
	})
	c.sized(prefixReply, 17, func(k, v []byte) {
		id := cfs.SessionID(u64of(k[1:]))
		s := c.sessions[id]
		if _, ok := decodeReply(v); !ok || s == nil && !c.ended(id) || s != nil && u64of(k[9:]) < s.lowWater {
			c.bad("reply %x is broken, of no session, or forgotten by it", k)
		}
	})
}

// acl checks the row of an ACL: it has one form, and an inode that is there says that it has it.
func (c *checker) acl(i cfs.Ino, flag uint8, b []byte) {
	a, k := parseACL(b)
	if k != cfs.KindOK || a == nil || string(a.encode()) != string(b) || flag == hasACL && a.isMode() {
		c.bad("inode %d: ACL %x", i, b)
		return
	}
	n, ok := look(c, inodeKey(i), decodeInode)
	if ok && (n.flags&flag == 0 || flag == hasACL && a.mode() != n.Mode&0o777 || flag == hasDefaultACL && !n.IsDir()) {
		c.bad("inode %d: mode %o and flags %d do not go with its ACL %x", i, n.Mode, n.flags, b)
	}
}

// counters compares the marks with what was counted.
func (c *checker) counters() {
	c.sized(prefixUsage, 5, func(k, v []byte) {
		id := cfs.PGID(u32of(k[1:]))
		u, ok := decodeUsage(v)
		g := c.groups[id]
		if !ok || g == nil || u != g.usage {
			c.bad("group %d is said to hold %+v, counted %+v", id, u, g)
		}
		if g != nil {
			g.stripes = 0 // seen
		}
	})
	var raw uint64
	ids := make([]cfs.PGID, 0, len(c.groups))
	for id, g := range c.groups {
		raw += g.raw
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if g := c.groups[id]; g.stripes != 0 {
			c.bad("group %d holds %+v, which is not recorded", id, g.usage)
		}
	}
	for _, m := range []struct {
		name string
		want uint64
	}{{markInodes, c.report.Inodes}, {markSessions, uint64(len(c.sessions))}, {markInline, c.inline}, {markRaw, raw}, {markLocks, c.lockRows}} {
		if c.marks[m.name] != m.want {
			c.bad("mark %s is %d, counted %d", m.name, c.marks[m.name], m.want)
		}
	}
}
