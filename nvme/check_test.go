package nvme

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/sim"
)

var checkSeeds = flag.Int("check.seeds", 60, "number of seeds of TestCheckOfCrashes")

// mustCheckDevice checks a device that nothing but a crash has touched.
func mustCheckDevice(t *testing.T, dev Device, quick bool) *checker {
	t.Helper()
	c, err := check(context.Background(), dev, CheckOptions{Quick: quick})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// locations is the entries of an index.
func locations(x *index) map[Key]entry {
	all := map[Key]entry{}
	x.each(nil, func(e entry) bool {
		all[e.key] = e
		return true
	})
	return all
}

// TestCheckOfCrashes checks the devices that the crash model leaves, closed well or not, with
// writes and flushes that failed in some of them: a check finds the records that
// the start finds, where it finds them, and nothing that a crash does not explain.
func TestCheckOfCrashes(t *testing.T) {
	r := newRig(t)
	var sum CheckReport
	for seed := uint64(1); seed <= uint64(*checkSeeds) && !t.Failed(); seed++ {
		checkCrashes(t, r, seed, &sum)
	}
	if sum.Torn == 0 || sum.Gaps == 0 || sum.Copies == 0 || sum.Omitted == 0 || sum.Live == 0 {
		t.Errorf("the devices lack what a check has to tell apart: %+v", sum)
	}
}

func checkCrashes(t *testing.T, r *rig, seed uint64, sum *CheckReport) {
	rng := rand.New(rand.NewPCG(seed, 3))
	dev := simDisk(sim.DiskConfig{
		SizeBytes: HeaderAreaBytes + modelSegments*MinSegmentBytes, SectorBytes: []int{512, 4096}[rng.IntN(2)],
		Seed: rng.Uint64(), Yields: simYields,
	}, Kind(rng.IntN(2)))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: MinSegmentBytes}, false); err != nil {
		t.Fatal(err)
	}
	m := newModel()
	for life := range 6 {
		c := mustCheckDevice(t, dev, rng.IntN(2) == 0)
		rep := &c.report
		for _, p := range rep.Problems {
			if !p.Crash {
				t.Errorf("seed %d, life %d: %+v", seed, life, p)
			}
		}
		l, err := OpenLog(dev, r.arena, LogOptions{Checkpoint: []time.Duration{0, time.Millisecond}[rng.IntN(2)]})
		if err != nil {
			t.Fatalf("seed %d, life %d: %v", seed, life, err)
		}
		l.mu.Lock()
		st, want := l.stats, locations(l.index)
		l.mu.Unlock()
		// The log has begun to move records, but where they came from is what the check says.
		if got := locations(c.index); !sameRecords(got, want) || st.CopiedBytes == 0 && !maps.Equal(got, want) {
			t.Errorf("seed %d, life %d: the check finds %d records, the start %d, or others", seed, life, len(got), len(want))
		}
		if rep.Live != len(want) || rep.StartRecords != len(want) || rep.StartError != "" || rep.Torn != int(st.TornRecords) || rep.FeedPosition != l.FeedPosition() {
			t.Errorf("seed %d, life %d: %d records, %d torn, feed position %d; report %+v", seed, life, len(want), st.TornRecords, l.FeedPosition(), rep)
		}
		if t.Failed() {
			l.Close()
			return
		}
		sum.Torn, sum.Gaps, sum.Copies = sum.Torn+rep.Torn, sum.Gaps+rep.Gaps, sum.Copies+rep.Copies
		sum.Omitted, sum.Live = sum.Omitted+rep.Omitted, sum.Live+rep.Live
		m.verify(r, l, func(string, ...any) {}) // which takes over what is there; failed writes may have lost what it knows
		m.acked = existing(l, m.acked)
		dev.disk.StopAfter(rng.IntN(150))
		if rng.IntN(3) == 0 {
			dev.disk.SetFaults(sim.Faults{WriteErrors: 60, FlushErrors: 60})
		}
		var wg sync.WaitGroup
		for range 1 + rng.IntN(6) {
			wrng := rand.New(rand.NewPCG(rng.Uint64(), 2))
			wg.Go(func() { m.work(t, r, l, dev, wrng) })
		}
		wg.Wait()
		dev.disk.Heal()
		if rng.IntN(3) == 0 {
			dev.disk.StopAfter(-1) // unless it has failed already
		}
		l.Close()
		if rng.IntN(4) == 0 {
			dev = dev.afterKill()
		} else {
			dev = dev.afterPowerCut()
		}
	}
}

// existing is those of acked that the log has.
func existing(l *Log, acked map[Key][]byte) map[Key][]byte {
	maps.DeleteFunc(acked, func(k Key, _ []byte) bool {
		_, ok := l.Has(k)
		return !ok
	})
	return acked
}

// sameRecords reports that two indexes have the same records, wherever they are.
func sameRecords(a, b map[Key]entry) bool {
	return maps.EqualFunc(a, b, func(x, y entry) bool { return x.group == y.group && x.blocks == y.blocks })
}

// checkImage is a device with sealed and open segments, footers, bitmaps with dead records
// and a state.
func checkImage(tb testing.TB, r *rig) []byte {
	tb.Helper()
	dev := newSimDevice(make([]byte, HeaderAreaBytes+MinSegments*MinSegmentBytes))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: MinSegmentBytes}, false); err != nil {
		tb.Fatal(err)
	}
	l := r.log(dev, LogOptions{})
	for i := range 18 {
		r.mustPut(l, testKey(i), 8192+i%3*4096)
		if i%3 == 2 {
			l.Delete([]Key{testKey(i - 1)})
		}
	}
	l.SetFeedPosition(77)
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
	return dev.content()
}

// sealedSegment is the first segment of an image with a footer, and openSegment one that is being filled.
func sealedSegment(t *testing.T, c *checker) int { return segmentIn(t, c, SegmentSealed) }

func segmentIn(t *testing.T, c *checker, state SegmentState) int {
	t.Helper()
	i := slices.IndexFunc(c.report.Segments, func(s SegmentReport) bool { return s.State == state && s.Live > 0 })
	if i < 0 {
		t.Fatalf("no segment is %s: %+v", state, c.report.Segments)
	}
	return i
}

// flip is a bit of a byte at off.
func flip(image []byte, off int64) { image[off] ^= 4 }

// reseal gives a header block a right checksum.
func reseal(image []byte, off int64) {
	blk := image[off : off+cfs.BlockSize]
	sealBlock(blk, off)
}

// TestCheckFinds damages one thing after the other.
func TestCheckFinds(t *testing.T) {
	r := newRig(t)
	image := checkImage(t, r)
	whole := mustCheckDevice(t, newSimDevice(image), false)
	rep := whole.report
	if !rep.Clean() || rep.Live != 12 || rep.Records != 18 || rep.FeedPosition != 77 || rep.StartRecords != 12 || rep.VerifiedBytes != rep.LiveBytes {
		t.Fatalf("an undamaged device: %+v", rep)
	}
	sealed, open := sealedSegment(t, whole), segmentIn(t, whole, SegmentOpen)
	blocks := int64(whole.segBlocks)
	at := func(seg int, block int64) int64 { return whole.segOffset(seg, uint32(block)) }
	var inSealed, inOpen entry // live records
	for _, e := range locations(whole.index) {
		if int(e.seg) == sealed {
			inSealed = e
		}
		if int(e.seg) == open {
			inOpen = e
		}
	}
	sealedHeader, sealedPayload := at(sealed, int64(inSealed.header)), at(sealed, int64(inSealed.payload))
	bitmapOf := func(seg int) int64 { // the newest slot
		h, _ := decodeSegmentCopy(image[at(seg, 0):], at(seg, 0))
		best, bestAt := uint64(0), int64(0)
		for slot := range int64(bitmapSlots) {
			off := at(seg, segHeaderBlocks+slot)
			if b, err := decodeBitmap(image[off:], &h, newBitmap(whole.segBlocks), off); err == nil && b.generation > best {
				best, bestAt = b.generation, off
			}
		}
		return bestAt
	}
	for _, c := range []struct {
		name   string
		damage func(p []byte)
		kind   ProblemKind
		off    int64
		crash  bool
		live   int // records fewer than in the whole device, by the batch headers
		start  int // and for a start
	}{
		{"superblock", func(p []byte) { flip(p, 40) }, ProblemSuperblock, 0, false, 0, 0},
		{"superblock copy", func(p []byte) { clear(p[HeaderAreaBytes-4096 : HeaderAreaBytes]) }, ProblemSuperblock, HeaderAreaBytes - 4096, false, 0, 0},
		{"superblocks differ", func(p []byte) { p[16] = 9; reseal(p, 0) }, ProblemSuperblock, HeaderAreaBytes - 4096, false, 0, 0},
		{"state", func(p []byte) { flip(p, stateOffset(1)+100) }, ProblemState, stateOffset(1), true, 0, 0},
		{"segment header", func(p []byte) { flip(p, at(sealed, 1)+300) }, ProblemHeader, at(sealed, 1), true, 0, 0},
		{"both segment headers", func(p []byte) { flip(p, at(open, 0)+300); flip(p, at(open, 1)+300) }, ProblemHeader, at(open, 0), false, -1, -1},
		{"sequence", func(p []byte) {
			for i := range int64(2) {
				copy(p[at(open, i)+32:][:8], p[at(sealed, 0)+32:])
				reseal(p, at(open, i))
			}
		}, ProblemSequence, -1, false, -1, -1},
		{"bitmap", func(p []byte) { flip(p, bitmapOf(sealed)+2000) }, ProblemBitmap, bitmapOf(sealed), true, 0, 0},
		{"bit without record", func(p []byte) {
			b := int64(inSealed.payload) + 1
			p[bitmapOf(sealed)+bitmapFixedBytes+b/8] |= 1 << (b % 8)
			reseal(p, bitmapOf(sealed))
		}, ProblemBit, sealedPayload + 4096, false, 0, 0},
		{"bit out of range", func(p []byte) { p[bitmapOf(sealed)+bitmapFixedBytes] |= 1; reseal(p, bitmapOf(sealed)) }, ProblemBit, bitmapOf(sealed), false, 0, 0},
		{"bitmap covers too much", func(p []byte) { p[bitmapOf(open)+32] = byte(blocks + 1); reseal(p, bitmapOf(open)) }, ProblemBitmap, bitmapOf(open), false, 0, 0},
		{"footer", func(p []byte) { flip(p, at(sealed, blocks-1)+3000) }, ProblemFooter, at(sealed, blocks-1), true, 0, 0},
		{"footer that is gone", func(p []byte) { clear(p[at(sealed, blocks-1):at(sealed, blocks)]) }, "", 0, false, 0, 0},
		{"footer line", func(p []byte) { flip(p, at(sealed, blocks-1)+footerFixedBytes+8); reseal(p, at(sealed, blocks-1)) }, ProblemLine, -1, false, 1, 0},
		{"batch header", func(p []byte) { flip(p, sealedHeader+2000) }, ProblemBatch, sealedHeader, false, -1, 0},
		{"batch header that is gone", func(p []byte) { clear(p[sealedHeader : sealedHeader+4096]) }, ProblemLine, -1, false, -1, 0},
		{"batch header without footer", func(p []byte) { flip(p, at(open, int64(inOpen.header))+70) }, ProblemBatch, at(open, int64(inOpen.header)), false, -1, -1},
		{"payload", func(p []byte) { flip(p, sealedPayload+5000) }, ProblemPayload, sealedPayload + 4096, false, 0, 0},
	} {
		bad := bytes.Clone(image)
		c.damage(bad)
		got := mustCheckDevice(t, newSimDevice(bad), false)
		found := slices.IndexFunc(got.report.Problems, func(p Problem) bool {
			return p.Kind == c.kind && (c.off < 0 || p.Offset == c.off) && p.Crash == c.crash
		})
		if c.kind == "" && !got.report.Clean() || c.kind != "" && found < 0 {
			t.Errorf("%s: %+v", c.name, got.report.Problems)
		}
		if c.kind == ProblemPayload && (len(got.report.Problems) != 1 || got.report.Problems[0].Key != inSealed.key.String()) {
			t.Errorf("%s: %+v", c.name, got.report.Problems)
		}
		lost := rep.Live - got.report.Live
		if c.live >= 0 && lost != c.live || c.live < 0 && (lost == 0 && c.kind != ProblemSequence) {
			t.Errorf("%s: %d records are lost", c.name, lost)
		}
		l, err := OpenLog(newSimDevice(bad), r.arena, LogOptions{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if n := l.Stats().Records; n != got.report.StartRecords || c.start >= 0 && rep.Live-n != c.start {
			t.Errorf("%s: a start finds %d records, the check says %d", c.name, n, got.report.StartRecords)
		}
		l.Close()
	}
}

// TestCheckKeys puts a record in two places.
func TestCheckKeys(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name           string
		other          bool // the second has other bytes
		segments       int
		copies, broken int
	}{{"moved", false, 2, 1, 0}, {"another", true, 2, 0, 1}, {"in one segment", false, 1, 0, 1}} {
		dev := newSimDevice(make([]byte, HeaderAreaBytes+MinSegments*MinSegmentBytes))
		if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: MinSegmentBytes}, false); err != nil {
			t.Fatal(err)
		}
		l := r.log(dev, LogOptions{})
		r.mustPut(l, testKey(1), 8192)
		e, _ := l.index.get(testKey(1))
		waitReady(l)
		l.Close()
		image := dev.content()
		p := bytes.Clone(payload(testKey(1), 8192))
		if c.other {
			p[0]++
		}
		h := segmentHeader{uuid: l.sb.UUID, seq: 9, salt: 99, index: 5, bytes: MinSegmentBytes, stream: survivorStream}
		block, durable := l.firstData, l.firstData+3
		if c.segments == 1 {
			s := &l.space.segs[e.seg]
			h = s.header(&l.sb, e.seg)
			block, durable = s.tail, s.tail
		} else {
			encodeSegment(image[l.segOffset(5, 0):][:2*cfs.BlockSize], &h, l.segOffset(5, 0))
		}
		off := l.segOffset(int(h.index), block)
		enc := newBatchEncoder(image[off:])
		rec := record(testKey(1), 8192)
		enc.add(&rec, 0, checksums(testKey(1), p))
		enc.seal(&batchHeader{seq: h.seq, salt: h.salt, block: block, payloadBlocks: 2, durable: durable}, off)
		copy(image[off+cfs.BlockSize:], p)
		got := mustCheckDevice(t, newSimDevice(image), false).report
		if got.Copies != c.copies || got.ByKind[ProblemKey] != c.broken || got.Found != c.broken || got.Live != 1 || got.LiveBytes != 8192 {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestCheckUnreadable lets blocks be unreadable: each is named, and what else there is is checked.
func TestCheckUnreadable(t *testing.T) {
	r := newRig(t)
	image := checkImage(t, r)
	whole := mustCheckDevice(t, newSimDevice(image), false)
	seg, blocks := sealedSegment(t, whole), whole.segBlocks
	var e entry
	for _, o := range locations(whole.index) {
		if int(o.seg) == seg && o.payload+o.blocks <= blocks-footerFirst { // a start reads those with the footer
			e = o
		}
	}
	here := whole.report.Segments[seg].Live
	for name, c := range map[string]struct {
		block uint32
		key   string
		live  int
		bad   int // segments that a start leaves out
	}{
		"header":  {1, "", 12, 0},
		"bitmap":  {segHeaderBlocks + 1, "", 12 - here, 1},
		"payload": {e.payload + 1, e.key.String(), 12, 0},
		"footer":  {blocks - 1, "", 12, 0},
	} {
		dev := newSimDevice(image)
		off := whole.segOffset(seg, c.block)
		dev.disk.FailReads(off+512, 512)
		got := mustCheckDevice(t, dev, false).report
		if len(got.Problems) != 1 || got.Problems[0].Kind != ProblemUnreadable || got.Problems[0].Offset != off || got.Problems[0].Key != c.key {
			t.Errorf("%s: %+v", name, got.Problems)
		}
		if got.Live != c.live || got.StartError != "" {
			t.Errorf("%s: %+v", name, got)
		}
		l, err := OpenLog(dev, r.arena, LogOptions{})
		if err != nil {
			t.Errorf("%s: start: %v", name, err)
			continue
		}
		if st := l.Stats(); st.Records != got.StartRecords || st.BadSegments != c.bad || st.ReadErrors > 1 {
			t.Errorf("%s: start %+v, check %+v", name, st, got)
		}
		r.mustPut(l, testKey(1000), 8192)
		if err := l.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		dev.disk.Heal()
		l = r.log(dev, LogOptions{})
		if n := l.Stats().Records; n != 13 && name != "footer" || n < 12 {
			t.Errorf("%s: %d records when it can be read again", name, n)
		}
		l.Close()
	}
	dev := newSimDevice(image)
	for seg := range MinSegments {
		dev.disk.FailReads(whole.segOffset(seg, 0), int64(whole.firstData)*cfs.BlockSize)
	}
	got := mustCheckDevice(t, dev, false).report
	if l, err := OpenLog(dev, r.arena, LogOptions{}); err != nil || got.StartError != "" || l.Stats().BadSegments != MinSegments || got.StartRecords != 0 || got.Live != 0 {
		t.Errorf("all headers: start %v, check %+v", err, got)
	} else {
		if err := r.put(l, testKey(1000), 8192); cfs.KindOf(err) != cfs.NoSpace {
			t.Errorf("put: %v", err)
		}
		l.Close()
	}
	dev = newSimDevice(make([]byte, deviceBytes(20)))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	dev.disk.FailReads(HeaderAreaBytes, deviceBytes(20))
	if got := mustCheckDevice(t, dev, false).report; got.StartError == "" {
		t.Errorf("more than a start puts up with: %+v", got)
	}
	if _, err := OpenLog(dev, r.arena, LogOptions{}); cfs.KindOf(err) != cfs.IO {
		t.Errorf("more than a start puts up with: %v", err)
	}
	dev = newSimDevice(image)
	dev.disk.FailReads(0, 512)
	if got := mustCheckDevice(t, dev, false).report; got.Found != 1 || got.StartError == "" || got.Live != 12 {
		t.Errorf("superblock: %+v", got)
	}
	dev.disk.FailReads(0, int64(len(image)))
	if _, err := Check(context.Background(), dev, CheckOptions{}); cfs.KindOf(err) != cfs.IO {
		t.Errorf("a device that cannot be read: %v", err)
	}
}

func TestCheckRefusals(t *testing.T) {
	r := newRig(t)
	image := checkImage(t, r)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	both := bytes.Clone(image)
	flip(both, 100)
	flip(both, HeaderAreaBytes-4000)
	for name, c := range map[string]struct {
		ctx   context.Context
		image []byte
		kind  cfs.Kind
	}{
		"tiny":         {context.Background(), make([]byte, 4096), cfs.NotFound},
		"blank":        {context.Background(), make([]byte, len(image)), cfs.NotFound},
		"shrunk":       {context.Background(), image[:len(image)-4096], cfs.Corrupt},
		"superblocks":  {context.Background(), both, cfs.Corrupt},
		"was canceled": {ctx, image, cfs.Canceled},
	} {
		if _, err := Check(c.ctx, newSimDevice(c.image), CheckOptions{}); cfs.KindOf(err) != c.kind || !strings.Contains(err.Error(), simPath) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckBounds lists a few of many problems, counts all, and tells how far it is.
func TestCheckBounds(t *testing.T) {
	r := newRig(t)
	image := checkImage(t, r)
	whole := mustCheckDevice(t, newSimDevice(image), false)
	for _, e := range locations(whole.index) {
		flip(image, whole.segOffset(int(e.seg), e.payload))
	}
	before := bytes.Clone(image)
	dev := newSimDevice(image)
	var steps []int
	got, err := Check(context.Background(), dev, CheckOptions{MaxProblems: 5, Progress: func(done, all int) {
		steps = append(steps, done)
		if all != MinSegments {
			t.Errorf("%d segments", all)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Problems) != 5 || got.Found != 12 || got.Unexplained != 12 || got.ByKind[ProblemPayload] != 12 || got.Torn != 1 || len(steps) != MinSegments || steps[len(steps)-1] != MinSegments {
		t.Errorf("%+v, progress %v", got, steps)
	}
	if quick := mustCheckDevice(t, dev, true).report; quick.Found != 1 || quick.Live != 11 || quick.StartRecords != 11 {
		t.Errorf("quick: %+v", quick)
	}
	if !bytes.Equal(dev.content(), before) {
		t.Error("the check has changed the device")
	}
}

// TestCheckOfRandomDamage damages bytes anywhere: there is a report or an error, and when
// there is a report a start finds what it says.
func TestCheckOfRandomDamage(t *testing.T) {
	r := newRig(t)
	image := checkImage(t, r)
	for seed := range uint64(fewer(300, 50)) {
		rng := rand.New(rand.NewPCG(seed, 10))
		bad := bytes.Clone(image)
		for range 1 + rng.IntN(30) {
			at := rng.IntN(len(bad))
			if rng.IntN(2) == 0 { // where headers are
				at = at / MinSegmentBytes * MinSegmentBytes
			}
			for i := at; i < min(at+1+rng.IntN(6000), len(bad)); i++ {
				bad[i] = byte(rng.Uint32())
			}
			if block := int64(at) / cfs.BlockSize * cfs.BlockSize; rng.IntN(2) == 0 {
				reseal(bad, block)
			}
		}
		compareWithStart(t, r, bad, seed)
	}
}

// compareWithStart checks an image and starts a log on it.
func compareWithStart(t *testing.T, r *rig, image []byte, what any) {
	t.Helper()
	got, err := Check(context.Background(), newSimDevice(image), CheckOptions{MaxProblems: 10})
	l, startErr := OpenLog(newSimDevice(image), r.arena, LogOptions{})
	if startErr == nil {
		defer l.Close()
	}
	switch {
	case err != nil:
		if startErr == nil {
			t.Errorf("%v: a log starts, a check does not: %v", what, err)
		}
	case (startErr == nil) != (got.StartError == ""):
		t.Errorf("%v: a start says %v, the check expects %q", what, startErr, got.StartError)
	case startErr == nil && l.Stats().Records != got.StartRecords:
		t.Errorf("%v: a start finds %d records, the check says %d", what, l.Stats().Records, got.StartRecords)
	}
}

// FuzzCheck changes bytes of a small image, and makes the checksums of the changed header
// blocks right where the input says so: six bytes are a block, a place in it, a value, and that.
func FuzzCheck(f *testing.F) {
	r := newRig(f)
	image := checkImage(f, r)
	edit := func(block, at uint16, value byte, seal byte) []byte {
		p := binary.LittleEndian.AppendUint16(nil, block)
		return append(binary.LittleEndian.AppendUint16(p, at), value, seal)
	}
	first := uint16(HeaderAreaBytes / cfs.BlockSize)
	const each = MinSegmentBytes / cfs.BlockSize
	f.Add([]byte{})
	f.Add(edit(0, 16, 9, 1))
	f.Add(edit(first, 32, 200, 1))
	f.Add(edit(first+2, 64, 255, 1))
	f.Add(edit(first+4, 6, 2, 1))
	f.Add(edit(first+each-1, 32, 3, 1))
	f.Add(slices.Concat(edit(first+each-1, 88, 1, 1), edit(first+5, 100, 1, 0)))
	f.Fuzz(func(t *testing.T, edits []byte) {
		bad := bytes.Clone(image)
		le := binary.LittleEndian
		for ; len(edits) >= 6; edits = edits[6:] {
			block := int64(le.Uint16(edits)) % (int64(len(bad)) / cfs.BlockSize) * cfs.BlockSize
			bad[block+int64(le.Uint16(edits[2:]))%cfs.BlockSize] = edits[4]
			if edits[5]&1 != 0 {
				reseal(bad, block)
			}
		}
		got, err := Check(context.Background(), newSimDevice(bad), CheckOptions{})
		if err != nil {
			if kind := cfs.KindOf(err); kind != cfs.Corrupt && kind != cfs.NotFound {
				t.Errorf("%v", err)
			}
			return
		}
		if got.Live > got.Records || got.Unexplained > got.Found || got.Live > got.StartRecords {
			t.Errorf("%+v", got)
		}
	})
}
