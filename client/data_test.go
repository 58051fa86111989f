package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

var sizes = []int{0, 1, 4095, 4096, 4097, 16384, 16385, 65536, 65537, 1<<20 - 1, 4 << 20, 4<<20 + 1, 10 << 20}

func TestSizes(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	data := map[int][]byte{}
	for i, n := range sizes {
		data[n] = randomBytes(uint64(i), n)
		f := create(t, c, fmt.Sprint(n))
		writeIn(t, f, data[n], 0, 128<<10)
		same(t, fmt.Sprintf("%d bytes before the commit", n), readAll(t, f, 1<<20), data[n])
		must(t, f.Sync(t.Context()))
		same(t, fmt.Sprintf("%d bytes after it", n), readAll(t, f, 100_000), data[n])
		must(t, f.Close(t.Context()))
		wantKind(t, f.Close(t.Context()), cfs.Closed)
		a, err := c.GetAttr(t.Context(), f.n.ino)
		must(t, err)
		if a.Size != uint64(n) || a.Blocks != uint64(n+511)/512 {
			t.Errorf("%d bytes: size %d, %d blocks", n, a.Size, a.Blocks)
		}
	}
	unmount(t, c)
	c = b.mount(t)
	for _, n := range sizes {
		check(t, c, fmt.Sprint(n), data[n])
	}
	if got := c.Stats().ShardsReconstructed() + c.Stats().CRCFailures(); got != 0 {
		t.Errorf("%d shards were not read as they are", got)
	}
	kinds := map[int]cfs.Geometry{16385: cfs.Geo1p2, 65536: cfs.Geo1p2, 65537: cfs.Geo4p2, 4 << 20: cfs.Geo4p2}
	for n, geo := range kinds {
		a, err := c.Lookup(t.Context(), cfs.RootIno, fmt.Sprint(n))
		must(t, err)
		if x := b.extents(a.Ino); len(x) != 1 || x[0].Kind != cfs.ExtentStripe || b.group(x[0].PG).Geometry != geo {
			t.Errorf("%d bytes are in %+v, want one stripe of %v", n, x, geo)
		}
	}
	a, err := c.Lookup(t.Context(), cfs.RootIno, "16384")
	must(t, err)
	if x := b.extents(a.Ino); len(x) != 1 || x[0].Kind != cfs.ExtentInline {
		t.Errorf("16384 bytes are in %d extents of kind %d", len(x), x[0].Kind)
	}
}

// TestFiveDevices: stripes of 3+2, whose shards do not divide a chunk's memory evenly.
func TestFiveDevices(t *testing.T) {
	b := newBed(t, 3)
	b.apply(0, cfs.Op{Kind: cfs.OpSetDevice, Device: cfs.Device{ID: cfs.MakeDeviceID(2, 1), UUID: cfs.UUID{2, 1}, State: cfs.StateDown}})
	b.plan()
	c := b.mount(t)
	data := map[int][]byte{}
	for i, n := range []int{65537, 128 << 10, 1 << 20, 3 << 20, 3<<20 + 1, 4 << 20} {
		data[n] = randomBytes(uint64(i), n)
		ino := put(t, c, fmt.Sprint(n), data[n])
		if g := b.group(b.extents(ino)[0].PG).Geometry; g != cfs.Geo3p2 {
			t.Errorf("%d bytes are in a stripe of %v", n, g)
		}
	}
	c = b.mount(t)
	for n := range data {
		check(t, c, fmt.Sprint(n), data[n])
	}
}

func TestSparse(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "s")
	const end = 5 << 30
	write(t, f, []byte("end"), end)
	write(t, f, bytes.Repeat([]byte{7}, 100_000), 1<<20)
	for range 2 { // in memory, then committed
		p := bytes.Repeat([]byte{9}, 200_000)
		n, err := f.Read(t.Context(), p, 1<<20-50_000)
		must(t, err)
		want := make([]byte, 200_000)
		copy(want[50_000:], bytes.Repeat([]byte{7}, 100_000))
		same(t, "around the data", p[:n], want)
		n, err = f.Read(t.Context(), p, end-1)
		must(t, err)
		same(t, "at the end", p[:n], []byte("\x00end"))
		for _, s := range []struct {
			off    uint64
			whence int
			want   uint64
		}{{0, unix.SEEK_DATA, 1 << 20}, {0, unix.SEEK_HOLE, 0}, {1 << 20, unix.SEEK_HOLE, 1<<20 + 100_000},
			{2 << 20, unix.SEEK_DATA, end}, {end, unix.SEEK_HOLE, end + 3}, {end + 1, unix.SEEK_DATA, end + 1}} {
			if got, err := f.Seek(t.Context(), s.off, s.whence); err != nil || got != s.want {
				t.Errorf("seek %d from %d: %d, %v, want %d", s.whence, s.off, got, err, s.want)
			}
		}
	}
	a, err := f.Attr(t.Context())
	must(t, err)
	if a.Size != end+3 || a.Blocks > 300 {
		t.Errorf("size %d, %d blocks", a.Size, a.Blocks)
	}
	must(t, f.Allocate(t.Context(), 0, end+3, 1<<20))
	for _, off := range []uint64{end + 3, end + 3 + 1<<20, 1 << 40} { // a trailing hole, the end, beyond
		if _, err := f.Seek(t.Context(), off, unix.SEEK_DATA); cfs.Errno(err) != unix.ENXIO {
			t.Errorf("SEEK_DATA from %d: %v, want ENXIO", off, err)
		}
	}
	must(t, f.Close(t.Context()))
}

// model is a file as it must be.
type model struct{ b []byte }

func (m *model) write(p []byte, off int) {
	if need := off + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	copy(m.b[off:], p)
}

func (m *model) truncate(n int) {
	if n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	m.b = m.b[:n:n]
}

func (m *model) zero(off, n int) { clear(m.b[min(off, len(m.b)):min(off+n, len(m.b))]) }

const modelSize = 3 << 20

// step does one random thing to the file and to its model.
func (m *model) step(t *testing.T, c *Client, rng *rand.Rand, handles, appenders []*File) error {
	ctx := t.Context()
	f := handles[rng.IntN(len(handles))]
	off := rng.IntN(modelSize)
	if rng.IntN(2) == 0 {
		off = rng.IntN(max(1, len(m.b)))
	}
	n := 1 + rng.IntN(1<<(1+rng.IntN(18)))
	switch op := rng.IntN(100); {
	case op < 40:
		p := randomBytes(rng.Uint64(), n)
		if got, err := f.Write(ctx, p, uint64(off)); err != nil || got != n {
			return fmt.Errorf("write: %d, %w", got, err)
		}
		m.write(p, off)
	case op < 48:
		if len(m.b) > modelSize {
			return nil
		}
		p := randomBytes(rng.Uint64(), n)
		if got, err := appenders[rng.IntN(len(appenders))].Write(ctx, p, 0); err != nil || got != n {
			return fmt.Errorf("append: %d, %w", got, err)
		}
		m.write(p, len(m.b))
	case op < 53:
		a, err := c.SetAttr(ctx, me, f.n.ino, cfs.SetSize, cfs.Attr{Size: uint64(off)})
		if err != nil || a.Size != uint64(off) {
			return fmt.Errorf("truncate to %d: %d, %w", off, a.Size, err)
		}
		m.truncate(off)
	case op < 58:
		if err := f.Allocate(ctx, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, uint64(off), uint64(n)); err != nil {
			return fmt.Errorf("punch: %w", err)
		}
		m.zero(off, n)
	case op < 63:
		keep := uint32(rng.IntN(2)) * unix.FALLOC_FL_KEEP_SIZE
		if err := f.Allocate(ctx, unix.FALLOC_FL_ZERO_RANGE|keep, uint64(off), uint64(n)); err != nil {
			return fmt.Errorf("zero range: %w", err)
		}
		m.zero(off, n)
		if keep == 0 {
			m.truncate(max(len(m.b), off+n))
		}
	case op < 66:
		if err := f.Allocate(ctx, 0, uint64(off), uint64(n)); err != nil {
			return fmt.Errorf("allocate: %w", err)
		}
		m.truncate(max(len(m.b), off+n))
	case op < 72:
		return f.Sync(ctx)
	case op < 75:
		f.n.sealAll()
	default:
		p := bytes.Repeat([]byte{0xee}, n)
		got, err := f.Read(ctx, p, uint64(off))
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if want := m.b[min(off, len(m.b)):min(off+n, len(m.b))]; !bytes.Equal(p[:got], want) {
			return fmt.Errorf("read of %d bytes at %d of %d: %d bytes, not as written", n, off, len(m.b), got)
		}
	}
	return nil
}

// holes checks that a seek for data skips nothing that was written.
func (m *model) holes(t *testing.T, f *File) {
	t.Helper()
	for at := 0; at < len(m.b); {
		d, err := f.Seek(t.Context(), uint64(at), unix.SEEK_DATA)
		next := int(d)
		if cfs.Errno(err) == unix.ENXIO {
			next = len(m.b)
		} else {
			must(t, err)
		}
		if len(bytes.Trim(m.b[at:next], "\x00")) > 0 {
			t.Fatalf("SEEK_DATA from %d says %d but there is data before", at, next)
		}
		if next == len(m.b) {
			return
		}
		h, err := f.Seek(t.Context(), d, unix.SEEK_HOLE)
		must(t, err)
		if h <= d || h > uint64(len(m.b)) {
			t.Fatalf("SEEK_HOLE from %d says %d of %d", d, h, len(m.b))
		}
		at = int(h)
	}
}

// TestModel does random things to files, each with several handles, in parallel,
// and compares with bytes in memory; then with a new client.
func TestModel(t *testing.T) {
	b := newBed(t, 3)
	models := make([]model, 4)
	for round := range 3 {
		c := b.mount(t, func(cfg *Config) { cfg.MemoryBytes = MinMemoryBytes })
		var wg sync.WaitGroup
		for i := range models {
			m := &models[i]
			name := fmt.Sprint("m", i)
			if round == 0 {
				must(t, create(t, c, name).Close(t.Context()))
			} else {
				check(t, c, name, m.b)
			}
			var handles, appenders []*File
			for range 3 {
				handles = append(handles, open(t, c, name, unix.O_RDWR))
				appenders = append(appenders, open(t, c, name, unix.O_RDWR|unix.O_APPEND))
			}
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), uint64(round)))
				for step := range 100 {
					if err := m.step(t, c, rng, handles, appenders); err != nil {
						t.Errorf("file %d, round %d, step %d: %v", i, round, step, err)
						break
					}
				}
				m.holes(t, handles[0])
				same(t, name, readAll(t, handles[1], 777_777), m.b)
				for _, f := range append(handles, appenders...) {
					if err := f.Close(context.Background()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		unmount(t, c)
	}
	c := b.mount(t)
	for i := range models {
		check(t, c, fmt.Sprint("m", i), models[i].b)
	}
	b.checkStripes(t, c)
}

// checkStripes finds the stripe table and the floor as they must be when nothing is
// in flight: exactly the stripes that files reference, everything settled.
func (b *bed) checkStripes(t *testing.T, c *Client) {
	t.Helper()
	s := c.session.Load()
	_, err := c.SetAttr(t.Context(), me, cfs.RootIno, cfs.SetAtimeNow, cfs.Attr{}) // carries the floor
	must(t, err)
	if got, want := b.floor(s.id), s.stripes.next; got != want {
		t.Errorf("the session's floor is %d, its next stripe %d", got, want)
	}
	all, err := b.sessions()
	must(t, err)
	for _, other := range all { // clients that are gone
		if other != s.id && other != b.sess {
			b.expire(other)
		}
	}
	want := map[cfs.StripeID]bool{}
	for _, e := range b.read(&cfs.Query{Kind: cfs.QueryReadDir, Dir: cfs.RootIno}).Entries {
		for _, x := range b.extents(e.Ino) {
			if x.Kind == cfs.ExtentStripe {
				want[x.Stripe] = true
			}
		}
	}
	got := b.stripeTable()
	for id := range got {
		if !want[id] {
			t.Errorf("stripe %v is in the table and in no file", id)
		}
	}
	for id := range want {
		if !got[id] {
			t.Errorf("stripe %v is in a file and not in the table", id)
		}
	}
	b.reclaim()
	b.mu.Lock()
	defer b.mu.Unlock()
	missing := 0
	for id := range want {
		if b.shards[shardID{dev: 0, stripe: id}] == nil {
			found := false
			for k := range b.shards {
				found = found || k.stripe == id
			}
			if !found {
				missing++
			}
		}
	}
	if missing > 0 {
		t.Errorf("%d stripes of files have no shard left after reclaim", missing)
	}
}

// TestSharedFile has goroutines write to interleaved blocks of one file.
func TestSharedFile(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	const block, blocks, writers = 10_000, 200, 4
	want := make([]byte, block*blocks)
	f := create(t, c, "f")
	var wg sync.WaitGroup
	for w := range writers {
		h := open(t, c, "f", unix.O_RDWR)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(9, uint64(w)))
			for range 2 * blocks {
				i := rng.IntN(blocks/writers)*writers + w
				p := randomBytes(rng.Uint64(), block)
				if _, err := h.Write(t.Context(), p, uint64(i*block)); err != nil {
					t.Error(err)
				}
				copy(want[i*block:], p)
				got := make([]byte, block)
				if _, err := h.Read(t.Context(), got, uint64(i*block)); err != nil || !bytes.Equal(got, p) {
					t.Errorf("block %d is not as just written: %v", i, err)
				}
				if rng.IntN(20) == 0 {
					if err := h.Sync(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
			if err := h.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	end := readAll(t, f, 1<<20)
	same(t, "in the client", end, want[:len(end)])
	must(t, f.Close(t.Context()))
	check(t, b.mount(t), "f", want[:len(end)])
}

func TestAppendersDoNotOverwrite(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	must(t, create(t, c, "log").Close(t.Context()))
	const writers, lines = 8, 100
	var wg sync.WaitGroup
	for w := range writers {
		f := open(t, c, "log", unix.O_WRONLY|unix.O_APPEND)
		wg.Go(func() {
			for i := range lines {
				line := append(bytes.Repeat([]byte{'.'}, 3000), fmt.Sprintf("%03d:%03d\n", w, i)...) // chunks grow
				if _, err := f.Write(t.Context(), line, 0); err != nil {
					t.Error(err)
				}
			}
			if err := f.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := readAll(t, open(t, c, "log", unix.O_RDONLY), 1<<20)
	seen := map[string]bool{}
	for _, l := range bytes.Split(bytes.TrimSuffix(got, []byte("\n")), []byte("\n")) {
		seen[string(l)] = true
	}
	if len(got) != writers*lines*3008 || len(seen) != writers*lines {
		t.Errorf("%d bytes, %d different lines", len(got), len(seen))
	}
}

// TestUnlinkOfAnotherThanCached: what is behind a name changes under a client that
// has it cached; what it has open stays, what it has not goes.
func TestUnlinkOfAnotherThanCached(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t, func(cfg *Config) { cfg.CacheTTL = MaxCacheTTL })
	other := b.mount(t)
	ctx := t.Context()
	put(t, c, "f", []byte("old"))
	data := randomBytes(1, 300_000)
	put(t, c, "g", data)
	g := open(t, c, "g", unix.O_RDONLY)
	_, err := c.Lookup(ctx, cfs.RootIno, "f") // cached as the old file
	must(t, err)
	must(t, other.Rename(ctx, me, cfs.RootIno, "g", cfs.RootIno, "f", 0))
	must(t, c.Unlink(ctx, me, cfs.RootIno, "f"))
	same(t, "unlinked by its own reader", readAll(t, g, 1<<20), data)
	must(t, g.Close(ctx))

	put(t, c, "f", []byte("old"))
	closed := put(t, c, "g", data)
	f := open(t, c, "f", unix.O_RDONLY)
	must(t, other.Rename(ctx, me, cfs.RootIno, "f", cfs.RootIno, "h", 0))
	must(t, other.Rename(ctx, me, cfs.RootIno, "g", cfs.RootIno, "f", 0))
	must(t, c.Unlink(ctx, me, cfs.RootIno, "f")) // not the one that is open
	if k := b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: closed}).Kind; k != cfs.Stale {
		t.Errorf("an inode that nobody has open is %v after its unlink, want stale", k)
	}
	must(t, f.Close(ctx))
	b.checkStripes(t, c)
}

func TestUnlinkedWhileOpen(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	data := randomBytes(1, 300_000)
	f := create(t, c, "gone")
	write(t, f, data, 0)
	must(t, c.Unlink(ctx, me, cfs.RootIno, "gone"))
	_, err := c.Lookup(ctx, cfs.RootIno, "gone")
	wantKind(t, err, cfs.NotFound)
	write(t, f, []byte("more"), 300_000)
	must(t, f.Sync(ctx))
	same(t, "unlinked", readAll(t, f, 1<<20), append(bytes.Clone(data), "more"...))
	a, err := f.Attr(ctx)
	must(t, err)
	if a.Nlink != 0 || a.Size != 300_004 {
		t.Errorf("%+v", a)
	}
	must(t, f.Close(ctx))
	if k := b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: f.n.ino}).Kind; k != cfs.Stale {
		t.Errorf("after the close the inode is %v, want stale", k)
	}
	_, err = c.GetAttr(ctx, f.n.ino)
	wantKind(t, err, cfs.Stale)

	// The same by a rename over it, with two handles.
	f = create(t, c, "old")
	write(t, f, data, 0)
	must(t, f.Sync(ctx))
	g := open(t, c, "old", unix.O_RDONLY)
	put(t, c, "new", []byte("new"))
	must(t, c.Rename(ctx, me, cfs.RootIno, "new", cfs.RootIno, "old", 0))
	check(t, c, "old", []byte("new"))
	same(t, "replaced", readAll(t, g, 1<<20), data)
	must(t, f.Close(ctx))
	same(t, "replaced, one handle left", readAll(t, g, 1<<20), data)
	must(t, g.Close(ctx))
	_, err = c.GetAttr(ctx, g.n.ino)
	wantKind(t, err, cfs.Stale)
	b.checkStripes(t, c)
}

func TestTimesAndSizesOfDirtyFiles(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	f := create(t, c, "f")
	write(t, f, []byte("hello"), 0)
	before, err := c.GetAttr(ctx, f.n.ino)
	must(t, err)
	looked, err := c.Lookup(ctx, cfs.RootIno, "f")
	must(t, err)
	if before.Size != 5 || looked.Size != 5 {
		t.Errorf("size %d by getattr, %d by lookup", before.Size, looked.Size)
	}
	must(t, f.Sync(ctx))
	after, err := c.GetAttr(ctx, f.n.ino)
	must(t, err)
	if after.MtimeNS != before.MtimeNS {
		t.Errorf("the commit moved the modification time from %d to %d", before.MtimeNS, after.MtimeNS)
	}
	write(t, f, []byte("!"), 5)
	a, err := c.SetAttr(ctx, me, f.n.ino, cfs.SetMtime, cfs.Attr{MtimeNS: 12345})
	must(t, err)
	if a.MtimeNS != 12345 || a.Size != 6 {
		t.Errorf("after setattr: %+v", a)
	}
	must(t, f.Sync(ctx)) // where it is owned close does not commit
	must(t, f.Close(ctx))
	if a := b.read(&cfs.Query{Kind: cfs.QueryGetAttr, Ino: f.n.ino}).Attr; a.MtimeNS != 12345 || a.Size != 6 {
		t.Errorf("after close: %+v", a)
	}
	g := open(t, c, "f", unix.O_WRONLY|unix.O_TRUNC)
	if a, err := g.Attr(ctx); err != nil || a.Size != 0 {
		t.Errorf("after O_TRUNC: size %d, %v", a.Size, err)
	}
	must(t, g.Close(ctx))
}

func TestLimitsOfWrites(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "f")
	_, err := f.Write(t.Context(), []byte("ab"), cfs.MaxFileSize-1)
	wantKind(t, err, cfs.TooLarge)
	write(t, f, []byte("a"), cfs.MaxFileSize-1)
	must(t, f.Sync(t.Context()))
	got := make([]byte, 10)
	if n, err := f.Read(t.Context(), got, cfs.MaxFileSize-2); err != nil || string(got[:n]) != "\x00a" {
		t.Errorf("at the end of the largest file: %q, %v", got[:n], err)
	}
	wantKind(t, f.Allocate(t.Context(), 0, cfs.MaxFileSize, 1), cfs.TooLarge)
	wantKind(t, f.Allocate(t.Context(), 0, 0, 0), cfs.Invalid)
	wantKind(t, f.Allocate(t.Context(), unix.FALLOC_FL_PUNCH_HOLE, 0, 1), cfs.Unsupported)
	wantKind(t, f.Allocate(t.Context(), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 1), cfs.Unsupported)
	must(t, f.Close(t.Context()))
}

// TestOverwriteOfManyExtents: one commit cannot replace as many rows, so it takes several.
func TestOverwriteOfManyExtents(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "f")
	for from := uint64(0); from < 10_000; from += 500 {
		op := cfs.Op{Kind: cfs.OpWrite, Ino: f.n.ino}
		for i := range uint64(500) {
			op.Extents = append(op.Extents, cfs.Extent{Off: from + i, Len: 1, Kind: cfs.ExtentInline, Inline: []byte{'x'}})
		}
		b.apply(b.sess, op)
	}
	f.n.dropExtents()
	same(t, "read over several answers", readAll(t, f, 16<<10)[:0], nil)
	data := randomBytes(3, 100_000)
	copy(data[20_000:], bytes.Repeat([]byte{5}, 16_000))
	write(t, f, data[:16_000], 0)      // inline
	f.n.sealAll()                      // and a batch of two chunks
	write(t, f, data[16_000:], 16_000) // a stripe
	must(t, f.Sync(t.Context()))
	same(t, "overwritten", readAll(t, f, 1<<20), data)
	must(t, f.Allocate(t.Context(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 50_000))
	clear(data[:50_000])
	must(t, f.Close(t.Context()))
	check(t, b.mount(t), "f", data)
	b.checkStripes(t, c)
}

func TestMemoryBound(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t, func(cfg *Config) { cfg.MemoryBytes = MinMemoryBytes })
	const files = 2100 // at 16 KiB each more than there is
	var attrs []cfs.Attr
	for i := 0; i < files; i += 100 {
		var ops []cfs.Op
		for j := i; j < i+100; j++ {
			ops = append(ops, cfs.Op{Kind: cfs.OpCreate, Dir: cfs.RootIno, Name: fmt.Sprint(j), Attr: cfs.Attr{Mode: cfs.ModeRegular | 0o644}})
		}
		for _, r := range b.apply(b.sess, ops...).Results {
			attrs = append(attrs, r.Attr)
		}
	}
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			for i := w; i < files; i += 10 {
				f := c.OpenNew(attrs[i], unix.O_RDWR) // stays open, and dirty
				if _, err := f.Write(t.Context(), fmt.Appendf(nil, "file %d", i), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c.memory.mu.Lock()
	used := c.memory.used
	c.memory.mu.Unlock()
	if used > MinMemoryBytes {
		t.Errorf("%d bytes in use, at most %d allowed", used, MinMemoryBytes)
	}
	// Large ones besides.
	big := randomBytes(1, 33<<20)
	put(t, c, "big", big)
	must(t, c.Close(t.Context()))
	c = b.mount(t)
	check(t, c, "big", big)
	for i := 0; i < files; i += 97 {
		check(t, c, fmt.Sprint(i), fmt.Appendf(nil, "file %d", i))
	}
}

func TestCloseToOpen(t *testing.T) {
	b := newBed(t, 3)
	one, two := b.mount(t), b.mount(t)
	put(t, one, "f", []byte("first"))
	check(t, two, "f", []byte("first"))
	held := open(t, two, "f", unix.O_RDONLY)
	f := open(t, one, "f", unix.O_RDWR|unix.O_TRUNC)
	long := randomBytes(4, 200_000)
	write(t, f, long, 0)
	must(t, f.Close(t.Context()))
	check(t, two, "f", long)
	same(t, "the handle from before", readAll(t, held, 1<<20), long) // the open has told the inode
	g := open(t, two, "f", unix.O_RDWR|unix.O_APPEND)
	write(t, g, []byte("tail"), 0)
	must(t, g.Close(t.Context()))
	check(t, one, "f", append(bytes.Clone(long), "tail"...))
	must(t, held.Close(t.Context()))
}

func TestCloseOfTheClientFlushes(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	small, large := create(t, c, "small"), create(t, c, "large")
	data := randomBytes(8, 5<<20)
	write(t, small, []byte("small"), 0)
	write(t, large, data, 0)
	unmount(t, c)
	c = b.mount(t)
	check(t, c, "small", []byte("small"))
	check(t, c, "large", data)
}

// TestInterruptedClose: what a close left on its way is there for the next open,
// and comes before what is written then.
func TestInterruptedClose(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	gate := make(chan struct{})
	hook(&b.before, func(cmd *cfs.Command) {
		if cmd.Ops[0].Kind == cfs.OpWrite {
			<-gate
		}
	})
	f := create(t, c, "f")
	write(t, f, bytes.Repeat([]byte{'a'}, 10_000), 0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := f.Close(ctx); !errors.Is(err, cfs.Timeout) {
		t.Fatalf("close: %v", err)
	}
	g := open(t, c, "f", unix.O_RDWR)
	same(t, "the next handle", readAll(t, g, 1<<20), bytes.Repeat([]byte{'a'}, 10_000))
	write(t, g, []byte("bbb"), 100)
	close(gate)
	must(t, g.Close(t.Context()))
	want := bytes.Repeat([]byte{'a'}, 10_000)
	copy(want[100:], "bbb")
	check(t, b.mount(t), "f", want)
}

// TestOpenDuringClose: the leader's answer to an open is old by the time it comes,
// because another handle has written and closed. The new handle must not take the
// old size for the end of the file.
func TestOpenDuringClose(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	first := create(t, c, "log", unix.O_APPEND)
	write(t, first, []byte("first "), 0)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	hook(&b.answered, func(q *cfs.Query) {
		if q.Kind == cfs.QueryExtents {
			once.Do(func() {
				close(held)
				<-release
			})
		}
	})
	opened := make(chan *File)
	go func() {
		f, err := c.Open(t.Context(), first.n.ino, unix.O_WRONLY|unix.O_APPEND)
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	<-held
	must(t, first.Close(t.Context()))
	close(release)
	second := <-opened
	write(t, second, []byte("second"), 0)
	must(t, second.Close(t.Context()))
	check(t, b.mount(t), "log", []byte("first second"))
}
