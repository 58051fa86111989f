package fsm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// bounded applies a command and fails if it changes more rows than a bounded one may.
func (h *harness) bounded(cmd *cfs.Command) {
	h.t.Helper()
	before := h.kv.clone()
	if r := h.apply(cmd); r.Kind != cfs.KindOK {
		h.t.Fatalf("index %d: %v", h.index, r.Kind)
	}
	changed := 0
	h.kv.each("", func(k, v []byte) {
		if p, ok := before.tree.Get(pair{key: k}); !ok || string(p.val) != string(v) {
			changed++
		}
	})
	before.each("", func(k, _ []byte) {
		if _, ok := h.kv.tree.Get(pair{key: k}); !ok {
			changed++
		}
	})
	// Each row may take its stripe's and that one's listing with it, and its inode's.
	if changed > 5*maxReaped {
		h.t.Errorf("index %d: %d rows changed", h.index, changed)
	}
	if broken := checkState(h.kv); broken != "" {
		h.t.Fatalf("index %d: %s", h.index, broken)
	}
}

// leftOver tells of rows of any of the prefixes.
func (h *harness) leftOver(of string) {
	h.t.Helper()
	for _, p := range of {
		h.kv.each(string(p), func(k, v []byte) { h.t.Errorf("left over: %s", describe(k, v)) })
	}
}

// reapAll runs OpReap until nothing is left and returns how often that took.
func (h *harness) reapAll() (times int) {
	h.t.Helper()
	for {
		u, err := ReadUsage(h.kv)
		if err != nil {
			h.t.Fatal(err)
		}
		if !u.Reapable {
			return times
		}
		h.bounded(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpReap}}})
		times++
	}
}

// scatter gives a file rows of a byte each, at every other offset from one on.
func (h *harness) scatter(s cfs.SessionID, ino cfs.Ino, from uint64, rows int) {
	h.t.Helper()
	for done := 0; done < rows; {
		op := cfs.Op{Kind: cfs.OpWrite, Ino: ino}
		for n := min(rows-done, cfs.MaxCommandExtents); n > 0; n-- {
			op.Extents = append(op.Extents, inline(from+2*uint64(done), "x"))
			done++
		}
		h.do(s, op)
	}
}

func (h *harness) truncate(s cfs.SessionID, ino cfs.Ino, size uint64) cfs.Kind {
	h.t.Helper()
	return h.apply(&cfs.Command{Session: s, Ops: []cfs.Op{{Kind: cfs.OpSetAttr, Ino: ino, Mask: cfs.SetSize, Attr: cfs.Attr{Size: size}}}}).Kind
}

// offsets are where a file has rows.
func (h *harness) offsets(ino cfs.Ino) (all []uint64) {
	h.t.Helper()
	for off := uint64(0); ; {
		a := h.read(&cfs.Query{Kind: cfs.QueryExtents, Ino: ino, Off: off, End: ^uint64(0)})
		for _, x := range a.Extents {
			all = append(all, x.Off)
			off = x.End()
		}
		if !a.More {
			return all
		}
	}
}

// TestTruncationIsBounded: a file of many rows is cut at once, never shows old bytes, takes writes
// on both sides of the cut while it heals, and has one map in the end.
func TestTruncationIsBounded(t *testing.T) {
	const rows = 6000
	h := newHarness(t)
	s := h.open("x")
	ino := h.create(s, "a")
	h.scatter(s, ino, 0, rows)
	h.bounded(&cfs.Command{Session: s, Ops: []cfs.Op{{Kind: cfs.OpSetAttr, Ino: ino, Mask: cfs.SetSize, Attr: cfs.Attr{Size: rows}}}})
	if got := h.offsets(ino); len(got) != rows/2 || got[len(got)-1] != rows-2 {
		t.Fatalf("%d rows after the truncation", len(got))
	}
	if k := h.truncate(s, ino, 3*rows); k != cfs.KindOK {
		t.Fatal(k)
	}
	h.do(s, cfs.Op{Kind: cfs.OpWrite, Ino: ino, Extents: []cfs.Extent{inline(rows-7, strings.Repeat("w", 30))}}) // across the cut
	if k := h.truncate(s, ino, rows/2+1); k != cfs.KindOK {                                                      // further down
		t.Fatal(k)
	}
	h.scatter(s, ino, rows, 2000)
	if k := h.truncate(s, ino, rows+100); k != cfs.Busy {
		t.Errorf("many rows above the cut, truncated again: %v, want %v", k, cfs.Busy)
	}
	want := fmt.Sprint(h.offsets(ino))
	if times := h.reapAll(); times < 5 {
		t.Errorf("healed in %d commands", times)
	}
	if got := fmt.Sprint(h.offsets(ino)); got != want {
		t.Errorf("rows before %s\nand after healing %s", want, got)
	}
	n, _ := (&tx{kv: h.kv}).inode(ino)
	if n.cut != 0 || n.high != 0 || n.stored != rows/4+1+2000 {
		t.Errorf("after healing %+v", n)
	}
	if k := h.truncate(s, ino, rows+100); k != cfs.KindOK {
		t.Error(k)
	}
	if k := h.truncate(s, ino, 0); k != cfs.KindOK || len(h.offsets(ino)) != 0 {
		t.Error(k)
	}
	h.scatter(s, ino, 0, rows)
	h.truncate(s, ino, 10)
	h.do(s, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "a"}) // while it is cut
	h.reapAll()
	h.leftOver("EQ")
}

// TestSessionEndIsBounded: a session that holds many inodes, of many rows and attributes each, ends
// by many commands.
func TestSessionEndIsBounded(t *testing.T) {
	h := newHarness(t)
	s := h.open("x")
	for i := 0; i < 1500; i += 100 {
		var ops []cfs.Op
		for j := range 100 {
			name := fmt.Sprint(i + j)
			ops = append(ops, cfs.Op{Kind: cfs.OpCreate, Dir: 1, Name: name, Attr: cfs.Attr{Mode: cfs.ModeRegular}}, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: name, Hold: true})
		}
		h.do(s, ops...)
	}
	big := h.create(s, "big")
	h.scatter(s, big, 0, 2000)
	for i := 0; i < 1500; i += 100 {
		var ops []cfs.Op
		for j := range 100 {
			ops = append(ops, cfs.Op{Kind: cfs.OpSetXattr, Ino: big, Name: fmt.Sprint("user.", i+j)})
		}
		h.do(s, ops...)
	}
	h.do(s, cfs.Op{Kind: cfs.OpUnlink, Dir: 1, Name: "big", Hold: true})
	h.bounded(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpExpireSession, Sess: s}}})
	if times := h.reapAll(); times < 4 {
		t.Errorf("done in %d commands", times)
	}
	h.leftOver("EHQRXhq")
	if u, err := ReadUsage(h.kv); u != (Usage{Inodes: 1}) || err != nil {
		t.Errorf("left over: %+v %v", u, err)
	}
}
