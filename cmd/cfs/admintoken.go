package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// defaultTokenTTL is how long a token can be used where the command line does not say.
const defaultTokenTTL = time.Hour

// tokenDoc is a token as it is printed; Token is there when it is made, and never again.
type tokenDoc struct {
	ID      string `json:"id"`
	Role    string `json:"role"`
	Expires string `json:"expires"`
	Token   string `json:"token,omitempty"`
}

// tokenCommand is `cfs admin token`.
func (f *adminFlags) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "tokens, by which machines get their certificates"}
	var role string
	var ttl time.Duration
	create := f.command("create --role storage|client|admin", "make a token for one machine; it is shown this once", cobra.NoArgs,
		func(c *cobra.Command, cc *conn, _ []string) error { return f.tokenCreate(c, cc, role, ttl) })
	create.Flags().StringVar(&role, "role", "", "what its machine may do: storage (a server), client (mounts) or admin")
	create.Flags().DurationVar(&ttl, "ttl", defaultTokenTTL, "how long it can be used")
	_ = create.MarkFlagRequired("role") // it fails only for a name that is not a flag
	cmd.AddCommand(create,
		f.command("list", "the tokens that have not been used", cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error { return f.tokenList(c, cc) }),
		f.command("remove ID", "take a token away", cobra.ExactArgs(1), func(c *cobra.Command, cc *conn, args []string) error {
			return f.identityChange(c, cc, &wirepb.Admin{Verb: uint32(wire.VerbTokenRemove), Text: args[0]})
		}))
	return cmd
}

func (f *adminFlags) tokenCreate(c *cobra.Command, cc *conn, name string, ttl time.Duration) error {
	role := pki.ParseRole(name)
	if role == cfs.RoleNone {
		return cli.Usage("--role", "%q: want storage, client or admin", name)
	}
	if ttl < time.Millisecond {
		return cli.Usage("--ttl", "want a positive duration")
	}
	reply, err := cc.admin(c.Context(), &wirepb.Admin{Verb: uint32(wire.VerbTokenCreate), Role: uint32(role), TtlMs: uint64(ttl.Milliseconds())})
	if err != nil {
		return err
	}
	t, err := pki.ParseToken(reply.Token)
	if err != nil {
		return err
	}
	doc := tokenDoc{ID: t.ID, Role: role.String(), Expires: time.Now().Add(ttl).UTC().Format(time.RFC3339), Token: reply.Token}
	return f.print(c, doc, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, reply.Token)
		return err
	})
}

func (f *adminFlags) tokenList(c *cobra.Command, cc *conn) error {
	a, err := cc.query(c.Context(), &cfs.Query{Kind: cfs.QueryTokens})
	if err != nil {
		return err
	}
	docs := []tokenDoc{}
	for _, t := range a.Tokens {
		docs = append(docs, tokenDoc{ID: t.ID, Role: t.Role.String(), Expires: time.Unix(0, t.ExpiresNS).UTC().Format(time.RFC3339)})
	}
	return f.print(c, map[string]any{"tokens": docs}, func(w io.Writer) error {
		t := cli.NewTable(w, "TOKEN", "ROLE", "EXPIRES")
		for _, d := range docs {
			t.Row(d.ID, d.Role, d.Expires)
		}
		return t.Flush()
	})
}

// revokeCommand is `cfs admin revoke`.
func (f *adminFlags) revokeCommand() *cobra.Command {
	return f.command("revoke SERIAL", "refuse a certificate from now on, and cut its connections", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			if _, err := hex.DecodeString(args[0]); err != nil {
				return cli.Usage("SERIAL", "%q is not a certificate's serial number in hex", args[0])
			}
			return f.identityChange(c, cc, &wirepb.Admin{Verb: uint32(wire.VerbRevoke), Text: args[0]})
		})
}

func (f *adminFlags) identityChange(c *cobra.Command, cc *conn, req *wirepb.Admin) error {
	reply, err := cc.admin(c.Context(), req)
	if err != nil {
		return err
	}
	return f.print(c, map[string]string{"text": reply.Text}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, reply.Text)
		return err
	})
}

// enrolCommand is `cfs admin enrol`.
func (f *adminFlags) enrolCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "enrol --token TOKEN", Short: "get this machine an administrator's certificate", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := f.identity.open(c.Context(), []string{f.server}, "", slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			who := store.Identity()
			doc := map[string]string{"role": who.Who.Role.String(), "serial": who.Who.Serial, "cluster_id": who.Who.ClusterID,
				"expires": who.Cert.NotAfter.UTC().Format(time.RFC3339), "identity_dir": store.Dir()}
			return f.print(c, doc, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "certificate %s of a %s of cluster %s, in %s\n", doc["serial"], doc["role"], doc["cluster_id"], doc["identity_dir"])
				return err
			})
		}}
	f.identity.addToken(cmd.Flags())
	_ = cmd.MarkFlagRequired("token") // it fails only for a name that is not a flag
	return cmd
}
