package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
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
)

// identityFlags say with which certificate to go to a cluster.
type identityFlags struct {
	dir   string
	token string
	admin bool // an administrator's is looked for first
}

func (f *identityFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.dir, "identity-dir", "", "where this machine's certificate and key are kept (default: "+identityRoot+"/CLUSTER)")
}

func (f *identityFlags) addToken(fl *pflag.FlagSet) {
	fl.StringVar(&f.token, "token", "", "the token to get a certificate with, where there is none yet (cfs admin token create)")
}

// open is the identity to use with the cluster that servers belong to; nil for none. Where there
// is none and a token is given, it is used.
func (f *identityFlags) open(ctx context.Context, servers []string, clusterID string, log *slog.Logger) (*pki.Store, error) {
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
	if err != nil {
		return nil, err
	}
	if id := store.Identity(); id != nil && (f.token == "" || !id.Expired(time.Now())) {
		return store, nil
	}
	if _, err := pki.ParseToken(f.token); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return store, client.Enrol(ctx, client.Enrolment{Store: store, Servers: servers, Token: f.token, Name: host, Logger: log})
}

// find is the directory of the identity for a cluster, where it is kept by default; "" for none.
func (f *identityFlags) find(ctx context.Context, servers []string, clusterID string) (string, error) {
	if f.admin && f.token == "" && len(servers) == 1 {
		// Root on a server's machine asks the other servers as that server does.
		if path, ok := strings.CutPrefix(servers[0], "unix:"); ok {
			if dir := filepath.Join(filepath.Dir(path), node.IdentityDir); pki.Exists(dir) {
				return dir, nil
			}
		}
	}
	if f.token == "" {
		kept, err := filepath.Glob(identityRoot + "/*/cert.pem")
		if err != nil || len(kept) == 0 {
			return "", err
		}
	}
	if clusterID == "" {
		var encrypted bool
		for _, addr := range servers {
			if clusterID, encrypted = clusterOf(ctx, addr); clusterID != "" {
				break
			}
		}
		if clusterID == "" && f.token != "" {
			return "", cfs.Errorf("enrol", cfs.Unavailable, "no server says which cluster it belongs to: name one with --cluster-id, or a directory with --identity-dir")
		}
		if clusterID == "" || !encrypted && f.token == "" {
			return "", nil
		}
	}
	dir := filepath.Join(identityRoot, clusterID)
	if f.admin && (f.token != "" || pki.Exists(dir+adminSuffix)) {
		return dir + adminSuffix, nil
	}
	if f.token == "" && !pki.Exists(dir) {
		return "", nil
	}
	return dir, nil
}

// clusterOf asks a server which cluster it belongs to, and whether its connections are encrypted. The
// answer only decides which identity is tried, so it is taken from whomever.
func clusterOf(ctx context.Context, addr string) (id string, encrypted bool) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	hello := wire.DialConfig{Hello: wire.Identity{Name: "cfs"}}
	conn, err := wire.Dial(ctx, addr, hello)
	if cfs.KindOf(err) == cfs.Denied {
		encrypted = true
		hello.TLS = &wire.TLS{Config: pki.Anonymous, Judge: func([]*x509.Certificate) (cfs.Principal, error) { return cfs.Principal{}, nil }}
		conn, err = wire.Dial(ctx, addr, hello)
	}
	if err != nil {
		return "", encrypted
	}
	defer conn.Close()
	return conn.Peer().ClusterID, encrypted || strings.HasPrefix(addr, "unix:")
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
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	client.KeepRenewed(ctx, client.Enrolment{Store: store, Name: host, Now: time.Now, Logger: log}, func() []string { return servers })
}

// securityOf is how a cluster's connections are protected, for people.
func securityOf(m *cfs.Map) string {
	switch {
	case m.TLSOff:
		return "OFF: connections are not encrypted, and everybody is who he says he is"
	case m.CA == "":
		return "not decided: the cluster has not begun"
	}
	return fmt.Sprintf("TLS, CA fingerprint %s, %d certificates revoked", m.CA, len(m.Revoked))
}
