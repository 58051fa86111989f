package node

import (
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
	ask := func(key, token string) *wirepb.Enrol {
		return &wirepb.Enrol{PublicKey: []byte(key), Token: token}
	}
	s := open("")
	want("a seed", s.admit(stranger, ask("k2", ""), 2), cfs.KindOK)
	want("the same again", s.admit(stranger, ask("k2", ""), 2), cfs.KindOK)
	want("with another key", s.admit(stranger, ask("other", ""), 2), cfs.Denied)
	want("node 1", s.admit(stranger, ask("k1", ""), 1), cfs.Denied)
	want("no seed", s.admit(stranger, ask("k4", ""), 4), cfs.Denied)
	want("with a secret that nobody gave", s.admit(stranger, ask("k3", "secret"), 3), cfs.Denied)
	want("a renewal", s.admit(&wire.Peer{Role: cfs.RoleStorage, Certified: 2}, ask("new", ""), 2), cfs.KindOK)
	want("another's renewal", s.admit(&wire.Peer{Role: cfs.RoleStorage, Certified: 3}, ask("new", ""), 2), cfs.Denied)
	s = open("") // after a restart
	want("after a restart", s.admit(stranger, ask("other", ""), 2), cfs.Denied)
	s = open("secret")
	want("without the secret", s.admit(stranger, ask("k3", ""), 3), cfs.Denied)
	want("with another secret", s.admit(stranger, ask("k3", "Secret"), 3), cfs.Denied)
	want("with the secret", s.admit(stranger, ask("k3", "secret"), 3), cfs.KindOK)
	ca, err := pki.NewAuthority("lab", s.n.now())
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := pki.NewToken(&ca, cfs.RoleClient, s.n.now())
	if err != nil {
		t.Fatal(err)
	}
	want("a token, too early", s.admit(stranger, ask("k", token.String()), 0), cfs.Unavailable)
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
