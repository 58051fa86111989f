package client

import (
	"context"
	"errors"
	"slices"
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
	// fenceAfter is how often the cluster is told that a command that was given up is done with.
	fenceAfter = 50 * time.Millisecond
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
	leave, err := c.enter(ctx, ops)
	if err != nil {
		return nil, false, err
	}
	defer func() { leave() }()
	var ch *change
	cmd, reply, unsure, err := c.issue(ctx, s, cred, ops, func() { ch = c.cache.begin(c.grantOf(s), ops, c.cachedName) })
	if err != nil {
		if ch != nil {
			c.fence(s, cmd.Seq, ch, leave)
			leave = func() {}
		}
		return nil, unsure, err
	}
	c.ended(ch, reply)
	if reply.Kind == cfs.NoSession {
		if err = c.sessionLost(ctx, s); err != nil {
			return nil, unsure, err
		}
	}
	if reply.Kind != cfs.KindOK {
		return nil, unsure, cfs.E(opName(ops, int(reply.Failed)), reply.Kind, nil)
	}
	return reply.Results, unsure, nil
}

// issue sends operations as the next command of a session until it is answered, or ctx ends. begun is called before it can take
// effect. unsure is that of doIn.
func (c *Client) issue(ctx context.Context, s *session, cred cfs.Cred, ops []cfs.Op, begun func()) (cmd *cfs.Command, reply *cfs.Reply, unsure bool, err error) {
	select {
	case c.commands <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, false, ctxError(opName(ops, 0), ctx)
	}
	defer func() { <-c.commands }()
	seq, err := s.seqs.takeWithin(ctx, maxOutstanding)
	if err != nil {
		return nil, nil, false, err
	}
	begun()
	cmd = &cfs.Command{Session: s.id, Seq: seq, LowWater: s.seqs.lowest(), Floor: s.stripes.lowest(), Cred: cred, Ops: ops}
	s.sent.Store(time.Now().UnixNano())
	reply, unsure, err = c.send(ctx, cmd)
	s.seqs.settle(seq)
	if err == nil && reply.Kind != cfs.NoSession { // a refused command raises the floor too
		s.floorTold(cmd.Floor)
		s.lowered(cmd.LowWater)
	}
	return cmd, reply, unsure, err
}

// ended takes note of what a command has changed.
func (c *Client) ended(ch *change, reply *cfs.Reply) {
	for i := range reply.Results { // the last first: all of one command are of one generation
		r := &reply.Results[len(reply.Results)-1-i]
		for _, a := range [...]*cfs.Attr{&r.Attr, &r.Dir, &r.NewDir} {
			if n := c.inodes.find(a.Ino); n != nil && a.Ino != 0 {
				n.observe(*a)
			}
		}
	}
	if ch.end(reply.Results, reply.Leased) {
		c.leases.forget()
	}
}

// fence ends a change of which it is not known whether it has taken effect: once a later command
// has told the cluster that its sequence is done with, it never will. Until then
// what it was to change is no answer from the cache, and nothing of it is left by leave.
func (c *Client) fence(s *session, seq uint64, ch *change, leave func()) {
	if c.ctx.Err() != nil || ch.empty() {
		leave()
		return
	}
	ch.doubt(1)
	c.wg.Go(func() {
		defer leave()
		for s.low.Load() <= seq && c.ctx.Err() == nil && c.session.Load() == s {
			sleep(c.ctx, fenceAfter)
			ctx, cancel := context.WithTimeout(c.ctx, metaAttempt)
			if _, _, err := c.doIn(ctx, s, cfs.Cred{}, nil); err != nil {
				c.log.Debug("a command that was given up is not fenced yet", "err", err)
			}
			cancel()
		}
		for _, i := range ch.inos {
			c.reread(i)
		}
		ch.doubt(-1)
		ch.void()
		if ch.blind {
			c.leases.forget()
		}
		c.above(func(o Observer) { // it may have taken effect after its caller was told otherwise
			for _, dir := range ch.dirs {
				o.ForgetNames(dir)
			}
			for _, i := range ch.inos {
				o.ForgetInode(i)
			}
		})
	})
}

// reread makes what is known of an inode as new as the cluster's state of now.
func (c *Client) reread(i cfs.Ino) {
	for c.ctx.Err() == nil {
		n := c.find(i)
		if n == nil {
			return
		}
		a, _, err := c.askLeased(c.ctx, &cfs.Query{Kind: cfs.QueryGetAttr, Ino: i})
		n.dropExtents()
		if err == nil {
			n.observe(a.Attr)
		}
		if err == nil || !again(err) {
			return
		}
		sleep(c.ctx, fenceAfter)
	}
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

// askLeased is ask for the leases of what the answer says, which is kept under the grant.
func (c *Client) askLeased(ctx context.Context, q *cfs.Query) (*cfs.Answer, grant, error) {
	asked := c.cache.seq.Load() // before the era: a recall counts in the era that it comes in
	st := c.leases.state.Load()
	q.Session, q.Epoch = st.session, st.epoch
	a, err := c.ask(ctx, q)
	return a, grant{st.era, asked}.leased(a != nil && a.Leased && st.epoch != 0), err
}

// ask answers a query at the leader. A refusal is an Error of the answer's kind;
// the answer is returned with it.
func (c *Client) ask(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	if err := c.await(ctx, q.Kind == cfs.QueryStatfs, q.Ino, q.Dir); err != nil {
		return nil, err
	}
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
// It gives up when ctx or the client ends, and on errors that another attempt cannot mend. One server's Denied is not everybody's: its clock may be wrong, or
// its certificate old; it counts when every known server has said so, one after the other. unsure says that
// an attempt whose outcome is unknown came before.
func (c *Client) toLeader(ctx context.Context, op wire.Op, req, resp proto.Message) (unsure bool, err error) {
	start := time.Now()
	followed := false
	backoff := minBackoff
	refused := refusals{}
	for {
		addr := *c.leader.Load()
		err := c.attempt(ctx, metaAttempt, op, req, resp)
		if err == nil {
			if time.Since(start) > complainAfter {
				c.relieved()
			}
			return unsure, nil
		}
		switch denied := cfs.KindOf(err) == cfs.Denied; {
		case denied && refused.note(addr) && !refused.all(c.servers()):
			continue // at once: another server may have nothing against this client
		case denied && refused.all(c.servers()) || !denied && !again(err):
			return unsure, err
		case !denied:
			clear(refused)
			unsure = true // one that has just ceased to lead may have passed it on
		}
		// At once where another leader is named, but not twice: two that name each other lead nowhere.
		if followed = cfs.KindOf(err) == cfs.NotLeader && named(addr, err) != nil && !followed; followed {
			continue
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

// refusals are the servers that have refused in a row.
type refusals map[string]bool

// note adds one, and reports that it is new.
func (r refusals) note(addr string) bool {
	known := r[addr]
	r[addr] = true
	return !known
}

// all reports that every one of some servers has refused.
func (r refusals) all(addrs []string) bool {
	return !slices.ContainsFunc(addrs, func(a string) bool { return !r[a] })
}

// again reports an error that another attempt may mend.
func again(err error) bool {
	switch cfs.KindOf(err) {
	case cfs.NotLeader, cfs.Unavailable, cfs.Timeout, cfs.Overloaded, cfs.Closed, cfs.Canceled:
		return true
	}
	return false
}

// attempt sends a request to the server that is taken for the leader, once. If it does not lead or
// does not answer, another is taken for the leader from then on.
func (c *Client) attempt(ctx context.Context, within time.Duration, op wire.Op, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	addr := *c.leader.Load()
	_, err := c.meta.Call(ctx, addr, op, req, nil, resp, nil)
	switch {
	case err == nil || !again(err) && cfs.KindOf(err) != cfs.Denied:
	case cfs.KindOf(err) == cfs.NotLeader:
		c.follow(addr, err)
	default:
		c.rotate(addr)
	}
	return err
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

// named is the leader that a voter names, nil when it names none or itself.
func named(addr string, err error) *string {
	var re *wire.RemoteError
	if errors.As(err, &re) && re.Leader != "" && re.Leader != addr {
		return &re.Leader
	}
	return nil
}

// follow takes the leader that a voter names.
func (c *Client) follow(addr string, err error) {
	if leader := named(addr, err); leader != nil {
		c.leader.Store(leader)
		return
	}
	c.rotate(addr)
}

// rotate moves from a server that does not answer to the next of those known.
func (c *Client) rotate(addr string) {
	if *c.leader.Load() != addr {
		return // somebody has moved already
	}
	known := c.servers()
	next := known[0]
	for i, a := range known {
		if a == addr {
			next = known[(i+1)%len(known)]
		}
	}
	c.leader.Store(&next)
}

// servers are those that are known: as configured, then the map's.
func (c *Client) servers() []string {
	known := slices.Clone(c.cfg.Servers)
	for _, a := range c.layout.get().addrs {
		if !slices.Contains(known, a) {
			known = append(known, a)
		}
	}
	return known
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
	cfs.OpWrite: "commit extents", cfs.OpSwap: "swap extents", cfs.OpRelease: "release", cfs.OpSurrender: "surrender",
	cfs.OpLock: "lock",
}

// opName is what a command does that meets a failure at operation i.
func opName(ops []cfs.Op, i int) string {
	if len(ops) == 0 {
		return "raise floor"
	}
	return opNames[ops[i].Kind]
}
