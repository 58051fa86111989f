package nvme

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

const sectorBytes = 512

var errPowerCut = errors.New("power cut")

// memDevice is a device in memory that keeps unflushed writes apart. A power
// cut comes after so many operations; what then is on the medium is everything
// that was flushed, and any sectors of the rest.
type memDevice struct {
	mu        sync.Mutex
	now       []byte // what reads see
	medium    []byte // what surely survives
	unflushed []*memWrite
	left      int // operations until the power cut; negative for never
	cut       bool
}

type memWrite struct {
	off           int64
	data          []byte
	done, durable bool
}

func newMemDevice(content []byte) *memDevice {
	return &memDevice{now: append([]byte(nil), content...), medium: append([]byte(nil), content...), left: -1}
}

// step counts an operation; false after the power cut, of which this one may be the victim.
func (d *memDevice) step() (alive, victim bool) {
	if d.cut {
		return false, false
	}
	if d.left == 0 {
		d.cut = true
		return false, true
	}
	d.left--
	return true, false
}

func (d *memDevice) Info() Info {
	return Info{Path: "memory", SizeBytes: int64(len(d.now)), Kind: KindFile}
}

func (d *memDevice) Read(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+int64(len(p)) > int64(len(d.now)) {
		return cfs.Errorf("read memory", cfs.IO, "beyond the end")
	}
	copy(p, d.now[off:])
	return nil
}

func (d *memDevice) ReadMany(ops []iopath.ReadOp) error {
	for i := range ops {
		if err := d.Read(ops[i].P, ops[i].Off); err != nil {
			return err
		}
	}
	return nil
}

func (d *memDevice) Write(ops []iopath.WriteOp) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	alive, victim := d.step()
	if !alive && !victim {
		return cfs.E("write memory", cfs.IO, errPowerCut)
	}
	var writes []*memWrite
	for i := range ops {
		copy(d.now[ops[i].Off:], ops[i].P)
		writes = append(writes, &memWrite{off: ops[i].Off, data: append([]byte(nil), ops[i].P...)})
	}
	d.unflushed = append(d.unflushed, writes...)
	if victim {
		return cfs.E("write memory", cfs.IO, errPowerCut)
	}
	d.pause()
	for _, w := range writes {
		w.done = true
	}
	return nil
}

// pause lets other operations run while one is under way.
func (d *memDevice) pause() {
	d.mu.Unlock()
	for range rand.IntN(20) {
		runtime.Gosched()
	}
	d.mu.Lock()
}

// Flush makes the writes durable that were done when it began, and no other.
func (d *memDevice) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if alive, _ := d.step(); !alive {
		return cfs.E("flush memory", cfs.IO, errPowerCut)
	}
	var covered []*memWrite
	for _, w := range d.unflushed {
		if w.done {
			covered = append(covered, w)
		}
	}
	d.pause()
	if d.cut {
		return cfs.E("flush memory", cfs.IO, errPowerCut)
	}
	for _, w := range covered {
		if w.durable {
			continue // by another flush, and something newer may lie there
		}
		copy(d.medium[w.off:], w.data)
		w.durable = true
	}
	d.unflushed = slices.DeleteFunc(d.unflushed, func(w *memWrite) bool { return w.durable })
	return nil
}

func (d *memDevice) Discard(int64, int64) error { return nil }
func (d *memDevice) Close() error               { return nil }

// afterCut is what a power cut leaves: of each unflushed write nothing, all, a
// prefix or any sectors, applied in any order.
func (d *memDevice) afterCut(rng *rand.Rand) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := append([]byte(nil), d.medium...)
	for _, i := range rng.Perm(len(d.unflushed)) {
		w := d.unflushed[i]
		sectors := len(w.data) / sectorBytes
		mode, prefix := rng.IntN(4), rng.IntN(sectors+1)
		for s := range sectors {
			keep := mode == 1 || mode == 2 && s < prefix || mode == 3 && rng.IntN(2) == 0
			if keep {
				copy(out[w.off+int64(s)*sectorBytes:], w.data[s*sectorBytes:(s+1)*sectorBytes])
			}
		}
	}
	return out
}

// content is what a process that was killed leaves: all that was written.
func (d *memDevice) content() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte(nil), d.now...)
}
