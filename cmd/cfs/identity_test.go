package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
)

// keeper is a machine that keeps an identity for a cluster.
func keeper(t *testing.T, clusterID string) *identityFlags {
	t.Helper()
	f := &identityFlags{tls: true, root: t.TempDir()}
	ca, err := pki.NewAuthority(clusterID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	store, err := pki.OpenStore(filepath.Join(f.root, clusterID))
	if err != nil {
		t.Fatal(err)
	}
	key, err := store.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Sign(&ca, pki.Request{Who: cfs.Principal{ClusterID: clusterID, Role: cfs.RoleClient}, PublicKey: key}, time.Now())
	if err == nil {
		err = store.Save(cert, ca.Cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A machine that keeps identities goes without encryption only when it is told to.
func TestNeverPlainByItself(t *testing.T) {
	server := []string{newFake(t).addrs[1]}
	log := slog.New(slog.DiscardHandler)
	for _, clusterID := range []string{"", "fake", "other"} { // as --cluster-id says
		f := keeper(t, "lab")
		store, err := f.open(t.Context(), server, clusterID, log)
		if store != nil || cfs.KindOf(err) != cfs.Denied || !strings.Contains(err.Error(), "--tls off") {
			t.Errorf("with cluster id %q: %v", clusterID, err)
		}
		f.tls = false
		if store, err := f.open(t.Context(), server, clusterID, log); store != nil || err != nil {
			t.Errorf("with --tls off and cluster id %q: %v", clusterID, err)
		}
	}
	f := keeper(t, "lab")
	f.tls, f.token = false, "cfs1."
	if _, err := f.open(t.Context(), server, "", log); cfs.KindOf(err) != cfs.Usage {
		t.Errorf("a token and --tls off: %v", err)
	}
	f = &identityFlags{tls: true, root: t.TempDir()}
	if store, err := f.open(t.Context(), server, "", log); store != nil || err != nil {
		t.Errorf("a machine without identities: %v", err)
	}
}

// What a server calls its cluster is no path.
func TestClusterIDIsNoPath(t *testing.T) {
	for _, id := range []string{"..", ".", "../x", "/tmp", "a/b"} {
		ln, err := wire.Listen("unix:" + filepath.Join(t.TempDir(), "node.sock"))
		if err != nil {
			t.Fatal(err)
		}
		srv := wire.NewServer(wire.ServerConfig{Hello: wire.Identity{ClusterID: id, NodeID: 1}, Handler: &fakeNode{}})
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
		f := keeper(t, "lab")
		if err := os.Chmod(filepath.Dir(f.root), 0o755); err != nil {
			t.Fatal(err)
		}
		sock := ln.Addr().String()
		if err := os.MkdirAll(filepath.Join(filepath.Dir(sock), "identity"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(sock), "identity", "cert.pem"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if dir, err := f.find(t.Context(), []string{"unix:" + sock}, ""); dir != "" || cfs.KindOf(err) != cfs.Usage {
			t.Errorf("%q: %q, %v", id, dir, err)
		}
		if fi, err := os.Stat(filepath.Dir(f.root)); err != nil || fi.Mode().Perm() != 0o755 {
			t.Errorf("%q: the directory above is %v, %v", id, fi.Mode(), err)
		}
	}
}
