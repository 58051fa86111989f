package store

import (
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
)

// healthEvery is how often a device is asked how it is doing: that takes it from its work.
const healthEvery = 30 * time.Second

// healthFigure is one figure of a device's SMART / health log.
type healthFigure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*nvme.Health) float64 // NaN when the device does not say
}

// healthCollector reports how the devices are doing that say so.
type healthCollector struct {
	m       *Metrics
	figures []healthFigure

	mu   sync.Mutex
	last map[cfs.DeviceID]healthReport
}

type healthReport struct {
	at     time.Time
	health nvme.Health
	err    error
}

func newHealthCollector(m *Metrics) *healthCollector {
	c := &healthCollector{m: m, last: map[cfs.DeviceID]healthReport{}}
	add := func(kind prometheus.ValueType, name, help string, value func(*nvme.Health) float64) {
		desc := prometheus.NewDesc("claudefs_store_device_health_"+name, help+" From the device's SMART log.", []string{"device"}, nil)
		c.figures = append(c.figures, healthFigure{desc, kind, value})
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	add(gauge, "critical", "Bits of what is wrong, 0 for nothing: 1 spare low, 2 temperature, 4 reliability, 8 read only, 16 backup, 32 persistent memory.",
		func(h *nvme.Health) float64 { return float64(h.Critical) })
	add(gauge, "temperature_celsius", "Temperature of the device.", func(h *nvme.Health) float64 {
		if h.TemperatureCelsius == math.MinInt {
			return math.NaN() // it does not say
		}
		return float64(h.TemperatureCelsius)
	})
	add(gauge, "spare_percent", "Spare blocks that are left.", func(h *nvme.Health) float64 { return float64(h.SparePercent) })
	add(gauge, "used_percent", "Part of the rated endurance that is used; may exceed 100.", func(h *nvme.Health) float64 { return float64(h.UsedPercent) })
	add(counter, "written_bytes_total", "Bytes that hosts have written in the device's life.", func(h *nvme.Health) float64 { return float64(h.BytesWritten) })
	add(counter, "media_errors_total", "Integrity errors that the device could not mend.", func(h *nvme.Health) float64 { return float64(h.MediaErrors) })
	add(counter, "unsafe_shutdowns_total", "Times that the power went without notice.", func(h *nvme.Health) float64 { return float64(h.UnsafeShutdowns) })
	add(counter, "power_on_hours_total", "Hours that the device has been on.", func(h *nvme.Health) float64 { return float64(h.PowerOnHours) })
	return c
}

// Describe names the figures.
func (c *healthCollector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range c.figures {
		out <- f.desc
	}
}

// Collect asks the devices, or repeats what they last said.
func (c *healthCollector) Collect(out chan<- prometheus.Metric) {
	s := c.m.store.Load()
	if s == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range s.all() {
		id := d.id
		r, asked := c.last[id]
		if !asked || time.Since(r.at) > healthEvery {
			r.health, r.err = d.log.Health()
			r.at = time.Now()
			c.last[id] = r
			if r.err != nil && cfs.KindOf(r.err) != cfs.Unsupported {
				s.cfg.Logger.Warn("device health unknown", "device", id.String(), "err", r.err)
			}
		}
		if r.err != nil {
			continue
		}
		for _, f := range c.figures {
			if v := f.value(&r.health); !math.IsNaN(v) {
				out <- prometheus.MustNewConstMetric(f.desc, f.kind, v, id.String())
			}
		}
	}
}
