package raftmeta

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// TestEnrolment: what a token makes whom, and for which key a certificate is renewed.
func TestEnrolment(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.NodeTimeout = time.Hour }) // nobody is silent for too long
	c.wait("a leader", func() bool { return c.leader() != nil })
	n := c.leader().node
	ca, err := pki.NewAuthority(n.cfg.ClusterID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []cfs.Op{{Kind: cfs.OpSetCA, CA: ca}, {Kind: cfs.OpSetNode, Node: cfs.Node{ID: 5, Addr: "n5:1", State: cfs.StateUp}},
		{Kind: cfs.OpSetNode, Node: cfs.Node{ID: 6, Addr: "n6:1", State: cfs.StateOut}}} {
		if err := n.change(t.Context(), "test", op); err != nil {
			t.Fatal(err)
		}
	}
	newKey := func() (der []byte, id string) {
		t.Helper()
		store, err := pki.OpenStore(t.TempDir())
		if err == nil {
			der, err = store.PublicKey()
		}
		if err == nil {
			id, err = pki.KeyID(der)
		}
		if err != nil {
			t.Fatal(err)
		}
		return der, id
	}
	enrol := func(p *wire.Peer, m *wirepb.Enrol) error {
		t.Helper()
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = n.serveEnrol(t.Context(), &wire.Request{Op: wire.OpEnrol, Body: body, Peer: p})
		return err
	}
	want := func(what string, err error, kind cfs.Kind, why string) {
		t.Helper()
		if cfs.KindOf(err) != kind || why != "" && !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %v %q", what, err, kind, why)
		}
	}
	tokenOf := func(role cfs.Role) string {
		t.Helper()
		reply, err := n.createToken(t.Context(), &wirepb.Admin{Role: uint32(role)})
		if err != nil {
			t.Fatal(err)
		}
		return reply.Token
	}
	key, id := newKey()
	other, otherID := newKey()
	storage := tokenOf(cfs.RoleStorage)
	for _, bad := range []struct {
		node uint32
		why  string
	}{{0, "1 to 65535"}, {1, "cfs admin voter remove 1"}, {5, "is up"}} {
		want("a number that is taken", enrol(&wire.Peer{}, &wirepb.Enrol{Token: storage, PublicKey: key, NodeId: bad.node}), map[bool]cfs.Kind{true: cfs.Invalid, false: cfs.Conflict}[bad.node == 0], bad.why)
	}
	want("a server", enrol(&wire.Peer{}, &wirepb.Enrol{Token: storage, PublicKey: key, NodeId: 4, Name: "host\nname"}), cfs.KindOK, "")
	want("its token again", enrol(&wire.Peer{}, &wirepb.Enrol{Token: storage, PublicKey: key, NodeId: 4}), cfs.Denied, "used already")
	want("one that is out", enrol(&wire.Peer{}, &wirepb.Enrol{Token: tokenOf(cfs.RoleStorage), PublicKey: other, NodeId: 6}), cfs.KindOK, "")
	if k := nodeOf(n.Map(), 4); k == nil || k.State != cfs.StateDown {
		t.Errorf("its number is not in the map: %+v", k)
	}
	a, err := c.query(&cfs.Query{Kind: cfs.QueryEnrolled})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, k := range a.Enrolled {
		found = found || k.Key == id && k.Role == cfs.RoleStorage && k.Node == 4 && k.Name == "host?name"
	}
	if !found || len(a.Enrolled) != 2 {
		t.Errorf("enrolled are %+v", a.Enrolled)
	}

	server := &wire.Peer{Role: cfs.RoleStorage, Certified: 4, Key: id}
	want("a renewal", enrol(server, &wirepb.Enrol{PublicKey: key}), cfs.KindOK, "")
	want("a renewal for another key", enrol(server, &wirepb.Enrol{PublicKey: other}), cfs.Denied, "own key")
	want("a renewal of nobody", enrol(&wire.Peer{}, &wirepb.Enrol{PublicKey: key}), cfs.Denied, "needs a token")
	want("a renewal of a server that was removed", enrol(&wire.Peer{Role: cfs.RoleStorage, Certified: 9, Key: otherID}, &wirepb.Enrol{PublicKey: other}), cfs.Denied, "join it with a token")
	if err := n.duties.Load().hearNode(&beat{heard: time.Now(), node: cfs.Node{ID: 9}}); cfs.KindOf(err) != cfs.Denied {
		t.Errorf("the heartbeat of a server that was removed: %v", err)
	}
	if err := n.duties.Load().hearNode(&beat{heard: time.Now(), node: cfs.Node{ID: 4, Addr: "n4:1"}}); err != nil {
		t.Errorf("the heartbeat of a new server: %v", err)
	}

	if _, err := n.revoke(t.Context(), &wirepb.Admin{Text: id}); err != nil {
		t.Fatal(err)
	}
	want("a renewal of a key that was revoked", enrol(server, &wirepb.Enrol{PublicKey: key}), cfs.Denied, "revoked")
	late := tokenOf(cfs.RoleClient)
	want("a token for it", enrol(&wire.Peer{}, &wirepb.Enrol{Token: late, PublicKey: key}), cfs.Denied, "revoked")
	want("the token for another key", enrol(&wire.Peer{}, &wirepb.Enrol{Token: late, PublicKey: other}), cfs.KindOK, "")
}
