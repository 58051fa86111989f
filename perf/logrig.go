package perf

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

const (
	// benchCluster is whose the devices of benches are.
	benchCluster = "cfs-perf"
	// rigRingEntries bounds the operations of a log's ring that are in flight.
	rigRingEntries = 512
	// rigBufferBytes is the arena memory for a rig's own buffers beside those of its
	// steps: a record that is verified.
	rigBufferBytes = 4 << 20
)

// rigConfig says which log a bench works on.
type rigConfig struct {
	path         string      // of the device
	memory       nvme.Device // instead of path; not closed
	limitBytes   int64       // of the device that the log may see; 0 for all
	segmentBytes uint32      // when it is formatted; 0 for the default
	format       bool        // anew, whatever it holds
	bufferBytes  int         // arena memory for the steps
}

// logRig is a log with all that it stands on.
type logRig struct {
	arena *iopath.Arena
	ring  *iopath.Ring // nil when the device is memory
	dev   *countingDevice
	log   *nvme.Log
}

// openRig opens a device, and formats it where asked; openLog opens the log.
func openRig(cfg rigConfig) (r *logRig, err error) {
	r = &logRig{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	// Twice what a log keeps: it wants an arena that it is not alone in.
	if r.arena, err = iopath.NewArena(2*nvme.LogArenaBytes + rigBufferBytes + cfg.bufferBytes); err != nil {
		return r, err
	}
	dev := cfg.memory
	if dev == nil {
		ring := ringConfig(rigRingEntries, r.arena)
		if st, err := os.Stat(cfg.path); err == nil {
			ring.Commands = st.Mode()&os.ModeCharDevice != 0
		}
		if r.ring, err = iopath.NewRing(ring); err != nil {
			return r, err
		}
		if dev, err = nvme.OpenDevice(cfg.path, r.ring); err != nil {
			return r, err
		}
	}
	r.dev = &countingDevice{Device: dev, limit: cfg.limitBytes}
	if cfg.format {
		sb := nvme.Superblock{ClusterID: benchCluster, Device: cfs.MakeDeviceID(1, 0), SegmentBytes: cfg.segmentBytes}
		err = nvme.Format(r.dev, sb, true)
	}
	return r, err
}

func (r *logRig) openLog() (err error) {
	r.log, err = nvme.OpenLog(r.dev, r.arena, nvme.LogOptions{IdleAfter: -1}) // what is measured is what was asked for
	return err
}

// close closes what is open.
func (r *logRig) close() error {
	var errs []error
	if r.log != nil {
		errs = append(errs, r.log.Close())
	}
	if r.dev != nil {
		errs = append(errs, r.dev.Close())
	}
	if r.ring != nil {
		errs = append(errs, r.ring.Close())
	}
	if r.arena != nil {
		errs = append(errs, r.arena.Close())
	}
	return errors.Join(errs...)
}

// buffers takes n buffers of the arena, filled, and returns what gives them back.
func (r *logRig) buffers(ctx context.Context, n, sizeBytes int, seed uint64) (bufs []*iopath.Buf, release func(), err error) {
	release = func() {
		for _, b := range bufs {
			b.Release()
		}
	}
	for i := range n {
		b, err := r.arena.Get(ctx, sizeBytes)
		if err != nil {
			release()
			return nil, nil, err
		}
		fill(b.Bytes(), seed+uint64(i))
		bufs = append(bufs, b)
	}
	return bufs, release, nil
}

// keyOf is the key of the n-th record of a rig.
func keyOf(n uint64) nvme.Key { return nvme.Key{Stripe: cfs.StripeID{Session: 1, Counter: n}} }

// recordOf describes the n-th record.
func recordOf(n uint64, sizeBytes int) nvme.Record {
	return nvme.Record{Key: keyOf(n), PG: 1, Epoch: 1, Len: uint32(sizeBytes)}
}

// stamp puts the record's number into its bytes.
func stamp(p []byte, n uint64) { binary.LittleEndian.PutUint64(p, n) }

// stamped reports whether the bytes are the n-th record's.
func stamped(p []byte, n uint64) bool { return binary.LittleEndian.Uint64(p) == n }

// stream is the records of one size in a log: put in order, deleted in order once
// there are more than a window of them, so that segments die whole and the
// cleaner has nothing to do.
type stream struct {
	log       *nvme.Log
	sizeBytes int
	last      *atomic.Uint64 // number of the last record, of all streams

	mu     sync.Mutex
	live   []uint64 // a ring: numbers of live records, the oldest at head
	head   int
	n      int
	window int
}

// newStream keeps up to windowBytes of live records, and has room for so many puts more.
func newStream(log *nvme.Log, sizeBytes int, windowBytes int64, puts int, last *atomic.Uint64) *stream {
	window := max(1, int(windowBytes/int64(sizeBytes)))
	return &stream{log: log, sizeBytes: sizeBytes, last: last, window: window, live: make([]uint64, window+puts+1)}
}

// added counts a record in, and returns the number of one to delete.
func (s *stream) added(n uint64) (oldest uint64, full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[(s.head+s.n)%len(s.live)] = n
	if s.n++; s.n <= s.window {
		return 0, false
	}
	oldest = s.live[s.head]
	s.head = (s.head + 1) % len(s.live)
	s.n--
	return oldest, true
}

// pick is a live record.
func (s *stream) pick(rng *rand.Rand) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return 0, false
	}
	return s.live[(s.head+rng.IntN(s.n))%len(s.live)], true
}

// putStep puts one record and deletes one, if the window is full. The checksums are
// zeros: a client computes them, and the log carries them unseen.
func (s *stream) putStep(ctx context.Context, buf *iopath.Buf) step {
	crcs := make([]byte, s.sizeBytes/cfs.BlockSize*4)
	old := make([]nvme.Key, 1)
	return func() (int, error) {
		n := s.last.Add(1)
		stamp(buf.Bytes(), n)
		if err := s.log.Put(ctx, recordOf(n, s.sizeBytes), crcs, buf); err != nil {
			return 0, err
		}
		if oldest, full := s.added(n); full {
			old[0] = keyOf(oldest)
			s.log.Delete(old)
		}
		return 1, nil
	}
}

// getStep reads a record at random and looks at its stamp.
func (s *stream) getStep(ctx context.Context, buf *iopath.Buf, rng *rand.Rand) step {
	return func() (int, error) {
		n, ok := s.pick(rng)
		if !ok {
			return 0, cfs.Errorf("get", cfs.NotFound, "the log has no record of %d bytes", s.sizeBytes)
		}
		if _, err := s.log.Get(ctx, keyOf(n), 0, uint32(s.sizeBytes), buf); err != nil {
			return 0, err
		}
		if !stamped(buf.Bytes(), n) {
			return 0, cfs.Errorf("get", cfs.Corrupt, "record %s has other bytes than were put", keyOf(n))
		}
		return 1, nil
	}
}

// verify reads records and compares them with their checksums.
func (r *logRig) verify(ctx context.Context, records []nvme.Record) error {
	for _, rec := range records {
		buf, err := r.arena.Get(ctx, int(rec.Len))
		if err != nil {
			return err
		}
		crcs, err := r.log.Get(ctx, rec.Key, 0, rec.Len, buf)
		if err == nil {
			if bad := ec.CheckBlockCRCs(slices.Clone(crcs), rec.Key.Stripe, rec.Key.Shard, 0, buf.Bytes()); bad >= 0 {
				err = cfs.Errorf("verify", cfs.Corrupt, "block %d of record %s has other bytes than were put", bad, rec.Key)
			}
		}
		buf.Release()
		if err != nil {
			return err
		}
	}
	return nil
}
