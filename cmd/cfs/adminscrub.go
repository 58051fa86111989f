package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// scrubDoc is what is known of the scrubs of some devices.
type scrubDoc struct {
	Devices []deviceDoc `json:"devices"`
	Silent  []nodeDoc   `json:"silent"` // servers that did not begin one, and why
}

// scrubCommand is `cfs admin scrub`.
func (f *adminFlags) scrubCommand() *cobra.Command {
	var name string
	var wait bool
	cmd := f.command("scrub", "read all shards now and compare them with their checksums; what is damaged is repaired", cobra.NoArgs,
		func(c *cobra.Command, cc *conn, _ []string) error {
			var id cfs.DeviceID
			if c.Flags().Changed("device") {
				var err error
				if id, err = parseDevice(name); err != nil {
					return err
				}
			}
			return f.scrub(c, cc, id, wait)
		})
	cmd.Flags().StringVar(&name, "device", "", "only this one, NODE/SLOT")
	cmd.Flags().BoolVar(&wait, "wait", false, "follow it until it is done; without it the results so far are printed")
	return cmd
}

// scrub begins a pass, of all devices for id 0.
func (f *adminFlags) scrub(c *cobra.Command, cc *conn, id cfs.DeviceID, wait bool) error {
	s, err := cc.status(c.Context())
	if err != nil {
		return err
	}
	if id != 0 {
		if _, err := s.device(id); err != nil {
			return err
		}
		n, err := s.node(id.Node())
		if err != nil {
			return err
		}
		s.m.Nodes = []cfs.Node{*n}
	}
	servers := cc.inspect(c.Context(), s)
	before := scrubsOf(servers, id)
	errs := make([]error, len(s.m.Nodes))
	each(len(errs), func(i int) {
		if errs[i] = servers[i].err; errs[i] == nil || !wait { // without it the end of the pass cannot be told
			errs[i] = beginScrub(c.Context(), cc, s.m.Nodes[i].Addr, id)
		}
	})
	asked := &state{m: &cfs.Map{}}
	doc := &scrubDoc{Devices: []deviceDoc{}, Silent: []nodeDoc{}}
	for i, n := range s.m.Nodes {
		if errs[i] == nil {
			asked.m.Nodes = append(asked.m.Nodes, n)
		} else {
			doc.Silent = append(doc.Silent, nodeDoc{ID: n.ID, Addr: n.Addr, State: n.State.String(), Error: cli.OneLine(errs[i])})
		}
	}
	if len(asked.m.Nodes) == 0 {
		return errs[0]
	}
	if _, known := before[id]; id != 0 && wait && !known {
		return cfs.Errorf("scrub", cfs.NotFound, "node %d serves device %v only since a moment ago: when its scrub ends cannot be told; try again", id.Node(), id)
	}
	if wait {
		servers, err = f.followScrub(c, cc, asked, id, before)
	} else {
		servers = cc.inspect(c.Context(), asked)
	}
	if err != nil {
		return err
	}
	return f.printScrub(c, s, servers, id, doc, wait)
}

// scrubsOf is what the servers say of their devices, or of one.
func scrubsOf(servers []inspection, id cfs.DeviceID) map[cfs.DeviceID]*wirepb.DeviceInfo {
	out := map[cfs.DeviceID]*wirepb.DeviceInfo{}
	for _, v := range servers {
		for _, d := range v.reply.GetDevices() {
			if one := cfs.DeviceID(d.Id); v.err == nil && (id == 0 || one == id) {
				out[one] = d
			}
		}
	}
	return out
}

// beginScrub asks a server for a pass, of all its devices for id 0. One that goes on already is followed by another.
func beginScrub(ctx context.Context, cc *conn, addr string, id cfs.DeviceID) error {
	return cc.ask(ctx, addr, wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbScrub), Device: uint32(id)}, &wirepb.AdminReply{})
}

// followScrub looks at the servers until each of their devices that are in before, which is what they were
// when a pass was asked for, has ended one that began since. A pass that went on in before is another: when it has
// ended, which may be seen only after the next, one more is asked for.
func (f *adminFlags) followScrub(c *cobra.Command, cc *conn, s *state, id cfs.DeviceID, before map[cfs.DeviceID]*wirepb.DeviceInfo) ([]inspection, error) {
	progress := cli.NewProgress(c.ErrOrStderr())
	defer progress.Clear()
	heard := time.Now()
	for {
		servers := cc.inspect(c.Context(), s)
		done, all, left := uint64(0), uint64(0), 0
		now := scrubsOf(servers, id)
		for one, d := range now {
			b := before[one]
			if b == nil {
				continue // added since, and not asked for
			}
			passed := d.LastScrubNs > b.LastScrubNs
			if passed && b.Scrubbing {
				if err := beginScrub(c.Context(), cc, cc.addrOf(one.Node()), one); err != nil {
					return nil, err
				}
				before[one], passed = &wirepb.DeviceInfo{LastScrubNs: d.LastScrubNs}, false
			}
			if all += d.LiveBytes; d.Failed || passed {
				done += d.LiveBytes
			} else {
				done, left = done+min(d.ScrubbedBytes, d.LiveBytes), left+1
			}
		}
		silent := slices.IndexFunc(servers, func(v inspection) bool { return v.err != nil })
		switch {
		case silent < 0 && id != 0 && now[id] == nil:
			return nil, cfs.Errorf("scrub", cfs.NotFound, "node %d does not serve device %v any more", id.Node(), id)
		case silent < 0 && left == 0:
			return servers, nil
		case silent < 0:
			heard = time.Now()
		case c.Context().Err() != nil || time.Since(heard) > f.pace.patience:
			return nil, servers[silent].err
		}
		progress.Show("scrub: %s %s, %s left", bar(done, all), cli.Percent(done, all), count(left, "device"))
		if err := sleep(c.Context(), f.pace.poll); err != nil {
			return nil, err
		}
	}
}

// printScrub prints the results; some that are bad, and servers that did not
// take part, are an error besides.
func (f *adminFlags) printScrub(c *cobra.Command, s *state, servers []inspection, id cfs.DeviceID, doc *scrubDoc, wait bool) error {
	unrepaired := uint64(0)
	for _, d := range newStatusDoc(s, servers, time.Now()).Devices {
		if d.Own != nil && (id == 0 || d.ID == id.String()) {
			doc.Devices = append(doc.Devices, d)
			unrepaired += d.Own.Unrepaired
		}
	}
	err := f.print(c, doc, func(w io.Writer) error {
		t := cli.NewTable(w, "DEVICE", "SCRUBBED", "SHARDS", "DAMAGED", "MISSING", "REPAIRED", "UNREPAIRED")
		for _, d := range doc.Devices {
			o := d.Own
			t.Row(d.ID, o.scrubAge(time.Now()), o.Records, o.Damaged, o.Missing, o.Repaired, o.Unrepaired)
		}
		for _, n := range doc.Silent {
			t.Row(fmt.Sprintf("%d/*", n.ID), "did not begin: "+n.Error)
		}
		return t.Flush()
	})
	switch {
	case err != nil:
	case len(doc.Silent) > 0:
		err = cfs.Errorf("scrub", cfs.Unavailable, "%s did not begin", count(len(doc.Silent), "server"))
	case wait && unrepaired > 0:
		err = cfs.Errorf("scrub", cfs.Corrupt, "%s could not be repaired", count(unrepaired, "shard"))
	}
	return err
}
