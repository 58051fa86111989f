package ec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

var geometries = []cfs.Geometry{cfs.Geo4p2, cfs.Geo3p2, cfs.Geo2p2, cfs.Geo1p2, {K: 8, M: 3}, {K: 1, M: 1}, {K: 5, M: 1}}

func fill(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// stripe is an encoded stripe of random bytes: the data and all its shards.
func stripe(t testing.TB, rng *rand.Rand, c *Codec, n uint32) (data []byte, shards [][]byte) {
	t.Helper()
	g := c.Geometry()
	buf := make([]byte, StripeBytes(g, n))
	fill(rng, buf) // dirty padding too
	shards, err := Split(nil, g, n, buf)
	if err != nil {
		t.Fatal(err)
	}
	for range g.M {
		shards = append(shards, make([]byte, len(shards[0])))
	}
	if err := c.Encode(shards); err != nil {
		t.Fatal(err)
	}
	return buf[:n], shards
}

func codec(t testing.TB, g cfs.Geometry) *Codec {
	t.Helper()
	c, err := New(g)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// erase copies the block range [lo, hi) of each shard and empties lost of them.
func erase(rng *rand.Rand, shards [][]byte, lo, hi, lost int) [][]byte {
	out := make([][]byte, len(shards))
	for i, s := range shards {
		out[i] = slices.Clone(s[lo:hi])
	}
	for _, i := range rng.Perm(len(shards))[:lost] {
		switch rng.IntN(3) {
		case 0:
			out[i] = nil
		case 1:
			out[i] = make([]byte, 0, hi-lo)
		case 2:
			fill(rng, out[i])
			out[i] = out[i][:0]
		}
	}
	return out
}

func TestReconstructAnyErasureOfAnyBlockRange(t *testing.T) {
	for _, g := range geometries {
		c := codec(t, g)
		rng := rand.New(rand.NewPCG(1, uint64(g.K)<<8|uint64(g.M)))
		for range 200 {
			n := 1 + rng.Uint32N(g.MaxData()/16)
			_, shards := stripe(t, rng, c, n)
			if ok, err := c.Verify(shards); err != nil || !ok {
				t.Fatalf("%v, %d bytes: verify %v %v", g, n, ok, err)
			}
			blocks := len(shards[0]) / cfs.BlockSize
			lo := rng.IntN(blocks)
			hi := lo + 1 + rng.IntN(blocks-lo)
			lo, hi = lo*cfs.BlockSize, hi*cfs.BlockSize
			got := erase(rng, shards, lo, hi, rng.IntN(int(g.M)+1))
			if err := c.Reconstruct(got, nil); err != nil {
				t.Fatalf("%v, %d bytes: %v", g, n, err)
			}
			for i := range got {
				if !bytes.Equal(got[i], shards[i][lo:hi]) {
					t.Fatalf("%v, %d bytes, range [%d,%d): shard %d differs", g, n, lo, hi, i)
				}
			}
		}
	}
}

func TestReconstructOnlyWhatIsWanted(t *testing.T) {
	for _, g := range geometries {
		c := codec(t, g)
		rng := rand.New(rand.NewPCG(2, uint64(g.K)))
		for range 50 {
			_, shards := stripe(t, rng, c, 1+rng.Uint32N(g.MaxData()/32))
			got := erase(rng, shards, 0, len(shards[0]), int(g.M))
			memory := make([]*byte, len(got))
			want := make([]bool, len(got))
			missing := make([]bool, len(got))
			for i := range got {
				missing[i] = len(got[i]) == 0
				want[i] = missing[i] && rng.IntN(2) == 0
				if cap(got[i]) > 0 {
					memory[i] = &got[i][:1][0]
				}
			}
			if err := c.Reconstruct(got, want); err != nil {
				t.Fatal(err)
			}
			for i := range got {
				switch {
				case missing[i] && !want[i]:
					if len(got[i]) != 0 {
						t.Fatalf("%v: shard %d was not wanted", g, i)
					}
				case !bytes.Equal(got[i], shards[i]):
					t.Fatalf("%v: shard %d differs", g, i)
				case memory[i] != nil && memory[i] != &got[i][0]:
					t.Fatalf("%v: shard %d is not in its caller's memory", g, i)
				}
			}
		}
	}
}

func TestVerifySeesAnyFlippedBit(t *testing.T) {
	for _, g := range geometries {
		c := codec(t, g)
		rng := rand.New(rand.NewPCG(3, 3))
		for range 50 {
			_, shards := stripe(t, rng, c, 1+rng.Uint32N(64<<10))
			s := shards[rng.IntN(len(shards))]
			s[rng.IntN(len(s))] ^= 1 << rng.IntN(8)
			if ok, err := c.Verify(shards); err != nil || ok {
				t.Fatalf("%v: verify %v %v", g, ok, err)
			}
		}
	}
}

func TestCodecRefuses(t *testing.T) {
	for _, g := range []cfs.Geometry{{}, {K: 4}, {M: 2}, {K: 200, M: 100}} {
		if _, err := New(g); !errors.Is(err, cfs.Invalid) {
			t.Errorf("%v: %v", g, err)
		}
	}
	for _, g := range []cfs.Geometry{cfs.Geo4p2, cfs.Geo1p2} {
		c := codec(t, g)
		shards := func(size int) [][]byte {
			s := make([][]byte, g.Total())
			for i := range s {
				s[i] = make([]byte, size)
			}
			return s
		}
		uneven := shards(4096)
		uneven[g.Total()-1] = make([]byte, 8192)
		hole := shards(4096)
		hole[0] = nil
		for name, s := range map[string][][]byte{"none": nil, "few": shards(4096)[1:], "empty": shards(0), "uneven": uneven, "hole": hole} {
			if err := c.Encode(s); !errors.Is(err, cfs.Invalid) {
				t.Errorf("%v encode %s: %v", g, name, err)
			}
			if _, err := c.Verify(s); !errors.Is(err, cfs.Invalid) {
				t.Errorf("%v verify %s: %v", g, name, err)
			}
		}
		lost := shards(4096)
		for i := range int(g.M) + 1 {
			lost[i] = nil
		}
		if err := c.Reconstruct(lost, nil); !errors.Is(err, cfs.Unavailable) {
			t.Errorf("%v: more than m lost: %v", g, err)
		}
		if err := c.Reconstruct(shards(4096), make([]bool, 1)); !errors.Is(err, cfs.Invalid) {
			t.Errorf("%v: short want: %v", g, err)
		}
		if err := c.Reconstruct(uneven, nil); !errors.Is(err, cfs.Invalid) {
			t.Errorf("%v: uneven: %v", g, err)
		}
	}
}

func TestCodecsMakesEachOnce(t *testing.T) {
	var s Codecs
	a, err := s.For(cfs.Geo4p2)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := s.For(cfs.Geo4p2); a != b {
		t.Error("two codecs of one geometry")
	}
	if _, err := s.For(cfs.Geometry{}); !errors.Is(err, cfs.Invalid) {
		t.Errorf("no geometry: %v", err)
	}
}

// Joining what Cover says gives the bytes, from whole blocks of the fewest shards.
func TestCoverJoinsToTheRange(t *testing.T) {
	for _, g := range geometries {
		c := codec(t, g)
		rng := rand.New(rand.NewPCG(4, uint64(g.K)))
		lengths := []uint32{1, 4095, 4096, 4097, uint32(g.K) * 4096, uint32(g.K)*4096 + 1}
		for range 30 {
			lengths = append(lengths, 1+rng.Uint32N(g.MaxData()/16))
		}
		for _, n := range lengths {
			data, shards := stripe(t, rng, c, n)
			size := g.ShardSize(n)
			for range 30 {
				off := rng.Uint32N(n)
				want := 1 + rng.Uint32N(n-off)
				var got []byte
				for _, r := range Cover(g, n, off, want) {
					if r.Off%cfs.BlockSize != 0 || r.Len%cfs.BlockSize != 0 || r.Off+r.Len > size || r.DataLen == 0 ||
						r.DataOff-r.Off >= cfs.BlockSize || r.Off+r.Len-r.DataOff-r.DataLen >= cfs.BlockSize {
						t.Fatalf("%v: Cover(%d, %d, %d): %+v", g, n, off, want, r)
					}
					if r.FirstBlock() != r.Off/cfs.BlockSize {
						t.Fatalf("first block of %+v", r)
					}
					got = append(got, r.Wanted(shards[r.Shard][r.Off:r.Off+r.Len])...)
				}
				if !bytes.Equal(got, data[off:off+want]) {
					t.Fatalf("%v: Cover(%d, %d, %d) joins to other bytes", g, n, off, want)
				}
			}
		}
	}
}

func TestCoverAtTheEdges(t *testing.T) {
	for _, c := range []struct {
		n, off, want uint32
		len          int
	}{
		{100, 100, 1, 0},      // at the end
		{100, 50, 0, 0},       // nothing
		{100, 99, 1 << 31, 1}, // clipped
		{100, 1 << 31, 1 << 31, 0},
		{cfs.Geo4p2.MaxData(), 0, cfs.Geo4p2.MaxData(), 4},
		{cfs.Geo4p2.MaxData() + 1, 0, 1, 0},
		{1<<32 - 1, 0, 1<<32 - 1, 0},
		{0, 0, 1, 0},
	} {
		if got := Cover(cfs.Geo4p2, c.n, c.off, c.want); len(got) != c.len {
			t.Errorf("Cover(%d, %d, %d) = %+v", c.n, c.off, c.want, got)
		}
	}
	if got := Cover(cfs.Geometry{}, 10, 0, 10); got != nil {
		t.Errorf("no geometry: %+v", got)
	}
}

func TestSplitRefuses(t *testing.T) {
	for _, c := range []struct {
		n   uint32
		buf int
	}{{0, 0}, {1, 4096}, {1, 5 * 4096}, {cfs.Geo4p2.MaxData() + 1, 4 << 20}} {
		if _, err := Split(nil, cfs.Geo4p2, c.n, make([]byte, c.buf)); !errors.Is(err, cfs.Invalid) {
			t.Errorf("Split of %d in %d: %v", c.n, c.buf, err)
		}
	}
}

// reference is the definition in docs/format, computed the plain way.
func reference(id cfs.StripeID, shard uint8, block uint32, data []byte) uint32 {
	b := binary.LittleEndian.AppendUint64(nil, uint64(id.Session))
	b = binary.LittleEndian.AppendUint64(b, id.Counter)
	b = binary.LittleEndian.AppendUint32(b, uint32(shard))
	b = binary.LittleEndian.AppendUint32(b, block)
	return crc32.Checksum(append(b, data...), crc32.MakeTable(crc32.Castagnoli))
}

func TestBlockCRCsAreTheDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 200 {
		id := cfs.StripeID{Session: cfs.SessionID(rng.Uint64()), Counter: rng.Uint64()}
		shard, first := uint8(rng.Uint32()), rng.Uint32N(256)
		data := make([]byte, rng.IntN(6*cfs.BlockSize))
		fill(rng, data)
		crcs := BlockCRCs(nil, id, shard, first, data)
		i := 0
		for block := range slices.Chunk(data, cfs.BlockSize) {
			if got, want := binary.LittleEndian.Uint32(crcs[i*CRCSize:]), reference(id, shard, first+uint32(i), block); got != want {
				t.Fatalf("block %d: %#x, want %#x", i, got, want)
			}
			i++
		}
		if len(crcs) != i*CRCSize {
			t.Fatalf("%d bytes of checksums for %d blocks", len(crcs), i)
		}
		if bad := CheckBlockCRCs(crcs, id, shard, first, data); bad != -1 {
			t.Fatalf("block %d does not match its own checksum", bad)
		}
	}
}

func TestCheckBlockCRCsFindsTheBlock(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	id := cfs.StripeID{Session: 7, Counter: 9}
	data := make([]byte, 8*cfs.BlockSize)
	fill(rng, data)
	crcs := BlockCRCs(nil, id, 2, 16, data)
	for range 100 {
		at := rng.IntN(len(data))
		data[at] ^= 0x10
		if bad := CheckBlockCRCs(crcs, id, 2, 16, data); bad != at/cfs.BlockSize {
			t.Fatalf("flipped byte %d: block %d", at, bad)
		}
		data[at] ^= 0x10
	}
	for name, bad := range map[string]int{
		"another session":  CheckBlockCRCs(crcs, cfs.StripeID{Session: 8, Counter: 9}, 2, 16, data),
		"another counter":  CheckBlockCRCs(crcs, cfs.StripeID{Session: 7, Counter: 8}, 2, 16, data),
		"another shard":    CheckBlockCRCs(crcs, id, 3, 16, data),
		"another block":    CheckBlockCRCs(crcs, id, 2, 17, data),
		"no checksums":     CheckBlockCRCs(nil, id, 2, 16, data),
		"part of one":      CheckBlockCRCs(crcs[:3], id, 2, 16, data),
		"blocks exchanged": CheckBlockCRCs(crcs, id, 2, 16, slices.Concat(data[4096:8192], data[:4096], data[8192:])),
	} {
		if bad != 0 {
			t.Errorf("%s: block %d", name, bad)
		}
	}
	if bad := CheckBlockCRCs(crcs[:5*CRCSize], id, 2, 16, data); bad != 5 {
		t.Errorf("missing checksums: block %d", bad)
	}
	if bad := CheckBlockCRCs(crcs, id, 2, 16, data[:3*cfs.BlockSize]); bad != 3 {
		t.Errorf("checksums left over: block %d", bad)
	}
	if bad := CheckBlockCRCs(nil, id, 2, 16, nil); bad != -1 {
		t.Errorf("nothing: block %d", bad)
	}
}

func TestNoAllocations(t *testing.T) {
	data := make([]byte, 16*cfs.BlockSize)
	id := cfs.StripeID{Session: 1, Counter: 2}
	ranges := make([]ShardRange, 0, 4)
	crcs := BlockCRCs(nil, id, 1, 0, data)
	shards := make([][]byte, 0, 4)
	buf := make([]byte, StripeBytes(cfs.Geo4p2, 4<<20))
	for name, f := range map[string]func(){
		"AppendCover":    func() { ranges = AppendCover(ranges[:0], cfs.Geo4p2, 4<<20, 5000, 3<<20) },
		"BlockCRCs":      func() { crcs = BlockCRCs(crcs[:0], id, 1, 0, data) },
		"CheckBlockCRCs": func() { CheckBlockCRCs(crcs, id, 1, 0, data) },
		"Split":          func() { shards, _ = Split(shards[:0], cfs.Geo4p2, 4<<20, buf) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, g := range []cfs.Geometry{cfs.Geo4p2, cfs.Geo1p2} {
		for _, n := range []uint32{16 << 10, 256 << 10, 1 << 20} {
			b.Run(g.String()+"/"+size(n*uint32(g.K)), func(b *testing.B) {
				c := codec(b, g)
				_, shards := stripe(b, rand.New(rand.NewPCG(1, 1)), c, n*uint32(g.K))
				b.SetBytes(int64(n) * int64(g.K))
				b.ReportAllocs()
				for b.Loop() {
					if err := c.Encode(shards); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkReconstruct(b *testing.B) {
	for _, n := range []uint32{4 << 10, 64 << 10, 1 << 20} {
		b.Run("4+2/lost2/"+size(n), func(b *testing.B) {
			c := codec(b, cfs.Geo4p2)
			_, shards := stripe(b, rand.New(rand.NewPCG(1, 1)), c, 4*n)
			b.SetBytes(int64(n) * 4)
			b.ReportAllocs()
			for b.Loop() {
				shards[0], shards[2] = shards[0][:0], shards[2][:0]
				if err := c.Reconstruct(shards, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBlockCRCs(b *testing.B) {
	for _, n := range []uint32{4 << 10, 64 << 10, 1 << 20} {
		b.Run(size(n), func(b *testing.B) {
			data := make([]byte, n)
			var crcs []byte
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				crcs = BlockCRCs(crcs[:0], cfs.StripeID{Session: 1, Counter: 1}, 1, 0, data)
			}
		})
	}
}

func size(n uint32) string {
	if n >= 1<<20 {
		return string('0'+rune(n>>20)) + "MiB"
	}
	return map[uint32]string{4 << 10: "4KiB", 16 << 10: "16KiB", 64 << 10: "64KiB", 256 << 10: "256KiB"}[n]
}
