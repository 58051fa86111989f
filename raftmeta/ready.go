package raftmeta

import (
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
)

// ready does what Raft asks for, in the order that keeps its promises: a leader's
// entries may travel while it syncs them itself, since it counts itself only
// after Advance; whatever a follower says, a vote or an acknowledgement, is
// durable before it is said.
func (l *loop) ready() error {
	rd := l.raft.Ready()
	if rd.SoftState != nil {
		l.softState(rd.SoftState)
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		l.hard, l.hardDirty = rd.HardState, true
		l.n.metrics.term.Set(float64(rd.HardState.GetTerm()))
		if now := l.n.lead.Load(); now.term != rd.HardState.GetTerm() {
			l.n.lead.Store(&leadership{leader: now.leader, mine: now.mine, term: rd.HardState.GetTerm()})
		}
	}
	if len(rd.Entries) > 0 {
		l.n.indexes.end.Store(rd.Entries[len(rd.Entries)-1].GetIndex())
	}
	if l.mine {
		l.send(rd.Messages)
	}
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := l.install(rd.Snapshot); err != nil {
			return err
		}
	}
	if err := l.save(&rd); err != nil {
		return err
	}
	if !l.mine {
		l.send(rd.Messages)
	}
	if err := l.apply(rd.CommittedEntries); err != nil {
		return err
	}
	for _, rs := range rd.ReadStates {
		l.round.confirmed(rs, l.applied)
	}
	l.raft.Advance(rd)
	return nil
}

// save makes the new entries and the hard state durable. A commit index alone
// is not worth a write: it goes with the next one, and until then Raft finds
// it out again.
func (l *loop) save(rd *raft.Ready) error {
	if rd.MustSync {
		var hs *pb.HardState
		if l.hardDirty {
			hs = l.hard
		}
		if err := l.wal.Append(hs, nil, rd.Entries, true); err != nil {
			return err
		}
		l.hardDirty = false
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		if err := l.storage.SetHardState(rd.HardState); err != nil {
			return err
		}
	}
	return l.storage.Append(rd.Entries)
}

// saveHardState writes the hard state if the log lacks it.
func (l *loop) saveHardState(sync bool) error {
	if !l.hardDirty {
		return nil
	}
	l.hardDirty = false
	return l.wal.Append(l.hard, nil, nil, sync)
}

// answer is a waiter and what it gets once the batch is in the store.
type answer struct {
	p     *proposal
	reply *cfs.Reply
	index uint64
}

// apply carries out committed entries as one batch of the state, then answers.
func (l *loop) apply(entries []*pb.Entry) error {
	for len(entries) > 0 && entries[0].GetIndex() <= l.applied {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		return nil
	}
	start := time.Now()
	b := l.n.state.store.NewBatch()
	var eff effects
	l.answers = l.answers[:0]
	err := l.applyTo(b, entries, start, &eff)
	if err == nil {
		err = b.Commit()
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return err
	}
	l.applied = entries[len(entries)-1].GetIndex()
	l.publishIndexes()
	l.n.metrics.apply.Observe(time.Since(start).Seconds())
	if err := l.publish(&eff); err != nil {
		return err
	}
	l.n.bell.ring()
	for _, a := range l.answers {
		a.p.answer(l.n, a.reply, a.index)
	}
	clear(l.answers)
	l.round.release(l.applied)
	return nil
}

// effects are what a batch of entries changed that others want to know.
type effects struct {
	mapChanged bool
	members    bool // the membership is another
	ownTerm    bool // an entry of the term that this node leads
	removed    bool // this node is no member any more
	sessions   []sessionChange
	locks      []cfs.Ino // whose locks changed
}

type sessionChange struct {
	id    cfs.SessionID
	ended bool
}

func (l *loop) applyTo(b kv.Batch, entries []*pb.Entry, now time.Time, eff *effects) error {
	term := l.hard.GetTerm()
	for _, e := range entries {
		i := e.GetIndex()
		l.logBytes += int64(len(e.GetData()))
		if l.mine && e.GetTerm() == term {
			eff.ownTerm = true
		}
		if e.GetType() == pb.EntryConfChangeV2 {
			if err := l.applyChange(b, e, eff); err != nil {
				return fatal(i, err)
			}
			continue
		}
		if e.GetType() != pb.EntryNormal {
			return fatal(i, cfs.Errorf("decode log entry", cfs.Unsupported, "entry of type %s, which this program does not know", e.GetType()))
		}
		if len(e.GetData()) == 0 { // a new leader's first
			if err := fsm.SetApplied(b, i); err != nil {
				return fatal(i, err)
			}
			continue
		}
		ent, err := decodeEntry(e.GetData())
		if err != nil {
			return fatal(i, err)
		}
		var p *proposal
		var cmd *cfs.Command
		if ent.node == l.n.cfg.NodeID {
			p = l.pending[ent.token]
		}
		if p != nil {
			delete(l.pending, ent.token)
			cmd = p.cmd
			l.n.metrics.repl.Observe(now.Sub(p.proposed).Seconds())
		} else if cmd, err = ent.command(); err != nil {
			return fatal(i, err)
		}
		reply, err := l.machine.Apply(b, i, ent.stampNS, cmd)
		if err != nil {
			if p != nil {
				p.fail(l.n, cfs.Errorf("command", cfs.Unavailable, "the state is broken"))
			}
			return fatal(i, err)
		}
		eff.note(cmd, reply)
		if p != nil {
			l.answers = append(l.answers, answer{p, reply, i})
		}
	}
	return nil
}

// note gathers the effects of a command.
func (f *effects) note(cmd *cfs.Command, reply *cfs.Reply) {
	if reply.Kind != cfs.KindOK {
		return
	}
	if cmd.Session != 0 {
		for i := range cmd.Ops {
			if op := &cmd.Ops[i]; op.Kind == cfs.OpLock {
				f.locks = append(f.locks, op.Ino)
			}
		}
		return
	}
	for i := range cmd.Ops {
		switch op := &cmd.Ops[i]; op.Kind {
		case cfs.OpSetNode, cfs.OpRemoveNode, cfs.OpSetReplica, cfs.OpSetDevice, cfs.OpSetGroups, cfs.OpFillDone, cfs.OpDropGroups, cfs.OpSetJob,
			cfs.OpSetCA, cfs.OpUseToken, cfs.OpRevoke:
			f.mapChanged = true
		case cfs.OpOpenSession:
			f.sessions = append(f.sessions, sessionChange{id: reply.Results[i].Session})
		case cfs.OpExpireSession:
			f.sessions = append(f.sessions, sessionChange{id: op.Sess, ended: true})
		}
	}
}

// publish tells the rest of the node, before the answers go out.
func (l *loop) publish(eff *effects) error {
	if eff.mapChanged {
		if err := l.n.state.view(func(v kv.View) error { return l.n.loadMap(v) }); err != nil {
			return err
		}
		l.followRoster()
	}
	if eff.members { // who remains may be alone, and has nobody to learn from that it is committed
		if err := l.saveHardState(true); err != nil {
			return err
		}
	}
	if eff.removed {
		return ErrRemoved
	}
	if eff.ownTerm && !l.caughtUp {
		l.caughtUp = true
		return l.beginDuties()
	}
	if d := l.n.duties.Load(); d != nil {
		d.noteSessions(eff.sessions)
		d.waits.changed(eff.locks, slices.ContainsFunc(eff.sessions, func(c sessionChange) bool { return c.ended }))
		if eff.mapChanged {
			d.wake()
		}
	}
	return nil
}
