package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func randomHeader(rng *rand.Rand) header {
	h := header{
		op: Op(1 + rng.IntN(255)), flags: []uint16{0, flagReply, flagReply | flagError}[rng.IntN(3)],
		id: rng.Uint64(), trace: rng.Uint64(), timeoutMS: rng.Uint32(),
		bodyLen: rng.Uint32N(MaxBody + 1), payloadLen: rng.Uint32N(MaxPayload + 1), bodyCRC: rng.Uint32(),
	}
	return h
}

func TestHeaderRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		want := randomHeader(rng)
		var b [HeaderSize]byte
		want.encode(b[:])
		var got header
		if flt := got.decode(b[:]); flt != nil || got != want {
			t.Fatalf("%+v became %+v: %+v", want, got, flt)
		}
	}
}

// The bytes are a format: docs/format/wire.md shows this very header.
func TestHeaderBytesAreStable(t *testing.T) {
	h := header{op: OpPutShard, flags: flagReply, id: 0x0102030405060708, trace: 0x1112131415161718, timeoutMS: 1500, bodyLen: 5, payloadLen: 4096, bodyCRC: 0xcafebabe}
	b := make([]byte, HeaderSize)
	h.encode(b)
	const want = "43465357" + "01" + "03" + "0100" + "0807060504030201" + "1817161514131211" + "dc050000" + "05000000" + "00100000" + "bebafeca" + "00000000" + "7973a7b8"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("header is\n%s, want\n%s", got, want)
	}
}

func TestOpNumbersAreStable(t *testing.T) {
	for op, want := range map[Op]uint8{OpHello: 1, OpPing: 2, OpPutShard: 3, OpGetShard: 4, OpDeleteShards: 5, OpListShards: 6, OpCommand: 7, OpQuery: 8, OpHeartbeat: 9, OpStatus: 10, OpRaft: 11, OpSnapshot: 12, OpAdmin: 13, OpInspect: 14, OpReportShard: 15, OpCheckState: 16} {
		if uint8(op) != want {
			t.Errorf("%s is %d, was %d", op, op, want)
		}
	}
	for op := OpHello; op < opEnd; op++ {
		if opNames[op] == "" {
			t.Errorf("op %d has no name", op)
		}
	}
}

// reseal makes the header's CRC right again after a change.
func reseal(b []byte) {
	crc := crc32.Checksum(b[:offHeaderCRC], castagnoli)
	for i := range 4 {
		b[offHeaderCRC+i] = byte(crc >> (8 * i))
	}
}

func TestHeaderFaultsNameTheField(t *testing.T) {
	for _, c := range []struct {
		field string
		kind  cfs.Kind
		off   int
		edit  func(b []byte)
	}{
		{"magic", cfs.BadRequest, 0, func(b []byte) { b[0] = 'X' }},
		{"version", cfs.Unsupported, 4, func(b []byte) { b[offVersion] = 9; reseal(b) }},
		{"header CRC", cfs.Corrupt, 44, func(b []byte) { b[offTrace] ^= 1 }},
		{"op", cfs.BadRequest, 5, func(b []byte) { b[offOp] = 0; reseal(b) }},
		{"flags", cfs.BadRequest, 6, func(b []byte) { b[offFlags+1] = 0x80; reseal(b) }},
		{"flags", cfs.BadRequest, 6, func(b []byte) { b[offFlags] = flagError; reseal(b) }},
		{"flags", cfs.BadRequest, 6, func(b []byte) { b[offFlags] = flagCancel; reseal(b) }},
		{"flags", cfs.BadRequest, 6, func(b []byte) { b[offFlags] = flagOneWay; reseal(b) }},
		{"body length", cfs.BadRequest, 28, func(b []byte) { b[offBodyLen+3] = 1; reseal(b) }},
		{"payload length", cfs.BadRequest, 32, func(b []byte) { b[offPayloadLen+3] = 1; reseal(b) }},
		{"reserved", cfs.BadRequest, 40, func(b []byte) { b[offReserved] = 1; reseal(b) }},
	} {
		h := header{op: OpGetShard, id: 1, bodyLen: 10}
		b := make([]byte, HeaderSize)
		h.encode(b)
		c.edit(b)
		flt := h.decode(b)
		if flt == nil || flt.field != c.field || flt.kind != c.kind || flt.off != c.off {
			t.Errorf("%s: %+v", c.field, flt)
			continue
		}
		r := frameReader{peer: "host:1", frame: 1000}
		err := r.fault(flt)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), "host:1") || !strings.Contains(err.Error(), c.field) || !strings.Contains(err.Error(), "offset 10") {
			t.Errorf("%s: error %q", c.field, err)
		}
	}
}

// Every single flipped bit of a header is noticed.
func TestHeaderBitFlips(t *testing.T) {
	h := header{op: OpGetShard, id: 77, trace: 1 << 40, timeoutMS: 3, bodyLen: 10, payloadLen: 4096}
	good := make([]byte, HeaderSize)
	h.encode(good)
	for bit := range HeaderSize * 8 {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		if flt := new(header).decode(b); flt == nil {
			t.Errorf("bit %d flipped: accepted", bit)
		}
	}
}

func TestHeaderNoAllocations(t *testing.T) {
	h := header{op: OpGetShard, id: 1, trace: 2, bodyLen: 3}
	b := make([]byte, HeaderSize)
	if n := testing.AllocsPerRun(100, func() {
		h.encode(b)
		if h.decode(b) != nil {
			panic("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzHeader(f *testing.F) {
	rng := rand.New(rand.NewPCG(2, 2))
	for range 8 {
		h := randomHeader(rng)
		b := make([]byte, HeaderSize)
		h.encode(b)
		f.Add(b, true)
		b[rng.IntN(HeaderSize)]++
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		b = append(b, make([]byte, HeaderSize)...)[:HeaderSize]
		if seal {
			reseal(b)
		}
		var h header
		if flt := h.decode(b); flt != nil {
			if flt.field == "" || flt.off >= HeaderSize {
				t.Errorf("fault %+v", flt)
			}
			return
		}
		if h.bodyLen > MaxBody || h.payloadLen > MaxPayload {
			t.Errorf("accepted lengths %+v", h)
		}
		again := make([]byte, HeaderSize)
		h.encode(again)
		if !bytes.Equal(b, again) {
			t.Errorf("%x decodes and encodes to %x", b, again)
		}
	})
}
