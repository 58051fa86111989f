package main

import (
	"cmp"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// statusDoc is the JSON document of `cfs admin status`; the other views are
// parts of it. Sizes are bytes, times are nanoseconds since 1970.
type statusDoc struct {
	Health       healthDoc   `json:"health"`
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
	Jobs         []jobDoc    `json:"jobs"`
	Nodes        []nodeDoc   `json:"nodes"`
	Devices      []deviceDoc `json:"devices"`
	Groups       []groupDoc  `json:"groups"`
	Security     string      `json:"security"`
}

// spaceDoc has what statfs(2) says, and what stands behind it.
type spaceDoc struct {
	Total  uint64 `json:"total_bytes"`
	Free   uint64 `json:"free_bytes"`
	Used   uint64 `json:"used_bytes"`
	Inodes uint64 `json:"inodes"`

	RawLive     uint64 `json:"raw_live_bytes"`     // all shards of all stripes
	RawUsed     uint64 `json:"raw_used_bytes"`     // on devices, as the leader was told last
	RawOccupied uint64 `json:"raw_occupied_bytes"` // segments that hold anything, of the servers that answered
	RawCapacity uint64 `json:"raw_capacity_bytes"` // of devices that are not out
}

type nodeDoc struct {
	ID      cfs.NodeID `json:"id"`
	Addr    string     `json:"addr"`
	State   string     `json:"state"`
	Voter   bool       `json:"voter"`
	Learner bool       `json:"learner,omitempty"` // becomes a voter
	Leader  bool       `json:"leader"`
	Error   string     `json:"error,omitempty"` // why it did not say how its devices are
}

type deviceDoc struct {
	ID       string     `json:"id"`
	Node     cfs.NodeID `json:"node"`
	Slot     uint16     `json:"slot"`
	UUID     string     `json:"uuid"`
	State    string     `json:"state"`
	Draining bool       `json:"draining"` // with state out: removed
	Full     bool       `json:"full"`
	Job      string     `json:"job,omitempty"` // kind and state of one that has not ended
	Capacity uint64     `json:"capacity_bytes"`
	Used     uint64     `json:"used_bytes"`
	FeedPos  uint64     `json:"feed_pos"`
	Own      *ownDoc    `json:"own,omitempty"` // what its server says; absent when it says nothing
}

// ownDoc is what a server knows of one of its devices.
type ownDoc struct {
	Path            string `json:"path"`
	Failed          bool   `json:"failed"`
	Live            uint64 `json:"live_bytes"`
	Occupied        uint64 `json:"occupied_bytes"`
	Records         uint64 `json:"records"`
	Scrubbing       bool   `json:"scrubbing"`
	Scrubbed        uint64 `json:"scrubbed_bytes"`
	LastScrubNS     int64  `json:"last_scrub_ns"`
	Damaged         uint64 `json:"damaged"`
	Missing         uint64 `json:"missing"`
	Repaired        uint64 `json:"repaired"`
	Unrepaired      uint64 `json:"unrepaired"`
	Reclaimed       uint64 `json:"reclaimed"`
	LastReconcileNS int64  `json:"last_reconcile_ns"`
}

type groupDoc struct {
	ID       cfs.PGID  `json:"id"`
	Geometry string    `json:"geometry"`
	Epoch    cfs.Epoch `json:"epoch"`
	Writable bool      `json:"writable"`
	Stripes  uint64    `json:"stripes"`
	RawBytes uint64    `json:"raw_bytes"`
	Slots    []slotDoc `json:"slots"`
}

type slotDoc struct {
	Device  string `json:"device"`
	Filling bool   `json:"filling"`
	Source  string `json:"source,omitempty"`
}

// jobDoc is a job with what follows from its numbers.
type jobDoc struct {
	Device     string `json:"device"`
	Kind       string `json:"kind"`
	State      string `json:"state"`
	Bound      uint64 `json:"rate_bytes"` // of each node in a second; 0 for none
	Done       uint64 `json:"done_bytes"`
	Total      uint64 `json:"total_bytes"`
	StartedNS  int64  `json:"started_ns"`
	ChangedNS  int64  `json:"changed_ns"`
	PerSecond  uint64 `json:"bytes_per_second"` // since it started; 0 for unknown
	ETASeconds *int64 `json:"eta_seconds"`      // null for unknown
}

// newJobDoc works out rate and time left; perSecond is a rate that was observed,
// 0 for none: the mean since the start then.
func newJobDoc(j *cfs.Job, now time.Time, perSecond uint64) jobDoc {
	d := jobDoc{Device: j.Device.String(), Kind: j.Kind.String(), State: j.State.String(), Bound: j.RateBytes,
		Done: j.DoneBytes, Total: j.TotalBytes, StartedNS: j.StartedNS, ChangedNS: j.ChangedNS}
	if j.State != cfs.JobRunning {
		return d
	}
	elapsed := now.Sub(time.Unix(0, j.StartedNS)).Seconds()
	if d.PerSecond = perSecond; perSecond == 0 && elapsed > 0 {
		d.PerSecond = uint64(float64(j.DoneBytes) / elapsed)
	}
	if d.PerSecond > 0 && j.TotalBytes >= j.DoneBytes {
		eta := int64((j.TotalBytes - j.DoneBytes) / d.PerSecond)
		d.ETASeconds = &eta
	}
	return d
}

// ended reports that a job does nothing any more.
func ended(j *cfs.Job) bool { return j.State == cfs.JobDone || j.State == cfs.JobCancelled }

// sorted returns a copy of s in the order of a key.
func sorted[T any, K cmp.Ordered](s []T, key func(*T) K) []T {
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b T) int { return cmp.Compare(key(&a), key(&b)) })
	return s
}

// newStatusDoc turns what a cluster's leader and servers have said into the
// document that is printed.
func newStatusDoc(s *state, servers []inspection, now time.Time) *statusDoc {
	r := s.reply
	statfs := r.Statfs
	d := &statusDoc{
		Health: assess(s, servers), ClusterID: r.ClusterId, Leader: cfs.NodeID(r.LeaderId), LeaderAddr: r.LeaderAddr,
		AnsweredBy: cfs.NodeID(r.NodeId), Term: r.Term, CommitIndex: r.CommitIndex, AppliedIndex: r.AppliedIndex,
		FirstIndex: r.FirstIndex, MapVersion: s.m.Version, Sessions: r.Sessions,
		Space:    spaceDoc{Total: statfs.GetTotalBytes(), Free: statfs.GetFreeBytes(), Inodes: statfs.GetInodes()},
		Security: securityOf(s.m),
		Jobs:     []jobDoc{}, Nodes: []nodeDoc{}, Devices: []deviceDoc{}, Groups: []groupDoc{},
	}
	d.Space.Used = d.Space.Total - min(d.Space.Free, d.Space.Total)
	errs := map[cfs.NodeID]string{}
	own := map[cfs.DeviceID]*wirepb.DeviceInfo{}
	for _, v := range servers {
		if v.err != nil {
			errs[v.node.ID] = cli.OneLine(v.err)
			continue
		}
		for _, i := range v.reply.GetDevices() {
			own[cfs.DeviceID(i.Id)] = i
		}
	}
	for _, n := range sorted(s.m.Nodes, func(n *cfs.Node) cfs.NodeID { return n.ID }) {
		d.Nodes = append(d.Nodes, nodeDoc{ID: n.ID, Addr: n.Addr, State: n.State.String(), Voter: n.Voter, Learner: n.Learner, Leader: n.ID == d.Leader, Error: errs[n.ID]})
	}
	for _, v := range sorted(s.m.Devices, func(v *cfs.Device) cfs.DeviceID { return v.ID }) {
		d.addDevice(&v, s.job(v.ID), own[v.ID])
	}
	for _, g := range sorted(s.m.Groups, func(g *cfs.PG) cfs.PGID { return g.ID }) {
		d.addGroup(&g, s.usage[g.ID])
	}
	for _, j := range sorted(s.m.Jobs, func(j *cfs.Job) cfs.DeviceID { return j.Device }) {
		d.Jobs = append(d.Jobs, newJobDoc(&j, now, 0))
	}
	return d
}

func (d *statusDoc) addDevice(v *cfs.Device, j *cfs.Job, own *wirepb.DeviceInfo) {
	doc := deviceDoc{ID: v.ID.String(), Node: v.ID.Node(), Slot: v.ID.Slot(), UUID: v.UUID.String(), State: v.State.String(),
		Draining: v.Draining, Full: v.Full, Capacity: v.Capacity, Used: v.Used, FeedPos: v.FeedPos}
	if j != nil && !ended(j) {
		doc.Job = j.Kind.String() + " " + j.State.String()
	}
	if own != nil {
		doc.Own = &ownDoc{Path: own.Path, Failed: own.Failed, Live: own.LiveBytes, Occupied: own.OccupiedBytes, Records: own.Records,
			Scrubbing: own.Scrubbing, Scrubbed: own.ScrubbedBytes, LastScrubNS: own.LastScrubNs, Damaged: own.Damaged, Missing: own.Missing,
			Repaired: own.Repaired, Unrepaired: own.Unrepaired, Reclaimed: own.Reclaimed, LastReconcileNS: own.LastReconcileNs}
	}
	d.Devices = append(d.Devices, doc)
	if v.State != cfs.StateOut {
		d.Space.RawCapacity += v.Capacity
		d.Space.RawUsed += v.Used
		d.Space.RawOccupied += own.GetOccupiedBytes()
	}
}

func (d *statusDoc) addGroup(g *cfs.PG, use cfs.GroupUsage) {
	doc := groupDoc{ID: g.ID, Geometry: g.Geometry.String(), Epoch: g.Epoch, Writable: g.Writable,
		Stripes: use.Stripes, RawBytes: use.RawBytes, Slots: []slotDoc{}}
	for _, s := range g.Slots {
		slot := slotDoc{Device: s.Device.String(), Filling: s.Filling}
		if s.Filling && s.Source != 0 {
			slot.Source = s.Source.String()
		}
		doc.Slots = append(doc.Slots, slot)
	}
	d.Groups = append(d.Groups, doc)
	d.Space.RawLive += use.RawBytes
}
