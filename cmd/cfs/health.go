package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
)

// The words for a cluster's health.
const (
	healthy  = "healthy"
	degraded = "degraded" // everything can be read, and something needs a look
	critical = "critical" // something cannot be read, or nothing can be changed
)

// maxNamed bounds the devices that one problem names.
const maxNamed = 8

// healthDoc is what a person reads first: one word, and what is not as it should be.
type healthDoc struct {
	State    string   `json:"state"`
	Problems []string `json:"problems"`

	// Of groups that hold stripes.
	ReducedGroups    int    `json:"reduced_groups"` // some shards are not there, enough are
	ReducedBytes     uint64 `json:"reduced_bytes"`  // of data
	UnreadableGroups int    `json:"unreadable_groups"`
	UnreadableBytes  uint64 `json:"unreadable_bytes"`
	DoubtfulGroups   int    `json:"doubtful_groups"` // readable if the devices that are being filled have enough already
	DoubtfulBytes    uint64 `json:"doubtful_bytes"`
	FillingSlots     int    `json:"filling_slots"`
}

// add notes a problem.
func (h *healthDoc) add(state, format string, args ...any) {
	if h.State != critical {
		h.State = state
	}
	h.Problems = append(h.Problems, fmt.Sprintf(format, args...))
}

// assess says how a cluster is, from what its leader and its servers have said.
func assess(s *state, servers []inspection) healthDoc {
	h := healthDoc{State: healthy, Problems: []string{}}
	switch {
	case s.reply.LeaderId == 0:
		h.add(critical, "there is no leader: nothing can be changed, and files cannot be opened")
	case !s.led:
		h.add(degraded, "the leader, node %d, does not answer: what follows is what node %d knows", s.reply.LeaderId, s.reply.NodeId)
	}
	h.groups(s)
	for _, n := range sorted(s.m.Nodes, func(n *cfs.Node) cfs.NodeID { return n.ID }) {
		i := slices.IndexFunc(servers, func(v inspection) bool { return v.node.ID == n.ID })
		switch {
		case n.State != cfs.StateUp:
			h.add(degraded, "node %d is %v", n.ID, n.State)
		case i >= 0 && servers[i].err != nil:
			h.add(degraded, "node %d does not answer: %v", n.ID, cli.OneLine(servers[i].err))
		}
	}
	h.devices(s)
	for _, v := range servers {
		for _, d := range v.reply.GetDevices() {
			id := cfs.DeviceID(d.Id)
			if known := s.find(id); d.Failed && known != nil && known.State != cfs.StateOut {
				h.add(degraded, "device %v has failed", id)
			}
			if d.Unrepaired > 0 {
				h.add(degraded, "device %v has %d damaged shards that could not be repaired yet", id, d.Unrepaired)
			}
		}
	}
	h.journal(s)
	return h
}

// groups looks for data whose shards are not all there.
func (h *healthDoc) groups(s *state) {
	gone := func(id cfs.DeviceID) bool {
		d := s.find(id)
		return d == nil || d.State == cfs.StateDown || d.State == cfs.StateOut
	}
	writable, filling := false, 0
	for _, g := range s.m.Groups {
		writable = writable || g.Writable
		lost, part, fills := 0, 0, 0 // slots: without their shards, perhaps with some, being filled
		for _, l := range g.Slots {
			if l.Filling {
				fills++
			}
			switch {
			case l.Filling && !gone(l.Source):
			case l.Filling && !gone(l.Device):
				part++
			case l.Filling || gone(l.Device):
				lost++
			}
		}
		use := s.usage[g.ID]
		if use.Stripes == 0 {
			continue
		}
		if h.FillingSlots += fills; fills > 0 {
			filling++
		}
		data := use.RawBytes / uint64(g.Geometry.Total()) * uint64(g.Geometry.K)
		switch {
		case lost > int(g.Geometry.M):
			h.UnreadableGroups, h.UnreadableBytes = h.UnreadableGroups+1, h.UnreadableBytes+data
		case lost+part > int(g.Geometry.M):
			h.DoubtfulGroups, h.DoubtfulBytes = h.DoubtfulGroups+1, h.DoubtfulBytes+data
		case lost+part > 0:
			h.ReducedGroups, h.ReducedBytes = h.ReducedGroups+1, h.ReducedBytes+data
		}
	}
	if h.UnreadableGroups > 0 {
		h.add(critical, "%s of data in %s cannot be read: too many devices are gone", cli.Size(h.UnreadableBytes), count(h.UnreadableGroups, "group"))
	}
	if h.DoubtfulGroups > 0 {
		h.add(degraded, "%s of data in %s may not be readable: it depends on what the devices that are being filled have already",
			cli.Size(h.DoubtfulBytes), count(h.DoubtfulGroups, "group"))
	}
	if h.ReducedGroups > 0 {
		h.add(degraded, "%s of data in %s has reduced redundancy", cli.Size(h.ReducedBytes), count(h.ReducedGroups, "group"))
	}
	if filling > 0 {
		h.add(degraded, "%s being filled in %s", count(h.FillingSlots, "slot"), count(filling, "group"))
	}
	if !writable {
		h.add(degraded, "no group takes writes: there are not enough devices with room")
	}
}

// devices looks at each. One that is out and that nothing counts on has only left.
func (h *healthDoc) devices(s *state) {
	for _, c := range []struct {
		word string
		is   func(d *cfs.Device) bool
	}{
		{"suspect", func(d *cfs.Device) bool { return d.State == cfs.StateSuspect }},
		{"down", func(d *cfs.Device) bool { return d.State == cfs.StateDown }},
		{"out, and has data", func(d *cfs.Device) bool { return d.State == cfs.StateOut && !d.Removed() && s.holds(d.ID) }},
		{"removed, and has data", func(d *cfs.Device) bool { return d.Removed() && s.holds(d.ID) }},
		{"draining", func(d *cfs.Device) bool { return d.Draining && d.State != cfs.StateOut }},
		{"full", func(d *cfs.Device) bool { return d.Full && d.State != cfs.StateOut }},
	} {
		var names []string
		for _, d := range sorted(s.m.Devices, func(d *cfs.Device) cfs.DeviceID { return d.ID }) {
			if c.is(&d) {
				names = append(names, d.ID.String())
			}
		}
		switch more := len(names) - maxNamed; {
		case len(names) == 1:
			h.add(degraded, "device %s: %s", names[0], c.word)
		case more > 0:
			h.add(degraded, "devices %s and %d more: %s", strings.Join(names[:maxNamed], " "), more, c.word)
		case len(names) > 1:
			h.add(degraded, "devices %s: %s", strings.Join(names, " "), c.word)
		}
	}
}

// count is a number of things.
func count[N int | uint64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
