package node

import (
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// TestEveryOpHasItsRoles: an operation that is added must be decided upon.
func TestEveryOpHasItsRoles(t *testing.T) {
	known := 0
	for op := wire.Op(1); !strings.HasPrefix(op.String(), "op_"); op++ {
		known++
		may, ok := permissions[op]
		if !ok || may == 0 {
			t.Errorf("nobody is said to be allowed %s", op)
		}
		stranger := may&anybody != 0
		if want := op == wire.OpHello || op == wire.OpPing || op == wire.OpEnrol; stranger != want {
			t.Errorf("%s without a certificate: %v", op, stranger)
		}
	}
	if len(permissions) != known {
		t.Errorf("%d operations in the table, there are %d", len(permissions), known)
	}
}

func TestAllow(t *testing.T) {
	for _, c := range []struct {
		role cfs.Role
		op   wire.Op
		want cfs.Kind
	}{
		{cfs.RoleNone, wire.OpEnrol, cfs.KindOK},
		{cfs.RoleNone, wire.OpStatus, cfs.Denied},
		{cfs.RoleNone, 200, cfs.Denied},
		{cfs.RoleClient, wire.OpCommand, cfs.KindOK},
		{cfs.RoleClient, wire.OpAdmin, cfs.Denied},
		{cfs.RoleClient, wire.OpRaft, cfs.Denied},
		{cfs.RoleClient, 200, cfs.KindOK},
		{cfs.RoleAdmin, wire.OpAdmin, cfs.KindOK},
		{cfs.RoleAdmin, wire.OpSnapshot, cfs.Denied},
		{cfs.RoleStorage, wire.OpRaft, cfs.KindOK},
		{cfs.RoleStorage, wire.OpAdmin, cfs.KindOK},
	} {
		if err := allow(&wire.Peer{Role: c.role}, c.op); cfs.KindOf(err) != c.want {
			t.Errorf("%s by a %s: %v, want %v", c.op, c.role, err, c.want)
		}
	}
}

// TestAllowWhom: whatever its role allows, a key that was revoked gets nothing, and a server whose number is not in the map only
// what tells it so.
func TestAllowWhom(t *testing.T) {
	n := &Node{raft: &replica{changed: make(chan struct{})}}
	s := &security{n: n}
	s.revoked.Store(&map[string]bool{"bad": true})
	n.raft.follow(&cfs.Map{})
	server := func(id cfs.NodeID) *wire.Peer { return &wire.Peer{Role: cfs.RoleStorage, Certified: id, Key: "good"} }
	want := func(what string, p *wire.Peer, op wire.Op, kind cfs.Kind) {
		t.Helper()
		if err := s.allow(p, op); cfs.KindOf(err) != kind {
			t.Errorf("%s, %s: %v, want %v", what, op, err, kind)
		}
	}
	want("before anything is known", server(4), wire.OpGetShard, cfs.KindOK)
	n.raft.follow(&cfs.Map{Version: 1, CA: "ca", Nodes: []cfs.Node{{ID: 3, State: cfs.StateDown}}})
	want("a server of the map", server(3), wire.OpGetShard, cfs.KindOK)
	for op := range permissions {
		kind := cfs.Unavailable
		switch op {
		case wire.OpHello, wire.OpPing, wire.OpEnrol, wire.OpStatus, wire.OpHeartbeat:
			kind = cfs.KindOK
		}
		want("another server", server(4), op, kind)
		for role := cfs.RoleStorage; role <= cfs.RoleAdmin; role++ {
			want("a revoked "+role.String(), &wire.Peer{Role: role, Certified: 3, Key: "bad"}, op, cfs.Denied)
		}
	}
	want("a server of a newer version", server(4), 200, cfs.Unavailable)
	want("root on this machine", &wire.Peer{Role: cfs.RoleAdmin}, wire.OpAdmin, cfs.KindOK)
}
