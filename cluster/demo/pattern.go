package demo

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"

	"github.com/claudefs/claudefs/cfs"
)

// ioBytes is the size of one read or write of file data.
const ioBytes = 1 << 20

// pattern is an endless stream of bytes without structure that its seed decides,
// as fast as memory: AES in counter mode.
type pattern struct{ stream cipher.Stream }

func newPattern(seed uint64) *pattern {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only for a key of another length
	}
	return &pattern{cipher.NewCTR(block, make([]byte, aes.BlockSize))}
}

// Read fills p.
func (r *pattern) Read(p []byte) (int, error) {
	clear(p)
	r.stream.XORKeyStream(p, p)
	return len(p), nil
}

// writePattern makes a file of n bytes of a pattern, fsyncs and closes it, and
// returns the bytes' SHA-256, computed from the pattern.
func writePattern(path string, seed uint64, n int64) (sum [sha256.Size]byte, err error) {
	op := "write " + path
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return sum, cfs.E(op, cfs.KindOf(err), err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = cfs.E(op, cfs.KindOf(cerr), cerr)
		}
	}()
	h := sha256.New()
	buf := make([]byte, ioBytes)
	for src := io.LimitReader(newPattern(seed), n); ; {
		got, rerr := io.ReadFull(src, buf)
		h.Write(buf[:got])
		if _, err := f.Write(buf[:got]); err != nil {
			return sum, cfs.E(op, cfs.KindOf(err), err)
		}
		if rerr != nil { // the end
			break
		}
	}
	if err := f.Sync(); err != nil {
		return sum, cfs.E(op, cfs.KindOf(err), err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
