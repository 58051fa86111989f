package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

const (
	// leadEvery is the rhythm in which the restriper looks whether this node leads.
	leadEvery = 200 * time.Millisecond
	// restriperClose bounds the end of its client, which has nothing to commit.
	restriperClose = 500 * time.Millisecond
)

// restriper writes files anew, in the background, while this node leads the voters:
// one node at a time does it, the one whose replica answers what is worth it. It is a
// client as any other, with a session of its own each time.
type restriper struct {
	n *Node

	mu   sync.Mutex
	now  *client.Client // nil while this node does not lead
	past restriped      // what the clients before it have done
}

// restriped counts what has been restriped.
type restriped struct{ windows, bytes, conflicts, failures uint64 }

func (r restriped) plus(s *client.Stats) restriped {
	return restriped{r.windows + s.RestripedWindows(), r.bytes + s.RestripedBytes(), r.conflicts + s.RestripeConflicts(), r.failures + s.RestripeFailures()}
}

// done is what has been restriped since the node started.
func (r *restriper) done() restriped {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil {
		return r.past
	}
	return r.past.plus(r.now.Stats())
}

// run restripes, whenever this node leads, until ctx ends.
func (r *restriper) run(ctx context.Context) {
	if r.n.cfg.RestripeBytesPerSecond == 0 {
		return
	}
	tick := time.NewTicker(leadEvery)
	defer tick.Stop()
	for {
		if r.n.raft.Leads() {
			r.lead(ctx, tick.C)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lead restripes until this node does not lead any more.
func (r *restriper) lead(ctx context.Context, tick <-chan time.Time) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.restripe(ctx)
	}()
	for {
		select {
		case <-ended:
			return
		case <-tick:
			if !r.n.raft.Leads() {
				cancel()
			}
		}
	}
}

// restripe is the life of one client.
func (r *restriper) restripe(ctx context.Context) {
	log := r.n.log.With("part", "restriper")
	servers := append([]string{"unix:" + r.n.dir.file(socketFile)}, r.n.leader.servers()...)
	c, err := client.New(ctx, client.Config{
		Servers: servers, ClusterID: r.n.cfg.ClusterID, Name: fmt.Sprintf("restriper of node %d", r.n.cfg.NodeID),
		MemoryBytes: client.MinMemoryBytes, Logger: log, TLS: r.n.trust.tls(),
	})
	if err != nil {
		if ctx.Err() == nil {
			log.Warn("no session to restripe with", "err", err)
		}
		return
	}
	r.mu.Lock()
	r.now = c
	r.mu.Unlock()
	err = c.Restripe(ctx, client.RestripeConfig{
		RateBytes: r.n.cfg.RestripeBytesPerSecond, MinAge: r.n.cfg.RestripeAge, Idle: r.n.cfg.RestripeAge, Logger: log,
	})
	if err != nil {
		log.Warn("restriping has ended", "err", err)
	}
	closing, cancel := context.WithTimeout(context.Background(), restriperClose)
	defer cancel()
	if err := c.Close(closing); err != nil && cfs.KindOf(err) != cfs.Closed {
		log.Warn("closing the restriper's client", "err", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.past, r.now = r.past.plus(c.Stats()), nil
}
