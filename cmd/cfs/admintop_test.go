package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// decode runs a command that prints one document.
func decode[T any](f *fake, args ...string) *T {
	f.t.Helper()
	code, out, stderr := f.run(append(args, "--json")...)
	doc := new(T)
	if err := json.Unmarshal([]byte(out), doc); err != nil || code != 0 {
		f.t.Fatalf("%v: exit %d: %v in %q; stderr %q", args, code, err, out, stderr)
	}
	return doc
}

// asked notes what the leader is asked to change.
func (f *fake) noteAdmin(got *[]string) {
	f.onAdmin = func(_ cfs.NodeID, r *wirepb.Admin) (*wirepb.AdminReply, error) {
		*got = append(*got, fmt.Sprintf("%d %q %d", r.Verb, r.Text, r.Session))
		return &wirepb.AdminReply{Text: "it is done"}, nil
	}
}

func TestSessions(t *testing.T) {
	f := newFake(t)
	for i := range 7 { // more than a page
		f.sessions = append(f.sessions, cfs.SessionInfo{ID: cfs.SessionID(i + 1), Name: fmt.Sprint("host", i), OpenedNS: 1, SilentMS: 1200, LowWater: 2, Replies: 3,
			Floor: 4, Holds: 5, Locks: 6, Leases: 7, Opens: 8})
	}
	doc := decode[struct{ Sessions []sessionDoc }](f, "sessions")
	if len(doc.Sessions) != 7 || doc.Sessions[6] != (sessionDoc{ID: 7, Name: "host6", OpenedNS: 1, SilentMS: 1200, LowWater: 2, Replies: 3, Floor: 4, Holds: 5, Locks: 6, Leases: 7, Opens: 8}) {
		t.Errorf("%+v", doc)
	}
	if code, out, _ := f.run("sessions"); code != 0 || strings.Count(out, "\n") != 8 || !strings.Contains(out, "1.2s") || !strings.Contains(out, "host3") {
		t.Errorf("exit %d: %s", code, out)
	}
	var asked []string
	f.noteAdmin(&asked)
	if code, out, stderr := f.run("session", "expire", "7"); code != 0 || out != "it is done\n" {
		t.Errorf("exit %d: %q %q", code, out, stderr)
	}
	for _, bad := range []string{"0", "x", "-1"} {
		if code, _, _ := f.run("session", "expire", "--", bad); code != 2 {
			t.Errorf("session %s: exit %d", bad, code)
		}
	}
	if want := []string{fmt.Sprintf("%d %q %d", wire.VerbSessionExpire, "", 7)}; !reflect.DeepEqual(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
}

func TestJournalCommands(t *testing.T) {
	f := newFake(t)
	if code, _, stderr := f.run("journal", "tail"); code != 1 || !strings.Contains(stderr, "journal add") {
		t.Errorf("exit %d: %q", code, stderr)
	}
	f.consumers = []cfs.Consumer{{Name: "backup", Index: 5, Behind: 6, BehindBytes: 7 << 20}, {Name: "old", Index: 2, Lost: true}}
	doc := decode[struct{ Consumers []consumerDoc }](f, "journal", "consumers")
	if want := []consumerDoc{{"backup", 5, 6, 7 << 20, false}, {"old", 2, 0, 0, true}}; !reflect.DeepEqual(doc.Consumers, want) {
		t.Errorf("%+v", doc)
	}
	if code, out, _ := f.run("journal", "consumers"); code != 0 || !strings.Contains(out, "7.0 MiB") || !strings.Contains(out, "lost") {
		t.Errorf("exit %d: %s", code, out)
	}
	var asked []string
	f.noteAdmin(&asked)
	for _, args := range [][]string{{"journal", "add", "mine"}, {"journal", "remove", "mine"}} {
		if code, out, stderr := f.run(args...); code != 0 || out != "it is done\n" {
			t.Errorf("%v: exit %d: %q %q", args, code, out, stderr)
		}
	}
	if want := []string{fmt.Sprintf("%d %q 0", wire.VerbConsumerAdd, "mine"), fmt.Sprintf("%d %q 0", wire.VerbConsumerRemove, "mine")}; !reflect.DeepEqual(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	if code, _, _ := f.run("journal", "add", ""); code != 2 {
		t.Errorf("exit %d", code)
	}
}

func TestJournalTail(t *testing.T) {
	f := newFake(t)
	f.consumers = []cfs.Consumer{{Name: "backup", Index: 5}}
	for i := range uint64(8) {
		f.changes = append(f.changes, cfs.Change{Index: 5 + i/2, N: uint32(i % 2), Kind: cfs.OpCreate, Ino: cfs.Ino(100 + i), Dir: 1, Name: "\xffx", Value: []byte{1}})
	}
	f.changes[7] = cfs.Change{Index: 8, N: 1, Kind: cfs.OpWrite, Ino: 9, Extents: []cfs.Extent{
		{Off: 1, Len: 2, Kind: cfs.ExtentInline, Inline: []byte("ab")},
		{Off: 4, Len: 5, Kind: cfs.ExtentStripe, PG: 3, Stripe: cfs.StripeID{Session: 6, Counter: 7}, StripeOff: 8, StripeLen: 99}}}
	for from, want := range map[string]int{"0": 8, "7": 4} {
		code, out, stderr := f.run("journal", "tail", "--from", from)
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		if code != 0 || len(lines) != want {
			t.Fatalf("from %s: exit %d: %q %q", from, code, out, stderr)
		}
		for i, l := range lines {
			var c changeLine
			if err := json.Unmarshal([]byte(l), &c); err != nil {
				t.Fatalf("%v in %s", err, l)
			}
			want := newChangeLine(&f.changes[8-len(lines)+i])
			want.Name = c.Name // JSON has no such string
			if !reflect.DeepEqual(c, want) {
				t.Errorf("%+v, want %+v", c, want)
			}
		}
	}
	var last changeLine
	_, out, _ := f.run("journal", "tail", "--from", "8")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Kind != "write" || len(last.Extents) != 2 || last.Extents[1].Stripe != "6.7" || string(last.Extents[0].Inline) != "ab" {
		t.Errorf("%v %+v", err, last)
	}
	var first changeLine
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || first.NameHex != "ff78" || first.ValueHex != "01" {
		t.Errorf("%v %+v", err, first)
	}
}

func TestTop(t *testing.T) {
	f := newFake(t)
	f.top = map[cfs.NodeID]*wirepb.TopReply{}
	for id := range f.addrs {
		f.top[id] = &wirepb.TopReply{NodeId: uint32(id), Leader: id == f.leader, Ops: []*wirepb.OpStats{{Name: "put_shard", Count: 5, TotalNs: 10, Buckets: []uint64{5}}}}
	}
	lead := f.top[f.leader]
	lead.Ops = append(lead.Ops, &wirepb.OpStats{Name: "create", Count: 100, TotalNs: 100e6, Buckets: []uint64{0, 100}})
	lead.Stages = []*wirepb.OpStats{{Name: "queue", Count: 1, TotalNs: 5, Buckets: []uint64{1}}, {Name: "sync", Count: 9, TotalNs: 9, Buckets: []uint64{9}}}
	lead.Dirs = []*wirepb.HotDir{{Ino: 30, Ops: 70}, {Ino: 1, Ops: 60}, {Ino: 99, Ops: 1}}
	f.dirs = map[cfs.Ino]cfs.Answer{
		1:  {Entries: []cfs.Dirent{{Name: "a", Ino: 2}, {Name: "b", Ino: 20}}, Dir: cfs.Attr{Ino: 1}},
		20: {Entries: []cfs.Dirent{{Name: "c", Ino: 30}}, Dir: cfs.Attr{Ino: 1}},
		30: {Dir: cfs.Attr{Ino: 20}},
		99: {Kind: cfs.NotFound},
	}
	looks := 0
	f.onAsk = func(at cfs.NodeID, op wire.Op) error {
		if op == wire.OpTop && at == f.leader {
			if looks++; looks == 2 {
				lead.Ops[1] = &wirepb.OpStats{Name: "create", Count: 300, TotalNs: 700e6, Buckets: []uint64{0, 100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 198, 2}}
				lead.Stages[1] = &wirepb.OpStats{Name: "sync", Count: 19, TotalNs: 10009, Buckets: []uint64{19}}
				for id := range f.addrs {
					f.top[id].Ops[0] = &wirepb.OpStats{Name: "put_shard", Count: 7, TotalNs: 30, Buckets: []uint64{7}}
				}
			}
		}
		if op == wire.OpTop && at == 3 && looks > 2 {
			return cfs.Errorf("top", cfs.Unavailable, "on fire")
		}
		return nil
	}
	d := decode[topDoc](f, "top", "--interval", "10ms")
	if len(d.Ops) != 2 || d.Ops[0].Name != "create" || d.Ops[1].Name != "put_shard" || d.Leader != 2 || len(d.Silent) != 0 {
		t.Fatalf("%+v", d)
	}
	if o := d.Ops[0]; o.MeanNS != 3e6 || o.P50NS != 4096e3 || o.P99NS != 4096e3 || int(o.PerSecond*d.Seconds+0.5) != 200 {
		t.Errorf("%+v", o)
	}
	if per := d.Ops[1].PerSecond * d.Seconds; per < 1.5 || per > 6.5 { // two for each server whose counters were looked at before
		t.Errorf("%v put in %+v", per, d)
	}
	if len(d.Stages) != 1 || d.Stages[0].Name != "sync" || d.Stages[0].MeanNS != 1000 {
		t.Errorf("%+v", d.Stages)
	}
	if want := []topDir{{30, "/b/c", 70}, {1, "/", 60}, {99, "", 1}}; !reflect.DeepEqual(d.Dirs, want) {
		t.Errorf("%+v, want %+v", d.Dirs, want)
	}
	code, out, stderr := f.run("top", "--interval", "1ms", "--count", "3")
	if code != 0 || strings.Count(out, "leader: node 2") != 3 || !strings.Contains(out, "/b/c") || !strings.Contains(out, "node 3 does not answer") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	for _, bad := range [][]string{{"--interval", "0s"}, {"--count", "-1"}} {
		if code, _, _ := f.run(append([]string{"top"}, bad...)...); code != 2 {
			t.Errorf("%v: exit %d", bad, code)
		}
	}
}

// A consumer of the journal that falls behind, or is lost, is a problem that is said.
func TestHealthOfConsumers(t *testing.T) {
	f := newFake(t)
	f.consumers = []cfs.Consumer{{Name: "good", Behind: cfs.MaxJournalEntries / 2, BehindBytes: cfs.MaxJournalBytes / 2}}
	if h := f.statusDoc().Health; h.State != healthy {
		t.Errorf("%+v", h)
	}
	for _, c := range []struct {
		c    cfs.Consumer
		want string
	}{
		{cfs.Consumer{Name: "slow", Behind: cfs.MaxJournalEntries * 3 / 4}, "consumer slow of the journal is behind by 786432 changes (0 B), 75%"},
		{cfs.Consumer{Name: "fat", Behind: 1, BehindBytes: cfs.MaxJournalBytes}, "consumer fat of the journal is behind by 1 change (256.0 MiB), 100%"},
		{cfs.Consumer{Name: "gone", Lost: true}, "consumer gone of the journal is lost"},
	} {
		f.mu.Lock()
		f.consumers = []cfs.Consumer{c.c}
		f.mu.Unlock()
		if h := f.statusDoc().Health; h.State != degraded || len(h.Problems) != 1 || !strings.Contains(h.Problems[0], c.want) {
			t.Errorf("%+v, want %q", h, c.want)
		}
	}
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		if op == wire.OpQuery {
			return cfs.Errorf("query", cfs.Corrupt, "broken")
		}
		return nil
	}
	if h := f.statusDoc().Health; h.State != degraded || !strings.Contains(strings.Join(h.Problems, "\n"), "who reads the journal is not known") {
		t.Errorf("%+v", h)
	}
}
