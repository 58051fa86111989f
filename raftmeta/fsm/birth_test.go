package fsm

import (
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func TestRootIsBornWithTheFirstNode(t *testing.T) {
	kv := newMemKV()
	if err := Bootstrap(kv, "test", 0); err != nil {
		t.Fatal(err)
	}
	var m Machine
	for i, want := range []int64{5000, 5000} { // the second node changes nothing
		op := cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: cfs.NodeID(i + 1), Addr: "a:1", State: cfs.StateUp}}
		if r, err := m.Apply(kv, uint64(i+1), int64(5000+i), &cfs.Command{Ops: []cfs.Op{op}}); err != nil || r.Kind != cfs.KindOK {
			t.Fatal(r, err)
		}
		a, err := Read(kv, &cfs.Query{Kind: cfs.QueryGetAttr, Ino: cfs.RootIno})
		if err != nil {
			t.Fatal(err)
		}
		if a.Attr.BtimeNS != want || a.Attr.MtimeNS != want || a.Attr.AtimeNS != want || a.Attr.CtimeNS != want {
			t.Errorf("after node %d the root's times are %+v", i+1, a.Attr)
		}
	}
}
