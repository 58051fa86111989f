package raftmeta

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxJournalWait bounds how long a reader of the journal waits for a change.
	maxJournalWait = 30 * time.Second
	// maxJournalWaits bounds the readers that wait at one time; others are answered at once.
	maxJournalWaits = 64
)

// bell wakes those who wait for entries to be applied. Its zero value is ready.
type bell struct {
	listening atomic.Int32

	mu sync.Mutex
	ch chan struct{} // nil: nobody listens since it rang
}

// listen returns a channel that is closed when entries have been applied after the call.
func (b *bell) listen() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// ring is cheap where nobody listens.
func (b *bell) ring() {
	if b.listening.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// answer answers a query as its kind wants it.
func (n *Node) answer(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	switch q.Kind {
	case cfs.QueryJournal:
		return n.journal(ctx, q)
	case cfs.QuerySessions:
		return n.sessions(ctx, q)
	}
	return n.query(ctx, q)
}

// journal answers a QueryJournal: every answer is linearizable, the one after a wait too. It
// waits while this node leads.
func (n *Node) journal(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	wait := min(time.Duration(q.WaitMS)*time.Millisecond, maxJournalWait)
	if n.bell.listening.Add(1) > maxJournalWaits {
		wait = 0
	}
	defer n.bell.listening.Add(-1)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		applied := n.bell.listen()
		a, err := n.query(ctx, q)
		if err != nil {
			return nil, err
		}
		if a.Kind == cfs.Stale {
			return nil, cfs.Errorf("journal", cfs.Stale, "the journal starts at index %d", a.Next.Off)
		}
		if a.Kind != cfs.KindOK || len(a.Changes) > 0 || wait == 0 {
			return a, nil
		}
		d := n.duties.Load()
		if d == nil {
			return nil, n.notLeader("journal")
		}
		select {
		case <-applied:
		case <-timer.C:
			return a, nil
		case <-d.ended:
			return nil, n.notLeader("journal")
		case <-ctx.Done():
			return nil, cfs.E("journal", contextKind(ctx), ctx.Err())
		case <-n.done:
			return nil, n.unavailable("journal")
		}
	}
}

// sessions answers a QuerySessions, with what the leader alone knows.
func (n *Node) sessions(ctx context.Context, q *cfs.Query) (*cfs.Answer, error) {
	a, err := n.query(ctx, q)
	if err != nil {
		return nil, err
	}
	d := n.duties.Load()
	if d == nil {
		return nil, n.notLeader("sessions")
	}
	for i := range a.Sessions {
		d.describe(&a.Sessions[i])
	}
	return a, nil
}

// describe adds the soft state of a session.
func (d *duties) describe(s *cfs.SessionInfo) {
	d.mu.Lock()
	if heard, ok := d.sessions[s.ID]; ok {
		s.SilentMS = uint64(d.silentLocked(heard).Milliseconds())
	}
	d.mu.Unlock()
	d.leases.mu.Lock()
	defer d.leases.mu.Unlock()
	held, open := d.leases.t.Counts(s.ID)
	s.Leases, s.Opens = uint64(held), uint64(open)
}

// serveOwn carries out the verbs of sessions and of the journal, which need nothing of the
// layout; ours is false for another verb.
func (n *Node) serveOwn(ctx context.Context, m *wirepb.Admin) (r wire.Response, ours bool, err error) {
	var text string
	switch wire.Verb(m.Verb) {
	case wire.VerbSessionExpire:
		text, err = n.expireSession(ctx, cfs.SessionID(m.Session))
	case wire.VerbConsumerAdd:
		text, err = n.addConsumer(ctx, m.Text)
	case wire.VerbConsumerRemove:
		if err = n.ownKind(ctx, "journal remove "+m.Text, cfs.Op{Kind: cfs.OpDropConsumer, Name: m.Text}); err == nil {
			text = "the journal has no consumer " + m.Text + " any more"
		}
	default:
		return wire.Response{}, false, nil
	}
	if err != nil {
		return wire.Response{}, true, err
	}
	n.log.Info("administrator", "did", text)
	return wire.Response{Body: &wirepb.AdminReply{Text: text}}, true, nil
}

// ownKind proposes an operation of the leader; a refusal is an error.
func (n *Node) ownKind(ctx context.Context, what string, op cfs.Op) error {
	r, err := n.own(ctx, op)
	if err == nil && r.Kind != cfs.KindOK {
		err = cfs.E(what, r.Kind, nil)
	}
	return err
}

// dismiss hears a session no more, and returns when its client answers nothing from memory and
// keeps nothing back any more, as after so much silence. Where the caller gives up earlier the
// session ends by its silence.
func (d *duties) dismiss(ctx context.Context, id cfs.SessionID) error {
	var wait time.Duration
	d.mu.Lock()
	if heard, ok := d.sessions[id]; ok {
		d.dismissed[id] = true
		wait = max(d.n.cfg.LeaseTime, d.n.cfg.SessionTimeout/5*4) - d.silentLocked(heard)
	}
	d.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return cfs.E("session expire", contextKind(ctx), ctx.Err())
	case <-d.ended:
		return d.n.notLeader("session expire")
	}
}

func (n *Node) expireSession(ctx context.Context, id cfs.SessionID) (string, error) {
	if id == 0 {
		return "", cfs.Errorf("session expire", cfs.Invalid, "0 is no session")
	}
	a, err := n.query(ctx, &cfs.Query{Kind: cfs.QuerySessions, Session: id - 1, Limit: 1})
	if err != nil {
		return "", err
	}
	if len(a.Sessions) == 0 || a.Sessions[0].ID != id {
		return "", cfs.Errorf("session expire", cfs.NotFound, "there is no session %d", id)
	}
	d := n.duties.Load()
	if d == nil {
		return "", n.notLeader("session expire")
	}
	if err := d.dismiss(ctx, id); err != nil {
		return "", err
	}
	if err := n.ownKind(ctx, "session expire", cfs.Op{Kind: cfs.OpExpireSession, Sess: id}); err != nil {
		return "", err
	}
	return "session " + fmt.Sprint(id) + " (" + a.Sessions[0].Name + ") has ended", nil
}

func (n *Node) addConsumer(ctx context.Context, name string) (string, error) {
	const op = "journal add"
	if name == "" || len(name) > cfs.MaxName {
		return "", cfs.Errorf(op, cfs.Invalid, "a name of %d bytes, want 1 to %d", len(name), cfs.MaxName)
	}
	find := func() (*cfs.Consumer, error) {
		a, err := n.query(ctx, &cfs.Query{Kind: cfs.QueryConsumers})
		if err != nil {
			return nil, err
		}
		for i := range a.Consumers {
			if a.Consumers[i].Name == name {
				return &a.Consumers[i], nil
			}
		}
		return nil, nil
	}
	if c, err := find(); err != nil || c != nil {
		if err == nil {
			err = cfs.Errorf(op, cfs.Exists, "%s is a consumer already, from index %d on", name, c.Index)
		}
		return "", err
	}
	if err := n.ownKind(ctx, op, cfs.Op{Kind: cfs.OpSetConsumer, Name: name}); err != nil {
		return "", err
	}
	c, err := find()
	if err != nil {
		return "", err
	}
	if c == nil {
		return "", cfs.Errorf(op, cfs.NotFound, "%s was removed at once", name)
	}
	return "the journal is kept for " + name + " from index " + fmt.Sprint(c.Index) + " on", nil
}

// journalMetrics tell of the journal whoever scrapes the leader. They are read from the state
// when they are asked for, so that nothing old remains where a leader was.
type journalMetrics struct {
	node                                atomic.Pointer[Node]
	entries, bytes, behind, behindBytes *prometheus.Desc
	lost                                *prometheus.Desc
}

func newJournalMetrics() *journalMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("claudefs_raft_journal_"+name, help, labels, nil)
	}
	return &journalMetrics{
		entries:     desc("entries", "Changes in the journal; on the leader."),
		bytes:       desc("bytes", "Bytes of the changes in the journal; on the leader."),
		behind:      desc("consumer_behind", "Changes that a consumer of the journal has before it; on the leader.", "consumer"),
		behindBytes: desc("consumer_behind_bytes", "Bytes of them; on the leader.", "consumer"),
		lost:        desc("consumer_lost", "1 where a consumer of the journal needed changes that are gone; on the leader.", "consumer"),
	}
}

// Describe tells the registry what there may be.
func (m *journalMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.entries, m.bytes, m.behind, m.behindBytes, m.lost} {
		ch <- d
	}
}

// Collect reads the figures, on the leader.
func (m *journalMetrics) Collect(ch chan<- prometheus.Metric) {
	n := m.node.Load()
	if n == nil || n.duties.Load() == nil {
		return
	}
	var j fsm.Journal
	err := n.state.view(func(v kv.View) (err error) {
		j, err = fsm.ReadJournal(v)
		return err
	})
	if err != nil {
		ch <- prometheus.NewInvalidMetric(m.entries, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.entries, float64(j.Entries))
	gauge(m.bytes, float64(j.Bytes))
	for _, c := range j.Consumers {
		gauge(m.behind, float64(c.Behind), c.Name)
		gauge(m.behindBytes, float64(c.BehindBytes), c.Name)
		lost := 0.0
		if c.Lost {
			lost = 1
		}
		gauge(m.lost, lost, c.Name)
	}
}
