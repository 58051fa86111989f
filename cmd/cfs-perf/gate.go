package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/perf"
)

// gateFlags are the flags of the gate.
type gateFlags struct {
	out     output
	profile string
	targets string
	dir     string
	file    string
	cfs     string
}

func gateCommand() *cobra.Command {
	var f gateFlags
	cmd := &cobra.Command{
		Use:   "gate",
		Short: "measure what there are targets for, and fail on a miss",
		Long: `Runs the benches that a profile's targets name, each once, and compares. While a
hard target is missed its bench runs again, with more rounds, up to three times in
all; the best median counts, and the table says how often it ran.`,
		Args: cobra.NoArgs,
		RunE: f.run,
	}
	fl := cmd.Flags()
	f.out.add(fl)
	fl.StringVar(&f.profile, "profile", "ci", "the targets that are built in under this name")
	fl.StringVar(&f.targets, "targets", "", "a directory of target files, instead of those that are built in")
	fl.StringVar(&f.dir, "dir", defaultDir(), "where the files to measure on are made, and removed at the end: the disk that counts")
	fl.StringVar(&f.cfs, "cfs", besideSelf("cfs"), "the program that clusters are started with")
	fl.StringVar(&f.file, "out", "", "write the JSON document to this file, too")
	return cmd
}

// defaultDir is on the disk rather than in memory.
func defaultDir() string {
	const disk = "/var/tmp"
	if st, err := os.Stat(disk); err == nil && st.IsDir() {
		return disk
	}
	return os.TempDir()
}

// besideSelf is the path of another program in this one's directory.
func besideSelf(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

func (f *gateFlags) run(cmd *cobra.Command, _ []string) error {
	if err := f.out.check(); err != nil {
		return err
	}
	name, dir := f.targets, fs.FS(nil)
	if f.targets != "" {
		dir = os.DirFS(f.targets)
	} else {
		var err error
		if dir, err = perf.Profile(f.profile); err != nil {
			return err
		}
		name = f.profile
	}
	files, err := perf.ReadTargets(dir)
	if err != nil {
		return err
	}
	progress, clear := progressOn(cmd.ErrOrStderr())
	rep, err := perf.RunGate(cmd.Context(), perf.GateConfig{Name: name, Files: files, Dir: f.dir, Cfs: f.cfs, Kill: fillAndDie, Load: loadBulk, Progress: progress})
	clear()
	if err != nil {
		return err
	}
	if err := f.print(cmd, rep); err != nil {
		return err
	}
	if missed := rep.Missed(); len(missed) > 0 {
		return fmt.Errorf("%d of %d targets missed: %s", len(missed), len(rep.Verdicts), strings.Join(missed, ", "))
	}
	return nil
}

// print prints the report, and writes it where it was asked for.
func (f *gateFlags) print(cmd *cobra.Command, rep *perf.GateReport) error {
	if f.file != "" {
		var doc bytes.Buffer
		if err := cli.PrintJSON(&doc, rep); err != nil {
			return err
		}
		if err := os.WriteFile(f.file, doc.Bytes(), 0o644); err != nil {
			return cfs.E("write "+f.file, cfs.KindOf(err), err)
		}
	}
	w := cmd.OutOrStdout()
	switch {
	case f.out.json:
		return cli.PrintJSON(w, rep)
	case f.out.format == formatBench:
		for _, r := range rep.Reports {
			if err := r.WriteBench(w); err != nil {
				return err
			}
		}
		return nil
	}
	if err := printTable(w, rep.Table()); err != nil {
		return err
	}
	for _, v := range rep.Verdicts {
		if v.Failed != "" {
			fmt.Fprintf(w, "%s: %s\n", v.Name, v.Failed)
		}
	}
	_, err := fmt.Fprintf(w, "\nLinux %s, %s, %d CPUs; medians over the rounds\n", rep.Machine.Kernel, rep.Machine.Go, rep.Machine.CPUs)
	return err
}
