package cfs

import (
	"crypto/sha256"
	"fmt"
)

// Geometry is the shape of a stripe: K data shards and M parity shards. It is a
// value of each stripe's group, not a setting of the cluster.
type Geometry struct{ K, M uint8 }

// The geometries in use. Geo1p2, three copies, serves small and random writes;
// the others depend on how many healthy devices there are.
var (
	Geo4p2 = Geometry{4, 2}
	Geo3p2 = Geometry{3, 2}
	Geo2p2 = Geometry{2, 2}
	Geo1p2 = Geometry{1, 2}
)

// Total is the number of shards.
func (g Geometry) Total() int { return int(g.K) + int(g.M) }

// String is the form k+m.
func (g Geometry) String() string { return fmt.Sprintf("%d+%d", g.K, g.M) }

// ShardSize is the size in bytes of each shard of a stripe that holds n bytes:
// n split over K shards, rounded up to whole blocks.
func (g Geometry) ShardSize(n uint32) uint32 {
	per := (n + uint32(g.K) - 1) / uint32(g.K)
	return (per + BlockSize - 1) &^ (BlockSize - 1)
}

// MaxData is the largest number of bytes that a stripe of this geometry holds.
func (g Geometry) MaxData() uint32 { return uint32(g.K) * MaxShardSize }

// ExtentKind says where an extent's bytes are.
type ExtentKind uint8

// The kinds of extents.
const (
	// ExtentHole reads as zeros. It is never stored: a replaced range without a row is a hole.
	ExtentHole ExtentKind = iota
	// ExtentInline carries its bytes.
	ExtentInline
	// ExtentStripe names a part of a stripe.
	ExtentStripe
	// ExtentUnwritten is allocated by fallocate and reads as zeros.
	ExtentUnwritten
	// ExtentDigest stands for an inline extent in Op.Expect: Inline is its digest. It is never stored.
	ExtentDigest
)

// DigestSize is the length of the digest of an inline extent, in bytes.
const DigestSize = sha256.Size

// Digest is the extent as Op.Expect names it: an inline one by the SHA-256 of its bytes.
func (e Extent) Digest() Extent {
	if e.Kind == ExtentInline {
		sum := sha256.Sum256(e.Inline)
		e.Kind, e.Inline = ExtentDigest, sum[:]
	}
	return e
}

// Extent maps the bytes [Off, Off+Len) of a file. A stripe's part is
// [StripeOff, StripeOff+Len) of the StripeLen data bytes of the stripe; shard i
// of a stripe holds the contiguous bytes [i*s, (i+1)*s) with s = ShardSize(StripeLen).
type Extent struct {
	Off       uint64
	Len       uint64
	Kind      ExtentKind
	Inline    []byte // ExtentInline: exactly Len bytes
	Stripe    StripeID
	PG        PGID
	StripeOff uint32
	StripeLen uint32
}

// End is the offset of the first byte after the extent.
func (e *Extent) End() uint64 { return e.Off + e.Len }

// Slice is the part of the extent that covers [off, end), which must lie within it.
func (e Extent) Slice(off, end uint64) Extent {
	skip := off - e.Off
	if e.Kind == ExtentInline {
		e.Inline = e.Inline[skip : end-e.Off]
	}
	if e.Kind == ExtentStripe {
		e.StripeOff += uint32(skip)
	}
	e.Off, e.Len = off, end-off
	return e
}

// SameBytes reports that both extents name the same range and the same bytes.
func (e *Extent) SameBytes(o *Extent) bool {
	return e.Off == o.Off && e.Len == o.Len && e.Kind == o.Kind && e.Stripe == o.Stripe &&
		e.PG == o.PG && e.StripeOff == o.StripeOff && string(e.Inline) == string(o.Inline)
}
