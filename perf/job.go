package perf

import (
	"slices"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/units"
)

// The directions of a Job.
const (
	Read      = "read" // in order, from the range's start to its end and again
	Write     = "write"
	RandRead  = "randread"
	RandWrite = "randwrite"
)

// directions are all of them.
var directions = []string{Read, Write, RandRead, RandWrite}

// maxDepth bounds the operations in flight of a job: each has a goroutine and a buffer.
const maxDepth = 4096

// Duration is a time.Duration that is text in JSON: 1s, 500ms.
type Duration time.Duration

// UnmarshalText reads the form of time.ParseDuration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText is the form of time.Duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Job is a load on a range of a file or block device.
type Job struct {
	Path        string
	OffsetBytes int64 // where the range begins
	SizeBytes   int64 // of the range
	BlockBytes  int   // of each operation: whole blocks of cfs.BlockSize, at most cfs.MaxShardSize
	Depth       int   // operations in flight
	RW          string
	Sync        bool // a write is durable before it is answered
	Runtime     time.Duration
	Seed        uint64 // of the random offsets
	Buffered    bool   // through the page cache, because the file system has no direct I/O
}

// writes reports whether the job changes the file.
func (j *Job) writes() bool { return strings.HasSuffix(j.RW, "write") }

func (j *Job) random() bool { return strings.HasPrefix(j.RW, "rand") }

// blocks is the number of operations that cover the range.
func (j *Job) blocks() int64 { return j.SizeBytes / int64(j.BlockBytes) }

// check refuses what no engine can run. The kind is Usage.
func (j *Job) check() error {
	switch {
	case !slices.Contains(directions, j.RW):
		return cfs.Errorf("--rw", cfs.Usage, "%q is none of %s", j.RW, strings.Join(directions, ", "))
	case j.BlockBytes < cfs.BlockSize || j.BlockBytes > cfs.MaxShardSize || j.BlockBytes%cfs.BlockSize != 0:
		return cfs.Errorf("--bs", cfs.Usage, "%d bytes: want whole blocks of %d, at most %d", j.BlockBytes, cfs.BlockSize, cfs.MaxShardSize)
	case j.Depth < 1 || j.Depth > maxDepth:
		return cfs.Errorf("--depth", cfs.Usage, "%d, want 1 to %d", j.Depth, maxDepth)
	case j.Runtime <= 0:
		return cfs.Errorf("--runtime", cfs.Usage, "%s is no time to measure", j.Runtime)
	case j.blocks() < 1:
		return cfs.Errorf("--size", cfs.Usage, "%d bytes have no room for a block of %d", j.SizeBytes, j.BlockBytes)
	case j.Sync && !j.writes():
		return cfs.Errorf("--sync", cfs.Usage, "it says when a write is answered, and %s writes nothing", j.RW)
	}
	return nil
}

// sizeText is a number of bytes in labels.
func sizeText(n int) string { return units.Bytes(n).String() }
