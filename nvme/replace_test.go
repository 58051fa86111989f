package nvme

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

// replacement is other bytes for a key.
func replacement(k Key, sizeBytes int) []byte {
	p := payload(k, sizeBytes)
	p[0] = ^p[0]
	return p
}

func (r *rig) replaceRecord(l *Log, rec Record, p []byte) error {
	b, err := r.arena.Get(context.Background(), len(p))
	if err != nil {
		return err
	}
	defer b.Release()
	copy(b.Bytes(), p)
	return l.Replace(context.Background(), rec, checksums(rec.Key, p), b)
}

func (r *rig) mustRead(l *Log, k Key, want []byte) {
	r.t.Helper()
	data, crcs, err := r.getBytes(l, k, 0, len(want))
	if err != nil || string(data) != string(want) || string(crcs) != string(checksums(k, want)) {
		r.t.Errorf("%s: other bytes, or %v", k, err)
	}
}

// TestReplace replaces records by ones of another length, group and epoch: small ones, which share a
// write, and large ones. The old one is read until the new one is durable; a start finds the new one.
func TestReplace(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(16)}
	l := r.log(dev, LogOptions{})
	for i, size := range []int{8192, 72 << 10} {
		k := testKey(i)
		r.mustPut(l, k, size)
		waitReady(l)
		rec := record(k, size+4096)
		rec.PG, rec.Epoch = 99, 8
		p := replacement(k, size+4096)
		gate, entered := make(chan struct{}), make(chan struct{})
		dev.set(nil, func() error { entered <- struct{}{}; <-gate; return nil })
		done := make(chan error, 1)
		go func() { done <- r.replaceRecord(l, rec, p) }()
		<-entered
		r.mustCheck(l, k, size)
		if got, _ := l.Has(k); got != record(k, size) {
			t.Errorf("before it is durable: %+v", got)
		}
		dev.set(nil, nil)
		close(gate)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got, _ := l.Has(k); got != rec {
			t.Errorf("got %+v", got)
		}
		r.mustRead(l, k, p)
		if err := r.put(l, k, size); cfs.KindOf(err) != cfs.Exists {
			t.Errorf("put of what was replaced: %v", err)
		}
	}
	fresh := testKey(7) // nothing is there
	if err := r.replaceBytes(l, fresh, payload(fresh, 8192)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if st := l.Stats(); st.Records != 3 || st.LiveBytes != 12288+76<<10+8192 {
			t.Errorf("stats %+v", st)
		}
		r.mustRead(l, testKey(0), replacement(testKey(0), 12288))
		r.mustRead(l, testKey(1), replacement(testKey(1), 76<<10))
		r.mustCheck(l, fresh, 8192)
		crashed := r.open(r.copyFile(dev.Info().Path)) // before a checkpoint
		report := mustCheckDevice(t, crashed, false).report
		if report.Unexplained != 0 || report.Live != 3 || report.StartRecords != 3 {
			t.Errorf("check: %+v", report)
		}
		l = r.log(crashed, LogOptions{})
	}
}

// TestReplaceAgain lets a Replace fail though all of it reaches the device. The next one has a higher
// revision: wherever the failed one is found, and wherever either is moved, the next one counts.
func TestReplaceAgain(t *testing.T) {
	r := newRig(t)
	mem := newSimDevice(make([]byte, deviceBytes(8)))
	if err := Format(mem, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	dev := &faulty{Device: mem}
	l := r.log(dev, LogOptions{})
	k := testKey(1)
	r.mustPut(l, k, 8192)
	waitReady(l)
	var failed atomic.Bool
	dev.set(func(op iopath.WriteOp) error {
		if failed.CompareAndSwap(false, true) {
			mem.disk.Poke(op.P, op.Off)
			return diskError(dev, "write")
		}
		return nil
	}, nil)
	if err := r.replaceBytes(l, k, replacement(k, 4096)); cfs.KindOf(err) != cfs.IO {
		t.Fatalf("replace: %v", err)
	}
	r.mustCheck(l, k, 8192)
	p := replacement(k, 8192)
	if err := r.replaceBytes(l, k, p); err != nil {
		t.Fatal(err)
	}
	if e, _ := l.index.get(k); e.revision != 2 {
		t.Errorf("revision %d", e.revision)
	}
	again := r.log(newSimDevice(mem.content()), LogOptions{})
	r.mustRead(again, k, p)
	if e, _ := again.index.get(k); e.revision != 2 {
		t.Errorf("revision %d after a restart", e.revision)
	}
	again.mu.Lock()
	for {
		if _, err := again.index.revise(k); err != nil {
			break
		}
	}
	again.mu.Unlock()
	if err := r.replaceBytes(again, k, p); cfs.KindOf(err) != cfs.Overloaded {
		t.Errorf("replaced too often: %v", err)
	}
}

// TestDeleteOfPut deletes records whose put is under way: the delete wins, also after a checkpoint
// and a crash, and so it does over a Replace. What has no place yet is not written.
func TestDeleteOfPut(t *testing.T) {
	r := newRig(t)
	mem := newSimDevice(make([]byte, deviceBytes(8)))
	if err := Format(mem, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	dev := &faulty{Device: mem}
	l := r.log(dev, LogOptions{Checkpoint: time.Hour})
	keys := []Key{testKey(0), testKey(1), testKey(2), testKey(3)}
	r.mustPut(l, keys[3], 8192)
	waitReady(l)
	gate, entered := make(chan struct{}), make(chan struct{}, 10)
	dev.set(nil, func() error { entered <- struct{}{}; <-gate; return nil })
	errs := make(chan error, 4)
	start := func(i int, put func() error) {
		go func() { errs <- put() }()
		waitUntil(l, func() bool { return l.pending[keys[i]] != nil })
	}
	start(0, func() error { return r.put(l, keys[0], 8192) })
	<-entered
	start(1, func() error { return r.put(l, keys[1], 8192) }) // waits for the shared write
	waitUntil(l, func() bool { return len(l.small) == 1 })
	start(2, func() error { return r.put(l, keys[2], 72<<10) }) // is written and waits for the flush
	start(3, func() error { return r.replaceBytes(l, keys[3], replacement(keys[3], 72<<10)) })
	waitUntil(l, func() bool { return len(l.unflushed) == 2 && l.writing == 0 })
	if n := l.Delete(keys); n != 4 {
		t.Errorf("%d records are deleted", n)
	}
	if n := l.Delete(keys); n != 0 {
		t.Errorf("%d records are deleted again", n)
	}
	l.SetFeedPosition(5)
	l.mu.Lock()
	l.checkpoint = true
	l.changed.Broadcast()
	l.mu.Unlock()
	waitUntil(l, func() bool { return l.stats.Checkpoints == 1 })
	if got := l.FeedPosition(); got != 0 {
		t.Errorf("a checkpoint that does not know of the puts has stored position %d", got)
	}
	dev.set(nil, nil)
	close(gate)
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	waitUntil(l, func() bool { return l.state.feedPosition == 5 })
	if st := l.Stats(); st.Records != 0 || st.LiveBytes != 0 || l.doomed != 0 || st.Deletes != 4 || st.WrittenBytes != 2*12288+2*(76<<10) {
		t.Errorf("stats %+v", st)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	again := r.log(newSimDevice(mem.disk.OnlyFlushed().Image()), LogOptions{})
	if got := again.List(nil, 10); len(got) != 0 {
		t.Errorf("after a crash: %+v", got)
	}
	r.mustPut(again, keys[0], 4096) // the key is free
	r.mustCheck(again, keys[0], 4096)
}

// TestVerify compares whole records: whole, damaged in each part, unreadable, and gone.
func TestVerify(t *testing.T) {
	r := newRig(t)
	image, keys, sizes, ends := crashImage(t, r)
	dev := newSimDevice(image)
	l := r.log(dev, LogOptions{})
	for i, k := range keys {
		r.mustCheck(l, k, sizes[i]) // so that its checksums are in memory
	}
	first := ends[2] - int64(sizes[2])
	dev.disk.FlipBit(first+5000, 0)                      // a payload
	dev.disk.FlipBit(ends[4]-int64(sizes[4])-4000, 0)    // a header
	dev.disk.FailReads(ends[5]-4096, 512)                // a payload
	buf, err := r.arena.Get(context.Background(), 1<<20) // and its headroom
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Release()
	verify := func(k Key) (Record, error) { return l.Verify(context.Background(), k, buf) }
	for i, want := range []cfs.Kind{0, 0, cfs.Corrupt, 0, cfs.Corrupt, cfs.IO} {
		rec, err := verify(keys[i])
		if want == 0 && (err != nil || rec != record(keys[i], sizes[i]) || string(buf.Bytes()[:sizes[i]]) != string(payload(keys[i], sizes[i]))) {
			t.Errorf("record %d: %+v, %v, or other bytes", i, rec, err)
		}
		if want != 0 && cfs.KindOf(err) != want {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if st := l.Stats(); st.CRCFailures != 2 || st.ReadErrors != 1 {
		t.Errorf("stats %+v", st)
	}
	for range 2 * maxReadFailures {
		verify(keys[5])
	}
	if l.Stats().Failed {
		t.Error("the device was given up for what was looked for")
	}
	if _, err := verify(testKey(99)); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("no record: %v", err)
	}
	small, err := r.arena.Get(context.Background(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Release()
	if _, err := l.Verify(context.Background(), keys[1], small); cfs.KindOf(err) != cfs.Invalid {
		t.Errorf("a small buffer: %v", err)
	}
	for _, i := range []int{2, 4, 5} {
		if err := r.replaceBytes(l, keys[i], payload(keys[i], sizes[i])); err != nil {
			t.Error(err)
		}
		if _, err := verify(keys[i]); err != nil {
			t.Errorf("repaired record %d: %v", i, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Verify(ctx, keys[0], buf); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("canceled: %v", err)
	}
	l.Close()
	if _, err := verify(keys[0]); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("closed: %v", err)
	}
}

// TestPutAllocations holds what a put takes of the heap: the put, its checksums, its channel,
// its batch and the lists of both.
func TestPutAllocations(t *testing.T) {
	if invariants.Enabled || invariants.Race {
		t.Skip("checks allocate")
	}
	r := newRig(t)
	dev := newZeroDevice(HeaderAreaBytes + 32*DefaultSegmentBytes)
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: DefaultSegmentBytes}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{Checkpoint: time.Hour})
	buf, err := r.arena.Get(context.Background(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Release()
	clear(buf.WithHeadroom())
	crcs := checksums(testKey(0), buf.Bytes())
	n := 0
	got := testing.AllocsPerRun(500, func() {
		n++
		if err := l.Put(context.Background(), record(testKey(n), 64<<10), crcs, buf); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%v", got)
	if got > 7 {
		t.Errorf("%v allocations for a put", got)
	}
}
