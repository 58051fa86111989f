package nvme

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// benchDeviceBytes is the size of the device file that the benchmarks write, in full, before they start.
const benchDeviceBytes = HeaderAreaBytes + 16*DefaultSegmentBytes

// benchRig is an arena, a ring and a device file that has been written once.
func benchRig(b *testing.B) (Device, *iopath.Arena) {
	b.Helper()
	arena, err := iopath.NewArena(64 << 20)
	if err != nil {
		b.Fatal(err)
	}
	ring, err := iopath.NewRing(iopath.RingConfig{Arena: arena})
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "device")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	zero := make([]byte, 1<<20)
	for range benchDeviceBytes / len(zero) {
		if _, err := f.Write(zero); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	f.Close()
	dev, err := OpenDevice(path, ring)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		dev.Close()
		ring.Close()
		if err := arena.Close(); err != nil {
			b.Error(err)
		}
	})
	return dev, arena
}

// parallel runs fn b.N times from depth goroutines.
func parallel(b *testing.B, depth int, fn func(worker int, i uint64) error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range depth {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				if err := fn(w, uint64(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkRawWrite(b *testing.B) {
	for _, c := range []struct{ size, depth int }{{4 << 10, 16}, {256 << 10, 8}, {1 << 20, 8}} {
		b.Run(fmt.Sprintf("size=%dKiB/depth=%d", c.size>>10, c.depth), func(b *testing.B) {
			dev, arena := benchRig(b)
			bufs := make([]*iopath.Buf, c.depth)
			for i := range bufs {
				bufs[i], _ = arena.Get(context.Background(), c.size)
				defer bufs[i].Release()
			}
			slots := uint64((benchDeviceBytes - HeaderAreaBytes) / c.size)
			b.SetBytes(int64(c.size))
			b.ResetTimer()
			ops := make([][1]iopath.WriteOp, c.depth)
			parallel(b, c.depth, func(w int, i uint64) error {
				ops[w][0] = iopath.WriteOp{P: bufs[w].Bytes(), Off: HeaderAreaBytes + int64(i%slots)*int64(c.size)}
				return dev.Write(ops[w][:])
			})
		})
	}
}

func BenchmarkLogPut(b *testing.B) {
	for _, c := range []struct{ size, depth int }{{4 << 10, 1}, {4 << 10, 16}, {64 << 10, 8}, {256 << 10, 8}, {1 << 20, 8}, {1 << 20, 1}} {
		b.Run(fmt.Sprintf("size=%dKiB/depth=%d", c.size>>10, c.depth), func(b *testing.B) {
			dev, arena := benchRig(b)
			if err := Format(dev, Superblock{ClusterID: "bench", Device: cfs.MakeDeviceID(1, 0)}, false); err != nil {
				b.Fatal(err)
			}
			l, err := OpenLog(dev, arena, LogOptions{IdleAfter: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			bufs := make([]*iopath.Buf, c.depth)
			for i := range bufs {
				bufs[i], _ = arena.Get(context.Background(), c.size)
				defer bufs[i].Release()
			}
			crcs := make([]byte, c.size/cfs.BlockSize*4)
			window := uint64(benchDeviceBytes / 2 / c.size) // records kept
			b.SetBytes(int64(c.size))
			b.ResetTimer()
			parallel(b, c.depth, func(w int, i uint64) error {
				k := Key{Stripe: cfs.StripeID{Session: 1, Counter: i}}
				if err := l.Put(context.Background(), Record{Key: k, PG: 1, Epoch: 1, Len: uint32(c.size)}, crcs, bufs[w]); err != nil {
					return err
				}
				if i > window {
					k.Stripe.Counter = i - window
					l.Delete([]Key{k})
				}
				return nil
			})
			b.StopTimer()
			st := l.Stats()
			b.ReportMetric(float64(st.Flushes)/float64(b.N), "flushes/op")
			b.ReportMetric(float64(st.Writes)/float64(b.N), "writes/op")
		})
	}
}
