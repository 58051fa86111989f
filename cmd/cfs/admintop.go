package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/internal/top"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// maxTopDirs bounds the directories that are shown.
	maxTopDirs = 10
	// maxPathSteps bounds the queries that one directory's path takes.
	maxPathSteps = 32
)

// topDoc is what the cluster did in an interval.
type topDoc struct {
	Seconds float64     `json:"seconds"`
	Leader  cfs.NodeID  `json:"leader"`
	Ops     []topOp     `json:"ops"`    // of all servers together, the most frequent first
	Stages  []topOp     `json:"stages"` // of commits at the leader
	Dirs    []topDir    `json:"dirs"`   // at the leader, over about the last minute
	Silent  []topSilent `json:"silent"` // servers that did not answer
}

type topOp struct {
	Name      string  `json:"name"`
	PerSecond float64 `json:"per_second"`
	MeanNS    int64   `json:"mean_ns"`
	P50NS     int64   `json:"p50_ns"` // these are upper ends of powers of two
	P99NS     int64   `json:"p99_ns"`
}

type topDir struct {
	Ino  cfs.Ino `json:"ino"`
	Path string  `json:"path,omitempty"` // where it was easily found
	Ops  uint64  `json:"ops"`
}

type topSilent struct {
	Node  cfs.NodeID `json:"node"`
	Error string     `json:"error"`
}

// topCommand is `cfs admin top`.
func (f *adminFlags) topCommand() *cobra.Command {
	var interval time.Duration
	var rounds int
	cmd := f.command("top", "operations a second, their latency, and the busiest directories", cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error {
		if interval <= 0 {
			return cli.Usage("--interval", "want a positive duration")
		}
		if rounds < 0 {
			return cli.Usage("--count", "want 0 or more")
		}
		return f.top(c, cc, interval, rounds)
	})
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "how long each round counts")
	cmd.Flags().IntVar(&rounds, "count", 0, "how many rounds; 0 for until it is interrupted on a terminal, and for one elsewhere")
	return cmd
}

// top shows rounds, each in place of the one before on a terminal.
func (f *adminFlags) top(c *cobra.Command, cc *conn, interval time.Duration, rounds int) error {
	out := c.OutOrStdout()
	refresh := !f.json && cli.Terminal(out) != nil
	if rounds == 0 && !refresh {
		rounds = 1
	}
	paths := map[cfs.Ino]string{}
	last, err := takeTop(c.Context(), cc)
	if err != nil {
		return err
	}
	for i := 0; rounds == 0 || i < rounds; i++ {
		if err := sleep(c.Context(), interval); err != nil {
			if refresh {
				return nil // that is how it ends
			}
			return err
		}
		now, err := takeTop(c.Context(), cc)
		if err != nil {
			return err
		}
		doc := newTopDoc(last, now)
		last = now
		for i := range doc.Dirs {
			d := &doc.Dirs[i]
			if _, known := paths[d.Ino]; !known {
				paths[d.Ino] = pathOf(c.Context(), cc, d.Ino)
			}
			d.Path = paths[d.Ino]
		}
		if refresh {
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		}
		if err := f.print(c, doc, func(w io.Writer) error { return printTop(w, doc) }); err != nil {
			return err
		}
	}
	return nil
}

// topTaken is what the servers said at a time.
type topTaken struct {
	at      time.Time
	leader  cfs.NodeID
	servers map[cfs.NodeID]*wirepb.TopReply
	silent  []topSilent
}

func takeTop(ctx context.Context, cc *conn) (*topTaken, error) {
	s, err := cc.status(ctx)
	if err != nil {
		return nil, err
	}
	replies, errs := make([]*wirepb.TopReply, len(s.m.Nodes)), make([]error, len(s.m.Nodes))
	each(len(replies), func(i int) {
		replies[i] = &wirepb.TopReply{}
		errs[i] = cc.ask(ctx, s.m.Nodes[i].Addr, wire.OpTop, &wirepb.Empty{}, replies[i])
	})
	t := &topTaken{at: time.Now(), leader: cfs.NodeID(s.reply.LeaderId), servers: map[cfs.NodeID]*wirepb.TopReply{}}
	for i, n := range s.m.Nodes {
		if errs[i] != nil {
			t.silent = append(t.silent, topSilent{n.ID, cli.OneLine(errs[i])})
			continue
		}
		t.servers[n.ID] = replies[i]
	}
	if len(t.servers) == 0 && len(errs) > 0 {
		return nil, errs[0]
	}
	return t, nil
}

// since is what was counted between two answers of a server, by name.
func since(old, now []*wirepb.OpStats) map[string]top.Figures {
	out := map[string]top.Figures{}
	for _, o := range now {
		out[o.Name] = top.Figures{Count: o.Count, TotalNS: o.TotalNs, Buckets: o.Buckets}
	}
	for _, o := range old {
		out[o.Name] = out[o.Name].Since(top.Figures{Count: o.Count, TotalNS: o.TotalNs, Buckets: o.Buckets})
	}
	return out
}

// newTopDoc is what happened from one look to the next. A server that was not there at the
// first says nothing yet.
func newTopDoc(last, now *topTaken) *topDoc {
	d := &topDoc{Seconds: now.at.Sub(last.at).Seconds(), Leader: now.leader, Ops: []topOp{}, Stages: []topOp{}, Dirs: []topDir{}, Silent: now.silent}
	if d.Silent == nil {
		d.Silent = []topSilent{}
	}
	all := map[string]top.Figures{}
	for id, r := range now.servers {
		old := last.servers[id]
		if old == nil {
			continue
		}
		for name, f := range since(old.Ops, r.Ops) {
			all[name] = all[name].Plus(f)
		}
		if id == now.leader {
			stages := since(old.Stages, r.Stages)
			for _, o := range r.Stages { // in their order
				d.Stages = appendTop(d.Stages, o.Name, stages[o.Name], d.Seconds)
			}
		}
	}
	for name, f := range all {
		d.Ops = appendTop(d.Ops, name, f, d.Seconds)
	}
	slices.SortFunc(d.Ops, func(a, b topOp) int {
		return cmp.Or(cmp.Compare(b.PerSecond, a.PerSecond), cmp.Compare(a.Name, b.Name))
	})
	if r := now.servers[now.leader]; r != nil {
		for _, h := range r.Dirs[:min(len(r.Dirs), maxTopDirs)] {
			d.Dirs = append(d.Dirs, topDir{Ino: cfs.Ino(h.Ino), Ops: h.Ops})
		}
	}
	return d
}

func appendTop(to []topOp, name string, f top.Figures, seconds float64) []topOp {
	if f.Count == 0 {
		return to
	}
	return append(to, topOp{name, float64(f.Count) / seconds, int64(f.Mean()), int64(f.Quantile(0.5)), int64(f.Quantile(0.99))})
}

// pathOf is a directory's path where a few queries find it, and "" otherwise: it asks for the
// parent, and looks through the first names there.
func pathOf(ctx context.Context, cc *conn, ino cfs.Ino) string {
	var names []string
	for range maxPathSteps {
		if ino == cfs.RootIno {
			slices.Reverse(names)
			return "/" + strings.Join(names, "/")
		}
		a, err := cc.query(ctx, &cfs.Query{Kind: cfs.QueryReadDir, Dir: ino, Limit: 1})
		if err != nil || a.Dir.Ino == 0 {
			return ""
		}
		name := nameIn(ctx, cc, a.Dir.Ino, ino)
		if name == "" {
			return ""
		}
		names, ino = append(names, name), a.Dir.Ino
	}
	return ""
}

// nameIn is the name of an inode in a directory, "" where it is not among the first ones.
func nameIn(ctx context.Context, cc *conn, dir, ino cfs.Ino) string {
	a, err := cc.query(ctx, &cfs.Query{Kind: cfs.QueryReadDir, Dir: dir})
	if err != nil {
		return ""
	}
	for _, e := range a.Entries {
		if e.Ino == ino {
			return e.Name
		}
	}
	return ""
}

func printTop(w io.Writer, d *topDoc) error {
	leader := "none"
	if d.Leader != 0 {
		leader = fmt.Sprintf("node %d", d.Leader)
	}
	fmt.Fprintf(w, "%.1f s, leader: %s\n", d.Seconds, leader)
	for _, s := range d.Silent {
		fmt.Fprintf(w, "node %d does not answer: %s\n", s.Node, s.Error)
	}
	short := func(ns int64) string {
		v := time.Duration(ns)
		switch {
		case v >= time.Second:
			return v.Round(10 * time.Millisecond).String()
		case v >= time.Millisecond:
			return v.Round(10 * time.Microsecond).String()
		}
		return v.Round(100 * time.Nanosecond).String()
	}
	for _, part := range []struct {
		title string
		ops   []topOp
	}{{"OPERATION", d.Ops}, {"STAGE", d.Stages}} {
		if len(part.ops) == 0 {
			continue
		}
		fmt.Fprintln(w)
		t := cli.NewTable(w, part.title, "PER SECOND", "MEAN", "P50", "P99")
		for _, o := range part.ops {
			t.Row(o.Name, fmt.Sprintf("%.1f", o.PerSecond), short(o.MeanNS), short(o.P50NS), short(o.P99NS))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(d.Dirs) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := cli.NewTable(w, "DIRECTORY", "OPS/MIN", "PATH")
	for _, x := range d.Dirs {
		path := x.Path
		if path == "" {
			path = "-"
		}
		t.Row(uint64(x.Ino), x.Ops, path)
	}
	return t.Flush()
}
