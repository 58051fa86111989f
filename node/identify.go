package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/pki"
)

// How a server comes by its certificate, first and again. One with a token enrols with it. One that has
// a replica signs for itself, with the authority in its own state: otherwise a cluster that was off for longer than
// certificates live could never start. A founder without either is of a cluster that begins.

// askSeedTimeout bounds the question to another seed whether it has an authority.
const askSeedTimeout = time.Second

// now is the node's wall clock.
func (c *Config) now() time.Time { return time.Now().Add(c.ClockOffset) }

// useToken sees to it that a store has an identity that is of use, with the configured token where it has none.
func (c *Config) useToken(ctx context.Context, store *pki.Store, servers []string) error {
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	return client.Identify(ctx, client.Enrolment{Store: store, Servers: servers, Token: c.Token, NodeID: c.NodeID, Name: pki.ThisMachine(), Now: c.now, Logger: log})
}

// others are the servers that the node knows when it starts.
func (s *security) others() []string {
	all := slices.Concat(s.n.cfg.Seeds, s.n.cfg.Join)
	return slices.DeleteFunc(all, func(a string) bool { return a == s.n.addr })
}

// openSecurity sees to it that the node has a certificate, where the cluster has any. A node that may
// sign for itself does so when its replica is open (mend).
func (n *Node) openSecurity(ctx context.Context) error {
	s := &security{n: n}
	n.trust = s
	s.revoked.Store(&map[string]bool{})
	if !n.cfg.TLS {
		return nil
	}
	var err error
	if s.store, err = pki.OpenStore(n.dir.file(IdentityDir)); err != nil {
		return err
	}
	if err := s.loadSeeds(); err != nil {
		return err
	}
	id := s.store.Identity()
	if n.cfg.Token == "" && id != nil && (id.Who.ClusterID != n.cfg.ClusterID || id.Who.Node != n.cfg.NodeID) {
		return cfs.Errorf("identity in "+s.store.Dir(), cfs.WrongCluster, "it is of node %d of cluster %q", id.Who.Node, id.Who.ClusterID)
	}
	if s.lacks() {
		if _, err := os.Stat(n.raftDir()); err == nil {
			return nil
		}
	}
	return s.obtain(ctx)
}

// lacks reports that the node has no certificate that is valid.
func (s *security) lacks() bool {
	id := s.store.Identity()
	return id == nil || id.Expired(s.n.cfg.now())
}

// mend gives a node whose replica is open the certificate that it still lacks.
func (s *security) mend(ctx context.Context) error {
	if s.store == nil || !s.lacks() {
		return nil
	}
	if raft := s.n.raft.raft.Load(); raft != nil {
		ca, err := raft.Authority()
		if err != nil {
			return err
		}
		if ca != nil && len(ca.Key) > 0 {
			s.n.log.Warn("this server had no valid certificate, and signs one for itself", "fingerprint", pki.Fingerprint(ca.Cert))
			return s.signOwn(ca)
		}
	}
	return s.obtain(ctx)
}

// obtain gets a certificate where that takes somebody else, or the beginning of a cluster.
func (s *security) obtain(ctx context.Context) error {
	n := s.n
	defer n.turnAway()()
	known := s.store.Identity() != nil && !s.lacks()
	switch {
	case n.cfg.Token != "":
		return n.cfg.useToken(ctx, s.store, s.others())
	case known:
		return nil
	case n.cfg.joined && s.store.Identity() == nil:
		return cfs.Errorf("start", cfs.Denied, "%s has no certificate: start it with --token, which \"cfs admin token create --role storage\" prints", n.cfg.DataDir)
	case n.cfg.joined:
		return cfs.Errorf("start", cfs.Denied, "the certificate in %s has expired: start it with --token, which \"cfs admin token create --role storage\" prints", n.cfg.DataDir)
	case n.cfg.NodeID == 1:
		return s.begin(ctx)
	}
	return client.Enrol(ctx, client.Enrolment{
		Store: s.store, Servers: s.others(), TrustFirst: true, Secret: n.cfg.BootstrapToken,
		NodeID: n.cfg.NodeID, Name: s.name(), Now: n.cfg.now, Logger: n.log.With("part", "identity"),
	})
}

// begin makes the authority, unless there is one, and node 1's own certificate.
func (s *security) begin(ctx context.Context) error {
	ca, err := s.store.Authority()
	if err != nil {
		return err
	}
	if ca.Key == nil {
		if err := s.refuseSecond(ctx); err != nil {
			return err
		}
		if ca, err = pki.NewAuthority(s.n.cfg.ClusterID, s.n.cfg.now()); err != nil {
			return err
		}
		if err := s.store.SaveAuthority(&ca); err != nil {
			return err
		}
		s.n.log.Info("made the cluster's authority", "fingerprint", pki.Fingerprint(ca.Cert))
	}
	return s.signOwn(&ca)
}

// signOwn signs the node's own certificate.
func (s *security) signOwn(ca *cfs.CA) error {
	key, err := s.store.PublicKey()
	if err != nil {
		return err
	}
	cert, err := s.sign(ca, s.n.cfg.NodeID, key, s.name())
	if err != nil {
		return err
	}
	return s.store.Save(cert, ca.Cert)
}

// refuseSecond asks the other seeds whether the cluster has an authority already: a node 1 that has lost its
// directory must not make another.
func (s *security) refuseSecond(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askSeedTimeout)
	defer cancel()
	seeds := s.others()
	found := make([]string, len(seeds))
	var group sync.WaitGroup
	for i, addr := range seeds {
		group.Go(func() {
			conn, err := (&tls.Dialer{Config: pki.Anonymous()}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return // it is not there yet, or has no certificate
			}
			defer conn.Close()
			if t, ok := conn.(*tls.Conn); ok {
				found[i] = authorityOf(t.ConnectionState().PeerCertificates)
			}
		})
	}
	group.Wait()
	for i, print := range found {
		if print != "" {
			return cfs.Errorf("start", cfs.Denied, "the cluster has begun (%s has an authority, fingerprint %s), and %s has none: run \"cfs admin voter remove 1\" on another server, "+
				"then join with a token (cfs server join --token ... --node-id 1)", seeds[i], print, s.store.Dir())
		}
	}
	return nil
}

// authorityOf is the fingerprint of the authority that a server shows; "" for none.
func authorityOf(certs []*x509.Certificate) string {
	for _, c := range certs {
		if c.IsCA {
			return pki.Fingerprint(c.Raw)
		}
	}
	return ""
}

// turnAway closes what comes to the node's address until end is called: nobody is served yet, and other
// seeds that ask are to know at once.
func (n *Node) turnAway() (end func()) {
	ln, ok := n.tcp.(*net.TCPListener)
	if !ok {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	return func() {
		_ = ln.SetDeadline(time.Unix(1, 0)) // they fail only for a listener that is closed
		<-done
		_ = ln.SetDeadline(time.Time{})
	}
}

// checkMode holds the configuration against what the directory's cluster was made with. That is not decided
// before the node has an identity, or the map says so (keepMode): a mistaken first start can be mended.
func (d *dataDir) checkMode(cfg *Config, op string) error {
	mode := tlsOff
	if cfg.TLS {
		mode = tlsOn
	}
	if d.state.TLS == "" {
		d.state.TLS = tlsOpen
		if d.state.NextSlot > 0 { // of a version that had no certificates
			d.state.TLS = tlsOff
		}
	}
	if d.state.TLS == tlsOpen && pki.Exists(d.file(IdentityDir)) {
		d.state.TLS = tlsOn
	}
	switch {
	case d.state.TLS == mode || d.state.TLS == tlsOpen:
		return nil
	case cfg.TLS:
		return cfs.Errorf(op, cfs.Usage, "its cluster was made without certificates: it goes on with --tls off only")
	}
	return cfs.Errorf(op, cfs.Usage, "its cluster was made with certificates: --tls off is refused")
}

// keepMode records whether the cluster has certificates, as soon as the map says so.
func (s *security) keepMode(ctx context.Context) {
	for {
		own, followed := s.n.raft.mapChanged()
		mode := ""
		switch m := s.n.raft.Map(); {
		case m.CA != "":
			mode = tlsOn
		case m.TLSOff:
			mode = tlsOff
		}
		if mode != "" {
			if err := s.n.saveMode(mode); err != nil {
				s.n.log.Error("it is not recorded whether the cluster has certificates", "err", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-own:
		case <-followed:
		}
	}
}

func (n *Node) saveMode(mode string) error {
	n.adminMu.Lock()
	defer n.adminMu.Unlock()
	if n.dir.state.TLS == mode {
		return nil
	}
	n.dir.state.TLS = mode
	return n.dir.save()
}

// openIdentity opens the identity of a server that joins, before there is a Node: it is in the data directory.
func (c *Config) openIdentity() (*pki.Store, error) {
	dir := filepath.Join(c.DataDir, IdentityDir)
	if c.Token == "" && !pki.Exists(dir) {
		return nil, cfs.Errorf("join", cfs.Denied, "this server has no certificate: give --token, which \"cfs admin token create --role storage\" prints")
	}
	return pki.OpenStore(dir)
}

// spent completes why a server may not join with what has become of its token.
func (c *Config) spent(err error) error {
	if err == nil || cfs.KindOf(err) != cfs.Exists {
		return err
	}
	return cfs.Errorf("", cfs.Exists, "%w (the token is used up, and its certificate is kept in %s: afterwards the same command needs no other token)",
		err, filepath.Join(c.DataDir, IdentityDir))
}
