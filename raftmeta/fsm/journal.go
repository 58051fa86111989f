package fsm

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/claudefs/claudefs/cfs"
)

// The journal is the changes of the namespace as rows of the state, in the batch of the
// command that made them, while somebody needs them. What an operation has changed is not
// said by its carrier but seen from what it wrote: so an effect that an operation has
// besides, on an attribute or on an inode that ends with it, is never forgotten.

// trimAtOnce is the number of rows that a consumer's progress removes itself before it
// leaves the rest to OpReap.
const trimAtOnce = 64

// notes are the rows of inodes and attributes that the present operation has written, in
// order, each with what it was before.
type notes struct {
	n    uint32 // changes of the log entry so far
	rows []notedRow
	at   map[string]int // where in rows
}

type notedRow struct {
	key string
	old []byte // nil: there was none
}

// beginNotes has the command's operations noted, if the journal is read.
func (t *tx) beginNotes() {
	if t.mark(markJournalNeed) != 0 {
		t.notes = &notes{at: map[string]int{}}
	}
}

// note is called before a row is written.
func (t *tx) note(key []byte) {
	if t.notes == nil || key[0] != prefixInode && key[0] != prefixXattr {
		return
	}
	if _, known := t.notes.at[string(key)]; known {
		return
	}
	row := notedRow{key: string(key)}
	if old, ok := t.get(key); ok {
		row.old = bytes.Clone(old)
	}
	t.notes.at[row.key] = len(t.notes.rows)
	t.notes.rows = append(t.notes.rows, row)
}

// before is what an inode was before the operation; ok is false where it was not, or was
// not changed.
func (t *tx) before(i cfs.Ino) (*inode, bool) {
	at, ok := t.notes.at[string(inodeKey(i))]
	if !ok || t.notes.rows[at].old == nil {
		return nil, false
	}
	n, ok := decodeInode(t.notes.rows[at].old)
	if !ok {
		t.corrupt(inodeKey(i))
	}
	return n, ok
}

// journal records what an operation that has succeeded did.
func (t *tx) journal(op *cfs.Op, res *cfs.Result) {
	if t.notes == nil || len(t.notes.rows) == 0 {
		return
	}
	// The records of its effects on attributes say also that their inodes have changed.
	xattr := op.Kind == cfs.OpSetXattr || op.Kind == cfs.OpRemoveXattr
	if c, ok := t.change(op, res); ok && !(xattr && t.xattrChanged(op.Ino)) {
		t.record(&c)
	}
	for _, row := range t.notes.rows {
		if row.key[0] == prefixXattr {
			t.recordXattr(&row)
		}
	}
	for _, row := range t.notes.rows {
		if _, there := t.get([]byte(row.key)); row.key[0] != prefixInode || there || row.old == nil {
			continue
		}
		if n, ok := t.before(cfs.Ino(u64of([]byte(row.key[1:])))); ok {
			n.Nlink = 0
			t.record(&cfs.Change{Kind: cfs.OpRelease, Ino: n.Ino, Attr: n.Attr, Was: n.Gen})
		}
	}
	t.notes.rows = t.notes.rows[:0]
	clear(t.notes.at)
}

// change is what an operation did by itself; ok is false for one that is not told.
func (t *tx) change(op *cfs.Op, res *cfs.Result) (c cfs.Change, ok bool) {
	c = cfs.Change{Kind: op.Kind, Ino: op.Ino, Dir: op.Dir, Name: op.Name}
	switch op.Kind {
	case cfs.OpCreate:
		c.Ino, c.Value = res.Attr.Ino, op.Value
		if _, was := t.before(c.Ino); was { // it was opened
			c = cfs.Change{Kind: cfs.OpSetAttr, Ino: c.Ino}
		}
	case cfs.OpLink:
	case cfs.OpUnlink, cfs.OpRmdir:
		c.Ino = res.Attr.Ino
	case cfs.OpRename:
		c.NewDir, c.NewName, c.Flags = op.NewDir, op.NewName, op.Flags
		moved, k := t.entry(op.NewDir, op.NewName)
		if k != cfs.KindOK {
			t.corrupt(direntKey(op.NewDir, op.NewName))
			return c, false
		}
		if c.Ino, c.Other = moved.Ino, res.Attr.Ino; op.Flags == cfs.RenameExchange {
			back, k := t.entry(op.Dir, op.Name)
			if k != cfs.KindOK {
				t.corrupt(direntKey(op.Dir, op.Name))
				return c, false
			}
			c.Other = back.Ino
		}
	case cfs.OpSetAttr:
		if c.Mask = op.Mask; c.Mask == cfs.SetRelatime {
			return c, false
		}
	case cfs.OpWrite:
		c.Extents = op.Extents
	case cfs.OpSetXattr, cfs.OpRemoveXattr:
		c = cfs.Change{Kind: cfs.OpSetAttr, Ino: op.Ino}
	default:
		return c, false
	}
	if c.Attr = res.Attr; op.Kind != cfs.OpUnlink && op.Kind != cfs.OpRmdir {
		n, there := t.inode(c.Ino)
		if !there {
			return c, false
		}
		c.Attr = n.Attr
	}
	if n, was := t.before(c.Ino); was {
		c.Was = n.Gen
	}
	return c, true
}

// xattrChanged reports that an attribute of an inode is not what it was.
func (t *tx) xattrChanged(i cfs.Ino) bool {
	prefix := string(key1(prefixXattr, uint64(i)))
	for _, row := range t.notes.rows {
		if len(row.key) > len(prefix) && row.key[:len(prefix)] == prefix {
			if v, ok := t.get([]byte(row.key)); ok != (row.old != nil) || !bytes.Equal(v, row.old) {
				return true
			}
		}
	}
	return false
}

// recordXattr records that an attribute is another, or gone; those of an inode that is gone
// went with it.
func (t *tx) recordXattr(row *notedRow) {
	key := []byte(row.key)
	i := cfs.Ino(u64of(key[1:]))
	n, there := t.inode(i)
	v, is := t.get(key)
	if !there || is == (row.old != nil) && bytes.Equal(v, row.old) {
		return
	}
	c := cfs.Change{Kind: cfs.OpRemoveXattr, Ino: i, Name: row.key[9:], Attr: n.Attr}
	if is {
		c.Kind = cfs.OpSetXattr
		if c.Value, is = load(t, key, decodeBytes); !is {
			return
		}
	}
	if old, was := t.before(i); was {
		c.Was = old.Gen
	}
	t.record(&c)
}

// record adds a change to the journal.
func (t *tx) record(c *cfs.Change) {
	c.Index, c.N, c.TimeNS, c.Session, c.UID, c.GID = t.index, t.notes.n, t.now, t.sess, t.cred.UID, t.cred.GID
	c.Attr.Owner = 0
	t.notes.n++
	r := changeRow{Change: *c, seq: t.mark(markJournalNext), pos: t.mark(markJournalEnd)}
	key, val := changeKey(c.Index, c.N), encodeChange(&r)
	t.set(key, val)
	if r.seq == t.mark(markJournalTailSeq) {
		t.setMark(markJournalTail, r.Index)
	}
	t.setMark(markJournalNext, r.seq+1)
	t.setMark(markJournalEnd, r.pos+uint64(len(key)+len(val)))
}

// journalHolds is how many changes the journal has, and their bytes.
func (t *tx) journalHolds() (entries, bytes uint64) {
	return t.mark(markJournalNext) - t.mark(markJournalTailSeq), t.mark(markJournalEnd) - t.mark(markJournalTailPos)
}

// journalTrims reports that there are changes that nobody needs.
func (t *tx) journalTrims() bool {
	need := t.mark(markJournalNeed)
	return t.mark(markJournalNext) != t.mark(markJournalTailSeq) && (need == 0 || t.mark(markJournalTail) < need)
}

// trimJournal removes up to limit of the changes that nobody needs, and returns how many.
func (t *tx) trimJournal(limit int) int {
	if !t.journalTrims() {
		return 0
	}
	below := t.mark(markJournalNeed)
	if below == 0 {
		below = math.MaxUint64
	}
	return t.removeChanges(func(r *changeRow, n int) bool { return r.Index < below && n < limit })
}

// removeChanges removes the oldest changes, as long as which says so, and returns how many.
func (t *tx) removeChanges(which func(r *changeRow, n int) bool) int {
	var drop [][]byte
	tail, seq, pos := t.index, t.mark(markJournalNext), t.mark(markJournalEnd) // where none is left
	t.scan(changeKey(t.mark(markJournalTail), 0), []byte{prefixChange + 1}, func(k, v []byte) bool {
		r, ok := decodeChange(k, v)
		if !ok {
			t.corrupt(k)
			return false
		}
		if !which(r, len(drop)) {
			tail, seq, pos = r.Index, r.seq, r.pos
			return false
		}
		drop = append(drop, bytes.Clone(k))
		return true
	})
	for _, k := range drop {
		t.del(k)
	}
	t.setMark(markJournalTail, tail)
	t.setMark(markJournalTailSeq, seq)
	t.setMark(markJournalTailPos, pos)
	return len(drop)
}

// boundJournal holds the journal within its bounds after a command. It removes whole log
// entries, the oldest, at least as many bytes as the command added at most: few rows but
// where small ones make way for large ones. Those who needed them are lost.
func (t *tx) boundJournal() {
	if t.notes == nil || t.notes.n == 0 {
		return
	}
	entries, size := t.journalHolds()
	if entries <= cfs.MaxJournalEntries && size <= cfs.MaxJournalBytes {
		return
	}
	next, end := t.mark(markJournalNext), t.mark(markJournalEnd)
	last := uint64(0)
	t.removeChanges(func(r *changeRow, _ int) bool {
		if next-r.seq <= cfs.MaxJournalEntries && end-r.pos <= cfs.MaxJournalBytes && r.Index != last {
			return false
		}
		last = r.Index
		return true
	})
	if t.mark(markJournalNeed) > last {
		return
	}
	for _, c := range t.readers() {
		if c.Index <= last && !c.Lost {
			c.Lost = true
			t.set(readerKey(c.Name), encodeReader(&c))
		}
	}
	t.countNeed()
}

// readers are the consumers' records.
func (t *tx) readers() (out []cfs.Consumer) {
	t.scan([]byte{prefixReader}, []byte{prefixReader + 1}, func(k, v []byte) bool {
		c, ok := decodeReader(k, v)
		if !ok {
			t.corrupt(k)
			return false
		}
		out = append(out, c)
		return true
	})
	return out
}

// countNeed works out anew what the consumers need.
func (t *tx) countNeed() {
	t.setMark(markJournalNeed, needOf(t.readers()))
}

// needOf is the lowest index that one of the consumers needs, 0 for none.
func needOf(all []cfs.Consumer) uint64 {
	need := uint64(0)
	for _, c := range all {
		if !c.Lost && (need == 0 || c.Index < need) {
			need = c.Index
		}
	}
	return need
}

func (t *tx) setConsumer(name string, index uint64) cfs.Kind {
	if name == "" || len(name) > cfs.MaxName || index > t.index {
		return cfs.Invalid
	}
	key := readerKey(name)
	old, known := t.get(key)
	switch {
	case known && index == 0:
		return cfs.KindOK
	case known:
		c, ok := decodeReader(key, old)
		if !ok {
			t.corrupt(key)
			return cfs.Corrupt
		}
		if c.Lost {
			return cfs.Stale
		}
		if c.Index >= index {
			return cfs.KindOK
		}
		c.Index = index
		t.set(key, encodeReader(&c))
	case index != 0:
		return cfs.NotFound
	case len(t.readers()) >= cfs.MaxConsumers:
		return cfs.Overloaded
	default:
		t.set(key, encodeReader(&cfs.Consumer{Name: name, Index: t.index + 1}))
	}
	t.countNeed()
	t.trimJournal(trimAtOnce)
	return cfs.KindOK
}

func (t *tx) dropConsumer(name string) cfs.Kind {
	if _, known := t.get(readerKey(name)); !known {
		return cfs.NotFound
	}
	t.del(readerKey(name))
	t.countNeed()
	t.trimJournal(trimAtOnce)
	return cfs.KindOK
}

// changes lists the journal from a position on.
func (t *tx) changes(q *cfs.Query, a *cfs.Answer) cfs.Kind {
	// Rows below what is needed may be there still, and others of an earlier time be missing.
	first, index, off := t.mark(markJournalNeed), q.Index, q.Off
	a.Next.Off = first
	switch {
	case q.Off > math.MaxUint32:
		return cfs.Invalid
	case first == 0:
		return cfs.NotFound
	case index == 0:
		index, off = first, 0
	case index < first:
		return cfs.Stale
	}
	limit, size := listLimit(q.Limit), 0
	t.scan(changeKey(index, uint32(off)), []byte{prefixChange + 1}, func(k, v []byte) bool {
		if size += len(v); len(a.Changes) == limit || len(a.Changes) > 0 && size > maxListingInline {
			a.More = true
			return false
		}
		r, ok := decodeChange(k, v)
		if !ok {
			t.corrupt(k)
			return false
		}
		a.Changes = append(a.Changes, r.Change)
		return true
	})
	return cfs.KindOK
}

// consumers are the consumers with how far behind each is.
func (t *tx) consumers() []cfs.Consumer {
	all := t.readers()
	next, end := t.mark(markJournalNext), t.mark(markJournalEnd)
	for i := range all {
		t.scan(changeKey(max(all[i].Index, t.mark(markJournalTail)), 0), []byte{prefixChange + 1}, func(k, v []byte) bool {
			r, ok := decodeChange(k, v)
			if !ok {
				t.corrupt(k)
				return false
			}
			all[i].Behind, all[i].BehindBytes = next-r.seq, end-r.pos
			return false
		})
	}
	return all
}

// Journal is the journal as the leader watches it.
type Journal struct {
	Entries   uint64 // changes, with those that nobody needs any more
	Bytes     uint64 // that they take
	Consumers []cfs.Consumer
}

// ReadJournal reads how much there is, and how far its consumers are.
func ReadJournal(r Reader) (Journal, error) {
	t := &tx{kv: r}
	j := Journal{Consumers: t.consumers()}
	j.Entries, j.Bytes = t.journalHolds()
	return j, t.err
}

// changeRow is a change with the numbers of those before it, and their bytes.
type changeRow struct {
	cfs.Change
	seq, pos uint64
}

func encodeChange(r *changeRow) []byte {
	e := newEnc(256 + len(r.Name) + len(r.NewName) + len(r.Value))
	e.u64(r.seq)
	e.u64(r.pos)
	e.u8(uint8(r.Kind))
	e.u64(uint64(r.TimeNS))
	e.u64(uint64(r.Session))
	e.u32(r.UID)
	e.u32(r.GID)
	e.u64(uint64(r.Ino))
	e.u64(uint64(r.Dir))
	e.u64(uint64(r.NewDir))
	e.u64(uint64(r.Other))
	e.bytes([]byte(r.Name))
	e.bytes([]byte(r.NewName))
	e.bytes(r.Value)
	e.u32(r.Flags)
	e.u32(uint32(r.Mask))
	e.attr(&r.Attr)
	e.u64(r.Was)
	e.u32(uint32(len(r.Extents)))
	for i := range r.Extents {
		x := &r.Extents[i]
		e.u64(x.End())
		e.bytes(encodeExtent(x))
	}
	return e.b
}

func decodeChange(k, v []byte) (*changeRow, bool) {
	if len(k) != 13 {
		return nil, false
	}
	d := newDec(v)
	r := &changeRow{seq: d.u64(), pos: d.u64()}
	r.Index, r.N = u64of(k[1:]), binary.BigEndian.Uint32(k[9:])
	r.Kind = cfs.OpKind(d.u8())
	r.TimeNS, r.Session, r.UID, r.GID = int64(d.u64()), cfs.SessionID(d.u64()), d.u32(), d.u32()
	r.Ino, r.Dir, r.NewDir, r.Other = cfs.Ino(d.u64()), cfs.Ino(d.u64()), cfs.Ino(d.u64()), cfs.Ino(d.u64())
	r.Name, r.NewName = string(d.bytes()), string(d.bytes())
	if r.Value = d.bytes(); len(r.Value) == 0 {
		r.Value = nil
	}
	r.Flags, r.Mask = d.u32(), cfs.SetMask(d.u32())
	r.Attr, r.Was = d.attr(), d.u64()
	for n := d.u32(); n > 0 && !d.bad; n-- {
		x, ok := decodeRange(d.u64(), d.bytes())
		d.bad = d.bad || !ok
		r.Extents = append(r.Extents, x)
	}
	return r, d.ok() && r.Ino != 0 && r.Kind.Valid()
}

// decodeRange is decodeExtent that knows holes too, which no row of a file is.
func decodeRange(end uint64, b []byte) (cfs.Extent, bool) {
	if len(b) > 1 && cfs.ExtentKind(b[1]) == cfs.ExtentHole {
		d := newDec(b)
		d.u8()
		x := cfs.Extent{Len: d.u64()}
		x.Off = end - x.Len
		return x, d.ok() && x.Len != 0 && x.Len <= end
	}
	x, ok := extentRecord(end, b)
	return x, ok
}

func encodeReader(c *cfs.Consumer) []byte {
	e := newEnc(9)
	e.u64(c.Index)
	e.bool(c.Lost)
	return e.b
}

func decodeReader(k, v []byte) (cfs.Consumer, bool) {
	d := newDec(v)
	c := cfs.Consumer{Name: string(k[1:]), Index: d.u64(), Lost: d.bool()}
	return c, d.ok() && c.Name != "" && c.Index != 0
}
