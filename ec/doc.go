// Package ec is the arithmetic of stripes: the Reed-Solomon codec, which shards
// and blocks of a stripe hold a range of its bytes, and the checksums of
// blocks. It does no I/O, starts no goroutine and keeps no state but the
// codec's cached matrices.
//
// A stripe of n bytes in a geometry k+m is k data shards of ShardSize(n) bytes
// each, shard i being the contiguous bytes [i*s, (i+1)*s), zero after the n-th,
// and m parity shards. The code works on each byte position by itself, so any
// block range of a lost shard comes back from the same block range of any k
// others: a reader never fetches more of a stripe than k times what it lost.
// The geometry 1+m is m+1 copies.
//
// Writing: Split cuts the stripe buffer into shards without copying, Encode
// fills the parity, BlockCRCs sums each shard. Reading: AppendCover plans,
// CheckBlockCRCs checks what came, Reconstruct makes up what did not.
package ec
