package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// memberChange is what a command does to a server as a whole.
type memberChange struct {
	verb   wire.Verb
	id     cfs.NodeID
	other  cfs.NodeID
	force  bool
	wait   bool
	done   string // what is said when it was followed to its end
	waits  string // what is said meanwhile
	finish func(s *state) bool
}

// voterCommand is `cfs admin voter`.
func (f *adminFlags) voterCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "voter", Short: "say which servers keep the namespace"}
	var wait bool
	flags := func(c *cobra.Command) *cobra.Command {
		c.Flags().BoolVar(&wait, "wait", false, "follow it until it is done")
		cmd.AddCommand(c)
		return c
	}
	flags(f.command("add NODE", "make a server a voter: a learner first, until it has caught up", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			id, err := parseNode(args[0])
			if err != nil {
				return err
			}
			return f.changeMember(c, cc, &memberChange{verb: wire.VerbVoterAdd, id: id, wait: wait,
				done: fmt.Sprintf("Node %d is a voter.", id), waits: fmt.Sprintf("node %d catches up", id),
				finish: func(s *state) bool { return s.votes(id) }})
		}))
	flags(f.command("replace OLD NEW", "make NEW a voter, then OLD a server that only stores", cobra.ExactArgs(2),
		func(c *cobra.Command, cc *conn, args []string) error {
			old, err := parseNode(args[0])
			if err != nil {
				return err
			}
			id, err := parseNode(args[1])
			if err != nil {
				return err
			}
			return f.changeMember(c, cc, &memberChange{verb: wire.VerbVoterReplace, id: old, other: id, wait: wait,
				done: fmt.Sprintf("Node %d is a voter in the place of node %d.", id, old), waits: fmt.Sprintf("node %d catches up", id),
				finish: func(s *state) bool { return s.votes(id) && !s.votes(old) }})
		}))
	flags(f.command("remove NODE", "make a voter a server that only stores", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			id, err := parseNode(args[0])
			if err != nil {
				return err
			}
			return f.changeMember(c, cc, &memberChange{verb: wire.VerbVoterRemove, id: id, wait: wait,
				done: fmt.Sprintf("Node %d is no voter any more.", id), waits: fmt.Sprintf("node %d is a voter still", id),
				finish: func(s *state) bool { return !s.votes(id) }})
		}))
	return cmd
}

// nodeCommand is `cfs admin node`.
func (f *adminFlags) nodeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "empty a server, and forget it"}
	var force, wait bool
	drain := f.command("drain NODE", "move the shards of all devices of a server elsewhere", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			id, err := parseNode(args[0])
			if err != nil {
				return err
			}
			return f.changeMember(c, cc, &memberChange{verb: wire.VerbNodeDrain, id: id, force: force, wait: wait,
				done: fmt.Sprintf("Node %d is empty: nothing counts on its devices.", id), waits: fmt.Sprintf("node %d is drained", id),
				finish: func(s *state) bool { return s.drained(id) }})
		})
	drain.Flags().BoolVar(&force, "force", false, "drain it although redundancy suffers")
	drain.Flags().BoolVar(&wait, "wait", false, "follow it until it is done")
	cmd.AddCommand(drain, f.command("remove NODE", "forget a server that is empty, no voter, and stopped", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			id, err := parseNode(args[0])
			if err != nil {
				return err
			}
			return f.changeMember(c, cc, &memberChange{verb: wire.VerbNodeRemove, id: id})
		}))
	return cmd
}

// parseNode reads a server's number.
func parseNode(text string) (cfs.NodeID, error) {
	id, err := strconv.ParseUint(text, 10, 16)
	if err != nil || id == 0 {
		return 0, cli.Usage("NODE", "%q is no server: want a number from 1 to 65535", text)
	}
	return cfs.NodeID(id), nil
}

// changeMember has the leader make a change, and follows it if that is wanted.
func (f *adminFlags) changeMember(c *cobra.Command, cc *conn, m *memberChange) error {
	if _, err := cc.status(c.Context()); err != nil { // it finds the leader
		return err
	}
	reply, err := cc.admin(c.Context(), &wirepb.Admin{Verb: uint32(m.verb), Node: uint32(m.id), Other: uint32(m.other), Force: m.force})
	if err != nil {
		return err
	}
	doc := &memberDoc{Node: m.id, Other: m.other, Text: reply.Text, Ended: m.finish == nil}
	if m.wait {
		if err := f.followMember(c, cc, m); err != nil {
			return err
		}
		doc.Text, doc.Ended = m.done, true
	}
	return f.printMember(c, doc)
}

// followMember looks at the cluster until the change is done. A cluster that does
// not answer for a while is asked again: leadership may move.
func (f *adminFlags) followMember(c *cobra.Command, cc *conn, m *memberChange) error {
	progress := cli.NewProgress(c.ErrOrStderr())
	defer progress.Clear()
	heard := time.Now()
	for {
		s, err := cc.status(c.Context())
		switch {
		case err == nil && m.finish(s):
			return nil
		case err == nil:
			heard = time.Now()
			progress.Show("%s", m.line(s))
		case c.Context().Err() != nil || time.Since(heard) > f.pace.patience:
			return err
		}
		if err := sleep(c.Context(), f.pace.poll); err != nil {
			return err
		}
	}
}

// line is how far a change is: that of a drain by its jobs.
func (m *memberChange) line(s *state) string {
	var done, total uint64
	for i := range s.m.Jobs {
		if j := &s.m.Jobs[i]; m.verb == wire.VerbNodeDrain && j.Device.Node() == m.id {
			done, total = done+j.DoneBytes, total+j.TotalBytes
		}
	}
	if total == 0 {
		return m.waits
	}
	return fmt.Sprintf("%s: %s %s of %s", m.waits, bar(done, total), cli.Size(min(done, total)), cli.Size(total))
}

// votes reports that a server is a voter.
func (s *state) votes(id cfs.NodeID) bool {
	n, err := s.node(id)
	return err == nil && n.Voter
}

// drained reports that every device of a server has been emptied.
func (s *state) drained(id cfs.NodeID) bool {
	for i := range s.m.Devices {
		v := &s.m.Devices[i]
		if v.ID.Node() == id && (!v.Leaving() || v.State != cfs.StateOut || s.holds(v.ID)) {
			return false
		}
	}
	return true
}

func (f *adminFlags) printMember(c *cobra.Command, doc *memberDoc) error {
	if f.json {
		return cli.PrintJSON(c.OutOrStdout(), doc)
	}
	_, err := fmt.Fprintln(c.OutOrStdout(), doc.Text)
	return err
}

// memberDoc is what a command has changed of a server.
type memberDoc struct {
	Node  cfs.NodeID `json:"node"`
	Other cfs.NodeID `json:"other,omitempty"` // that takes its place
	Text  string     `json:"text"`
	Ended bool       `json:"ended"` // it is done
}
