package raftmeta

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// BenchmarkCommit measures creates through the leader's proposal path: three
// voters in this process with synced logs, messages over loopback TCP.
func BenchmarkCommit(b *testing.B) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			c := newCluster(b, 3, func(cfg *Config) {
				cfg.SegmentBytes = 64 << 20
				cfg.CacheBytes = 0
				cfg.SessionTimeout = time.Hour
				cfg.Metrics = NewMetrics(nil)
			})
			s := c.session()
			n := c.leader().node
			var seq atomic.Uint64
			var before, after unix.Rusage
			unix.Getrusage(unix.RUSAGE_SELF, &before)
			b.ResetTimer()
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for {
						i := seq.Add(1)
						if i > uint64(b.N) {
							return
						}
						cmd := create(s, i, fmt.Sprint("file-", i))
						cmd.LowWater = uint64(max(1, int(i)-1000))
						body, err := proto.Marshal(wire.CommandToPB(cmd))
						if err != nil {
							b.Error(err)
							return
						}
						r, err := n.command(b.Context(), cmd, body)
						if err != nil || r.Kind != cfs.KindOK {
							b.Errorf("create: %v %+v", err, r)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			unix.Getrusage(unix.RUSAGE_SELF, &after)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/1e3/float64(b.N), "cpu-us/op")
			for stage, o := range map[string]prometheus.Observer{"queue": n.metrics.queue, "replicate": n.metrics.repl, "sync": n.metrics.sync, "apply": n.metrics.apply} {
				var m dto.Metric
				if err := o.(prometheus.Histogram).Write(&m); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(m.Histogram.GetSampleSum()*1e6/float64(m.Histogram.GetSampleCount()), stage+"-us")
			}
		})
	}
}

// BenchmarkQuery measures linearizable lookups on the leader.
func BenchmarkQuery(b *testing.B) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			c := newCluster(b, 3, nil)
			s := c.session()
			c.mustCreate(s, 1, "a")
			n := c.leader().node
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						a, err := n.query(b.Context(), &cfs.Query{Kind: cfs.QueryLookup, Dir: cfs.RootIno, Name: "a"})
						if err != nil || a.Kind != cfs.KindOK {
							b.Errorf("lookup: %v %+v", err, a)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}
