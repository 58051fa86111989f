package raftmeta

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/top"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxKinds bounds the kinds of operations, and those of queries, that are counted apart.
	maxKinds = 64
	// maxHotDirs bounds the directories that one answer names.
	maxHotDirs = 32
)

// activity counts what a node has answered since it started.
type activity struct {
	began   time.Time
	ops     [maxKinds]top.Hist // by cfs.OpKind
	queries [maxKinds]top.Hist // by cfs.QueryKind
	dirs    top.Dirs
}

// command counts the operations of a command that came at a time and has been answered.
func (a *activity) command(c *cfs.Command, came time.Time) {
	now := time.Now()
	took, at := now.Sub(came), now.Sub(a.began)
	for i := range c.Ops {
		op := &c.Ops[i]
		if int(op.Kind) < maxKinds {
			a.ops[op.Kind].Observe(took)
		}
		if op.Dir != 0 {
			a.dirs.Touch(uint64(op.Dir), at)
		}
		if op.NewDir != 0 && op.NewDir != op.Dir {
			a.dirs.Touch(uint64(op.NewDir), at)
		}
	}
}

// query counts a query that came at a time and has been answered. One that may wait for
// something to happen says nothing of the server.
func (a *activity) query(q *cfs.Query, came time.Time) {
	if q.WaitMS > 0 {
		return
	}
	now := time.Now()
	if int(q.Kind) < maxKinds {
		a.queries[q.Kind].Observe(now.Sub(came))
	}
	if q.Dir != 0 {
		a.dirs.Touch(uint64(q.Dir), now.Sub(a.began))
	}
}

// Top is what this node has done since it started: operations and queries that it answered,
// the stages of commits, and the directories that they were in.
func (n *Node) Top() *wirepb.TopReply {
	a := &n.activity
	r := &wirepb.TopReply{NodeId: uint32(n.cfg.NodeID), Leader: n.lead.Load().mine, UptimeMs: uint64(time.Since(a.began).Milliseconds())}
	for k := range a.ops {
		r.Ops = appendStats(r.Ops, cfs.OpKind(k).String(), a.ops[k].Read())
	}
	for k := range a.queries {
		r.Ops = appendStats(r.Ops, cfs.QueryKind(k).String(), a.queries[k].Read())
	}
	for _, d := range a.dirs.Hottest(maxHotDirs, time.Since(a.began)) {
		r.Dirs = append(r.Dirs, &wirepb.HotDir{Ino: d.Ino, Ops: d.Ops})
	}
	m := n.metrics
	for _, s := range []struct {
		name string
		of   prometheus.Observer
	}{{"queue", m.queue}, {"replicate", m.repl}, {"sync", m.sync}, {"apply", m.apply}} {
		if f, err := figures(s.of); err != nil {
			n.log.Warn("stage of a commit", "stage", s.name, "err", err)
		} else {
			r.Stages = appendStats(r.Stages, s.name, f)
		}
	}
	return r
}

// appendStats adds what was counted, unless that is nothing.
func appendStats(to []*wirepb.OpStats, name string, f top.Figures) []*wirepb.OpStats {
	if f.Count == 0 {
		return to
	}
	return append(to, &wirepb.OpStats{Name: name, Count: f.Count, TotalNs: f.TotalNS, Buckets: f.Buckets})
}

// figures are those of a histogram with stageBuckets.
func figures(o prometheus.Observer) (top.Figures, error) {
	var m dto.Metric
	h, ok := o.(prometheus.Histogram)
	if !ok {
		return top.Figures{}, cfs.Errorf("top", cfs.Unsupported, "%T is no histogram", o)
	}
	if err := h.Write(&m); err != nil {
		return top.Figures{}, cfs.E("top", cfs.Unsupported, err)
	}
	f := top.Figures{Count: m.Histogram.GetSampleCount(), TotalNS: uint64(m.Histogram.GetSampleSum() * 1e9), Buckets: make([]uint64, firstStageBucket, top.Buckets)}
	below := uint64(0)
	for _, b := range m.Histogram.Bucket {
		f.Buckets = append(f.Buckets, b.GetCumulativeCount()-below)
		below = b.GetCumulativeCount()
	}
	f.Buckets = append(f.Buckets, f.Count-below)
	return f, nil
}

func (n *Node) serveTop(_ context.Context, _ *wire.Request) (wire.Response, error) {
	return wire.Response{Body: n.Top()}, nil
}
