package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/rawdisk"
	"github.com/claudefs/claudefs/internal/units"
)

// The shapes of load of a FileConfig.
const (
	ShapeWrite     = "write"     // in order, 1 MiB each, fsync at the end
	ShapeRead      = "read"      // in order, 1 MiB each, cold
	ShapeRandRead  = "randread"  // 4 KiB, direct, 16 at a time
	ShapeSyncWrite = "syncwrite" // 4 KiB at random, each with its fsync
	ShapeDegraded  = "degraded"  // ShapeRead with a node killed
	ShapeSlow      = "slow"      // 4 KiB random direct reads, one at a time, a node slowed
	ShapeOverwrite = "overwrite" // 4 KiB at random, as many bytes as the file; then idle
	ShapeRebuild   = "rebuild"   // a device is lost, in a cluster of its own
)

// shapeInfo says what a shape needs.
type shapeInfo struct {
	name string
	own  bool // a cluster that the bench may break
	asks bool // the address of a server
}

// shapeTable is in the order in which the shapes are prepared and take their turns.
var shapeTable = []shapeInfo{
	{ShapeOverwrite, false, true}, // first: its devices hold nothing else then
	{ShapeWrite, false, false},
	{ShapeRead, false, false},
	{ShapeDegraded, true, false},
	{ShapeRandRead, false, false},
	{ShapeSlow, true, false},
	{ShapeSyncWrite, false, false},
	{ShapeRebuild, true, false},
}

// ShapeNames are all shapes.
func ShapeNames() []string {
	var names []string
	for _, s := range shapeTable {
		names = append(names, s.name)
	}
	return names
}

// The cluster that a bench starts, and sizes.
const (
	fileNodes   = 3
	fileDevices = 2
	// minFileBytes is the least file that a rate is taken of.
	minFileBytes = 8 << 20
	// syncFileBytes is the file that small durable writes go to, at most.
	syncFileBytes = 64 << 20
	// leastDeviceBytes is the least device of a cluster, deviceUnit what sizes are rounded to.
	leastDeviceBytes = 1 << 30
	deviceUnit       = 256 << 20
	// rawFactor is the room on devices for each byte that is written: parity, and what is
	// removed but not yet free.
	rawFactor = 2
	// randDepth is the depth of ShapeRandRead.
	randDepth  = 16
	smallBytes = 4 << 10
	largeBytes = 1 << 20
	largeDepth = 8 // of fio
	// slowBy is how late a slowed node answers.
	slowBy = 200 * time.Millisecond
)

// FileConfig is a bench of files in a mounted cluster, beside fio on the disk below it.
type FileConfig struct {
	// Cfs is the path of cfs, by which a cluster is started below Dir, on the disk that counts.
	Cfs string `json:"-"`
	Dir string `json:"-"`
	// Mount is a directory of a mounted cluster, to be measured instead; Disk is a directory on
	// the disk of its devices, Dir where empty, and Server one of its servers, for shapes that
	// ask.
	Mount  string `json:"-"`
	Disk   string `json:"-"`
	Server string `json:"-"`

	Shapes         []string    `json:"shapes"`    // of ShapeNames; empty for all that can be
	FileBytes      units.Bytes `json:"file"`      // of each file that a rate is taken of
	OverwriteBytes units.Bytes `json:"overwrite"` // of the file of ShapeOverwrite; 0 for FileBytes
	DeviceBytes    units.Bytes `json:"device"`    // of each device, written once in full; 0 for what is needed
	Runtime        Duration    `json:"runtime"`   // of each round of small operations
	Settle         Duration    `json:"settle"`    // how long devices may take to come to rest
	Rounds         int         `json:"rounds"`
	Seed           uint64      `json:"seed"`

	Progress Progress `json:"-"`

	quiet time.Duration // settleQuiet, but for tests
}

// complete fills the defaults in.
func (c *FileConfig) complete() {
	if c.quiet == 0 {
		c.quiet = settleQuiet
	}
	if c.OverwriteBytes == 0 {
		c.OverwriteBytes = c.FileBytes
	}
	if len(c.Shapes) == 0 {
		for _, s := range shapeTable {
			if c.Mount == "" || !s.own && (!s.asks || c.Server != "") {
				c.Shapes = append(c.Shapes, s.name)
			}
		}
	}
	if c.DeviceBytes == 0 {
		written := int64(c.FileBytes)
		if c.has(ShapeWrite) {
			written += int64(c.FileBytes) * int64(max(c.Rounds, 0))
		}
		if c.has(ShapeOverwrite) {
			written += int64(c.OverwriteBytes) * 4 // the file, its overwrites as copies, a fresh one
		}
		each := written * rawFactor / (fileNodes * fileDevices)
		c.DeviceBytes = units.Bytes(max(leastDeviceBytes, (each+deviceUnit-1)/deviceUnit*deviceUnit))
	}
	if c.Disk == "" {
		c.Disk = c.Dir
	}
}

func (c *FileConfig) has(shape string) bool { return slices.Contains(c.Shapes, shape) }

// check refuses what cannot be run. The kind is Usage.
func (c *FileConfig) check() error {
	for _, name := range c.Shapes {
		i := slices.IndexFunc(shapeTable, func(s shapeInfo) bool { return s.name == name })
		switch {
		case i < 0:
			return cfs.Errorf("--shape", cfs.Usage, "%q is none of %s", name, strings.Join(ShapeNames(), ", "))
		case c.Mount != "" && shapeTable[i].own:
			return cfs.Errorf("--shape", cfs.Usage, "%s breaks the cluster: it needs one of its own, not --mount", name)
		case c.Mount != "" && shapeTable[i].asks && c.Server == "":
			return cfs.Errorf("--shape", cfs.Usage, "%s asks the cluster's devices: with --mount it needs --server", name)
		}
	}
	for _, size := range []struct {
		flag  string
		bytes units.Bytes
		least units.Bytes
	}{{"--file", c.FileBytes, minFileBytes}, {"--overwrite", c.OverwriteBytes, minFileBytes}, {"--device-size", c.DeviceBytes, deviceUnit}} {
		if size.bytes < size.least || size.bytes%largeBytes != 0 {
			return cfs.Errorf(size.flag, cfs.Usage, "%s: want whole MiB, at least %s", size.bytes, size.least)
		}
	}
	if c.Runtime <= 0 || c.Settle <= 0 {
		return cfs.Errorf("--runtime, --settle", cfs.Usage, "want positive durations")
	}
	return checkRounds(c.Rounds)
}

// BenchFile measures files in a cluster of three nodes of two devices, which it
// starts and removes, or in one that is mounted. Rows have the labels op, engine (cfs,
// or fio on a file of the same disk that has been written once in full) and what else
// tells them apart: depth, state.
func BenchFile(ctx context.Context, cfg FileConfig) (rep *Report, err error) {
	cfg.complete()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	b := &fileBench{cfg: &cfg}
	if b.fio, err = rawdisk.FindFio(); err != nil {
		return nil, err
	}
	defer func() {
		if cerr := b.close(ctx); cerr != nil {
			rep, err = nil, errors.Join(err, cerr)
		}
	}()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	return b.rep.finish(), nil
}

// fileBench is a FileConfig at work.
type fileBench struct {
	cfg     *FileConfig
	rep     *Report
	fio     string // the program
	scratch string // directory on the disk, ours
	disk    string // file in it, for fio
	cluster *ownCluster
	server  string
	dir     string // in the mount, ours
}

// open makes the cluster, and the files that all shapes work on.
func (b *fileBench) open(ctx context.Context) error {
	var err error
	if b.scratch, err = os.MkdirTemp(b.cfg.Disk, "cfs-perf-"); err != nil {
		return cfs.E("make a directory on the disk", cfs.KindOf(err), err)
	}
	if b.scratch, err = filepath.Abs(b.scratch); err != nil {
		return cfs.E("find "+b.scratch, cfs.KindOf(err), err)
	}
	b.disk = filepath.Join(b.scratch, "fio")
	b.cfg.Progress.say("writing %s once, %s", b.disk, b.cfg.FileBytes)
	if err := rawdisk.Prewrite(ctx, b.disk, int64(b.cfg.FileBytes)); err != nil {
		return err
	}
	point := b.cfg.Mount
	b.server = b.cfg.Server
	if point == "" {
		total := b.cfg.DeviceBytes * fileNodes * fileDevices
		b.cfg.Progress.say("starting %d nodes of %d devices, which are written once, %s in all", fileNodes, fileDevices, total)
		b.cluster, err = startCluster(ctx, b.cfg.Cfs, filepath.Join(b.scratch, "cluster"), fileNodes, fileDevices, int64(b.cfg.DeviceBytes))
		if err != nil {
			return err
		}
		point, b.server = b.cluster.point(), b.cluster.server()
	}
	if b.dir, err = os.MkdirTemp(point, "cfs-perf-"); err != nil {
		return cfs.E("make a directory in the mount", cfs.KindOf(err), err)
	}
	b.rep = newReport("file", point)
	if b.cluster != nil {
		b.rep.Device = fmt.Sprintf("%d nodes of %d devices of %s in files in %s", fileNodes, fileDevices, b.cfg.DeviceBytes, b.cfg.Disk)
	} else {
		b.rep.note("cold is what the kernel's cache does not have: the mount is not made anew for each read")
	}
	return nil
}

// close leaves nothing behind: not of ours in a mount, and no cluster of ours.
func (b *fileBench) close(ctx context.Context) error {
	var err error
	if b.cluster != nil {
		err = b.cluster.close(ctx)
	} else if b.dir != "" {
		err = os.RemoveAll(b.dir)
	}
	if b.scratch == "" {
		return err
	}
	if b.cluster != nil && err != nil {
		// Its files tell whoever cleans up what still runs.
		return errors.Join(err, os.Remove(b.disk))
	}
	return errors.Join(err, os.RemoveAll(b.scratch))
}

// path is a file in the mount.
func (b *fileBench) path(name string) string { return filepath.Join(b.dir, name) }

// run prepares and measures every shape.
func (b *fileBench) run(ctx context.Context) error {
	prepare := map[string]func(context.Context) ([]turn, error){
		ShapeOverwrite: b.overwriteTurns, ShapeWrite: b.writeTurns, ShapeRead: b.readTurns, ShapeDegraded: b.degradedTurns,
		ShapeRandRead: b.randReadTurns, ShapeSlow: b.slowTurns, ShapeSyncWrite: b.syncWriteTurns, ShapeRebuild: b.rebuildTurns,
	}
	var turns []turn
	for _, s := range shapeTable {
		if !b.cfg.has(s.name) {
			continue
		}
		more, err := prepare[s.name](ctx)
		if err != nil {
			return cfs.E(s.name, cfs.KindOf(err), err)
		}
		turns = append(turns, more...)
	}
	for i := range turns {
		turns[i].run = ratesOnly(turns[i].run)
	}
	return interleave(ctx, b.cfg.Rounds, turns, b.cfg.Progress)
}

// ratesOnly leaves out what a load has cost its own process: the mount's daemon and the
// servers, which it is not, do the work.
func ratesOnly(run func(context.Context) (Values, error)) func(context.Context) (Values, error) {
	return func(ctx context.Context) (Values, error) {
		v, err := run(ctx)
		delete(v, CPUPerOp)
		delete(v, AllocsPerOp)
		return v, err
	}
}
