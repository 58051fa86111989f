package raftmeta

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
)

// applier applies commands of one session to a state store, as a voter's loop does.
type applier struct {
	b          *testing.B
	store      kv.Store
	m          fsm.Machine
	index, seq uint64
	lag        uint64 // replies that the session keeps
}

func newApplier(b *testing.B, lag int) *applier {
	store, err := kv.OpenPebble(b.TempDir(), kv.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { store.Close() })
	a := &applier{b: b, store: store, lag: uint64(lag)}
	a.batch(func(kvb kv.Batch) {
		if err := fsm.Bootstrap(kvb, "bench", 0); err != nil {
			b.Fatal(err)
		}
		a.apply(kvb, &cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpOpenSession, Name: "x"}}})
	})
	return a
}

// batch commits what fn applies.
func (a *applier) batch(fn func(kv.Batch)) {
	kvb := a.store.NewBatch()
	fn(kvb)
	if err := kvb.Commit(); err != nil {
		a.b.Fatal(err)
	}
	kvb.Close()
}

func (a *applier) apply(kvb kv.Batch, c *cfs.Command) *cfs.Reply {
	a.index++
	r, err := a.m.Apply(kvb, a.index, int64(a.index), c)
	if err != nil || r.Kind != cfs.KindOK {
		a.b.Fatal(r, err)
	}
	return r
}

// do applies an operation of the session.
func (a *applier) do(kvb kv.Batch, ops ...cfs.Op) *cfs.Reply {
	a.seq++
	return a.apply(kvb, &cfs.Command{Session: 1, Seq: a.seq, LowWater: max(a.seq, a.lag+1) - a.lag, Ops: ops})
}

// create makes file i; the names come in no order.
func (a *applier) create(kvb kv.Batch, i int, lease bool) cfs.Ino {
	op := createOp(fmt.Sprintf("file-%x", uint32(i)*0x9E3779B1))
	op.Lease = lease
	return a.do(kvb, op).Results[0].Attr.Ino
}

// measure runs fn as the benchmark and reports the processor time of all threads too.
func measure(b *testing.B, fn func()) {
	cpuNS := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	b.ReportAllocs()
	before := cpuNS()
	b.ResetTimer()
	fn()
	b.StopTimer()
	b.ReportMetric(float64(cpuNS()-before)/1e3/float64(b.N), "cpu-us/op")
}

// BenchmarkApply applies creates to the state store, some of them as one batch: what
// each voter does for them besides logging.
func BenchmarkApply(b *testing.B) {
	for _, batch := range []int{1, 16} {
		b.Run(fmt.Sprint("batch=", batch), func(b *testing.B) {
			a := newApplier(b, batch)
			measure(b, func() {
				for i := 0; i < b.N; {
					a.batch(func(kvb kv.Batch) {
						for range min(batch, b.N-i) {
							i++
							a.create(kvb, i, false)
						}
					})
				}
			})
		})
	}
}

// BenchmarkApplySurrender is BenchmarkApply of creates under a lease, each of which is given
// up 5,000 creates later, 64 in a command.
func BenchmarkApplySurrender(b *testing.B) {
	const batch, behind, together = 16, 5000, 64
	a := newApplier(b, batch)
	var inos []cfs.Ino
	measure(b, func() {
		for i := 0; i < b.N; {
			a.batch(func(kvb kv.Batch) {
				for range min(batch, b.N-i) {
					i++
					inos = append(inos, a.create(kvb, i, true))
				}
				if len(inos) < behind+together {
					return
				}
				ops := make([]cfs.Op, together)
				for j := range ops {
					ops[j] = cfs.Op{Kind: cfs.OpSurrender, Ino: inos[j]}
				}
				a.do(kvb, ops...)
				inos = inos[together:]
			})
		}
	})
}
