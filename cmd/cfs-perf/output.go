package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/perf"
)

// The forms of output.
const (
	formatTable = "table"
	formatBench = "benchfmt"
)

// progressInterval is the least time between two updates of the progress line.
const progressInterval = 100 * time.Millisecond

// output is the flags that say how results are printed and the process profiled.
type output struct {
	json       bool
	format     string
	profile    string
	profileDir string
}

func (o *output) add(fl *pflag.FlagSet) {
	fl.BoolVar(&o.json, "json", false, "print one JSON document, with every round")
	fl.StringVar(&o.format, "format", formatTable, "table, or benchfmt: Go's benchmark format, for benchstat")
}

func (o *output) addProfile(fl *pflag.FlagSet) {
	fl.StringVar(&o.profile, "profile", "", "write a profile of this process: "+cli.ProfileHelp)
	fl.StringVar(&o.profileDir, "profile-dir", ".", "where the profile goes")
}

func (o *output) check() error {
	if o.format != formatTable && o.format != formatBench {
		return cli.Usage("--format", "%q is neither %s nor %s", o.format, formatTable, formatBench)
	}
	if o.json && o.format != formatTable {
		return cli.Usage("--json", "it is a format of its own: leave out --format")
	}
	return nil
}

// measure runs a bench, with the progress on a terminal and under the profile asked
// for, and prints its report.
func (o *output) measure(cmd *cobra.Command, bench func(perf.Progress) (*perf.Report, error)) error {
	if err := o.check(); err != nil {
		return err
	}
	prof, err := cli.NewProfile(o.profile)
	if err != nil {
		return err
	}
	progress, clear := progressOn(cmd.ErrOrStderr())
	stop := prof.Start(o.profileDir)
	rep, err := bench(progress)
	stop()
	clear()
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch {
	case o.json:
		return cli.PrintJSON(out, rep)
	case o.format == formatBench:
		return rep.WriteBench(out)
	}
	return printReport(out, rep)
}

// printReport prints a report for people.
func printReport(w io.Writer, rep *perf.Report) error {
	if err := printTable(w, rep.Table()); err != nil {
		return err
	}
	m := rep.Machine
	fmt.Fprintf(w, "\n%s; Linux %s, %s, %d CPUs", rep.Device, m.Kernel, m.Go, m.CPUs)
	if m.Fio != "" {
		fmt.Fprintf(w, ", %s", m.Fio)
	}
	fmt.Fprintln(w, "; medians over the rounds")
	for _, note := range rep.Notes {
		fmt.Fprintln(w, "-", note)
	}
	return nil
}

func printTable(w io.Writer, rows [][]string) error {
	t := cli.NewTable(w, rows[0]...)
	for _, cells := range rows[1:] {
		row := make([]any, len(cells))
		for i, c := range cells {
			row[i] = c
		}
		t.Row(row...)
	}
	return t.Flush()
}

// progressOn is a line on w that each call replaces, at most every
// progressInterval, and what clears it; nothing where w is no terminal.
func progressOn(w io.Writer) (progress perf.Progress, clear func()) {
	f, ok := w.(*os.File)
	if !ok {
		return nil, func() {}
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil, func() {}
	}
	var mu sync.Mutex
	var last time.Time
	return func(text string) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) >= progressInterval {
			last = time.Now()
			fmt.Fprintf(f, "\r\x1b[K%s", text)
		}
	}, func() { fmt.Fprint(f, "\r\x1b[K") }
}
