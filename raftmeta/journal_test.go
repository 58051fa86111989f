package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// admin asks the leader for a change.
func (c *cluster) admin(m *wirepb.Admin) (string, error) {
	var reply wirepb.AdminReply
	err := c.call(wire.OpAdmin, m, &reply)
	return reply.Text, err
}

func (c *cluster) addConsumer(name string) cfs.Consumer {
	c.t.Helper()
	if text, err := c.admin(&wirepb.Admin{Verb: uint32(wire.VerbConsumerAdd), Text: name}); err != nil || !strings.Contains(text, name) {
		c.t.Fatalf("add consumer %s: %v %q", name, err, text)
	}
	a, err := c.query(&cfs.Query{Kind: cfs.QueryConsumers})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, x := range a.Consumers {
		if x.Name == name {
			return x
		}
	}
	c.t.Fatalf("no consumer %s in %+v", name, a.Consumers)
	return cfs.Consumer{}
}

// A reader waits for the next change, and leaders that change do not disturb the order.
func TestJournalIsFollowed(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	from := c.addConsumer("copy")
	const files = 40
	got := make(chan []string, 1)
	failed := make(chan error, 1)
	go func() {
		var names []string
		at, n := from.Index, uint64(0)
		for deadline := time.Now().Add(patience); len(names) < files; {
			a, err := c.query(&cfs.Query{Kind: cfs.QueryJournal, Index: at, Off: n, Limit: 3, WaitMS: 1000})
			if err != nil || a.Kind != cfs.KindOK || time.Now().After(deadline) {
				failed <- fmt.Errorf("from %d: %v %+v, %d so far", at, err, a, len(names))
				return
			}
			for _, x := range a.Changes {
				names = append(names, x.Name)
				at, n = x.Index, uint64(x.N)+1
			}
		}
		got <- names
	}()
	for i := range files {
		if i == files/2 {
			c.crash(c.leader())
		}
		c.mustCreate(s, uint64(i+1), fmt.Sprint(i))
	}
	select {
	case names := <-got:
		for i, n := range names {
			if n != fmt.Sprint(i) {
				t.Fatalf("change %d is of %s: %v", i, n, names)
			}
		}
	case err := <-failed:
		t.Fatal(err)
	}
	// What was done with goes, by the consumer's own report.
	last := c.leader().node.indexes.applied.Load()
	r, err := c.command(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpSetConsumer, Name: "copy", Index: last}}})
	if err != nil || r.Kind != cfs.KindOK {
		t.Fatalf("%v %+v", err, r)
	}
	if _, err := c.query(&cfs.Query{Kind: cfs.QueryJournal, Index: from.Index}); !errors.Is(err, cfs.Stale) || !strings.Contains(err.Error(), fmt.Sprintf("starts at index %d", last)) {
		t.Errorf("what was done with: %v", err)
	}
	c.converge()
}

// A reader that waits is told when its leader is none any more, and when nothing comes.
func TestJournalWaitEnds(t *testing.T) {
	c := newCluster(t, 1, nil)
	from := c.addConsumer("copy")
	a, err := c.query(&cfs.Query{Kind: cfs.QueryJournal, Index: from.Index, WaitMS: 1})
	if err != nil || len(a.Changes) != 0 || a.Kind != cfs.KindOK {
		t.Errorf("%v %+v", err, a)
	}
	n := c.leader().node
	ended := make(chan error, 1)
	go func() {
		_, err := n.journal(context.Background(), &cfs.Query{Kind: cfs.QueryJournal, Index: from.Index, WaitMS: 1 << 30})
		ended <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error, 1)
	go func() {
		_, err := n.journal(ctx, &cfs.Query{Kind: cfs.QueryJournal, Index: from.Index, WaitMS: 1 << 30})
		cancelled <- err
	}()
	c.wait("two readers", func() bool { return n.bell.listening.Load() == 2 })
	cancel()
	if err := <-cancelled; !errors.Is(err, cfs.Canceled) {
		t.Errorf("%v", err)
	}
	c.close(c.members[0])
	if err := <-ended; !errors.Is(err, cfs.NotLeader) && !errors.Is(err, cfs.Unavailable) && !errors.Is(err, cfs.Closed) {
		t.Errorf("%v", err)
	}
}

func TestConsumerVerbs(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newCluster(t, 1, func(cfg *Config) { cfg.Metrics = NewMetrics(reg) })
	c.addConsumer("copy")
	for _, bad := range []struct {
		m    *wirepb.Admin
		want cfs.Kind
	}{
		{&wirepb.Admin{Verb: uint32(wire.VerbConsumerAdd), Text: "copy"}, cfs.Exists},
		{&wirepb.Admin{Verb: uint32(wire.VerbConsumerAdd)}, cfs.Invalid},
		{&wirepb.Admin{Verb: uint32(wire.VerbConsumerRemove), Text: "nobody"}, cfs.NotFound},
		{&wirepb.Admin{Verb: uint32(wire.VerbSessionExpire), Session: 999}, cfs.NotFound},
		{&wirepb.Admin{Verb: uint32(wire.VerbSessionExpire)}, cfs.Invalid},
	} {
		if _, err := c.admin(bad.m); !errors.Is(err, bad.want) {
			t.Errorf("%v: %v", bad.m, err)
		}
	}
	if _, err := c.command(&cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpSetConsumer, Name: "mine"}}}); !errors.Is(err, cfs.BadRequest) {
		t.Errorf("anybody makes a consumer: %v", err)
	}
	s := c.session()
	c.mustCreate(s, 1, "a")
	got := gather(t, reg)
	for name, want := range map[string]float64{"claudefs_raft_journal_entries": 1, "claudefs_raft_journal_consumer_behind/copy": 1, "claudefs_raft_journal_consumer_lost/copy": 0} {
		if have, ok := got[name]; !ok || have != want {
			t.Errorf("%s is %v %v, want %v", name, have, ok, want)
		}
	}
	if got["claudefs_raft_journal_bytes"] <= 0 || got["claudefs_raft_journal_consumer_behind_bytes/copy"] <= 0 {
		t.Errorf("%v", got)
	}
	if _, err := c.admin(&wirepb.Admin{Verb: uint32(wire.VerbConsumerRemove), Text: "copy"}); err != nil {
		t.Error(err)
	}
	if a, err := c.query(&cfs.Query{Kind: cfs.QueryConsumers}); err != nil || len(a.Consumers) != 0 {
		t.Errorf("%v %+v", err, a)
	}
	c.wait("the journal to be empty", func() bool { return gather(t, reg)["claudefs_raft_journal_entries"] == 0 })
}

// gather is every series of a registry: a histogram's is its count.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return got
}

func TestSessionsAreListedAndEnded(t *testing.T) {
	c := newCluster(t, 3, nil)
	a, b := c.session(), c.session()
	c.mustCreate(a, 1, "a")
	got, err := c.query(&cfs.Query{Kind: cfs.QuerySessions})
	if err != nil || len(got.Sessions) != 2 {
		t.Fatalf("%v %+v", err, got)
	}
	if x := got.Sessions[0]; x.ID != a || x.Name != "test" || x.OpenedNS == 0 || x.Replies != 1 {
		t.Errorf("%+v", x)
	}
	silent := got.Sessions[1].SilentMS
	c.wait("silence to grow", func() bool {
		got, err := c.query(&cfs.Query{Kind: cfs.QuerySessions, Session: a})
		return err == nil && len(got.Sessions) == 1 && got.Sessions[0].SilentMS > silent
	})
	// One that was heard just now is waited for. It is heard no more, even if the caller gives up.
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := c.pool.Call(ctx, c.leader().addr, wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbSessionExpire), Session: uint64(a)}, nil, &wirepb.AdminReply{}, nil)
		failed <- err
	}()
	c.wait("a refused heartbeat", func() bool {
		return cfs.KindOf(c.call(wire.OpHeartbeat, &wirepb.Heartbeat{Session: uint64(a)}, &wirepb.HeartbeatReply{})) == cfs.NoSession
	})
	c.mustCreate(a, 2, "still") // what the client has kept back
	cancel()
	if err := <-failed; err == nil {
		t.Error("a session that was heard just now is not waited for")
	}
	d := c.leader().node.duties.Load()
	d.mu.Lock()
	d.sessions[a], d.hearing = time.Now().Add(-50*time.Minute), time.Now().Add(-50*time.Minute)
	d.mu.Unlock()
	text, err := c.admin(&wirepb.Admin{Verb: uint32(wire.VerbSessionExpire), Session: uint64(a)})
	if err != nil || !strings.Contains(text, fmt.Sprint("session ", a)) {
		t.Errorf("%v %q", err, text)
	}
	if got, err = c.query(&cfs.Query{Kind: cfs.QuerySessions}); err != nil || len(got.Sessions) != 1 || got.Sessions[0].ID != b {
		t.Errorf("%v %+v", err, got)
	}
	if r, err := c.command(create(a, 3, "b")); err != nil || r.Kind != cfs.NoSession {
		t.Errorf("%v %+v", err, r)
	}
}

// Every node tells what it has done: the leader of operations, stages and directories.
func TestTop(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.session()
	const files = 20
	for i := range files {
		c.mustCreate(s, uint64(i+1), fmt.Sprint(i))
	}
	c.mustFind("0")
	c.converge()
	lead := c.leader()
	for _, m := range c.members {
		var r wirepb.TopReply
		if _, err := c.pool.Call(t.Context(), m.addr, wire.OpTop, &wirepb.Empty{}, nil, &r, nil); err != nil {
			t.Fatal(err)
		}
		if r.NodeId != uint32(m.id) || r.Leader != (m == lead) {
			t.Errorf("%v", &r)
		}
		ops, stages := map[string]uint64{}, map[string]uint64{}
		add := func(to map[string]uint64, from []*wirepb.OpStats) {
			for _, o := range from {
				sum := uint64(0)
				for _, b := range o.Buckets {
					sum += b
				}
				if to[o.Name] = o.Count; sum != o.Count || o.TotalNs == 0 {
					t.Errorf("%v", o)
				}
			}
		}
		add(ops, r.Ops)
		add(stages, r.Stages)
		if stages["sync"] == 0 || stages["apply"] == 0 || m == lead && (stages["queue"] == 0 || stages["replicate"] == 0) {
			t.Errorf("node %d: stages %v", m.id, stages)
		}
		if m == lead && (ops["create"] != files || ops["lookup"] != 1 || ops["open_session"] != 1 || len(r.Dirs) != 1 || r.Dirs[0].Ino != uint64(cfs.RootIno) || r.Dirs[0].Ops != files+1) {
			t.Errorf("%v", &r)
		}
	}
}
