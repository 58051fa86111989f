package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
)

// statusDoc is the JSON document of `cfs admin status`; the other views are
// parts of it. Sizes are bytes.
type statusDoc struct {
	ClusterID    string      `json:"cluster_id"`
	Leader       cfs.NodeID  `json:"leader"` // 0 for none
	LeaderAddr   string      `json:"leader_addr"`
	AnsweredBy   cfs.NodeID  `json:"answered_by"`
	Term         uint64      `json:"term"`
	CommitIndex  uint64      `json:"commit_index"`
	AppliedIndex uint64      `json:"applied_index"`
	FirstIndex   uint64      `json:"first_index"`
	MapVersion   uint64      `json:"map_version"`
	Sessions     uint64      `json:"sessions"`
	Space        spaceDoc    `json:"space"`
	Nodes        []nodeDoc   `json:"nodes"`
	Devices      []deviceDoc `json:"devices"`
	Groups       []groupDoc  `json:"groups"`
}

type spaceDoc struct {
	Total  uint64 `json:"total_bytes"`
	Free   uint64 `json:"free_bytes"`
	Inodes uint64 `json:"inodes"`
}

type nodeDoc struct {
	ID     cfs.NodeID `json:"id"`
	Addr   string     `json:"addr"`
	State  string     `json:"state"`
	Voter  bool       `json:"voter"`
	Leader bool       `json:"leader"`
}

type deviceDoc struct {
	ID       string     `json:"id"`
	Node     cfs.NodeID `json:"node"`
	Slot     uint16     `json:"slot"`
	UUID     string     `json:"uuid"`
	State    string     `json:"state"`
	Capacity uint64     `json:"capacity_bytes"`
	Used     uint64     `json:"used_bytes"`
	FeedPos  uint64     `json:"feed_pos"`
}

type groupDoc struct {
	ID       cfs.PGID  `json:"id"`
	Geometry string    `json:"geometry"`
	Epoch    cfs.Epoch `json:"epoch"`
	Writable bool      `json:"writable"`
	Slots    []slotDoc `json:"slots"`
}

type slotDoc struct {
	Device  string `json:"device"`
	Filling bool   `json:"filling"`
	Source  string `json:"source,omitempty"`
}

func printStatus(w io.Writer, d *statusDoc) error {
	leader := "none"
	if d.Leader != 0 {
		leader = fmt.Sprintf("node %d (%s)", d.Leader, d.LeaderAddr)
	}
	nodesUp, devicesUp, writable := 0, 0, 0
	var raw, used uint64
	for _, n := range d.Nodes {
		if n.State == cfs.StateUp.String() {
			nodesUp++
		}
	}
	for _, v := range d.Devices {
		if v.State == cfs.StateUp.String() {
			devicesUp++
		}
		raw, used = raw+v.Capacity, used+v.Used
	}
	for _, g := range d.Groups {
		if g.Writable {
			writable++
		}
	}
	t := cli.NewTable(w, "cluster", d.ClusterID)
	t.Row("leader", fmt.Sprintf("%s, term %d", leader, d.Term))
	t.Row("nodes", fmt.Sprintf("%d of %d up", nodesUp, len(d.Nodes)))
	t.Row("devices", fmt.Sprintf("%d of %d up, %s of %s raw used", devicesUp, len(d.Devices), cli.Size(used), cli.Size(raw)))
	t.Row("groups", fmt.Sprintf("%d, %d take writes", len(d.Groups), writable))
	t.Row("space", fmt.Sprintf("%s free of %s", cli.Size(d.Space.Free), cli.Size(d.Space.Total)))
	t.Row("inodes", d.Space.Inodes)
	t.Row("sessions", d.Sessions)
	t.Row("map", fmt.Sprintf("version %d", d.MapVersion))
	t.Row("log", fmt.Sprintf("%d committed, %d applied, kept from %d", d.CommitIndex, d.AppliedIndex, d.FirstIndex))
	return t.Flush()
}

func printNodes(w io.Writer, d *statusDoc) error {
	t := cli.NewTable(w, "NODE", "ADDRESS", "STATE", "ROLE", "DEVICES")
	for _, n := range d.Nodes {
		role := "storage"
		if n.Voter {
			role = "voter"
		}
		if n.Leader {
			role = "leader"
		}
		devices := 0
		for _, v := range d.Devices {
			if v.Node == n.ID {
				devices++
			}
		}
		t.Row(n.ID, n.Addr, n.State, role, devices)
	}
	return t.Flush()
}

func printDevices(w io.Writer, d *statusDoc) error {
	t := cli.NewTable(w, "DEVICE", "STATE", "CAPACITY", "USED", "USE%", "UUID")
	for _, v := range d.Devices {
		t.Row(v.ID, v.State, cli.Size(v.Capacity), cli.Size(v.Used), cli.Percent(v.Used, v.Capacity), v.UUID)
	}
	return t.Flush()
}

func printGroups(w io.Writer, d *statusDoc) error {
	t := cli.NewTable(w, "GROUP", "GEOMETRY", "EPOCH", "WRITES", "SLOTS")
	for _, g := range d.Groups {
		writes := "no"
		if g.Writable {
			writes = "yes"
		}
		slots := make([]string, len(g.Slots))
		for i, s := range g.Slots {
			slots[i] = s.Device
			if s.Filling {
				slots[i] += "(filling)"
			}
		}
		t.Row(g.ID, g.Geometry, g.Epoch, writes, strings.Join(slots, " "))
	}
	return t.Flush()
}
