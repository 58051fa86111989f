package perf

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// openPread opens a job on pread and pwrite: a thread blocks in each operation.
func openPread(ctx context.Context, job *Job) (l *loaded, err error) {
	l = &loaded{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	flags := 0
	if job.Sync {
		flags = unix.O_DSYNC
	}
	f, err := openFile(job, flags)
	if err != nil {
		return l, err
	}
	l.later(f.Close)
	// Aligned memory; nothing is registered with anybody.
	arena, err := arenaFor(job.Depth, job.BlockBytes, 0)
	if err != nil {
		return l, err
	}
	l.later(arena.Close)
	places := &offsets{job: job}
	for i := range job.Depth {
		buf, err := arena.Get(ctx, job.BlockBytes)
		if err != nil {
			return l, err
		}
		l.later(func() error { buf.Release(); return nil })
		fill(buf.Bytes(), job.Seed+uint64(i))
		l.steps = append(l.steps, preadStep(job, int(f.Fd()), buf.Bytes(), places.worker(i)))
	}
	return l, nil
}

func preadStep(job *Job, fd int, p []byte, place func() int64) step {
	call, name := unix.Pread, "read"
	if job.writes() {
		call, name = unix.Pwrite, "write"
	}
	return func() (int, error) {
		off := place()
		for {
			n, err := call(fd, p, off)
			switch {
			case err == unix.EINTR:
				continue
			case err == nil && n < len(p):
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return 0, cfs.E(fmt.Sprintf("%s %s at %d", name, job.Path, off), cfs.IO, err)
			}
			return 1, nil
		}
	}
}
