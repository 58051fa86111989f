package perf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/internal/rawdisk"
)

const (
	// rawLogBytes is the file of the raw log, rawCommitBytes one commit in it.
	rawLogBytes    = 64 << 20
	rawCommitBytes = 256
	// statFiles are looked at in turns.
	statFiles = 64
	// commitsPerSync is more than what one sync can make durable while 64 clients wait.
	commitsPerSync = 4096
)

// createClients are the numbers of clients that create.
func createClients() []int { return []int{1, 8, 64} }

// rawLog is the least that a durable log can do: it appends and syncs.
type rawLog struct {
	f   *os.File
	off int64
	buf [rawCommitBytes]byte
}

func newRawLog(ctx context.Context, path string) (*rawLog, error) {
	if err := rawdisk.Prewrite(ctx, path, rawLogBytes); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, cfs.E("open "+path, cfs.KindOf(err), err)
	}
	return &rawLog{f: f}, nil
}

func (r *rawLog) close() error { return r.f.Close() }

func (r *rawLog) commit() (int, error) {
	if r.off+rawCommitBytes > rawLogBytes {
		r.off = 0
	}
	_, err := r.f.WriteAt(r.buf[:], r.off)
	if err == nil {
		err = unix.Fdatasync(int(r.f.Fd()))
	}
	if err != nil {
		return 0, cfs.E("append to a log", cfs.KindOf(err), err)
	}
	r.off += rawCommitBytes
	return 1, nil
}

// users are the clients, each with a directory of its own.
type users struct {
	servers []string
	all     []*user
	names   atomic.Uint64
}

type user struct {
	c   *client.Client
	dir cfs.Ino
}

// userTTL lets attributes be answered from the cache for as long as that is allowed.
const userTTL = client.MaxCacheTTL

// atLeast makes clients until there are n.
func (u *users) atLeast(ctx context.Context, n int) ([]*user, error) {
	for len(u.all) < n {
		one, err := u.connect(ctx)
		if err != nil {
			return nil, err
		}
		u.all = append(u.all, one)
	}
	return u.all[:n], nil
}

// dialUser is a client of its own session.
func dialUser(ctx context.Context, servers []string) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	return client.New(ctx, client.Config{Servers: servers, ClusterID: votersID, Name: "cfs-perf", CacheTTL: userTTL,
		Logger: slog.New(slog.DiscardHandler)})
}

func (u *users) connect(ctx context.Context) (*user, error) {
	c, err := dialUser(ctx, u.servers)
	if err != nil {
		return nil, err
	}
	a, err := c.Create(ctx, cfs.Cred{}, cfs.RootIno, fmt.Sprintf("u%d", u.names.Add(1)), cfs.ModeDir|0o755, 0, "", true)
	if err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	return &user{c, a.Ino}, nil
}

func (u *users) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	var err error
	for _, one := range u.all {
		err = errors.Join(err, one.c.Close(ctx))
	}
	u.all = nil
	return err
}

// create makes a file of a name that is new.
func (u *users) create(ctx context.Context, one *user) (cfs.Attr, error) {
	name := "f" + strconv.FormatUint(u.names.Add(1), 36)
	return one.c.Create(ctx, cfs.Cred{}, one.dir, name, cfs.ModeRegular|0o644, 0, "", true)
}

func (b *metaBench) createTurns(ctx context.Context) (turns []turn, err error) {
	if b.raw, err = newRawLog(ctx, filepath.Join(b.dir, "log")); err != nil {
		return nil, err
	}
	raw := b.rep.row(Labels{"op": "log"}, nil)
	turns = append(turns, turn{raw, func(ctx context.Context) (Values, error) {
		return drive(ctx, []step{b.raw.commit}, 0, time.Duration(b.cfg.Runtime))
	}})
	for _, n := range createClients() {
		all, err := b.users.atLeast(ctx, n)
		if err != nil {
			return nil, err
		}
		row := b.rep.row(Labels{"op": "create", "depth": strconv.Itoa(n)}, raw)
		row.compare = []Metric{IOPS}
		turns = append(turns, turn{row, func(ctx context.Context) (Values, error) { return b.createRound(ctx, all) }})
	}
	return turns, nil
}

// createRound has each of the clients create files, one after the other, and
// counts what that cost the servers.
func (b *metaBench) createRound(ctx context.Context, all []*user) (Values, error) {
	var commits atomic.Uint64
	var steps []step
	for _, one := range all {
		steps = append(steps, func() (int, error) {
			_, err := b.users.create(ctx, one)
			commits.Add(1)
			return 1, err
		})
	}
	leader, err := b.cluster.leader(ctx)
	if err != nil {
		return nil, err
	}
	cpu, err := b.cluster.cpu()
	if err != nil {
		return nil, err
	}
	before, err := b.cluster.syncs()
	if err != nil {
		return nil, err
	}
	v, err := drive(ctx, steps, 0, time.Duration(b.cfg.Runtime))
	if err != nil {
		return nil, err
	}
	after, err := b.cluster.cpu()
	if err != nil {
		return nil, err
	}
	n := float64(commits.Load())
	v[ServerCPU] = micros(after-cpu) / n
	return v, b.countSyncs(v, leader, before, commits.Load())
}

// countSyncs adds what the voters have synced for each commit.
func (b *metaBench) countSyncs(v Values, leader int, before []uint64, commits uint64) error {
	after, err := b.cluster.syncs()
	if err != nil || before == nil || after == nil {
		return err
	}
	return b.judgeSyncs(v, leader, before, after, commits)
}

// judgeSyncs fails when a voter has taken part in commits without syncing its log.
func (b *metaBench) judgeSyncs(v Values, leader int, before, after []uint64, commits uint64) error {
	least := after[0] - before[0]
	for i := range after {
		n := after[i] - before[i]
		if n < max(1, commits/commitsPerSync) {
			return cfs.Errorf("count syncs", cfs.Corrupt, "server %d has synced its log %d times for %d commits: they are not durable", i+1, n, commits)
		}
		least = min(least, n)
	}
	v[LeaderSyncs] = float64(after[leader]-before[leader]) / float64(commits)
	v[LeastSyncs] = float64(least) / float64(commits)
	return nil
}

func (b *metaBench) statTurns(ctx context.Context) ([]turn, error) {
	all, err := b.users.atLeast(ctx, 1)
	if err != nil {
		return nil, err
	}
	one := all[0]
	var files []cfs.Ino
	for range statFiles {
		a, err := b.users.create(ctx, one)
		if err != nil {
			return nil, err
		}
		files = append(files, a.Ino)
	}
	// A look at the clock for each would be a part of what is measured.
	look := func() (int, error) {
		for _, f := range files {
			if _, err := one.c.GetAttr(ctx, f); err != nil {
				return 0, err
			}
		}
		return len(files), nil
	}
	return []turn{{b.rep.row(Labels{"op": "stat"}, nil), func(ctx context.Context) (Values, error) {
		v, err := drive(ctx, []step{look}, 0, time.Duration(b.cfg.Runtime))
		for _, m := range []Metric{P50, P99, P999} { // they would be those of all files together
			delete(v, m)
		}
		return v, err
	}}}, nil
}

// The failover: how many clients create meanwhile, how long before the leader is killed,
// and how long they go on after it was, at least and until each has gone on.
const (
	failoverClients = 8
	failoverBefore  = 500 * time.Millisecond
	failoverAfter   = 2 * time.Second
)

func (b *metaBench) failoverTurns(ctx context.Context) ([]turn, error) {
	all, err := b.users.atLeast(ctx, failoverClients)
	if err != nil {
		return nil, err
	}
	return []turn{{b.rep.row(Labels{"op": "failover"}, nil), func(ctx context.Context) (Values, error) { return b.failover(ctx, all) }}}, nil
}

// failover kills the leader under load. The gap is the longest time in which a client
// has finished nothing; an error that a client sees fails the bench.
func (b *metaBench) failover(ctx context.Context, all []*user) (Values, error) {
	leader, err := b.cluster.leader(ctx)
	if err != nil {
		return nil, err
	}
	var killed atomic.Int64 // when, Unix ns
	gaps := make([]time.Duration, len(all))
	kill := func() error {
		if err := pause(ctx, failoverBefore); err != nil {
			return err
		}
		err := b.cluster.kill(leader)
		killed.Store(time.Now().UnixNano())
		return err
	}
	err = inParallel(len(all)+1, func(i int, stop *atomic.Bool) error {
		if i == len(all) {
			return kill()
		}
		last := time.Now()
		for !stop.Load() {
			if _, err := b.users.create(ctx, all[i]); err != nil {
				return err
			}
			now := time.Now()
			gaps[i], last = max(gaps[i], now.Sub(last)), now
			if at := killed.Load(); at != 0 && now.Sub(time.Unix(0, at)) > failoverAfter {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	longest := gaps[0]
	for _, g := range gaps {
		longest = max(longest, g)
	}
	if err := b.cluster.start(leader); err != nil {
		return nil, err
	}
	return Values{GapSeconds: longest.Seconds()}, b.cluster.caughtUp(ctx, leader)
}

// caughtUp returns when a server has applied what the others had when it was asked.
func (v *voterSet) caughtUp(ctx context.Context, i int) error {
	var want uint64
	return poll(ctx, "wait for server "+strconv.Itoa(i+1), stateTimeout, func() (bool, error) {
		if want == 0 {
			lead, err := v.leader(ctx)
			if err != nil {
				return false, err
			}
			r, err := askStatus(ctx, v.addrs[lead])
			if err != nil {
				return false, err
			}
			want = r.AppliedIndex
		}
		r, err := askStatus(ctx, v.addrs[i])
		return err == nil && r.AppliedIndex >= want, err
	})
}
