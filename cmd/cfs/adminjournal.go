package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// consumerDoc is a consumer of the journal.
type consumerDoc struct {
	Name        string `json:"name"`
	Index       uint64 `json:"index"` // the first log index that it still needs
	Behind      uint64 `json:"behind"`
	BehindBytes uint64 `json:"behind_bytes"`
	Lost        bool   `json:"lost"`
}

// changeLine is a change of the journal as `cfs admin journal tail` prints it. Names are
// strings where they are UTF-8; JSON replaces what is not, so their bytes are there too.
type changeLine struct {
	Index    uint64        `json:"index"`
	N        uint32        `json:"n"`
	Kind     string        `json:"kind"`
	TimeNS   int64         `json:"time_ns"`
	Session  cfs.SessionID `json:"session"`
	UID      uint32        `json:"uid"`
	GID      uint32        `json:"gid"`
	Ino      cfs.Ino       `json:"ino"`
	Was      uint64        `json:"was"`
	Dir      cfs.Ino       `json:"dir,omitempty"`
	Name     string        `json:"name,omitempty"`
	NameHex  string        `json:"name_hex,omitempty"`
	NewDir   cfs.Ino       `json:"new_dir,omitempty"`
	NewName  string        `json:"new_name,omitempty"`
	Other    cfs.Ino       `json:"other,omitempty"`
	NewHex   string        `json:"new_name_hex,omitempty"`
	ValueHex string        `json:"value_hex,omitempty"`
	Flags    uint32        `json:"flags,omitempty"`
	Mask     uint32        `json:"mask,omitempty"`
	Attr     attrDoc       `json:"attr"`
	Extents  []extentDoc   `json:"extents,omitempty"`
}

type attrDoc struct {
	Mode    uint32 `json:"mode"`
	Nlink   uint32 `json:"nlink"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	Rdev    uint32 `json:"rdev"`
	Size    uint64 `json:"size"`
	Gen     uint64 `json:"gen"`
	AtimeNS int64  `json:"atime_ns"`
	MtimeNS int64  `json:"mtime_ns"`
	CtimeNS int64  `json:"ctime_ns"`
	BtimeNS int64  `json:"btime_ns"`
}

type extentDoc struct {
	Kind      string   `json:"kind"`
	Off       uint64   `json:"off"`
	Len       uint64   `json:"len"`
	Inline    []byte   `json:"inline,omitempty"` // base64
	Group     cfs.PGID `json:"group,omitempty"`
	Stripe    string   `json:"stripe,omitempty"` // session.counter
	StripeOff uint32   `json:"stripe_off,omitempty"`
	StripeLen uint32   `json:"stripe_len,omitempty"`
}

func newChangeLine(c *cfs.Change) changeLine {
	a := &c.Attr
	l := changeLine{Index: c.Index, N: c.N, Kind: c.Kind.String(), TimeNS: c.TimeNS, Session: c.Session, UID: c.UID, GID: c.GID,
		Ino: c.Ino, Was: c.Was, Dir: c.Dir, Name: c.Name, NameHex: hex.EncodeToString([]byte(c.Name)),
		NewDir: c.NewDir, NewName: c.NewName, Other: c.Other, NewHex: hex.EncodeToString([]byte(c.NewName)),
		ValueHex: hex.EncodeToString(c.Value), Flags: c.Flags, Mask: uint32(c.Mask),
		Attr: attrDoc{a.Mode, a.Nlink, a.UID, a.GID, a.Rdev, a.Size, a.Gen, a.AtimeNS, a.MtimeNS, a.CtimeNS, a.BtimeNS}}
	for _, x := range c.Extents {
		d := extentDoc{Kind: "hole", Off: x.Off, Len: x.Len, Inline: x.Inline}
		switch x.Kind {
		case cfs.ExtentInline:
			d.Kind = "inline"
		case cfs.ExtentUnwritten:
			d.Kind = "unwritten"
		case cfs.ExtentStripe:
			d.Kind, d.Group, d.StripeOff, d.StripeLen = "stripe", x.PG, x.StripeOff, x.StripeLen
			d.Stripe = fmt.Sprintf("%d.%d", x.Stripe.Session, x.Stripe.Counter)
		}
		l.Extents = append(l.Extents, d)
	}
	return l
}

// journalCommand is `cfs admin journal`.
func (f *adminFlags) journalCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "journal", Short: "look at the journal of changes, and at those who read it"}
	cmd.AddCommand(f.command("consumers", "who reads the journal, and how far behind they are", cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error {
		a, err := cc.query(c.Context(), &cfs.Query{Kind: cfs.QueryConsumers})
		if err != nil {
			return err
		}
		docs := []consumerDoc{}
		for _, x := range a.Consumers {
			docs = append(docs, consumerDoc(x))
		}
		return f.print(c, map[string]any{"consumers": docs}, func(w io.Writer) error {
			t := cli.NewTable(w, "CONSUMER", "FROM", "BEHIND", "BYTES", "STATE")
			for _, d := range docs {
				state := "ok"
				if d.Lost {
					state = "lost"
				}
				t.Row(d.Name, d.Index, d.Behind, cli.Size(d.BehindBytes), state)
			}
			return t.Flush()
		})
	}))
	for _, v := range []struct {
		name, short string
		verb        wire.Verb
	}{
		{"add NAME", "keep the journal from now on for a consumer", wire.VerbConsumerAdd},
		{"remove NAME", "forget a consumer; what only it needed goes", wire.VerbConsumerRemove},
	} {
		cmd.AddCommand(f.command(v.name, v.short, cobra.ExactArgs(1), func(c *cobra.Command, cc *conn, args []string) error {
			if args[0] == "" || len(args[0]) > cfs.MaxName {
				return cli.Usage("NAME", "want 1 to %d bytes", cfs.MaxName)
			}
			return f.verb(c, cc, &wirepb.Admin{Verb: uint32(v.verb), Text: args[0]})
		}))
	}
	var from uint64
	var follow bool
	tail := f.command("tail", "print changes, one JSON object in a line", cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error {
		return f.tail(c, cc, from, follow)
	})
	tail.Flags().Uint64Var(&from, "from", 0, "the log index to begin at; 0 for the first that is kept")
	tail.Flags().BoolVar(&follow, "follow", false, "go on with what comes, until it is interrupted")
	cmd.AddCommand(tail)
	return cmd
}

// verb has the leader do something, and prints what it says.
func (f *adminFlags) verb(c *cobra.Command, cc *conn, req *wirepb.Admin) error {
	reply, err := cc.admin(c.Context(), req)
	if err != nil {
		return err
	}
	return f.print(c, map[string]any{"text": reply.Text}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, reply.Text)
		return err
	})
}

// tail prints the journal from an index on, one object in a line with --json too. Without
// follow it ends at the end.
func (f *adminFlags) tail(c *cobra.Command, cc *conn, from uint64, follow bool) error {
	q := &cfs.Query{Kind: cfs.QueryJournal, Index: from}
	if follow {
		q.WaitMS = uint32(min(f.timeout/2, time.Minute).Milliseconds())
	}
	out := json.NewEncoder(c.OutOrStdout())
	for {
		a, err := cc.query(c.Context(), q)
		if err != nil {
			if follow && c.Context().Err() != nil {
				return nil
			}
			return journalError(err)
		}
		for i := range a.Changes {
			x := &a.Changes[i]
			if err := out.Encode(newChangeLine(x)); err != nil {
				return cfs.E("print", cfs.IO, err)
			}
			q.Index, q.Off = x.Index, uint64(x.N)+1
		}
		if !follow && !a.More {
			return nil
		}
	}
}

// journalError says what there is to do where nothing is kept.
func journalError(err error) error {
	if cfs.KindOf(err) == cfs.NotFound {
		return cfs.Errorf("journal", cfs.NotFound, "it is kept for nobody: see cfs admin journal add")
	}
	return err
}
