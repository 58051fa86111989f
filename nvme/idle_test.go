package nvme

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/sim"
	"github.com/claudefs/claudefs/iopath"
)

// countWrites counts the writes of a device, and discards.
type countWrites struct {
	Device
	n atomic.Int64
}

func (d *countWrites) Write(ops []iopath.WriteOp) error {
	d.n.Add(1)
	return d.Device.Write(ops)
}

func (d *countWrites) Discard(off, n int64) error {
	d.n.Add(1)
	return d.Device.Discard(off, n)
}

// settled waits until the idle cleaner has come to rest and what it left is stored.
func settled(l *Log) {
	waitUntil(l, func() bool {
		if !l.idle.quiet || !l.idle.rested || l.idle.activity != l.idle.seen || l.space.cleaning || l.space.preparing || len(l.space.dead) > 0 || len(l.space.sealed) > 0 {
			return false
		}
		for i := range l.space.segs {
			if l.space.segs[i].dirty {
				return false
			}
		}
		return l.broken == nil
	})
}

// mustRest checks that a log which has come to rest stays there: over many looks at what
// there is to do, and checkpoints, nothing is written.
func mustRest(t *testing.T, l *Log, dev *countWrites) {
	t.Helper()
	settled(l)
	n, cleaned := dev.n.Load(), l.Stats().Cleaned
	l.mu.Lock()
	looks, checkpoints := l.idle.looks, l.stats.Checkpoints
	l.mu.Unlock()
	waitUntil(l, func() bool { return l.idle.looks >= looks+50 && l.stats.Checkpoints >= checkpoints+5 })
	if now := dev.n.Load(); now != n || l.Stats().Cleaned != cleaned {
		t.Errorf("%d writes and %d segments cleaned when it had come to rest", now-n, l.Stats().Cleaned-cleaned)
	}
}

// TestIdleCleaning fills half of a device, overwrites at random, deletes half of the records and
// puts no more: the log comes to rest with little more occupied than lives, for records
// of one size and of any, put one by one, each under a header of its own.
func TestIdleCleaning(t *testing.T) {
	for name, sizes := range map[string][]int{"4KiB": {1}, "60KiB": {15}, "1MiB": {256}, "any": {1, 2, 4, 8, 15, 32, 100, 256}} {
		t.Run(name, func(t *testing.T) {
			const segments, segmentBytes = 48, 16 << 20
			r := newRig(t)
			dev := &countWrites{Device: newZeroDevice(HeaderAreaBytes + segments*segmentBytes)}
			if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: segmentBytes}, false); err != nil {
				t.Fatal(err)
			}
			l := r.log(dev, LogOptions{IdleAfter: time.Hour, Checkpoint: time.Millisecond})
			buf, err := r.arena.Get(context.Background(), cfs.MaxShardSize)
			if err != nil {
				t.Fatal(err)
			}
			defer buf.Release()
			clear(buf.WithHeadroom())
			rng := rand.New(rand.NewPCG(1, 2))
			n, records, all := 0, []Key(nil), int64(segments/2*segmentBytes)
			put := func() int64 {
				n++
				k := Key{Stripe: cfs.StripeID{Session: 1, Counter: uint64(n)}}
				size := sizes[rng.IntN(len(sizes))] * cfs.BlockSize
				if err := l.Put(context.Background(), record(k, size), checksums(k, buf.Bytes()[:size]), buf); err != nil {
					t.Fatal(err)
				}
				records = append(records, k)
				return int64(size + cfs.BlockSize)
			}
			drop := func() {
				i := rng.IntN(len(records))
				l.Delete([]Key{records[i]})
				records[i] = records[len(records)-1]
				records = records[:len(records)-1]
			}
			for sum := int64(0); sum < all/2; {
				sum += put()
			}
			for sum := int64(0); sum < all/2; drop() {
				sum += put()
			}
			for range len(records) / 2 {
				drop()
			}
			l.idleEvery(time.Millisecond)
			settled(l)
			st := l.Stats()
			t.Logf("occupied %.2f times %d MiB, copied %d MiB", float64(st.OccupiedBytes)/float64(st.LiveBytes), st.LiveBytes>>20, st.CopiedBytes>>20)
			if most := int64(1.2*float64(st.LiveBytes)) + 2*segmentBytes; st.OccupiedBytes > most || st.LiveBytes == 0 {
				t.Errorf("%d bytes are occupied, at most %d: %+v", st.OccupiedBytes, most, st)
			}
			mustRest(t, l, dev)
			l.Close()
			l = r.log(dev, LogOptions{IdleAfter: time.Millisecond, Checkpoint: time.Millisecond})
			mustRest(t, l, dev) // a start may have something left to write
			if now := l.Stats(); now.LiveBytes != st.LiveBytes || now.Records != len(records) || now.CopiedBytes != 0 {
				t.Errorf("after a restart %+v, want %+v", now, st)
			}
		})
	}
}

// idleEvery changes how often a log looks whether it is idle, which it does not yet.
func (l *Log) idleEvery(after time.Duration) {
	waitUntil(l, func() bool { return l.idle.due != nil })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle.after = after
	l.idle.due.Reset(after)
}

// TestIdleRestsAnyway has segments in which a few records leave a large rest: cleaning them wins
// little or nothing, and comes to an end all the same.
func TestIdleRestsAnyway(t *testing.T) {
	r := newRig(t)
	for seed := range uint64(10) {
		disk := simDisk(sim.DiskConfig{SizeBytes: deviceBytes(40), Seed: seed}, KindBlock)
		dev := &countWrites{Device: disk}
		if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
			t.Fatal(err)
		}
		l := r.log(dev, LogOptions{IdleAfter: time.Millisecond, Checkpoint: time.Millisecond})
		rng := rand.New(rand.NewPCG(seed, 4))
		sizes := map[Key]int{}
		for i := range 250 {
			k, size := testKey(i), 4096*(1+rng.IntN(1+rng.IntN(30)))
			r.mustPut(l, k, size)
			sizes[k] = size
			for k := range sizes {
				if rng.IntN(2) == 0 {
					l.Delete([]Key{k})
					delete(sizes, k)
				}
				break
			}
			if rng.IntN(60) == 0 {
				settled(l)
			}
		}
		mustRest(t, l, dev)
		for k, size := range sizes {
			r.mustCheck(l, k, size)
		}
		if st := l.Stats(); st.Records != len(sizes) || st.Cleaned == 0 {
			t.Errorf("stats %+v", st)
		}
		l.Close()
	}
}

// TestIdleGivesUp cleans nothing more when many cleanings in a row have won nothing, until puts
// have filled a segment, or as much was deleted.
func TestIdleGivesUp(t *testing.T) {
	t.Run("until puts", func(t *testing.T) { idleGivesUp(t, false) })
	t.Run("until deletes", func(t *testing.T) { idleGivesUp(t, true) })
}

func idleGivesUp(t *testing.T, deletes bool) {
	r := newRig(t)
	dev := simDisk(sim.DiskConfig{SizeBytes: deviceBytes(40), Seed: 3}, KindFile)
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{IdleAfter: time.Hour, Checkpoint: time.Millisecond})
	var keys []Key
	for i := range 100 {
		keys = append(keys, testKey(i))
		r.mustPut(l, keys[i], 36<<10)
	}
	kept := thin(l, keys)
	l.mu.Lock()
	for range idleTries + 1 {
		l.idle.cleaned(int64(1000))
	}
	l.idle.dead = 0
	l.mu.Unlock()
	if deletes { // less than a segment
		l.Delete(kept[:6])
		kept = kept[6:]
	}
	l.idleEvery(time.Millisecond)
	waitUntil(l, func() bool { return l.idle.quiet && l.idle.rested })
	if n := l.Stats().Cleaned; n != 0 {
		t.Errorf("%d segments were cleaned", n)
	}
	if deletes {
		l.Delete(kept[:2]) // with the others as much as a segment holds
		kept = kept[2:]
	} else {
		for i := range 6 { // a segment and more
			r.mustPut(l, testKey(10_000+i), 36<<10)
		}
	}
	settled(l)
	if n := l.Stats().Cleaned; n == 0 {
		t.Error("no segment was cleaned")
	}
	for _, k := range kept {
		r.mustCheck(l, k, 36<<10)
	}
}

// TestIdleGivesWay holds a write of the idle cleaner, puts or gets a record meanwhile, and counts what the
// cleaner writes from then on: nothing, until nothing is put or got again.
func TestIdleGivesWay(t *testing.T) {
	t.Run("to a put", func(t *testing.T) {
		idleGivesWay(t, func(r *rig, l *Log, _ []Key, resume func()) {
			before := l.Stats().Puts
			put := make(chan error, 1)
			go func() { put <- r.put(l, testKey(1000), 256<<10) }()
			waitUntil(l, func() bool { return l.pending[testKey(1000)] != nil || l.stats.Puts > before })
			resume()
			if err := <-put; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("to a get", func(t *testing.T) {
		idleGivesWay(t, func(r *rig, l *Log, kept []Key, resume func()) {
			r.mustCheck(l, kept[len(kept)-1], 256<<10)
			resume()
		})
	})
}

func idleGivesWay(t *testing.T, disturb func(r *rig, l *Log, kept []Key, resume func())) {
	r := newRig(t)
	mem := simDisk(sim.DiskConfig{SizeBytes: HeaderAreaBytes + 24*(8<<20), Seed: 1}, KindFile)
	dev := &faulty{Device: mem}
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: 8 << 20}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{IdleAfter: time.Hour})
	var keys []Key
	for i := range 160 {
		keys = append(keys, testKey(i))
		r.mustPut(l, keys[i], 256<<10)
	}
	kept := thin(l, keys)
	var moves atomic.Int64
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	var once sync.Once
	dev.set(func(op iopath.WriteOp) error {
		seg := (op.Off - HeaderAreaBytes) / (8 << 20)
		l.mu.Lock()
		move := op.Off >= l.segOffset(int(seg), l.firstData) && l.space.segs[seg].stream != putStream && l.space.segs[seg].state == segOpen
		l.mu.Unlock()
		if move {
			moves.Add(1)
			once.Do(func() { entered <- struct{}{}; <-gate })
		}
		return nil
	}, nil)
	l.idleEvery(time.Millisecond)
	<-entered
	l.mu.Lock()
	l.idle.after = time.Hour // no more looks: it is not to be idle again
	l.idle.due.Reset(l.idle.after)
	l.mu.Unlock()
	disturb(r, l, kept, func() { close(gate) })
	waitUntil(l, func() bool { return !l.space.cleaning })
	if n := moves.Load(); n != 1 {
		t.Errorf("the cleaner wrote %d batches, of which one was under way when it was disturbed", n)
	}
	dev.set(nil, nil)
	l.idleEvery(time.Millisecond)
	waitUntil(l, func() bool { return l.idle.quiet && l.idle.rested })
	if st := l.Stats(); st.Cleaned == 0 || st.OccupiedBytes > st.LiveBytes*6/5+2*st.SegmentBytes {
		t.Errorf("stats %+v", st)
	}
	for _, k := range kept {
		r.mustCheck(l, k, 256<<10)
	}
}

// TestIdleDespiteReads reads all the time: that delays the idle cleaner, and does not stop it.
func TestIdleDespiteReads(t *testing.T) {
	r := newRig(t)
	dev := simDisk(sim.DiskConfig{SizeBytes: deviceBytes(40), Seed: 3}, KindFile)
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{IdleAfter: time.Hour})
	var keys []Key
	for i := range 100 {
		keys = append(keys, testKey(i))
		r.mustPut(l, keys[i], 36<<10)
	}
	kept := thin(l, keys)
	l.idleEvery(5 * time.Millisecond)
	for deadline := time.Now().Add(time.Minute); l.Stats().Cleaned == 0; {
		if r.mustCheck(l, kept[0], 36<<10); time.Now().After(deadline) {
			t.Fatal("nothing was cleaned")
		}
	}
}

// TestIdleLooks has gets between the looks: the cleaner waits readPatience looks, works at one, and so on.
func TestIdleLooks(t *testing.T) {
	i, gets, worked := &idling{quiet: true}, uint64(0), 0
	for n := range 3 * (readPatience + 1) {
		gets++
		if i.unread(gets) {
			worked++
			if !i.goesOn(gets + 5) {
				t.Errorf("look %d: a get ends the work that was to be done despite gets", n)
			}
		}
	}
	if worked != 3 {
		t.Errorf("%d looks at which there was time, want 3", worked)
	}
	if !i.unread(gets) || !i.goesOn(gets) || i.goesOn(gets+1) {
		t.Error("without a get there is time, with one there is none")
	}
	if i.quiet = false; i.goesOn(gets) {
		t.Error("a put does not end it")
	}
}
