package nvme

import (
	"slices"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// lossyImage is a device with records in a segment that is being filled, abandoned, and where their
// batch headers are.
func lossyImage(t *testing.T, r *rig, records int) (image []byte, seg int, headers []int64) {
	dev := newSimDevice(make([]byte, deviceBytes(8)))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{Checkpoint: time.Hour})
	for i := range records {
		r.mustPut(l, testKey(i), 8192)
		e, _ := l.index.get(testKey(i))
		headers = append(headers, l.segOffset(int(e.seg), e.header))
		seg = int(e.seg)
	}
	waitReady(l)
	return dev.content(), seg, headers
}

// TestLostAtStart lets batch headers of the segment that was being filled be unreadable at one start only:
// what they hold is missing then, and nothing of the segment is overwritten, nor said to be dead. It is there
// again at the next start.
func TestLostAtStart(t *testing.T) {
	r := newRig(t)
	const records = 5
	image, seg, headers := lossyImage(t, r, records)
	for name, lost := range map[string][]int{"first": {0}, "in the middle": {2}, "last": {4}, "last two": {3, 4}, "all": {0, 1, 2, 3, 4}} {
		t.Run(name, func(t *testing.T) {
			disk := newSimDevice(image)
			for _, i := range lost {
				disk.disk.FailReads(headers[i], cfs.BlockSize)
			}
			dev := &faulty{Device: disk}
			l := r.log(dev, LogOptions{IdleAfter: time.Millisecond, Checkpoint: time.Millisecond})
			disk.disk.Heal()
			dev.set(func(op iopath.WriteOp) error {
				if op.Off >= l.segOffset(seg, 0) && op.Off < l.segOffset(seg+1, 0) {
					t.Errorf("the segment is written to, at block %d", (op.Off-l.segOffset(seg, 0))/cfs.BlockSize)
				}
				return nil
			}, nil)
			if n := l.Stats().Records; n != records-len(lost) {
				t.Errorf("%d records", n)
			}
			for i := range 4 {
				r.mustPut(l, testKey(100+i), 8192)
			}
			for i := range records {
				if !slices.Contains(lost, i) {
					r.mustCheck(l, testKey(i), 8192)
					l.Delete([]Key{testKey(i)}) // all of what is known
				}
			}
			l.SetFeedPosition(9)
			waitUntil(l, func() bool { return l.state.feedPosition == 9 && l.idle.quiet && l.idle.rested })
			if st := l.Stats(); st.OccupiedBytes < st.SegmentBytes {
				t.Errorf("stats %+v", st)
			}
			l.Close()
			l = r.log(disk, LogOptions{})
			for _, i := range lost {
				r.mustCheck(l, testKey(i), 8192)
			}
			for i := range 4 {
				r.mustCheck(l, testKey(100+i), 8192)
			}
			// Now it is filled again.
			r.mustPut(l, testKey(200), 8192)
			l.Close()
			if c := mustCheckDevice(t, disk, false); c.report.Found != 0 {
				t.Errorf("%+v", c.report.Problems)
			}
		})
	}
}

// TestLostSequence lets the headers of the newest segments be unreadable at one start: the lives that begin
// then have other sequence numbers.
func TestLostSequence(t *testing.T) {
	r := newRig(t)
	image, open, _ := lossyImage(t, r, 3)
	dev := newSimDevice(image)
	whole := mustCheckDevice(t, dev, false)
	newest := slices.IndexFunc(whole.headers, func(h segmentHeader) bool {
		return h.seq == slices.MaxFunc(whole.headers, func(a, b segmentHeader) int { return int(a.seq) - int(b.seq) }).seq
	})
	for _, seg := range []int{open, newest} {
		dev.disk.FailReads(whole.segOffset(seg, 0), segHeaderBlocks*cfs.BlockSize)
	}
	l := r.log(dev, LogOptions{})
	if st := l.Stats(); st.BadSegments != 2 || st.Records != 0 {
		t.Fatalf("stats %+v", st)
	}
	for i := range 20 {
		r.mustPut(l, testKey(100+i), 36<<10)
	}
	l.Close()
	dev.disk.Heal()
	got := mustCheckDevice(t, dev, false)
	seen := map[uint64]int{}
	for seg, h := range got.headers {
		if other, again := seen[h.seq]; again && h.seq != 0 {
			t.Errorf("segments %d and %d have sequence %d", other, seg, h.seq)
		}
		seen[h.seq] = seg
	}
	if got.report.Found != 0 || got.report.StartRecords != 23 {
		t.Errorf("%d records, %+v", got.report.StartRecords, got.report.Problems)
	}
}
