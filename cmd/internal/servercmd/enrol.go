package servercmd

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/node"
	"github.com/claudefs/claudefs/pki"
)

// onOff is a flag that is spelled on or off.
type onOff bool

// String is on or off.
func (o *onOff) String() string {
	if *o {
		return "on"
	}
	return "off"
}

// Set reads on or off.
func (o *onOff) Set(text string) error {
	if text != "on" && text != "off" {
		return cli.Usage("", "want on or off, not %q", text)
	}
	*o = text == "on"
	return nil
}

// Type is what help calls the value.
func (o *onOff) Type() string { return "on|off" }

// addSecurity adds the flags of certificates.
func (f *flags) addSecurity(fl *pflag.FlagSet) {
	fl.Var(&f.tls, "tls", "encrypt every connection, and know every peer by its certificate; off only where the whole cluster was made so")
	fl.StringVar(&f.cfg.BootstrapToken, "bootstrap-token", "", "a secret that the seed nodes of a new cluster share, so that node 1 signs certificates for them alone (default: it signs one for each seed node, whoever comes first)")
	fl.DurationVar(&f.cfg.CertLifetime, "cert-lifetime", pki.DefaultLifetime, "how long certificates are valid that this server signs")
	// It fails only for a name that is not a flag.
	_ = fl.MarkHidden("cert-lifetime")
}

// Enrol gets a server its certificate for a token, from the servers of a cluster, and keeps it in its data
// directory. One that has a certificate keeps it until that has expired.
func Enrol(ctx context.Context, servers []string, token, dataDir string, id cfs.NodeID, log *slog.Logger) error {
	dir := filepath.Join(dataDir, node.IdentityDir)
	store, err := pki.OpenStore(dir)
	if err != nil {
		return err
	}
	if had := store.Identity(); had != nil && !had.Expired(time.Now()) {
		return nil
	}
	if _, err := pki.ParseToken(token); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return client.Enrol(ctx, client.Enrolment{Store: store, Servers: servers, Token: token, NodeID: id, Name: host, Logger: log})
}
