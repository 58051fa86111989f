package nvme

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/sim"
)

var (
	crashSeed  = flag.Uint64("crash.seed", 0, "replay this seed of TestCrashes alone")
	crashSeeds = flag.Int("crash.seeds", fewer(300, 60), "number of seeds of TestCrashes")
)

// model is what the log must hold.
type model struct {
	mu      sync.Mutex
	acked   map[Key][]byte // must be there
	unsure  map[Key][]byte // put without an answer: there with these bytes, or absent
	deleted map[Key]deletion
	next    uint64

	replacing map[Key]bool     // by somebody
	instead   map[Key][][]byte // Replaces without an answer: any of these bytes, or those that are acked
	replaced  map[Key][][]byte // what the record was before it was replaced
	feed      uint64           // position of the last delete
}

// deletion is a delete that a crash may make the log forget, unless the log has
// stored a feed position that includes it.
type deletion struct {
	payloads [][]byte // any of these: what it had, and what was replaced before
	position uint64
}

func newModel() *model {
	return &model{acked: map[Key][]byte{}, unsure: map[Key][]byte{}, deleted: map[Key]deletion{},
		replacing: map[Key]bool{}, instead: map[Key][][]byte{}, replaced: map[Key][][]byte{}}
}

const modelSegments = 12

// TestCrashes drives concurrent puts, gets, deletes, segment reuse, power cuts and kills
// against a model, from seeds. The bytes stored are often copies of the device's own
// blocks, headers included.
func TestCrashes(t *testing.T) {
	r := newRig(t)
	if *crashSeed != 0 {
		runCrashes(t, r, *crashSeed)
		return
	}
	for seed := uint64(1); seed <= uint64(*crashSeeds) && !t.Failed(); seed++ {
		runCrashes(t, r, seed)
	}
}

func runCrashes(t *testing.T, r *rig, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	cfg := sim.DiskConfig{
		SizeBytes:    HeaderAreaBytes + modelSegments*MinSegmentBytes,
		SectorBytes:  []int{512, 4096}[rng.IntN(2)],
		Seed:         rng.Uint64(),
		WriteThrough: rng.IntN(8) == 0,
		Yields:       simYields,
	}
	dev := simDisk(cfg, Kind(rng.IntN(2)))
	if err := Format(dev, Superblock{ClusterID: testCluster, SegmentBytes: MinSegmentBytes}, false); err != nil {
		t.Fatal(err)
	}
	m := newModel()
	for life := range 6 {
		if rng.IntN(4) == 0 { // the power fails during the start
			dev.disk.StopAfter(rng.IntN(8))
		}
		opt := LogOptions{CRCCacheBytes: rng.IntN(2) * 64 << 10, Checkpoint: []time.Duration{0, time.Millisecond}[rng.IntN(2)]}
		opt.IdleAfter = []time.Duration{-1, 50 * time.Microsecond}[rng.IntN(2)]
		l, err := OpenLog(dev, r.arena, opt)
		if errors.Is(err, sim.ErrStopped) {
			dev = dev.afterPowerCut()
			continue
		}
		if err != nil {
			t.Fatalf("seed %d, life %d: %v", seed, life, err)
		}
		if dev.disk.StopAfter(-1); dev.disk.Stopped() {
			l.Close()
			dev = dev.afterPowerCut()
			continue
		}
		if !m.verify(r, l, func(format string, args ...any) {
			t.Errorf("seed %d, life %d: "+format, append([]any{seed, life}, args...)...)
		}) {
			l.Close()
			return
		}
		dev.disk.StopAfter(rng.IntN(120))
		var wg sync.WaitGroup
		for range 1 + rng.IntN(6) {
			wrng := rand.New(rand.NewPCG(rng.Uint64(), 2))
			wg.Go(func() { m.work(t, r, l, dev, wrng) })
		}
		wg.Wait()
		if rng.IntN(4) == 0 {
			dev.disk.StopAfter(-1) // unless it has failed already
		}
		if err := l.Close(); err == nil && !l.Stats().Failed && !dev.disk.Stopped() {
			if stored := l.FeedPosition(); stored != m.feed {
				t.Errorf("seed %d, life %d: closed with feed position %d of %d", seed, life, stored, m.feed)
			}
		}
		if rng.IntN(4) == 0 {
			dev = dev.afterKill()
		} else {
			dev = dev.afterPowerCut()
		}
	}
}

// work does random operations until the power is cut.
func (m *model) work(t *testing.T, r *rig, l *Log, dev *simDevice, rng *rand.Rand) {
	for range 60 {
		switch n := rng.IntN(12); {
		case n >= 10:
			if !m.replace(t, r, l, dev, rng) {
				return
			}
		case n < 6:
			m.mu.Lock()
			m.next++
			k := Key{Stripe: cfs.StripeID{Session: cfs.SessionID(1 + rng.IntN(3)), Counter: m.next}, Shard: uint8(rng.IntN(6))}
			p := modelPayload(k, dev, rng)
			m.unsure[k] = p
			m.mu.Unlock()
			err := r.putBytes(l, k, p)
			m.mu.Lock()
			_, deleted := m.deleted[k]
			switch {
			case deleted: // meanwhile
			case err == nil:
				m.acked[k] = p
				delete(m.unsure, k)
			case cfs.KindOf(err) == cfs.NoSpace:
				delete(m.unsure, k)
			case cfs.KindOf(err) != cfs.IO:
				t.Errorf("put: %v", err)
			}
			m.mu.Unlock()
			if cfs.KindOf(err) == cfs.NoSpace {
				m.deleteSome(l, rng, 30)
			} else if err != nil {
				return
			}
		case n < 8:
			m.deleteSome(l, rng, 4)
		default:
			m.mu.Lock()
			var k Key
			var want []byte
			for k, want = range m.acked {
				break
			}
			if m.replacing[k] {
				want = nil // replace reads it
			}
			m.mu.Unlock()
			if want == nil {
				continue
			}
			data, crcs, err := r.getBytes(l, k, 0, len(want))
			if m.changed(k, want) {
				continue // replaced meanwhile
			}
			if cfs.KindOf(err) == cfs.NotFound {
				continue // deleted meanwhile; verify finds out if not
			}
			if errors.Is(err, sim.ErrStopped) {
				return
			}
			if err != nil || !bytes.Equal(data, want) || !bytes.Equal(crcs, checksums(k, want)) {
				t.Errorf("get %s: wrong bytes, or %v", k, err)
			}
		}
	}
}

// modelPayload is random bytes, or a copy of what the device holds.
func modelPayload(k Key, dev *simDevice, rng *rand.Rand) []byte {
	blocks := 1 + rng.IntN(4)
	if rng.IntN(4) == 0 {
		blocks = 9 + rng.IntN(4) // above maxSmall
	}
	p := payload(k, blocks*cfs.BlockSize)
	if rng.IntN(2) == 0 {
		from := rng.IntN(int(dev.disk.SizeBytes())/cfs.BlockSize-blocks) * cfs.BlockSize
		dev.disk.Peek(p, int64(from))
		if rng.IntN(2) == 0 { // two records never have equal bytes otherwise
			copy(p, payload(k, 16))
		}
	}
	return p
}

// changed reports that a record is not, or not only, what it was.
func (m *model) changed(k Key, was []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.replacing[k] || !bytes.Equal(m.acked[k], was)
}

// replace replaces a record; false when the power is cut.
func (m *model) replace(t *testing.T, r *rig, l *Log, dev *simDevice, rng *rand.Rand) bool {
	m.mu.Lock()
	var k Key
	var old []byte
	for k, old = range m.acked {
		if !m.replacing[k] {
			break
		}
	}
	if old == nil || m.replacing[k] {
		m.mu.Unlock()
		return true
	}
	p := modelPayload(k, dev, rng)
	p[0] = ^old[0] // not what it was, and of another length often
	m.replacing[k] = true
	m.mu.Unlock()
	err := r.replaceBytes(l, k, p)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.replacing, k)
	switch kind := cfs.KindOf(err); {
	case err == nil:
		m.replaced[k] = append(append(m.replaced[k], m.instead[k]...), old)
		m.acked[k] = p
		delete(m.instead, k)
	case kind == cfs.NoSpace:
		return true
	case kind == cfs.IO:
		m.instead[k] = append(m.instead[k], p)
		return false
	default:
		t.Errorf("replace: %v", err)
	}
	// Nobody else touches it in between: a read sees the new bytes at once.
	data, _, err := r.getBytes(l, k, 0, len(p))
	if err == nil && !bytes.Equal(data, p) {
		t.Errorf("%s reads as what it was after it was replaced", k)
	}
	return err == nil
}

// deleteSome deletes records, and some whose put is under way.
func (m *model) deleteSome(l *Log, rng *rand.Rand, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, p := range m.acked {
		if n--; n < 0 {
			break
		}
		if rng.IntN(3) > 0 && !m.replacing[k] {
			delete(m.acked, k)
			m.delete(l, k, p)
		}
	}
	for k, p := range m.unsure {
		if rng.IntN(3) == 0 && m.delete(l, k, p) {
			delete(m.unsure, k)
		}
	}
}

// delete deletes a record. It reports whether there was one, or a put of one.
func (m *model) delete(l *Log, k Key, p []byte) bool {
	if l.Delete([]Key{k}) == 0 {
		return false
	}
	m.feed++
	m.deleted[k] = deletion{append(append(m.replaced[k], m.instead[k]...), p), m.feed}
	delete(m.instead, k)
	l.SetFeedPosition(m.feed)
	return true
}

// verify compares the log with the model, which adopts what the log has decided.
func (m *model) verify(r *rig, l *Log, fail func(string, ...any)) bool {
	ok := true
	listed := map[Key]bool{}
	for _, rec := range l.List(nil, 1<<30) {
		listed[rec.Key] = true
		want, kind := m.acked[rec.Key], "acknowledged"
		if want == nil {
			want, kind = m.unsure[rec.Key], "unanswered"
		}
		data, crcs, err := r.getBytes(l, rec.Key, 0, int(rec.Len))
		for _, p := range m.instead[rec.Key] {
			if bytes.Equal(data, p) {
				want, kind = p, "replaced or not"
			}
		}
		if d, was := m.deleted[rec.Key]; was && want == nil {
			kind = "deleted"
			for _, p := range d.payloads {
				if want == nil || bytes.Equal(data, p) {
					want = p
				}
			}
			if d.position <= l.FeedPosition() {
				fail("%s is back, though the feed position %d, behind its delete at %d, is stored", rec.Key, l.FeedPosition(), d.position)
				ok = false
			}
		}
		if want == nil {
			fail("%s was never put", rec.Key)
			ok = false
			continue
		}
		if err != nil || !bytes.Equal(data, want) || !bytes.Equal(crcs, checksums(rec.Key, want)) {
			fail("%s record %s: wrong bytes, or %v", kind, rec.Key, err)
			ok = false
		}
		if others := m.instead[rec.Key]; others != nil { // a forgotten delete may bring these back
			m.replaced[rec.Key] = append(append(m.replaced[rec.Key], others...), m.acked[rec.Key])
		}
		m.acked[rec.Key] = want
		delete(m.unsure, rec.Key)
		delete(m.deleted, rec.Key)
		delete(m.instead, rec.Key)
	}
	for k := range m.acked {
		if !listed[k] {
			fail("acknowledged record %s is lost", k)
			ok = false
		}
	}
	// An unanswered put that is absent now may be found no more.
	clear(m.unsure)
	return ok
}
