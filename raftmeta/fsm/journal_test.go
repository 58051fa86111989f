package fsm

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// mirror is a copy of the namespace that is made from the journal alone. Its inodes are
// those of the model, which it is compared with.
type mirror struct {
	index uint64 // the position of what was done last
	n     uint32
	nodes map[cfs.Ino]*node
}

// newMirror begins with what there was before the journal did.
func newMirror(from *model) *mirror { return &mirror{nodes: from.clone().nodes} }

func (m *mirror) clone() *mirror {
	c := *m
	c.nodes = (&model{nodes: m.nodes}).clone().nodes
	return &c
}

// apply does what a change says, unless it was done before.
func (m *mirror) apply(c *cfs.Change) {
	if cmp.Or(cmp.Compare(c.Index, m.index), cmp.Compare(c.N, m.n)) <= 0 && m.index != 0 {
		return
	}
	m.index, m.n = c.Index, c.N
	dir := m.nodes[c.Dir]
	enter := func(d *node, name string, n *node) {
		d.names[name] = n.ino
		if n.isDir() {
			n.parent = d.ino
			d.nlink++
		}
	}
	leave := func(d *node, name string, n *node) {
		delete(d.names, name)
		if n.isDir() {
			d.nlink--
		}
	}
	switch n := m.nodes[c.Ino]; c.Kind {
	case cfs.OpCreate:
		n = &node{ino: c.Ino, target: string(c.Value), xattrs: map[string]string{}}
		n.set(&c.Attr)
		if n.isDir() {
			n.names = map[string]cfs.Ino{}
		}
		if n.regular() {
			n.data = make([]cell, span)
		}
		if m.nodes[c.Ino] = n; c.Name == "" { // what O_TMPFILE makes
			dir = nil
		} else {
			enter(dir, c.Name, n)
		}
	case cfs.OpLink:
		enter(dir, c.Name, n)
	case cfs.OpUnlink, cfs.OpRmdir:
		leave(dir, c.Name, n)
	case cfs.OpRename:
		to := m.nodes[c.NewDir]
		old := m.nodes[to.names[c.NewName]]
		leave(dir, c.Name, n)
		if (old == nil) != (c.Other == 0) || old != nil && old.ino != c.Other {
			panic(fmt.Sprintf("%+v was found, not %d", old, c.Other))
		}
		if old != nil {
			leave(to, c.NewName, old)
			old.ctime = c.TimeNS
		}
		enter(to, c.NewName, n)
		if c.Flags == cfs.RenameExchange {
			enter(dir, c.Name, old)
		} else if old != nil {
			if old.nlink--; old.isDir() {
				old.nlink = 0
			}
		}
		to.mtime, to.ctime = c.TimeNS, c.TimeNS
	case cfs.OpSetAttr:
		if c.Attr.Size < n.size && n.regular() {
			n.data = slices.Clone(n.data)
			clear(n.data[min(c.Attr.Size, span):])
		}
	case cfs.OpSetXattr:
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[c.Name] = string(c.Value)
	case cfs.OpRemoveXattr:
		delete(n.xattrs, c.Name)
	case cfs.OpWrite:
		n.data = slices.Clone(n.data)
		for i := range c.Extents {
			n.put(&c.Extents[i])
		}
	case cfs.OpRelease:
		delete(m.nodes, c.Ino)
		return
	default:
		panic(fmt.Sprintf("kind %d in the journal", c.Kind))
	}
	m.nodes[c.Ino].set(&c.Attr)
	if dir != nil {
		dir.mtime, dir.ctime = c.TimeNS, c.TimeNS
	}
}

func (n *node) set(a *cfs.Attr) {
	n.mode, n.nlink, n.uid, n.gid, n.rdev, n.size = a.Mode, a.Nlink, a.UID, a.GID, a.Rdev, a.Size
	n.atime, n.mtime, n.ctime = a.AtimeNS, a.MtimeNS, a.CtimeNS
}

// wantLike compares a mirror with the model.
func (r *random) wantLike(m *mirror) {
	r.t.Helper()
	for _, i := range slices.Sorted(maps.Keys(m.nodes)) {
		if r.m.nodes[i] == nil {
			r.t.Fatalf("index %d: the journal has inode %d, which is gone", r.index, i)
		}
	}
	for _, i := range slices.Sorted(maps.Keys(r.m.nodes)) {
		want, got := *r.m.nodes[i], m.nodes[i]
		if got == nil {
			r.t.Fatalf("index %d: the journal has no inode %d", r.index, i)
		}
		have := *got
		have.holds, want.holds = nil, nil
		// ACLs are attributes to the journal; whether a file may get its first name it does not tell.
		have.xattrs, want.xattrs = have.allXattrs(), want.allXattrs()
		have.acl, have.dacl, want.acl, want.dacl = nil, nil, nil, nil
		have.linkable, want.linkable = false, false
		if len(have.xattrs) == 0 && len(want.xattrs) == 0 {
			have.xattrs, want.xattrs = nil, nil
		}
		if !slices.Equal(have.data, want.data) {
			r.t.Fatalf("index %d: the journal has other bytes of inode %d", r.index, i)
		}
		if have.data, want.data = nil, nil; !reflect.DeepEqual(have, want) {
			r.t.Fatalf("index %d: the journal makes inode %d\n%+v, want\n%+v", r.index, i, have, want)
		}
	}
}

// TestJournalMakesTheSameNamespace: what is done as the journal says, resumed at random
// positions and told many things twice, is what was done.
func TestJournalMakesTheSameNamespace(t *testing.T) {
	seeds := []uint64{1, 2, 3, uint64(time.Now().UnixNano())}
	if *flagSeed != 0 {
		seeds = []uint64{*flagSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := &random{harness: newHarness(t), rng: rand.New(rand.NewPCG(seed, 7)), m: newModel(), low: map[cfs.SessionID]uint64{}, counter: map[cfs.SessionID]uint64{},
				kinds: map[string]int{}}
			r.start()
			r.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "mirror"})
			j := &journalReader{random: r, m: newMirror(r.m), acked: r.index + 1}
			for range *flagSteps {
				j.step()
			}
			j.catchUp()
			r.wantLike(j.m)
			r.do(0, cfs.Op{Kind: cfs.OpDropConsumer, Name: "mirror"})
			r.finish()
			r.replay()
			if len(j.seen) < 8 {
				t.Errorf("only the kinds %v were in the journal", j.seen)
			}
		})
	}
}

// journalReader follows the journal of a random namespace.
type journalReader struct {
	*random
	m     *mirror
	saved *mirror // an earlier one, to be resumed; nil for none
	acked uint64
	seen  map[cfs.OpKind]int
}

// step does something in the namespace, and something with the journal. There are no swaps,
// which change no bytes and are not told.
func (j *journalReader) step() {
	r := j.random
	switch n := r.rng.IntN(40); {
	case n < 1:
		s := r.session()
		r.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s})
		r.m.expire(s)
		r.openSession()
	case n < 2:
		r.reap(1)
	case n < 3 && r.one(5):
		r.shatter()
	default:
		s := r.session()
		ops := make([]cfs.Op, 1+r.rng.IntN(2)*r.rng.IntN(5))
		r.several = len(ops) > 1
		for i := range ops {
			ops[i] = r.op(s)
		}
		r.command(s, ops, nil)
	}
	switch n := r.rng.IntN(30); {
	case n < 8:
		j.pull(j.m.index, uint64(j.m.n))
	case n < 10 && j.m.index > 1: // from before what is known
		j.pull(max(j.acked, j.m.index-r.rng.Uint64N(min(j.m.index, 40))), 0)
	case n < 11:
		j.saved = j.m.clone()
	case n < 12 && j.saved != nil:
		j.m, j.saved = j.saved, nil // it failed, and goes on from what it had
	case n < 13:
		j.catchUp()
		r.wantLike(j.m)
	case n < 14 && j.m.index > j.acked:
		if j.saved = nil; r.one(2) {
			j.acked = j.m.index
			r.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "mirror", Index: j.m.index}) // it may need more of that entry
		}
	}
	if r.one(50) {
		if broken := checkState(r.kv); broken != "" {
			r.t.Fatalf("index %d: invariants broken:\n%s", r.index, broken)
		}
	}
}

// pull does some of the journal from a position on.
func (j *journalReader) pull(index, n uint64) bool {
	a := j.read(&cfs.Query{Kind: cfs.QueryJournal, Index: index, Off: n, Limit: uint32(1 + j.rng.IntN(30))})
	if a.Kind != cfs.KindOK {
		j.t.Fatalf("index %d: journal from %d: %v, kept from %d", j.index, index, a.Kind, a.Next.Off)
	}
	for i := range a.Changes {
		c := &a.Changes[i]
		if i > 0 && cmp.Or(cmp.Compare(a.Changes[i-1].Index, c.Index), cmp.Compare(a.Changes[i-1].N, c.N)) >= 0 {
			j.t.Fatalf("the journal goes from %+v to %+v", a.Changes[i-1], *c)
		}
		if j.seen == nil {
			j.seen = map[cfs.OpKind]int{}
		}
		j.seen[c.Kind]++
		j.m.apply(c)
	}
	return a.More
}

func (j *journalReader) catchUp() {
	for j.pull(j.m.index, uint64(j.m.n)+1) {
	}
}

// following is a harness whose journal is read, with a session.
func following(t *testing.T) (*harness, cfs.SessionID) {
	h := newHarness(t)
	h.cluster(3, 3)
	s := h.open("x")
	h.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "c"})
	return h, s
}

// Without a consumer nothing is written.
func TestJournalWithoutConsumers(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	h.create(s, "a")
	h.kv.each(string(rune(prefixChange)), func(k, v []byte) { t.Errorf("row %s", describe(k, v)) })
	if a := h.read(&cfs.Query{Kind: cfs.QueryJournal}); a.Kind != cfs.NotFound {
		t.Errorf("%+v", a)
	}
	h.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "c"})
	from := h.index + 1
	h.create(s, "b")
	h.do(0, cfs.Op{Kind: cfs.OpDropConsumer, Name: "c"})
	h.create(s, "c")
	h.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "d"})
	again := h.index + 1
	h.create(s, "e")
	if a := h.read(&cfs.Query{Kind: cfs.QueryJournal, Index: from}); a.Kind != cfs.Stale || a.Next.Off != again {
		t.Errorf("what an earlier consumer left can be read: %+v", a)
	}
	if a := h.read(&cfs.Query{Kind: cfs.QueryJournal}); len(a.Changes) != 1 || a.Changes[0].Name != "e" || a.Changes[0].Index != again {
		t.Errorf("%+v", a)
	}
}

// What a change carries.
func TestJournalSays(t *testing.T) {
	h, s := following(t)
	cred := cfs.Cred{UID: 7, GID: 8}
	run := func(ops ...cfs.Op) []cfs.Change {
		t.Helper()
		if r := h.apply(&cfs.Command{Session: s, Cred: cred, Ops: ops}); r.Kind != cfs.KindOK {
			t.Fatalf("%+v: %v", ops, r.Kind)
		}
		got := h.read(&cfs.Query{Kind: cfs.QueryJournal, Index: h.index}).Changes
		for i, c := range got {
			if c.Index != h.index || c.N != uint32(i) || c.TimeNS != h.now || c.Session != s || c.UID != 7 || c.GID != 8 {
				t.Errorf("%+v", c)
			}
		}
		return got
	}
	kinds := func(got []cfs.Change, want ...cfs.OpKind) {
		t.Helper()
		var have []cfs.OpKind
		for _, c := range got {
			have = append(have, c.Kind)
		}
		if !slices.Equal(have, want) {
			t.Errorf("kinds %v, want %v", have, want)
		}
	}
	got := run(cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "l", Attr: cfs.Attr{Mode: cfs.ModeSymlink | 0o777, UID: 7}, Value: []byte("there")})
	kinds(got, cfs.OpCreate)
	if c := got[0]; c.Dir != 1 || c.Name != "l" || string(c.Value) != "there" || c.Attr.UID != 7 || c.Attr.Ino != c.Ino || c.Was != 0 {
		t.Errorf("%+v", c)
	}
	file := h.create(s, "f")
	born := h.index
	kinds(run(cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "f", Attr: cfs.Attr{Mode: cfs.ModeRegular}})) // it was there
	got = run(cfs.Op{Kind: cfs.OpSetXattr, Ino: file, Name: "security.capability", Value: []byte("v")})
	kinds(got, cfs.OpSetXattr)
	if c := got[0]; c.Was != born || c.Name != "security.capability" || c.Attr.Gen != h.index {
		t.Errorf("%+v", c)
	}
	kinds(run(cfs.Op{Kind: cfs.OpSetXattr, Ino: file, Name: "security.capability", Value: []byte("v")}), cfs.OpSetAttr) // only a time
	got = run(cfs.Op{Kind: cfs.OpWrite, Ino: file, Mask: cfs.SetKillPriv, Extents: []cfs.Extent{inline(3, "abc")}})
	kinds(got, cfs.OpWrite, cfs.OpRemoveXattr)
	if c := got[0]; len(c.Extents) != 1 || c.Extents[0].Off != 3 || string(c.Extents[0].Inline) != "abc" || c.Attr.Size != 6 {
		t.Errorf("%+v", c)
	}
	kinds(run(cfs.Op{Kind: cfs.OpLink, Ino: file, Dir: 1, Name: "g"}, cfs.Op{Kind: cfs.OpRename, Dir: 1, Name: "f", NewDir: 1, NewName: "g"}), cfs.OpLink)
	kinds(run(cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "f"}), cfs.OpUnlink)
	kinds(run(cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "g", Hold: true}), cfs.OpUnlink)
	kinds(run(cfs.Op{Kind: cfs.OpSetAttr, Ino: file, Mask: cfs.SetMode, Attr: cfs.Attr{Mode: 0o600}}), cfs.OpSetAttr)
	got = run(cfs.Op{Kind: cfs.OpRelease, Ino: file})
	kinds(got, cfs.OpRelease)
	if c := got[0]; c.Ino != file || c.Attr.Nlink != 0 {
		t.Errorf("%+v", c)
	}
	kinds(run(cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: "d", Attr: cfs.Attr{Mode: cfs.ModeDir}}, cfs.Op{Kind: cfs.OpRmdir, Dir: 1, Name: "d"}),
		cfs.OpCreate, cfs.OpRmdir, cfs.OpRelease)
	h.create(s, "x")
	y := h.create(s, "y")
	got = run(cfs.Op{Kind: cfs.OpRename, Dir: 1, Name: "x", NewDir: 1, NewName: "y", Hold: true})
	kinds(got, cfs.OpRename)
	if c := got[0]; c.Name != "x" || c.NewName != "y" || c.NewDir != 1 || c.Other != y || c.Ino == y || c.Attr.Ino != c.Ino {
		t.Errorf("%+v", c)
	}
	// The session that had it open ends.
	h.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s})
	got = h.read(&cfs.Query{Kind: cfs.QueryJournal, Index: h.index}).Changes
	kinds(got, cfs.OpRelease)
	if len(got) == 1 && (got[0].Ino != y || got[0].Session != 0) {
		t.Errorf("%+v", got)
	}
}

// A command that fails leaves no change, whatever its first operations did.
func TestJournalOfAFailure(t *testing.T) {
	h, s := following(t)
	h.apply(&cfs.Command{Session: s, Ops: []cfs.Op{{Kind: cfs.OpCreate, Dir: 1, Name: "a", Attr: cfs.Attr{Mode: cfs.ModeRegular}}, {Kind: cfs.OpRmdir, Dir: 1, Name: "b"}}})
	if a := h.read(&cfs.Query{Kind: cfs.QueryJournal}); len(a.Changes) != 0 {
		t.Errorf("%+v", a.Changes)
	}
}

// consumer is what is known of a consumer.
func (h *harness) consumer(name string) cfs.Consumer {
	h.t.Helper()
	for _, c := range h.read(&cfs.Query{Kind: cfs.QueryConsumers}).Consumers {
		if c.Name == name {
			return c
		}
	}
	h.t.Fatalf("no consumer %s", name)
	return cfs.Consumer{}
}

func (h *harness) wantJournal(entries uint64, reapable bool) {
	h.t.Helper()
	j, err := ReadJournal(h.kv)
	if err != nil || j.Entries != entries || (j.Bytes == 0) != (entries == 0) {
		h.t.Errorf("%v %+v, want %d entries", err, j, entries)
	}
	if u, err := ReadUsage(h.kv); err != nil || u.Reapable != reapable {
		h.t.Errorf("%v %+v, want reapable %v", err, u, reapable)
	}
}

func TestConsumers(t *testing.T) {
	h, s := following(t)
	set := func(name string, index uint64) cfs.Kind {
		return h.apply(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpSetConsumer, Name: name, Index: index}}}).Kind
	}
	first := h.index + 1
	for i := range 200 {
		h.create(s, fmt.Sprint(i))
	}
	if c := h.consumer("c"); c.Behind != 200 || c.BehindBytes < 200*100 || c.Index != first {
		t.Errorf("%+v", c)
	}
	if k := set("late", 0); k != cfs.KindOK || h.consumer("late").Index != h.index+1 || h.consumer("late").Behind != 0 {
		t.Errorf("%v: %+v", k, h.consumer("late"))
	}
	for _, c := range []struct {
		name  string
		index uint64
		want  cfs.Kind
	}{{"nobody", 5, cfs.NotFound}, {"", 0, cfs.Invalid}, {"c", h.index + 100, cfs.Invalid}, {"c", 0, cfs.KindOK}, {"c", 1, cfs.KindOK}} {
		if k := set(c.name, c.index); k != c.want {
			t.Errorf("consumer %q at %d: %v, want %v", c.name, c.index, k, c.want)
		}
	}
	if c := h.consumer("c"); c.Behind != 200 {
		t.Errorf("it went: %+v", c)
	}
	// What nobody needs goes: some at once, the rest later, and can be read no more.
	if k := set("c", first+150); k != cfs.KindOK || h.consumer("c").Behind != 50 {
		t.Errorf("%v %+v", k, h.consumer("c"))
	}
	if a := h.read(&cfs.Query{Kind: cfs.QueryJournal, Index: first + 149}); a.Kind != cfs.Stale || a.Next.Off != first+150 {
		t.Errorf("%+v", a)
	}
	h.wantJournal(200-trimAtOnce, true)
	h.do(0, cfs.Op{Kind: cfs.OpReap})
	h.wantJournal(50, false)
	h.do(0, cfs.Op{Kind: cfs.OpDropConsumer, Name: "c"})
	h.do(0, cfs.Op{Kind: cfs.OpReap})
	h.wantJournal(0, false)
	if k := h.apply(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpDropConsumer, Name: "c"}}}).Kind; k != cfs.NotFound {
		t.Errorf("dropped twice: %v", k)
	}
	for i := range cfs.MaxConsumers - 1 {
		if k := set(fmt.Sprint("n", i), 0); k != cfs.KindOK {
			t.Fatal(k)
		}
	}
	if k := set("one too many", 0); k != cfs.Overloaded {
		t.Errorf("%v", k)
	}
	if broken := checkState(h.kv); broken != "" {
		t.Error(broken)
	}
}

// Beyond a bound the oldest changes go, and those who needed them are told.
func TestJournalBounds(t *testing.T) {
	for _, bound := range []string{markJournalNext, markJournalEnd} {
		t.Run(bound, func(t *testing.T) {
			h, s := following(t)
			for i := range 10 {
				h.create(s, fmt.Sprint("old", i))
			}
			h.do(0, cfs.Op{Kind: cfs.OpSetConsumer, Name: "quick"})
			// As though there were many between those and the next.
			x := &tx{kv: h.kv}
			if bound == markJournalNext {
				x.setMark(bound, cfs.MaxJournalEntries)
			} else {
				x.setMark(bound, cfs.MaxJournalBytes)
			}
			if err := x.commit(h.kv); err != nil {
				t.Fatal(err)
			}
			for i := 0; !h.consumer("c").Lost; i++ {
				if h.create(s, fmt.Sprint("new", i)); i > 20 {
					t.Fatal("nobody is lost")
				}
				if j, err := ReadJournal(h.kv); err != nil || j.Entries > cfs.MaxJournalEntries || j.Bytes > cfs.MaxJournalBytes {
					t.Fatalf("%v %+v", err, j)
				}
			}
			if q := h.consumer("quick"); q.Lost || q.Behind == 0 {
				t.Errorf("%+v", q)
			}
			lost := h.consumer("c")
			if a := h.read(&cfs.Query{Kind: cfs.QueryJournal, Index: lost.Index}); a.Kind != cfs.Stale || a.Next.Off <= lost.Index {
				t.Errorf("%+v", a)
			}
			if k := h.apply(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpSetConsumer, Name: "c", Index: h.index}}}).Kind; k != cfs.Stale {
				t.Errorf("it is lost, and went on: %v", k)
			}
			h.do(0, cfs.Op{Kind: cfs.OpDropConsumer, Name: "c"}, cfs.Op{Kind: cfs.OpSetConsumer, Name: "c"})
			if c := h.consumer("c"); c.Lost || c.Index != h.index+1 {
				t.Errorf("made anew: %+v", c)
			}
		})
	}
}

// An answer of the journal fits a message.
func TestJournalAnswersAreBounded(t *testing.T) {
	h, s := following(t)
	ino := h.create(s, "a")
	from, fat := h.index+1, string(bytes.Repeat([]byte("i"), cfs.MaxInline))
	for range 100 {
		h.do(s, cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(0, fat)}})
	}
	total, answers := 0, 0
	for more := true; more; answers++ {
		a := h.read(&cfs.Query{Kind: cfs.QueryJournal, Index: from})
		if len(a.Changes) == 0 || len(a.Changes)*cfs.MaxInline > maxListingInline {
			t.Fatalf("%d changes of %d bytes", len(a.Changes), cfs.MaxInline)
		}
		total += len(a.Changes)
		more, from = a.More, a.Changes[len(a.Changes)-1].Index+1
	}
	if total != 100 || answers != 2 {
		t.Errorf("%d changes in %d answers", total, answers)
	}
}

// Sessions are listed with what the state has of each.
func TestSessions(t *testing.T) {
	h := newHarness(t)
	a, b := h.open("one"), h.open("two")
	opened := h.now
	h.create(a, "f")
	h.do(a, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "f", Hold: true})
	h.apply(&cfs.Command{Session: a, Seq: 5, LowWater: 2, Floor: 9})
	want := []cfs.SessionInfo{{ID: a, Name: "one", OpenedNS: opened - 10, LowWater: 2, Replies: 2, Floor: 9, Holds: 1}, {ID: b, Name: "two", OpenedNS: opened, LowWater: 1, Floor: 1}}
	if got := h.read(&cfs.Query{Kind: cfs.QuerySessions}); !reflect.DeepEqual(got.Sessions, want) || got.More {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := h.read(&cfs.Query{Kind: cfs.QuerySessions, Limit: 1}); !reflect.DeepEqual(got.Sessions, want[:1]) || !got.More {
		t.Errorf("%+v", got)
	}
	if got := h.read(&cfs.Query{Kind: cfs.QuerySessions, Limit: 1, Session: a}); !reflect.DeepEqual(got.Sessions, want[1:]) || got.More {
		t.Errorf("%+v", got)
	}
}
