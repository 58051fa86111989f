package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/node"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
)

const (
	// identityRoot is where this machine's certificates are kept: a directory for each cluster.
	identityRoot = "/var/lib/claudefs"
	// adminSuffix is that of the directories of administrators.
	adminSuffix = "-admin"
	// findTimeout bounds the question which cluster a server belongs to.
	findTimeout = 3 * time.Second
	unixPrefix  = "unix:"
)

// identityFlags say with which certificate to go to a cluster.
type identityFlags struct {
	dir   string
	token string
	tls   cli.OnOff
	admin bool   // an administrator's is looked for first
	root  string // identityRoot, but in tests
}

func (f *identityFlags) add(fl *pflag.FlagSet) {
	f.tls, f.root = true, identityRoot
	fl.StringVar(&f.dir, "identity-dir", "", "where this machine's certificate and key are kept (default: "+identityRoot+"/CLUSTER)")
	fl.Var(&f.tls, "tls", "off: use no certificate, and take a cluster that is not encrypted, on a machine that keeps certificates of others")
}

func (f *identityFlags) addToken(fl *pflag.FlagSet) {
	fl.StringVar(&f.token, "token", "", "the token to get a certificate with, where there is none that is of use (cfs admin token create)")
}

// open is the identity to use with the cluster that servers belong to; nil for none. Where there
// is none of use and a token is given, it is used.
func (f *identityFlags) open(ctx context.Context, servers []string, clusterID string, log *slog.Logger) (*pki.Store, error) {
	if !f.tls {
		if f.token != "" || f.dir != "" {
			return nil, cli.Usage("--tls", "off, and --token or --identity-dir are given: without certificates there is no use for them")
		}
		return nil, nil
	}
	dir := f.dir
	if dir == "" {
		var err error
		if dir, err = f.find(ctx, servers, clusterID); err != nil || dir == "" {
			return nil, err
		}
	}
	if f.token == "" && !pki.Exists(dir) {
		return nil, cfs.Errorf("identity in "+dir, cfs.Denied, "there is none: get one with --token")
	}
	store, err := pki.OpenStore(dir)
	if err != nil || f.token == "" {
		return store, err
	}
	return store, client.Identify(ctx, client.Enrolment{Store: store, Servers: servers, Token: f.token, Name: pki.ThisMachine(), Logger: log})
}

// find is the directory of the identity for a cluster, where it is kept by default. It is "" only on
// a machine that keeps none at all: one that does never talks to servers that prove nothing, unless it is told to.
func (f *identityFlags) find(ctx context.Context, servers []string, clusterID string) (string, error) {
	if f.admin && f.token == "" && len(servers) == 1 {
		// Root on a server's machine asks the other servers as that server does.
		if path, ok := strings.CutPrefix(servers[0], unixPrefix); ok {
			if dir := filepath.Join(filepath.Dir(path), node.IdentityDir); pki.Exists(dir) {
				return dir, nil
			}
		}
	}
	if f.token == "" {
		kept, err := filepath.Glob(filepath.Join(f.root, "*", "cert.pem"))
		if err != nil || len(kept) == 0 {
			return "", err
		}
	}
	if clusterID == "" {
		var err error
		if clusterID, err = f.clusterOfAny(ctx, servers); err != nil {
			return "", err
		}
	}
	if err := node.CheckClusterID(clusterID); err != nil {
		return "", err // it becomes a part of a path
	}
	dir := filepath.Join(f.root, clusterID)
	if f.admin && (f.token != "" || pki.Exists(dir+adminSuffix)) {
		return dir + adminSuffix, nil
	}
	if f.token == "" && !pki.Exists(dir) {
		return "", cfs.Errorf("identity for cluster "+clusterID, cfs.Denied, "this machine has none: get one with --token, or say --tls off if the cluster was made so")
	}
	return dir, nil
}

// clusterOfAny is the cluster of the first server that answers. Without an answer all are asked again until ctx ends.
func (f *identityFlags) clusterOfAny(ctx context.Context, servers []string) (string, error) {
	for {
		var last error
		for _, addr := range servers {
			id, err := f.clusterOf(ctx, addr)
			if err == nil || cfs.KindOf(err) == cfs.Denied {
				return id, err
			}
			last = err
		}
		if err := sleep(ctx, leaderPause); err != nil || last == nil {
			return "", cfs.Errorf("identity", cfs.Unavailable, "no server says which cluster it belongs to (name one with --cluster-id, or a directory with --identity-dir): %w", last)
		}
	}
}

// clusterOf asks a server which cluster it belongs to. With a token, that must be the one that the token is
// for. Without, whoever answers only decides which identity is tried.
func (f *identityFlags) clusterOf(ctx context.Context, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	path, local := strings.CutPrefix(addr, unixPrefix)
	id := ""
	security := &wire.TLS{Config: pki.Anonymous, Judge: func(certs []*x509.Certificate) (cfs.Principal, error) {
		who, err := f.judge(certs)
		id = who.ClusterID
		return who, err
	}}
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: "cfs"}, TLS: security})
	switch {
	case err == nil:
	case cfs.KindOf(err) == cfs.Denied && f.isPlain(ctx, addr):
		return "", notEncrypted(addr)
	default:
		return "", err
	}
	defer conn.Close()
	switch {
	case local && f.token == "" && !pki.Exists(filepath.Join(filepath.Dir(path), node.IdentityDir)):
		return "", notEncrypted(addr)
	case local || f.token == "":
		id = conn.Peer().ClusterID
	}
	return id, nil
}

// judge is who shows certificates, as far as the token says whom to trust; nobody without one.
func (f *identityFlags) judge(certs []*x509.Certificate) (cfs.Principal, error) {
	if f.token == "" {
		return cfs.Principal{}, nil
	}
	t, err := pki.ParseToken(f.token)
	if err != nil {
		return cfs.Principal{}, err
	}
	authority, err := t.Trusts(certs)
	if err != nil {
		return cfs.Principal{}, err
	}
	return pki.Judge(certs[0], authority, "", time.Now())
}

// isPlain reports a server whose connections are not encrypted: it answers to one that is not.
func (f *identityFlags) isPlain(ctx context.Context, addr string) bool {
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: "cfs"}})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// notEncrypted refuses to go on without certificates on a machine that keeps some.
func notEncrypted(addr string) error {
	return cfs.Errorf("server "+addr, cfs.Denied, "it is not encrypted: say --tls off if its cluster was made so")
}

// tlsOf is how connections are made with an identity; nil for none.
func tlsOf(store *pki.Store) *wire.TLS {
	if store == nil {
		return nil
	}
	return client.Secured(store, time.Now)
}

// keepIdentity renews an identity until ctx ends.
func keepIdentity(ctx context.Context, store *pki.Store, servers []string, log *slog.Logger) {
	if store == nil {
		return
	}
	client.KeepRenewed(ctx, client.Enrolment{Store: store, Name: pki.ThisMachine(), Now: time.Now, Logger: log}, func() []string { return servers })
}

// securityOf is how a cluster's connections are protected, for people.
func securityOf(m *cfs.Map) string {
	switch {
	case m.TLSOff:
		return "OFF: connections are not encrypted, and everybody is who he says he is"
	case m.CA == "":
		return "not decided: the cluster has not begun"
	}
	return fmt.Sprintf("TLS, CA fingerprint %s, %d keys revoked", m.CA, len(m.Revoked))
}
