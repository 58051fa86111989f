package nvme

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"golang.org/x/sys/unix"
)

// fakeSysfs makes a tree of files, and of links where the content begins with "->".
func fakeSysfs(t *testing.T, tree map[string]string) sysfs {
	t.Helper()
	root := t.TempDir()
	for name, content := range tree {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(content, "->"); link {
			err = os.Symlink(filepath.Join(root, to), path)
		} else {
			err = os.WriteFile(path, []byte(content+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return sysfs(root)
}

// nvmeTree is what the kernel shows of a controller with two namespaces, of
// which the first has another number in its two names, and the second is a
// path to a namespace of a subsystem.
var nvmeTree = map[string]string{
	"class/nvme/README": "", "class/nvme-generic/README": "", "class/block/README": "",
	"dev/block/259:3": "->devices/pci/nvme3/nvme2n5",
	"dev/block/259:4": "->devices/pci/nvme3/nvme2n5/nvme2n5p1",
	"dev/block/259:7": "->devices/virtual/nvme-subsys3/nvme3n1",
	"dev/char/244:3":  "->devices/pci/nvme3/ng3n5",
	"dev/char/244:7":  "->devices/virtual/nvme-subsys3/ng3n1",
	"dev/char/245:3":  "->devices/pci/nvme3",
	"dev/char/1:3":    "->devices/virtual/mem/null",

	"devices/virtual/mem/null/subsystem": "->class/block", // no matter which

	"devices/pci/nvme3/subsystem":                          "->class/nvme",
	"devices/pci/nvme3/model":                              "a model      ",
	"devices/pci/nvme3/serial":                             "a serial     ",
	"devices/pci/nvme3/ng3n5/subsystem":                    "->class/nvme-generic",
	"devices/pci/nvme3/nvme2n5/device":                     "->devices/pci/nvme3",
	"devices/pci/nvme3/nvme2n5/dev":                        "259:3",
	"devices/pci/nvme3/nvme2n5/hidden":                     "0",
	"devices/pci/nvme3/nvme2n5/nsid":                       "1",
	"devices/pci/nvme3/nvme2n5/uevent":                     "MAJOR=259\nMINOR=3\nDEVNAME=nvme2n5\nDEVTYPE=disk",
	"devices/pci/nvme3/nvme2n5/nguid":                      "01020304-0506-0708-090a-0b0c0d0e0f10",
	"devices/pci/nvme3/nvme2n5/eui":                        "52 54 00 01 02 03 04 05",
	"devices/pci/nvme3/nvme2n5/queue/logical_block_size":   "4096",
	"devices/pci/nvme3/nvme2n5/queue/write_cache":          "write through",
	"devices/pci/nvme3/nvme2n5/queue/max_hw_sectors_kb":    "512",
	"devices/pci/nvme3/nvme2n5/queue/max_sectors_kb":       "128",
	"devices/pci/nvme3/nvme2n5/queue/max_segments":         "127",
	"devices/pci/nvme3/nvme2n5/queue/discard_max_bytes":    "2147479552",
	"devices/pci/nvme3/nvme2n5/queue/discard_granularity":  "4096",
	"devices/pci/nvme3/nvme2n5/nvme2n5p1/dev":              "259:4",
	"devices/pci/nvme3/nvme3c3n1/hidden":                   "1",
	"devices/pci/nvme3/nvme3c3n1/nsid":                     "2",
	"devices/virtual/nvme-subsys3/subsystem":               "->class/nvme-subsystem",
	"class/nvme-subsystem/README":                          "",
	"devices/virtual/nvme-subsys3/ng3n1/subsystem":         "->class/nvme-generic",
	"devices/virtual/nvme-subsys3/nvme3n1/device":          "->devices/virtual/nvme-subsys3",
	"devices/virtual/nvme-subsys3/nvme3n1/dev":             "259:7",
	"devices/virtual/nvme-subsys3/nvme3n1/nsid":            "2",
	"devices/virtual/nvme-subsys3/nvme3n1/uevent":          "DEVNAME=renamed/nvme3n1",
	"devices/virtual/nvme-subsys3/nvme3n1/eui":             "52 54 00 01 02 03 04 05",
	"devices/virtual/nvme-subsys3/nvme3n1/queue/max_segme": "",
}

func TestSysfsBlock(t *testing.T) {
	sys := fakeSysfs(t, nvmeTree)
	want := blockInfo{
		logicalBlockBytes: 4096, writeThrough: true, maxTransferBytes: 127 * 4096, splitBytes: 128 << 10, discardBytes: 4096, discardMaxBytes: 2147479552,
		nvme: true, identity: Identity{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, model: "a model", serial: "a serial",
	}
	for _, minor := range []uint32{3, 4} { // the disk, and a partition of it
		if b, err := sys.block(unix.Mkdev(259, minor)); err != nil || b != want {
			t.Errorf("259:%d: %+v, %v\nwant %+v", minor, b, err, want)
		}
	}
	// Nothing is said of this one but what it is.
	want = blockInfo{logicalBlockBytes: 512, nvme: true, identity: Identity{0x52, 0x54, 0, 1, 2, 3, 4, 5}}
	if b, err := sys.block(unix.Mkdev(259, 7)); err != nil || b != want {
		t.Errorf("%+v, %v\nwant %+v", b, err, want)
	}
	if _, err := sys.block(unix.Mkdev(8, 1)); cfs.KindOf(err) != cfs.Unsupported || !strings.Contains(err.Error(), "8:1") {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestSysfsSibling(t *testing.T) {
	sys := fakeSysfs(t, nvmeTree)
	for number, want := range map[uint64]string{
		unix.Mkdev(244, 3): "nvme-generic", unix.Mkdev(245, 3): "nvme", unix.Mkdev(1, 3): "block", unix.Mkdev(9, 9): "",
	} {
		if got := sys.subsystem(number); got != want {
			t.Errorf("%#x is of %q, want %q", number, got, want)
		}
	}
	for _, c := range []struct {
		char  uint64
		nsid  uint32
		name  string
		block uint64
	}{
		{unix.Mkdev(244, 3), 1, "nvme2n5", unix.Mkdev(259, 3)},
		{unix.Mkdev(244, 7), 2, "renamed/nvme3n1", unix.Mkdev(259, 7)},
		{unix.Mkdev(244, 3), 2, "", 0}, // only a hidden one has this number
		{unix.Mkdev(244, 7), 1, "", 0},
		{unix.Mkdev(9, 9), 1, "", 0},
	} {
		name, block, err := sys.sibling(c.char, c.nsid)
		if name != c.name || block != c.block || (err == nil) != (c.name != "") || err != nil && cfs.KindOf(err) != cfs.Unsupported {
			t.Errorf("namespace %d of %#x: %q, %#x, %v", c.nsid, c.char, name, block, err)
		}
	}
}

// TestLargeLogicalBlocks refuses a block device whose unit is larger than ours.
func TestLargeLogicalBlocks(t *testing.T) {
	sys := fakeSysfs(t, map[string]string{
		"dev/block/7:1": "->devices/virtual/block/loop1",
		"devices/virtual/block/loop1/queue/logical_block_size": "16384",
	})
	d := &hostDevice{info: Info{Path: "large"}}
	if err := d.describe(sys, unix.Mkdev(7, 1)); cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), "16384") {
		t.Errorf("%v", err)
	}
}

// TestSysfsHere reads what this machine says of the device that holds the test's
// files, if it is one.
func TestSysfsHere(t *testing.T) {
	var st syscall.Stat_t
	if err := syscall.Stat(t.TempDir(), &st); err != nil {
		t.Fatal(err)
	}
	b, err := system.block(st.Dev)
	if err != nil {
		t.Skipf("the test's directory is on no block device: %v", err)
	}
	if b.logicalBlockBytes < 512 {
		t.Errorf("%+v", b)
	}
}

func FuzzIdentityText(f *testing.F) {
	f.Add("01020304-0506-0708-090a-0b0c0d0e0f10", "52 54 00 01 02 03 04 05")
	f.Add("", "")
	f.Add("00000000-0000-0000-0000-000000000000", "5254000102030405")
	f.Fuzz(func(t *testing.T, nguid, eui string) {
		id := parseIdentity(nguid, eui)
		if id != (Identity{}) && parseIdentity(strings.TrimPrefix(id.String(), "eui."), "") != id {
			t.Errorf("%q, %q: %s", nguid, eui, id)
		}
	})
}
