package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
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

// identityDoc is an enrolled key as it is printed.
type identityDoc struct {
	Key      string     `json:"key"`
	Role     string     `json:"role"`
	Node     cfs.NodeID `json:"node,omitempty"`
	Name     string     `json:"name"`
	Enrolled string     `json:"enrolled"`
	Revoked  bool       `json:"revoked"`
}

// identityCommand is `cfs admin identity`.
func (f *adminFlags) identityCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "identity", Short: "the keys that machines have enrolled"}
	cmd.AddCommand(f.command("list", "whose keys they are, and which were revoked", cobra.NoArgs, func(c *cobra.Command, cc *conn, _ []string) error { return f.identityList(c, cc) }))
	return cmd
}

func (f *adminFlags) identityList(c *cobra.Command, cc *conn) error {
	known, err := cc.query(c.Context(), &cfs.Query{Kind: cfs.QueryMap})
	if err != nil {
		return err
	}
	if known.Map == nil {
		return cfs.Errorf("map", cfs.BadRequest, "answer without a map")
	}
	docs := []identityDoc{}
	for after, more := "", true; more; {
		a, err := cc.query(c.Context(), &cfs.Query{Kind: cfs.QueryEnrolled, Name: after})
		if err != nil {
			return err
		}
		for _, k := range a.Enrolled {
			docs = append(docs, identityDoc{Key: k.Key, Role: k.Role.String(), Node: k.Node, Name: k.Name,
				Enrolled: time.Unix(0, k.AtNS).UTC().Format(time.RFC3339), Revoked: slices.Contains(known.Map.Revoked, k.Key)})
			after = k.Key
		}
		more = a.More && len(a.Enrolled) > 0
	}
	return f.print(c, map[string]any{"identities": docs}, func(w io.Writer) error {
		t := cli.NewTable(w, "KEY", "ROLE", "NODE", "NAME", "ENROLLED", "REVOKED")
		for _, d := range docs {
			node, revoked := "", ""
			if d.Node != 0 {
				node = fmt.Sprint(d.Node)
			}
			if d.Revoked {
				revoked = "revoked"
			}
			t.Row(d.Key, d.Role, node, d.Name, d.Enrolled, revoked)
		}
		return t.Flush()
	})
}

// revokeCommand is `cfs admin revoke`.
func (f *adminFlags) revokeCommand() *cobra.Command {
	return f.command("revoke KEYID", "refuse a key with all its certificates from now on, and cut its connections", cobra.ExactArgs(1),
		func(c *cobra.Command, cc *conn, args []string) error {
			if !cfs.ValidKey(args[0]) {
				return cli.Usage("KEYID", "%q is not the id of a key: %d hex digits in small letters, as \"cfs admin identity list\" and the logs show it", args[0], cfs.KeyDigits)
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
			ctx, cancel := context.WithTimeout(c.Context(), f.timeout)
			defer cancel()
			store, err := f.identity.open(ctx, []string{f.server}, "", slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			who := store.Identity()
			doc := map[string]string{"role": who.Who.Role.String(), "key": who.Who.Key, "cluster_id": who.Who.ClusterID,
				"expires": who.Cert.NotAfter.UTC().Format(time.RFC3339), "identity_dir": store.Dir()}
			return f.print(c, doc, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "certificate of key %s of a %s of cluster %s, in %s\n", doc["key"], doc["role"], doc["cluster_id"], doc["identity_dir"])
				return err
			})
		}}
	f.identity.addToken(cmd.Flags())
	_ = cmd.MarkFlagRequired("token") // it fails only for a name that is not a flag
	return cmd
}
