package main

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// deviceCommand is `cfs admin device`.
func (f *adminFlags) deviceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "device", Short: "add, remove and replace devices"}
	var node uint16
	var force, wait bool
	flags := func(c *cobra.Command, forceHelp, waitHelp string) *cobra.Command {
		c.Flags().BoolVar(&force, "force", false, forceHelp)
		c.Flags().BoolVar(&wait, "wait", false, waitHelp)
		cmd.AddCommand(c)
		return c
	}
	const forceAdd = "add it although it was formatted for something else"
	add := flags(f.command("add PATH --node ID", "give a server another device", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			return f.deviceAdd(c, cc, cfs.NodeID(node), args[0], force, wait)
		}), forceAdd, "follow the rebalancing until it is done")
	add.Flags().Uint16Var(&node, "node", 0, "the server that the device is at")
	_ = add.MarkFlagRequired("node") // it fails only for a name that is not a flag
	flags(f.command("remove DEVICE", "move a device's shards elsewhere, or compute them anew where it is lost", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			return f.deviceRemove(c, cc, args[0], force, wait)
		}), "remove it although redundancy suffers", "follow the job until it is done")
	flags(f.command("replace DEVICE PATH", "add a device to the same server, then remove the old one", cobra.ExactArgs(2),
		func(c *cobra.Command, cc *conn, args []string) error {
			return f.deviceReplace(c, cc, args[0], args[1], force, wait)
		}), forceAdd, "follow the job until it is done")
	return cmd
}

// checkPath refuses a path that means nothing on another machine.
func checkPath(path string) error {
	if !filepath.IsAbs(path) {
		return cli.Usage("PATH", "%q is not absolute: it is a path on the server", path)
	}
	return nil
}

// known is a device by its name, and the cluster, which has it.
func known(c *cobra.Command, cc *conn, name string) (cfs.DeviceID, *state, error) {
	id, err := parseDevice(name)
	if err != nil {
		return 0, nil, err
	}
	s, err := cc.status(c.Context())
	if err == nil {
		_, err = s.device(id)
	}
	return id, s, err
}

// addDevice asks a node to serve a device.
func (f *adminFlags) addDevice(c *cobra.Command, cc *conn, n *cfs.Node, path string, force bool) (cfs.DeviceID, error) {
	reply := &wirepb.AdminReply{}
	err := cc.ask(c.Context(), n.Addr, wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbDeviceAdd), Path: path, Force: force}, reply)
	id := cfs.DeviceID(reply.Device)
	if err == nil && id.Node() != n.ID {
		err = cfs.Errorf(n.Addr, cfs.BadRequest, "node %d says that it has added %v", n.ID, id)
	}
	return id, err
}

func (f *adminFlags) deviceAdd(c *cobra.Command, cc *conn, node cfs.NodeID, path string, force, wait bool) error {
	if err := checkPath(path); err != nil {
		return err
	}
	s, err := cc.status(c.Context())
	if err != nil {
		return err
	}
	n, err := s.node(node)
	if err != nil {
		return err
	}
	id, err := f.addDevice(c, cc, n, path, force)
	if err != nil {
		return err
	}
	doc := &changeDoc{Device: id.String(), Ended: wait, Text: fmt.Sprintf(
		"%s is device %v. It takes writes from now on; where the others are fuller, shards move to it. Watch: cfs admin job list", path, id)}
	if wait {
		asked, moved := time.Now(), false
		if err := f.follow(c, cc, id, func(s *state) outcome {
			moved = moved || s.job(id) != nil
			return added(s, id, time.Since(asked) > f.pace.grace)
		}); err != nil {
			return err
		}
		if doc.Text = fmt.Sprintf("%s is device %v, and has its share.", path, id); !moved {
			doc.Text = fmt.Sprintf("%s is device %v. Nothing is being moved to it.", path, id)
		}
	}
	return f.printChange(c, doc)
}

// added says how far a new device is. After the time of grace no job means that
// there is nothing to move.
func added(s *state, id cfs.DeviceID, graceOver bool) outcome {
	j := s.job(id)
	switch {
	case !isUp(s, id):
		return waiting
	case j == nil && graceOver:
		return finished
	case j == nil:
		return waiting
	case j.State == cfs.JobCancelled:
		return cancelled
	case j.State == cfs.JobDone:
		return finished
	}
	return waiting
}

func isUp(s *state, id cfs.DeviceID) bool {
	d := s.find(id)
	return d != nil && d.State == cfs.StateUp
}

func (f *adminFlags) deviceRemove(c *cobra.Command, cc *conn, name string, force, wait bool) error {
	id, s, err := known(c, cc, name)
	if err != nil {
		return err
	}
	text, err := f.remove(c, cc, s, id, force, wait)
	if err != nil {
		return err
	}
	return f.printChange(c, &changeDoc{Device: id.String(), Ended: wait, Text: text})
}

// remove has the leader remove a device of s, follows that if it is wanted, and
// says what happens next.
func (f *adminFlags) remove(c *cobra.Command, cc *conn, s *state, id cfs.DeviceID, force, wait bool) (string, error) {
	before := s.job(id)
	reply, err := cc.admin(c.Context(), &wirepb.Admin{Verb: uint32(wire.VerbDeviceRemove), Device: uint32(id), Force: force})
	if err != nil {
		return "", err
	}
	if wait {
		word := "out"
		err := f.follow(c, cc, id, func(s *state) outcome {
			if d := s.find(id); d == nil || d.Draining {
				word = "removed"
			}
			return removed(s, id, before)
		})
		return fmt.Sprintf("Device %v is %s: nothing counts on it any more.", id, word), err
	}
	next := "Its shards move elsewhere; it stays in use until they are all there."
	if d := s.find(id); d != nil && d.State != cfs.StateUp && d.State != cfs.StateSuspect {
		next = "Its shards are computed anew, elsewhere."
	}
	text := fmt.Sprintf("Device %v is being removed. %s Watch: cfs admin job list", id, next)
	if reply.Text != "" {
		text += "\nThe leader says: " + reply.Text
	}
	return text, nil
}

// removed says how far the removal of a device is; before is its job before
// that, nil for none.
func removed(s *state, id cfs.DeviceID, before *cfs.Job) outcome {
	j := s.job(id)
	if j != nil && (j.Kind == cfs.JobRebalance || before != nil && ended(before) && *j == *before) {
		j = nil // of an earlier time
	}
	d := s.find(id)
	switch {
	case j != nil && j.State == cfs.JobDone:
		return finished
	case j != nil && j.State == cfs.JobCancelled:
		return cancelled
	case j == nil && (d == nil || d.State == cfs.StateOut && !s.holds(id)):
		return finished
	}
	return waiting
}

func (f *adminFlags) deviceReplace(c *cobra.Command, cc *conn, name, path string, force, wait bool) error {
	if err := checkPath(path); err != nil {
		return err
	}
	old, s, err := known(c, cc, name)
	if err != nil {
		return err
	}
	n, err := s.node(old.Node())
	if err != nil {
		return err
	}
	id, err := f.addDevice(c, cc, n, path, force)
	if err != nil {
		return err
	}
	if s, err = f.awaitUp(c, cc, old, id); err != nil {
		return err
	}
	text, err := f.remove(c, cc, s, old, false, wait)
	if err != nil {
		return cfs.Errorf(fmt.Sprintf("%s is device %v; remove %v", path, id, old), cfs.KindOf(err), "%w", err)
	}
	return f.printChange(c, &changeDoc{Device: old.String(), Added: id.String(), Ended: wait,
		Text: fmt.Sprintf("%s is device %v.\n%s", path, id, text)})
}

// awaitUp waits until the cluster knows a new device that replaces old.
func (f *adminFlags) awaitUp(c *cobra.Command, cc *conn, old, id cfs.DeviceID) (*state, error) {
	deadline := time.Now().Add(f.timeout)
	for {
		s, err := cc.status(c.Context())
		if err == nil && isUp(s, id) {
			return s, nil
		}
		if time.Now().After(deadline) || c.Context().Err() != nil {
			return nil, cfs.Errorf("replace "+old.String(), cfs.Timeout,
				"%v was added and is not up after %v; %v was not removed: see cfs admin devices, then remove it", id, f.timeout, old)
		}
		if err := sleep(c.Context(), min(f.pace.poll, leaderPause)); err != nil {
			return nil, err
		}
	}
}

// jobCommand is `cfs admin job`.
func (f *adminFlags) jobCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "job", Short: "look at rebuilds, drains and rebalancing, and steer them"}
	cmd.AddCommand(f.command("list", "all jobs", cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error {
		s, err := cc.status(c.Context())
		if err != nil {
			return err
		}
		jobs := newStatusDoc(s, nil, time.Now()).Jobs
		return f.print(c, map[string]any{"jobs": jobs}, func(w io.Writer) error { return printJobs(w, jobs) })
	}))
	for _, v := range []struct {
		name, short, done string
		verb              wire.Verb
	}{
		{"pause", "stop a job for now", "is paused", wire.VerbJobPause},
		{"resume", "let a paused job go on", "goes on", wire.VerbJobResume},
		{"cancel", "end a job; a device that was draining takes writes again", "is cancelled", wire.VerbJobCancel},
	} {
		cmd.AddCommand(f.command(v.name+" DEVICE", v.short, cobra.ExactArgs(1), func(c *cobra.Command, cc *conn, args []string) error {
			return f.steer(c, cc, args[0], &wirepb.Admin{Verb: uint32(v.verb)}, v.done)
		}))
	}
	cmd.AddCommand(f.command("rate DEVICE BYTES", "bound what each server moves for a job in a second: 64MiB; 0 for no bound", cobra.ExactArgs(2),
		func(c *cobra.Command, cc *conn, args []string) error {
			var rate units.Bytes
			if err := rate.Set(args[1]); err != nil {
				return cli.Usage("BYTES", "%v", err)
			}
			done := "has no bound any more"
			if rate > 0 {
				done = fmt.Sprintf("moves at most %v in a second at each server", rate)
			}
			return f.steer(c, cc, args[0], &wirepb.Admin{Verb: uint32(wire.VerbJobRate), RateBytes: uint64(rate)}, done)
		}))
	return cmd
}

// steer changes the job of a device; done says what it does then.
func (f *adminFlags) steer(c *cobra.Command, cc *conn, name string, req *wirepb.Admin, done string) error {
	id, s, err := known(c, cc, name)
	if err != nil {
		return err
	}
	j := s.job(id)
	if j == nil {
		return cfs.Errorf("", cfs.NotFound, "device %v has no job", id)
	}
	req.Device = uint32(id)
	if _, err := cc.admin(c.Context(), req); err != nil {
		return err
	}
	return f.printChange(c, &changeDoc{Device: id.String(), Text: fmt.Sprintf("The %v of %v %s.", j.Kind, id, done)})
}

func printJobs(w io.Writer, jobs []jobDoc) error {
	t := cli.NewTable(w, "DEVICE", "JOB", "STATE", "DONE", "TOTAL", "DONE%", "PER SECOND", "LEFT", "BOUND")
	for _, j := range jobs {
		bound := "none"
		if j.Bound > 0 {
			bound = cli.Size(j.Bound)
		}
		t.Row(j.Device, j.Kind, j.State, cli.Size(j.Done), cli.Size(j.Total), cli.Percent(min(j.Done, j.Total), j.Total), j.rate(), j.left(), bound)
	}
	return t.Flush()
}
