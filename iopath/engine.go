package iopath

import "os"

// Transfer is one contiguous piece of a batch: all of P, at offset Off of the
// file, in bytes. On O_DIRECT files both and P's address are block aligned.
// The Transfers of a batch are the engine's until the call returns.
type Transfer struct {
	P   []byte
	Off int64
	// Sync makes a write durable before it is answered (RWF_DSYNC: on a block
	// device that has it, by FUA and without a flush). Reads ignore it.
	Sync bool
	res  int32 // the kernel's answer
}

// ReadOp is a Transfer from the file.
type ReadOp = Transfer

// WriteOp is a Transfer to the file.
type WriteOp = Transfer

// File is a file that is registered with an engine; a value, to be copied.
type File struct {
	name string
	fd   int32
	slot int32 // in the ring's file table, -1 when it has none
	// polled is the slot in the polled ring's table, -1 when it cannot be polled.
	polled int32
}

// onPolled is the file as the polled ring knows it.
func (f File) onPolled() File {
	f.slot, f.polled = f.polled, -1
	return f
}

// Name is the path that the file was opened by.
func (f File) Name() string { return f.name }

// Engine is what the devices need of an I/O engine. All methods may be called
// by any number of goroutines at once. A transfer that fails does not stop the
// others of its batch; the first error of a batch is returned when all of it
// has ended. Errors are *cfs.Error, name the file and the offset, and wrap the
// errno.
type Engine interface {
	// RegisterFile makes f known to the engine. The engine's hold on the open
	// file is its own: f may be closed afterwards, but lives until UnregisterFile.
	RegisterFile(f *os.File) (File, error)
	// UnregisterFile ends RegisterFile's hold. No operation on f may be running.
	UnregisterFile(f File) error
	// Read fills p from off, and returns the bytes read: fewer than len(p) only
	// with an error, which is io.EOF at the end of the file.
	Read(f File, p []byte, off int64) (int, error)
	// ReadMany reads a batch in one submission; a short read is an error.
	ReadMany(f File, ops []ReadOp) error
	// WriteMany writes a batch in one submission, in no order.
	WriteMany(f File, ops []WriteOp) error
	// Fdatasync makes every write that was answered before the call durable.
	Fdatasync(f File) error
	// Close waits for what is running and frees the engine.
	Close() error
}

var _ Engine = (*Ring)(nil)
