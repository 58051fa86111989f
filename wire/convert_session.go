package wire

import (
	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// MaxSecret bounds a certificate, a private key and a hash in a message, in bytes.
const MaxSecret = 16 << 10

// lockToPB is nil for the zero Lock.
func lockToPB(l cfs.Lock) *wirepb.Lock {
	if l == (cfs.Lock{}) {
		return nil
	}
	return &wirepb.Lock{Kind: uint32(l.Kind), Type: uint32(l.Type), Owner: l.Owner, Start: l.Start, End: l.End, Pid: l.PID, Session: uint64(l.Session)}
}

// lock takes the zero Lock for nil.
func (r *refusal) lock(m *wirepb.Lock) cfs.Lock {
	if m == nil {
		return cfs.Lock{}
	}
	r.check(m.Kind >= uint32(cfs.LockPosix) && m.Kind <= uint32(cfs.LockFlock), "lock of kind %d", m.Kind)
	r.check(m.Type <= uint32(cfs.LockWrite), "lock of type %d", m.Type)
	r.check(m.Start <= m.End, "lock of the bytes %d to %d", m.Start, m.End)
	return cfs.Lock{Kind: cfs.LockKind(m.Kind), Type: cfs.LockType(m.Type), Owner: m.Owner, Start: m.Start, End: m.End, PID: m.Pid, Session: cfs.SessionID(m.Session)}
}

// LockFromPB checks a message and is the lock in it.
func LockFromPB(m *wirepb.Lock) (cfs.Lock, error) {
	r := refusal{op: "decode lock"}
	r.check(m != nil, "no lock")
	l := r.lock(m)
	return l, r.err
}

// LockToPB is the lock as a message, nil for the zero Lock.
func LockToPB(l cfs.Lock) *wirepb.Lock { return lockToPB(l) }

func changeToPB(c cfs.Change) *wirepb.Change {
	return &wirepb.Change{
		Index: c.Index, N: c.N, Kind: uint32(c.Kind), TimeNs: c.TimeNS, Session: uint64(c.Session), Uid: c.UID, Gid: c.GID,
		Ino: uint64(c.Ino), Dir: uint64(c.Dir), NewDir: uint64(c.NewDir), Name: nameToPB(c.Name), NewName: nameToPB(c.NewName),
		Value: c.Value, Flags: c.Flags, Mask: uint32(c.Mask), Attr: AttrToPB(&c.Attr), Was: c.Was, Extents: list(c.Extents, extentToPB), Other: uint64(c.Other),
	}
}

func (r *refusal) change(m *wirepb.Change) cfs.Change {
	return cfs.Change{
		Index: m.GetIndex(), N: m.GetN(), Kind: cfs.OpKind(r.narrow8("operation kind", m.GetKind())), TimeNS: m.GetTimeNs(),
		Session: cfs.SessionID(m.GetSession()), UID: m.GetUid(), GID: m.GetGid(),
		Ino: cfs.Ino(m.GetIno()), Dir: cfs.Ino(m.GetDir()), NewDir: cfs.Ino(m.GetNewDir()),
		Name: r.label("name", m.GetName()), NewName: r.label("new name", m.GetNewName()),
		Value: some(m.GetValue()), Flags: m.GetFlags(), Mask: cfs.SetMask(m.GetMask()), Attr: AttrFromPB(m.GetAttr()), Was: m.GetWas(),
		Extents: list(m.GetExtents(), r.extent), Other: cfs.Ino(m.GetOther()),
	}
}

func consumerToPB(c cfs.Consumer) *wirepb.Consumer {
	return &wirepb.Consumer{Name: nameToPB(c.Name), Index: c.Index, Behind: c.Behind, BehindBytes: c.BehindBytes, Lost: c.Lost}
}

func (r *refusal) consumer(m *wirepb.Consumer) cfs.Consumer {
	return cfs.Consumer{Name: r.label("name", m.GetName()), Index: m.GetIndex(), Behind: m.GetBehind(), BehindBytes: m.GetBehindBytes(), Lost: m.GetLost()}
}

func sessionToPB(s cfs.SessionInfo) *wirepb.SessionInfo {
	return &wirepb.SessionInfo{
		Id: uint64(s.ID), Name: nameToPB(s.Name), OpenedNs: s.OpenedNS, LowWater: s.LowWater, Replies: s.Replies, Floor: s.Floor,
		Holds: s.Holds, Locks: s.Locks, SilentMs: s.SilentMS, Leases: s.Leases, Opens: s.Opens,
	}
}

func (r *refusal) session(m *wirepb.SessionInfo) cfs.SessionInfo {
	return cfs.SessionInfo{
		ID: cfs.SessionID(m.GetId()), Name: r.label("name", m.GetName()), OpenedNS: m.GetOpenedNs(), LowWater: m.GetLowWater(),
		Replies: m.GetReplies(), Floor: m.GetFloor(), Holds: m.GetHolds(), Locks: m.GetLocks(),
		SilentMS: m.GetSilentMs(), Leases: m.GetLeases(), Opens: m.GetOpens(),
	}
}

// caToPB is nil for the zero CA.
func caToPB(c *cfs.CA) *wirepb.CA {
	if len(c.Cert) == 0 && len(c.Key) == 0 && !c.Off {
		return nil
	}
	return &wirepb.CA{Cert: c.Cert, Key: c.Key, Off: c.Off}
}

func (r *refusal) ca(m *wirepb.CA) cfs.CA {
	r.check(len(m.GetCert()) <= MaxSecret && len(m.GetKey()) <= MaxSecret, "a certificate of %d and a key of %d bytes, at most %d", len(m.GetCert()), len(m.GetKey()), MaxSecret)
	return cfs.CA{Cert: some(m.GetCert()), Key: some(m.GetKey()), Off: m.GetOff()}
}

// TokenToPB is nil for the zero Token.
func TokenToPB(t *cfs.Token) *wirepb.Token {
	if t.ID == "" && len(t.Hash) == 0 && t.Role == 0 && t.ExpiresNS == 0 {
		return nil
	}
	return &wirepb.Token{Id: nameToPB(t.ID), Hash: t.Hash, Role: uint32(t.Role), ExpiresNs: t.ExpiresNS}
}

// enrolledToPB is nil for the zero Enrolled.
func enrolledToPB(e cfs.Enrolled) *wirepb.Enrolled {
	if e == (cfs.Enrolled{}) {
		return nil
	}
	return &wirepb.Enrolled{Key: nameToPB(e.Key), Role: uint32(e.Role), Node: uint32(e.Node), Name: nameToPB(e.Name), AtNs: e.AtNS}
}

func (r *refusal) enrolled(m *wirepb.Enrolled) cfs.Enrolled {
	r.check(m.GetRole() <= uint32(cfs.RoleAdmin), "role %d", m.GetRole())
	return cfs.Enrolled{Key: r.label("key", m.GetKey()), Role: cfs.Role(m.GetRole()), Node: cfs.NodeID(r.narrow16("node id", m.GetNode())),
		Name: r.label("name", m.GetName()), AtNS: m.GetAtNs()}
}

func (r *refusal) token(m *wirepb.Token) cfs.Token {
	r.check(m.GetRole() <= uint32(cfs.RoleAdmin), "role %d", m.GetRole())
	r.check(len(m.GetHash()) <= MaxSecret, "hash of %d bytes", len(m.GetHash()))
	return cfs.Token{ID: r.label("token", m.GetId()), Hash: some(m.GetHash()), Role: cfs.Role(m.GetRole()), ExpiresNS: m.GetExpiresNs()}
}
