package iopath

import (
	"os"

	"github.com/claudefs/claudefs/cfs"
)

// registerPolled registers f with a polled ring and returns its slot, or -1 with
// the reason why it cannot be polled. What decides is a read of its first block:
// the kernel refuses it with EOPNOTSUPP when f is not open for direct I/O or its
// device has no polling queues. Before Linux 6.10 a device without them is not
// refused but polled in vain, at the cost of the thread's time. Regular files are
// not polled: a polled read across the end of one finds nothing (seen with ext4, Linux 6.1).
func (r *Ring) registerPolled(f *os.File) (int32, error) {
	if st, err := f.Stat(); err != nil || st.Mode().IsRegular() {
		return -1, cfs.Errorf("register "+f.Name(), cfs.Unsupported, "only devices are polled")
	}
	return r.probe(f)
}

func (r *Ring) probe(f *os.File) (int32, error) {
	file, err := r.register(f)
	if err != nil {
		return -1, err
	}
	mem := make([]byte, 2*pageBytes)
	at := -address(mem) % pageBytes
	if _, err = r.Read(file, mem[at:at+pageBytes], 0); err == nil && file.slot < 0 {
		err = cfs.Errorf("register "+f.Name(), cfs.Unsupported, "there is no file table")
	}
	if err != nil {
		_ = r.UnregisterFile(file) // it holds nothing else
		return -1, err
	}
	return file.slot, nil
}
