package client

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/wire"
)

// Bounds and times of a client.
const (
	heartbeatEvery = 500 * time.Millisecond
	// commitAfter is how long written data may stay uncommitted.
	commitAfter = 5 * time.Second
	// floorAfter is how long a session's floor waits for a command that carries it.
	floorAfter = time.Second
	// maxCommands bounds the commands in flight.
	maxCommands = 1024
	// maxOutstanding bounds how far sequences run ahead of the oldest command in
	// flight: the cluster keeps the session a reply for each (fsm.MaxOutstanding).
	maxOutstanding = 4096
	// maxPuts bounds the stripes being put at a time.
	maxPuts = 16
	// dataConns is the number of connections for shards to each node.
	dataConns = 4
	// DefaultMemoryBytes bounds written data in memory where Config does not.
	DefaultMemoryBytes = 256 << 20
	// MinMemoryBytes is the least memory that lets a stripe be filled while another is put.
	MinMemoryBytes = 32 << 20
	// MaxCacheTTL bounds how stale an answer from the cache can be.
	MaxCacheTTL = 5 * time.Second
	// DefaultCacheTTL is the time to live of cached attributes and names.
	DefaultCacheTTL = time.Second
)

// Config says how to reach a cluster.
type Config struct {
	Servers     []string      // HOST:PORT or unix:PATH, at least one
	ClusterID   string        // empty: whatever the servers say
	Name        string        // what the session is called in the cluster's listings
	CacheTTL    time.Duration // bound of how long answers may be kept above the client
	MemoryBytes int64         // bound of written data in memory, 0: DefaultMemoryBytes
	NoAtime     bool          // the times of readings are not kept
	Logger      *slog.Logger
	WireMetrics *wire.Metrics
	// WriteBehind has what is done to the names of a directory that this client owns committed after the call has
	// returned, in order, as soon as the cluster takes it; fsync of the file or of the directory waits for that. Without it
	// every name is durable when the call returns.
	WriteBehind bool
	Boot        func() int64 // CLOCK_BOOTTIME in nanoseconds, by which leases lapse; nil: the system's
	TLS         *wire.TLS    // of TCP connections; nil: they are not encrypted
}

// Client is a session with a cluster. Its methods may be called from any
// goroutine.
type Client struct {
	cfg  Config
	log  *slog.Logger
	meta *wire.Pool // commands and queries: one connection to each node
	data *wire.Pool // shards

	leader   atomic.Pointer[string]
	session  atomic.Pointer[session]
	layout   layoutHolder
	revoked  atomic.Pointer[map[string]bool] // ids of keys, as the newest map says; nil for none
	cache    *cache
	stats    Stats
	flights  flights
	suspects suspects // devices that do not answer
	full     suspects // devices without space, which can be read
	slow     laggards // devices that others were faster than
	hedging  *hedging
	patience time.Duration // maxUnreadable, but in tests
	shares   atomic.Bool   // in tests: what is created here is not owned
	forSpace time.Duration // spaceWait, but in tests
	wholes   wholes
	reports  *reports
	codecs   ec.Codecs
	parity   bufPool
	scratch  bufPool
	memory   *memory
	commands chan struct{}
	puts     chan struct{}
	mapping  turn // to ask for the map
	opening  turn // to replace a lost session
	locks    lockTable

	leases   *leases
	observer atomic.Pointer[Observer] // nil: nothing is kept above
	inodes   inodeTable
	combiner combiner
	removals removals
	behind   behind
	crowded  chan struct{} // more inodes are owned than may stay so
	accesses accesses

	inlineFull atomic.Bool
	complained atomic.Int64    // when the log last said that operations wait, Unix ns; 0: not
	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	wg         sync.WaitGroup
}

// session is what the cluster knows this client as. A new one starts after the
// old one has expired.
type session struct {
	id      cfs.SessionID
	seqs    *window
	stripes *window
	sent    atomic.Int64  // when the last command was sent, Unix ns
	told    atomic.Uint64 // the floor that the cluster knows
	low     atomic.Uint64 // the low-water mark that it knows
	// attached is the epoch of leases whose leader knows which inodes are open; the heartbeats' own.
	attached uint64
}

// floorTold notes that the cluster knows of a floor, and lowered of a low-water mark.
func (s *session) floorTold(floor uint64) { raise(&s.told, floor) }
func (s *session) lowered(low uint64)     { raise(&s.low, low) }

func raise(v *atomic.Uint64, to uint64) {
	for old := v.Load(); old < to && !v.CompareAndSwap(old, to); old = v.Load() {
	}
}

// New connects to a cluster and opens a session. It fails when no server answers
// before ctx ends, and at once when one belongs to another cluster.
func New(ctx context.Context, cfg Config) (*Client, error) {
	if len(cfg.Servers) == 0 {
		return nil, cfs.Errorf("connect", cfs.Usage, "no server given")
	}
	if cfg.MemoryBytes == 0 {
		cfg.MemoryBytes = DefaultMemoryBytes
	}
	if cfg.MemoryBytes < MinMemoryBytes {
		return nil, cfs.Errorf("connect", cfs.Usage, "memory of %d bytes is below the least, %d", cfg.MemoryBytes, MinMemoryBytes)
	}
	if cfg.CacheTTL > MaxCacheTTL {
		cfg.CacheTTL = MaxCacheTTL
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	c := &Client{
		cfg: cfg, log: cfg.Logger,
		cache: newCache(), memory: newMemory(cfg.MemoryBytes), leases: newLeases(cfg.Boot), crowded: make(chan struct{}, 1),
		commands: make(chan struct{}, maxCommands), puts: make(chan struct{}, maxPuts),
		mapping: newTurn(), opening: newTurn(), locks: newLockTable(), behind: newBehind(cfg.WriteBehind),
		hedging: newHedging(), patience: maxUnreadable, forSpace: spaceWait, reports: newReports(),
	}
	dial := wire.DialConfig{Hello: wire.Identity{ClusterID: cfg.ClusterID, Name: cfg.Name}, Metrics: cfg.WireMetrics, TLS: c.wary(cfg.TLS)}
	c.meta, c.data = wire.NewPool(dial, 1), wire.NewPool(dial, dataConns)
	c.leader.Store(&cfg.Servers[0])
	c.ctx, c.cancel = context.WithCancel(context.Background())
	err := c.openSession(ctx)
	if err == nil {
		err = c.refreshMap(ctx)
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	if cfg.ClusterID == "" { // from now on this cluster and no other
		c.meta.Close()
		c.data.Close()
		dial.Hello.ClusterID = c.ClusterID()
		c.meta, c.data = wire.NewPool(dial, 1), wire.NewPool(dial, dataConns)
	}
	if cfg.WriteBehind {
		c.peekIno(c.session.Load()) // asks for some
	}
	c.wg.Go(c.heartbeats)
	c.wg.Go(c.watchLeases)
	c.wg.Go(c.commitOld)
	c.wg.Go(c.sendReports)
	c.wg.Go(c.tellAccessesOften)
	return c, nil
}

// Close commits what is written and ends the client. The error is the first
// that a commit met.
func (c *Client) Close(ctx context.Context) error {
	err := c.flushAll(ctx)
	if err == nil {
		telling, cancel := context.WithTimeout(ctx, tellAccessesAfter) // nobody waits for long for these
		c.tellAccesses(telling)
		cancel()
	}
	c.stop()
	return err
}

// Flush commits what is written, and the client goes on. The error is the first that a commit met.
func (c *Client) Flush(ctx context.Context) error { return c.flushAll(ctx) }

func (c *Client) stop() {
	c.cancel()
	c.wg.Wait()
	c.meta.Close()
	c.data.Close()
}

// ClusterID is the id of the cluster that the client is connected to.
func (c *Client) ClusterID() string { return c.layout.get().ClusterID }

// openSession makes this client known to the cluster and takes the session in use.
func (c *Client) openSession(ctx context.Context) error {
	cmd := &cfs.Command{Ops: []cfs.Op{{Kind: cfs.OpOpenSession, Name: c.cfg.Name}}}
	reply, _, err := c.send(ctx, cmd)
	if err != nil {
		return err
	}
	if reply.Kind != cfs.KindOK {
		return cfs.E("open session", reply.Kind, nil)
	}
	s := &session{id: reply.Results[0].Session, seqs: newWindow(), stripes: newWindow()}
	c.session.Store(s)
	c.leases.begin(s.id, 0)
	return nil
}

// raiseFloor tells the cluster of the session's floor when it has risen and no command
// has carried it for a while: what was put and given up, or overwritten, takes space
// until then.
func (c *Client) raiseFloor(s *session) error {
	if s.stripes.lowest() <= s.told.Load() || time.Since(time.Unix(0, s.sent.Load())) < floorAfter {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, 4*heartbeatEvery)
	defer cancel()
	_, _, err := c.doIn(ctx, s, cfs.Cred{}, nil)
	return err
}

// sessionLost starts a new session after the cluster has ended the old one. What
// was written under the old one cannot be committed any more: its owners are told.
func (c *Client) sessionLost(ctx context.Context, old *session) error {
	if err := c.opening.take(ctx); err != nil {
		return err
	}
	defer c.opening.done()
	if c.session.Load() != old {
		return nil
	}
	c.log.Warn("session expired: writes that were not committed are lost", "session", uint64(old.id))
	// First, so that what is written after its owner has been told goes into the new one.
	if err := c.openSession(ctx); err != nil {
		return err
	}
	c.above(Observer.ForgetAll)
	for _, n := range c.inodes.all() {
		n.abandon(old, cfs.E("commit", cfs.NoSession, nil))
		c.inodes.settle(n)
	}
	c.locksLost(old)
	return nil
}
