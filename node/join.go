package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// joinTimeout bounds the questions to one server of the cluster that is joined.
const joinTimeout = 5 * time.Second

// enrolTimeout bounds the wait for a certificate.
const enrolTimeout = 20 * time.Second

// recall completes a configuration with what the data directory remembers of the last
// start, so that a server that has joined needs no more than its directory. known says
// that there is something.
func (c *Config) recall() (known bool, err error) {
	path := filepath.Join(c.DataDir, stateFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || c.DataDir == "" {
		return false, nil
	}
	if err != nil {
		return false, cfs.E("data directory "+c.DataDir, cfs.KindOf(err), err)
	}
	s, err := parseState(raw)
	if err != nil {
		return false, cfs.E(path, cfs.Corrupt, err)
	}
	if c.ClusterID == "" {
		c.ClusterID = s.ClusterID
	}
	if c.NodeID == 0 {
		c.NodeID = s.NodeID
	}
	if c.Listen == "" {
		c.Listen = s.Listen
	}
	if c.Advertise == "" && len(c.Seeds) == 0 {
		c.Advertise = s.Advertise
	}
	if len(c.Devices) == 0 {
		for _, d := range s.Devices {
			if !d.Added {
				c.Devices = append(c.Devices, d.Path)
			}
		}
	}
	if c.joined = s.Joined; c.joined {
		c.Join = append(slices.Clone(c.Join), s.Servers...)
	} else if len(c.Seeds) == 0 && len(c.Join) == 0 {
		c.Seeds = s.Seeds
	}
	return true, nil
}

// prepare completes the configuration: from the data directory, and for one that is new from the
// cluster that is joined.
func (c *Config) prepare(ctx context.Context) error {
	known, err := c.recall()
	if err != nil || len(c.Join) == 0 || c.joined {
		return err
	}
	if known {
		return cfs.Errorf("join", cfs.Usage, "%s belongs to node %d, which founded the cluster: start it without joining", c.DataDir, c.NodeID)
	}
	c.joined = true
	if len(c.Seeds) > 0 {
		return cfs.Errorf("join", cfs.Usage, "seed nodes found a cluster: a server that joins has none")
	}
	for _, a := range c.Join {
		if err := CheckAddr("seed", a); err != nil {
			return err
		}
	}
	if c.NodeID == 0 {
		return cfs.Errorf("node id", cfs.Usage, "want a number from 1 to 65535")
	}
	security, enrolled, err := c.identify(ctx)
	if err != nil {
		return err
	}
	if err = c.joinAny(ctx, security); enrolled {
		err = c.spent(err)
	}
	return err
}

// joinAny asks the servers in turn until one lets this one join, or says that it may not.
func (c *Config) joinAny(ctx context.Context, security *wire.TLS) (err error) {
	for _, a := range c.Join {
		if err = c.joinBy(ctx, a, security); err == nil || cfs.KindOf(err) == cfs.Exists || cfs.KindOf(err) == cfs.WrongCluster {
			return err
		}
	}
	return err
}

// identify gets a server that joins its certificate, for the token, and keeps it in the data directory. One
// that is there and of use is kept. enrolled says that the token was used.
func (c *Config) identify(ctx context.Context) (_ *wire.TLS, enrolled bool, err error) {
	if !c.TLS {
		return nil, false, nil
	}
	store, err := c.openIdentity()
	if err != nil {
		return nil, false, err
	}
	before := store.Identity()
	if c.Token != "" {
		if err := c.useToken(ctx, store, c.Join); err != nil {
			return nil, false, err
		}
	}
	now := store.Identity()
	return client.Secured(store, c.now), before == nil || now != nil && before.Who.Serial != now.Who.Serial, nil
}

// joinBy asks a server of the cluster what it is called, and who is there.
func (c *Config) joinBy(ctx context.Context, addr string, security *wire.TLS) error {
	op := "join by " + addr
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	reply := &wirepb.StatusReply{}
	if err := c.askStatus(ctx, addr, security, reply); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if lead := reply.LeaderAddr; lead != "" && lead != addr { // it knows best
		led := &wirepb.StatusReply{}
		if err := c.askStatus(ctx, lead, security, led); err == nil {
			reply = led
		}
	}
	m, err := wire.MapFromPB(reply.Map)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if c.ClusterID == "" {
		c.ClusterID = reply.ClusterId
	}
	if c.ClusterID != reply.ClusterId {
		return cfs.Errorf(op, cfs.WrongCluster, "it belongs to cluster %q, not %q", reply.ClusterId, c.ClusterID)
	}
	if reply.LeaderId == 0 {
		return cfs.Errorf(op, cfs.Unavailable, "cluster %s has no leader now", reply.ClusterId)
	}
	c.Join = nil
	for _, v := range m.Nodes {
		if v.Voter {
			c.Join = append(c.Join, v.Addr)
		}
		if v.ID == c.NodeID {
			if err := c.mayTake(op, v); err != nil {
				return err
			}
		}
	}
	if len(c.Join) == 0 {
		c.Join = []string{addr}
	}
	return nil
}

// mayTake refuses the id of a server that is there, or whose vote is. That of one that is gone may be
// taken by a server with its devices, whose data directory was lost.
func (c *Config) mayTake(op string, v cfs.Node) error {
	switch {
	case v.Voter || v.Learner:
		return cfs.Errorf(op, cfs.Exists, "node %d is a voter, and %s is not its directory: run \"cfs admin voter remove %d\" first", v.ID, c.DataDir, v.ID)
	case v.State == cfs.StateUp || v.State == cfs.StateSuspect:
		return cfs.Errorf(op, cfs.Exists, "node %d is there already, at %s: take another --node-id", v.ID, v.Addr)
	}
	return nil
}

func (c *Config) askStatus(ctx context.Context, addr string, security *wire.TLS, reply *wirepb.StatusReply) error {
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{ClusterID: c.ClusterID, Name: fmt.Sprintf("node %d, joining", c.NodeID)}, TLS: security})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Call(ctx, wire.OpStatus, &wirepb.Empty{}, nil, reply, nil)
	return err
}

// checkJoined refuses addresses that a server that has joined cannot be reached at.
func (c *Config) checkJoined() error {
	host, port, err := splitAddr("listen address", c.Listen)
	if err != nil || c.Advertise != "" || len(c.Seeds) > 0 {
		return err
	}
	ip := net.ParseIP(host)
	if host == "" || port == 0 || ip != nil && ip.IsUnspecified() {
		return cfs.Errorf("listen address", cfs.Usage, "others cannot reach this server at %s: give the address that they can with --advertise", c.Listen)
	}
	return nil
}
