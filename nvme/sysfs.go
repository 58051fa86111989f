package nvme

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// sysfs is a directory where the kernel describes its devices.
type sysfs string

// system is the machine's own.
const system sysfs = "/sys"

// blockInfo is what sysfs says of a block device. Of a partition, it is the disk's.
type blockInfo struct {
	logicalBlockBytes int
	writeThrough      bool // no volatile cache
	maxTransferBytes  int  // what the driver takes in one command, of scattered pages too
	splitBytes        int  // where the block layer divides transfers
	discardBytes      int  // granularity; 0 when there is no discard
	discardMaxBytes   int64
	nvme              bool // an NVMe namespace
	identity          Identity
	model, serial     string
}

// block describes the block device of a number. An attribute that is missing is
// taken for what is safe: 512 bytes, a volatile cache, no discard.
func (s sysfs) block(number uint64) (blockInfo, error) {
	dir, err := s.device("block", number)
	if err != nil {
		return blockInfo{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, "queue")); err != nil {
		dir = filepath.Dir(dir) // a partition lies in its disk's directory
	}
	b := blockInfo{
		logicalBlockBytes: int(number64(dir, "queue/logical_block_size")),
		writeThrough:      text(dir, "queue/write_cache") == "write through",
		discardMaxBytes:   number64(dir, "queue/discard_max_bytes"),
		model:             firstText(dir, "device/model"),
		serial:            firstText(dir, "device/serial", "serial"),
	}
	if b.logicalBlockBytes == 0 {
		b.logicalBlockBytes = leastLogicalBlock
	}
	b.maxTransferBytes = int(number64(dir, "queue/max_hw_sectors_kb")) << 10
	b.splitBytes = int(number64(dir, "queue/max_sectors_kb")) << 10
	if segments := int(number64(dir, "queue/max_segments")); segments > 0 {
		// A page is the least that a segment has.
		b.maxTransferBytes = min(b.maxTransferBytes, segments*cfs.BlockSize)
		b.splitBytes = min(b.splitBytes, segments*cfs.BlockSize)
	}
	if b.discardMaxBytes > 0 {
		b.discardBytes = max(int(number64(dir, "queue/discard_granularity")), b.logicalBlockBytes)
	}
	switch linkName(dir, "device/subsystem") {
	case "nvme", "nvme-subsystem":
		b.nvme = true
		b.identity = parseIdentity(text(dir, "nguid"), text(dir, "eui"))
	}
	return b, nil
}

// subsystem is the subsystem of the character device of a number, "" when
// the kernel knows none.
func (s sysfs) subsystem(number uint64) string {
	dir, err := s.device("char", number)
	if err != nil {
		return ""
	}
	return linkName(dir, "subsystem")
}

// sibling is the name and number of the block device of namespace nsid, whose
// character device has the given number.
func (s sysfs) sibling(number uint64, nsid uint32) (name string, block uint64, err error) {
	dir, err := s.device("char", number)
	if err != nil {
		return "", 0, err
	}
	// The kernel makes both below one controller, or one subsystem where that has
	// several paths, with the same number of the namespace. The first number in the
	// names, and the one that the device has for the namespace, may differ.
	_, instance, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "ng"), "n")
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return "", 0, cfs.Errorf("", cfs.IO, "%w", err)
	}
	for _, e := range entries {
		numbers, ok := strings.CutPrefix(e.Name(), "nvme")
		at := filepath.Join(filepath.Dir(dir), e.Name())
		_, its, _ := strings.Cut(numbers, "n")
		if !ok || its != instance || text(at, "hidden") == "1" || text(at, "nsid") != strconv.FormatUint(uint64(nsid), 10) {
			continue
		}
		if name != "" {
			return "", 0, cfs.Errorf("", cfs.Unsupported, "two block devices say that they are its namespace: %s and %s", name, e.Name())
		}
		if block, err = deviceNumber(text(at, "dev")); err != nil {
			return "", 0, err
		}
		name = e.Name()
		for line := range strings.Lines(text(at, "uevent")) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
				name = v
			}
		}
	}
	if name == "" {
		return "", 0, cfs.Errorf("", cfs.Unsupported, "the namespace has no block device, by which one could see whether it is in use")
	}
	return name, block, nil
}

// deviceNumber reads a number as the kernel writes it, major:minor.
func deviceNumber(s string) (uint64, error) {
	major, minor, _ := strings.Cut(s, ":")
	ma, err := strconv.ParseUint(major, 10, 32)
	if err == nil {
		var mi uint64
		if mi, err = strconv.ParseUint(minor, 10, 32); err == nil {
			return unix.Mkdev(uint32(ma), uint32(mi)), nil
		}
	}
	return 0, cfs.Errorf("", cfs.Invalid, "device number %q: %w", s, err)
}

// device is the directory of a device number, with links resolved.
func (s sysfs) device(class string, number uint64) (string, error) {
	name := strconv.Itoa(int(unix.Major(number))) + ":" + strconv.Itoa(int(unix.Minor(number)))
	dir, err := filepath.EvalSymlinks(filepath.Join(string(s), "dev", class, name))
	if err != nil {
		return "", cfs.Errorf("", cfs.Unsupported, "nothing is known of %s device %s: %w", class, name, err)
	}
	return dir, nil
}

// text is an attribute without the space around it; "" when there is none.
func text(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// firstText is the first attribute of several that says anything.
func firstText(dir string, names ...string) string {
	for _, name := range names {
		if s := text(dir, name); s != "" {
			return s
		}
	}
	return ""
}

// number64 is an attribute that is a number; 0 when it is not.
func number64(dir, name string) int64 {
	n, err := strconv.ParseInt(text(dir, name), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// linkName is the last part of where an attribute that is a link leads.
func linkName(dir, name string) string {
	to, err := filepath.EvalSymlinks(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// parseIdentity reads the kernel's nguid (a UUID) or else eui (bytes in hex).
func parseIdentity(nguid, eui string) Identity {
	var id Identity
	for _, s := range []string{nguid, eui} {
		raw, err := hex.DecodeString(strings.NewReplacer("-", "", " ", "", ":", "").Replace(s))
		if err != nil || len(raw) != 16 && len(raw) != 8 {
			continue
		}
		copy(id[:], raw)
		if id != (Identity{}) {
			break
		}
	}
	return id
}
