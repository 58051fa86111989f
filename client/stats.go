package client

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats counts what the data path of a client has done.
type Stats struct {
	shardsFetched, bytesFetched, inlineBytesFetched, shardsReconstructed, crcFailures atomic.Uint64
	hedges, hedgeWins, shardsReported, wholeStripes, bytesCopied                      atomic.Uint64
	shardsPut, bytesPut, putRetries, commits, behindCommands, behindOps               atomic.Uint64
	restripedWindows, restripedBytes, restripeConflicts, restripeFailures             atomic.Uint64
	forgetsLate                                                                       atomic.Uint64
}

// ShardsFetched is the number of shard ranges that nodes have sent, verified.
func (s *Stats) ShardsFetched() uint64 { return s.shardsFetched.Load() }

// ShardsReconstructed is the number of shard ranges computed from others because they
// could not be read; those that were only late are HedgeWins.
func (s *Stats) ShardsReconstructed() uint64 { return s.shardsReconstructed.Load() }

// CRCFailures is the number of shard ranges whose checksum did not match.
func (s *Stats) CRCFailures() uint64 { return s.crcFailures.Load() }

// RestripedWindows is the number of ranges of files that Restripe has written anew.
func (s *Stats) RestripedWindows() uint64 { return s.restripedWindows.Load() }

// RestripedBytes is the number of bytes of files in them.
func (s *Stats) RestripedBytes() uint64 { return s.restripedBytes.Load() }

// RestripeConflicts is the number of ranges left for later because they, or what they
// lie in, changed at the same time.
func (s *Stats) RestripeConflicts() uint64 { return s.restripeConflicts.Load() }

// RestripeFailures is the number of failures that Restripe went on after.
func (s *Stats) RestripeFailures() uint64 { return s.restripeFailures.Load() }

// Hedges is the number of reconstructions that began because a shard was late.
func (s *Stats) Hedges() uint64 { return s.hedges.Load() }

// HedgeWins is the number of hedges that were done before the shard came.
func (s *Stats) HedgeWins() uint64 { return s.hedgeWins.Load() }

// ShardsReported is the number of damaged or missing shards that nodes were told of.
func (s *Stats) ShardsReported() uint64 { return s.shardsReported.Load() }

// BytesFetched is the number of bytes of shards that nodes have sent, verified.
func (s *Stats) BytesFetched() uint64 { return s.bytesFetched.Load() }

// Stats are the client's counters.
func (c *Client) Stats() *Stats { return &c.stats }

// Register exports the counters.
func (s *Stats) Register(reg prometheus.Registerer) {
	for _, m := range []struct {
		name, help string
		v          *atomic.Uint64
	}{
		{"shards_fetched_total", "Shard ranges that nodes have sent, verified.", &s.shardsFetched},
		{"bytes_fetched_total", "Bytes of shards that nodes have sent, verified.", &s.bytesFetched},
		{"inline_bytes_fetched_total", "File bytes that came with extents.", &s.inlineBytesFetched},
		{"shards_reconstructed_total", "Shard ranges computed from others because they could not be read.", &s.shardsReconstructed},
		{"crc_failures_total", "Shard ranges whose checksum did not match.", &s.crcFailures},
		{"hedges_total", "Reconstructions begun because a shard was late.", &s.hedges},
		{"hedge_wins_total", "Hedges that were done before the shard came.", &s.hedgeWins},
		{"shards_reported_total", "Damaged or missing shards that nodes were told of.", &s.shardsReported},
		{"whole_stripes_total", "Stripes read whole because a data shard of theirs cannot be read.", &s.wholeStripes},
		{"bytes_copied_total", "File bytes copied by reference.", &s.bytesCopied},
		{"shards_put_total", "Shards put.", &s.shardsPut},
		{"bytes_put_total", "Bytes of shards put.", &s.bytesPut},
		{"put_retries_total", "Stripes put again after a failure.", &s.putRetries},
		{"restriped_windows_total", "Ranges of files written anew.", &s.restripedWindows},
		{"restriped_bytes_total", "Bytes of files written anew.", &s.restripedBytes},
		{"restripe_conflicts_total", "Ranges left for later because they changed at the same time.", &s.restripeConflicts},
		{"restripe_failures_total", "Failures that restriping went on after.", &s.restripeFailures},
		{"forgets_late_total", "Recalls acknowledged before what is above the client had forgotten all.", &s.forgetsLate},
		{"name_operations_behind_total", "Operations on names that were done in memory first.", &s.behindOps},
		{"name_commands_behind_total", "Commands that committed them.", &s.behindCommands},
		{"commits_total", "Commands that committed extents.", &s.commits},
	} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "claudefs", Subsystem: "client", Name: m.name, Help: m.help},
			func() float64 { return float64(m.v.Load()) }))
	}
}
