package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// admin runs a command at server 1, which does not lead.
func (f *fake) run(args ...string) (code int, stdout, stderr string) {
	f.t.Helper()
	return runAdmin(f.t, append(args, "--server", f.addrs[1])...)
}

// status is the document of `cfs admin status`.
func (f *fake) statusDoc() *statusDoc {
	f.t.Helper()
	code, out, stderr := f.run("status", "--json")
	d := &statusDoc{}
	if err := json.Unmarshal([]byte(out), d); err != nil || code != 0 {
		f.t.Fatalf("exit %d: %v in %q; stderr %q", code, err, out, stderr)
	}
	return d
}

// verb is how the fake writes down what it was asked for.
func verb(v wire.Verb, at cfs.NodeID, device, path string, rate uint64, force bool) string {
	if device == "" {
		device = "0/0"
	}
	return fmt.Sprintf("%d at %d: %s %q %d %v", v, at, device, path, rate, force)
}

func (f *fake) wantVerbs(want ...string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.verbs)
	slices.Sort(want)
	if !slices.Equal(f.verbs, want) {
		f.t.Errorf("asked for %q, want %q", f.verbs, want)
	}
	f.verbs = nil
}

// Each way in which a cluster is not healthy is said, and nothing else.
func TestHealth(t *testing.T) {
	for _, c := range []struct {
		name  string
		hurt  func(f *fake)
		state string
		want  []string // one for each problem
	}{
		{"healthy", func(*fake) {}, healthy, nil},
		{"a node is suspect", func(f *fake) { f.m.Nodes[2].State = cfs.StateSuspect }, degraded, []string{"node 3 is suspect"}},
		{"devices are suspect", func(f *fake) { f.device("3/0").State, f.device("3/1").State = cfs.StateSuspect, cfs.StateSuspect },
			degraded, []string{"devices 3/0 3/1: suspect"}},
		{"a device is down", func(f *fake) { f.device("2/1").State = cfs.StateDown }, degraded,
			[]string{"8.0 MiB of data in 1 group has reduced redundancy", "device 2/1: down"}},
		{"a device is out, and has data", func(f *fake) { f.device("2/1").State = cfs.StateOut }, degraded,
			[]string{"8.0 MiB of data in 1 group has reduced redundancy", "device 2/1: out, and has data"}},
		{"a device is removed, and has data", func(f *fake) { f.device("2/1").State, f.device("2/1").Draining = cfs.StateOut, true }, degraded,
			[]string{"8.0 MiB of data in 1 group has reduced redundancy", "device 2/1: removed, and has data"}},
		{"a device that is out and empty", func(f *fake) {
			f.addDevice(dev("2/2"))
			f.device("2/2").State, f.device("2/2").Draining = cfs.StateOut, true
		}, healthy, nil},
		{"too many are down", func(f *fake) {
			for _, d := range []string{"2/1", "3/1", "1/1"} {
				f.device(d).State = cfs.StateDown
			}
		}, critical, []string{"8.0 MiB of data in 1 group cannot be read", "devices 1/1 2/1 3/1: down"}},
		{"draining and full", func(f *fake) { f.device("2/1").Draining, f.device("3/1").Full = true, true }, degraded,
			[]string{"device 2/1: draining", "device 3/1: full"}},
		{"filling from a device that is there", func(f *fake) {
			f.addDevice(dev("2/2"))
			f.m.Groups[0].Slots[4] = cfs.Slot{Device: dev("2/2"), Filling: true, Source: dev("2/1")}
		}, degraded, []string{"1 slot being filled in 1 group"}},
		{"filling from one that is lost", func(f *fake) {
			f.addDevice(dev("2/2"))
			f.device("2/1").State = cfs.StateOut
			f.m.Groups[0].Slots[4] = cfs.Slot{Device: dev("2/2"), Filling: true, Source: dev("2/1")}
		}, degraded, []string{"8.0 MiB of data in 1 group has reduced redundancy", "1 slot being filled", "device 2/1: out, and has data"}},
		{"filling from ones that are lost, more than there is parity", func(f *fake) {
			for i, c := range []struct{ from, to string }{{"1/0", "1/2"}, {"2/0", "2/2"}, {"3/0", "3/2"}} {
				f.addDevice(dev(c.to))
				f.device(c.from).State = cfs.StateOut
				f.m.Groups[0].Slots[i] = cfs.Slot{Device: dev(c.to), Filling: true, Source: dev(c.from)}
			}
		}, degraded, []string{"8.0 MiB of data in 1 group may not be readable", "3 slots being filled", "devices 1/0 2/0 3/0: out, and has data"}},
		{"filling, and the new devices are lost too", func(f *fake) {
			for i, c := range []struct{ from, to string }{{"1/0", "1/2"}, {"2/0", "2/2"}, {"3/0", "3/2"}} {
				f.addDevice(dev(c.to))
				f.device(c.from).State, f.device(c.to).State = cfs.StateOut, cfs.StateDown
				f.m.Groups[0].Slots[i] = cfs.Slot{Device: dev(c.to), Filling: true, Source: dev(c.from)}
			}
		}, critical, []string{"8.0 MiB of data in 1 group cannot be read", "3 slots being filled", "devices 1/2 2/2 3/2: down", "devices 1/0 2/0 3/0: out, and has data"}},
		{"no group takes writes", func(f *fake) { f.m.Groups[0].Writable, f.m.Groups[1].Writable = false, false }, degraded, []string{"no group takes writes"}},
		{"damage", func(f *fake) { f.info[dev("1/1")].Unrepaired, f.info[dev("2/0")].Failed = 3, true }, degraded,
			[]string{"device 1/1 has 3 damaged shards", "device 2/0 has failed"}},
		{"no leader", func(f *fake) { f.leader = 0 }, critical, []string{"there is no leader"}},
		{"a server is dead", func(f *fake) { f.kill(3) }, degraded, []string{"node 3 does not answer"}},
		{"the leader is dead", func(f *fake) { f.kill(2) }, degraded, []string{"the leader, node 2, does not answer", "node 2 does not answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			f.addStripe(1, 1, 1, 4<<20)
			f.addStripe(1, 1, 2, 4<<20)
			c.hurt(f)
			h := f.statusDoc().Health
			ok := h.State == c.state && len(h.Problems) == len(c.want)
			for i := range c.want {
				ok = ok && strings.HasPrefix(h.Problems[i], c.want[i])
			}
			if !ok {
				t.Errorf("%s: %q, want %s: %q", h.State, h.Problems, c.state, c.want)
			}
			if code, out, _ := f.run("status"); code != 0 || !strings.HasPrefix(out, "HEALTH") {
				t.Errorf("exit %d: %s", code, out)
			}
		})
	}
}

// The numbers of status are those of the servers, and of the leader.
func TestStatusSpaceAndJobs(t *testing.T) {
	f := newFake(t)
	f.addStripe(1, 1, 1, 4<<20)
	f.addStripe(2, 1, 2, 4096)
	f.m.Jobs = []cfs.Job{
		{Device: dev("2/1"), Kind: cfs.JobDrain, State: cfs.JobRunning, DoneBytes: 25 << 20, TotalBytes: 100 << 20, StartedNS: time.Now().Add(-100 * time.Second).UnixNano()},
		{Device: dev("3/1"), Kind: cfs.JobRebuild, State: cfs.JobDone, DoneBytes: 5, TotalBytes: 5},
	}
	d := f.statusDoc()
	s := d.Space
	if s.Total != 4<<30 || s.Free != 3<<30 || s.Used != 1<<30 || s.RawLive != 6<<20+3*4096 || s.RawUsed != 600<<20 || s.RawOccupied != 768<<20 || s.RawCapacity != 6<<30 {
		t.Errorf("space: %+v", s)
	}
	if d.AnsweredBy != 2 || d.Leader != 2 || d.Devices[3].Job != "drain running" || d.Devices[5].Job != "" || d.Groups[0].Stripes != 1 {
		t.Errorf("status: %+v", d)
	}
	j := d.Jobs[0]
	if j.PerSecond < 100<<10 || j.PerSecond > 262<<10 || j.ETASeconds == nil || *j.ETASeconds < 250 || d.Jobs[1].ETASeconds != nil {
		t.Errorf("jobs: %+v", d.Jobs)
	}
	for view, want := range map[string][]string{
		"status":  {"healthy", "1.0 GiB used, 3.0 GiB free of 4.0 GiB", "6.0 MiB of stripes, 600.0 MiB used on devices (768.0 MiB in segments) of 6.0 GiB", "drain of 2/1 running: [#####...............] 25%"},
		"devices": {"128.0 MiB", "never", "drain running", "/dev/fake1"},
		"groups":  {"6.0 MiB", "STRIPES"},
		"nodes":   {"leader", "yes"},
	} {
		_, out, _ := f.run(view)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s lacks %q:\n%s", view, w, out)
			}
		}
	}
	_, out, _ := f.run("job", "list")
	if !strings.Contains(out, "rebuild") || !strings.Contains(out, "25%") || strings.Contains(out, "nothing") {
		t.Errorf("job list:\n%s", out)
	}
}

func TestRateMeter(t *testing.T) {
	var m rateMeter
	at := time.Unix(100, 0)
	for i, c := range []struct {
		after time.Duration
		bytes uint64
		want  uint64
	}{{0, 100, 0}, {time.Second, 100, 0}, {time.Second, 300, 100}, {time.Second, 300, 100}, {time.Second, 900, 300}, {time.Second, 10, 0}} {
		at = at.Add(c.after)
		if got := m.observe(c.bytes, at); got != c.want {
			t.Errorf("observation %d: %d in a second, want %d", i, got, c.want)
		}
	}
}

func TestDeviceAdd(t *testing.T) {
	f := newFake(t)
	f.onAdmin = func(at cfs.NodeID, _ *wirepb.Admin) (*wirepb.AdminReply, error) {
		f.addDevice(dev("3/2"))
		return &wirepb.AdminReply{Device: uint32(dev("3/2"))}, nil
	}
	code, out, stderr := f.run("device", "add", "--node", "3", "/dev/new")
	if code != 0 || !strings.Contains(out, "3/2") || !strings.Contains(out, "job list") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	f.wantVerbs(verb(wire.VerbDeviceAdd, 3, "", "/dev/new", 0, false))

	// Nothing to move: --wait ends. With a job it waits for that.
	if code, out, stderr := f.run("device", "add", "--node", "3", "/dev/new", "--wait", "--force"); code != 0 || !strings.Contains(out, "Nothing is being moved to it") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	f.wantVerbs(verb(wire.VerbDeviceAdd, 3, "", "/dev/new", 0, true))
	f.m.Jobs = []cfs.Job{{Device: dev("3/2"), Kind: cfs.JobRebalance, State: cfs.JobRunning, TotalBytes: 100}}
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		if j := &f.m.Jobs[0]; op == wire.OpStatus && j.State == cfs.JobRunning {
			if j.DoneBytes += 10; j.DoneBytes >= 100 {
				j.State = cfs.JobDone
			}
		}
		return nil
	}
	if code, out, stderr := f.run("device", "add", "--node", "3", "/dev/new", "--wait"); code != 0 || f.m.Jobs[0].DoneBytes < 100 || !strings.Contains(out, "has its share") {
		t.Errorf("exit %d after %d bytes: %s%s", code, f.m.Jobs[0].DoneBytes, out, stderr)
	}
	f.onAdmin = func(cfs.NodeID, *wirepb.Admin) (*wirepb.AdminReply, error) {
		return nil, cfs.E("open /dev/none", cfs.NotFound, nil)
	}
	if code, _, stderr := f.run("device", "add", "--node", "3", "/dev/none"); code != 1 || !strings.Contains(stderr, "/dev/none") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("of nothing: exit %d: %q", code, stderr)
	}
}

// removal makes the fake carry out the removal of a device: some looks later it
// has a job, then that is done or cancelled.
func (f *fake) removal(end cfs.JobState) {
	looks := 0
	var id cfs.DeviceID
	f.onAdmin = func(_ cfs.NodeID, r *wirepb.Admin) (*wirepb.AdminReply, error) {
		if wire.Verb(r.Verb) == wire.VerbDeviceAdd {
			f.addDevice(dev("2/2"))
			return &wirepb.AdminReply{Device: uint32(dev("2/2"))}, nil
		}
		id = cfs.DeviceID(r.Device)
		f.device(id.String()).Draining = true
		return &wirepb.AdminReply{Text: "noted"}, nil
	}
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		if op != wire.OpStatus || id == 0 {
			return nil
		}
		switch looks++; looks {
		case 5:
			f.m.Jobs = []cfs.Job{{Device: id, Kind: cfs.JobDrain, State: cfs.JobRunning, TotalBytes: 100, StartedNS: 1}}
		case 10:
			f.leader = 3 // and the next one is asked
		case 15:
			f.m.Jobs[0].State = end
		}
		return nil
	}
}

func TestDeviceRemove(t *testing.T) {
	f := newFake(t)
	f.addStripe(1, 1, 1, 4096)
	f.removal(cfs.JobDone)
	code, out, stderr := f.run("device", "remove", "2/1", "--force")
	if code != 0 || !strings.Contains(out, "being removed") || !strings.Contains(out, "noted") || !strings.Contains(out, "job list") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	f.wantVerbs(verb(wire.VerbDeviceRemove, 2, "2/1", "", 0, true))
	for _, c := range []struct {
		end  cfs.JobState
		code int
		want string
	}{{cfs.JobDone, 0, "is removed"}, {cfs.JobCancelled, 1, "cancelled"}} {
		f := newFake(t)
		f.addStripe(1, 1, 1, 4096)
		// A job of an earlier time says nothing of this one.
		f.m.Jobs = []cfs.Job{{Device: dev("2/1"), Kind: cfs.JobDrain, State: cfs.JobCancelled, StartedNS: 0, ChangedNS: 4}}
		f.removal(c.end)
		code, out, stderr := f.run("device", "remove", "2/1", "--wait")
		if code != c.code || !strings.Contains(out+stderr, c.want) || f.leader != 3 {
			t.Errorf("%v: exit %d: %s%s", c.end, code, out, stderr)
		}
	}
	// A lost device without data is out at once, and has no job.
	f = newFake(t)
	f.device("2/1").State = cfs.StateOut
	if code, out, stderr := f.run("device", "remove", "2/1", "--wait"); code != 0 {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
}

func TestDeviceReplace(t *testing.T) {
	f := newFake(t)
	f.addStripe(1, 1, 1, 4096)
	f.removal(cfs.JobDone)
	code, out, stderr := f.run("device", "replace", "2/1", "/dev/new", "--wait", "--json")
	var doc changeDoc
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != 0 || doc.Device != "2/1" || doc.Added != "2/2" || !doc.Ended {
		t.Errorf("exit %d: %v, %+v: %s", code, err, doc, stderr)
	}
	f.wantVerbs(verb(wire.VerbDeviceAdd, 2, "", "/dev/new", 0, false), verb(wire.VerbDeviceRemove, 2, "2/1", "", 0, false))

	// The old one stays when the new one does not come up.
	f = newFake(t)
	f.onAdmin = func(cfs.NodeID, *wirepb.Admin) (*wirepb.AdminReply, error) {
		return &wirepb.AdminReply{Device: uint32(dev("2/2"))}, nil
	}
	code, _, stderr = f.run("device", "replace", "2/1", "/dev/new", "--timeout", "200ms")
	if code != 1 || !strings.Contains(stderr, "2/1 was not removed") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit %d: %q", code, stderr)
	}
	f.wantVerbs(verb(wire.VerbDeviceAdd, 2, "", "/dev/new", 0, false))
}

func TestJobsAreSteered(t *testing.T) {
	f := newFake(t)
	f.m.Jobs = []cfs.Job{{Device: dev("2/1"), Kind: cfs.JobRebuild, State: cfs.JobRunning}}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"pause", "2/1"}, verb(wire.VerbJobPause, 2, "2/1", "", 0, false)},
		{[]string{"resume", "2/1"}, verb(wire.VerbJobResume, 2, "2/1", "", 0, false)},
		{[]string{"cancel", "2/1"}, verb(wire.VerbJobCancel, 2, "2/1", "", 0, false)},
		{[]string{"rate", "2/1", "64MiB"}, verb(wire.VerbJobRate, 2, "2/1", "", 64<<20, false)},
		{[]string{"rate", "2/1", "0"}, verb(wire.VerbJobRate, 2, "2/1", "", 0, false)},
	} {
		if code, out, stderr := f.run(append([]string{"job"}, c.args...)...); code != 0 || !strings.Contains(out, "rebuild of 2/1") {
			t.Errorf("%v: exit %d: %s%s", c.args, code, out, stderr)
		}
		f.wantVerbs(c.want)
	}
}

// A change that may have been made already is not asked for again.
func TestChangesAreMadeOnce(t *testing.T) {
	f := newFake(t)
	asked := 0
	f.onAdmin = func(cfs.NodeID, *wirepb.Admin) (*wirepb.AdminReply, error) {
		asked++
		return nil, cfs.E("propose", cfs.Unavailable, nil)
	}
	if code, _, stderr := f.run("device", "remove", "2/1"); code != 1 || asked != 1 {
		t.Errorf("exit %d, asked %d times: %s", code, asked, stderr)
	}
	// A server that does not lead any more has done nothing: the next one is asked.
	asked = 0
	f.onAdmin = func(at cfs.NodeID, _ *wirepb.Admin) (*wirepb.AdminReply, error) {
		if asked++; asked == 1 {
			return nil, wire.NotLeaderError("admin", "")
		}
		return &wirepb.AdminReply{}, nil
	}
	if code, _, stderr := f.run("device", "remove", "2/1"); code != 0 || asked != 2 {
		t.Errorf("exit %d, asked %d times: %s", code, asked, stderr)
	}
}

func TestScrub(t *testing.T) {
	f := newFake(t)
	f.onAdmin = func(at cfs.NodeID, r *wirepb.Admin) (*wirepb.AdminReply, error) {
		for id, d := range f.info {
			if id.Node() == at && (r.Device == 0 || cfs.DeviceID(r.Device) == id) {
				d.Scrubbing = true
			}
		}
		return &wirepb.AdminReply{}, nil
	}
	code, out, stderr := f.run("scrub", "--device", "3/1")
	if code != 0 || !strings.Contains(out, "3/1") || strings.Contains(out, "3/0") || !strings.Contains(out, "now, 0%") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	f.wantVerbs(verb(wire.VerbScrub, 3, "3/1", "", 0, false))
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		for _, d := range f.info {
			if op != wire.OpInspect || !d.Scrubbing {
				continue
			}
			if d.ScrubbedBytes += 10 << 20; d.ScrubbedBytes >= d.LiveBytes {
				d.Scrubbing, d.LastScrubNs = false, time.Now().UnixNano()
			}
		}
		return nil
	}
	f.info[dev("1/0")].Damaged, f.info[dev("1/0")].Repaired = 4, 4
	if code, out, stderr := f.run("scrub", "--wait"); code != 0 || !strings.Contains(out, "s ago") || strings.Contains(out, "never") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	f.wantVerbs(verb(wire.VerbScrub, 1, "", "", 0, false), verb(wire.VerbScrub, 2, "", "", 0, false), verb(wire.VerbScrub, 3, "", "", 0, false),
		verb(wire.VerbScrub, 3, "3/1", "", 0, false)) // again: it was at work already
	f.info[dev("1/0")].Unrepaired = 1
	if code, _, stderr := f.run("scrub", "--wait", "--device", "1/0"); code != 1 || !strings.Contains(stderr, "1 shard could not be repaired") {
		t.Errorf("with damage: exit %d: %s", code, stderr)
	}
	f.kill(3)
	if code, out, stderr := f.run("scrub"); code != 1 || !strings.Contains(out, "3/*") || !strings.Contains(stderr, "1 server did not begin") {
		t.Errorf("with a dead server: exit %d: %s%s", code, out, stderr)
	}
	if code, _, stderr := f.run("scrub", "--device", "3/1"); code != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("of a dead server: exit %d: %q", code, stderr)
	}
}

// A pass that goes on when one is asked for is not that one, and a server that did not say how its devices
// were cannot be followed.
func TestScrubWaitsForItsOwn(t *testing.T) {
	f := newFake(t)
	one := f.info[dev("3/1")]
	one.Scrubbing, one.LastScrubNs = true, 5
	asked, running, passes := false, true, 0 // as a server does it: one that is asked for waits until the present one has ended
	f.onAdmin = func(cfs.NodeID, *wirepb.Admin) (*wirepb.AdminReply, error) {
		asked = true
		return &wirepb.AdminReply{}, nil
	}
	f.onAsk = func(_ cfs.NodeID, op wire.Op) error {
		switch {
		case op != wire.OpInspect:
		case running:
			if one.ScrubbedBytes += 40 << 20; one.ScrubbedBytes >= one.LiveBytes {
				passes++
				one.Scrubbing, one.ScrubbedBytes, running = false, 0, false
				one.LastScrubNs += 10
			}
		case asked:
			asked, running, one.Scrubbing = false, true, true
		}
		return nil
	}
	if code, out, stderr := f.run("scrub", "--wait", "--device", "3/1"); code != 0 || passes < 2 {
		t.Errorf("exit %d after %d passes: %s%s", code, passes, out, stderr)
	}

	inspected := 0
	f.onAsk = func(at cfs.NodeID, op wire.Op) error {
		if at != 3 || op != wire.OpInspect {
			return nil
		}
		if inspected++; inspected == 1 {
			return cfs.E("fake", cfs.Unavailable, nil)
		}
		return nil
	}
	one.Scrubbing, one.LastScrubNs, f.verbs = false, 1000, nil // it had ended long ago
	if code, out, stderr := f.run("scrub", "--wait", "--device", "3/1"); code != 1 || out != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	f.wantVerbs()
}

// A device that was removed is said to be, one that was only lost is out.
func TestRemovedAndOut(t *testing.T) {
	f := newFake(t)
	f.device("2/1").State, f.device("2/1").Draining = cfs.StateOut, true
	f.device("3/1").State = cfs.StateOut
	if _, out, _ := f.run("status"); !strings.Contains(out, "4 of 4 up, 1 out, 1 removed") {
		t.Error(out)
	}
	_, out, _ := f.run("devices")
	states := map[string]string{}
	for _, line := range strings.Split(out, "\n") {
		if w := strings.Fields(line); len(w) > 1 {
			states[w[0]] = w[1]
		}
	}
	if states["2/1"] != "removed" || states["3/1"] != "out" || states["1/0"] != "up" {
		t.Error(out)
	}
	for _, d := range f.statusDoc().Devices {
		if d.ID == "2/1" && (d.State != "out" || !d.Draining) {
			t.Errorf("%+v", d)
		}
	}
}

// Wrong command lines and wrong names: one clear line, and nothing is asked for.
func TestAdminRefuses(t *testing.T) {
	f := newFake(t)
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"device", 2, "add"},
		{"device add /dev/x", 2, "node"},
		{"device add --node 3", 2, "arg"},
		{"device add --node x /dev/x", 2, "--node"},
		{"device add --node 9 /dev/x", 1, "no node 9"},
		{"device add --node 3 dev/x", 2, "not absolute"},
		{"device remove", 2, "arg"},
		{"device remove x", 2, `"x"`},
		{"device remove 2", 2, `"2"`},
		{"device remove 0/1", 2, `"0/1"`},
		{"device remove 2/1/3", 2, `"2/1/3"`},
		{"device remove 70000/1", 2, `"70000/1"`},
		{"device remove 2/9", 1, "no device 2/9"},
		{"device replace 2/1", 2, "arg"},
		{"device replace 2/9 /dev/x", 1, "no device 2/9"},
		{"device replace 2/1 x", 2, "not absolute"},
		{"job pause 2/9", 1, "no device 2/9"},
		{"job pause 2/1", 1, "no job"},
		{"job rate 2/1", 2, "arg"},
		{"job rate 2/1 fast", 2, `"fast"`},
		{"job rate 2/1 -1", 2, ""},
		{"job frobnicate", 2, "frobnicate"},
		{"scrub --device 2/9", 1, "no device 2/9"},
		{"scrub --device x", 2, `"x"`},
		{"fsck --wait soon", 2, "--wait"},
		{"fsck --wait -1s", 2, "--wait"},
		{"fsck now", 2, "now"},
		{"fsck --timeout 0s", 2, "--timeout"},
	} {
		code, stdout, stderr := f.run(strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("%s: exit %d, want %d; stdout %q; stderr %q, want one line with %q", c.args, code, c.code, stdout, stderr, c.want)
		}
	}
	f.wantVerbs()
	code, _, stderr := runAdmin(t, "fsck", "--server", "unix:"+filepath.Join(t.TempDir(), "none.sock"))
	if code != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("fsck at nobody: exit %d: %q", code, stderr)
	}
}
