package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// probeLead is how long the probes run before the kill, and after the cluster is usable again.
	probeLead = time.Second
	// probeLeast is how long they run after the kill at least.
	probeLeast = 5 * time.Second
	// degradedBigBytes is the largest file that is written while a node is dead.
	degradedBigBytes = 64 << 20
	// degradedFiles is how many others there are.
	degradedFiles = 60
)

// killOne kills the leader while the probes work and records the longest operation.
func (d *demo) killOne(ctx context.Context) error {
	p, err := startProbe(filepath.Join(d.point, "probe"), filepath.Join(d.point, "big"), d.sizes.bigBytes)
	if err != nil {
		return err
	}
	killErr := d.killUnderProbe(ctx, p)
	longest, which, ops, err := p.end(ctx)
	if killErr != nil {
		return killErr
	}
	if err != nil {
		return err
	}
	d.rates.stall, d.rates.stallOp = longest, which
	d.out.result("the longest of %s operations across the death took %s (%s)", count(ops), seconds(longest), which)
	return nil
}

func (d *demo) killUnderProbe(ctx context.Context, p *probe) error {
	if err := sleep(ctx, probeLead); err != nil {
		return err
	}
	leader, err := d.cl.Leader(ctx)
	if err != nil {
		return err
	}
	p.mark()
	killed := time.Now()
	if err := d.cl.Kill(leader); err != nil {
		return err
	}
	d.dead = leader
	if err := d.cl.WaitUsable(ctx); err != nil {
		return err
	}
	d.out.result("node %d is dead; the others lead and take redundant writes after %s", leader, seconds(time.Since(killed)))
	return sleep(ctx, max(probeLead, probeLeast-time.Since(killed)))
}

// sleep waits unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return cfs.E("wait", cfs.Canceled, ctx.Err())
	case <-time.After(d):
		return nil
	}
}

func (d *demo) verifyDegraded(ctx context.Context) error {
	fetched, err := d.verifyAll(ctx)
	if err != nil {
		return err
	}
	if fetched.reconstructed == 0 {
		return cfs.Errorf("verify with a node dead", cfs.Corrupt, "no shard was reconstructed: the bytes cannot have come from where they should")
	}
	d.rates.degraded = perSecond(d.want.bytes, fetched.took)
	return nil
}

// writeDegraded writes files of many sizes.
func (d *demo) writeDegraded(ctx context.Context) error {
	const rel = "degraded"
	if err := os.Mkdir(filepath.Join(d.point, rel), 0o755); err != nil {
		return cfs.E("make "+rel, cfs.KindOf(err), err)
	}
	d.want.add(entry{rel: rel, mode: os.ModeDir | 0o755&^umask()})
	begun, total := time.Now(), int64(0)
	for i := range degradedFiles + 1 {
		n := int64(1) << (i % 22) // up to 2 MiB
		if i == degradedFiles {
			n = degradedBigBytes
		}
		if ctx.Err() != nil {
			return cfs.E("write with a node dead", cfs.Canceled, ctx.Err())
		}
		e := entry{rel: filepath.Join(rel, fmt.Sprintf("file-%02d", i)), mode: 0o644 &^ umask(), size: n - 1}
		var err error
		if e.sum, err = writePattern(filepath.Join(d.point, e.rel), 100+uint64(i), e.size); err != nil {
			return err
		}
		d.want.add(e)
		total += e.size
	}
	d.out.result("%d files, %s, each fsynced, in %s", degradedFiles+1, size(total), seconds(time.Since(begun)))
	return nil
}

func (d *demo) restartOne(ctx context.Context) error {
	begun := time.Now()
	if err := d.cl.Restart(ctx, d.dead); err != nil {
		return err
	}
	d.out.result("node %d is back after %s", d.dead, seconds(time.Since(begun)))
	return d.syncAll(ctx)
}

func (d *demo) killAll(ctx context.Context) error {
	if err := d.cl.KillAll(); err != nil {
		return err
	}
	begun := time.Now()
	if err := d.cl.StartAll(ctx); err != nil {
		return err
	}
	d.out.result("killed; usable again after %s", seconds(time.Since(begun)))
	if _, err := d.cl.Mount(ctx, MountName); err != nil {
		return err
	}
	_, err := d.verifyMounted(ctx)
	return err
}
