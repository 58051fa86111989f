package node

import (
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsHeaderTimeout bounds how long a scraper may take to send its request.
const metricsHeaderTimeout = 5 * time.Second

// nodeMetrics are the figures of the process as a whole, named claudefs_node_*.
type nodeMetrics struct {
	heartbeats      prometheus.Counter
	heartbeatErrors prometheus.Counter
	deviceFailed    *prometheus.GaugeVec
	arenaInUse      prometheus.GaugeFunc
}

func newNodeMetrics(reg prometheus.Registerer, arenaInUse func() float64) *nodeMetrics {
	m := &nodeMetrics{
		heartbeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "claudefs_node_heartbeats_total", Help: "Heartbeats that the leader has taken."}),
		heartbeatErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "claudefs_node_heartbeat_errors_total", Help: "Heartbeats that no leader took."}),
		deviceFailed: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "claudefs_node_device_failed", Help: "1 for a device that the node runs without."}, []string{"path"}),
		arenaInUse: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "claudefs_node_arena_in_use_bytes", Help: "Buffer memory in use."}, arenaInUse),
	}
	reg.MustRegister(m.heartbeats, m.heartbeatErrors, m.deviceFailed, m.arenaInUse,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// register exports what has been restriped, by all clients of the restriper together.
func (r *restriper) register(reg prometheus.Registerer) {
	for _, m := range []struct {
		name, help string
		value      func(restriped) uint64
	}{
		{"restriped_windows_total", "Ranges of files written anew.", func(d restriped) uint64 { return d.windows }},
		{"restriped_bytes_total", "Bytes of files written anew.", func(d restriped) uint64 { return d.bytes }},
		{"restripe_conflicts_total", "Ranges left for later because they changed at the same time.", func(d restriped) uint64 { return d.conflicts }},
		{"restripe_failures_total", "Failures that restriping went on after.", func(d restriped) uint64 { return d.failures }},
	} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "claudefs_node_" + m.name, Help: m.help},
			func() float64 { return float64(m.value(r.done())) }))
	}
}

// serveMetrics answers /metrics and /healthz on ln until the server is closed.
func (n *Node) serveMetrics(ln net.Listener) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{Registry: n.registry}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: metricsHeaderTimeout}
	n.group.Add(1)
	go func() {
		defer n.group.Done()
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the metrics server ended", "err", err)
		}
	}()
	return srv
}
