package sim

import (
	"math/rand/v2"
	"slices"
)

// StopAfter lets n more writes, flushes and discards be answered; the machine
// stops in the middle of the one behind them: it and all later operations fail with
// ErrStopped. A negative n is never.
func (d *Disk) StopAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopIn = n
}

// StopOneIn lets the machine stop in the middle of one of n writes, flushes and
// discards, on the average; 0 is never.
func (d *Disk) StopOneIn(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopOneIn = n
}

// Stop stops the machine now, in the middle of what is under way.
func (d *Disk) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = max(d.state, stopped)
}

// Stopped reports that the disk answers nothing any more.
func (d *Disk) Stopped() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state != running
}

// AfterPowerCut stops the machine, if it has not, and returns the disk as it is
// when the power is back. Called again, it returns another of the disks that
// there may be. The faults of places stay, those of rates and stops end; d itself stays as it is.
func (d *Disk) AfterPowerCut() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.nextLocked()
	copy(next.now, d.stored)
	for _, i := range d.outcomes.Perm(len(d.cache)) {
		kept, whole := d.survivor(d.cache[i])
		switch {
		case kept == nil:
			next.stats.LostWrites++
			continue
		case !whole:
			next.stats.TornWrites++
		}
		next.apply(next.now, kept)
	}
	copy(next.stored, next.now)
	return next
}

// OnlyFlushed is AfterPowerCut when everything is lost that may be.
func (d *Disk) OnlyFlushed() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.nextLocked()
	copy(next.now, d.stored)
	copy(next.stored, d.stored)
	return next
}

// AfterKill stops the machine, if it has not, and returns the disk as the next process
// finds it when the power has stayed on: what was under way has ended.
func (d *Disk) AfterKill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.nextLocked()
	copy(next.now, d.now)
	copy(next.stored, d.stored)
	for _, w := range d.cache {
		next.cache = append(next.cache, &pending{first: w.first, parts: slices.Clone(w.parts), sync: w.sync, answered: true, forsaken: w.forsaken})
	}
	next.settleLocked(func(w *pending) bool { return w.sync || next.cfg.WriteThrough })
	return next
}

// nextLocked is a disk of zeros like this one, which stops. Its seed follows from this one's.
func (d *Disk) nextLocked() *Disk {
	d.state = max(d.state, stopped)
	cfg := d.cfg
	cfg.Seed = d.outcomes.Uint64()
	next := NewDisk(cfg)
	next.size = d.size
	next.badReads, next.badWrites = slices.Clone(d.badReads), slices.Clone(d.badWrites)
	if d.state == gone {
		next.state = gone
	}
	return next
}

// survivor is what a power cut leaves of a write, nil for nothing.
func (d *Disk) survivor(w *pending) (kept *pending, whole bool) {
	switch kept = (&pending{first: w.first, parts: slices.Clone(w.parts)}); d.outcomes.IntN(4) {
	case 0:
		return nil, false
	case 1:
		return kept, true
	case 2:
		d.cutOff(d.outcomes, kept)
	default:
		for i := range kept.parts {
			kept.parts[i].sectors &= uint8(d.outcomes.Uint32())
		}
	}
	return kept, false
}

// cutOff keeps a write up to some sector.
func (d *Disk) cutOff(rng *rand.Rand, w *pending) {
	each := pageBytes / d.cfg.SectorBytes
	end := rng.IntN(len(w.parts)*each + 1)
	for i := range w.parts {
		keep := min(max(end-i*each, 0), each)
		w.parts[i].sectors &= uint8(1<<keep - 1)
	}
}

// tear is what a write that fails has done: nothing, a part, or all.
func (d *Disk) tear(rng *rand.Rand, w *pending) {
	switch rng.IntN(4) {
	case 0:
		for i := range w.parts {
			w.parts[i].sectors = 0
		}
	case 1:
	default:
		d.cutOff(rng, w)
	}
}
