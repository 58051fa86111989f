package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// filler makes values in which every field is set, so that one that a
// converter forgets is missed.
type filler struct{ *rand.Rand }

func (f filler) name() string {
	b := make([]byte, 1+f.IntN(cfs.MaxName))
	for i := range b {
		for b[i] == 0 || b[i] == '/' {
			b[i] = byte(f.Uint32())
		}
	}
	return string(b)
}

// fill sets v to something random and not zero, with the types of cfs as they may be.
func (f filler) fill(v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *cfs.State:
		*p = cfs.State(1 + f.IntN(4))
		return
	case *cfs.OpKind:
		*p = cfs.OpKind(1 + f.IntN(int(cfs.OpSetReplica)))
		return
	case *cfs.QueryKind:
		*p = cfs.QueryKind(1 + f.IntN(int(cfs.QueryEnrolled)))
		return
	case *cfs.Extent:
		f.extent(p)
		return
	case *cfs.PG:
		*p = cfs.PG{ID: cfs.PGID(1 + f.Uint32()), Geometry: cfs.Geo4p2, Epoch: cfs.Epoch(1 + f.Uint32()), Writable: true, Slots: make([]cfs.Slot, 6)}
		for i := range p.Slots {
			f.fill(reflect.ValueOf(&p.Slots[i]).Elem())
		}
		return
	case *cfs.DeviceID:
		*p = cfs.MakeDeviceID(cfs.NodeID(1+f.IntN(65535)), uint16(f.Uint32()))
		return
	case *cfs.JobKind:
		*p = cfs.JobKind(1 + f.IntN(int(cfs.JobRebalance)))
		return
	case *cfs.JobState:
		*p = cfs.JobState(1 + f.IntN(int(cfs.JobCancelled)))
		return
	case *cfs.Fate:
		*p = cfs.Fate(1 + f.IntN(int(cfs.FateDead)))
		return
	case *cfs.Window:
		*p = cfs.Window{Ino: cfs.Ino(1 + f.Uint64()>>1), Off: f.Uint64() >> 2, End: f.Uint64() >> 2}
		return
	case *cfs.Lock:
		start := f.Uint64() >> 1
		*p = cfs.Lock{Kind: cfs.LockKind(1 + f.IntN(2)), Type: cfs.LockType(f.IntN(3)), Owner: f.Uint64(), Start: start, End: start + f.Uint64()>>1, PID: f.Uint32(), Session: cfs.SessionID(f.Uint64())}
		return
	case *cfs.Role:
		*p = cfs.Role(1 + f.IntN(int(cfs.RoleAdmin)))
		return
	case *cfs.Cred:
		*p = cfs.Cred{UID: 1 + f.Uint32(), GID: 1 + f.Uint32(), Groups: []uint32{0, f.Uint32()}, Enforce: true}
		return
	}
	f.plain(v)
}

func (f filler) plain(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		for v.IsZero() {
			v.SetUint(f.Uint64() >> (64 - v.Type().Bits()))
		}
	case reflect.Int64:
		v.SetInt(f.Int64() - 1<<62)
	case reflect.String:
		v.SetString(f.name())
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+f.IntN(4), 4))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i))
		}
	default:
		panic(fmt.Sprintf("fill %v", v.Type()))
	}
}

func (f filler) extent(e *cfs.Extent) {
	*e = cfs.Extent{Off: f.Uint64() >> 2, Len: 1 + f.Uint64N(1<<20), Kind: cfs.ExtentKind(f.IntN(4))}
	switch e.Kind {
	case cfs.ExtentInline:
		e.Inline = make([]byte, 1+f.IntN(cfs.MaxInline))
		e.Len = uint64(len(e.Inline))
	case cfs.ExtentStripe:
		e.Stripe = cfs.StripeID{Session: cfs.SessionID(1 + f.Uint64()), Counter: f.Uint64()}
		e.PG, e.StripeOff = cfs.PGID(1+f.Uint32()), 1+f.Uint32N(1<<20)
		e.StripeLen = e.StripeOff + uint32(e.Len) + f.Uint32N(1<<20)
	}
}

// text makes every string valid UTF-8, for the fields that are protobuf strings.
func text(nodes []cfs.Node) {
	for i := range nodes {
		nodes[i].Addr = fmt.Sprintf("host%d:9400", i)
	}
}

// overTheWire is m encoded and decoded.
func overTheWire[M proto.Message](t testing.TB, m, empty M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, empty); err != nil {
		t.Fatal(err)
	}
	return empty
}

func same(t *testing.T, want, got any, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\nof %+v", err, want)
	}
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("became\n%+v, was\n%+v", got, want)
	}
}

func TestConversionsKeepEveryField(t *testing.T) {
	f := filler{rand.New(rand.NewPCG(1, 1))}
	for range 300 {
		var cmd cfs.Command
		f.fill(reflect.ValueOf(&cmd).Elem())
		for i := range cmd.Ops {
			cmd.Ops[i].Node.Addr = "host:1"
			if cmd.Ops[i].Kind == cfs.OpOpenSession {
				cmd.Ops[i].Name = strings.ToValidUTF8(cmd.Ops[i].Name, "x")
			}
		}
		gotCmd, err := CommandFromPB(overTheWire(t, CommandToPB(&cmd), &wirepb.Command{}))
		same(t, &cmd, gotCmd, err)

		var reply cfs.Reply
		f.fill(reflect.ValueOf(&reply).Elem())
		gotReply, err := ReplyFromPB(overTheWire(t, ReplyToPB(&reply), &wirepb.Reply{}))
		same(t, &reply, gotReply, err)

		var q cfs.Query
		f.fill(reflect.ValueOf(&q).Elem())
		gotQ, err := QueryFromPB(overTheWire(t, QueryToPB(&q), &wirepb.Query{}))
		same(t, &q, gotQ, err)

		var a cfs.Answer
		f.fill(reflect.ValueOf(&a).Elem())
		a.Map.ClusterID = "cluster"
		text(a.Map.Nodes)
		gotA, err := AnswerFromPB(overTheWire(t, AnswerToPB(&a), &wirepb.Answer{}))
		same(t, &a, gotA, err)
		gotMap, err := MapFromPB(overTheWire(t, MapToPB(a.Map), &wirepb.Map{}))
		same(t, a.Map, gotMap, err)

		same(t, a.Attr, AttrFromPB(overTheWire(t, AttrToPB(&a.Attr), &wirepb.Attr{})), nil)
		same(t, a.Statfs, StatfsFromPB(overTheWire(t, StatfsToPB(&a.Statfs), &wirepb.Statfs{})), nil)
		node, err := NodeFromPB(overTheWire(t, NodeToPB(a.Map.Nodes[0]), &wirepb.Node{}))
		same(t, a.Map.Nodes[0], node, err)
		dev, err := DeviceFromPB(overTheWire(t, DeviceToPB(a.Map.Devices[0]), &wirepb.Device{}))
		same(t, a.Map.Devices[0], dev, err)
		id, shard, err := ShardKeyFromPB(overTheWire(t, ShardKeyToPB(a.Freed[0].Stripe, 7), &wirepb.ShardKey{}))
		same(t, [2]any{a.Freed[0].Stripe, uint8(7)}, [2]any{id, shard}, err)
	}
}

// What is not set stays so: an operation is flat and mostly empty.
func TestConversionsOfAlmostNothing(t *testing.T) {
	for kind := cfs.OpCreate; kind.Valid(); kind++ {
		cmd := cfs.Command{Ops: []cfs.Op{{Kind: kind}}}
		switch kind {
		case cfs.OpCreate, cfs.OpLink, cfs.OpUnlink, cfs.OpRmdir:
			cmd.Ops[0].Name = "n"
		case cfs.OpRename:
			cmd.Ops[0].Name, cmd.Ops[0].NewName = "n", "m"
		}
		got, err := CommandFromPB(overTheWire(t, CommandToPB(&cmd), &wirepb.Command{}))
		same(t, &cmd, got, err)
	}
	cmd, err := CommandFromPB(overTheWire(t, CommandToPB(&cfs.Command{}), &wirepb.Command{}))
	same(t, &cfs.Command{}, cmd, err)
	reply, err := ReplyFromPB(overTheWire(t, ReplyToPB(&cfs.Reply{}), &wirepb.Reply{}))
	same(t, &cfs.Reply{}, reply, err)
	answer, err := AnswerFromPB(overTheWire(t, AnswerToPB(&cfs.Answer{}), &wirepb.Answer{}))
	same(t, &cfs.Answer{}, answer, err)
	q, err := QueryFromPB(overTheWire(t, QueryToPB(&cfs.Query{Kind: cfs.QueryReadDir}), &wirepb.Query{}))
	same(t, &cfs.Query{Kind: cfs.QueryReadDir}, q, err)
}

func TestConversionsRefuse(t *testing.T) {
	command := func(op *wirepb.Op) func() error {
		return func() error {
			_, err := CommandFromPB(&wirepb.Command{Ops: []*wirepb.Op{op}})
			return err
		}
	}
	write := func(e *wirepb.Extent) func() error {
		return command(&wirepb.Op{Kind: uint32(cfs.OpWrite), Extents: []*wirepb.Extent{e}})
	}
	name := func(s string) func() error {
		return command(&wirepb.Op{Kind: uint32(cfs.OpUnlink), Name: []byte(s)})
	}
	for what, f := range map[string]func() error{
		"op kind 0":             command(&wirepb.Op{}),
		"op kind 256":           command(&wirepb.Op{Kind: 256 + uint32(cfs.OpReap)}),
		"op kind of the future": command(&wirepb.Op{Kind: 255}),
		"name empty":            name(""),
		"name with a slash":     name("a/b"),
		"name with a NUL":       name("a\x00"),
		"name long":             name(strings.Repeat("n", 256)),
		"new name":              command(&wirepb.Op{Kind: uint32(cfs.OpRename), Name: []byte("a")}),
		"xattr name long":       command(&wirepb.Op{Kind: uint32(cfs.OpSetXattr), Name: make([]byte, 256)}),
		"xattr value long":      command(&wirepb.Op{Kind: uint32(cfs.OpSetXattr), Name: []byte("user.a"), Value: make([]byte, cfs.MaxXattrValue+1)}),
		"symlink long":          command(&wirepb.Op{Kind: uint32(cfs.OpCreate), Name: []byte("a"), Value: make([]byte, cfs.MaxSymlink+1)}),
		"node id":               command(&wirepb.Op{Kind: uint32(cfs.OpSetNode), Node: &wirepb.Node{Id: 1 << 16}}),
		"node id 0":             command(&wirepb.Op{Kind: uint32(cfs.OpSetNode), Node: &wirepb.Node{}}),
		"node state":            command(&wirepb.Op{Kind: uint32(cfs.OpSetNode), Node: &wirepb.Node{Id: 1, State: 5}}),
		"device uuid":           command(&wirepb.Op{Kind: uint32(cfs.OpSetDevice), Device: &wirepb.Device{Id: 1 << 16, Uuid: []byte("x")}}),
		"device of no node":     command(&wirepb.Op{Kind: uint32(cfs.OpSetDevice), Device: &wirepb.Device{Id: 7}}),
		"geometry":              command(&wirepb.Op{Kind: uint32(cfs.OpSetGroups), Groups: []*wirepb.PG{{K: 4, M: 2}}}),
		"geometry large":        command(&wirepb.Op{Kind: uint32(cfs.OpSetGroups), Groups: []*wirepb.PG{{K: 200, M: 200}}}),
		"geometry 0":            command(&wirepb.Op{Kind: uint32(cfs.OpSetGroups), Groups: []*wirepb.PG{{}}}),
		"extent kind":           write(&wirepb.Extent{Kind: 5, Len: 1}),
		"extent end":            write(&wirepb.Extent{Off: 1 << 63, Len: 1}),
		"extent end overflows":  write(&wirepb.Extent{Off: 10, Len: 1<<64 - 5}),
		"inline short":          write(&wirepb.Extent{Kind: 1, Len: 2, Inline: []byte("x")}),
		"inline long":           write(&wirepb.Extent{Kind: 1, Len: cfs.MaxInline + 1, Inline: make([]byte, cfs.MaxInline+1)}),
		"bytes in a hole":       write(&wirepb.Extent{Kind: 0, Len: 1, Inline: []byte("x")}),
		"stripe part":           write(&wirepb.Extent{Kind: 2, Len: 10, StripeOff: 1, StripeLen: 10}),
		"stripe part overflows": write(&wirepb.Extent{Kind: 2, Len: 2, StripeOff: 1<<32 - 1, StripeLen: 10}),
		"stripe long":           write(&wirepb.Extent{Kind: 2, Len: 2, StripeLen: 1<<32 - 1}),
		"extents": func() error {
			_, err := CommandFromPB(&wirepb.Command{Ops: []*wirepb.Op{{Extents: make([]*wirepb.Extent, 1000)}, {Extents: make([]*wirepb.Extent, 25)}}})
			return err
		},
		"epochs": command(&wirepb.Op{Epochs: make([]*wirepb.PGEpoch, 1025)}),
		"ops": func() error {
			_, err := CommandFromPB(&wirepb.Command{Ops: make([]*wirepb.Op, MaxOps+1)})
			return err
		},
		"groups": func() error {
			_, err := CommandFromPB(&wirepb.Command{Groups: make([]uint32, MaxCredGroups+1)})
			return err
		},
		"query kind": func() error { _, err := QueryFromPB(&wirepb.Query{Kind: 255}); return err },
		"query stripes": func() error {
			_, err := QueryFromPB(&wirepb.Query{Kind: uint32(cfs.QueryFates), Stripes: make([]*wirepb.StripeRef, cfs.MaxFates+1)})
			return err
		},
		"fate":          func() error { _, err := AnswerFromPB(&wirepb.Answer{Fates: []uint32{4}}); return err },
		"window":        func() error { _, err := AnswerFromPB(&wirepb.Answer{Next: &wirepb.Window{Off: 1 << 63}}); return err },
		"job":           command(&wirepb.Op{Kind: uint32(cfs.OpSetJob), Job: &wirepb.Job{Device: 1 << 16, Kind: 9, State: 1}}),
		"query name":    func() error { _, err := QueryFromPB(&wirepb.Query{Kind: 1}); return err },
		"reply kind":    func() error { _, err := ReplyFromPB(&wirepb.Reply{Kind: 256}); return err },
		"reply failed":  func() error { _, err := ReplyFromPB(&wirepb.Reply{Failed: 1 << 16}); return err },
		"answer kind":   func() error { _, err := AnswerFromPB(&wirepb.Answer{Kind: 256}); return err },
		"answer entry":  func() error { _, err := AnswerFromPB(&wirepb.Answer{Entries: []*wirepb.Dirent{{}}}); return err },
		"answer extent": func() error { _, err := AnswerFromPB(&wirepb.Answer{Extents: []*wirepb.Extent{{Kind: 9}}}); return err },
		"map node": func() error {
			_, err := MapFromPB(&wirepb.Map{Nodes: []*wirepb.Node{{Addr: strings.Repeat("x", 301), Id: 1}}})
			return err
		},
		"shard":        func() error { _, _, err := ShardKeyFromPB(&wirepb.ShardKey{Shard: 256}); return err },
		"no shard key": func() error { _, _, err := ShardKeyFromPB(nil); return err },
		"device":       func() error { _, err := DeviceFromPB(&wirepb.Device{State: 9, Id: 1 << 16}); return err },
		"node":         func() error { _, err := NodeFromPB(nil); return err },
	} {
		if err := f(); !errors.Is(err, cfs.BadRequest) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Kinds of a newer version are not this side's to refuse.
func TestKindsOfANewerVersionPass(t *testing.T) {
	r, err := ReplyFromPB(&wirepb.Reply{Kind: 200})
	if err != nil || r.Kind != cfs.Kind(200) {
		t.Errorf("%+v, %v", r, err)
	}
}

// fuzzConversion: whatever decodes is stable under another round.
func fuzzConversion[M proto.Message, V any](f *testing.F, empty func() M, from func(M) (V, error), to func(V) M, seeds ...M) {
	for _, m := range seeds {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := empty()
		if proto.Unmarshal(b, m) != nil {
			return
		}
		v, err := from(m)
		if err != nil {
			if !errors.Is(err, cfs.BadRequest) {
				t.Errorf("refused with %v", err)
			}
			return
		}
		again, err := from(overTheWire(t, to(v), empty()))
		if err != nil || !reflect.DeepEqual(v, again) {
			t.Errorf("%+v became %+v, %v", v, again, err)
		}
	})
}

func seed[V any](n uint64) *V {
	v := new(V)
	filler{rand.New(rand.NewPCG(n, n))}.fill(reflect.ValueOf(v).Elem())
	return v
}

func FuzzCommand(f *testing.F) {
	a, b := seed[cfs.Command](1), seed[cfs.Command](2)
	fuzzConversion(f, func() *wirepb.Command { return &wirepb.Command{} }, CommandFromPB, CommandToPB, CommandToPB(a), CommandToPB(b))
}

func FuzzReply(f *testing.F) {
	fuzzConversion(f, func() *wirepb.Reply { return &wirepb.Reply{} }, ReplyFromPB, ReplyToPB, ReplyToPB(seed[cfs.Reply](1)))
}

func FuzzQuery(f *testing.F) {
	fuzzConversion(f, func() *wirepb.Query { return &wirepb.Query{} }, QueryFromPB, QueryToPB, QueryToPB(seed[cfs.Query](1)))
}

func FuzzAnswer(f *testing.F) {
	a := seed[cfs.Answer](1)
	fuzzConversion(f, func() *wirepb.Answer { return &wirepb.Answer{} }, AnswerFromPB, AnswerToPB, AnswerToPB(a))
}

func FuzzMap(f *testing.F) {
	fuzzConversion(f, func() *wirepb.Map { return &wirepb.Map{} }, MapFromPB, MapToPB, MapToPB(seed[cfs.Map](1)))
}
