package rawdisk

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// seqChunkBytes is the size of one read of SeqRead.
const seqChunkBytes = 1 << 20

// SeqWrite writes n bytes to a new file in order, chunk after chunk of the same bytes, and
// fsyncs it: bytes per second until the fsync returned.
func SeqWrite(ctx context.Context, path string, n int64, chunk []byte) (float64, error) {
	op := "write " + path
	begun := time.Now()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, cfs.E(op, cfs.KindOf(err), err)
	}
	defer f.Close()
	for off := int64(0); off < n; off += int64(len(chunk)) {
		if ctx.Err() != nil {
			return 0, cfs.E(op, cfs.Canceled, context.Cause(ctx))
		}
		if _, err := f.Write(chunk[:min(int64(len(chunk)), n-off)]); err != nil {
			return 0, cfs.E(op, cfs.KindOf(err), err)
		}
	}
	if err := f.Sync(); err != nil {
		return 0, cfs.E(op, cfs.KindOf(err), err)
	}
	rate := perSecond(n, begun)
	if err := f.Close(); err != nil {
		return 0, cfs.E(op, cfs.KindOf(err), err)
	}
	return rate, nil
}

// SeqRead reads a file from its start to its end: bytes per second.
func SeqRead(ctx context.Context, path string) (float64, error) {
	op := "read " + path
	buf := make([]byte, seqChunkBytes)
	begun := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, cfs.E(op, cfs.KindOf(err), err)
	}
	defer f.Close()
	for total := int64(0); ; {
		n, err := f.Read(buf)
		total += int64(n)
		switch {
		case err == io.EOF:
			return perSecond(total, begun), nil
		case err != nil:
			return 0, cfs.E(op, cfs.KindOf(err), err)
		case ctx.Err() != nil:
			return 0, cfs.E(op, cfs.Canceled, context.Cause(ctx))
		}
	}
}

// perSecond is the rate of n bytes since a time, also where the clock has not moved.
func perSecond(n int64, since time.Time) float64 {
	return float64(n) / max(time.Since(since).Seconds(), 1e-9)
}
