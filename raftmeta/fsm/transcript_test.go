package fsm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/claudefs/claudefs/cfs"
)

// TestTranscripts runs the transcripts of testdata; -rewrite records new ones.
// Every command is followed by a recount of the whole state.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if !strings.HasSuffix(path, ".txt") { // the corpora of the fuzz targets
			return
		}
		s := &script{harness: newHarness(t), saved: map[string]*memKV{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.harness.t = t
			out := s.run(d)
			if broken := checkState(s.kv); broken != "" {
				out += "INVARIANTS BROKEN\n" + broken + "\n"
			}
			if out == "" {
				return "ok\n"
			}
			return out
		})
	})
}

// script carries out the commands of a transcript.
type script struct {
	*harness
	saved map[string]*memKV
}

// args are the words of a line: the first is the verb, the others are key=value or key.
type args struct {
	t    testing.TB
	line string
	verb string
	kv   map[string]string
}

func parse(t testing.TB, line string) args {
	words := strings.Fields(line)
	a := args{t: t, line: line, verb: words[0], kv: map[string]string{}}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		a.kv[k] = v
	}
	return a
}

func (a args) has(k string) bool { _, ok := a.kv[k]; return ok }

// str is a value; "x*300" is x 300 times.
func (a args) str(k string) string {
	v := a.kv[k]
	if s, n, ok := strings.Cut(v, "*"); ok {
		if times, err := strconv.Atoi(n); err == nil {
			return strings.Repeat(s, times)
		}
	}
	return v
}

func (a args) num(k string) uint64 {
	v, ok := a.kv[k]
	if !ok {
		return 0
	}
	if v == "max" {
		return ^uint64(0)
	}
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil {
		a.t.Fatalf("%s: %s: %v", a.line, k, err)
	}
	return n
}

// pair2 is two numbers joined by sep.
func (a args) pair2(v, sep string) (uint64, uint64) {
	x, y, _ := strings.Cut(v, sep)
	n, err1 := strconv.ParseUint(x, 0, 64)
	m, err2 := strconv.ParseUint(y, 0, 64)
	if err1 != nil || err2 != nil {
		a.t.Fatalf("%s: %q is not two numbers", a.line, v)
	}
	return n, m
}

func (a args) device(k string) cfs.DeviceID {
	n, slot := a.pair2(a.kv[k], "/")
	return cfs.MakeDeviceID(cfs.NodeID(n), uint16(slot))
}

func (a args) state() cfs.State {
	for s := cfs.StateUp; s <= cfs.StateOut; s++ {
		if s.String() == a.kv["state"] {
			return s
		}
	}
	return 0
}

func (a args) extent() cfs.Extent {
	x := cfs.Extent{Off: a.num("off"), Len: a.num("len")}
	switch {
	case a.has("digest"):
		x.Kind, x.Inline = cfs.ExtentInline, []byte(a.str("digest"))
		x.Len = uint64(len(x.Inline))
		x = x.Digest()
	case a.has("inline"):
		x.Kind, x.Inline = cfs.ExtentInline, []byte(a.str("inline"))
		if !a.has("len") {
			x.Len = uint64(len(x.Inline))
		}
	case a.has("stripe"):
		s, c := a.pair2(a.kv["stripe"], ".")
		x.Kind, x.Stripe = cfs.ExtentStripe, cfs.StripeID{Session: cfs.SessionID(s), Counter: c}
		x.PG, x.StripeOff, x.StripeLen = cfs.PGID(a.num("pg")), uint32(a.num("soff")), uint32(a.num("slen"))
		if !a.has("slen") {
			x.StripeLen = uint32(x.Len)
		}
	case a.has("unwritten"):
		x.Kind = cfs.ExtentUnwritten
	case a.has("kind"):
		x.Kind = cfs.ExtentKind(a.num("kind"))
	}
	return x
}

// cred is whom the namespace is to check: "uid=1 gid=2 groups=3:4".
func (a args) cred() (c cfs.Cred) {
	if !a.has("uid") {
		return c
	}
	c = cfs.Cred{Enforce: true, UID: uint32(a.num("uid")), GID: uint32(a.num("gid"))}
	for _, g := range strings.Split(a.kv["groups"], ":") {
		if g != "" {
			c.Groups = append(c.Groups, uint32(parse(a.t, "x g="+g).num("g")))
		}
	}
	return c
}

var opNames = map[string]cfs.OpKind{
	"create": cfs.OpCreate, "link": cfs.OpLink, "unlink": cfs.OpUnlink, "rmdir": cfs.OpRmdir, "rename": cfs.OpRename,
	"setattr": cfs.OpSetAttr, "setxattr": cfs.OpSetXattr, "rmxattr": cfs.OpRemoveXattr, "write": cfs.OpWrite, "swap": cfs.OpSwap,
	"release": cfs.OpRelease, "reap": cfs.OpReap, "open-session": cfs.OpOpenSession, "expire": cfs.OpExpireSession,
	"node": cfs.OpSetNode, "device": cfs.OpSetDevice, "groups": cfs.OpSetGroups, "feed-done": cfs.OpFeedDone,
	"fill-done": cfs.OpFillDone, "drop": cfs.OpDropGroups, "job": cfs.OpSetJob, "lock": cfs.OpLock, "surrender": cfs.OpSurrender,
	"grant": cfs.OpGrantInos,
}

var setMasks = map[string]cfs.SetMask{
	"mode": cfs.SetMode, "uid": cfs.SetUID, "gid": cfs.SetGID, "size": cfs.SetSize, "atime": cfs.SetAtime, "mtime": cfs.SetMtime,
	"atime-now": cfs.SetAtimeNow, "mtime-now": cfs.SetMtimeNow, "ctime": cfs.SetCtime, "kill-priv": cfs.SetKillPriv,
}

func (a args) flags() (f uint32) {
	for _, w := range strings.Split(a.kv["flags"], "|") {
		switch w {
		case "noreplace", "create":
			f |= 1
		case "exchange", "replace":
			f |= 2
		case "whiteout":
			f |= 4
		}
	}
	return f
}

// holds reads holds=1,2.
func (a args) holds() (ids []cfs.SessionID) {
	for _, w := range strings.FieldsFunc(a.kv["holds"], func(r rune) bool { return r == ',' }) {
		id, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			a.t.Fatalf("%s: %v", a.line, err)
		}
		ids = append(ids, cfs.SessionID(id))
	}
	return ids
}

func (a args) op() cfs.Op {
	kind, ok := opNames[a.verb]
	if !ok {
		a.t.Fatalf("%s: no such operation", a.line)
	}
	op := cfs.Op{Kind: kind, Ino: cfs.Ino(a.num("ino")), Dir: cfs.Ino(a.num("dir")), NewDir: cfs.Ino(a.num("newdir")), Name: a.str("name"),
		NewName: a.str("to"), Flags: a.flags(), Exclusive: a.has("excl"), Hold: a.has("hold"), Lease: a.has("lease"), Holds: a.holds(), KeepSize: a.has("keep-size"),
		Sess: cfs.SessionID(a.num("sess")), MapVersion: a.num("version"),
		Index: a.num("count"), AtNS: int64(a.num("at"))}
	op.Attr = cfs.Attr{Mode: uint32(a.num("mode")), UID: uint32(a.num("uid")), GID: uint32(a.num("gid")), Rdev: uint32(a.num("rdev")), Size: a.num("size"),
		AtimeNS: int64(a.num("atime")), MtimeNS: int64(a.num("mtime")), CtimeNS: int64(a.num("ctime"))}
	for k, bit := range setMasks {
		if a.has(k) && (kind == cfs.OpSetAttr || bit == cfs.SetKillPriv) {
			op.Mask |= bit
		}
	}
	if a.has("read-at") {
		op.Mask, op.Attr.AtimeNS = cfs.SetRelatime, int64(a.num("read-at"))
	}
	if a.has("target") || a.has("value") {
		op.Value = []byte(a.str("target") + a.str("value"))
	}
	if op.NewDir == 0 {
		op.NewDir = op.Dir
	}
	for _, e := range strings.Split(a.kv["epochs"], ",") {
		if e != "" {
			pg, epoch := a.pair2(e, ":")
			op.Epochs = append(op.Epochs, cfs.PGEpoch{PG: cfs.PGID(pg), Epoch: cfs.Epoch(epoch)})
		}
	}
	switch kind {
	case cfs.OpSetNode:
		op.Node = cfs.Node{ID: cfs.NodeID(a.num("id")), Addr: a.str("addr"), State: a.state(), Voter: a.has("voter")}
	case cfs.OpSetDevice, cfs.OpFeedDone, cfs.OpFillDone:
		op.Device = cfs.Device{ID: a.device("id"), State: a.state(), Capacity: a.num("capacity"), FeedPos: a.num("pos"),
			Draining: a.has("draining"), Full: a.has("full")}
		if copy(op.Device.UUID[:], a.kv["uuid"]); !a.has("uuid") {
			copy(op.Device.UUID[:], a.kv["id"])
		}
		if !a.has("capacity") {
			op.Device.Capacity = deviceBytes
		}
	case cfs.OpSetJob:
		op.Job = a.job()
	case cfs.OpLock:
		op.Lock = a.lock()
	}
	if kind == cfs.OpFillDone || kind == cfs.OpDropGroups {
		for _, pg := range strings.Split(a.kv["pg"], ",") {
			g := parse(a.t, "pg id="+pg)
			op.Groups = append(op.Groups, cfs.PG{ID: cfs.PGID(g.num("id")), Epoch: cfs.Epoch(a.num("epoch"))})
		}
	}
	return op
}

func (a args) job() cfs.Job {
	j := cfs.Job{Device: a.device("device"), RateBytes: a.num("rate"), DoneBytes: a.num("done"), TotalBytes: a.num("total")}
	for k := cfs.JobRebuild; k <= cfs.JobRebalance; k++ {
		if k.String() == a.kv["kind"] {
			j.Kind = k
		}
	}
	for s := cfs.JobRunning; s <= cfs.JobCancelled; s++ {
		if s.String() == a.kv["state"] {
			j.State = s
		}
	}
	return j
}

// group is a line "group id=1 geometry=4+2 slots=1/0,2/0<3/1 writable"; the slot
// on 2/0 is filled from 3/1.
func (a args) group() cfs.PG {
	g := cfs.PG{ID: cfs.PGID(a.num("id")), Writable: a.has("writable")}
	k, m := a.pair2(a.kv["geometry"], "+")
	g.Geometry = cfs.Geometry{K: uint8(k), M: uint8(m)}
	for _, s := range strings.Split(a.kv["slots"], ",") {
		on, source, filling := strings.Cut(s, "<")
		slot := cfs.Slot{Filling: filling}
		n, i := a.pair2(on, "/")
		slot.Device = cfs.MakeDeviceID(cfs.NodeID(n), uint16(i))
		if filling {
			n, i = a.pair2(source, "/")
			slot.Source = cfs.MakeDeviceID(cfs.NodeID(n), uint16(i))
		}
		g.Slots = append(g.Slots, slot)
	}
	return g
}

// ops parses operations, one a line; a line that starts with + is an extent of
// the operation above, one with - an expected extent.
func (s *script) ops(input string) (ops []cfs.Op) {
	for _, line := range strings.Split(input, "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		a := parse(s.t, line)
		switch a.verb {
		case "+":
			ops[len(ops)-1].Extents = append(ops[len(ops)-1].Extents, a.extent())
		case "-":
			ops[len(ops)-1].Expect = append(ops[len(ops)-1].Expect, a.extent())
		case "group":
			ops[len(ops)-1].Groups = append(ops[len(ops)-1].Groups, a.group())
		default:
			ops = append(ops, a.op())
		}
	}
	return ops
}

func (s *script) run(d *datadriven.TestData) string {
	words := make([]string, 0, len(d.CmdArgs))
	for _, c := range d.CmdArgs {
		words = append(words, c.String())
	}
	a := parse(s.t, d.Cmd+" "+strings.Join(words, " "))
	switch d.Cmd {
	case "cluster":
		s.cluster(int(a.num("nodes")), int(a.num("devices")))
		if !a.has("show") {
			return ""
		}
		return showMap(s.read(&cfs.Query{Kind: cfs.QueryMap}).Map)
	case "open":
		return fmt.Sprintf("session %d\n", s.open(a.str("name")))
	case "apply":
		cmd := &cfs.Command{Session: cfs.SessionID(a.num("session")), Seq: a.num("seq"), LowWater: a.num("low"), Floor: a.num("floor"), Cred: a.cred(), Ops: s.ops(d.Input)}
		return s.show(cmd)
	case "lead":
		return s.show(&cfs.Command{Ops: s.ops(d.Input)})
	case "plan":
		return showPlan("record", s.plan(), a.num("of"))
	case "rebalance":
		return showPlan("record", s.propose(PlanRebalance), a.num("of"))
	case "drop-empty":
		m, err := ReadMap(s.kv)
		if err != nil {
			s.t.Fatal(err)
		}
		drop := DroppableGroups(m, s.usage())
		if len(drop) > 0 {
			s.do(0, cfs.Op{Kind: cfs.OpDropGroups, Groups: drop})
		}
		return showPlan("drop", drop, a.num("of"))
	case "spare":
		m, err := ReadMap(s.kv)
		return fmt.Sprintf("%v %v\n", CanSpare(m, a.device("device")), err)
	case "query":
		var b strings.Builder
		for _, line := range strings.Split(d.Input, "\n") {
			fmt.Fprintf(&b, "%s:%s", line, s.query(parse(s.t, line)))
		}
		return b.String()
	case "state":
		var b strings.Builder
		for _, p := range a.kv["of"] {
			s.kv.each(string(p), func(k, v []byte) { b.WriteString(describe(k, v) + "\n") })
		}
		if b.Len() == 0 {
			return "none\n"
		}
		return b.String()
	case "fill":
		return s.fill(a)
	case "save":
		s.saved[a.kv["as"]] = s.kv.clone()
		return ""
	case "changed":
		return s.changed(s.saved[a.kv["since"]])
	}
	s.t.Fatalf("no such command: %s", d.Cmd)
	return ""
}

// fill writes many rows of one inline byte, two bytes apart, or of stripes of
// one byte with the counters from stripe on.
func (s *script) fill(a args) string {
	sess := cfs.SessionID(a.num("session"))
	var extents []cfs.Extent
	for i := range a.num("rows") {
		x := inline(2*i, "x")
		if a.has("stripe") {
			x = cfs.Extent{Off: 2 * i, Len: 1, Kind: cfs.ExtentStripe, Stripe: cfs.StripeID{Session: sess, Counter: a.num("stripe") + i}, PG: 1, StripeLen: 1}
		}
		extents = append(extents, x)
	}
	for part := range slices.Chunk(extents, cfs.MaxCommandExtents) {
		s.do(sess, cfs.Op{Kind: cfs.OpWrite, Ino: cfs.Ino(a.num("ino")), Extents: part, Epochs: []cfs.PGEpoch{{PG: 1, Epoch: 1}}})
	}
	return ""
}

// changed tells the rows that differ from an earlier state.
func (s *script) changed(old *memKV) string {
	var b strings.Builder
	old.each("", func(k, v []byte) {
		if p, ok := s.kv.tree.Get(pair{key: k}); !ok || string(p.val) != string(v) {
			b.WriteString("- " + describe(k, v) + "\n")
		}
	})
	s.kv.each("", func(k, v []byte) {
		if p, ok := old.tree.Get(pair{key: k}); !ok || string(p.val) != string(v) {
			b.WriteString("+ " + describe(k, v) + "\n")
		}
	})
	return b.String()
}

func (s *script) show(cmd *cfs.Command) string {
	r, err := s.try(cmd)
	if err != nil {
		return fmt.Sprintf("HALT: %v\n", err)
	}
	var b strings.Builder
	if r.Kind != cfs.KindOK {
		fmt.Fprintf(&b, "index %d: op %d: %s\n", r.Index, r.Failed, r.Kind.Name())
		return b.String()
	}
	fmt.Fprintf(&b, "index %d: ok\n", r.Index)
	for i := range r.Results {
		res := &r.Results[i]
		if res.Session != 0 {
			fmt.Fprintf(&b, "  session %d\n", res.Session)
		}
		line := ""
		if res.Attr.Ino != 0 {
			line += "  " + showAttr(&res.Attr)
		}
		if res.Dir.Ino != 0 {
			line += fmt.Sprintf("  in %d nlink=%d", res.Dir.Ino, res.Dir.Nlink)
		}
		if res.NewDir.Ino != 0 {
			line += fmt.Sprintf("  to %d nlink=%d", res.NewDir.Ino, res.NewDir.Nlink)
		}
		if line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

func showAttr(a *cfs.Attr) string {
	s := fmt.Sprintf("%d mode=%#o nlink=%d", a.Ino, a.Mode, a.Nlink)
	if a.UID != 0 || a.GID != 0 {
		s += fmt.Sprintf(" owner=%d:%d", a.UID, a.GID)
	}
	if a.Rdev != 0 {
		s += fmt.Sprintf(" rdev=%d", a.Rdev)
	}
	s += fmt.Sprintf(" size=%d", a.Size)
	if a.Blocks != 0 {
		s += fmt.Sprintf(" blocks=%d", a.Blocks)
	}
	if a.Map > 1 {
		s += fmt.Sprintf(" map=%d", a.Map)
	}
	if a.Owner != 0 {
		s += fmt.Sprintf(" owner=%d", a.Owner)
	}
	return s + fmt.Sprintf(" gen=%d", a.Gen)
}

func showExtent(x *cfs.Extent) string {
	s := fmt.Sprintf("[%d, %d)", x.Off, x.End())
	switch x.Kind {
	case cfs.ExtentInline:
		if len(x.Inline) > 32 {
			return s + fmt.Sprintf(" %.8q... inline", x.Inline)
		}
		return s + fmt.Sprintf(" %q", x.Inline)
	case cfs.ExtentStripe:
		return s + fmt.Sprintf(" stripe %v pg=%d +%d of %d", x.Stripe, x.PG, x.StripeOff, x.StripeLen)
	case cfs.ExtentUnwritten:
		return s + " unwritten"
	}
	return s + fmt.Sprintf(" kind %d", x.Kind)
}

func showGroup(g *cfs.PG) string {
	slots := make([]string, len(g.Slots))
	for i, s := range g.Slots {
		if slots[i] = s.Device.String(); s.Filling {
			slots[i] += "<" + s.Source.String()
		}
	}
	s := fmt.Sprintf("group %d %v on %s epoch=%d", g.ID, g.Geometry, strings.Join(slots, " "), g.Epoch)
	if g.Writable {
		s += " writable"
	}
	return s
}

func showMap(m *cfs.Map) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s version %d\n", m.ClusterID, m.Version)
	for _, n := range m.Nodes {
		fmt.Fprintf(&b, "node %d %s %v voter=%v\n", n.ID, n.Addr, n.State, n.Voter)
	}
	for _, d := range m.Devices {
		fmt.Fprintf(&b, "device %v %v %d bytes feed=%d", d.ID, d.State, d.Capacity, d.FeedPos)
		if d.Draining {
			b.WriteString(" draining")
		}
		if d.Full {
			b.WriteString(" full")
		}
		b.WriteString("\n")
	}
	for i := range m.Groups {
		b.WriteString(showGroup(&m.Groups[i]) + "\n")
	}
	for i := range m.Jobs {
		b.WriteString(showJob(&m.Jobs[i]) + "\n")
	}
	return b.String()
}

func showJob(j *cfs.Job) string {
	return fmt.Sprintf("job of %v: %v %v rate=%d %d of %d started=%d changed=%d", j.Device, j.Kind, j.State, j.RateBytes, j.DoneBytes, j.TotalBytes, j.StartedNS, j.ChangedNS)
}

// showPlan shows what is planned for a group, and how many others there are; for
// group 0 everything.
func showPlan(what string, groups []cfs.PG, of uint64) string {
	var b strings.Builder
	others := 0
	for _, g := range groups {
		if of == 0 || uint64(g.ID) == of {
			b.WriteString(what + " " + showGroup(&g) + "\n")
		} else {
			others++
		}
	}
	if others > 0 {
		fmt.Fprintf(&b, "%s %d others\n", what, others)
	}
	if b.Len() == 0 {
		return "nothing to change\n"
	}
	return b.String()
}

var queryNames = map[string]cfs.QueryKind{
	"lookup": cfs.QueryLookup, "getattr": cfs.QueryGetAttr, "readdir": cfs.QueryReadDir, "readlink": cfs.QueryReadlink, "getxattr": cfs.QueryGetXattr,
	"listxattr": cfs.QueryListXattr, "extents": cfs.QueryExtents, "statfs": cfs.QueryStatfs, "map": cfs.QueryMap, "feed": cfs.QueryFeed, "unknown": 99,
	"stripes": cfs.QueryStripes, "fates": cfs.QueryFates, "windows": cfs.QueryWindows, "held": cfs.QueryUsage,
	"getlk": cfs.QueryLock,
}

func (s *script) query(a args) string {
	switch a.verb {
	case "version", "group", "job":
		m, err := ReadMap(s.kv)
		if a.verb == "version" {
			return fmt.Sprintf(" %d %v\n", m.Version, err)
		}
		for i := range m.Groups {
			if g := &m.Groups[i]; a.verb == "group" && uint64(g.ID) == a.num("pg") {
				return " " + showGroup(g) + "\n"
			}
		}
		for i := range m.Jobs {
			if j := &m.Jobs[i]; a.verb == "job" && j.Device == a.device("device") {
				return " " + showJob(j) + "\n"
			}
		}
		return fmt.Sprintf(" none %v\n", err)
	case "usage":
		u, err := ReadUsage(s.kv)
		return fmt.Sprintf(" %+v %v\n", u, err)
	case "sessions":
		list, err := Sessions(s.kv)
		return fmt.Sprintf(" %+v %v\n", list, err)
	}
	q := &cfs.Query{Kind: queryNames[a.verb], Ino: cfs.Ino(a.num("ino")), Dir: cfs.Ino(a.num("dir")), Name: a.str("name"), Off: a.num("off"), End: a.num("end"),
		Limit: uint32(a.num("limit")), WithAttrs: a.has("attrs"), PG: cfs.PGID(a.num("pg")), BeforeNS: int64(a.num("before"))}
	if q.Kind == cfs.QueryLock {
		q.Session, q.Lock = cfs.SessionID(a.num("session")), a.lock()
	}
	if a.has("beyond") {
		sess, counter := a.pair2(a.kv["beyond"], ".")
		q.Stripe = cfs.StripeID{Session: cfs.SessionID(sess), Counter: counter}
	}
	for _, of := range strings.Split(a.kv["of"], ",") { // group:session.counter
		if pg, id, ok := strings.Cut(of, ":"); ok {
			n, err := strconv.Atoi(pg)
			if err != nil {
				a.t.Fatalf("%s: %v", a.line, err)
			}
			sess, counter := a.pair2(id, ".")
			q.Stripes = append(q.Stripes, cfs.StripeRef{PG: cfs.PGID(n), Stripe: cfs.StripeID{Session: cfs.SessionID(sess), Counter: counter}})
		}
	}
	ans := s.read(q)
	if ans.Kind != cfs.KindOK {
		return " " + ans.Kind.Name() + "\n"
	}
	var b strings.Builder
	switch q.Kind {
	case cfs.QueryMap:
		return "\n" + showMap(ans.Map)
	case cfs.QueryStatfs:
		return fmt.Sprintf(" %+v\n", ans.Statfs)
	case cfs.QueryReadlink, cfs.QueryGetXattr:
		return fmt.Sprintf(" %q\n", ans.Value)
	case cfs.QueryListXattr:
		return fmt.Sprintf(" %q\n", ans.Names)
	case cfs.QueryLock:
		return " " + showLock(&ans.Lock) + "\n"
	}
	if ans.Attr.Ino != 0 && q.Kind != cfs.QueryExtents {
		b.WriteString(" " + showAttr(&ans.Attr))
	}
	if a.has("times") {
		fmt.Fprintf(&b, " atime=%d mtime=%d ctime=%d btime=%d", ans.Attr.AtimeNS, ans.Attr.MtimeNS, ans.Attr.CtimeNS, ans.Attr.BtimeNS)
	}
	if ans.Dir.Ino != 0 {
		fmt.Fprintf(&b, " in %d", ans.Dir.Ino)
	}
	b.WriteString("\n")
	for _, e := range ans.Entries {
		fmt.Fprintf(&b, "  %s -> %d type %#o", e.Name, e.Ino, e.Mode)
		if e.Attr != nil {
			b.WriteString("  " + showAttr(e.Attr))
		}
		b.WriteString("\n")
	}
	for i := range ans.Extents {
		b.WriteString("  " + showExtent(&ans.Extents[i]) + "\n")
	}
	for _, f := range ans.Freed {
		fmt.Fprintf(&b, "  %d: stripe %v pg=%d\n", f.Pos, f.Stripe, f.PG)
	}
	for _, x := range ans.Stripes {
		fmt.Fprintf(&b, "  stripe %v pg=%d refs=%d live=%d of %d\n", x.Stripe, x.PG, x.Refs, x.Live, x.Len)
	}
	for i, f := range ans.Fates {
		fmt.Fprintf(&b, "  stripe %v pg=%d %s\n", q.Stripes[i].Stripe, q.Stripes[i].PG, [...]string{"?", "live", "pending", "dead"}[f])
	}
	for _, w := range ans.Windows {
		fmt.Fprintf(&b, "  inode %d [%d, %d)\n", w.Ino, w.Off, w.End)
	}
	for _, u := range ans.Usage {
		fmt.Fprintf(&b, "  group %d: %d stripes, %d bytes\n", u.PG, u.Stripes, u.RawBytes)
	}
	if ans.Next.Ino != 0 {
		fmt.Fprintf(&b, "  next inode %d off %d\n", ans.Next.Ino, ans.Next.Off)
	}
	if ans.More {
		b.WriteString("  more\n")
	}
	return b.String()
}

// describe is a row of the state as people read it.
func describe(k, v []byte) string {
	s := string(k[:1])
	switch k[0] {
	case prefixMark:
		if name := string(k[1:]); name != markCluster {
			return fmt.Sprintf("A %s = %d", name, binary.LittleEndian.Uint64(v))
		}
		return fmt.Sprintf("A %s = %s", k[1:], v)
	case prefixDirent:
		d, _ := decodeDirent(v)
		return fmt.Sprintf("D %d %s -> %d type %#o", u64of(k[1:]), k[9:], d.ino, d.mode)
	case prefixExtent:
		x, _ := decodeExtent(u64of(k[13:]), v)
		return fmt.Sprintf("E %d map=%d %s", u64of(k[1:]), binary.BigEndian.Uint32(k[9:]), showExtent(&x))
	case prefixFeed:
		f, _ := decodeFreed(u64of(k[1:]), v)
		return fmt.Sprintf("F %d stripe %v pg=%d", f.Pos, f.Stripe, f.PG)
	case prefixGroup:
		g, _ := decodePG(v)
		return "G " + showGroup(g)
	case prefixHold:
		return fmt.Sprintf("H inode %d session %d", u64of(k[1:]), u64of(k[9:]))
	case prefixHeldBy:
		return fmt.Sprintf("h session %d inode %d", u64of(k[1:]), u64of(k[9:]))
	case prefixInos:
		rs, _ := decodeInos(v)
		return fmt.Sprintf("i session %d numbers %v", u64of(k[1:]), rs)
	case prefixInode:
		n, _ := decodeInode(v)
		return fmt.Sprintf("I %s parent=%d stored=%d", showAttr(&n.Attr), n.parent, n.stored)
	case prefixJob:
		j, _ := decodeJob(v)
		return "J " + showJob(j)
	case prefixTrust:
		return fmt.Sprintf("P %c %s: %d bytes", k[1], k[2:], len(v))
	case prefixUsage:
		u, _ := decodeUsage(v)
		return fmt.Sprintf("U pg=%d %d stripes, %d bytes", u32of(k[1:]), u.stripes, u.raw)
	case prefixLock:
		i, l, _ := decodeLock(k, v)
		return fmt.Sprintf("K inode %d %s", i, showLock(&l))
	case prefixLockedBy:
		i, l := lockOfListKey(k)
		return fmt.Sprintf("k session %d inode %d kind %d owner %d from %d", l.Session, i, l.Kind, l.Owner, l.Start)
	case prefixLockQueue:
		return fmt.Sprintf("l locks of %s %d", [...]string{"?", "session", "inode"}[k[1]], u64of(k[2:]))
	case prefixLink, prefixXattr:
		return fmt.Sprintf("%s %d %s %q", s, u64of(k[1:]), k[9:], v[1:])
	case prefixQueue:
		return fmt.Sprintf("Q %d map=%d", u64of(k[1:]), binary.BigEndian.Uint32(k[9:]))
	case prefixReply:
		r, _ := decodeReply(v)
		return fmt.Sprintf("R session %d seq %d: index %d op %d %s, %d results", u64of(k[1:]), u64of(k[9:]), r.Index, r.Failed, r.Kind.Name(), len(r.Results))
	case prefixStripe:
		st, _ := decodeStripe(v)
		return fmt.Sprintf("S pg=%d %d.%d refs=%d live=%d of %d", binary.BigEndian.Uint32(k[1:]), u64of(k[5:]), u64of(k[13:]), st.refs, st.live, st.len)
	case prefixSession:
		sess, _ := decodeSession(v)
		return fmt.Sprintf("T %d %q floor=%d low=%d", u64of(k[1:]), sess.name, sess.floor, sess.lowWater)
	case prefixZero:
		return fmt.Sprintf("Z %d.%d pg=%d", u64of(k[1:]), u64of(k[9:]), binary.BigEndian.Uint32(k[17:]))
	}
	return fmt.Sprintf("%q = %x", k, v)
}
