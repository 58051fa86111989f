package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/planted"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/wal"
)

// loop is what the loop goroutine owns; only its channels are for others.
type loop struct {
	n       *Node
	raft    *raft.RawNode
	storage *storage
	wal     *wal.Log
	machine fsm.Machine

	messages  chan *pb.Message
	proposals chan *proposal
	reads     chan *read
	control   chan func() error // run by the loop; an error ends it
	late      chan *peer        // whose held message has waited long enough

	hard      *pb.HardState // as Raft last said
	hardDirty bool          // the log does not have it yet
	conf      *pb.ConfState
	applied   uint64
	compacted uint64 // the log starts after it
	logBytes  int64  // of entries' data above it
	flushing  bool   // a compaction is on its way
	mine      bool   // this node leads
	caughtUp  bool   // and has applied an entry of its own term

	gathered []*proposal          // to be proposed
	pending  map[uint64]*proposal // by token, in the log
	told     map[cfs.NodeID]told  // addresses by their messages
	round    readRounds
	arrived  *arrived // the snapshot whose message Raft is looking at
	// streams ends the snapshots that are being sent.
	streams    context.Context
	endStreams context.CancelFunc
	answers    []answer // scratch of apply
}

func newLoop(n *Node, log *wal.Log) *loop {
	l := &loop{
		n: n, wal: log,
		messages:  make(chan *pb.Message, maxMessages),
		proposals: make(chan *proposal, n.cfg.MaxProposals),
		reads:     make(chan *read, maxReads),
		control:   make(chan func() error, maxControl),
		late:      make(chan *peer, fsm.MaxMembers),
		pending:   map[uint64]*proposal{},
		told:      map[cfs.NodeID]told{},
		machine:   fsm.Machine{DropReplies: planted.Is(planted.DroppedReply)},
	}
	l.streams, l.endStreams = renew(nil)
	return l
}

func (l *loop) newRaft() (err error) {
	op := "start raft in " + l.n.cfg.Dir
	defer func() {
		if p, ok := recover().(raftPanic); ok {
			err = cfs.Errorf(op, cfs.Corrupt, "%s", string(p))
		}
	}()
	l.raft, err = raft.NewRawNode(&raft.Config{
		ID:                        uint64(l.n.cfg.NodeID),
		ElectionTick:              electionTicks,
		HeartbeatTick:             heartbeatTicks,
		Storage:                   l.storage,
		Applied:                   l.applied,
		MaxSizePerMsg:             maxMsgBytes,
		MaxCommittedSizePerReady:  maxCommittedBytes,
		MaxUncommittedEntriesSize: maxUncommittedBytes,
		MaxInflightMsgs:           maxInflightMsgs,
		MaxInflightBytes:          maxInflightBytes,
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{l.n.log.With("node", l.n.cfg.NodeID)},
	})
	if err != nil {
		return cfs.E(op, cfs.Corrupt, err)
	}
	if l.n.alone() && l.n.standing.admitted.Load() { // there is nobody to hear from first
		err = l.raft.Campaign()
	}
	return err
}

// start begins the loop.
func (n *Node) start() {
	n.loop.followRoster()
	n.background.Go(n.stand)
	n.background.Go(n.watchDisk)
	go n.loop.run()
}

// do runs fn in the loop; false when the loop has ended.
func (l *loop) do(fn func() error) bool {
	select {
	case l.control <- fn:
		return true
	case <-l.n.done:
		return false
	}
}

func (l *loop) run() {
	err := l.serve()
	switch {
	case errors.Is(err, ErrRemoved):
		l.n.failure.Store(&err)
		l.n.log.Info("the cluster has removed this replica", "node", l.n.cfg.NodeID)
	case err != nil:
		l.n.failure.Store(&err)
		l.n.log.Error("metadata service has stopped", "node", l.n.cfg.NodeID, "err", err)
	}
	l.endDuties()
	l.endStreams()
	l.unclaimed()
	l.n.lead.Store(&leadership{term: l.hard.GetTerm()})
	l.n.metrics.isLeader.Set(0)
	close(l.n.done)
	l.failAll(l.n.unavailable("command"))
}

// serve takes in what has gathered, and deals with what comes of it, until Close
// (nil) or a failure.
func (l *loop) serve() (err error) {
	defer func() {
		if p := recover(); p != nil {
			msg, ok := p.(raftPanic)
			if !ok {
				panic(p)
			}
			err = cfs.Errorf("raft", cfs.Corrupt, "%s", string(msg))
		}
	}()
	tick := time.NewTicker(l.n.cfg.TickInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.n.stop:
			return nil
		case <-tick.C:
			if !l.quiet() {
				l.raft.Tick()
			}
		case m := <-l.messages:
			l.step(m)
		case p := <-l.proposals:
			l.gathered = append(l.gathered, p)
		case r := <-l.reads:
			l.round.waiting = append(l.round.waiting, r)
		case p := <-l.late:
			l.flush(p, true)
		case fn := <-l.control:
			if err := fn(); err != nil {
				return err
			}
		}
		if err := l.drain(); err != nil {
			return err
		}
		if err := l.settle(); err != nil {
			return err
		}
	}
}

// drain takes what else is there already, each input at most its bound.
func (l *loop) drain() error {
	for range maxMessages {
		select {
		case m := <-l.messages:
			l.step(m)
		case p := <-l.proposals:
			l.gathered = append(l.gathered, p)
		case r := <-l.reads:
			l.round.waiting = append(l.round.waiting, r)
		case fn := <-l.control:
			if err := fn(); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// settle proposes and asks what was gathered and handles Raft's output to the end.
func (l *loop) settle() error {
	l.propose()
	l.startRound()
	for l.raft.HasReady() {
		if err := l.ready(); err != nil {
			return err
		}
		l.startRound()
	}
	l.unclaimed()
	return l.maybeCompact()
}

// step gives Raft a message. What it refuses (a stale response, mostly) is lost,
// as any message may be.
func (l *loop) step(m *pb.Message) {
	if l.quiet() {
		return
	}
	if err := l.raft.Step(m); err != nil {
		l.n.log.Debug("raft refuses a message", "type", m.GetType(), "from", m.GetFrom(), "err", err)
	}
}

// softState follows a change of leadership.
func (l *loop) softState(s *raft.SoftState) {
	mine := s.RaftState == raft.StateLeader
	term := l.raft.BasicStatus().GetTerm()
	l.n.lead.Store(&leadership{leader: leaderID(s.Lead), mine: mine, term: term})
	if mine == l.mine {
		return
	}
	l.mine, l.caughtUp = mine, false
	if mine {
		l.n.metrics.isLeader.Set(1)
		l.n.log.Info("this node leads", "node", l.n.cfg.NodeID, "term", term)
		return
	}
	l.n.metrics.isLeader.Set(0)
	l.n.log.Info("this node no longer leads", "node", l.n.cfg.NodeID, "term", term, "leader", s.Lead)
	l.endDuties()
	l.failAll(l.n.notLeader("command"))
}

func leaderID(id uint64) cfs.NodeID {
	if id > math.MaxUint16 {
		return 0
	}
	return cfs.NodeID(id)
}

// failAll fails every command and query that waits. A command may still commit:
// the client retries it under the same sequence.
func (l *loop) failAll(err error) {
	for token, p := range l.pending {
		delete(l.pending, token)
		p.fail(l.n, err)
	}
	for _, p := range l.gathered {
		p.fail(l.n, err)
	}
	l.gathered = nil
	l.round.fail(err)
}

// transfer hands leadership to the voter that has most of the log.
func (l *loop) transfer() error {
	best, match := uint64(0), uint64(0)
	for id, p := range l.raft.Status().Progress {
		if id != uint64(l.n.cfg.NodeID) && !p.IsLearner && p.RecentActive && p.Match >= match {
			best, match = id, p.Match
		}
	}
	if best != 0 {
		l.raft.TransferLeader(best)
	}
	return nil
}

// fatal describes an entry that this replica cannot apply.
func fatal(index uint64, err error) error {
	return cfs.E(fmt.Sprintf("apply log entry %d", index), cfs.KindOf(err), err)
}
