package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
)

const testBytes = 256 << 10

func testDisk(seed uint64) *Disk { return NewDisk(DiskConfig{SizeBytes: testBytes, Seed: seed}) }

// filled is n bytes that say v in each 8.
func filled(n int, v uint64) []byte {
	p := make([]byte, n)
	for at := 0; at < n; at += 8 {
		binary.LittleEndian.PutUint64(p[at:], v)
	}
	return p
}

// value is what a sector that was filled says; 0 when it was not filled in one piece.
func value(sector []byte) uint64 {
	if !bytes.Equal(sector[8:], sector[:len(sector)-8]) {
		return 0
	}
	return binary.LittleEndian.Uint64(sector)
}

func (d *Disk) mustWrite(t *testing.T, off int64, n int, v uint64) {
	t.Helper()
	if err := d.Write(Write{P: filled(n, v), Off: off}); err != nil {
		t.Fatal(err)
	}
}

func (d *Disk) mustFlush(t *testing.T) {
	t.Helper()
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
}

func (d *Disk) mustRead(t *testing.T, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := d.Read(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReadWrite(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		d := NewDisk(DiskConfig{SizeBytes: testBytes, SectorBytes: sector, Seed: 1})
		want := make([]byte, testBytes)
		rng := rand.New(rand.NewPCG(uint64(sector), 1))
		for range 300 {
			off := rng.IntN(testBytes/sector) * sector
			n := min(rng.IntN(20)*sector, testBytes-off)
			p := want[off : off+n]
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			if err := d.Write(Write{P: p, Off: int64(off), Sync: rng.IntN(2) == 0}); err != nil {
				t.Fatal(err)
			}
			if rng.IntN(10) == 0 {
				d.mustFlush(t)
			}
			if got := d.mustRead(t, 0, testBytes); !bytes.Equal(got, want) {
				t.Fatalf("sectors of %d: other bytes after a write of %d at %d", sector, n, off)
			}
		}
		if !bytes.Equal(d.AfterKill().Image(), want) {
			t.Errorf("sectors of %d: other bytes after a kill", sector)
		}
		p := make([]byte, 2*sector)
		for _, err := range []error{
			d.Read(p, testBytes-int64(sector)), d.Read(p, -int64(sector)), d.Read(p, 7), d.Read(p[:sector-1], 0),
			d.Write(Write{P: p, Off: testBytes - int64(sector)}), d.Write(Write{P: p, Off: 1 << 62}), d.Write(Write{P: p[:100]}),
			d.Discard(testBytes, int64(sector)), d.Discard(0, -int64(sector)),
		} {
			if errors.Is(err, ErrStopped) {
				continue
			}
			t.Errorf("on a stopped disk: %v", err)
		}
		d = NewDisk(DiskConfig{SizeBytes: testBytes, SectorBytes: sector})
		for _, err := range []error{
			d.Read(p, testBytes-int64(sector)), d.Read(p, -int64(sector)), d.Read(p, 7), d.Read(p[:sector-1], 0),
			d.Write(Write{P: p, Off: testBytes - int64(sector)}), d.Write(Write{P: p, Off: 1 << 62}), d.Write(Write{P: p[:100]}),
			d.Discard(testBytes, int64(sector)), d.Discard(0, -int64(sector)),
		} {
			if !errors.Is(err, ErrBounds) {
				t.Errorf("outside of the disk: %v", err)
			}
		}
	}
}

// durability is a model of what each sector may hold after a power cut.
type durability struct {
	d       *Disk
	sector  int
	durable []uint64          // of each sector
	cached  []map[uint64]bool // what it may hold instead
	next    uint64
}

func newDurability(d *Disk) *durability {
	m := &durability{d: d, sector: d.cfg.SectorBytes, next: 1}
	m.durable = make([]uint64, int(d.size)/m.sector)
	m.cached = make([]map[uint64]bool, len(m.durable))
	for i := range m.cached {
		m.cached[i] = map[uint64]bool{}
	}
	return m
}

// run does n random operations, from one goroutine.
func (m *durability) run(t *testing.T, rng *rand.Rand, n int) {
	for range n {
		if rng.IntN(6) == 0 {
			err := m.d.Flush()
			if errors.Is(err, ErrStopped) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, last := range m.now() {
				m.durable[i] = last
				clear(m.cached[i])
			}
			continue
		}
		first := rng.IntN(len(m.durable) - 23)
		sectors := 1 + rng.IntN(24)
		sync := rng.IntN(4) == 0
		m.next++
		err := m.d.Write(Write{P: filled(sectors*m.sector, m.next), Off: int64(first * m.sector), Sync: sync})
		for i := first; i < first+sectors; i++ {
			switch {
			case err == nil && (sync || m.d.cfg.WriteThrough):
				m.durable[i] = m.next
				clear(m.cached[i])
			default:
				m.cached[i][m.next] = true
			}
		}
		if errors.Is(err, ErrStopped) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (m *durability) now() []uint64 { return sectorValues(m.d.Image(), m.sector) }

func sectorValues(image []byte, sector int) []uint64 {
	var out []uint64
	for at := 0; at < len(image); at += sector {
		out = append(out, value(image[at:at+sector]))
	}
	return out
}

// TestPowerCut holds that what was flushed stays, and that of the rest each sector holds some version.
func TestPowerCut(t *testing.T) {
	for seed := range uint64(80) {
		rng := rand.New(rand.NewPCG(seed, 7))
		d := NewDisk(DiskConfig{SizeBytes: testBytes / 2, SectorBytes: []int{512, 4096}[seed%2], Seed: seed, WriteThrough: seed%7 == 0})
		for life := range 3 {
			m := newDurability(d)
			m.durable = m.now()
			m.next = uint64(life+1) << 32
			d.StopAfter(rng.IntN(60))
			m.run(t, rng, 80)
			d.Stop()
			if got := sectorValues(d.OnlyFlushed().Image(), m.sector); !slices.Equal(got, m.durable) {
				t.Fatalf("seed %d: OnlyFlushed has other than what was flushed", seed)
			}
			for range 3 {
				d = m.d.AfterPowerCut()
				for i, v := range sectorValues(d.Image(), m.sector) {
					if v != m.durable[i] && !m.cached[i][v] {
						t.Fatalf("seed %d, life %d: sector %d holds %#x; durable was %#x, cached %v", seed, life, i, v, m.durable[i], slices.Collect(maps.Keys(m.cached[i])))
					}
				}
			}
		}
	}
}

// TestPowerCutOutcomes holds that everything occurs that may.
func TestPowerCutOutcomes(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		seen := map[string]int{}
		for seed := range uint64(400) {
			d := NewDisk(DiskConfig{SizeBytes: testBytes, SectorBytes: sector, Seed: seed})
			d.mustWrite(t, 0, 64<<10, 1)
			d.mustFlush(t)
			d.mustWrite(t, 0, 16<<10, 2)     // torn, lost or whole
			d.mustWrite(t, 32<<10, 4096, 3)  // in front of
			d.mustWrite(t, 32<<10, 4096, 4)  // its successor
			d.mustWrite(t, 48<<10, 4096, 5)  // may be lost while
			d.mustWrite(t, 128<<10, 4096, 6) // a later one is kept
			after := d.AfterPowerCut()
			v := sectorValues(after.Image(), sector)
			at := func(off int) uint64 { return v[off/sector] }
			written := slices.Contains(v[:16<<10/sector], 2)
			missing := slices.Contains(v[:16<<10/sector], 1)
			first, last := at(0) == 2, at(16<<10-sector) == 2
			switch {
			case written && !missing:
				seen["whole"]++
			case missing && !written:
				seen["lost"]++
			case first && !last:
				seen["torn, the first sectors kept"]++
			case last && !first:
				seen["torn, the last sectors kept"]++
			}
			if at(32<<10) == 3 {
				seen["the older wins"]++
			}
			if at(32<<10) == 4 {
				seen["the newer wins"]++
			}
			if at(48<<10) == 1 && at(128<<10) == 6 {
				seen["a later one alone"]++
			}
			if at(48<<10) == 5 && at(128<<10) == 0 {
				seen["an earlier one alone"]++
			}
			if sector == 512 && v[(32<<10)/512] == 3 && v[(32<<10)/512+1] == 4 {
				seen["two versions in a block"]++
			}
			if at(60<<10) != 1 || at(20<<10) != 1 {
				t.Fatalf("seed %d: what was flushed has changed", seed)
			}
			if st := after.Stats(); st.LostWrites+st.TornWrites > 5 {
				t.Fatalf("stats %+v", st)
			}
		}
		want := []string{
			"whole", "lost", "torn, the first sectors kept", "torn, the last sectors kept", "the older wins", "the newer wins",
			"a later one alone", "an earlier one alone",
		}
		if sector == 512 {
			want = append(want, "two versions in a block")
		}
		for _, what := range want {
			if seen[what] == 0 {
				t.Errorf("sectors of %d: never %s", sector, what)
			}
		}
	}
}

// TestStopInTheMiddle holds that the machine stops in the middle of the operation that it
// is told, which may then have happened or not.
func TestStopInTheMiddle(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(200) {
		d := testDisk(seed)
		d.StopAfter(2)
		d.mustWrite(t, 0, 8192, 1)
		d.mustFlush(t)
		if err := d.Write(Write{P: filled(8192, 2)}); !errors.Is(err, ErrStopped) {
			t.Fatalf("the third operation: %v", err)
		}
		for _, err := range []error{d.Flush(), d.Read(make([]byte, 512), 0), d.Discard(0, 512), d.Write(Write{P: filled(512, 9)})} {
			if !errors.Is(err, ErrStopped) {
				t.Fatalf("behind it: %v", err)
			}
		}
		if v := value(d.AfterKill().mustRead(t, 0, 8192)); v != 2 {
			t.Fatalf("after a kill: %d", v)
		}
		v := sectorValues(d.AfterPowerCut().Image(), 512)
		seen[fmt.Sprint(slices.Contains(v, 1), slices.Contains(v, 2))]++
		if slices.Contains(v, 9) {
			t.Fatal("a write to a stopped disk")
		}
	}
	if seen["true false"] == 0 || seen["false true"] == 0 || seen["true true"] == 0 {
		t.Errorf("old and new parts: %v", seen)
	}

	stops := map[int]bool{}
	for seed := range uint64(200) {
		d := testDisk(seed)
		d.StopOneIn(10)
		n := 0
		for ; d.Write(Write{P: filled(512, 1)}) == nil; n++ {
		}
		stops[n] = true
	}
	if len(stops) < 15 || !stops[0] {
		t.Errorf("stopped at random after %v", slices.Sorted(maps.Keys(stops)))
	}
}

// TestKill holds that what a killed process wrote stays, and becomes durable by the next flush.
func TestKill(t *testing.T) {
	d := testDisk(1)
	d.mustWrite(t, 0, 4096, 1)
	d.mustFlush(t)
	d.mustWrite(t, 0, 4096, 2)
	next := d.AfterKill()
	if v := value(next.mustRead(t, 0, 4096)); v != 2 {
		t.Errorf("read %d", v)
	}
	if err := d.Write(Write{P: filled(512, 3)}); !errors.Is(err, ErrStopped) {
		t.Errorf("the killed process writes on: %v", err)
	}
	if v := value(next.OnlyFlushed().mustRead(t, 0, 4096)); v != 1 {
		t.Errorf("the kill made %d durable", v)
	}
	next = d.AfterKill()
	next.mustFlush(t)
	if v := value(next.OnlyFlushed().mustRead(t, 0, 4096)); v != 2 {
		t.Errorf("the flush of the next process left %d", v)
	}
}

// TestKillEndsWhatIsUnderWay holds that a write which is to be durable when it is answered
// is so for the next process.
func TestKillEndsWhatIsUnderWay(t *testing.T) {
	for _, through := range []bool{false, true} {
		d := NewDisk(DiskConfig{SizeBytes: testBytes, Seed: 1, WriteThrough: through})
		d.mustWrite(t, 0, 4096, 1)
		d.StopAfter(0)
		if err := d.Write(Write{P: filled(4096, 2), Sync: !through}); !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		d = d.AfterKill()
		d.mustRead(t, 0, 4096)
		if v := value(d.OnlyFlushed().mustRead(t, 0, 4096)); v != 2 {
			t.Errorf("write through %v: %d is durable", through, v)
		}
	}
}

// TestFlushCoversWhatWasAnswered has a write under way while a flush begins and ends.
func TestFlushCoversWhatWasAnswered(t *testing.T) {
	d := testDisk(1)
	d.mustWrite(t, 0, 4096, 1)
	w := d.newPending(filled(4096, 2), 8192)
	d.arriveLocked(w)
	d.mustFlush(t)
	if v := sectorValues(d.AfterKill().Image(), 4096); v[0] != 1 || v[2] != 2 {
		t.Errorf("reads see %v", v[:3])
	}
	if v := sectorValues(d.OnlyFlushed().Image(), 4096); v[0] != 1 || v[2] != 0 {
		t.Errorf("durable are %v", v[:3])
	}
}

// TestConcurrentDurability has goroutines that write, flush and sync, each its own
// sectors, until the machine stops. Values rise: what was durable may be followed by what came later,
// and by nothing older.
func TestConcurrentDurability(t *testing.T) {
	const workers = 6
	for seed := range uint64(150) {
		d := NewDisk(DiskConfig{SizeBytes: testBytes, Seed: seed, Yields: 10})
		d.StopAfter(int(seed) % 120)
		var floor, last [workers]uint64
		var wg sync.WaitGroup
		for w := range workers {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			wg.Go(func() {
				for {
					last[w]++
					sync := rng.IntN(3) == 0
					err := d.Write(Write{P: filled(8192, last[w]), Off: int64(w) * 8192, Sync: sync})
					if err == nil && !sync && rng.IntN(2) == 0 {
						sync = true
						err = d.Flush()
					}
					if err != nil {
						return
					}
					if sync {
						floor[w] = last[w]
					}
				}
			})
		}
		wg.Wait()
		for range 3 {
			v := sectorValues(d.AfterPowerCut().Image(), 512)
			for w := range workers {
				for _, got := range v[w*16 : w*16+16] {
					if got < floor[w] || got > last[w] {
						t.Fatalf("seed %d: a sector of worker %d holds %d, durable was %d, written %d", seed, w, got, floor[w], last[w])
					}
				}
			}
		}
	}
}

// TestDiscard holds what discarded sectors read as.
func TestDiscard(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(300) {
		d := testDisk(seed)
		d.mustWrite(t, 0, 64<<10, 7)
		d.mustWrite(t, 64<<10, 64<<10, 8)
		d.mustFlush(t)
		if err := d.Discard(4096, 32<<10); err != nil {
			t.Fatal(err)
		}
		first := d.mustRead(t, 0, 128<<10)
		if again := d.mustRead(t, 0, 128<<10); !bytes.Equal(first, again) {
			t.Fatal("discarded sectors read differently")
		}
		v := sectorValues(first, 512)
		kinds := map[string]bool{}
		for i, got := range v {
			switch {
			case i < 8 || i >= 72 && i < 128:
				if got != 7 {
					t.Fatalf("seed %d: sector %d was not discarded and holds %d", seed, i, got)
				}
			case i >= 128:
				if got != 8 {
					t.Fatalf("seed %d: sector %d was not discarded and holds %d", seed, i, got)
				}
			case got == 7:
				kinds["old"] = true
			case got == 8:
				kinds["another place's"] = true
			case bytes.Equal(first[i*512:(i+1)*512], make([]byte, 512)):
				kinds["zeros"] = true
			default:
				kinds["random"] = true
			}
		}
		for kind := range kinds {
			seen[kind]++
		}
		if len(kinds) == 4 {
			seen["all kinds at once"]++
		}
		if len(kinds) == 1 {
			seen["one kind alone"]++
		}
		after := d.AfterPowerCut().mustRead(t, 4096, 32<<10)
		switch {
		case bytes.Equal(after, filled(32<<10, 7)):
			seen["lost"]++
		case bytes.Equal(after, first[4096:36<<10]):
			seen["kept"]++
		default:
			seen["torn"]++
		}
		d = d.AfterKill()
		d.mustFlush(t)
		d.mustWrite(t, 8192, 4096, 9)
		d.mustFlush(t)
		copy(first[8192:], filled(4096, 9))
		if got := d.AfterPowerCut().mustRead(t, 0, 128<<10); !bytes.Equal(got, first) {
			t.Fatalf("seed %d: a flushed discard, or what was written behind it, has changed", seed)
		}
	}
	for _, what := range []string{"old", "another place's", "zeros", "random", "all kinds at once", "one kind alone", "lost", "kept", "torn"} {
		if seen[what] == 0 {
			t.Errorf("never %s: %v", what, seen)
		}
	}
}

// TestFaultsOfPlaces holds the faults at places.
func TestFaultsOfPlaces(t *testing.T) {
	d := testDisk(1)
	d.mustWrite(t, 0, testBytes, 5)
	d.mustFlush(t)

	d.FailReads(8192, 8192)
	if err := d.Read(make([]byte, 16<<10), 0); !errors.Is(err, ErrIO) || err.Error() != "read at 8192: input/output error" {
		t.Errorf("unreadable: %v", err)
	}
	d.mustRead(t, 0, 8192)
	d.mustWrite(t, 12<<10, 512, 6)
	d.mustRead(t, 12<<10, 512)
	for _, off := range []int64{8192, 12<<10 - 512, 12<<10 + 512, 16<<10 - 512} {
		if err := d.Read(make([]byte, 512), off); !errors.Is(err, ErrIO) {
			t.Errorf("unreadable at %d: %v", off, err)
		}
	}
	if err := d.AfterPowerCut().Read(make([]byte, 512), 8192); !errors.Is(err, ErrIO) {
		t.Errorf("unreadable after a power cut: %v", err)
	}
	d = d.AfterKill()
	d.Heal()
	d.mustRead(t, 0, testBytes)

	d.FailWrites(32<<10, 512)
	if err := d.Write(Write{P: filled(4096, 7), Off: 32 << 10, Sync: true}); !errors.Is(err, ErrIO) {
		t.Errorf("unwritable: %v", err)
	}
	d.mustWrite(t, 32<<10+512, 512, 7)
	d.Heal()
	d.mustWrite(t, 32<<10, 4096, 8)

	d.mustWrite(t, 40<<10, 4096, 9) // in the cache, beside the flushed 5
	d.FlipBit(40<<10+100, 3)
	want := filled(4096, 9)
	want[100] ^= 8
	if got := d.mustRead(t, 40<<10, 4096); !bytes.Equal(got, want) {
		t.Error("the bit has not flipped in the cache, or others have")
	}
	want = filled(4096, 5)
	want[100] ^= 8
	if got := d.OnlyFlushed().mustRead(t, 40<<10, 4096); !bytes.Equal(got, want) {
		t.Error("the bit has not flipped on the medium, or others have")
	}
	d = d.AfterKill()
	d.mustFlush(t)
	want = filled(4096, 9)
	want[100] ^= 8
	if got := d.OnlyFlushed().mustRead(t, 40<<10, 4096); !bytes.Equal(got, want) {
		t.Error("the bit has not flipped, or others have")
	}
	d = d.AfterKill()
	d.Poke([]byte("poked"), 8190)
	if got := d.OnlyFlushed().mustRead(t, 4096, 8192); string(got[4094:4099]) != "poked" || value(got[:4096-512]) != 5 || value(got[4096+512:]) != 5 {
		t.Error("not poked, or more than that")
	}
}

// TestShrinkAndVanish holds what becomes of a disk that ends early, or is pulled out.
func TestShrinkAndVanish(t *testing.T) {
	d := testDisk(1)
	d.mustWrite(t, 0, testBytes, 5)
	d.Shrink(testBytes / 2)
	if d.SizeBytes() != testBytes/2 {
		t.Errorf("it has %d bytes", d.SizeBytes())
	}
	d.mustRead(t, 0, testBytes/2)
	if err := d.Read(make([]byte, 1024), testBytes/2-512); !errors.Is(err, ErrBounds) {
		t.Errorf("read across the end: %v", err)
	}
	if d = d.AfterKill(); d.SizeBytes() != testBytes/2 {
		t.Errorf("it has %d bytes in its next life", d.SizeBytes())
	}
	d.Vanish()
	for range 2 {
		for _, err := range []error{d.Read(make([]byte, 512), 0), d.Write(Write{P: filled(512, 9)}), d.Flush(), d.Discard(0, 512)} {
			if !errors.Is(err, ErrGone) {
				t.Errorf("on a disk that is gone: %v", err)
			}
		}
		if !d.Stopped() {
			t.Error("it runs")
		}
		d = d.AfterPowerCut()
	}
}

// TestFaultRates holds that faults come at their rates, and what they leave.
func TestFaultRates(t *testing.T) {
	const n, in = 2000, 10
	near := func(what string, got int) {
		t.Helper()
		if got < n/in/2 || got > n/in*2 {
			t.Errorf("%d of %d %s", got, n, what)
		}
	}
	d := testDisk(3)
	d.mustWrite(t, 0, testBytes, 1)
	d.mustFlush(t)
	d.SetFaults(Faults{ReadErrors: in, WriteErrors: in, FlushErrors: in, DiscardErrors: in})
	var reads, writes, flushes, discards int
	torn := map[string]bool{}
	count := func(err error, failures *int) {
		if err != nil {
			*failures++
			if !errors.Is(err, ErrIO) {
				t.Fatal(err)
			}
		}
	}
	for i := range n {
		count(d.Read(make([]byte, 512), 0), &reads)
		before := writes
		count(d.Write(Write{P: filled(4096, uint64(2+i))}), &writes)
		if writes > before {
			p := make([]byte, 4096)
			d.Peek(p, 0)
			v := sectorValues(p, 512)
			torn[fmt.Sprint(v[0] == uint64(2+i), v[7] == uint64(2+i))] = true
		}
		count(d.Flush(), &flushes)
		count(d.Discard(8192, 512), &discards)
	}
	near("reads failed", reads)
	near("writes failed", writes)
	near("flushes failed", flushes)
	near("discards failed", discards)
	if !torn["true true"] || !torn["true false"] || !torn["false false"] {
		t.Errorf("failed writes have left %v", torn)
	}

	for seed := range uint64(20) {
		d = testDisk(seed)
		d.SetFaults(Faults{WriteErrors: 1})
		if err := d.Write(Write{P: filled(4096, 1), Sync: true}); !errors.Is(err, ErrIO) {
			t.Fatal(err)
		}
		if v := value(d.OnlyFlushed().Image()); v != 0 {
			t.Fatal("a failed write is durable without a flush")
		}
	}

	d = testDisk(4)
	d.SetFaults(Faults{BitFlips: in})
	flipped := 0
	for range n {
		if !bytes.Equal(d.mustRead(t, 4096, 4096), make([]byte, 4096)) {
			flipped++
			d.Poke(make([]byte, 4096), 4096)
		}
	}
	near("reads had a bit flipped", flipped)
}

// TestFailedFlush holds that a failed flush makes any part durable, and when a later one answers for the rest.
func TestFailedFlush(t *testing.T) {
	for _, lossy := range []bool{false, true} {
		seen := map[string]int{}
		for seed := range uint64(100) {
			d := NewDisk(DiskConfig{SizeBytes: testBytes, Seed: seed, LossyFlush: lossy})
			d.mustWrite(t, 0, 4096, 1)
			d.mustWrite(t, 4096, 4096, 2)
			d.SetFaults(Faults{FlushErrors: 1})
			if err := d.Flush(); !errors.Is(err, ErrIO) {
				t.Fatal(err)
			}
			d.SetFaults(Faults{})
			v := sectorValues(d.OnlyFlushed().Image(), 4096)
			seen[fmt.Sprint("failed ", v[:2])]++
			d = d.AfterKill()
			d.mustFlush(t)
			v = sectorValues(d.OnlyFlushed().Image(), 4096)
			seen[fmt.Sprint("again ", v[:2])]++
		}
		again := []string{"again [1 2]"}
		if lossy {
			again = []string{"again [1 2]", "again [0 2]", "again [1 0]", "again [0 0]"}
		}
		for _, what := range append(again, "failed [1 2]", "failed [0 2]", "failed [1 0]", "failed [0 0]") {
			if seen[what] == 0 {
				t.Errorf("lossy %v: never %s: %v", lossy, what, seen)
			}
		}
		if !lossy && seen["again [1 2]"] != 100 {
			t.Errorf("a later flush answers for nothing: %v", seen)
		}
	}
}

// TestSeed holds that a seed determines what happens, and that reading more changes no other choice.
func TestSeed(t *testing.T) {
	run := func(seed uint64, reads int) (image []byte, errs string) {
		d := testDisk(seed)
		d.SetFaults(Faults{WriteErrors: 7, FlushErrors: 5})
		d.StopOneIn(100)
		rng := rand.New(rand.NewPCG(1, 1))
		for !d.Stopped() {
			for range reads {
				d.Read(make([]byte, 512), 0)
			}
			off := int64(rng.IntN(testBytes/4096)) * 4096
			var err error
			switch rng.IntN(5) {
			case 0:
				err = d.Flush()
			case 1:
				err = d.Discard(off, 4096)
			default:
				err = d.Write(Write{P: filled(4096, rng.Uint64()), Off: off})
			}
			errs += fmt.Sprintln(err)
		}
		return d.AfterPowerCut().Image(), errs
	}
	different := 0
	for seed := range uint64(30) {
		image, errs := run(seed, 0)
		for reads := range 2 {
			if again, errsAgain := run(seed, reads); !bytes.Equal(again, image) || errsAgain != errs {
				t.Errorf("seed %d gives two runs", seed)
			}
		}
		if other, _ := run(seed+1000, 0); !bytes.Equal(other, image) {
			different++
		}
	}
	if different < 25 {
		t.Errorf("only %d of 30 seeds differ", different)
	}
}

func TestStats(t *testing.T) {
	d := testDisk(1)
	d.mustWrite(t, 0, 4096, 1)
	if err := d.Write(Write{P: filled(512, 1), Sync: true}, Write{P: filled(1024, 1), Off: 8192}); err != nil {
		t.Fatal(err)
	}
	d.mustFlush(t)
	d.mustRead(t, 0, 2048)
	d.mustRead(t, 0, 512)
	if err := d.Discard(0, 8192); err != nil {
		t.Fatal(err)
	}
	want := DiskStats{
		Reads: 2, Writes: 3, SyncWrites: 1, Flushes: 1, Discards: 1,
		ReadBytes: 2560, WrittenBytes: 4096 + 512 + 1024, DiscardedBytes: 8192,
	}
	if got := d.Stats(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestLoad holds that an image comes out as it went in, durable.
func TestLoad(t *testing.T) {
	d := NewDisk(DiskConfig{SizeBytes: testBytes + 512, Seed: 1})
	image := make([]byte, testBytes+512)
	copy(image[5000:], "here")
	copy(image[testBytes:], "end")
	d.Load(image)
	image[0] = 1 // the disk has a copy
	got := d.AfterPowerCut().Image()
	image[0] = 0
	if !bytes.Equal(got, image) {
		t.Error("other bytes")
	}
}

// TestDiskMemory holds that many disks can be made: one costs little until it is written, and
// its next lives share what was written.
func TestDiskMemory(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const disks = 500
	all := make([]*Disk, 0, 2*disks)
	before := heap()
	for seed := range uint64(disks) {
		d := NewDisk(DiskConfig{SizeBytes: 2 << 20, Seed: seed})
		d.mustWrite(t, int64(seed%400)*4096, 64<<10, 1)
		d.mustFlush(t)
		all = append(all, d, d.AfterPowerCut())
	}
	each := (heap() - before) / disks
	if each > 64<<10+2*(8192+4096) {
		t.Errorf("%d bytes for a disk of 2 MiB with 64 KiB in it, and its next life", each)
	}
	runtime.KeepAlive(all)
}

func BenchmarkDisk(b *testing.B) {
	p := filled(64<<10, 1)
	for range b.N {
		d := NewDisk(DiskConfig{SizeBytes: 2 << 20, Seed: 1})
		for i := range int64(16) {
			d.Write(Write{P: p, Off: i * 64 << 10})
			d.Flush()
		}
		d.AfterPowerCut()
	}
}
