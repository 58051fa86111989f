package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// fsckCommand is `cfs admin fsck`.
func (f *adminFlags) fsckCommand() *cobra.Command {
	var wait time.Duration
	cmd := f.command("fsck", "compare files, stripes and shards with each other; nothing is changed", cobra.NoArgs,
		func(c *cobra.Command, cc *conn, _ []string) error {
			if wait < 0 {
				return cli.Usage("--wait", "want no negative duration")
			}
			doc, err := f.fsck(c, cc, wait)
			if err != nil {
				return err
			}
			if err := f.print(c, doc, func(w io.Writer) error { return printFsck(w, doc) }); err != nil || doc.Clean {
				return err
			}
			total := uint64(0)
			for _, k := range doc.Faults {
				total += k.Count
			}
			return cfs.Errorf("fsck", cfs.Corrupt, "%s", count(total, "fault"))
		})
	cmd.Long = `Has every server compare the tables of its replica of the namespace, and compares
the stripe table with the shards that the devices list: each stripe has its shards
on the devices of its group, and each shard has a stripe or may still get one. The
cluster may be in use: what looks wrong is looked at several times before it counts.

Stripes that lack shards because a device is down, out or being filled have reduced
redundancy, and are no fault while they can be read. Nor is a server that does not
answer, if it has no vote and its devices are out. Shards are not read: that is what
scrub does. Exit status: 0 clean, 1 faults or a failure, 2 a wrong command line.`
	cmd.Flags().DurationVar(&wait, "wait", 0, "have the servers remove what nothing can name any more, and repeat until clean or for so long")
	return cmd
}

// fsck checks until the cluster is clean or the time is up.
func (f *adminFlags) fsck(c *cobra.Command, cc *conn, wait time.Duration) (*fsckDoc, error) {
	ctx, progress := c.Context(), cli.NewProgress(c.ErrOrStderr())
	defer progress.Clear()
	deadline := time.Now().Add(wait)
	for pass := 1; ; pass++ {
		s, err := cc.status(ctx)
		if err != nil {
			return nil, err
		}
		if wait > 0 {
			progress.Show("the servers compare their shards with the stripe table")
			reconcile(ctx, cc, s, max(time.Until(deadline), f.timeout))
		}
		doc, err := newFsckPass(ctx, cc, s, f.pace.settle).run(ctx, s, progress)
		if err != nil {
			return nil, err
		}
		if doc.Passes = pass; doc.Clean || !time.Now().Before(deadline) {
			return doc, nil
		}
		if err := sleep(ctx, f.pace.poll); err != nil {
			return nil, err
		}
	}
}

// reconcile has all servers compare their shards with the stripe table, and waits
// for that. Which of them do not answer the check finds out.
func reconcile(ctx context.Context, cc *conn, s *state, most time.Duration) {
	each(len(s.m.Nodes), func(i int) {
		_ = cc.askWithin(ctx, most, s.m.Nodes[i].Addr, wire.OpAdmin, &wirepb.Admin{Verb: uint32(wire.VerbReconcile)}, &wirepb.AdminReply{})
	})
}

func printFsck(w io.Writer, d *fsckDoc) error {
	verdict := "clean"
	switch {
	case !d.Complete:
		verdict = fmt.Sprintf("not clean; ended early after %d faults", maxFaults)
	case !d.Clean:
		verdict = "not clean"
	}
	t := cli.NewTable(w, "FSCK", verdict)
	t.Row("files", fmt.Sprintf("%s, %s, in %s", count(d.Inodes, "inode"), count(d.Extents, "extent"), count(d.Replicas, "replica")))
	t.Row("stripes", fmt.Sprintf("%d, %s of data", d.Stripes, cli.Size(d.DataBytes)))
	t.Row("shards", fmt.Sprintf("%d on %s, %d of stripes that are being written", d.Shards, count(d.Devices, "device"), d.Pending))
	if r := d.Reduced; r.Stripes > 0 {
		t.Row("reduced redundancy", fmt.Sprintf("%s, %s of data, up to %s gone", count(r.Stripes, "stripe"), cli.Size(r.DataBytes), count(r.MostGone, "shard")))
	}
	for _, n := range d.Notes {
		t.Row("not asked for", n)
	}
	if err := t.Flush(); err != nil || len(d.Faults) == 0 {
		return err
	}
	for _, f := range d.Faults {
		fmt.Fprintf(w, "\n%s: %d\n", f.kindText(), f.Count)
		for _, e := range f.Examples {
			fmt.Fprintln(w, "  "+e)
		}
		if more := f.Count - uint64(len(f.Examples)); more > 0 && len(f.Examples) == maxExamples {
			fmt.Fprintf(w, "  and %d more\n", more)
		}
	}
	return nil
}

func (f *faultDoc) kindText() string {
	for _, k := range faultKinds {
		if k.kind == f.Kind {
			return k.text
		}
	}
	return string(f.Kind)
}
