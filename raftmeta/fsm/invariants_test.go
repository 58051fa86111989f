package fsm

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// audit recounts a whole state and reports every broken invariant, "" for none.
type audit struct {
	kv       *memKV
	problems []string
	inodes   map[cfs.Ino]*inode
	sessions map[cfs.SessionID]*session
	groups   map[cfs.PGID]*cfs.PG
	queued   map[string]bool // ino and map
	marks    map[string]uint64
}

func checkState(kv *memKV) string {
	a := &audit{kv: kv, inodes: map[cfs.Ino]*inode{}, sessions: map[cfs.SessionID]*session{}, groups: map[cfs.PGID]*cfs.PG{},
		queued: map[string]bool{}, marks: map[string]uint64{}}
	a.load()
	a.names()
	a.extents()
	a.small()
	return strings.Join(a.problems, "\n")
}

func (a *audit) bad(format string, args ...any) {
	a.problems = append(a.problems, fmt.Sprintf(format, args...))
}

func num(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

func (a *audit) load() {
	known := "ADEFGHILNQRSTVXZh"
	a.kv.each("", func(k, v []byte) {
		if !strings.ContainsRune(known, rune(k[0])) {
			a.bad("key %q of an unknown prefix", k)
		}
	})
	a.kv.each("A", func(k, v []byte) {
		if name := string(k[1:]); name != markCluster {
			a.marks[name] = binary.LittleEndian.Uint64(v)
		}
	})
	a.kv.each("I", func(k, v []byte) {
		n, ok := decodeInode(v)
		if !ok || uint64(n.Ino) != num(k[1:]) {
			a.bad("inode record %x", k)
			return
		}
		if a.inodes[n.Ino] = n; n.Ino.Counter() >= a.marks[markNextIno] {
			a.bad("inode %d: the next is %d", n.Ino, a.marks[markNextIno])
		}
	})
	a.kv.each("T", func(k, v []byte) {
		s, ok := decodeSession(v)
		if !ok || num(k[1:]) >= a.marks[markNextSession] {
			a.bad("session record %x", k)
		}
		a.sessions[cfs.SessionID(num(k[1:]))] = s
	})
	a.kv.each("G", func(k, v []byte) {
		g, ok := decodePG(v)
		if !ok || uint64(g.ID) >= a.marks[markNextPG] {
			a.bad("group record %x", k)
		}
		a.groups[g.ID] = g
	})
	a.kv.each("Q", func(k, v []byte) { a.queued[string(k[1:])] = true })
	if got := uint64(len(a.inodes)); got != a.marks[markInodes] {
		a.bad("%d inodes, mark %d", got, a.marks[markInodes])
	}
	if got := uint64(len(a.sessions)); got != a.marks[markSessions] {
		a.bad("%d sessions, mark %d", got, a.marks[markSessions])
	}
}

// names checks directory entries, link counts, parents and holds.
func (a *audit) names() {
	names := map[cfs.Ino]uint32{cfs.RootIno: 1}
	subdirs := map[cfs.Ino]uint32{}
	a.kv.each("D", func(k, v []byte) {
		d, ok := decodeDirent(v)
		dir := a.inodes[cfs.Ino(num(k[1:]))]
		n := a.inodes[d.ino]
		switch {
		case !ok || dir == nil || n == nil:
			a.bad("entry %q: record, directory or inode missing", k)
			return
		case !dir.IsDir():
			a.bad("entry %q: in inode %d, which is no directory", k, dir.Ino)
		case d.mode != n.Mode&cfs.ModeType:
			a.bad("entry %q: type %o of inode %o", k, d.mode, n.Mode)
		case n.IsDir() && n.parent != dir.Ino:
			a.bad("entry %q: directory %d has parent %d", k, n.Ino, n.parent)
		}
		if names[n.Ino]++; n.IsDir() {
			subdirs[dir.Ino]++
		}
	})
	holds := map[cfs.Ino]int{}
	a.kv.each("H", func(k, _ []byte) {
		i, s := cfs.Ino(num(k[1:])), cfs.SessionID(num(k[9:]))
		holds[i]++
		if n := a.inodes[i]; n == nil || n.Nlink != 0 || a.sessions[s] == nil {
			a.bad("hold of inode %d by session %d: inode gone or named, or session gone", i, s)
		}
		if _, ok := a.kv.tree.Get(pair{key: heldByKey(s, i)}); !ok {
			a.bad("hold of inode %d by session %d is not in the session's list", i, s)
		}
	})
	mirror := 0
	a.kv.each("h", func(_, _ []byte) { mirror++ })
	for _, n := range holds {
		mirror -= n
	}
	if mirror != 0 {
		a.bad("%d rows too many in the sessions' lists of holds", mirror)
	}
	for i, n := range a.inodes {
		want := names[i]
		if n.IsDir() {
			if want != 1 {
				a.bad("directory %d has %d names", i, want)
			}
			want = 2 + subdirs[i]
		}
		if n.Nlink != want {
			a.bad("inode %d: nlink %d, want %d", i, n.Nlink, want)
		}
		if n.Nlink == 0 && holds[i] == 0 {
			a.bad("inode %d has neither name nor hold", i)
		}
	}
}

type stripeAt struct {
	pg cfs.PGID
	id cfs.StripeID
}

// extents recounts the stripe table, the inline bytes, the raw bytes and each
// inode's blocks over all extent rows, those that await deletion included.
func (a *audit) extents() {
	count := map[stripeAt]*stripe{}
	stored := map[cfs.Ino]uint64{}
	var inlineBytes uint64
	lastMap, lastEnd := "", uint64(0)
	a.kv.each("E", func(k, v []byte) {
		ino, m, end := cfs.Ino(num(k[1:])), binary.BigEndian.Uint32(k[9:]), num(k[13:])
		x, ok := decodeExtent(end, v)
		if !ok {
			a.bad("extent row %x", k)
			return
		}
		if this := string(k[1:13]); this != lastMap {
			lastMap, lastEnd = this, 0
		}
		if x.Off < lastEnd {
			a.bad("inode %d map %d: row [%d, %d) meets the one that ends at %d", ino, m, x.Off, end, lastEnd)
		}
		lastEnd = end
		n := a.inodes[ino]
		switch live := n != nil && n.Map == m; {
		case live == a.queued[string(k[1:13])]:
			a.bad("inode %d map %d: live %v and queued for deletion %v", ino, m, live, !live)
		case live && !n.IsRegular():
			a.bad("inode %d has extents but mode %o", ino, n.Mode)
		case live:
			stored[ino] += x.Len
		}
		switch x.Kind {
		case cfs.ExtentInline:
			inlineBytes += x.Len
		case cfs.ExtentStripe:
			at := stripeAt{x.PG, x.Stripe}
			if count[at] == nil {
				count[at] = &stripe{len: x.StripeLen}
			}
			count[at].refs++
			if count[at].live += x.Len; count[at].len != x.StripeLen || uint64(x.StripeOff)+x.Len > uint64(x.StripeLen) {
				a.bad("inode %d: row of stripe %v has length %d", ino, x.Stripe, x.StripeLen)
			}
		}
	})
	for i, n := range a.inodes {
		if n.stored != stored[i] {
			a.bad("inode %d: stored %d, rows cover %d", i, n.stored, stored[i])
		}
	}
	if inlineBytes != a.marks[markInline] {
		a.bad("%d inline bytes, mark %d", inlineBytes, a.marks[markInline])
	}
	a.stripes(count)
}

func (a *audit) stripes(count map[stripeAt]*stripe) {
	var raw uint64
	zeros := 0
	a.kv.each("S", func(k, v []byte) {
		at := stripeAt{cfs.PGID(binary.BigEndian.Uint32(k[1:])), cfs.StripeID{Session: cfs.SessionID(num(k[5:])), Counter: num(k[13:])}}
		s, ok := decodeStripe(v)
		g := a.groups[at.pg]
		if !ok || g == nil {
			a.bad("stripe row %x", k)
			return
		}
		raw += uint64(g.Geometry.ShardSize(s.len)) * uint64(g.Geometry.Total())
		want := count[at]
		delete(count, at)
		_, zero := a.kv.tree.Get(pair{key: zeroKey(at.id, at.pg)})
		if zero {
			zeros++
		}
		if want == nil {
			want = &stripe{len: s.len}
			if sess := a.sessions[at.id.Session]; sess == nil || at.id.Counter < sess.floor {
				a.bad("stripe %v of group %d is neither referenced nor at or above its floor", at.id, at.pg)
			}
		}
		if *s != *want || zero != (s.refs == 0) {
			a.bad("stripe %v of group %d is %+v, recounted %+v, zero row %v", at.id, at.pg, *s, *want, zero)
		}
	})
	for at := range count {
		a.bad("stripe %v of group %d has extents and no row", at.id, at.pg)
	}
	a.kv.each("Z", func(_, _ []byte) { zeros-- })
	if zeros != 0 {
		a.bad("%d zero rows of no stripe", -zeros)
	}
	if raw != a.marks[markRaw] {
		a.bad("%d raw bytes, mark %d", raw, a.marks[markRaw])
	}
}

// small checks what belongs to inodes and sessions, and the feed.
func (a *audit) small() {
	a.kv.each("L", func(k, v []byte) {
		n := a.inodes[cfs.Ino(num(k[1:]))]
		if n == nil || n.Mode&cfs.ModeType != cfs.ModeSymlink || n.Size != uint64(len(v)-1) {
			a.bad("target %x: inode %+v", k, n)
		}
	})
	a.kv.each("X", func(k, _ []byte) {
		if a.inodes[cfs.Ino(num(k[1:]))] == nil {
			a.bad("attribute %q of no inode", k)
		}
	})
	a.kv.each("R", func(k, v []byte) {
		s, seq := a.sessions[cfs.SessionID(num(k[1:]))], num(k[9:])
		if _, ok := decodeReply(v); !ok || s == nil || seq < s.lowWater {
			a.bad("reply %x: session %+v", k, s)
		}
	})
	next := a.marks[markFeedFirst]
	a.kv.each("F", func(k, v []byte) {
		f, ok := decodeFreed(num(k[1:]), v)
		if !ok || f.Pos != next {
			a.bad("feed row %x, want position %d", k, next)
		}
		next++
		if _, used := a.kv.tree.Get(pair{key: stripeKey(f.PG, f.Stripe)}); used {
			a.bad("stripe %v of group %d is freed and has a row", f.Stripe, f.PG)
		}
	})
	if next != a.marks[markFeedNext] {
		a.bad("the feed ends at %d, mark %d", next, a.marks[markFeedNext])
	}
	onSlots := &tx{kv: a.kv}
	for _, g := range a.groups {
		if k := onSlots.checkGroup(g); k != cfs.KindOK {
			a.bad("group %+v breaks the rule of placement", *g)
		}
	}
}
