package filecache

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// stats are the counters of a Cache.
type stats struct {
	filled, filledBytes, evicted, noSpace atomic.Uint64
}

// Stats are figures of a Cache.
type Stats struct {
	// Files and Bytes are what there is, Bytes with what is being filled and in use without a name.
	Files, Bytes int64
	// Filled and FilledBytes are what has come in, Evicted what has gone for lack of room, since Open.
	Filled, FilledBytes, Evicted uint64
	// NoSpace is how often the local file system was full.
	NoSpace uint64
}

// Stats are the figures of now.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Files: int64(len(c.files)), Bytes: c.bytes,
		Filled: c.stats.filled.Load(), FilledBytes: c.stats.filledBytes.Load(),
		Evicted: c.stats.evicted.Load(), NoSpace: c.stats.noSpace.Load(),
	}
}

// Register registers the figures with reg, named claudefs_filecache_*.
func (c *Cache) Register(reg prometheus.Registerer) {
	gauge := func(name, help string, value func(Stats) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "claudefs_filecache_" + name, Help: help},
			func() float64 { return value(c.Stats()) }))
	}
	counter := func(name, help string, value func(Stats) float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "claudefs_filecache_" + name, Help: help},
			func() float64 { return value(c.Stats()) }))
	}
	gauge("files", "Files that are complete in the cache directory.", func(s Stats) float64 { return float64(s.Files) })
	gauge("bytes", "Room that files take in the cache directory.", func(s Stats) float64 { return float64(s.Bytes) })
	counter("filled_total", "Files that were fetched into the cache directory.", func(s Stats) float64 { return float64(s.Filled) })
	counter("filled_bytes_total", "Bytes that were fetched into the cache directory.", func(s Stats) float64 { return float64(s.FilledBytes) })
	counter("evicted_total", "Files that were evicted for lack of room.", func(s Stats) float64 { return float64(s.Evicted) })
	counter("no_space_total", "Times that the local file system was full.", func(s Stats) float64 { return float64(s.NoSpace) })
}
