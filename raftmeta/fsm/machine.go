package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// The machine's bounds. They are part of the replicated behaviour: changing one
// needs a new feature level.
const (
	// MaxOutstanding bounds the replies that a session keeps: a sequence must be
	// less than this above the low-water mark.
	MaxOutstanding = 4096
	// MaxOps bounds the operations of a command.
	MaxOps = 256
	// MaxSessions bounds the open sessions.
	MaxSessions = 65536
	// MaxInlineBytes bounds the bytes in inline extents of the whole namespace.
	MaxInlineBytes = 1 << 30
	// MaxReplaced bounds the extent rows that a command replaces; above it is TooBig.
	MaxReplaced = 4 * cfs.MaxCommandExtents
	// MaxFeed bounds the rows of the delete feed; the oldest go first.
	MaxFeed = 1 << 20
	// reapAtOnce is the number of extent rows, and of extended attributes, that a
	// deletion removes itself before it leaves the rest to OpReap.
	reapAtOnce = 64
)

// Machine applies commands, for one goroutine. It holds no state of its own: that is all
// in the KV.
type Machine struct {
	DropReplies bool // a fault, for tests of the tests: retries are carried out again

	t tx // of the last command, for its memory
}

// Bootstrap makes the root directory and the cluster's id in an empty state; it
// does nothing to a state that has them.
func Bootstrap(kv KV, clusterID string, stampNS int64) error {
	t := &tx{kv: kv, now: stampNS}
	if _, ok := t.get(markKey(markCluster)); ok || t.err != nil {
		return t.err
	}
	t.set(markKey(markCluster), []byte(clusterID))
	root := &inode{parent: cfs.RootIno}
	root.Attr = cfs.Attr{Ino: cfs.RootIno, Mode: cfs.ModeDir | 0o755, Nlink: 2, Size: cfs.BlockSize,
		AtimeNS: stampNS, MtimeNS: stampNS, CtimeNS: stampNS, BtimeNS: stampNS}
	t.putInode(root)
	t.setMark(markNextIno, cfs.RootIno.Counter()+1)
	t.setMark(markNextSession, 1)
	t.setMark(markNextPG, 1)
	t.setMark(markFeedFirst, 1)
	t.setMark(markFeedNext, 1)
	t.setMark(markInodes, 1)
	return t.commit(kv)
}

// AppliedIndex is the log index of the last entry that the state contains.
func AppliedIndex(r Reader) (uint64, error) {
	t := &tx{kv: r}
	return t.mark(markApplied), t.err
}

// SetApplied records an entry that carries no command.
func SetApplied(kv KV, index uint64) error {
	return kv.Set(markKey(markApplied), binary.LittleEndian.AppendUint64(nil, index))
}

// Apply carries out the command of the log entry at index, whose leader stamped
// it with stampNS, and records the index in the same batch. The reply says how
// the command went; an error means that the state or the KV is broken and that
// the replica must stop.
func (m *Machine) Apply(kv KV, index uint64, stampNS int64, cmd *cfs.Command) (*cfs.Reply, error) {
	t := m.begin(kv)
	t.index, t.sess, t.cred = index, cmd.Session, cmd.Cred
	t.now = max(stampNS, int64(t.mark(markStamp)))
	base := func() {
		t.setMark(markApplied, index)
		t.setMark(markStamp, uint64(t.now))
	}
	var sess *session
	if cmd.Session != 0 {
		var done *cfs.Reply
		if sess, done = t.admit(cmd); done != nil || t.err != nil {
			base()
			return finish(t, kv, done)
		}
	}
	t.beginNotes()
	reply := &cfs.Reply{Index: index}
	reply.Kind, reply.Failed = t.run(cmd, reply)
	if reply.Kind != cfs.KindOK {
		t.over.reset() // nothing of a failed command remains
		reply.Results = nil
	}
	if sess != nil {
		t.settle(cmd, sess, reply)
		if m.DropReplies {
			t.del(replyKey(cmd.Session, cmd.Seq))
		}
	}
	base()
	return finish(t, kv, reply)
}

// begin is a tx in the memory of the one before.
func (m *Machine) begin(kv KV) *tx {
	t := &m.t
	*t = tx{kv: kv, over: t.over, rec: t.rec, key: t.key}
	t.over.reset()
	return t
}

func finish(t *tx, kv KV, r *cfs.Reply) (*cfs.Reply, error) {
	if t.err != nil {
		return nil, t.err
	}
	return r, t.commit(kv)
}

// admit finds the command's session. It returns a reply for a command that must
// not be executed: a retry, or one of a session or sequence that has passed.
func (t *tx) admit(cmd *cfs.Command) (*session, *cfs.Reply) {
	refuse := func(k cfs.Kind) *cfs.Reply { return &cfs.Reply{Kind: k, Index: t.index} }
	sess, ok := load(t, sessionKey(cmd.Session), decodeSession)
	switch {
	case t.err != nil:
		return nil, nil
	case !ok:
		return nil, refuse(cfs.NoSession)
	case cmd.Seq < sess.lowWater || cmd.Seq == 0:
		return nil, refuse(cfs.Replayed)
	case cmd.Seq-sess.lowWaterAfter(cmd) >= MaxOutstanding:
		return nil, refuse(cfs.Overloaded)
	}
	if cmd.Seq > sess.highest {
		return sess, nil
	}
	if r, ok := load(t, replyKey(cmd.Session, cmd.Seq), decodeReply); ok {
		return sess, r
	}
	return sess, nil
}

// lowWaterAfter is the low-water mark that an admitted command leaves: what it
// says, but never above its own reply.
func (s *session) lowWaterAfter(cmd *cfs.Command) uint64 {
	return max(s.lowWater, min(cmd.LowWater, cmd.Seq))
}

// settle records the reply and the session's new marks.
func (t *tx) settle(cmd *cfs.Command, sess *session, reply *cfs.Reply) {
	t.set(replyKey(cmd.Session, cmd.Seq), t.encode().reply(reply))
	low := sess.lowWaterAfter(cmd)
	floor := max(sess.floor, cmd.Floor)
	if low == sess.lowWater && floor == sess.floor && cmd.Seq <= sess.highest {
		return
	}
	// Not every sequence has a reply; deleting what is not there costs less than looking.
	for seq := sess.lowWater; seq < min(low, sess.lowWater+MaxOutstanding); seq++ {
		t.del(replyKey(cmd.Session, seq))
	}
	raised := floor > sess.floor
	sess.lowWater, sess.floor, sess.highest = low, floor, max(sess.highest, cmd.Seq)
	t.set(sessionKey(cmd.Session), t.encode().session(sess))
	if raised && !t.freeBelow(cmd.Session, floor) {
		t.set(endedKey(cmd.Session), []byte{recordVersion})
	}
}

// run executes the operations in order and stops at the first that fails.
func (t *tx) run(cmd *cfs.Command, reply *cfs.Reply) (cfs.Kind, uint16) {
	if len(cmd.Ops) > MaxOps {
		return cfs.TooBig, 0
	}
	reply.Results = make([]cfs.Result, len(cmd.Ops))
	now := t.now
	for i := range cmd.Ops {
		// When the owner of what it changes has done it is the owner's to say, as with the times of a file that it owns.
		if _, fenced := Fenced(&cmd.Ops[i]); fenced && cmd.Ops[i].AtNS > 0 {
			t.now = cmd.Ops[i].AtNS
		}
		k := t.op(&cmd.Ops[i], &reply.Results[i])
		if t.now = now; k != cfs.KindOK {
			return k, uint16(i)
		}
		t.journal(&cmd.Ops[i], &reply.Results[i])
	}
	t.boundJournal()
	return cfs.KindOK, 0
}

// carriers carry out the operations of this version.
var carriers = [...]func(t *tx, op *cfs.Op, res *cfs.Result) cfs.Kind{
	cfs.OpCreate:        (*tx).create,
	cfs.OpLink:          (*tx).link,
	cfs.OpUnlink:        (*tx).unlink,
	cfs.OpRmdir:         (*tx).rmdir,
	cfs.OpRename:        (*tx).rename,
	cfs.OpSetAttr:       (*tx).setAttr,
	cfs.OpSetXattr:      (*tx).setXattr,
	cfs.OpRemoveXattr:   (*tx).removeXattr,
	cfs.OpWrite:         (*tx).write,
	cfs.OpSwap:          (*tx).swap,
	cfs.OpRelease:       func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.release(op.Ino, t.sess) },
	cfs.OpReap:          func(t *tx, _ *cfs.Op, _ *cfs.Result) cfs.Kind { return t.reap() },
	cfs.OpOpenSession:   (*tx).openSession,
	cfs.OpExpireSession: func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.expireSession(op.Sess) },
	cfs.OpSetNode:       func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.setNode(&op.Node) },
	cfs.OpSetDevice:     func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.setDevice(&op.Device) },
	cfs.OpSetGroups:     func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.setGroups(op) },
	cfs.OpFeedDone:      func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.feedDone(op.Device.ID, op.Device.FeedPos) },
	cfs.OpFillDone:      func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.fillDone(op) },
	cfs.OpDropGroups:    func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.dropGroups(op.Groups) },
	cfs.OpSurrender:     (*tx).surrender,
	cfs.OpSetReplica:    func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.setReplica(op) },
	cfs.OpRemoveNode:    func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.removeNode(op.Node.ID) },
	cfs.OpSetJob:        func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.setJob(op.Job) },
	cfs.OpSetConsumer:   func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.setConsumer(op.Name, op.Index) },
	cfs.OpDropConsumer:  func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.dropConsumer(op.Name) },
	cfs.OpLock:          (*tx).setLock,
	cfs.OpSetCA:         func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.setCA(&op.CA, op.Enrolled) },
	cfs.OpAddToken:      func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.addToken(&op.Token) },
	cfs.OpUseToken:      func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.useToken(&op.Token, op.Enrolled) },
	cfs.OpGrantInos:     (*tx).grantInos,
	cfs.OpRevoke:        func(t *tx, op *cfs.Op, _ *cfs.Result) cfs.Kind { return t.revoke(op.Name) },
}

func (t *tx) op(op *cfs.Op, res *cfs.Result) cfs.Kind {
	// An unknown operation halts before anything else is said of it: a newer replica would carry it out.
	if int(op.Kind) >= len(carriers) || carriers[op.Kind] == nil {
		t.fail(cfs.Errorf("apply", cfs.BadRequest, "operation %d at index %d is of a newer version", op.Kind, t.index))
		return cfs.BadRequest
	}
	if op.Kind.OfLeader() != (t.sess == 0) {
		return cfs.Permission
	}
	if k := t.fenced(op); k != cfs.KindOK {
		return k
	}
	return carriers[op.Kind](t, op, res)
}

func (t *tx) openSession(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if t.mark(markSessions) >= MaxSessions {
		return cfs.Overloaded
	}
	id := cfs.SessionID(t.mark(markNextSession))
	t.setMark(markNextSession, uint64(id)+1)
	t.addMark(markSessions, 1)
	name := op.Name[:min(len(op.Name), cfs.MaxName)]
	t.set(sessionKey(id), encodeSession(&session{floor: 1, lowWater: 1, openedNS: t.now, name: name}))
	res.Session = id
	return cfs.KindOK
}

// Session is an open session as queries see it.
type Session struct {
	ID   cfs.SessionID
	Name string
}

// Sessions lists the open sessions by id.
func Sessions(r Reader) ([]Session, error) {
	var out []Session
	t := &tx{kv: r}
	t.scan([]byte{prefixSession}, []byte{prefixSession + 1}, func(k, v []byte) bool {
		s, ok := decodeSession(v)
		if !ok || len(k) != 9 {
			t.corrupt(k)
			return false
		}
		out = append(out, Session{cfs.SessionID(binary.BigEndian.Uint64(k[1:])), s.name})
		return true
	})
	return out, t.err
}
