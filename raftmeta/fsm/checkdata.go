package fsm

import (
	"cmp"
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

// stripeCount is a stripe's row, less the references that were found.
type stripeCount struct {
	ref  cfs.StripeRef
	live uint64
	refs uint32
	len  uint32
}

func compareStripes(a, b cfs.StripeRef) int {
	return cmp.Or(cmp.Compare(a.PG, b.PG), cmp.Compare(a.Stripe.Session, b.Stripe.Session), cmp.Compare(a.Stripe.Counter, b.Stripe.Counter))
}

// data checks the extent rows, those that await deletion included, against inodes
// and stripes, a slice of the stripes at a time.
func (c *checker) data() {
	from := []byte{prefixStripe}
	lo := cfs.StripeRef{}
	for first := true; c.t.err == nil; first = false {
		var part []stripeCount
		more := false
		c.t.scan(from, []byte{prefixStripe + 1}, func(k, v []byte) bool {
			if len(part) == c.slice {
				more = true
				from = append([]byte(nil), k...)
				return false
			}
			if s := c.stripe(k, v); s != nil {
				part = append(part, *s)
			}
			return c.t.err == nil
		})
		hi := cfs.StripeRef{PG: ^cfs.PGID(0), Stripe: cfs.StripeID{Session: ^cfs.SessionID(0), Counter: ^uint64(0)}}
		if more {
			hi, _ = stripeOfKey(from)
		}
		c.extents(part, lo, hi, !more, first)
		for i := range part {
			if s := &part[i]; s.refs != 0 || s.live != 0 {
				c.bad("stripe %v of group %d has %d references of %d bytes that no extent makes", s.ref.Stripe, s.ref.PG, int32(s.refs), int64(s.live))
			}
		}
		if !more {
			break
		}
		lo = hi
	}
	c.sized(prefixZero, 21, func(k, _ []byte) {
		id := cfs.StripeID{Session: cfs.SessionID(u64of(k[1:])), Counter: u64of(k[9:])}
		if s, ok := look(c, stripeKey(cfs.PGID(u32of(k[17:])), id), decodeStripe); !ok || s.refs != 0 {
			c.bad("stripe %v of group %d is listed without references, and has some or no row", id, u32of(k[17:]))
		}
	})
}

// stripe checks a row of the stripe table by itself.
func (c *checker) stripe(k, v []byte) *stripeCount {
	s, ok := decodeStripe(v)
	ref, whole := stripeOfKey(k)
	if !ok || !whole {
		c.bad("stripe record %x", k)
		return nil
	}
	c.report.Stripes++
	if g := c.groups[ref.PG]; g != nil {
		g.stripes++
		g.raw += uint64(g.geometry.ShardSize(s.len)) * uint64(g.geometry.Total())
	} else {
		c.bad("stripe %v is in group %d, which there is not", ref.Stripe, ref.PG)
	}
	if s.refs == 0 {
		if sess := c.sessions[ref.Stripe.Session]; (sess == nil || ref.Stripe.Counter < sess.floor) && !c.has(endedKey(ref.Stripe.Session)) {
			c.bad("stripe %v of group %d is neither referenced nor at or above its floor", ref.Stripe, ref.PG)
		}
		if !c.has(zeroKey(ref.Stripe, ref.PG)) {
			c.bad("stripe %v of group %d is not listed among those without references", ref.Stripe, ref.PG)
		}
	}
	return &stripeCount{ref: ref, live: s.live, refs: s.refs, len: s.len}
}

// fileCount is the file whose rows are being gone through.
type fileCount struct {
	ino   cfs.Ino
	m     uint32
	node  *inode // nil where the rows await deletion
	end   uint64 // of the last row
	bytes uint64
}

// extents takes the references of all rows to the stripes of part from them; part
// has all stripes from lo up to hi, which counts as well when it is the last. What
// concerns the rows alone is checked the first time.
func (c *checker) extents(part []stripeCount, lo, hi cfs.StripeRef, last, first bool) {
	var file *fileCount
	var live uint64
	leave := func() {
		if file != nil && file.node != nil {
			live += file.bytes
			if file.node.stored != file.bytes {
				c.bad("inode %d: stored %d, rows cover %d", file.ino, file.node.stored, file.bytes)
			}
		}
	}
	c.each(prefixExtent, func(k, v []byte) {
		if len(k) != 21 {
			if first {
				c.bad("extent key %x", k)
			}
			return
		}
		ino, m := cfs.Ino(u64of(k[1:])), u32of(k[9:])
		x, ok := extentRecord(u64of(k[13:]), v)
		if !ok {
			if first {
				c.bad("extent row %x", k)
			}
			return
		}
		if x.Kind == cfs.ExtentStripe {
			c.unref(part, &x, ino, lo, hi, last)
		}
		if !first {
			return
		}
		x.Inline = nil
		if file == nil || file.ino != ino || file.m != m {
			next := c.file(ino, m)
			if file != nil && file.ino == ino && file.node != nil && next.node != nil {
				next.bytes = file.bytes // of its two maps
			} else {
				leave()
			}
			file = next
		}
		c.row(file, &x)
	})
	if !first {
		return
	}
	leave()
	if live != c.stored {
		c.bad("inodes say that %d bytes are stored, rows cover %d", c.stored, live)
	}
}

// file begins with the rows of a map of an inode.
func (c *checker) file(ino cfs.Ino, m uint32) *fileCount {
	f := &fileCount{ino: ino, m: m}
	if n, ok := look(c, inodeKey(ino), decodeInode); ok && (n.Map == m || n.cut > 0 && n.high == m) {
		f.node = n
		if !n.IsRegular() {
			c.bad("inode %d has extents but mode %o", ino, n.Mode)
		}
	}
	if queued := c.has(mapKey(prefixQueue, ino, m)); queued != (f.node == nil || f.node.cut > 0 && m == f.node.Map) {
		c.bad("inode %d map %d: live %v and queued for deletion %v", ino, m, f.node != nil, queued)
	}
	return f
}

// row checks an extent row against the one before it.
func (c *checker) row(f *fileCount, x *cfs.Extent) {
	c.report.Extents++
	if x.Off < f.end {
		c.bad("inode %d map %d: row [%d, %d) meets the one that ends at %d", f.ino, f.m, x.Off, x.End(), f.end)
	}
	if n := f.node; n != nil && n.cut > 0 && (x.Off < n.cut && x.End() > n.cut || f.m == n.high && x.Off < n.cut) {
		c.bad("inode %d map %d: row [%d, %d), cut at %d", f.ino, f.m, x.Off, x.End(), n.cut)
	}
	f.end = x.End()
	f.bytes += x.Len
	switch x.Kind {
	case cfs.ExtentInline:
		c.inline += x.Len
	case cfs.ExtentStripe:
		if uint64(x.StripeOff)+x.Len > uint64(x.StripeLen) {
			c.bad("inode %d: row [%d, %d) goes beyond its stripe %v", f.ino, x.Off, x.End(), x.Stripe)
		}
	}
}

// unref takes a row's reference from its stripe, if that is from lo up to hi.
func (c *checker) unref(part []stripeCount, x *cfs.Extent, ino cfs.Ino, lo, hi cfs.StripeRef, last bool) {
	ref := cfs.StripeRef{PG: x.PG, Stripe: x.Stripe}
	if compareStripes(ref, lo) < 0 || !last && compareStripes(ref, hi) >= 0 {
		return
	}
	at, ok := slices.BinarySearchFunc(part, ref, func(s stripeCount, r cfs.StripeRef) int { return compareStripes(s.ref, r) })
	if !ok {
		c.bad("inode %d: row [%d, %d) names stripe %v of group %d, which has no row", ino, x.Off, x.End(), x.Stripe, x.PG)
		return
	}
	s := &part[at]
	s.refs--
	s.live -= x.Len
	if s.len != x.StripeLen {
		c.bad("inode %d: row [%d, %d) says %d bytes of stripe %v, which has %d", ino, x.Off, x.End(), x.StripeLen, x.Stripe, s.len)
	}
}

// feed checks that freed stripes are in order, and gone.
func (c *checker) feed() {
	next := c.marks[markFeedFirst]
	c.sized(prefixFeed, 9, func(k, v []byte) {
		f, ok := decodeFreed(u64of(k[1:]), v)
		if !ok || f.Pos != next {
			c.bad("feed row %x, want position %d", k, next)
		}
		if next = u64of(k[1:]) + 1; c.has(stripeKey(f.PG, f.Stripe)) {
			c.bad("stripe %v of group %d is freed and has a row", f.Stripe, f.PG)
		}
	})
	if next != c.marks[markFeedNext] {
		c.bad("the feed ends at %d, mark %d", next, c.marks[markFeedNext])
	}
}
