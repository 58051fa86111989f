package main

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/node"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	defaultServer  = "127.0.0.1:9400"
	defaultTimeout = 10 * time.Second
)

// adminFlags are those of every admin command.
type adminFlags struct {
	server  string
	timeout time.Duration
	json    bool
}

// newAdminCmd makes `cfs admin` with what it can show.
func newAdminCmd() *cobra.Command {
	f := &adminFlags{}
	cmd := &cobra.Command{Use: "admin", Short: "look at a cluster"}
	pf := cmd.PersistentFlags()
	pf.StringVar(&f.server, "server", defaultServer, "HOST:PORT of any server, or unix:PATH")
	pf.DurationVar(&f.timeout, "timeout", defaultTimeout, "how long to wait for the server")
	pf.BoolVar(&f.json, "json", false, "print one JSON document")
	for _, view := range []struct {
		name, short string
		document    func(*statusDoc) any
		table       func(io.Writer, *statusDoc) error
	}{
		{"status", "the cluster at a glance", func(d *statusDoc) any { return d }, printStatus},
		{"nodes", "the servers and their states", func(d *statusDoc) any { return map[string]any{"nodes": d.Nodes} }, printNodes},
		{"devices", "the devices, their states and space", func(d *statusDoc) any { return map[string]any{"devices": d.Devices} }, printDevices},
		{"groups", "the placement groups", func(d *statusDoc) any { return map[string]any{"groups": d.Groups} }, printGroups},
	} {
		cmd.AddCommand(&cobra.Command{Use: view.name, Short: view.short, Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				doc, err := f.status(c.Context())
				if err != nil {
					return err
				}
				if f.json {
					return cli.PrintJSON(c.OutOrStdout(), view.document(doc))
				}
				return view.table(c.OutOrStdout(), doc)
			}})
	}
	return cmd
}

// status asks the server, then the leader that it names, which alone knows how
// full devices are; without an answer from the leader the server's own stands.
func (f *adminFlags) status(ctx context.Context) (*statusDoc, error) {
	if err := checkServer(f.server); err != nil {
		return nil, err
	}
	if f.timeout <= 0 {
		return nil, cli.Usage("--timeout", "want a positive duration")
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	reply, err := askStatus(ctx, f.server)
	if err != nil {
		return nil, err
	}
	if addr := reply.LeaderAddr; addr != "" && reply.LeaderId != reply.NodeId {
		if led, err := askStatus(ctx, addr); err == nil {
			reply = led
		}
	}
	return newStatusDoc(reply)
}

func askStatus(ctx context.Context, addr string) (*wirepb.StatusReply, error) {
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: "cfs admin"}})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply := &wirepb.StatusReply{}
	_, err = conn.Call(ctx, wire.OpStatus, &wirepb.Empty{}, nil, reply, nil)
	return reply, err
}

// checkServer refuses what is neither HOST:PORT nor unix:PATH.
func checkServer(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return cli.Usage("--server", "unix: needs a path")
		}
		return nil
	}
	return node.CheckAddr("--server", addr)
}

// sorted returns a copy of s in the order of a key.
func sorted[T any, K cmp.Ordered](s []T, key func(*T) K) []T {
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b T) int { return cmp.Compare(key(&a), key(&b)) })
	return s
}

// newStatusDoc turns a server's answer into the document that is printed.
func newStatusDoc(r *wirepb.StatusReply) (*statusDoc, error) {
	m, err := wire.MapFromPB(r.Map)
	if err != nil {
		return nil, err
	}
	d := &statusDoc{
		ClusterID: r.ClusterId, Leader: cfs.NodeID(r.LeaderId), LeaderAddr: r.LeaderAddr, AnsweredBy: cfs.NodeID(r.NodeId),
		Term: r.Term, CommitIndex: r.CommitIndex, AppliedIndex: r.AppliedIndex, FirstIndex: r.FirstIndex,
		MapVersion: m.Version, Sessions: r.Sessions,
		Space: spaceDoc{Total: r.Statfs.GetTotalBytes(), Free: r.Statfs.GetFreeBytes(), Inodes: r.Statfs.GetInodes()},
		Nodes: []nodeDoc{}, Devices: []deviceDoc{}, Groups: []groupDoc{},
	}
	for _, n := range sorted(m.Nodes, func(n *cfs.Node) cfs.NodeID { return n.ID }) {
		d.Nodes = append(d.Nodes, nodeDoc{ID: n.ID, Addr: n.Addr, State: n.State.String(), Voter: n.Voter, Leader: n.ID == d.Leader})
	}
	for _, v := range sorted(m.Devices, func(v *cfs.Device) cfs.DeviceID { return v.ID }) {
		d.Devices = append(d.Devices, deviceDoc{ID: v.ID.String(), Node: v.ID.Node(), Slot: v.ID.Slot(), UUID: v.UUID.String(),
			State: v.State.String(), Capacity: v.Capacity, Used: v.Used, FeedPos: v.FeedPos})
	}
	for _, g := range sorted(m.Groups, func(g *cfs.PG) cfs.PGID { return g.ID }) {
		doc := groupDoc{ID: g.ID, Geometry: g.Geometry.String(), Epoch: g.Epoch, Writable: g.Writable, Slots: []slotDoc{}}
		for _, s := range g.Slots {
			slot := slotDoc{Device: s.Device.String(), Filling: s.Filling}
			if s.Filling && s.Source != 0 {
				slot.Source = s.Source.String()
			}
			doc.Slots = append(doc.Slots, slot)
		}
		d.Groups = append(d.Groups, doc)
	}
	return d, nil
}
