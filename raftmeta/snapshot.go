package raftmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/raftmeta/wal"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// pieceBytes bounds a piece of a snapshot: pairs and the CRC32C (4 bytes,
	// little-endian) of them at the end. It is what a storage node's payload buffers hold.
	pieceBytes   = cfs.MaxShardSize
	pieceTimeout = 10 * time.Second
	// installTimeout bounds the last piece, with which the receiver makes the state durable.
	installTimeout = 2 * time.Minute
	// resumeTimeout bounds how long a broken stream waits for its receiver, asking every resumePause.
	// It goes on where it broke; a receiver that has been started anew gets the state from its beginning.
	resumeTimeout = 30 * time.Second
	resumePause   = 100 * time.Millisecond
)

// present describes the state as it is now, for Raft.
func (l *loop) present() *pb.Snapshot {
	term, err := l.storage.Term(l.applied)
	if err != nil {
		panic(raftPanic("no term of the applied index: " + err.Error()))
	}
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{ConfState: l.conf, Index: new(l.applied), Term: new(term)}}
}

// sendSnapshot streams the present state to a voter, with Raft's message for it
// at the end. The state may be a little newer than what Raft asked to send,
// which the message then says.
func (l *loop) sendSnapshot(p *peer, m *pb.Message) {
	m = proto.Clone(m).(*pb.Message)
	m.Snapshot = l.present()
	index, term := m.Snapshot.Metadata.GetIndex(), m.Snapshot.Metadata.GetTerm()
	st := &l.n.state
	st.mu.RLock() // until the stream ends: a replaced store may not be read
	view, ctx := st.store.View(), l.streams
	l.n.background.Go(func() {
		start := time.Now()
		s := &stream{n: l.n, addr: p.addr, ctx: ctx, head: wirepb.Snapshot{Index: index, Term: term}}
		err := errors.Join(s.run(view, m), view.Close())
		st.mu.RUnlock()
		outcome, label := raft.SnapshotFinish, "sent"
		if err != nil {
			outcome, label = raft.SnapshotFailure, "send_failed"
		}
		l.n.metrics.snapshots.WithLabelValues(label).Inc()
		l.n.log.Info("snapshot sent", "to", p.id, "index", index, "pieces", s.head.Piece, "took", time.Since(start), "err", err)
		l.do(func() error {
			l.raft.ReportSnapshot(uint64(p.id), outcome)
			return nil
		})
	})
}

// stream is a snapshot on its way out.
type stream struct {
	n    *Node
	addr string
	ctx  context.Context
	head wirepb.Snapshot
	buf  []byte
}

func (s *stream) run(view kv.View, m *pb.Message) error {
	err := view.Scan(nil, nil, func(k, v []byte) (bool, error) {
		if len(s.buf)+len(k)+len(v)+12 > pieceBytes {
			if err := s.flush(pieceTimeout); err != nil {
				return false, err
			}
		}
		s.buf = kv.AppendPair(s.buf, k, v)
		return true, nil
	})
	if err != nil {
		return err
	}
	if s.head.Message, err = proto.Marshal(m); err != nil {
		return err
	}
	s.head.Last, s.head.Addr = true, s.n.ownAddr()
	return s.flush(installTimeout)
}

func (s *stream) flush(timeout time.Duration) error {
	s.buf = binary.LittleEndian.AppendUint32(s.buf, crc32.Checksum(s.buf, crc32.MakeTable(crc32.Castagnoli)))
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	_, err := s.n.cfg.Pool.Call(ctx, s.addr, wire.OpSnapshot, &s.head, [][]byte{s.buf}, nil, nil)
	for begun := time.Now(); err != nil && s.resumable(err) && time.Since(begun) < resumeTimeout; {
		sleepOr(s.ctx, resumePause)
		s.n.metrics.snapshots.WithLabelValues("resumed").Inc()
		err = s.again(timeout)
	}
	s.buf = s.buf[:0]
	s.head.Piece++
	return err
}

// resumable reports that a piece may be sent again: the connection broke, or the answer is
// late. The state that the stream reads is pinned for as long, and the receiver knows
// which piece it had last.
func (s *stream) resumable(err error) bool {
	switch cfs.KindOf(err) {
	case cfs.Unavailable, cfs.Timeout, cfs.Closed, cfs.IO:
		return s.ctx.Err() == nil && !s.head.Last
	}
	return false
}

// again sends a piece once more.
func (s *stream) again(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	_, err := s.n.cfg.Pool.Call(ctx, s.addr, wire.OpSnapshot, &s.head, [][]byte{s.buf}, nil, nil)
	return err
}

// incoming is the snapshot that this node is receiving: one at a time.
type incoming struct {
	inMu sync.Mutex
	in   *arrived
}

// arrived is a received state, or a part of it.
type arrived struct {
	from  cfs.NodeID
	index uint64
	term  uint64
	next  uint64 // piece
	dir   string
	name  string
	store kv.Store
	taken atomic.Bool // by the loop, or back from it when it ended first
	done  chan bool   // room for one: installed or not needed
}

func (a *arrived) remove() error {
	return errors.Join(a.store.Close(), os.RemoveAll(filepath.Join(a.dir, a.name)))
}

// discard drops what has been received so far.
func (i *incoming) discard() error {
	i.inMu.Lock()
	defer i.inMu.Unlock()
	return i.drop()
}

func (i *incoming) drop() error {
	a := i.in
	i.in = nil
	if a == nil {
		return nil
	}
	return a.remove()
}

// serveSnapshot takes a piece. After the last one it answers when the state has
// been installed, or found not to be needed.
func (n *Node) serveSnapshot(ctx context.Context, r *wire.Request) error {
	const op = "receive snapshot"
	var req wirepb.Snapshot
	if err := r.Decode(&req); err != nil {
		return err
	}
	if r.Peer == nil || r.Peer.NodeID == 0 {
		return cfs.Errorf(op, cfs.BadRequest, "from no server")
	}
	n.inMu.Lock()
	defer n.inMu.Unlock()
	if n.stopping() {
		return n.unavailable(op)
	}
	if n.disk.full.Load() {
		return errors.Join(cfs.Errorf(op, cfs.NoSpace, "the disk of node %d is full", n.cfg.NodeID), n.drop())
	}
	if a := n.in; a != nil && !req.Last && a.from == r.Peer.NodeID && a.index == req.Index && a.term == req.Term && a.next == req.Piece+1 {
		return nil // its answer was lost
	}
	if req.Piece == 0 {
		if err := n.receiveFirst(r.Peer.NodeID, &req); err != nil {
			return cfs.E(op, cfs.KindOf(err), err)
		}
	}
	a := n.in
	if a == nil || a.from != r.Peer.NodeID || a.index != req.Index || a.term != req.Term || a.next != req.Piece {
		return cfs.Errorf(op, cfs.Conflict, "piece %d of index %d does not follow what has been received", req.Piece, req.Index)
	}
	var payload []byte
	if r.Payload != nil {
		payload = r.Payload.Bytes()
	}
	err := a.add(payload)
	if err == nil && req.Last {
		return n.receiveLast(ctx, a, &req, r.Peer)
	}
	if err != nil {
		return errors.Join(cfs.E(op, cfs.KindOf(err), err), n.drop())
	}
	return nil
}

func (n *Node) stopping() bool {
	select {
	case <-n.stop:
		return true
	case <-n.done:
		return true
	default:
		return false
	}
}

// receiveFirst begins a new state directory; what an earlier sender left is dropped.
func (n *Node) receiveFirst(from cfs.NodeID, req *wirepb.Snapshot) error {
	if err := n.drop(); err != nil {
		return err
	}
	name, err := nextKV(n.cfg.Dir)
	if err != nil {
		return err
	}
	store, err := kv.OpenPebble(filepath.Join(n.cfg.Dir, name), kv.Options{CacheBytes: n.cfg.CacheBytes, Logger: n.log})
	if err != nil {
		return err
	}
	n.in = &arrived{from: from, index: req.Index, term: req.Term, dir: n.cfg.Dir, name: name, store: store, done: make(chan bool, 1)}
	return nil
}

// add writes the pairs of a piece.
func (a *arrived) add(payload []byte) error {
	n := len(payload) - 4
	if n < 0 || binary.LittleEndian.Uint32(payload[n:]) != crc32.Checksum(payload[:n], crc32.MakeTable(crc32.Castagnoli)) {
		return cfs.Errorf("read piece", cfs.Corrupt, "piece %d: checksum does not match", a.next)
	}
	a.next++
	b := a.store.NewBatch()
	err := kv.EachPair(payload[:n], b.Set)
	if err == nil {
		err = b.Commit()
	}
	return errors.Join(err, b.Close())
}

// receiveLast makes the state durable and lets Raft decide about it.
func (n *Node) receiveLast(ctx context.Context, a *arrived, req *wirepb.Snapshot, from *wire.Peer) error {
	const op = "install snapshot"
	m := &pb.Message{}
	err := proto.Unmarshal(req.Message, m)
	if err != nil {
		err = cfs.E(op, cfs.BadRequest, err)
	} else {
		err = n.checkMessage(m, from, true)
	}
	if err == nil {
		err = a.check(m.GetSnapshot().GetMetadata())
	}
	if err == nil {
		err = a.store.Flush()
	}
	if err == nil {
		err = durable.SyncDir(n.cfg.Dir)
	}
	if err != nil {
		return errors.Join(cfs.E(op, cfs.KindOf(err), err), n.drop())
	}
	n.in = nil // the loop's from here
	n.noteAddr(from.NodeID, req.Addr, m.GetTerm())
	n.loop.do(func() error { return n.loop.offer(a, m) })
	select {
	case <-a.done:
		return nil
	case <-n.done:
		if a.taken.CompareAndSwap(false, true) {
			return errors.Join(n.unavailable(op), a.remove())
		}
		return n.unavailable(op)
	case <-ctx.Done():
		return cfs.E(op, contextKind(ctx), ctx.Err())
	}
}

// check compares the received state with what its message says of it.
func (a *arrived) check(m *pb.SnapshotMetadata) error {
	v := a.store.View()
	got, err := fsm.AppliedIndex(v)
	if err = errors.Join(err, v.Close()); err != nil {
		return err
	}
	if got != a.index || m.GetIndex() != a.index || m.GetTerm() != a.term || len(m.GetConfState().GetVoters()) == 0 {
		return cfs.Errorf("check snapshot", cfs.Corrupt, "state at index %d, its message says %d, its pieces %d", got, m.GetIndex(), a.index)
	}
	return nil
}

// offer shows Raft the message of a received state. If Raft wants it, the next
// Ready has it; unclaimed then finds out.
func (l *loop) offer(a *arrived, m *pb.Message) error {
	if !a.taken.CompareAndSwap(false, true) {
		return nil
	}
	if l.arrived != nil { // Raft may want that one: its Ready is still to come
		l.discard(a)
		return nil
	}
	l.arrived = a
	l.step(m)
	return nil
}

// unclaimed removes a received state that Raft did not want.
func (l *loop) unclaimed() {
	if a := l.arrived; a != nil {
		l.arrived = nil
		l.discard(a)
	}
}

// discard removes a received state and tells its sender.
func (l *loop) discard(a *arrived) {
	l.n.metrics.snapshots.WithLabelValues("discarded").Inc()
	if err := a.remove(); err != nil {
		l.n.log.Warn("received snapshot not removed", "dir", a.name, "err", err)
	}
	a.done <- false
}

// install puts a received state in the place of the present one: first the
// pointer, then the log's record of it. A crash in between is completed by the
// next start (finishInstall).
func (l *loop) install(snap *pb.Snapshot) error {
	a, meta := l.arrived, snap.GetMetadata()
	if a == nil || meta.GetIndex() != a.index || meta.GetTerm() != a.term {
		return cfs.Errorf("install snapshot", cfs.Corrupt, "raft asks for index %d, which was not received", meta.GetIndex())
	}
	l.arrived = nil
	n := l.n
	l.streams, l.endStreams = renew(l.endStreams)
	if err := writeCurrent(n.cfg.Dir, &current{kv: a.name, index: a.index, term: a.term, conf: meta.GetConfState()}); err != nil {
		return err
	}
	if err := l.saveHardState(false); err != nil {
		return err
	}
	if err := l.wal.Truncate(&wal.Mark{Index: a.index, Term: a.term, Conf: meta.GetConfState()}); err != nil {
		return err
	}
	if err := l.storage.ApplySnapshot(snap); err != nil {
		return err
	}
	old := n.state.name
	if err := n.state.replace(a.store, a.name); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(n.cfg.Dir, old)); err != nil {
		return cfs.E("install snapshot", cfs.KindOf(err), err)
	}
	l.conf, l.applied, l.compacted, l.logBytes = meta.GetConfState(), a.index, a.index, 0
	l.publishIndexes()
	if err := n.state.view(func(v kv.View) error { return n.loadMap(v) }); err != nil {
		return err
	}
	l.followRoster()
	n.metrics.snapshots.WithLabelValues("installed").Inc()
	n.log.Info("snapshot installed", "index", a.index, "term", a.term)
	a.done <- true
	return nil
}

// renew ends the streams of a store that goes away.
func renew(end context.CancelFunc) (context.Context, context.CancelFunc) {
	if end != nil {
		end()
	}
	return context.WithCancel(context.Background())
}
