package demo

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// What the demo writes, in bytes. The devices' prewritten part holds all that is
// written until the rates have been taken, parity included.
const (
	fullPrewriteBytes  = 1 << 30 // of each device
	shortPrewriteBytes = 512 << 20
	fullBigBytes       = 1 << 30 // the one big file
	shortBigBytes      = 256 << 20
	fullRateBytes      = 512 << 20 // each file that a rate is taken from
	shortRateBytes     = 256 << 20
	fullCreates        = 1000
	shortCreates       = 400
	// otherBytes bound the trees, and what is written while a node is dead.
	otherBytes = 512 << 20
	// rawFactor is the room on devices for a byte of a file: parity, and what is removed but not yet free.
	rawFactor = 3
	// spareBytes stay free on the disk beside what is prewritten.
	spareBytes = 4 << 30
)

// sizes are the amounts that one demo works with.
type sizes struct {
	prewriteBytes int64
	bigBytes      int64
	rateBytes     int64
	creates       int
}

// tools are the programs that the demo runs.
type tools struct {
	goCommand string
	goSource  string // Go's own src
	fio       string // empty where there is none
}

// findTools looks for what the demo needs.
func findTools(ctx context.Context) (tools, error) {
	const op = "look at this machine"
	var t tools
	if os.Geteuid() != 0 {
		return t, cfs.Errorf(op, cfs.Permission, "mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return t, cfs.Errorf(op, cfs.NotFound, "the kernel's FUSE is missing (modprobe fuse): %w", err)
	}
	var err error
	if t.goCommand, err = exec.LookPath("go"); err != nil {
		t.goCommand = "/usr/local/go/bin/go" // where the tarball of go.dev goes
	}
	cmd := exec.CommandContext(ctx, t.goCommand, "env", "GOROOT")
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local")
	out, err := cmd.Output()
	if err != nil {
		return t, cfs.Errorf(op, cfs.NotFound, "no Go to copy and to build with: %w", err)
	}
	t.goSource, err = filepath.EvalSymlinks(filepath.Join(strings.TrimSpace(string(out)), "src"))
	if err != nil {
		return t, cfs.Errorf(op, cfs.NotFound, "no source of Go: %w", err)
	}
	t.fio, _ = exec.LookPath("fio")
	return t, nil
}

// planSizes fits the demo to the disk: it prewrites less where there is little room.
func planSizes(dir string, short bool, devices int, deviceBytes int64) (sizes, error) {
	s := sizes{fullPrewriteBytes, fullBigBytes, fullRateBytes, fullCreates}
	if short {
		s = sizes{shortPrewriteBytes, shortBigBytes, shortRateBytes, shortCreates}
	}
	if need := rawFactor * (rounds*s.rateBytes + s.bigBytes + otherBytes) / int64(devices); deviceBytes < need {
		return s, cfs.Errorf("--device-size", cfs.Usage, "%s is too small for the demo: %d devices need %s each", size(deviceBytes), devices, size(need))
	}
	s.prewriteBytes = min(s.prewriteBytes, deviceBytes)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return s, cfs.E("look at the disk of "+dir, cfs.KindOf(err), err)
	}
	free := int64(st.Bavail) * st.Bsize
	for s.prewriteBytes > 0 && s.prewriteBytes*int64(devices)+spareBytes > free {
		s.prewriteBytes = s.prewriteBytes / 2 >> 20 << 20
	}
	if free < spareBytes {
		return s, cfs.Errorf("look at the disk of "+dir, cfs.NoSpace, "%s are free, the demo needs %s", size(free), size(spareBytes))
	}
	return s, nil
}

// makeDir makes the demo's directory.
func makeDir(dir string) (string, error) {
	if dir == "" {
		dir, err := os.MkdirTemp(DefaultParent(), "claudefs-demo-")
		if err != nil {
			return "", cfs.E("make the demo's directory", cfs.KindOf(err), err)
		}
		return dir, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", cfs.E("find "+dir, cfs.KindOf(err), err)
	}
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", cfs.E("make the demo's directory", cfs.KindOf(err), err)
	}
	if len(names) > 0 {
		return "", cfs.Errorf("use "+dir, cfs.NotEmpty, "the demo wants an empty directory (cfs demo down --dir %s removes a cluster)", dir)
	}
	return dir, nil
}
