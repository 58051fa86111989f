package raftmeta

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Node is one voter's metadata service. Its methods may be called by any goroutine.
type Node struct {
	cfg     Config
	log     *slog.Logger
	metrics *Metrics
	lock    *os.File
	loop    *loop
	state   state
	incoming
	peers    atomic.Pointer[map[cfs.NodeID]*peer]
	roster   atomic.Pointer[roster]
	standing standing
	disk     disk

	lead    atomic.Pointer[leadership]
	duties  atomic.Pointer[duties] // while this node leads and has applied all before its term
	indexes struct {
		committed, applied, first atomic.Uint64
		end                       atomic.Uint64 // the log's last, written or about to be
		last                      uint64        // of the log at the start
	}
	tokens   atomic.Uint64
	waiting  atomic.Int64 // proposals in flight
	mapNow   atomic.Pointer[mapState]
	checking sync.Mutex // held while the state is checked
	activity activity
	bell     bell // rings when entries have been applied

	background sync.WaitGroup // duties, flushes, snapshots on their way out
	stop       chan struct{}  // closed by Close
	done       chan struct{}  // closed when the loop has ended
	failure    atomic.Pointer[error]
	closeOnce  sync.Once
	closeErr   error
}

// leadership is who leads, as Raft last said.
type leadership struct {
	leader cfs.NodeID // 0: nobody known
	mine   bool
	term   uint64
}

type mapState struct {
	m       *cfs.Map
	changed chan struct{} // closed when there is a newer one
}

// state is the store, which an installed snapshot replaces.
type state struct {
	mu        sync.RWMutex // held for reading while a view is open
	store     kv.Store     // nil after Close
	name      string       // its directory
	replacing atomic.Bool  // a long look at the state is to end
}

// view runs fn on a view of the present state.
func (s *state) view(fn func(kv.View) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.store == nil {
		return cfs.E("read state", cfs.Closed, nil)
	}
	v := s.store.View()
	return errors.Join(fn(v), v.Close())
}

// replace puts a new store in and closes the old one, once its views are closed.
func (s *state) replace(store kv.Store, name string) error {
	s.replacing.Store(true)
	s.mu.Lock()
	old := s.store
	s.store, s.name = store, name
	s.replacing.Store(false)
	s.mu.Unlock()
	if old == nil {
		return nil
	}
	return old.Close()
}

// Map is the cluster's layout as this node has applied it. It is immutable.
func (n *Node) Map() *cfs.Map { return n.mapNow.Load().m }

// MapChanged is closed when Map has become a newer one than at the call. Take
// the channel first, then the map, then wait.
func (n *Node) MapChanged() <-chan struct{} { return n.mapNow.Load().changed }

// loadMap publishes the layout in r.
func (n *Node) loadMap(r fsm.Reader) error {
	m, err := fsm.ReadMap(r)
	if err != nil {
		return err
	}
	if err := n.loadRoster(m, r); err != nil {
		return err
	}
	old := n.mapNow.Swap(&mapState{m: m, changed: make(chan struct{})})
	if old != nil {
		close(old.changed)
	}
	return nil
}

// Leads reports that this node leads the voters, as far as it knows.
func (n *Node) Leads() bool { return n.lead.Load().mine }

// Done is closed when the node has ended, by Close or by a failure.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is the failure that ended the node, nil while it runs and after a clean Close.
func (n *Node) Err() error {
	if p := n.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// addrOf is a voter's address, "" for none.
func (n *Node) addrOf(id cfs.NodeID) string {
	if r := n.roster.Load(); r != nil {
		return r.addrs[id]
	}
	return ""
}

// notLeader is the error for what only the leader does.
func (n *Node) notLeader(op string) error {
	l := n.lead.Load()
	if l.mine {
		return cfs.Errorf(op, cfs.Unavailable, "this node has just been elected and catches up")
	}
	return wire.NotLeaderError(op, n.addrOf(l.leader))
}

// unavailable is the error of a node that has ended.
func (n *Node) unavailable(op string) error {
	if err := n.Err(); err != nil {
		return cfs.Errorf(op, cfs.Unavailable, "node %d has stopped: %w", n.cfg.NodeID, err)
	}
	return cfs.Errorf(op, cfs.Unavailable, "node %d is stopping", n.cfg.NodeID)
}

// Status is this node's own view of the cluster.
func (n *Node) Status() *wirepb.StatusReply {
	l, m := n.lead.Load(), n.Map()
	r := &wirepb.StatusReply{
		ClusterId:    n.cfg.ClusterID,
		NodeId:       uint32(n.cfg.NodeID),
		LeaderId:     uint32(l.leader),
		LeaderAddr:   n.addrOf(l.leader),
		Term:         l.term,
		CommitIndex:  n.indexes.committed.Load(),
		AppliedIndex: n.indexes.applied.Load(),
		FirstIndex:   n.indexes.first.Load(),
		LastIndex:    n.indexes.end.Load(),
		Voter:        n.votes(),
	}
	if d := n.duties.Load(); d != nil {
		m = d.withReported(m)
	}
	r.Map = wire.MapToPB(m)
	err := n.state.view(func(v kv.View) error {
		u, err := fsm.ReadUsage(v)
		if err != nil {
			return err
		}
		r.Sessions = u.Sessions
		a, err := fsm.Read(v, &cfs.Query{Kind: cfs.QueryStatfs})
		if err != nil {
			return err
		}
		r.Statfs = wire.StatfsToPB(&a.Statfs)
		held, err := fsm.Read(v, &cfs.Query{Kind: cfs.QueryUsage})
		if err != nil {
			return err
		}
		for _, g := range held.Usage {
			r.Usage = append(r.Usage, wire.UsageToPB(g))
		}
		return nil
	})
	if err != nil {
		n.log.Warn("status without the state", "err", err)
	}
	return r
}

// Close hands leadership over where it can within a short time, makes the state
// durable and ends the node. Commands and queries that wait fail with cfs.Unavailable.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.transfer()
		close(n.stop)
		<-n.done
		n.background.Wait()
		n.closeErr = n.release()
	})
	return n.closeErr
}

// transfer asks the most advanced voter to take over and waits until it has.
func (n *Node) transfer() {
	if !n.lead.Load().mine {
		return
	}
	if !n.loop.do(n.loop.transfer) {
		return
	}
	deadline := time.NewTimer(transferTimeout)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for n.lead.Load().mine {
		select {
		case <-poll.C:
		case <-deadline.C:
			return
		case <-n.done:
			return
		}
	}
}

// release gives back what Open took: it runs after the loop and everything in
// the background have ended.
func (n *Node) release() error {
	err := n.incoming.discard()
	if n.loop != nil && n.loop.wal != nil {
		if n.Err() == nil {
			err = errors.Join(err, n.loop.saveHardState(false))
		}
		err = errors.Join(err, n.loop.wal.Close())
	}
	if n.state.store != nil {
		if n.Err() == nil {
			err = errors.Join(err, n.state.store.Flush())
		}
		err = errors.Join(err, n.closeState())
	}
	return errors.Join(err, n.lock.Close())
}

// closeState closes the store. Without room on the disk Pebble tries its last flush until there is some, and
// what it holds is in the log: that is not waited for.
func (n *Node) closeState() error {
	if cfs.KindOf(n.Err()) != cfs.NoSpace {
		return n.state.replace(nil, "")
	}
	done := make(chan error, 1)
	go func() { done <- n.state.replace(nil, "") }()
	select {
	case err := <-done:
		return err
	case <-time.After(closePatience):
		return cfs.Errorf("close state in "+n.cfg.Dir, cfs.NoSpace, "it is left as it is: the next start finds the rest in the log")
	}
}
