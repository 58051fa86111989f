// Package cfs is the vocabulary of ClaudeFS: the identifiers, the attributes,
// the extents, the operations on the namespace and the one error type that
// every other package speaks. It holds types and tables only; it does no I/O,
// starts no goroutine and imports nothing but the standard library and x/sys.
//
// Start at types.go (who and what), then extent.go (where a byte lives), op.go
// (what can be asked of the namespace), errors.go (how it can fail).
package cfs
