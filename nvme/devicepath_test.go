package nvme

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// The devices that the tests below are run on, each a list of paths. Everything on
// those of the first and of the last two is lost.
var (
	devicePath   = flag.String("device.path", "", "run the device suites on these `paths`, and overwrite what is there")
	deviceBusy   = flag.String("device.busy", "", "`paths` of devices that are in use, and are to be refused")
	deviceReset  = flag.String("device.reset", "", "reset the controllers of these NVMe `paths` while they are written to")
	deviceVanish = flag.String("device.vanish", "", "remove the PCI devices of these NVMe `paths` while they are written to")
)

func pathList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func devicePaths() []string { return pathList(*devicePath) }

// TestDevicePaths is the conformance suite on the devices of -device.path. Where
// two of them are one namespace, each sees what the other has written.
func TestDevicePaths(t *testing.T) {
	paths := devicePaths()
	if len(paths) == 0 {
		t.Skip("no -device.path")
	}
	infos := map[string]Info{}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			kind, err := DeviceKind(path)
			if err != nil {
				t.Fatal(err)
			}
			infos[path] = newDeviceRig(t, kind == KindPassthrough).host(path, kind).run(t)
			t.Logf("%+v", infos[path])
		})
	}
	for _, a := range paths {
		for _, b := range paths {
			same := infos[a].Identity == infos[b].Identity
			if a == b || infos[a].Identity == (Identity{}) || infos[b].Identity == (Identity{}) {
				continue
			}
			name := a + "," + b
			if same {
				t.Run("Same:"+name, func(t *testing.T) { sameNamespace(t, a, b) })
			} else {
				t.Run("Other:"+name, func(t *testing.T) { otherNamespace(t, a, b) })
			}
		}
	}
}

// sameNamespace checks two paths to one namespace.
func sameNamespace(t *testing.T, a, b string) {
	ra, da := openAt(t, a)
	ia := da.Info()
	rb := newDeviceRig(t, true)
	if _, err := openDevice(b, rb.ring, 2*lockPoll); cfs.KindOf(err) != cfs.Busy || !strings.Contains(err.Error(), b) {
		t.Errorf("%s while %s is open: %v", b, a, err)
	}
	want := noise(6, 1<<20)
	p := ra.mem(t, len(want))
	copy(p, want)
	if err := da.Write([]iopath.WriteOp{{P: p, Off: 6 << 20, Sync: true}}); err != nil {
		t.Fatal(err)
	}
	sb := Superblock{ClusterID: testCluster, Device: cfs.MakeDeviceID(2, 1), SegmentBytes: testSegment}
	if err := Format(da, sb, true); err != nil {
		t.Fatal(err)
	}
	formatted, err := ReadSuperblock(da)
	if err != nil || formatted.Identity != ia.Identity {
		t.Errorf("superblock %+v, %v", formatted, err)
	}
	// What is seen while it is open, past the lock: the two are the same blocks.
	if ia.Kind == KindPassthrough {
		readDirect(t, b, 6<<20, want)
	}
	if err := da.Close(); err != nil {
		t.Fatal(err)
	}

	rb2, db := openAt(t, b)
	p = rb2.mem(t, len(want))
	if err := db.Read(p, 6<<20); err != nil || !bytes.Equal(p, want) {
		t.Errorf("%s has other bytes than were written through %s, or %v", b, a, err)
	}
	if got, err := ReadSuperblock(db); err != nil || got != formatted {
		t.Errorf("superblock by %s: %+v, %v, by %s: %+v", b, got, err, a, formatted)
	}
	ib := db.Info()
	if ia.SizeBytes != ib.SizeBytes || ia.LogicalBlockBytes != ib.LogicalBlockBytes || ia.WriteThrough != ib.WriteThrough ||
		ia.Model != ib.Model || ia.Serial != ib.Serial || ia.DiscardBytes == 0 != (ib.DiscardBytes == 0) {
		t.Errorf("the paths disagree: %+v, %+v", ia, ib)
	}
}

// readDirect compares what a block device holds with want.
func readDirect(t *testing.T, path string, off int64, want []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := newScratch(len(want))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.free()
	if _, err := f.ReadAt(mem.p, off); err != nil || !bytes.Equal(mem.p, want) {
		t.Errorf("%s has other bytes, or %v", path, err)
	}
}

// otherNamespace copies the superblock of a to b, which must not be taken for a.
func otherNamespace(t *testing.T, a, b string) {
	_, da := openAt(t, a)
	if err := Format(da, Superblock{ClusterID: testCluster, SegmentBytes: testSegment}, true); err != nil {
		t.Fatal(err)
	}
	rb, db := openAt(t, b)
	p := rb.mem(t, cfs.BlockSize)
	for _, off := range superOffsets() {
		if err := da.Read(p, off); err != nil {
			t.Fatal(err)
		}
		if err := db.Write([]iopath.WriteOp{{P: p, Off: off}}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := ReadSuperblock(db)
	if cfs.KindOf(err) != cfs.Invalid || !strings.Contains(err.Error(), da.Info().Identity.String()) || !strings.Contains(err.Error(), db.Info().Identity.String()) {
		t.Errorf("a copied superblock: %v", err)
	}
}

// TestDeviceBusy expects that devices which are mounted or held are refused, and
// that the refusal names them.
func TestDeviceBusy(t *testing.T) {
	if *deviceBusy == "" {
		t.Skip("no -device.busy")
	}
	r := newDeviceRig(t, true)
	for _, path := range pathList(*deviceBusy) {
		if _, err := openDevice(path, r.ring, 2*lockPoll); cfs.KindOf(err) != cfs.Busy || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// controllerDir is the directory of sysfs of an NVMe path's controller.
func controllerDir(t *testing.T, path string) string {
	t.Helper()
	for _, class := range []string{"/sys/class/nvme-generic", "/sys/class/block"} {
		if dir, err := filepath.EvalSymlinks(filepath.Join(class, filepath.Base(path), "device")); err == nil {
			return dir
		}
	}
	t.Fatalf("%s is no NVMe namespace", path)
	return ""
}

// traffic writes and reads back from several goroutines, each until its
// operation fails or stop is closed. The errors come back when all have ended.
func traffic(t *testing.T, r *deviceRig, dev Device, stop <-chan struct{}, rounds *sync.WaitGroup) []error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for w := range 4 {
		p := r.mem(t, 256<<10)
		off := HeaderAreaBytes + int64(w)<<20
		wg.Go(func() {
			started := false
			for i := 0; ; i++ {
				want := noise(uint64(w*1000+i), len(p))
				copy(p, want)
				err := dev.Write([]iopath.WriteOp{{P: p, Off: off, Sync: i%2 == 0}})
				if err == nil {
					clear(p)
					err = dev.Read(p, off)
				}
				if err == nil && !bytes.Equal(p, want) {
					t.Error("other bytes")
				}
				if err == nil && i%3 == 0 {
					err = dev.Flush()
				}
				if err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
				if !started {
					rounds.Done()
					started = true
				}
				select {
				case <-stop:
					return
				default:
					if err != nil {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// TestDeviceReset resets the controller under the writes of a device: they take
// longer, and none fails.
func TestDeviceReset(t *testing.T) {
	if *deviceReset == "" {
		t.Skip("no -device.reset")
	}
	for _, path := range pathList(*deviceReset) {
		t.Run(path, func(t *testing.T) {
			r, dev := openAt(t, path)
			stop := make(chan struct{})
			var rounds sync.WaitGroup
			rounds.Add(4)
			go func() {
				defer close(stop)
				rounds.Wait()
				for range 3 {
					// The write returns when the controller is up again.
					if err := os.WriteFile(filepath.Join(controllerDir(t, path), "reset_controller"), []byte("1"), 0); err != nil {
						t.Error(err)
					}
				}
			}()
			for _, err := range traffic(t, r, dev, stop, &rounds) {
				t.Error(err)
			}
		})
	}
}

// TestDeviceVanishes takes an NVMe device away while it is written to. Everything
// that is under way ends with an error that names the device, and so does what
// comes later. Then the device is found anew, and opens.
func TestDeviceVanishes(t *testing.T) {
	if *deviceVanish == "" {
		t.Skip("no -device.vanish")
	}
	for _, path := range pathList(*deviceVanish) {
		t.Run(path, func(t *testing.T) {
			r, dev := openAt(t, path)
			info := dev.Info()
			pci, err := filepath.EvalSymlinks(filepath.Join(controllerDir(t, path), "device"))
			if err != nil {
				t.Fatal(err)
			}
			var rounds sync.WaitGroup
			rounds.Add(4)
			removed := make(chan error, 1)
			go func() {
				rounds.Wait()
				removed <- os.WriteFile(filepath.Join(pci, "remove"), []byte("1"), 0)
			}()
			errs := traffic(t, r, dev, nil, &rounds)
			if err := <-removed; err != nil {
				t.Fatal(err)
			}
			p := r.mem(t, 4096)
			errs = append(errs, dev.Read(p, 0), dev.Write([]iopath.WriteOp{{P: p}}), dev.Write([]iopath.WriteOp{{P: p, Sync: true}}), dev.Flush())
			for i, err := range errs {
				if cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), path) {
					t.Errorf("error %d: %v", i, err)
				}
			}
			t.Logf("%v", errs[0])
			if err := dev.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if err := os.WriteFile("/sys/bus/pci/rescan", []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
			again := awaitNamespace(t, info)
			t.Logf("it is %s again", again)
			if _, dev := openAt(t, again); dev.Info().Identity != info.Identity {
				t.Errorf("it was %+v, and is %+v", info, dev.Info())
			}
		})
	}
}

// awaitNamespace waits for a device of info's kind and identity, whichever
// number the kernel gives it now.
func awaitNamespace(t *testing.T, info Info) string {
	t.Helper()
	pattern := map[Kind]string{KindBlock: "/dev/nvme*n*", KindPassthrough: "/dev/ng*n*"}[info.Kind]
	r := newDeviceRig(t, true)
	last := map[string]string{}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(lockPoll) {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			dev, err := openDevice(path, r.ring, 0)
			if err != nil {
				last[path] = err.Error()
				continue
			}
			found := dev.Info()
			dev.Close()
			if found.Identity == info.Identity {
				return path
			}
			last[path] = found.Identity.String()
		}
	}
	t.Fatalf("the device did not come back: %v", last)
	return ""
}
