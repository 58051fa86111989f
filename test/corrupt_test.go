package test

import (
	"bytes"
	"errors"
	"fmt"
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

// flip changes a bit of a block in place while the server has the device open.
func flip(t *testing.T, p place) {
	t.Helper()
	flipBit(t, p, 8*1234+4)
}

// flipBit changes that bit of a block.
func flipBit(t *testing.T, p place, bit int) {
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
	buf[bit/8] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(buf, p.off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// runs puts blocks together to the shards that they are part of; nil when a block is
// at none or several places.
func runs(found map[int][]place, blocks int) []run {
	var list []run
	for i := range blocks {
		if len(found[i]) != 1 {
			return nil
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

// Bytes of live data shards change on the disk, under running servers: the reader gets
// the right ones, the counters tell of those shards, and they are repaired.
func TestCorruptShardsAreReconstructed(t *testing.T) {
	t.Parallel() // it waits for most of its time
	const devices = 2
	c := start(t, func(s *cluster.Spec) { s.Devices = devices })
	m := mount(t, c, "mnt")
	const size, perFile = 8 << 20, 8 // data shards of a file: two stripes of four
	var paths []string
	var all []byte
	var shards []run
	// On a machine under load a put may have been done twice: then new files are taken.
	for try := 0; try < 3 && len(shards) != 3*perFile; try++ {
		paths, all = nil, nil
		for i := range 3 {
			paths = append(paths, filepath.Join(m.Point, fmt.Sprintf("victim-%d-%d", try, i)))
			data := content(uint64(42+3*try+i), size)
			if err := writeFile(paths[i], data); err != nil {
				t.Fatal(err)
			}
			all = append(all, data...)
		}
		shards = runs(findBlocks(t, c, devices, all), len(all)/cfs.BlockSize)
	}
	if len(shards) != 3*perFile || len(shards[0].blocks) != cfs.MaxShardSize/cfs.BlockSize {
		t.Fatalf("three files of %d bytes have %d data shards", size, len(shards))
	}
	t.Logf("the first shard has %d blocks on %s", len(shards[0].blocks), shards[0].blocks[0].device)
	readBack := func(when string, file int) (crcFailures, reconstructed int) {
		t.Helper()
		remount(t, m)
		got, err := os.ReadFile(paths[file])
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if !bytes.Equal(got, all[file*size:][:size]) {
			t.Fatalf("%s: the file has other bytes", when)
		}
		after := counters(t, m) // of a new daemon
		return int(after["claudefs_client_crc_failures_total"]), int(after["claudefs_client_shards_reconstructed_total"])
	}

	// The cleaner may have moved a shard: its block is flipped wherever it is now.
	corrupt := func(blocks ...int) {
		t.Helper()
		found := findBlocks(t, c, devices, all)
		for _, b := range blocks {
			if len(found[b]) == 0 {
				t.Fatalf("block %d is on no device", b)
			}
			for _, p := range found[b] {
				flip(t, p)
			}
		}
	}

	// One shard of each stripe: so many are found at least, and so many computed. Two reads may meet the same one.
	bad := []run{shards[0], shards[perFile/2+1]}
	corrupt(bad[0].first, bad[1].first+77)
	failures, reconstructed := readBack("one corrupt shard in each stripe", 0)
	if failures < len(bad) || reconstructed < len(bad) {
		t.Errorf("%d CRC failures and %d reconstructed shards were counted for %d corrupt shards", failures, reconstructed, len(bad))
	}
	eventually(t, "what a reader reported is repaired", func() bool {
		failures, _ = readBack("after the repair", 0)
		return failures == 0
	})

	// Two in the same rows of a stripe: as much as 4+2 bears.
	corrupt(shards[perFile].first, shards[perFile+1].first)
	failures, reconstructed = readBack("two corrupt shards in one stripe", 1)
	if failures < 2 || reconstructed < 2 {
		t.Errorf("%d CRC failures and %d reconstructed shards were counted for two corrupt shards", failures, reconstructed)
	}

	// Three are one too many: an error then, and never wrong bytes.
	corrupt(shards[2*perFile].first, shards[2*perFile+1].first, shards[2*perFile+2].first)
	remount(t, m)
	if _, err := os.ReadFile(paths[2]); !errors.Is(err, unix.EIO) {
		t.Errorf("with three corrupt shards in one stripe: %v, want EIO", err)
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
