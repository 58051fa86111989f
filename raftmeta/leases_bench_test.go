package raftmeta

import (
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// BenchmarkLeave is what leases add to a create that recalls nobody: its keys, a look at who
// owns the directory, and the end.
func BenchmarkLeave(b *testing.B) {
	c := newCluster(b, 1, leaseTime(never))
	s := c.session()
	l := c.leader().node.duties.Load().leases
	cmd := create(s, 1, "a")
	b.ReportAllocs()
	for b.Loop() {
		ch, _, err := l.begin(b.Context(), cmd, nil)
		if err != nil {
			b.Fatal(err)
		}
		ch.end(nil, 0)
	}
}

// BenchmarkLeasedQuery is a lookup once this node is confirmed to lead, without and with leases.
func BenchmarkLeasedQuery(b *testing.B) {
	for _, leased := range []bool{false, true} {
		b.Run(map[bool]string{false: "without", true: "with"}[leased], func(b *testing.B) {
			c := newCluster(b, 1, leaseTime(never))
			h := c.holder()
			h.do(createOp("a"))
			l := c.leader().node.duties.Load().leases
			q := lookup("a")
			if leased {
				q.Session, q.Epoch = h.id, h.epoch
			}
			b.ReportAllocs()
			for b.Loop() {
				a, err := l.namespace(b.Context(), &q)
				if err != nil || a.Kind != cfs.KindOK || a.Leased != leased {
					b.Fatalf("%v %+v", err, a)
				}
			}
		})
	}
}
