package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/wire"
)

func TestNodeKilledDuringWrites(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	data := randomBytes(5, 30<<20)
	f := create(t, c, "f")
	dead := b.nodes[2]
	third := len(data) / 3
	writeIn(t, f, data[:third], 0, 256<<10)
	must(t, f.Sync(t.Context()))
	dead.stop()
	writeIn(t, f, data[third:2*third], uint64(third), 256<<10)
	f.n.sealAll()
	for c.Stats().putRetries.Load() == 0 { // nothing can be put anywhere: every group has a shard there
		time.Sleep(time.Millisecond)
	}
	b.setState(dead, cfs.StateDown)
	must(t, f.Sync(t.Context()))
	writeIn(t, f, data[2*third:], uint64(2*third), 256<<10)
	must(t, f.Sync(t.Context()))
	must(t, f.Close(t.Context()))
	last := b.extents(f.n.ino)
	if g := b.group(last[len(last)-1].PG).Geometry; g != cfs.Geo2p2 {
		t.Errorf("the last stripe is of %v, want 2+2", g)
	}
	b.checkStripes(t, c)
	degraded := b.mount(t)
	check(t, degraded, "f", data)
	if degraded.Stats().ShardsReconstructed() == 0 || degraded.Stats().CRCFailures() != 0 {
		t.Errorf("%d shards reconstructed, %d checksums wrong", degraded.Stats().ShardsReconstructed(), degraded.Stats().CRCFailures())
	}
	// A node that the cluster thinks is down is asked when nothing else is left.
	b.nodes[0].stop()
	dead.start()
	p := make([]byte, 1<<20)
	g := open(t, b.mount(t), "f", unix.O_RDONLY)
	n, err := g.Read(t.Context(), p, 0)
	must(t, err)
	// The first stripe is of 4+2: four shards are left with the node that is back.
	same(t, "from the node that is down by the map", p[:n], data[:len(p)])
	must(t, g.Close(t.Context()))
}

func TestReadsReconstruct(t *testing.T) {
	b := newBed(t, 3)
	data := randomBytes(6, 9<<20+12345)
	ino := put(t, b.mount(t), "f", data)
	shards := b.dataShards(ino)
	for _, c := range []struct {
		name   string
		hurt   func(id shardID)
		failed uint64
	}{{"corrupt", b.spoil, 1}, {"gone", b.drop, 0}} {
		t.Run(c.name, func(t *testing.T) {
			m := b.mount(t)
			f := open(t, m, "f", unix.O_RDONLY)
			got := make([]byte, len(data))
			if _, err := f.Read(t.Context(), got, 0); err != nil || m.Stats().ShardsReconstructed() != 0 && c.name == "corrupt" {
				t.Fatalf("before: %v, %d reconstructed", err, m.Stats().ShardsReconstructed())
			}
			reconstructed, failed := m.Stats().ShardsReconstructed(), m.Stats().CRCFailures()
			c.hurt(shards[0])
			shards = shards[1:]
			clear(got)
			_, err := f.Read(t.Context(), got, 0)
			must(t, err)
			same(t, "read", got, data)
			extra := uint64(0)
			if c.name == "gone" {
				extra = failed // the corrupt shard of the run before counts once for each attempt to find the lost one
			}
			if got := m.Stats().CRCFailures() - failed; c.name == "corrupt" && got != c.failed {
				t.Errorf("%d checksum failures, want %d", got, c.failed)
			}
			if got := m.Stats().ShardsReconstructed() - reconstructed; got < 1 || c.name == "corrupt" && got != 1 {
				t.Errorf("%d shards reconstructed, want 1 (and %d)", got, extra)
			}
			must(t, f.Close(t.Context()))
		})
	}
	// Small ranges of a hurt shard, across its edges.
	c := b.mount(t)
	f := open(t, c, "f", unix.O_RDONLY)
	for off := uint64(0); off < 2<<20; off += 99_991 {
		p := make([]byte, 5000)
		n, err := f.Read(t.Context(), p, off)
		must(t, err)
		same(t, fmt.Sprint("at ", off), p[:n], data[off:off+5000])
	}
	must(t, f.Close(t.Context()))
	// More than can be made up for: an error, never wrong bytes.
	for _, id := range shards[:3] {
		b.spoil(id)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	f = open(t, b.mount(t), "f", unix.O_RDONLY)
	if n, err := f.Read(ctx, make([]byte, len(data)), 0); err == nil || n != 0 {
		t.Errorf("three of a stripe's shards corrupt: %d bytes, %v", n, err)
	}
}

// TestFreedStripe: a reader with old extents gets the new bytes, though a device that
// held the old ones is down at the same time.
func TestFreedStripe(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprint("down=", down), func(t *testing.T) {
			b := newBed(t, 3)
			one, two := b.mount(t), b.mount(t)
			old, data := randomBytes(1, 1<<20), randomBytes(2, 1<<20)
			ino := put(t, one, "f", old)
			held := open(t, two, "f", unix.O_RDONLY)
			must(t, func() error { _, err := held.Read(t.Context(), make([]byte, 10), 0); return err }())
			gone := b.dataShards(ino)[0].dev.Node()
			f := open(t, one, "f", unix.O_WRONLY)
			write(t, f, data, 0)
			must(t, f.Close(t.Context()))
			_, err := one.SetAttr(t.Context(), me, ino, cfs.SetAtimeNow, cfs.Attr{}) // carries the floor
			must(t, err)
			if b.reclaim() == 0 {
				t.Fatal("nothing was freed")
			}
			if down {
				b.nodes[gone-1].stop()
			}
			got := make([]byte, 1<<20)
			ctx, cancel := context.WithTimeout(t.Context(), maxUnreadable*3/4) // it does not try the old stripe until it gives up
			defer cancel()
			_, err = held.Read(ctx, got, 0)
			must(t, err)
			same(t, "the old handle", got, data)
			must(t, held.Close(t.Context()))
		})
	}
}

// TestLostReplies: every third command is carried out and nobody hears of it.
func TestLostReplies(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	seen := map[uint64]int{}
	var mu sync.Mutex
	hook(&b.after, func(cmd *cfs.Command) bool {
		mu.Lock()
		defer mu.Unlock()
		seen[cmd.Seq]++
		return cmd.Session != 0 && cmd.Seq%3 == 0 && seen[cmd.Seq] == 1
	})
	const files = 15
	for i := range files {
		name := fmt.Sprint(i)
		f := create(t, c, name, unix.O_APPEND) // exclusive: a second time would be an error
		for j := range 3 {
			write(t, f, fmt.Appendf(nil, "%d,", j), 0)
			must(t, f.Sync(ctx))
		}
		must(t, f.Close(ctx))
		_, err := c.Link(ctx, me, f.n.ino, cfs.RootIno, name+"-link")
		must(t, err)
		must(t, c.Rename(ctx, me, cfs.RootIno, name, cfs.RootIno, name+"-new", 0))
		must(t, c.Unlink(ctx, me, cfs.RootIno, name+"-link"))
	}
	hook(&b.after, func(*cfs.Command) bool { return false })
	retried := 0
	for _, n := range seen {
		if n > 1 {
			retried++
		}
	}
	if retried < files {
		t.Errorf("%d commands were sent twice", retried)
	}
	if got := len(b.read(&cfs.Query{Kind: cfs.QueryReadDir, Dir: cfs.RootIno}).Entries); got != files {
		t.Errorf("%d files, want %d", got, files)
	}
	for i := range files {
		check(t, c, fmt.Sprint(i, "-new"), []byte("0,1,2,"))
	}
	b.checkStripes(t, c)
}

func TestLeaderMoves(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	lead := func(i int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.leader = i
	}
	for i := range 6 {
		lead(i % 2)
		put(t, c, fmt.Sprint(i), []byte("x"))
	}
	// While nobody leads each names the other: no storm of requests.
	lead(-1)
	before := b.requests.Load()
	done := make(chan error, 1)
	go func() {
		_, err := c.Create(t.Context(), me, cfs.RootIno, "waited", cfs.ModeRegular, 0, "", true)
		done <- err
	}()
	time.Sleep(300 * time.Millisecond)
	if n := b.requests.Load() - before; n < 2 || n > 200 {
		t.Errorf("%d requests while nobody led", n)
	}
	lead(1)
	must(t, <-done)
	// The leader dies; the other takes over.
	b.metas[1].stop()
	lead(0)
	put(t, c, "after", []byte("y"))
	check(t, c, "after", []byte("y"))
}

func TestStaleEpochs(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	// At the node: the client's map is older than the node's.
	b.bumpEpochs(b.nodes[1])
	data := randomBytes(7, 6<<20)
	ino := put(t, c, "node", data)
	// At the commit: the epoch passes between the puts and the commit.
	var once sync.Once
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Kind == cfs.OpWrite {
			once.Do(func() { b.bumpEpochs(b.nodes[0]) })
		}
	})
	put(t, c, "commit", data)
	if c.Stats().putRetries.Load() < 2 {
		t.Errorf("%d stripes put again", c.Stats().putRetries.Load())
	}
	m := b.mount(t)
	check(t, m, "node", data)
	check(t, m, "commit", data)
	for _, x := range b.extents(ino) {
		if b.group(x.PG).Epoch < 3 {
			t.Errorf("stripe %v was put under an epoch before the last", x.Stripe)
		}
	}
	b.checkStripes(t, c)
}

// TestNodesBehindTheMap do not know a new group yet: writes wait, reads go on.
func TestNodesBehindTheMap(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	data := randomBytes(7, 3<<20)
	put(t, c, "old", data)
	for _, n := range b.nodes {
		n.blind.Store(true)
	}
	f := create(t, c, "new")
	write(t, f, data, 0)
	f.n.sealAll()
	for c.Stats().putRetries.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	check(t, c, "old", data)
	for _, n := range b.nodes {
		n.blind.Store(false)
	}
	must(t, f.Close(t.Context()))
	check(t, b.mount(t), "new", data)
}

func TestInlineFull(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	b.inlineFull.Store(true)
	data := randomBytes(2, 5000)
	ino := put(t, c, "f", data)
	if x := b.extents(ino); len(x) != 1 || x[0].Kind != cfs.ExtentStripe || b.group(x[0].PG).Geometry != cfs.Geo1p2 {
		t.Errorf("the file is in %+v", x)
	}
	check(t, b.mount(t), "f", data)
	b.checkStripes(t, c)
}

// TestNoSpace: the error meets whoever asks first, once; what came behind the failed
// write is not held up.
func TestNoSpace(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	data := randomBytes(2, 100_000)
	put(t, c, "there", data)
	for _, n := range b.nodes {
		n.noSpace.Store(true)
	}
	f, g := create(t, c, "f"), create(t, c, "g")
	write(t, f, data, 0)
	f.n.sealAll()
	write(t, f, []byte("inline"), 1<<20)
	write(t, g, data, 0)
	wantKind(t, f.Sync(ctx), cfs.NoSpace)
	must(t, f.Sync(ctx))
	wantKind(t, g.Sync(ctx), cfs.NoSpace)
	must(t, g.Close(ctx))
	check(t, c, "there", data) // full devices can be read
	if c.Stats().ShardsReconstructed() != 0 || c.suspects.n.Load() != 0 {
		t.Errorf("%d shards of full devices reconstructed, %d devices suspected", c.Stats().ShardsReconstructed(), c.suspects.n.Load())
	}
	for _, n := range b.nodes {
		n.noSpace.Store(false)
	}
	write(t, f, data, 0)
	must(t, f.Sync(ctx))
	must(t, f.Close(ctx))
	want := make([]byte, 1<<20, 1<<20+6)
	copy(want, data)
	check(t, b.mount(t), "f", append(want, "inline"...))
	b.checkStripes(t, c)
}

// TestEveryHandleTellsOfAFailure once: nobody's close or fsync hides it from another.
func TestEveryHandleTellsOfAFailure(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	data := randomBytes(2, 100_000)
	writer := create(t, c, "f")
	other, reader := open(t, c, "f", unix.O_WRONLY), open(t, c, "f", unix.O_RDONLY)
	for _, n := range b.nodes {
		n.noSpace.Store(true)
	}
	write(t, writer, data, 0)
	must(t, writer.n.flush(ctx))
	must(t, reader.Close(ctx))
	late := open(t, c, "f", unix.O_WRONLY) // nobody has told: whoever comes now does too
	wantKind(t, other.Close(ctx), cfs.NoSpace)
	wantKind(t, late.Sync(ctx), cfs.NoSpace)
	wantKind(t, writer.Sync(ctx), cfs.NoSpace)
	must(t, writer.Sync(ctx))
	later := open(t, c, "f", unix.O_WRONLY)
	must(t, later.Close(ctx))
	must(t, late.Close(ctx))
	must(t, writer.Close(ctx))
}

// TestSyncedWriteFails itself, whole: the error must not wait for an fsync that
// nobody will call.
func TestSyncedWriteFails(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	must(t, create(t, c, "f").Close(t.Context()))
	f := open(t, c, "f", unix.O_WRONLY|unix.O_SYNC)
	for _, n := range b.nodes {
		n.noSpace.Store(true)
	}
	_, err := f.Write(t.Context(), randomBytes(2, 100_000), 0)
	wantKind(t, err, cfs.NoSpace)
	must(t, f.Close(t.Context()))
}

func TestSessionExpiry(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	big := randomBytes(3, 200_000)
	for _, data := range [][]byte{[]byte("small"), big} {
		f := create(t, c, fmt.Sprint(len(data)))
		write(t, f, data, 0)
		old := c.session.Load()
		b.expire(old.id)
		if err := f.Sync(ctx); cfs.Errno(err) != unix.EIO {
			t.Fatalf("sync after the expiry: %v", err)
		}
		must(t, f.Sync(ctx))
		if c.session.Load() == old {
			t.Error("the session is still the old one")
		}
		if a, err := f.Attr(ctx); err != nil || a.Size != 0 {
			t.Errorf("what was lost still shows: size %d, %v", a.Size, err)
		}
		write(t, f, data, 0)
		must(t, f.Close(ctx))
		check(t, c, fmt.Sprint(len(data)), data)
	}
	// What does not depend on the session is done in the new one.
	b.expire(c.session.Load().id)
	f := create(t, c, "new")
	b.expire(c.session.Load().id)
	must(t, f.Allocate(ctx, 0, 0, 4096))
	must(t, f.Close(ctx))
	// The heartbeat finds out too.
	f = create(t, c, "beat")
	write(t, f, []byte("lost"), 0)
	old := c.session.Load()
	b.expire(old.id)
	for c.session.Load() == old {
		time.Sleep(time.Millisecond)
	}
	if _, err := f.Write(ctx, []byte("x"), 0); cfs.Errno(err) != unix.EIO {
		t.Errorf("write after the loss: %v", err)
	}
	write(t, f, []byte("kept"), 0)
	must(t, f.Close(ctx))
	check(t, b.mount(t), "beat", []byte("kept"))
	b.checkStripes(t, c)
}

// TestSessionExpiryDuringCommits: many inodes have commits and puts in flight when
// the session goes. Each fails at most once, no memory is used twice, and one new
// session takes over.
func TestSessionExpiryDuringCommits(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	gate, waiting := make(chan struct{}), atomic.Int32{}
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Kind == cfs.OpWrite {
			waiting.Add(1)
			<-gate
		}
	})
	var files []*File
	for i := range 20 {
		f := create(t, c, fmt.Sprint(i))
		write(t, f, bytes.Repeat([]byte{byte(i)}, 1000+10_000*(i%3)), 0)
		f.n.sealAll()
		write(t, f, bytes.Repeat([]byte{byte(i)}, 3000), 1<<20)
		files = append(files, f)
	}
	for waiting.Load() < 20 {
		time.Sleep(time.Millisecond)
	}
	old := c.session.Load()
	b.expire(old.id)
	for c.session.Load() == old { // the heartbeat notices while the commits wait
		time.Sleep(time.Millisecond)
	}
	must(t, c.opening.take(t.Context())) // until all files know it
	c.opening.done()
	failed := 0
	for i, f := range files { // new writes take the memory of the old
		if _, err := f.Write(t.Context(), bytes.Repeat([]byte{0xff}, 2000), 0); err == nil {
			t.Errorf("file %d: nobody was told", i)
		}
		write(t, f, bytes.Repeat([]byte{byte(100 + i)}, 2000), 0)
	}
	open()
	for _, f := range files {
		if f.Sync(t.Context()) != nil {
			failed++
		}
	}
	if failed > 0 {
		t.Errorf("%d files failed twice", failed)
	}
	all, err := b.sessions()
	must(t, err)
	if len(all) != 2 { // the bed's and the client's
		t.Errorf("%d sessions are open", len(all))
	}
	for i, f := range files {
		must(t, f.Close(t.Context()))
		check(t, c, fmt.Sprint(i), bytes.Repeat([]byte{byte(100 + i)}, 2000))
	}
	b.checkStripes(t, c)
}

// TestManyCommandsBehindOne: the cluster keeps a bounded number of replies, so
// sequences must not run away from the oldest command.
func TestManyCommandsBehindOne(t *testing.T) {
	if maxOutstanding != fsm.MaxOutstanding {
		t.Fatalf("maxOutstanding is %d, the state machine's is %d", maxOutstanding, fsm.MaxOutstanding)
	}
	b := newBed(t, 3)
	c := b.mount(t)
	gate := make(chan struct{})
	slow := make(chan error, 1)
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Name == "slow" {
			<-gate
		}
	})
	go func() {
		_, err := c.Create(t.Context(), me, cfs.RootIno, "slow", cfs.ModeRegular, 0, "", true)
		slow <- err
	}()
	var did atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for did.Add(1) < maxOutstanding+500 {
				if _, err := c.SetAttr(t.Context(), me, cfs.RootIno, cfs.SetAtimeNow, cfs.Attr{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for at := int64(-1); did.Load() != at; time.Sleep(100 * time.Millisecond) { // until they wait or are through
		at = did.Load()
	}
	close(gate)
	wg.Wait()
	must(t, <-slow)
}

func TestTimeouts(t *testing.T) {
	const limit = 300 * time.Millisecond
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		t.Cleanup(cancel)
		return ctx
	}
	b := newBed(t, 3)
	c := b.mount(t)
	c.shares.Store(false)
	f := create(t, c, "f")
	kept, err := c.Create(t.Context(), me, cfs.RootIno, "kept", cfs.ModeRegular, 0, "", true)
	must(t, err)
	for _, m := range b.metas {
		m.stop()
	}
	_, err = c.Create(soon(), me, cfs.RootIno, "x", cfs.ModeRegular, 0, "", true)
	wantKind(t, err, cfs.Timeout)
	write(t, f, []byte("late"), 0)
	wantKind(t, f.Sync(soon()), cfs.Timeout)
	_, err = c.SetAttr(t.Context(), me, kept.Ino, cfs.SetMtime, cfs.Attr{MtimeNS: 104})
	must(t, err) // kept back
	c.inodes.find(kept.Ino).leave()
	time.Sleep(2 * limit) // nobody's patience counts for what the client does by itself
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Create(ctx, me, cfs.RootIno, "y", cfs.ModeRegular, 0, "", true)
	wantKind(t, err, cfs.Canceled)
	for _, m := range b.metas {
		m.start()
	}
	for { // the connections are made again within the pool's backoff, not ours
		_, err := c.Create(soon(), me, cfs.RootIno, "again", cfs.ModeRegular, 0, "", false)
		if err == nil {
			break
		}
		wantKind(t, err, cfs.Timeout)
	}
	if err := f.Close(soon()); err != nil {
		wantKind(t, err, cfs.Timeout)
	}
	other := b.mount(t)
	check(t, other, "f", []byte("late"))
	if a, err := other.GetAttr(t.Context(), kept.Ino); err != nil || a.MtimeNS != 104 {
		t.Errorf("what was acknowledged and not committed in time: mtime %d, %v", a.MtimeNS, err)
	}
}

func TestConnecting(t *testing.T) {
	b := newBed(t, 3)
	_, err := New(t.Context(), Config{})
	wantKind(t, err, cfs.Usage)
	_, err = New(t.Context(), Config{Servers: []string{b.metas[0].addr}, MemoryBytes: 1})
	wantKind(t, err, cfs.Usage)
	_, err = New(t.Context(), Config{Servers: []string{b.metas[0].addr}, ClusterID: "other"})
	wantKind(t, err, cfs.WrongCluster)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = New(ctx, Config{Servers: []string{"127.0.0.1:1"}})
	wantKind(t, err, cfs.Timeout)
	c := b.mount(t, func(cfg *Config) { cfg.Servers = []string{"127.0.0.1:1", b.metas[1].addr} })
	if c.ClusterID() != testCluster {
		t.Errorf("cluster %q", c.ClusterID())
	}
	if _, err := c.meta.Conn(t.Context(), b.metas[0].addr); err != nil {
		t.Error(err)
	}
	// A server of another cluster at a known address is not taken for this one.
	other := &endpoint{t: t, id: wire.Identity{ClusterID: "other"}, handler: serveFunc(func(context.Context, *wire.Request) (wire.Response, error) {
		return wire.Response{}, errors.New("not me")
	})}
	other.start()
	defer other.stop()
	_, err = c.meta.Conn(t.Context(), other.addr)
	wantKind(t, err, cfs.WrongCluster)
}

// TestSlowNode: reads wait for a node that answers late.
func TestSlowNode(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	data := randomBytes(1, 5<<20)
	b.nodes[1].delay.Store(int64(20 * time.Millisecond))
	put(t, c, "f", data)
	check(t, b.mount(t), "f", data)
}

// TestSilentNode neither answers nor refuses: writes to it end when the cluster
// has agreed that it is down, not when the attempt does.
func TestSilentNode(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	b.nodes[1].delay.Store(int64(time.Hour))
	data := randomBytes(1, 5<<20)
	f := create(t, c, "f")
	write(t, f, data, 0)
	f.n.sealAll()
	deadline := time.Now().Add(10 * time.Second)
	for c.stats.shardsPut.Load() < 8 { // of two stripes, on the nodes that answer
		if time.Now().After(deadline) {
			t.Fatalf("%d shards put", c.stats.shardsPut.Load())
		}
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	b.setState(b.nodes[1], cfs.StateDown)
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > putAttempt/2 {
		t.Errorf("%v after the node was down: the write waited for its attempt", took)
	}
	check(t, b.mount(t), "f", data)
}
