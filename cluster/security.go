package cluster

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// tokenTTL is how long the token of a mount can be used: it is at once.
const tokenTTL = 10 * time.Minute

// SocketAddr is the unix socket of a node: who is root there may do everything.
func (c *Cluster) SocketAddr(nodeID int) string {
	return "unix:" + filepath.Join(c.dataDir(nodeID), "node.sock")
}

// AdminAddr is where root on this machine administers the cluster: a node's socket where others need a certificate.
func (c *Cluster) AdminAddr(nodeID int) string {
	if c.st.TLS {
		return c.SocketAddr(nodeID)
	}
	return c.Addrs()[nodeID-1]
}

// askAddr is where this process, which has no certificate, asks a node.
func (c *Cluster) askAddr(n *node) string {
	if c.st.TLS {
		return c.SocketAddr(n.ID)
	}
	return n.Advertise
}

// giveAuthority gives node 1 the authority that the cluster is to have.
func (c *Cluster) giveAuthority() error {
	if c.spec.Authority == "" {
		return nil
	}
	dir := filepath.Join(c.dataDir(1), "identity")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cfs.E("make "+dir, cfs.KindOf(err), err)
	}
	for _, name := range []string{"ca.pem", "ca-key.pem"} {
		from := filepath.Join(c.spec.Authority, name)
		raw, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), raw, 0o600)
		}
		if err != nil {
			return cfs.E("copy "+from, cfs.KindOf(err), err)
		}
	}
	return nil
}

// Token makes a token by one of the nodes that run.
func (c *Cluster) Token(ctx context.Context, role cfs.Role, ttl time.Duration) (string, error) {
	const op = "make a token"
	last := cfs.Errorf(op, cfs.Unavailable, "no node runs")
	for _, n := range c.st.Nodes {
		if !n.Process.alive() {
			continue
		}
		token, err := c.tokenFrom(ctx, n, role, ttl)
		if err == nil {
			return token, nil
		}
		last = cfs.E(op, cfs.KindOf(err), err)
	}
	return "", last
}

func (c *Cluster) tokenFrom(ctx context.Context, n *node, role cfs.Role, ttl time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := wire.Dial(ctx, c.askAddr(n), wire.DialConfig{Hello: wire.Identity{ClusterID: c.st.ClusterID, Name: "launcher"}})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	reply := new(wirepb.AdminReply)
	_, err = conn.Call(ctx, wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbTokenCreate), Role: uint32(role), TtlMs: uint64(ttl.Milliseconds())}, nil, reply, nil)
	return reply.Token, err
}

// identityArgs are what a mount needs to be let in: a certificate of its own, and the first time a token for it.
// Without certificates it says so: the machine may keep some of other clusters.
func (m *Mount) identityArgs(ctx context.Context) ([]string, error) {
	if !m.c.st.TLS {
		return []string{"--tls", "off"}, nil
	}
	dir := m.identityDir()
	args := []string{"--identity-dir", dir}
	if _, err := os.Stat(filepath.Join(dir, "cert.pem")); err == nil {
		return args, nil
	}
	token, err := m.c.Token(ctx, cfs.RoleClient, tokenTTL)
	if err != nil {
		return nil, err
	}
	return append(args, "--token", token), nil
}

func (m *Mount) identityDir() string { return filepath.Join(m.c.spec.Dir, m.Name+".identity") }
