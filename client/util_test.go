package client

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

var me = cfs.Cred{UID: 1, GID: 1}

// randomBytes are n bytes that depend on seed alone.
func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, k cfs.Kind) {
	t.Helper()
	if !errors.Is(err, k) {
		t.Fatalf("error %v, want %v", err, k)
	}
}

// create makes a file in the root and opens it for reading and writing.
func create(t testing.TB, c *Client, name string, flags ...int) *File {
	t.Helper()
	a, err := c.Create(t.Context(), me, cfs.RootIno, name, cfs.ModeRegular|0o644, 0, "", true)
	must(t, err)
	mode := unix.O_RDWR
	for _, f := range flags {
		mode |= f
	}
	return c.OpenNew(a, mode)
}

func open(t testing.TB, c *Client, name string, flags int) *File {
	t.Helper()
	a, err := c.Lookup(t.Context(), cfs.RootIno, name)
	must(t, err)
	f, err := c.Open(t.Context(), a.Ino, flags)
	must(t, err)
	return f
}

func write(t testing.TB, f *File, p []byte, off uint64) {
	t.Helper()
	if n, err := f.Write(t.Context(), p, off); err != nil || n != len(p) {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

// writeIn writes p in pieces, as the kernel does.
func writeIn(t testing.TB, f *File, p []byte, off uint64, piece int) {
	t.Helper()
	for len(p) > 0 {
		n := min(piece, len(p))
		write(t, f, p[:n], off)
		p, off = p[n:], off+uint64(n)
	}
}

// readAll is the whole file, read in pieces.
func readAll(t testing.TB, f *File, piece int) []byte {
	t.Helper()
	var out []byte
	buf := make([]byte, piece)
	for {
		n, err := f.Read(t.Context(), buf, uint64(len(out)))
		must(t, err)
		if out = append(out, buf[:n]...); n < piece {
			return out
		}
	}
}

func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Fatalf("%s: %d bytes, want %d; the first difference is at %d", what, len(got), len(want), at)
}

func put(t testing.TB, c *Client, name string, data []byte) cfs.Ino {
	t.Helper()
	f := create(t, c, name)
	writeIn(t, f, data, 0, 128<<10)
	must(t, f.Sync(t.Context())) // tests look at the state
	must(t, f.Close(t.Context()))
	return f.n.ino
}

func check(t testing.TB, c *Client, name string, want []byte) {
	t.Helper()
	f := open(t, c, name, unix.O_RDONLY)
	defer f.Close(context.Background())
	same(t, name, readAll(t, f, 1<<20), want)
}
