package ec

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/claudefs/claudefs/cfs"
)

// CRCSize is the bytes of one block's checksum.
const CRCSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// BlockCRCs appends to dst the checksum of each block of data, which begins at
// block firstBlock of the shard: CRC32C, four bytes little-endian, of the 24
// bytes {session u64, counter u64, shard u32, block u32}, little-endian, followed
// by the block. So a block that is intact but not the one asked for does not
// pass. A last block that is not whole is summed as it is.
func BlockCRCs(dst []byte, stripe cfs.StripeID, shard uint8, firstBlock uint32, data []byte) []byte {
	seed := shardSeed(stripe, shard)
	for len(data) > 0 {
		n := min(len(data), cfs.BlockSize)
		dst = binary.LittleEndian.AppendUint32(dst, blockCRC(seed, firstBlock, data[:n]))
		data = data[n:]
		firstBlock++
	}
	return dst
}

// CheckBlockCRCs compares data with the checksums that BlockCRCs made. It is
// the index, from the first of data, of the first block that does not match or
// whose checksum is missing or left over; -1 when all match.
func CheckBlockCRCs(crcs []byte, stripe cfs.StripeID, shard uint8, firstBlock uint32, data []byte) (badBlock int) {
	seed := shardSeed(stripe, shard)
	i := 0
	for ; len(data) > 0; i++ {
		n := min(len(data), cfs.BlockSize)
		if len(crcs) < CRCSize || binary.LittleEndian.Uint32(crcs) != blockCRC(seed, firstBlock+uint32(i), data[:n]) {
			return i
		}
		crcs, data = crcs[CRCSize:], data[n:]
	}
	if len(crcs) != 0 {
		return i
	}
	return -1
}

// shardSeed is the checksum of what all blocks of a shard begin with.
func shardSeed(stripe cfs.StripeID, shard uint8) uint32 {
	crc := word(0, uint64(stripe.Session), 8)
	crc = word(crc, stripe.Counter, 8)
	return word(crc, uint64(shard), 4)
}

// blockCRC goes on from the shard's seed with the block's index and its bytes.
func blockCRC(seed, block uint32, data []byte) uint32 {
	return crc32.Update(word(seed, uint64(block), 4), castagnoli, data)
}

// word is crc32.Update with the n low bytes of v, little-endian. A byte array
// would escape through crc32's function table, an allocation for each block.
func word(crc uint32, v uint64, n int) uint32 {
	crc = ^crc
	for range n {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return ^crc
}
