package perf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Fields of /sys/block/*/stat (Documentation/block/stat.rst), from 0.
const (
	statWriteSectors = 6
	statFlushes      = 15
	statSectorBytes  = 512
)

// kernelCounts are what the kernel has counted on a whole disk, whoever did it.
type kernelCounts struct {
	writtenBytes uint64
	flushes      uint64
}

// kernelDisk is the disk below a path.
type kernelDisk struct {
	name string
	dir  string // in sysfs
}

// kernelDiskOf finds the disk below a file or block device; false when there is
// none that counts flushes (since Linux 5.5), or several.
func kernelDiskOf(path string) (kernelDisk, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return kernelDisk{}, false
	}
	dev := uint64(st.Dev)
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = uint64(st.Rdev)
	}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
	if err != nil {
		return kernelDisk{}, false
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir) // only the whole disk counts flushes
	}
	d := kernelDisk{name: filepath.Base(dir), dir: dir}
	_, ok := d.counts()
	return d, ok
}

func (d kernelDisk) counts() (kernelCounts, bool) {
	text, err := os.ReadFile(filepath.Join(d.dir, "stat"))
	if err != nil {
		return kernelCounts{}, false
	}
	return parseDiskStat(text)
}

// parseDiskStat reads the text of a disk's stat.
func parseDiskStat(text []byte) (kernelCounts, bool) {
	fields := bytes.Fields(text)
	if len(fields) <= statFlushes {
		return kernelCounts{}, false
	}
	sectors, err1 := strconv.ParseUint(string(fields[statWriteSectors]), 10, 64)
	flushes, err2 := strconv.ParseUint(string(fields[statFlushes]), 10, 64)
	return kernelCounts{sectors * statSectorBytes, flushes}, err1 == nil && err2 == nil
}

// mountedAt is where a block device, or a partition of it, is mounted; "" for
// nowhere, and for what is no block device.
func mountedAt(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	own, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))))
	if err != nil {
		return ""
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line) // id, parent, major:minor, root, mount point
		if len(fields) < 5 {
			continue
		}
		dir, err := filepath.EvalSymlinks("/sys/dev/block/" + fields[2])
		if err == nil && (dir == own || strings.HasPrefix(dir, own+"/")) {
			return fields[4]
		}
	}
	return ""
}
