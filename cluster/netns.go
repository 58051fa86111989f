package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxSubnetTries bounds the search for a subnet that this machine does not use.
	maxSubnetTries = 50
	// hostOctet is the last octet of this machine's own address on the bridge.
	hostOctet = 254
	// nodePort and nodeMetricsPort are what a node listens on where it has a namespace of its own.
	nodePort        = 9400
	nodeMetricsPort = 9800
)

// network is a bridge on this machine with one network namespace for each node behind it.
type network struct {
	Bridge     string   `json:"bridge"`
	Prefix     string   `json:"prefix"` // "10.x.y.": node n has address n, this machine 254
	Namespaces []string `json:"namespaces"`
}

// addr is the address of a node.
func (n *network) addr(id int) string { return fmt.Sprintf("%s%d", n.Prefix, id) }

// hostAddr is this machine's address as the nodes see it.
func (n *network) hostAddr() string { return fmt.Sprintf("%s%d", n.Prefix, hostOctet) }

// veth is the bridge's port of a node: at most 15 characters (IFNAMSIZ).
func (n *network) veth(id int) string { return fmt.Sprintf("%sv%d", n.Bridge, id) }

// planNetwork chooses names and a subnet that nobody here uses.
func planNetwork(nodes int) (*network, error) {
	token := randomToken(3)
	n := &network{Bridge: "cfs" + token + "b"}
	for i := range nodes {
		n.Namespaces = append(n.Namespaces, fmt.Sprintf("cfs-%s-%d", token, i+1))
	}
	used, err := net.InterfaceAddrs()
	if err != nil {
		return nil, cfs.E("list this machine's addresses", cfs.IO, err)
	}
	for range maxSubnetTries {
		n.Prefix = fmt.Sprintf("10.%d.%d.", 128+rand.IntN(127), rand.IntN(256))
		host := net.ParseIP(n.hostAddr())
		clash := false
		for _, a := range used {
			ipn, ok := a.(*net.IPNet)
			clash = clash || ok && ipn.Contains(host)
		}
		if !clash {
			return n, nil
		}
	}
	return nil, cfs.Errorf("find a free subnet", cfs.Busy, "all %d that were tried are in use", maxSubnetTries)
}

// up makes the bridge and the namespaces; what a failure leaves is for down.
func (n *network) up(ctx context.Context) error {
	cmds := []string{
		"link add " + n.Bridge + " type bridge",
		"addr add " + n.hostAddr() + "/24 dev " + n.Bridge,
		"link set " + n.Bridge + " up",
	}
	for i, ns := range n.Namespaces {
		veth := n.veth(i + 1)
		cmds = append(cmds,
			"netns add "+ns,
			"link add "+veth+" type veth peer name eth0 netns "+ns,
			"link set "+veth+" master "+n.Bridge+" up",
			"-n "+ns+" addr add "+n.addr(i+1)+"/24 dev eth0",
			"-n "+ns+" link set eth0 up",
			"-n "+ns+" link set lo up",
		)
	}
	for _, c := range cmds {
		if err := ip(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// down removes the namespaces and the bridge; what is not there is no error.
func (n *network) down(ctx context.Context) error {
	var first error
	keep := func(err error) {
		gone := err == nil || strings.Contains(err.Error(), "No such file") || strings.Contains(err.Error(), "Cannot find device")
		if !gone && first == nil {
			first = err
		}
	}
	for i, ns := range n.Namespaces {
		// The pair goes first: with the namespace it would go only when its last process is reaped.
		keep(ip(ctx, "link del "+n.veth(i+1)))
		keep(ip(ctx, "netns del "+ns))
	}
	keep(ip(ctx, "link del "+n.Bridge))
	return first
}

// Isolate cuts a node off the network in both directions, as a pulled cable does;
// it needs Spec.Namespaces. (A proxy's Cut spoils only what is sent to the node.)
func (c *Cluster) Isolate(ctx context.Context, nodeID int) error { return c.link(ctx, nodeID, "down") }

// Rejoin ends Isolate.
func (c *Cluster) Rejoin(ctx context.Context, nodeID int) error { return c.link(ctx, nodeID, "up") }

func (c *Cluster) link(ctx context.Context, nodeID int, state string) error {
	if _, err := c.node(nodeID); err != nil {
		return err
	}
	if c.st.Network == nil {
		return cfs.Errorf(fmt.Sprintf("set the link of node %d %s", nodeID, state), cfs.Invalid, "it has no network namespace")
	}
	c.log.Info("network", "node", nodeID, "link", state)
	return ip(ctx, "link set "+c.st.Network.veth(nodeID)+" "+state)
}

// ip runs ip(8).
func ip(ctx context.Context, args string) error {
	out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return cfs.Errorf("ip "+args, cfs.IO, "%s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}
