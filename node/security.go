package node

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// How a cluster with certificates begins: node 1 makes the authority, in its own directory, and
// signs for itself. The other seed nodes ask it for theirs when they are first started, and trust the
// authority that they find there (or, with a bootstrap token on every seed, node 1 signs only for who
// knows it). Each number is signed for once, for one key. When every seed has its certificate, node 1 has
// the authority recorded in the replicated state: from then on whoever leads signs, and only for a token.

const (
	// IdentityDir is where a server keeps its certificate, in its data directory.
	IdentityDir = "identity"
	seedsFile   = "seeds.json"
	// authorityPause is how often it is looked whether the authority can be recorded.
	authorityPause = 100 * time.Millisecond
	// The values of state.TLS.
	tlsOn  = "on"
	tlsOff = "off"
)

// security is a node's identity, and whom it trusts.
type security struct {
	n     *Node
	store *pki.Store // nil without certificates

	revoked atomic.Pointer[map[string]bool]

	mu    sync.Mutex            // held while a seed is signed for
	seeds map[cfs.NodeID]string // node 1, until the authority is recorded: hash of the key that each has
}

// now is the node's wall clock.
func (n *Node) now() time.Time { return time.Now().Add(n.cfg.ClockOffset) }

// checkMode holds the configuration against what the directory's cluster was made with.
func (d *dataDir) checkMode(cfg *Config, op string) error {
	mode := tlsOff
	if cfg.TLS {
		mode = tlsOn
	}
	if d.state.TLS == "" {
		d.state.TLS = mode
		if d.state.NextSlot > 0 { // of a version that had no certificates
			d.state.TLS = tlsOff
		}
	}
	switch {
	case d.state.TLS == mode:
		return nil
	case cfg.TLS:
		return cfs.Errorf(op, cfs.Usage, "its cluster was made without certificates: it goes on with --tls off only")
	}
	return cfs.Errorf(op, cfs.Usage, "its cluster was made with certificates: --tls off is refused")
}

// openSecurity sees to it that the node has a certificate, where the cluster has any.
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
	switch {
	case id != nil && (id.Who.ClusterID != n.cfg.ClusterID || id.Who.Node != n.cfg.NodeID):
		return cfs.Errorf("identity in "+s.store.Dir(), cfs.WrongCluster, "it is of node %d of cluster %q", id.Who.Node, id.Who.ClusterID)
	case id != nil:
		return nil
	case n.cfg.joined:
		return cfs.Errorf("join", cfs.Denied, "%s has no certificate: join anew, with a token", n.cfg.DataDir)
	case n.cfg.NodeID == 1:
		return s.begin()
	}
	// A token is one of a cluster that has begun; a bootstrap token is no such.
	return client.Enrol(ctx, client.Enrolment{
		Store: s.store, Servers: n.cfg.Seeds[:1], Token: n.cfg.BootstrapToken, TrustFirst: true,
		NodeID: n.cfg.NodeID, Name: s.name(), Now: n.now, Logger: n.log.With("part", "identity"),
	})
}

func (s *security) name() string { return fmt.Sprintf("node %d", s.n.cfg.NodeID) }

// begin makes the authority and node 1's own certificate.
func (s *security) begin() error {
	ca, err := s.store.Authority()
	if err != nil {
		return err
	}
	if ca.Key == nil {
		if ca, err = pki.NewAuthority(s.n.cfg.ClusterID, s.n.now()); err != nil {
			return err
		}
		if err := s.store.SaveAuthority(&ca); err != nil {
			return err
		}
	}
	key, err := s.store.PublicKey()
	if err != nil {
		return err
	}
	cert, err := s.sign(&ca, 1, key, s.name())
	if err != nil {
		return err
	}
	s.n.log.Info("made the cluster's authority", "fingerprint", pki.Fingerprint(ca.Cert))
	return s.store.Save(cert, ca.Cert)
}

func (s *security) sign(ca *cfs.CA, id cfs.NodeID, key []byte, name string) ([]byte, error) {
	return pki.Sign(ca, pki.Request{Who: cfs.Principal{ClusterID: s.n.cfg.ClusterID, Role: cfs.RoleStorage, Node: id},
		Name: name, PublicKey: key, Lifetime: s.n.cfg.CertLifetime}, s.n.now())
}

// loadSeeds reads whom node 1 has signed for.
func (s *security) loadSeeds() error {
	path := filepath.Join(s.store.Dir(), seedsFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		s.seeds = map[cfs.NodeID]string{}
		return nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &s.seeds)
	}
	if err != nil {
		return cfs.E(path, cfs.Corrupt, err)
	}
	return nil
}

// enrol answers a request for a certificate: the leader does, and before there is an authority in the state node 1.
func (n *Node) enrol(ctx context.Context, r *wire.Request) (wire.Response, error) {
	s := n.trust
	m := n.raft.Map()
	if s.store == nil || m.CA != "" || n.cfg.NodeID != 1 {
		return n.raft.Serve(ctx, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var req wirepb.Enrol
	if err := r.Decode(&req); err != nil {
		return wire.Response{}, err
	}
	ca, err := s.store.Authority()
	if err != nil {
		return wire.Response{}, err
	}
	if ca.Key == nil {
		return n.raft.Serve(ctx, r)
	}
	id := cfs.NodeID(req.NodeId)
	if req.NodeId == 0 && r.Peer.Role == cfs.RoleStorage {
		id = r.Peer.Certified // a renewal
	}
	if err := s.admit(r.Peer, &req, id); err != nil {
		return wire.Response{}, err
	}
	cert, err := s.sign(&ca, id, req.PublicKey, req.Name)
	if err != nil {
		return wire.Response{}, err
	}
	n.log.Info("signed a seed node's certificate", "for", uint16(id), "peer", r.Peer.Addr)
	return wire.Response{Body: &wirepb.EnrolReply{Cert: cert, Ca: ca.Cert, ClusterId: n.cfg.ClusterID}}, nil
}

// admit decides, and records, that node 1 signs for a seed node. The caller holds s.mu.
func (s *security) admit(p *wire.Peer, req *wirepb.Enrol, id cfs.NodeID) error {
	const op = "enrol"
	if p.Role == cfs.RoleStorage && p.Certified == id && req.Token == "" {
		return nil
	}
	if subtle.ConstantTimeCompare([]byte(req.Token), []byte(s.n.cfg.BootstrapToken)) != 1 {
		if _, err := pki.ParseToken(req.Token); err == nil {
			return cfs.Errorf(op, cfs.Unavailable, "the cluster has no authority yet: it is recorded when every seed node has been started")
		}
		return cfs.Errorf(op, cfs.Denied, "the bootstrap token is not that of node 1")
	}
	if id < 2 || int(id) > len(s.n.cfg.Seeds) {
		return cfs.Errorf(op, cfs.Denied, "node %d is not one of the seed nodes", id)
	}
	sum := sha256.Sum256(req.PublicKey)
	key := hex.EncodeToString(sum[:])
	switch known := s.seeds[id]; known {
	case key:
		return nil
	case "":
	default:
		return cfs.Errorf(op, cfs.Denied, "node %d has enrolled already, with another key", id)
	}
	s.seeds[id] = key
	raw, err := json.Marshal(s.seeds)
	if err == nil {
		err = writeDurably(filepath.Join(s.store.Dir(), seedsFile), raw)
	}
	if err != nil {
		delete(s.seeds, id)
		return cfs.E(op, cfs.KindOf(err), err)
	}
	return nil
}

// tls is how the node's connections are encrypted; nil: not.
func (s *security) tls() *wire.TLS {
	if s.store == nil {
		return nil
	}
	return &wire.TLS{Config: s.store.Config, Judge: func(certs []*x509.Certificate) (cfs.Principal, error) {
		who, err := s.store.Judge(certs, s.n.now())
		if err == nil {
			err = s.checkRevoked(who.Serial)
		}
		return who, err
	}}
}

func (s *security) checkRevoked(serial string) error {
	if serial != "" && (*s.revoked.Load())[serial] {
		return cfs.Errorf("certificate", cfs.Denied, "it was revoked (serial number %s)", serial)
	}
	return nil
}

// guard follows the map, until ctx ends: what was revoked is cut off, and a node that has nothing to do in
// this cluster ends.
func (s *security) guard(ctx context.Context) {
	var refused []string
	for {
		own, followed := s.n.raft.mapChanged()
		m := s.n.raft.Map()
		switch {
		case m.TLSOff && s.store != nil:
			s.n.fail(cfs.Errorf("start", cfs.Usage, "the cluster was made without certificates: start this server with --tls off"))
		case m.CA != "" && s.store == nil:
			s.n.fail(cfs.Errorf("start", cfs.Usage, "the cluster was made with certificates: --tls off is refused"))
		}
		if !slices.Equal(m.Revoked, refused) {
			refused = m.Revoked
			s.refuse(refused)
		}
		select {
		case <-ctx.Done():
			return
		case <-own:
		case <-followed:
		}
	}
}

// refuse makes serials those that are refused, and cuts their connections.
func (s *security) refuse(serials []string) {
	revoked := make(map[string]bool, len(serials))
	for _, serial := range serials {
		revoked[serial] = true
	}
	s.revoked.Store(&revoked)
	if s.store != nil && len(serials) > 0 {
		gone := func(p *wire.Peer) error { return s.checkRevoked(p.Serial) }
		s.n.server.Cut(gone)
		for _, p := range s.n.pools {
			p.Cut(gone)
		}
	}
}

// record has the authority recorded, or that there is none, by node 1 until it is.
func (s *security) record(ctx context.Context) {
	if s.n.cfg.NodeID != 1 {
		return
	}
	tick := time.NewTicker(authorityPause)
	defer tick.Stop()
	for {
		if m := s.n.raft.Map(); m.CA != "" || m.TLSOff {
			return
		}
		if err := s.tryRecord(ctx); err != nil && ctx.Err() == nil {
			s.n.log.Debug("the authority is not recorded yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *security) tryRecord(ctx context.Context) error {
	const what = "record the authority"
	if s.store == nil {
		return s.n.propose(ctx, what, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Off: true}})
	}
	s.mu.Lock()
	enrolled := 1 + len(s.seeds)
	s.mu.Unlock()
	if enrolled < len(s.n.cfg.Seeds) {
		return cfs.Errorf(what, cfs.Unavailable, "%d of %d seed nodes have enrolled", enrolled, len(s.n.cfg.Seeds))
	}
	ca, err := s.store.Authority()
	if err != nil {
		return err
	}
	if ca.Key == nil {
		return cfs.Errorf(what, cfs.Unavailable, "it is not here")
	}
	return s.n.propose(ctx, what, cfs.Op{Kind: cfs.OpSetCA, CA: ca})
}

// renew keeps the node's certificate valid.
func (s *security) renew(ctx context.Context) {
	if s.store == nil {
		return
	}
	client.KeepRenewed(ctx, client.Enrolment{Store: s.store, Name: s.name(), Now: s.n.now, Logger: s.n.log.With("part", "identity")},
		func() []string { return append([]string{s.n.leader.believed()}, s.n.leader.servers()...) })
}

// fail ends the service with an error, unless something else does already.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// fromHere reports a request that came by the unix socket, from who may do everything and has no certificate to
// go to the leader with.
func (n *Node) fromHere(r *wire.Request) bool {
	return n.cfg.TLS && r.Peer.Serial == "" && r.Peer.Role == cfs.RoleAdmin && (r.Op == wire.OpAdmin || r.Op == wire.OpQuery)
}

// passOn asks the leader in the peer's stead.
func (n *Node) passOn(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var req, reply proto.Message = &wirepb.Admin{}, &wirepb.AdminReply{}
	if r.Op == wire.OpQuery {
		req, reply = &wirepb.Query{}, &wirepb.Answer{}
	}
	if err := r.Decode(req); err != nil {
		return wire.Response{}, err
	}
	if err := n.leader.call(ctx, r.Op, req, reply); err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Body: reply}, nil
}
