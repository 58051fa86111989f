package client

import (
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
)

func crcsOf(id cfs.StripeID, shard uint8, data []byte) []byte {
	return ec.BlockCRCs(nil, id, shard, 0, data)
}

// patchy makes a file with stripes, inline bytes, holes, and what is only allocated;
// the last part is not committed.
func patchy(t *testing.T, c *Client, name string) (*File, *model) {
	t.Helper()
	f, m := create(t, c, name), &model{}
	add := func(seed uint64, n, off int) {
		p := randomBytes(seed, n)
		write(t, f, p, uint64(off))
		m.write(p, off)
	}
	add(1, 5<<20, 0)
	add(2, 10_000, 6<<20)
	must(t, f.Sync(t.Context()))
	must(t, f.Allocate(t.Context(), 0, 7<<20, 1<<20))
	m.truncate(8 << 20)
	add(3, 100_000, 1<<20+17)
	add(4, 3000, 8<<20+5)
	return f, m
}

// TestCopyRange compares random copies, between files and within one, with bytes in
// memory: none goes over the wire.
func TestCopyRange(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	src, want := patchy(t, c, "src")
	dst, have := create(t, c, "dst"), &model{}
	n, err := src.CopyRange(ctx, dst, 0, 0, 1<<40, 0)
	must(t, err)
	if n != uint64(len(want.b)) {
		t.Fatalf("%d bytes copied of %d", n, len(want.b))
	}
	have.write(want.b, 0)
	put := c.Stats().bytesPut.Load()
	rng := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		from, to, n := rng.IntN(len(want.b)+1000), rng.IntN(9<<20), 1+rng.IntN(1<<(1+rng.IntN(22)))
		if rng.IntN(2) == 0 {
			got, err := src.CopyRange(ctx, dst, uint64(from), uint64(to), uint64(n), 0)
			must(t, err)
			part := want.b[min(from, len(want.b)):min(from+n, len(want.b))]
			if int(got) != len(part) {
				t.Fatalf("%d bytes copied, want %d", got, len(part))
			}
			if len(part) > 0 {
				have.write(part, to)
			}
			continue
		}
		n = min(n, len(have.b)-min(from, len(have.b)))
		got, err := dst.CopyRange(ctx, dst, uint64(from), uint64(to), uint64(n), 0)
		if n > 0 && from < to+n && to < from+n {
			wantKind(t, err, cfs.Invalid)
			continue
		}
		must(t, err)
		if int(got) != n {
			t.Fatalf("%d bytes copied within the file, want %d", got, n)
		}
		if n > 0 {
			have.write(append([]byte(nil), have.b[from:from+n]...), to)
		}
	}
	if c.Stats().bytesPut.Load() != put || c.Stats().BytesFetched() != 0 {
		t.Errorf("%d bytes were put and %d fetched", c.Stats().bytesPut.Load()-put, c.Stats().BytesFetched())
	}
	have.holes(t, dst)
	same(t, "the copy", readAll(t, dst, 1<<20), have.b)
	same(t, "the source", readAll(t, src, 1<<20), want.b)
	// The source goes; the copy stays.
	must(t, src.Close(ctx))
	must(t, c.Unlink(ctx, me, cfs.RootIno, "src"))
	must(t, dst.Close(ctx))
	b.checkStripes(t, c)
	check(t, b.mount(t), "dst", have.b)
}

func TestCopyRangeLimits(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	f := create(t, c, "f")
	write(t, f, randomBytes(1, 1000), 0)
	_, err := f.CopyRange(ctx, f, 0, 0, 1, 0)
	wantKind(t, err, cfs.Invalid)
	_, err = f.CopyRange(ctx, f, 0, 999, 1<<40, 0)
	wantKind(t, err, cfs.Invalid)
	_, err = f.CopyRange(ctx, f, 0, cfs.MaxFileSize, 1, 0)
	wantKind(t, err, cfs.TooLarge)
	for _, off := range []uint64{1000, 5000} {
		if n, err := f.CopyRange(ctx, f, off, 0, 10, 0); n != 0 || err != nil {
			t.Errorf("from beyond the end: %d, %v", n, err)
		}
	}
	// Up to the end, to just behind it: what the copy adds is not copied again.
	n, err := f.CopyRange(ctx, f, 0, 1000, 1<<40, 0)
	must(t, err)
	if a, err := f.Attr(ctx); n != 1000 || err != nil || a.Size != 2000 {
		t.Errorf("%d bytes copied, size %d, %v", n, a.Size, err)
	}
	// Only a hole: the size grows all the same.
	h := create(t, c, "hole")
	_, err = c.SetAttr(ctx, me, h.n.ino, cfs.SetSize, cfs.Attr{Size: 1 << 30})
	must(t, err)
	n, err = h.CopyRange(ctx, f, 1<<20, 3000, 1<<20, 0)
	must(t, err)
	if a, err := f.Attr(ctx); n != 1<<20 || err != nil || a.Size != 3000+1<<20 {
		t.Errorf("%d bytes copied, size %d, %v", n, a.Size, err)
	}
	b.inlineFull.Store(true)
	_, err = f.CopyRange(ctx, h, 0, 0, 100, 0)
	wantKind(t, err, cfs.InlineFull)
	must(t, f.Close(ctx))
	must(t, h.Close(ctx))
}

// TestCopyOfALostWrite: what was written to the source and lost is not copied as if it had
// never been there.
func TestCopyOfALostWrite(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	ctx := t.Context()
	f, g := create(t, c, "f"), create(t, c, "g")
	write(t, f, []byte("old"), 0)
	must(t, f.Sync(ctx))
	for _, dst := range []*File{g, f} {
		for _, n := range b.nodes {
			n.noSpace.Store(true)
		}
		write(t, f, randomBytes(1, 100_000), 0)
		n, err := f.CopyRange(ctx, dst, 0, 1<<20, 3, 0)
		if wantKind(t, err, cfs.NoSpace); n != 0 {
			t.Errorf("%d bytes copied", n)
		}
		n, err = f.CopyRange(ctx, dst, 0, 1<<20, 3, 0) // it has been told
		if must(t, err); n != 3 {
			t.Errorf("%d bytes copied", n)
		}
	}
	must(t, f.Close(ctx))
	must(t, g.Close(ctx))
}

// TestCopyOfManyExtents takes several commands.
func TestCopyOfManyExtents(t *testing.T) {
	b := newBed(t, 3)
	c := b.mount(t)
	f := create(t, c, "f")
	var want []byte
	for from := uint64(0); from < 3000; from += 500 {
		op := cfs.Op{Kind: cfs.OpWrite, Ino: f.n.ino}
		for i := from; i < from+500; i++ {
			op.Extents = append(op.Extents, cfs.Extent{Off: 2 * i, Len: 1, Kind: cfs.ExtentInline, Inline: []byte{byte(i) | 1}})
			want = append(want, byte(i)|1, 0)
		}
		b.apply(b.sess, op)
	}
	want = want[:len(want)-1]
	f.n.dropExtents()
	g := create(t, c, "g")
	write(t, g, randomBytes(1, 10_000), 0)
	n, err := f.CopyRange(t.Context(), g, 0, 100, 1<<20, 0)
	must(t, err)
	if n != uint64(len(want)) {
		t.Errorf("%d bytes copied of %d", n, len(want))
	}
	all := randomBytes(1, 10_000)
	copy(all[100:], want)
	must(t, g.Close(t.Context()))
	check(t, b.mount(t), "g", all)
	must(t, f.Close(t.Context()))
}

// TestCopyOfFreedStripes: between the look at the source and the commit another client
// replaces it, and what it held is freed.
func TestCopyOfFreedStripes(t *testing.T) {
	b := newBed(t, 3)
	c, other := b.mount(t), b.mount(t)
	put(t, other, "src", randomBytes(1, 1<<20))
	data := randomBytes(2, 1<<20)
	src := open(t, c, "src", unix.O_RDONLY)
	dst := create(t, c, "dst")
	var once sync.Once
	hook(&b.answered, func(q *cfs.Query) {
		if q.Kind != cfs.QueryExtents || q.Ino != src.n.ino {
			return
		}
		once.Do(func() {
			f := create(t, other, "tmp")
			write(t, f, data, 0)
			must(t, f.Sync(t.Context()))
			x := b.extents(f.n.ino)
			b.apply(b.sess, cfs.Op{Kind: cfs.OpWrite, Ino: src.n.ino, Extents: x}) // src's stripe is freed at the next floor
			must(t, f.Close(t.Context()))
			_, err := other.SetAttr(t.Context(), me, cfs.RootIno, cfs.SetAtimeNow, cfs.Attr{})
			must(t, err)
		})
	})
	n, err := src.CopyRange(t.Context(), dst, 0, 0, 1<<20, 0)
	must(t, err)
	if n != 1<<20 {
		t.Errorf("%d bytes copied", n)
	}
	must(t, dst.Close(t.Context()))
	must(t, src.Close(t.Context()))
	check(t, b.mount(t), "dst", data)
}
