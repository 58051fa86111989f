package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
)

// The errors of a Disk, which its messages wrap with the operation and the offset.
var (
	ErrStopped = errors.New("the machine has stopped")
	ErrGone    = errors.New("the disk is gone")
	ErrIO      = errors.New("input/output error")
	ErrBounds  = errors.New("beyond the end of the disk, or not in whole sectors")
)

// DiskConfig describes a Disk.
type DiskConfig struct {
	// SizeBytes is a multiple of SectorBytes.
	SizeBytes int64
	// SectorBytes is the unit of every operation, and what a power cut does not
	// tear: 512, which 0 means too, or 4096.
	SectorBytes int
	// Seed determines every choice. See the package comment.
	Seed uint64
	// WriteThrough makes every write durable when it is answered.
	WriteThrough bool
	// LossyFlush makes a later flush answer for nothing that a failed flush
	// should have made durable, as kernels do with a page cache.
	LossyFlush bool
	// Yields bounds how often a write or flush lets other goroutines run before it
	// is answered.
	Yields int
}

// Write is a range to write.
type Write struct {
	P    []byte
	Off  int64
	Sync bool // durable when answered
}

// DiskStats counts what came to a disk since it was made: operations that were refused or failed
// too, and the bytes of those that were not refused.
type DiskStats struct {
	Reads, Writes, SyncWrites, Flushes, Discards uint64 // a batch counts as its writes
	ReadBytes, WrittenBytes, DiscardedBytes      uint64
	LostWrites, TornWrites                       uint64 // by the power cut that this disk comes from
}

const pageBytes = 4096

// page is the content of a block. It never changes, so disks and writes share it; nil is zeros.
type page [pageBytes]byte

// part is the part of a write in one page.
type part struct {
	data    *page
	sectors uint8 // those of data that count: a bit for each
}

// pending is a write or discard that is not durable.
type pending struct {
	first    int    // page of parts[0]
	parts    []part // of pages that follow each other
	sync     bool
	answered bool // a flush that begins now covers it
	forsaken bool // no flush covers it any more
}

// state is whether a disk answers.
type state uint8

const (
	running state = iota
	stopped
	gone
)

// Disk is a simulated disk. Its methods may be called by any number of goroutines at once.
type Disk struct {
	cfg DiskConfig

	mu     sync.Mutex
	size   int64
	now    []*page    // what reads see
	stored []*page    // what is durable
	cache  []*pending // in the order in which they came
	state  state
	stats  DiskStats

	stopIn    int // changing operations that are answered before the machine stops; negative for all
	stopOneIn int // such operations stop the machine with this chance; 0 for never
	faults    Faults
	badReads  []span
	badWrites []span

	stops, failures, outcomes, discards, yields *rand.Rand // the streams of choices
}

// NewDisk makes a disk of zeros. It panics on a size or sector that DiskConfig does not allow.
func NewDisk(cfg DiskConfig) *Disk {
	if cfg.SectorBytes == 0 {
		cfg.SectorBytes = 512
	}
	if cfg.SectorBytes != 512 && cfg.SectorBytes != pageBytes || cfg.SizeBytes < 0 || cfg.SizeBytes%int64(cfg.SectorBytes) != 0 {
		panic(fmt.Sprintf("sim: a disk of %d bytes in sectors of %d", cfg.SizeBytes, cfg.SectorBytes))
	}
	pages := (cfg.SizeBytes + pageBytes - 1) / pageBytes
	d := &Disk{cfg: cfg, size: cfg.SizeBytes, stopIn: -1, now: make([]*page, pages), stored: make([]*page, pages)}
	for i, stream := range []**rand.Rand{&d.stops, &d.failures, &d.outcomes, &d.discards, &d.yields} {
		*stream = rand.New(rand.NewPCG(cfg.Seed, uint64(i)))
	}
	return d
}

// SizeBytes is the size of the disk.
func (d *Disk) SizeBytes() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size
}

// Stats is a snapshot.
func (d *Disk) Stats() DiskStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Read fills p from off. When it fails, any part of p may have been filled.
func (d *Disk) Read(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Reads++
	if err := d.ready("read", off, len(p)); err != nil {
		return err
	}
	d.stats.ReadBytes += uint64(len(p))
	d.decayLocked(off, len(p))
	d.peekLocked(p, off)
	if at, bad := d.badIn(d.badReads, off, len(p)); bad {
		return failed("read", at, ErrIO)
	}
	if chance(d.failures, d.faults.ReadErrors) {
		return failed("read", off, ErrIO)
	}
	return nil
}

// Write writes a batch in one operation, in no order. When it fails, each
// write of the batch may have been done, or part of it.
func (d *Disk) Write(batch ...Write) error {
	if len(batch) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Writes += uint64(len(batch))
	for i := range batch {
		if err := d.ready("write", batch[i].Off, len(batch[i].P)); err != nil {
			return err
		}
	}
	stopping := d.stepLocked()
	came := make([]*pending, len(batch))
	var err error
	for i := range batch {
		w := &batch[i]
		d.stats.WrittenBytes += uint64(len(w.P))
		if w.Sync {
			d.stats.SyncWrites++
		}
		came[i] = d.newPending(w.P, w.Off)
		came[i].sync = w.Sync || d.cfg.WriteThrough
		at, bad := d.badIn(d.badWrites, w.Off, len(w.P))
		if !bad {
			at, bad = w.Off, !stopping && chance(d.failures, d.faults.WriteErrors)
		}
		if bad {
			d.tear(d.failures, came[i])
			came[i].sync = false
			err = failed("write", at, ErrIO)
		} else {
			d.remapLocked(w.Off, len(w.P))
		}
		d.arriveLocked(came[i])
	}
	if !stopping {
		d.yieldLocked()
	}
	if d.state != running {
		return d.refusal("write", int64(came[0].first)*pageBytes)
	}
	for _, w := range came {
		w.answered = true
	}
	d.settleLocked(func(w *pending) bool { return w.sync && slices.Contains(came, w) })
	return err
}

// Flush makes the writes and discards durable that were answered when it began, and no other.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Flushes++
	if err := d.ready("flush", 0, 0); err != nil {
		return err
	}
	stopping := d.stepLocked()
	covered := map[*pending]bool{}
	for _, w := range d.cache {
		if w.answered && !w.forsaken {
			covered[w] = true
		}
	}
	if !stopping {
		d.yieldLocked()
	}
	if d.state != running {
		return d.refusal("flush", 0)
	}
	if chance(d.failures, d.faults.FlushErrors) {
		d.failFlushLocked(covered)
		return failed("flush", 0, ErrIO)
	}
	d.settleLocked(func(w *pending) bool { return covered[w] })
	return nil
}

// failFlushLocked makes some of what a flush covers durable.
func (d *Disk) failFlushLocked(covered map[*pending]bool) {
	d.settleLocked(func(w *pending) bool { return covered[w] && d.failures.IntN(2) == 0 })
	for _, w := range d.cache {
		w.forsaken = w.forsaken || covered[w] && d.cfg.LossyFlush
	}
}

// Discard says that n bytes from off hold nothing of worth: they read as anything until written again.
func (d *Disk) Discard(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Discards++
	if err := d.ready("discard", off, int(n)); err != nil {
		return err
	}
	d.stats.DiscardedBytes += uint64(n)
	stopping := d.stepLocked()
	if !stopping && chance(d.failures, d.faults.DiscardErrors) {
		return failed("discard", off, ErrIO)
	}
	w := d.newPending(d.remains(off, int(n)), off)
	d.arriveLocked(w)
	if !stopping {
		d.yieldLocked()
	}
	if d.state != running {
		return d.refusal("discard", off)
	}
	w.answered = true
	d.settleLocked(func(o *pending) bool { return o == w && d.cfg.WriteThrough })
	return nil
}

// remains is what n bytes from off hold after a discard.
func (d *Disk) remains(off int64, n int) []byte {
	p := make([]byte, n)
	d.peekLocked(p, off)
	const old, zeros, random, elsewhere = 0, 1, 2, 3
	const each = 4
	all := d.discards.IntN(each + 1)
	var other int64 // a block of the disk, whose sectors may stand for those of a discarded block
	for at := 0; at < n; at += d.cfg.SectorBytes {
		if at == 0 || (off+int64(at))%pageBytes == 0 {
			other = d.discards.Int64N((d.size+pageBytes-1)/pageBytes) * pageBytes
		}
		sector := p[at : at+d.cfg.SectorBytes]
		kind := all
		if all == each {
			kind = d.discards.IntN(each)
		}
		switch kind {
		case old:
		case zeros:
			clear(sector)
		case random:
			fill(d.discards, sector)
		case elsewhere:
			d.peekLocked(sector, other+(off+int64(at))%pageBytes)
		}
	}
	return p
}

// ready refuses an operation on a disk that does not answer, and one outside of it.
func (d *Disk) ready(what string, off int64, n int) error {
	if d.state != running {
		return d.refusal(what, off)
	}
	sector := int64(d.cfg.SectorBytes)
	if off < 0 || n < 0 || off > d.size || int64(n) > d.size-off || off%sector != 0 || int64(n)%sector != 0 {
		return fmt.Errorf("%s of %d bytes at %d of %d: %w", what, n, off, d.size, ErrBounds)
	}
	return nil
}

func (d *Disk) refusal(what string, off int64) error {
	if d.state == gone {
		return failed(what, off, ErrGone)
	}
	return failed(what, off, ErrStopped)
}

func failed(what string, off int64, err error) error {
	return fmt.Errorf("%s at %d: %w", what, off, err)
}

// stepLocked counts an operation that changes the disk. True when the machine stops in its middle.
func (d *Disk) stepLocked() (stopping bool) {
	if d.stopIn == 0 || chance(d.stops, d.stopOneIn) {
		d.state = stopped
		return true
	}
	if d.stopIn > 0 {
		d.stopIn--
	}
	return false
}

// yieldLocked lets other operations run while one is under way.
func (d *Disk) yieldLocked() {
	if d.cfg.Yields == 0 {
		return
	}
	n := d.yields.IntN(d.cfg.Yields + 1)
	d.mu.Unlock()
	for range n {
		runtime.Gosched()
	}
	d.mu.Lock()
}

// newPending is p as a write to off, in pages of its own.
func (d *Disk) newPending(p []byte, off int64) *pending {
	w := &pending{first: int(off / pageBytes)}
	head := int(off % pageBytes)
	whole := make([]byte, (head+len(p)+pageBytes-1)/pageBytes*pageBytes)
	copy(whole[head:], p)
	w.parts = make([]part, len(whole)/pageBytes)
	for i := range w.parts {
		lo, hi := max(head-i*pageBytes, 0), min(head+len(p)-i*pageBytes, pageBytes)
		w.parts[i] = part{(*page)(whole[i*pageBytes:]), d.sectors(lo, hi)}
	}
	return w
}

// sectors is the bits of the sectors of a page between two bytes.
func (d *Disk) sectors(lo, hi int) uint8 {
	return uint8(1<<(hi/d.cfg.SectorBytes) - 1<<(lo/d.cfg.SectorBytes))
}

// arriveLocked takes a write into the cache: from now on it is read.
func (d *Disk) arriveLocked(w *pending) {
	d.cache = append(d.cache, w)
	d.apply(d.now, w)
}

// apply puts the sectors of a write into pages.
func (d *Disk) apply(pages []*page, w *pending) {
	all := d.sectors(0, pageBytes)
	for i, part := range w.parts {
		to := &pages[w.first+i]
		switch {
		case part.sectors == all:
			*to = part.data
		case part.sectors != 0:
			merged := new(page)
			if *to != nil {
				*merged = **to
			}
			for s, at := 0, 0; at < pageBytes; s, at = s+1, at+d.cfg.SectorBytes {
				if part.sectors>>s&1 != 0 {
					copy(merged[at:at+d.cfg.SectorBytes], part.data[at:])
				}
			}
			*to = merged
		}
	}
}

// settleLocked makes those of the cache durable that which chooses. What came earlier
// to the same sectors is superseded: it cannot come up again.
func (d *Disk) settleLocked(which func(*pending) bool) {
	kept := d.cache[:0]
	for _, w := range d.cache {
		if !which(w) {
			kept = append(kept, w)
			continue
		}
		d.apply(d.stored, w)
		for _, older := range kept {
			older.supersede(w)
		}
	}
	clear(d.cache[len(kept):])
	d.cache = kept
}

// supersede takes the sectors of a newer write out of an older one.
func (w *pending) supersede(newer *pending) {
	for i := range w.parts {
		if at := w.first + i - newer.first; at >= 0 && at < len(newer.parts) {
			w.parts[i].sectors &^= newer.parts[at].sectors
		}
	}
}

// chance is true once in n, on the average; 0 is never.
func chance(rng *rand.Rand, n int) bool { return n > 0 && rng.IntN(n) == 0 }

func fill(rng *rand.Rand, p []byte) {
	for at := 0; at < len(p); at += 8 { // a sector is a multiple of that
		binary.LittleEndian.PutUint64(p[at:], rng.Uint64())
	}
}

// peekLocked is what a read of p from off sees.
func (d *Disk) peekLocked(p []byte, off int64) {
	for len(p) > 0 {
		at := int(off % pageBytes)
		n := min(len(p), pageBytes-at)
		if from := d.now[off/pageBytes]; from != nil {
			copy(p[:n], from[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// Peek fills p from off as Read would, on a disk that has stopped too, without fault or count.
// It panics beyond the end.
func (d *Disk) Peek(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peekLocked(p, off)
}

// Image is all that can be read of the disk, as Peek sees it.
func (d *Disk) Image() []byte {
	p := make([]byte, d.SizeBytes())
	d.Peek(p, 0)
	return p
}

// Poke puts p at off, of which neither need be a whole sector: what reads see and all
// that is stored change at once, as if a device had done it by itself.
// It panics beyond the end.
func (d *Disk) Poke(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changeLocked(off, len(p), func(to []byte, at int) { copy(to, p[at:]) })
}

// changeLocked changes n bytes from off wherever they are: change gets each run of
// them in a page, and where in the n bytes it begins.
func (d *Disk) changeLocked(off int64, n int, change func(to []byte, at int)) {
	for at := 0; at < n; {
		index, lo := int((off+int64(at))/pageBytes), int((off+int64(at))%pageBytes)
		hi := min(lo+n-at, pageBytes)
		each := func(where **page) {
			fresh := new(page) // others share the old one
			if *where != nil {
				*fresh = **where
			}
			change(fresh[lo:hi], at)
			*where = fresh
		}
		each(&d.now[index])
		each(&d.stored[index])
		for _, w := range d.cache {
			if i := index - w.first; i >= 0 && i < len(w.parts) {
				each(&w.parts[i].data)
			}
		}
		at += hi - lo
	}
}

// Load makes p, which has the disk's size, its durable content. Blocks of zeros take no memory.
func (d *Disk) Load(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if int64(len(p)) != d.size {
		panic(fmt.Sprintf("sim: %d bytes loaded into a disk of %d", len(p), d.size))
	}
	d.cache = nil
	var zeros page
	for i := range d.now {
		d.now[i] = nil
		if from := p[i*pageBytes : min((i+1)*pageBytes, len(p))]; !bytes.Equal(from, zeros[:len(from)]) {
			d.now[i] = new(page)
			copy(d.now[i][:], from)
		}
	}
	copy(d.stored, d.now)
}
