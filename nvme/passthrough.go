package nvme

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

const (
	opFlush   = 0x00
	opWrite   = 0x01
	opRead    = 0x02
	opDataset = 0x09

	forceUnitAccess   = 1 << 30 // dword 12 of a write
	datasetDeallocate = 1 << 2  // dword 11
	datasetRangeBytes = 16

	// maxCommandBlocks is what the count of a read or write holds, in logical blocks.
	maxCommandBlocks = 1 << 16
	// maxDiscardBytes is a range of a Dataset Management command where the kernel
	// does not say what the device takes.
	maxDiscardBytes = 1 << 30
	// maxTries bounds how often a command is sent. The pauses between double from
	// retryWait to maxRetryWait, 2.3 s in all, which a controller's reset may take;
	// longer ones, up to maxDeviceWait, are the device's own wish.
	maxTries      = 9
	retryWait     = 10 * time.Millisecond
	maxRetryWait  = time.Second
	maxDeviceWait = 5 * time.Second
	// maxIdleBatches bounds the batches that are kept to be used again.
	maxIdleBatches = 64
)

// passthrough is an NVMe namespace that is sent commands through its character
// device, past the kernel's block layer.
type passthrough struct {
	info    Info
	ctrl    controller
	ns      namespace
	nsid    uint32
	shift   uint // logical blocks are of 1 << shift bytes
	discard int64
	adm     admin

	eng   iopath.Engine
	cmdr  iopath.Commander
	file  iopath.File
	f     *os.File
	block *os.File // the namespace's block device, held so that nobody mounts it

	idle  chan *commandBatch
	pause func(time.Duration) // between tries

	closeOnce sync.Once
	closeErr  error
}

// commandBatch is the commands of one call.
type commandBatch struct {
	cmds   []iopath.Command
	ranges []byte // of a Dataset Management command
}

// openPassthrough opens the namespace whose character device is at path.
func openPassthrough(path string, st *syscall.Stat_t, eng iopath.Engine, wait time.Duration) (Device, error) {
	op := "open device " + path
	cmdr, ok := eng.(iopath.Commander)
	if !ok {
		return nil, cfs.Errorf(op, cfs.Unsupported, "the I/O engine sends no NVMe commands")
	}
	f, err := openLocked(path, os.O_RDWR, wait)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	d := &passthrough{info: Info{Path: path}, adm: adminOf(f), eng: eng, cmdr: cmdr, f: f, pause: time.Sleep}
	blk, err := d.holdSibling(system, st.Rdev, wait)
	if err == nil {
		err = d.start(blk)
	}
	if err != nil {
		d.closeFiles()
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return d, nil
}

// holdSibling opens the block device of the namespace, whose character device
// has the given number, for nobody else to mount or claim, and writes back what
// the page cache has of it.
func (d *passthrough) holdSibling(sys sysfs, number uint64, wait time.Duration) (blockInfo, error) {
	if d.adm.err != nil {
		return blockInfo{}, d.adm.err
	}
	name, block, err := sys.sibling(number, d.adm.nsid)
	if err != nil {
		return blockInfo{}, err
	}
	info, err := sys.block(block)
	if err != nil {
		return blockInfo{}, err
	}
	path := filepath.Join("/dev", name)
	if d.block, err = openLocked(path, os.O_RDWR|os.O_EXCL, wait); err != nil {
		return blockInfo{}, cfs.Errorf("hold its block device "+path, cfs.KindOf(err), "%w", err)
	}
	var st syscall.Stat_t
	err = control(d.block, func(fd uintptr) error {
		if err := syscall.Fstat(int(fd), &st); err != nil {
			return err
		}
		held, err := namespaceID(fd)
		if st.Mode&syscall.S_IFMT != syscall.S_IFBLK || st.Rdev != block || err != nil || held != d.adm.nsid {
			return cfs.Errorf("", cfs.Invalid, "it is not the device that it should be")
		}
		return dropCache(fd)
	})
	if err != nil {
		return blockInfo{}, cfs.Errorf("hold its block device "+path, cfs.KindOf(err), "%w", err)
	}
	return info, nil
}

// start identifies the namespace, and reads from it the way that every later
// command takes.
func (d *passthrough) start(blk blockInfo) error {
	var err error
	if d.ns, err = identify(d.adm); err != nil {
		return err
	}
	if err := d.ns.usable(); err != nil {
		return err
	}
	if d.ctrl, err = identifyController(d.adm); err != nil {
		return err
	}
	d.nsid = d.adm.nsid
	d.shift = d.ns.shift()
	d.describe(blk)
	d.idle = make(chan *commandBatch, maxIdleBatches)
	if d.file, err = d.eng.RegisterFile(d.f); err != nil {
		return err
	}
	mem, err := newScratch(cfs.BlockSize)
	if err == nil {
		err = d.Read(mem.p, 0)
		mem.free()
	}
	if err != nil {
		_ = d.eng.UnregisterFile(d.file) // the error says what is wrong
	}
	return err
}

// describe fills in info from what the device says and what the kernel takes.
func (d *passthrough) describe(blk blockInfo) {
	i := &d.info
	i.Kind, i.Direct, i.WriteThrough = KindPassthrough, true, !d.ctrl.volatileCache
	i.SizeBytes = int64(d.ns.blocks<<d.shift) / cfs.BlockSize * cfs.BlockSize
	i.LogicalBlockBytes, i.Identity = d.ns.blockBytes, d.ns.identity
	i.Model, i.Serial = d.ctrl.model, d.ctrl.serial
	i.MaxTransferBytes = maxCommandBlocks << d.shift
	for _, n := range []int{d.ctrl.maxTransfer, blk.maxTransferBytes} {
		if n >= cfs.BlockSize {
			i.MaxTransferBytes = min(i.MaxTransferBytes, n/cfs.BlockSize*cfs.BlockSize)
		}
	}
	if d.ctrl.deallocates {
		i.DiscardBytes = d.ns.deallocateBytes
		d.discard = maxDiscardBytes
		if blk.discardMaxBytes >= cfs.BlockSize {
			// The count of a range has 32 bits.
			d.discard = min(blk.discardMaxBytes, math.MaxUint32<<d.shift) / cfs.BlockSize * cfs.BlockSize
		}
	}
}

// Info describes the device.
func (d *passthrough) Info() Info { return d.info }

// Read fills p from off.
func (d *passthrough) Read(p []byte, off int64) error {
	b := d.take()
	defer d.give(b)
	if err := d.info.checkRange("read", off, int64(len(p))); err != nil {
		return err
	}
	d.transfer(b, opRead, &iopath.Transfer{P: p, Off: off})
	return d.run(b, "read")
}

// ReadMany reads a batch.
func (d *passthrough) ReadMany(ops []iopath.ReadOp) error { return d.many(opRead, "read", ops) }

// Write writes a batch; what has Sync set by FUA.
func (d *passthrough) Write(ops []iopath.WriteOp) error { return d.many(opWrite, "write", ops) }

func (d *passthrough) many(opcode uint8, what string, ops []iopath.Transfer) error {
	if err := d.info.checkRanges(what, ops); err != nil {
		return err
	}
	b := d.take()
	defer d.give(b)
	for i := range ops {
		d.transfer(b, opcode, &ops[i])
	}
	return d.run(b, what)
}

// transfer adds the commands of one transfer: as few as the device takes, of equal size.
func (d *passthrough) transfer(b *commandBatch, opcode uint8, op *iopath.Transfer) {
	n := len(op.P)
	pieces := (n + d.info.MaxTransferBytes - 1) / d.info.MaxTransferBytes
	for at := 0; at < n; {
		size := (n - at + pieces - 1) / pieces
		size = (size + cfs.BlockSize - 1) / cfs.BlockSize * cfs.BlockSize
		pieces--
		block := uint64(op.Off+int64(at)) >> d.shift
		cmd := iopath.Command{
			Opcode: opcode, NSID: d.nsid, P: op.P[at : at+size],
			CDW10: uint32(block), CDW11: uint32(block >> 32), CDW12: uint32(size>>d.shift) - 1,
		}
		if opcode == opWrite && op.Sync {
			cmd.CDW12 |= forceUnitAccess
		}
		b.cmds = append(b.cmds, cmd)
		at += size
	}
}

// Flush is the command of that name.
func (d *passthrough) Flush() error {
	b := d.take()
	defer d.give(b)
	b.cmds = append(b.cmds, iopath.Command{Opcode: opFlush, NSID: d.nsid})
	return d.run(b, "flush")
}

// Discard deallocates, by Dataset Management.
func (d *passthrough) Discard(off, n int64) error {
	if err := d.info.checkRange("discard", off, n); err != nil {
		return err
	}
	if d.info.DiscardBytes == 0 {
		return d.info.failed("discard", cfs.Errorf("", cfs.Unsupported, "the device discards nothing"), cfs.Unsupported)
	}
	b := d.take()
	defer d.give(b)
	// The number of ranges is small: commands take gigabytes. Their memory is made
	// whole first, because it may not move once a command points into it.
	ranges := int((n + d.discard - 1) / d.discard)
	if cap(b.ranges) < ranges*datasetRangeBytes {
		b.ranges = make([]byte, ranges*datasetRangeBytes)
	}
	for i := range ranges {
		at := int64(i) * d.discard
		size := min(n-at, d.discard)
		p := b.ranges[i*datasetRangeBytes : (i+1)*datasetRangeBytes]
		clear(p)
		binary.LittleEndian.PutUint32(p[4:], uint32(size>>d.shift))
		binary.LittleEndian.PutUint64(p[8:], uint64(off+at)>>d.shift)
		b.cmds = append(b.cmds, iopath.Command{Opcode: opDataset, NSID: d.nsid, P: p, CDW11: datasetDeallocate})
	}
	return d.run(b, "discard")
}

// Health reads the health of the hardware.
func (d *passthrough) Health() (Health, error) {
	h, err := readHealth(d.adm)
	return h, d.info.failed("health", err, cfs.Unsupported)
}

// Close unlocks and closes the device.
func (d *passthrough) Close() error {
	d.closeOnce.Do(func() {
		d.closeErr = d.info.failed("close", errors.Join(d.eng.UnregisterFile(d.file), d.closeFiles()))
	})
	return d.closeErr
}

func (d *passthrough) closeFiles() error {
	var errs []error
	for _, f := range []*os.File{d.f, d.block} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// take is an empty batch.
func (d *passthrough) take() *commandBatch {
	select {
	case b := <-d.idle:
		return b
	default:
		return &commandBatch{}
	}
}

// give keeps a batch for later, without the callers' memory.
func (d *passthrough) give(b *commandBatch) {
	clear(b.cmds)
	b.cmds = b.cmds[:0]
	select {
	case d.idle <- b:
	default:
	}
}

// notAnswered is a Status that no device gives: the kernel's answer was an error.
const notAnswered = -1

// run sends a batch, and again what may succeed then. Every command used here
// may run twice: it does the same.
func (d *passthrough) run(b *commandBatch, what string) error {
	for try := 1; len(b.cmds) > 0; try++ {
		for i := range b.cmds {
			b.cmds[i].Status = notAnswered
		}
		err := d.cmdr.Commands(d.file, iopath.CommandIO, b.cmds)
		// The driver says EINTR of commands that a reset of the controller took away.
		again := errors.Is(err, syscall.EINTR)
		if err != nil && (!again || try == maxTries) {
			return d.failedAt(b.firstUnanswered(), what, err)
		}
		wait, err := d.keepFailed(b, what, try)
		if err != nil {
			return err
		}
		if len(b.cmds) > 0 {
			d.pause(max(min(wait, maxDeviceWait), min(retryWait<<(try-1), maxRetryWait)))
		}
	}
	return nil
}

// keepFailed leaves in the batch what is to be sent again, after at least
// the time returned, or returns the first error that is final.
func (d *passthrough) keepFailed(b *commandBatch, what string, try int) (time.Duration, error) {
	var wait time.Duration
	kept := 0
	for i := range b.cmds {
		cmd := &b.cmds[i]
		if cmd.Status == 0 {
			continue
		}
		if cmd.Status != notAnswered {
			delay, again := d.ctrl.retryable(cmd.Status)
			if !again || try == maxTries {
				return 0, d.failedAt(cmd, what, statusError(cmd.Status))
			}
			wait = max(wait, delay)
		}
		b.cmds[kept] = *cmd
		kept++
	}
	clear(b.cmds[kept:])
	b.cmds = b.cmds[:kept]
	return wait, nil
}

// firstUnanswered is the command that the error of a whole batch belongs to.
func (b *commandBatch) firstUnanswered() *iopath.Command {
	for i := range b.cmds {
		if b.cmds[i].Status == notAnswered {
			return &b.cmds[i]
		}
	}
	return &b.cmds[0]
}

// failedAt gives the failure of a command its place.
func (d *passthrough) failedAt(cmd *iopath.Command, what string, err error) error {
	var block, n uint64
	switch cmd.Opcode {
	case opRead, opWrite:
		block, n = uint64(cmd.CDW11)<<32|uint64(cmd.CDW10), uint64(len(cmd.P))
	case opDataset:
		block, n = binary.LittleEndian.Uint64(cmd.P[8:]), uint64(binary.LittleEndian.Uint32(cmd.P[4:]))<<d.shift
	default:
		return d.info.failed(what, err)
	}
	err = cfs.Errorf("", cfs.KindOf(err), "%d bytes at %d: %w", n, block<<d.shift, err)
	if cmd.Opcode == opDataset {
		return d.info.failed(what, err, cfs.Unsupported)
	}
	return d.info.failed(what, err)
}
