package test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

// place is where a block of a file lies on a device.
type place struct {
	device string
	off    int64
}

// run is a part of a data shard: blocks that follow each other in the file and on a device.
type run struct {
	first  int // block of the file
	blocks []place
}

// keyBytes of a block tell it from every other: the content is random.
const keyBytes = 32

// findBlocks looks for the blocks of data on all devices of a cluster, as anybody
// would who has the disks alone.
func findBlocks(t *testing.T, c *cluster.Cluster, devicesPerNode int, data []byte) map[int][]place {
	t.Helper()
	index := map[string]int{}
	for i := 0; i*cfs.BlockSize < len(data); i++ {
		index[string(data[i*cfs.BlockSize:][:keyBytes])] = i
	}
	found := map[int][]place{}
	for n := 1; n <= c.Nodes(); n++ {
		for slot := range devicesPerNode {
			path := c.DevicePath(n, slot)
			eachBlock(t, path, func(off int64, block []byte) {
				if i, ok := index[string(block[:keyBytes])]; ok && bytes.Equal(block, data[i*cfs.BlockSize:][:cfs.BlockSize]) {
					found[i] = append(found[i], place{path, off})
				}
			})
		}
	}
	return found
}

// aligned is page-aligned memory, as O_DIRECT wants it.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(p) })
	return p
}

// eachBlock reads what a sparse file has allocated, past the page cache.
func eachBlock(t *testing.T, path string, fn func(off int64, block []byte)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := aligned(t, 1<<20)
	for off := int64(0); ; {
		off, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		end, err := unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		for off < end {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
			if n == 0 {
				t.Fatalf("read %s at %d: %v", path, off, err)
			}
			for i := 0; i+cfs.BlockSize <= n; i += cfs.BlockSize {
				fn(off+int64(i), buf[i:i+cfs.BlockSize])
			}
			off += int64(n)
		}
	}
}

// flip changes one bit of a block in place while the server has the device open.
func flip(t *testing.T, p place) {
	t.Helper()
	f, err := os.OpenFile(p.device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := aligned(t, cfs.BlockSize)
	if _, err := f.ReadAt(buf, p.off); err != nil {
		t.Fatal(err)
	}
	buf[1234] ^= 0x10
	if _, err := f.WriteAt(buf, p.off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// runs puts blocks together to the shards that they are part of.
func runs(t *testing.T, found map[int][]place, blocks int) []run {
	t.Helper()
	var list []run
	for i := range blocks {
		if len(found[i]) != 1 {
			t.Fatalf("block %d of the file is at %d places on the devices: %v", i, len(found[i]), found[i])
		}
		p := found[i][0]
		if n := len(list); n > 0 {
			r := &list[n-1]
			last := r.blocks[len(r.blocks)-1]
			if last.device == p.device && last.off+cfs.BlockSize == p.off {
				r.blocks = append(r.blocks, p)
				continue
			}
		}
		list = append(list, run{i, []place{p}})
	}
	return list
}

// Bytes of live data shards change on the disk, under running servers: the
// reader gets the right ones, and the counters tell of those shards.
func TestCorruptShardsAreReconstructed(t *testing.T) {
	const devices = 2
	c := start(t, func(s *cluster.Spec) { s.Devices = devices })
	m := mount(t, c, "mnt")
	path := filepath.Join(m.Point, "victim")
	data := content(42, 16<<20)
	if err := writeFile(path, data); err != nil {
		t.Fatal(err)
	}
	shards := runs(t, findBlocks(t, c, devices, data), len(data)/cfs.BlockSize)
	t.Logf("the file has %d data shards, the first of %d blocks on %s", len(shards), len(shards[0].blocks), shards[0].blocks[0].device)
	if len(shards) < 8 {
		t.Fatalf("%d data shards: too few", len(shards))
	}

	// Two shards of one stripe, as much as 4+2 bears, and one each of others.
	bad := []run{shards[0], shards[1], shards[5], shards[len(shards)-1]}
	for i, s := range bad {
		flip(t, s.blocks[(i*7)%len(s.blocks)])
	}
	remount(t, m)
	before := counters(t, m)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("the file has other bytes")
	}
	after := counters(t, m)
	rise := func(name string) int { return int(after[name] - before[name]) }
	if got := rise("claudefs_client_crc_failures_total"); got != len(bad) {
		t.Errorf("%d CRC failures were counted for %d corrupt shards", got, len(bad))
	}
	if got := rise("claudefs_client_shards_reconstructed_total"); got != len(bad) {
		t.Errorf("%d shards were reconstructed for %d corrupt ones", got, len(bad))
	}

	// A third shard of the first stripe is one too many: an error then, and never wrong bytes.
	flip(t, shards[2].blocks[0])
	for _, s := range bad[:2] { // and in the same rows of blocks
		flip(t, s.blocks[1])
		flip(t, shards[2].blocks[1])
	}
	remount(t, m)
	if got, err := os.ReadFile(path); err == nil && !bytes.Equal(got, data) {
		t.Error("with three corrupt shards of one stripe wrong bytes were returned")
	}
}

// Copies of a small file: any one of them is enough.
func TestCorruptCopies(t *testing.T) {
	const devices = 2
	c := start(t, func(s *cluster.Spec) { s.Devices = devices })
	m := mount(t, c, "mnt")
	path := filepath.Join(m.Point, "victim")
	data := content(43, 20<<10)
	if err := writeFile(path, data); err != nil {
		t.Fatal(err)
	}
	found := findBlocks(t, c, devices, data)
	copies := len(found[2])
	t.Logf("block 2 of a file of %d bytes is at %v", len(data), found[2])
	if copies == 0 {
		t.Fatal("the file is on no device")
	}
	if copies == 1 {
		flip(t, found[2][0])
	}
	for _, p := range found[2][:copies-1] {
		flip(t, p)
	}
	remount(t, m)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, data) {
		t.Error("the file has other bytes")
	}
}
