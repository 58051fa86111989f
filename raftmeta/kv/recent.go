package kv

import (
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// recent is what batches read and wrote last. Entries of the Raft log come back to
// the same few keys (counters, the session, the directory): a look here is an order of
// magnitude cheaper than one into the store, and of what was written again and again
// only the last is given to Pebble. It gets what is pending together, as one batch:
// when somebody looks at the store or flushes it, or when it is much. All of it or
// nothing survives a crash, as of what lies in Pebble's own memtable.
type recent struct {
	m     map[string]cell
	bytes int

	pending      []string // keys that Pebble has not got, in the order of their first write
	pendingBytes int
}

type cell struct {
	val     []byte // nil: not in the store
	pending bool
}

// put remembers a value that was read, or written.
func (r *recent) put(key string, val []byte, written bool) {
	if r.m == nil {
		r.m = map[string]cell{}
	}
	old, there := r.m[key]
	grown := len(val) - len(old.val)
	if !there {
		grown += len(key) + recentOverhead
	}
	r.bytes += grown
	switch {
	case old.pending:
		r.pendingBytes += grown
	case written:
		r.pending = append(r.pending, key)
		r.pendingBytes += len(key) + len(val) + recentOverhead
	}
	r.m[key] = cell{val, old.pending || written}
}

// lately is the value that a batch has read or written, if it is remembered.
func (s *pebbleStore) lately(key []byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.recent.m[string(key)]
	return c.val, ok
}

// met remembers a value that was read.
func (s *pebbleStore) met(key string, val []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent.put(key, val, false)
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
	if len(r.pending) > 0 {
		if err := s.write(r); err != nil {
			return wrap("commit state", s.dir, err)
		}
	}
	if r.bytes > recentBytes { // it starts anew: the keys in use are back soon
		*r = recent{}
		return nil
	}
	for _, k := range r.pending {
		r.m[k] = cell{val: r.m[k].val}
	}
	clear(r.pending)
	r.pending, r.pendingBytes = r.pending[:0], 0
	return nil
}

// write commits what is pending to Pebble.
func (s *pebbleStore) write(r *recent) error {
	slices.Sort(r.pending)
	b := s.db.NewBatch()
	var err error
	for i := 0; i < len(r.pending) && err == nil; i++ {
		err = write(b, []byte(r.pending[i]), r.m[r.pending[i]].val)
	}
	if err == nil {
		err = b.Commit(pebble.NoSync)
	}
	return errors.Join(err, b.Close())
}

// write puts a value into a batch, or deletes the key where it is nil.
func write(to *pebble.Batch, key, val []byte) error {
	if val == nil {
		return to.Delete(key, pebble.NoSync)
	}
	return to.Set(key, val, pebble.NoSync)
}
