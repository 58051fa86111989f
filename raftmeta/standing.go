package raftmeta

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	replicaName   = "REPLICA"
	replicaHeader = "claudefs-replica 1"

	// standTimeout bounds one round of asking the other members.
	standTimeout = 500 * time.Millisecond
	// standPause is the rhythm of asking while it is not known where this replica stands.
	standPause = 50 * time.Millisecond
	// strayAfter is the rhythm of asking while this replica hears of no leader: it may have been removed.
	strayAfter = time.Second
	// standPatience is how long an empty directory waits for the others before its log says so.
	standPatience = 5 * time.Second
	// alonePatience is how long who is the only voter by its directory, and knew of others, waits for them to say so too.
	alonePatience = 10 * time.Second
)

// standing is what the cluster thinks of this replica's data. Before that is known
// the replica takes no part: whoever comes with an empty directory under the id of a
// voter would vote as if what that voter acknowledged had never been.
//
// Each start has a name of its own, which the leader records once the name recorded
// before is among those that the directory knows. So a directory that is empty or an
// older copy is found out as soon as there is a leader. Until then:
//
//   - A directory that has voted before takes part without a leader, or a cluster that was
//     off could not start.
//   - An empty one takes part once a majority of the seeds says that it is empty too and
//     nobody that it is not, or when the leader has recorded it.
//   - That of an only voter takes part at once, unless the server knew of other voters: they are asked first.
type standing struct {
	admitted atomic.Bool // takes part
	known    atomic.Bool // the leader has recorded this start
	blank    bool        // the directory has never voted
	acked    cfs.UUID    // the name that is known to be recorded, zero for none
	next     cfs.UUID    // the name of this start

	// Of the goroutine that asks.
	since time.Time           // when it began to
	agree map[string]struct{} // who knows no other voters than this one
}

func (s *standing) encode() []byte {
	body := fmt.Sprintf("%s\nacked %x\nnext %x\n", replicaHeader, s.acked[:], s.next[:])
	return fmt.Appendf(nil, "%scrc %08x\n", body, crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)))
}

func (s *standing) decode(b []byte) error {
	body, crc, ok := strings.Cut(string(b), "crc ")
	var sum uint32
	if _, err := fmt.Sscanf(crc, "%08x\n", &sum); !ok || err != nil || sum != crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)) {
		return errors.New("checksum does not match")
	}
	var acked, next string
	if _, err := fmt.Sscanf(body, replicaHeader+"\nacked %s\nnext %s\n", &acked, &next); err != nil {
		return err
	}
	for _, f := range []struct {
		text string
		to   *cfs.UUID
	}{{acked, &s.acked}, {next, &s.next}} {
		raw, err := hex.DecodeString(f.text)
		if err != nil || len(raw) != len(f.to) {
			return fmt.Errorf("name %q", f.text)
		}
		copy(f.to[:], raw)
	}
	return nil
}

// open reads the names that the directory has, and gives this start one.
func (s *standing) open(dir string) error {
	path := filepath.Join(dir, replicaName)
	raw, err := os.ReadFile(path)
	if err == nil {
		if err := s.decode(raw); err != nil {
			return cfs.E("read "+path, cfs.Corrupt, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return cfs.E("read "+path, cfs.KindOf(err), err)
	}
	if s.next != s.acked {
		return nil // the name of an earlier start, which may have been recorded
	}
	if _, err := rand.Read(s.next[:]); err != nil {
		return cfs.E("write "+path, cfs.KindOf(err), err)
	}
	return s.save(dir)
}

func (s *standing) save(dir string) error {
	return replaceFile(filepath.Join(dir, replicaName), s.encode())
}

// TakesPart reports that this replica votes, and acknowledges, as far as it is a member.
func (n *Node) TakesPart() bool { return n.standing.admitted.Load() }

// stand finds out where this replica stands, and goes on asking where it hears of no
// leader. It ends with the node.
func (n *Node) stand() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-n.stop:
		case <-n.done:
		case <-ctx.Done():
		}
		cancel()
	}()
	s, told := &n.standing, false
	s.since, s.agree = time.Now(), map[string]struct{}{}
	for pause := standPause; ; {
		if n.lead.Load().leader == 0 || !s.known.Load() {
			pause = standPause
			if err := n.askStanding(ctx); err != nil {
				n.loop.do(func() error { return err })
				return
			}
		}
		if s.known.Load() {
			pause = strayAfter
		} else if !s.admitted.Load() && !told && time.Since(s.since) > standPatience {
			told = true
			n.log.Warn("this replica's directory is empty, and it takes no part before a leader or a majority of the seeds has been heard", "dir", n.cfg.Dir)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// askStanding asks once. An error is what the cluster has against this replica.
func (n *Node) askStanding(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, standTimeout)
	defer cancel()
	s := &n.standing
	if n.alone() && !s.admitted.Load() {
		return n.askKnown(ctx)
	}
	err := n.record(ctx)
	switch kind := cfs.KindOf(err); {
	case err == nil:
		s.known.Store(true)
		if s.acked != s.next {
			s.acked = s.next
			if err := s.save(n.cfg.Dir); err != nil {
				return err
			}
		}
		n.admit()
	case kind == cfs.NotFound:
		return ErrRemoved
	case kind == cfs.Conflict:
		return n.untrusted(err)
	case ctx.Err() != nil && n.stopping():
	case !s.blank:
		n.admit()
	case n.allBlank(ctx):
		n.admit()
		if n.roster.Load().members[0].ID == n.cfg.NodeID { // somebody has to be the first
			n.loop.do(n.loop.raft.Campaign)
		}
	}
	return nil
}

func (n *Node) untrusted(err error) error {
	return cfs.Errorf("replica in "+n.cfg.Dir, cfs.Conflict,
		"%w: it is not trusted; on another server run \"cfs admin voter remove %d\", empty the directory and start again, then \"cfs admin voter add %d\"",
		err, n.cfg.NodeID, n.cfg.NodeID)
}

// askKnown asks the servers that were the other voters, for a directory that has this node as the only one. They are
// heard, all or for as long as that takes, before it leads on its own: a directory from before they came would
// else make a second cluster.
func (n *Node) askKnown(ctx context.Context) error {
	s := &n.standing
	answers := make([]wirepb.StatusReply, len(n.cfg.Known))
	n.askEach(ctx, n.cfg.Known, func(i int, r *wirepb.StatusReply) { answers[i].Map, answers[i].ClusterId = r.Map, r.ClusterId })
	for i, addr := range n.cfg.Known {
		m := answers[i].GetMap()
		if m == nil || answers[i].ClusterId != n.cfg.ClusterID {
			continue
		}
		others := slices.ContainsFunc(m.Nodes, func(v *wirepb.Node) bool { return v.Voter && cfs.NodeID(v.Id) != n.cfg.NodeID })
		if others && m.Version > n.indexes.last {
			return n.untrusted(cfs.Errorf("", cfs.Conflict, "the server at %s knows other voters, since index %d, and this log ends at %d: the directory is an older copy", addr, m.Version, n.indexes.last))
		}
		s.agree[addr] = struct{}{}
	}
	if len(s.agree) < len(n.cfg.Known) && time.Since(s.since) < alonePatience {
		return nil
	}
	n.admit()
	n.loop.do(n.loop.raft.Campaign)
	return nil
}

// askEach asks servers for their status at once; took runs for one at a time.
func (n *Node) askEach(ctx context.Context, addrs []string, took func(i int, r *wirepb.StatusReply)) {
	var mu sync.Mutex
	var group sync.WaitGroup
	for i, addr := range addrs {
		group.Go(func() {
			var r wirepb.StatusReply
			if _, err := n.cfg.Pool.Call(ctx, addr, wire.OpStatus, &wirepb.Empty{}, nil, &r, nil); err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			took(i, &r)
		})
	}
	group.Wait()
}

func (n *Node) admit() {
	if !n.standing.admitted.Swap(true) {
		n.log.Debug("this replica takes part", "node", n.cfg.NodeID)
	}
}

// record has the leader record this start. It is NotFound for no member, and Conflict
// where another directory is known.
func (n *Node) record(ctx context.Context) error {
	s := &n.standing
	req := &wirepb.Replica{Next: s.next[:], LastIndex: math.MaxUint64}
	if s.acked != (cfs.UUID{}) {
		req.Had = s.acked[:]
	}
	if !s.admitted.Load() {
		req.LastIndex = n.indexes.last
	}
	if n.lead.Load().mine {
		return n.recordReplica(ctx, n.cfg.NodeID, req)
	}
	peers := n.peersNow()
	errs := make(chan error, len(peers))
	for _, p := range peers {
		go func() {
			hb := &wirepb.Heartbeat{Replica: req}
			_, err := n.cfg.Pool.Call(ctx, p.addr, wire.OpHeartbeat, hb, nil, &wirepb.HeartbeatReply{}, nil)
			var remote *wire.RemoteError
			if errors.As(err, &remote) && remote.Kind == cfs.NotLeader && remote.Leader != "" && remote.Leader != p.addr {
				// The leader may be no member that this directory knows.
				_, err = n.cfg.Pool.Call(ctx, remote.Leader, wire.OpHeartbeat, hb, nil, &wirepb.HeartbeatReply{}, nil)
			}
			errs <- err
		}()
	}
	var err error = cfs.Errorf("replica", cfs.NotLeader, "no leader answers")
	for range peers {
		e := <-errs
		if kind := cfs.KindOf(e); e == nil || kind == cfs.NotFound || kind == cfs.Conflict {
			err = e
		}
	}
	return err
}

// recordReplica is the leader's side.
func (n *Node) recordReplica(ctx context.Context, id cfs.NodeID, r *wirepb.Replica) error {
	const op = "replica"
	if len(r.Next) != len(cfs.UUID{}) || len(r.Had) > maxHad || id == 0 {
		return cfs.Errorf(op, cfs.BadRequest, "it has no proper name")
	}
	if n.duties.Load() == nil {
		return n.notLeader(op)
	}
	of, _, err := n.progressOf(ctx)
	if err != nil {
		return err
	}
	if p := of[id]; p.match > r.LastIndex {
		return cfs.Errorf(op, cfs.Conflict, "its log ends at index %d, and it has acknowledged %d: the directory of node %d is empty or an older copy", r.LastIndex, p.match, id)
	}
	reply, err := n.own(ctx, cfs.Op{Kind: cfs.OpSetReplica, Node: cfs.Node{ID: id}, Value: slices.Concat(r.Next, r.Had)})
	switch {
	case err != nil:
		return err
	case reply.Kind == cfs.Conflict:
		return cfs.Errorf(op, cfs.Conflict, "the cluster knows node %d by another directory: this one is empty, or an older copy", id)
	case reply.Kind != cfs.KindOK:
		return cfs.Errorf(op, reply.Kind, "node %d is neither voter nor learner", id)
	}
	return nil
}

// maxHad bounds the names that a replica says it had before, in bytes.
const maxHad = 16 * len(cfs.UUID{})

// allBlank reports that the cluster is being made: a majority of its seeds, with this one, has never
// voted, and none that answers has; or every one of them answers, and none has anything in its log (the
// first election of a cluster may have been cut off), so nothing was ever committed.
func (n *Node) allBlank(ctx context.Context) bool {
	if !n.votes() {
		return false // a learner has no say
	}
	var addrs []string
	for _, m := range n.roster.Load().members {
		if p := n.member(m.ID); p != nil {
			addrs = append(addrs, p.addr)
		}
	}
	blank, empty, used := 1, 1, 0
	n.askEach(ctx, addrs, func(_ int, r *wirepb.StatusReply) {
		switch {
		case !isEmpty(r):
			used++
		case r.Term == 0:
			blank++
			empty++
		default:
			empty++
		}
	})
	all := len(addrs) + 1
	return used == 0 && (empty == blank && blank > all/2 || empty == all)
}

// isEmpty reports that a server says of itself that it votes and that its log has nothing.
func isEmpty(r *wirepb.StatusReply) bool {
	return r.Voter && r.LastIndex == firstIndex && r.AppliedIndex == firstIndex && r.CommitIndex == firstIndex && r.GetMap().GetVersion() == 0
}
