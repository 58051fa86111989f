package nvme

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/invariants"
	"github.com/claudefs/claudefs/iopath"
)

const (
	testSegment = 256 << 10 // small segments: many are opened and used again
	testCluster = "test"
)

// fewer is how often a test that looks at the same thing again and again does so: all times, or few under
// the race detector, which makes it ten times as long. `make test` runs those tests without it as well.
func fewer(all, few int) int {
	if invariants.Race {
		return few
	}
	return all
}

// rig is what a test needs to open devices.
type rig struct {
	t     testing.TB
	arena *iopath.Arena
	ring  *iopath.Ring
}

func newRig(t testing.TB) *rig {
	t.Helper()
	arena, err := iopath.NewArena(24 << 20)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := iopath.NewRing(iopath.RingConfig{Arena: arena, Entries: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
		if n := arena.InUse(); n != 0 {
			t.Errorf("%d bytes of the arena leaked", n)
		} else if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return &rig{t: t, arena: arena, ring: ring}
}

// file makes a sparse file of the given size.
func (r *rig) file(sizeBytes int64) string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Truncate(path, sizeBytes); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *rig) open(path string) Device {
	r.t.Helper()
	dev, err := OpenDevice(path, r.ring)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { dev.Close() })
	return dev
}

// deviceBytes is the size of a device of so many segments beside the reserve.
func deviceBytes(segments int) int64 {
	return HeaderAreaBytes + int64(segments+reserveSegments)*testSegment
}

// device makes and formats a device of so many segments beside the reserve.
func (r *rig) device(segments int) Device {
	r.t.Helper()
	dev := r.open(r.file(deviceBytes(segments)))
	sb := Superblock{ClusterID: testCluster, Device: cfs.MakeDeviceID(1, 0), SegmentBytes: testSegment}
	if err := Format(dev, sb, false); err != nil {
		r.t.Fatal(err)
	}
	return dev
}

func (r *rig) log(dev Device, opt LogOptions) *Log {
	r.t.Helper()
	l, err := OpenLog(dev, r.arena, opt)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return l
}

func testKey(n int) Key {
	return Key{Stripe: cfs.StripeID{Session: cfs.SessionID(1 + n%3), Counter: uint64(n)}, Shard: uint8(n % 6)}
}

// payload is the bytes that belong to a key: any two differ.
func payload(k Key, sizeBytes int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(k.Stripe.Session))
	binary.LittleEndian.PutUint64(seed[8:], k.Stripe.Counter)
	seed[16] = k.Shard
	p := make([]byte, sizeBytes)
	rand.NewChaCha8(seed).Read(p)
	return p
}

// checksums is what the writer of a shard sends with it.
func checksums(k Key, p []byte) []byte {
	var out []byte
	for i := 0; i < len(p)/cfs.BlockSize; i++ {
		out = binary.LittleEndian.AppendUint32(out, payloadCRC(k, uint32(i), p[i*cfs.BlockSize:(i+1)*cfs.BlockSize]))
	}
	return out
}

func record(k Key, sizeBytes int) Record {
	return Record{Key: k, PG: cfs.PGID(1 + k.Shard), Epoch: 7, Len: uint32(sizeBytes)}
}

func (r *rig) putBytes(l *Log, k Key, p []byte) error {
	b, err := r.arena.Get(context.Background(), len(p))
	if err != nil {
		return err
	}
	defer b.Release()
	copy(b.Bytes(), p)
	return l.Put(context.Background(), record(k, len(p)), checksums(k, p), b)
}

func (r *rig) replaceBytes(l *Log, k Key, p []byte) error {
	b, err := r.arena.Get(context.Background(), len(p))
	if err != nil {
		return err
	}
	defer b.Release()
	copy(b.Bytes(), p)
	return l.Replace(context.Background(), record(k, len(p)), checksums(k, p), b)
}

func (r *rig) put(l *Log, k Key, sizeBytes int) error { return r.putBytes(l, k, payload(k, sizeBytes)) }

func (r *rig) mustPut(l *Log, k Key, sizeBytes int) {
	r.t.Helper()
	if err := r.put(l, k, sizeBytes); err != nil {
		r.t.Fatal(err)
	}
}

var errWrongBytes = errors.New("wrong bytes")

// getBytes reads a range and its checksums.
func (r *rig) getBytes(l *Log, k Key, off, n int) (data, crcs []byte, err error) {
	b, err := r.arena.Get(context.Background(), n)
	if err != nil {
		return nil, nil, err
	}
	defer b.Release()
	crcs, err = l.Get(context.Background(), k, uint32(off), uint32(n), b)
	if err != nil {
		return nil, nil, err
	}
	return bytes.Clone(b.Bytes()), crcs, nil
}

// check reads a whole record and compares it with the key's bytes.
func (r *rig) check(l *Log, k Key, sizeBytes int) error {
	data, crcs, err := r.getBytes(l, k, 0, sizeBytes)
	if err != nil {
		return err
	}
	want := payload(k, sizeBytes)
	if !bytes.Equal(data, want) || !bytes.Equal(crcs, checksums(k, want)) {
		return errWrongBytes
	}
	return nil
}

func (r *rig) mustCheck(l *Log, k Key, sizeBytes int) {
	r.t.Helper()
	if err := r.check(l, k, sizeBytes); err != nil {
		r.t.Errorf("%s: %v", k, err)
	}
}

// copyTo copies a device's file to a new one, as a crash at this moment would leave it.
func (r *rig) copyFile(path string) string {
	r.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.write(data)
}

func (r *rig) write(data []byte) string {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "device")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// faulty is a Device whose operations can be made to fail or wait.
type faulty struct {
	Device
	mu      sync.Mutex
	onWrite func(op iopath.WriteOp) error
	onFlush func() error
}

func (f *faulty) set(onWrite func(op iopath.WriteOp) error, onFlush func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onWrite, f.onFlush = onWrite, onFlush
}

func (f *faulty) hooks() (func(op iopath.WriteOp) error, func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.onWrite, f.onFlush
}

func (f *faulty) Write(ops []iopath.WriteOp) error {
	if on, _ := f.hooks(); on != nil {
		if err := on(ops[0]); err != nil {
			return err
		}
	}
	return f.Device.Write(ops)
}

func (f *faulty) Flush() error {
	if _, on := f.hooks(); on != nil {
		if err := on(); err != nil {
			return err
		}
	}
	return f.Device.Flush()
}
