package store

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

// opKind indexes the metrics of a shard operation.
type opKind uint8

const (
	opPut opKind = iota
	opGet
	opDelete
	opList
	opReport
	opKinds
)

// String is the value of the label op.
func (k opKind) String() string {
	return [opKinds]string{"put", "get", "delete", "list", "report"}[k]
}

// Metrics are the figures of a Store, all named claudefs_store_*.
type Metrics struct {
	errors  *prometheus.CounterVec
	deleted prometheus.Counter
	mended  mendMetrics
	ops     [opKinds]opMetrics
	store   atomic.Pointer[Store]
}

// opMetrics are resolved once, so that counting allocates nothing.
type opMetrics struct {
	requests prometheus.Counter
	bytes    prometheus.Counter
	latency  prometheus.Observer
}

// latencyBuckets are seconds: from a cached read (20 us) to a device in trouble (20 s).
func latencyBuckets() []float64 { return prometheus.ExponentialBuckets(20e-6, 2, 21) }

// NewMetrics makes the metrics and registers them with reg; nil leaves them unregistered.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claudefs_store_requests_total", Help: "Shard requests served, failed ones included."}, []string{"op"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claudefs_store_bytes_total", Help: "Bytes of shards put and got."}, []string{"op"})
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "claudefs_store_latency_seconds", Help: "Time from a shard request's arrival to its answer.",
		Buckets: latencyBuckets()}, []string{"op"})
	m := &Metrics{
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claudefs_store_errors_total", Help: "Shard requests refused or failed, by kind of error."}, []string{"op", "kind"}),
		deleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "claudefs_store_deleted_shards_total", Help: "Shards deleted, by request or by the delete feed."}),
	}
	m.mended = newMendMetrics(reg)
	for k := range opKinds {
		m.ops[k] = opMetrics{requests.WithLabelValues(k.String()), bytes.WithLabelValues(k.String()), latency.WithLabelValues(k.String())}
	}
	if reg != nil {
		reg.MustRegister(requests, bytes, latency, m.errors, m.deleted, newDeviceCollector(m), newHealthCollector(m))
	}
	return m
}

// mendMetrics count what Mend does.
type mendMetrics struct {
	damaged, missing, repaired, failed prometheus.Counter
	reclaimed                          prometheus.Counter
	filledBytes                        prometheus.Counter
}

func newMendMetrics(reg prometheus.Registerer) mendMetrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "claudefs_store_" + name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	return mendMetrics{
		damaged:     counter("damaged_shards_total", "Shards found damaged, by scrubs and readers."),
		missing:     counter("missing_shards_total", "Shards found missing."),
		repaired:    counter("repaired_shards_total", "Damaged and missing shards that were computed anew."),
		failed:      counter("repairs_failed_total", "Attempts to compute a shard anew that failed."),
		reclaimed:   counter("reclaimed_shards_total", "Shards deleted that no stripe has any use for."),
		filledBytes: counter("filled_bytes_total", "Bytes of shards put into filling slots."),
	}
}

// watch makes the device figures those of s.
func (m *Metrics) watch(s *Store) { m.store.Store(s) }

// observe counts one request; it allocates nothing for one that succeeded.
func (m *Metrics) observe(k opKind, took time.Duration, bytes int, err error) {
	op := &m.ops[k]
	op.requests.Inc()
	op.latency.Observe(took.Seconds())
	if err != nil {
		m.errors.WithLabelValues(k.String(), cfs.KindOf(err).Name()).Inc()
		return
	}
	op.bytes.Add(float64(bytes))
}

// deviceFigure is one figure of a device's log.
type deviceFigure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*nvme.LogStats) float64
}

// deviceCollector reports each device's figures when it is asked.
type deviceCollector struct {
	m       *Metrics
	figures []deviceFigure
}

func newDeviceCollector(m *Metrics) *deviceCollector {
	c := &deviceCollector{m: m}
	add := func(kind prometheus.ValueType, name, help string, value func(*nvme.LogStats) float64) {
		desc := prometheus.NewDesc("claudefs_store_device_"+name, help, []string{"device"}, nil)
		c.figures = append(c.figures, deviceFigure{desc, kind, value})
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	add(gauge, "capacity_bytes", "Bytes that the device can hold.", func(s *nvme.LogStats) float64 { return float64(s.CapacityBytes) })
	add(gauge, "used_bytes", "Bytes of shards and what lies around them.", func(s *nvme.LogStats) float64 { return float64(s.UsedBytes) })
	add(gauge, "live_bytes", "Bytes of shards that are not deleted.", func(s *nvme.LogStats) float64 { return float64(s.LiveBytes) })
	add(gauge, "index_bytes", "Memory for the index of shards and the bitmaps of segments.", func(s *nvme.LogStats) float64 { return float64(s.IndexBytes + s.BitmapBytes) })
	add(counter, "put_bytes_total", "Bytes of shards put.", func(s *nvme.LogStats) float64 { return float64(s.PutBytes) })
	add(counter, "copied_bytes_total", "Bytes of shards that the cleaner moved to free segments.", func(s *nvme.LogStats) float64 { return float64(s.CopiedBytes) })
	add(counter, "cleaned_segments_total", "Segments that the cleaner emptied.", func(s *nvme.LogStats) float64 { return float64(s.Cleaned) })
	add(counter, "checkpoints_total", "Times that changed bitmaps were written.", func(s *nvme.LogStats) float64 { return float64(s.Checkpoints) })
	add(gauge, "records", "Shards on the device.", func(s *nvme.LogStats) float64 { return float64(s.Records) })
	add(counter, "writes_total", "Writes to the device.", func(s *nvme.LogStats) float64 { return float64(s.Writes) })
	add(counter, "flushes_total", "Flushes of the device.", func(s *nvme.LogStats) float64 { return float64(s.Flushes) })
	add(counter, "crc_failures_total", "Damaged headers and payloads met.", func(s *nvme.LogStats) float64 { return float64(s.CRCFailures) })
	add(counter, "torn_records_total", "Shards that a crash tore before they were acknowledged, dropped at the start.", func(s *nvme.LogStats) float64 { return float64(s.TornRecords) })
	add(counter, "write_errors_total", "Writes and flushes that failed.", func(s *nvme.LogStats) float64 { return float64(s.WriteErrors) })
	add(counter, "read_errors_total", "Reads that failed.", func(s *nvme.LogStats) float64 { return float64(s.ReadErrors) })
	add(counter, "scrubbed_bytes_total", "Bytes read to compare shards with their checksums.", func(s *nvme.LogStats) float64 { return float64(s.ScrubbedBytes) })
	add(counter, "scrub_damaged_total", "Damaged shards found by comparing all of them; each pass counts them again.", func(s *nvme.LogStats) float64 { return float64(s.ScrubDamaged) })
	add(gauge, "scrub_completed_timestamp_seconds", "When all shards were last compared with their checksums, in seconds since 1970; 0 for never.", func(s *nvme.LogStats) float64 {
		if s.LastScrub.IsZero() {
			return 0
		}
		return float64(s.LastScrub.UnixNano()) / 1e9
	})
	add(gauge, "free_segments", "Segments that nothing is in.", func(s *nvme.LogStats) float64 { return float64(s.FreeSegments) })
	add(gauge, "given_up", "1 when too many reads or writes have failed: nothing is put any more.", func(s *nvme.LogStats) float64 {
		if s.Failed {
			return 1
		}
		return 0
	})
	return c
}

// Describe names the figures.
func (c *deviceCollector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range c.figures {
		out <- f.desc
	}
}

// Collect reads the figures of all devices.
func (c *deviceCollector) Collect(out chan<- prometheus.Metric) {
	s := c.m.store.Load()
	if s == nil {
		return
	}
	for _, d := range s.all() {
		stats := d.log.Stats()
		for _, f := range c.figures {
			out <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(&stats), d.id.String())
		}
	}
}
