package store

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/nvme"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// fullPercent and roomPercent are of a device's capacity: it is full from the first on, and no
	// longer below the second, so that it does not go to and fro.
	fullPercent = 97
	roomPercent = 92
	// noSpaceFor is how long a device is full at least after a put that found no room: what is dead
	// may fill it, and the cleaner needs its time.
	noSpaceFor = 10 * time.Second
)

// device is one that is served, and the work on it.
type device struct {
	id      cfs.DeviceID
	log     *nvme.Log
	gone    chan struct{}  // closed when it is served no more
	workers sync.WaitGroup // goroutines of each; Add under Store.mu
	stripes chan struct{}  // one token for each stripe that is being mended
	repairs repairQueue

	scrubNow, reconcileNow, walkNow chan struct{} // ask for a pass at once

	// deleting is held by Reconcile from taking the map to deleting by it. Who has a newer map takes it
	// once, and what it then finds on the device is not deleted by an older one.
	deleting    sync.Mutex
	reconciling chan struct{} // one token: passes go one after the other

	repaired, damaged, missing, reclaimed atomic.Uint64
	reconciledNS                          atomic.Int64 // when a pass last ended, 0 for never
	scrubFrom                             atomic.Int64 // ScrubbedBytes when the pass under way began, -1 for none

	mu      sync.Mutex
	fills   map[slotRef]*fillState
	full    bool
	noSpace time.Time // when a put last found no room
}

func newDevice(id cfs.DeviceID, log *nvme.Log) *device {
	d := &device{
		id: id, log: log, gone: make(chan struct{}), stripes: make(chan struct{}, maxDeviceMending),
		scrubNow: make(chan struct{}, 1), reconcileNow: make(chan struct{}, 1), walkNow: make(chan struct{}, 1),
		reconciling: make(chan struct{}, 1), fills: map[slotRef]*fillState{},
	}
	d.repairs.init()
	d.scrubFrom.Store(-1)
	return d
}

// ask puts a token into a channel with room for one, where there is none.
func ask(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// barrier returns when no reconcile is deleting by a map that is older than the caller's.
func (d *device) barrier() {
	d.deleting.Lock()
	defer d.deleting.Unlock()
}

// lifetime is a context that ends with the device too.
func (d *device) lifetime(ctx context.Context) (context.Context, context.CancelFunc) {
	own, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-d.gone:
			cancel()
		case <-own.Done():
		}
	}()
	return own, cancel
}

// isGone reports that a device is served no more.
func (d *device) isGone() bool {
	select {
	case <-d.gone:
		return true
	default:
		return false
	}
}

// AddDevice serves another device from now on. Exists when it is served already.
func (s *Store) AddDevice(id cfs.DeviceID, log *nvme.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.devices[id] != nil {
		return cfs.Errorf("add device "+id.String(), cfs.Exists, "it is served already")
	}
	s.devices[id] = newDevice(id, log)
	close(s.added)
	s.added = make(chan struct{})
	return nil
}

// RemoveDevice serves a device no more, and returns when no work on it goes on but requests that were
// there already, which closing its log waits for. It does nothing for a device that is not served.
func (s *Store) RemoveDevice(id cfs.DeviceID) {
	s.mu.Lock()
	d := s.devices[id]
	delete(s.devices, id)
	s.mu.Unlock()
	if d != nil {
		close(d.gone)
		d.workers.Wait()
	}
}

// each runs f for every device, those that are added later too, until ctx ends. f's
// context ends with the device.
func (s *Store) each(ctx context.Context, f func(context.Context, *device)) {
	var group sync.WaitGroup
	defer group.Wait()
	running := map[*device]bool{}
	for {
		s.mu.RLock()
		added := s.added
		for _, d := range s.devices {
			if running[d] {
				continue
			}
			running[d] = true
			d.workers.Add(1)
			group.Go(func() {
				defer d.workers.Done()
				own, cancel := d.lifetime(ctx)
				defer cancel()
				f(own, d)
			})
		}
		s.mu.RUnlock()
		select {
		case <-added:
		case <-ctx.Done():
			return
		}
	}
}

// noteFull marks a device on which a put has found no room, and has what is garbage on it found.
func (s *Store) noteFull(id cfs.DeviceID) {
	if d := s.find(id); d != nil {
		ask(d.reconcileNow)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.noSpace = time.Now()
	}
}

// Full reports that a device should be given nothing more: it is nearly full, or a put has just found no room.
func (s *Store) Full(id cfs.DeviceID) bool {
	d := s.find(id)
	if d == nil {
		return false
	}
	stats := d.log.Stats()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch used := stats.UsedBytes * 100; {
	case used >= stats.CapacityBytes*fullPercent || time.Since(d.noSpace) < noSpaceFor:
		d.full = true
	case used < stats.CapacityBytes*roomPercent:
		d.full = false
	}
	return d.full
}

// selected is the devices that an id means: 0 means all of them.
func (s *Store) selected(id cfs.DeviceID) []*device {
	if id == 0 {
		return s.all()
	}
	if d := s.find(id); d != nil {
		return []*device{d}
	}
	return nil
}

// StartScrub begins a pass over a device now, all devices for 0, if none goes on. Scrub makes it.
func (s *Store) StartScrub(id cfs.DeviceID) {
	for _, d := range s.selected(id) {
		ask(d.scrubNow)
	}
}

// Reconcile asks for a comparison of a device's shards with the stripe table soon, all devices' for 0. Mend makes it.
func (s *Store) Reconcile(id cfs.DeviceID) {
	for _, d := range s.selected(id) {
		ask(d.reconcileNow)
	}
}

// Fills is how far the filling slots of this node's devices are.
func (s *Store) Fills() []*wirepb.Fill {
	var all []*wirepb.Fill
	for _, d := range s.all() {
		d.mu.Lock()
		from := len(all)
		for ref, st := range d.fills {
			all = append(all, &wirepb.Fill{Pg: uint32(ref.pg), Slot: uint32(ref.slot), DoneBytes: st.doneBytes})
		}
		slices.SortFunc(all[from:], func(a, b *wirepb.Fill) int { return cmp.Or(cmp.Compare(a.Pg, b.Pg), cmp.Compare(a.Slot, b.Slot)) })
		d.mu.Unlock()
	}
	return all
}

// Inspect is what is known of the devices, but for their paths.
func (s *Store) Inspect() []*wirepb.DeviceInfo {
	var infos []*wirepb.DeviceInfo
	for _, d := range s.all() {
		from := d.scrubFrom.Load() // before the stats: no pass is to seem to have ended that is not in LastScrub
		stats := d.log.Stats()
		info := &wirepb.DeviceInfo{
			Id: uint32(d.id), CapacityBytes: uint64(stats.CapacityBytes), UsedBytes: uint64(stats.UsedBytes), LiveBytes: uint64(stats.LiveBytes),
			OccupiedBytes: uint64(stats.OccupiedBytes), Records: uint64(stats.Records), FeedPos: d.log.FeedPosition(), Failed: stats.Failed,
			Damaged: d.damaged.Load(), Missing: d.missing.Load(), Repaired: d.repaired.Load(), Unrepaired: uint64(d.repairs.unrepaired()),
			Reclaimed: d.reclaimed.Load(), LastReconcileNs: d.reconciledNS.Load(),
		}
		if !stats.LastScrub.IsZero() {
			info.LastScrubNs = stats.LastScrub.UnixNano()
		}
		if from >= 0 {
			info.Scrubbing, info.ScrubbedBytes = true, stats.ScrubbedBytes-uint64(from)
		}
		infos = append(infos, info)
	}
	return infos
}
