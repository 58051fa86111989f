package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster/proxy"
	"github.com/claudefs/claudefs/internal/scrape"
)

const (
	// stopGrace is how long a server may take to end when asked.
	stopGrace = 10 * time.Second
	// maxPortClashes bounds the starts that are tried with other ports.
	maxPortClashes = 3
	// loopback is where nodes without a namespace listen.
	loopback = "127.0.0.1"
)

// Cluster is a cluster on this machine: running, partly dead or stopped.
type Cluster struct {
	spec    Spec
	st      *state
	log     *slog.Logger
	spawn   *spawner
	proxies []*proxy.Proxy // by node number less one; nil without Spec.Proxies
}

// node is a server of the cluster.
type node struct {
	ID        int      `json:"id"`
	Listen    string   `json:"listen"`
	Advertise string   `json:"advertise"` // what the others are told: the proxy's address, or Listen
	Metrics   string   `json:"metrics"`
	Env       []string `json:"env,omitempty"`
	Process   *process `json:"process,omitempty"`
	Files     []file   `json:"devices,omitempty"` // by slot
	Serving   []int    `json:"serving,omitempty"` // slots of the devices that it is expected to have up

	wanted bool // it has been started, and nobody here has ended it
}

// Start makes a new cluster in spec.Dir and returns when it is usable. When it
// fails nothing is left behind.
func Start(ctx context.Context, spec Spec) (c *Cluster, err error) {
	if err := spec.complete(); err != nil {
		return nil, err
	}
	if spec.Detach && spec.Proxies {
		return nil, cfs.Errorf("declare a cluster", cfs.Usage, "proxies live in the process that starts them: they exclude Detach")
	}
	if err := claimDir(spec.Dir, spec.Nodes); err != nil {
		return nil, err
	}
	c = &Cluster{spec: spec, log: spec.Logger, spawn: newSpawner(), st: &state{
		Version: stateVersion, ClusterID: spec.ClusterID, Binary: spec.Binary,
		Devices: spec.Devices, DeviceSizeBytes: spec.DeviceSizeBytes,
		ServerArgs: spec.ServerArgs, MountArgs: spec.MountArgs, TLS: spec.TLS,
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Destroy())
			c = nil
		}
	}()
	for i := range spec.Nodes {
		n := &node{ID: i + 1, Files: make([]file, spec.Devices), Env: slices.Clone(spec.Env)}
		if off := spec.ClockOffsets[n.ID]; off != 0 {
			n.Env = append(n.Env, ClockOffsetEnv+"="+off.String())
		}
		if spec.Faults {
			n.Env = append(n.Env, FaultDirEnv+"="+c.faultDir())
		}
		c.st.Nodes = append(c.st.Nodes, n)
	}
	if spec.Faults {
		if err := os.Mkdir(c.faultDir(), 0o700); err != nil {
			return c, cfs.E("make "+c.faultDir(), cfs.KindOf(err), err)
		}
	}
	if spec.Namespaces {
		if c.st.Network, err = planNetwork(spec.Nodes); err != nil {
			return c, err
		}
	}
	// From here on a crash leaves a state file by which `cfs demo down` finds everything.
	if err := c.save(); err != nil {
		return c, err
	}
	if c.st.Network != nil {
		if err := c.st.Network.up(ctx); err != nil {
			return c, err
		}
	}
	if err := c.makeDevices(ctx); err != nil {
		return c, err
	}
	return c, c.firstStart(ctx)
}

// claimDir makes the directory, and refuses one that holds what could be mistaken for the cluster's.
func claimDir(dir string, nodes int) error {
	op := "start a cluster in " + dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	names := []string{StateFile}
	for i := range nodes {
		names = append(names, nodeName(i+1), nodeName(i+1)+".log")
	}
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return cfs.Errorf(op, cfs.Exists, "%s is there already (cfs demo down --dir %s removes a cluster)", name, dir)
		}
	}
	return nil
}

// Load attaches to the cluster that was started in dir, by whomever.
func Load(dir string, logger *slog.Logger) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, cfs.E("find "+dir, cfs.KindOf(err), err)
	}
	st, err := loadState(dir)
	if err != nil {
		return nil, err
	}
	spec := Spec{
		Dir: dir, Binary: st.Binary, ClusterID: st.ClusterID, Nodes: len(st.Nodes), Devices: st.Devices,
		DeviceSizeBytes: st.DeviceSizeBytes, ServerArgs: st.ServerArgs, MountArgs: st.MountArgs, TLS: st.TLS, Detach: true, Logger: logger,
	}
	if err := spec.complete(); err != nil {
		return nil, err
	}
	c := &Cluster{spec: spec, st: st, log: spec.Logger, spawn: newSpawner()}
	for _, n := range st.Nodes {
		n.wanted = n.Process.alive()
	}
	for _, m := range st.Mounts {
		m.c = c
	}
	return c, nil
}

// firstStart chooses addresses and starts the nodes; somebody may take a port
// between the choice and the use, so it does that again when a node says so.
func (c *Cluster) firstStart(ctx context.Context) error {
	for try := 1; ; try++ {
		if err := c.chooseAddrs(); err != nil {
			return err
		}
		if err := c.giveAuthority(); err != nil {
			return err
		}
		err := c.StartAll(ctx)
		if err == nil || try == maxPortClashes || !strings.Contains(err.Error(), "in use") {
			return err
		}
		c.log.Warn("a port is taken: starting again with others", "err", err)
		for _, n := range c.st.Nodes {
			n.wanted = false
			n.Process.kill()
			if err := os.RemoveAll(c.dataDir(n.ID)); err != nil {
				return cfs.E("clear "+c.dataDir(n.ID), cfs.KindOf(err), err)
			}
			if err := os.Mkdir(c.dataDir(n.ID), 0o700); err != nil {
				return cfs.E("make "+c.dataDir(n.ID), cfs.KindOf(err), err)
			}
		}
	}
}

// chooseAddrs gives every node its addresses, and its proxy where there are to be any.
func (c *Cluster) chooseAddrs() error {
	c.closeProxies()
	var ports []int
	if c.st.Network == nil {
		var err error
		if ports, err = freePorts(loopback, 2*len(c.st.Nodes)); err != nil {
			return err
		}
	}
	for i, n := range c.st.Nodes {
		if c.st.Network != nil {
			n.Listen = joinPort(c.st.Network.addr(n.ID), nodePort)
			n.Metrics = joinPort(c.st.Network.addr(n.ID), nodeMetricsPort)
		} else {
			n.Listen = joinPort(loopback, ports[2*i])
			n.Metrics = joinPort(loopback, ports[2*i+1])
		}
		n.Advertise = n.Listen
		if !c.spec.Proxies {
			continue
		}
		host := loopback
		if c.st.Network != nil {
			host = c.st.Network.hostAddr()
		}
		p, err := proxy.New(net.JoinHostPort(host, "0"), n.Listen)
		if err != nil {
			return err
		}
		c.proxies = append(c.proxies, p)
		n.Advertise = p.Addr()
	}
	return nil
}

func joinPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// startNode starts the process of a node that is not running.
func (c *Cluster) startNode(n *node) error {
	devices := c.deviceFiles(n)
	argv := []string{
		c.st.Binary, "server", "--cluster-id", c.st.ClusterID, "--node-id", strconv.Itoa(n.ID),
		"--listen", n.Listen, "--data-dir", c.dataDir(n.ID), "--device", strings.Join(devices, ","),
		"--seed-nodes", strings.Join(c.Addrs(), ","), "--metrics", n.Metrics,
	}
	if n.Advertise != n.Listen {
		argv = append(argv, "--advertise", n.Advertise)
	}
	if !c.st.TLS {
		argv = append(argv, "--tls", "off")
	}
	argv = append(argv, c.st.ServerArgs...)
	if c.st.Network != nil {
		argv = append([]string{"ip", "netns", "exec", c.st.Network.Namespaces[n.ID-1]}, argv...)
	}
	death := syscall.SIGKILL
	if c.spec.Detach {
		death = 0
	}
	p, err := c.spawn.start(argv, n.Env, c.LogPath(n.ID), death)
	if err != nil {
		return err
	}
	c.log.Info("started a node", "node", n.ID, "listen", n.Listen, "pid", p.PID)
	n.Process, n.wanted = p, true
	n.serve()
	return c.save()
}

// StartAll starts every node that is not running and returns when the cluster is usable.
func (c *Cluster) StartAll(ctx context.Context) error {
	for _, n := range c.st.Nodes {
		if n.Process.alive() {
			continue
		}
		if err := c.startNode(n); err != nil {
			return err
		}
	}
	return c.WaitUsable(ctx)
}

// Kill ends a node with SIGKILL and returns when it is gone. The cluster is
// then for a moment not usable: WaitUsable tells when it is again.
func (c *Cluster) Kill(nodeID int) error {
	n, err := c.node(nodeID)
	if err != nil {
		return err
	}
	if !n.Process.alive() {
		return cfs.Errorf(fmt.Sprintf("kill node %d", nodeID), cfs.Invalid, "it is not running")
	}
	n.wanted = false
	n.Process.kill()
	c.log.Info("killed a node", "node", nodeID)
	return nil
}

// Restart starts a node again that is dead and returns when the cluster is usable with it.
func (c *Cluster) Restart(ctx context.Context, nodeID int) error {
	n, err := c.node(nodeID)
	if err != nil {
		return err
	}
	if n.Process.alive() {
		return cfs.Errorf(fmt.Sprintf("restart node %d", nodeID), cfs.Invalid, "it is running")
	}
	if err := c.startNode(n); err != nil {
		return err
	}
	return c.WaitUsable(ctx)
}

// KillAll ends every process at the same moment, mount daemons included, and
// takes the dead mounts off.
func (c *Cluster) KillAll() error {
	for _, m := range c.st.Mounts {
		m.Process.signal(syscall.SIGKILL)
	}
	for _, n := range c.st.Nodes {
		n.wanted = false
		n.Process.signal(syscall.SIGKILL)
	}
	var errs []error
	for _, m := range c.st.Mounts {
		m.Process.kill()
		errs = append(errs, m.detach())
	}
	for _, n := range c.st.Nodes {
		n.Process.kill()
	}
	c.log.Info("killed every process")
	return errors.Join(errs...)
}

// Stop unmounts and ends every process in order; the files stay. It always ends
// everything: an error says that it was not all in order.
func (c *Cluster) Stop(ctx context.Context) error {
	var errs []error
	for _, m := range c.st.Mounts {
		if m.mounted() || m.Process.alive() {
			errs = append(errs, m.Unmount(ctx))
		}
	}
	for _, n := range c.st.Nodes {
		n.wanted = false
		n.Process.signal(syscall.SIGTERM)
	}
	for _, n := range c.st.Nodes {
		n.Process.terminate(stopGrace)
	}
	c.closeProxies()
	if c.st.Network != nil {
		errs = append(errs, c.st.Network.down(ctx))
	}
	return errors.Join(errs...)
}

// Remove stops the cluster and removes what Start and Mount made.
func (c *Cluster) Remove(ctx context.Context) error {
	return errors.Join(c.Stop(ctx), c.removeFiles())
}

// Destroy is Remove without waiting for anybody: every process is killed. It
// needs no context, because it is what a cancelled one leads to.
func (c *Cluster) Destroy() error {
	err := c.KillAll()
	c.closeProxies()
	if c.st.Network != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		err = errors.Join(err, c.st.Network.down(ctx))
	}
	return errors.Join(err, c.removeFiles())
}

// removeFiles removes the files of a cluster whose processes are gone, and the directory if that empties it.
func (c *Cluster) removeFiles() error {
	var errs []error
	for _, m := range c.st.Mounts {
		if m.mounted() {
			errs = append(errs, cfs.Errorf("remove "+m.Point, cfs.Busy, "it is still mounted"))
			continue
		}
		errs = append(errs, gone(os.Remove(m.Point)), gone(os.Remove(c.mountLog(m.Name))), gone(os.RemoveAll(m.identityDir()))) // Remove alone: never what is below
	}
	for _, n := range c.st.Nodes {
		errs = append(errs, gone(os.RemoveAll(filepath.Join(c.spec.Dir, nodeName(n.ID)))), gone(os.Remove(c.LogPath(n.ID))))
	}
	errs = append(errs, gone(os.RemoveAll(c.faultDir())))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := gone(os.Remove(filepath.Join(c.spec.Dir, StateFile))); err != nil {
		return err
	}
	c.spawn.close()
	os.Remove(c.spec.Dir) // fails, as it should, where somebody else has files in it
	return nil
}

// gone forgives that something is not there any more.
func gone(err error) error {
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return cfs.E("remove the cluster's files", cfs.KindOf(err), err)
}

func (c *Cluster) closeProxies() {
	for _, p := range c.proxies {
		p.Close()
	}
	c.proxies = nil
}

func (c *Cluster) save() error { return c.st.save(c.spec.Dir) }

func (c *Cluster) node(id int) (*node, error) {
	if id < 1 || id > len(c.st.Nodes) {
		return nil, cfs.Errorf(fmt.Sprintf("find node %d", id), cfs.NotFound, "the cluster has nodes 1 to %d", len(c.st.Nodes))
	}
	return c.st.Nodes[id-1], nil
}

func nodeName(id int) string { return "node-" + strconv.Itoa(id) }

func (c *Cluster) dataDir(id int) string { return filepath.Join(c.spec.Dir, nodeName(id), "data") }

// DevicePath is the device file in a slot (from 0) of a node (from 1).
func (c *Cluster) DevicePath(nodeID, slot int) string {
	return filepath.Join(c.spec.Dir, nodeName(nodeID), "dev-"+strconv.Itoa(slot))
}

// LogPath is what a node's process has printed.
func (c *Cluster) LogPath(nodeID int) string {
	return filepath.Join(c.spec.Dir, nodeName(nodeID)+".log")
}

// Dir is the cluster's directory.
func (c *Cluster) Dir() string { return c.spec.Dir }

// ClusterID is the cluster's name.
func (c *Cluster) ClusterID() string { return c.st.ClusterID }

// Nodes is the number of nodes; they count from 1.
func (c *Cluster) Nodes() int { return len(c.st.Nodes) }

// Addrs are the addresses by which everybody reaches the nodes, in their order.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, 0, len(c.st.Nodes))
	for _, n := range c.st.Nodes {
		addrs = append(addrs, n.Advertise)
	}
	return addrs
}

// Alive reports that a node's process runs.
func (c *Cluster) Alive(nodeID int) bool {
	n, err := c.node(nodeID)
	return err == nil && n.Process.alive()
}

// Proxy is the proxy in front of a node; nil without Spec.Proxies.
func (c *Cluster) Proxy(nodeID int) *proxy.Proxy {
	if nodeID < 1 || nodeID > len(c.proxies) {
		return nil
	}
	return c.proxies[nodeID-1]
}

// NodeMetrics are the counters that a node serves.
func (c *Cluster) NodeMetrics(ctx context.Context, nodeID int) (map[string]float64, error) {
	n, err := c.node(nodeID)
	if err != nil {
		return nil, err
	}
	samples, err := scrape.Read(ctx, n.Metrics)
	return scrape.Sums(samples), err
}
