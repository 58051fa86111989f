package perf

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// lookupClients ask at a time, each on a connection of its own.
	lookupClients = 8
	// fewFiles are what there is to be looked up in a namespace that is empty but for them.
	fewFiles = 1000
	// heapEvery is how many entries of a listing lie between two looks at the heap.
	heapEvery = 64 << 10
)

// namespaceTurns loads a namespace and prepares its turns: a start of three servers
// on it, lookups in it and in an empty one, and a listing, after which they end.
func (b *metaBench) namespaceTurns(ctx context.Context) ([]turn, error) {
	few, err := b.fewNames(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.load(ctx); err != nil {
		return nil, err
	}
	records := strconv.Itoa(b.cfg.Inodes)
	base := b.rep.row(Labels{"op": "lookup", "state": "empty"}, nil)
	loaded := b.rep.row(Labels{"op": "lookup", "state": "loaded", "records": records}, base)
	loaded.compare = []Metric{IOPS}
	return []turn{
		{b.rep.row(Labels{"op": "start", "records": records}, nil), b.startBulk},
		{base, func(ctx context.Context) (Values, error) { return b.lookups(ctx, b.cluster, few) }},
		{loaded, func(ctx context.Context) (Values, error) { return b.lookups(ctx, b.bulk, b.bulkNames()) }},
		{b.rep.row(Labels{"op": "readdir", "records": strconv.Itoa(b.cfg.Entries)}, nil), b.list},
	}, nil
}

// fewNames makes some files in the empty namespace.
func (b *metaBench) fewNames(ctx context.Context) (func(*rand.Rand) (cfs.Ino, string), error) {
	all, err := b.users.atLeast(ctx, 1)
	if err != nil {
		return nil, err
	}
	for i := range fewFiles {
		if _, err := all[0].c.Create(ctx, cfs.Cred{}, all[0].dir, BulkFile(i), cfs.ModeRegular|0o644, 0, "", true); err != nil {
			return nil, err
		}
	}
	dir := all[0].dir
	return func(rng *rand.Rand) (cfs.Ino, string) { return dir, BulkFile(rng.IntN(fewFiles)) }, nil
}

// load makes the servers of the large namespace: they are started once, empty, for
// what else a server has, and then get their state.
func (b *metaBench) load(ctx context.Context) (err error) {
	if b.cfg.Load == nil {
		return cfs.Errorf("load a namespace", cfs.Usage, "nobody to do it")
	}
	if b.bulk, err = newVoters(b.cfg.Cfs, filepath.Join(b.dir, "loaded")); err != nil {
		return err
	}
	b.bulk.notes = b.rep.note
	if err := errors.Join(b.bulk.startAll(ctx), b.bulk.stop()); err != nil {
		return err
	}
	n := BulkNamespace{ClusterID: votersID, Voters: voters, Files: b.cfg.Inodes - b.cfg.Entries, Listed: b.cfg.Entries}
	for i := range voters {
		dir := b.bulk.raftDir(i)
		if err := os.RemoveAll(dir); err != nil {
			return cfs.E("remove "+dir, cfs.KindOf(err), err)
		}
		n.Dirs = append(n.Dirs, dir)
	}
	b.cfg.Progress.say("loading %d inodes", b.cfg.Inodes)
	return b.cfg.Load(ctx, n)
}

// startBulk starts the servers of the large namespace; it ends with the first
// answer to a lookup.
func (b *metaBench) startBulk(ctx context.Context) (Values, error) {
	begun := time.Now()
	if err := b.bulk.startAll(ctx); err != nil {
		return nil, err
	}
	b.bulkFew = b.bulkFew[:0]
	err := poll(ctx, "look a name up", stateTimeout, func() (bool, error) {
		lead, err := b.bulk.leader(ctx)
		if err != nil {
			return false, err
		}
		err = question(ctx, b.bulk.addrs[lead], func(ctx context.Context, conn *wire.Conn) error {
			_, err := lookUp(ctx, conn, cfs.RootIno, BulkDir(0))
			return err
		})
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	v := Values{StartSeconds: time.Since(begun).Seconds()}
	most, err := b.bulk.memory()
	v[ServerMemory] = float64(most)
	return v, errors.Join(err, b.findDirs(ctx))
}

// findDirs looks up the directories.
func (b *metaBench) findDirs(ctx context.Context) error {
	lead, err := b.bulk.leader(ctx)
	if err != nil {
		return err
	}
	conn, err := wire.Dial(ctx, b.bulk.addrs[lead], wire.DialConfig{Hello: wire.Identity{Name: "cfs-perf"}})
	if err != nil {
		return err
	}
	for i := range (b.cfg.Inodes - b.cfg.Entries) / BulkDirFiles {
		ino, err := lookUp(ctx, conn, cfs.RootIno, BulkDir(i))
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		b.bulkFew = append(b.bulkFew, ino)
	}
	return conn.Close()
}

// bulkNames picks names of the large namespace at random.
func (b *metaBench) bulkNames() func(*rand.Rand) (cfs.Ino, string) {
	return func(rng *rand.Rand) (cfs.Ino, string) {
		return b.bulkFew[rng.IntN(len(b.bulkFew))], BulkFile(rng.IntN(BulkDirFiles))
	}
}

// lookUp asks a leader for a name: no cache of a client is between.
func lookUp(ctx context.Context, conn *wire.Conn, dir cfs.Ino, name string) (cfs.Ino, error) {
	var pb wirepb.Answer
	q := cfs.Query{Kind: cfs.QueryLookup, Dir: dir, Name: name}
	if _, err := conn.Call(ctx, wire.OpQuery, wire.QueryToPB(&q), nil, &pb, nil); err != nil {
		return 0, err
	}
	a, err := wire.AnswerFromPB(&pb)
	if err == nil && a.Kind != cfs.KindOK {
		err = cfs.Errorf("look up "+name, a.Kind, "it should be there")
	}
	if err != nil {
		return 0, err
	}
	return a.Attr.Ino, nil
}

// lookups looks names up at the leader, several at a time.
func (b *metaBench) lookups(ctx context.Context, v *voterSet, pick func(*rand.Rand) (cfs.Ino, string)) (out Values, err error) {
	lead, err := v.leader(ctx)
	if err != nil {
		return nil, err
	}
	var steps []step
	for i := range lookupClients {
		conn, err := wire.Dial(ctx, v.addrs[lead], wire.DialConfig{Hello: wire.Identity{Name: "cfs-perf"}})
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		rng := rand.New(rand.NewPCG(b.cfg.Seed, uint64(i)))
		steps = append(steps, func() (int, error) {
			dir, name := pick(rng)
			_, err := lookUp(ctx, conn, dir, name)
			return 1, err
		})
	}
	before, err := v.cpu()
	if err != nil {
		return nil, err
	}
	if out, err = drive(ctx, steps, 0, time.Duration(b.cfg.Runtime)); err != nil {
		return nil, err
	}
	after, err := v.cpu()
	if err != nil {
		return nil, err
	}
	out[ServerCPU] = micros(after-before) / (out[IOPS] * time.Duration(b.cfg.Runtime).Seconds())
	return out, nil
}

// list reads the large directory from its begin to its end, and ends the servers.
func (b *metaBench) list(ctx context.Context) (_ Values, err error) {
	defer func() { err = errors.Join(err, b.bulk.stop()) }()
	c, err := dialUser(ctx, b.bulk.addrs)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close(ctx)) }()
	v, err := b.listed(ctx, c)
	if err != nil {
		return nil, err
	}
	memory, err := b.bulk.memory()
	v[ServerMemory] = float64(memory)
	return v, err
}

// listed reads the large directory through c.
func (b *metaBench) listed(ctx context.Context, c *client.Client) (Values, error) {
	a, err := c.Lookup(ctx, cfs.RootIno, BulkList)
	if err != nil {
		return nil, err
	}
	start, most := heapBytes(), int64(0)
	begun := time.Now()
	d, err := c.OpenDir(ctx, a.Ino)
	if err != nil {
		return nil, err
	}
	n := 0
	for ; ; n++ {
		if n%heapEvery == 0 {
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			most = max(most, int64(mem.HeapAlloc))
		}
		e, ok, err := d.At(ctx, uint64(n))
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if want := BulkFile(n); e.Name != want {
			return nil, cfs.Errorf("list "+BulkList, cfs.Corrupt, "entry %d is %q, not %q", n, e.Name, want)
		}
	}
	took := time.Since(begun)
	if n != b.cfg.Entries {
		return nil, cfs.Errorf("list "+BulkList, cfs.Corrupt, "%d entries, want %d", n, b.cfg.Entries)
	}
	return Values{IOPS: float64(n) / took.Seconds(), ClientMemory: float64(max(most-start, 0))}, nil
}
