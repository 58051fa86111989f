package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
)

const (
	defaultServer  = "127.0.0.1:9400"
	defaultTimeout = 10 * time.Second
)

// pace is how fast a command looks at a cluster that changes; tests are in a hurry.
type pace struct {
	// poll is the rhythm in which long work is looked at.
	poll time.Duration
	// settle is the wait before what looks wrong is looked at again. The delete feed
	// is followed, and a map spread, within about a second.
	settle time.Duration
	// grace is how long a new device may take to be given a job.
	grace time.Duration
	// patience is how long a cluster that is being followed may be silent.
	patience time.Duration
}

// adminFlags are those of every admin command.
type adminFlags struct {
	server  string
	timeout time.Duration
	json    bool
	pace    pace

	identity identityFlags
}

// newAdminCmd makes `cfs admin` with what it can show and do.
func newAdminCmd() *cobra.Command {
	return adminCommand(pace{poll: time.Second, settle: time.Second, grace: 10 * time.Second, patience: time.Minute})
}

func adminCommand(p pace) *cobra.Command {
	f := &adminFlags{pace: p, identity: identityFlags{admin: true}}
	cmd := &cobra.Command{Use: "admin", Short: "look at a cluster, and change it"}
	pf := cmd.PersistentFlags()
	pf.StringVar(&f.server, "server", defaultServer, "HOST:PORT of any server, or unix:PATH")
	pf.DurationVar(&f.timeout, "timeout", defaultTimeout, "how long to wait for one answer")
	pf.BoolVar(&f.json, "json", false, "print one JSON document")
	f.identity.add(pf)
	for _, view := range []struct {
		name, short string
		document    func(*statusDoc) any
		table       func(io.Writer, *statusDoc) error
	}{
		{"status", "the cluster at a glance", func(d *statusDoc) any { return d }, printStatus},
		{"nodes", "the servers and their states", func(d *statusDoc) any { return map[string]any{"nodes": d.Nodes} }, printNodes},
		{"devices", "the devices, their states and space", func(d *statusDoc) any { return map[string]any{"devices": d.Devices} }, printDevices},
		{"groups", "the placement groups", func(d *statusDoc) any { return map[string]any{"groups": d.Groups} }, printGroups},
	} {
		cmd.AddCommand(f.command(view.name, view.short, cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error {
			s, err := cc.status(c.Context())
			if err != nil {
				return err
			}
			cc.consumers(c.Context(), s)
			doc := newStatusDoc(s, cc.inspect(c.Context(), s), time.Now())
			return f.print(c, view.document(doc), func(w io.Writer) error { return view.table(w, doc) })
		}))
	}
	cmd.AddCommand(f.deviceCommand(), f.voterCommand(), f.nodeCommand(), f.jobCommand(), f.scrubCommand(), f.fsckCommand())
	cmd.AddCommand(f.sessionsCommand(), f.sessionCommand(), f.topCommand(), f.journalCommand())
	cmd.AddCommand(f.tokenCommand(), f.identityCommand(), f.revokeCommand(), f.enrolCommand())
	return cmd
}

// command makes a command that has a connection while it runs.
func (f *adminFlags) command(use, short string, args cobra.PositionalArgs, run func(*cobra.Command, *conn, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, args []string) error {
		cc, err := f.connect(c.Context())
		if err != nil {
			return err
		}
		defer cc.close()
		return run(c, cc, args)
	}}
}

// print prints a document, or the same for people.
func (f *adminFlags) print(c *cobra.Command, doc any, people func(io.Writer) error) error {
	if f.json {
		return cli.PrintJSON(c.OutOrStdout(), doc)
	}
	return people(c.OutOrStdout())
}

// parseDevice reads a device's name as it is printed: NODE/SLOT.
func parseDevice(text string) (cfs.DeviceID, error) {
	left, right, _ := strings.Cut(text, "/")
	node, err := strconv.ParseUint(left, 10, 16)
	if err == nil && node > 0 {
		var slot uint64
		if slot, err = strconv.ParseUint(right, 10, 16); err == nil {
			return cfs.MakeDeviceID(cfs.NodeID(node), uint16(slot)), nil
		}
	}
	return 0, cli.Usage("DEVICE", "%q is no device: want NODE/SLOT, as in 2/1", text)
}

// outcome is how far followed work is.
type outcome int

const (
	waiting outcome = iota
	finished
	cancelled
)

// follow looks at the cluster until judge says that the work of a device has
// ended, and shows the job's progress on a terminal. A cluster that does not
// answer for a while is asked again.
func (f *adminFlags) follow(c *cobra.Command, cc *conn, id cfs.DeviceID, judge func(*state) outcome) error {
	progress := cli.NewProgress(c.ErrOrStderr())
	defer progress.Clear()
	var meter rateMeter
	heard := time.Now()
	for {
		s, err := cc.status(c.Context())
		switch {
		case err == nil:
			heard = time.Now()
			switch judge(s) {
			case finished:
				return nil
			case cancelled:
				return cfs.Errorf("the job of "+id.String(), cfs.Canceled, "it was cancelled")
			}
			text := "waiting for the job of " + id.String()
			if j := s.job(id); j != nil && !ended(j) {
				doc := newJobDoc(j, heard, meter.observe(j.DoneBytes, heard))
				text = doc.line()
			}
			progress.Show("%s", text)
		case c.Context().Err() != nil || time.Since(heard) > f.pace.patience:
			return err
		}
		if err := sleep(c.Context(), f.pace.poll); err != nil {
			return err
		}
	}
}

// sleep waits, unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return cfs.E("wait", cfs.Canceled, ctx.Err())
	}
}

// rateMeter turns a count that is looked at into a rate: that of the last
// interval in which the count has changed.
type rateMeter struct {
	at    time.Time
	bytes uint64
	rate  uint64 // in a second; 0 for unknown
}

func (m *rateMeter) observe(bytes uint64, now time.Time) uint64 {
	switch {
	case m.at.IsZero():
		m.at, m.bytes = now, bytes
	case bytes != m.bytes && now.After(m.at):
		if m.rate = 0; bytes > m.bytes {
			m.rate = uint64(float64(bytes-m.bytes) / now.Sub(m.at).Seconds())
		}
		m.at, m.bytes = now, bytes
	}
	return m.rate
}

// printChange prints what a command has changed.
func (f *adminFlags) printChange(c *cobra.Command, doc *changeDoc) error {
	return f.print(c, doc, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, doc.Text)
		return err
	})
}

// changeDoc is what a command has changed.
type changeDoc struct {
	Device string `json:"device"`          // that was added, removed, or whose job was changed
	Added  string `json:"added,omitempty"` // that replaces it
	Text   string `json:"text"`
	Ended  bool   `json:"ended"` // the work was followed to its end
}
