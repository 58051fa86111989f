package raftmeta

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Enrolment is the leader's: it takes the token away by a command, so that none is used
// twice, and signs with the authority's key, which is part of the state.

const (
	// defaultTokenTTL and maxTokenTTL are how long a token may be used.
	defaultTokenTTL = time.Hour
	maxTokenTTL     = 30 * 24 * time.Hour
)

// Authority is the cluster's authority as this node has applied it; nil until it is recorded.
func (n *Node) Authority() (ca *cfs.CA, err error) {
	err = n.state.view(func(v kv.View) (err error) {
		ca, err = fsm.ReadCA(v)
		return err
	})
	return ca, err
}

// serveEnrol gives a peer a certificate: for a token, or for the one that it has.
func (n *Node) serveEnrol(ctx context.Context, r *wire.Request) (wire.Response, error) {
	const op = "enrol"
	var m wirepb.Enrol
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	if !n.lead.Load().mine {
		return wire.Response{}, n.notLeader(op)
	}
	if err := n.confirm(ctx, op); err != nil {
		return wire.Response{}, err
	}
	ca, err := n.Authority()
	switch {
	case err != nil:
		return wire.Response{}, err
	case ca == nil:
		return wire.Response{}, cfs.Errorf(op, cfs.Unavailable, "the cluster has no authority yet: it is recorded when every seed node has been started")
	case ca.Off:
		return wire.Response{}, cfs.Errorf(op, cfs.Unsupported, "the cluster was made without certificates (--tls off)")
	}
	key, err := pki.KeyID(m.PublicKey)
	if err != nil {
		return wire.Response{}, err
	}
	if slices.Contains(n.Map().Revoked, key) {
		return wire.Response{}, cfs.Errorf(op, cfs.Denied, "key %s was revoked", key)
	}
	var who cfs.Principal
	if m.Token != "" {
		who, err = n.useToken(ctx, ca, &m, key)
	} else {
		who, err = n.renewal(r.Peer, key)
	}
	if err != nil {
		return wire.Response{}, err
	}
	cert, err := pki.Sign(ca, pki.Request{Who: who, Name: m.Name, PublicKey: m.PublicKey, Lifetime: n.cfg.CertLifetime}, n.cfg.Clock.Now())
	if err != nil {
		return wire.Response{}, err
	}
	n.log.Info("signed a certificate", "key", key, "role", who.Role.String(), "node", uint16(who.Node), "name", pki.MachineName(m.Name), "renewal", m.Token == "", "peer", r.Peer.Addr)
	return wire.Response{Body: &wirepb.EnrolReply{Cert: cert, Ca: ca.Cert, ClusterId: n.cfg.ClusterID}}, nil
}

// renewal says who a peer stays that renews its certificate. It is for the key that the certificate is of: the key is what
// is revoked, so that nobody gets away to another.
func (n *Node) renewal(p *wire.Peer, key string) (cfs.Principal, error) {
	const op = "enrol"
	switch {
	case p.Key == "":
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it has no certificate, and the cluster has begun: it needs a token (cfs admin token create)")
	case p.Key != key:
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "a renewal is for the certificate's own key (%s), and not for %s, which takes a token", p.Key, key)
	case p.Role == cfs.RoleStorage && !n.Knows(p.Certified):
		return cfs.Principal{}, unknownNode(op, p.Certified)
	}
	return cfs.Principal{ClusterID: n.cfg.ClusterID, Role: p.Role, Node: p.Certified}, nil
}

// Knows reports a server that is a member or in the map: what its certificate says counts as long as it is.
func (n *Node) Knows(id cfs.NodeID) bool {
	r := n.roster.Load()
	_, peer := r.addrs[id]
	return peer || r.find(id) != nil || nodeOf(n.Map(), id) != nil
}

// unknownNode is what a server is told that has no part in the cluster.
func unknownNode(op string, id cfs.NodeID) error {
	return cfs.Errorf(op, cfs.Denied, "node %d has no part in this cluster, or was removed from it: join it with a token (cfs admin token create --role storage)", id)
}

// useToken spends a token, and says whom it makes the peer. What is wrong with the request
// besides is said before: a token is spent for nothing only where the reply is lost.
func (n *Node) useToken(ctx context.Context, ca *cfs.CA, m *wirepb.Enrol, key string) (cfs.Principal, error) {
	const op = "enrol"
	unusable := cfs.Errorf(op, cfs.Denied, "the token is unknown, was used already, or has expired")
	t, err := pki.ParseToken(m.Token)
	if err != nil {
		return cfs.Principal{}, err
	}
	var known *cfs.Token
	err = n.state.view(func(v kv.View) (err error) {
		known, err = fsm.ReadToken(v, t.ID)
		return err
	})
	if err != nil {
		return cfs.Principal{}, err
	}
	if known == nil {
		return cfs.Principal{}, unusable
	}
	who := cfs.Principal{ClusterID: n.cfg.ClusterID, Role: known.Role}
	if known.Role == cfs.RoleStorage {
		if who.Node, err = n.newcomer(m.NodeId); err != nil {
			return cfs.Principal{}, err
		}
	}
	// A key that cannot be signed is found now, at the cost of a signature that is thrown away.
	if _, err := pki.Sign(ca, pki.Request{Who: who, Name: m.Name, PublicKey: m.PublicKey}, n.cfg.Clock.Now()); err != nil {
		return cfs.Principal{}, err
	}
	reply, err := n.own(ctx, cfs.Op{Kind: cfs.OpUseToken, Token: cfs.Token{ID: t.ID, Hash: t.Hash()},
		Enrolled: cfs.Enrolled{Key: key, Node: who.Node, Name: pki.MachineName(m.Name)}})
	if err != nil {
		return cfs.Principal{}, err
	}
	if reply.Kind != cfs.KindOK {
		return cfs.Principal{}, unusable
	}
	return who, nil
}

// newcomer checks the number of a server that enrols: one that serves, or votes, cannot be anybody else. That of one
// that is gone may be taken by a server with its devices.
func (n *Node) newcomer(id uint32) (cfs.NodeID, error) {
	const op = "enrol"
	if id == 0 || id > 1<<16-1 {
		return 0, cfs.Errorf(op, cfs.Invalid, "a server's number is 1 to 65535, not %d", id)
	}
	known := nodeOf(n.Map(), cfs.NodeID(id))
	switch {
	case n.roster.Load().find(cfs.NodeID(id)) != nil:
		return 0, cfs.Errorf(op, cfs.Conflict, "node %d has a vote: run \"cfs admin voter remove %d\" first", id, id)
	case known != nil && known.State != cfs.StateDown && known.State != cfs.StateOut:
		return 0, cfs.Errorf(op, cfs.Conflict, "node %d is a server that is %s: take another number, or stop it first", id, known.State)
	}
	return cfs.NodeID(id), nil
}

// identityVerb carries out an administrator's change of who is trusted; nil for another verb.
func (n *Node) identityVerb(v wire.Verb) func(context.Context, *wirepb.Admin) (*wirepb.AdminReply, error) {
	switch v {
	case wire.VerbTokenCreate:
		return n.createToken
	case wire.VerbTokenRemove:
		return n.removeToken
	case wire.VerbRevoke:
		return n.revoke
	}
	return nil
}

func (n *Node) createToken(ctx context.Context, m *wirepb.Admin) (*wirepb.AdminReply, error) {
	const op = "token create"
	role, ttl := cfs.Role(m.Role), defaultTokenTTL
	if m.TtlMs != 0 {
		ttl = time.Duration(min(m.TtlMs, uint64(maxTokenTTL/time.Millisecond)+1)) * time.Millisecond
	}
	switch {
	case m.Role < uint32(cfs.RoleStorage) || m.Role > uint32(cfs.RoleAdmin):
		return nil, cfs.Errorf(op, cfs.Invalid, "role %d: want storage, client or admin", m.Role)
	case ttl > maxTokenTTL:
		return nil, cfs.Errorf(op, cfs.Invalid, "a token is valid for %s at most", maxTokenTTL)
	}
	if err := n.confirm(ctx, op); err != nil {
		return nil, err
	}
	ca, err := n.Authority()
	switch {
	case err != nil:
		return nil, err
	case ca == nil:
		return nil, cfs.Errorf(op, cfs.Unavailable, "the cluster has no authority yet: it is recorded when every seed node has been started")
	case ca.Off:
		return nil, cfs.Errorf(op, cfs.Unsupported, "the cluster was made without certificates (--tls off): nobody needs a token")
	}
	expires := n.cfg.Clock.Now().Add(ttl)
	t, kept, err := pki.NewToken(ca, role, expires)
	if err != nil {
		return nil, err
	}
	if err := n.change(ctx, op, cfs.Op{Kind: cfs.OpAddToken, Token: kept}); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("token %s for one %s is valid until %s", t.ID, role, expires.UTC().Format(time.RFC3339))
	n.log.Info("administrator", "did", text)
	return &wirepb.AdminReply{Text: text, Token: t.String()}, nil
}

func (n *Node) removeToken(ctx context.Context, m *wirepb.Admin) (*wirepb.AdminReply, error) {
	if err := n.change(ctx, "token remove", cfs.Op{Kind: cfs.OpUseToken, Token: cfs.Token{ID: string(m.Text)}}); err != nil {
		return nil, err
	}
	return &wirepb.AdminReply{Text: fmt.Sprintf("token %s is gone", m.Text)}, nil
}

func (n *Node) revoke(ctx context.Context, m *wirepb.Admin) (*wirepb.AdminReply, error) {
	if err := n.change(ctx, "revoke", cfs.Op{Kind: cfs.OpRevoke, Name: string(m.Text)}); err != nil {
		return nil, err
	}
	n.log.Info("administrator", "did", "revoked key "+m.Text)
	return &wirepb.AdminReply{Text: fmt.Sprintf("key %s is refused from now on, with every certificate that it has", m.Text)}, nil
}

// change proposes an operation; a refusal is an error.
func (n *Node) change(ctx context.Context, what string, op cfs.Op) error {
	r, err := n.own(ctx, op)
	if err == nil && r.Kind != cfs.KindOK {
		err = cfs.E(what, r.Kind, nil)
	}
	return err
}
