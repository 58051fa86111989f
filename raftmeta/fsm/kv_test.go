package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/btree"

	"github.com/claudefs/claudefs/cfs"
)

type pair struct{ key, val []byte }

// memKV is a KV that is as unkind as the interface allows: what it hands out is
// overwritten as soon as it ceases to be valid. failAfter, when positive, is the
// number of calls that still succeed.
type memKV struct {
	tree      *btree.BTreeG[pair]
	lent      []byte
	failAfter int
}

var errBroken = errors.New("the disk is on fire")

func newMemKV() *memKV {
	return &memKV{tree: btree.NewBTreeGOptions(func(a, b pair) bool { return bytes.Compare(a.key, b.key) < 0 }, btree.Options{NoLocks: true})}
}

// newState is a bootstrapped state.
func newState(t testing.TB) *memKV {
	t.Helper()
	kv := newMemKV()
	if err := Bootstrap(kv, "test", 1000); err != nil {
		t.Fatal(err)
	}
	return kv
}

func (m *memKV) call() error {
	poison(m.lent)
	m.lent = nil
	if m.failAfter > 0 {
		if m.failAfter--; m.failAfter == 0 {
			m.failAfter = -1
		}
	} else if m.failAfter < 0 {
		return errBroken
	}
	return nil
}

func poison(b []byte) {
	for i := range b {
		b[i] = 0xdb
	}
}

func (m *memKV) Get(key []byte) ([]byte, bool, error) {
	if err := m.call(); err != nil {
		return nil, false, err
	}
	p, ok := m.tree.Get(pair{key: key})
	m.lent = bytes.Clone(p.val)
	return m.lent, ok, nil
}

func (m *memKV) Set(key, val []byte) error {
	if err := m.call(); err != nil {
		return err
	}
	if len(val) == 0 {
		return fmt.Errorf("empty value for key %q", key)
	}
	if _, there := m.tree.Get(pair{key: key}); there && SetOnce(key) {
		return fmt.Errorf("key %q is set again", key)
	}
	m.tree.Set(pair{bytes.Clone(key), bytes.Clone(val)})
	return nil
}

func (m *memKV) Delete(key []byte) error {
	if err := m.call(); err != nil {
		return err
	}
	m.tree.Delete(pair{key: key})
	return nil
}

func (m *memKV) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	if err := m.call(); err != nil {
		return err
	}
	var failed error
	m.tree.Ascend(pair{key: lo}, func(p pair) bool {
		if hi != nil && bytes.Compare(p.key, hi) >= 0 {
			return false
		}
		k, v := bytes.Clone(p.key), bytes.Clone(p.val)
		more, err := fn(k, v)
		poison(k)
		poison(v)
		failed = err
		return more && err == nil
	})
	return failed
}

// clone is a state of its own with the same content.
func (m *memKV) clone() *memKV {
	return &memKV{tree: m.tree.Copy()}
}

// each goes through the rows of a prefix, or of all for "".
func (m *memKV) each(prefix string, fn func(k, v []byte)) {
	m.tree.Ascend(pair{key: []byte(prefix)}, func(p pair) bool {
		if !bytes.HasPrefix(p.key, []byte(prefix)) {
			return false
		}
		fn(p.key, p.val)
		return true
	})
}

// dump is the whole state, byte for byte.
func (m *memKV) dump() string {
	var b strings.Builder
	m.each("", func(k, v []byte) { fmt.Fprintf(&b, "%x=%x\n", k, v) })
	return b.String()
}

// diff shows what two dumps do not share.
func diff(a, b string) string {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out strings.Builder
	for _, l := range la {
		if !slices.Contains(lb, l) {
			fmt.Fprintf(&out, "-%s\n", l)
		}
	}
	for _, l := range lb {
		if !slices.Contains(la, l) {
			fmt.Fprintf(&out, "+%s\n", l)
		}
	}
	return out.String()
}

// harness applies commands to a state, as the Raft log would.
type harness struct {
	t     testing.TB
	kv    *memKV
	m     Machine
	index uint64
	now   int64
	seq   map[cfs.SessionID]uint64
	log   []entry
}

type entry struct {
	index   uint64
	stampNS int64
	cmd     *cfs.Command
}

func newHarness(t testing.TB) *harness {
	return &harness{t: t, kv: newState(t), now: 1000, seq: map[cfs.SessionID]uint64{}}
}

// apply is the next entry of the log; a command of a session without a sequence gets the next.
func (h *harness) apply(cmd *cfs.Command) *cfs.Reply {
	h.t.Helper()
	r, err := h.try(cmd)
	if err != nil {
		h.t.Fatalf("index %d: %v", h.index, err)
	}
	return r
}

func (h *harness) try(cmd *cfs.Command) (*cfs.Reply, error) {
	h.index++
	h.now += 10
	if cmd.Session != 0 && cmd.Seq == 0 {
		cmd.Seq = h.seq[cmd.Session] + 1
	}
	h.seq[cmd.Session] = max(h.seq[cmd.Session], cmd.Seq)
	h.log = append(h.log, entry{h.index, h.now, cmd})
	return h.m.Apply(h.kv, h.index, h.now, cmd)
}

// do applies operations and wants them to succeed.
func (h *harness) do(s cfs.SessionID, ops ...cfs.Op) *cfs.Reply {
	h.t.Helper()
	r := h.apply(&cfs.Command{Session: s, Ops: ops})
	if r.Kind != cfs.KindOK {
		h.t.Fatalf("index %d: op %d: %v", h.index, r.Failed, r.Kind)
	}
	return r
}

func (h *harness) open(name string) cfs.SessionID {
	h.t.Helper()
	return h.do(0, cfs.Op{Kind: cfs.OpOpenSession, Name: name}).Results[0].Session
}

// deviceBytes is the capacity of the tests' devices.
const deviceBytes = 1 << 30

func testDevice(id cfs.DeviceID, s cfs.State) cfs.Device {
	d := cfs.Device{ID: id, State: s, Capacity: deviceBytes}
	copy(d.UUID[:], id.String())
	return d
}

// cluster makes nodes with devices, all up, and the groups planned for them.
func (h *harness) cluster(nodes, devices int) {
	h.t.Helper()
	var ops []cfs.Op
	for n := 1; n <= nodes; n++ {
		id := cfs.NodeID(n)
		ops = append(ops, cfs.Op{Kind: cfs.OpSetNode, Node: cfs.Node{ID: id, Addr: fmt.Sprintf("n%d:9400", n), State: cfs.StateUp, Voter: true}})
		for d := range devices {
			dev := cfs.MakeDeviceID(id, uint16(d))
			ops = append(ops, cfs.Op{Kind: cfs.OpSetDevice, Device: testDevice(dev, cfs.StateUp)})
		}
	}
	h.do(0, ops...)
	h.plan()
}

// plan records the groups that the map calls for and returns what changed.
func (h *harness) plan() []cfs.PG {
	h.t.Helper()
	return h.propose(PlanGroups)
}

func (h *harness) propose(plan func(*cfs.Map, func(cfs.PGID) cfs.GroupUsage) []cfs.PG) []cfs.PG {
	h.t.Helper()
	m, err := ReadMap(h.kv)
	if err != nil {
		h.t.Fatal(err)
	}
	groups := plan(m, h.usage())
	if groups != nil {
		h.do(0, cfs.Op{Kind: cfs.OpSetGroups, Groups: groups, MapVersion: m.Version})
	}
	return groups
}

// usage is what the groups hold now.
func (h *harness) usage() func(cfs.PGID) cfs.GroupUsage {
	h.t.Helper()
	held := map[cfs.PGID]cfs.GroupUsage{}
	for _, u := range h.read(&cfs.Query{Kind: cfs.QueryUsage}).Usage {
		held[u.PG] = u
	}
	return func(pg cfs.PGID) cfs.GroupUsage { return held[pg] }
}

func (h *harness) read(q *cfs.Query) *cfs.Answer {
	h.t.Helper()
	before := h.kv.tree.Len()
	a, err := Read(h.kv, q)
	if err != nil {
		h.t.Fatalf("query %+v: %v", q, err)
	}
	if h.kv.tree.Len() != before {
		h.t.Fatalf("query %+v changed the state", q)
	}
	return a
}

// create makes a regular file in the root directory.
func (h *harness) create(s cfs.SessionID, name string) cfs.Ino {
	h.t.Helper()
	r := h.do(s, cfs.Op{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: name, Attr: cfs.Attr{Mode: cfs.ModeRegular | 0o644}})
	return r.Results[0].Attr.Ino
}

func inline(off uint64, data string) cfs.Extent {
	return cfs.Extent{Off: off, Len: uint64(len(data)), Kind: cfs.ExtentInline, Inline: []byte(data)}
}
