package fsm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func TestBootstrapIsIdempotent(t *testing.T) {
	h := newHarness(t)
	h.create(h.open("x"), "a")
	before := h.kv.dump()
	if err := Bootstrap(h.kv, "another", 5); err != nil || h.kv.dump() != before {
		t.Errorf("a second bootstrap: %v, changes:\n%s", err, diff(before, h.kv.dump()))
	}
}

// TestTimeNeverGoesBack: a new leader's clock may be behind the old one's.
func TestTimeNeverGoesBack(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	h.now = 5000
	first := h.do(s, cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "a", Attr: cfs.Attr{Mode: cfs.ModeRegular}}).Results[0].Attr.CtimeNS
	h.now = -1 << 62
	second := h.do(s, cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "b", Attr: cfs.Attr{Mode: cfs.ModeRegular}}).Results[0].Attr.CtimeNS
	if second < first {
		t.Errorf("time went from %d to %d", first, second)
	}
}

// refused applies a command that must be refused whole.
func (h *harness) refused(want cfs.Kind, op int, cmd *cfs.Command) {
	h.t.Helper()
	if r := h.apply(cmd); r.Kind != want || int(r.Failed) != op {
		h.t.Errorf("op %d: %s, want op %d: %s", r.Failed, r.Kind.Name(), op, want.Name())
	}
	if broken := checkState(h.kv); broken != "" {
		h.t.Errorf("invariants broken:\n%s", broken)
	}
}

func TestBoundsOfACommand(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	ino := h.create(s, "a")
	h.refused(cfs.TooBig, 0, &cfs.Command{Session: s, Ops: make([]cfs.Op, MaxOps+1)})

	bytes1 := func(n, from int) (xs []cfs.Extent) {
		for i := range n {
			xs = append(xs, inline(uint64(2*(from+i)), "x"))
		}
		return xs
	}
	write := func(xs []cfs.Extent) cfs.Op { return cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: xs} }
	h.refused(cfs.TooBig, 0, &cfs.Command{Session: s, Ops: []cfs.Op{write(bytes1(cfs.MaxCommandExtents+1, 0))}})
	// The extents of all operations count together, and expectations with them.
	h.refused(cfs.TooBig, 1, &cfs.Command{Session: s, Ops: []cfs.Op{write(bytes1(600, 0)), write(bytes1(600, 600))}})
	h.refused(cfs.TooBig, 0, &cfs.Command{Session: s, Ops: []cfs.Op{{Kind: cfs.OpSwap, Ino: ino, Expect: bytes1(600, 0), Extents: bytes1(600, 0)}}})

	// So do the rows that they replace.
	for from := 0; from < MaxReplaced+2; from += cfs.MaxCommandExtents {
		h.do(s, write(bytes1(cfs.MaxCommandExtents, from)))
	}
	hole := func(rows int) cfs.Op {
		return write([]cfs.Extent{{Off: 0, Len: uint64(2 * rows), Kind: cfs.ExtentHole}})
	}
	h.refused(cfs.TooBig, 0, &cfs.Command{Session: s, Ops: []cfs.Op{hole(MaxReplaced + 1)}})
	far := write([]cfs.Extent{{Off: 2 * MaxReplaced, Len: 2, Kind: cfs.ExtentHole}})
	h.refused(cfs.TooBig, 1, &cfs.Command{Session: s, Ops: []cfs.Op{hole(MaxReplaced), far}})
	h.do(s, hole(MaxReplaced))
}

// An answer fits a message: inline bytes count, not only extents.
func TestAnswersAreBounded(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	ino := h.create(s, "a")
	data := strings.Repeat("i", cfs.MaxInline)
	for i := range uint64(200) {
		h.do(s, cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(i*cfs.MaxInline, data)}})
	}
	total, answers := 0, 0
	for off, more := uint64(0), true; more; answers++ {
		a := h.read(&cfs.Query{Kind: cfs.QueryExtents, Ino: ino, Off: off, End: ^uint64(0)})
		if len(a.Extents) == 0 || len(a.Extents)*cfs.MaxInline > maxListingInline {
			t.Fatalf("%d extents of %d bytes in one answer", len(a.Extents), cfs.MaxInline)
		}
		total += len(a.Extents)
		more, off = a.More, a.Extents[len(a.Extents)-1].End()
	}
	if total != 200 || answers != 4 {
		t.Errorf("%d extents in %d answers, want 200 in 4", total, answers)
	}
}

func TestInlineBound(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s := h.open("x")
	ino := h.create(s, "a")
	h.do(s, cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(0, "0123456789")}})
	setMark := func(v uint64) { // as though other files held that much
		other := &tx{kv: h.kv}
		other.setMark(markInline, v)
		if err := other.commit(h.kv); err != nil {
			t.Fatal(err)
		}
	}
	reply := func(xs ...cfs.Extent) cfs.Kind {
		return h.apply(&cfs.Command{Session: s, Ops: []cfs.Op{{Kind: cfs.OpWrite, Ino: ino, Extents: xs, Epochs: []cfs.PGEpoch{{PG: 7, Epoch: 1}}}}}).Kind
	}
	setMark(MaxInlineBytes - 10)
	if k := reply(inline(100, "0123456789")); k != cfs.KindOK {
		t.Errorf("up to the bound: %v", k)
	}
	if k := reply(inline(200, "x")); k != cfs.InlineFull {
		t.Errorf("above the bound: %v", k)
	}
	if u, err := ReadUsage(h.kv); err != nil || !u.InlineFull {
		t.Errorf("usage %+v %v", u, err)
	}
	stripes := cfs.Extent{Off: 0, Len: 10, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: s, Counter: 1}, PG: 7, StripeLen: 10}
	if k := reply(stripes); k != cfs.KindOK {
		t.Errorf("a stripe instead: %v", k)
	}
	if k := reply(inline(200, "0123456789")); k != cfs.KindOK {
		t.Errorf("what the stripe replaced makes room: %v", k)
	}
	setMark(MaxInlineBytes - 7)
	if k := reply(inline(300, "1234"), inline(400, "1234")); k != cfs.InlineFull {
		t.Errorf("two extents above the bound together: %v", k)
	}
}

func TestLinkBound(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	file := h.create(s, "f")
	set := func(i cfs.Ino, nlink uint32) {
		x := &tx{kv: h.kv}
		n, _ := x.inode(i)
		n.Nlink = nlink
		x.putInode(n)
		if err := x.commit(h.kv); err != nil {
			t.Fatal(err)
		}
	}
	dir := h.do(s, cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "d", Attr: cfs.Attr{Mode: cfs.ModeDir}},
		cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "e", Attr: cfs.Attr{Mode: cfs.ModeDir}},
		cfs.Op{Kind: cfs.OpCreate, Dir: 2 + 1, Name: "x", Attr: cfs.Attr{Mode: cfs.ModeRegular}}).Results[0].Attr.Ino
	set(file, cfs.MaxLinks)
	set(dir, cfs.MaxLinks)
	for _, op := range []cfs.Op{
		{Kind: cfs.OpLink, Ino: file, Dir: 1, Name: "g"},
		{Kind: cfs.OpCreate, Dir: dir, Name: "sub", Attr: cfs.Attr{Mode: cfs.ModeDir}},
		{Kind: cfs.OpRename, Dir: 1, Name: "e", NewDir: dir, NewName: "sub"},
		{Kind: cfs.OpRename, Dir: 1, Name: "e", NewDir: dir, NewName: "x", Flags: cfs.RenameExchange},
		{Kind: cfs.OpRename, Dir: dir, Name: "x", NewDir: 1, NewName: "e", Flags: cfs.RenameExchange},
	} {
		if r := h.apply(&cfs.Command{Session: s, Ops: []cfs.Op{op}}); r.Kind != cfs.TooManyLinks {
			t.Errorf("%+v: %v", op, r.Kind)
		}
	}
}

func TestXattrListBound(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	ino := h.create(s, "a")
	set := func(i, n int) cfs.Kind {
		name := fmt.Sprintf("user.%06d", i)
		name += strings.Repeat("n", n-len(name)-1)
		return h.apply(&cfs.Command{Session: s, LowWater: uint64(h.index), Ops: []cfs.Op{{Kind: cfs.OpSetXattr, Ino: ino, Name: name}}}).Kind
	}
	for i := range cfs.MaxXattrList / 256 {
		if k := set(i, 256); k != cfs.KindOK {
			t.Fatalf("name %d: %v", i, k)
		}
	}
	if k := set(1000, 12); k != cfs.NoSpace {
		t.Errorf("a name too many: %v", k)
	}
	if k := set(0, 256); k != cfs.KindOK {
		t.Errorf("a name that is there: %v", k)
	}
}

// TestFeedBound: a full feed loses its oldest row, by which a device that is
// behind sees that it must reconcile.
func TestFeedBound(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s := h.open("x")
	ino := h.create(s, "a")
	x := &tx{kv: h.kv}
	x.setMark(markFeedNext, 1+MaxFeed) // MaxFeed rows, of which the first is there
	x.set(feedKey(1), encodeFreed(&cfs.Freed{PG: 1, Stripe: cfs.StripeID{Session: 9, Counter: 9}}))
	if err := x.commit(h.kv); err != nil {
		t.Fatal(err)
	}
	write := cfs.Op{Kind: cfs.OpWrite, Ino: ino, Epochs: []cfs.PGEpoch{{PG: 1, Epoch: 1}},
		Extents: []cfs.Extent{{Len: 1, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: s, Counter: 1}, PG: 1, StripeLen: 1}}}
	h.do(s, write)
	h.do(s, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "a"})
	h.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s})
	a := h.read(&cfs.Query{Kind: cfs.QueryFeed})
	if len(a.Freed) != 1 || a.Freed[0].Pos != 1+MaxFeed {
		t.Errorf("feed %+v", a.Freed)
	}
}

func TestSessionBounds(t *testing.T) {
	h := newHarness(t)
	r := h.do(0, cfs.Op{Kind: cfs.OpOpenSession, Name: strings.Repeat("s", 300)})
	if list, err := Sessions(h.kv); err != nil || len(list) != 1 || list[0].ID != r.Results[0].Session || len(list[0].Name) != cfs.MaxName {
		t.Errorf("sessions %v %v", list, err)
	}
	x := &tx{kv: h.kv}
	x.setMark(markSessions, MaxSessions)
	if err := x.commit(h.kv); err != nil {
		t.Fatal(err)
	}
	if k := h.apply(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpOpenSession}}}).Kind; k != cfs.Overloaded {
		t.Errorf("a session too many: %v", k)
	}
}

// TestPlanGroupsOnManyClusters: whatever is up, groups keep the rule of placement,
// use only what is up, and are planned once.
func TestPlanGroupsOnManyClusters(t *testing.T) {
	for nodes := 1; nodes <= 7; nodes++ {
		for devices := 1; devices <= 4; devices++ {
			h := newHarness(t)
			h.cluster(nodes, devices)
			for down := range nodes * devices {
				n, d := cfs.NodeID(down/devices+1), uint16(down%devices)
				h.do(0, cfs.Op{Kind: cfs.OpSetDevice, Device: testDevice(cfs.MakeDeviceID(n, d), cfs.StateDown)})
				h.plan()
				m, _ := ReadMap(h.kv)
				if again := PlanGroups(m, h.usage()); again != nil {
					t.Fatalf("%d nodes, %d devices, %d down: planned again: %+v", nodes, devices, down+1, again)
				}
				up, upNodes, leads := 0, map[cfs.NodeID]bool{}, map[cfs.DeviceID]bool{}
				for _, v := range m.Devices {
					if v.State == cfs.StateUp {
						up++
						upNodes[v.ID.Node()] = true
					}
				}
				small := 0
				for _, g := range m.Groups {
					for i, s := range g.Slots {
						if v := s.Device; g.Writable && (v.Node() < n || v.Node() == n && v.Slot() <= d) {
							t.Fatalf("group %+v takes stripes on %v, which is down", g, v)
						}
						if g.Writable && i == 0 {
							leads[s.Device] = true
						}
					}
					if g.Writable && g.Geometry == cfs.Geo1p2 {
						small++
					}
				}
				if can := up >= 3 && len(upNodes) >= 2; can != (small > 0) || can && (small != up || len(leads) != up) {
					t.Errorf("%d nodes, %d devices, %d down: %d groups of three copies led by %d of %d devices", nodes, devices, down+1, small, len(leads), up)
				}
				if broken := checkState(h.kv); broken != "" {
					t.Fatal(broken)
				}
			}
		}
	}
}
