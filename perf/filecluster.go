package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/scrape"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// stateFile is what `cfs demo up` leaves in its directory, and stateVersion its form.
	stateFile    = "cluster.json"
	stateVersion = 2
	// maxStateBytes bounds it.
	maxStateBytes = 1 << 20

	// faultDirEnv is where servers look for how late to answer reads of shards: a file
	// node-N-read in this directory. They look every 20 ms: delaySeen is some of those.
	faultDirEnv = "CLAUDEFS_FAULT_DIR"
	delaySeen   = 200 * time.Millisecond

	// commandGrace is how long a command that is told to end may take: it stops what it has started.
	commandGrace = 30 * time.Second
	// downTimeout bounds the end of a cluster.
	downTimeout = 2 * time.Minute
	// stateTimeout bounds the wait until a cluster has seen a node die or come back.
	stateTimeout = 60 * time.Second
	askTimeout   = 5 * time.Second
	clusterPoll  = 100 * time.Millisecond
)

// ownCluster is a cluster on this machine that a bench has started, and drives by
// the commands a person would use.
type ownCluster struct {
	cfs     string // path of the program
	dir     string
	delays  string // directory of faultDirEnv
	devices int    // of each node
	state   clusterState
}

// clusterState is the part of a cluster's state file that is read.
type clusterState struct {
	Version   int    `json:"version"`
	ClusterID string `json:"cluster_id"`
	Nodes     []struct {
		ID      int    `json:"id"`
		Addr    string `json:"advertise"`
		Metrics string `json:"metrics"`
	} `json:"nodes"`
	Mounts []struct {
		Point   string `json:"point"`
		Metrics string `json:"metrics"`
	} `json:"mounts"`
}

// parseState reads a state file. Corrupt when it names no nodes, in order, and one mount.
func parseState(text []byte) (clusterState, error) {
	const op = "read a cluster's " + stateFile
	var s clusterState
	if err := json.Unmarshal(text, &s); err != nil {
		return s, cfs.E(op, cfs.Corrupt, err)
	}
	if s.Version != stateVersion {
		return s, cfs.Errorf(op, cfs.Corrupt, "version %d; this program knows %d", s.Version, stateVersion)
	}
	if len(s.Nodes) == 0 || len(s.Mounts) != 1 || s.Mounts[0].Point == "" {
		return s, cfs.Errorf(op, cfs.Corrupt, "%d nodes and %d mounts, want some and one", len(s.Nodes), len(s.Mounts))
	}
	for i, n := range s.Nodes {
		if n.ID != i+1 || n.Addr == "" || n.Metrics == "" {
			return s, cfs.Errorf(op, cfs.Corrupt, "node %d is not as it should be", i+1)
		}
	}
	return s, nil
}

// startCluster starts one in dir, which is made, and mounts it. When that fails, nothing is left.
func startCluster(ctx context.Context, program, dir string, nodes, devices int, deviceBytes int64) (_ *ownCluster, err error) {
	c := &ownCluster{cfs: program, dir: dir, delays: dir + ".delays", devices: devices}
	if err := os.Mkdir(c.delays, 0o700); err != nil {
		return nil, cfs.E("start a cluster", cfs.KindOf(err), err)
	}
	size := units.Bytes(deviceBytes).String()
	err = c.demo(ctx, "up", "--tls", "off", "--nodes", strconv.Itoa(nodes), "--devices", strconv.Itoa(devices), "--device-size", size, "--prewrite", size)
	if err == nil {
		err = c.load()
	}
	if err != nil {
		return nil, errors.Join(err, c.close(ctx))
	}
	return c, nil
}

// close ends the cluster, whatever has become of it, and of ctx.
func (c *ownCluster) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	var err error
	if _, serr := os.Stat(filepath.Join(c.dir, stateFile)); serr == nil {
		err = c.demo(ctx, "down")
	}
	if rerr := os.RemoveAll(c.delays); rerr != nil {
		err = errors.Join(err, cfs.E("remove "+c.delays, cfs.KindOf(rerr), rerr))
	}
	return err
}

// demo runs `cfs demo`. It is told to end with ctx, and given time to stop what it has started.
func (c *ownCluster) demo(ctx context.Context, verb string, args ...string) error {
	op := "cfs demo " + verb
	cmd := exec.CommandContext(ctx, c.cfs, append([]string{"demo", verb, "--dir", c.dir}, args...)...)
	cmd.Env = append(os.Environ(), faultDirEnv+"="+c.delays)
	// A terminal's Ctrl-C reaches it through ctx, and never the one that cleans up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = commandGrace
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return cfs.E(op, cfs.Canceled, context.Cause(ctx))
	case errors.Is(err, os.ErrNotExist):
		return cfs.Errorf(op, cfs.NotFound, "%s is not there: build it (make build), or name another with --cfs", c.cfs)
	case err != nil:
		return cfs.Errorf(op, cfs.IO, "%w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// load reads the state file again.
func (c *ownCluster) load() error {
	path := filepath.Join(c.dir, stateFile)
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxStateBytes {
		return cfs.Errorf("read "+path, cfs.Corrupt, "%d bytes, at most %d are read", st.Size(), maxStateBytes)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return cfs.E("read "+path, cfs.KindOf(err), err)
	}
	c.state, err = parseState(text)
	return err
}

// point is where it is mounted.
func (c *ownCluster) point() string { return c.state.Mounts[0].Point }

// server is the address of a node.
func (c *ownCluster) server() string { return c.state.Nodes[0].Addr }

// remount makes everything cold: the mount's daemon is a new one, and the kernel has nothing of it.
func (c *ownCluster) remount(ctx context.Context) error {
	if err := c.demo(ctx, "remount"); err != nil {
		return err
	}
	return c.load()
}

// kill ends a node and returns when the cluster has noticed.
func (c *ownCluster) kill(ctx context.Context, node int) error {
	if err := c.demo(ctx, "kill", "--node", strconv.Itoa(node)); err != nil {
		return err
	}
	return c.waitState(ctx, node, cfs.StateDown)
}

// restart starts a killed node and returns when the cluster is whole again.
func (c *ownCluster) restart(ctx context.Context, node int) error {
	if err := c.demo(ctx, "restart", "--node", strconv.Itoa(node)); err != nil {
		return err
	}
	return c.waitState(ctx, node, cfs.StateUp)
}

// waitState waits until the leader has a node in a state.
func (c *ownCluster) waitState(ctx context.Context, node int, want cfs.State) error {
	op := fmt.Sprintf("wait until node %d is %s", node, want)
	other := c.state.Nodes[node%len(c.state.Nodes)].Addr
	return poll(ctx, op, stateTimeout, func() (bool, error) {
		reply, err := askLeader(ctx, other)
		if err != nil {
			return false, err
		}
		for _, n := range reply.GetMap().GetNodes() {
			if int(n.Id) == node {
				return cfs.State(n.State) == want, nil
			}
		}
		return false, cfs.Errorf(op, cfs.NotFound, "the cluster has no such node")
	})
}

// follower is a node that does not lead.
func (c *ownCluster) follower(ctx context.Context) (int, error) {
	node := 0
	err := poll(ctx, "look for a node that does not lead", stateTimeout, func() (bool, error) {
		reply, err := askLeader(ctx, c.server())
		if err != nil {
			return false, err
		}
		node = int(reply.LeaderId)%len(c.state.Nodes) + 1
		return true, nil
	})
	return node, err
}

// delay has a node answer every read of a shard so much later; 0 for at once.
func (c *ownCluster) delay(ctx context.Context, node int, late time.Duration) error {
	path := filepath.Join(c.delays, fmt.Sprintf("node-%d-read", node))
	var err error
	if late == 0 {
		if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	} else if err = os.WriteFile(path+".new", []byte(late.String()), 0o600); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return cfs.E("delay node "+strconv.Itoa(node), cfs.KindOf(err), err)
	}
	return pause(ctx, delaySeen)
}

// shardReads are the reads of shards that a node has served.
func (c *ownCluster) shardReads(ctx context.Context, node int) (float64, error) {
	return counter(ctx, c.state.Nodes[node-1].Metrics, "claudefs_store_requests_total", `op="get"`)
}

// mountCounter is a figure of the mount's client.
func (c *ownCluster) mountCounter(ctx context.Context, name string) (float64, error) {
	return counter(ctx, c.state.Mounts[0].Metrics, "claudefs_client_"+name, "")
}

// counter is one figure of a process: the sum of the samples of a name that carry a label.
func counter(ctx context.Context, addr, name, label string) (float64, error) {
	samples, err := scrape.Read(ctx, addr)
	if err != nil {
		return 0, err
	}
	return scrape.Sum(samples, name, label)
}

// question asks a server something on a connection of its own.
func question(ctx context.Context, addr string, ask func(ctx context.Context, conn *wire.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: "cfs-perf"}})
	if err != nil {
		return err
	}
	return errors.Join(ask(ctx, conn), conn.Close())
}

// askStatus is a server's view of the cluster.
func askStatus(ctx context.Context, addr string) (*wirepb.StatusReply, error) {
	reply := &wirepb.StatusReply{}
	return reply, question(ctx, addr, func(ctx context.Context, conn *wire.Conn) error {
		_, err := conn.Call(ctx, wire.OpStatus, &wirepb.Empty{}, nil, reply, nil)
		return err
	})
}

// askLeader is the leader's view, which a server that is asked knows the address of.
func askLeader(ctx context.Context, addr string) (*wirepb.StatusReply, error) {
	reply, err := askStatus(ctx, addr)
	if err != nil || reply.LeaderId == reply.NodeId {
		return reply, err
	}
	if reply.LeaderAddr == "" {
		return nil, cfs.Errorf("ask "+addr, cfs.Unavailable, "the cluster has no leader")
	}
	return askStatus(ctx, reply.LeaderAddr)
}

// poll asks until the answer is yes, at most for limit. An error is asked again, and told at the end.
func poll(ctx context.Context, op string, limit time.Duration, ask func() (bool, error)) error {
	for deadline := time.Now().Add(limit); ; {
		ok, err := ask()
		switch {
		case err == nil && ok:
			return nil
		case err == nil && time.Now().After(deadline):
			return cfs.Errorf(op, cfs.Timeout, "not within %s", limit)
		case time.Now().After(deadline):
			return cfs.Errorf(op, cfs.Timeout, "not within %s: %w", limit, err)
		}
		if err := pause(ctx, clusterPoll); err != nil {
			return err
		}
	}
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return cfs.E("measure", cfs.Canceled, context.Cause(ctx))
	case <-time.After(d):
		return nil
	}
}
