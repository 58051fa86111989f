package ec

import "github.com/claudefs/claudefs/cfs"

// ShardRange is the part of a shard that a range of a stripe's bytes needs.
type ShardRange struct {
	Shard   int
	Off     uint32 // first byte to fetch, a whole number of blocks into the shard
	Len     uint32 // bytes to fetch, whole blocks
	DataOff uint32 // first wanted byte in the shard
	DataLen uint32 // wanted bytes
}

// FirstBlock is the index in the shard of the first block to fetch.
func (r ShardRange) FirstBlock() uint32 { return r.Off / cfs.BlockSize }

// Wanted is the wanted bytes of fetched, the Len bytes of the range.
func (r ShardRange) Wanted(fetched []byte) []byte {
	skip := r.DataOff - r.Off
	return fetched[skip : skip+r.DataLen]
}

// Cover says which shards, and which blocks of each, hold the bytes
// [off, off+n) of a stripe of stripeLen bytes, in order. What lies beyond the
// stripe's end is left out, and a stripe longer than its geometry allows has nothing.
func Cover(g cfs.Geometry, stripeLen, off, n uint32) []ShardRange {
	return AppendCover(nil, g, stripeLen, off, n)
}

// AppendCover is Cover into dst, without an allocation where its capacity is g.K.
func AppendCover(dst []ShardRange, g cfs.Geometry, stripeLen, off, n uint32) []ShardRange {
	const mask = cfs.BlockSize - 1
	if g.K == 0 || stripeLen > g.MaxData() {
		return dst
	}
	size := uint64(g.ShardSize(stripeLen))
	pos, end := uint64(off), min(uint64(off)+uint64(n), uint64(stripeLen))
	for pos < end {
		shard := pos / size
		start := pos - shard*size
		stop := min(end-shard*size, size)
		first, last := start&^mask, (stop+mask)&^mask
		dst = append(dst, ShardRange{
			Shard: int(shard), Off: uint32(first), Len: uint32(last - first),
			DataOff: uint32(start), DataLen: uint32(stop - start),
		})
		pos = shard*size + stop
	}
	return dst
}

// StripeBytes is the length of the buffer that holds a stripe of stripeLen
// bytes with its padding: the k data shards end to end.
func StripeBytes(g cfs.Geometry, stripeLen uint32) int {
	return int(g.K) * int(g.ShardSize(stripeLen))
}

// Split cuts buf, of StripeBytes bytes, into the k data shards, appended to
// dst; they share its memory. The padding after stripeLen is zeroed.
func Split(dst [][]byte, g cfs.Geometry, stripeLen uint32, buf []byte) ([][]byte, error) {
	if stripeLen == 0 || stripeLen > g.MaxData() || len(buf) != StripeBytes(g, stripeLen) {
		return dst, cfs.Errorf("split stripe", cfs.Invalid, "a buffer of %d bytes for %d in geometry %v", len(buf), stripeLen, g)
	}
	clear(buf[stripeLen:])
	size := int(g.ShardSize(stripeLen))
	for i := range int(g.K) {
		dst = append(dst, buf[i*size:(i+1)*size:(i+1)*size])
	}
	return dst, nil
}
