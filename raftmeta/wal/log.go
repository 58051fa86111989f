package wal

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// DefaultSegmentBytes is the size of a segment unless Options say otherwise.
const DefaultSegmentBytes = 64 << 20

// Options configure a Log.
type Options struct {
	ClusterID    string     // checked against the segments' (cfs.WrongCluster)
	NodeID       cfs.NodeID // checked too (cfs.Conflict)
	SegmentBytes int64      // 0: DefaultSegmentBytes
	Logger       *slog.Logger
	// OnSync is told how long each fdatasync of an append took; nil for nobody.
	OnSync func(time.Duration)
	// SyncDelay says how much longer each takes, for tests; nil: no longer.
	SyncDelay func() time.Duration
}

// Log is an open log. Its methods are for one goroutine.
type Log struct {
	dir  string
	opt  Options
	segs []*segment // oldest first; the last is written to
	f    *os.File   // of the last segment
	off  int        // where the next record goes
	// durable is the offset in the last segment below which all is synced.
	durable int
	remnant bool // while opening: bytes lie behind off that must be wiped
	buf     []byte
	hs      *pb.HardState // repeated at the start of each segment, as mark is
	mark    *Mark
	err     error      // the first failure
	spare   chan error // outcome of the file being prepared; nil while none is
	haveIt  bool       // the spare file is ready
}

func (l *Log) last() *segment { return l.segs[len(l.segs)-1] }

// Append writes a hard state, a mark and entries (each may be absent) as one
// write, made durable if sync says so. What an earlier call wrote without sync
// becomes durable with it. An error is final.
func (l *Log) Append(hs *pb.HardState, mark *Mark, entries []*pb.Entry, sync bool) error {
	if l.err != nil {
		return l.err
	}
	l.err = l.append(hs, mark, entries, sync)
	if l.err != nil {
		l.err = cfs.E("write raft log "+l.last().path, cfs.KindOf(l.err), l.err)
	}
	return l.err
}

func (l *Log) append(hs *pb.HardState, mark *Mark, entries []*pb.Entry, sync bool) error {
	l.buf = l.buf[:0]
	if hs != nil {
		l.hs = hs
		if err := l.putHardState(); err != nil {
			return err
		}
	}
	if mark != nil {
		l.mark = mark
		if err := l.putMark(); err != nil {
			return err
		}
	}
	for _, e := range entries {
		at, err := l.room(entryHeaderBytes + len(e.GetData()))
		if err != nil {
			return err
		}
		l.buf = appendEntry(begin(l.buf), e)
		l.put(at, recEntry)
		if s := l.last(); e.GetIndex() > s.maxIndex {
			s.maxIndex = e.GetIndex()
		}
	}
	if err := l.write(); err != nil {
		return err
	}
	if sync {
		return l.sync()
	}
	return nil
}

// recRoom is what a record with a body of n bytes takes, padding and the
// segment's closing record included.
func recRoom(n int) int { return 2*recHeaderBytes + n + recAlign }

// room makes room for a record with a body of n bytes, in a new segment if this
// one has none, and says where in the buffer the record goes.
func (l *Log) room(n int) (at int, err error) {
	if n > maxRecordBytes {
		return 0, cfs.Errorf("append a record", cfs.TooLarge, "%d bytes, at most %d", n, maxRecordBytes)
	}
	if int64(l.off+len(l.buf)+recRoom(n)) > l.last().bytes {
		err = l.roll(n)
	}
	return len(l.buf), err
}

// put completes the record that the buffer holds from at on.
func (l *Log) put(at int, kind uint8) {
	l.buf = l.last().finish(l.buf, at, l.off+at, kind, uint64(l.durable))
}

func (l *Log) putHardState() error {
	at, err := l.room(hardStateBytes)
	if err == nil {
		l.buf = appendHardState(begin(l.buf), l.hs)
		l.put(at, recHardState)
	}
	return err
}

func (l *Log) putMark() error {
	at, err := l.room(markBytes(l.mark))
	if err == nil {
		l.buf = appendMark(begin(l.buf), l.mark)
		l.put(at, recMark)
	}
	return err
}

func (l *Log) write() error {
	if len(l.buf) == 0 {
		return nil
	}
	_, err := l.f.WriteAt(l.buf, int64(l.off))
	l.off += len(l.buf)
	l.buf = l.buf[:0]
	if err == nil && l.spare == nil && !l.haveIt && int64(l.off) > l.last().bytes/2 {
		l.prepare()
	}
	return err
}

func (l *Log) sync() error {
	start := time.Now()
	if err := unix.Fdatasync(int(l.f.Fd())); err != nil {
		return err
	}
	if l.opt.SyncDelay != nil {
		time.Sleep(l.opt.SyncDelay())
	}
	if l.opt.OnSync != nil {
		l.opt.OnSync(time.Since(start))
	}
	l.durable = l.off
	return nil
}

// prepare makes the next segment's file beside the writing.
func (l *Log) prepare() {
	done := make(chan error, 1)
	path, n := filepath.Join(l.dir, spareName+".tmp"), l.opt.SegmentBytes
	go func() { done <- zeroFile(path, n) }()
	l.spare = done
}

// takeSpare waits for the prepared file, or makes one of at least n bytes, and
// returns its path.
func (l *Log) takeSpare(n int64) (string, error) {
	if l.spare == nil && !l.haveIt {
		l.prepare()
	}
	path := filepath.Join(l.dir, spareName)
	if l.spare != nil {
		err := <-l.spare
		l.spare = nil
		if err == nil {
			err = os.Rename(path+".tmp", path)
		}
		if err != nil {
			return "", err
		}
	}
	l.haveIt = false
	if n > l.opt.SegmentBytes {
		return path, zeroFile(path, n)
	}
	return path, nil
}

// roll seals the segment and begins the next, with room for a body of n bytes.
func (l *Log) roll(n int) error {
	at := len(l.buf)
	l.buf = begin(l.buf)
	l.put(at, recEnd)
	if err := l.write(); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	if err := l.f.Close(); err != nil {
		return err
	}
	return l.begin(l.last().seq+1, n)
}

// begin starts segment seq: its header, then what is known of the log's state,
// so that the segments before it can go.
func (l *Log) begin(seq uint64, n int) error {
	head := recRoom(hardStateBytes)
	if l.mark != nil {
		head += recRoom(markBytes(l.mark))
	}
	path, err := l.takeSpare(int64(segHeaderBytes + head + recRoom(n)))
	if err != nil {
		return err
	}
	s, f, err := newSegment(l.dir, path, seq, l.opt.ClusterID, l.opt.NodeID)
	if err != nil {
		return err
	}
	l.segs, l.f, l.off, l.durable = append(l.segs, s), f, segHeaderBytes, segHeaderBytes
	if l.hs != nil {
		if err := l.putHardState(); err != nil {
			return err
		}
	}
	if l.mark != nil {
		return l.putMark()
	}
	return nil
}

// Truncate forgets the entries up to mark.Index, which the state holds durably:
// the mark is made durable, with the hard state beside it, then whole segments go.
func (l *Log) Truncate(mark *Mark) error {
	if err := l.Append(l.hs, mark, nil, true); err != nil {
		return err
	}
	for len(l.segs) > 1 && l.segs[0].maxIndex <= mark.Index {
		s := l.segs[0]
		var err error
		if l.spare == nil && !l.haveIt && s.bytes == l.opt.SegmentBytes {
			err = os.Rename(s.path, filepath.Join(l.dir, spareName))
			l.haveIt = err == nil
		} else {
			err = os.Remove(s.path)
		}
		if err != nil {
			l.err = cfs.E("truncate raft log "+s.path, cfs.KindOf(err), err)
			return l.err
		}
		l.segs = l.segs[1:]
	}
	return nil
}

// SizeBytes is the size of the log's segment files.
func (l *Log) SizeBytes() int64 {
	var n int64
	for _, s := range l.segs {
		n += s.bytes
	}
	return n
}

// Close makes everything written durable, unless a failure came before, and
// closes the files.
func (l *Log) Close() error {
	var err error
	if l.spare != nil {
		err = <-l.spare
		l.spare = nil
	}
	if l.f == nil {
		return err
	}
	if l.err == nil {
		err = errors.Join(err, l.sync())
	}
	err = errors.Join(err, l.f.Close())
	l.f = nil
	if l.err == nil {
		l.err = cfs.E("write raft log", cfs.Closed, nil)
	}
	return err
}
