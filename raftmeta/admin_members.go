package raftmeta

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
)

// ofMembers reports that a verb changes the membership or a whole node.
func ofMembers(v wire.Verb) bool { return v >= wire.VerbNodeDrain && v <= wire.VerbVoterReplace }

// members carries out a verb of the membership, in the duties' goroutine.
func (c *adminCall) members(ctx context.Context, d *duties) (string, error) {
	m, r := d.n.Map(), d.n.roster.Load()
	switch c.verb {
	case wire.VerbVoterAdd:
		return c.addVoter(ctx, d, m, r, c.node, 0)
	case wire.VerbVoterReplace:
		if v := r.find(c.node); v == nil || v.Learner {
			return "", cfs.Errorf("voter replace", cfs.NotFound, "node %d is no voter", c.node)
		}
		return c.addVoter(ctx, d, m, r, c.other, c.node)
	case wire.VerbVoterRemove:
		return c.removeVoter(ctx, d, r)
	case wire.VerbNodeDrain:
		return c.drainNode(ctx, d, m)
	case wire.VerbNodeRemove:
		return c.removeNode(ctx, d, m, r)
	}
	return "", cfs.Errorf("admin", cfs.Unsupported, "verb %d is not one of the leader's", c.verb)
}

// beatOf is a node's last heartbeat, nil for none.
func (d *duties) beatOf(id cfs.NodeID) *beat {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.beats[id]
}

func nodeOf(m *cfs.Map, id cfs.NodeID) *cfs.Node {
	for i := range m.Nodes {
		if m.Nodes[i].ID == id {
			return &m.Nodes[i]
		}
	}
	return nil
}

// addVoter makes a node a learner, which the duties bring on from there.
func (c *adminCall) addVoter(ctx context.Context, d *duties, m *cfs.Map, r *roster, id, replaces cfs.NodeID) (string, error) {
	const op = "voter add"
	n, b := nodeOf(m, id), d.beatOf(id)
	// One that was removed a moment ago ends its replica, and says so with its next heartbeat.
	for begun := time.Now(); b != nil && b.node.Voter && r.find(id) == nil && time.Since(begun) < 2*d.n.cfg.NodeTimeout && ctx.Err() == nil; b = d.beatOf(id) {
		sleepOr(ctx, dutyInterval)
	}
	switch v := r.find(id); {
	case v != nil && v.Learner && v.Replaces == replaces:
		return fmt.Sprintf("node %d is a learner already, and becomes a voter when it has caught up", id), nil
	case v != nil:
		return "", cfs.Errorf(op, cfs.Exists, "node %d is a member already", id)
	case n == nil:
		return "", cfs.Errorf(op, cfs.NotFound, "there is no node %d: start it first with \"cfs server join\"", id)
	case n.State != cfs.StateUp || b == nil:
		return "", cfs.Errorf(op, cfs.Unavailable, "node %d is %v", id, n.State)
	case b.node.Voter:
		return "", cfs.Errorf(op, cfs.Busy, "node %d has not ended its earlier replica yet", id)
	case len(r.members) >= maxVoters:
		return "", cfs.Errorf(op, cfs.TooBig, "there are %d members, at most %d", len(r.members), maxVoters)
	case slices.ContainsFunc(r.members, func(m fsm.Member) bool { return m.Learner }):
		return "", cfs.Errorf(op, cfs.Busy, "another node is a learner: one at a time")
	}
	next := fsm.Member{ID: id, Addr: n.Addr, Learner: true, Replaces: replaces}
	err := d.changeMembers(ctx, &memberChange{member: next}, func(r *roster) bool { return r.find(id) != nil })
	text := fmt.Sprintf("node %d is a learner, and becomes a voter when it has caught up", id)
	if replaces != 0 {
		text += fmt.Sprintf("; node %d is removed from the voters then", replaces)
	}
	return text, err
}

// removeVoter ends a node's part in the log.
func (c *adminCall) removeVoter(ctx context.Context, d *duties, r *roster) (string, error) {
	const op = "voter remove"
	v := r.find(c.node)
	if v == nil {
		return "", cfs.Errorf(op, cfs.NotFound, "node %d is no voter", c.node)
	}
	if !v.Learner {
		live, all, err := d.live(ctx, c.node)
		switch {
		case err != nil:
			return "", err
		case all == 0:
			return "", cfs.Errorf(op, cfs.Invalid, "node %d is the last voter", c.node)
		case live <= all/2:
			return "", cfs.Errorf(op, cfs.Invalid, "of the %d voters that would be left %d are heard of, which is no majority", all, live)
		}
	}
	return fmt.Sprintf("node %d is no voter any more", c.node), d.removeMember(ctx, c.node)
}

// drainNode drains every device of a node as the removal of each does.
func (c *adminCall) drainNode(ctx context.Context, d *duties, m *cfs.Map) (string, error) {
	const op = "node drain"
	if nodeOf(m, c.node) == nil {
		return "", cfs.Errorf(op, cfs.NotFound, "there is no node %d", c.node)
	}
	usage, err := d.n.usage()
	if err != nil {
		return "", err
	}
	var ops []cfs.Op
	count := 0
	left := *m
	left.Devices = slices.Clone(m.Devices)
	for i, v := range m.Devices {
		if v.ID.Node() != c.node {
			continue
		}
		// What is spared is judged as if those before were gone.
		call := adminCall{verb: wire.VerbDeviceRemove, id: v.ID, force: c.force}
		more, _, err := call.remove(&left, usage, v, jobOf(m, v.ID))
		if err != nil {
			return "", cfs.E(op, cfs.KindOf(err), err)
		}
		left.Devices[i].Draining = true
		ops = append(ops, more...)
		count++
	}
	if len(ops) > 0 {
		err = d.propose(ctx, ops...)
	}
	return fmt.Sprintf("the %d devices of node %d are drained", count, c.node), err
}

// removeNode forgets a node that has nothing and is nobody.
func (c *adminCall) removeNode(ctx context.Context, d *duties, m *cfs.Map, r *roster) (string, error) {
	const op = "node remove"
	n := nodeOf(m, c.node)
	if n == nil {
		return "", cfs.Errorf(op, cfs.NotFound, "there is no node %d", c.node)
	}
	if r.find(c.node) != nil {
		return "", cfs.Errorf(op, cfs.Invalid, "node %d is a voter: remove it from the voters first", c.node)
	}
	usage, err := d.n.usage()
	if err != nil {
		return "", err
	}
	for _, v := range m.Devices {
		if v.ID.Node() == c.node && (!v.Leaving() || holds(m, v.ID, usage)) {
			return "", cfs.Errorf(op, cfs.Invalid, "device %s is in use: drain the node first", v.ID)
		}
	}
	if n.State == cfs.StateUp || n.State == cfs.StateSuspect {
		return "", cfs.Errorf(op, cfs.Busy, "node %d is running: stop it first", c.node)
	}
	if err := d.propose(ctx, cfs.Op{Kind: cfs.OpRemoveNode, Node: *n}); err != nil {
		return "", cfs.Errorf(op, cfs.KindOf(err), "groups still name devices of node %d: try again later: %w", c.node, err)
	}
	d.mu.Lock()
	delete(d.beats, c.node)
	d.mu.Unlock()
	return fmt.Sprintf("node %d is forgotten", c.node), nil
}

// maxVoters bounds the members: each commit goes to all of them.
const maxVoters = 9
