package servercmd

import (
	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cmd/internal/cli"
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
	fl.DurationVar(&f.cfg.CertLifetime, "cert-lifetime", pki.DefaultLifetime, "how long certificates are valid that this server signs")
	// It fails only for a name that is not a flag.
	_ = fl.MarkHidden("cert-lifetime")
}
