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

// twice reports a block that lies at several places.
func twice(found map[int][]place) bool {
	for _, places := range found {
		if len(places) > 1 {
			return true
		}
	}
	return false
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
	var path string
	var data []byte
	var found map[int][]place
	// On a machine under load a put may have been done twice: then a new file is taken.
	for try := 0; try < 3 && (try == 0 || twice(found)); try++ {
		path = filepath.Join(m.Point, fmt.Sprintf("victim-%d", try))
		data = content(uint64(42+try), 16<<20)
		if err := writeFile(path, data); err != nil {
			t.Fatal(err)
		}
		found = findBlocks(t, c, devices, data)
	}
	shards := runs(t, found, len(data)/cfs.BlockSize)
	t.Logf("the file has %d data shards, the first of %d blocks on %s", len(shards), len(shards[0].blocks), shards[0].blocks[0].device)
	if len(shards) != 16 || len(shards[0].blocks) != cfs.MaxShardSize/cfs.BlockSize {
		t.Fatalf("a file of %d bytes has %d data shards, the first of %d blocks", len(data), len(shards), len(shards[0].blocks))
	}

	// One shard of each stripe: so many are found, and so many computed.
	stripe := len(shards) / 4
	bad := []run{shards[0], shards[stripe+1], shards[2*stripe+2], shards[len(shards)-1]}
	for i, s := range bad {
		flip(t, s.blocks[(i*77)%len(s.blocks)])
	}
	readBack := func(when string) (crcFailures, reconstructed int) {
		t.Helper()
		remount(t, m)
		before := counters(t, m)
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%s: the file has other bytes", when)
		}
		after := counters(t, m)
		rise := func(name string) int { return int(after[name] - before[name]) }
		return rise("claudefs_client_crc_failures_total"), rise("claudefs_client_shards_reconstructed_total")
	}
	failures, reconstructed := readBack("one corrupt shard in each stripe")
	if failures != len(bad) || reconstructed != len(bad) {
		t.Errorf("%d CRC failures and %d reconstructed shards were counted for %d corrupt shards", failures, reconstructed, len(bad))
	}

	// A second one in the same rows of the first stripe: as much as 4+2 bears.
	flip(t, shards[1].blocks[0])
	failures, reconstructed = readBack("two corrupt shards in one stripe")
	if failures <= len(bad) || reconstructed != len(bad)+1 {
		t.Errorf("%d CRC failures and %d reconstructed shards were counted for %d corrupt shards", failures, reconstructed, len(bad)+1)
	}

	// A third is one too many: an error then, and never wrong bytes.
	flip(t, shards[2].blocks[0])
	remount(t, m)
	if _, err := os.ReadFile(path); !errors.Is(err, unix.EIO) {
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
