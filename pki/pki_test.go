package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// made is a store with a certificate of an authority.
func made(t *testing.T, ca *cfs.CA, who cfs.Principal, at time.Time, life time.Duration) *Store {
	t.Helper()
	s := must(OpenStore(filepath.Join(t.TempDir(), "id")))(t)
	key := must(s.PublicKey())(t)
	cert := must(Sign(ca, Request{Who: who, Name: "host", PublicKey: key, Lifetime: life}, at))(t)
	if err := s.Save(cert, ca.Cert); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJudge(t *testing.T) {
	now := time.Unix(1e9, 0)
	ca, other := must(NewAuthority("lab", now))(t), must(NewAuthority("lab", now))(t)
	authority := must(parseCert(ca.Cert))(t)
	server := cfs.Principal{ClusterID: "lab", Role: cfs.RoleStorage, Node: 7}
	for _, c := range []struct {
		what string
		ca   *cfs.CA
		who  cfs.Principal
		at   time.Time
		why  string // "": trusted
	}{
		{"a server", &ca, server, now, ""},
		{"a mount", &ca, cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}, now, ""},
		{"an administrator in a cluster with dots", &ca, cfs.Principal{ClusterID: "lab", Role: cfs.RoleAdmin}, now.Add(30 * time.Minute), ""},
		{"another authority's", &other, server, now, "not signed by this cluster's authority"},
		{"another cluster's", &ca, cfs.Principal{ClusterID: "other", Role: cfs.RoleClient}, now, `of cluster "other"`},
		{"an expired one", &ca, server, now.Add(-48 * time.Hour), "expired at"},
		{"one of the future", &ca, server, now.Add(2 * time.Hour), "clocks"},
	} {
		s := made(t, c.ca, c.who, c.at, time.Hour)
		got, err := Judge(s.Identity().Cert, authority, "lab", now)
		c.who.Serial, c.who.Key = s.Identity().Who.Serial, must(KeyID(must(s.PublicKey())(t)))(t)
		if c.why == "" && (err != nil || got != c.who) {
			t.Errorf("%s: %+v %v", c.what, got, err)
		}
		if c.why != "" && (cfs.KindOf(err) != cfs.Denied || !strings.Contains(err.Error(), c.why) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %q", c.what, err, c.why)
		}
	}
	if _, err := Judge(authority, authority, "lab", now); cfs.KindOf(err) != cfs.Denied {
		t.Errorf("the authority itself as a peer: %v", err)
	}
}

// TestMachineName: what is kept is for people's eyes, fits a record and a log's line, and is not longer than it may be.
func TestMachineName(t *testing.T) {
	for in, want := range map[string]string{"host-1": "host-1", "": "", "a\nb\x00c\x1b[1m": "a?b?c?[1m", "\xff\xffé": "?é",
		strings.Repeat("a", maxName-1) + "é": strings.Repeat("a", maxName-1) + "?"} {
		if got := MachineName(in); got != want {
			t.Errorf("%q is kept as %q, want %q", in, got, want)
		}
	}
}

// TestKeyID: the key is the same, whatever certificate it has.
func TestKeyID(t *testing.T) {
	ca := must(NewAuthority("lab", time.Now()))(t)
	s := must(OpenStore(t.TempDir()))(t)
	key := must(s.PublicKey())(t)
	seen := map[string]bool{}
	for _, who := range []cfs.Principal{{ClusterID: "lab", Role: cfs.RoleClient}, {ClusterID: "lab", Role: cfs.RoleAdmin}} {
		c := must(parseCert(must(Sign(&ca, Request{Who: who, PublicKey: key}, time.Now()))(t)))(t)
		seen[must(principalOf(c))(t).Key] = true
	}
	if id := must(KeyID(key))(t); len(seen) != 1 || !seen[id] || !cfs.ValidKey(id) {
		t.Errorf("key %q, in certificates %v", id, seen)
	}
	if _, err := KeyID([]byte("key")); cfs.KindOf(err) != cfs.Invalid {
		t.Errorf("no key: %v", err)
	}
}

func TestSignRefuses(t *testing.T) {
	ca := must(NewAuthority("lab", time.Now()))(t)
	s := must(OpenStore(t.TempDir()))(t)
	key := must(s.PublicKey())(t)
	good := Request{Who: cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}, PublicKey: key}
	for what, change := range map[string]func(*Request){
		"no role":                    func(r *Request) { r.Who.Role = cfs.RoleNone },
		"a role of a newer kind":     func(r *Request) { r.Who.Role = 9 },
		"a client with a number":     func(r *Request) { r.Who.Node = 1 },
		"a server without":           func(r *Request) { r.Who.Role = cfs.RoleStorage },
		"a cluster with a slash":     func(r *Request) { r.Who.ClusterID = "a/b" },
		"no cluster":                 func(r *Request) { r.Who.ClusterID = "" },
		"no key":                     func(r *Request) { r.PublicKey = nil },
		"a key that is none":         func(r *Request) { r.PublicKey = []byte("key") },
		"a key that is much":         func(r *Request) { r.PublicKey = make([]byte, maxDER+1) },
		"a key with something after": func(r *Request) { r.PublicKey = append(bytes.Clone(key), 0) },
	} {
		r := good
		change(&r)
		if _, err := Sign(&ca, r, time.Now()); cfs.KindOf(err) != cfs.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Sign(&ca, good, time.Now()); err != nil {
		t.Error(err)
	}
}

func TestStore(t *testing.T) {
	now := time.Now()
	ca := must(NewAuthority("lab", now))(t)
	s := made(t, &ca, cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}, now, 3*time.Hour)
	id := s.Identity()
	if d := id.RenewAt().Sub(now); d < 2*time.Hour-time.Minute || d > 2*time.Hour+time.Minute {
		t.Errorf("renewed after %v of 3 h", d)
	}
	again := must(OpenStore(s.Dir()))(t)
	if again.Identity() == nil || again.Identity().Who != id.Who || !Exists(s.Dir()) {
		t.Errorf("read again: %+v", again.Identity())
	}
	if !bytes.Equal(must(again.PublicKey())(t), must(s.PublicKey())(t)) {
		t.Error("the key is another one")
	}
	for _, name := range []string{"", keyFile, certFile, authorityFile} {
		want := os.FileMode(0o600)
		if name == "" {
			want = 0o700
		}
		if fi, err := os.Stat(filepath.Join(s.Dir(), name)); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v %v", name, fi.Mode(), err)
		}
	}
	// A certificate of another key is not kept.
	stranger := made(t, &ca, id.Who, now, 0)
	if err := s.Save(stranger.Identity().Cert.Raw, ca.Cert); cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("another's certificate: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir(), ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := s.SaveAuthority(&ca); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for range 2 { // none is no error
			if err := s.ForgetAuthority(); err != nil {
				t.Error(err)
			}
		}
		if got := must(s.Authority())(t); got.Key != nil {
			t.Error("the authority's key is still there")
		}
	}()
	if got := must(s.Authority())(t); !bytes.Equal(got.Key, ca.Key) || !bytes.Equal(got.Cert, ca.Cert) {
		t.Error("the authority came back otherwise")
	}
	for _, damage := range []string{"", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(filepath.Join(s.Dir(), certFile), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(); cfs.KindOf(err) != cfs.Corrupt || !strings.Contains(err.Error(), s.Dir()) {
			t.Errorf("damaged to %q: %v", damage, err)
		}
		if s.Identity() == nil {
			t.Error("what was read before is forgotten")
		}
	}
}

func TestToken(t *testing.T) {
	ca, other := must(NewAuthority("lab", time.Now()))(t), must(NewAuthority("lab", time.Now()))(t)
	tok, kept, err := NewToken(&ca, cfs.RoleClient, time.Unix(5, 0))
	if err != nil {
		t.Fatal(err)
	}
	if kept.ID != tok.ID || kept.Role != cfs.RoleClient || kept.ExpiresNS != 5e9 || bytes.Contains(kept.Hash, tok.secret[:]) {
		t.Errorf("kept %+v", kept)
	}
	got := must(ParseToken(" " + tok.String() + "\n"))(t)
	if got != tok || !bytes.Equal(got.Hash(), kept.Hash) {
		t.Errorf("%+v came back as %+v", tok, got)
	}
	c, o := must(parseCert(ca.Cert))(t), must(parseCert(other.Cert))(t)
	if a, err := got.Trusts([]*x509.Certificate{o, c}); err != nil || !a.Equal(c) {
		t.Errorf("its own authority: %v", err)
	}
	if _, err := got.Trusts([]*x509.Certificate{o}); cfs.KindOf(err) != cfs.Denied {
		t.Errorf("another authority: %v", err)
	}
	text := tok.String()
	for _, bad := range []string{"", "cfs1.", text[:len(text)-1], text + "a", "cfs2" + text[4:], strings.Replace(text, ".", ".1", 1)} {
		if _, err := ParseToken(bad); cfs.KindOf(err) != cfs.Denied || strings.Contains(err.Error(), text[8:20]) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestConfig(t *testing.T) {
	ca := must(NewAuthority("lab", time.Now()))(t)
	s := made(t, &ca, cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}, time.Now(), 0)
	if c := s.Config(); c.MinVersion != tls.VersionTLS13 || len(c.Certificates) != 1 || len(c.Certificates[0].Certificate) != 2 || !c.SessionTicketsDisabled {
		t.Errorf("%+v", c)
	}
	if c := Anonymous(); len(c.Certificates) != 0 {
		t.Errorf("%+v", c)
	}
}

func FuzzToken(f *testing.F) {
	ca, err := NewAuthority("lab", time.Unix(1e9, 0))
	if err != nil {
		f.Fatal(err)
	}
	tok, _, err := NewToken(&ca, cfs.RoleAdmin, time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.String())
	f.Add("cfs1." + strings.Repeat("a", 64))
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(got.String()); err != nil || again != got {
			t.Fatalf("%q is %+v, which is read as %+v, %v", text, got, again, err)
		}
	})
}

// FuzzIdentity: any bytes as certificate, authority, key or public key are refused, or understood in one way.
func FuzzIdentity(f *testing.F) {
	ca, err := NewAuthority("lab", time.Unix(1e9, 0))
	if err != nil {
		f.Fatal(err)
	}
	s, err := OpenStore(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	key, err := s.PublicKey()
	if err != nil {
		f.Fatal(err)
	}
	cert, err := Sign(&ca, Request{Who: cfs.Principal{ClusterID: "lab", Role: cfs.RoleStorage, Node: 3}, PublicKey: key}, time.Unix(1e9, 0))
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{ca.Cert, ca.Key, key, cert, pem.EncodeToMemory(&pem.Block{Type: certType, Bytes: cert})} {
		f.Add(b)
	}
	authority, err := parseCert(ca.Cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseCert(b); err == nil {
			if who, err := principalOf(c); err == nil && uriOf(who).String() != c.URIs[0].String() {
				t.Fatalf("%+v is of %q", who, c.URIs[0])
			}
			if who, err := Judge(c, authority, "lab", time.Unix(1e9, 0)); err == nil && !bytes.Equal(c.Raw, cert) {
				t.Fatalf("forged: %+v", who)
			}
		}
		if k, err := parseKey(b); err == nil && len(b) > maxDER {
			t.Fatalf("a key beyond the bound: %v", k.Curve)
		}
		if _, err := parsePublic(b); err == nil && len(b) > maxDER {
			t.Fatal("a key beyond the bound")
		}
		if der, err := parsePEM(b, certType); err == nil && len(der) > maxDER {
			t.Fatal("a block beyond the bound")
		}
	})
}

// A fresh key takes the old one's place with its certificate, and not before.
func TestFreshKey(t *testing.T) {
	now := time.Now()
	ca, other := must(NewAuthority("lab", now))(t), must(NewAuthority("lab", now))(t)
	s := made(t, &ca, cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}, now, 0)
	old := must(s.PublicKey())(t)
	key := must(s.FreshKey())(t)
	if again := must(OpenStore(s.Dir()))(t); bytes.Equal(key, old) || again.Identity() == nil || !bytes.Equal(must(again.PublicKey())(t), old) {
		t.Error("the old identity is gone before there is another")
	}
	cert := must(Sign(&other, Request{Who: s.Identity().Who, PublicKey: key}, now))(t)
	if err := s.Save(cert, other.Cert); err != nil {
		t.Fatal(err)
	}
	again := must(OpenStore(s.Dir()))(t)
	if id := again.Identity(); id == nil || !bytes.Equal(id.Authority.Raw, other.Cert) || !bytes.Equal(must(again.PublicKey())(t), key) {
		t.Errorf("the new identity is %+v", id)
	}
}

// Of two that enrol in one directory the second waits, and sees what the first has got.
func TestLock(t *testing.T) {
	now := time.Now()
	ca := must(NewAuthority("lab", now))(t)
	dir := t.TempDir()
	first, second := must(OpenStore(dir))(t), must(OpenStore(dir))(t)
	unlock := must(first.Lock(t.Context()))(t)
	tired, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := second.Lock(tired); cfs.KindOf(err) != cfs.Busy {
		t.Errorf("a directory that is locked: %v", err)
	}
	key := must(first.PublicKey())(t)
	cert := must(Sign(&ca, Request{Who: cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}, PublicKey: key}, now))(t)
	if err := first.Save(cert, ca.Cert); err != nil {
		t.Fatal(err)
	}
	unlock()
	must(second.Lock(t.Context()))(t)()
	if second.Identity() == nil {
		t.Error("the second does not see the first's identity")
	}
}
