package fsm

import (
	"fmt"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// BenchmarkApplyJournal creates files without and with a consumer of the journal.
func BenchmarkApplyJournal(b *testing.B) {
	for _, consumers := range []int{0, 1} {
		b.Run(fmt.Sprintf("consumers=%d", consumers), func(b *testing.B) {
			h := newHarness(b)
			s := h.open("x")
			if consumers > 0 {
				h.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "c"})
			}
			seq, base := h.seq[s], h.index
			b.ReportAllocs()
			for b.Loop() {
				seq++
				cmd := &cfs.Command{Session: s, Seq: seq, LowWater: seq, Ops: []cfs.Op{{Kind: cfs.OpCreate, Dir: 1, Name: fmt.Sprint(seq), Attr: cfs.Attr{Mode: cfs.ModeRegular}}}}
				if r, err := h.m.Apply(h.kv, base+seq, 0, cmd); err != nil || r.Kind != cfs.KindOK {
					b.Fatal(r, err)
				}
			}
		})
	}
}
