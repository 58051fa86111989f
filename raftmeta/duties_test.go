package raftmeta

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
)

// idleDuties are those of a leader without a cluster.
func idleDuties(nodeTimeout time.Duration) *duties {
	return &duties{n: &Node{cfg: Config{NodeTimeout: nodeTimeout, SessionTimeout: time.Hour, JobInterval: time.Hour}, log: slog.New(slog.DiscardHandler)},
		kick: make(chan struct{}, 1), admin: make(chan *adminCall), beats: map[cfs.NodeID]*beat{},
		down: map[cfs.DeviceID]time.Time{}, recorded: map[cfs.DeviceID]time.Time{}}
}

// A duty that is refused does not keep the others from their turn; where no command passes they wait.
func TestDutiesGoOn(t *testing.T) {
	d := idleDuties(time.Minute)
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 3},
		{cfs.E("propose", cfs.Invalid, nil), 3},
		{cfs.E("propose", cfs.Conflict, nil), 3},
		{cfs.E("propose", cfs.Overloaded, nil), 3},
		{cfs.E("propose", cfs.NotLeader, nil), 2},
		{cfs.E("propose", cfs.Unavailable, nil), 2},
	} {
		did := 0
		duty := func(context.Context) error { did++; return nil }
		d.round(t.Context(), []func(context.Context) error{duty, func(context.Context) error { did++; return test.err }, duty})
		if did != test.want {
			t.Errorf("%v: %d duties were done, want %d", test.err, did, test.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.round(ctx, []func(context.Context) error{func(context.Context) error { return errors.New("ended") }, func(context.Context) error {
		t.Error("a duty is done after the end")
		return nil
	}})
}

// Slow duties are not silence: the leader has heard the others meanwhile.
func TestSlowDutiesRestartNoTimer(t *testing.T) {
	const timeout = 400 * time.Millisecond
	d := idleDuties(timeout)
	began := time.Now().Add(-time.Hour)
	d.hearing = began
	ctx, cancel := context.WithCancel(t.Context())
	rounds := 0
	d.run(ctx, []func(context.Context) error{func(context.Context) error {
		time.Sleep(timeout)
		if rounds++; rounds == 3 {
			cancel()
		}
		return nil
	}})
	if d.hearing != began {
		t.Error("the timers began anew")
	}
}

// Time in which the leader was held up does not count for devices that are down, and the rest does.
func TestHeldUpLeaderKeepsDownTimes(t *testing.T) {
	d := idleDuties(time.Minute)
	id, since := cfs.MakeDeviceID(1, 0), time.Now().Add(-time.Hour)
	d.down[id] = since
	d.hearAnew(10 * time.Minute)
	if got := d.down[id].Sub(since); got != 10*time.Minute {
		t.Errorf("down for %v less", got)
	}
	if time.Since(d.hearing) > time.Minute {
		t.Error("the timers did not begin anew")
	}
}

// removal is what removing a device does to it and to its job; nil for nothing.
func removal(t *testing.T, m *cfs.Map, id cfs.DeviceID, stripes uint64) (dev *cfs.Device, job *cfs.Job) {
	t.Helper()
	usage := func(cfs.PGID) cfs.GroupUsage { return cfs.GroupUsage{Stripes: stripes, RawBytes: 6000 * stripes} }
	c := &adminCall{verb: wire.VerbDeviceRemove, id: id, force: true}
	ops, text, err := c.plan(m, usage)
	if err != nil || text == "" {
		t.Fatalf("%q %v", text, err)
	}
	for i := range ops {
		switch ops[i].Kind {
		case cfs.OpSetDevice:
			dev = &ops[i].Device
		case cfs.OpSetJob:
			job = &ops[i].Job
		}
	}
	return dev, job
}

// Removing a device that was given up before is for good, whatever its rebuild is doing.
func TestRemoveOfADeviceThatIsOut(t *testing.T) {
	id := cfs.MakeDeviceID(1, 0)
	for _, test := range []struct {
		name    string
		job     *cfs.Job
		stripes uint64
		begins  bool
	}{
		{"no job", nil, 1, true},
		{"no job, empty", nil, 0, true}, // it ends at once, for who waits
		{"being rebuilt", &cfs.Job{Kind: cfs.JobRebuild, State: cfs.JobRunning}, 1, false},
		{"paused", &cfs.Job{Kind: cfs.JobRebuild, State: cfs.JobPaused}, 1, false},
		{"rebuilt", &cfs.Job{Kind: cfs.JobRebuild, State: cfs.JobDone}, 0, false},
		{"rebuilt, but it has slots", &cfs.Job{Kind: cfs.JobRebuild, State: cfs.JobDone}, 1, true},
		{"cancelled", &cfs.Job{Kind: cfs.JobRebuild, State: cfs.JobCancelled}, 1, true},
		{"rebalanced", &cfs.Job{Kind: cfs.JobRebalance, State: cfs.JobRunning}, 1, true},
	} {
		m := &cfs.Map{Devices: []cfs.Device{{ID: id, State: cfs.StateOut}}, Groups: []cfs.PG{{ID: 1, Geometry: cfs.Geo4p2, Slots: []cfs.Slot{{Device: id}}}}}
		if test.job != nil {
			test.job.Device = id
			m.Jobs = []cfs.Job{*test.job}
		}
		dev, job := removal(t, m, id, test.stripes)
		if dev == nil || !dev.Removed() || (job != nil) != test.begins {
			t.Errorf("%s: device %+v, job %+v", test.name, dev, job)
			continue
		}
		if job != nil && (job.Kind != cfs.JobRebuild || job.State != cfs.JobRunning) {
			t.Errorf("%s: job %+v", test.name, job)
		}
		if m.Devices[0] = *dev; job != nil {
			m.Jobs = []cfs.Job{*job}
		}
		if dev, job := removal(t, m, id, test.stripes); dev != nil || job != nil {
			t.Errorf("%s, again: device %+v, job %+v", test.name, dev, job)
		}
	}
}

// The rebalance of a device waits while it is down, and is called off when it is given up.
func TestRebalanceOfADeviceThatGoes(t *testing.T) {
	d := idleDuties(time.Minute)
	job := cfs.Job{Device: cfs.MakeDeviceID(1, 0), Kind: cfs.JobRebalance, State: cfs.JobRunning, TotalBytes: 100}
	none := func(cfs.PGID) cfs.GroupUsage { return cfs.GroupUsage{} }
	for _, test := range []struct {
		dev  cfs.Device
		want []cfs.JobState
	}{
		{cfs.Device{State: cfs.StateUp}, []cfs.JobState{cfs.JobDone}},
		{cfs.Device{State: cfs.StateUp, Full: true}, []cfs.JobState{cfs.JobDone}},
		{cfs.Device{State: cfs.StateDown}, nil},
		{cfs.Device{State: cfs.StateOut}, []cfs.JobState{cfs.JobCancelled}},
		{cfs.Device{State: cfs.StateUp, Draining: true}, []cfs.JobState{cfs.JobCancelled}},
	} {
		test.dev.ID = job.Device
		m := &cfs.Map{Devices: []cfs.Device{test.dev}, Jobs: []cfs.Job{job}}
		var got []cfs.JobState
		for _, op := range d.progress(m, &m.Devices[0], job, none, func(cfs.PGID, int) uint64 { return 0 }) {
			got = append(got, op.Job.State)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v: job %v, want %v", test.dev, got, test.want)
		}
		if over := fsm.JobOver(m, none, &job); !over {
			t.Errorf("%+v: something moves", test.dev)
		}
	}
}

// What only heartbeats say of devices is in the map that is given out; a position never falls behind the replicated one.
func TestReportedOfDevices(t *testing.T) {
	d := idleDuties(time.Minute)
	a, b := cfs.MakeDeviceID(1, 0), cfs.MakeDeviceID(1, 1)
	d.beats[1] = &beat{devices: []cfs.Device{{ID: a, Used: 5, FeedPos: 9}, {ID: b, FeedPos: 2}}}
	m := &cfs.Map{Devices: []cfs.Device{{ID: a, FeedPos: 1}, {ID: b, FeedPos: 3}}}
	out := d.withReported(m)
	if x, y := out.Devices[0], out.Devices[1]; x.Used != 5 || x.FeedPos != 9 || y.FeedPos != 3 || m.Devices[0].FeedPos != 1 {
		t.Errorf("%+v from %+v", out.Devices, m.Devices)
	}
}
