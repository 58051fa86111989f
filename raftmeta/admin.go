package raftmeta

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// adminCall is a change that an administrator asks the leader for.
type adminCall struct {
	verb  wire.Verb
	id    cfs.DeviceID
	rate  uint64
	force bool
	node  cfs.NodeID // of the verbs of nodes and voters
	other cfs.NodeID

	done chan adminOutcome // room for one
}

type adminOutcome struct {
	text string // what was done, for people
	err  error
}

// serveAdmin has the leader's duties carry out what they alone may.
func (n *Node) serveAdmin(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var m wirepb.Admin
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	if resp, ours, err := n.serveOwn(ctx, &m); ours || err != nil {
		return resp, err
	}
	if carry := n.identityVerb(wire.Verb(m.Verb)); carry != nil {
		reply, err := carry(ctx, &m)
		if err != nil {
			return wire.Response{}, err
		}
		return wire.Response{Body: reply}, nil
	}
	if m.Node > math.MaxUint16 || m.Other > math.MaxUint16 {
		return wire.Response{}, cfs.Errorf("admin", cfs.BadRequest, "node %d, %d", m.Node, m.Other)
	}
	c := &adminCall{verb: wire.Verb(m.Verb), id: cfs.DeviceID(m.Device), rate: m.RateBytes, force: m.Force,
		node: cfs.NodeID(m.Node), other: cfs.NodeID(m.Other), done: make(chan adminOutcome, 1)}
	if (c.verb < wire.VerbDeviceRemove || c.verb > wire.VerbJobRate) && !ofMembers(c.verb) {
		return wire.Response{}, cfs.Errorf("admin", cfs.Unsupported, "verb %d is not one of the leader's", m.Verb)
	}
	d := n.duties.Load()
	if d == nil {
		return wire.Response{}, n.notLeader("admin")
	}
	select {
	case d.admin <- c:
	case <-d.ended:
		return wire.Response{}, n.notLeader("admin")
	case <-ctx.Done():
		return wire.Response{}, cfs.E("admin", contextKind(ctx), ctx.Err())
	}
	select {
	case o := <-c.done:
		if o.err != nil {
			return wire.Response{}, o.err
		}
		return wire.Response{Body: &wirepb.AdminReply{Device: m.Device, Text: o.text}}, nil
	case <-ctx.Done():
		return wire.Response{}, cfs.E("admin", contextKind(ctx), ctx.Err())
	}
}

// serve runs in the duties' goroutine. The change is proposed to the end even where
// the caller has gone: what duties propose next is to come after it.
func (c *adminCall) serve(ctx context.Context, d *duties) {
	if ofMembers(c.verb) {
		text, err := c.members(ctx, d)
		if err == nil {
			d.n.log.Info("administrator", "did", text)
		}
		c.done <- adminOutcome{text, err}
		return
	}
	m := d.n.Map()
	usage, err := d.n.usage()
	var ops []cfs.Op
	var text string
	if err == nil {
		ops, text, err = c.plan(m, usage)
	}
	if err == nil && len(ops) > 0 {
		err = d.propose(ctx, ops...)
	}
	if err != nil && ctx.Err() != nil {
		err = d.n.notLeader("admin")
	}
	if err == nil {
		d.n.log.Info("administrator", "did", text)
	}
	c.done <- adminOutcome{text, err}
}

// plan is the operations that carry the call out, and what they do.
func (c *adminCall) plan(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage) ([]cfs.Op, string, error) {
	at := slices.IndexFunc(m.Devices, func(v cfs.Device) bool { return v.ID == c.id })
	if at < 0 {
		return nil, "", cfs.Errorf("admin", cfs.NotFound, "no device %s", c.id)
	}
	v, j := m.Devices[at], jobOf(m, c.id)
	if c.verb == wire.VerbDeviceRemove {
		return c.remove(m, usage, v, j)
	}
	return c.change(v, j)
}

// remove drains a device that is there, and gives up one that is not.
func (c *adminCall) remove(m *cfs.Map, usage func(cfs.PGID) cfs.GroupUsage, v cfs.Device, j *cfs.Job) ([]cfs.Op, string, error) {
	if j != nil && v.Draining && j.Kind != cfs.JobRebalance && j.State != cfs.JobCancelled {
		return nil, fmt.Sprintf("device %s leaves already: its %s is %s", v.ID, j.Kind, j.State), nil
	}
	if !v.Leaving() && !c.force && !fsm.CanSpare(m, v.ID) {
		return nil, "", cfs.Errorf("device remove", cfs.Invalid, "without device %s too few would be left for full stripes: "+
			"that takes four at least, of which two may be on one server; add one first, or force it", v.ID)
	}
	job := cfs.Job{Device: v.ID, Kind: cfs.JobDrain, State: cfs.JobRunning}
	text := fmt.Sprintf("device %s is drained", v.ID)
	if v.State == cfs.StateDown || v.State == cfs.StateOut {
		v, job.Kind = gone(v), cfs.JobRebuild
		v.Draining = true
		text = fmt.Sprintf("device %s is out: what it had is computed anew elsewhere", v.ID)
	} else {
		v.Draining = true
	}
	job.TotalBytes = fsm.JobBytes(m, usage, &job, func(cfs.PGID, int) uint64 { return 0 })
	ops := []cfs.Op{{Kind: cfs.OpSetDevice, Device: v}}
	// One that was given up before is being rebuilt, or has been.
	if j != nil && j.Kind == cfs.JobRebuild && (j.State == cfs.JobRunning || j.State == cfs.JobPaused || j.State == cfs.JobDone && !holds(m, v.ID, usage)) {
		return ops, fmt.Sprintf("device %s is out for good: its %s is %s", v.ID, j.Kind, j.State), nil
	}
	return append(ops, cfs.Op{Kind: cfs.OpSetJob, Job: job}), text, nil
}

// change changes a job that has not ended.
func (c *adminCall) change(v cfs.Device, j *cfs.Job) ([]cfs.Op, string, error) {
	if j == nil {
		return nil, "", cfs.Errorf("admin", cfs.NotFound, "device %s has no job", c.id)
	}
	next := *j
	switch may := j.State == cfs.JobRunning || j.State == cfs.JobPaused; {
	case c.verb == wire.VerbJobPause && j.State == cfs.JobRunning:
		next.State = cfs.JobPaused
	case c.verb == wire.VerbJobResume && j.State == cfs.JobPaused:
		next.State = cfs.JobRunning
	case c.verb == wire.VerbJobCancel && may:
		next.State = cfs.JobCancelled
	case c.verb == wire.VerbJobRate && may:
		next.RateBytes = c.rate
	default:
		return nil, "", cfs.Errorf("admin", cfs.Invalid, "the %s of device %s is %s", j.Kind, c.id, j.State)
	}
	ops := []cfs.Op{{Kind: cfs.OpSetJob, Job: next}}
	if next.State == cfs.JobCancelled && v.Draining {
		v.Draining = false
		ops = append(ops, cfs.Op{Kind: cfs.OpSetDevice, Device: v})
	}
	text := fmt.Sprintf("the %s of device %s is %s", next.Kind, c.id, next.State)
	if c.verb == wire.VerbJobRate {
		text = fmt.Sprintf("each server moves at most %d bytes a second for the %s of device %s", next.RateBytes, next.Kind, c.id)
		if next.RateBytes == 0 {
			text = fmt.Sprintf("the %s of device %s has no bound", next.Kind, c.id)
		}
	}
	return ops, text, nil
}
