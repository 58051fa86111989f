package kv

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/tidwall/btree"

	"github.com/claudefs/claudefs/cfs"
)

type pair struct{ k, v []byte }

func pairLess(a, b pair) bool { return bytes.Compare(a.k, b.k) < 0 }

type tree = btree.BTreeG[pair]

type mem struct {
	mu sync.Mutex
	t  *tree
}

// NewMem makes an empty store in memory; nothing of it survives the process.
func NewMem() Store {
	return &mem{t: btree.NewBTreeGOptions(pairLess, btree.Options{NoLocks: true})}
}

func (m *mem) copy() *tree {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.t.Copy()
}

func (m *mem) NewBatch() Batch { return &memBatch{memReader: memReader{m.copy()}, m: m} }

func (m *mem) View() View { return memView{memReader{m.copy()}} }

func (m *mem) Flush() error { return nil }

// Checkpoint writes the pairs to the file "pairs" in dir, each as two lengths and the bytes.
func (m *mem) Checkpoint(dir string) error {
	op := "checkpoint " + dir
	if err := os.Mkdir(dir, 0o700); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	f, err := os.Create(filepath.Join(dir, "pairs"))
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	var b []byte
	m.copy().Scan(func(p pair) bool {
		b = AppendPair(b, p.k, p.v)
		return true
	})
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	return nil
}

func (m *mem) Close() error { return nil }

type memReader struct{ t *tree }

func (r memReader) Get(key []byte) ([]byte, bool, error) {
	p, ok := r.t.Get(pair{k: key})
	return p.v, ok, nil
}

func (r memReader) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	var err error
	r.t.Copy().Ascend(pair{k: lo}, func(p pair) bool { // a copy: fn may write
		if hi != nil && bytes.Compare(p.k, hi) >= 0 {
			return false
		}
		var more bool
		more, err = fn(p.k, p.v)
		return more && err == nil
	})
	return err
}

type memView struct{ memReader }

func (memView) Close() error { return nil }

type memBatch struct {
	memReader
	m   *mem
	ops []pair // in order; a nil value deletes
}

func (b *memBatch) do(t *tree, p pair) {
	if p.v == nil {
		t.Delete(p)
	} else {
		t.Set(p)
	}
}

func (b *memBatch) Set(key, val []byte) error {
	p := pair{bytes.Clone(key), append([]byte{}, val...)}
	b.ops = append(b.ops, p)
	b.do(b.t, p)
	return nil
}

func (b *memBatch) Delete(key []byte) error {
	p := pair{k: bytes.Clone(key)}
	b.ops = append(b.ops, p)
	b.do(b.t, p)
	return nil
}

func (b *memBatch) Commit() error {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	for _, p := range b.ops {
		b.do(b.m.t, p)
	}
	b.ops = nil
	return nil
}

func (b *memBatch) Close() error { return nil }
