package fsm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// sound is a state that has rows of every kind, and nothing wrong with it.
func sound(t *testing.T) *harness {
	h := newHarness(t)
	h.cluster(3, 3)
	s := h.open("x")
	s2 := h.open("y")
	h.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "backup"}, cfs.Op{Kind: cfs.OpSetConsumer, Name: "mirror"})
	a := h.create(s, "a")
	h.do(s, cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "d", Attr: cfs.Attr{Mode: cfs.ModeDir}},
		cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "l", Attr: cfs.Attr{Mode: cfs.ModeSymlink}, Value: []byte("target")},
		cfs.Op{Kind: cfs.OpSetXattr, Ino: a, Name: "user.x", Value: []byte("v")})
	stripe := func(off uint64, counter uint64, pg cfs.PGID) cfs.Extent {
		return cfs.Extent{Off: off, Len: 4096, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: s, Counter: counter}, PG: pg, StripeLen: 4096}
	}
	write := func(ino cfs.Ino, xs ...cfs.Extent) {
		h.do(s, cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: xs, Epochs: []cfs.PGEpoch{{PG: 1, Epoch: 1}, {PG: 2, Epoch: 1}}})
	}
	write(a, stripe(0, 1, 1), inline(4096, "inline"), stripe(8192, 3, 2))
	write(a, stripe(0, 2, 1)) // 1 has no references now
	gone := h.create(s, "gone")
	write(gone, stripe(0, 4, 1))
	h.apply(&cfs.Command{Session: s, Floor: 1, Ops: []cfs.Op{{Kind: cfs.OpUnlink, Dir: 1, Name: "gone", Hold: true}}})
	long := h.create(s, "long")
	var rows []cfs.Extent
	for i := range uint64(200) {
		rows = append(rows, inline(2*i, "x"))
	}
	write(long, rows...)
	h.do(s, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "long"}) // some rows await deletion
	freed := h.create(s2, "freed")
	h.do(s2, cfs.Op{Kind: cfs.OpWrite, Ino: freed, Epochs: []cfs.PGEpoch{{PG: 1, Epoch: 1}}, Extents: []cfs.Extent{
		{Len: 1, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: s2, Counter: 1}, PG: 1, StripeLen: 1}}})
	h.do(s2, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "freed"})
	for i := range uint64(locksAtOnce + 2) {
		h.do(s2, posixLock(a, 7, cfs.LockRead, 2*i, 2*i))
	}
	h.do(s, posixLock(a, 7, cfs.LockRead, 0, 9))
	h.do(s, posixLock(a, 7, cfs.LockWrite, 500, wholeFile))
	h.do(s, cfs.Op{Kind: cfs.OpLock, Ino: a, Lock: cfs.Lock{Kind: cfs.LockFlock, Type: cfs.LockWrite, Owner: 8}})
	h.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s2}) // some locks await removal
	journal := h.read(&cfs.Query{Kind: cfs.QueryJournal}).Changes
	for _, name := range []string{"backup", "mirror"} {
		h.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: name, Index: journal[2].Index}) // the oldest are gone
	}
	s3 := h.open("z")
	for range maxReaped + 5 { // replies that the end of a session leaves
		h.do(s3)
	}
	h.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s3})
	h.do(s, cfs.Op{Kind: cfs.OpGrantInos, Dir: 1, Index: 10}, cfs.Op{Kind: cfs.OpGrantInos, Dir: 1, Index: 1})
	out := cfs.MakeDeviceID(1, 0)
	h.do(0, cfs.Op{Kind: cfs.OpSetDevice, Device: testDevice(out, cfs.StateOut)},
		cfs.Op{Kind: cfs.OpSetJob, Job: cfs.Job{Device: out, Kind: cfs.JobRebuild, State: cfs.JobRunning}})
	h.plan() // a slot is filled
	h.do(0, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Cert: []byte("cert"), Key: []byte("key")}})
	h.do(0, cfs.Op{Kind: cfs.OpAddToken, Token: token("t", 1, 1<<40)}, cfs.Op{Kind: cfs.OpAddToken, Token: token("u", 1, 1<<40)},
		cfs.Op{Kind: cfs.OpUseToken, Token: token("u", 1, 0), Enrolled: enrolled(1)}, cfs.Op{Kind: cfs.OpRevoke, Name: enrolled(2).Key})
	h.index++
	if err := ChangeMember(h.kv, h.index, &Member{ID: 1, Addr: "n1:9400"}, false); err != nil {
		t.Fatal(err)
	}
	seen := map[byte]bool{}
	h.kv.each("", func(k, _ []byte) { seen[k[0]] = true })
	for _, p := range []byte(prefixes) {
		if !seen[p] {
			t.Fatalf("the state has no row of prefix %c", p)
		}
	}
	return h
}

func TestCheckOfASoundState(t *testing.T) {
	h := sound(t)
	var want *CheckReport
	for _, slice := range []int{checkSlice, 1, 2, 3, 1000} {
		r, err := check(h.kv, slice)
		if err != nil || r.Faults != 0 {
			t.Fatalf("slices of %d: %v %+v", slice, err, r)
		}
		if want == nil {
			want = r
		}
		if r.AppliedIndex != h.index || r.Inodes != 5 || r.Stripes != 4 || r.Extents == 0 || r.Extents != want.Extents {
			t.Errorf("slices of %d: %+v", slice, r)
		}
	}
	if r, err := Check(h.kv); err != nil || r.Faults != 0 {
		t.Errorf("%v %+v", err, r)
	}
}

// TestCheckFindsEveryLostRow: no row of a state may be lost, or come twice under
// another key, without Check telling, whatever the slices.
func TestCheckFindsEveryLostRow(t *testing.T) {
	h := sound(t)
	// These say nothing that another row says as well.
	alone := func(k []byte) bool {
		return strings.ContainsRune("MNRXJPci", rune(k[0])) || bytes.Equal(k, markKey(markCluster)) || bytes.Equal(k, markKey(markApplied)) ||
			bytes.Equal(k, markKey(markStamp)) || bytes.Equal(k, markKey(markMapVersion))
	}
	unused := map[cfs.DeviceID]bool{} // devices that no group names
	m, _ := ReadMap(h.kv)
	for _, d := range m.Devices {
		unused[d.ID] = true
	}
	for _, g := range m.Groups {
		for _, s := range g.Slots {
			delete(unused, s.Device)
			delete(unused, s.Source)
		}
	}
	rows := 0
	h.kv.clone().each("", func(k, v []byte) {
		if alone(k) || k[0] == prefixDevice && unused[cfs.DeviceID(u32of(k[1:]))] {
			return
		}
		if k[0] == prefixGroup && !h.usedGroup(k) {
			return // a group that holds nothing may go
		}
		rows++
		for _, slice := range []int{1, checkSlice} {
			kv := h.kv.clone()
			kv.tree.Delete(pair{key: k})
			if r, err := check(kv, slice); err != nil || r.Faults == 0 || len(r.Examples) == 0 {
				t.Errorf("without %s, slices of %d: %v %+v", describe(k, v), slice, err, r)
			}
		}
	})
	if rows < 100 {
		t.Errorf("only %d rows were lost", rows)
	}
}

func (h *harness) usedGroup(k []byte) bool {
	_, ok := h.kv.tree.Get(pair{key: usageKey(cfs.PGID(u32of(k[1:])))})
	return ok
}

// TestCheckFindsBrokenRecords: a record that is cut, or of another version, is told,
// and does not end the check.
func TestCheckFindsBrokenRecords(t *testing.T) {
	h := sound(t)
	h.kv.clone().each("", func(k, v []byte) {
		if bytes.Equal(k, markKey(markCluster)) {
			return
		}
		marker := len(v) == 1 // a row that is only there
		for i, broken := range [][]byte{append([]byte{99}, v[1:]...), v[:len(v)-1], append(bytes.Clone(v), 7)} {
			free := k[0] == prefixXattr || k[0] == prefixMark && i == 0 // any bytes are a value
			if marker || free && i > 0 && k[0] != prefixMark || len(broken) == 0 || k[0] == prefixMark && i == 0 {
				continue
			}
			kv := h.kv.clone()
			kv.tree.Set(pair{k, broken})
			if r, err := check(kv, 2); err != nil || r.Faults == 0 {
				t.Errorf("%s as %x: %v %+v", describe(k, v), broken, err, r)
			}
		}
	})
}

// TestCheckFindsPlantedFaults: changes to single fields, each told in words that name it.
func TestCheckFindsPlantedFaults(t *testing.T) {
	inodeOf := func(name string) func(*tx) *inode {
		return func(x *tx) *inode {
			d, _ := load(x, direntKey(1, name), decodeDirent)
			n, _ := x.inode(d.ino)
			return n
		}
	}
	changeStripe := func(counter uint64, change func(*stripe)) func(*tx) {
		return func(x *tx) {
			key := stripeKey(1, cfs.StripeID{Session: 1, Counter: counter})
			s, _ := load(x, key, decodeStripe)
			change(s)
			x.set(key, encodeStripe(s))
		}
	}
	changeInode := func(name string, change func(*inode)) func(*tx) {
		return func(x *tx) {
			n := inodeOf(name)(x)
			change(n)
			x.set(inodeKey(n.Ino), encodeInode(n))
		}
	}
	for _, test := range []struct {
		name  string
		plant func(*tx)
		want  string
	}{
		{"a reference too many", changeStripe(2, func(s *stripe) { s.refs++ }), "1 references of 0 bytes that no extent makes"},
		{"numbers that were not given", func(x *tx) {
			x.set(inosKey(1), encodeInos([]inoRange{{1, cfs.MakeIno(0, 0, x.mark(markNextIno)+1)}}))
		}, "are broken, of no session, or not given yet"},
		{"a reference too few", changeStripe(2, func(s *stripe) { s.refs-- }), "-1 references"},
		{"live bytes", changeStripe(2, func(s *stripe) { s.live += 7 }), "0 references of 7 bytes"},
		{"length", changeStripe(2, func(s *stripe) { s.len++ }), "says 4096 bytes of stripe"},
		{"extent of no stripe", func(x *tx) {
			n := inodeOf("a")(x)
			x.set(extentKey(n.Ino, n.Map, 1<<20), encodeExtent(&cfs.Extent{Off: 1<<20 - 1, Len: 1, Kind: cfs.ExtentStripe, PG: 2, Stripe: cfs.StripeID{Session: 1, Counter: 77}, StripeLen: 1}))
		}, "names stripe 1.77 of group 2, which has no row"},
		{"rows that meet", func(x *tx) {
			n := inodeOf("a")(x)
			x.set(extentKey(n.Ino, n.Map, 4100), encodeExtent(&cfs.Extent{Off: 4000, Len: 100, Kind: cfs.ExtentUnwritten}))
		}, "meets the one that ends at 4096"},
		{"rows of a directory", func(x *tx) {
			x.set(extentKey(1, 0, 100), encodeExtent(&cfs.Extent{Len: 100, Kind: cfs.ExtentUnwritten}))
		}, "has extents but mode"},
		{"rows of no inode", func(x *tx) {
			x.set(extentKey(999, 1, 100), encodeExtent(&cfs.Extent{Len: 100, Kind: cfs.ExtentUnwritten}))
		}, "inode 999 map 1: live false and queued for deletion false"},
		{"part beyond the stripe", func(x *tx) {
			n := inodeOf("a")(x)
			row, _ := load(x, extentKey(n.Ino, n.Map, 4096), func(b []byte) (cfs.Extent, bool) { return decodeExtent(4096, b) })
			row.StripeOff = 1
			x.set(extentKey(n.Ino, n.Map, 4096), encodeExtent(&row))
		}, "goes beyond its stripe"},
		{"stored bytes", changeInode("a", func(n *inode) { n.stored++ }), "stored 8199, rows cover 8198"},
		{"stored bytes of a file without rows", func(x *tx) {
			x.set(inodeKey(500), encodeInode(&inode{Attr: cfs.Attr{Ino: 500, Mode: cfs.ModeRegular, Nlink: 1, Map: 1}, stored: 3}))
			x.set(direntKey(1, "z"), encodeDirent(dirent{500, cfs.ModeRegular}))
			x.addMark(markInodes, 1)
			x.setMark(markNextIno, 501)
		}, "inodes say that 12297 bytes are stored, rows cover 12294"},
		{"links", changeInode("a", func(n *inode) { n.Nlink++ }), "nlink 2, want 1"},
		{"links of a directory", changeInode("d", func(n *inode) { n.Nlink++ }), "nlink 3, want 2"},
		{"parent", changeInode("d", func(n *inode) { n.parent = 99 }), "has parent 99"},
		{"type", changeInode("d", func(n *inode) { n.Mode = cfs.ModeFIFO }), "type 40000 of inode 10000"},
		{"size of a link", changeInode("l", func(n *inode) { n.Size++ }), "is of no symbolic link of its length"},
		{"a name of nothing", func(x *tx) { x.set(direntKey(1, "zz"), encodeDirent(dirent{888, cfs.ModeRegular})) }, "there is no inode 888"},
		{"a name in a file", func(x *tx) {
			x.set(direntKey(2, "zz"), encodeDirent(dirent{2, cfs.ModeRegular}))
		}, "in inode 2, which is no directory"},
		{"an attribute of nothing", func(x *tx) { x.set(xattrKey(777, "user.y"), encodeBytes(nil)) }, "is broken or of no inode"},
		{"a reply of no session", func(x *tx) { x.set(replyKey(9, 1), encodeReply(&cfs.Reply{})) }, "of no session"},
		{"a hold of a name", func(x *tx) {
			x.set(holdKey(2, 1), []byte{recordVersion})
			x.set(heldByKey(1, 2), []byte{recordVersion})
		}, "hold of inode 2 by session 1: inode gone or named"},
		{"a stripe below its floor", func(x *tx) {
			s, _ := load(x, sessionKey(1), decodeSession)
			s.floor = 2
			x.set(sessionKey(1), encodeSession(s))
		}, "is neither referenced nor at or above its floor"},
		{"a stripe of no group", func(x *tx) {
			x.set(stripeKey(9999, cfs.StripeID{Session: 1, Counter: 50}), encodeStripe(&stripe{len: 1}))
		}, "in group 9999, which there is not"},
		{"zero row of a stripe in use", func(x *tx) { x.set(zeroKey(cfs.StripeID{Session: 1, Counter: 2}, 1), []byte{recordVersion}) }, "is listed without references"},
		{"use of a group", func(x *tx) { x.set(usageKey(1), encodeUsage(usage{9, 9})) }, "group 1 is said to hold {stripes:9 raw:9}"},
		{"use of no group", func(x *tx) { x.set(usageKey(9999), encodeUsage(usage{1, 9})) }, "group 9999 is said to hold"},
		{"raw bytes", func(x *tx) { x.addMark(markRaw, 1) }, "mark raw-bytes is"},
		{"inline bytes", func(x *tx) { x.addMark(markInline, 1) }, "mark inline-bytes is"},
		{"inodes", func(x *tx) { x.addMark(markInodes, 1) }, "mark inodes is"},
		{"sessions", func(x *tx) { x.addMark(markSessions, 1) }, "mark sessions is"},
		{"next inode", func(x *tx) { x.setMark(markNextIno, 3) }, "the next is 3"},
		{"feed", func(x *tx) { x.addMark(markFeedNext, 1) }, "the feed ends at"},
		{"a freed stripe in use", func(x *tx) {
			x.set(feedKey(x.mark(markFeedFirst)), encodeFreed(&cfs.Freed{PG: 1, Stripe: cfs.StripeID{Session: 1, Counter: 2}}))
		}, "is freed and has a row"},
		{"two shards on a device", func(x *tx) {
			g, _ := load(x, groupKey(3), decodePG)
			g.Slots[1] = g.Slots[0]
			x.set(groupKey(3), encodePG(g))
		}, "breaks the rule of placement"},
		{"a job of no device", func(x *tx) {
			x.set(jobKey(5), encodeJob(&cfs.Job{Device: 5, Kind: cfs.JobDrain, State: cfs.JobDone}))
		}, "job record"},
		{"a change of another number", func(x *tx) {
			k := changeKey(x.mark(markJournalTail), 0)
			r, _ := load(x, k, func(v []byte) (*changeRow, bool) { return decodeChange(k, v) })
			r.seq++
			x.set(k, encodeChange(r))
		}, "has number"},
		{"the journal's end", func(x *tx) { x.addMark(markJournalEnd, 1) }, "the journal ends at"},
		{"what consumers need", func(x *tx) { x.addMark(markJournalNeed, 1) }, "the consumers need the journal from index"},
		{"a consumer that is not lost", func(x *tx) { x.set(readerKey("a"), encodeReader(&cfs.Consumer{Index: 2})) }, "the consumers need the journal from index 2"},
		{"a consumer from the future", func(x *tx) { x.set(readerKey("a"), encodeReader(&cfs.Consumer{Index: 1 << 40})) }, "consumer record"},
		{"an unknown prefix", func(x *tx) { x.set([]byte("B1"), []byte{1}) }, "unknown prefix"},
		{"the last prefix of all", func(x *tx) { x.set([]byte{0xff, 1}, []byte{1}) }, "unknown prefix"},
		{"a key of another length", func(x *tx) { x.set(append(inodeKey(2), 0), encodeInode(&inode{})) }, "inode record"},
	} {
		for _, slice := range []int{1, checkSlice} {
			h := sound(t)
			x := &tx{kv: h.kv}
			test.plant(x)
			if err := x.commit(h.kv); err != nil || x.err != nil {
				t.Fatal(err, x.err)
			}
			r, err := check(h.kv, slice)
			if err != nil || r.Faults == 0 || !strings.Contains(strings.Join(r.Examples, "\n"), test.want) {
				t.Errorf("%s, slices of %d: %v %+v, want %q", test.name, slice, err, r, test.want)
			}
		}
	}
}

// A state of before groups' use was kept gets it; one that has it stays as it is.
func TestCountUsage(t *testing.T) {
	h := sound(t)
	want := h.kv.dump()
	if err := CountUsage(h.kv); err != nil || h.kv.dump() != want {
		t.Errorf("%v, changed\n%s", err, diff(want, h.kv.dump()))
	}
	h.kv.clone().each(string(rune(prefixUsage)), func(k, _ []byte) { h.kv.tree.Delete(pair{key: k}) })
	if h.kv.dump() == want {
		t.Fatal("nothing was lost")
	}
	// No group that holds something is dropped, whatever the count says.
	kv := h.kv.clone()
	if _, err := (&Machine{}).Apply(kv, h.index+1, 0, &cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpDropGroups, Groups: []cfs.PG{{ID: 1}}}}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := kv.tree.Get(pair{key: groupKey(1)}); !ok {
		t.Error("a group with stripes was dropped")
	}
	if err := CountUsage(h.kv); err != nil || h.kv.dump() != want {
		t.Errorf("%v, differs\n%s", err, diff(want, h.kv.dump()))
	}
}

// The examples are bounded, the faults are counted; a state that cannot be read is an error.
func TestCheckBounds(t *testing.T) {
	h := sound(t)
	for i := range 1000 {
		h.kv.tree.Set(pair{[]byte(fmt.Sprintf("B%d", i)), []byte{1}})
	}
	if r, err := Check(h.kv); err != nil || r.Faults != 1000 || len(r.Examples) != maxCheckExamples {
		t.Errorf("%v: %d faults, %d examples", err, r.Faults, len(r.Examples))
	}
	h = sound(t)
	calls := 0
	for after := 1; ; after += 17 {
		kv := h.kv.clone()
		kv.failAfter = after
		r, err := Check(kv)
		if err == nil {
			if r.Faults != 0 {
				t.Errorf("%+v", r)
			}
			break
		}
		if calls++; err != errBroken {
			t.Fatalf("after %d calls: %v", after, err)
		}
	}
	if calls < 5 {
		t.Errorf("failed only %d times", calls)
	}
}
