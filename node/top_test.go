package node

import (
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// A node tells what its store has done beside what its replica has.
func TestTop(t *testing.T) {
	t.Parallel()
	n := start(t, aloneConfig(t, t.TempDir()))
	waitStatus(t, n.Addr(), devicesUp(2))
	for range 3 {
		if err := call(t, n.Addr(), wire.OpListShards, &wirepb.ListShards{Device: uint32(cfs.MakeDeviceID(1, 0)), Limit: 1}, &wirepb.ListShardsReply{}); err != nil {
			t.Fatal(err)
		}
	}
	r := &wirepb.TopReply{}
	if err := call(t, n.Addr(), wire.OpTop, &wirepb.Empty{}, r); err != nil {
		t.Fatal(err)
	}
	ops := map[string]uint64{}
	for _, o := range r.Ops {
		ops[o.Name] = o.Count
	}
	// The node itself may list shards besides.
	if r.NodeId != 1 || !r.Leader || ops["list_shards"] < 3 || len(r.Stages) != 4 {
		t.Errorf("%v", r)
	}
}
