// Package kv holds the state of the namespace in an ordered key-value store
// without a log of its own: the Raft log is the log. Package fsm writes the
// applied index in the same batch as the state, so after a crash the store is
// as it was at some applied index, and the Raft log goes on from there. Flush
// makes all that is committed durable; the Raft log may be truncated only below
// the applied index that a Flush covered. Pebble gets what batches have committed
// later, several batches at a time (recent.go); who looks does not notice. What batches
// come back to is answered from memory: rows that they had lately (recent.go), and names
// that a directory does not have (names.go).
//
// OpenPebble is the store that servers use; NewMem is one for tests. Both pass
// the same conformance suite (kv_test.go).
package kv
