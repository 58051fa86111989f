package fsm

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// form is a kind of record: recode decodes b and encodes the outcome again.
type form struct {
	name   string
	recode func(b []byte) ([]byte, bool)
	seeds  [][]byte
}

func recoder[T any](decode func([]byte) (T, bool), encode func(T) []byte) func([]byte) ([]byte, bool) {
	return func(b []byte) ([]byte, bool) {
		v, ok := decode(b)
		if !ok {
			return nil, false
		}
		return encode(v), true
	}
}

// extents are keyed by their end, which the fuzzer chooses through a byte in front.
const fuzzEnd = 1 << 40

func forms() []form {
	attr := cfs.Attr{Ino: 7, Mode: cfs.ModeRegular | 0o644, Nlink: 2, UID: 3, GID: 4, Rdev: 5, Size: 6, Map: 8, Gen: 9, AtimeNS: -1, MtimeNS: 1, CtimeNS: 2, BtimeNS: 3}
	stripeExtent := cfs.Extent{Off: fuzzEnd - 4096, Len: 4096, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: 1, Counter: 2}, PG: 3, StripeOff: 4, StripeLen: 5}
	inlineExtent := inline(fuzzEnd-5, "hello")
	return []form{
		{"inode", recoder(decodeInode, encodeInode), [][]byte{encodeInode(&inode{Attr: attr, parent: 1, stored: 513})}},
		{"inode with more", recoder(decodeInode, encodeInode), [][]byte{encodeInode(&inode{Attr: attr, flags: inodeFlags})}},
		{"inode that is cut", recoder(decodeInode, encodeInode), [][]byte{encodeInode(&inode{Attr: attr, flags: hasACL, high: 9, cut: 4096}), encodeInode(&inode{Attr: attr, high: 9, cut: 1})}},
		{"dirent", recoder(decodeDirent, encodeDirent), [][]byte{encodeDirent(dirent{7, cfs.ModeDir})}},
		{"bytes", recoder(decodeBytes, encodeBytes), [][]byte{encodeBytes(nil), encodeBytes([]byte("target"))}},
		{"extent", recoder(func(b []byte) (cfs.Extent, bool) { return decodeExtent(fuzzEnd, b) }, func(x cfs.Extent) []byte { return encodeExtent(&x) }),
			[][]byte{encodeExtent(&stripeExtent), encodeExtent(&inlineExtent), encodeExtent(&cfs.Extent{Off: 0, Len: fuzzEnd, Kind: cfs.ExtentUnwritten})}},
		{"stripe", recoder(decodeStripe, encodeStripe), [][]byte{encodeStripe(&stripe{1, 2, 3, 4})}},
		{"session", recoder(decodeSession, encodeSession), [][]byte{encodeSession(&session{1, 2, 3, -4, "host:123"}), encodeSession(&session{})}},
		{"numbers", recoder(decodeInos, encodeInos), [][]byte{encodeInos([]inoRange{{5, 9}}), encodeInos([]inoRange{{5, 6}, {6, 8}, {9, 10}, {11, 12}})}},
		{"member", recoder(DecodeMember, EncodeMember), [][]byte{EncodeMember(&Member{ID: 1, Addr: "h:1", Learner: true, Replaces: 3, Replica: cfs.UUID{1}})}},
		{"node", recoder(decodeNode, encodeNode), [][]byte{encodeNode(&cfs.Node{ID: 1, Addr: "h:1", State: cfs.StateDown, Voter: true})}},
		{"device", recoder(decodeDevice, encodeDevice), [][]byte{encodeDevice(&cfs.Device{ID: 1, UUID: cfs.UUID{1, 15: 2}, State: cfs.StateUp, Capacity: 3, FeedPos: 4})}},
		{"device with flags", recoder(decodeDevice, encodeDevice), [][]byte{encodeDevice(&cfs.Device{ID: 1, State: cfs.StateDown, Draining: true}),
			encodeDevice(&cfs.Device{ID: 1, State: cfs.StateUp, Full: true}), encodeDevice(&cfs.Device{ID: 1, State: cfs.StateUp, Full: true, Draining: true})}},
		{"job", recoder(decodeJob, encodeJob), [][]byte{encodeJob(&cfs.Job{Device: 1, Kind: cfs.JobDrain, State: cfs.JobPaused, RateBytes: 2, DoneBytes: 3, TotalBytes: 4, StartedNS: 5, ChangedNS: -6})}},
		{"change", recoder(func(b []byte) (*changeRow, bool) { return decodeChange(changeKey(3, 1), b) }, encodeChange), [][]byte{
			encodeChange(&changeRow{Change: cfs.Change{Kind: cfs.OpWrite, TimeNS: -1, Session: 2, UID: 3, GID: 4, Ino: 5, Flags: 6, Mask: 7, Attr: attr, Was: 8,
				Extents: []cfs.Extent{{Off: 1, Len: 2, Kind: cfs.ExtentHole}, inline(9, "bytes"), {Off: 20, Len: 3, Kind: cfs.ExtentUnwritten},
					{Off: 30, Len: 4, Kind: cfs.ExtentStripe, PG: 1, Stripe: cfs.StripeID{Session: 2, Counter: 3}, StripeOff: 4, StripeLen: 8}}}, seq: 9, pos: 10}),
			encodeChange(&changeRow{Change: cfs.Change{Kind: cfs.OpRename, Ino: 5, Dir: 1, Name: "old", NewDir: 2, NewName: "new", Other: 6, Value: []byte("v")}})}},
		{"consumer", recoder(func(b []byte) (cfs.Consumer, bool) { return decodeReader(readerKey("x"), b) }, func(c cfs.Consumer) []byte { return encodeReader(&c) }),
			[][]byte{encodeReader(&cfs.Consumer{Index: 7, Lost: true})}},
		{"lock", recoder(decodeLocked, encodeLocked), [][]byte{encodeLocked(locked{end: wholeFile, typ: cfs.LockWrite, pid: 7})}},
		{"authority", recoder(decodeCA, encodeCA), [][]byte{encodeCA(&cfs.CA{Cert: []byte("cert"), Key: []byte("key")}), encodeCA(&cfs.CA{Off: true})}},
		{"token", recoder(func(b []byte) (*cfs.Token, bool) { return decodeToken("id", b) }, encodeToken),
			[][]byte{encodeToken(&cfs.Token{ID: "id", Role: cfs.RoleAdmin, ExpiresNS: -5, Hash: make([]byte, tokenHash)})}},
		{"enrolled", recoder(func(b []byte) (*cfs.Enrolled, bool) { return decodeEnrolled(enrolled(1).Key, b) }, encodeEnrolled), [][]byte{
			encodeEnrolled(&cfs.Enrolled{Role: cfs.RoleStorage, Node: 3, Name: "host", AtNS: -7}), encodeEnrolled(&cfs.Enrolled{Role: cfs.RoleClient})}},
		{"revoked", recoder(decodeRevoked, encodeRevoked), [][]byte{encodeRevoked(-7)}},
		{"usage", recoder(decodeUsage, encodeUsage), [][]byte{encodeUsage(usage{1, 24576})}},
		{"group", recoder(decodePG, encodePG), [][]byte{encodePG(&cfs.PG{ID: 1, Geometry: cfs.Geo1p2, Epoch: 2, Writable: true,
			Slots: []cfs.Slot{{Device: 1}, {Device: 2, Filling: true, Source: 9}, {Device: 3}}}), encodePG(&cfs.PG{})}},
		{"freed", recoder(func(b []byte) (cfs.Freed, bool) { return decodeFreed(5, b) }, func(f cfs.Freed) []byte { return encodeFreed(&f) }),
			[][]byte{encodeFreed(&cfs.Freed{PG: 1, Stripe: cfs.StripeID{Session: 2, Counter: 3}})}},
		{"reply", recoder(decodeReply, encodeReply), [][]byte{encodeReply(&cfs.Reply{Kind: cfs.NotEmpty, Failed: 3, Index: 99}),
			encodeReply(&cfs.Reply{Index: 1, Results: []cfs.Result{{}, {Attr: attr, NewDir: attr, Session: 5}}})}},
	}
}

// TestRecordsRoundTrip: what the machine writes it reads, and no prefix, no
// longer form and no other version of it.
func TestRecordsRoundTrip(t *testing.T) {
	for _, f := range forms() {
		for _, seed := range f.seeds {
			got, ok := f.recode(seed)
			if !ok || !bytes.Equal(got, seed) {
				t.Errorf("%s %x came back as %x %v", f.name, seed, got, ok)
			}
			other := bytes.Clone(seed)
			other[0]++
			if _, ok := f.recode(other); ok {
				t.Errorf("%s of version %d was read", f.name, other[0])
			}
			if f.name == "bytes" {
				continue // any length is right
			}
			for n := range seed {
				if f.name == "device with flags" && n == len(seed)-1 || f.name == "inode with more" && n == len(seed)-1 || f.name == "inode that is cut" && n == len(seed)-13 {
					continue // the record as it is where there are no flags
				}
				if _, ok := f.recode(seed[:n]); ok {
					t.Errorf("%s cut to %d of %d bytes was read", f.name, n, len(seed))
				}
			}
			if _, ok := f.recode(append(bytes.Clone(seed), 0)); ok {
				t.Errorf("%s with a byte more was read", f.name)
			}
		}
	}
}

// TestRecordValues: the fields survive, each in its place.
func TestRecordValues(t *testing.T) {
	want := &inode{Attr: cfs.Attr{Ino: 1, Mode: 2, Nlink: 3, UID: 4, GID: 5, Rdev: 6, Size: 7, Blocks: 3, Map: 9, Gen: 10, AtimeNS: 11, MtimeNS: 12, CtimeNS: -13, BtimeNS: 14},
		parent: 15, stored: 1025, flags: hasDefaultACL, high: 16, cut: 17}
	if got, ok := decodeInode(encodeInode(want)); !ok || *got != *want {
		t.Errorf("inode %+v, want %+v", got, want)
	}
	x := cfs.Extent{Off: 10, Len: 20, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: 1, Counter: 2}, PG: 3, StripeOff: 4, StripeLen: 99}
	if got, ok := decodeExtent(30, encodeExtent(&x)); !ok || !got.SameBytes(&x) || got.StripeLen != 99 {
		t.Errorf("extent %+v, want %+v", got, x)
	}
	if _, ok := decodeExtent(19, encodeExtent(&x)); ok {
		t.Error("an extent that would begin below 0 was read")
	}
	if n := len(encodePG(&cfs.PG{Slots: make([]cfs.Slot, maxSlots)})); n != 13+9*maxSlots {
		t.Errorf("the largest group takes %d bytes", n)
	}
}

// FuzzRecords: any bytes give a refusal or a value with that one form.
func FuzzRecords(f *testing.F) {
	all := forms()
	for i := range all {
		for _, seed := range all[i].seeds {
			f.Add(uint8(i), seed)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		form := all[int(which)%len(all)]
		given := bytes.Clone(b)
		got, ok := form.recode(b)
		if !bytes.Equal(b, given) {
			t.Fatalf("%s: the decoder wrote to its input", form.name)
		}
		if ok && !bytes.Equal(got, b) {
			t.Fatalf("%s: %x has the other form %x", form.name, b, got)
		}
	})
}

// TestBrokenRecordsHalt: a state whose records are damaged stops the machine, or
// leaves the damage unread, but never panics.
func TestBrokenRecordsHalt(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s := h.open("x")
	ino := h.create(s, "a")
	h.do(s, cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(0, "x"), {Off: 1, Len: 9, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: s, Counter: 1}, PG: 1, StripeLen: 9}},
		Epochs: []cfs.PGEpoch{{PG: 1, Epoch: 1}}})
	cmds := []*cfs.Command{
		{Session: s, Seq: 50, Floor: 9, LowWater: 2, Ops: []cfs.Op{{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(0, "yyyy")}}, {Kind: cfs.OpRename, Dir: 1, Name: "a", NewDir: 1, NewName: "b"}}},
		{Session: s, Seq: 51, Ops: []cfs.Op{{Kind: cfs.OpUnlink, Dir: 1, Name: "a", Hold: true}, {Kind: cfs.OpRelease, Ino: ino}}},
		{Ops: []cfs.Op{{Kind: cfs.OpExpireSession, Sess: s}, {Kind: cfs.OpReap}, {Kind: cfs.OpFeedDone, Device: cfs.Device{ID: cfs.MakeDeviceID(1, 0)}}}},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	halts := 0
	h.kv.clone().each("", func(k, v []byte) {
		for range 20 {
			kv := h.kv.clone()
			broken := bytes.Clone(v)
			switch rng.IntN(3) {
			case 0:
				broken = broken[:rng.IntN(len(broken))]
			case 1:
				broken = append(broken, byte(rng.Uint32()))
			default:
				broken[0] = 99
			}
			kv.tree.Set(pair{k, broken})
			for i, cmd := range cmds {
				before := kv.dump()
				if _, err := (&Machine{}).Apply(kv, h.index+1+uint64(i), 0, cmd); err != nil {
					if halts++; kv.dump() != before {
						t.Fatalf("halted over %s, but changed the state", describe(k, v))
					}
					break
				}
			}
			for kind := cfs.QueryLookup; kind <= cfs.QueryUsage; kind++ {
				Read(kv, &cfs.Query{Kind: kind, Dir: 1, Ino: ino, Name: "a", End: 100, WithAttrs: true})
			}
		}
	})
	if halts < 100 {
		t.Errorf("only %d of the damaged states stopped the machine", halts)
	}
}

// TestBrokenKVHalts: a KV that fails at any call gives its error, not a reply.
func TestBrokenKVHalts(t *testing.T) {
	h := newHarness(t)
	h.cluster(3, 2)
	s := h.open("x")
	ino := h.create(s, "a")
	cmd := &cfs.Command{Session: s, Seq: 9, Ops: []cfs.Op{{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(0, "yyyy")}}, {Kind: cfs.OpUnlink, Dir: 1, Name: "a"}}}
	for calls := 1; ; calls++ {
		kv := h.kv.clone()
		kv.failAfter = calls
		reply, err := (&Machine{}).Apply(kv, h.index+1, 0, cmd)
		if err == nil {
			if reply.Kind != cfs.KindOK || calls < 10 {
				t.Errorf("after %d calls: %+v", calls, reply)
			}
			return
		}
		if err != errBroken {
			t.Fatalf("after %d calls: %v", calls, err)
		}
	}
}

func TestUnknownOperationsHalt(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	for _, session := range []cfs.SessionID{0, s} {
		for _, kind := range []cfs.OpKind{0, cfs.OpKind(len(carriers)), 255} {
			before := h.kv.dump()
			reply, err := h.try(&cfs.Command{Session: session, Ops: []cfs.Op{{Kind: kind}}})
			if reply != nil || cfs.KindOf(err) != cfs.BadRequest {
				t.Errorf("session %d, operation %d: %+v %v, want a halt", session, kind, reply, err)
			}
			if h.kv.dump() != before {
				t.Errorf("session %d, operation %d changed the state", session, kind)
			}
		}
	}
}

// The marks are bare numbers; the audit of the tests reads them the same way.
func TestAppliedIndex(t *testing.T) {
	kv := newState(t)
	if err := SetApplied(kv, 1<<40); err != nil {
		t.Fatal(err)
	}
	if got, err := AppliedIndex(kv); got != 1<<40 || err != nil {
		t.Errorf("applied %d %v", got, err)
	}
	p, _ := kv.tree.Get(pair{key: markKey(markApplied)})
	if binary.LittleEndian.Uint64(p.val) != 1<<40 {
		t.Errorf("mark %x", p.val)
	}
}

func encodeReply(r *cfs.Reply) []byte { return newEnc(16).reply(r) }
