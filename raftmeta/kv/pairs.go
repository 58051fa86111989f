package kv

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// MaxPairBytes bounds the key or the value of a pair, in bytes.
const MaxPairBytes = 1 << 20

// AppendPair appends a pair in its transfer form: for the key and for the value
// a 4-byte little-endian length and the bytes.
func AppendPair(b, k, v []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(k)))
	b = append(b, k...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(v)))
	return append(b, v...)
}

// EachPair calls fn with every pair of b, which AppendPair wrote; the slices
// are valid during the call. Bytes that are no pairs are cfs.Corrupt.
func EachPair(b []byte, fn func(k, v []byte) error) error {
	next := func() ([]byte, bool) {
		if len(b) < 4 {
			return nil, false
		}
		n := binary.LittleEndian.Uint32(b)
		if n > MaxPairBytes || int(n) > len(b)-4 {
			return nil, false
		}
		p := b[4 : 4+n]
		b = b[4+n:]
		return p, true
	}
	total := len(b)
	for len(b) > 0 {
		at := total - len(b)
		k, ok := next()
		v, ok2 := next()
		if !ok || !ok2 {
			return cfs.Errorf("read pairs", cfs.Corrupt, "bad length at offset %d", at)
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}
