package rawdisk

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// prewriteChunkBytes is the size of one write of Prewrite.
const prewriteChunkBytes = 4 << 20

// Prewrite writes zeros to the first n bytes of a file, past the page cache
// where the file system can, and makes them durable; the file grows as needed.
func Prewrite(ctx context.Context, path string, n int64) error {
	op := "prewrite " + path
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer f.Close()
	zeros, err := unix.Mmap(-1, 0, prewriteChunkBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer unix.Munmap(zeros)
	for off := int64(0); off < n; {
		if ctx.Err() != nil {
			return cfs.E(op, cfs.Canceled, ctx.Err())
		}
		w, err := f.WriteAt(zeros[:min(n-off, prewriteChunkBytes)], off)
		if err != nil {
			return cfs.E(op, cfs.KindOf(err), err)
		}
		off += int64(w)
	}
	if err := f.Sync(); err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	return nil
}
