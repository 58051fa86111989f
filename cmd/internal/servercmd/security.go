package servercmd

import (
	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/pki"
)

// addSecurity adds the flags of certificates.
func (f *flags) addSecurity(fl *pflag.FlagSet) {
	fl.Var(&f.tls, "tls", "encrypt every connection, and know every peer by its certificate; off only where the whole cluster was made so")
	fl.StringVar(&f.cfg.Token, "token", "", "what \"cfs admin token create --role storage\" printed, good for one server, for a while: used where this server's certificate is missing, has expired, is of another cluster, or is refused")
	fl.DurationVar(&f.cfg.CertLifetime, "cert-lifetime", pki.DefaultLifetime, "how long certificates are valid that this server signs")
	// It fails only for a name that is not a flag.
	_ = fl.MarkHidden("cert-lifetime")
}
