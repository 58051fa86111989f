package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	pb "go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
)

// Recovered is what a log held when it was opened.
type Recovered struct {
	HardState *pb.HardState // nil when none was written
	Mark      *Mark         // nil when none was written
	Entries   []*pb.Entry   // contiguous, from Mark.Index+1
}

// Open opens the log in dir, or makes an empty one there, and reads it back.
// Damage below the torn tail is cfs.Corrupt with file and offset; a log of
// another cluster is cfs.WrongCluster, one of another node cfs.Conflict.
func Open(dir string, opt Options) (*Log, *Recovered, error) {
	if opt.SegmentBytes == 0 {
		opt.SegmentBytes = DefaultSegmentBytes
	}
	if opt.SegmentBytes < MinSegmentBytes || len(opt.ClusterID) > maxClusterID {
		return nil, nil, cfs.Errorf("open raft log "+dir, cfs.Usage, "segments of %d bytes, cluster id of %d", opt.SegmentBytes, len(opt.ClusterID))
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = durable.SyncDir(filepath.Dir(dir)) // dir itself may be new
	}
	if err != nil {
		return nil, nil, cfs.E("open raft log "+dir, cfs.KindOf(err), err)
	}
	seqs, err := listSegments(dir)
	if err != nil {
		return nil, nil, cfs.E("open raft log "+dir, cfs.KindOf(err), err)
	}
	l := &Log{dir: dir, opt: opt}
	if len(seqs) == 0 {
		if err := l.begin(1, 0); err != nil {
			return nil, nil, cfs.E("create raft log "+dir, cfs.KindOf(err), err)
		}
		return l, &Recovered{}, nil
	}
	var r replay
	for i, seq := range seqs {
		if i > 0 && seq != seqs[i-1]+1 {
			return nil, nil, cfs.Errorf("open raft log "+dir, cfs.Corrupt, "segment %s is missing", segName(seqs[i-1]+1))
		}
		if err := l.readSegment(seq, i == len(seqs)-1, &r); err != nil {
			return nil, nil, err
		}
	}
	if err := r.check(dir); err != nil {
		return nil, nil, err
	}
	if err := l.reopen(); err != nil {
		return nil, nil, cfs.E("open raft log "+l.last().path, cfs.KindOf(err), err)
	}
	l.hs, l.mark = r.HardState, r.Mark
	return l, &r.Recovered, nil
}

// listSegments returns the sequences in dir, ascending, and removes what an
// interrupted preparation left.
func listSegments(dir string) ([]uint64, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var seqs []uint64
	for _, n := range names {
		if seq, ok := parseSegName(n.Name()); ok {
			seqs = append(seqs, seq)
		} else if n.Name() == spareName || n.Name() == spareName+".tmp" {
			if err := os.Remove(filepath.Join(dir, n.Name())); err != nil {
				return nil, err
			}
		}
	}
	sort.Slice(seqs, func(i, j int) bool { return seqs[i] < seqs[j] })
	return seqs, nil
}

// readSegment replays one segment. Only the last may end without its closing record.
func (l *Log) readSegment(seq uint64, isLast bool, r *replay) error {
	path := filepath.Join(l.dir, segName(seq))
	b, err := os.ReadFile(path)
	if err != nil {
		return cfs.E("read raft log "+path, cfs.KindOf(err), err)
	}
	p, cluster, node, err := decodeSegHeader(path, b)
	if err != nil {
		return err
	}
	switch {
	case cluster != l.opt.ClusterID:
		return cfs.Errorf("open raft log "+path, cfs.WrongCluster, "it belongs to cluster %q, this server to %q", cluster, l.opt.ClusterID)
	case node != l.opt.NodeID:
		return cfs.Errorf("open raft log "+path, cfs.Conflict, "it belongs to node %d, this server is node %d", node, l.opt.NodeID)
	case p.seq != seq:
		return cfs.Errorf("read raft log "+path+" at offset 0", cfs.Corrupt, "header of segment %d", p.seq)
	}
	s := &segment{place: p, path: path, bytes: int64(len(b))}
	l.segs = append(l.segs, s)
	off := segHeaderBytes
	for {
		rec, ok := p.decode(b, off)
		if !ok {
			break
		}
		if rec.kind == recEnd {
			if isLast {
				// The next segment was never made: the crash came in between.
				l.off, l.remnant = off, true
			}
			return nil
		}
		if err := r.add(rec, s); err != nil {
			return cfs.Errorf(fmt.Sprintf("read raft log %s at offset %d", path, off), cfs.Corrupt, "%w", err)
		}
		off = rec.next
	}
	if !isLast {
		return cfs.Errorf(fmt.Sprintf("read raft log %s at offset %d", path, off), cfs.Corrupt, "no valid record, and a later segment exists")
	}
	if later, ok := p.laterRecord(b, off); ok {
		return cfs.Errorf(fmt.Sprintf("read raft log %s at offset %d", path, off), cfs.Corrupt,
			"no valid record, and the one at offset %d was written when this was durable", later)
	}
	l.off, l.remnant = off, !allZero(b[off:])
	return nil
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// laterRecord looks behind a bad record at off for one that was written when
// off was already durable: then off is damaged, not torn.
func (p *place) laterRecord(seg []byte, off int) (at int, ok bool) {
	for at = off + recAlign; at < len(seg); at += recAlign {
		if rec, ok := p.decode(seg, at); ok && rec.durable > uint64(off) {
			return at, true
		}
	}
	return 0, false
}

// reopen makes the last segment ready for writing at the tail. What lies behind
// the tail is wiped, so that no remnant of a torn append ever lines up with a
// record written later.
func (l *Log) reopen() error {
	s := l.last()
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for off := int64(l.off); l.remnant && off < s.bytes && err == nil; off += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), s.bytes-off)], off)
	}
	if err == nil {
		err = unix.Fdatasync(int(f.Fd()))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.durable, l.remnant = f, l.off, false
	return nil
}

// replay gathers the records of a log in order.
type replay struct{ Recovered }

func (r *replay) add(rec record, s *segment) (err error) {
	switch rec.kind {
	case recHardState:
		r.HardState, err = decodeHardState(rec.body)
		return err
	case recMark:
		m, err := decodeMark(rec.body)
		if err == nil {
			r.addMark(m)
		}
		return err
	case recEntry:
		e, err := decodeEntry(rec.body)
		if err == nil {
			s.maxIndex = max(s.maxIndex, e.GetIndex())
			r.addEntry(e)
		}
		return err
	}
	return fmt.Errorf("record of type %d", rec.kind)
}

// addMark keeps what follows the mark if the log agrees with it, and nothing if
// a snapshot replaced the log.
func (r *replay) addMark(m *Mark) {
	r.Mark = m
	if len(r.Entries) == 0 {
		return
	}
	first := r.Entries[0].GetIndex()
	switch i := m.Index - first; {
	case m.Index+1 <= first:
		// The mark that a segment repeats at its start.
	case i < uint64(len(r.Entries)) && r.Entries[i].GetTerm() == m.Term:
		r.Entries = r.Entries[i+1:]
	default:
		r.Entries = nil
	}
}

// addEntry appends e; an entry that exists already is replaced, with all that
// follow it. A gap starts the log anew: check finds out whether the mark covers it.
func (r *replay) addEntry(e *pb.Entry) {
	if r.Mark != nil && e.GetIndex() <= r.Mark.Index {
		return
	}
	if len(r.Entries) > 0 {
		first, next := r.Entries[0].GetIndex(), r.Entries[0].GetIndex()+uint64(len(r.Entries))
		switch i := e.GetIndex(); {
		case i < first || i > next:
			r.Entries = nil
		case i < next:
			r.Entries = r.Entries[:i-first]
		}
	}
	r.Entries = append(r.Entries, e)
}

func (r *replay) check(dir string) error {
	start := uint64(0)
	if r.Mark != nil {
		start = r.Mark.Index
	}
	if len(r.Entries) > 0 && r.Entries[0].GetIndex() != start+1 {
		return cfs.Errorf("read raft log "+dir, cfs.Corrupt, "entries start at %d, the log's mark is at %d", r.Entries[0].GetIndex(), start)
	}
	return nil
}
