package perf

import (
	"sync/atomic"

	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// countingDevice counts what is asked of a device, and shows only its first
// limit bytes.
type countingDevice struct {
	nvme.Device
	limit int64

	writes, writtenBytes, syncs, reads, readBytes atomic.Uint64
}

// deviceCounts is what a countingDevice has counted.
type deviceCounts struct {
	writes       uint64 // operations, each of a batch
	writtenBytes uint64
	syncs        uint64 // flushes, and writes that are durable when they return
	readBytes    uint64
}

// Info is the device's, with the size that is shown.
func (d *countingDevice) Info() nvme.Info {
	info := d.Device.Info()
	if d.limit > 0 {
		info.SizeBytes = min(info.SizeBytes, d.limit)
	}
	return info
}

// Read counts and reads.
func (d *countingDevice) Read(p []byte, off int64) error {
	d.reads.Add(1)
	d.readBytes.Add(uint64(len(p)))
	return d.Device.Read(p, off)
}

// ReadMany counts and reads.
func (d *countingDevice) ReadMany(ops []iopath.ReadOp) error {
	d.reads.Add(uint64(len(ops)))
	for i := range ops {
		d.readBytes.Add(uint64(len(ops[i].P)))
	}
	return d.Device.ReadMany(ops)
}

// Write counts and writes.
func (d *countingDevice) Write(ops []iopath.WriteOp) error {
	d.writes.Add(uint64(len(ops)))
	for i := range ops {
		d.writtenBytes.Add(uint64(len(ops[i].P)))
		if ops[i].Sync {
			d.syncs.Add(1)
		}
	}
	return d.Device.Write(ops)
}

// Flush counts and flushes.
func (d *countingDevice) Flush() error {
	d.syncs.Add(1)
	return d.Device.Flush()
}

func (d *countingDevice) counts() deviceCounts {
	return deviceCounts{d.writes.Load(), d.writtenBytes.Load(), d.syncs.Load(), d.readBytes.Load()}
}

func (c deviceCounts) since(before deviceCounts) deviceCounts {
	return deviceCounts{c.writes - before.writes, c.writtenBytes - before.writtenBytes, c.syncs - before.syncs, c.readBytes - before.readBytes}
}
