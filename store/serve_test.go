package store

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

func TestCountingAllocatesNothing(t *testing.T) {
	m := NewMetrics(nil)
	if n := testing.AllocsPerRun(100, func() { m.observe(opPut, time.Millisecond, 4096, nil) }); n != 0 {
		t.Errorf("%v allocations for each request", n)
	}
}

// Any body gives an answer or an error, whatever the operation.
func FuzzServe(f *testing.F) {
	key := &wirepb.ShardKey{StripeSession: 1, StripeCounter: 2, Shard: 3}
	for op, m := range map[wire.Op]proto.Message{
		wire.OpPutShard:     &wirepb.PutShard{Device: 1, Pg: 1, Epoch: 1, Key: key, Crcs: []byte{1, 2, 3, 4}},
		wire.OpGetShard:     &wirepb.GetShard{Device: 1, Key: key, Off: 4096, Len: 8192},
		wire.OpDeleteShards: &wirepb.DeleteShards{Device: 1, Keys: []*wirepb.ShardKey{key, nil}},
		wire.OpListShards:   &wirepb.ListShards{Device: 1, After: key, Limit: 7},
		wire.OpReportShard:  &wirepb.ReportShard{Device: 1, Key: key},
	} {
		body, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(op), body)
		f.Add(uint8(op), body[:len(body)-1])
	}
	s := New(Config{Node: 1, Map: func() *cfs.Map { return &cfs.Map{} }})
	f.Fuzz(func(t *testing.T, op uint8, body []byte) {
		_, err := s.Serve(t.Context(), &wire.Request{Op: wire.Op(op), Body: body})
		// The store has no device, so everything that is well formed is NotFound.
		if k := cfs.KindOf(err); k != cfs.BadRequest && k != cfs.NotFound {
			t.Errorf("op %d: %v", op, err)
		}
	})
}
