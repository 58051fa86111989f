package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cluster"
)

const (
	// interruptGrace is how long a step may take to notice that it is cancelled.
	interruptGrace = 3 * time.Second
	// abortGrace is how long it may take when its mount has been taken away.
	abortGrace = 20 * time.Second
	// stopTimeout bounds the orderly stop at the end.
	stopTimeout = 90 * time.Second
)

// demo is one run.
type demo struct {
	opt   Options
	out   *printer
	dir   string
	tools tools
	sizes sizes

	cl    *cluster.Cluster
	mount *cluster.Mount
	point string // the mount point
	tree  []entry
	want  manifest
	rates rates
	dead  int // the node that was killed
}

// Run runs the demo: nil only if every byte was right. Without opt.Keep nothing
// is left behind, whatever happens.
func Run(ctx context.Context, opt Options) (err error) {
	if err := opt.check(); err != nil {
		return err
	}
	d := &demo{opt: opt, out: &printer{w: opt.Out, terminal: opt.Terminal}}
	if d.tools, err = findTools(ctx); err != nil {
		return err
	}
	if d.dir, err = makeDir(opt.Dir); err != nil {
		return err
	}
	d.point = filepath.Join(d.dir, MountName)
	steps := d.steps()
	d.out.steps = len(steps)
	for _, s := range steps {
		d.out.step(s.title)
		if err = d.runStep(ctx, s.run); err != nil {
			break
		}
	}
	if err == nil {
		err = d.report(ctx)
	}
	if err != nil {
		d.explain(err)
	}
	if opt.Keep && d.mount != nil && d.cl.Dir() == d.dir && ctx.Err() == nil {
		d.keep()
		return err
	}
	return errors.Join(err, d.cleanUp(ctx, err == nil))
}

// step is one of the demo's acts.
type step struct {
	title string
	run   func(context.Context) error
}

// steps are all of them, in order.
func (d *demo) steps() []step {
	nodes, devices := d.opt.Nodes, d.opt.Devices
	return []step{
		{"Look at this machine", d.look},
		{"Write to fresh devices: a cluster of its own, whose device files are sparse", d.freshRate},
		{fmt.Sprintf("Start %d nodes of %d devices of %s and mount", nodes, devices, size(d.opt.DeviceSizeBytes)), d.start},
		{"Copy Go's own source tree in", d.copyTree},
		{"Mount anew and verify it, byte for byte", d.verify},
		{"Build a Go program inside the mount and run it", d.build},
		{"Take sequential rates, in turn with fio on this disk", d.sequentialRates},
		{"Write a big file, mount anew and check its SHA-256", d.bigFile},
		{"Create and close files from one thread", d.createRate},
		{"Fsync every file and directory", d.syncAll},
		{"Kill the leading node with SIGKILL under load", d.killOne},
		{"Mount anew and read everything with that node dead", d.verifyDegraded},
		{"Write more while it is dead", d.writeDegraded},
		{"Start it again and fsync everything", d.restartOne},
		{"Kill every process at once, start the cluster, mount and verify everything", d.killAll},
	}
}

// runStep runs a step so that a cancelled context ends it even if it waits for
// a mount that does not answer: then the mount is taken away.
func (d *demo) runStep(ctx context.Context, run func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	d.out.result("interrupted: cleaning up")
	for _, grace := range []time.Duration{interruptGrace, abortGrace} {
		select {
		case <-done:
			return cfs.Errorf("demo", cfs.Canceled, "interrupted")
		case <-time.After(grace):
		}
		if m := d.mount; m != nil { // no step that starts or stops the cluster outlasts its context for long
			m.Kill()
		}
	}
	return cfs.Errorf("demo", cfs.Canceled, "interrupted")
}

func (d *demo) look(context.Context) error {
	var err error
	d.sizes, err = planSizes(d.dir, d.opt.Short, d.opt.Nodes*d.opt.Devices, d.opt.DeviceSizeBytes)
	if err != nil {
		return err
	}
	d.out.result("everything goes to %s; %s of each device are written once before rates are taken", d.dir, size(d.sizes.prewriteBytes))
	if d.tools.fio == "" {
		d.out.result("fio is not installed: rates will have nothing to be compared with")
	}
	return nil
}

// freshRate measures a write to device files that have never been written to.
func (d *demo) freshRate(ctx context.Context) (err error) {
	spec := d.opt.spec(filepath.Join(d.dir, "fresh"))
	spec.PrewriteBytes = 0
	if d.cl, err = cluster.Start(ctx, spec); err != nil {
		return err
	}
	if d.mount, err = d.cl.Mount(ctx, MountName); err != nil {
		return err
	}
	d.rates.fresh, err = seqWrite(ctx, filepath.Join(d.mount.Point, "fresh"), d.sizes.rateBytes)
	if err != nil {
		return err
	}
	d.out.result("%s at %s", size(d.sizes.rateBytes), megabytes(d.rates.fresh))
	if err := d.cl.Remove(ctx); err != nil {
		return err
	}
	d.cl, d.mount = nil, nil
	return nil
}

func (d *demo) start(ctx context.Context) (err error) {
	spec := d.opt.spec(d.dir)
	spec.PrewriteBytes = d.sizes.prewriteBytes
	spec.Detach = d.opt.Keep
	d.out.progress("writing %s of each device once, then starting", size(spec.PrewriteBytes))
	begun := time.Now()
	if d.cl, err = cluster.Start(ctx, spec); err != nil {
		return err
	}
	if d.mount, err = d.cl.Mount(ctx, MountName); err != nil {
		return err
	}
	leader, err := d.cl.Leader(ctx)
	if err != nil {
		return err
	}
	d.out.result("usable after %s, led by node %d, mounted at %s; connections: %s", seconds(time.Since(begun)), leader, d.mount.Point, d.security())
	return nil
}

// security says how connections are made.
func (d *demo) security() string {
	if d.opt.TLS {
		return "TLS"
	}
	return "no TLS"
}

func (d *demo) remount(ctx context.Context) error { return d.mount.Remount(ctx) }

// bigFile writes the big file and checks its sum through a new mount.
func (d *demo) bigFile(ctx context.Context) error {
	const rel = "big"
	path := filepath.Join(d.point, rel)
	sum, err := writePattern(path, 2, d.sizes.bigBytes)
	if err != nil {
		return err
	}
	e := entry{rel: rel, mode: 0o644 &^ umask(), size: d.sizes.bigBytes, sum: sum}
	big := manifest{}
	big.add(e)
	fetched, err := d.throughNewMount(ctx, &big, func() error {
		return e.verify(path, &[2][]byte{make([]byte, ioBytes), nil})
	})
	if err != nil {
		return err
	}
	d.want.add(e)
	d.out.result("%s, SHA-256 %x is right; %v", size(e.size), sum[:8], fetched)
	return nil
}

func (d *demo) createRate(ctx context.Context) (err error) {
	const rel = "created"
	if d.rates.creates, err = creates(ctx, filepath.Join(d.point, rel), d.sizes.creates); err != nil {
		return err
	}
	list, err := scan(ctx, d.point, rel)
	if err != nil {
		return err
	}
	if len(list) != d.sizes.creates+1 {
		return cfs.Errorf("list the created files", cfs.Corrupt, "%d are there, %d were made", len(list)-1, d.sizes.creates)
	}
	d.want.add(list...)
	d.out.result("%s files, %.0f a second", count(d.sizes.creates), d.rates.creates)
	return nil
}

func (d *demo) syncAll(ctx context.Context) error {
	begun := time.Now()
	if err := d.want.syncAll(ctx, d.point); err != nil {
		return err
	}
	d.out.result("%s paths in %s", count(len(d.want.entries)), seconds(time.Since(begun)))
	return nil
}

// explain says where a failure may have come from: the ends of the logs.
func (d *demo) explain(err error) {
	if d.cl == nil || errors.Is(err, cfs.Canceled) {
		return
	}
	for n := range d.cl.Nodes() {
		d.out.result("node %d (running: %v) said at last:", n+1, d.cl.Alive(n+1))
		d.out.text(cluster.Tail(d.cl.LogPath(n+1), 5) + "\n")
	}
	if d.mount != nil {
		d.out.result("the mount said at last:")
		d.out.text(cluster.Tail(d.mount.LogPath(), 5) + "\n")
	}
}

// keep says how to use and stop what is left.
func (d *demo) keep() {
	self, server := d.opt.Binary, d.cl.AdminAddr(1)
	d.out.text(fmt.Sprintf("\nThe cluster stays.\n  use it:   ls %s\n  look:     %s admin status --server %s\n  stop it:  %s demo down --dir %s\n",
		d.mount.Point, self, server, self, d.dir))
}

// cleanUp leaves nothing behind: in order where all went well, by force otherwise.
func (d *demo) cleanUp(ctx context.Context, orderly bool) error {
	var err error
	if d.cl != nil {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		if orderly {
			err = d.cl.Remove(ctx)
		} else {
			err = d.cl.Destroy()
		}
	}
	// What is below the directory now is what failed to go, or somebody else's: it stays.
	os.Remove(filepath.Join(d.dir, "fio.dat"))
	os.Remove(filepath.Join(d.dir, "fresh"))
	if rerr := os.Remove(d.dir); rerr != nil && !errors.Is(rerr, os.ErrNotExist) && err == nil {
		err = cfs.E("remove "+d.dir, cfs.KindOf(rerr), rerr)
	}
	return err
}
