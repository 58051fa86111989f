package fsm

import (
	"bytes"
	"slices"
)

// Bounds of an overlay.
const (
	// searchUpTo is the number of rows that are searched one by one; more have an index.
	searchUpTo = 16
	// insertUpTo is the number of new keys that are inserted one by one rather than
	// by sorting all.
	insertUpTo = 16
	// Memory that a command has needed is kept for the next one up to these bounds: what
	// commands need but for those with many extents.
	keepRows  = 4 * MaxOps
	keepBytes = 256 << 10
)

// overlay is what a command has written so far. Its zero value is empty. Most commands
// write a dozen rows, so those are a list; they are put in order only when somebody goes
// through them. Keys and values are copied to memory that the next command uses again.
type overlay struct {
	rows   []row          // as they were first written
	index  map[string]int // where in rows, if there are more than searchUpTo
	order  []int          // rows in the order of their keys: the first sorted are
	sorted int
	mem    []byte
}

type row struct{ key, val []byte } // nil value: deleted

// reset empties the overlay. What get gave is not valid any more.
func (o *overlay) reset() {
	if cap(o.rows) > keepRows || cap(o.mem) > keepBytes {
		*o = overlay{}
		return
	}
	clear(o.index)
	o.rows, o.order, o.sorted, o.mem = o.rows[:0], o.order[:0], 0, o.mem[:0]
}

// find is the place of a key in rows, or -1.
func (o *overlay) find(key []byte) int {
	if len(o.rows) > searchUpTo {
		if i, ok := o.index[string(key)]; ok {
			return i
		}
		return -1
	}
	for i := range o.rows {
		if bytes.Equal(o.rows[i].key, key) {
			return i
		}
	}
	return -1
}

// get returns what was written under a key, nil for a deletion; it is valid until reset.
func (o *overlay) get(key []byte) (val []byte, ok bool) {
	if i := o.find(key); i >= 0 {
		return o.rows[i].val, true
	}
	return nil, false
}

// put records a write; a nil value is a deletion.
func (o *overlay) put(key, val []byte) {
	var kept []byte // not val itself: that stays on the caller's stack
	if val != nil {
		kept = o.keep(val)
	}
	if i := o.find(key); i >= 0 {
		o.rows[i].val = kept
		return
	}
	o.order = append(o.order, len(o.rows))
	o.rows = append(o.rows, row{o.keep(key), kept})
	if len(o.rows) <= searchUpTo {
		return
	}
	if o.index == nil {
		o.index = map[string]int{}
	}
	for i := len(o.index); i < len(o.rows); i++ {
		o.index[string(o.rows[i].key)] = i
	}
}

// keep is a copy of b in the overlay's memory.
func (o *overlay) keep(b []byte) []byte {
	at := len(o.mem)
	o.mem = append(o.mem, b...)
	return o.mem[at:len(o.mem):len(o.mem)]
}

// inOrder is the places of all rows in the order of their keys.
func (o *overlay) inOrder() []int {
	cmp := func(a, b int) int { return bytes.Compare(o.rows[a].key, o.rows[b].key) }
	if len(o.order)-o.sorted > insertUpTo {
		slices.SortFunc(o.order, cmp)
		o.sorted = len(o.order)
	}
	for ; o.sorted < len(o.order); o.sorted++ {
		i := o.order[o.sorted]
		at, _ := slices.BinarySearchFunc(o.order[:o.sorted], i, cmp)
		copy(o.order[at+1:o.sorted+1], o.order[at:o.sorted])
		o.order[at] = i
	}
	return o.order
}

// between returns the places of the rows in [lo, hi), in order. They are valid until the
// next put.
func (o *overlay) between(lo, hi []byte) []int {
	if len(o.rows) == 0 {
		return nil
	}
	all := o.inOrder()
	cmp := func(i int, key []byte) int { return bytes.Compare(o.rows[i].key, key) }
	from, _ := slices.BinarySearchFunc(all, lo, cmp)
	to, _ := slices.BinarySearchFunc(all, hi, cmp)
	return all[from:max(from, to)]
}

// each goes through all writes in key order.
func (o *overlay) each(fn func(key, val []byte) error) error {
	for _, i := range o.inOrder() {
		if err := fn(o.rows[i].key, o.rows[i].val); err != nil {
			return err
		}
	}
	return nil
}
