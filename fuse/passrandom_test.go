package fuse

import (
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// pinnedModel is a pinned file, what it should contain, and the ways to change it.
type pinnedModel struct {
	*passBed
	rnd    *rand.Rand
	want   []byte
	reader *os.File // pins it
	w      *os.File
	mem    []byte // a mapping, which outlives w
}

// A random sequence of changes of a pinned inode, through descriptors and a mapping: the reader that pins it, the
// cluster, and who opens it later see the same.
func TestPassthroughRandomChangesOfAPinnedInode(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := &pinnedModel{passBed: newPassBed(t, 1<<20), rnd: rand.New(rand.NewPCG(seed, 0)), want: pattern(1, passBytes)}
	m.make("f", m.want)
	m.want = pattern(1, passBytes)
	m.reader = m.passed("f")
	m.openWriter()
	defer func() { m.w.Close() }()
	var err error
	// Of the cache's file, as the kernel has it: a fault is no request, so this process may have it.
	m.mem, err = unix.Mmap(int(m.w.Fd()), 0, passBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, err)
	for range 300 {
		m.change()
		if t.Failed() {
			return
		}
	}
	m.compare("in the end")
	check(t, unix.Munmap(m.mem))
	check(t, m.reader.Close())
	check(t, m.w.Close())
	m.idle("f")
	m.want0("the cluster, when all is closed", m.cluster("f"))
}

func (m *pinnedModel) want0(what string, got []byte) { m.Helper(); m.passBed.want(what, got, m.want) }

func (m *pinnedModel) openWriter() {
	var err error
	m.w, err = os.OpenFile(m.path("f"), os.O_RDWR, 0)
	check(m, err)
}

// compare has what was stored through the mapping written back, and looks at the file from all sides.
func (m *pinnedModel) compare(what string) {
	m.Helper()
	m.want0(what+": the reader", content(m, m.reader))
	check(m, m.w.Sync())
	m.want0(what+": the cluster", m.cluster("f"))
	got, err := os.ReadFile(m.path("f"))
	check(m, err)
	m.want0(what+": a later open", got)
}

// change makes one change, or looks.
func (m *pinnedModel) change() {
	n := m.rnd.IntN(20000)
	off := m.rnd.IntN(len(m.want))
	data := pattern(m.rnd.IntN(1<<20), n)
	grow := func(end int) {
		if end > len(m.want) {
			m.want = append(m.want, make([]byte, end-len(m.want))...)
		}
	}
	switch m.rnd.IntN(10) {
	case 0, 1:
		_, err := m.w.WriteAt(data, int64(off))
		check(m, err)
		grow(off + n)
		copy(m.want[off:], data)
	case 2, 3, 4:
		if end := min(off+n, len(m.want), len(m.mem)); off < end {
			copy(m.mem[off:end], data)
			copy(m.want[off:end], data)
		}
	case 5:
		size := passBytes/2 + m.rnd.IntN(passBytes)
		check(m, m.w.Truncate(int64(size)))
		m.want = m.want[:min(size, len(m.want))]
		grow(size)
	case 6:
		if n > 0 {
			check(m, unix.Fallocate(int(m.w.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)))
			clear(m.want[off:min(off+n, len(m.want))])
		}
	case 7:
		a, err := os.OpenFile(m.path("f"), os.O_WRONLY|os.O_APPEND, 0)
		check(m, err)
		_, err = a.Write(data)
		check(m, err)
		check(m, a.Close())
		m.want = append(m.want, data...)
	case 8:
		check(m, m.w.Close())
		m.openWriter()
		m.want0("the cluster after a close", m.cluster("f"))
	default:
		got := make([]byte, min(n, len(m.want)-off))
		_, err := m.w.ReadAt(got, int64(off))
		check(m, err)
		m.passBed.want("a read of the writer", got, m.want[off:off+len(got)])
		if m.rnd.IntN(4) == 0 {
			m.compare("on the way")
		}
	}
}
