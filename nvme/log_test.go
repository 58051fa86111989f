package nvme

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

func TestLogRoundTrip(t *testing.T) {
	r := newRig(t)
	for _, cache := range []int{0, 1} { // checksums from memory, and read again
		dev := r.device(32)
		l := r.log(dev, LogOptions{CRCCacheBytes: cache})
		sizes := []int{4096, 8192, 32 << 10, 36 << 10, 200 << 10}
		for i, size := range sizes {
			r.mustPut(l, testKey(i), size)
		}
		for i, size := range sizes {
			k := testKey(i)
			r.mustCheck(l, k, size)
			if rec, ok := l.Has(k); !ok || rec != record(k, size) {
				t.Errorf("Has(%s) = %+v, %v", k, rec, ok)
			}
			want := payload(k, size)
			for off := 0; off < size; off += 3 * 4096 {
				n := min(2*4096, size-off)
				data, crcs, err := r.getBytes(l, k, off, n)
				if err != nil || !bytes.Equal(data, want[off:off+n]) || !bytes.Equal(crcs, checksums(k, want)[off/1024:(off+n)/1024]) {
					t.Errorf("%s, %d bytes at %d: wrong bytes, or %v", k, n, off, err)
				}
			}
		}
		st := l.Stats()
		if st.Records != len(sizes) || st.LiveBytes != 280<<10 || st.Puts != 5 || st.CapacityBytes != 32*(testSegment-int64(l.firstData)*4096) {
			t.Errorf("stats %+v", st)
		}
	}
}

func TestLogRefusals(t *testing.T) {
	r := newRig(t)
	l := r.log(r.device(4), LogOptions{})
	ctx := context.Background()
	b, err := r.arena.Get(ctx, 16384)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	big, err := r.arena.Get(ctx, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer big.Release()
	k := testKey(1)
	crcs := make([]byte, 1024)
	put := func(n uint32, crcs []byte) error {
		return l.Put(ctx, Record{Key: k, PG: 1, Epoch: 1, Len: n}, crcs, b)
	}
	for what, c := range map[string]struct {
		err  error
		kind cfs.Kind
	}{
		"empty":              {put(0, nil), cfs.Invalid},
		"part of a block":    {put(4097, crcs[:4]), cfs.Invalid},
		"above the largest":  {put(1<<20+4096, crcs), cfs.Invalid},
		"few checksums":      {put(8192, crcs[:4]), cfs.Invalid},
		"many checksums":     {put(4096, crcs[:8]), cfs.Invalid},
		"short buffer":       {put(32768, crcs[:32]), cfs.Invalid},
		"more than segments": {l.Put(ctx, Record{Key: k, Len: 1 << 20}, crcs, big), cfs.TooLarge},
	} {
		if cfs.KindOf(c.err) != c.kind {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	if err := put(16384, crcs[:16]); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ off, n uint32 }{{0, 0}, {1, 4096}, {0, 100}, {4096, 16384}, {16384, 4096}, {1 << 31, 4096}, {0, 20480}} {
		if _, err := l.Get(ctx, k, c.off, c.n, b); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("get %d at %d: %v", c.n, c.off, err)
		}
	}
	if _, err := l.Get(ctx, testKey(2), 0, 4096, b); cfs.KindOf(err) != cfs.NotFound || !strings.Contains(err.Error(), testKey(2).String()) {
		t.Errorf("get of nothing: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := l.Get(canceled, k, 0, 4096, b); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("canceled get: %v", err)
	}
	l.Close()
	if err := put(4096, crcs[:4]); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("put after Close: %v", err)
	}
	if _, err := l.Get(ctx, k, 0, 4096, b); cfs.KindOf(err) != cfs.Closed {
		t.Errorf("get after Close: %v", err)
	}
}

func TestLogDuplicates(t *testing.T) {
	r := newRig(t)
	l := r.log(r.device(8), LogOptions{})
	k := testKey(1)
	var wg sync.WaitGroup
	for range 8 { // the same put at once: one writes, the others wait for it
		wg.Go(func() {
			if err := r.put(l, k, 8192); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if st := l.Stats(); st.Records != 1 || st.Puts != 1 {
		t.Errorf("stats %+v", st)
	}
	if err := r.put(l, k, 4096); cfs.KindOf(err) != cfs.Exists {
		t.Errorf("another length: %v", err)
	}
	b, err := r.arena.Get(context.Background(), 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	rec := record(k, 8192)
	rec.Epoch++
	if err := l.Put(context.Background(), rec, make([]byte, 8), b); cfs.KindOf(err) != cfs.Exists {
		t.Errorf("another epoch: %v", err)
	}
	r.mustCheck(l, k, 8192)
}

func TestLogList(t *testing.T) {
	r := newRig(t)
	l := r.log(r.device(16), LogOptions{})
	if got := l.List(nil, 10); len(got) != 0 {
		t.Errorf("an empty log lists %v", got)
	}
	var want []Key
	for i := range 50 {
		r.mustPut(l, testKey(i), 4096)
		want = append(want, testKey(i))
	}
	slices.SortFunc(want, func(a, b Key) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	var got []Key
	var after *Key
	for {
		page := l.List(after, 7)
		if len(page) == 0 {
			break
		}
		for _, rec := range page {
			if rec != record(rec.Key, 4096) {
				t.Errorf("listed %+v", rec)
			}
			got = append(got, rec.Key)
		}
		after = &got[len(got)-1]
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	if n := l.Delete([]Key{want[0], want[1], want[0], testKey(1000)}); n != 2 {
		t.Errorf("deleted %d", n)
	}
	if page := l.List(nil, 1); len(page) != 1 || page[0].Key != want[2] {
		t.Errorf("after delete: %v", page)
	}
	if page := l.List(&want[0], 1); len(page) != 1 || page[0].Key != want[2] {
		t.Errorf("behind a deleted key: %v", page)
	}
}

// TestLogNoSpace fills a device, empties it and fills it again.
func TestLogNoSpace(t *testing.T) {
	r := newRig(t)
	dev := r.device(4)
	l := r.log(dev, LogOptions{})
	next := 0
	fill := func() []Key {
		var keys []Key
		for {
			next++
			err := r.put(l, testKey(next), 60<<10)
			if cfs.KindOf(err) == cfs.NoSpace {
				if !strings.Contains(err.Error(), dev.Info().Path) {
					t.Errorf("the error does not name the device: %v", err)
				}
				return keys
			}
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, testKey(next))
		}
	}
	keys := fill()
	if st := l.Stats(); len(keys) < 12 || st.FreeSegments < cleanerFloor {
		t.Errorf("%d records of 15 blocks in 4 segments of 59 and the reserve; stats %+v", len(keys), st)
	}
	for _, k := range keys {
		r.mustCheck(l, k, 60<<10)
	}
	for range 5 {
		if n := l.Delete(keys); n != len(keys) {
			t.Fatalf("deleted %d of %d", n, len(keys))
		}
		if again := fill(); len(again) < len(keys)-3 {
			t.Fatalf("only %d records fit after %d were deleted", len(again), len(keys))
		} else {
			keys = again
		}
		for _, k := range keys {
			r.mustCheck(l, k, 60<<10)
		}
	}
	// One record here and one there: the cleaner makes room of what is left between the others.
	for i := range keys {
		if i%2 == 0 {
			l.Delete(keys[i : i+1])
		}
	}
	if again := fill(); len(again) < len(keys)/3 {
		t.Errorf("only %d records fit after half of %d were deleted", len(again), len(keys))
	}
	for i := 1; i < len(keys); i += 2 {
		r.mustCheck(l, keys[i], 60<<10)
	}
	if st := l.Stats(); st.CopiedBytes == 0 || st.Cleaned == 0 {
		t.Errorf("nothing was cleaned: %+v", st)
	}
}

func (l *Log) segmentOf(k Key) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, _ := l.index.get(k)
	return e.seg
}

// TestLogSegmentHeldByReader checks that a segment is not used anew under a reader.
func TestLogSegmentHeldByReader(t *testing.T) {
	r := newRig(t)
	l := r.log(r.device(2), LogOptions{})
	n := 0
	for r.put(l, testKey(n), 60<<10) == nil {
		n++
	}
	seg := l.segmentOf(testKey(0))
	l.mu.Lock()
	l.space.segs[seg].readers++ // as a Get under way
	l.mu.Unlock()
	for i := range n {
		if k := testKey(i); l.segmentOf(k) == seg {
			l.Delete([]Key{k})
		}
	}
	put := make(chan error, 1)
	go func() { put <- r.put(l, testKey(n), 60<<10) }()
	waitUntil(l, func() bool { return l.space.streams[putStream].wanted })
	l.mu.Lock()
	if s := &l.space.segs[seg]; s.state != segFull || len(put) != 0 {
		t.Errorf("the segment that is read is in state %d", s.state)
	}
	l.space.segs[seg].readers--
	l.freeIfDeadLocked(int(seg))
	l.mu.Unlock()
	if err := <-put; err != nil {
		t.Error(err)
	}
}

// TestLogGroupCommit holds the first flush back and checks that what gathers
// meanwhile shares writes and one more flush.
func TestLogGroupCommit(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(16)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(0), 4096) // a segment is open, and the next prepared
	waitReady(l)
	before := l.Stats()
	gate := make(chan struct{})
	entered := make(chan struct{}, 100)
	dev.set(nil, func() error { entered <- struct{}{}; <-gate; return nil })
	var wg sync.WaitGroup
	put := func(i int) {
		wg.Go(func() {
			if err := r.put(l, testKey(i), 4096); err != nil {
				t.Error(err)
			}
		})
	}
	put(1)
	<-entered
	const n = 30
	for i := range n {
		put(2 + i)
	}
	waitUntil(l, func() bool { return l.active == n+1 && len(l.small) == n })
	close(gate)
	wg.Wait()
	st := l.Stats()
	if f := st.Flushes - before.Flushes; f != 2 {
		t.Errorf("%d flushes for %d puts, want 2", f, n+1)
	}
	if w := st.Writes - before.Writes; w > n {
		t.Errorf("%d writes for %d puts", w, n+1)
	}
	for i := range n + 2 {
		r.mustCheck(l, testKey(i), 4096)
	}
}

// waitUntil polls a condition of the log.
func waitUntil(l *Log, cond func() bool) {
	for {
		l.mu.Lock()
		ok := cond()
		l.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func waitReady(l *Log) {
	waitUntil(l, func() bool { return l.space.streams[putStream].ready != none })
}

// flow is the batches in flight of the segment that puts go to, or went to last.
func (l *Log) flow() []*batch {
	var last *segment
	for i := range l.space.segs {
		if s := &l.space.segs[i]; s.stream == putStream && len(s.flow) > 0 && (last == nil || s.seq > last.seq) {
			last = s
		}
	}
	if last == nil {
		return nil
	}
	return last.flow
}

// TestLogAckOrder checks that no record is acknowledged before those in front of it.
func TestLogAckOrder(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(16)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(0), 64<<10)
	waitReady(l)
	gate, entered := make(chan struct{}), make(chan struct{})
	var writes atomic.Int64
	dev.set(func(iopath.WriteOp) error {
		if writes.Add(1) == 1 { // the first write is slow
			close(entered)
			<-gate
		}
		return nil
	}, nil)
	done := make(chan int, 2)
	put := func(i int) {
		if err := r.put(l, testKey(i), 64<<10); err != nil {
			t.Error(err)
		}
		done <- i
	}
	go put(1)
	<-entered
	go put(2)
	waitUntil(l, func() bool { return len(l.flow()) == 2 && l.flow()[1].state == batchWritten })
	if _, ok := l.Has(testKey(2)); ok || len(done) != 0 {
		t.Error("a record was acknowledged before the one in front of it")
	}
	close(gate)
	<-done
	<-done
}

func TestLogCanceledPut(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(16)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(0), 64<<10)
	waitReady(l)
	gate, entered := make(chan struct{}), make(chan struct{}, 10)
	dev.set(nil, func() error { entered <- struct{}{}; <-gate; return nil })
	first := make(chan error)
	go func() { first <- r.put(l, testKey(1), 64<<10) }()
	<-entered
	k := testKey(2)
	b, err := r.arena.Get(context.Background(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	copy(b.Bytes(), payload(k, 4096))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := l.Put(ctx, record(k, 4096), checksums(k, b.Bytes()), b); cfs.KindOf(err) != cfs.Timeout {
		t.Errorf("put with a deadline: %v", err)
	}
	b.Release()
	close(gate)
	if err := <-first; err != nil {
		t.Error(err)
	}
	l.Close() // waits for the abandoned one
	l = r.log(dev, LogOptions{})
	r.mustCheck(l, k, 4096) // it became durable all the same
}
