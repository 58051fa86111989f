package test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fioTimeout ends a fio that hangs, and programsTimeout a script.
const (
	fioTimeout      = 2 * time.Minute
	programsTimeout = 2 * time.Minute
)

// fio writes, and reads back to verify, by its own checksums in each block.
func TestFioVerify(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("there is no fio")
	}
	c := start(t, nil)
	for name, args := range map[string][]string{
		"sequential":        {"--rw=write", "--bs=1M", "--size=48M", "--ioengine=psync", "--fsync_on_close=1"},
		"odd blocks":        {"--rw=randwrite", "--bsrange=512-96k", "--bs_unaligned", "--size=12M", "--ioengine=psync", "--norandommap"},
		"random":            {"--rw=randwrite", "--bs=4k", "--size=8M", "--ioengine=psync", "--fsync=64"},
		"direct, queued":    {"--rw=randwrite", "--bs=16k", "--size=16M", "--ioengine=io_uring", "--iodepth=16", "--direct=1"},
		"mapped":            {"--rw=randwrite", "--bs=4k", "--size=8M", "--ioengine=mmap"},
		"mixed":             {"--rw=randrw", "--rwmixread=40", "--bs=8k", "--size=8M", "--ioengine=psync", "--verify_backlog=64"},
		"several processes": {"--rw=randwrite", "--bs=4k", "--size=3M", "--ioengine=psync", "--numjobs=4"},
	} {
		t.Run(name, func(t *testing.T) {
			m := mount(t, c, strings.ReplaceAll(name, " ", "-"))
			ctx, cancel := context.WithTimeout(t.Context(), fioTimeout)
			defer cancel()
			cmd := exec.CommandContext(ctx, "fio", append([]string{"--name=verify", "--directory=" + m.Point, "--verify=crc32c",
				"--verify_fatal=1", "--verify_state_save=0", "--do_verify=1", "--unlink=1", "--randrepeat=0", "--output-format=terse"}, args...)...)
			cmd.WaitDelay = time.Second
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("fio: %v\n%s", err, out)
			}
		})
	}
}

// Programs that people use, in the short form of the script that `make programs` runs.
func TestRealPrograms(t *testing.T) {
	c := start(t, nil)
	script, err := filepath.Abs("../hack/realprograms.sh")
	must(t, err)
	// go build is left to the demo.
	for _, step := range []string{"git", "sqlite", "tar", "rsync", "dpkg", "dbench"} {
		t.Run(step, func(t *testing.T) {
			m := mount(t, c, step)
			ctx, cancel := context.WithTimeout(t.Context(), programsTimeout)
			defer cancel()
			cmd := exec.CommandContext(ctx, script, "--in", m.Point, step)
			cmd.WaitDelay = time.Second
			out, err := cmd.CombinedOutput()
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
		})
	}
}
