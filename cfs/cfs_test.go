package cfs

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
)

func TestEveryKindIsInTheTable(t *testing.T) {
	seen := map[string]Kind{}
	for k := KindOK; k < kindEnd; k++ {
		info := kinds[k]
		if info.name == "" || info.text == "" || (info.errno == 0) != (k == KindOK) {
			t.Errorf("kind %d: incomplete row %+v", k, info)
		}
		if old, dup := seen[info.name]; dup {
			t.Errorf("kinds %d and %d share the name %s", old, k, info.name)
		}
		seen[info.name] = k
	}
}

// The numbers are on the wire and in the log: a new kind goes to the end.
func TestKindNumbersAreStable(t *testing.T) {
	for k, want := range map[Kind]uint8{NotFound: 1, TooBig: 22, IO: 23, StaleEpoch: 27, Usage: 39} {
		if uint8(k) != want {
			t.Errorf("%s is %d, was %d", k.Name(), k, want)
		}
	}
}

func TestErrorIsAndAs(t *testing.T) {
	err := fmt.Errorf("outer: %w", E("read block 7", Corrupt, io.ErrUnexpectedEOF))
	if !errors.Is(err, Corrupt) || !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, NotFound) {
		t.Errorf("errors.Is on %v", err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Op != "read block 7" {
		t.Errorf("errors.As on %v", err)
	}
	if got := e.Error(); got != "read block 7: corrupt data: unexpected EOF" {
		t.Errorf("text %q", got)
	}
	if got := E("stat", NotFound, syscall.ENOENT).Error(); got != "stat: no such file or directory" {
		t.Errorf("text %q", got)
	}
}

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{NotEmpty, syscall.ENOTEMPTY},
		{E("x", StaleEpoch, nil), syscall.EIO},
		{fmt.Errorf("x: %w", syscall.ENOTTY), syscall.ENOTTY},
		{E("x", NoSpace, syscall.EIO), syscall.ENOSPC},
		{io.EOF, syscall.EIO},
		{Kind(250), syscall.EIO},
	} {
		if got := Errno(c.err); got != c.want {
			t.Errorf("Errno(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestShardSize(t *testing.T) {
	for _, c := range []struct {
		g    Geometry
		n    uint32
		want uint32
	}{{Geo4p2, 1, 4096}, {Geo4p2, 16384, 4096}, {Geo4p2, 16385, 8192}, {Geo4p2, 4 << 20, 1 << 20}, {Geo1p2, 4097, 8192}, {Geo3p2, 3 << 20, 1 << 20}} {
		if got := c.g.ShardSize(c.n); got != c.want {
			t.Errorf("%v.ShardSize(%d) = %d, want %d", c.g, c.n, got, c.want)
		}
	}
}

func TestExtentSlice(t *testing.T) {
	e := Extent{Off: 100, Len: 5, Kind: ExtentInline, Inline: []byte("abcde")}
	if got := e.Slice(101, 103); string(got.Inline) != "bc" || got.Off != 101 || got.Len != 2 {
		t.Errorf("inline slice %+v", got)
	}
	s := Extent{Off: 100, Len: 50, Kind: ExtentStripe, StripeOff: 7}
	if got := s.Slice(110, 150); got.StripeOff != 17 || got.Len != 40 {
		t.Errorf("stripe slice %+v", got)
	}
}

func TestIDs(t *testing.T) {
	if i := MakeIno(3, 2, 99); i.Site() != 3 || i.Partition() != 2 || i.Counter() != 99 {
		t.Errorf("ino %x", uint64(i))
	}
	if d := MakeDeviceID(2, 1); d.Node() != 2 || d.Slot() != 1 || d.String() != "2/1" {
		t.Errorf("device %v", d)
	}
}

func TestPrev(t *testing.T) {
	const most = ^uint64(0)
	for id, want := range map[StripeID]StripeID{
		{}:                       {},
		{Counter: 1}:             {},
		{Session: 1}:             {Counter: most},
		{Session: 1, Counter: 1}: {Session: 1},
		{Session: 2}:             {Session: 1, Counter: most},
		{Session: 2, Counter: 1}: {Session: 2},
		{Session: 5, Counter: 9}: {Session: 5, Counter: 8},
	} {
		got := id.Prev()
		if got != want {
			t.Errorf("before %v is %v, want %v", id, got, want)
		}
		if id.IsZero() {
			continue
		}
		next := got
		if next.Counter++; next.Counter == 0 {
			next.Session++
		}
		if !got.Less(id) || next != id {
			t.Errorf("there is something between %v and %v", got, id)
		}
	}
}
