package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// attemptTimeout bounds one attempt to reach one voter.
const attemptTimeout = time.Second

// leader calls whoever leads the voters. It remembers who answered last, and
// follows hints; this node's own replica is reached in the same way.
type leader struct {
	pool  *wire.Pool
	seeds []string

	mu   sync.Mutex
	addr string // believed to lead
	next int    // the seed to try after it
}

func newLeader(pool *wire.Pool, seeds []string) *leader {
	return &leader{pool: pool, seeds: seeds, addr: seeds[0], next: 1 % len(seeds)}
}

func (l *leader) believed() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}

// moveOn gives up an address for the hint, or for the next seed without one.
func (l *leader) moveOn(from, hint string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addr != from {
		return // somebody else has moved on already
	}
	if hint != "" && hint != from {
		l.addr = hint
		return
	}
	l.addr = l.seeds[l.next]
	l.next = (l.next + 1) % len(l.seeds)
}

// call asks the leader, each voter tried once and one hint followed at most. An
// answer that another voter would give too is returned as it is.
func (l *leader) call(ctx context.Context, op wire.Op, req, resp proto.Message) error {
	var err error
	for range len(l.seeds) + 1 {
		addr := l.believed()
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		_, err = l.pool.Call(attempt, addr, op, req, nil, resp, nil)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		var remote *wire.RemoteError
		hint := ""
		if errors.As(err, &remote) {
			hint = remote.Leader
		}
		switch cfs.KindOf(err) {
		case cfs.NotLeader, cfs.Unavailable, cfs.Timeout, cfs.Canceled, cfs.Closed, cfs.Overloaded, cfs.IO:
			l.moveOn(addr, hint)
		default:
			return err
		}
	}
	return err
}
