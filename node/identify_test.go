package node

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// A cluster that was off for longer than its certificates live comes back by itself.
func TestExpiredServerSignsForItself(t *testing.T) {
	cfg := aloneConfig(t, t.TempDir())
	cfg.Listen, cfg.TLS = freeAddrs(t, 1)[0], true
	n := start(t, cfg)
	waitFor(t, "the authority is recorded", func() bool { return n.raft.Map().CA != "" })
	waitFor(t, "the directory knows the mode", func() bool { return readState(t, cfg).TLS == tlsOn })
	before := n.trust.store.Identity()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.ClockOffset = 2 * pki.DefaultLifetime
	n = start(t, cfg)
	after := n.trust.store.Identity()
	if after.Who.Serial == before.Who.Serial || after.Expired(n.cfg.now()) || !after.Authority.Equal(before.Authority) {
		t.Errorf("it came back with %s until %s", after.Who.Serial, after.Cert.NotAfter)
	}
}

// A node 1 that has lost everything makes no second authority.
func TestNoSecondAuthority(t *testing.T) {
	addrs := freeAddrs(t, 2)
	ca, err := pki.NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	serveAs(t, addrs[1], &ca, 2, nil)
	cfg := aloneConfig(t, t.TempDir())
	cfg.Listen, cfg.Seeds, cfg.TLS = addrs[0], addrs, true
	refuseStart(t, cfg, cfs.Denied, "voter remove 1")
}

// Whoever answers at node 1's address without knowing the bootstrap token learns nothing of it, and is not trusted.
func TestImpostorOfNode1(t *testing.T) {
	addr := freeAddrs(t, 1)[0]
	ca, err := pki.NewAuthority("one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret := "the seeds' secret"
	known := ""
	serveAs(t, addr, &ca, 1, func(req *wirepb.Enrol) *wirepb.EnrolReply {
		if strings.Contains(req.String(), secret) {
			t.Error("the secret was said")
		}
		cert, err := pki.Sign(&ca, pki.Request{Who: cfs.Principal{ClusterID: "one", Role: cfs.RoleStorage, Node: 2}, PublicKey: req.PublicKey}, time.Now())
		if err != nil {
			t.Error(err)
		}
		return &wirepb.EnrolReply{Cert: cert, Ca: ca.Cert, ClusterId: "one", Proof: pki.AuthorityProof(known, ca.Cert, req.PublicKey)}
	})
	enrol := func() (*pki.Store, error) {
		store, err := pki.OpenStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), testPatience)
		defer cancel()
		return store, client.Enrol(ctx, client.Enrolment{Store: store, Servers: []string{addr}, TrustFirst: true, Secret: secret, NodeID: 2})
	}
	if store, err := enrol(); cfs.KindOf(err) != cfs.Denied || store.Identity() != nil {
		t.Errorf("with an impostor: %v, %+v", err, store.Identity())
	}
	known = secret
	if store, err := enrol(); err != nil || store.Identity() == nil {
		t.Errorf("with node 1: %v", err)
	}
}

// enrolHandler answers enrolments alone.
type enrolHandler func(*wirepb.Enrol) *wirepb.EnrolReply

func (h enrolHandler) Serve(_ context.Context, r *wire.Request) (wire.Response, error) {
	var req wirepb.Enrol
	if err := r.Decode(&req); err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Body: h(&req)}, nil
}

// serveAs is a server of the cluster "one" with an authority.
func serveAs(t *testing.T, addr string, ca *cfs.CA, id cfs.NodeID, answer enrolHandler) {
	t.Helper()
	store, err := pki.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &security{n: &Node{cfg: Config{ClusterID: "one", NodeID: id}}, store: store}
	if err := s.signOwn(ca); err != nil {
		t.Fatal(err)
	}
	ln, err := wire.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := wire.NewServer(wire.ServerConfig{Hello: wire.Identity{ClusterID: "one", NodeID: id}, Handler: answer, TLS: client.Secured(store, time.Now)})
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
}

// countHandler counts what it answers with an error of a kind.
type countHandler struct {
	kind  cfs.Kind
	asked *atomic.Int32
}

func (h countHandler) Serve(context.Context, *wire.Request) (wire.Response, error) {
	h.asked.Add(1)
	return wire.Response{}, cfs.E("", h.kind, nil)
}

// What must not be done twice is sent again only after an answer that nothing was done.
func TestCallOnce(t *testing.T) {
	for kind, want := range map[cfs.Kind]int32{cfs.Timeout: 1, cfs.Unavailable: 1, cfs.NotLeader: 3} {
		var asked atomic.Int32
		addrs := freeAddrs(t, 2)
		for _, addr := range addrs {
			ln, err := wire.Listen(addr)
			if err != nil {
				t.Fatal(err)
			}
			srv := wire.NewServer(wire.ServerConfig{Hello: wire.Identity{ClusterID: "one"}, Handler: countHandler{kind, &asked}})
			go srv.Serve(ln)
			t.Cleanup(func() { srv.Close() })
		}
		pool := wire.NewPool(wire.DialConfig{}, 1)
		err := newLeader(pool, addrs, "").callOnce(t.Context(), wire.OpAdmin, &wirepb.Admin{}, &wirepb.AdminReply{})
		if cfs.KindOf(err) != kind || asked.Load() != want {
			t.Errorf("%v: %v after %d attempts, want %d", kind, err, asked.Load(), want)
		}
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	}
}
