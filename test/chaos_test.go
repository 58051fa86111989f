package test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

// between is a duration that rng decides.
func between(rng *rand.Rand, lo, hi time.Duration) time.Duration {
	return lo + time.Duration(rng.Int64N(int64(hi-lo)))
}

// spoil does one thing to a node and undoes it: it dies and starts again, or stands
// still for a while, shorter or longer than it takes to be given up.
func spoil(t *testing.T, c *cluster.Cluster, node int, rng *rand.Rand) {
	t.Helper()
	if rng.IntN(3) == 0 {
		if err := c.Pause(node); err != nil {
			t.Fatal(err)
		}
		time.Sleep(between(rng, 100*time.Millisecond, 3*time.Second))
		if err := c.Resume(node); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitUsable(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	killAndRestart(t, c, node, between(rng, 0, 2500*time.Millisecond))
}

func killAndRestart(t *testing.T, c *cluster.Cluster, node int, dead time.Duration) {
	t.Helper()
	if err := c.Kill(node); err != nil {
		t.Fatal(err)
	}
	time.Sleep(dead)
	if err := c.Restart(t.Context(), node); err != nil {
		t.Fatal(err)
	}
}

// Each node in turn dies or stands still, and the mount sleeps a little, while files are
// written and read: nobody notices.
func TestChaosNodes(t *testing.T) {
	c := start(t, func(s *cluster.Spec) { s.ServerArgs = []string{"--reclaim-interval", "2s"} })
	mt := mount(t, c, "mnt")
	seed := newSeed(t)
	rng := newRand(seed, 100)
	m := newModel(t, mt.Point, seed)
	m.run()
	rounds := 0
	for begun := time.Now(); rounds < c.Nodes() || time.Since(begun) < chaosTime(0); rounds++ {
		spoil(t, c, rounds%c.Nodes()+1, rng)
		if rng.IntN(2) == 0 {
			mt.Pause()
			time.Sleep(between(rng, 0, 2*time.Second))
			mt.Resume()
		}
		if t.Failed() {
			break
		}
	}
	m.stop()
	t.Logf("%d rounds, %d operations", rounds, m.total())
	m.remount(mt)
	m.verify("after the last round")
	settle(t, c, mt)
}

// The mount is killed while it writes, again and again, and now and then a node with it.
// What it had put and not committed is reclaimed while others write.
func TestChaosMounts(t *testing.T) {
	c := start(t, func(s *cluster.Spec) { s.ServerArgs = []string{"--reclaim-interval", "1s"} })
	mt := mount(t, c, "mnt")
	seed := newSeed(t)
	rng := newRand(seed, 100)
	m := newModel(t, mt.Point, seed)
	m.bearable = func(error) bool { return true } // of a dead mount
	rounds := 0
	for begun := time.Now(); rounds < 3 || time.Since(begun) < chaosTime(0); rounds++ {
		m.run()
		time.Sleep(between(rng, 500*time.Millisecond, 2*time.Second))
		node := rng.IntN(2*c.Nodes()) + 1
		if node <= c.Nodes() {
			if err := c.Kill(node); err != nil {
				t.Fatal(err)
			}
		}
		if err := mt.Kill(); err != nil {
			t.Fatal(err)
		}
		m.stop()
		m.crashed()
		if node <= c.Nodes() {
			if err := c.Restart(t.Context(), node); err != nil {
				t.Fatal(err)
			}
		}
		mt = mount(t, c, "mnt")
		m.verify("after the mount was killed")
	}
	t.Logf("%d rounds, %d operations", rounds, m.total())
	settle(t, c, mt)
}

// readWithout kills a node, each in turn in the long form, and reads all files.
func readWithout(t *testing.T, c *cluster.Cluster, mt *cluster.Mount, files *record, node int, when string) {
	t.Helper()
	for n := 1; n <= c.Nodes(); n++ {
		if n != node && chaosTime(0) == 0 {
			continue
		}
		if err := c.Kill(n); err != nil {
			t.Fatal(err)
		}
		remount(t, mt)
		files.readAll(t, mt.Point, fmt.Sprintf("%s, and node %d dead", when, n))
		if err := c.Restart(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
}

// whileJob breaks nodes in turn until the job of a device is done.
func whileJob(t *testing.T, c *cluster.Cluster, id cfs.DeviceID, kind cfs.JobKind, rng *rand.Rand) {
	t.Helper()
	eventually(t, "the job has begun", func() bool {
		j, ok := job(t, c, id)
		return ok && j.Kind == kind
	})
	rounds := 0
	for node := 1; node <= c.Nodes(); node++ {
		spoil(t, c, node, rng)
		rounds++
		if j, ok := job(t, c, id); ok && j.State == cfs.JobDone {
			break
		}
	}
	t.Logf("%d nodes were broken during the %v", rounds, kind)
	waitJob(t, c, id, kind)
}

// The life of devices on three nodes of three: one is lost and rebuilt elsewhere, one is
// added and gets its share, one is removed and drained; all while files are written and
// nodes die.
func TestDeviceLife(t *testing.T) {
	need(t)
	c := start(t, func(s *cluster.Spec) {
		s.Devices, s.DeviceSizeBytes = 3, 192<<20
		s.ServerArgs = []string{"--out-after", "1s", "--reclaim-interval", "2s"}
	})
	mt := mount(t, c, "mnt")
	seed := newSeed(t)
	rng := newRand(seed, 100)
	files := newRecord()
	files.fill(t, mt.Point, "ballast", 20, 8<<20)
	m := newModel(t, mt.Point, seed)
	m.pause = 20 * time.Millisecond // the jobs are what is to be seen here
	check := func(when string) {
		t.Helper()
		m.stop()
		m.remount(mt)
		m.verify(when)
		files.readAll(t, mt.Point, when)
	}

	lost := cluster.DevicePlace{Node: 1, Slot: 0}
	m.run()
	if err := c.LoseDevice(lost); err != nil {
		t.Fatal(err)
	}
	killAndRestart(t, c, lost.Node, 0)
	whileJob(t, c, deviceID(lost), cfs.JobRebuild, rng)
	check("a lost device was rebuilt")
	if n := slots(clusterMap(t, c), deviceID(lost)); n != 0 {
		t.Errorf("the lost device still has %d slots", n)
	}
	settle(t, c, mt)
	readWithout(t, c, mt, files, lost.Node%c.Nodes()+1, "a device lost and rebuilt") // which nothing depends on any more

	m.run()
	added := addDevice(t, c, 1, "add", "--node", "1")
	waitJob(t, c, deviceID(added), cfs.JobRebalance)
	check("a device was added")
	if n := slots(clusterMap(t, c), deviceID(added)); n == 0 || deviceInfo(t, c, deviceID(added)).GetLiveBytes() == 0 {
		t.Errorf("the new device has %d slots and %d live bytes", n, deviceInfo(t, c, deviceID(added)).GetLiveBytes())
	}
	settle(t, c, mt)

	m.run()
	leaving := cluster.DevicePlace{Node: 2, Slot: 0}
	admin(t, c, "device", "remove", deviceID(leaving).String())
	whileJob(t, c, deviceID(leaving), cfs.JobDrain, rng)
	eventually(t, "a drained device is out", func() bool { return device(t, c, deviceID(leaving)).State == cfs.StateOut })
	if err := c.DropDevice(leaving); err != nil {
		t.Fatal(err)
	}
	check("a device was drained")
	if n := slots(clusterMap(t, c), deviceID(leaving)); n != 0 {
		t.Errorf("the drained device still has %d slots", n)
	}
	settle(t, c, mt)
}

// addDevice makes a device file for a node and has the node take it into use by
// `cfs admin device COMMAND.. PATH`.
func addDevice(t *testing.T, c *cluster.Cluster, node int, command ...string) cluster.DevicePlace {
	t.Helper()
	slot, path, err := c.AddDevice(node)
	if err != nil {
		t.Fatal(err)
	}
	admin(t, c, append(append([]string{"device"}, command...), path)...)
	at := cluster.DevicePlace{Node: node, Slot: slot}
	eventually(t, "the new device is up", func() bool { return device(t, c, deviceID(at)).State == cfs.StateUp })
	return at
}

// A lost device on three nodes of two leaves no sixth place: what it held is written anew,
// narrower, while nodes die. With another device it becomes wide again.
func TestRestriping(t *testing.T) {
	need(t)
	c := start(t, func(s *cluster.Spec) {
		s.ServerArgs = []string{"--out-after", "1s", "--reclaim-interval", "2s"}
	})
	mt := mount(t, c, "mnt")
	seed := newSeed(t)
	rng := newRand(seed, 100)
	files := newRecord()
	files.fill(t, mt.Point, "ballast", 6, 8<<20)
	m := newModel(t, mt.Point, seed)
	m.pause = 20 * time.Millisecond
	m.run()
	lost := cluster.DevicePlace{Node: 2, Slot: 1}
	if err := c.LoseDevice(lost); err != nil {
		t.Fatal(err)
	}
	killAndRestart(t, c, lost.Node, 0)
	time.Sleep(time.Second)
	m.stop() // only what is left alone for a while is written anew
	whileJob(t, c, deviceID(lost), cfs.JobRebuild, rng)
	m.remount(mt)
	m.verify("written anew without a device")
	files.readAll(t, mt.Point, "written anew without a device")
	settle(t, c, mt)
	readWithout(t, c, mt, files, lost.Node%c.Nodes()+1, "written anew without a device")

	addDevice(t, c, lost.Node, "add", "--node", strconv.Itoa(lost.Node))
	if err := c.WaitUsable(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitWide(t, c, cfs.Geo4p2)
	m.remount(mt)
	m.verify("written anew, wide")
	files.readAll(t, mt.Point, "written anew, wide")
	settle(t, c, mt)
}

// waitWide waits until all stripes but copies have a geometry.
func waitWide(t *testing.T, c *cluster.Cluster, want cfs.Geometry) {
	t.Helper()
	var narrow []cfs.PG
	begun := time.Now()
	eventually(t, "all stripes are as wide as they can be", func() bool {
		narrow = nil
		for _, g := range clusterMap(t, c).Groups {
			// A group that takes no writes and holds nothing is dropped.
			if g.Geometry != want && g.Geometry != cfs.Geo1p2 {
				narrow = append(narrow, g)
			}
		}
		return len(narrow) == 0
	}, func() string { return fmt.Sprintf("%+v", narrow) })
	t.Logf("all stripes are %v after %v", want, time.Since(begun))
}

// Two device files are deleted at once: the nodes go on with what they have open, and
// come up without them when they die. All is read and written throughout; with the
// devices replaced all is whole again.
func TestTwoDevicesLost(t *testing.T) {
	c := start(t, func(s *cluster.Spec) {
		s.ServerArgs = []string{"--out-after", "5m", "--reclaim-interval", "2s"}
	})
	mt := mount(t, c, "mnt")
	seed := newSeed(t)
	files := newRecord()
	files.writeAll(t, mt.Point, "before", 0)
	m := newModel(t, mt.Point, seed)
	lost := []cluster.DevicePlace{{Node: 1, Slot: 0}, {Node: 3, Slot: 1}}
	step := func(when string) {
		t.Helper()
		m.run()
		time.Sleep(1500 * time.Millisecond)
		m.stop()
		m.remount(mt)
		m.verify(when)
		files.readAll(t, mt.Point, when)
	}
	m.run()
	for _, at := range lost {
		if err := c.LoseDevice(at); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	m.stop()
	step("two files deleted under running nodes")
	for _, at := range lost {
		killAndRestart(t, c, at.Node, 0)
	}
	step("two devices lost")
	files.writeAll(t, mt.Point, "after", 1)
	remount(t, mt)
	files.readAll(t, mt.Point, "written with two devices lost")

	need(t)
	for _, at := range lost {
		addDevice(t, c, at.Node, "replace", deviceID(at).String())
		if err := c.DropDevice(at); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range lost {
		waitJob(t, c, deviceID(at), cfs.JobRebuild)
	}
	step("two devices replaced")
	settle(t, c, mt)
}
