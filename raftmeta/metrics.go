package raftmeta

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stageBuckets are the upper ends of the buckets of times: powers of two of microseconds, of
// which the first is the firstStageBucket'th.
const firstStageBucket = 4

func stageBuckets() []float64 {
	return prometheus.ExponentialBuckets(1e-6*(1<<firstStageBucket), 2, 18) // 16 us to 2.1 s
}

// Metrics are the claudefs_raft_* series. One Metrics serves one Node.
type Metrics struct {
	proposals     *prometheus.CounterVec // by outcome: ok, refused, failed, overloaded
	reads         prometheus.Counter
	readRounds    prometheus.Counter
	commitSeconds prometheus.Histogram
	stageSeconds  *prometheus.HistogramVec // queue, replicate, sync, apply
	syncs         prometheus.Counter
	dropped       prometheus.Counter // messages, to or from peers, for lack of room
	snapshots     *prometheus.CounterVec
	compactions   prometheus.Counter
	term          prometheus.Gauge
	isLeader      prometheus.Gauge
	applied       prometheus.Gauge
	slowSyncs     prometheus.Counter
	diskFree      prometheus.Gauge
	diskFull      prometheus.Gauge
	queue, repl   prometheus.Observer
	sync, apply   prometheus.Observer
	journal       *journalMetrics
	leases        prometheus.Gauge       // read leases that sessions have
	recalls       *prometheus.CounterVec // by kind
	lapses        prometheus.Counter
	refused       prometheus.Counter   // grants
	recallWait    prometheus.Histogram // of commands and queries
}

// NewMetrics makes the series and registers them; a nil reg keeps them unregistered.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	buckets := stageBuckets()
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "claudefs_raft_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "claudefs_raft_" + name, Help: help})
	}
	m := &Metrics{
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claudefs_raft_proposals_total", Help: "Commands proposed on this node, by outcome."}, []string{"outcome"}),
		reads:      counter("reads_total", "Queries served."),
		readRounds: counter("read_rounds_total", "ReadIndex rounds; each serves all queries that waited."),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "claudefs_raft_commit_seconds", Help: "From a command's arrival to its answer.", Buckets: buckets}),
		stageSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "claudefs_raft_stage_seconds", Help: "Stages of a commit: on the leader queue (until it is given to Raft) and replicate (until a majority has it); on every voter sync (its own fdatasync) and apply.", Buckets: buckets}, []string{"stage"}),
		syncs:   counter("log_syncs_total", "Calls of fdatasync on the Raft log."),
		dropped: counter("messages_dropped_total", "Messages dropped because a queue was full."),
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claudefs_raft_snapshots_total", Help: "Snapshots by outcome: sent, send_failed, resumed (once for each break), installed, discarded."}, []string{"outcome"}),
		compactions: counter("log_compactions_total", "Truncations of the Raft log."),
		term:        gauge("term", "Raft's term."),
		isLeader:    gauge("is_leader", "1 on the leader."),
		applied:     gauge("applied_index", "Index of the last entry in the state."),
		journal:     newJournalMetrics(),
		leases:      gauge("leases", "Read leases that sessions have of this leader."),
		recalls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claudefs_raft_recalls_total", Help: "Leases recalled, by kind: attr, name, list, open, report, exclusive."}, []string{"kind"}),
		lapses:  counter("lease_lapses_total", "Times that a session's leases lapsed while somebody waited for them."),
		refused: counter("lease_grants_refused_total", "Answers without a lease that was asked for."),
		recallWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "claudefs_raft_recall_wait_seconds", Help: "Waits of commands and queries for recalls, of those that waited.", Buckets: buckets}),
		slowSyncs: counter("log_slow_syncs_total", "Calls of fdatasync on the Raft log that took longer than the bound."),
		diskFree:  gauge("disk_free_bytes", "Free bytes of the disk under the log and the state."),
		diskFull:  gauge("disk_full", "1 while the replica takes no part because that disk is full."),
	}
	m.queue, m.repl = m.stageSeconds.WithLabelValues("queue"), m.stageSeconds.WithLabelValues("replicate")
	m.sync, m.apply = m.stageSeconds.WithLabelValues("sync"), m.stageSeconds.WithLabelValues("apply")
	if reg != nil {
		reg.MustRegister(m.proposals, m.reads, m.readRounds, m.commitSeconds, m.stageSeconds, m.syncs, m.dropped,
			m.snapshots, m.compactions, m.term, m.isLeader, m.applied, m.slowSyncs, m.diskFree, m.diskFull,
			m.journal, m.leases, m.recalls, m.lapses, m.refused, m.recallWait)
	}
	return m
}

func (m *Metrics) onSync(d time.Duration) {
	m.syncs.Inc()
	m.sync.Observe(d.Seconds())
}
