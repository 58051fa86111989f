package nvme

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/sim"
	"github.com/claudefs/claudefs/iopath"
)

// scrubRig is a log on a simulated device with records of several sizes, in sealed
// segments with footers and in an open one.
func scrubRig(t *testing.T, r *rig) (*Log, *simDevice, map[Key]entry) {
	t.Helper()
	dev := newSimDevice(make([]byte, deviceBytes(8)))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{})
	for i := range 60 {
		r.mustPut(l, testKey(i), []int{4096, 8192, 36 << 10}[i%3])
	}
	for i := 0; i < 60; i += 10 {
		l.Delete([]Key{testKey(i)})
	}
	waitUntil(l, func() bool {
		return !slices.ContainsFunc(l.space.segs, func(s segment) bool { return s.state == segFull && !s.footed })
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	return l, dev, locations(l.index)
}

// mustScrub is what a scrub reports.
func mustScrub(t *testing.T, l *Log) (map[Key]Damage, ScrubTotals) {
	t.Helper()
	found := map[Key]Damage{}
	totals, err := l.Scrub(context.Background(), ScrubOptions{Report: func(d Damage) {
		found[d.Record.Key] = d
	}})
	if err != nil {
		t.Fatal(err)
	}
	return found, totals
}

func TestScrubFindsDamage(t *testing.T) {
	r := newRig(t)
	l, dev, entries := scrubRig(t, r)
	found, totals := mustScrub(t, l)
	if len(found) != 0 || totals.Records != 54 || totals.Damaged != 0 || totals.Bytes < l.Stats().LiveBytes || l.Stats().LastScrub.IsZero() {
		t.Fatalf("nothing is damaged: %+v, %v, %+v", totals, found, l.Stats())
	}
	keys := slices.SortedFunc(maps.Keys(entries), func(a, b Key) int { return int(a.Stripe.Counter) - int(b.Stripe.Counter) })
	want := map[Key]Damage{}
	for i, k := range keys {
		e := entries[k]
		d := Damage{Record: l.index.record(&e), Block: none, Offset: l.segOffset(int(e.seg), e.header)}
		last := l.segOffset(int(e.seg), e.payload+e.blocks-1)
		switch i % 6 {
		case 0:
			dev.disk.FlipBit(last+4095, 7)
			d.What, d.Block, d.Offset = DamagedPayload, int(e.blocks)-1, last
		case 1:
			dev.disk.FlipBit(d.Offset+9, 1) // of the salt: no header at all
			d.What = DamagedHeader
		case 2:
			dev.disk.FlipBit(d.Offset+1000, 1)
			d.What = DamagedHeader
		case 3:
			dev.disk.FailReads(last+512, 512)
			d.What, d.Block, d.Offset = Unreadable, int(e.blocks)-1, last
		case 4:
			dev.disk.FailReads(d.Offset, 512)
			d.What = Unreadable
		default:
			continue
		}
		want[k] = d
	}
	for step := range 3 {
		found, totals = mustScrub(t, l)
		if totals.Damaged != len(want) || len(found) != len(want) {
			t.Errorf("step %d: %+v, want %d", step, totals, len(want))
		}
		for k, d := range found {
			if (d.Err != nil) != (d.What != DamagedPayload) {
				t.Errorf("step %d: %+v", step, d)
			}
			if d.Err = nil; d != want[k] {
				t.Errorf("step %d: %+v, want %+v", step, d, want[k])
			}
		}
		switch step {
		case 0: // without footers the batch headers say what there is, and here these are damaged
			for seg := range l.space.segs {
				dev.disk.FlipBit(l.segOffset(seg, l.segBlocks-1)+50, 3)
			}
		case 1:
			for seg := range l.space.segs {
				dev.disk.FailReads(l.segOffset(seg, l.segBlocks-1), 512)
			}
		}
	}
	if st := l.Stats(); st.ScrubDamaged != uint64(3*len(want)) || st.Failed || st.ScrubbedBytes == 0 || st.CRCFailures == 0 || st.ReadErrors == 0 {
		t.Errorf("%+v", st)
	}
	l.Delete(slices.Collect(maps.Keys(want)))
	if found, _ := mustScrub(t, l); len(found) != 0 {
		t.Errorf("deleted records are reported: %v", found)
	}
}

// TestScrubUnderLoad scrubs while records come, go, are read and are moved: nothing is
// reported. Then some come that are damaged, and these are, wherever they are moved.
func TestScrubUnderLoad(t *testing.T) {
	r := newRig(t)
	dev := simDisk(sim.DiskConfig{SizeBytes: deviceBytes(6), Seed: 5, Yields: simYields}, KindBlock)
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{Checkpoint: time.Millisecond})
	stop := make(chan struct{})
	var load sync.WaitGroup
	for w := range 3 {
		load.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 6))
			var keys []Key
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				k := testKey(1000*1000*(w+1) + n)
				if err := r.put(l, k, 4096*(1+rng.IntN(12))); err != nil {
					t.Error(err)
					return
				}
				keys = append(keys, k)
				if len(keys) > 15 {
					i := rng.IntN(len(keys))
					rec, _ := l.Has(keys[i])
					r.mustCheck(l, keys[i], int(rec.Len))
					l.Delete([]Key{keys[i]})
					keys = slices.Delete(keys, i, i+1)
				}
			}
		})
	}
	for passes := 0; passes < 10 || l.Stats().Cleaned < 20; passes++ {
		if found, _ := mustScrub(t, l); len(found) != 0 {
			t.Errorf("pass %d: %v", passes, found)
			break
		}
		if t.Failed() {
			break
		}
	}
	bad := map[Key]bool{}
	for i := range 10 { // the log carries checksums and does not compare them
		k := testKey(i)
		b, err := r.arena.Get(context.Background(), 8192)
		if err != nil {
			t.Fatal(err)
		}
		crcs := checksums(k, payload(k, 8192))
		copy(b.Bytes(), payload(k, 8192))
		b.Bytes()[4096] ^= 1
		if err := l.Put(context.Background(), record(k, 8192), crcs, b); err != nil {
			t.Fatal(err)
		}
		b.Release()
		bad[k] = true
	}
	missing := maps.Clone(bad) // those that are moved to where a scrub has been come with a later one
	for pass := 0; pass < 10 || len(missing) > 0; pass++ {
		found, _ := mustScrub(t, l)
		for k, d := range found {
			if !bad[k] || d.What != DamagedPayload || d.Block != 1 {
				t.Errorf("pass %d: %+v", pass, d)
			}
			delete(missing, k)
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	load.Wait()
}

// TestScrubEnds holds that one scrub runs at a time and ends with its context and its log, and
// that one which waits keeps no segment.
func TestScrubEnds(t *testing.T) {
	r := newRig(t)
	l, _, entries := scrubRig(t, r)
	start := func(ctx context.Context) chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := l.Scrub(ctx, ScrubOptions{BytesPerSecond: 1})
			ended <- err
		}()
		waitUntil(l, func() bool { return l.scrubEnd != nil })
		return ended
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := start(ctx)
	if _, err := l.Scrub(context.Background(), ScrubOptions{}); cfs.KindOf(err) != cfs.Busy {
		t.Errorf("a second scrub: %v", err)
	}
	l.Delete(slices.Collect(maps.Keys(entries)))
	waitUntil(l, func() bool {
		return !slices.ContainsFunc(l.space.segs, func(s segment) bool { return s.state == segFull || s.state == segDead })
	})
	cancel()
	if err := <-ended; cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("when its context ends: %v", err)
	}
	r.mustPut(l, testKey(1), 8192)
	ended = start(context.Background())
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; cfs.KindOf(err) != cfs.Closed {
		t.Errorf("when the log is closed: %v", err)
	}
	if _, err := l.Scrub(context.Background(), ScrubOptions{}); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("on a closed log: %v", err)
	}
	if !l.Stats().LastScrub.IsZero() {
		t.Error("an interrupted scrub counts as complete")
	}
}

func TestScrubPause(t *testing.T) {
	for _, c := range []struct {
		bytes, perSecond int64
		took, want       time.Duration
	}{
		{1 << 20, 0, 0, 0},
		{1 << 20, 1 << 20, 0, time.Second},
		{1 << 20, 32 << 20, 31250 * time.Microsecond, 0},
		{1 << 20, 1 << 20, 300 * time.Millisecond, 700 * time.Millisecond},
		{1 << 20, 1, 0, 1 << 20 * time.Second},
	} {
		if got := scrubPause(c.bytes, c.perSecond, c.took); got != c.want {
			t.Errorf("%d bytes at %d a second in %v: %v, want %v", c.bytes, c.perSecond, c.took, got, c.want)
		}
	}
}

// slowReads lets something happen after a batch was read.
type slowReads struct {
	Device
	after func()
}

func (d *slowReads) ReadMany(ops []iopath.ReadOp) error {
	err := d.Device.ReadMany(ops)
	if d.after != nil {
		d.after()
	}
	return err
}

// TestScrubLooksAgain deletes a damaged record between the reading and the report.
func TestScrubLooksAgain(t *testing.T) {
	r := newRig(t)
	dev := &slowReads{Device: r.device(4)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(1), 8192)
	r.mustPut(l, testKey(2), 8192)
	l.mu.Lock()
	e, _ := l.index.get(testKey(1))
	l.mu.Unlock()
	b, err := r.arena.Get(context.Background(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if err := dev.Write([]iopath.WriteOp{{P: b.Bytes(), Off: l.segOffset(int(e.seg), e.payload)}}); err != nil {
		t.Fatal(err)
	}
	if found, _ := mustScrub(t, l); len(found) != 1 {
		t.Errorf("while it is there: %v", found)
	}
	dev.after = func() { l.Delete([]Key{testKey(1)}) }
	if found, totals := mustScrub(t, l); len(found) != 0 || totals.Records != 2 || l.Stats().ScrubDamaged != 1 {
		t.Errorf("when it is deleted meanwhile: %v, %+v", found, totals)
	}
}
