package fsm

import (
	"fmt"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func BenchmarkApplyCreate(b *testing.B) {
	h := newHarness(b)
	s := h.open("x")
	seq := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		seq++
		cmd := &cfs.Command{Session: s, Seq: seq, LowWater: seq, Ops: []cfs.Op{{Kind: cfs.OpCreate, Dir: 1, Name: fmt.Sprintf("file-%d", seq), Attr: cfs.Attr{Mode: cfs.ModeRegular}}}}
		if r, err := h.m.Apply(h.kv, seq+10, 0, cmd); err != nil || r.Kind != cfs.KindOK {
			b.Fatal(r, err)
		}
	}
}

// BenchmarkApplyWrite commits extents of a new stripe over ones that are there.
func BenchmarkApplyWrite(b *testing.B) {
	for _, n := range []int{1, 64, cfs.MaxCommandExtents} {
		b.Run(fmt.Sprintf("extents=%d", n), func(b *testing.B) {
			h := newHarness(b)
			h.cluster(3, 2)
			s := h.open("x")
			ino := h.create(s, "a")
			seq := h.seq[s]
			b.ReportAllocs()
			for b.Loop() {
				seq++
				op := cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: make([]cfs.Extent, n), Epochs: []cfs.PGEpoch{{PG: 1, Epoch: 1}}}
				for i := range op.Extents {
					op.Extents[i] = cfs.Extent{Off: uint64(i) * 8192, Len: 4096, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: s, Counter: seq*2000 + uint64(i)}, PG: 1, StripeLen: 4096}
				}
				cmd := &cfs.Command{Session: s, Seq: seq, LowWater: seq, Floor: seq * 2000, Ops: []cfs.Op{op}}
				if r, err := h.m.Apply(h.kv, seq+10, 0, cmd); err != nil || r.Kind != cfs.KindOK {
					b.Fatal(r, err)
				}
			}
		})
	}
}
