package wire

import (
	"bytes"
	"math"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Bounds of what a message may hold, checked when it is decoded. Whether the
// operation makes sense is the namespace's to say.
const (
	// MaxOps bounds the operations of a command.
	MaxOps = 1024
	// MaxCredGroups bounds the supplementary groups of a command (NGROUPS_MAX of linux/limits.h).
	MaxCredGroups = 65536
)

// refusal collects the first thing that is wrong with a message.
type refusal struct {
	op  string
	err error
}

// check notes a fault unless ok.
func (r *refusal) check(ok bool, format string, args ...any) {
	if !ok && r.err == nil {
		r.err = cfs.Errorf(r.op, cfs.BadRequest, format, args...)
	}
}

// list converts every element; nil for none.
func list[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i := range in {
		out[i] = f(in[i])
	}
	return out
}

// narrow8 and narrow16 refuse numbers that do not fit.
func (r *refusal) narrow8(what string, v uint32) uint8 {
	r.check(v <= math.MaxUint8, "%s %d does not fit 8 bits", what, v)
	return uint8(v)
}

func (r *refusal) narrow16(what string, v uint32) uint16 {
	r.check(v <= math.MaxUint16, "%s %d does not fit 16 bits", what, v)
	return uint16(v)
}

// names are bytes: Linux allows any but '/' and NUL.
func (r *refusal) entry(what string, b []byte) string {
	r.check(len(b) >= 1 && len(b) <= cfs.MaxName, "%s of %d bytes, want 1 to %d", what, len(b), cfs.MaxName)
	r.check(bytes.IndexByte(b, '/') < 0 && bytes.IndexByte(b, 0) < 0, "%s %q has a slash or a NUL", what, b)
	return string(b)
}

// label is a name that is no directory entry: of an attribute or a session.
func (r *refusal) label(what string, b []byte) string {
	r.check(len(b) <= cfs.MaxXattrName, "%s of %d bytes, at most %d", what, len(b), cfs.MaxXattrName)
	r.check(bytes.IndexByte(b, 0) < 0, "%s %q has a NUL", what, b)
	return string(b)
}

// AttrToPB is nil for the zero Attr.
func AttrToPB(a *cfs.Attr) *wirepb.Attr {
	if *a == (cfs.Attr{}) {
		return nil
	}
	return &wirepb.Attr{
		Ino: uint64(a.Ino), Mode: a.Mode, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID, Rdev: a.Rdev,
		Size: a.Size, Blocks: a.Blocks, Map: a.Map, Gen: a.Gen, Owner: uint64(a.Owner),
		AtimeNs: a.AtimeNS, MtimeNs: a.MtimeNS, CtimeNs: a.CtimeNS, BtimeNs: a.BtimeNS,
	}
}

// AttrFromPB is the zero Attr for nil.
func AttrFromPB(m *wirepb.Attr) cfs.Attr {
	if m == nil {
		return cfs.Attr{}
	}
	return cfs.Attr{
		Ino: cfs.Ino(m.Ino), Mode: m.Mode, Nlink: m.Nlink, UID: m.Uid, GID: m.Gid, Rdev: m.Rdev,
		Size: m.Size, Blocks: m.Blocks, Map: m.Map, Gen: m.Gen, Owner: cfs.SessionID(m.Owner),
		AtimeNS: m.AtimeNs, MtimeNS: m.MtimeNs, CtimeNS: m.CtimeNs, BtimeNS: m.BtimeNs,
	}
}

func extentToPB(e cfs.Extent) *wirepb.Extent {
	return &wirepb.Extent{
		Off: e.Off, Len: e.Len, Kind: uint32(e.Kind), Inline: e.Inline,
		StripeSession: uint64(e.Stripe.Session), StripeCounter: e.Stripe.Counter, Pg: uint32(e.PG),
		StripeOff: e.StripeOff, StripeLen: e.StripeLen,
	}
}

func (r *refusal) extent(m *wirepb.Extent) cfs.Extent {
	e := cfs.Extent{
		Off: m.GetOff(), Len: m.GetLen(), Kind: cfs.ExtentKind(m.GetKind()), Inline: some(m.GetInline()),
		Stripe: cfs.StripeID{Session: cfs.SessionID(m.GetStripeSession()), Counter: m.GetStripeCounter()}, PG: cfs.PGID(m.GetPg()),
		StripeOff: m.GetStripeOff(), StripeLen: m.GetStripeLen(),
	}
	r.check(m.GetKind() <= uint32(cfs.ExtentDigest), "extent kind %d", m.GetKind())
	r.check(e.Off <= cfs.MaxFileSize && e.Len <= cfs.MaxFileSize-e.Off, "extent of %d bytes at %d ends beyond the largest file", e.Len, e.Off)
	switch e.Kind {
	case cfs.ExtentInline:
		r.check(len(e.Inline) <= cfs.MaxInline && uint64(len(e.Inline)) == e.Len, "inline extent of %d bytes carries %d (at most %d)", e.Len, len(e.Inline), cfs.MaxInline)
	case cfs.ExtentDigest:
		r.check(len(e.Inline) == cfs.DigestSize && e.Len <= cfs.MaxInline, "digest of %d bytes for %d", len(e.Inline), e.Len)
	default:
		r.check(len(e.Inline) == 0, "extent of kind %d carries bytes", e.Kind)
	}
	if e.Kind == cfs.ExtentStripe {
		r.check(e.StripeLen <= MaxSlots*cfs.MaxShardSize, "stripe of %d bytes", e.StripeLen)
		r.check(uint64(e.StripeOff)+e.Len <= uint64(e.StripeLen), "extent [%d, +%d) of a stripe of %d bytes", e.StripeOff, e.Len, e.StripeLen)
	}
	return e
}

// some is nil for no bytes, so that decoding is a function of the value alone.
func some(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// CommandToPB is the command as a message.
func CommandToPB(c *cfs.Command) *wirepb.Command {
	return &wirepb.Command{
		Session: uint64(c.Session), Seq: c.Seq, LowWater: c.LowWater, Floor: c.Floor,
		Uid: c.Cred.UID, Gid: c.Cred.GID, Groups: c.Cred.Groups, Enforce: c.Cred.Enforce,
		Ops: list(c.Ops, opToPB),
	}
}

// CommandFromPB checks a message and is the command in it; cfs.BadRequest
// says what is wrong. It shares the message's byte slices.
func CommandFromPB(m *wirepb.Command) (*cfs.Command, error) {
	r := refusal{op: "decode command"}
	r.check(len(m.GetOps()) <= MaxOps, "%d operations, at most %d", len(m.GetOps()), MaxOps)
	r.check(len(m.GetGroups()) <= MaxCredGroups, "%d groups, at most %d", len(m.GetGroups()), MaxCredGroups)
	rows := 0
	for _, op := range m.GetOps() {
		rows += len(op.GetExtents())
		r.check(len(op.GetExpect()) <= cfs.MaxCommandExtents && len(op.GetEpochs()) <= cfs.MaxCommandExtents, "an operation that expects %d extents in %d groups, at most %d", len(op.GetExpect()), len(op.GetEpochs()), cfs.MaxCommandExtents)
	}
	r.check(rows <= cfs.MaxCommandExtents, "%d extents, at most %d", rows, cfs.MaxCommandExtents)
	if r.err != nil {
		return nil, r.err
	}
	c := &cfs.Command{
		Session: cfs.SessionID(m.GetSession()), Seq: m.GetSeq(), LowWater: m.GetLowWater(), Floor: m.GetFloor(),
		Cred: credFromPB(m.GetUid(), m.GetGid(), m.GetGroups(), m.GetEnforce()),
		Ops:  list(m.GetOps(), r.operation),
	}
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

func credFromPB(uid, gid uint32, groups []uint32, enforce bool) cfs.Cred {
	if len(groups) == 0 {
		groups = nil
	}
	return cfs.Cred{UID: uid, GID: gid, Groups: groups, Enforce: enforce}
}

func opToPB(o cfs.Op) *wirepb.Op {
	m := &wirepb.Op{
		Kind: uint32(o.Kind), Ino: uint64(o.Ino), Dir: uint64(o.Dir), NewDir: uint64(o.NewDir),
		Value: o.Value, Flags: o.Flags, Mask: uint32(o.Mask), Attr: AttrToPB(&o.Attr),
		Extents: list(o.Extents, extentToPB), Expect: list(o.Expect, extentToPB),
		Epochs:    list(o.Epochs, func(e cfs.PGEpoch) *wirepb.PGEpoch { return &wirepb.PGEpoch{Pg: uint32(e.PG), Epoch: uint32(e.Epoch)} }),
		Exclusive: o.Exclusive, Hold: o.Hold, KeepSize: o.KeepSize, Sess: uint64(o.Sess),
		Groups: list(o.Groups, groupToPB), MapVersion: o.MapVersion,
		Lease: o.Lease, AtNs: o.AtNS, Holds: list(o.Holds, func(s cfs.SessionID) uint64 { return uint64(s) }), Lock: lockToPB(o.Lock),
		Index: o.Index, Ca: caToPB(&o.CA), Token: TokenToPB(&o.Token), Enrolled: enrolledToPB(o.Enrolled),
	}
	m.Name, m.NewName = nameToPB(o.Name), nameToPB(o.NewName)
	if o.Node != (cfs.Node{}) {
		m.Node = NodeToPB(o.Node)
	}
	if o.Device != (cfs.Device{}) {
		m.Device = DeviceToPB(o.Device)
	}
	if o.Job != (cfs.Job{}) {
		m.Job = jobToPB(o.Job)
	}
	return m
}

// nameToPB saves the empty names, of which most operations have one, an allocation.
func nameToPB(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func (r *refusal) operation(m *wirepb.Op) cfs.Op {
	o := cfs.Op{
		Ino: cfs.Ino(m.GetIno()), Dir: cfs.Ino(m.GetDir()), NewDir: cfs.Ino(m.GetNewDir()),
		Value: some(m.GetValue()), Flags: m.GetFlags(), Mask: cfs.SetMask(m.GetMask()), Attr: AttrFromPB(m.GetAttr()),
		Extents: list(m.GetExtents(), r.extent), Expect: list(m.GetExpect(), r.extent),
		Epochs: list(m.GetEpochs(), func(e *wirepb.PGEpoch) cfs.PGEpoch {
			return cfs.PGEpoch{PG: cfs.PGID(e.GetPg()), Epoch: cfs.Epoch(e.GetEpoch())}
		}),
		Exclusive: m.GetExclusive(), Hold: m.GetHold(), KeepSize: m.GetKeepSize(), Sess: cfs.SessionID(m.GetSess()),
		Groups: list(m.GetGroups(), r.group), MapVersion: m.GetMapVersion(),
		Lease: m.GetLease(), AtNS: m.GetAtNs(), Holds: list(m.GetHolds(), func(s uint64) cfs.SessionID { return cfs.SessionID(s) }), Lock: r.lock(m.GetLock()),
		Index: m.GetIndex(), CA: r.ca(m.GetCa()), Token: r.token(m.GetToken()), Enrolled: r.enrolled(m.GetEnrolled()),
	}
	o.Kind = cfs.OpKind(r.narrow8("operation kind", m.GetKind()))
	r.check(o.Kind.Valid(), "operation kind %d", o.Kind)
	switch o.Kind {
	case cfs.OpCreate:
		// Without a name: what O_TMPFILE makes.
		if o.NewName = r.label("new name", m.GetNewName()); !o.Hold || len(m.GetName()) > 0 {
			o.Name = r.entry("name", m.GetName())
		}
	case cfs.OpLink, cfs.OpUnlink, cfs.OpRmdir:
		o.Name, o.NewName = r.entry("name", m.GetName()), r.label("new name", m.GetNewName())
	case cfs.OpRename:
		o.Name, o.NewName = r.entry("name", m.GetName()), r.entry("new name", m.GetNewName())
	default:
		o.Name, o.NewName = r.label("name", m.GetName()), r.label("new name", m.GetNewName())
	}
	limit := cfs.MaxXattrValue
	if o.Kind == cfs.OpCreate {
		limit = cfs.MaxSymlink
	}
	r.check(len(o.Value) <= limit, "value of %d bytes, at most %d", len(o.Value), limit)
	if m.GetNode() != nil {
		o.Node = r.node(m.GetNode())
	}
	if m.GetDevice() != nil {
		o.Device = r.device(m.GetDevice())
	}
	if m.GetJob() != nil {
		o.Job = r.job(m.GetJob())
	}
	return o
}

// ReplyToPB is the reply as a message.
func ReplyToPB(p *cfs.Reply) *wirepb.Reply {
	return &wirepb.Reply{
		Kind: uint32(p.Kind), Failed: uint32(p.Failed), Index: p.Index, Leased: p.Leased,
		Results: list(p.Results, func(x cfs.Result) *wirepb.Result {
			return &wirepb.Result{Attr: AttrToPB(&x.Attr), Dir: AttrToPB(&x.Dir), NewDir: AttrToPB(&x.NewDir), Session: uint64(x.Session), DirWas: x.DirWas}
		}),
	}
}

// ReplyFromPB checks a message and is the reply in it.
func ReplyFromPB(m *wirepb.Reply) (*cfs.Reply, error) {
	r := refusal{op: "decode reply"}
	p := &cfs.Reply{
		Kind: cfs.Kind(r.narrow8("kind", m.GetKind())), Failed: r.narrow16("failed operation", m.GetFailed()), Index: m.GetIndex(), Leased: m.GetLeased(),
	}
	r.check(len(m.GetResults()) <= MaxOps, "%d results, at most %d", len(m.GetResults()), MaxOps)
	if r.err != nil {
		return nil, r.err
	}
	p.Results = list(m.GetResults(), func(x *wirepb.Result) cfs.Result {
		return cfs.Result{Attr: AttrFromPB(x.GetAttr()), Dir: AttrFromPB(x.GetDir()), NewDir: AttrFromPB(x.GetNewDir()), Session: cfs.SessionID(x.GetSession()), DirWas: x.GetDirWas()}
	})
	return p, nil
}
