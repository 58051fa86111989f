package node

import (
	"context"
	"crypto/sha256"
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
	"github.com/claudefs/claudefs/internal/durable"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// How a cluster with certificates begins: node 1 makes the authority, in its own directory, and
// signs for itself. The other seed nodes ask it for theirs when they are first started, and trust the
// authority that they find there (or, with a bootstrap token on every seed, each side proves to the other that it knows
// it). Each number is signed for once, for one key. When every seed has its certificate, node 1 has
// the authority recorded in the replicated state: from then on whoever leads signs, and only for a token. Then it removes
// its own copy of the key.

const (
	// IdentityDir is where a server keeps its certificate, in its data directory.
	IdentityDir = "identity"
	seedsFile   = "seeds.json"
	// revokedFile has the keys that were refused last: a server that only stores begins without a map.
	revokedFile = "revoked.json"
	// authorityPause is how often it is looked whether the authority can be recorded.
	authorityPause = 100 * time.Millisecond
	// The values of state.TLS.
	tlsOn   = "on"
	tlsOff  = "off"
	tlsOpen = "undecided"
)

// security is a node's identity, and whom it trusts.
type security struct {
	n     *Node
	store *pki.Store // nil without certificates

	revoked atomic.Pointer[map[string]bool] // ids of keys
	refused refusals                        // of guard, and before it of the start

	mu    sync.Mutex            // held while a seed is signed for
	seeds map[cfs.NodeID]string // node 1, until the authority is recorded: hash of the key that each has
}

func (s *security) name() string { return fmt.Sprintf("node %d", s.n.cfg.NodeID) }

func (s *security) sign(ca *cfs.CA, id cfs.NodeID, key []byte, name string) ([]byte, error) {
	return pki.Sign(ca, pki.Request{Who: cfs.Principal{ClusterID: s.n.cfg.ClusterID, Role: cfs.RoleStorage, Node: id},
		Name: name, PublicKey: key, Lifetime: s.n.cfg.CertLifetime}, s.n.cfg.now())
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
	key, err := pki.KeyID(req.PublicKey)
	if err != nil {
		return wire.Response{}, err
	}
	if r.Peer.Key != "" && r.Peer.Key != key {
		return wire.Response{}, cfs.Errorf("enrol", cfs.Denied, "a renewal is for the certificate's own key (%s), and not for %s", r.Peer.Key, key)
	}
	id := cfs.NodeID(req.NodeId)
	if req.NodeId == 0 && r.Peer.Role == cfs.RoleStorage {
		id = r.Peer.Certified // a renewal
	}
	if err := s.admit(r.Peer, &req, id, ca.Cert); err != nil {
		return wire.Response{}, err
	}
	cert, err := s.sign(&ca, id, req.PublicKey, req.Name)
	if err != nil {
		return wire.Response{}, err
	}
	n.log.Info("signed a seed node's certificate", "key", key, "role", cfs.RoleStorage.String(), "node", uint16(id), "name", pki.MachineName(req.Name), "peer", r.Peer.Addr)
	reply := &wirepb.EnrolReply{Cert: cert, Ca: ca.Cert, ClusterId: n.cfg.ClusterID}
	if len(req.Proof) > 0 {
		reply.Proof = pki.AuthorityProof(n.cfg.BootstrapToken, ca.Cert, req.PublicKey)
	}
	return wire.Response{Body: reply}, nil
}

// admit decides, and records, that node 1 signs for a seed node, with the authority of that certificate. The
// caller holds s.mu.
func (s *security) admit(p *wire.Peer, req *wirepb.Enrol, id cfs.NodeID, authority []byte) error {
	const op = "enrol"
	secret := s.n.cfg.BootstrapToken
	switch {
	case req.Token != "":
		return cfs.Errorf(op, cfs.Unavailable, "the cluster has no authority yet: it is recorded when every seed node has been started")
	case p.Role == cfs.RoleStorage && p.Certified == id:
		return nil
	case secret == "" && len(req.Proof) > 0:
		return cfs.Errorf(op, cfs.Denied, "node 1 was given no bootstrap token")
	case secret != "" && !pki.SameProof(req.Proof, pki.SeedProof(secret, authority, req.PublicKey, id)):
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
		err = durable.Replace(filepath.Join(s.store.Dir(), seedsFile), raw)
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
		who, err := s.store.Judge(certs, s.n.cfg.now())
		if err == nil {
			err = s.checkRevoked(who.Key)
		}
		return who, err
	}}
}

func (s *security) checkRevoked(key string) error {
	if key != "" && (*s.revoked.Load())[key] {
		return cfs.Errorf("certificate", cfs.Denied, "it was revoked (key %s)", key)
	}
	return nil
}

// guard follows the map, until ctx ends: what was revoked is cut off, and a node that has nothing to do in
// this cluster ends.
func (s *security) guard(ctx context.Context) {
	for {
		own, followed := s.n.raft.mapChanged()
		m := s.n.raft.Map()
		switch {
		case m.TLSOff && s.store != nil:
			s.n.fail(cfs.Errorf("start", cfs.Usage, "the cluster was made without certificates: start this server with --tls off"))
		case m.CA != "" && s.store == nil:
			s.n.fail(cfs.Errorf("start", cfs.Usage, "the cluster was made with certificates: --tls off is refused"))
		}
		if s.store != nil {
			s.follow(m)
		}
		select {
		case <-ctx.Done():
			return
		case <-own:
		case <-followed:
		}
	}
}

// refusals is revoked.json: the keys that are refused, as of a version of the map.
type refusals struct {
	Version uint64   `json:"map_version"`
	Keys    []string `json:"revoked"`
}

// recall refuses what was refused when the node ended, and what its replica knows, before it serves.
func (s *security) recall() error {
	if s.store == nil {
		return nil
	}
	path := filepath.Join(s.store.Dir(), revokedFile)
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &s.refused)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cfs.E(path, cfs.Corrupt, err)
	}
	s.refuse(s.refused.Keys)
	s.follow(s.n.raft.Map())
	return nil
}

// follow refuses what a map does, unless it is older than what is refused already, and keeps it for the next start.
// Where node 1 still has the authority's key, the state has it now.
func (s *security) follow(m *cfs.Map) {
	if m.CA != "" && s.n.cfg.NodeID == 1 {
		s.handOver(m.CA)
	}
	if m.CA == "" || m.Version < s.refused.Version || slices.Equal(m.Revoked, s.refused.Keys) {
		return
	}
	s.refused = refusals{m.Version, m.Revoked}
	s.refuse(m.Revoked)
	raw, err := json.Marshal(s.refused)
	if err == nil {
		err = durable.Replace(filepath.Join(s.store.Dir(), revokedFile), raw)
	}
	if err != nil {
		s.n.log.Error("the next start will not know at once which keys are refused", "err", err)
	}
}

// handOver removes the authority's key from node 1's directory when it is recorded, which a majority of the voters has
// on disk: there is no other use for it, and who reads a directory of a server that does not vote any more is not to find it.
func (s *security) handOver(recorded string) {
	ca, err := s.store.Authority()
	if err == nil && ca.Key != nil && pki.Fingerprint(ca.Cert) == recorded {
		if err = s.store.ForgetAuthority(); err == nil {
			s.n.log.Info("the authority is part of the state now: its key is removed from this directory", "fingerprint", recorded)
		}
	}
	if err != nil {
		s.n.log.Warn("the authority's key is still in this directory", "err", err)
	}
}

// refuse makes keys those that are refused, and cuts their connections.
func (s *security) refuse(keys []string) {
	revoked := make(map[string]bool, len(keys))
	for _, key := range keys {
		revoked[key] = true
	}
	s.revoked.Store(&revoked)
	if len(keys) > 0 {
		gone := func(p *wire.Peer) error { return s.checkRevoked(p.Key) }
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
	founders := s.foundersLocked()
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
	// The first of them records the authority; the others only say for whom it has signed.
	for _, founder := range founders {
		if err := s.n.propose(ctx, what, cfs.Op{Kind: cfs.OpSetCA, CA: ca, Enrolled: founder}); err != nil {
			return err
		}
	}
	return nil
}

// foundersLocked are the seed nodes and their keys, by which an administrator can revoke them. The caller holds s.mu.
func (s *security) foundersLocked() []cfs.Enrolled {
	founders := []cfs.Enrolled{{Key: s.store.Identity().Who.Key, Role: cfs.RoleStorage, Node: 1, Name: s.name()}}
	for id, sum := range s.seeds {
		founders = append(founders, cfs.Enrolled{Key: sum[:min(len(sum), cfs.KeyDigits)], Role: cfs.RoleStorage, Node: id, Name: fmt.Sprintf("node %d", id)})
	}
	return founders
}

// renew keeps the node's certificate valid.
func (s *security) renew(ctx context.Context) {
	if s.store == nil {
		return
	}
	client.KeepRenewed(ctx, client.Enrolment{Store: s.store, Name: s.name(), Now: s.n.cfg.now, Logger: s.n.log.With("part", "identity")},
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
	return n.cfg.TLS && r.Peer.Key == "" && r.Peer.Role == cfs.RoleAdmin && (r.Op == wire.OpAdmin || r.Op == wire.OpQuery)
}

// passOn asks the leader in the peer's stead.
func (n *Node) passOn(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var req, reply proto.Message = &wirepb.Admin{}, &wirepb.AdminReply{}
	call := n.leader.callOnce // a token that was made is not made again
	if r.Op == wire.OpQuery {
		req, reply, call = &wirepb.Query{}, &wirepb.Answer{}, n.leader.call
	}
	if err := r.Decode(req); err != nil {
		return wire.Response{}, err
	}
	if err := call(ctx, r.Op, req, reply); err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Body: reply}, nil
}
