package store_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/store"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// lockedBuffer is a log's output.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// Every pass logs and counts a shard whose bytes are not those that its checksums were made for.
func TestScrub(t *testing.T) {
	r := newRig(t)
	good, bad := cfs.StripeID{Session: 5, Counter: 1}, cfs.StripeID{Session: 5, Counter: 2}
	r.must(r.put(r.devices[0], good, 0, 5, content(good, 0, 64<<10)))
	data := content(bad, 3, 12<<10)
	crcs := ec.BlockCRCs(nil, bad, 3, 0, data)
	data[5000] ^= 1
	_, err := r.call(wire.OpPutShard, &wirepb.PutShard{
		Device: uint32(r.devices[1]), Pg: uint32(testPG), Epoch: 5, Key: key(bad, 3), Crcs: crcs,
	}, &wirepb.Empty{}, [][]byte{data}, nil)
	r.must(err)

	var out lockedBuffer
	reg := prometheus.NewRegistry()
	s := store.New(store.Config{
		Node: testNode, Devices: r.logs, Arena: r.arena, Metrics: store.NewMetrics(reg),
		ScrubBytesPerSecond: 1 << 30, ScrubPause: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&out, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Scrub(ctx)
	}()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		st, _ := s.Stats(r.devices[1])
		if other, _ := s.Stats(r.devices[0]); st.ScrubDamaged >= 2 && !other.LastScrub.IsZero() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", st)
		}
	}
	cancel()
	<-ended
	if st, _ := s.Stats(r.devices[0]); st.ScrubDamaged != 0 || st.ScrubbedBytes < 64<<10 {
		t.Errorf("the device without damage: %+v", st)
	}
	if log := out.buf.String(); !strings.Contains(log, "damaged shard") || !strings.Contains(log, bad.String()+"/3") || !strings.Contains(log, "block=1") || strings.Contains(log, good.String()+"/") {
		t.Errorf("the log:\n%s", log)
	}
	families, err := reg.Gather()
	r.must(err)
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			if len(m.Label) == 1 {
				got[f.GetName()+" "+m.Label[0].GetValue()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	for _, name := range []string{"scrubbed_bytes_total 3/0", "scrubbed_bytes_total 3/1", "scrub_damaged_total 3/1", "scrub_completed_timestamp_seconds 3/0"} {
		if got["claudefs_store_device_"+name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
}
