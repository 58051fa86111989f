package perf

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/units"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// The cluster of ShapeRebuild: with three devices a node a lost one leaves places for its shards.
const (
	rebuildDevices = 3
	// rebuildShare is which part of the file each node may put in a second where the rebuild is
	// limited, 1 in so many: it must last longer than a writer of the file.
	rebuildShare = 64
	// rebuildTimeout bounds a rebuild.
	rebuildTimeout = 5 * time.Minute
	rebuildPoll    = 20 * time.Millisecond
)

// The states of rows about rebuilds.
const (
	StateIdle       = "idle"       // nothing else is done
	StateRebuilding = "rebuilding" // a rebuild goes on, limited
)

// rebuildTurns measures on a cluster of its own what a rebuild moves when nothing else is
// done, and what a limited one takes from a writer. One round, since a device is lost only once.
func (b *fileBench) rebuildTurns(ctx context.Context) (_ []turn, err error) {
	each := (int64(b.cfg.FileBytes)*rawFactor*4/(fileNodes*rebuildDevices) + deviceUnit - 1) / deviceUnit * deviceUnit
	each = max(each, leastDeviceBytes)
	b.cfg.Progress.say("%s: starting %d nodes of %d devices of %s", ShapeRebuild, fileNodes, rebuildDevices, units.Bytes(each))
	c, err := startCluster(ctx, b.cfg.Cfs, filepath.Join(b.scratch, ShapeRebuild), fileNodes, rebuildDevices, each)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close(ctx)) }()
	write := func(name string) (Values, error) {
		return writeFile(ctx, filepath.Join(c.point(), name), int64(b.cfg.FileBytes), b.cfg.Seed)
	}
	if _, err := write(dataFile); err != nil {
		return nil, err
	}
	disk, err := b.diskMoves(ctx)
	if err != nil {
		return nil, err
	}
	b.cfg.Progress.say("%s: a device is lost, nothing else is done", ShapeRebuild)
	moved, err := c.rebuild(ctx, 2, 0)
	if err != nil {
		return nil, err
	}
	labels := Labels{"op": ShapeRebuild, "state": StateIdle}
	base := b.rep.row(labels.with("engine", EngineFio), nil)
	base.Rounds = []Values{{MovedRate: disk}}
	b.row(labels, base, MovedRate).Rounds = []Values{{MovedRate: moved}}

	alone, err := write("alone")
	if err != nil {
		return nil, err
	}
	rate := b.cfg.FileBytes / rebuildShare
	b.cfg.Progress.say("%s: another is lost, the rebuild limited to %s a second and node", ShapeRebuild, rate)
	if err := c.lose(ctx, 3, uint64(rate)); err != nil {
		return nil, err
	}
	beside, err := write("beside")
	if err != nil {
		return nil, err
	}
	if done, err := c.rebuilt(ctx, 3); err != nil {
		return nil, err
	} else if done {
		return nil, cfs.Errorf("write beside a rebuild", cfs.Invalid, "the rebuild was over before the writer: the file is too small")
	}
	labels = Labels{"op": "foreground", "bs": sizeText(largeBytes)}
	base = b.row(labels.with("state", StateHealthy), nil, BytesPerSecond)
	base.Rounds = []Values{alone}
	b.row(labels.with("state", StateRebuilding), base, BytesPerSecond).Rounds = []Values{beside}
	return nil, nil
}

// diskMoves is what fio would move for a rebuild in a second: it reads K bytes for each that it writes.
func (b *fileBench) diskMoves(ctx context.Context) (float64, error) {
	var rates [2]float64
	for i, rw := range []string{Read, Write} {
		run, err := fioTurn(Job{RW: rw, BlockBytes: largeBytes, Depth: largeDepth, Path: b.disk, SizeBytes: int64(b.cfg.FileBytes), Seed: b.cfg.Seed}, b.rep)
		if err != nil {
			return 0, err
		}
		v, err := run(ctx)
		if err != nil {
			return 0, err
		}
		rates[i] = v[BytesPerSecond]
	}
	k := float64(cfs.Geo4p2.K)
	return (k + 1) / (k/rates[0] + 1/rates[1]), nil
}

// lostDevice is the device of a node that a rebuild is measured with.
func lostDevice(node int) cfs.DeviceID { return cfs.MakeDeviceID(cfs.NodeID(node), 1) }

// lose loses a device of a node, and has what it held rebuilt at most at a rate.
func (c *ownCluster) lose(ctx context.Context, node int, rate uint64) error {
	if err := c.demo(ctx, "lose", "--node", fmt.Sprint(node), "--slot", fmt.Sprint(lostDevice(node).Slot())); err != nil {
		return err
	}
	if err := c.kill(ctx, node); err != nil {
		return err
	}
	if err := c.restart(ctx, node); err != nil {
		return err
	}
	if err := c.admin(ctx, &wirepb.Admin{Verb: uint32(wire.VerbDeviceRemove), Device: uint32(lostDevice(node))}); err != nil || rate == 0 {
		return err
	}
	return c.admin(ctx, &wirepb.Admin{Verb: uint32(wire.VerbJobRate), Device: uint32(lostDevice(node)), RateBytes: rate})
}

// admin asks the leader for a change.
func (c *ownCluster) admin(ctx context.Context, req *wirepb.Admin) error {
	status, err := askLeader(ctx, c.server())
	if err != nil {
		return err
	}
	return question(ctx, status.LeaderAddr, func(ctx context.Context, conn *wire.Conn) error {
		_, err := conn.Call(ctx, wire.OpAdmin, req, nil, &wirepb.AdminReply{}, nil)
		return err
	})
}

// job is the job of a node's lost device, nil while there is none.
func (c *ownCluster) job(ctx context.Context, node int) (*wirepb.Job, error) {
	status, err := askLeader(ctx, c.server())
	if err != nil {
		return nil, err
	}
	for _, j := range status.GetMap().GetJobs() {
		if j.Device == uint32(lostDevice(node)) {
			return j, nil
		}
	}
	return nil, nil
}

// rebuilt reports that the rebuild is over.
func (c *ownCluster) rebuilt(ctx context.Context, node int) (bool, error) {
	j, err := c.job(ctx, node)
	return j != nil && cfs.JobState(j.State) == cfs.JobDone, err
}

// rebuild loses a device and is what the rebuild of it moves in a second: for each byte that
// is written K are read.
func (c *ownCluster) rebuild(ctx context.Context, node int, rate uint64) (float64, error) {
	if err := c.lose(ctx, node, rate); err != nil {
		return 0, err
	}
	begun := time.Now()
	for {
		j, err := c.job(ctx, node)
		switch {
		case err != nil:
			return 0, err
		case j != nil && cfs.JobState(j.State) == cfs.JobDone:
			if j.TotalBytes == 0 {
				return 0, cfs.Errorf("rebuild", cfs.Invalid, "the lost device held nothing")
			}
			return float64(j.TotalBytes) * float64(cfs.Geo4p2.K+1) / time.Since(begun).Seconds(), nil
		case time.Since(begun) > rebuildTimeout:
			return 0, cfs.Errorf("rebuild", cfs.Timeout, "not within %s", rebuildTimeout)
		}
		if err := pause(ctx, rebuildPoll); err != nil {
			return 0, err
		}
	}
}
