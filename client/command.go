package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Times of a request to the leader.
const (
	// metaAttempt bounds one attempt: a leader that is paused is left for another.
	metaAttempt = 2 * time.Second
	minBackoff  = 5 * time.Millisecond
	maxBackoff  = 200 * time.Millisecond
	// complainAfter is when an operation that waits for the cluster is logged.
	complainAfter = 5 * time.Second
	complainEvery = 30 * time.Second
)

// do carries out operations as one command, exactly once, and returns their
// results. A refusal is an Error of the reply's kind.
func (c *Client) do(ctx context.Context, cred cfs.Cred, ops ...cfs.Op) ([]cfs.Result, error) {
	for {
		s := c.session.Load()
		res, unsure, err := c.doIn(ctx, s, cred, ops)
		if errors.Is(err, cfs.NoSession) && !unsure && c.session.Load() != s {
			continue // it was never carried out: do it in the new session
		}
		return res, err
	}
}

// doIn carries out a command in a session, and replaces the session when it is
// gone. unsure says that an attempt before the last may have been carried out too.
func (c *Client) doIn(ctx context.Context, s *session, cred cfs.Cred, ops []cfs.Op) (res []cfs.Result, unsure bool, err error) {
	select {
	case c.commands <- struct{}{}:
	case <-ctx.Done():
		return nil, false, ctxError(opName(ops, 0), ctx)
	}
	defer func() { <-c.commands }()
	seq, err := s.seqs.takeWithin(ctx, maxOutstanding)
	if err != nil {
		return nil, false, err
	}
	defer s.seqs.settle(seq)
	cmd := &cfs.Command{Session: s.id, Seq: seq, LowWater: s.seqs.lowest(), Floor: s.stripes.lowest(), Cred: cred, Ops: ops}
	s.sent.Store(time.Now().UnixNano())
	reply, unsure, err := c.send(ctx, cmd)
	if err == nil && reply.Kind == cfs.NoSession {
		err = c.sessionLost(ctx, s)
	}
	if err != nil {
		return nil, unsure, err
	}
	if reply.Kind != cfs.NoSession { // a refused command raises the floor too
		s.floorTold(cmd.Floor)
	}
	if reply.Kind != cfs.KindOK {
		return nil, unsure, cfs.E(opName(ops, int(reply.Failed)), reply.Kind, nil)
	}
	return reply.Results, unsure, nil
}

func (c *Client) send(ctx context.Context, cmd *cfs.Command) (reply *cfs.Reply, unsure bool, err error) {
	var pb wirepb.Reply
	unsure, err = c.toLeader(ctx, wire.OpCommand, wire.CommandToPB(cmd), &pb)
	if err != nil {
		return nil, unsure, err
	}
	reply, err = wire.ReplyFromPB(&pb)
	if err == nil && reply.Kind == cfs.KindOK && len(reply.Results) != len(cmd.Ops) {
		err = cfs.Errorf("command", cfs.BadRequest, "%d results for %d operations", len(reply.Results), len(cmd.Ops))
	}
	if err == nil && int(reply.Failed) >= max(len(cmd.Ops), 1) {
		err = cfs.Errorf("command", cfs.BadRequest, "operation %d of %d failed", reply.Failed, len(cmd.Ops))
	}
	return reply, unsure, err
}

// ask answers a query at the leader. A refusal is an Error of the answer's kind;
// the answer is returned with it.
func (c *Client) ask(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	var pb wirepb.Answer
	if _, err := c.toLeader(ctx, wire.OpQuery, wire.QueryToPB(q), &pb); err != nil {
		return nil, err
	}
	a, err := wire.AnswerFromPB(&pb)
	if err != nil {
		return nil, err
	}
	if a.Kind != cfs.KindOK {
		return a, cfs.E("query", a.Kind, nil)
	}
	return a, nil
}

// toLeader sends a request to the leader, wherever it is, until one answers.
// It gives up when ctx or the client ends, after Config.OpTimeout, and on errors
// that another attempt cannot mend. unsure says that an attempt whose outcome is
// unknown came before.
func (c *Client) toLeader(ctx context.Context, op wire.Op, req, resp proto.Message) (unsure bool, err error) {
	if c.cfg.OpTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.OpTimeout)
		defer cancel()
	}
	start := time.Now()
	followed := false
	backoff := minBackoff
	for {
		addr := *c.leader.Load()
		attempt, cancel := context.WithTimeout(ctx, metaAttempt)
		_, err := c.meta.Call(attempt, addr, op, req, nil, resp, nil)
		cancel()
		if err == nil {
			if time.Since(start) > complainAfter {
				c.relieved()
			}
			return unsure, nil
		}
		switch cfs.KindOf(err) {
		case cfs.NotLeader:
			unsure = true // one that has just ceased to lead may have passed it on
			// At once, but not twice: two that name each other lead nowhere.
			if followed = c.follow(addr, err) && !followed; followed {
				continue
			}
		case cfs.Unavailable, cfs.Timeout, cfs.Overloaded, cfs.Closed, cfs.Canceled:
			unsure = true
			c.rotate(addr)
		default:
			return unsure, err
		}
		if time.Since(start) > complainAfter {
			c.complain("waiting for the cluster", err)
		}
		select {
		case <-ctx.Done():
			return unsure, cfs.E(op.String(), ctxKind(ctx), err)
		case <-c.ctx.Done():
			return unsure, cfs.E(op.String(), cfs.Closed, err)
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// complain logs what operations wait for, once for all that wait.
func (c *Client) complain(what string, err error) {
	if now := time.Now(); now.Sub(time.Unix(0, c.complained.Load())) > complainEvery {
		c.complained.Store(now.UnixNano())
		c.log.Warn(what, "err", err)
	}
}

// relieved logs that what was complained of is over.
func (c *Client) relieved() {
	if c.complained.Swap(0) != 0 {
		c.log.Info("the cluster answers again")
	}
}

// follow takes the leader that a voter names; false when it names none or itself.
func (c *Client) follow(addr string, err error) bool {
	var re *wire.RemoteError
	if errors.As(err, &re) && re.Leader != "" && re.Leader != addr {
		c.leader.Store(&re.Leader)
		return true
	}
	c.rotate(addr)
	return false
}

// rotate moves from a server that does not answer to the next of those known.
func (c *Client) rotate(addr string) {
	if *c.leader.Load() != addr {
		return // somebody has moved already
	}
	all := append([]string(nil), c.cfg.Servers...)
	for _, a := range c.layout.get().addrs {
		known := false
		for _, b := range all {
			known = known || a == b
		}
		if !known {
			all = append(all, a)
		}
	}
	next := all[0]
	for i, a := range all {
		if a == addr {
			next = all[(i+1)%len(all)]
		}
	}
	c.leader.Store(&next)
}

func ctxKind(ctx context.Context) cfs.Kind {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return cfs.Timeout
	}
	return cfs.Canceled
}

func ctxError(op string, ctx context.Context) error { return cfs.E(op, ctxKind(ctx), ctx.Err()) }

var opNames = map[cfs.OpKind]string{
	cfs.OpCreate: "create", cfs.OpLink: "link", cfs.OpUnlink: "unlink", cfs.OpRmdir: "rmdir", cfs.OpRename: "rename",
	cfs.OpSetAttr: "set attributes", cfs.OpSetXattr: "set xattr", cfs.OpRemoveXattr: "remove xattr",
	cfs.OpWrite: "commit extents", cfs.OpSwap: "swap extents", cfs.OpRelease: "release",
	cfs.OpLock: "lock",
}

// opName is what a command does that meets a failure at operation i.
func opName(ops []cfs.Op, i int) string {
	if len(ops) == 0 {
		return "raise floor"
	}
	return opNames[ops[i].Kind]
}
