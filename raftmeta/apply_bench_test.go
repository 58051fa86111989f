package raftmeta

import (
	"fmt"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
)

// BenchmarkApply applies creates to the state store, some of them as one batch: what
// each voter does for them besides logging.
func BenchmarkApply(b *testing.B) {
	for _, batch := range []int{1, 16} {
		b.Run(fmt.Sprint("batch=", batch), func(b *testing.B) {
			store, err := kv.OpenPebble(b.TempDir(), kv.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			var m fsm.Machine
			index := uint64(0)
			apply := func(kvb kv.Batch, c *cfs.Command) {
				index++
				if r, err := m.Apply(kvb, index, int64(index), c); err != nil || r.Kind != cfs.KindOK {
					b.Fatal(r, err)
				}
			}
			first := store.NewBatch()
			if err := fsm.Bootstrap(first, "bench", 0); err != nil {
				b.Fatal(err)
			}
			apply(first, &cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpOpenSession, Name: "x"}}})
			if err := first.Commit(); err != nil {
				b.Fatal(err)
			}
			first.Close()
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; {
				kvb := store.NewBatch()
				for range min(batch, b.N-i) {
					i++
					c := create(1, uint64(i), fmt.Sprintf("file-%x", uint32(i)*0x9E3779B1))
					c.LowWater = uint64(max(1, i-batch))
					apply(kvb, c)
				}
				if err := kvb.Commit(); err != nil {
					b.Fatal(err)
				}
				kvb.Close()
			}
		})
	}
}
