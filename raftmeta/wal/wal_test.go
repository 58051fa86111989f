package wal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
)

var options = Options{ClusterID: "test", NodeID: 1, SegmentBytes: MinSegmentBytes}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) (*Log, *Recovered) {
	t.Helper()
	l, r, err := Open(dir, options)
	must(t, err)
	return l, r
}

func ent(index, term uint64, data string) *pb.Entry {
	e := &pb.Entry{Index: new(index), Term: new(term), Type: pb.EntryNormal.Enum()}
	if data != "" {
		e.Data = []byte(data)
	}
	return e
}

func hard(term, vote, commit uint64) *pb.HardState {
	return &pb.HardState{Term: new(term), Vote: new(vote), Commit: new(commit)}
}

func mark(index, term uint64) *Mark {
	return &Mark{Index: index, Term: term, Conf: &pb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{9}, AutoLeave: new(true)}}
}

// describe is a recovered log in one line.
func describe(r *Recovered) string {
	s := "no hard state"
	if r.HardState != nil {
		s = fmt.Sprintf("hard %d/%d/%d", r.HardState.GetTerm(), r.HardState.GetVote(), r.HardState.GetCommit())
	}
	if r.Mark != nil {
		s += fmt.Sprintf(" mark %d/%d", r.Mark.Index, r.Mark.Term)
	}
	for _, e := range r.Entries {
		s += fmt.Sprintf(" %d/%d:%s", e.GetIndex(), e.GetTerm(), e.GetData())
	}
	return s
}

func expect(t *testing.T, dir, want string) {
	t.Helper()
	l, r := open(t, dir)
	if got := describe(r); got != want {
		t.Errorf("recovered %q, want %q", got, want)
	}
	must(t, l.Close())
}

func TestAppendRecover(t *testing.T) {
	dir := t.TempDir()
	l, r := open(t, dir)
	if got := describe(r); got != "no hard state" {
		t.Errorf("new log: %q", got)
	}
	must(t, l.Append(hard(1, 2, 0), mark(0, 0), []*pb.Entry{ent(1, 1, ""), ent(2, 1, "b")}, true))
	must(t, l.Append(nil, nil, []*pb.Entry{ent(3, 1, "c")}, true))
	must(t, l.Append(hard(1, 2, 3), nil, nil, false))
	must(t, l.Close())
	expect(t, dir, "hard 1/2/3 mark 0/0 1/1: 2/1:b 3/1:c")
	l, r = open(t, dir)
	if !proto.Equal(r.Mark.Conf, mark(0, 0).Conf) {
		t.Errorf("membership %v", r.Mark.Conf)
	}
	// A new leader replaces the end.
	must(t, l.Append(hard(2, 3, 2), nil, []*pb.Entry{ent(2, 2, "B")}, true))
	must(t, l.Close())
	expect(t, dir, "hard 2/3/2 mark 0/0 1/1: 2/2:B")
	if err := l.Append(nil, nil, nil, true); !errors.Is(err, cfs.Closed) {
		t.Errorf("append after close: %v", err)
	}
}

func TestMarks(t *testing.T) {
	for _, c := range []struct {
		name string
		mark *Mark
		want string
	}{
		{"compaction keeps the rest", mark(2, 1), "no hard state mark 2/1 3/2:c 4/2:d"},
		{"compaction of all", mark(4, 2), "no hard state mark 4/2"},
		{"snapshot ahead", mark(9, 3), "no hard state mark 9/3"},
		{"snapshot of another history", mark(3, 3), "no hard state mark 3/3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			l, _ := open(t, dir)
			must(t, l.Append(nil, mark(0, 0), []*pb.Entry{ent(1, 1, "a"), ent(2, 1, "b"), ent(3, 2, "c"), ent(4, 2, "d")}, true))
			must(t, l.Append(nil, c.mark, nil, true))
			must(t, l.Close())
			expect(t, dir, c.want)
			l, _ = open(t, dir)
			next := c.mark.Index + 1
			must(t, l.Append(nil, nil, []*pb.Entry{ent(next, 4, "x")}, true))
			must(t, l.Close())
			l, r := open(t, dir)
			must(t, l.Close())
			if last := r.Entries[len(r.Entries)-1]; last.GetIndex() != next || string(last.GetData()) != "x" {
				t.Errorf("appended %d, recovered %q", next, describe(r))
			}
		})
	}
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+segSuffix))
	must(t, err)
	return names
}

func TestRolloverAndTruncate(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	must(t, l.Append(hard(1, 1, 0), mark(0, 0), nil, true))
	data := strings.Repeat("x", 700)
	for i := uint64(1); i <= 100; i++ {
		must(t, l.Append(nil, nil, []*pb.Entry{ent(i, 1, data)}, i%3 == 0))
	}
	before := len(segments(t, dir))
	if before < 15 {
		t.Fatalf("%d segments", before)
	}
	must(t, l.Truncate(mark(50, 1)))
	if after := len(segments(t, dir)); after >= before-8 || l.SizeBytes() != int64(after)*MinSegmentBytes {
		t.Errorf("%d segments of %d left, %d bytes", after, before, l.SizeBytes())
	}
	for i := uint64(101); i <= 160; i++ { // over recycled segments
		must(t, l.Append(nil, nil, []*pb.Entry{ent(i, 1, data)}, true))
	}
	must(t, l.Truncate(mark(150, 1)))
	must(t, l.Close())
	l, r := open(t, dir)
	if r.Mark.Index != 150 || len(r.Entries) != 10 || r.HardState.GetVote() != 1 {
		t.Errorf("recovered %.80q with %d entries", describe(r), len(r.Entries))
	}
	must(t, l.Truncate(mark(160, 1)))
	must(t, l.Close())
	expect(t, dir, "hard 1/1/0 mark 160/1")
}

func TestEntryLargerThanSegment(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	big := strings.Repeat("y", 5*MinSegmentBytes)
	must(t, l.Append(nil, nil, []*pb.Entry{ent(1, 1, "a"), ent(2, 1, big), ent(3, 1, "c")}, true))
	must(t, l.Close())
	l, r := open(t, dir)
	must(t, l.Close())
	if len(r.Entries) != 3 || string(r.Entries[1].GetData()) != big {
		t.Errorf("%d entries", len(r.Entries))
	}
}

// copyDir gives each case a log of its own.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "log")
	must(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// prepared is a log of three appends, the offsets where each begins and where the last ends.
func prepared(t testing.TB) (dir string, starts [4]int) {
	dir = t.TempDir()
	l, _ := open(t, dir)
	must(t, l.Append(hard(1, 1, 0), mark(0, 0), nil, true))
	for i := range 3 {
		starts[i] = l.off
		must(t, l.Append(hard(1, 1, uint64(i)), nil, []*pb.Entry{ent(uint64(2*i+1), 1, "first"), ent(uint64(2*i+2), 1, "second")}, true))
	}
	starts[3] = l.off
	must(t, l.Close())
	return dir, starts
}

// A crash in the last append leaves any part of it; all that was synced before
// stays, and the log can be written again.
func TestTornTailAtEveryByte(t *testing.T) {
	dir, starts := prepared(t)
	path := segments(t, dir)[0]
	whole, err := os.ReadFile(path)
	must(t, err)
	for cut := starts[2]; cut < starts[3]; cut++ {
		torn := bytes.Clone(whole)
		clear(torn[cut:])
		must(t, os.WriteFile(path, torn, 0o600))
		l, r, err := Open(dir, options)
		if err != nil {
			t.Fatalf("torn at %d: %v", cut, err)
		}
		if n := len(r.Entries); n < 4 || n > 6 || r.HardState.GetCommit() < 1 {
			t.Fatalf("torn at %d: %q", cut, describe(r))
		}
		next := r.Entries[len(r.Entries)-1].GetIndex() + 1
		must(t, l.Append(nil, nil, []*pb.Entry{ent(next, 2, "again")}, true))
		must(t, l.Close())
		l, r, err = Open(dir, options)
		must(t, err)
		if last := r.Entries[len(r.Entries)-1]; last.GetIndex() != next {
			t.Fatalf("torn at %d, written again: %q", cut, describe(r))
		}
		must(t, l.Close())
	}
}

// Sectors of an append that was not synced reach the disk in any order: a hole
// in the last append is a torn tail though a whole record follows it, and what
// follows never comes back.
func TestTornInTheMiddleOfTheLastAppend(t *testing.T) {
	dir, starts := prepared(t)
	path := segments(t, dir)[0]
	whole, err := os.ReadFile(path)
	must(t, err)
	clear(whole[starts[2] : starts[2]+recHeaderBytes])
	must(t, os.WriteFile(path, whole, 0o600))
	l, r := open(t, dir)
	if len(r.Entries) != 4 {
		t.Errorf("recovered %q", describe(r))
	}
	// The same bytes as the lost record: the remnant of the second would line up.
	must(t, l.Append(hard(1, 1, 2), nil, nil, true))
	must(t, l.Close())
	l, r = open(t, dir)
	must(t, l.Close())
	if len(r.Entries) != 4 || r.HardState.GetCommit() != 2 {
		t.Errorf("a remnant came back: %q", describe(r))
	}
}

func TestFlippedBits(t *testing.T) {
	dir, starts := prepared(t)
	name := filepath.Base(segments(t, dir)[0])
	for off := segHeaderBytes; off < starts[2]; off++ {
		bad := copyDir(t, dir)
		path := filepath.Join(bad, name)
		raw, err := os.ReadFile(path)
		must(t, err)
		raw[off] ^= 1 << (off % 8)
		must(t, os.WriteFile(path, raw, 0o600))
		l, r, err := Open(bad, options)
		if err == nil {
			// Only padding is outside every checksum.
			if len(r.Entries) != 6 {
				t.Fatalf("bit flipped at %d: recovered %q", off, describe(r))
			}
			must(t, l.Close())
			continue
		}
		if !errors.Is(err, cfs.Corrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "offset") {
			t.Fatalf("bit flipped at %d: %v", off, err)
		}
	}
	for off := range segUsedBytes {
		bad := copyDir(t, dir)
		path := filepath.Join(bad, name)
		raw, err := os.ReadFile(path)
		must(t, err)
		raw[off] ^= 1
		must(t, os.WriteFile(path, raw, 0o600))
		if _, _, err := Open(bad, options); !errors.Is(err, cfs.Corrupt) || !strings.Contains(err.Error(), path) {
			t.Fatalf("bit flipped at %d of the header: %v", off, err)
		}
	}
}

func TestDamagedSealedSegment(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	for i := uint64(1); i <= 20; i++ {
		must(t, l.Append(nil, nil, []*pb.Entry{ent(i, 1, strings.Repeat("x", 1000))}, true))
	}
	must(t, l.Close())
	segs := segments(t, dir)
	bad := copyDir(t, dir)
	path := filepath.Join(bad, filepath.Base(segs[1]))
	must(t, os.Truncate(path, MinSegmentBytes-2000))
	if _, _, err := Open(bad, options); !errors.Is(err, cfs.Corrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("truncated segment: %v", err)
	}
	bad = copyDir(t, dir)
	must(t, os.Remove(filepath.Join(bad, filepath.Base(segs[1]))))
	if _, _, err := Open(bad, options); !errors.Is(err, cfs.Corrupt) || !strings.Contains(err.Error(), filepath.Base(segs[1])) {
		t.Errorf("missing segment: %v", err)
	}
	bad = copyDir(t, dir)
	must(t, os.Remove(filepath.Join(bad, filepath.Base(segs[0]))))
	if _, _, err := Open(bad, options); !errors.Is(err, cfs.Corrupt) {
		t.Errorf("missing first segment: %v", err)
	}
}

func TestCrashBetweenSealAndNextSegment(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	must(t, l.Append(hard(1, 1, 0), mark(0, 0), nil, true))
	var i uint64
	for len(segments(t, dir)) < 3 {
		i++
		must(t, l.Append(nil, nil, []*pb.Entry{ent(i, 1, strings.Repeat("x", 500))}, true))
	}
	must(t, l.Close())
	segs := segments(t, dir)
	must(t, os.Remove(segs[2])) // with the one entry that was in it
	l, r := open(t, dir)
	if len(r.Entries) != int(i-1) {
		t.Errorf("%d entries, want %d", len(r.Entries), i-1)
	}
	must(t, l.Append(nil, nil, []*pb.Entry{ent(i, 2, "again"), ent(i+1, 2, strings.Repeat("z", 3000))}, true))
	must(t, l.Close())
	l, r = open(t, dir)
	must(t, l.Close())
	if len(r.Entries) != int(i+1) || r.HardState.GetVote() != 1 {
		t.Errorf("%d entries, want %d", len(r.Entries), i+1)
	}
}

func TestWrongOwner(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	must(t, l.Close())
	o := options
	o.ClusterID = "other"
	if _, _, err := Open(dir, o); !errors.Is(err, cfs.WrongCluster) || !strings.Contains(err.Error(), `"test"`) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("another cluster: %v", err)
	}
	o = options
	o.NodeID = 2
	if _, _, err := Open(dir, o); !errors.Is(err, cfs.Conflict) {
		t.Errorf("another node: %v", err)
	}
}

func TestFailureIsFinal(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	defer l.Close()
	must(t, l.f.Close()) // as if the device had gone
	err := l.Append(hard(1, 1, 0), nil, nil, true)
	if err == nil {
		t.Fatal("append without a file succeeded")
	}
	if again := l.Append(hard(1, 1, 0), nil, nil, true); again != err {
		t.Errorf("then: %v", again)
	}
	if err := l.Truncate(mark(1, 1)); err == nil {
		t.Error("truncate succeeded")
	}
}

func TestAppendAllocates(t *testing.T) {
	o := options
	o.SegmentBytes = 4 << 20
	l, _, err := Open(t.TempDir(), o)
	must(t, err)
	defer l.Close()
	es := []*pb.Entry{ent(1, 1, strings.Repeat("x", 300)), ent(2, 1, strings.Repeat("y", 300))}
	hs := hard(1, 1, 1)
	must(t, l.Append(hs, nil, es, false))
	if n := testing.AllocsPerRun(100, func() {
		if err := l.Append(hs, nil, es, false); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations in an append", n)
	}
}

func FuzzRecord(f *testing.F) {
	p := &place{seq: 1, salt: 0x1122334455667788}
	for kind, body := range map[uint8][]byte{
		recHardState: appendHardState(nil, hard(1, 2, 3)),
		recEntry:     appendEntry(nil, ent(7, 8, "data")),
		recMark:      appendMark(nil, mark(5, 6)),
		recEnd:       nil,
	} {
		b := append(begin(nil), body...)
		f.Add(p.finish(b, 0, 0, kind, 4096))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, ok := p.decode(b, 0)
		if ok {
			again := p.finish(append(begin(nil), rec.body...), 0, 0, rec.kind, rec.durable)
			if n := recHeaderBytes + len(rec.body); !bytes.Equal(again[:12], b[:12]) || !bytes.Equal(again[16:n], b[16:n]) {
				t.Errorf("record %x encodes to %x", b[:n], again[:n])
			}
		}
		// Bodies come through the same decoders whatever the checksum says.
		var r replay
		for kind := uint8(1); kind < recTypeEnd; kind++ {
			r.add(record{kind: kind, body: b}, &segment{})
		}
		if e, err := decodeEntry(b); err == nil && !bytes.Equal(appendEntry(nil, e), b) {
			t.Errorf("entry %x encodes to %x", b, appendEntry(nil, e))
		}
		if m, err := decodeMark(b); err == nil && !bytes.Equal(appendMark(nil, m), b) {
			t.Errorf("mark %x encodes to %x", b, appendMark(nil, m))
		}
		decodeSegHeader("fuzz", b)
	})
}
