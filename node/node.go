package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta"
	"github.com/claudefs/claudefs/store"
	"github.com/claudefs/claudefs/wire"
)

const (
	// connsPerPeer bounds the connections of one pool to each other node. There are
	// two pools, because Raft's messages wait for nothing else.
	connsPerPeer = 1
	// maxInFlight bounds the requests that one connection may have in work.
	maxInFlight = 256
	// dialTimeout bounds the making of one connection to another node.
	dialTimeout = time.Second
)

// Node is a running server.
type Node struct {
	cfg      Config
	log      *slog.Logger
	addr     string // what the others are told
	registry *prometheus.Registry
	metrics  *nodeMetrics

	adminMu     sync.Mutex // held while devices are added and closed
	dir         *dataDir
	devices     *deviceSet
	pools       [3]*wire.Pool // for the replica; for what the leader is told and asked; for shards
	raft        *replica
	raftMetrics *raftmeta.Metrics
	store       *store.Store
	server      *wire.Server
	http        *http.Server // nil without a metrics address
	leader      *leader
	trust       *security
	feed        *feed
	stripes     *restriper
	heardNS     atomic.Int64 // when the leader last took a heartbeat

	tcp, unix, metricsLn net.Listener

	cancel context.CancelFunc // ends the heartbeat, the feed, the scrub, the mender and the restriper
	group  sync.WaitGroup     // every goroutine of the node
	failed chan error         // what ended the service unasked
	close  sync.Once
}

// Run is a server's whole life: it returns nil when ctx has ended and
// everything is closed, or why the server could not start or go on.
func Run(ctx context.Context, cfg Config) error {
	n, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	return n.Wait(ctx)
}

// Start starts a server, which then serves until Close. A refusal changes
// nothing; its error says in one line what is wrong. Kinds: Usage (the
// configuration), Busy (a port, the directory or a device is in use),
// WrongCluster, Invalid (a device is too small), Corrupt, and what the system says.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.prepare(ctx); err != nil {
		return nil, err
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg, log: cfg.Logger, registry: prometheus.NewRegistry(), failed: make(chan error, 3)}
	if err := n.start(ctx); err != nil {
		if more := n.release(true); more != nil {
			n.log.Warn("giving up a start", "err", more)
		}
		return nil, err
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) (err error) {
	if err := n.listen(); err != nil {
		return err
	}
	if n.dir, err = openDataDir(&n.cfg); err != nil {
		return err
	}
	// Before any device is formatted: the wait for node 1 can be given up.
	if err = n.openSecurity(ctx); err != nil {
		return err
	}
	if n.devices, err = openDevices(&n.cfg, n.dir); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return cfs.E("start", cfs.Canceled, err)
	}
	// The socket's file lies in the data directory, so it comes after everything that can be refused.
	if n.unix, err = wire.Listen("unix:" + n.dir.file(socketFile)); err != nil {
		return err
	}
	if err := n.startServices(); err != nil {
		return err
	}
	if err := n.trust.mend(ctx); err != nil {
		return err
	}
	n.serve()
	n.log.Info("serving", "cluster", n.cfg.ClusterID, "addr", n.addr, "devices", len(n.store.Devices()), "site", n.cfg.Site)
	return nil
}

// listen takes the addresses, before anything is changed.
func (n *Node) listen() (err error) {
	if n.tcp, err = wire.Listen(n.cfg.Listen); err != nil {
		return err
	}
	switch {
	case len(n.cfg.Seeds) >= int(n.cfg.NodeID):
		n.addr = n.cfg.Seeds[n.cfg.NodeID-1]
	case n.cfg.Advertise != "":
		n.addr = n.cfg.Advertise
	default:
		n.addr = n.tcp.Addr().String() // the port may have been 0
	}
	if len(n.cfg.Seeds) == 0 && !n.cfg.joined {
		n.cfg.Seeds, n.cfg.alone = []string{n.addr}, true
	}
	if n.cfg.Metrics != "" {
		n.metricsLn, err = wire.Listen(n.cfg.Metrics)
	}
	return err
}

// startServices starts the replica and the shard service.
func (n *Node) startServices() (err error) {
	wireMetrics := wire.NewMetrics(n.registry)
	n.metrics = newNodeMetrics(n.registry, func() float64 { return float64(n.devices.arena.InUse()) })
	for _, f := range n.devices.failed {
		n.metrics.deviceFailed.WithLabelValues(f.path).Set(1)
	}
	hello := wire.Identity{ClusterID: n.cfg.ClusterID, NodeID: n.cfg.NodeID, Name: fmt.Sprintf("node %d", n.cfg.NodeID)}
	for i := range n.pools {
		n.pools[i] = wire.NewPool(wire.DialConfig{Hello: hello, DialTimeout: dialTimeout, Metrics: wireMetrics, TLS: n.trust.tls()}, connsPerPeer)
	}
	n.raftMetrics = raftmeta.NewMetrics(n.registry)
	known := slices.Concat(n.cfg.Seeds, n.cfg.Join, n.dir.servers())
	if len(known) == 0 { // it joined, and is the only voter now
		known = []string{n.addr}
	}
	n.leader = newLeader(n.pools[1], known, n.addr)
	n.raft = &replica{n: n, changed: make(chan struct{})}
	if err := n.startPart(); err != nil {
		return err
	}
	n.store = store.New(store.Config{
		Node: n.cfg.NodeID, Devices: n.devices.logs(), Arena: n.devices.arena,
		Pool: n.pools[2], Ask: n.ask, Map: n.raft.Map, FillDone: n.fillDone,
		ReclaimInterval: n.cfg.ReclaimInterval, ScrubBytesPerSecond: n.cfg.ScrubBytesPerSecond,
		Logger: n.log.With("part", "store"), Metrics: store.NewMetrics(n.registry),
	})
	n.feed = newFeed(n.store.FeedPositions())
	n.stripes = &restriper{n: n}
	n.stripes.register(n.registry)
	d := &dispatch{node: n, store: n.store, raft: n.raft, delay: n.cfg.ReadDelay}
	sc := wire.ServerConfig{
		Hello: hello, Handler: d, Alloc: d.alloc, MaxInFlight: maxInFlight,
		Logger: n.log.With("part", "wire"), Metrics: wireMetrics, TLS: n.trust.tls(),
	}
	if n.cfg.TLS {
		sc.Allow = n.trust.allow
	}
	n.server = wire.NewServer(sc)
	return n.trust.recall()
}

// serve starts the goroutines.
func (n *Node) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.heardNS.Store(time.Now().UnixNano())
	for _, ln := range []net.Listener{n.tcp, n.unix} {
		n.group.Add(1)
		go func() {
			defer n.group.Done()
			if err := n.server.Serve(ln); err != nil && cfs.KindOf(err) != cfs.Closed {
				n.failed <- cfs.E("serve "+ln.Addr().String(), cfs.KindOf(err), err)
			}
		}()
	}
	if n.metricsLn != nil {
		n.http = n.serveMetrics(n.metricsLn)
	}
	for _, f := range []func(context.Context){n.heartbeats, n.keepPart, n.followFeed, n.store.Scrub, n.store.Mend, n.retireDevices, n.stripes.run,
		n.trust.guard, n.trust.record, n.trust.renew, n.trust.keepMode} {
		n.group.Add(1)
		go func() {
			defer n.group.Done()
			f(ctx)
		}()
	}
}

// offsetClock is the system's clock, set off by a test.
type offsetClock struct {
	offset time.Duration
	jump   func() time.Duration // nil for none
}

// Now is the time.
func (c offsetClock) Now() time.Time {
	now := time.Now().Add(c.offset)
	if c.jump != nil {
		now = now.Add(c.jump())
	}
	return now
}

// Addr is the address at which others reach the node.
func (n *Node) Addr() string { return n.addr }

// MetricsAddr is where /metrics is served; empty for nowhere.
func (n *Node) MetricsAddr() string {
	if n.metricsLn == nil {
		return ""
	}
	return n.metricsLn.Addr().String()
}

// Wait returns when ctx has ended or the service has failed, with everything
// closed; the error is that of the failure or of the closing.
func (n *Node) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
		return n.Close()
	case err := <-n.failed:
		return errors.Join(err, n.Close())
	}
}

// Close ends everything in order and returns the first thing that went wrong.
func (n *Node) Close() error {
	var err error
	n.close.Do(func() { err = n.release(false) })
	return err
}

// release ends what has been started, from the top down. abandon says that the
// start was refused, so that what it made is taken away again.
func (n *Node) release(abandon bool) error {
	var errs []error
	note := func(err error) {
		if err != nil && cfs.KindOf(err) != cfs.Closed && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if n.cancel != nil {
		n.cancel()
	}
	if n.http != nil {
		note(n.http.Close())
	}
	// The replica hands its leadership over, and hears the answers by the server.
	if n.raft != nil {
		note(n.raft.close())
		defer n.raft.close() // one that was opened at the same time
	}
	if n.server != nil {
		note(n.server.Close())
	}
	for _, ln := range []net.Listener{n.tcp, n.unix, n.metricsLn} {
		if ln != nil {
			note(ln.Close())
		}
	}
	n.group.Wait()
	for _, p := range n.pools {
		if p != nil {
			note(p.Close())
		}
	}
	if n.devices != nil {
		note(n.devices.close())
	}
	switch {
	case n.dir == nil:
	case abandon:
		n.dir.abandon()
	default:
		note(n.dir.close())
	}
	return errors.Join(errs...)
}
