package raftmeta

import (
	"context"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
)

// usage reads what each group holds.
func (n *Node) usage() (func(cfs.PGID) cfs.GroupUsage, error) {
	held := map[cfs.PGID]cfs.GroupUsage{}
	err := n.state.view(func(v kv.View) error {
		a, err := fsm.Read(v, &cfs.Query{Kind: cfs.QueryUsage})
		if err != nil {
			return err
		}
		for _, u := range a.Usage {
			held[u.PG] = u
		}
		return nil
	})
	return func(pg cfs.PGID) cfs.GroupUsage { return held[pg] }, err
}

// retire gives up devices that have been down for long. The time is this leader's
// own: another one waits anew.
func (d *duties) retire(ctx context.Context) error {
	var ops []cfs.Op
	for _, v := range d.n.Map().Devices {
		since, known := d.down[v.ID]
		switch {
		case v.State != cfs.StateDown:
			delete(d.down, v.ID)
		case !known:
			d.down[v.ID] = time.Now()
		case time.Since(since) > d.n.cfg.OutAfter && len(ops) < fsm.MaxOps:
			d.n.log.Warn("device is given up: it has been down for long", "id", v.ID.String(), "down", time.Since(since))
			ops = append(ops, cfs.Op{Kind: cfs.OpSetDevice, Device: gone(v)})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	return d.propose(ctx, ops...)
}

// gone is a device that is out.
func gone(v cfs.Device) cfs.Device {
	v.State, v.Full = cfs.StateOut, false
	return v
}

func jobOf(m *cfs.Map, id cfs.DeviceID) *cfs.Job {
	for i := range m.Jobs {
		if m.Jobs[i].Device == id {
			return &m.Jobs[i]
		}
	}
	return nil
}

// workJobs begins the jobs that the layout calls for, records how far the others
// are, and ends those that have nothing left to do.
func (d *duties) workJobs(ctx context.Context) error {
	if !d.settled {
		return nil
	}
	m := d.n.Map()
	usage, err := d.n.usage()
	if err != nil {
		return err
	}
	filled := d.filled(m)
	added := fsm.NewDevices(m, usage)
	var ops []cfs.Op
	for i := range m.Devices {
		v := &m.Devices[i]
		j := jobOf(m, v.ID)
		if next := begun(m, v, j, usage, slices.Contains(added, v.ID)); next != nil {
			next.TotalBytes = fsm.JobBytes(m, usage, next, filled)
			d.n.log.Info("job begins", "device", v.ID.String(), "kind", next.Kind.String(), "bytes", next.TotalBytes)
			ops = append(ops, cfs.Op{Kind: cfs.OpSetJob, Job: *next})
		} else if j != nil && j.Kind == cfs.JobRebuild && j.State != cfs.JobDone && v.State != cfs.StateOut {
			d.n.log.Info("job is done: the device came back", "device", v.ID.String(), "kind", j.Kind.String())
			j.State, j.TotalBytes = cfs.JobDone, j.DoneBytes
			ops = append(ops, cfs.Op{Kind: cfs.OpSetJob, Job: *j})
		} else if j != nil && j.State <= cfs.JobPaused {
			ops = append(ops, d.progress(m, v, *j, usage, filled)...)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	return d.propose(ctx, ops[:min(len(ops), fsm.MaxOps)]...)
}

// filled says how much of a filling slot is there, as its node last said.
func (d *duties) filled(m *cfs.Map) func(cfs.PGID, int) uint64 {
	there := map[slotOf]uint64{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range m.Groups {
		for i, s := range g.Slots {
			if b := d.beats[s.Device.Node()]; s.Filling && b != nil {
				there[slotOf{g.ID, i}] = b.fills[slotOf{g.ID, i}]
			}
		}
	}
	return func(pg cfs.PGID, slot int) uint64 { return there[slotOf{pg, slot}] }
}

// begun is the job that a device is to have now and has not, nil for none: to
// rebuild what a lost one had, or to fill one that holds nothing while others are full.
func begun(m *cfs.Map, v *cfs.Device, have *cfs.Job, usage func(cfs.PGID) cfs.GroupUsage, added bool) *cfs.Job {
	switch {
	case v.State == cfs.StateOut:
		// The rebuild of one that came back meanwhile is done: it is lost anew.
		if (have == nil || have.Kind != cfs.JobRebuild || have.State == cfs.JobDone) && holds(m, v.ID, usage) {
			next := &cfs.Job{Device: v.ID, Kind: cfs.JobRebuild, State: cfs.JobRunning}
			if have != nil {
				next.RateBytes = have.RateBytes
			}
			return next
		}
	case added:
		return &cfs.Job{Device: v.ID, Kind: cfs.JobRebalance, State: cfs.JobRunning}
	}
	return nil
}

// holds reports that a device has, or is the source of, shards of any group.
func holds(m *cfs.Map, id cfs.DeviceID, usage func(cfs.PGID) cfs.GroupUsage) bool {
	for _, g := range m.Groups {
		for _, s := range g.Slots {
			if (s.Device == id || s.Source == id) && usage(g.ID).Stripes > 0 {
				return true
			}
		}
	}
	return false
}

// progress is what to record of a job that has not ended.
func (d *duties) progress(m *cfs.Map, v *cfs.Device, j cfs.Job, usage func(cfs.PGID) cfs.GroupUsage, filled func(cfs.PGID, int) uint64) []cfs.Op {
	switch {
	case j.Kind == cfs.JobRebalance && v.Leaving():
		d.n.log.Info("job is called off: the device leaves", "device", v.ID.String(), "kind", j.Kind.String())
		j.State = cfs.JobCancelled
		return []cfs.Op{{Kind: cfs.OpSetJob, Job: j}}
	case j.Kind == cfs.JobRebalance && v.State == cfs.StateDown:
		return nil // it is waited for
	}
	if fsm.JobOver(m, usage, &j) && (j.Kind != cfs.JobRebalance || j.State == cfs.JobRunning) {
		d.n.log.Info("job is done", "device", v.ID.String(), "kind", j.Kind.String())
		delete(d.recorded, v.ID)
		j.State, j.DoneBytes = cfs.JobDone, j.TotalBytes
		ops := []cfs.Op{{Kind: cfs.OpSetJob, Job: j}}
		if v.Draining && v.State != cfs.StateOut { // nothing needs it any more; said before the job's end, which is only looked at once
			ops = slices.Insert(ops, 0, cfs.Op{Kind: cfs.OpSetDevice, Device: gone(*v)})
		}
		return ops
	}
	if time.Since(d.recorded[v.ID]) < d.n.cfg.JobInterval {
		return nil
	}
	d.recorded[v.ID] = time.Now()
	done := j.TotalBytes - min(fsm.JobBytes(m, usage, &j, filled), j.TotalBytes)
	if done == j.DoneBytes {
		return nil
	}
	j.DoneBytes = done
	return []cfs.Op{{Kind: cfs.OpSetJob, Job: j}}
}
