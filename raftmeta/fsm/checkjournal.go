package fsm

import "github.com/claudefs/claudefs/cfs"

// journal checks that the changes follow each other without a gap, and what is said of them
// and of their readers.
func (c *checker) journal() {
	next, pos := c.marks[markJournalTailSeq], c.marks[markJournalTailPos]
	tail := c.marks[markJournalTail]
	c.sized(prefixChange, 13, func(k, v []byte) {
		r, ok := decodeChange(k, v)
		switch {
		case !ok:
			c.bad("journal record %x", k)
			return
		case r.Index < tail || r.Index > c.marks[markApplied]:
			c.bad("journal record %x is not between the indexes %d and %d", k, tail, c.marks[markApplied])
		case r.seq != next || r.pos != pos:
			c.bad("journal record %x has number %d at byte %d, want %d at %d", k, r.seq, r.pos, next, pos)
		}
		if next == c.marks[markJournalTailSeq] && r.Index != tail {
			c.bad("the journal's first record is of index %d, not %d", r.Index, tail)
		}
		next, pos = r.seq+1, r.pos+uint64(len(k)+len(v))
	})
	if next != c.marks[markJournalNext] || pos != c.marks[markJournalEnd] {
		c.bad("the journal ends at number %d and byte %d, not %d and %d", next, pos, c.marks[markJournalNext], c.marks[markJournalEnd])
	}
	var all []cfs.Consumer
	c.each(prefixReader, func(k, v []byte) {
		r, ok := decodeReader(k, v)
		if !ok || r.Index > c.marks[markApplied]+1 {
			c.bad("consumer record %q", k)
			return
		}
		all = append(all, r)
	})
	if need := needOf(all); need != c.marks[markJournalNeed] {
		c.bad("the consumers need the journal from index %d, not %d", need, c.marks[markJournalNeed])
	}
}
