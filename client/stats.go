package client

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats counts what the data path of a client has done.
type Stats struct {
	shardsFetched, bytesFetched, inlineBytesFetched, shardsReconstructed, crcFailures atomic.Uint64
	shardsPut, bytesPut, putRetries, commits                                          atomic.Uint64
}

// ShardsFetched is the number of shard ranges that nodes have sent, verified.
func (s *Stats) ShardsFetched() uint64 { return s.shardsFetched.Load() }

// ShardsReconstructed is the number of shard ranges computed from others.
func (s *Stats) ShardsReconstructed() uint64 { return s.shardsReconstructed.Load() }

// CRCFailures is the number of shard ranges whose checksum did not match.
func (s *Stats) CRCFailures() uint64 { return s.crcFailures.Load() }

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
		{"shards_reconstructed_total", "Shard ranges computed from others.", &s.shardsReconstructed},
		{"crc_failures_total", "Shard ranges whose checksum did not match.", &s.crcFailures},
		{"shards_put_total", "Shards put.", &s.shardsPut},
		{"bytes_put_total", "Bytes of shards put.", &s.bytesPut},
		{"put_retries_total", "Stripes put again after a failure.", &s.putRetries},
		{"commits_total", "Commands that committed extents.", &s.commits},
	} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "claudefs", Subsystem: "client", Name: m.name, Help: m.help},
			func() float64 { return float64(m.v.Load()) }))
	}
}
