package fsm

import (
	"encoding/binary"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// MaxListing bounds the entries, extents, stripes, windows and feed rows of one answer, and is
// what a query without a limit gets.
const MaxListing = 1024

// maxListingInline bounds the inline bytes of one answer, which must fit a message.
const maxListingInline = 1 << 20

// Read answers a query from the state. As with Apply, what the namespace says no
// to is in the answer, and an error means that the state or the KV is broken.
func Read(r Reader, q *cfs.Query) (*cfs.Answer, error) {
	t := &tx{kv: r, cred: q.Cred}
	a := &cfs.Answer{}
	switch q.Kind {
	case cfs.QueryLookup:
		a.Kind = t.lookup(q, a)
	case cfs.QueryGetAttr:
		a.Kind = t.getAttr(q.Ino, a)
	case cfs.QueryReadDir:
		a.Kind = t.readDir(q, a)
	case cfs.QueryReadlink:
		a.Kind = t.readlink(q.Ino, a)
	case cfs.QueryGetXattr:
		a.Kind = t.getXattr(q, a)
	case cfs.QueryListXattr:
		a.Kind = t.listXattr(q.Ino, a)
	case cfs.QueryExtents:
		a.Kind = t.extents(q, a)
	case cfs.QueryStatfs:
		m, err := ReadMap(r)
		if err != nil {
			return nil, err
		}
		a.Statfs = t.statfs(m)
	case cfs.QueryMap:
		m, err := ReadMap(r)
		if err != nil {
			return nil, err
		}
		a.Map = m
	case cfs.QueryFeed:
		t.feed(q, a)
	case cfs.QueryStripes:
		t.stripes(q, a)
	case cfs.QueryFates:
		a.Kind = t.fates(q.Stripes, a)
	case cfs.QueryUsage:
		a.Usage = t.usage()
	case cfs.QueryJournal:
		a.Kind = t.changes(q, a)
	case cfs.QueryConsumers:
		a.Consumers = t.consumers()
	case cfs.QuerySessions:
		t.sessions(q, a)
	case cfs.QueryLock:
		a.Kind = t.queryLock(q, a)
	case cfs.QueryTokens:
		t.listTokens(a)
	case cfs.QueryEnrolled:
		t.listEnrolled(q, a)
	case cfs.QueryWindows:
		m, err := ReadMap(r)
		if err != nil {
			return nil, err
		}
		t.windows(q, m, a)
	default:
		a.Kind = cfs.BadRequest
	}
	return a, t.err
}

func listLimit(n uint32) int {
	if n == 0 || n > MaxListing {
		return MaxListing
	}
	return int(n)
}

func (t *tx) getAttr(i cfs.Ino, a *cfs.Answer) cfs.Kind {
	n, ok := t.inode(i)
	if !ok {
		return cfs.Stale
	}
	a.Attr = n.Attr
	return cfs.KindOK
}

// extents lists an inode's extents in a range, with the inode that they belong to.
func (t *tx) extents(q *cfs.Query, a *cfs.Answer) cfs.Kind {
	n, ok := t.inode(q.Ino)
	if !ok {
		return cfs.Stale
	}
	if k := t.may(n, mayRead); k != cfs.KindOK {
		return k
	}
	a.Attr = n.Attr
	a.Extents, a.More = t.fileRows(n, q.Off, q.End, listLimit(q.Limit))
	inline := 0
	for i := range a.Extents {
		if inline += len(a.Extents[i].Inline); inline > maxListingInline {
			a.Extents, a.More = a.Extents[:i], true
			break
		}
	}
	return cfs.KindOK
}

func (t *tx) lookup(q *cfs.Query, a *cfs.Answer) cfs.Kind {
	if len(q.Name) > cfs.MaxName {
		return cfs.NameTooLong
	}
	dir, k := t.dir(q.Dir)
	if k != cfs.KindOK {
		return k
	}
	a.Dir = dir.Attr
	n, k := t.entry(q.Dir, q.Name)
	if k != cfs.KindOK {
		return k
	}
	a.Attr = n.Attr
	return cfs.KindOK
}

// readDir lists the names after q.Name; a.Attr is the directory, a.Dir.Ino its parent.
// Who may not look names up in it gets no attributes.
func (t *tx) readDir(q *cfs.Query, a *cfs.Answer) cfs.Kind {
	dir, k := t.dir(q.Dir)
	search := k == cfs.KindOK
	if k == cfs.Access || k == cfs.KindOK {
		k = t.may(dir, mayRead)
	}
	if k != cfs.KindOK {
		return k
	}
	a.Attr, a.Dir.Ino = dir.Attr, dir.parent
	limit := listLimit(q.Limit)
	prefix := key1(prefixDirent, uint64(q.Dir))
	lo := prefix
	if q.Name != "" {
		lo = append(direntKey(q.Dir, q.Name), 0)
	}
	t.scan(lo, after(prefix), func(key, v []byte) bool {
		if len(a.Entries) == limit {
			a.More = true
			return false
		}
		d, ok := decodeDirent(v)
		if !ok {
			t.corrupt(key)
			return false
		}
		a.Entries = append(a.Entries, cfs.Dirent{Name: string(key[len(prefix):]), Ino: d.ino, Mode: d.mode})
		return true
	})
	for i := range a.Entries {
		if !q.WithAttrs || !search {
			break
		}
		n, ok := t.inode(a.Entries[i].Ino)
		if !ok {
			t.corrupt(inodeKey(a.Entries[i].Ino))
			break
		}
		a.Entries[i].Attr = &n.Attr
	}
	return cfs.KindOK
}

func (t *tx) readlink(i cfs.Ino, a *cfs.Answer) cfs.Kind {
	if k := t.getAttr(i, a); k != cfs.KindOK {
		return k
	}
	v, ok := load(t, targetKey(i), decodeBytes)
	if !ok {
		return cfs.Invalid
	}
	a.Value = v
	return cfs.KindOK
}

func (t *tx) getXattr(q *cfs.Query, a *cfs.Answer) cfs.Kind {
	if k := checkXattr(q.Name); k != cfs.KindOK {
		return k
	}
	n, ok := t.inode(q.Ino)
	if !ok {
		return cfs.Stale
	}
	if k := t.mayXattr(n, q.Name, mayRead); k != cfs.KindOK {
		return k
	}
	a.Attr = n.Attr
	v, ok := load(t, xattrKey(q.Ino, q.Name), decodeBytes)
	if !ok {
		return cfs.NoAttr
	}
	a.Value = v
	return cfs.KindOK
}

func (t *tx) listXattr(i cfs.Ino, a *cfs.Answer) cfs.Kind {
	if k := t.getAttr(i, a); k != cfs.KindOK {
		return k
	}
	prefix := key1(prefixXattr, uint64(i))
	t.scan(prefix, after(prefix), func(k, _ []byte) bool {
		if name := string(k[len(prefix):]); !t.enforced() || !strings.HasPrefix(name, "trusted.") {
			a.Names = append(a.Names, name)
		}
		return true
	})
	return cfs.KindOK
}

// statfs scales raw capacity and use by the geometry of the groups that full
// stripes go to now.
func (t *tx) statfs(m *cfs.Map) cfs.Statfs {
	geo := dataGeometries[0]
	for _, g := range m.Groups {
		if g.Writable && g.Geometry != cfs.Geo1p2 {
			geo = g.Geometry
		}
	}
	var total uint64
	for _, d := range m.Devices {
		if !d.Leaving() {
			total += d.Capacity
		}
	}
	raw := min(t.mark(markRaw), total)
	scale := func(n uint64) uint64 { return n / uint64(geo.Total()) * uint64(geo.K) }
	return cfs.Statfs{TotalBytes: scale(total), FreeBytes: scale(total - raw), Inodes: t.mark(markInodes)}
}

// feed lists freed stripes after a position. An oldest row above Off+1 tells a
// device that it has missed some and must reconcile whole.
func (t *tx) feed(q *cfs.Query, a *cfs.Answer) {
	limit := listLimit(q.Limit)
	t.scan(feedKey(q.Off+1), []byte{prefixFeed + 1}, func(k, v []byte) bool {
		if len(a.Freed) == limit {
			a.More = true
			return false
		}
		f, ok := decodeFreed(binary.BigEndian.Uint64(k[1:]), v)
		if !ok {
			t.corrupt(k)
			return false
		}
		a.Freed = append(a.Freed, f)
		return true
	})
}

// stripes lists the stripe table of a group after a stripe.
func (t *tx) stripes(q *cfs.Query, a *cfs.Answer) {
	limit := listLimit(q.Limit)
	prefix := binary.BigEndian.AppendUint32([]byte{prefixStripe}, uint32(q.PG))
	lo := prefix
	if q.Stripe != (cfs.StripeID{}) {
		lo = append(stripeKey(q.PG, q.Stripe), 0)
	}
	t.scan(lo, after(prefix), func(k, v []byte) bool {
		if len(a.Stripes) == limit {
			a.More = true
			return false
		}
		s, ok := decodeStripe(v)
		ref, whole := stripeOfKey(k)
		if !ok || !whole {
			t.corrupt(k)
			return false
		}
		a.Stripes = append(a.Stripes, cfs.StripeInfo{StripeRef: ref, Len: s.len, Refs: s.refs, Live: s.live})
		return true
	})
}

// stripeOfKey is the stripe whose row has the key.
func stripeOfKey(k []byte) (ref cfs.StripeRef, ok bool) {
	if len(k) != 21 {
		return ref, false
	}
	ref.PG = cfs.PGID(binary.BigEndian.Uint32(k[1:]))
	ref.Stripe = cfs.StripeID{Session: cfs.SessionID(binary.BigEndian.Uint64(k[5:])), Counter: binary.BigEndian.Uint64(k[13:])}
	return ref, true
}

// fates says what becomes of stripes that devices hold. One without a row that its
// session can no longer commit is dead for ever: floors only rise.
func (t *tx) fates(refs []cfs.StripeRef, a *cfs.Answer) cfs.Kind {
	if len(refs) > cfs.MaxFates {
		return cfs.TooBig
	}
	next := cfs.SessionID(t.mark(markNextSession))
	floors := map[cfs.SessionID]uint64{}
	for _, r := range refs {
		floor, known := floors[r.Stripe.Session]
		if !known {
			if floor = t.floor(r.Stripe.Session); r.Stripe.Session >= next {
				floor = 0 // a session to come
			}
			floors[r.Stripe.Session] = floor
		}
		fate := cfs.FateDead
		if _, committed := t.get(stripeKey(r.PG, r.Stripe)); committed {
			fate = cfs.FateLive
		} else if r.Stripe.Counter >= floor && floor != ^uint64(0) {
			fate = cfs.FatePending
		}
		a.Fates = append(a.Fates, fate)
	}
	return cfs.KindOK
}

// usage lists what each group holds; one without a row holds nothing.
func (t *tx) usage() (out []cfs.GroupUsage) {
	prefix := []byte{prefixUsage}
	t.scan(prefix, after(prefix), func(k, v []byte) bool {
		u, ok := decodeUsage(v)
		if !ok || len(k) != 5 {
			t.corrupt(k)
			return false
		}
		out = append(out, cfs.GroupUsage{PG: cfs.PGID(binary.BigEndian.Uint32(k[1:])), Stripes: u.stripes, RawBytes: u.raw})
		return true
	})
	return out
}

// ReadMap is the cluster's layout.
func ReadMap(r Reader) (*cfs.Map, error) {
	t := &tx{kv: r}
	m := &cfs.Map{Version: t.mark(markMapVersion)}
	if v, ok := t.get(markKey(markCluster)); ok {
		m.ClusterID = string(v)
	}
	members := t.members()
	list(t, prefixNode, decodeNode, func(n *cfs.Node) {
		if len(members) > 0 { // what the node's record says is of the time before there were any
			n.Voter = false
		}
		for i := range members {
			if members[i].ID == n.ID {
				n.Voter, n.Learner = !members[i].Learner, members[i].Learner
			}
		}
		m.Nodes = append(m.Nodes, *n)
	})
	list(t, prefixDevice, decodeDevice, func(d *cfs.Device) { m.Devices = append(m.Devices, *d) })
	list(t, prefixGroup, decodePG, func(g *cfs.PG) { m.Groups = append(m.Groups, *g) })
	list(t, prefixJob, decodeJob, func(j *cfs.Job) { m.Jobs = append(m.Jobs, *j) })
	t.identity(m)
	return m, t.err
}

// list decodes every record of a prefix.
func list[T any](t *tx, prefix byte, decode func([]byte) (T, bool), each func(T)) {
	t.scan([]byte{prefix}, []byte{prefix + 1}, func(k, v []byte) bool {
		rec, ok := decode(v)
		if !ok {
			t.corrupt(k)
			return false
		}
		each(rec)
		return true
	})
}

// Usage is what the leader watches.
type Usage struct {
	InlineBytes uint64 // in inline extents
	RawBytes    uint64 // of all shards of all stripes
	Inodes      uint64
	Sessions    uint64
	InlineFull  bool // inline extents are refused soon
	Reapable    bool // OpReap has work
}

// ReadUsage reads the counters.
func ReadUsage(r Reader) (Usage, error) {
	t := &tx{kv: r}
	u := Usage{InlineBytes: t.mark(markInline), RawBytes: t.mark(markRaw), Inodes: t.mark(markInodes), Sessions: t.mark(markSessions)}
	u.InlineFull = u.InlineBytes > MaxInlineBytes/8*7
	u.Reapable = t.journalTrims()
	for _, p := range [...]byte{prefixQueue, prefixEnded, prefixLockQueue} {
		t.scan([]byte{p}, []byte{p + 1}, func(_, _ []byte) bool {
			u.Reapable = true
			return false
		})
	}
	return u, t.err
}
