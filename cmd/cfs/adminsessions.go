package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// sessionDoc is a session of a client.
type sessionDoc struct {
	ID       cfs.SessionID `json:"id"`
	Name     string        `json:"name"`
	OpenedNS int64         `json:"opened_ns"`
	SilentMS uint64        `json:"silent_ms"`
	Replies  uint64        `json:"replies"`
	LowWater uint64        `json:"low_water"`
	Floor    uint64        `json:"floor"`
	Holds    uint64        `json:"holds"`
	Locks    uint64        `json:"locks"`
	Leases   uint64        `json:"leases"`
	Opens    uint64        `json:"opens"`
}

// sessionsCommand is `cfs admin sessions`, and sessionCommand `cfs admin session`.
func (f *adminFlags) sessionsCommand() *cobra.Command {
	return f.command("sessions", "the clients' sessions and what they have", cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error {
		docs, err := sessions(c.Context(), cc)
		if err != nil {
			return err
		}
		return f.print(c, map[string]any{"sessions": docs}, func(w io.Writer) error {
			t := cli.NewTable(w, "SESSION", "NAME", "OPENED", "SILENT", "LEASES", "OPEN", "LOCKS", "HOLDS", "REPLIES", "FLOOR")
			now := time.Now()
			for _, d := range docs {
				silent := (time.Duration(d.SilentMS) * time.Millisecond).Round(100 * time.Millisecond)
				t.Row(uint64(d.ID), d.Name, age(d.OpenedNS, now), silent, d.Leases, d.Opens, d.Locks, d.Holds, d.Replies, d.Floor)
			}
			return t.Flush()
		})
	})
}

// sessions lists them all, page by page.
func sessions(ctx context.Context, cc *conn) ([]sessionDoc, error) {
	docs := []sessionDoc{}
	for q := (&cfs.Query{Kind: cfs.QuerySessions}); ; {
		a, err := cc.query(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, s := range a.Sessions {
			docs = append(docs, sessionDoc{ID: s.ID, Name: s.Name, OpenedNS: s.OpenedNS, SilentMS: s.SilentMS, Replies: s.Replies, LowWater: s.LowWater,
				Floor: s.Floor, Holds: s.Holds, Locks: s.Locks, Leases: s.Leases, Opens: s.Opens})
			q.Session = s.ID
		}
		if !a.More || len(a.Sessions) == 0 {
			return docs, nil
		}
	}
}

func (f *adminFlags) sessionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "session", Short: "end a client's session"}
	cmd.AddCommand(f.command("expire ID", "end a session as if its client had been silent: its locks go, and it can change nothing any more; takes up to 8 s", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || id == 0 {
				return cli.Usage("ID", "%q is no session: see cfs admin sessions", args[0])
			}
			return f.verb(c, cc, &wirepb.Admin{Verb: uint32(wire.VerbSessionExpire), Session: id})
		}))
	return cmd
}

// consumers asks for the consumers of the journal, for the cluster's health.
func (c *conn) consumers(ctx context.Context, s *state) {
	if !s.led {
		return // the leader does not answer, which is said already
	}
	a, err := c.query(ctx, &cfs.Query{Kind: cfs.QueryConsumers})
	if err != nil {
		s.consumersErr = err
		return
	}
	s.readers = a.Consumers
}

// journal looks at those who read the journal.
func (h *healthDoc) journal(s *state) {
	if s.consumersErr != nil {
		h.add(degraded, "who reads the journal is not known: %v", cli.OneLine(s.consumersErr))
	}
	for _, c := range s.readers {
		switch share := max(float64(c.Behind)/cfs.MaxJournalEntries, float64(c.BehindBytes)/cfs.MaxJournalBytes); {
		case c.Lost:
			h.add(degraded, "consumer %s of the journal is lost: changes that it needed are gone", c.Name)
		case share > 0.5:
			h.add(degraded, "consumer %s of the journal is behind by %s, %.0f%% of what is kept: soon it is lost", c.Name,
				fmt.Sprintf("%s (%s)", count(c.Behind, "change"), cli.Size(c.BehindBytes)), 100*share)
		}
	}
}
