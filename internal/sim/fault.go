package sim

import "slices"

// Faults makes operations fail with ErrIO: one in so many, on the average; 0 is none.
// What a failed read has filled and a failed write has written is any part of it. A failed
// flush has made any of the writes durable. A failed discard has done nothing.
type Faults struct {
	ReadErrors, WriteErrors, FlushErrors, DiscardErrors int

	// BitFlips lets one in so many reads find a bit of what it reads changed, for good.
	BitFlips int
}

// span is a range of bytes.
type span struct{ from, to int64 }

// SetFaults replaces the rates of faults.
func (d *Disk) SetFaults(f Faults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = f
}

// FailReads makes the sectors of n bytes from off unreadable until they are written again.
func (d *Disk) FailReads(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.badReads = append(d.badReads, span{off, off + n})
}

// FailWrites makes the sectors of n bytes from off unwritable until Heal.
func (d *Disk) FailWrites(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.badWrites = append(d.badWrites, span{off, off + n})
}

// Heal ends all that FailReads, FailWrites and SetFaults have begun.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.badReads, d.badWrites, d.faults = nil, nil, Faults{}
}

// FlipBit changes a bit of the byte at off, wherever it is stored. No checksum of the disk's notices.
func (d *Disk) FlipBit(off int64, bit uint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flipLocked(off, bit)
}

func (d *Disk) flipLocked(off int64, bit uint) {
	d.changeLocked(off, 1, func(to []byte, _ int) { to[0] ^= 1 << (bit & 7) })
}

// Shrink makes the disk end at sizeBytes, a multiple of the sector's.
func (d *Disk) Shrink(sizeBytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = min(d.size, sizeBytes/int64(d.cfg.SectorBytes)*int64(d.cfg.SectorBytes))
}

// Vanish pulls the disk out: every operation fails with ErrGone from now on.
func (d *Disk) Vanish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = gone
}

// decayLocked lets a bit of what is read change.
func (d *Disk) decayLocked(off int64, n int) {
	if n > 0 && chance(d.failures, d.faults.BitFlips) {
		d.flipLocked(off+d.failures.Int64N(int64(n)), d.failures.UintN(8))
	}
}

// badIn is the first of n bytes from off that a list of bad places has.
func (d *Disk) badIn(bad []span, off int64, n int) (at int64, found bool) {
	for _, s := range bad {
		if lo := max(s.from, off); lo < min(s.to, off+int64(n)) && (!found || lo < at) {
			at, found = lo, true
		}
	}
	return at, found
}

// remapLocked makes sectors that were written readable again.
func (d *Disk) remapLocked(off int64, n int) {
	end := off + int64(n)
	for i := 0; i < len(d.badReads); i++ {
		s := d.badReads[i]
		if s.to <= off || s.from >= end {
			continue
		}
		d.badReads = slices.Delete(d.badReads, i, i+1)
		for _, rest := range []span{{s.from, min(s.to, off)}, {max(s.from, end), s.to}} {
			if rest.from < rest.to {
				d.badReads = slices.Insert(d.badReads, i, rest)
				i++
			}
		}
		i--
	}
}
