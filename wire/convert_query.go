package wire

import (
	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// QueryToPB is the query as a message.
func QueryToPB(q *cfs.Query) *wirepb.Query {
	return &wirepb.Query{
		Kind: uint32(q.Kind), Ino: uint64(q.Ino), Dir: uint64(q.Dir), Name: nameToPB(q.Name),
		Off: q.Off, End: q.End, Limit: q.Limit, WithAttrs: q.WithAttrs,
		Pg: uint32(q.PG), StripeSession: uint64(q.Stripe.Session), StripeCounter: q.Stripe.Counter,
		Stripes: list(q.Stripes, stripeRefToPB), BeforeNs: q.BeforeNS,
		Session: uint64(q.Session), Epoch: q.Epoch, Open: q.Open, Lock: lockToPB(q.Lock), Index: q.Index, WaitMs: q.WaitMS,
		Uid: q.Cred.UID, Gid: q.Cred.GID, Groups: q.Cred.Groups, Enforce: q.Cred.Enforce,
	}
}

// QueryFromPB checks a message and is the query in it.
func QueryFromPB(m *wirepb.Query) (*cfs.Query, error) {
	r := refusal{op: "decode query"}
	r.check(len(m.GetStripes()) <= cfs.MaxFates, "%d stripes, at most %d", len(m.GetStripes()), cfs.MaxFates)
	if r.err != nil {
		return nil, r.err
	}
	q := &cfs.Query{
		Kind: cfs.QueryKind(r.narrow8("query kind", m.GetKind())), Ino: cfs.Ino(m.GetIno()), Dir: cfs.Ino(m.GetDir()),
		Off: m.GetOff(), End: m.GetEnd(), Limit: m.GetLimit(), WithAttrs: m.GetWithAttrs(),
		PG: cfs.PGID(m.GetPg()), Stripe: stripeID(m.GetStripeSession(), m.GetStripeCounter()),
		Stripes: list(m.GetStripes(), stripeRefFromPB), BeforeNS: m.GetBeforeNs(),
		Session: cfs.SessionID(m.GetSession()), Epoch: m.GetEpoch(), Open: m.GetOpen(), Lock: r.lock(m.GetLock()),
		Index: m.GetIndex(), WaitMS: m.GetWaitMs(),
		Cred: credFromPB(m.GetUid(), m.GetGid(), m.GetGroups(), m.GetEnforce()),
	}
	r.check(len(q.Cred.Groups) <= MaxCredGroups, "%d groups, at most %d", len(q.Cred.Groups), MaxCredGroups)
	r.check(q.Kind.Valid(), "query kind %d", q.Kind)
	if q.Kind == cfs.QueryLookup || q.Kind == cfs.QueryReadDir && len(m.GetName()) > 0 {
		q.Name = r.entry("name", m.GetName())
	} else {
		q.Name = r.label("name", m.GetName())
	}
	if r.err != nil {
		return nil, r.err
	}
	return q, nil
}

// AnswerToPB is the answer as a message.
func AnswerToPB(a *cfs.Answer) *wirepb.Answer {
	m := &wirepb.Answer{
		Kind: uint32(a.Kind), Attr: AttrToPB(&a.Attr), Dir: AttrToPB(&a.Dir), Value: a.Value,
		Names:   list(a.Names, func(s string) []byte { return []byte(s) }),
		Entries: list(a.Entries, direntToPB),
		Extents: list(a.Extents, extentToPB),
		Statfs:  StatfsToPB(&a.Statfs),
		Freed: list(a.Freed, func(f cfs.Freed) *wirepb.Freed {
			return &wirepb.Freed{Pos: f.Pos, Pg: uint32(f.PG), StripeSession: uint64(f.Stripe.Session), StripeCounter: f.Stripe.Counter}
		}),
		More: a.More,
		Stripes: list(a.Stripes, func(s cfs.StripeInfo) *wirepb.StripeInfo {
			return &wirepb.StripeInfo{Ref: stripeRefToPB(s.StripeRef), Len: s.Len, Refs: s.Refs, Live: s.Live}
		}),
		Fates:   list(a.Fates, func(f cfs.Fate) uint32 { return uint32(f) }),
		Windows: list(a.Windows, windowToPB),
		Usage:   list(a.Usage, UsageToPB),

		Leased: a.Leased, Lock: lockToPB(a.Lock), Changes: list(a.Changes, changeToPB), Consumers: list(a.Consumers, consumerToPB),
		Sessions: list(a.Sessions, sessionToPB), Tokens: list(a.Tokens, func(t cfs.Token) *wirepb.Token { return TokenToPB(&t) }),
		Enrolled: list(a.Enrolled, enrolledToPB),
	}
	if a.Next != (cfs.Window{}) {
		m.Next = windowToPB(a.Next)
	}
	if a.Map != nil {
		m.Map = MapToPB(a.Map)
	}
	return m
}

// AnswerFromPB checks a message and is the answer in it. It shares the
// message's byte slices.
func AnswerFromPB(m *wirepb.Answer) (*cfs.Answer, error) {
	r := refusal{op: "decode answer"}
	a := &cfs.Answer{
		Kind: cfs.Kind(r.narrow8("kind", m.GetKind())), Attr: AttrFromPB(m.GetAttr()), Dir: AttrFromPB(m.GetDir()), Value: some(m.GetValue()),
		Names:   list(m.GetNames(), func(b []byte) string { return r.label("attribute name", b) }),
		Entries: list(m.GetEntries(), r.dirent),
		Extents: list(m.GetExtents(), r.extent),
		Statfs:  StatfsFromPB(m.GetStatfs()),
		Freed: list(m.GetFreed(), func(f *wirepb.Freed) cfs.Freed {
			return cfs.Freed{Pos: f.GetPos(), PG: cfs.PGID(f.GetPg()), Stripe: cfs.StripeID{Session: cfs.SessionID(f.GetStripeSession()), Counter: f.GetStripeCounter()}}
		}),
		More: m.GetMore(),
		Stripes: list(m.GetStripes(), func(s *wirepb.StripeInfo) cfs.StripeInfo {
			return cfs.StripeInfo{StripeRef: stripeRefFromPB(s.GetRef()), Len: s.GetLen(), Refs: s.GetRefs(), Live: s.GetLive()}
		}),
		Fates:   list(m.GetFates(), r.fate),
		Windows: list(m.GetWindows(), r.window),
		Next:    r.window(m.GetNext()),
		Usage:   list(m.GetUsage(), UsageFromPB),

		Leased: m.GetLeased(), Lock: r.lock(m.GetLock()), Changes: list(m.GetChanges(), r.change), Consumers: list(m.GetConsumers(), r.consumer),
		Sessions: list(m.GetSessions(), r.session), Tokens: list(m.GetTokens(), r.token), Enrolled: list(m.GetEnrolled(), r.enrolled),
	}
	if m.GetMap() != nil {
		a.Map = r.clusterMap(m.GetMap())
	}
	if r.err != nil {
		return nil, r.err
	}
	return a, nil
}

func direntToPB(d cfs.Dirent) *wirepb.Dirent {
	m := &wirepb.Dirent{Name: nameToPB(d.Name), Ino: uint64(d.Ino), Mode: d.Mode}
	if d.Attr != nil {
		m.Attr = AttrToPB(d.Attr)
	}
	return m
}

func (r *refusal) dirent(m *wirepb.Dirent) cfs.Dirent {
	d := cfs.Dirent{Name: r.entry("entry's name", m.GetName()), Ino: cfs.Ino(m.GetIno()), Mode: m.GetMode()}
	if m.GetAttr() != nil {
		a := AttrFromPB(m.GetAttr())
		d.Attr = &a
	}
	return d
}

func stripeID(session, counter uint64) cfs.StripeID {
	return cfs.StripeID{Session: cfs.SessionID(session), Counter: counter}
}

func stripeRefToPB(s cfs.StripeRef) *wirepb.StripeRef {
	return &wirepb.StripeRef{Pg: uint32(s.PG), StripeSession: uint64(s.Stripe.Session), StripeCounter: s.Stripe.Counter}
}

func stripeRefFromPB(m *wirepb.StripeRef) cfs.StripeRef {
	return cfs.StripeRef{PG: cfs.PGID(m.GetPg()), Stripe: stripeID(m.GetStripeSession(), m.GetStripeCounter())}
}

func (r *refusal) fate(v uint32) cfs.Fate {
	r.check(v >= uint32(cfs.FateLive) && v <= uint32(cfs.FateDead), "fate %d", v)
	return cfs.Fate(v)
}

func windowToPB(w cfs.Window) *wirepb.Window {
	return &wirepb.Window{Ino: uint64(w.Ino), Off: w.Off, End: w.End}
}

// window takes the zero Window for nil.
func (r *refusal) window(m *wirepb.Window) cfs.Window {
	w := cfs.Window{Ino: cfs.Ino(m.GetIno()), Off: m.GetOff(), End: m.GetEnd()}
	r.check(w.Off <= cfs.MaxFileSize && w.End <= cfs.MaxFileSize, "window [%d, %d) ends beyond the largest file", w.Off, w.End)
	return w
}

// UsageToPB is what a group holds as a message.
func UsageToPB(u cfs.GroupUsage) *wirepb.GroupUsage {
	return &wirepb.GroupUsage{Pg: uint32(u.PG), Stripes: u.Stripes, RawBytes: u.RawBytes}
}

// UsageFromPB is what a group holds.
func UsageFromPB(m *wirepb.GroupUsage) cfs.GroupUsage {
	return cfs.GroupUsage{PG: cfs.PGID(m.GetPg()), Stripes: m.GetStripes(), RawBytes: m.GetRawBytes()}
}

// StatfsToPB is nil for the zero Statfs.
func StatfsToPB(s *cfs.Statfs) *wirepb.Statfs {
	if *s == (cfs.Statfs{}) {
		return nil
	}
	return &wirepb.Statfs{TotalBytes: s.TotalBytes, FreeBytes: s.FreeBytes, Inodes: s.Inodes}
}

// StatfsFromPB is the zero Statfs for nil.
func StatfsFromPB(m *wirepb.Statfs) cfs.Statfs {
	return cfs.Statfs{TotalBytes: m.GetTotalBytes(), FreeBytes: m.GetFreeBytes(), Inodes: m.GetInodes()}
}
