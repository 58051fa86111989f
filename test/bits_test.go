package test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/nvme"
)

// written lists the blocks of a device file behind its superblocks that are not zeros.
func written(t *testing.T, path string) []int64 {
	t.Helper()
	var list []int64
	eachBlock(t, path, func(off int64, block []byte) {
		if off >= nvme.HeaderAreaBytes && string(block) != zeroBlock {
			list = append(list, off)
		}
	})
	return list
}

// flipShare flips a bit in one of share of the written blocks of a device, whatever they
// hold, and returns how many those are.
func flipShare(t *testing.T, path string, share int, rng *rand.Rand) int {
	t.Helper()
	blocks := written(t, path)
	rng.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	n := len(blocks) / share
	for _, off := range blocks[:n] {
		flipBit(t, place{path, off}, rng.IntN(8*cfs.BlockSize))
	}
	t.Logf("a bit was flipped in %d of %d written blocks of %s", n, len(blocks), path)
	if n == 0 {
		t.Fatalf("only %d blocks of %s are written", len(blocks), path)
	}
	return n
}

// damages are what a device has been found to have wrong, and how much of that was repaired.
func damages(t *testing.T, c *cluster.Cluster, id cfs.DeviceID) (found, repaired, unrepaired uint64) {
	t.Helper()
	d := deviceInfo(t, c, id)
	return d.GetDamaged() + d.GetMissing(), d.GetRepaired(), d.GetUnrepaired()
}

// A bit is flipped in one of a hundred blocks of a device, payload and headers alike, once
// while the node is down and once under its hands: no wrong byte is read, the scrub finds
// and repairs all, and a second one finds nothing.
func TestBitFlips(t *testing.T) {
	c := start(t, func(s *cluster.Spec) { s.DeviceSizeBytes = 256 << 20 })
	mt := mount(t, c, "mnt")
	seed := newSeed(t)
	rng := newRand(seed, 100)
	files := newRecord()
	files.writeAll(t, mt.Point, "sizes", 0)
	files.fill(t, mt.Point, "large", 6, 8<<20)
	files.fill(t, mt.Point, "small", 60, 70<<10)
	remount(t, mt)
	rounds := 0
	for begun := time.Now(); rounds < 2 || time.Since(begun) < chaosTime(0); rounds++ {
		at := cluster.DevicePlace{Node: rounds%c.Nodes() + 1, Slot: rounds % 2}
		path := c.DevicePath(at.Node, at.Slot)
		stopped := rounds%2 == 0
		if stopped {
			if err := c.Kill(at.Node); err != nil {
				t.Fatal(err)
			}
		}
		var before uint64 // a node counts from its start
		if !stopped {
			before, _, _ = damages(t, c, deviceID(at))
		}
		flipShare(t, path, 100, rng)
		if stopped {
			if err := c.Restart(t.Context(), at.Node); err != nil {
				t.Fatal(err)
			}
		}
		remount(t, mt)
		files.readAll(t, mt.Point, "one bit in a hundred blocks flipped")
		scrubbed(t, c, mt, files, deviceID(at), before)
	}
	settle(t, c, mt)
}

// scrubbed wants a scrub to find and repair what is wrong with a device, and the next to find nothing.
func scrubbed(t *testing.T, c *cluster.Cluster, mt *cluster.Mount, files *record, id cfs.DeviceID, before uint64) {
	t.Helper()
	t.Logf("scrub: %s", strings.TrimSpace(admin(t, c, "scrub", "--wait")))
	var found, repaired, unrepaired uint64
	eventually(t, "everything found is repaired", func() bool {
		found, repaired, unrepaired = damages(t, c, id)
		return unrepaired == 0 && repaired >= found
	})
	if found == before {
		t.Errorf("nothing was found on device %v", id)
	}
	t.Logf("device %v: %d shards found damaged or missing, %d repaired in all", id, found-before, repaired)
	admin(t, c, "scrub", "--wait")
	again, _, _ := damages(t, c, id)
	if again != found {
		t.Errorf("a second scrub found %d more on device %v", again-found, id)
	}
	remount(t, mt)
	files.readAll(t, mt.Point, "after the scrub")
	if n := counters(t, mt)["claudefs_client_crc_failures_total"]; n != 0 {
		t.Errorf("readers still met %v damaged blocks", n)
	}
}
