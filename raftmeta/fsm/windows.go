package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// What makes a range of a file worth writing anew.
const (
	// maxWindowLooks bounds the extent rows that one QueryWindows looks at.
	maxWindowLooks = 8192
	// maxWindowRows bounds the rows of a window: one with more is cut there.
	maxWindowRows = 4096
	// windowPage is how many rows are read before the inodes and stripes behind them.
	windowPage = 256
	// windowExcess is what a window may take more than it would at best, in bytes of
	// devices, and windowRatio by how many hundredths.
	windowExcess = 64 << 10
	windowRatio  = 125
	// smallRow is the mean length, in bytes, below which extents are merged where there are more
	// than cfs.ManyExtents.
	smallRow = 128 << 10
)

// windows lists ranges of files that are worth writing anew, from {q.Ino, q.Off} on.
// The ranges are of the size of a full stripe of the best shape that there is now, and
// judged by what they would become: one stripe that holds their data and nothing else,
// or an inline extent. So what was rewritten is not listed again.
func (t *tx) windows(q *cfs.Query, m *cfs.Map, a *cfs.Answer) {
	s := &windowScan{t: t, q: q, a: a, limit: listLimit(q.Limit), geometry: map[cfs.PGID]cfs.Geometry{}}
	if !s.prepare(m) {
		return // nothing can be written
	}
	cursor := key1(prefixExtent, uint64(q.Ino))
	if n, ok := t.inode(q.Ino); ok && q.Off > 0 {
		cursor = extentKey(q.Ino, n.Map, q.Off+1)
		s.enter(q.Ino)
		s.from = q.Off
	}
	for looked := 0; ; {
		page, end := s.page(cursor)
		for i := range page {
			if looked++; looked > maxWindowLooks {
				a.More, a.Next = true, s.next(&page[i])
				return
			}
			if !s.see(&page[i]) {
				return
			}
		}
		if end {
			s.finish()
			return
		}
		last := &page[len(page)-1]
		if cursor = append(extentKey(last.ino, last.m, last.End()), 0); s.skips(last) {
			cursor = s.beyond(last)
		}
		if t.err != nil {
			return
		}
	}
}

// windowRow is an extent row without its bytes, and whose it is.
type windowRow struct {
	cfs.Extent
	ino cfs.Ino
	m   uint32
}

// windowScan is one pass of windows over the extent rows.
type windowScan struct {
	t     *tx
	q     *cfs.Query
	a     *cfs.Answer
	limit int

	best       cfs.Geometry // of the full stripes that can be written now
	size       uint64       // of a window, bytes
	inlineFull bool         // inline extents are to become fewer
	geometry   map[cfs.PGID]cfs.Geometry
	stranded   map[cfs.PGID]bool // a slot has to move and cannot: the data must

	node *inode  // of the file that the scan is in, nil where its rows do not count
	ino  cfs.Ino // its number
	from uint64  // windows begin there at the earliest
	open *window // that the scan is in; rows come in order, so there is one at most

	lastRef cfs.StripeRef
	last    *stripe
}

// window gathers what the rows of [off, end) are.
type window struct {
	off, end uint64
	data     uint64 // bytes in rows
	inline   uint64 // of them, in inline rows
	copies   uint64 // of them, in stripes of three copies
	device   uint64 // their share of the bytes of devices
	looks    int    // rows in it
	rows     int    // of them, with data
	runs     int    // ranges that rows with data cover without a gap
	dataEnd  uint64 // of the last of them
	lesser   bool   // a stripe is of a lesser shape than could be written now
	stranded bool
}

// prepare learns the cluster's layout; false when no group takes stripes.
func (s *windowScan) prepare(m *cfs.Map) bool {
	f := newFilling(m)
	s.stranded = map[cfs.PGID]bool{}
	for _, g := range m.Groups {
		s.geometry[g.ID] = g.Geometry
		if g.Writable && g.Geometry.K > s.best.K {
			s.best = g.Geometry
		}
		for i := range g.Slots {
			s.stranded[g.ID] = s.stranded[g.ID] || f.stranded(&g, i)
		}
	}
	s.size = uint64(s.best.MaxData())
	s.inlineFull = s.t.mark(markInline) > MaxInlineBytes/2
	return s.size > 0
}

// page reads the rows from a key on; end says that there are no others.
func (s *windowScan) page(from []byte) (rows []windowRow, end bool) {
	end = true
	s.t.scan(from, []byte{prefixExtent + 1}, func(k, v []byte) bool {
		if len(rows) == windowPage {
			end = false
			return false
		}
		if len(k) != 21 {
			s.t.corrupt(k)
			return false
		}
		x, ok := extentRecord(binary.BigEndian.Uint64(k[13:]), v)
		if !ok {
			s.t.corrupt(k)
			return false
		}
		x.Inline = nil // it lies in v
		rows = append(rows, windowRow{x, cfs.Ino(binary.BigEndian.Uint64(k[1:])), binary.BigEndian.Uint32(k[9:])})
		return true
	})
	return rows, end
}

// enter makes a file the present one. The rows of one that is not a regular file, has
// no name any more or has changed lately do not count.
func (s *windowScan) enter(ino cfs.Ino) {
	n, ok := s.t.inode(ino)
	s.ino, s.node, s.from = ino, nil, 0
	if ok && n.IsRegular() && n.Nlink > 0 && n.CtimeNS < s.q.BeforeNS {
		s.node = n
	}
}

// skips reports that no row of the map of this one counts.
func (s *windowScan) skips(r *windowRow) bool {
	return r.ino == s.ino && (s.node == nil || s.node.Map != r.m)
}

// beyond is where the next rows may count after one that does not.
func (s *windowScan) beyond(r *windowRow) []byte {
	if s.node != nil && r.m < s.node.Map {
		return mapKey(prefixExtent, s.ino, s.node.Map)
	}
	return after(key1(prefixExtent, uint64(s.ino)))
}

// next is where a scan that ends before a row is to go on: at the window that is not
// finished.
func (s *windowScan) next(r *windowRow) cfs.Window {
	switch {
	case s.open != nil:
		return cfs.Window{Ino: s.ino, Off: s.open.off}
	case r.ino == s.ino:
		return cfs.Window{Ino: r.ino, Off: max(r.Off, s.from)}
	}
	return cfs.Window{Ino: r.ino}
}

// see takes a row in; false when the answer is full.
func (s *windowScan) see(r *windowRow) bool {
	if r.ino != s.ino {
		if !s.finish() {
			return false
		}
		s.enter(r.ino)
	}
	if s.skips(r) || s.node.cut > 0 && r.Off >= s.node.cut {
		return true
	}
	if r.Kind == cfs.ExtentUnwritten { // it has no bytes to move
		if s.open != nil && r.Off < s.open.end {
			s.open.look(r.End())
		}
		return true
	}
	for off := max(r.Off, s.from); off < r.End(); {
		if s.open != nil && off >= s.open.end && !s.finish() {
			return false
		}
		if s.open == nil {
			start := off / s.size * s.size
			s.open = &window{off: max(start, s.from), end: start + s.size}
		}
		end := min(r.End(), s.open.end)
		s.add(s.open, &r.Extent, off, end)
		s.open.look(end)
		off = end
	}
	return s.t.err == nil
}

// look counts a row that ends at an offset. A window of too many ends with it.
func (w *window) look(end uint64) {
	if w.looks++; w.looks >= maxWindowRows {
		w.end = min(w.end, end)
	}
}

// add counts the part [off, end) of a row with data.
func (s *windowScan) add(w *window, x *cfs.Extent, off, end uint64) {
	if w.rows == 0 || w.dataEnd != off {
		w.runs++
	}
	w.rows++
	w.dataEnd = end
	w.data += end - off
	if x.Kind == cfs.ExtentInline {
		w.inline += end - off
		return
	}
	g := s.geometry[x.PG]
	switch {
	case g == cfs.Geo1p2:
		w.copies += end - off
	case g.K < s.best.K:
		w.lesser = true
	}
	w.stranded = w.stranded || s.stranded[x.PG]
	ref := cfs.StripeRef{PG: x.PG, Stripe: x.Stripe}
	if ref != s.lastRef {
		row, ok := load(s.t, stripeKey(x.PG, x.Stripe), decodeStripe)
		if !ok || row.live == 0 || g.K == 0 {
			s.t.corrupt(stripeKey(x.PG, x.Stripe))
			return
		}
		s.last, s.lastRef = row, ref
	}
	// What nobody names any more in the stripe is shared by those that name the rest.
	w.device += uint64(g.ShardSize(s.last.len)) * uint64(g.Total()) * (end - off) / s.last.live
}

// finish judges the window that the scan is in and leaves it; false when the answer
// is full.
func (s *windowScan) finish() bool {
	w := s.open
	if w == nil {
		return true
	}
	if s.worth(w) {
		if len(s.a.Windows) == s.limit {
			s.a.More, s.a.Next = true, cfs.Window{Ino: s.ino, Off: w.off}
			return false
		}
		s.a.Windows = append(s.a.Windows, cfs.Window{Ino: s.ino, Off: w.off, End: w.end})
	}
	s.open, s.from = nil, w.end
	return true
}

// worth reports that a window is worth writing anew.
func (s *windowScan) worth(w *window) bool {
	ideal := s.ideal(w.data)
	switch {
	case w.stranded || w.lesser: // however little it is: it keeps the group from being forgotten
		return true
	case w.copies > cfs.SmallStripe && s.best != cfs.Geo1p2:
		return true
	case w.device > ideal+windowExcess && w.device*100 > ideal*windowRatio:
		return true
	case w.rows > cfs.ManyExtents && w.rows > w.runs && w.data < uint64(w.rows)*smallRow:
		return true
	case w.inline > 0 && (w.data > cfs.MaxInline || s.inlineFull):
		return true
	}
	return false
}

// ideal is how many bytes of devices n bytes of data take at best.
func (s *windowScan) ideal(n uint64) uint64 {
	g := s.best
	switch {
	case n <= cfs.MaxInline && !s.inlineFull:
		return 0
	case n <= cfs.SmallStripe:
		g = cfs.Geo1p2
	}
	return uint64(g.ShardSize(uint32(n))) * uint64(g.Total())
}
