package nvme

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

func TestLogRestart(t *testing.T) {
	r := newRig(t)
	dev := r.device(16)
	sizes := map[Key]int{}
	for life := range 4 {
		l := r.log(dev, LogOptions{})
		for k, size := range sizes {
			r.mustCheck(l, k, size)
		}
		for i := range 10 {
			k, size := testKey(life*10+i), 4096*(1+(life*7+i)%12)
			r.mustPut(l, k, size)
			sizes[k] = size
		}
		if life%2 == 0 {
			l.Close()
		} // otherwise the process was killed: its log is never closed
	}
	l := r.log(dev, LogOptions{})
	if st := l.Stats(); st.Records != len(sizes) || st.FullSegments > 7 || st.TornRecords != 0 || st.CRCFailures != 0 {
		t.Errorf("stats %+v: the open segment is filled further after a restart", st)
	}
}

// crashImage is a device with six records in one segment, put one after the
// other, and where each ends.
func crashImage(t *testing.T, r *rig) (image []byte, keys []Key, sizes []int, ends []int64) {
	dev := r.device(4)
	l := r.log(dev, LogOptions{})
	for i, blocks := range []int{1, 3, 9, 1, 12, 2} {
		k := testKey(i)
		r.mustPut(l, k, blocks*4096)
		e, _ := l.index.get(k)
		if e.seg != 0 {
			t.Fatalf("record %d is in segment %d", i, e.seg)
		}
		keys, sizes = append(keys, k), append(sizes, blocks*4096)
		ends = append(ends, l.segOffset(0, uint32(e.payload)+uint32(e.blocks)))
	}
	l.Close()
	image, err := os.ReadFile(dev.Info().Path)
	if err != nil {
		t.Fatal(err)
	}
	return image, keys, sizes, ends
}

// reopen opens an image and returns the keys whose records are there; all must be whole.
func reopen(t *testing.T, r *rig, image []byte, what string, keys []Key, sizes []int) (found []bool, l *Log, dev Device) {
	t.Helper()
	dev = newSimDevice(image)
	l, err := OpenLog(dev, r.arena, LogOptions{CRCCacheBytes: 1})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	found = make([]bool, len(keys))
	for i, k := range keys {
		err := r.check(l, k, sizes[i])
		if found[i] = err == nil; err != nil && cfs.KindOf(err) != cfs.NotFound {
			t.Errorf("%s: record %d: %v", what, i, err)
		}
	}
	return found, l, dev
}

// TestTornTail cuts the log at every block and half block: what is whole is
// found, what is torn is not, and the log goes on behind it, also after one more restart.
func TestTornTail(t *testing.T) {
	r := newRig(t)
	image, keys, sizes, ends := crashImage(t, r)
	first, last := HeaderAreaBytes+int64(firstDataBlock(testSegment/4096))*4096, ends[len(ends)-1]
	for _, garbage := range []bool{false, true} {
		for cut := first; cut <= last; cut += 2048 {
			what := fmt.Sprintf("cut at %d, garbage %v", cut, garbage)
			torn := bytes.Clone(image)
			tail := torn[cut:last]
			clear(tail)
			if garbage {
				rand.NewChaCha8([32]byte{byte(cut >> 11)}).Read(tail)
			}
			found, l, dev := reopen(t, r, torn, what, keys, sizes)
			for i, end := range ends {
				if found[i] != (end <= cut) {
					t.Errorf("%s: record %d, which ends at %d: found %v", what, i, end, found[i])
				}
			}
			r.mustPut(l, testKey(100), 8192)
			for i, k := range keys { // the torn ones come again, as a retry
				if !found[i] {
					r.mustPut(l, k, sizes[i])
				}
			}
			l.Close()
			l, err := OpenLog(dev, r.arena, LogOptions{})
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			r.mustCheck(l, testKey(100), 8192)
			for i, k := range keys {
				r.mustCheck(l, k, sizes[i])
			}
			if st := l.Stats(); st.Records != len(keys)+1 || st.TornRecords != 0 {
				t.Errorf("%s: after one more restart: %+v", what, st)
			}
			l.Close()
		}
	}
}

// TestTornStaysTorn checks that a torn record is not believed later, when the
// log has gone on behind it.
func TestTornStaysTorn(t *testing.T) {
	r := newRig(t)
	image, keys, sizes, ends := crashImage(t, r)
	torn := bytes.Clone(image)
	clear(torn[ends[5]-4096 : ends[5]])
	found, l, dev := reopen(t, r, torn, "torn", keys, sizes)
	if found[5] || l.Stats().TornRecords != 1 {
		t.Errorf("found %v, stats %+v", found, l.Stats())
	}
	for i := range 3 {
		r.mustPut(l, testKey(100+i), 4096)
	}
	l.Close()
	for range 2 {
		found, l, dev = reopen(t, r, dev.(*simDevice).content(), "later", keys, sizes)
		if found[5] {
			t.Error("the torn record is back")
		}
		if _, ok := l.Has(keys[5]); ok {
			t.Error("the torn record is listed")
		}
		l.Close()
	}
}

// TestLostWritesBetween loses writes in front of others that arrived: none of
// them was acknowledged, and what was acknowledged before stays.
func TestLostWritesBetween(t *testing.T) {
	r := newRig(t)
	dev := newSimDevice(make([]byte, deviceBytes(4)))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(0), 8192)
	waitReady(l)
	l.Close()
	before := dev.content()
	l = r.log(dev, LogOptions{})
	for i := 1; i < 5; i++ {
		r.mustPut(l, testKey(i), 36<<10)
	}
	l.Close()
	after := dev.content()
	seg := HeaderAreaBytes + int(l.segmentOf(testKey(0)))*testSegment
	at := seg + int(l.firstData+3)*4096
	const each = 40 << 10
	for lost := range 16 { // a bit for each write
		image := bytes.Clone(before)
		for i := range 4 {
			if lost>>i&1 == 0 {
				lo := at + i*each
				copy(image[lo:lo+each], after[lo:])
			}
		}
		fresh := newSimDevice(image)
		l := r.log(fresh, LogOptions{})
		r.mustCheck(l, testKey(0), 8192)
		for i := range 4 {
			if _, ok := l.Has(testKey(1 + i)); ok != (lost>>i&1 == 0) {
				t.Errorf("lost %04b: record %d found: %v", lost, i, ok)
			}
		}
		r.mustPut(l, testKey(50), 4096)
		l.Close()
		l = r.log(fresh, LogOptions{})
		r.mustCheck(l, testKey(0), 8192)
		r.mustCheck(l, testKey(50), 4096)
		l.Close()
	}
}

// TestHeaderBitFlips flips bits of every header block: the records under it may
// be gone or whole, all others stay, and a copy of the segment's header is enough.
func TestHeaderBitFlips(t *testing.T) {
	r := newRig(t)
	image, keys, sizes, ends := crashImage(t, r)
	rng := rand.New(rand.NewPCG(3, 4))
	headers := []int64{HeaderAreaBytes, HeaderAreaBytes + 4096}
	for i, end := range ends {
		headers = append(headers, end-int64(sizes[i])-4096)
	}
	for h, off := range headers {
		for bit := 0; bit < 80; bit += 80 / fewer(80, 16) {
			at := bit // every bit of the first fields, then any
			if bit >= 64 {
				at = rng.IntN(4096 * 8)
			}
			flipped := bytes.Clone(image)
			flipped[off+int64(at/8)] ^= 1 << (at % 8)
			what := fmt.Sprintf("header %d, bit %d", h, at)
			found, l, _ := reopen(t, r, flipped, what, keys, sizes)
			for i := range keys {
				if want := h-2 != i; found[i] != want {
					t.Errorf("%s: record %d found: %v", what, i, found[i])
				}
			}
			l.Close()
		}
	}
}

// TestDamageWhileOpen damages a header under an open log: the get that needs it
// says so, naming the place.
func TestDamageWhileOpen(t *testing.T) {
	r := newRig(t)
	image, keys, sizes, ends := crashImage(t, r)
	dev := newSimDevice(image)
	l := r.log(dev, LogOptions{CRCCacheBytes: 1})
	off := ends[2] - int64(sizes[2]) - 4096
	dev.disk.FlipBit(off+70, 0)
	err := r.check(l, keys[2], sizes[2])
	if cfs.KindOf(err) != cfs.Corrupt || !bytes.Contains([]byte(err.Error()), fmt.Append(nil, off)) {
		t.Errorf("get under a damaged header: %v", err)
	}
	if n := l.Stats().CRCFailures; n != 1 {
		t.Errorf("%d CRC failures", n)
	}
	r.mustCheck(l, keys[1], sizes[1])
}

// TestPayloadBitFlip checks that a flipped bit of a payload meets the checksum
// that came with it: the reader can tell.
func TestPayloadBitFlip(t *testing.T) {
	r := newRig(t)
	image, keys, sizes, ends := crashImage(t, r)
	image[ends[1]-5000] ^= 1
	l := r.log(newSimDevice(image), LogOptions{})
	data, crcs, err := r.getBytes(l, keys[1], 0, sizes[1])
	if err != nil {
		t.Fatal(err)
	}
	if want := payload(keys[1], sizes[1]); bytes.Equal(data, want) || !bytes.Equal(crcs, checksums(keys[1], want)) {
		t.Error("the flip is not there, or the checksums are not the writer's")
	}
}

// TestRandomDamage overwrites random places of a device: opening it gives an
// error or a log whose every record is whole or caught by its checksums.
func TestRandomDamage(t *testing.T) {
	r := newRig(t)
	image, keys, sizes, _ := crashImage(t, r)
	for seed := range uint64(fewer(300, 50)) {
		rng := rand.New(rand.NewPCG(seed, 9))
		bad := bytes.Clone(image)
		for range 1 + rng.IntN(20) {
			at := HeaderAreaBytes + rng.IntN(testSegment)
			n := 1 + rng.IntN(6000)
			for i := at; i < min(at+n, len(bad)); i++ {
				bad[i] = byte(rng.Uint32())
			}
		}
		l, err := OpenLog(newSimDevice(bad), r.arena, LogOptions{})
		if err != nil {
			continue
		}
		for _, rec := range l.List(nil, 100) {
			data, crcs, err := r.getBytes(l, rec.Key, 0, int(rec.Len))
			if err != nil || !bytes.Equal(crcs, checksums(rec.Key, data)) {
				continue
			}
			for i, k := range keys {
				if k == rec.Key && !bytes.Equal(data, payload(k, sizes[i])) {
					t.Errorf("seed %d: wrong bytes of %s under right checksums", seed, k)
				}
			}
		}
		l.Close()
	}
}

// TestDeviceImageAsData stores a copy of the device inside itself, damages the
// headers, so that every block is searched, and finds no record that was not put.
func TestDeviceImageAsData(t *testing.T) {
	r := newRig(t)
	dev := newSimDevice(make([]byte, deviceBytes(8)))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, false); err != nil {
		t.Fatal(err)
	}
	l := r.log(dev, LogOptions{})
	for i := range 8 {
		r.mustPut(l, testKey(i), 4096)
	}
	for i := range 4 {
		image := dev.content()[HeaderAreaBytes+i*4096:][:100<<10]
		if err := r.putBytes(l, testKey(100+i), image); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	for seg := range 8 {
		for block := segHeaderBlocks; block < testSegment/4096; block++ {
			bad := dev.content()
			off := HeaderAreaBytes + seg*testSegment + block*4096
			if !bytes.HasPrefix(bad[off:], []byte("CFSB")) {
				continue
			}
			bad[off+4000] ^= 1
			l := r.log(newSimDevice(bad), LogOptions{})
			corrupt := 0
			for _, rec := range l.List(nil, 100) {
				if c := rec.Key.Stripe.Counter; c >= 8 && (c < 100 || c >= 104) {
					t.Errorf("record %s was never put", rec.Key)
				}
				if n := rec.Key.Stripe.Counter; n < 8 {
					// With a footer the record is known, and its damage is told.
					if err := r.check(l, rec.Key, 4096); err != nil && cfs.KindOf(err) != cfs.Corrupt {
						t.Errorf("%s: %v", rec.Key, err)
					} else if err != nil {
						corrupt++
					}
				}
			}
			if n := l.Stats().Records - corrupt; n < 11 {
				t.Errorf("one damaged header cost %d records", 12-n)
			}
			l.Close()
		}
	}
}

// TestReuseHidesStaleRecords lets a segment be used again with less in it, and
// checks that what its former life left behind the tail is not found.
func TestReuseHidesStaleRecords(t *testing.T) {
	r := newRig(t)
	dev := r.device(2)
	l := r.log(dev, LogOptions{})
	var keys []Key
	for i := range 6 { // both segments are full
		keys = append(keys, testKey(i))
		r.mustPut(l, keys[i], 72<<10)
	}
	l.Delete(keys)
	const size = 36 << 10 // not what fits behind the six
	r.mustPut(l, testKey(100), size)
	l.Close()
	l = r.log(dev, LogOptions{})
	seg := l.segmentOf(testKey(100))
	for _, rec := range l.List(nil, 100) {
		if rec.Key != testKey(100) && l.segmentOf(rec.Key) == seg {
			t.Errorf("%s of the segment's former life was found", rec.Key)
		}
	}
	r.mustCheck(l, testKey(100), size)
}

// TestForeignSegments formats a used device anew: nothing of its past is found.
func TestForeignSegments(t *testing.T) {
	r := newRig(t)
	dev := r.device(4)
	l := r.log(dev, LogOptions{})
	for i := range 6 {
		r.mustPut(l, testKey(i), 72<<10)
	}
	l.Close()
	if err := Format(dev, Superblock{ClusterID: "other", SegmentBytes: testSegment}, true); err != nil {
		t.Fatal(err)
	}
	l = r.log(dev, LogOptions{})
	if st := l.Stats(); st.Records != 0 || st.FreeSegments < 3 {
		t.Errorf("stats %+v", st)
	}
	r.mustPut(l, testKey(1), 8192)
	r.mustCheck(l, testKey(1), 8192)
}

// TestKilledLogWasNotFlushed checks that what a killed process wrote and did not
// flush is made durable before it is believed: a put that is repeated is answered by it.
func TestKilledLogWasNotFlushed(t *testing.T) {
	r := newRig(t)
	image, _, _, _ := crashImage(t, r)
	dev := newSimDevice(image)
	l := r.log(dev, LogOptions{})
	r.mustPut(l, testKey(50), 8192)
	l.Close()
	killed := newSimDevice(image)
	if err := killed.Write([]iopath.WriteOp{{P: dev.content()}}); err != nil { // and nothing of it is flushed
		t.Fatal(err)
	}
	killed = killed.afterKill()
	l = r.log(killed, LogOptions{})
	r.mustCheck(l, testKey(50), 8192)
	l.Close()
	killed = killed.next(killed.disk.OnlyFlushed()) // the power fails too
	l = r.log(killed, LogOptions{})
	r.mustCheck(l, testKey(50), 8192)
}
