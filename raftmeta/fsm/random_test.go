package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

var (
	flagSeed  = flag.Uint64("seed", 0, "run TestModel with this seed only")
	flagSteps = flag.Int("steps", 1000, "commands of each run of TestModel")
	flagOps   = flag.Int("model.ops", 0, "go on with other seeds until TestModel has done so many operations")
)

// TestModel runs random commands through the machine and the model and compares
// every outcome, errno for errno and byte for byte, and the invariants of the
// state. The log of each run is then replayed, in other batches and with crashes
// in between, and must give the same state.
func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, uint64(time.Now().UnixNano())}
	if *flagSeed != 0 {
		seeds = []uint64{*flagSeed}
	}
	done := 0
	for _, seed := range seeds {
		done += runModel(t, seed)
	}
	for seed := uint64(time.Now().UnixNano()); done < *flagOps && !t.Failed(); seed++ {
		done += runModel(t, seed)
	}
	t.Logf("%d operations", done)
}

// runModel is one run; it returns how many operations it did.
func runModel(t *testing.T, seed uint64) (ops int) {
	t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
		r := &random{harness: newHarness(t), rng: rand.New(rand.NewPCG(seed, 0)), m: newModel(), low: map[cfs.SessionID]uint64{}, counter: map[cfs.SessionID]uint64{},
			kinds: map[string]int{}}
		defer func() {
			if t.Failed() {
				t.Logf("run again with: go test -run TestModel -seed %d -steps %d", seed, *flagSteps)
			}
		}()
		r.start()
		for range *flagSteps {
			r.step()
		}
		r.finish()
		r.replay()
		if testing.Verbose() {
			t.Log(r.kinds)
		}
		for _, e := range r.log {
			ops += len(e.cmd.Ops)
		}
	})
	return ops
}

// TestDeterminism: two replicas that apply the same commands, and a replay of them in other
// batches, have states of the same hash, after every command and at the end.
func TestDeterminism(t *testing.T) {
	r := &random{harness: newHarness(t), rng: rand.New(rand.NewPCG(11, 0)), m: newModel(), low: map[cfs.SessionID]uint64{}, counter: map[cfs.SessionID]uint64{},
		kinds: map[string]int{}}
	r.start()
	other := newState(t)
	seen := 0
	for range 300 {
		r.step()
		for ; seen < len(r.log); seen++ {
			e := r.log[seen]
			if _, err := r.harness.m.Apply(other, e.index, e.stampNS, e.cmd); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := stateHash(r.kv), stateHash(other); a != b {
			t.Fatalf("index %d: hashes %x and %x:\n%s", r.index, a, b, diff(r.kv.dump(), other.dump()))
		}
	}
	r.replay()
}

// stateHash is of every row of a state, in order.
func stateHash(kv *memKV) (sum [sha256.Size]byte) {
	h := sha256.New()
	kv.each("", func(k, v []byte) {
		for _, b := range [][]byte{k, v} {
			h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(b))))
			h.Write(b)
		}
	})
	return [sha256.Size]byte(h.Sum(nil))
}

type random struct {
	*harness
	rng     *rand.Rand
	m       *model
	low     map[cfs.SessionID]uint64
	counter map[cfs.SessionID]uint64 // last stripe id
	past    []answered
	kinds   map[string]int // outcomes seen
	several bool           // the command being made has several operations
	who     cfs.Cred       // of the command being made
}

type answered struct {
	cmd   *cfs.Command
	reply *cfs.Reply
}

func (r *random) start() {
	r.cluster(3, 2)
	r.learnMap()
	r.openSession()
	r.openSession()
	// Everybody finds something to do.
	r.command(r.session(), []cfs.Op{{Kind: cfs.OpSetAttr, Ino: cfs.RootIno, Mask: cfs.SetMode, Attr: cfs.Attr{Mode: 0o1777}}}, nil)
}

// someone is whose command or query it is: of three users and as many groups, or of the kernel's.
func (r *random) someone() cfs.Cred {
	if r.one(2) {
		return cfs.Cred{UID: uint32(r.rng.IntN(3)), GID: uint32(r.rng.IntN(3))}
	}
	c := cfs.Cred{Enforce: true, UID: 1 + uint32(r.rng.IntN(3)), GID: uint32(r.rng.IntN(3))}
	if r.one(6) {
		c.UID = 0
	}
	for g := range uint32(3) {
		if r.one(4) {
			c.Groups = append(c.Groups, g)
		}
	}
	return c
}

// ask compares how a random query goes with what the model says.
func (r *random) ask() {
	q := &cfs.Query{Kind: pick(r, []cfs.QueryKind{cfs.QueryLookup, cfs.QueryGetAttr, cfs.QueryReadDir, cfs.QueryGetXattr, cfs.QueryListXattr, cfs.QueryExtents}),
		Ino: r.ino(func(*node) bool { return true }), Dir: r.ino((*node).isDir), End: span, WithAttrs: true, Cred: r.someone()}
	switch q.Kind {
	case cfs.QueryLookup:
		q.Name = r.found(q.Dir)
	case cfs.QueryGetXattr:
		q.Name = pick(r, xattrNames)
	}
	m := *r.m
	m.cred = q.Cred
	a := r.read(q)
	want := m.answer(q)
	if a.Kind != want {
		r.t.Fatalf("index %d: %+v: %s, want %s", r.index, q, a.Kind.Name(), want.Name())
	}
	r.kinds["query "+want.Name()]++
	if q.Kind == cfs.QueryListXattr && m.bound() && slices.Contains(a.Names, "trusted.t") {
		r.t.Fatalf("index %d: user %d is told of trusted attributes", r.index, q.Cred.UID)
	}
	for _, e := range a.Entries {
		if (e.Attr != nil) != m.may(m.nodes[q.Dir], 1) {
			r.t.Fatalf("index %d: entry %+v of %+v", r.index, e, q)
		}
	}
}

var xattrNames = []string{"user.a", "user.b", "security.capability", "trusted.t", cfs.XattrACLAccess, cfs.XattrACLAccess, cfs.XattrACLDefault, cfs.XattrACLDefault}

// acl is the form of a random ACL, now and then of none or of one that is broken.
func (r *random) acl() []byte {
	perm := func() uint32 { return uint32(r.rng.IntN(8)) }
	list := func() (out []named) {
		for range r.rng.IntN(3) {
			out = append(out, named{uint32(r.rng.IntN(4)), perm()})
		}
		return out
	}
	a := &modelACL{owner: perm(), group: perm(), other: perm(), mask: perm(), users: list(), groups: list()}
	a.masked = r.one(4) || !a.plain()
	b := a.blob()
	if r.one(10) {
		return b[:4]
	}
	if r.one(8) {
		return b[:len(b)-1-r.rng.IntN(8)]
	}
	r.m.acls[string(b)] = a
	return b
}

func (r *random) learnMap() {
	r.m.groups = map[cfs.PGID]cfs.PG{}
	for _, g := range r.read(&cfs.Query{Kind: cfs.QueryMap}).Map.Groups {
		r.m.groups[g.ID] = g
		r.m.nextPG = max(r.m.nextPG, g.ID+1)
	}
}

func (r *random) openSession() {
	id := r.open("x")
	r.m.floors[id], r.low[id] = 1, 1
}

// one is true once in n.
func (r *random) one(n int) bool { return r.rng.IntN(n) == 0 }

func pick[T any](r *random, from []T) T { return from[r.rng.IntN(len(from))] }

func (r *random) session() cfs.SessionID {
	return pick(r, slices.Sorted(maps.Keys(r.m.floors)))
}

// ino is mostly an inode that want accepts.
func (r *random) ino(want func(*node) bool) cfs.Ino {
	var all []cfs.Ino
	for _, i := range slices.Sorted(maps.Keys(r.m.nodes)) {
		if want(r.m.nodes[i]) || r.one(30) {
			all = append(all, i)
		}
	}
	if len(all) == 0 || r.one(60) {
		return r.m.next + cfs.Ino(r.rng.IntN(2)*100) // the next one may be made in this very command
	}
	return pick(r, all)
}

func (r *random) name() string {
	switch r.rng.IntN(60) {
	case 0:
		return pick(r, []string{"", ".", "..", "x/y", "nul\x00", strings.Repeat("n", 256)})
	case 1:
		return strings.Repeat("m", 255)
	}
	return string(rune('a' + r.rng.IntN(6)))
}

// found is mostly a name that is there.
func (r *random) found(dir cfs.Ino) string {
	if d := r.m.nodes[dir]; d != nil && len(d.names) > 0 && !r.one(8) {
		return pick(r, slices.Sorted(maps.Keys(d.names)))
	}
	return r.name()
}

func (r *random) step() {
	r.who = cfs.Cred{}
	for r.one(2) {
		r.ask()
	}
	switch n := r.rng.IntN(100); {
	case n < 2:
		r.flap()
	case n < 3:
		s := r.session()
		r.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s})
		r.m.expire(s)
		r.openSession()
	case n < 6:
		r.reap(1)
	case n < 12:
		r.swapSome()
	case n < 13:
		r.shatter()
	case n < 20 && len(r.past) > 0:
		r.retry()
	default:
		s := r.session()
		r.who = r.someone()
		ops := make([]cfs.Op, 1)
		if r.one(4) {
			ops = make([]cfs.Op, r.rng.IntN(6)) // none only raise the marks
		}
		r.several = len(ops) > 1
		for i := range ops {
			ops[i] = r.op(s)
		}
		r.command(s, ops, nil)
	}
	if r.one(40) {
		r.compareAll()
	}
}

// command applies operations and compares the outcome with the model's. swap is
// for a lone OpSwap, whose outcome its maker knows.
func (r *random) command(s cfs.SessionID, ops []cfs.Op, swap func(*model) cfs.Kind) {
	r.t.Helper()
	cmd := &cfs.Command{Session: s, Seq: r.seq[s] + 1, Ops: ops, Cred: r.who}
	if r.one(3) {
		cmd.LowWater = min(r.low[s]+uint64(r.rng.IntN(20)), cmd.Seq)
	}
	if r.one(5) {
		cmd.Floor = r.counter[s] - min(r.counter[s], uint64(r.rng.IntN(4)))
	}
	before := r.kv.clone()
	m := r.m.clone()
	m.now, m.cred = r.now+10, r.who
	want, failed := cfs.KindOK, 0
	for i := range ops {
		if swap != nil {
			want = swap(m)
		} else {
			want = m.apply(s, &ops[i])
		}
		if failed = i; want != cfs.KindOK {
			break
		}
	}
	reply := r.apply(cmd)
	if reply.Kind != want || want != cfs.KindOK && int(reply.Failed) != failed {
		r.t.Fatalf("index %d: op %d: %s, want op %d: %s\n%+v", r.index, reply.Failed, reply.Kind.Name(), failed, want.Name(), ops)
	}
	r.kinds[reply.Kind.Name()]++
	if want == cfs.KindOK {
		r.m = m
	} else {
		r.untouched(before, s, cmd.Floor > r.m.floors[s])
	}
	r.low[s] = max(r.low[s], cmd.LowWater)
	r.m.floors[s] = max(r.m.floors[s], cmd.Floor)
	r.past = append(r.past, answered{cmd, reply})
	if len(r.past) > 100 {
		r.past = r.past[1:]
	}
	r.compareReply(ops, reply)
}

// untouched checks that a failed command left the state as it was, apart from
// its reply, the marks, its session, and stripes that a raised floor freed.
func (r *random) untouched(before *memKV, s cfs.SessionID, raised bool) {
	r.t.Helper()
	exempt := func(k []byte) bool {
		mark := strings.TrimPrefix(string(k), "A")
		return bytes.HasPrefix(k, replyKey(s, 0)[:9]) || bytes.Equal(k, sessionKey(s)) || mark == markApplied || mark == markStamp ||
			raised && (strings.ContainsRune("SUZF", rune(k[0])) || slices.Contains([]string{markRaw, markFeedNext, markFeedFirst}, mark))
	}
	rows := 0
	before.each("", func(k, v []byte) {
		if exempt(k) {
			return
		}
		rows++
		if p, ok := r.kv.tree.Get(pair{key: k}); !ok || !bytes.Equal(p.val, v) {
			r.t.Fatalf("index %d: a failed command changed %s", r.index, describe(k, v))
		}
	})
	r.kv.each("", func(k, v []byte) {
		if !exempt(k) {
			rows--
		}
	})
	if rows != 0 {
		r.t.Fatalf("index %d: a failed command added %d rows", r.index, -rows)
	}
}

// retry sends a past command again: it gets its reply again, or is refused.
func (r *random) retry() {
	old := pick(r, r.past)
	before := r.kv.clone()
	again := *old.cmd
	if r.one(2) {
		again.Ops = []cfs.Op{{Kind: cfs.OpRmdir, Dir: cfs.RootIno, Name: "never looked at"}}
	}
	got := r.apply(&again)
	s := again.Session
	switch _, open := r.m.floors[s]; {
	case !open && got.Kind == cfs.NoSession:
	case open && again.Seq < r.low[s] && got.Kind == cfs.Replayed:
	case open && again.Seq >= r.low[s] && got.Kind == old.reply.Kind && got.Index == old.reply.Index && got.Failed == old.reply.Failed &&
		(len(got.Results) == 0 && len(old.reply.Results) == 0 || reflect.DeepEqual(got.Results, old.reply.Results)):
	default:
		r.t.Fatalf("index %d: retry of session %d seq %d (low %d): %+v, was %+v", r.index, s, again.Seq, r.low[s], got, old.reply)
	}
	before.tree.Set(pair{markKey(markApplied), r.value(markApplied)})
	before.tree.Set(pair{markKey(markStamp), r.value(markStamp)})
	if a, b := before.dump(), r.kv.dump(); a != b {
		r.t.Fatalf("index %d: a retry changed the state:\n%s", r.index, diff(a, b))
	}
}

func (r *random) value(mark string) []byte {
	p, _ := r.kv.tree.Get(pair{key: markKey(mark)})
	return p.val
}

// flap changes the state of a device or node and plans anew.
func (r *random) flap() {
	state := pick(r, []cfs.State{cfs.StateUp, cfs.StateUp, cfs.StateUp, cfs.StateDown, cfs.StateSuspect, cfs.StateOut})
	if n := cfs.NodeID(1 + r.rng.IntN(3)); r.one(2) {
		r.do(0, cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: n, Addr: fmt.Sprintf("n%d:9400", n), State: state, Voter: true}})
	} else {
		d := testDevice(cfs.MakeDeviceID(n, uint16(r.rng.IntN(3))), state)
		d.Draining, d.Full = r.one(4), r.one(6)
		job := cfs.Job{Device: d.ID, Kind: pick(r, []cfs.JobKind{cfs.JobRebuild, cfs.JobDrain, cfs.JobRebalance}), State: cfs.JobRunning, DoneBytes: r.rng.Uint64N(9)}
		if r.one(4) {
			job.State = cfs.JobState(1 + r.rng.IntN(4))
		}
		r.do(0, cfs.Op{Kind: cfs.OpSetDevice, Device: d}, cfs.Op{Kind: cfs.OpSetJob, Job: job})
	}
	r.plan()
	r.fillSome()
	r.plan()
	m := r.read(&cfs.Query{Kind: cfs.QueryMap}).Map
	if again := PlanGroups(m, r.usage()); again != nil {
		r.t.Fatalf("index %d: the plan is not stable: %+v", r.index, again)
	}
	var ops []cfs.Op
	for _, d := range m.Devices {
		if next := r.feedNext(); next > 1 && !r.one(3) {
			ops = append(ops, cfs.Op{Kind: cfs.OpFeedDone, Device: cfs.Device{ID: d.ID, FeedPos: r.rng.Uint64N(next)}})
		}
	}
	r.do(0, ops...)
	if drop := DroppableGroups(m, r.usage()); len(drop) > 0 && r.one(2) {
		if drop = append(drop, pick(r, m.Groups)); r.one(3) {
			drop = append(drop, cfs.PG{ID: 9999})
		}
		r.do(0, cfs.Op{Kind: cfs.OpDropGroups, Groups: drop})
	}
	r.learnMap()
}

// fillSome ends fillings, or says so when it is not true.
func (r *random) fillSome() {
	for _, g := range r.read(&cfs.Query{Kind: cfs.QueryMap}).Map.Groups {
		for _, s := range g.Slots {
			op := cfs.Op{Kind: cfs.OpFillDone, Device: cfs.Device{ID: s.Device}, Groups: []cfs.PG{{ID: g.ID, Epoch: g.Epoch}}}
			want := cfs.KindOK
			if !s.Filling {
				want = cfs.Conflict
			}
			if r.one(4) {
				op.Groups[0].Epoch--
				want = cfs.Conflict
			}
			if want == cfs.KindOK && r.one(2) || want != cfs.KindOK && !r.one(20) {
				continue
			}
			if got := r.apply(&cfs.Command{Ops: []cfs.Op{op}}).Kind; got != want {
				r.t.Fatalf("index %d: %+v done with group %s: %v, want %v", r.index, s, showGroup(&g), got, want)
			}
			r.kinds["filled "+want.Name()]++
			if want == cfs.KindOK {
				break // the epoch has risen
			}
		}
	}
}

func (r *random) feedNext() uint64 {
	t := &tx{kv: r.kv}
	return t.mark(markFeedNext)
}

// reap runs OpReap the given number of times, or until nothing is left for 0.
func (r *random) reap(times int) {
	for i := 0; times == 0 || i < times; i++ {
		u, err := ReadUsage(r.kv)
		if err != nil {
			r.t.Fatal(err)
		}
		if !u.Reapable {
			return
		}
		r.do(0, cfs.Op{Kind: cfs.OpReap})
	}
}

func (r *random) op(s cfs.SessionID) cfs.Op {
	dir := func() cfs.Ino { return r.ino((*node).isDir) }
	any1 := func() cfs.Ino { return r.ino(func(*node) bool { return true }) }
	switch n := r.rng.IntN(100); {
	case n < 18:
		op := cfs.Op{Kind: cfs.OpCreate, Dir: dir(), Name: r.name(), Exclusive: r.one(2), Flags: pick(r, []uint32{0, 0o022, 0o077})}
		if r.one(6) {
			op.Name, op.Hold = "", true
		}
		op.Attr = cfs.Attr{Mode: pick(r, []uint32{cfs.ModeDir, cfs.ModeDir, cfs.ModeRegular, cfs.ModeRegular, cfs.ModeRegular, cfs.ModeSymlink, cfs.ModeFIFO, cfs.ModeChar, 0}),
			UID: uint32(r.rng.IntN(3)), GID: uint32(r.rng.IntN(3)), Rdev: 7}
		if op.Attr.Mode |= uint32(r.rng.IntN(0o10000)); op.Attr.Mode&cfs.ModeType == cfs.ModeSymlink && !r.one(10) {
			op.Value = []byte("target")
		}
		return op
	case n < 24:
		op := cfs.Op{Kind: cfs.OpLink, Ino: any1(), Dir: dir(), Name: r.name()}
		if r.one(4) {
			op.Ino = r.ino(func(n *node) bool { return n.linkable })
		}
		return op
	case n < 32:
		d := dir()
		return cfs.Op{Kind: cfs.OpUnlink, Dir: d, Name: r.found(d), Hold: r.one(2)}
	case n < 37:
		d := dir()
		return cfs.Op{Kind: cfs.OpRmdir, Dir: d, Name: r.found(d)}
	case n < 52:
		op := cfs.Op{Kind: cfs.OpRename, Dir: dir(), NewDir: dir(), Flags: pick(r, []uint32{0, 0, 0, 1, 2, 2, 3, 4}), Hold: r.one(2)}
		op.Name, op.NewName = r.found(op.Dir), r.found(op.NewDir)
		return op
	case n < 62:
		op := cfs.Op{Kind: cfs.OpSetAttr, Ino: any1(), Mask: cfs.SetMask(r.rng.IntN(1<<10)) &^ cfs.SetCtime}
		op.Attr = cfs.Attr{Mode: uint32(r.rng.IntN(0o10000)), UID: uint32(r.rng.IntN(3)), GID: uint32(r.rng.IntN(3)), AtimeNS: 5, MtimeNS: 6, Size: r.size()}
		return op
	case n < 66:
		op := cfs.Op{Kind: cfs.OpSetXattr, Ino: any1(), Name: pick(r, xattrNames), Value: []byte("v"), Flags: uint32(r.rng.IntN(3))}
		if aclFlag(op.Name) != 0 {
			if op.Value = r.acl(); r.one(4) {
				op.Flags |= cfs.XattrKillSgid
			}
		}
		return op
	case n < 69:
		return cfs.Op{Kind: cfs.OpRemoveXattr, Ino: any1(), Name: pick(r, xattrNames)}
	case n < 74:
		return cfs.Op{Kind: cfs.OpRelease, Ino: r.ino(func(n *node) bool { return n.nlink == 0 })}
	default:
		return r.write(s)
	}
}

func (r *random) size() uint64 {
	if r.one(40) {
		return pick(r, []uint64{cfs.MaxFileSize, cfs.MaxFileSize + 1, 1 << 40})
	}
	return r.rng.Uint64N(span)
}

func (r *random) write(s cfs.SessionID) cfs.Op {
	op := cfs.Op{Kind: cfs.OpWrite, Ino: r.ino((*node).regular), KeepSize: r.one(5)}
	if r.one(5) {
		op.Attr.Size = r.rng.Uint64N(span)
	}
	if r.one(3) {
		op.Attr.MtimeNS = 77
	}
	if r.one(4) {
		op.Mask = cfs.SetKillPriv
	}
	for range 1 + r.rng.IntN(4) {
		x := cfs.Extent{Off: r.rng.Uint64N(200), Len: 1 + r.rng.Uint64N(60), Kind: cfs.ExtentKind(r.rng.IntN(4))}
		if r.one(6) { // far, or wide
			x.Off = r.rng.Uint64N(span - 300)
			if x.Kind != cfs.ExtentInline {
				x.Len = 1 + r.rng.Uint64N(300)
			}
		}
		switch x.Kind {
		case cfs.ExtentInline:
			x.Inline = bytes.Repeat([]byte{byte('a' + r.rng.IntN(26))}, int(x.Len))
		case cfs.ExtentStripe:
			r.stripe(s, &x, &op.Epochs)
		}
		op.Extents = append(op.Extents, x)
	}
	return op
}

// stripe makes x a part of a new stripe, mostly, or of an old one, or of none that can be.
func (r *random) stripe(s cfs.SessionID, x *cfs.Extent, epochs *[]cfs.PGEpoch) {
	if old := r.oldStripes(); len(old) > 0 && r.one(3) {
		at := pick(r, old)
		x.PG, x.Stripe, x.StripeLen = at.pg, at.id, r.m.stripes[at]
		x.Len = min(x.Len, uint64(x.StripeLen))
		x.StripeOff = uint32(r.rng.Uint64N(uint64(x.StripeLen) - x.Len + 1))
		if r.one(30) {
			x.StripeLen += 50
		}
		return
	}
	r.counter[s]++
	x.Stripe = cfs.StripeID{Session: s, Counter: r.counter[s]}
	x.StripeOff = uint32(r.rng.IntN(30))
	x.StripeLen = x.StripeOff + uint32(x.Len) + uint32(r.rng.IntN(20))
	var writable []cfs.PG
	for _, id := range slices.Sorted(maps.Keys(r.m.groups)) {
		if r.m.groups[id].Writable || r.one(40) {
			writable = append(writable, r.m.groups[id])
		}
	}
	g := cfs.PG{ID: 9999}
	if len(writable) > 0 && !r.one(60) {
		g = pick(r, writable)
	}
	x.PG = g.ID
	switch r.rng.IntN(40) {
	case 0:
		g.Epoch--
	case 1:
		g.Epoch++
	case 2:
		x.Stripe.Session++ // not ours
	case 3:
		x.Stripe.Counter = r.m.floors[s] - 1
	case 4:
		x.StripeLen = x.StripeOff + uint32(x.Len) - 1
	}
	if !slices.ContainsFunc(*epochs, func(e cfs.PGEpoch) bool { return e.PG == g.ID }) {
		*epochs = append(*epochs, cfs.PGEpoch{PG: g.ID, Epoch: g.Epoch})
	}
}

// oldStripes lists the stripes whose fate the model knows for sure. What rows
// that await deletion reference it does not, nor what an operation before this
// one in the same command leaves to them.
func (r *random) oldStripes() []stripeAt {
	if r.several {
		return nil
	}
	u, err := ReadUsage(r.kv)
	if err != nil {
		r.t.Fatal(err)
	}
	used := r.m.referenced()
	var old []stripeAt
	for at := range r.m.stripes {
		if !u.Reapable || used[at] {
			old = append(old, at)
		}
	}
	slices.SortFunc(old, func(a, b stripeAt) int { return bytes.Compare(stripeKey(a.pg, a.id), stripeKey(b.pg, b.id)) })
	if len(old) > 50 {
		old = old[len(old)-50:]
	}
	return old
}

// swapSome moves rows of a file to a new stripe, as the restriper does, or tries
// to with an expectation that does not hold.
func (r *random) swapSome() {
	ino := r.ino((*node).regular)
	n := r.m.nodes[ino]
	s := r.session()
	if n == nil || !n.regular() {
		return
	}
	rows := r.extents(ino)
	if len(rows) == 0 {
		return
	}
	first := r.rng.IntN(len(rows))
	expect := rows[first:min(len(rows), first+1+r.rng.IntN(4))]
	op := cfs.Op{Kind: cfs.OpSwap, Ino: ino, Expect: slices.Clone(expect)}
	want := cfs.KindOK
	for i := range op.Expect {
		if r.one(2) {
			op.Expect[i] = op.Expect[i].Digest()
		}
	}
	for i := 1; i < len(expect); i++ {
		if expect[i].Off != expect[i-1].End() {
			want = cfs.Conflict // a hole: a write into it would be lost
		}
	}
	x := cfs.Extent{Off: expect[0].Off, Len: expect[len(expect)-1].End() - expect[0].Off, Kind: cfs.ExtentStripe}
	for _, id := range slices.Sorted(maps.Keys(r.m.groups)) {
		if g := r.m.groups[id]; g.Writable && (x.PG == 0 || r.one(4)) {
			x.PG, op.Epochs = id, []cfs.PGEpoch{{PG: id, Epoch: g.Epoch}}
		}
	}
	if x.PG == 0 {
		return
	}
	r.counter[s]++
	x.Stripe, x.StripeLen = cfs.StripeID{Session: s, Counter: r.counter[s]}, uint32(x.Len)
	switch r.rng.IntN(12) {
	case 3:
		if op.Expect[0].Kind == cfs.ExtentDigest {
			op.Expect[0].Inline[5]++
			want = cfs.Conflict
		}
	case 0:
		op.Expect[0].Off++
		want = cfs.Conflict
	case 1:
		op.Expect = op.Expect[1:]
		want = cfs.Conflict
	case 2:
		op.Expect[0].Kind = cfs.ExtentHole
		want = cfs.Conflict
	}
	op.Extents = []cfs.Extent{x}
	r.command(s, []cfs.Op{op}, func(m *model) cfs.Kind {
		if want == cfs.KindOK {
			m.stripes[stripeAt{x.PG, x.Stripe}] = x.StripeLen
			n := m.nodes[ino]
			n.data = slices.Clone(n.data)
			n.put(&x)
		}
		return want
	})
}

// shatter gives a file so many rows that a truncation or deletion goes the long way.
func (r *random) shatter() {
	ino, s := r.ino((*node).regular), r.session()
	if r.isCut(ino) { // of one that is cut, where it has many rows again, a truncation may be refused
		r.reap(0)
	}
	for part := range 2 {
		op := cfs.Op{Kind: cfs.OpWrite, Ino: ino}
		for i := range 600 {
			op.Extents = append(op.Extents, inline(uint64(2*(600*part+i)), "s"))
		}
		r.command(s, []cfs.Op{op}, nil)
	}
	if r.one(2) { // a row that the new end cuts
		r.command(s, []cfs.Op{{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(0, strings.Repeat("w", 80))}}}, nil)
	}
	if r.one(2) {
		r.command(s, []cfs.Op{{Kind: cfs.OpSetAttr, Ino: ino, Mask: cfs.SetSize, Attr: cfs.Attr{Size: r.rng.Uint64N(100)}}}, nil)
	}
}

// extents reads all rows of a file, in pages of random size.
func (r *random) extents(ino cfs.Ino) (rows []cfs.Extent) {
	r.t.Helper()
	for off := uint64(0); ; {
		a := r.read(&cfs.Query{Kind: cfs.QueryExtents, Ino: ino, Off: off, End: ^uint64(0), Limit: uint32(r.rng.IntN(50))})
		if rows = append(rows, a.Extents...); !a.More {
			return rows
		}
		off = rows[len(rows)-1].End()
	}
}

func (r *random) compareReply(ops []cfs.Op, reply *cfs.Reply) {
	r.t.Helper()
	if reply.Kind != cfs.KindOK {
		return
	}
	for _, res := range reply.Results {
		for _, a := range []*cfs.Attr{&res.Attr, &res.Dir, &res.NewDir} {
			n := r.m.nodes[a.Ino]
			if a.Ino == 0 {
				continue
			}
			if n == nil {
				if _, err := Read(r.kv, &cfs.Query{Kind: cfs.QueryGetAttr, Ino: a.Ino}); err != nil {
					r.t.Fatal(err)
				}
				continue
			}
			r.compare(n)
			if now := r.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: a.Ino}).Attr; len(ops) == 1 && now != *a {
				r.t.Fatalf("index %d: reply says %+v, the state %+v", r.index, *a, now)
			}
		}
	}
}

// compare holds one inode against the model's.
func (r *random) compare(n *node) {
	r.t.Helper()
	a := r.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: n.ino}).Attr
	got := []any{a.Ino, a.Mode, a.Nlink, a.UID, a.GID, a.Rdev, a.Size, a.AtimeNS, a.MtimeNS, a.CtimeNS}
	want := []any{n.ino, n.mode, n.nlink, n.uid, n.gid, n.rdev, n.size, n.atime, n.mtime, n.ctime}
	if !slices.Equal(got, want) {
		r.t.Fatalf("index %d: inode %v, want %v", r.index, got, want)
	}
	xattrs := map[string]string{}
	for _, name := range r.read(&cfs.Query{Kind: cfs.QueryListXattr, Ino: n.ino}).Names {
		xattrs[name] = string(r.read(&cfs.Query{Kind: cfs.QueryGetXattr, Ino: n.ino, Name: name}).Value)
	}
	if !maps.Equal(xattrs, n.allXattrs()) {
		r.t.Fatalf("index %d: inode %d has attributes %q, want %q", r.index, n.ino, xattrs, n.allXattrs())
	}
	switch {
	case n.isDir():
		r.compareDir(n)
	case n.regular():
		r.compareData(n, a.Blocks)
	case n.typ() == cfs.ModeSymlink:
		if got := r.read(&cfs.Query{Kind: cfs.QueryReadlink, Ino: n.ino}); string(got.Value) != n.target {
			r.t.Fatalf("index %d: link %d leads to %q, want %q", r.index, n.ino, got.Value, n.target)
		}
	}
}

func (r *random) compareDir(n *node) {
	r.t.Helper()
	names := map[string]cfs.Ino{}
	for last := ""; ; {
		a := r.read(&cfs.Query{Kind: cfs.QueryReadDir, Dir: n.ino, Name: last, Limit: uint32(1 + r.rng.IntN(4)), WithAttrs: true})
		if a.Kind != cfs.KindOK || a.Dir.Ino != n.parent {
			r.t.Fatalf("index %d: directory %d: %s, parent %d, want %d", r.index, n.ino, a.Kind.Name(), a.Dir.Ino, n.parent)
		}
		for _, e := range a.Entries {
			if e.Name <= last || e.Attr == nil || e.Attr.Ino != e.Ino || e.Attr.Mode&cfs.ModeType != e.Mode {
				r.t.Fatalf("index %d: directory %d after %q: entry %+v", r.index, n.ino, last, e)
			}
			last = e.Name
			names[e.Name] = e.Ino
			if got := r.read(&cfs.Query{Kind: cfs.QueryLookup, Dir: n.ino, Name: e.Name}); got.Attr != *e.Attr {
				r.t.Fatalf("index %d: lookup %+v, listing %+v", r.index, got.Attr, *e.Attr)
			}
		}
		if !a.More {
			break
		}
	}
	if !maps.Equal(names, n.names) {
		r.t.Fatalf("index %d: directory %d holds %v, want %v", r.index, n.ino, names, n.names)
	}
}

func (r *random) compareData(n *node, blocks uint64) {
	r.t.Helper()
	got := node{data: make([]cell, span)}
	for _, x := range r.extents(n.ino) {
		if x.End() > span {
			r.t.Fatalf("index %d: file %d: extent %s", r.index, n.ino, showExtent(&x))
		}
		got.put(&x)
	}
	stored := uint64(0)
	for i := range n.data {
		if got.data[i] != n.data[i] {
			r.t.Fatalf("index %d: file %d, byte %d: %+v, want %+v", r.index, n.ino, i, got.data[i], n.data[i])
		}
		if n.data[i].kind != cfs.ExtentHole {
			stored++
		}
	}
	// A truncation that is still at work has not given everything back.
	if want := (stored + 511) / 512; blocks < want || blocks > want && !r.isCut(n.ino) {
		r.t.Fatalf("index %d: file %d has %d blocks, want %d bytes", r.index, n.ino, blocks, stored)
	}
}

// isCut reports that a truncation of a file is still at work.
func (r *random) isCut(i cfs.Ino) bool {
	n, ok := (&tx{kv: r.kv}).inode(i)
	return ok && n.cut > 0
}

func (r *random) compareAll() {
	r.t.Helper()
	for _, i := range slices.Sorted(maps.Keys(r.m.nodes)) {
		r.compare(r.m.nodes[i])
	}
	u, err := ReadUsage(r.kv)
	if err != nil || u.Inodes != uint64(len(r.m.nodes)) {
		r.t.Fatalf("index %d: usage %+v %v, want %d inodes", r.index, u, err, len(r.m.nodes))
	}
	if broken := checkState(r.kv); broken != "" {
		r.t.Fatalf("index %d: invariants broken:\n%s", r.index, broken)
	}
	r.compareStripes()
	for _, w := range r.windows(uint32(1 + r.rng.IntN(3))) {
		if n := r.m.nodes[w.Ino]; n == nil || !n.regular() || n.nlink == 0 || w.Off >= w.End || w.Off >= span {
			r.t.Fatalf("index %d: window %+v of %+v", r.index, w, n)
		}
	}
}

// compareStripes holds the fates of stripes and the listing of the table against the model.
func (r *random) compareStripes() {
	r.t.Helper()
	used := r.m.referenced()
	q := &cfs.Query{Kind: cfs.QueryFates}
	var want []cfs.Fate
	ask := func(at stripeAt) {
		fate := cfs.FateDead
		_, once := r.m.stripes[at]
		floor, open := r.m.floors[at.id.Session]
		switch pending := open && at.id.Counter >= floor; {
		case once && (pending || used[at]):
			fate = cfs.FateLive
		case pending:
			fate = cfs.FatePending
		}
		want = append(want, fate)
		q.Stripes = append(q.Stripes, cfs.StripeRef{PG: at.pg, Stripe: at.id})
		r.kinds[fmt.Sprint("fate ", fate)]++
	}
	for _, at := range r.oldStripes() {
		ask(at)
	}
	for _, s := range slices.Sorted(maps.Keys(r.m.floors)) {
		ask(stripeAt{1, cfs.StripeID{Session: s, Counter: r.counter[s] + 1}})
		ask(stripeAt{1, cfs.StripeID{Session: s, Counter: 0}})
	}
	if got := r.read(q).Fates; !slices.Equal(got, want) {
		r.t.Fatalf("index %d: fates of %v are %v, want %v", r.index, q.Stripes, got, want)
	}
	listed := map[cfs.PGID]uint64{}
	for pg := range r.m.groups {
		for q := (&cfs.Query{Kind: cfs.QueryStripes, PG: pg, Limit: uint32(1 + r.rng.IntN(5))}); ; {
			a := r.read(q)
			for _, s := range a.Stripes {
				if s.PG != pg || s.Stripe.Session < q.Stripe.Session || s.Stripe == q.Stripe {
					r.t.Fatalf("index %d: group %d after %v: %+v", r.index, pg, q.Stripe, s)
				}
				q.Stripe = s.Stripe
				listed[pg]++
			}
			if !a.More {
				break
			}
		}
	}
	for _, u := range r.read(&cfs.Query{Kind: cfs.QueryUsage}).Usage {
		if listed[u.PG] != u.Stripes {
			r.t.Fatalf("index %d: group %d lists %d stripes and holds %d", r.index, u.PG, listed[u.PG], u.Stripes)
		}
		delete(listed, u.PG)
	}
	if len(listed) > 0 {
		r.t.Fatalf("index %d: stripes that no usage counts: %v", r.index, listed)
	}
}

// finish deletes everything, ends every session and reaps: nothing may remain.
func (r *random) finish() {
	r.who = cfs.Cred{}
	r.compareAll()
	s := r.session()
	for len(r.m.nodes[cfs.RootIno].names) > 0 {
		at := r.m.nodes[cfs.RootIno]
		name := slices.Sorted(maps.Keys(at.names))[0]
		for n := r.m.nodes[at.names[name]]; n.isDir() && len(n.names) > 0; n = r.m.nodes[at.names[name]] {
			at, name = n, slices.Sorted(maps.Keys(n.names))[0]
		}
		kind := cfs.OpUnlink
		if r.m.nodes[at.names[name]].isDir() {
			kind = cfs.OpRmdir
		}
		r.command(s, []cfs.Op{{Kind: kind, Dir: at.ino, Name: name}}, nil)
	}
	for _, id := range slices.Sorted(maps.Keys(r.m.floors)) {
		r.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: id})
		r.m.expire(id)
	}
	r.reap(0)
	r.compareAll()
	r.kv.each("", func(k, v []byte) {
		if !strings.ContainsRune("AFGIJNV", rune(k[0])) && !bytes.HasPrefix(k, key1(prefixXattr, uint64(cfs.RootIno))) {
			r.t.Errorf("left over: %s", describe(k, v))
		}
	})
	u, err := ReadUsage(r.kv)
	if want := (Usage{Inodes: 1}); u != want || err != nil {
		r.t.Errorf("left over: %+v %v", u, err)
	}
}

// replay applies the log to a fresh state in batches; some batches are lost
// before they are committed, and applied again.
func (r *random) replay() {
	base := newState(r.t)
	for done := 0; done < len(r.log); {
		n := min(1+r.rng.IntN(100), len(r.log)-done)
		batch := base.clone()
		for _, e := range r.log[done : done+n] {
			if _, err := r.harness.m.Apply(batch, e.index, e.stampNS, e.cmd); err != nil {
				r.t.Fatalf("replay: index %d: %v", e.index, err)
			}
		}
		if r.one(3) {
			continue // a crash: the batch is gone
		}
		base, done = batch, done+n
		if index, err := AppliedIndex(base); err != nil || index != r.log[done-1].index {
			r.t.Fatalf("replay: applied index %d %v, want %d", index, err, r.log[done-1].index)
		}
	}
	if a, b := r.kv.dump(), base.dump(); a != b {
		r.t.Fatalf("the replay gave another state:\n%s", diff(a, b))
	}
}
