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
