package fsm

import (
	"bytes"
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// Reader is the state at one moment. Values are valid until the next call, those
// passed to fn only during it. Scan goes through [lo, hi) in key order until fn
// returns false; a nil hi has no end.
type Reader interface {
	Get(key []byte) (val []byte, ok bool, err error)
	Scan(lo, hi []byte, fn func(k, v []byte) (more bool, err error)) error
}

// KV is the state while entries are applied: a batch that reads its own writes.
type KV interface {
	Reader
	Set(key, val []byte) error
	Delete(key []byte) error
}

// tx gathers the writes of one command over a KV, so that a command that fails
// half way leaves nothing. Failures of the KV and broken records stick in err,
// which Apply checks once at the end: until then reads of a broken tx find nothing.
type tx struct {
	kv    Reader
	index uint64
	now   int64 // ns: the command's time
	sess  cfs.SessionID
	cred  cfs.Cred
	over  overlay
	rec   enc    // where records are encoded before over copies them
	key   []byte // where the keys that kv is asked for are copied, so that callers' stay on their stacks
	err   error
	notes *notes // what an operation changes, for the journal; nil: nobody reads it

	named    int // extents that the command's operations have named
	replaced int // extent rows that they have met
	reaped   int // rows that were deleted because nobody can see them any more
}

func (t *tx) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *tx) corrupt(key []byte) {
	t.fail(cfs.Errorf("apply", cfs.Corrupt, "state record %q", string(key)))
}

func (t *tx) get(key []byte) ([]byte, bool) {
	if t.err != nil {
		return nil, false
	}
	if v, ok := t.over.get(key); ok {
		return v, v != nil
	}
	t.key = append(t.key[:0], key...)
	v, ok, err := t.kv.Get(t.key)
	if err != nil {
		t.fail(err)
		return nil, false
	}
	return v, ok
}

// encode begins a record that is valid until the next one.
func (t *tx) encode() *enc {
	t.rec.b = append(t.rec.b[:0], recordVersion)
	return &t.rec
}

func (t *tx) set(key, val []byte) {
	t.note(key)
	t.over.put(key, val)
}

func (t *tx) del(key []byte) { t.set(key, nil) }

// scan goes through [lo, hi), which lies within one prefix, in key order: the
// overlay merged with the KV. fn must not write to the tx.
func (t *tx) scan(lo, hi []byte, fn func(k, v []byte) bool) {
	if t.err != nil {
		return
	}
	mine := t.over.between(lo, hi)
	stopped := false
	emitBelow := func(k []byte) bool { // nil: all that is left
		for len(mine) > 0 && (k == nil || bytes.Compare(t.over.rows[mine[0]].key, k) < 0) {
			m := &t.over.rows[mine[0]]
			mine = mine[1:]
			if m.val != nil && !fn(m.key, m.val) {
				return false
			}
		}
		return true
	}
	err := t.kv.Scan(lo, hi, func(k, v []byte) (bool, error) {
		if !emitBelow(k) {
			stopped = true
			return false, nil
		}
		if len(mine) > 0 && bytes.Equal(t.over.rows[mine[0]].key, k) {
			v = t.over.rows[mine[0]].val
			if mine = mine[1:]; v == nil {
				return true, nil
			}
		}
		if !fn(k, v) {
			stopped = true
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		t.fail(err)
		return
	}
	if !stopped {
		emitBelow(nil)
	}
}

// commit writes the overlay to kv, in key order.
func (t *tx) commit(kv KV) error {
	return t.over.each(func(k, v []byte) error {
		if v == nil {
			return kv.Delete(k)
		}
		return kv.Set(k, v)
	})
}

// mark reads a counter; an absent one is 0.
func (t *tx) mark(name string) uint64 {
	v, ok := t.get(markKey(name))
	if !ok {
		return 0
	}
	if len(v) != 8 {
		t.corrupt(markKey(name))
		return 0
	}
	return binary.LittleEndian.Uint64(v)
}

func (t *tx) setMark(name string, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	t.set(markKey(name), b[:])
}

// addMark changes a counter by delta, which may be the two's complement of a decrease.
func (t *tx) addMark(name string, delta uint64) uint64 {
	v := t.mark(name) + delta
	t.setMark(name, v)
	return v
}

// load reads and decodes the record at key; ok is false when there is none.
func load[T any](t *tx, key []byte, decode func([]byte) (T, bool)) (rec T, ok bool) {
	v, ok := t.get(key)
	if !ok {
		return rec, false
	}
	rec, good := decode(v)
	if !good {
		t.corrupt(key)
		return rec, false
	}
	return rec, true
}

func (t *tx) inode(i cfs.Ino) (*inode, bool) { return load(t, inodeKey(i), decodeInode) }

// putInode stores a changed inode; Gen tells caches that it has changed.
func (t *tx) putInode(n *inode) {
	n.Gen = t.index
	t.set(inodeKey(n.Ino), t.encode().inode(n))
}

// touch stores a changed inode with a new change time.
func (t *tx) touch(n *inode) {
	n.CtimeNS = t.now
	t.putInode(n)
}

// changedDir stores the one directory whose entries an operation has changed,
// and says so in its result.
func (t *tx) changedDir(n *inode, res *cfs.Result) {
	res.DirWas = n.Gen
	t.touchDir(n)
	res.Dir = n.Attr
}

// touchDir stores a directory whose entries have changed.
func (t *tx) touchDir(n *inode) {
	n.MtimeNS = t.now
	t.touch(n)
}
