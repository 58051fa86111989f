package fsm

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// lock is a line "lock ino=2 owner=7 write from=0 to=9 [flock]": read, write or
// none; without "to" it has no end.
func (a args) lock() cfs.Lock {
	l := cfs.Lock{Kind: cfs.LockPosix, Owner: a.num("owner"), Start: a.num("from"), End: wholeFile, PID: uint32(a.num("pid"))}
	if a.has("flock") {
		l.Kind = cfs.LockFlock
	}
	if a.has("to") {
		l.End = a.num("to")
	}
	switch {
	case a.has("read"):
		l.Type = cfs.LockRead
	case a.has("write"):
		l.Type = cfs.LockWrite
	}
	return l
}

func showLock(l *cfs.Lock) string {
	if l.Type == cfs.LockNone {
		return "free"
	}
	s := fmt.Sprintf("session %d owner %d %s", l.Session, l.Owner, [...]string{"none", "read", "write"}[l.Type])
	if l.Kind == cfs.LockFlock {
		return "flock " + s
	}
	if s += fmt.Sprintf(" %d to ", l.Start); l.End == wholeFile {
		s += "the end"
	} else {
		s += fmt.Sprint(l.End)
	}
	if l.PID != 0 {
		s += fmt.Sprintf(" pid %d", l.PID)
	}
	return s
}

func posixLock(i cfs.Ino, owner uint64, typ cfs.LockType, start, end uint64) cfs.Op {
	return cfs.Op{Kind: cfs.OpLock, Ino: i, Lock: cfs.Lock{Kind: cfs.LockPosix, Type: typ, Owner: owner, Start: start, End: end}}
}

// lockModel is the locks of one inode and family as a program would write them down:
// for each byte what each owner has.
type lockModel struct {
	bytes [lockModelBytes]map[lockOwner]cfs.LockType
}

const lockModelBytes = 24

type lockOwner struct {
	session cfs.SessionID
	owner   uint64
}

// set is what the machine should say.
func (m *lockModel) set(by lockOwner, typ cfs.LockType, from, to uint64) cfs.Kind {
	for b := from; b <= to; b++ {
		for o, has := range m.bytes[b] {
			if o != by && typ != cfs.LockNone && (has == cfs.LockWrite || typ == cfs.LockWrite) {
				return cfs.Locked
			}
		}
	}
	for b := from; b <= to; b++ {
		if m.bytes[b] == nil {
			m.bytes[b] = map[lockOwner]cfs.LockType{}
		}
		if delete(m.bytes[b], by); typ != cfs.LockNone {
			m.bytes[b][by] = typ
		}
	}
	return cfs.KindOK
}

func (m *lockModel) drop(s cfs.SessionID) {
	for b := range m.bytes {
		for o := range m.bytes[b] {
			if o.session == s {
				delete(m.bytes[b], o)
			}
		}
	}
}

// modelByte is where byte b of the model lies: the ends of what offsets can be are used too.
func modelByte(b uint64) uint64 {
	if b >= lockModelBytes/2 {
		return wholeFile - (lockModelBytes - 1 - b)
	}
	return b
}

// modelEnd is where byte b of the model ends: what lies between its halves belongs to the lower one.
func modelEnd(b uint64) uint64 {
	if b == lockModelBytes/2-1 {
		return modelByte(b+1) - 1
	}
	return modelByte(b)
}

// TestLocksAgainstModel: random locks of several owners of several sessions, some of
// which end, against the model: every answer, every byte, and the whole state.
func TestLocksAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	h := newHarness(t)
	sessions := []cfs.SessionID{h.open("a"), h.open("b"), h.open("c")}
	files := []cfs.Ino{h.create(sessions[0], "x"), h.create(sessions[0], "y")}
	models := map[[2]uint64]*lockModel{}
	model := func(i cfs.Ino, k cfs.LockKind) *lockModel {
		key := [2]uint64{uint64(i), uint64(k)}
		if models[key] == nil {
			models[key] = &lockModel{}
		}
		return models[key]
	}
	refused := 0
	for range 6000 {
		n := rnd.IntN(len(sessions))
		s, i := sessions[n], files[rnd.IntN(len(files))]
		if rnd.IntN(150) == 0 {
			h.do(0, cfs.Op{Kind: cfs.OpExpireSession, Sess: s})
			for _, m := range models {
				m.drop(s)
			}
			if sessions[n] = h.open("again"); rnd.IntN(2) == 0 {
				h.do(0, cfs.Op{Kind: cfs.OpReap})
			}
			continue
		}
		from := rnd.Uint64N(lockModelBytes)
		to := from + rnd.Uint64N(lockModelBytes-from)
		by := lockOwner{s, rnd.Uint64N(2)}
		l := cfs.Lock{Kind: cfs.LockPosix, Type: cfs.LockType(rnd.IntN(3)), Owner: by.owner, Start: modelByte(from), End: modelEnd(to)}
		if rnd.IntN(4) == 0 {
			l.Kind, from, to = cfs.LockFlock, 0, lockModelBytes-1
		}
		m := model(i, l.Kind)
		got := h.apply(&cfs.Command{Session: s, LowWater: h.seq[s] + 1, Ops: []cfs.Op{{Kind: cfs.OpLock, Ino: i, Lock: l}}}).Kind
		if want := m.set(by, l.Type, from, to); got != want {
			t.Fatalf("inode %d session %d %s: %v, want %v", i, s, showLock(&l), got, want)
		}
		if got == cfs.Locked {
			refused++
		}
		compareLocks(t, h, i, l.Kind, m)
		if broken := checkState(h.kv); broken != "" {
			t.Fatal(broken)
		}
	}
	if refused < 500 {
		t.Errorf("only %d locks were refused: the model is not tried", refused)
	}
}

// compareLocks compares what the rows say of every byte, and F_GETLK of some.
func compareLocks(t *testing.T, h *harness, i cfs.Ino, kind cfs.LockKind, m *lockModel) {
	t.Helper()
	live := (&tx{kv: h.kv}).liveLocks(i, kind)
	for b := range uint64(lockModelBytes) {
		n := 0
		for _, l := range live {
			if at := modelByte(b); l.Start <= at && at <= l.End {
				n++
				if m.bytes[b][lockOwner{l.Session, l.Owner}] != l.Type {
					t.Fatalf("inode %d byte %d: %s is not in the model", i, b, showLock(&l))
				}
			}
		}
		if n != len(m.bytes[b]) {
			t.Fatalf("inode %d byte %d: %d locks, want %d", i, b, n, len(m.bytes[b]))
		}
		one := cfs.Lock{Kind: kind, Type: cfs.LockWrite, Owner: 99, Start: modelByte(b), End: modelByte(b)}
		a := h.read(&cfs.Query{Kind: cfs.QueryLock, Ino: i, Session: 1, Lock: one})
		if kind == cfs.LockPosix && a.Lock.Type != cfs.LockNone != (n > 0) {
			t.Fatalf("inode %d byte %d: F_GETLK says %s, %d locks", i, b, showLock(&a.Lock), n)
		}
	}
}

// TestLockBounds: an inode has at most MaxInodeLocks of a family; unlocking is
// possible even then, but for a hole that would make one more.
func TestLockBounds(t *testing.T) {
	h := newHarness(t)
	s := h.open("a")
	f := h.create(s, "f")
	for i := uint64(0); i < MaxInodeLocks; i += MaxOps {
		ops := make([]cfs.Op, MaxOps)
		for j := range ops {
			at := 4 * (i + uint64(j))
			ops[j] = posixLock(f, 1, cfs.LockWrite, at, at+2)
		}
		h.apply(&cfs.Command{Session: s, LowWater: h.seq[s] + 1, Ops: ops})
	}
	try := func(op cfs.Op) cfs.Kind { return h.apply(&cfs.Command{Session: s, Ops: []cfs.Op{op}}).Kind }
	if k := try(posixLock(f, 1, cfs.LockWrite, 4*MaxInodeLocks, wholeFile)); k != cfs.TooManyLocks {
		t.Errorf("one too many: %v", k)
	}
	if k := try(posixLock(f, 1, cfs.LockNone, 1, 1)); k != cfs.TooManyLocks {
		t.Errorf("a hole: %v", k)
	}
	if k := try(cfs.Op{Kind: cfs.OpLock, Ino: f, Lock: cfs.Lock{Kind: cfs.LockFlock, Type: cfs.LockWrite}}); k != cfs.KindOK {
		t.Errorf("of the other family: %v", k)
	}
	// The end of the inode is bounded work too, and leaves nothing in the end.
	h.do(s, cfs.Op{Kind: cfs.OpUnlink, Dir: cfs.RootIno, Name: "f"})
	tx := &tx{kv: h.kv}
	if n := tx.mark(markLocks); n != MaxInodeLocks+1-locksAtOnce {
		t.Errorf("%d locks are left at once", n)
	}
	for range MaxInodeLocks/cfs.MaxCommandExtents + 1 {
		h.do(0, cfs.Op{Kind: cfs.OpReap})
	}
	if u, err := ReadUsage(h.kv); err != nil || u.Reapable || tx.mark(markLocks) != 0 {
		t.Errorf("in the end: %+v, %d locks, %v", u, tx.mark(markLocks), err)
	}
	if broken := checkState(h.kv); broken != "" {
		t.Error(broken)
	}
}
