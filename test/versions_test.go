package test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

// maxVersions bounds the contents that a block is known to may have; a worker leaves
// a file alone that comes near.
const maxVersions = 24

// versions are the distinct contents that a block may have, each cfs.BlockSize bytes.
type versions []string

// zeroBlock is what a hole reads as.
var zeroBlock = string(make([]byte, cfs.BlockSize))

// with adds what is not in v yet.
func (v versions) with(more versions) versions {
	for _, s := range more {
		if !slices.Contains(v, s) {
			v = append(v, s)
		}
	}
	return v
}

// over is v with a piece of each content replaced; nil data are zeros.
func (v versions) over(at, n int, data []byte) versions {
	var out versions
	for _, s := range v {
		piece := data
		if piece == nil {
			piece = []byte(zeroBlock[:n])
		}
		changed := string(piece)
		if n != cfs.BlockSize {
			changed = s[:at] + changed + s[at+n:]
		} else if data == nil {
			changed = zeroBlock
		}
		if !slices.Contains(out, changed) {
			out = append(out, changed)
		}
	}
	return out
}

// span is a range of sizes that a file may have, both ends included.
type span struct{ lo, hi int64 }

// image is what a file may look like.
type image struct {
	blocks []versions // by number; what is beyond the end are zeros
	sizes  []span
}

// block is a block of the image, which grows by zeros up to it.
func (im *image) block(i int) *versions {
	for len(im.blocks) <= i {
		im.blocks = append(im.blocks, versions{zeroBlock})
	}
	return &im.blocks[i]
}

// most is the greatest size that the file may have.
func (im *image) most() (n int64) {
	for _, s := range im.sizes {
		n = max(n, s.hi)
	}
	return n
}

// size is the file's size; false when it is not known.
func (im *image) size() (int64, bool) {
	if len(im.sizes) != 1 || im.sizes[0].lo != im.sizes[0].hi {
		return 0, false
	}
	return im.sizes[0].lo, true
}

func (im *image) addSizes(more []span) {
	for _, s := range more {
		if !slices.Contains(im.sizes, s) {
			im.sizes = append(im.sizes, s)
		}
	}
}

func (im *image) clone() image {
	out := image{sizes: slices.Clone(im.sizes)}
	for _, b := range im.blocks {
		out.blocks = append(out.blocks, slices.Clone(b))
	}
	return out
}

// known is what the file certainly holds in a range; false when that is not known.
func (im *image) known(off, n int64) ([]byte, bool) {
	out := make([]byte, 0, n)
	for n > 0 {
		i, at := int(off/cfs.BlockSize), int(off%cfs.BlockSize)
		piece := min(int(n), cfs.BlockSize-at)
		b := *im.block(i)
		if len(b) != 1 {
			return nil, false
		}
		out = append(out, b[0][at:at+piece]...)
		off, n = off+int64(piece), n-int64(piece)
	}
	return out, true
}

// compare reports the first block of got, which was read at off, that is none of the versions.
func (im *image) compare(off int64, got []byte) error {
	for done := 0; done < len(got); {
		i, at := int((off+int64(done))/cfs.BlockSize), int((off+int64(done))%cfs.BlockSize)
		n := min(len(got)-done, cfs.BlockSize-at)
		piece, b := got[done:done+n], *im.block(i)
		if !slices.ContainsFunc(b, func(s string) bool { return s[at:at+n] == string(piece) }) {
			return fmt.Errorf("block %d: %d bytes at %d are none of %d versions%s", i, n, at, len(b), nearest(b, piece, at))
		}
		done += n
	}
	return nil
}

// nearest says where a block that is wrong begins to differ.
func nearest(b versions, piece []byte, at int) string {
	best := 0
	for _, s := range b {
		same := 0
		for same < len(piece) && s[at+same] == piece[same] {
			same++
		}
		best = max(best, same)
	}
	zeros := ""
	if bytes.Equal(piece, []byte(zeroBlock[:len(piece)])) {
		zeros = ", all zeros"
	}
	return fmt.Sprintf(" (the first %d bytes are right%s; it begins % x, should be % x)", best, zeros, piece[:min(8, len(piece))], b[len(b)-1][at:at+min(8, len(piece))])
}

// change is something done to a file: bytes of a range replaced (nil: by zeros, and
// n < 0: up to the end of everything), and the size.
type change struct {
	off, n int64
	data   []byte
	grow   int64 // the size is at least this after it
	trunc  bool  // the size is off after it
}

// blocks are the numbers of the blocks that the change touches in an image, from first on.
func (c change) blocks(im *image) (first, end int) {
	if c.n < 0 {
		return int(c.off / cfs.BlockSize), len(im.blocks)
	}
	return int(c.off / cfs.BlockSize), int((c.off + c.n + cfs.BlockSize - 1) / cfs.BlockSize)
}

// apply changes the image; part says that any part of the change may be missing.
func (c change) apply(im *image, part bool) {
	first, end := c.blocks(im)
	for i := first; i < end; i++ {
		start := int64(i) * cfs.BlockSize
		from, to := max(c.off, start), start+cfs.BlockSize
		if c.n >= 0 {
			to = min(to, c.off+c.n)
		}
		var data []byte
		if c.data != nil {
			data = c.data[from-c.off : to-c.off]
		}
		b := im.block(i)
		changed := b.over(int(from-start), int(to-from), data)
		if part {
			changed = b.with(changed)
		}
		*b = changed
	}
	var sizes []span
	for _, s := range im.sizes {
		to := span{max(s.lo, c.grow), max(s.hi, c.grow)}
		if c.trunc {
			to = span{c.off, c.off}
		}
		switch {
		case !part:
			s = to
		case c.trunc:
			sizes = append(sizes, to)
		default:
			s.hi = to.hi
		}
		if !slices.Contains(sizes, s) {
			sizes = append(sizes, s)
		}
	}
	im.sizes = sizes
}

// fileModel is what a file holds as far as its owner can know.
type fileModel struct {
	name  string
	now   image // what the mount that wrote it may show
	lost  image // what may be left if that mount ends at this moment
	dirty map[int]bool
}

func newFileModel(name string) *fileModel {
	empty := func() image { return image{sizes: []span{{0, 0}}} }
	return &fileModel{name: name, now: empty(), lost: empty(), dirty: map[int]bool{}}
}

// change notes a change that was acknowledged, or one that failed: any part of it may have happened then.
func (f *fileModel) change(c change, failed bool) {
	first, end := c.blocks(&f.lost)
	c.apply(&f.now, failed)
	c.apply(&f.lost, true)
	for i := first; i < end; i++ {
		b := f.lost.block(i)
		*b = b.with(*f.now.block(i))
		f.dirty[i] = true
	}
	f.lost.addSizes(f.now.sizes)
}

func (f *fileModel) done(c change)  { f.change(c, false) }
func (f *fileModel) tried(c change) { f.change(c, true) }

// synced notes an fsync that was acknowledged.
func (f *fileModel) synced() {
	for i := range f.dirty {
		*f.lost.block(i) = slices.Clone(*f.now.block(i))
	}
	f.lost.sizes = slices.Clone(f.now.sizes)
	clear(f.dirty)
}

// crashed notes the death of the mount.
func (f *fileModel) crashed() {
	for i := range f.dirty {
		*f.now.block(i) = slices.Clone(*f.lost.block(i))
	}
	f.now.sizes = slices.Clone(f.lost.sizes)
	clear(f.dirty)
}

// unsynced notes an fsync or a close that failed: what was not synced may be there or not.
// As now is one of what may be left, that is what is left.
func (f *fileModel) unsynced() { f.crashed() }

// unsure is how many contents the least known block has.
func (f *fileModel) unsure() (n int) {
	for i := range f.dirty {
		n = max(n, len(*f.lost.block(i)))
	}
	return n
}

// found compares the file with what was read of it; right or wrong, that is what it holds from now on.
func (f *fileModel) found(got []byte) error {
	size := int64(len(got))
	var err error
	if !slices.ContainsFunc(f.now.sizes, func(s span) bool { return s.lo <= size && size <= s.hi }) {
		err = fmt.Errorf("%s has %d bytes, want %v", f.name, size, f.now.sizes)
	} else if err = f.now.compare(0, got); err != nil {
		err = fmt.Errorf("%s, %d bytes: %w", f.name, size, err)
	}
	f.now = image{sizes: []span{{size, size}}}
	for off := 0; off < len(got); off += cfs.BlockSize {
		b := make([]byte, cfs.BlockSize)
		copy(b, got[off:])
		f.now.blocks = append(f.now.blocks, versions{string(b)})
	}
	f.lost = f.now.clone()
	clear(f.dirty)
	return err
}

// The model itself: what it must take and what it must refuse.
func TestFileModel(t *testing.T) {
	a, b := content(1, 2*cfs.BlockSize), content(2, cfs.BlockSize)
	write := func(off int64, data []byte) change {
		return change{off: off, n: int64(len(data)), data: data, grow: off + int64(len(data))}
	}
	mixed := append(slices.Clone(b), a[cfs.BlockSize:]...)
	for _, c := range []struct {
		name string
		do   func(f *fileModel)
		ok   [][]byte
		bad  [][]byte
	}{
		{"written", func(f *fileModel) { f.done(write(0, a)) }, [][]byte{a}, [][]byte{nil, a[:100], mixed}},
		{"not synced, mount killed", func(f *fileModel) { f.done(write(0, a)); f.crashed() }, [][]byte{a, nil, a[:cfs.BlockSize]}, [][]byte{mixed}},
		{"synced, mount killed", func(f *fileModel) { f.done(write(0, a)); f.synced(); f.crashed() }, [][]byte{a}, [][]byte{nil, mixed}},
		{"overwritten, mount killed", func(f *fileModel) {
			f.done(write(0, a))
			f.synced()
			f.done(write(0, b))
			f.crashed()
		}, [][]byte{a, mixed}, [][]byte{nil, make([]byte, len(a))}},
		{"overwrite failed", func(f *fileModel) { f.done(write(0, a)); f.tried(write(0, b)) }, [][]byte{a, mixed}, [][]byte{nil, b}},
		{"fsync failed, then another write", func(f *fileModel) {
			f.done(write(0, a))
			f.unsynced()
			f.done(write(0, b))
			f.synced()
			f.crashed()
		}, [][]byte{b, mixed, append(slices.Clone(b), make([]byte, cfs.BlockSize)...)}, [][]byte{a, nil}},
		{"cut short and grown", func(f *fileModel) {
			f.done(write(0, a))
			f.done(change{off: 10, n: -1, trunc: true})
			f.done(change{off: cfs.BlockSize, n: -1, trunc: true})
		}, [][]byte{append(slices.Clone(a[:10]), make([]byte, cfs.BlockSize-10)...)}, [][]byte{a[:cfs.BlockSize], a[:10]}},
		{"punched", func(f *fileModel) { f.done(write(0, a)); f.done(change{off: cfs.BlockSize, n: cfs.BlockSize}) },
			[][]byte{append(slices.Clone(a[:cfs.BlockSize]), make([]byte, cfs.BlockSize)...)}, [][]byte{a, a[:cfs.BlockSize]}},
	} {
		for i, got := range append(slices.Clone(c.ok), c.bad...) {
			f := newFileModel("f")
			c.do(f)
			if err := f.found(got); (err == nil) != (i < len(c.ok)) {
				t.Errorf("%s, %d of them: %v", c.name, i, err)
			}
		}
	}
}

// readWhole reads a file below a directory.
func readWhole(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}
