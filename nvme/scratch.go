package nvme

import (
	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// scratch is aligned memory outside any arena, for the rare I/O of headers.
type scratch struct{ p []byte }

func newScratch(sizeBytes int) (scratch, error) {
	p, err := unix.Mmap(-1, 0, sizeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return scratch{}, cfs.E("take memory", cfs.KindOf(err), err)
	}
	return scratch{p}, nil
}

func (s scratch) free() { _ = unix.Munmap(s.p) }
