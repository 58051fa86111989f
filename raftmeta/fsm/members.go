package fsm

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/claudefs/claudefs/cfs"
)

// MaxMembers bounds the servers that have a replica.
const MaxMembers = 32

// Member is a server that has a replica of this state: a voter, or a learner
// that is to become one. The voters and learners are Raft's membership at the
// applied index.
type Member struct {
	ID      cfs.NodeID
	Addr    string // HOST:PORT
	Learner bool
	// Replaces is the voter that goes when this member votes; 0 for none.
	Replaces cfs.NodeID
	// Replica is the data that the member has its part in the log by: its
	// directory as of its last start that the leader heard of. Zero before the first.
	Replica cfs.UUID
}

func memberKey(id cfs.NodeID) []byte {
	return binary.BigEndian.AppendUint16([]byte{prefixMember}, uint16(id))
}

// EncodeMember is the stored form of a member; a change of the membership carries it too.
func EncodeMember(m *Member) []byte {
	e := newEnc(32 + len(m.Addr))
	e.u16(uint16(m.ID))
	e.bool(m.Learner)
	e.u16(uint16(m.Replaces))
	e.b = append(e.b, m.Replica[:]...)
	e.bytes([]byte(m.Addr))
	return e.b
}

// DecodeMember reads what EncodeMember wrote.
func DecodeMember(b []byte) (*Member, bool) {
	d := newDec(b)
	m := &Member{ID: cfs.NodeID(d.u16()), Learner: d.bool(), Replaces: cfs.NodeID(d.u16())}
	copy(m.Replica[:], d.take(len(m.Replica)))
	m.Addr = string(d.bytes())
	return m, d.ok() && m.ID != 0 && len(m.Addr) <= cfs.MaxName
}

// ReadMembers lists the members by id.
func ReadMembers(r Reader) ([]Member, error) {
	t := &tx{kv: r}
	return t.members(), t.err
}

func (t *tx) members() []Member {
	var out []Member
	list(t, prefixMember, DecodeMember, func(m *Member) { out = append(out, *m) })
	return out
}

// Found records the first members in a new state, at a log index before which
// there is no log: who comes later needs the state of another.
func Found(kv KV, index uint64, members []Member) error {
	t := &tx{kv: kv, index: index}
	for i := range members {
		t.set(memberKey(members[i].ID), EncodeMember(&members[i]))
	}
	t.setMark(markApplied, index)
	return errors.Join(t.err, t.commit(kv))
}

// ChangeMember applies a change of Raft's membership at a log index: m as it is
// from now on, or without it.
func ChangeMember(kv KV, index uint64, m *Member, gone bool) error {
	t := &tx{kv: kv, index: index}
	if gone {
		t.del(memberKey(m.ID))
		for _, o := range t.members() {
			if o.Replaces == m.ID {
				o.Replaces = 0
				t.set(memberKey(o.ID), EncodeMember(&o))
			}
		}
	} else {
		if old, ok := load(t, memberKey(m.ID), DecodeMember); ok {
			m.Replica = old.Replica // recorded since the change was proposed, perhaps
		}
		t.set(memberKey(m.ID), EncodeMember(m))
	}
	t.setMark(markApplied, index)
	t.changeMap()
	return errors.Join(t.err, t.commit(kv))
}

// setReplica records the data of a member: anew for one that had none, else only
// for one that has the recorded data.
func (t *tx) setReplica(op *cfs.Op) cfs.Kind {
	var next cfs.UUID
	if copy(next[:], op.Value); len(op.Value)%len(next) != 0 || next == (cfs.UUID{}) {
		return cfs.Invalid
	}
	m, ok := load(t, memberKey(op.Node.ID), DecodeMember)
	if !ok {
		return cfs.NotFound
	}
	if m.Replica == next {
		return cfs.KindOK
	}
	known := m.Replica == cfs.UUID{}
	for had := op.Value[len(next):]; len(had) > 0; had = had[len(next):] {
		known = known || m.Replica == cfs.UUID(had[:len(next)])
	}
	if !known {
		return cfs.Conflict
	}
	m.Replica = next
	t.set(memberKey(m.ID), EncodeMember(m))
	return cfs.KindOK
}

// removeNode forgets a node that is no member, and its devices: none of them may
// be in a group. The ids of the devices may be used again by another node of the id.
func (t *tx) removeNode(id cfs.NodeID) cfs.Kind {
	if _, ok := t.get(nodeKey(id)); !ok {
		return cfs.KindOK
	}
	if _, ok := t.get(memberKey(id)); ok {
		return cfs.Conflict
	}
	var devices []cfs.DeviceID
	list(t, prefixDevice, decodeDevice, func(v *cfs.Device) {
		if v.ID.Node() == id {
			devices = append(devices, v.ID)
		}
	})
	used := false
	list(t, prefixGroup, decodePG, func(g *cfs.PG) {
		used = used || slices.ContainsFunc(g.Slots, func(s cfs.Slot) bool { return s.Device.Node() == id || s.Filling && s.Source.Node() == id })
	})
	if used {
		return cfs.Conflict
	}
	for _, v := range devices {
		t.del(deviceKey(v))
		t.del(jobKey(v))
	}
	t.del(nodeKey(id))
	t.changeMap()
	return cfs.KindOK
}
