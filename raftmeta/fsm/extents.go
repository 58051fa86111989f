package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// rows returns the extent rows that meet [off, end), at most limit; more says
// that there are others.
func (t *tx) rows(i cfs.Ino, m uint32, off, end uint64, limit int) (rows []cfs.Extent, more bool) {
	if off >= end {
		return nil, false
	}
	t.scan(extentKey(i, m, off+1), after(mapKey(prefixExtent, i, m)), func(k, v []byte) bool {
		x, ok := decodeExtent(binary.BigEndian.Uint64(k[len(k)-8:]), v)
		if !ok {
			t.corrupt(k)
			return false
		}
		if x.Off >= end {
			return false
		}
		if len(rows) == limit {
			more = true
			return false
		}
		rows = append(rows, x)
		return true
	})
	return rows, more
}

// fileRows is rows of a file: below its cut they are in its map, above in the second one.
func (t *tx) fileRows(n *inode, off, end uint64, limit int) (rows []cfs.Extent, more bool) {
	if off >= n.cut {
		return t.rows(n.Ino, n.mapAt(off), off, end, limit)
	}
	rows, more = t.rows(n.Ino, n.Map, off, min(end, n.cut), limit)
	if more || end <= n.cut {
		return rows, more
	}
	above, more := t.rows(n.Ino, n.high, n.cut, end, limit-len(rows))
	return append(rows, above...), more
}

// mapAt is the map of the row at an offset. No row lies across the cut.
func (n *inode) mapAt(off uint64) uint32 {
	if n.cut > 0 && off >= n.cut {
		return n.high
	}
	return n.Map
}

// addRow stores an extent row and references what it names.
func (t *tx) addRow(n *inode, x *cfs.Extent) {
	t.ref(x)
	t.putRow(n, x)
}

// putRow stores an extent row whose bytes are referenced already.
func (t *tx) putRow(n *inode, x *cfs.Extent) {
	if x.Off < n.cut && n.cut < x.End() {
		below, above := x.Slice(x.Off, n.cut), x.Slice(n.cut, x.End())
		t.addRow(n, &below)
		t.addRow(n, &above)
		t.unref(x)
		return
	}
	t.set(extentKey(n.Ino, n.mapAt(x.Off), x.End()), encodeExtent(x))
	n.stored += x.Len
}

// ref counts a reference of an extent row to its bytes.
func (t *tx) ref(x *cfs.Extent) {
	switch x.Kind {
	case cfs.ExtentInline:
		t.addMark(markInline, x.Len)
	case cfs.ExtentStripe:
		s, ok := load(t, stripeKey(x.PG, x.Stripe), decodeStripe)
		if !ok {
			s = &stripe{len: x.StripeLen}
			t.addUsage(x.PG, 1, t.rawBytes(x.PG, x.StripeLen))
		} else if s.refs == 0 {
			t.del(zeroKey(x.Stripe, x.PG))
		}
		s.refs++
		s.live += x.Len
		t.set(stripeKey(x.PG, x.Stripe), encodeStripe(s))
	}
}

// unref takes a row's reference away. A stripe that loses its last one is freed
// once its id is below its session's floor: until then the session may still
// name it.
func (t *tx) unref(x *cfs.Extent) {
	switch x.Kind {
	case cfs.ExtentInline:
		t.addMark(markInline, -x.Len)
	case cfs.ExtentStripe:
		s, ok := load(t, stripeKey(x.PG, x.Stripe), decodeStripe)
		if !ok || s.refs == 0 || s.live < x.Len {
			t.corrupt(stripeKey(x.PG, x.Stripe))
			return
		}
		s.refs--
		s.live -= x.Len
		if s.refs == 0 && x.Stripe.Counter < t.floor(x.Stripe.Session) {
			t.freeStripe(x.PG, x.Stripe, s.len)
			return
		}
		t.set(stripeKey(x.PG, x.Stripe), encodeStripe(s))
		if s.refs == 0 {
			t.set(zeroKey(x.Stripe, x.PG), []byte{recordVersion})
		}
	}
}

// rawBytes is what a stripe of n data bytes takes on all devices.
func (t *tx) rawBytes(pg cfs.PGID, n uint32) uint64 {
	g, ok := load(t, groupKey(pg), decodePG)
	if !ok {
		t.corrupt(groupKey(pg))
		return 0
	}
	return uint64(g.Geometry.ShardSize(n)) * uint64(g.Geometry.Total())
}

// addUsage changes what a group, and the whole, holds; a decrease is a two's
// complement. A group that holds nothing has no row.
func (t *tx) addUsage(pg cfs.PGID, stripes, raw uint64) {
	t.addMark(markRaw, raw)
	u, ok := load(t, usageKey(pg), decodeUsage)
	if !ok && stripes != 1 {
		t.corrupt(usageKey(pg)) // what it held was never counted
		return
	}
	if u.stripes += stripes; u.stripes == 0 {
		t.del(usageKey(pg))
		return
	}
	u.raw += raw
	t.set(usageKey(pg), encodeUsage(u))
}

// CountUsage counts what groups hold in a state of before that was kept. It does
// nothing to another: what it counts follows from the stripe table, so each replica
// may do it when it likes.
func CountUsage(kv KV) error {
	t := &tx{kv: kv}
	counted := false
	t.scan([]byte{prefixUsage}, []byte{prefixUsage + 1}, func(_, _ []byte) bool {
		counted = true
		return false
	})
	if counted || t.err != nil {
		return t.err
	}
	var groups []cfs.PG
	list(t, prefixGroup, decodePG, func(g *cfs.PG) { groups = append(groups, *g) })
	for _, g := range groups {
		var u usage
		prefix := stripeKey(g.ID, cfs.StripeID{})[:5]
		t.scan(prefix, after(prefix), func(k, v []byte) bool {
			s, ok := decodeStripe(v)
			if !ok {
				t.corrupt(k)
				return false
			}
			u.stripes++
			u.raw += uint64(g.Geometry.ShardSize(s.len)) * uint64(g.Geometry.Total())
			return true
		})
		if u.stripes > 0 {
			t.set(usageKey(g.ID), encodeUsage(u))
		}
	}
	if t.err != nil {
		return t.err
	}
	return t.commit(kv)
}

// floor is a session's floor; that of a session that is gone is infinite.
func (t *tx) floor(s cfs.SessionID) uint64 {
	if sess, ok := load(t, sessionKey(s), decodeSession); ok {
		return sess.floor
	}
	return ^uint64(0)
}

// freeStripe moves a stripe from the stripe table to the delete feed.
func (t *tx) freeStripe(pg cfs.PGID, s cfs.StripeID, n uint32) {
	t.del(stripeKey(pg, s))
	t.del(zeroKey(s, pg))
	t.addUsage(pg, ^uint64(0), -t.rawBytes(pg, n))
	pos := t.mark(markFeedNext)
	t.set(feedKey(pos), encodeFreed(&cfs.Freed{PG: pg, Stripe: s}))
	t.setMark(markFeedNext, pos+1)
	if first := t.mark(markFeedFirst); pos-first >= MaxFeed {
		t.del(feedKey(first))
		t.setMark(markFeedFirst, first+1)
	}
}

// takeExtents references the bytes of an operation's extents, before any row is
// replaced, so that a stripe which moves within a file never loses its last
// reference. It refuses what cannot be committed: malformed extents, those of
// groups under a passed epoch, and new stripes that are not this session's or
// fall below its floor.
func (t *tx) takeExtents(op *cfs.Op) cfs.Kind {
	if len(op.Extents) == 0 {
		return cfs.Invalid
	}
	if t.named += len(op.Extents) + len(op.Expect); t.named > cfs.MaxCommandExtents {
		return cfs.TooBig
	}
	for i := range op.Extents {
		x := &op.Extents[i]
		k := cfs.KindOK
		switch {
		case x.Len == 0:
			k = cfs.Invalid
		case x.Off > cfs.MaxFileSize || x.Len > cfs.MaxFileSize-x.Off:
			k = cfs.TooLarge
		case x.Kind == cfs.ExtentInline:
			k = t.checkInline(x)
		case x.Kind == cfs.ExtentStripe:
			k = t.checkStripe(op, x)
		case x.Kind > cfs.ExtentUnwritten:
			k = cfs.Invalid
		}
		if k != cfs.KindOK {
			return k
		}
		t.ref(x)
	}
	return cfs.KindOK
}

func (t *tx) checkInline(x *cfs.Extent) cfs.Kind {
	switch {
	case x.Len > cfs.MaxInline || uint64(len(x.Inline)) != x.Len:
		return cfs.Invalid
	case t.mark(markInline)+x.Len > MaxInlineBytes:
		return cfs.InlineFull
	}
	return cfs.KindOK
}

func (t *tx) checkStripe(op *cfs.Op, x *cfs.Extent) cfs.Kind {
	g, ok := load(t, groupKey(x.PG), decodePG)
	switch {
	case !ok && x.PG != 0 && uint64(x.PG) < t.mark(markNextPG):
		return cfs.StaleEpoch // the group has been dropped since
	case !ok:
		return cfs.Invalid
	case x.StripeLen > g.Geometry.MaxData() || x.Len > uint64(x.StripeLen) || uint64(x.StripeOff)+x.Len > uint64(x.StripeLen):
		return cfs.Invalid
	case x.Stripe.Counter == ^uint64(0): // no floor is above it: it could never be freed
		return cfs.Invalid
	}
	if s, ok := load(t, stripeKey(x.PG, x.Stripe), decodeStripe); ok {
		if s.len != x.StripeLen {
			return cfs.Invalid
		}
		return cfs.KindOK // a reference more to a stripe that is already committed
	}
	if x.Stripe.Session != t.sess || x.Stripe.Counter < t.floor(t.sess) {
		return cfs.BelowFloor
	}
	// Every epoch that the command names of the group must be the present one: a
	// batch may hold stripes that were put before and after it passed.
	named := false
	for _, e := range op.Epochs {
		if e.PG != x.PG {
			continue
		}
		if e.Epoch != g.Epoch || !g.Writable {
			return cfs.StaleEpoch
		}
		named = true
	}
	if !named {
		return cfs.StaleEpoch
	}
	return cfs.KindOK
}

func (t *tx) write(op *cfs.Op, res *cfs.Result) cfs.Kind {
	n, ok := t.inode(op.Ino)
	if !ok {
		return cfs.Stale
	}
	if n.IsDir() {
		return cfs.IsDir
	}
	if !n.IsRegular() {
		return cfs.Invalid
	}
	if k := t.may(n, mayWrite); k != cfs.KindOK {
		return k
	}
	if k := t.takeExtents(op); k != cfs.KindOK {
		return k
	}
	if op.Attr.Size > cfs.MaxFileSize {
		return cfs.TooLarge
	}
	size := max(n.Size, op.Attr.Size)
	for i := range op.Extents {
		x := &op.Extents[i]
		var k cfs.Kind
		if x.Kind == cfs.ExtentUnwritten {
			k = t.fillHoles(n, x)
		} else {
			k = t.replaceRange(n, x)
		}
		if k != cfs.KindOK {
			return k
		}
		if x.Kind != cfs.ExtentHole {
			size = max(size, x.End())
		}
	}
	if !op.KeepSize {
		n.Size = size
	}
	// The writer's clock says when, so that what it saw before the commit stays true.
	n.MtimeNS = t.now
	if op.Attr.MtimeNS != 0 {
		n.MtimeNS = op.Attr.MtimeNS
	}
	n.CtimeNS = max(n.CtimeNS, n.MtimeNS)
	if op.Mask&cfs.SetKillPriv != 0 {
		t.killPriv(n)
	}
	t.wrote(n)
	t.putInode(n)
	res.Attr = n.Attr
	return cfs.KindOK
}

// met returns the rows that x meets, within what the command may still replace.
func (t *tx) met(n *inode, x *cfs.Extent) ([]cfs.Extent, cfs.Kind) {
	old, more := t.fileRows(n, x.Off, x.End(), MaxReplaced-t.replaced)
	if more {
		return nil, cfs.TooBig
	}
	t.replaced += len(old)
	return old, cfs.KindOK
}

// replaceRange makes [x.Off, x.End()) of the file what x, which is referenced
// already, says.
func (t *tx) replaceRange(n *inode, x *cfs.Extent) cfs.Kind {
	old, k := t.met(n, x)
	if k != cfs.KindOK {
		return k
	}
	for i := range old {
		t.trimRow(n, &old[i], x.Off, x.End())
	}
	if x.Kind != cfs.ExtentHole {
		t.putRow(n, x)
	}
	return cfs.KindOK
}

// trimRow removes [off, end) from a row and keeps what is left on either side.
// What is kept is referenced before the row lets go.
func (t *tx) trimRow(n *inode, row *cfs.Extent, off, end uint64) {
	n.stored -= row.Len
	t.del(extentKey(n.Ino, n.mapAt(row.Off), row.End()))
	if row.Off < off {
		left := row.Slice(row.Off, off)
		t.addRow(n, &left)
	}
	if row.End() > end {
		right := row.Slice(end, row.End())
		t.addRow(n, &right)
	}
	t.unref(row)
}

// fillHoles allocates what [x.Off, x.End()) does not have yet.
func (t *tx) fillHoles(n *inode, x *cfs.Extent) cfs.Kind {
	old, k := t.met(n, x)
	if k != cfs.KindOK {
		return k
	}
	at := x.Off
	for i := range old {
		if at < old[i].Off {
			t.addRow(n, &cfs.Extent{Off: at, Len: old[i].Off - at, Kind: cfs.ExtentUnwritten})
		}
		at = old[i].End()
	}
	if at < x.End() {
		t.addRow(n, &cfs.Extent{Off: at, Len: x.End() - at, Kind: cfs.ExtentUnwritten})
	}
	return cfs.KindOK
}

// swap replaces exactly the rows that the caller has read, if they are still so.
func (t *tx) swap(op *cfs.Op, res *cfs.Result) cfs.Kind {
	n, ok := t.inode(op.Ino)
	if !ok || !n.IsRegular() {
		return cfs.Conflict
	}
	if k := t.takeExtents(op); k != cfs.KindOK {
		return k
	}
	for i := range op.Expect {
		want := &op.Expect[i]
		x, ok := load(t, extentKey(op.Ino, n.mapAt(want.Off), want.End()), func(b []byte) (cfs.Extent, bool) { return decodeExtent(want.End(), b) })
		if want.Kind == cfs.ExtentDigest {
			x = x.Digest()
		}
		if !ok || !x.SameBytes(want) {
			return cfs.Conflict
		}
	}
	// The new rows must lie where the old ones were, or a write in between could be lost.
	for i := range op.Extents {
		if !covered(&op.Extents[i], op.Expect) {
			return cfs.Conflict
		}
	}
	for i := range op.Extents {
		if k := t.replaceRange(n, &op.Extents[i]); k != cfs.KindOK {
			return k
		}
	}
	t.putInode(n) // the bytes are the same: no time changes
	res.Attr = n.Attr
	return cfs.KindOK
}

// covered reports that the rows, in order of offset, cover x without a gap.
func covered(x *cfs.Extent, rows []cfs.Extent) bool {
	at := x.Off
	for i := range rows {
		if rows[i].Off <= at && at < rows[i].End() {
			at = rows[i].End()
		}
	}
	return at >= x.End()
}

// truncate removes what lies at and above size. Few rows go one by one; many are left to
// OpReap.
func (t *tx) truncate(n *inode, size uint64) cfs.Kind {
	tail, more := t.fileRows(n, size, ^uint64(0), min(cfs.MaxCommandExtents, MaxReplaced-t.replaced))
	switch {
	case !more:
		t.replaced += len(tail)
		for i := range tail {
			t.trimRow(n, &tail[i], size, ^uint64(0))
		}
	case size > 0:
		return t.sever(n, size)
	default:
		t.queueMap(n.Ino, n.Map)
		if n.cut > 0 {
			t.queueMap(n.Ino, n.high)
		}
		n.Map = max(n.Map, n.high) + 1
		n.cut, n.high, n.stored = 0, 0, 0
	}
	return cfs.KindOK
}
