package raftmeta

import (
	"log/slog"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/wal"
	"github.com/claudefs/claudefs/wire"
)

// Raft's times. A tick is Config.TickInterval.
const (
	defaultTick    = 50 * time.Millisecond
	electionTicks  = 10
	heartbeatTicks = 2
)

// Bounds of the queues and of the log.
const (
	// defaultMaxProposals bounds the commands that wait for their commit; beyond is cfs.Overloaded.
	defaultMaxProposals = 4096
	// maxReads bounds the queries that the loop has not taken in yet; beyond is
	// cfs.Overloaded. Those that wait for a round are bounded by the connections.
	maxReads = 16384
	// maxMessages bounds the messages that wait for the loop; more are dropped, as Raft allows.
	maxMessages = 4096
	// maxControl bounds the internal requests to the loop.
	maxControl = 64
	// maxEntryBytes bounds a command, so that an entry fits into a frame with its envelope.
	maxEntryBytes = wire.MaxBody - 64<<10
	// maxMsgBytes is where Raft ends a message and a sender ends a frame.
	maxMsgBytes = 1 << 20
	// maxCommittedBytes bounds one batch of the state store.
	maxCommittedBytes = 8 << 20
	// maxUncommittedBytes bounds what a leader takes on before a majority has it.
	maxUncommittedBytes = 64 << 20
	// maxInflightMsgs bounds the unacknowledged messages to one voter.
	maxInflightMsgs = 256
	// maxInflightBytes bounds them too, well below what the wire keeps for a voter that reads slowly.
	maxInflightBytes = 16 << 20

	defaultCompactEntries = 64 << 10
	defaultCompactBytes   = 64 << 20
	// keepShare is the share of the compaction bounds (1/keepShare) that stays for slow followers.
	keepShare = 4
)

// Bounds of leases and recalls; lease.Config says what they bound.
const (
	maxSessionLeases = 64 << 10
	maxLeases        = 1 << 20 // about 250 MiB of the leader's memory
	maxSessionOpens  = 64 << 10
	// maxKnownOwners bounds the inodes whose owner is known without a look at the state.
	maxKnownOwners = 64 << 10
	// maxRecallWaits bounds the commands and queries of a session that wait for recalls: its
	// connection keeps room for what the others wait for.
	maxRecallWaits = 128
	// maxAllRecallWaits bounds those of all sessions.
	maxAllRecallWaits = 16384
	// maxWatchRecalls bounds the recalls of one answer to a watch.
	maxWatchRecalls = 1024
	// recallAgain is when a recall that is not answered is delivered again.
	recallAgain = 300 * time.Millisecond
	// watchTime is how long a watch waits for a recall.
	watchTime = time.Second
	// askAgain is how long an owner that has answered, and still owns the inode, is left alone.
	askAgain = 20 * time.Millisecond
)

// Times of the leader's duties.
const (
	defaultLeaseTime      = 1500 * time.Millisecond
	defaultSessionTimeout = 10 * time.Second
	defaultNodeTimeout    = 1500 * time.Millisecond
	defaultOutAfter       = 10 * time.Minute
	defaultJobInterval    = 5 * time.Second
	dutyInterval          = 100 * time.Millisecond
	transferTimeout       = 500 * time.Millisecond
)

// Clock is the wall clock that commands are stamped with. Timers do not use it:
// they run on the monotonic clock.
type Clock interface{ Now() time.Time }

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// Config says what a Node is part of. Fields after Clock have defaults.
type Config struct {
	ClusterID string
	NodeID    cfs.NodeID
	Dir       string // holds the log and the state; made if absent
	// Seeds are the HOST:PORT of the voters that the cluster starts with, the same list on every
	// node; voter i is Seeds[i-1]. Without any, an empty directory is a learner's: it is given the
	// state by the leader. A directory that has a state knows its members itself.
	Seeds []string
	// Peers are addresses of members, for a learner that knows none yet.
	Peers map[cfs.NodeID]string
	// Addr is the HOST:PORT at which others reach this node, for members that do not know it; empty: that of its record.
	Addr string
	// Known are servers that were the other voters when this node last heard. A directory that says that it is
	// the only voter's asks them first whether it is an older copy.
	Known []string
	// Pool carries messages to the other voters. It should carry nothing else: a
	// heartbeat behind a megabyte of file data is late.
	Pool    *wire.Pool
	Logger  *slog.Logger
	Metrics *Metrics // nil: not measured
	Clock   Clock    // nil: the system's

	TickInterval   time.Duration        // 0: 50 ms; an election takes 10 to 20
	LeaseTime      time.Duration        // 0: 1.5 s after a session's heartbeat its read leases lapse
	SessionTimeout time.Duration        // 0: 10 s without a heartbeat ends a session
	NodeTimeout    time.Duration        // 0: 1.5 s without a heartbeat and a node is down, after half of it suspect
	OutAfter       time.Duration        // 0: 10 min down and a device is out: what it had is computed anew elsewhere
	JobInterval    time.Duration        // 0: 5 s between two records of a job's progress
	MaxProposals   int                  // 0: 4096 commands in flight
	SegmentBytes   int64                // 0: 64 MiB segments of the log
	SyncDelay      func() time.Duration // how much longer a sync of the log takes, for tests; nil: no longer
	SlowSync       time.Duration        // 0: 1 s; a leader whose log is slower hands over
	CompactEntries uint64               // 0: the log is truncated after 64 Ki entries,
	CompactBytes   int64                // 0: or after 64 MiB of them
	CacheBytes     int64                // 0: kv.DefaultCacheBytes
	CertLifetime   time.Duration        // 0: pki.DefaultLifetime
	// FreeSpace says how many bytes of a directory's disk are free, and how many it has; nil: statfs(2).
	FreeSpace func(dir string) (free, total uint64, err error)
}

func (c *Config) complete() error {
	const op = "open metadata service"
	switch {
	case c.ClusterID == "" || len(c.ClusterID) > 63:
		return cfs.Errorf(op, cfs.Usage, "cluster id of %d characters, want 1 to 63", len(c.ClusterID))
	case c.NodeID == 0:
		return cfs.Errorf(op, cfs.Usage, "no node id")
	case c.Dir == "":
		return cfs.Errorf(op, cfs.Usage, "no directory")
	case c.Pool == nil && len(c.Seeds) != 1:
		return cfs.Errorf(op, cfs.Usage, "no connection pool")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	setDefault(&c.TickInterval, defaultTick)
	setDefault(&c.LeaseTime, defaultLeaseTime)
	setDefault(&c.SessionTimeout, defaultSessionTimeout)
	setDefault(&c.NodeTimeout, defaultNodeTimeout)
	setDefault(&c.OutAfter, defaultOutAfter)
	setDefault(&c.JobInterval, defaultJobInterval)
	setDefault(&c.MaxProposals, defaultMaxProposals)
	setDefault(&c.CompactEntries, defaultCompactEntries)
	setDefault(&c.CompactBytes, defaultCompactBytes)
	setDefault(&c.SegmentBytes, wal.DefaultSegmentBytes)
	setDefault(&c.SlowSync, defaultSlowSync)
	if c.FreeSpace == nil {
		c.FreeSpace = freeSpace
	}
	return nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
