package kv

import "github.com/claudefs/claudefs/raftmeta/fsm"

// Store is an ordered key-value store. Its methods may be called by several
// goroutines; after Close none may.
type Store interface {
	// NewBatch begins a batch of writes.
	NewBatch() Batch
	// View is the state of all batches committed so far, untouched by later ones.
	View() View
	// Flush makes all committed batches durable.
	Flush() error
	// Checkpoint writes a durable copy of the store to dir, which must not exist.
	Checkpoint(dir string) error
	// Close ends the store; its batches and views are closed before.
	Close() error
}

// Batch is a set of writes that take effect together at Commit. It reads the
// store with its own writes over it. It is for one goroutine, and a store has
// one batch at a time: who begins one knows that the last is closed.
type Batch interface {
	fsm.KV
	// Commit applies the writes, visible to views from now on. They are durable
	// after the next Flush, or earlier, but never in part.
	Commit() error
	// Close releases the batch; without Commit before nothing has happened.
	Close() error
}

// View is the state at one moment. It is for one goroutine.
type View interface {
	fsm.Reader
	// Close releases the view.
	Close() error
}
