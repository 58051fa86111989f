package demo

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// The targets of the rates.
const (
	targetWrite   = 0.25 // of fio's direct write
	targetRead    = 0.4  // of fio's direct read
	targetCreates = 800  // a second
	targetStall   = 3 * time.Second
)

// rates are what a demo measured; 0 where it did not.
type rates struct {
	write, read         float64 // bytes a second through the mount
	diskWrite, diskRead float64 // bytes a second by fio
	fresh               float64 // bytes a second written to fresh devices
	degraded            float64 // bytes a second verified with a node dead
	creates             float64 // files a second
	copyFiles           float64 // files a second
	verifyFiles         float64 // files a second
	build               time.Duration
	stall               time.Duration
	stallOp             string
}

// report prints the rates and the cluster's status.
func (d *demo) report(ctx context.Context) error {
	status, err := d.command(ctx, d.dir, nil, d.opt.Binary, "admin", "status", "--server", d.cl.AdminAddr(1))
	if err != nil {
		return err
	}
	d.out.text(fmt.Sprintf("\nRates (%d processes on this machine, TCP, %s; fio: direct, 1 MiB, queue depth 8, the same disk in the same run)\n%s\ncfs admin status\n%s\nEvery byte was right.\n",
		d.opt.Nodes+1, d.security(), indent(table(d.rates.rows())), indent(status)))
	return nil
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}

// rows is the table of the rates, with targets and verdicts.
func (r *rates) rows() [][]string {
	ratio := func(ours, disk float64) (text string, value float64) {
		if disk == 0 {
			return "-", 0
		}
		return fmt.Sprintf("%.2f", ours/disk), ours / disk
	}
	verdict := func(known, met bool) string {
		switch {
		case !known:
			return "not measured"
		case met:
			return "met"
		}
		return "MISSED"
	}
	write, writeRatio := ratio(r.write, r.diskWrite)
	read, readRatio := ratio(r.read, r.diskRead)
	fresh, _ := ratio(r.fresh, r.diskWrite)
	return [][]string{
		{"WHAT", "THROUGH THE MOUNT", "DISK (FIO)", "RATIO", "TARGET", "VERDICT"},
		{"sequential write, fsync at the end", megabytes(r.write), diskRate(r.diskWrite), write, fmt.Sprintf(">= %.2f (4+2 allows 0.67)", targetWrite), verdict(r.diskWrite > 0, writeRatio >= targetWrite)},
		{"the same on fresh devices", megabytes(r.fresh), diskRate(r.diskWrite), fresh, "", ""},
		{"sequential read, cold", megabytes(r.read), diskRate(r.diskRead), read, fmt.Sprintf(">= %.2f", targetRead), verdict(r.diskRead > 0, readRatio >= targetRead)},
		{"create and close, one thread", fmt.Sprintf("%.0f /s", r.creates), "", "", fmt.Sprintf(">= %d /s", targetCreates), verdict(true, r.creates >= targetCreates)},
		{"longest operation across a node's death", fmt.Sprintf("%s (%s)", seconds(r.stall), r.stallOp), "", "", "<= " + seconds(targetStall), verdict(true, r.stall <= targetStall)},
		{fmt.Sprintf("copy Go's src, %d threads", workers), fmt.Sprintf("%.0f files/s", r.copyFiles), "", "", "", ""},
		{fmt.Sprintf("verify it cold, %d threads", workers), fmt.Sprintf("%.0f files/s", r.verifyFiles), "", "", "", ""},
		{"verify all with a node dead", megabytes(r.degraded), "", "", "", ""},
		{"go build, cache in the mount", seconds(r.build), "", "", "", ""},
	}
}
