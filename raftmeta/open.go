package raftmeta

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/raftmeta/wal"
)

// Open starts the voter whose data is in cfg.Dir, or a new one in an empty
// directory. A directory in use is cfs.Busy, one of another cluster
// cfs.WrongCluster, one of another node cfs.Conflict, and one whose parts do
// not fit together cfs.Corrupt: nothing of it is trusted then.
func Open(cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, cfs.E("open "+cfg.Dir, cfs.KindOf(err), err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger, metrics: cfg.Metrics, lock: lock,
		stop: make(chan struct{}), done: make(chan struct{})}
	n.lead.Store(&leadership{})
	n.activity.began = time.Now()
	n.metrics.journal.node.Store(n)
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.release())
	}
	n.start()
	return n, nil
}

func (n *Node) open() error {
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return cfs.E("open "+n.cfg.Dir, cfs.KindOf(err), err)
	}
	// Tokens never repeat across restarts, or an old entry could answer a new waiter.
	n.tokens.Store(binary.LittleEndian.Uint64(seed[:]))
	cur, err := n.openState()
	if err != nil {
		return err
	}
	log, rec, err := wal.Open(filepath.Join(n.cfg.Dir, walName), wal.Options{
		ClusterID: n.cfg.ClusterID, NodeID: n.cfg.NodeID, SegmentBytes: n.cfg.SegmentBytes,
		Logger: n.log, OnSync: n.noteSync, SyncDelay: n.cfg.SyncDelay,
	})
	if err != nil {
		return err
	}
	n.loop = newLoop(n, log)
	n.standing.blank = rec.HardState.GetTerm() == 0
	if err := n.standing.open(n.cfg.Dir); err != nil {
		return err
	}
	if err := finishInstall(log, rec, cur); err != nil {
		return err
	}
	var applied uint64
	err = n.state.view(func(v kv.View) (err error) {
		if applied, err = fsm.AppliedIndex(v); err != nil {
			return err
		}
		return n.loadMap(v)
	})
	if err != nil {
		return cfs.E("open "+n.cfg.Dir, cfs.KindOf(err), err)
	}
	if got := n.Map().ClusterID; got != n.cfg.ClusterID {
		return cfs.Errorf("open "+n.cfg.Dir, cfs.WrongCluster, "it belongs to cluster %q, this server to %q", got, n.cfg.ClusterID)
	}
	return n.loop.restore(rec, applied)
}

// openState opens the state directory that CURRENT names, or makes the first one.
func (n *Node) openState() (*current, error) {
	dir := n.cfg.Dir
	cur, err := readCurrent(dir)
	if err != nil {
		return nil, err
	}
	if cur == nil {
		if _, err := os.Lstat(filepath.Join(dir, walName)); err == nil {
			return nil, cfs.Errorf("open "+dir, cfs.Corrupt, "there is a log but no %s: the state is lost", currentName)
		}
		if cur, err = n.bootstrap(); err != nil {
			return nil, err
		}
	}
	if err := removeOtherKVs(dir, cur.kv); err != nil {
		return nil, cfs.E("open "+dir, cfs.KindOf(err), err)
	}
	path := filepath.Join(dir, cur.kv)
	if _, err := os.Stat(path); err != nil {
		return nil, cfs.E("open state "+path, cfs.Corrupt, err)
	}
	store, err := kv.OpenPebble(path, kv.Options{CacheBytes: n.cfg.CacheBytes, Logger: n.log})
	if err != nil {
		return nil, err
	}
	n.state.store, n.state.name = store, cur.kv
	b := store.NewBatch()
	err = fsm.CountUsage(b)
	if err == nil {
		err = n.adoptMembers(b, cur)
	}
	if err == nil {
		err = b.Commit()
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return nil, cfs.E("open state "+path, cfs.KindOf(err), err)
	}
	return cur, nil
}

// bootstrap makes the state that every voter of the cluster starts with: the
// same on all of them, so without a time of its own.
func (n *Node) bootstrap() (*current, error) {
	dir := n.cfg.Dir
	if len(n.cfg.Seeds) > 0 && int(n.cfg.NodeID) > len(n.cfg.Seeds) {
		return nil, cfs.Errorf("open "+dir, cfs.Usage, "node %d is none of the %d seed nodes", n.cfg.NodeID, len(n.cfg.Seeds))
	}
	if err := removeOtherKVs(dir, ""); err != nil {
		return nil, cfs.E("bootstrap "+dir, cfs.KindOf(err), err)
	}
	c := &current{kv: kvName(1), conf: &pb.ConfState{}}
	founders := n.cfg.foundMembers()
	if len(founders) > 0 {
		c.index, c.conf = firstIndex, (&roster{members: founders}).conf()
	}
	store, err := kv.OpenPebble(filepath.Join(dir, c.kv), kv.Options{Logger: n.log})
	if err != nil {
		return nil, err
	}
	b := store.NewBatch()
	err = fsm.Bootstrap(b, n.cfg.ClusterID, 0)
	if err == nil {
		err = fsm.Found(b, c.index, founders)
	}
	if err == nil {
		err = b.Commit()
	}
	if err = errors.Join(err, b.Close()); err == nil {
		err = store.Flush()
	}
	if err = errors.Join(err, store.Close()); err == nil {
		err = durable.SyncDir(dir)
	}
	if err != nil {
		return nil, cfs.E("bootstrap "+dir, cfs.KindOf(err), err)
	}
	return c, writeCurrent(dir, c)
}

// finishInstall completes the log where a crash came between the switch to a
// snapshot's state and the log's record of it, and gives a new log its membership.
func finishInstall(log *wal.Log, rec *wal.Recovered, cur *current) error {
	if rec.Mark != nil && rec.Mark.Index >= cur.index {
		return nil
	}
	for _, e := range rec.Entries {
		if e.GetIndex() == cur.index && e.GetTerm() == cur.term {
			return nil
		}
	}
	if rec.Mark == nil && cur.index == 0 {
		rec.Mark = &wal.Mark{Conf: cur.conf}
		return log.Append(nil, rec.Mark, nil, true)
	}
	hs := &pb.HardState{Term: new(rec.HardState.GetTerm()), Vote: new(rec.HardState.GetVote()), Commit: new(cur.index)}
	if hs.GetTerm() < cur.term {
		hs.Term, hs.Vote = new(cur.term), new(uint64(0))
	}
	rec.HardState, rec.Entries = hs, nil
	rec.Mark = &wal.Mark{Index: cur.index, Term: cur.term, Conf: cur.conf}
	return log.Append(hs, rec.Mark, nil, true)
}

// restore gives Raft the log, and checks it against the state.
func (l *loop) restore(rec *wal.Recovered, applied uint64) error {
	dir := l.n.cfg.Dir
	last := rec.Mark.Index + uint64(len(rec.Entries))
	if applied < rec.Mark.Index {
		return cfs.Errorf("open "+dir, cfs.Corrupt, "the state ends at index %d, the log starts after %d", applied, rec.Mark.Index)
	}
	if applied > last {
		return cfs.Errorf("open "+dir, cfs.Corrupt, "the state is at index %d, the log ends at %d: it is lost", applied, last)
	}
	l.conf = l.n.roster.Load().conf()
	l.applied, l.compacted = applied, rec.Mark.Index
	l.n.indexes.last = last
	l.n.indexes.end.Store(last)
	if l.n.alone() && len(l.n.cfg.Known) == 0 {
		l.n.admit() // there is nobody to ask
	}
	l.hard = &pb.HardState{Term: new(rec.HardState.GetTerm()), Vote: new(rec.HardState.GetVote()),
		Commit: new(min(max(rec.HardState.GetCommit(), applied), last))}
	l.n.lead.Store(&leadership{term: l.hard.GetTerm()})
	ms := raft.NewMemoryStorage()
	err := ms.ApplySnapshot(&pb.Snapshot{Metadata: &pb.SnapshotMetadata{ConfState: l.conf, Index: new(rec.Mark.Index), Term: new(rec.Mark.Term)}})
	if err == nil && !raft.IsEmptyHardState(l.hard) {
		err = ms.SetHardState(l.hard)
	}
	if err == nil {
		err = ms.Append(rec.Entries)
	}
	if err != nil {
		return cfs.E("open "+dir, cfs.Corrupt, err)
	}
	for _, e := range rec.Entries[:applied-rec.Mark.Index] {
		l.logBytes += int64(len(e.GetData()))
	}
	l.publishIndexes()
	l.storage = &storage{MemoryStorage: ms, present: l.present}
	return l.newRaft()
}

// adoptMembers gives a state that was made before there were records of members those that
// its directory and the configuration name.
func (n *Node) adoptMembers(b kv.Batch, cur *current) error {
	members, err := fsm.ReadMembers(b)
	if err != nil || len(members) > 0 || len(cur.conf.GetVoters()) == 0 {
		return err
	}
	founders := n.cfg.foundMembers()
	if got, want := (&roster{members: founders}).conf().GetVoters(), slices.Sorted(slices.Values(cur.conf.GetVoters())); !slices.Equal(got, want) {
		return cfs.Errorf("members", cfs.Conflict, "the seed nodes are %v, and the directory's voters %v: give the seed nodes that the cluster was made with", got, want)
	}
	applied, err := fsm.AppliedIndex(b)
	if err != nil {
		return err
	}
	return fsm.Found(b, applied, founders)
}
