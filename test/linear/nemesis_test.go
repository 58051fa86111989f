package linear

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cluster"
)

// nemesis breaks things and mends them. Each of its evils lasts a moment, then all is
// mended and left alone for another, so that the cluster comes to rest now and then.
type nemesis struct {
	t   *testing.T
	c   *cluster.Cluster
	rng *rand.Rand
	did map[string]int
}

// evil does harm and returns what ends it.
type evil func(n *nemesis, ctx context.Context) (mend func() error, err error)

// evils are the kinds of faults, by the name of the flag and of subtests.
var evils = map[string][]evil{
	"none":      nil,
	"partition": {partition, oneWay, bridge, isolate},
	"pause":     {pause},
	"kill":      {kill},
	"clock":     {clockJump},
	"disk":      {slowDisk},
	"leader":    {cutLeader}, // what a stale read takes
	"busy":      {killBusy},  // what a second effect takes
	"mixed":     {partition, oneWay, bridge, isolate, pause, kill, clockJump, slowDisk},
}

// run does evil until ctx ends, and leaves nothing broken.
func (n *nemesis) run(ctx context.Context, kinds []evil) {
	for len(kinds) > 0 && ctx.Err() == nil {
		n.rest(ctx, 300*time.Millisecond, 1500*time.Millisecond)
		if ctx.Err() != nil {
			return
		}
		mend, err := kinds[n.rng.IntN(len(kinds))](n, ctx)
		if err != nil {
			n.t.Errorf("nemesis: %v", err)
		}
		n.rest(ctx, 500*time.Millisecond, 4*time.Second)
		if mend != nil {
			if err := mend(); err != nil {
				n.t.Errorf("nemesis: %v", err)
			}
		}
	}
}

func (n *nemesis) rest(ctx context.Context, least, most time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(least + time.Duration(n.rng.Int64N(int64(most-least)))):
	}
}

// victim is the leader every second time, else anybody.
func (n *nemesis) victim(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if n.rng.IntN(2) == 0 {
		if id, err := n.c.Leader(ctx); err == nil {
			return id
		}
	}
	return 1 + n.rng.IntN(n.c.Nodes())
}

func (n *nemesis) others(id int) (all []int) {
	for o := 1; o <= n.c.Nodes(); o++ {
		if o != id {
			all = append(all, o)
		}
	}
	return all
}

// mendAll ends every cut.
func (n *nemesis) mendAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for id := 1; id <= n.c.Nodes(); id++ {
		if err := n.c.Mend(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// partition cuts one node from the others; clients still reach it.
func partition(n *nemesis, ctx context.Context) (func() error, error) {
	return n.cutOff(ctx, n.victim(ctx))
}

func cutLeader(n *nemesis, ctx context.Context) (func() error, error) {
	id, err := n.c.Leader(ctx)
	if err != nil {
		return nil, nil // there is none now
	}
	return n.cutOff(ctx, id)
}

// cutOff cuts one node from the others.
func (n *nemesis) cutOff(ctx context.Context, id int) (func() error, error) {
	n.did["partition"]++
	err := n.c.Cut(ctx, id, n.others(id)...)
	for _, o := range n.others(id) {
		if err == nil {
			err = n.c.Cut(ctx, o, id)
		}
	}
	return n.mendAll, ignoreEnd(ctx, err)
}

// oneWay makes one node deaf to the others, which still hear it, or mute.
func oneWay(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["one-way cut"]++
	id := n.victim(ctx)
	if n.rng.IntN(2) == 0 {
		return n.mendAll, ignoreEnd(ctx, n.c.Cut(ctx, id, n.others(id)...))
	}
	for _, o := range n.others(id) {
		if err := n.c.Cut(ctx, o, id); err != nil {
			return n.mendAll, ignoreEnd(ctx, err)
		}
	}
	return n.mendAll, nil
}

// bridge cuts two nodes from each other; the third still reaches both.
func bridge(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["bridge"]++
	between := n.others(1 + n.rng.IntN(n.c.Nodes()))
	err := n.c.Cut(ctx, between[0], between[1])
	if err == nil {
		err = n.c.Cut(ctx, between[1], between[0])
	}
	return n.mendAll, ignoreEnd(ctx, err)
}

// isolate cuts a node from everybody, clients too.
func isolate(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["isolation"]++
	id := n.victim(ctx)
	return func() error { return n.c.Rejoin(context.Background(), id) }, ignoreEnd(ctx, n.c.Isolate(ctx, id))
}

func pause(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["pause"]++
	id := n.victim(ctx)
	return func() error { return n.c.Resume(id) }, n.c.Pause(id)
}

func kill(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["kill"]++
	id := n.victim(ctx)
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return n.c.Restart(ctx, id)
	}, n.c.Kill(id)
}

// killBusy kills a leader that has commands on their way for sure, since every log is slow: the next one finds them
// in its log, and their clients ask again.
func killBusy(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["busy leader killed"]++
	slow := func(by time.Duration, nodes ...int) (err error) {
		for _, id := range nodes {
			err = errors.Join(err, n.c.Fault(id, cluster.FaultSlowSyncs, by))
		}
		return err
	}
	all := n.others(0)
	if err := slow(200*time.Millisecond, all...); err != nil {
		return func() error { return slow(0, all...) }, ignoreEnd(ctx, err)
	}
	n.rest(ctx, 300*time.Millisecond, 600*time.Millisecond)
	id, err := n.c.Leader(ctx)
	if err != nil {
		return func() error { return slow(0, all...) }, nil // there is none now
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return n.c.Restart(ctx, id)
	}, errors.Join(n.c.Kill(id), slow(0, n.others(id)...)) // soon, or the clients give up before there is a leader
}

func clockJump(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["clock jump"]++
	id := n.victim(ctx)
	by := []time.Duration{time.Second, -time.Second, 30 * time.Second, -30 * time.Second, time.Hour, -time.Hour}
	return func() error { return n.c.Fault(id, cluster.FaultClock, 0) }, n.c.Fault(id, cluster.FaultClock, by[n.rng.IntN(len(by))])
}

func slowDisk(n *nemesis, ctx context.Context) (func() error, error) {
	n.did["slow disk"]++
	id := n.victim(ctx)
	by := 20*time.Millisecond + time.Duration(n.rng.Int64N(int64(400*time.Millisecond)))
	return func() error { return n.c.Fault(id, cluster.FaultSlowSyncs, 0) }, n.c.Fault(id, cluster.FaultSlowSyncs, by)
}

// ignoreEnd forgives what failed because the run is over.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
