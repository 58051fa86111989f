package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
)

// barWidth is the width of a progress bar in characters.
const barWidth = 20

func printStatus(w io.Writer, d *statusDoc) error {
	leader := "none"
	if d.Leader != 0 {
		leader = fmt.Sprintf("node %d (%s)", d.Leader, d.LeaderAddr)
	}
	nodesUp, devicesUp, devicesOut, removed, writable := 0, 0, 0, 0, 0
	for _, n := range d.Nodes {
		if n.State == cfs.StateUp.String() {
			nodesUp++
		}
	}
	for _, v := range d.Devices {
		switch {
		case v.removed():
			removed++
		case v.State == cfs.StateOut.String():
			devicesOut++
		case v.State == cfs.StateUp.String():
			devicesUp++
		}
	}
	for _, g := range d.Groups {
		if g.Writable {
			writable++
		}
	}
	out := ""
	if devicesOut > 0 {
		out = fmt.Sprintf(", %d out", devicesOut)
	}
	if removed > 0 {
		out += fmt.Sprintf(", %d removed", removed)
	}
	t := cli.NewTable(w, "HEALTH", d.Health.State)
	for _, p := range d.Health.Problems {
		t.Row("", p)
	}
	t.Row("cluster", d.ClusterID)
	t.Row("security", d.Security)
	t.Row("leader", fmt.Sprintf("%s, term %d", leader, d.Term))
	t.Row("nodes", fmt.Sprintf("%d of %d up", nodesUp, len(d.Nodes)))
	t.Row("devices", fmt.Sprintf("%d of %d up%s", devicesUp, len(d.Devices)-devicesOut-removed, out))
	t.Row("groups", fmt.Sprintf("%d, %d take writes", len(d.Groups), writable))
	s := &d.Space
	t.Row("space", fmt.Sprintf("%s used, %s free of %s", cli.Size(s.Used), cli.Size(s.Free), cli.Size(s.Total)))
	t.Row("raw", fmt.Sprintf("%s of stripes, %s used on devices (%s in segments) of %s",
		cli.Size(s.RawLive), cli.Size(s.RawUsed), cli.Size(s.RawOccupied), cli.Size(s.RawCapacity)))
	t.Row("inodes", s.Inodes)
	t.Row("sessions", d.Sessions)
	t.Row("map", fmt.Sprintf("version %d", d.MapVersion))
	t.Row("log", fmt.Sprintf("%d committed, %d applied, kept from %d", d.CommitIndex, d.AppliedIndex, d.FirstIndex))
	for _, j := range d.Jobs {
		if j.State == cfs.JobRunning.String() || j.State == cfs.JobPaused.String() {
			t.Row("job", j.line())
		}
	}
	return t.Flush()
}

// line is a job as people follow it.
func (j *jobDoc) line() string {
	return fmt.Sprintf("%s of %s %s: %s %s, %s/s, %s left", j.Kind, j.Device, j.State, bar(j.Done, j.Total),
		cli.Percent(min(j.Done, j.Total), j.Total), j.rate(), j.left())
}

// rate is bytes in a second, "-" for unknown.
func (j *jobDoc) rate() string {
	if j.PerSecond == 0 {
		return "-"
	}
	return cli.Size(j.PerSecond)
}

// left is the time to the end, "-" for unknown.
func (j *jobDoc) left() string {
	if j.ETASeconds == nil {
		return "-"
	}
	return (time.Duration(*j.ETASeconds) * time.Second).String()
}

// bar is a progress bar.
func bar(done, total uint64) string {
	full := 0
	if total > 0 {
		full = int(float64(min(done, total)) / float64(total) * barWidth)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "]"
}

func printNodes(w io.Writer, d *statusDoc) error {
	t := cli.NewTable(w, "NODE", "ADDRESS", "STATE", "ROLE", "DEVICES", "ANSWERS")
	for _, n := range d.Nodes {
		role := "storage"
		if n.Voter {
			role = "voter"
		}
		if n.Learner {
			role = "learner"
		}
		if n.Leader {
			role = "leader"
		}
		devices := 0
		for _, v := range d.Devices {
			if v.Node == n.ID && v.State != cfs.StateOut.String() {
				devices++
			}
		}
		answers := "yes"
		if n.Error != "" {
			answers = "no: " + n.Error
		}
		t.Row(n.ID, n.Addr, n.State, role, devices, answers)
	}
	return t.Flush()
}

func printDevices(w io.Writer, d *statusDoc) error {
	t := cli.NewTable(w, "DEVICE", "STATE", "JOB", "CAPACITY", "USED", "USE%", "OCCUPIED", "SCRUBBED", "DAMAGED", "UNREPAIRED", "UUID", "PATH")
	now := time.Now()
	for _, v := range d.Devices {
		state := v.State
		switch {
		case v.removed():
			state = "removed"
		case v.Draining:
			state += ",draining"
		}
		if v.Full {
			state += ",full"
		}
		occupied, scrubbed, damaged, unrepaired, path := "-", "-", "-", "-", "-"
		if o := v.Own; o != nil {
			if o.Failed {
				state += ",failed"
			}
			occupied, scrubbed, path = cli.Size(o.Occupied), o.scrubAge(now), o.Path
			damaged, unrepaired = fmt.Sprint(o.Damaged), fmt.Sprint(o.Unrepaired)
		}
		job := v.Job
		if job == "" {
			job = "-"
		}
		t.Row(v.ID, state, job, cli.Size(v.Capacity), cli.Size(v.Used), cli.Percent(v.Used, v.Capacity), occupied, scrubbed, damaged, unrepaired, v.UUID, path)
	}
	return t.Flush()
}

// removed reports that a device is out because somebody removed it; one that is only out may come back.
func (v *deviceDoc) removed() bool { return v.State == cfs.StateOut.String() && v.Draining }

// scrubAge is when the last whole scrub ended, or how far the present one is.
func (o *ownDoc) scrubAge(now time.Time) string {
	if o.Scrubbing {
		return "now, " + cli.Percent(min(o.Scrubbed, o.Live), o.Live)
	}
	return age(o.LastScrubNS, now)
}

// age is how long ago something was, in one unit.
func age(ns int64, now time.Time) string {
	if ns == 0 {
		return "never"
	}
	d := max(now.Sub(time.Unix(0, ns)), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

func printGroups(w io.Writer, d *statusDoc) error {
	t := cli.NewTable(w, "GROUP", "GEOMETRY", "EPOCH", "WRITES", "STRIPES", "BYTES", "SLOTS")
	for _, g := range d.Groups {
		writes := "no"
		if g.Writable {
			writes = "yes"
		}
		slots := make([]string, len(g.Slots))
		for i, s := range g.Slots {
			slots[i] = s.Device
			switch {
			case s.Source != "":
				slots[i] += "(filling from " + s.Source + ")"
			case s.Filling:
				slots[i] += "(filling)"
			}
		}
		t.Row(g.ID, g.Geometry, g.Epoch, writes, g.Stripes, cli.Size(g.RawBytes), strings.Join(slots, " "))
	}
	return t.Flush()
}
