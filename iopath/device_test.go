package iopath

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The suite on a device, as in a virtual machine that has one:
//
//	go test -c -o iopath.test ./iopath
//	iopath.test -test.v -test.run '^TestDevice' -engine.path /dev/nvme0n1 -engine.poll
var (
	enginePath = flag.String("engine.path", "", "run the suite on this block device (or file of 8 MiB at least), DESTROYING what it holds, or on this NVMe character device /dev/ngXnY, which is only read")
	enginePoll = flag.Bool("engine.poll", false, "fail unless the device of -engine.path can be polled")
)

// openDevice opens the device of -engine.path when it is one of that kind.
func openDevice(t *testing.T, characters bool) *os.File {
	t.Helper()
	if *enginePath == "" {
		t.Skip("no -engine.path")
	}
	st, err := os.Stat(*enginePath)
	if err != nil {
		t.Fatal(err)
	}
	if characters != (st.Mode()&os.ModeCharDevice != 0) {
		t.Skip("another kind of device")
	}
	flags := os.O_RDWR
	if !characters {
		flags |= unix.O_DIRECT
	}
	if st.Mode()&os.ModeDevice != 0 && !characters {
		flags |= unix.O_EXCL // refused while it is mounted
	}
	f, err := os.OpenFile(*enginePath, flags, 0)
	for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); {
		f, err = os.OpenFile(*enginePath, flags, 0) // the kernel may let go of a closed ring's files late
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func deviceSuite() map[string]func(*testing.T, Engine, *Arena, *os.File) {
	return map[string]func(*testing.T, Engine, *Arena, *os.File){
		"RoundTrip": roundTrip, "Batches": inBatches, "Concurrency": concurrently, "End": deviceEnd,
	}
}

// TestDevice is what of the suite makes sense on a device, in every shape.
func TestDevice(t *testing.T) {
	eachShape(t, func(t *testing.T, cfg RingConfig) {
		for name, test := range deviceSuite() {
			t.Run(name, func(t *testing.T) {
				f := openDevice(t, false)
				a := testArena(t, 16<<20)
				cfg.Arena = a
				r := mustRing(t, cfg)
				file := mustRegister(t, r, f)
				if cfg.Poll && *enginePoll && file.polled < 0 {
					t.Error("the device cannot be polled")
				}
				if err := r.UnregisterFile(file); err != nil {
					t.Error(err)
				}
				test(t, r, a, f)
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

func deviceEnd(t *testing.T, e Engine, a *Arena, f *os.File) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	file := mustRegister(t, e, f)
	b := mustGet(t, a, 8192)
	defer b.Release()
	if n, err := e.Read(file, b.Bytes(), end-4096); n != 4096 || err != io.EOF {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err := e.Read(file, b.Bytes(), end); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}

// TestDeviceCommands identifies an NVMe device, with and without registered memory.
func TestDeviceCommands(t *testing.T) {
	f := openDevice(t, true)
	nsid, err := unix.IoctlRetInt(int(f.Fd()), 0x4E40) // NVME_IOCTL_ID
	if err != nil {
		t.Fatal(err)
	}
	// Admin commands are for the controller's own device.
	dir, err := filepath.EvalSymlinks(filepath.Join("/sys/class/nvme-generic", filepath.Base(f.Name()), "device"))
	if err != nil {
		t.Fatal(err)
	}
	ctrl, err := os.OpenFile(filepath.Join("/dev", filepath.Base(dir)), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ctrl.Close()
	for _, owned := range []bool{false, true} {
		a := testArena(t, 4<<20)
		b := mustGet(t, a, 8192)
		r := mustRing(t, RingConfig{Arena: a, Commands: true, SingleIssuer: owned})
		file, controller := mustRegister(t, r, f), mustRegister(t, r, ctrl)
		plain := make([]byte, 2*pageBytes)
		plain = plain[-address(plain)%pageBytes:][:pageBytes]
		cmds := []Command{
			{Opcode: 0x06, CDW10: 1, P: b.Bytes()[:4096]}, // identify controller
			{Opcode: 0x06, CDW10: 1, P: plain},
			{Opcode: 0x06, NSID: uint32(nsid), P: b.Bytes()[4096:]}, // identify namespace
			{Opcode: 0x06, CDW10: 0xEE, P: make([]byte, 4096)},      // identify nothing that there is
		}
		if err := r.Commands(controller, CommandAdmin, cmds); err != nil {
			t.Fatal(err)
		}
		for i, c := range cmds[:3] {
			if c.Status != 0 || bytes.Equal(c.P, make([]byte, 4096)) {
				t.Errorf("command %d: status %#x, or no data", i, c.Status)
			}
		}
		if !bytes.Equal(cmds[0].P, plain) {
			t.Error("registered memory and other memory got different answers")
		}
		if cmds[3].Status == 0 {
			t.Error("a command without sense succeeded")
		}
		read := []Command{{Opcode: 0x02, NSID: uint32(nsid), P: b.Bytes()[:4096], CDW12: 0}, {Opcode: 0x00, NSID: uint32(nsid)}}
		size := 1 << (cmds[2].P[128+4*int(cmds[2].P[26]&0xF)+2]) // LBADS of the format in use
		read[0].P = b.Bytes()[:size]
		if err := r.Commands(file, CommandIO, read); err != nil || read[0].Status != 0 || read[1].Status != 0 {
			t.Errorf("read and flush: %v, status %#x and %#x", err, read[0].Status, read[1].Status)
		}
		b.Release()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestPollFallsBack checks that what cannot be polled works all the same, and
// that the log says so once.
func TestPollFallsBack(t *testing.T) {
	for _, owned := range []bool{false, true} {
		var text strings.Builder
		r := mustRing(t, RingConfig{Entries: engineEntries, Poll: true, SingleIssuer: owned, Logger: slog.New(slog.NewTextHandler(&text, nil))})
		for range 2 {
			f := testFile(t, 0) // not opened for direct I/O: never polled
			file := mustRegister(t, r, f)
			if file.polled >= 0 {
				t.Error("a buffered file is polled")
			}
			if _, err := r.Write(file, []byte("hello"), 0); err != nil {
				t.Error(err)
			}
			if err := r.Fdatasync(file); err != nil {
				t.Error(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(text.String(), "without polling"); n != 1 {
			t.Errorf("%d lines say that there is no polling:\n%s", n, &text)
		}
	}
}

// polledEngine is a ring that takes regular files for devices that can be polled.
type polledEngine struct{ *Ring }

func (e polledEngine) RegisterFile(f *os.File) (File, error) {
	file, err := e.register(f)
	if err == nil {
		file.polled, err = e.polled.probe(f)
	}
	return file, err
}

// TestPolledRing runs a ring whose second ring polls, without a device that can
// be polled: the second one is not set up for it, but driven as if it were.
func TestPolledRing(t *testing.T) {
	for name, test := range deviceSuite() {
		t.Run(name, func(t *testing.T) {
			a := testArena(t, 16<<20)
			r := mustRing(t, RingConfig{Entries: engineEntries, Arena: a})
			var err error
			r.polled, err = newRing(RingConfig{Entries: engineEntries, Arena: a, SingleIssuer: true, Logger: r.log}, 0, true)
			if err != nil {
				t.Fatal(err)
			}
			f := testFile(t, 0)
			if err := f.Truncate(8 << 20); err != nil {
				t.Fatal(err)
			}
			test(t, polledEngine{r}, a, f)
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
