package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// fsckFake is a fake with stripes of three sessions in both groups.
func fsckFake(t *testing.T) (f *fake, victim cfs.StripeID) {
	f = newFake(t)
	for i := uint64(0); i < 10; i++ {
		f.addStripe(1, 11, i, 4<<20)
		f.addStripe(2, 11, 100+i, 20000)
		f.addStripe(1, 5, i*7, 300000)
	}
	f.addStripe(2, 1, 0, 4096) // the first stripe that there can be
	return f, cfs.StripeID{Session: 11, Counter: 4}
}

// fsck runs the command and returns its document.
func (f *fake) fsck(args ...string) (int, *fsckDoc) {
	f.t.Helper()
	code, out, stderr := runAdmin(f.t, append([]string{"fsck", "--json", "--server", f.addrs[1]}, args...)...)
	doc := &fsckDoc{}
	if err := json.Unmarshal([]byte(out), doc); err != nil {
		f.t.Fatalf("%v in %q; stderr %q", err, out, stderr)
	}
	return code, doc
}

// onDevice is the shard i of a stripe that a device has.
func on(device string, id cfs.StripeID) func(*fakeShard) bool {
	return func(s *fakeShard) bool { return s.stripe == id && s.device == dev(device) }
}

// goneForGood ends server 3, which has no vote; its devices are out.
func goneForGood(f *fake) {
	f.kill(3)
	f.m.Nodes[2].State, f.m.Nodes[2].Voter = cfs.StateDown, false
	f.device("3/0").State, f.device("3/1").State = cfs.StateOut, cfs.StateOut
}

// Each fault is planted, and exactly it is found.
func TestFsckFindsWhatIsPlanted(t *testing.T) {
	fault := func(kind faultKind, n uint64) map[faultKind]uint64 { return map[faultKind]uint64{kind: n} }
	for _, c := range []struct {
		name    string
		plant   func(t *testing.T, f *fake, victim cfs.StripeID)
		faults  map[faultKind]uint64
		reduced uint64
	}{
		{"nothing", func(*testing.T, *fake, cfs.StripeID) {}, nil, 0},
		{"a shard is missing", func(t *testing.T, f *fake, v cfs.StripeID) { f.drop(on("3/1", v)) }, fault(faultMissing, 1), 0},
		{"a shard of the first stripe is missing", func(t *testing.T, f *fake, v cfs.StripeID) { f.drop(on("1/0", cfs.StripeID{Session: 1})) }, fault(faultMissing, 1), 0},
		{"all shards of a device are missing", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.drop(func(s *fakeShard) bool { return s.device == dev("2/1") })
		}, fault(faultMissing, 20), 0},
		{"too few shards", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.drop(on("3/1", v))
			f.drop(on("1/1", v))
			f.drop(on("2/0", v))
		}, fault(faultUnreadable, 1), 0},
		{"a shard has another length", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.drop(on("2/0", v))
			f.put(dev("2/0"), v, 1, 1, 3, 8192)
		}, fault(faultDiffers, 1), 0},
		{"a shard says another group", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.drop(on("2/0", v))
			f.put(dev("2/0"), v, 1, 2, 3, 1<<20)
		}, fault(faultDiffers, 1), 0},
		{"a shard is of an epoch to come", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.drop(on("2/0", v))
			f.put(dev("2/0"), v, 1, 1, 4, 1<<20)
		}, fault(faultDiffers, 1), 0},
		{"a shard has another number", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.drop(on("2/0", v))
			f.put(dev("2/0"), v, 2, 1, 3, 1<<20)
		}, map[faultKind]uint64{faultMissing: 1, faultStray: 1}, 0},
		{"a former owner has a shard", func(t *testing.T, f *fake, v cfs.StripeID) { f.put(dev("1/1"), v, 1, 1, 3, 1<<20) }, fault(faultStray, 1), 0},
		{"a stripe in a group that is not there", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.m.Groups = append(f.m.Groups, cfs.PG{ID: 3, Geometry: cfs.Geo1p2, Slots: slots("1/0", "2/0", "3/0")})
			f.addStripe(3, 12, 1, 4096)
			f.m.Groups = f.m.Groups[:2]
		}, fault(faultNoGroup, 1), 0},
		{"a stripe in two groups", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.rows = append(f.rows, cfs.StripeInfo{StripeRef: cfs.StripeRef{PG: 2, Stripe: v}, Len: 4096})
		}, fault(faultTwice, 1), 0},
		{"debris", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.put(dev("1/1"), cfs.StripeID{Session: 9, Counter: 3}, 1, 1, 3, 4096)
			f.put(dev("2/1"), cfs.StripeID{Session: 9, Counter: 3}, 2, 1, 3, 4096)
			f.put(dev("2/1"), cfs.StripeID{Session: 99, Counter: 3}, 2, 44, 3, 4096) // of a group that has gone
		}, fault(faultDebris, 3), 0},
		{"a stripe that is being written", func(t *testing.T, f *fake, v cfs.StripeID) {
			id := cfs.StripeID{Session: 11, Counter: 5000}
			f.fates[id] = cfs.FatePending
			f.put(dev("1/1"), id, 3, 1, 3, 4096)
		}, nil, 0},
		{"tables that contradict each other", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.checks[3] = &wirepb.CheckReply{Faults: 31, Examples: []string{"inode 5: no such"}}
		}, fault(faultState, 31), 0},
		{"damage that is not repaired", func(t *testing.T, f *fake, v cfs.StripeID) { f.info[dev("3/0")].Unrepaired = 2 }, fault(faultUnrepaired, 2), 0},
		{"a server that does not answer", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.onAsk = func(at cfs.NodeID, op wire.Op) error {
				if at == 3 {
					return cfs.E("fake", cfs.Unavailable, nil)
				}
				return nil
			}
		}, fault(faultUnchecked, 1), 31},
		{"a server that is dead, as the cluster knows", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.kill(3)
			f.m.Nodes[2].State, f.device("3/0").State, f.device("3/1").State = cfs.StateDown, cfs.StateDown, cfs.StateDown
		}, fault(faultUnchecked, 1), 31},
		{"a server that is gone for good", func(t *testing.T, f *fake, v cfs.StripeID) { goneForGood(f) }, nil, 31},
		{"a server that is gone, one of whose devices is not out", func(t *testing.T, f *fake, v cfs.StripeID) {
			goneForGood(f)
			f.device("3/1").State = cfs.StateDown
		}, fault(faultUnchecked, 1), 31},
		{"a server that is gone, and has a vote", func(t *testing.T, f *fake, v cfs.StripeID) {
			goneForGood(f)
			f.m.Nodes[2].Voter = true
		}, fault(faultUnchecked, 1), 31},
		{"a device that is out", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.drop(func(s *fakeShard) bool { return s.device == dev("2/1") })
			f.device("2/1").State = cfs.StateOut
		}, nil, 20},
		{"devices that are down, and a shard missing", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.device("2/1").State, f.device("1/1").State = cfs.StateDown, cfs.StateDown
			f.drop(on("3/1", v))
		}, fault(faultUnreadable, 1), 19},
		{"slots being filled", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.addDevice(dev("1/2"))
			f.addDevice(dev("1/3"))
			g := &f.m.Groups[0]
			g.Slots[0] = cfs.Slot{Device: dev("1/2"), Filling: true, Source: dev("1/0")} // the source has them all
			g.Slots[3] = cfs.Slot{Device: dev("1/3"), Filling: true, Source: dev("1/1")} // the source is lost
			f.device("1/1").State = cfs.StateOut
			f.put(dev("1/2"), v, 0, 1, 3, 1<<20)
			f.put(dev("1/3"), v, 3, 1, 3, 1<<20)
		}, nil, 19},
		{"a source that lacks a shard", func(t *testing.T, f *fake, v cfs.StripeID) {
			f.addDevice(dev("1/2"))
			f.m.Groups[0].Slots[0] = cfs.Slot{Device: dev("1/2"), Filling: true, Source: dev("1/0")}
			f.drop(on("1/0", v))
		}, fault(faultMissing, 1), 0},
		{"a device whose list fails halfway", func(t *testing.T, f *fake, v cfs.StripeID) {
			n := 0
			f.onAsk = func(at cfs.NodeID, op wire.Op) error {
				if at != 3 || op != wire.OpListShards {
					return nil
				}
				if n++; n > 4 {
					return cfs.E("fake", cfs.IO, nil)
				}
				return nil
			}
		}, fault(faultUnchecked, 2), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, victim := fsckFake(t)
			c.plant(t, f, victim)
			code, doc := f.fsck()
			got := map[faultKind]uint64{}
			for _, k := range doc.Faults {
				got[k.Kind] = k.Count
				if len(k.Examples) == 0 || len(k.Examples) > maxExamples {
					t.Errorf("%s has %d examples", k.Kind, len(k.Examples))
				}
			}
			if !maps.Equal(got, c.faults) || (code == 1) != (len(c.faults) > 0) || doc.Clean != (len(c.faults) == 0) {
				t.Errorf("exit %d, report %+v, want %v", code, doc, c.faults)
			}
			if notes := len(doc.Notes); notes > 1 || (notes == 1) != (c.name == "a server that is gone for good") {
				t.Errorf("notes %q", doc.Notes)
			}
			if c.reduced != 0 && doc.Reduced.Stripes != c.reduced || c.faults == nil && doc.Reduced.Stripes != c.reduced {
				t.Errorf("reduced: %+v, want %d stripes", doc.Reduced, c.reduced)
			}
		})
	}
}

// What is found is counted right, and printed.
func TestFsckReport(t *testing.T) {
	f, victim := fsckFake(t)
	f.drop(on("3/1", victim))
	f.put(dev("1/1"), cfs.StripeID{Session: 9, Counter: 3}, 1, 1, 3, 4096)
	code, doc := f.fsck()
	if code != 1 || doc.Stripes != 31 || doc.Shards != 20*6+11*3 || doc.Devices != 6 || doc.Replicas != 3 || doc.Inodes != 12 || doc.Extents != 30 || !doc.Complete {
		t.Errorf("exit %d: %+v", code, doc)
	}
	code, out, stderr := runAdmin(t, "fsck", "--server", f.addrs[3])
	for _, want := range []string{"not clean", "shard 11.4/5 of group 1 is not on device 3/1", "shard 9.3/1 of group 1 on device 1/1, 4096 bytes", "6 devices"} {
		if !strings.Contains(out, want) {
			t.Errorf("the report lacks %q:\n%s", want, out)
		}
	}
	if code != 1 || !strings.Contains(stderr, "2 faults") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
}

// A cluster in use looks wrong in passing; none of that is a fault.
func TestFsckOfALivingCluster(t *testing.T) {
	f, _ := fsckFake(t)
	gone := cfs.StripeID{Session: 5, Counter: 14}    // freed after its row was read: the feed takes its shards
	late := cfs.StripeID{Session: 5, Counter: 15}    // committed after its row would have been read
	freed := cfs.StripeID{Session: 11, Counter: 200} // dead, and its shards are deleted during the check
	moved := func(s *fakeShard) bool { return s.device == dev("2/1") }
	f.rows = append(f.rows, cfs.StripeInfo{StripeRef: cfs.StripeRef{PG: 1, Stripe: late}, Len: 4 << 20})
	f.put(dev("1/0"), freed, 0, 1, 3, 1<<20)
	asked := 0
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		if op != wire.OpListShards {
			return nil
		}
		switch asked++; asked {
		case 1:
			f.drop(func(s *fakeShard) bool { return s.stripe == gone })
		case 60:
			f.rows = slices.DeleteFunc(f.rows, func(r cfs.StripeInfo) bool { return r.Stripe == gone })
			f.drop(func(s *fakeShard) bool { return s.stripe == freed })
			for i, s := range f.m.Groups[0].Slots {
				f.put(s.Device, late, uint8(i), 1, 3, 1<<20)
			}
		}
		return nil
	}
	code, doc := f.fsck()
	if code != 0 || !doc.Clean {
		t.Errorf("exit %d: %+v", code, doc)
	}
	if asked < 60 {
		t.Errorf("only %d listings: the test has not come to its point", asked)
	}

	// The slot of a device moves while its shards are listed.
	f.addDevice(dev("2/2"))
	shards := slices.Clone(f.shards)
	for _, s := range shards {
		if moved(&s) {
			f.put(dev("2/2"), s.stripe, s.shard, s.pg, s.epoch, s.len)
		}
	}
	asked = 0
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		if op == wire.OpListShards {
			if asked++; asked == 40 {
				m := *f.m
				m.Groups = slices.Clone(m.Groups)
				m.Groups[0].Slots = slices.Clone(m.Groups[0].Slots)
				m.Groups[0].Slots[4].Device, m.Groups[0].Epoch = dev("2/2"), 4
				f.m = &m
				f.drop(moved)
			}
		}
		return nil
	}
	if code, doc := f.fsck(); code != 0 || !doc.Clean {
		t.Errorf("after a slot moved: exit %d: %+v", code, doc)
	}
}

// With --wait the servers reconcile, and the check is repeated until it is clean.
func TestFsckWait(t *testing.T) {
	f, _ := fsckFake(t)
	debris := cfs.StripeID{Session: 9, Counter: 3}
	f.put(dev("1/1"), debris, 1, 1, 3, 4096)
	kicks := 0
	f.onAdmin = func(_ cfs.NodeID, r *wirepb.Admin) (*wirepb.AdminReply, error) {
		if wire.Verb(r.Verb) == wire.VerbReconcile {
			if kicks++; kicks > 3 {
				f.drop(func(s *fakeShard) bool { return s.stripe == debris })
			}
		}
		return &wirepb.AdminReply{}, nil
	}
	if code, doc := f.fsck(); code != 1 || kicks != 0 || doc.Passes != 1 {
		t.Errorf("without --wait: exit %d, %d reconciled, %+v", code, kicks, doc)
	}
	if code, doc := f.fsck("--wait", testPatience.String()); code != 0 || !doc.Clean || kicks < 4 || doc.Passes < 2 {
		t.Errorf("with --wait: exit %d, %d reconciled, %+v", code, kicks, doc)
	}
	f.put(dev("1/1"), debris, 1, 1, 3, 4096)
	f.onAdmin = nil
	if code, doc := f.fsck("--wait", "20ms"); code != 1 || doc.Clean || doc.Passes < 1 {
		t.Errorf("never clean: exit %d: %+v", code, doc)
	}
}

// A server that checks its tables for somebody else is asked again.
func TestFsckWaitsForAnother(t *testing.T) {
	f, _ := fsckFake(t)
	asked := 0
	f.onAsk = func(at cfs.NodeID, op wire.Op) error {
		if at == 3 && op == wire.OpCheckState {
			if asked++; asked < 3 {
				return cfs.E("check state", cfs.Busy, nil)
			}
		}
		return nil
	}
	if code, doc := f.fsck(); code != 0 || !doc.Clean || asked != 3 || doc.Replicas != 3 {
		t.Errorf("exit %d, asked %d times: %+v", code, asked, doc)
	}
}

// A new leader in the middle of a check is found.
func TestFsckFollowsTheLeader(t *testing.T) {
	f, victim := fsckFake(t)
	f.drop(on("3/1", victim))
	queries := 0
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		if op == wire.OpQuery {
			if queries++; queries == 4 {
				f.leader = 3
			}
		}
		return nil
	}
	code, doc := f.fsck()
	if code != 1 || len(doc.Faults) != 1 || doc.Faults[0].Kind != faultMissing || doc.Faults[0].Count != 1 {
		t.Errorf("exit %d: %+v", code, doc)
	}
}

// Lists that do not go on are refused: a merge over them would be wrong or endless.
func TestListsMustBeInOrder(t *testing.T) {
	at := func(counter uint64) item { return item{stripe: cfs.StripeID{Session: 1, Counter: counter}} }
	for _, c := range []struct {
		name  string
		pages [][]item
		more  bool
		ok    bool
	}{
		{"in order", [][]item{{at(1), at(2)}, {at(3)}}, false, true},
		{"empty", [][]item{{}}, false, true},
		{"the same page again", [][]item{{at(1), at(2)}, {at(1), at(2)}}, false, false},
		{"out of order", [][]item{{at(2), at(1)}}, false, false},
		{"nothing, and more to come", [][]item{{}}, true, false},
	} {
		n := 0
		l := startList(t.Context(), "list", func(context.Context, *item) ([]item, bool, error) {
			n++
			return c.pages[n-1], c.more || n < len(c.pages), nil
		}, nil)
		err := merge([]*list{l}, func(*sighting) error { return nil })
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// So many faults end the check.
func TestFsckEndsEarly(t *testing.T) {
	f, _ := fsckFake(t)
	f.info[dev("3/0")].Unrepaired = maxFaults
	if code, doc := f.fsck(); code != 1 || doc.Complete || doc.Clean || doc.Faults[0].Count < maxFaults {
		t.Errorf("exit %d: %v complete, %+v", code, doc.Complete, doc.Faults[0].Count)
	}
}

// looks is evidence that changes with each look: each function is given the
// number of the look, from 1 on.
type looks struct {
	n       int
	layouts func(n int) *layout
	row     func(n int) bool // the stripe of lookRow is in the table
	shard   func(n int, d cfs.DeviceID) bool
	asked   map[cfs.DeviceID]int
}

func lookRow() cfs.StripeInfo {
	return cfs.StripeInfo{StripeRef: cfs.StripeRef{PG: 2, Stripe: cfs.StripeID{Session: 4, Counter: 4}}, Len: 4096, Refs: 1, Live: 4096}
}

func (l *looks) layout(context.Context) (*layout, error) {
	l.n++
	return l.layouts(l.n), nil
}

func (l *looks) rows(_ context.Context, id cfs.StripeID, _ []cfs.PGID) ([]cfs.StripeInfo, error) {
	if l.n++; l.row(l.n) {
		return []cfs.StripeInfo{lookRow()}, nil
	}
	return nil, nil
}

func (l *looks) shards(_ context.Context, d cfs.DeviceID, _ cfs.StripeID) ([]shardSeen, error) {
	l.n++
	l.asked[d]++
	if !l.shard(l.n, d) {
		return nil, nil
	}
	return []shardSeen{{device: d, shard: uint8(d.Node() - 1), pg: 2, epoch: 5, len: 4096}}, nil
}

func (l *looks) fates(_ context.Context, refs []cfs.StripeRef) ([]cfs.Fate, error) {
	return slices.Repeat([]cfs.Fate{cfs.FateDead}, len(refs)), nil
}

// What changes between the looks at a stripe is no evidence against it.
func TestChecksLookTwice(t *testing.T) {
	at := func(epoch cfs.Epoch, without string) *layout {
		m := &cfs.Map{Groups: []cfs.PG{{ID: 2, Geometry: cfs.Geo1p2, Epoch: epoch, Slots: slots("1/0", "2/0", "3/0")}}}
		for _, d := range []string{"1/0", "2/0", "3/0"} {
			m.Devices = append(m.Devices, cfs.Device{ID: dev(d), State: cfs.StateUp})
		}
		return newLayout(m, func(d cfs.DeviceID) bool { return without == "" || d != dev(without) })
	}
	there := func(int) bool { return true }
	steady := func(int) *layout { return at(5, "") }
	lacks := func(_ int, d cfs.DeviceID) bool { return d != dev("3/0") }
	for _, c := range []struct {
		name    string
		l       looks
		kind    faultKind // "" for none
		reduced uint64
	}{
		{"it is missing each time", looks{layouts: steady, row: there, shard: lacks}, faultMissing, 0},
		{"it is there the second time", looks{layouts: steady, row: there, shard: func(n int, d cfs.DeviceID) bool { return n > 8 || lacks(n, d) }}, "", 0},
		{"the stripe goes with its shards", looks{layouts: steady, row: func(n int) bool { return n < 4 }, shard: func(n int, _ cfs.DeviceID) bool { return n < 4 }}, "", 0},
		{"the map changes at each look", looks{layouts: func(n int) *layout { return at(cfs.Epoch(5+n), "") }, row: there, shard: lacks}, faultUnchecked, 0},
		{"a device comes and goes", looks{layouts: func(n int) *layout {
			if n%2 == 1 { // when a round begins
				return at(5, "3/0")
			}
			return at(5, "")
		}, row: there, shard: lacks}, "", 1},
	} {
		c.l.asked = map[cfs.DeviceID]int{}
		k := &checker{now: at(5, ""), ask: &c.l, doc: fsckDoc{Complete: true}}
		s := &sighting{stripe: lookRow().Stripe, rows: []cfs.StripeInfo{lookRow()}}
		if err := k.visit(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := k.confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
		k.finish()
		ok := len(k.doc.Faults) == 0 && c.kind == "" || len(k.doc.Faults) == 1 && k.doc.Faults[0].Kind == c.kind && k.doc.Faults[0].Count == 1
		if !ok || k.doc.Reduced.Stripes != c.reduced {
			t.Errorf("%s: %+v, want %q and %d reduced", c.name, k.doc, c.kind, c.reduced)
		}
	}
}

// Only voters have a replica whose tables can be compared.
func TestFsckWithAServerThatOnlyStores(t *testing.T) {
	f, _ := fsckFake(t)
	f.m.Nodes[2].Voter = false
	f.onAsk = func(id cfs.NodeID, op wire.Op) error {
		if id == 3 && op == wire.OpCheckState {
			return wire.NotLeaderError(op.String(), f.addrs[2])
		}
		return nil
	}
	if code, doc := f.fsck(); code != 0 || doc.Replicas != 2 {
		t.Errorf("exit %d: %+v", code, doc)
	}
}
