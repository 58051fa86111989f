package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Servers are made voters and taken from them, and followed to the end where that is wanted.
func TestVotersAndNodes(t *testing.T) {
	f := newFake(t)
	var asked []string
	f.onAdmin = func(_ cfs.NodeID, m *wirepb.Admin) (*wirepb.AdminReply, error) {
		asked = append(asked, fmt.Sprintf("%d %d %d", m.Verb, m.Node, m.Other))
		voter := wire.Verb(m.Verb) == wire.VerbVoterAdd
		for i := range f.m.Nodes {
			n := &f.m.Nodes[i]
			switch {
			case wire.Verb(m.Verb) == wire.VerbVoterReplace && n.ID == cfs.NodeID(m.Other):
				n.Voter = true
			case n.ID == cfs.NodeID(m.Node) && wire.Verb(m.Verb) != wire.VerbNodeRemove:
				n.Voter = voter
			}
		}
		return &wirepb.AdminReply{Text: "the leader's words"}, nil
	}
	for _, c := range []struct{ args, want, asked string }{
		{"voter remove 3 --wait", "Node 3 is no voter any more.", fmt.Sprintf("%d 3 0", wire.VerbVoterRemove)},
		{"voter add 3 --wait", "Node 3 is a voter.", fmt.Sprintf("%d 3 0", wire.VerbVoterAdd)},
		{"voter replace 2 1 --wait", "Node 1 is a voter in the place of node 2.", fmt.Sprintf("%d 2 1", wire.VerbVoterReplace)},
		{"voter add 2", "the leader's words", fmt.Sprintf("%d 2 0", wire.VerbVoterAdd)},
		{"node remove 3", "the leader's words", fmt.Sprintf("%d 3 0", wire.VerbNodeRemove)},
		{"node drain 3", "the leader's words", fmt.Sprintf("%d 3 0", wire.VerbNodeDrain)},
	} {
		code, stdout, stderr := f.run(strings.Fields(c.args)...)
		if code != 0 || strings.TrimSpace(stdout) != c.want {
			t.Errorf("%s: exit %d, %q, %q", c.args, code, stdout, stderr)
		}
		if !slices.Equal(asked, []string{c.asked}) {
			t.Errorf("%s asked for %q, want %q", c.args, asked, c.asked)
		}
		asked = nil
	}
}

func TestMemberCommandsRefuse(t *testing.T) {
	f := newFake(t)
	for _, args := range []string{"voter", "node", "voter add", "voter add x", "voter add 0", "voter add 70000", "voter replace 1", "voter replace 1 x", "node drain", "node remove 2/1"} {
		code, stdout, stderr := f.run(strings.Fields(args)...)
		if code != 2 || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("%s: exit %d; %q; %q", args, code, stdout, stderr)
		}
	}
	f.wantVerbs()
}
