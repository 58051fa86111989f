package wire

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/claudefs/claudefs/cfs"
)

// side is which end of a connection a metric is about.
type side int

const (
	sideClient side = iota
	sideServer
	sideEnd
)

var sideNames = [sideEnd]string{sideClient: "client", sideServer: "server"}

// Metrics counts connections, calls and bytes, as claudefs_wire_*. A nil
// *Metrics counts nothing. One may be shared by servers and pools.
type Metrics struct {
	conns        [sideEnd]prometheus.Gauge
	inFlight     [sideEnd]prometheus.Gauge
	sentBytes    [sideEnd]prometheus.Counter
	recvBytes    [sideEnd]prometheus.Counter
	seconds      [sideEnd][opEnd]prometheus.Observer
	oneWays      [sideEnd][opEnd]prometheus.Counter
	errors       *prometheus.CounterVec
	dialFailures prometheus.Counter
}

// NewMetrics makes the metrics and registers them with reg (nil: nowhere). It
// panics, as prometheus does, when they are registered there already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	conns := f.NewGaugeVec(prometheus.GaugeOpts{Name: "claudefs_wire_connections", Help: "Open connections."}, []string{"side"})
	flight := f.NewGaugeVec(prometheus.GaugeOpts{Name: "claudefs_wire_in_flight", Help: "Calls that wait for a reply (client), requests being served (server)."}, []string{"side"})
	bytes := f.NewCounterVec(prometheus.CounterOpts{Name: "claudefs_wire_bytes_total", Help: "Bytes of frames."}, []string{"side", "direction"})
	seconds := f.NewHistogramVec(prometheus.HistogramOpts{
		Name: "claudefs_wire_seconds", Help: "Time from request to reply, failures included.",
		Buckets: prometheus.ExponentialBuckets(20e-6, 2, 20), // 20 us to 10 s
	}, []string{"side", "op"})
	ways := f.NewCounterVec(prometheus.CounterOpts{Name: "claudefs_wire_one_way_total", Help: "One-way frames sent (client) and received (server), lost ones included."}, []string{"side", "op"})
	m := &Metrics{
		errors:       f.NewCounterVec(prometheus.CounterOpts{Name: "claudefs_wire_errors_total", Help: "Calls and requests that failed, by kind."}, []string{"side", "op", "kind"}),
		dialFailures: f.NewCounter(prometheus.CounterOpts{Name: "claudefs_wire_dial_failures_total", Help: "Connections that could not be made."}),
	}
	for s, name := range sideNames {
		m.conns[s] = conns.WithLabelValues(name)
		m.inFlight[s] = flight.WithLabelValues(name)
		m.sentBytes[s] = bytes.WithLabelValues(name, "sent")
		m.recvBytes[s] = bytes.WithLabelValues(name, "received")
		for op := OpHello; op < opEnd; op++ {
			m.seconds[s][op] = seconds.WithLabelValues(name, op.String())
			m.oneWays[s][op] = ways.WithLabelValues(name, op.String())
		}
	}
	return m
}

func (m *Metrics) connOpened(s side) {
	if m != nil {
		m.conns[s].Inc()
	}
}

func (m *Metrics) connClosed(s side) {
	if m != nil {
		m.conns[s].Dec()
	}
}

func (m *Metrics) dialFailed() {
	if m != nil {
		m.dialFailures.Inc()
	}
}

func (m *Metrics) sent(s side, n int) {
	if m != nil {
		m.sentBytes[s].Add(float64(n))
	}
}

func (m *Metrics) received(s side, n int) {
	if m != nil {
		m.recvBytes[s].Add(float64(n))
	}
}

// begin counts a call in flight; end takes what it returns.
func (m *Metrics) begin(s side) time.Time {
	if m == nil {
		return time.Time{}
	}
	m.inFlight[s].Inc()
	return time.Now()
}

func (m *Metrics) end(s side, op Op, start time.Time, err error) {
	if m == nil {
		return
	}
	m.inFlight[s].Dec()
	if op >= opEnd {
		op = 0 // what a newer peer asked for has no histogram
	}
	if op != 0 {
		m.seconds[s][op].Observe(time.Since(start).Seconds())
	}
	if err != nil {
		m.errors.WithLabelValues(sideNames[s], op.String(), cfs.KindOf(err).Name()).Inc()
	}
}

// oneWay counts a one-way frame; err is why it was not sent or not taken.
func (m *Metrics) oneWay(s side, op Op, err error) {
	if m == nil {
		return
	}
	m.oneWays[s][op].Inc()
	if err != nil {
		m.errors.WithLabelValues(sideNames[s], op.String(), cfs.KindOf(err).Name()).Inc()
	}
}
