package node

import (
	"errors"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func goodConfig() Config {
	return Config{
		ClusterID: "lab-1", NodeID: 2, Listen: "127.0.0.1:9402", DataDir: "/x", Devices: []string{"/dev/a", "/dev/b"},
		Seeds: []string{"127.0.0.1:9401", "127.0.0.1:9402", "127.0.0.1:9403"},
	}
}

func TestConfigCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // part of the error; empty for none
	}{
		{"as it should be", func(*Config) {}, ""},
		{"any address", func(c *Config) { c.Listen = "0.0.0.0:9402" }, ""},
		{"any address, short", func(c *Config) { c.Listen = ":9402" }, ""},
		{"a name of the address", func(c *Config) { c.Listen = "localhost:9402" }, ""},
		{"behind a proxy", func(c *Config) { c.Listen, c.Advertise = "10.1.1.1:1", "127.0.0.1:9402" }, ""},
		{"alone", func(c *Config) { c.NodeID, c.Seeds, c.Listen = 1, nil, "127.0.0.1:0" }, ""},
		{"no cluster", func(c *Config) { c.ClusterID = "" }, "cluster id"},
		{"cluster with a space", func(c *Config) { c.ClusterID = "a b" }, "cluster id"},
		{"cluster too long", func(c *Config) { c.ClusterID = strings.Repeat("x", 64) }, "cluster id"},
		{"node 0", func(c *Config) { c.NodeID = 0 }, "node id"},
		{"node beyond the seeds", func(c *Config) { c.NodeID = 4 }, "not among the 3 seed nodes"},
		{"node 2 alone", func(c *Config) { c.Seeds = nil }, "needs seed nodes"},
		{"no directory", func(c *Config) { c.DataDir = "" }, "data directory"},
		{"no device", func(c *Config) { c.Devices = nil }, "devices"},
		{"empty device", func(c *Config) { c.Devices = []string{""} }, "devices"},
		{"a device twice", func(c *Config) { c.Devices = []string{"/dev/a", "/dev/../dev/a"} }, "given twice"},
		{"listen without port", func(c *Config) { c.Listen = "127.0.0.1" }, "listen address"},
		{"another's port", func(c *Config) { c.Listen = "127.0.0.1:9403" }, "not that of node 2"},
		{"another's host", func(c *Config) { c.Listen = "127.0.0.2:9402" }, "not that of node 2"},
		{"advertises another", func(c *Config) { c.Advertise = "127.0.0.1:9403" }, "not that of node 2"},
		{"port too large", func(c *Config) { c.Seeds[0] = "127.0.0.1:70000" }, "seed nodes"},
		{"a seed twice", func(c *Config) { c.Seeds[0] = c.Seeds[2] }, "given twice"},
		{"restripe rate", func(c *Config) { c.RestripeBytesPerSecond = -1 }, "restripe rate"},
		{"scrub rate", func(c *Config) { c.ScrubBytesPerSecond = -1 }, "scrub rate"},
		{"reclaim interval", func(c *Config) { c.ReclaimInterval = -1 }, "reclaim interval"},
		{"out after", func(c *Config) { c.OutAfter = -1 }, "time until out"},
		{"metrics", func(c *Config) { c.Metrics = "nine" }, "metrics address"},
	} {
		cfg := goodConfig()
		c.change(&cfg)
		err := cfg.check()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errors.Is(err, cfs.Usage) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want a usage error with %q", c.name, err, c.want)
		}
	}
}

func TestSlotsAreNeverReused(t *testing.T) {
	var s state
	a, _ := s.takeSlot()
	s.set(deviceEntry{Slot: a, UUID: "a", Path: "/dev/a"})
	b, _ := s.takeSlot()
	s.set(deviceEntry{Slot: b, UUID: "b", Path: "/dev/a"}) // another device at the same path
	if c, _ := s.takeSlot(); a != 0 || b != 1 || c != 2 {
		t.Errorf("slots %d %d %d", a, b, c)
	}
	if len(s.Devices) != 1 || s.byPath("/dev/a").Slot != 1 {
		t.Errorf("devices %v", s.Devices)
	}
	s.set(deviceEntry{Slot: 9, UUID: "c", Path: "/dev/c"}) // found with a superblock after node.json was lost
	if d, _ := s.takeSlot(); d != 10 {
		t.Errorf("slot %d after slot 9 was seen", d)
	}
	s.NextSlot = maxSlot + 1
	if _, err := s.takeSlot(); !errors.Is(err, cfs.NoSpace) {
		t.Errorf("the slot after the last: %v", err)
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"version":1,"cluster_id":"a","node_id":1,"site_id":0,"next_slot":2,"devices":[{"slot":0,"uuid":"u","path":"/p"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"cluster_id":"a","next_slot":1,"devices":[{"slot":0},{"slot":0}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseState(raw)
		if err != nil {
			return
		}
		for _, e := range s.Devices {
			if uint32(e.Slot) >= s.NextSlot {
				t.Errorf("slot %d was accepted though the next is %d", e.Slot, s.NextSlot)
			}
		}
	})
}

func TestFeedPositions(t *testing.T) {
	a, b := cfs.MakeDeviceID(1, 0), cfs.MakeDeviceID(1, 1)
	f := newFeed(map[cfs.DeviceID]uint64{a: 0, b: 2})
	f.adopt(&cfs.Map{Devices: []cfs.Device{{ID: a, FeedPos: 7}, {ID: b, FeedPos: 3}, {ID: cfs.MakeDeviceID(2, 0), FeedPos: 1}}})
	if f.least() != 3 || f.position(a) != 7 || len(f.pos) != 2 {
		t.Errorf("positions %v", f.pos)
	}
	f.advance(b, 9)
	f.advance(b, 8) // never back
	f.adopt(&cfs.Map{Devices: []cfs.Device{{ID: b, FeedPos: 5}}})
	if f.least() != 7 || f.position(b) != 9 {
		t.Errorf("positions %v", f.pos)
	}
	if !f.untold(b, 9) {
		t.Error("a new position is not to be recorded")
	}
	f.tell(b, 9)
	if f.untold(b, 9) {
		t.Error("what is recorded is to be recorded again")
	}
	if f.untold(a, 7) {
		t.Error("what came from the cluster is to be recorded")
	}
}
