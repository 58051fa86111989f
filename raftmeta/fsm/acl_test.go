package fsm

import (
	"bytes"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// entriesOf is the form of an ACL of entries {tag, perm, id}.
func entriesOf(entries ...aclEntry) []byte { return acl(entries).encode() }

func TestACLForms(t *testing.T) {
	u, g, o := aclEntry{aclUserObj, 7, aclNoID}, aclEntry{aclGroupObj, 5, aclNoID}, aclEntry{aclOther, 1, aclNoID}
	user, group, mask := aclEntry{aclUser, 6, 7}, aclEntry{aclGroup, 6, 8}, aclEntry{aclMask, 4, aclNoID}
	for _, c := range []struct {
		name string
		blob []byte
		want cfs.Kind
	}{
		{"of a mode", entriesOf(u, g, o), cfs.KindOK},
		{"with a mask", entriesOf(u, g, mask, o), cfs.KindOK},
		{"with all", entriesOf(u, user, user, g, group, group, mask, o), cfs.KindOK},
		{"without entries", entriesOf(), cfs.KindOK},
		{"empty", nil, cfs.Invalid},
		{"short", []byte{2, 0, 0}, cfs.Invalid},
		{"of another version", append([]byte{3, 0, 0, 0}, entriesOf(u, g, o)[4:]...), cfs.Unsupported},
		{"cut", entriesOf(u, g, o)[:27], cfs.Invalid},
		{"without an owner", entriesOf(g, o), cfs.Invalid},
		{"without a group", entriesOf(u, o), cfs.Invalid},
		{"without others", entriesOf(u, g), cfs.Invalid},
		{"two owners", entriesOf(u, u, g, o), cfs.Invalid},
		{"out of order", entriesOf(u, g, user, mask, o), cfs.Invalid},
		{"more after the others", entriesOf(u, g, o, o), cfs.Invalid},
		{"users without a mask", entriesOf(u, user, g, o), cfs.Invalid},
		{"groups without a mask", entriesOf(u, g, group, o), cfs.Invalid},
		{"two masks", entriesOf(u, g, mask, mask, o), cfs.Invalid},
		{"an unknown tag", entriesOf(u, g, aclEntry{0x40, 1, 1}, o), cfs.Invalid},
		{"a permission that is none", entriesOf(aclEntry{aclUserObj, 8, aclNoID}, g, o), cfs.Invalid},
		{"user -1", entriesOf(u, aclEntry{aclUser, 6, aclNoID}, g, mask, o), cfs.Invalid},
	} {
		if _, k := parseACL(c.blob); k != c.want {
			t.Errorf("ACL %s: %v, want %v", c.name, k, c.want)
		}
	}
	if a, _ := parseACL(entriesOf(aclEntry{aclUserObj, 7, 99}, g, o)); a[0].id != aclNoID {
		t.Errorf("the owner's entry keeps id %d", a[0].id)
	}
}

// FuzzACL: any bytes give a refusal or an ACL with that one form, but for ids that mean nothing.
func FuzzACL(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0})
	f.Add((&modelACL{owner: 7, group: 5, other: 1}).blob())
	f.Add((&modelACL{owner: 7, users: []named{{1, 6}, {2, 0}}, groups: []named{{3, 7}}, masked: true, mask: 5}).blob())
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		a, k := parseACL(b)
		if !bytes.Equal(b, given) {
			t.Fatal("the parser wrote to its input")
		}
		if k != cfs.KindOK {
			if a != nil {
				t.Fatalf("refused with %v, and given as %v", k, a)
			}
			return
		}
		again, k := parseACL(a.encode())
		if k != cfs.KindOK || !bytes.Equal(again.encode(), a.encode()) || len(a.encode()) != len(b) {
			t.Fatalf("%x came back as %v %v", b, again, k)
		}
		if a == nil {
			return
		}
		n := &inode{}
		for want := range uint32(8) {
			a.allows(n, 1, func(gid uint32) bool { return gid == 3 }, want)
		}
		if mode := a.inherit(0o765); mode&^0o765 != 0 || a.mode() != mode {
			t.Fatalf("inherited with mode %o, ACL %o", mode, a.mode())
		}
	})
}
