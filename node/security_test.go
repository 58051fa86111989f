package node

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// TestAdmit: node 1 signs for each seed node once, for one key, and where there is a secret for who knows it.
func TestAdmit(t *testing.T) {
	dir := t.TempDir()
	open := func(secret string) *security {
		t.Helper()
		store, err := pki.OpenStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		s := &security{n: &Node{cfg: Config{NodeID: 1, Seeds: []string{"a:1", "b:1", "c:1"}, BootstrapToken: secret}}, store: store}
		if err := s.loadSeeds(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	stranger := &wire.Peer{}
	want := func(what string, err error, kind cfs.Kind) {
		t.Helper()
		if cfs.KindOf(err) != kind {
			t.Errorf("%s: %v, want %v", what, err, kind)
		}
	}
	authority := []byte("authority")
	admit := func(s *security, p *wire.Peer, req *wirepb.Enrol, id cfs.NodeID) error {
		return s.admit(p, req, id, authority)
	}
	ask := func(key string) *wirepb.Enrol { return &wirepb.Enrol{PublicKey: []byte(key)} }
	proving := func(key, secret string, shown []byte, id cfs.NodeID) *wirepb.Enrol {
		return &wirepb.Enrol{PublicKey: []byte(key), Proof: pki.SeedProof(secret, shown, []byte(key), id)}
	}
	s := open("")
	want("a seed", admit(s, stranger, ask("k2"), 2), cfs.KindOK)
	want("the same again", admit(s, stranger, ask("k2"), 2), cfs.KindOK)
	want("with another key", admit(s, stranger, ask("other"), 2), cfs.Denied)
	want("node 1", admit(s, stranger, ask("k1"), 1), cfs.Denied)
	want("no seed", admit(s, stranger, ask("k4"), 4), cfs.Denied)
	want("with a secret that nobody gave", admit(s, stranger, proving("k3", "secret", authority, 3), 3), cfs.Denied)
	want("a renewal", admit(s, &wire.Peer{Role: cfs.RoleStorage, Certified: 2}, ask("new"), 2), cfs.KindOK)
	want("another's renewal", admit(s, &wire.Peer{Role: cfs.RoleStorage, Certified: 3}, ask("new"), 2), cfs.Denied)
	s = open("") // after a restart
	want("after a restart", admit(s, stranger, ask("other"), 2), cfs.Denied)
	s = open("secret")
	want("without the secret", admit(s, stranger, ask("k3"), 3), cfs.Denied)
	want("with another secret", admit(s, stranger, proving("k3", "Secret", authority, 3), 3), cfs.Denied)
	want("to another authority", admit(s, stranger, proving("k3", "secret", []byte("impostor"), 3), 3), cfs.Denied)
	want("for another number", admit(s, stranger, proving("k3", "secret", authority, 2), 3), cfs.Denied)
	want("with the secret", admit(s, stranger, proving("k3", "secret", authority, 3), 3), cfs.KindOK)
	ca, err := pki.NewAuthority("lab", s.n.cfg.now())
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := pki.NewToken(&ca, cfs.RoleClient, s.n.cfg.now())
	if err != nil {
		t.Fatal(err)
	}
	want("a token, too early", admit(s, stranger, &wirepb.Enrol{PublicKey: []byte("k"), Token: token.String()}, 0), cfs.Unavailable)
}

// TestRevokedIsKept: what was refused is refused from the start on, until a newer map says otherwise, and node 1 has the
// authority's key no longer than until it is recorded.
func TestRevokedIsKept(t *testing.T) {
	dir := t.TempDir()
	open := func(m *cfs.Map) *security {
		t.Helper()
		store, err := pki.OpenStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		n := &Node{cfg: Config{NodeID: 1}, log: slog.New(slog.DiscardHandler), raft: &replica{changed: make(chan struct{})}, server: wire.NewServer(wire.ServerConfig{})}
		for i := range n.pools {
			n.pools[i] = wire.NewPool(wire.DialConfig{}, 1)
		}
		t.Cleanup(func() {
			n.server.Close()
			for _, p := range n.pools {
				p.Close()
			}
		})
		n.raft.follow(m)
		s := &security{n: n, store: store}
		if err := s.recall(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	refused := func(s *security, want ...string) {
		t.Helper()
		for _, key := range []string{"a", "b", "c"} {
			if err := s.checkRevoked(key); (err != nil) != slices.Contains(want, key) {
				t.Errorf("%s: %v, want refused %v", key, err, want)
			}
		}
	}
	none := &cfs.Map{ClusterID: "lab"}
	s := open(none)
	refused(s)
	ca, err := pki.NewAuthority("lab", s.n.cfg.now())
	if err == nil {
		err = s.store.SaveAuthority(&ca)
	}
	if err != nil {
		t.Fatal(err)
	}
	has := func(want bool) {
		t.Helper()
		if got, err := s.store.Authority(); err != nil || (got.Key != nil) != want {
			t.Errorf("the authority's key is there: %v %v, want %v", got.Key != nil, err, want)
		}
	}
	s.follow(&cfs.Map{CA: "another", Version: 4})
	has(true)
	s.follow(&cfs.Map{CA: pki.Fingerprint(ca.Cert), Version: 5, Revoked: []string{"a", "b"}})
	refused(s, "a", "b")
	has(false)
	s.follow(&cfs.Map{CA: "ca", Version: 4, Revoked: []string{"a"}}) // of a replica that is behind
	refused(s, "a", "b")
	s = open(none)
	refused(s, "a", "b")
	s.follow(none)
	refused(s, "a", "b")
	s.follow(&cfs.Map{CA: "ca", Version: 6, Revoked: []string{"c"}})
	refused(s, "c")
	refused(open(&cfs.Map{CA: "ca", Version: 7, Revoked: []string{"a", "c"}}), "a", "c")
}

// TestCheckMode: a directory goes on as its cluster was made.
func TestCheckMode(t *testing.T) {
	for _, c := range []struct {
		was  state
		tls  bool
		want string // "": goes on
	}{
		{state{}, true, ""},
		{state{}, false, ""},
		{state{TLS: tlsOn}, true, ""},
		{state{TLS: tlsOff}, false, ""},
		{state{TLS: tlsOn}, false, "--tls off is refused"},
		{state{TLS: tlsOff}, true, "--tls off only"},
		{state{TLS: tlsOpen, NextSlot: 1}, true, ""}, // a mistaken first start does not stick
		{state{TLS: tlsOpen, NextSlot: 1}, false, ""},
		{state{NextSlot: 1}, false, ""},
		{state{NextSlot: 1}, true, "--tls off only"}, // of a version without certificates
	} {
		d := &dataDir{state: c.was}
		err := d.checkMode(&Config{TLS: c.tls}, "data directory")
		if c.want == "" && err != nil || c.want != "" && (cfs.KindOf(err) != cfs.Usage || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
