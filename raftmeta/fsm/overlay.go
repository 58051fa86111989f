package fsm

import (
	"maps"
	"slices"
)

// overlay is what a command has written so far. Its zero value is empty. Keys
// are kept by prefix and put in order only when somebody goes through them, so
// that a command's cost stays proportional to what it changes.
type overlay struct {
	vals map[string][]byte // nil value: deleted
	keys map[byte]*keyList
}

// keyList is the keys of a prefix: the first sorted of them are in order.
type keyList struct {
	keys   []string
	sorted int
}

func (o *overlay) get(key []byte) (val []byte, ok bool) {
	val, ok = o.vals[string(key)]
	return val, ok
}

// put records a write; a nil value is a deletion.
func (o *overlay) put(key, val []byte) {
	if _, known := o.vals[string(key)]; !known {
		if o.vals == nil {
			o.vals, o.keys = map[string][]byte{}, map[byte]*keyList{}
		}
		l := o.keys[key[0]]
		if l == nil {
			l = &keyList{}
			o.keys[key[0]] = l
		}
		l.keys = append(l.keys, string(key))
	}
	o.vals[string(key)] = val
}

// insertUpTo is the number of new keys that are inserted one by one rather than
// by sorting all.
const insertUpTo = 16

func (l *keyList) order() []string {
	if len(l.keys)-l.sorted > insertUpTo {
		slices.Sort(l.keys)
		l.sorted = len(l.keys)
	}
	for ; l.sorted < len(l.keys); l.sorted++ {
		k := l.keys[l.sorted]
		at, _ := slices.BinarySearch(l.keys[:l.sorted], k)
		copy(l.keys[at+1:l.sorted+1], l.keys[at:l.sorted])
		l.keys[at] = k
	}
	return l.keys
}

// between returns the keys in [lo, hi) in order; all of them start with lo's
// prefix. They are valid until the next put.
func (o *overlay) between(lo, hi []byte) []string {
	l := o.keys[lo[0]]
	if l == nil {
		return nil
	}
	keys := l.order()
	from, _ := slices.BinarySearch(keys, string(lo))
	to, _ := slices.BinarySearch(keys, string(hi))
	return keys[from:max(from, to)]
}

// each goes through all writes in key order.
func (o *overlay) each(fn func(key, val []byte) error) error {
	for _, p := range slices.Sorted(maps.Keys(o.keys)) {
		for _, k := range o.keys[p].order() {
			if err := fn([]byte(k), o.vals[k]); err != nil {
				return err
			}
		}
	}
	return nil
}
