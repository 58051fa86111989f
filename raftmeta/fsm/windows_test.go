package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// layer is some extents of a file, as a writer makes them.
type layer struct {
	pg   cfs.PGID // 0: inline
	off  uint64
	size uint64 // of each extent
	n    int
	step uint64 // from one to the next; 0: size
}

// lay writes layers to a new file, each extent a stripe of its own.
func (h *harness) lay(s cfs.SessionID, counter *uint64, layers ...layer) cfs.Ino {
	h.t.Helper()
	ino := h.create(s, fmt.Sprintf("f%d", h.index))
	h.overlay(s, ino, counter, layers...)
	return ino
}

func (h *harness) overlay(s cfs.SessionID, ino cfs.Ino, counter *uint64, layers ...layer) {
	h.t.Helper()
	m, err := ReadMap(h.kv)
	if err != nil {
		h.t.Fatal(err)
	}
	var epochs []cfs.PGEpoch
	for _, g := range m.Groups {
		epochs = append(epochs, cfs.PGEpoch{PG: g.ID, Epoch: g.Epoch})
	}
	for _, l := range layers {
		step := l.step
		if step == 0 {
			step = l.size
		}
		var xs []cfs.Extent
		for i := range uint64(l.n) {
			x := inline(l.off+i*step, strings.Repeat("i", int(min(l.size, cfs.MaxInline))))
			if l.pg != 0 {
				*counter++
				x = cfs.Extent{Off: x.Off, Len: l.size, Kind: cfs.ExtentStripe, PG: l.pg, Stripe: cfs.StripeID{Session: s, Counter: *counter}, StripeLen: uint32(l.size)}
			}
			xs = append(xs, x)
		}
		for part := range slices.Chunk(xs, 500) {
			h.do(s, cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: part, Epochs: epochs})
		}
		h.apply(&cfs.Command{Session: s, Floor: *counter + 1, LowWater: h.seq[s]})
	}
}

// windows asks for all windows, so many at a time.
func (h *harness) windows(limit uint32) (out []cfs.Window) {
	h.t.Helper()
	q := &cfs.Query{Kind: cfs.QueryWindows, Limit: limit, BeforeNS: 1 << 60}
	for range 10000 {
		a := h.read(q)
		out = append(out, a.Windows...)
		if !a.More {
			return out
		}
		if a.Next.Ino < q.Ino || a.Next.Ino == q.Ino && a.Next.Off <= q.Off {
			h.t.Fatalf("from inode %d at %d on to inode %d at %d", q.Ino, q.Off, a.Next.Ino, a.Next.Off)
		}
		q.Ino, q.Off = a.Next.Ino, a.Next.Off
	}
	h.t.Fatal("the windows never end")
	return nil
}

// restripe rewrites a window as the restriper does: what data it has, packed, as one
// stripe of the shape that suits it.
func (h *harness) restripe(s cfs.SessionID, w cfs.Window, counter *uint64) {
	h.t.Helper()
	m, err := ReadMap(h.kv)
	if err != nil {
		h.t.Fatal(err)
	}
	op := cfs.Op{Kind: cfs.OpSwap, Ino: w.Ino}
	var runs []cfs.Extent
	n := uint64(0)
	for at := w.Off; ; {
		a := h.read(&cfs.Query{Kind: cfs.QueryExtents, Ino: w.Ino, Off: at, End: w.End})
		for _, x := range a.Extents {
			if at = x.End(); x.Kind == cfs.ExtentUnwritten {
				continue
			}
			op.Expect = append(op.Expect, x.Digest())
			lo, hi := max(x.Off, w.Off), min(x.End(), w.End)
			n += hi - lo
			if k := len(runs); k > 0 && runs[k-1].End() == lo {
				runs[k-1].Len += hi - lo
				continue
			}
			runs = append(runs, cfs.Extent{Off: lo, Len: hi - lo, Kind: cfs.ExtentStripe})
		}
		if !a.More {
			break
		}
	}
	best := cfs.PG{}
	for _, g := range m.Groups {
		if g.Writable && (n > cfs.SmallStripe) == (g.Geometry != cfs.Geo1p2) {
			best = g
		}
	}
	*counter++
	soff := uint32(0)
	for i := range runs {
		runs[i].PG, runs[i].Stripe, runs[i].StripeOff, runs[i].StripeLen = best.ID, cfs.StripeID{Session: s, Counter: *counter}, soff, uint32(n)
		soff += uint32(runs[i].Len)
	}
	op.Extents, op.Epochs = runs, []cfs.PGEpoch{{PG: best.ID, Epoch: best.Epoch}}
	// A command takes so many extents; a window of more goes in pieces, run by run.
	for len(op.Extents) > 0 {
		part := op
		lead := min(len(op.Extents), 1)
		end := op.Extents[lead-1].End()
		rows := 0
		for rows < len(op.Expect) && op.Expect[rows].Off < end && rows < 1000 {
			rows++
		}
		if last := op.Expect[rows-1].End(); last < end {
			x := op.Extents[0]
			part.Extents = []cfs.Extent{x.Slice(x.Off, last)}
			op.Extents[0] = x.Slice(last, x.End())
		} else {
			part.Extents = op.Extents[:lead]
			op.Extents = op.Extents[lead:]
		}
		part.Expect = op.Expect[:rows]
		op.Expect = op.Expect[rows:]
		if r := h.apply(&cfs.Command{Session: s, Floor: *counter, LowWater: h.seq[s], Ops: []cfs.Op{part}}); r.Kind != cfs.KindOK {
			h.t.Fatalf("restripe %+v: %v", w, r.Kind)
		}
	}
}

// TestWindows: which layouts are worth writing anew. The cluster is of three nodes of
// two devices: groups 1 to 6 are 4+2, groups 7 to 12 three copies.
func TestWindows(t *testing.T) {
	const data, copies = 1, 7
	for _, test := range []struct {
		name   string
		layers []layer
		want   [][2]uint64
	}{
		{"nothing", nil, nil},
		{"full stripes and a tail", []layer{{data, 0, 4 * mib, 3, 0}, {data, 12 * mib, 700 * kib, 1, 0}}, nil},
		{"a small tail", []layer{{data, 0, 4 * mib, 1, 0}, {copies, 4 * mib, 20 * kib, 1, 0}}, nil},
		{"an inline file", []layer{{0, 0, 10000, 1, 0}}, nil},
		{"three copies", []layer{{copies, 0, 60 * kib, 1, 0}}, nil},
		{"not aligned", []layer{{data, 1000, 4 * mib, 3, 0}}, nil},
		{"halves", []layer{{data, 0, 2 * mib, 4, 0}}, nil},
		{"a small overwrite", []layer{{data, 0, 4 * mib, 2, 0}, {copies, mib, 4 * kib, 1, 0}}, nil},
		{"eight rows", []layer{{data, 0, 100 * kib, 8, 0}}, nil},
		{"nine rows", []layer{{data, 0, 100 * kib, 9, 0}}, [][2]uint64{{0, 4 * mib}}},
		{"nine larger rows", []layer{{data, 0, 128 * kib, 9, 0}}, nil},
		{"rows that holes part", []layer{{copies, 0, 4 * kib, 16, mib}}, nil},
		{"rows that holes part, and two that they do not", []layer{{copies, 0, 4 * kib, 16, 200 * kib}, {copies, 4 * kib, 4 * kib, 1, 0}}, [][2]uint64{{0, 4 * mib}}},
		{"more in copies than they are for", []layer{{copies, 4 * mib, 20 * kib, 4, 0}}, [][2]uint64{{4 * mib, 8 * mib}}},
		{"many overwrites", []layer{{data, 0, 4 * mib, 3, 0}, {copies, 5 * mib, 4 * kib, 20, 64 * kib}}, [][2]uint64{{4 * mib, 8 * mib}}},
		{"inline tail of a large file", []layer{{data, 0, 2 * mib, 1, 0}, {0, 2 * mib, 100, 1, 0}}, [][2]uint64{{0, 4 * mib}}},
		{"inline beyond the bound", []layer{{0, 0, 10000, 2, 0}}, [][2]uint64{{0, 4 * mib}}},
		{"many inline rows", []layer{{0, 0, 10, 9, 0}}, [][2]uint64{{0, 4 * mib}}},
		{"dead bytes", []layer{{data, 0, 4 * mib, 1, 0}, {data, 0, 2 * mib, 1, 0}}, [][2]uint64{{0, 4 * mib}}},
		{"dead bytes of another window", []layer{{data, 2 * mib, 4 * mib, 1, 0}, {data, 0, 4 * mib, 1, 0}}, nil}, // below, after one more
		{"few dead bytes", []layer{{copies, 0, 60 * kib, 1, 0}, {copies, 0, 20 * kib, 1, 0}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			h.cluster(3, 2)
			s := h.open("x")
			counter := uint64(0)
			ino := h.lay(s, &counter, test.layers...)
			if test.name == "dead bytes of another window" { // [4, 6) MiB are left of a stripe, and 100 KiB of them go
				h.overlay(s, ino, &counter, layer{data, 4 * mib, 100 * kib, 1, 0})
				test.want = [][2]uint64{{4 * mib, 8 * mib}}
			}
			var want []cfs.Window
			for _, w := range test.want {
				want = append(want, cfs.Window{Ino: ino, Off: w[0], End: w[1]})
			}
			got := h.windows(0)
			if !slices.Equal(got, want) {
				t.Fatalf("windows %v, want %v", got, want)
			}
			for _, w := range got {
				h.restripe(s, w, &counter)
			}
			if again := h.windows(0); len(again) > 0 {
				t.Errorf("rewritten, and again worth it: %v", again)
			}
			if broken := checkState(h.kv); broken != "" {
				t.Error(broken)
			}
		})
	}
}

// A lesser shape counts once a better one can be written, few bytes as well: they keep the
// group.
func TestWindowsOfLesserShape(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s, counter := h.open("x"), uint64(0)
	device := func(state cfs.State) {
		h.do(0, cfs.Op{Kind: cfs.OpSetDevice, Device: testDevice(cfs.MakeDeviceID(3, 1), state)})
		h.plan()
	}
	device(cfs.StateDown)
	m, _ := ReadMap(h.kv)
	lesser := cfs.PGID(0)
	for _, g := range m.Groups {
		if g.Writable && g.Geometry == cfs.Geo3p2 {
			lesser = g.ID
		}
	}
	h.lay(s, &counter, layer{lesser, 0, 3 * mib, 2, 0})
	h.lay(s, &counter, layer{lesser, 0, 60 * kib, 1, 0})
	if got := h.windows(0); len(got) > 0 {
		t.Errorf("while nothing better can be written: %v", got)
	}
	device(cfs.StateUp)
	got := h.windows(0)
	if want := []cfs.Window{{Ino: 2, End: 4 * mib}, {Ino: 2, Off: 4 * mib, End: 8 * mib}, {Ino: 3, End: 4 * mib}}; !slices.Equal(got, want) {
		t.Fatalf("windows %v, want %v", got, want)
	}
	for _, w := range got {
		h.restripe(s, w, &counter)
	}
	if again := h.windows(0); len(again) > 0 {
		t.Errorf("again: %v", again)
	}
}

// What lies on a device that leaves is written anew only where its slot cannot be
// filled elsewhere, and while its job runs.
func TestWindowsOfLeavingDevices(t *testing.T) {
	lost := cfs.MakeDeviceID(1, 0)
	for _, test := range []struct {
		devices int
		state   cfs.JobState
		want    int
	}{{2, 0, 0}, {2, cfs.JobRunning, 1}, {2, cfs.JobPaused, 0}, {2, cfs.JobCancelled, 0}, {3, cfs.JobRunning, 0}} {
		h := newHarness(t)
		h.cluster(3, test.devices)
		s, counter := h.open("x"), uint64(0)
		ino := h.lay(s, &counter, layer{1, 0, 8 * kib, 1, 0})
		ops := []cfs.Op{{Kind: cfs.OpSetDevice, Device: testDevice(lost, cfs.StateOut)}}
		if test.state != 0 {
			ops = append(ops, cfs.Op{Kind: cfs.OpSetJob, Job: cfs.Job{Device: lost, Kind: cfs.JobRebuild, State: test.state}})
		}
		h.do(0, ops...)
		h.plan()
		got := h.windows(0)
		if len(got) != test.want {
			t.Errorf("%d devices, job %v: windows %v", test.devices, test.state, got)
		}
		for _, w := range got {
			h.restripe(s, w, &counter)
		}
		if again := h.windows(0); len(again) > 0 {
			t.Errorf("again: %v", again)
		}
		h.overlay(s, ino, &counter) // nothing
	}
}

// Where there are only three devices all is three copies, and dead bytes go all the same.
func TestWindowsOfThreeCopies(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 1)
	s, counter := h.open("x"), uint64(0)
	ino := h.lay(s, &counter, layer{1, 0, mib, 2, 0}, layer{1, 0, 500 * kib, 1, 0})
	got := h.windows(0)
	if want := []cfs.Window{{Ino: ino, End: mib}}; !slices.Equal(got, want) {
		t.Errorf("windows %v, want %v", got, want)
	}
	none := newHarness(t)
	if got := none.windows(0); len(got) > 0 {
		t.Errorf("without a group: %v", got)
	}
}

// Inline bytes leave the namespace when it has too many of them.
func TestWindowsOfInlineBytes(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s, counter := h.open("x"), uint64(0)
	ino := h.lay(s, &counter, layer{0, 0, 1000, 1, 0})
	x := &tx{kv: h.kv}
	x.setMark(markInline, MaxInlineBytes/2+1)
	if err := x.commit(h.kv); err != nil {
		t.Fatal(err)
	}
	got := h.windows(0)
	if want := []cfs.Window{{Ino: ino, End: 4 * mib}}; !slices.Equal(got, want) {
		t.Fatalf("windows %v, want %v", got, want)
	}
	h.restripe(s, got[0], &counter)
	for _, inline := range []uint64{MaxInlineBytes, 0} {
		x.setMark(markInline, inline)
		if err := x.commit(h.kv); err != nil {
			t.Fatal(err)
		}
		if again := h.windows(0); len(again) > 0 {
			t.Errorf("again with %d bytes inline: %v", inline, again)
		}
	}
}

// Files that have changed lately, have no name or are not the present map do not count.
func TestWindowsSkip(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s, counter := h.open("x"), uint64(0)
	worth := layer{0, 0, 100, 20, 0}
	old := h.lay(s, &counter, worth)
	before := h.now + 1
	unnamed := h.lay(s, &counter, worth)
	h.do(s, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: h.nameOf(unnamed), Hold: true})
	long := h.lay(s, &counter, layer{0, 0, 1, 3000, 2})
	h.do(s, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: h.nameOf(long)}) // most of its rows are left to OpReap
	cut := h.lay(s, &counter, layer{0, 0, 1, 3000, 2})
	h.do(s, cfs.Op{Kind: cfs.OpSetAttr, Ino: cut, Mask: cfs.SetSize, Attr: cfs.Attr{Size: 30}}) // a new map
	want := []cfs.Window{{Ino: old, End: 4 * mib}}
	if got := h.read(&cfs.Query{Kind: cfs.QueryWindows, BeforeNS: before}); !slices.Equal(got.Windows, want) || got.More {
		t.Errorf("before %d: %+v, want %v", before, got, want)
	}
	if got := h.windows(0); !slices.Equal(got, want) {
		t.Errorf("windows %v, want %v", got, want)
	}
	if got := h.windows(1); !slices.Equal(got, want) {
		t.Errorf("one at a time: %v, want %v", got, want)
	}
}

func (h *harness) nameOf(i cfs.Ino) string {
	for _, e := range h.read(&cfs.Query{Kind: cfs.QueryReadDir, Dir: 1}).Entries {
		if e.Ino == i {
			return e.Name
		}
	}
	h.t.Fatalf("inode %d has no name", i)
	return ""
}

// The work of an answer is bounded, and going on from where it ended finds the same.
func TestWindowsInPieces(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s, counter := h.open("x"), uint64(0)
	var want []cfs.Window
	for range 3 {
		ino := h.lay(s, &counter, layer{7, 0, 4 * kib, 5000, 0}) // 1,024 rows in a window
		for off := uint64(0); off < 5000*4*kib; off += 4 * mib {
			want = append(want, cfs.Window{Ino: ino, Off: off, End: off + 4*mib})
		}
		h.lay(s, &counter, layer{1, 0, 4 * mib, 2, 0})
	}
	for _, limit := range []uint32{0, 1, 3, 1000} {
		if got := h.windows(limit); !slices.Equal(got, want) {
			t.Errorf("%d at a time: %v, want %v", limit, got, want)
		}
	}
	first := h.read(&cfs.Query{Kind: cfs.QueryWindows, BeforeNS: 1 << 60})
	if !first.More {
		t.Error("15,000 rows in one answer")
	}
	// A window of very many rows is cut, and becomes one by and by.
	h = newHarness(t)
	h.cluster(3, 2)
	s, counter = h.open("x"), 0
	ino := h.lay(s, &counter, layer{0, 0, 100, 10000, 0})
	got := h.windows(0)
	if len(got) != 3 || got[0] != (cfs.Window{Ino: ino, End: maxWindowRows * 100}) || got[1].Off != got[0].End || got[2].End != 4*mib {
		t.Errorf("windows %v", got)
	}
	for rounds := 0; len(got) > 0; rounds++ {
		if rounds == 3 {
			t.Fatalf("after %d rounds: %v", rounds, got)
		}
		for _, w := range got {
			h.restripe(s, w, &counter)
		}
		got = h.windows(0)
	}
	if broken := checkState(h.kv); broken != "" {
		t.Error(broken)
	}
}

// lookups counts the calls of a state.
type lookups struct {
	*memKV
	gets, rows int
}

func (l *lookups) Get(key []byte) ([]byte, bool, error) {
	l.gets++
	return l.memKV.Get(key)
}

func (l *lookups) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	return l.memKV.Scan(lo, hi, func(k, v []byte) (bool, error) {
		l.rows++
		return fn(k, v)
	})
}

// A healthy file costs a row and a look at the stripe table for each of its stripes.
func TestWindowsAreCheap(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s, counter := h.open("x"), uint64(0)
	const stripes = 2000
	h.lay(s, &counter, layer{1, 0, 4 * mib, stripes, 0})
	l := &lookups{memKV: h.kv}
	a, err := Read(l, &cfs.Query{Kind: cfs.QueryWindows, BeforeNS: 1 << 60})
	if err != nil || len(a.Windows) > 0 || a.More {
		t.Fatalf("%+v %v", a, err)
	}
	if l.gets > stripes+10 || l.rows > stripes+stripes/windowPage+50 {
		t.Errorf("%d stripes cost %d lookups and %d rows", stripes, l.gets, l.rows)
	}
}
