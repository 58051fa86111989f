package node

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// heartbeatEvery is the rhythm in which the leader hears of the node.
	heartbeatEvery = 500 * time.Millisecond
	// heartbeatRetry is the rhythm while none is taken: a new leader is told soon.
	heartbeatRetry = 100 * time.Millisecond
	// leaderLostAfter is how long heartbeats may fail before /healthz says so.
	leaderLostAfter = 5 * time.Second
)

// heartbeats tells the leader, until ctx ends, that the node and its devices live.
func (n *Node) heartbeats(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing, heard := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		reply := &wirepb.HeartbeatReply{}
		err := n.leader.call(ctx, wire.OpHeartbeat, n.heartbeat(), reply)
		if err == nil {
			err = n.followMap(ctx, reply.MapVersion)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			heard = true
			n.heardNS.Store(time.Now().UnixNano())
			n.metrics.heartbeats.Inc()
			if failing {
				n.log.Info("the leader answers again", "leader", n.leader.believed())
			}
		case cfs.KindOf(err) == cfs.Denied && !heard:
			n.fail(err)
			return
		default:
			n.metrics.heartbeatErrors.Inc()
			if !failing {
				n.log.Warn("no leader takes the heartbeat", "err", err)
			}
		}
		if failing = err != nil; failing {
			timer.Reset(heartbeatRetry)
		} else {
			timer.Reset(heartbeatEvery)
		}
	}
}

// heartbeat is what the leader is told.
func (n *Node) heartbeat() *wirepb.Heartbeat {
	hb := &wirepb.Heartbeat{
		Node:       &wirepb.Node{Id: uint32(n.cfg.NodeID), Addr: n.addr, State: uint32(cfs.StateUp), Voter: n.raft.raft.Load() != nil},
		MapVersion: n.raft.Map().Version,
		Fills:      n.store.Fills(),
	}
	for _, id := range n.store.Devices() {
		stats, _ := n.store.Stats(id)
		state := cfs.StateUp
		if stats.Failed {
			state = cfs.StateDown
		}
		c := n.devices.find(id)
		if c == nil {
			continue // it is being closed
		}
		hb.Devices = append(hb.Devices, &wirepb.Device{
			Id: uint32(id), Uuid: c.sb.UUID[:], State: uint32(state),
			Capacity: uint64(stats.CapacityBytes), Used: uint64(stats.UsedBytes), FeedPos: n.store.FeedPosition(id),
			Full: n.store.Full(id),
		})
	}
	return hb
}

// healthy says why the node is not, nil when it is.
func (n *Node) healthy() error {
	silent := time.Since(time.Unix(0, n.heardNS.Load()))
	if silent > leaderLostAfter {
		return cfs.Errorf("health", cfs.Unavailable, "no leader has answered for %s", silent.Round(time.Second))
	}
	if raft := n.raft.raft.Load(); raft != nil {
		return raft.DiskHealth()
	}
	return nil
}
