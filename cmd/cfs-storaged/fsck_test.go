package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/cmd/internal/servercmd"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/nvme"
)

// makeDevice is a file with a log of a few records, and where the file has the last one's payload.
func makeDevice(t *testing.T) (path string, payload int64) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(t.TempDir(), "device")
	must(os.WriteFile(path, nil, 0o600))
	must(os.Truncate(path, nvme.HeaderAreaBytes+nvme.MinSegments*(1<<20)))
	arena, err := iopath.NewArena(2 * nvme.LogArenaBytes)
	must(err)
	ring, err := iopath.NewRing(iopath.RingConfig{Arena: arena})
	must(err)
	dev, err := nvme.OpenDevice(path, ring)
	must(err)
	must(nvme.Format(dev, nvme.Superblock{ClusterID: "lab", Device: cfs.MakeDeviceID(2, 1), SegmentBytes: 1 << 20}, false))
	log, err := nvme.OpenLog(dev, arena, nvme.LogOptions{})
	must(err)
	buf, err := arena.Get(t.Context(), 8192)
	must(err)
	for i := range uint64(5) {
		copy(buf.Bytes(), bytes.Repeat([]byte{'p', byte('0' + i)}, 4096))
		st := cfs.StripeID{Session: 1, Counter: i}
		must(log.Put(t.Context(), nvme.Record{Key: nvme.Key{Stripe: st}, PG: 1, Epoch: 1, Len: 8192}, ec.BlockCRCs(nil, st, 0, 0, buf.Bytes()), buf))
	}
	buf.Release()
	must(errors.Join(log.Close(), dev.Close(), ring.Close(), arena.Close()))
	image, err := os.ReadFile(path)
	must(err)
	return path, int64(bytes.Index(image, []byte("p1p1p1p1")))
}

// run is cfs-storaged with arguments.
func run(args ...string) (code int, stdout, stderr string) {
	root := servercmd.New("cfs-storaged")
	root.AddCommand(fsckCommand())
	var out, errs bytes.Buffer
	root.SetArgs(args)
	root.SetOut(&out)
	code = cli.Run(context.Background(), root, &errs)
	return code, out.String(), errs.String()
}

func TestFsck(t *testing.T) {
	path, payload := makeDevice(t)
	if code, out, stderr := run("fsck", path); code != cli.ExitOK || stderr != "" ||
		!strings.Contains(out, "device 2/1 of cluster lab") || !strings.Contains(out, "find: 5 records") || !strings.Contains(out, "no problems") {
		t.Errorf("exit %d, stderr %q:\n%s", code, stderr, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{'!'}, payload+5000)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if code, out, stderr := run("fsck", path); code != cli.ExitFailed || !strings.Contains(stderr, path) || !strings.Contains(stderr, "1 problems") || strings.Count(stderr, "\n") != 1 ||
		!strings.Contains(out, "payload") || !strings.Contains(out, "1.1/0") {
		t.Errorf("exit %d, stderr %q:\n%s", code, stderr, out)
	}
	code, out, _ := run("fsck", "--json", path)
	var report nvme.CheckReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != cli.ExitFailed {
		t.Fatalf("exit %d, %v:\n%s", code, err, out)
	}
	if report.Live != 5 || len(report.Problems) != 1 || report.Problems[0].Kind != nvme.ProblemPayload || report.Problems[0].Offset != payload+4096 || len(report.Segments) != nvme.MinSegments {
		t.Errorf("%+v", report)
	}
	if code, out, _ := run("fsck", "--quick", path); code != cli.ExitOK {
		t.Errorf("quick: exit %d:\n%s", code, out)
	}
}

func TestFsckRefusals(t *testing.T) {
	path, _ := makeDevice(t)
	blank := filepath.Join(t.TempDir(), "blank")
	if err := os.WriteFile(blank, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ring, err := iopath.NewRing(iopath.RingConfig{})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := nvme.OpenDevice(path, ring)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(dev.Close(), ring.Close()); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"fsck"}, cli.ExitUsage, "arg"},
		{[]string{"fsck", "a", "b"}, cli.ExitUsage, "arg"},
		{[]string{"fsck", blank, "--problems", "0"}, cli.ExitUsage, "--problems"},
		{[]string{"fsck", blank, "--loud"}, cli.ExitUsage, "--loud"},
		{[]string{"fsck", blank}, cli.ExitFailed, "not formatted"},
		{[]string{"fsck", filepath.Join(t.TempDir(), "none")}, cli.ExitFailed, "none"},
		{[]string{"fsck", t.TempDir()}, cli.ExitFailed, "neither"},
		{[]string{"fsck", path}, cli.ExitFailed, "in use"},
		{[]string{"surplus"}, cli.ExitUsage, "surplus"},
	} {
		code, out, stderr := run(c.args...)
		if code != c.code || out != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: exit %d, want %d; stdout %q; stderr %q, want %q", c.args, code, c.code, out, stderr, c.want)
		}
	}
}
