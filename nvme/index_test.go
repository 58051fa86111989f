package nvme

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
)

// maxRecordBytes is the stated cost of a record in memory, all told.
const maxRecordBytes = 32

const indexRecords = 1_000_000

func stripe(session, counter uint64) Key {
	return Key{Stripe: cfs.StripeID{Session: cfs.SessionID(session), Counter: counter}, Shard: uint8(counter % 6)}
}

// indexPlace is some place, other for each n.
func indexPlace(n int) (seg int, header, payload uint32) {
	payload = uint32(n*7%16000) + 100
	return n % 1000, payload - 1 - uint32(n%64), payload
}

func (x *index) mustPut(tb testing.TB, k Key, n int) {
	rec := Record{Key: k, PG: cfs.PGID(n % 512), Epoch: cfs.Epoch(3 + n%2), Len: cfs.BlockSize * uint32(1+n%256)}
	seg, header, payload := indexPlace(n)
	if _, _, err := x.put(&rec, uint16(n%3), location{uint32(seg), header, payload}); err != nil {
		tb.Fatal(err)
	}
}

// shuffledSessions is n keys of so many sessions, each with counters from 1 up, in a random order.
func shuffledSessions(n, sessions int) []Key {
	keys := make([]Key, n)
	for i := range keys {
		keys[i] = stripe(uint64(1+i%sessions), uint64(1+i/sessions))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return keys
}

// indexLoad fills an index, and calls held wherever the cost of a record must hold.
type indexLoad func(x *index, held func(what string))

// indexLoads are made with all their own memory.
var indexLoads = map[string]func(tb testing.TB) indexLoad{
	"InOrder": func(tb testing.TB) indexLoad {
		victims := rand.New(rand.NewPCG(3, 4)).Perm(indexRecords)[:indexRecords/10*9]
		return func(x *index, held func(string)) {
			for i := range indexRecords {
				x.mustPut(tb, stripe(1, uint64(i)), i)
			}
			held("put")
			for _, i := range victims {
				x.delete(stripe(1, uint64(i)))
			}
			held("nine of ten deleted")
		}
	},
	"InReverse": func(tb testing.TB) indexLoad {
		return func(x *index, held func(string)) {
			for i := indexRecords / 10; i > 0; i-- {
				x.mustPut(tb, stripe(1, uint64(i)), i)
			}
			held("put")
		}
	},
	"NearlyInOrder": func(tb testing.TB) indexLoad {
		keys := nearlyInOrder(indexRecords)
		return func(x *index, held func(string)) {
			for i, k := range keys {
				x.mustPut(tb, k, i)
			}
			held("put")
		}
	},
	"InNoOrder": func(tb testing.TB) indexLoad {
		keys := shuffledSessions(indexRecords, 8)
		return func(x *index, held func(string)) {
			for i, k := range keys {
				x.mustPut(tb, k, i)
			}
			held("put")
			rng := rand.New(rand.NewPCG(3, 4))
			rng.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
			for _, k := range keys[:len(keys)/2] {
				x.delete(k)
			}
			held("half deleted")
		}
	},
	"OldestForNewest": func(tb testing.TB) indexLoad {
		const live = indexRecords / 4
		return func(x *index, held func(string)) {
			for i := range indexRecords {
				x.mustPut(tb, stripe(uint64(i%8), uint64(i)), i)
				if i >= live {
					x.delete(stripe(uint64((i-live)%8), uint64(i-live)))
				}
			}
			held("steady")
		}
	},
	"AnyForNewest": func(tb testing.TB) indexLoad {
		keys := make([]Key, indexRecords/4)
		return func(x *index, held func(string)) {
			rng := rand.New(rand.NewPCG(5, 6))
			for i := range indexRecords {
				at := i
				if i >= len(keys) {
					at = rng.IntN(len(keys))
					x.delete(keys[at])
				}
				keys[at] = stripe(uint64(i%8), uint64(i))
				x.mustPut(tb, keys[at], i)
			}
			held("steady")
		}
	},
	"Sessions": func(tb testing.TB) indexLoad {
		keys := shuffledSessions(indexRecords, 5000)
		return func(x *index, held func(string)) {
			for i, k := range keys {
				x.mustPut(tb, k, i)
			}
			held("5000, put in no order")
		}
	},
	"SessionsInOrder": func(tb testing.TB) indexLoad {
		return func(x *index, held func(string)) {
			for i := range indexRecords {
				x.mustPut(tb, stripe(uint64(i%5000), uint64(i)), i)
			}
			held("5000, put in order")
		}
	},
}

// nearlyInOrder is n keys of eight sessions, each up to 16 out of place: the order in which puts in flight end.
func nearlyInOrder(n int) []Key {
	keys := make([]Key, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < n; at += 128 {
		for i, j := range rng.Perm(min(128, n-at)) {
			keys[at+i] = stripe(uint64((at+j)%8), uint64((at+j)/8))
		}
	}
	return keys
}

// TestIndexMemory holds the stated cost of a record, as the allocator sees it.
func TestIndexMemory(t *testing.T) {
	if invariants.Race {
		t.Skip("millions of records take long under the race detector")
	}
	for name, load := range indexLoads {
		run := load(t)
		before := heapBytes()
		x := newIndex()
		run(x, func(what string) {
			n, taken, told := float64(x.len()), float64(heapBytes()-before), float64(x.memBytes())
			t.Logf("%s, %s: %d records, %.2f bytes each", name, what, x.len(), taken/n)
			if taken/n > maxRecordBytes {
				t.Errorf("%s, %s: %.1f bytes a record, want at most %d", name, what, taken/n, maxRecordBytes)
			}
			if told < 0.99*taken-1000 || told > 1.01*taken+1000 {
				t.Errorf("%s, %s: memBytes says %.0f, the heap has %.0f", name, what, told, taken)
			}
		})
		runtime.KeepAlive(run)
	}
}

// TestIndexMemoryOfSmallSessions holds what the doc comment of index says of sessions with few records.
func TestIndexMemoryOfSmallSessions(t *testing.T) {
	if invariants.Race {
		t.Skip("a million records take long under the race detector")
	}
	const sessions = 50000
	for _, each := range []int{1, 2, 3, 10} {
		for _, order := range []string{"in order", "shuffled"} {
			x := newIndex()
			keys := shuffledSessions(sessions*each, sessions)
			if order == "in order" {
				slices.SortFunc(keys, compareKeys)
			}
			for i, k := range keys {
				x.mustPut(t, k, i)
			}
			got := float64(x.memBytes()) / float64(len(keys))
			t.Logf("%d records a session, %s: %.1f bytes each", each, order, got)
			least, most := float64(leafBytes)/float64(each)+16, 52/float64(each)+20.5
			if got < least || got > most {
				t.Errorf("%d records a session, %s: %.1f bytes each, want %.1f to %.1f", each, order, got, least, most)
			}
		}
	}
}

// TestIndexSizes holds the constants of the accounting.
func TestIndexSizes(t *testing.T) {
	for _, c := range []struct {
		typ  reflect.Type
		want int
	}{
		{reflect.TypeFor[packed](), packedBytes},
		{reflect.TypeFor[leaf](), leafBytes},
		{reflect.TypeFor[branch](), branchBytes},
		{reflect.TypeFor[groupSlot](), groupSlotBytes},
	} {
		if int(c.typ.Size()) != c.want {
			t.Errorf("%s has %d bytes, not %d", c.typ, c.typ.Size(), c.want)
		}
	}
	if groupShift+groupBits > 64 {
		t.Error("a packed record has more than its bits")
	}
}

func heapBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func compareKeys(a, b Key) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

// check is what holds of an index between any two calls.
func (x *index) check() error {
	var count, recRoom, leafRoom int
	refs := map[uint32]uint32{}
	var last *entry
	for bi := range x.branches {
		b := &x.branches[bi]
		leafRoom += cap(b.leaves)
		if len(b.leaves) == 0 && len(x.branches) > 1 || len(b.leaves) > maxBranch {
			return fmt.Errorf("branch %d has %d leaves", bi, len(b.leaves))
		}
		if bi == 0 && (b.session != 0 || b.counter != 0) {
			return fmt.Errorf("the first branch starts at %d.%d", b.session, b.counter)
		}
		for li := range b.leaves {
			l := &b.leaves[li]
			recRoom += cap(l.recs)
			if len(l.recs) == 0 || len(l.recs) > maxLeaf {
				return fmt.Errorf("branch %d, leaf %d has %d records", bi, li, len(l.recs))
			}
			if cmp.Or(cmp.Compare(b.session, l.session), cmp.Compare(b.counter, l.counter)) > 0 {
				return fmt.Errorf("branch %d starts behind its leaf %d", bi, li)
			}
			if last != nil {
				s := last.key.Stripe
				if cmp.Or(cmp.Compare(uint64(s.Session), l.session), cmp.Compare(s.Counter, l.counter)) >= 0 {
					return fmt.Errorf("branch %d, leaf %d starts at %d.%d, in front of it is %s", bi, li, l.session, l.counter, last.key)
				}
				if li == 0 && cmp.Or(cmp.Compare(uint64(s.Session), b.session), cmp.Compare(s.Counter, b.counter)) >= 0 {
					return fmt.Errorf("branch %d starts at %d.%d, in front of it is %s", bi, b.session, b.counter, last.key)
				}
			}
			for ri := range l.recs {
				e := x.entry(l, &l.recs[ri])
				if ri == 0 && e.key.Stripe.Counter < l.counter {
					return fmt.Errorf("branch %d, leaf %d starts behind its first record, %s", bi, li, e.key)
				}
				if last != nil && !last.key.Less(e.key) {
					return fmt.Errorf("%s in front of %s", last.key, e.key)
				}
				refs[l.recs[ri].slot()]++
				last = &e
				count++
			}
		}
	}
	if count != x.count || recRoom != x.recRoom || leafRoom != x.leafRoom {
		return fmt.Errorf("%d records, room for %d, and for %d leaves; counted are %d, %d, %d", count, recRoom, leafRoom, x.count, x.recRoom, x.leafRoom)
	}
	return x.groups.check(refs)
}

func (t *groupTable) check(refs map[uint32]uint32) error {
	for i, s := range t.slots {
		if s.refs != refs[uint32(i)] {
			return fmt.Errorf("group slot %d: %d references, counted are %d", i, refs[uint32(i)], s.refs)
		}
	}
	free := 0
	for at := t.free; at != 0; at = uint32(t.slots[at-1].pg) {
		free++
	}
	if len(refs) != t.live || t.live+free != len(t.slots) {
		return fmt.Errorf("%d group slots, %d live, %d free, %d referred to", len(t.slots), t.live, free, len(refs))
	}
	return nil
}

var indexSeed = flag.Uint64("index.seed", 0, "replay this seed of TestIndexModel alone")

// TestIndexModel compares an index with a map.
func TestIndexModel(t *testing.T) {
	if *indexSeed != 0 {
		runIndexModel(t, *indexSeed)
		return
	}
	seeds := uint64(36)
	if invariants.Race {
		seeds = 6 // one of each shape: nothing here is concurrent
	}
	for seed := uint64(1); seed <= seeds && !t.Failed(); seed++ {
		runIndexModel(t, seed)
	}
}

// indexModel is what an index must hold.
type indexModel struct {
	x       *index
	rng     *rand.Rand
	entries map[Key]entry
	next    uint64
	shape   indexShape
}

// indexShape says what keys a run uses: which of them are near each other.
type indexShape struct{ sessions, counters, spread, shards uint64 }

func runIndexModel(t *testing.T, seed uint64) {
	m := indexModel{x: newIndex(), rng: rand.New(rand.NewPCG(seed, 1)), entries: map[Key]entry{}}
	shapes := []indexShape{
		{1, 3000, 1, 1}, {1, 40, 1, 256}, {8, 1000, 1, 6}, {3000, 2, 1, 2}, {3, 2000, 1 << 23, 2}, {2, 1 << 62, 3, 256},
	}
	m.shape = shapes[seed%uint64(len(shapes))]
	m.x.groups.maximum = 1 + m.rng.IntN(200)
	for phase := range 6 {
		putShare := 20 + m.rng.IntN(80) // of 100
		for range 1 + m.rng.IntN(4000) {
			var err error
			switch n := m.rng.IntN(100); {
			case n%10 == 9:
				err = m.revise()
			case n < putShare:
				err = m.put()
			default:
				err = m.delete()
			}
			if err != nil {
				t.Errorf("seed %d, phase %d: %v (replay with -index.seed %d)", seed, phase, err, seed)
				return
			}
		}
		if err := m.compare(); err != nil {
			t.Errorf("seed %d, phase %d: %v (replay with -index.seed %d)", seed, phase, err, seed)
			return
		}
	}
}

// key is one that there may be: the next in order, one near it, or any.
func (m *indexModel) key() Key {
	s := m.shape
	counter := m.rng.Uint64N(s.counters)
	switch m.rng.IntN(4) {
	case 0:
		m.next++
		counter = m.next % s.counters
	case 1:
		counter = (m.next + s.counters - m.rng.Uint64N(min(16, s.counters))) % s.counters
	}
	return Key{
		Stripe: cfs.StripeID{Session: cfs.SessionID(m.rng.Uint64N(s.sessions) << 40), Counter: counter * s.spread},
		Shard:  uint8(m.rng.Uint64N(s.shards)),
	}
}

func (m *indexModel) entry(k Key) entry {
	distance := uint32(1 + m.rng.IntN(maxHeaderDistance))
	payload := distance + m.rng.Uint32N(1<<payloadBits-distance)
	return entry{
		key: k, seg: m.rng.Uint32N(maxIndexSegments), header: payload - distance, payload: payload,
		blocks: uint32(1 + m.rng.IntN(256)),
		group:  group{cfs.PGID(m.rng.Uint32N(16) << 28), cfs.Epoch(m.rng.IntN(12))},

		revision: uint16(m.rng.IntN(maxRevision + 1)),
	}
}

func (m *indexModel) put() error {
	e := m.entry(m.key())
	if old, ok := m.entries[e.key]; ok && m.rng.IntN(2) == 0 {
		return m.replace(old, e)
	}
	rec := Record{Key: e.key, PG: e.group.pg, Epoch: e.group.epoch, Len: e.sizeBytes()}
	old, replaced, err := m.x.put(&rec, e.revision, e.location())
	if cfs.KindOf(err) == cfs.Overloaded {
		groups := map[group]bool{}
		for _, o := range m.entries {
			groups[o.group] = true
		}
		if len(groups) < m.x.groups.maximum || groups[e.group] {
			return fmt.Errorf("%w, with %d of %d", err, len(groups), m.x.groups.maximum)
		}
		return nil
	}
	if want, there := m.entries[e.key]; err != nil || replaced != there || old != want {
		return fmt.Errorf("put %s: replaced %v %+v (%v), want %v %+v", e.key, replaced, old, err, there, want)
	}
	m.entries[e.key] = e
	return nil
}

func (m *indexModel) replace(old, e entry) error {
	wrong := old.location()
	wrong.payload++
	if m.x.replace(e.key, wrong, e.location()) {
		return fmt.Errorf("%s was replaced at %v, it is at %v", e.key, wrong, old.location())
	}
	if !m.x.replace(e.key, old.location(), e.location()) {
		return fmt.Errorf("%s was not replaced at %v", e.key, old.location())
	}
	e.blocks, e.group, e.revision = old.blocks, old.group, old.revision
	m.entries[e.key] = e
	return nil
}

// revise raises the revision of a record, or adopts another.
func (m *indexModel) revise() error {
	e := m.entry(m.key())
	old, there := m.entries[e.key]
	if m.rng.IntN(2) == 0 {
		got, err := m.x.revise(e.key)
		if full := there && old.revision == maxRevision; full != (cfs.KindOf(err) == cfs.Overloaded) {
			return fmt.Errorf("revise %s from %d: %v", e.key, old.revision, err)
		} else if there && !full {
			old.revision++
			m.entries[e.key] = old
		}
		if err == nil && got != old.revision {
			return fmt.Errorf("%s has revision %d, want %d", e.key, got, old.revision)
		}
		return nil
	}
	if !there {
		return nil
	}
	rec := Record{Key: e.key, PG: old.group.pg, Epoch: old.group.epoch, Len: e.sizeBytes()}
	e.group = old.group
	lost, twice, kept, err := m.x.adopt(&rec, e.revision, e.location())
	want := e
	if kept {
		m.entries[e.key], want = e, old
	}
	if err != nil || !twice || kept != (e.revision >= old.revision) || lost != want {
		return fmt.Errorf("adopt %s, revision %d beside %d: kept %v, lost %+v, %v", e.key, e.revision, old.revision, kept, lost, err)
	}
	return nil
}

func (m *indexModel) delete() error {
	k := m.key()
	if m.rng.IntN(4) > 0 { // one that is there
		if next := m.x.list(&k, 1); len(next) > 0 {
			k = next[0].Key
		}
	}
	got, ok := m.x.delete(k)
	if want, there := m.entries[k]; ok != there || got != want {
		return fmt.Errorf("delete %s: %v %+v, want %v %+v", k, ok, got, there, want)
	}
	delete(m.entries, k)
	if m.x.replace(k, got.location(), location{1, 2, 3}) {
		return fmt.Errorf("%s was replaced after it was deleted", k)
	}
	return nil
}

func (m *indexModel) compare() error {
	if err := m.x.check(); err != nil {
		return err
	}
	var want []Key
	for k, e := range m.entries {
		want = append(want, k)
		if got, ok := m.x.get(k); !ok || got != e {
			return fmt.Errorf("get %s: %v %+v, want %+v", k, ok, got, e)
		}
	}
	slices.SortFunc(want, compareKeys)
	if m.x.len() != len(want) {
		return fmt.Errorf("%d records, want %d", m.x.len(), len(want))
	}
	var all []Key
	m.x.each(nil, func(e entry) bool { all = append(all, e.key); return true })
	if !slices.Equal(all, want) {
		return fmt.Errorf("each has %d records, in another order, want %d", len(all), len(want))
	}
	for range 200 {
		k, limit := m.key(), m.rng.IntN(20)
		if _, there := m.entries[k]; !there {
			if _, ok := m.x.get(k); ok {
				return fmt.Errorf("get %s: there", k)
			}
		}
		from, found := slices.BinarySearchFunc(want, k, compareKeys)
		if found {
			from++
		}
		part := want[from:min(from+limit, len(want))]
		got := m.x.list(&k, limit)
		if len(got) != len(part) {
			return fmt.Errorf("list behind %s: %d records, want %d", k, len(got), len(part))
		}
		for i, rec := range got {
			if e := m.entries[part[i]]; rec != m.x.record(&e) {
				return fmt.Errorf("list behind %s: %+v, want %s", k, rec, part[i])
			}
		}
	}
	return nil
}

// TestIndexBounds puts what does not fit.
func TestIndexBounds(t *testing.T) {
	x := newIndex()
	put := func(seg int, header, payload, bytes uint32) error {
		_, _, err := x.put(&Record{Key: stripe(1, 1), Len: bytes}, 0, location{uint32(seg), header, payload})
		return err
	}
	for _, c := range []struct {
		seg                    int
		header, payload, bytes uint32
	}{
		{0, 5, 5, 4096}, {0, 6, 5, 4096}, {0, 5, 5 + maxHeaderDistance + 1, 4096}, {0, 1 << 16, 1<<16 + 1, 4096},
		{maxIndexSegments, 2, 3, 4096}, {-1, 2, 3, 4096}, {0, 2, 3, 0}, {0, 2, 3, 257 * 4096},
	} {
		if err := put(c.seg, c.header, c.payload, c.bytes); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, _, err := x.put(&Record{Key: stripe(1, 1), Len: 4096}, maxRevision+1, location{1, 2, 3}); cfs.KindOf(err) != cfs.Invalid {
		t.Errorf("revision %d: %v", maxRevision+1, err)
	}
	if x.len() != 0 || x.groups.live != 0 {
		t.Error("a refused put left something behind")
	}
	if err := put(maxIndexSegments-1, 1<<16-1-maxHeaderDistance, 1<<16-1, 1<<20); err != nil {
		t.Error(err)
	}
	if e, _ := x.get(stripe(1, 1)); e.location() != (location{maxIndexSegments - 1, 1<<16 - 1 - maxHeaderDistance, 1<<16 - 1}) || e.blocks != 256 {
		t.Errorf("got %+v", e)
	}
	if !invariants.Enabled && x.replace(stripe(1, 1), location{maxIndexSegments - 1, 1<<16 - 1 - maxHeaderDistance, 1<<16 - 1}, location{1, 2, 3 + maxHeaderDistance}) {
		t.Error("a place that does not fit was taken")
	}
}

// TestIndexGroups gives every record a group of its own, up to the bound, and
// again after they are gone.
func TestIndexGroups(t *testing.T) {
	x := newIndex()
	x.groups.maximum = 5000
	put := func(n, of int) error {
		_, _, err := x.put(&Record{Key: stripe(1, uint64(n)), PG: cfs.PGID(of), Epoch: cfs.Epoch(of / 7), Len: 4096}, 0, location{1, 2, 3})
		return err
	}
	most := 0
	for round := range 3 {
		for i := range 5000 {
			if err := put(i, round*5000+i); err != nil {
				t.Fatal(err)
			}
		}
		if err := put(5000, 1<<20); cfs.KindOf(err) != cfs.Overloaded || x.len() != 5000 {
			t.Errorf("one group too many: %v", err)
		}
		if err := put(5000, round*5000+77); err != nil {
			t.Errorf("a group that is there: %v", err)
		}
		if most = max(most, x.groups.memBytes()); round > 0 && x.groups.memBytes() > most {
			t.Errorf("the groups have grown to %d bytes", x.groups.memBytes())
		}
		for i := range 5001 {
			x.delete(stripe(1, uint64(i)))
		}
		if err := x.check(); err != nil {
			t.Fatal(err)
		}
		if n := x.memBytes(); n > 200 {
			t.Errorf("an empty index has %d bytes", n)
		}
	}
}

// TestIndexAlloc holds that looking up, replacing and listing nothing take no memory.
func TestIndexAlloc(t *testing.T) {
	if invariants.Race {
		t.Skip("the race detector allocates on its own")
	}
	x := newIndex()
	for i := range 10000 {
		x.mustPut(t, stripe(1, uint64(i)), i)
	}
	n, sum := 0, uint32(0)
	rec := Record{Key: stripe(1, 77), PG: 5, Epoch: 3, Len: 4096}
	end := stripe(1, 9000)
	if got := testing.AllocsPerRun(100, func() {
		n++
		e, _ := x.get(stripe(1, uint64(n)))
		x.replace(e.key, e.location(), e.location())
		x.put(&rec, 0, location{1, 2, 3})
		x.each(&end, func(e entry) bool { sum += e.blocks; return true })
	}); got != 0 && !invariants.Enabled {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkIndex(b *testing.B) {
	keys := shuffledSessions(indexRecords, 8)
	sorted := slices.SortedFunc(slices.Values(keys), compareKeys)
	full := func(b *testing.B) *index {
		x := newIndex()
		for i, k := range keys {
			x.mustPut(b, k, i)
		}
		return x
	}
	b.Run("Get", func(b *testing.B) {
		x := full(b)
		b.ResetTimer()
		for i := range b.N {
			if _, ok := x.get(keys[i*7919%len(keys)]); !ok {
				b.Fatal("lost")
			}
		}
	})
	put := func(keys []Key) func(b *testing.B) {
		return func(b *testing.B) {
			x := newIndex()
			for i := range b.N {
				if i%len(keys) == 0 {
					x = newIndex()
				}
				x.mustPut(b, keys[i%len(keys)], i)
			}
		}
	}
	b.Run("PutAscending", put(sorted))
	b.Run("PutRandom", put(keys))
	b.Run("PutNearlyInOrder", put(nearlyInOrder(indexRecords)))
	b.Run("Delete", func(b *testing.B) {
		x := full(b)
		b.ResetTimer()
		for range b.N {
			if x.len() == 0 {
				b.StopTimer()
				x = full(b)
				b.StartTimer()
			}
			x.delete(keys[len(keys)-x.len()])
		}
	})
	b.Run("List1000", func(b *testing.B) {
		x := full(b)
		b.ResetTimer()
		for i := range b.N {
			if n := len(x.list(&sorted[i*7919%(len(keys)-1000)], 1000)); n < 999 {
				b.Fatal(n)
			}
		}
	})
}

func TestCRCCacheBound(t *testing.T) {
	const bound = 10000
	c := newCRCCache(bound)
	for i := range uint64(1000) {
		c.put(i, make([]byte, 64))
		if c.get(5) == nil && i >= 5 {
			t.Fatalf("an entry that is asked for all the time was dropped at %d", i)
		}
		if n := (len(c.young) + len(c.old)) * (64 + cacheEntryBytes); n > bound {
			t.Fatalf("%d bytes in a cache of %d", n, bound)
		}
	}
	if c.get(0) != nil {
		t.Error("nothing was dropped")
	}
	c.delete(5)
	if c.get(5) != nil {
		t.Error("deleted, and there")
	}
	c.put(7, make([]byte, bound))
	if c.get(7) != nil {
		t.Error("an entry above the bound was kept")
	}
}
