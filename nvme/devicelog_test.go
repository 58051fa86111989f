package nvme

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"sync"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// deviceRecord is the key, the bytes and the checksums of record i of a demo: a
// shard of what a client writes, of 4 KiB to 1 MiB.
func deviceRecord(i int) (rec Record, data, crcs []byte) {
	rec = Record{
		Key:   Key{Stripe: cfs.StripeID{Session: 7, Counter: uint64(1 + i/6)}, Shard: uint8(i % 6)},
		PG:    cfs.PGID(1 + i%6),
		Epoch: 3,
		Len:   uint32(cfs.BlockSize << (i % 9)),
	}
	data = noise(uint64(1000+i), int(rec.Len))
	table := crc32.MakeTable(crc32.Castagnoli)
	for block := 0; block*cfs.BlockSize < len(data); block++ {
		var seed []byte
		seed = binary.LittleEndian.AppendUint64(seed, uint64(rec.Key.Stripe.Session))
		seed = binary.LittleEndian.AppendUint64(seed, rec.Key.Stripe.Counter)
		seed = binary.LittleEndian.AppendUint32(seed, uint32(rec.Key.Shard))
		seed = binary.LittleEndian.AppendUint32(seed, uint32(block))
		crc := crc32.Update(crc32.Checksum(seed, table), table, data[block*cfs.BlockSize:(block+1)*cfs.BlockSize])
		crcs = binary.LittleEndian.AppendUint32(crcs, crc)
	}
	return rec, data, crcs
}

// logRoundTrip formats the device and does with it what a node does: puts from
// many goroutines, gets, a stop, a start that finds everything again.
func logRoundTrip(t *testing.T, arena *iopath.Arena, open func() Device, records int) {
	ctx := context.Background()
	dev := open()
	if err := Format(dev, Superblock{ClusterID: "demo", Device: cfs.MakeDeviceID(1, 0), SegmentBytes: 4 << 20}, true); err != nil {
		t.Fatal(err)
	}
	start := func() *Log {
		l, err := OpenLog(dev, arena, LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := start()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < records; i += 8 {
				rec, data, crcs := deviceRecord(i)
				b, err := arena.Get(ctx, len(data))
				if err != nil {
					t.Error(err)
					return
				}
				copy(b.Bytes(), data)
				if err := l.Put(ctx, rec, crcs, b); err != nil {
					t.Errorf("put %s: %v", rec.Key, err)
				}
				b.Release()
			}
		})
	}
	wg.Wait()
	check := func(l *Log, i int) {
		rec, data, crcs := deviceRecord(i)
		b, err := arena.Get(ctx, len(data))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Release()
		got, err := l.Get(ctx, rec.Key, 0, rec.Len, b)
		if err != nil || !bytes.Equal(b.Bytes(), data) || !bytes.Equal(got, crcs) {
			t.Errorf("get %s: other bytes, or %v", rec.Key, err)
		}
	}
	for i := range records {
		check(l, i)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}

	dev = open()
	l = start()
	for i := range records {
		check(l, i)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}

// TestDeviceLog puts and gets records on a file, and on the devices of -device.path.
func TestDeviceLog(t *testing.T) {
	r := newDeviceRig(t, true)
	paths := append([]string{r.file(128 << 20)}, devicePaths()...)
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			logRoundTrip(t, r.arena, func() Device {
				dev, err := OpenDevice(path, r.ring)
				if err != nil {
					t.Fatal(err)
				}
				return dev
			}, 90) // 20 MiB
		})
	}
}
