package perf

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// memoryDevice is a device in memory, for benches that count and do not time.
type memoryDevice struct {
	mu  sync.RWMutex
	mem []byte
}

// newMemoryDevice makes one; Close gives its memory back.
func newMemoryDevice(sizeBytes int64) (*memoryDevice, error) {
	mem, err := unix.Mmap(-1, 0, int(sizeBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, cfs.E("make a device in memory", cfs.KindOf(err), err)
	}
	return &memoryDevice{mem: mem}, nil
}

// Info describes it.
func (d *memoryDevice) Info() nvme.Info {
	return nvme.Info{Path: "memory", SizeBytes: int64(len(d.mem)), WriteThrough: true, Direct: true}
}

// piece is n bytes at off.
func (d *memoryDevice) piece(off int64, n int) ([]byte, error) {
	if off < 0 || off+int64(n) > int64(len(d.mem)) {
		return nil, cfs.Errorf("device memory", cfs.IO, "%d bytes at %d are beyond the end", n, off)
	}
	return d.mem[off:][:n], nil
}

// Read copies out.
func (d *memoryDevice) Read(p []byte, off int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	from, err := d.piece(off, len(p))
	copy(p, from)
	return err
}

// ReadMany copies out.
func (d *memoryDevice) ReadMany(ops []iopath.ReadOp) error {
	for i := range ops {
		if err := d.Read(ops[i].P, ops[i].Off); err != nil {
			return err
		}
	}
	return nil
}

// Write copies in. As behind a device that takes its time, those whose records are
// to share the next write get their turn meanwhile.
func (d *memoryDevice) Write(ops []iopath.WriteOp) error {
	runtime.Gosched()
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range ops {
		to, err := d.piece(ops[i].Off, len(ops[i].P))
		if err != nil {
			return err
		}
		copy(to, ops[i].P)
	}
	return nil
}

// Flush has nothing to do.
func (d *memoryDevice) Flush() error { return nil }

// Discard keeps what is there.
func (d *memoryDevice) Discard(int64, int64) error { return nil }

// Close gives the memory back.
func (d *memoryDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	mem := d.mem
	if d.mem = nil; mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}
