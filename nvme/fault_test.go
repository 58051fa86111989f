package nvme

import (
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

func diskError(dev Device, what string) error {
	return cfs.E("device "+dev.Info().Path+": "+what, cfs.IO, syscall.EIO)
}

// once lets one write of a device do something else.
func once(dev *faulty, do func() error) {
	var writes atomic.Int64
	dev.set(func(iopath.WriteOp) error {
		if writes.Add(1) > 1 {
			return nil
		}
		return do()
	}, nil)
}

// TestWriteFailure lets one write fail: that put fails and names the device,
// what was acknowledged stays, later records go to another segment.
func TestWriteFailure(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(8)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(1), 64<<10)
	waitReady(l)
	once(dev, func() error { return diskError(dev, "write") })
	err := r.put(l, testKey(2), 64<<10)
	if cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), dev.Info().Path) {
		t.Errorf("put: %v", err)
	}
	r.mustPut(l, testKey(3), 64<<10)
	if l.segmentOf(testKey(3)) == l.segmentOf(testKey(1)) {
		t.Error("the failed segment is written further")
	}
	r.mustPut(l, testKey(2), 64<<10) // a retry
	for restart := range 2 {
		for i := 1; i <= 3; i++ {
			r.mustCheck(l, testKey(i), 64<<10)
		}
		if st := l.Stats(); st.Failed || st.Records != 3 || restart == 0 && st.WriteErrors != 1 {
			t.Errorf("stats %+v", st)
		}
		l.Close()
		l = r.log(dev, LogOptions{})
	}
}

// TestWriteFailureFailsThoseBehind has several writes in flight when the first fails.
func TestWriteFailureFailsThoseBehind(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(8)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(0), 4096)
	waitReady(l)
	gate, entered := make(chan struct{}), make(chan struct{})
	once(dev, func() error {
		close(entered)
		<-gate
		return diskError(dev, "write")
	})
	errs := make(chan error, 3)
	go func() { errs <- r.put(l, testKey(1), 36<<10) }()
	<-entered
	for i := 2; i < 4; i++ {
		go func() { errs <- r.put(l, testKey(i), 36<<10) }()
	}
	waitUntil(l, func() bool {
		flow := l.flow()
		return len(flow) == 3 && flow[1].state == batchWritten && flow[2].state == batchWritten
	})
	close(gate)
	for range 3 {
		if err := <-errs; cfs.KindOf(err) != cfs.IO {
			t.Errorf("put: %v", err)
		}
	}
	if st := l.Stats(); st.Records != 1 || st.WriteErrors != 1 {
		t.Errorf("stats %+v", st)
	}
	r.mustPut(l, testKey(1), 36<<10)
}

// TestFlushFailure lets a flush fail: what it covered is not acknowledged, and
// no later flush vouches for it.
func TestFlushFailure(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(8)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(1), 8192)
	waitReady(l)
	var flushes atomic.Int64
	dev.set(nil, func() error {
		if flushes.Add(1) > 1 {
			return nil
		}
		return diskError(dev, "flush")
	})
	if err := r.put(l, testKey(2), 8192); cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), dev.Info().Path) {
		t.Errorf("put: %v", err)
	}
	for range 2 {
		if _, ok := l.Has(testKey(2)); ok {
			t.Error("a record whose flush failed is there")
		}
		if err := r.put(l, testKey(3), 8192); err != nil {
			t.Error(err)
		}
		r.mustCheck(l, testKey(1), 8192)
		r.mustCheck(l, testKey(3), 8192)
		l.Close() // which writes the footer of the segment that failed
		l = r.log(dev, LogOptions{})
	}
}

// TestFailedPutIsNotBelieved lets the header of a failed put reach the device
// and its payload not. Whether the segment got its footer before the crash or not,
// no start may find the record: a put of the same key would be taken for a repetition.
func TestFailedPutIsNotBelieved(t *testing.T) {
	r := newRig(t)
	for _, footed := range []bool{true, false} {
		mem := newSimDevice(make([]byte, deviceBytes(8)))
		if err := Format(mem, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
			t.Fatal(err)
		}
		dev := &faulty{Device: mem}
		l := r.log(dev, LogOptions{})
		r.mustPut(l, testKey(1), 8192)
		waitReady(l)
		seg := int(l.segmentOf(testKey(1)))
		var failing atomic.Int64
		gate := make(chan struct{})
		dev.set(func(op iopath.WriteOp) error {
			if failing.CompareAndSwap(0, op.Off) { // the put's write
				mem.disk.Poke(op.P[:cfs.BlockSize], op.Off)
				return diskError(mem, "write")
			}
			if op.Off == l.segOffset(seg, l.segBlocks-1) && !footed {
				<-gate // until after the crash
			}
			return nil
		}, nil)
		if err := r.put(l, testKey(2), 64<<10); cfs.KindOf(err) != cfs.IO {
			t.Fatalf("put: %v", err)
		}
		if footed {
			waitUntil(l, func() bool { return l.space.segs[seg].footed })
		}
		r.mustPut(l, testKey(3), 8192)
		r.mustPut(l, testKey(4), 8192)
		crashed := newSimDevice(mem.content())
		close(gate)
		l.Close()
		l = r.log(crashed, LogOptions{})
		if _, ok := l.Has(testKey(2)); ok {
			t.Errorf("footed %v: the failed record is there", footed)
		}
		for i, size := range []int{1: 8192, 3: 8192, 4: 8192} {
			if size > 0 {
				r.mustCheck(l, testKey(i), size)
			}
		}
		r.mustPut(l, testKey(2), 64<<10)
		r.mustCheck(l, testKey(2), 64<<10)
		l.Close()
	}
}

// TestUpkeepFailures lets each write of the maintainer fail once, over and over: while those between
// succeed the device is not given up, though nothing is put. That many in a row are too many.
func TestUpkeepFailures(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(32)}
	l := r.log(dev, LogOptions{Checkpoint: time.Hour})
	for i := range 4 * maxFailures {
		r.mustPut(l, testKey(i), 8192)
	}
	waitReady(l)
	checkpoint := func(fails bool) {
		var err error
		if fails {
			err = diskError(dev, "write")
		}
		dev.set(func(iopath.WriteOp) error { return err }, nil)
		before := l.Stats()
		l.Delete([]Key{l.List(nil, 1)[0].Key})
		l.mu.Lock()
		l.checkpoint = true
		l.changed.Broadcast()
		l.mu.Unlock()
		waitUntil(l, func() bool {
			return l.stats.Checkpoints > before.Checkpoints && !l.space.preparing && (!fails || l.stats.WriteErrors > before.WriteErrors)
		})
	}
	for range maxFailures + 2 {
		checkpoint(true)
		checkpoint(false)
	}
	if st := l.Stats(); st.Failed || st.WriteErrors != maxFailures+2 {
		t.Fatalf("stats %+v", st)
	}
	for range maxFailures {
		checkpoint(true)
	}
	if !l.Stats().Failed {
		t.Error("the device was not given up")
	}
	dev.set(nil, nil)
}

// TestDeviceGivenUp lets everything fail: after a few attempts the log says so
// at once, and what it holds can still be read.
func TestDeviceGivenUp(t *testing.T) {
	r := newRig(t)
	dev := &faulty{Device: r.device(32)}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(1), 8192)
	var attempts atomic.Int64
	dev.set(func(iopath.WriteOp) error { attempts.Add(1); return diskError(dev, "write") }, nil)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := r.put(l, testKey(10+i), 8192); cfs.KindOf(err) != cfs.IO {
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
	for !l.Stats().Failed {
		if err := r.put(l, testKey(50), 8192); cfs.KindOf(err) != cfs.IO {
			t.Fatalf("put: %v", err)
		}
	}
	n := attempts.Load()
	if err := r.put(l, testKey(51), 8192); cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), dev.Info().Path) {
		t.Errorf("put on a device that was given up: %v", err)
	}
	if attempts.Load() != n {
		t.Error("a device that was given up is written to")
	}
	r.mustCheck(l, testKey(1), 8192)
	if rest := l.Stats().FreeSegments; rest < 20 {
		t.Errorf("only %d segments are left", rest)
	}
	dev.set(nil, nil)
}
