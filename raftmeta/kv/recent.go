package kv

import (
	"errors"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// recent is what batches read and wrote last. Entries of the Raft log come back to
// the same few keys (counters, the session, the directory), and to files that were made
// a moment ago: a look here is an order of magnitude cheaper than one into the store, and
// of what was written again and again only the last is given to Pebble. It gets what is
// pending together, as one batch: when somebody looks at the store or flushes it, or when
// it is much. All of it or nothing survives a crash, as of what lies in Pebble's own memtable.
//
// The cells are in two maps. When the young ones have half of the room, the old are
// forgotten and the young become old; an old one that is used becomes young. So what was
// used last stays, and nobody keeps a list.
//
// Only the open batch touches recent, but for what is pending: that is under the store's mu,
// since views and flushes ask for it.
type recent struct {
	young, old map[string]*cell
	bytes      int // of the young

	// Where the next cells and their keys come from: few large pieces of memory.
	cells []cell
	keys  strings.Builder

	pending      []*cell // what Pebble has not got, in the order of their first write
	pendingBytes int
}

// cell is a key and its value.
type cell struct {
	key     string
	val     []byte // as committed; nil: not in the store
	next    []byte // what the open batch has written, if it has; nil: deleted
	spare   []byte // memory for next
	known   bool   // val is what the store has; else it was never asked
	written bool   // by the open batch
	pending bool   // Pebble does not have val yet
	absent  bool   // Pebble surely has nothing under the key
}

// now is what the open batch sees.
func (c *cell) now() []byte {
	if c.written {
		return c.next
	}
	return c.val
}

func (c *cell) bytes() int { return len(c.key) + len(c.val) + recentOverhead }

func newRecent() recent { return recent{young: map[string]*cell{}, old: map[string]*cell{}} }

// find is a key's cell, or nil.
func (r *recent) find(key []byte) *cell {
	if c := r.young[string(key)]; c != nil {
		return c
	}
	c := r.old[string(key)]
	if c != nil {
		delete(r.old, c.key)
		r.young[c.key] = c
		r.bytes += c.bytes()
	}
	return c
}

// add makes a cell of a key that has none.
func (r *recent) add(key []byte) *cell {
	if len(r.cells) == cap(r.cells) {
		r.cells = make([]cell, 0, recentPiece/recentOverhead)
	}
	if r.keys.Cap()-r.keys.Len() < len(key) {
		r.keys.Reset() // cells have the old piece
		r.keys.Grow(max(recentPiece, len(key)))
	}
	at := r.keys.Len()
	r.keys.Write(key)
	r.cells = append(r.cells, cell{key: r.keys.String()[at:]})
	c := &r.cells[len(r.cells)-1]
	r.young[c.key] = c
	r.bytes += c.bytes()
	return c
}

// room is a copy of a value in memory that the cell may have to spare.
func (c *cell) room(val []byte) []byte {
	if c.written && c.next != nil {
		c.spare = c.next
	}
	if c.spare == nil {
		return append(make([]byte, 0, len(val)), val...)
	}
	return append(c.spare[:0], val...)
}

// met says what the store has under the key of a new cell.
func (r *recent) met(c *cell, val []byte, there bool) {
	c.known, c.absent = true, !there
	if there {
		c.val = c.room(val)
		r.bytes += len(val)
	}
}

// undo takes back what a batch has written that was not committed.
func (r *recent) undo(c *cell) {
	if c.next, c.written = nil, false; !c.known {
		r.forget(c)
	}
}

// forget removes a young cell.
func (r *recent) forget(c *cell) {
	delete(r.young, c.key)
	r.bytes -= c.bytes()
}

// age makes room, if it is needed. Nothing is pending or written.
func (r *recent) age() {
	if r.bytes > recentBytes/2 {
		clear(r.old)
		r.young, r.old, r.bytes = r.old, r.young, 0
	}
}

// commit makes what a batch has written what the store has.
func (r *recent) commit(c *cell) {
	was := c.bytes()
	c.val, c.spare, c.next = c.next, c.val, nil
	if c.val == nil {
		c.spare = nil // what is deleted rarely comes back
	}
	c.known, c.written = true, false
	r.bytes += c.bytes() - was
	if c.pending {
		r.pendingBytes += c.bytes() - was
		return
	}
	c.pending = true
	r.pending = append(r.pending, c)
	r.pendingBytes += c.bytes()
}

// current gives Pebble all that batches have committed.
func (s *pebbleStore) current() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settle()
}

// settle gives Pebble what is pending, in key order, which its memtable takes in
// fastest. The caller has mu.
func (s *pebbleStore) settle() error {
	r := &s.recent
	if len(r.pending) == 0 {
		return nil
	}
	slices.SortFunc(r.pending, func(a, b *cell) int { return strings.Compare(a.key, b.key) })
	if err := s.write(r.pending); err != nil {
		return wrap("commit state", s.dir, err)
	}
	for _, c := range r.pending {
		c.pending, c.absent = false, c.val == nil
	}
	clear(r.pending)
	r.pending, r.pendingBytes = r.pending[:0], 0
	return nil
}

// write commits cells to Pebble.
func (s *pebbleStore) write(cells []*cell) error {
	b := s.db.NewBatch()
	var err error
	for _, c := range cells {
		if c.val == nil && c.absent { // it came and went
			s.checkLacks([]byte(c.key))
			continue
		}
		err = errors.Join(err, write(b, c.key, c.val))
	}
	if err == nil {
		err = b.Commit(pebble.NoSync)
	}
	return errors.Join(err, b.Close())
}

// write puts a value into a batch, or deletes the key where it is nil.
func write(to *pebble.Batch, key string, val []byte) error {
	if val == nil {
		op := to.DeleteDeferred(len(key))
		copy(op.Key, key)
		return op.Finish()
	}
	op := to.SetDeferred(len(key), len(val))
	copy(op.Key, key)
	copy(op.Value, val)
	return op.Finish()
}
