package client

import (
	"context"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
)

// nothing answers every request with nothing.
type nothing struct{}

func (nothing) Serve(context.Context, *wire.Request) (wire.Response, error) {
	return wire.Response{}, nil
}

// TestRevokedServer: a server that the map says to be revoked is left at once, and not gone to again.
func TestRevokedServer(t *testing.T) {
	ca, err := pki.NewAuthority("lab", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	signed := func(who cfs.Principal) *pki.Store {
		t.Helper()
		store, err := pki.OpenStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		key, err := store.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.Sign(&ca, pki.Request{Who: who, PublicKey: key}, time.Now())
		if err == nil {
			err = store.Save(cert, ca.Cert)
		}
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	ln, err := wire.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	store := signed(cfs.Principal{ClusterID: "lab", Role: cfs.RoleStorage, Node: 1})
	s := wire.NewServer(wire.ServerConfig{Hello: wire.Identity{ClusterID: "lab", NodeID: 1}, Handler: nothing{},
		TLS: &wire.TLS{Config: store.Config, Judge: func([]*x509.Certificate) (cfs.Principal, error) {
			return cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}, nil
		}}})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ln) }()
	defer func() {
		s.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	c := &Client{}
	dial := wire.DialConfig{Hello: wire.Identity{ClusterID: "lab"}, DialTimeout: time.Minute,
		TLS: c.wary(Secured(signed(cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}), time.Now))}
	c.meta, c.data = wire.NewPool(dial, 1), wire.NewPool(dial, 1)
	defer c.meta.Close()
	defer c.data.Close()
	var conns []*wire.Conn
	for _, p := range []*wire.Pool{c.meta, c.data} {
		conn, err := p.Conn(t.Context(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	c.revoke(nil, []string{strings.Repeat("0", cfs.KeyDigits)})
	for _, conn := range conns {
		if _, err := conn.Call(t.Context(), wire.OpPing, nil, nil, nil, nil); err != nil {
			t.Errorf("after another was revoked: %v", err)
		}
	}
	c.revoke(nil, []string{store.Identity().Who.Key})
	for i, p := range []*wire.Pool{c.meta, c.data} {
		<-conns[i].Done()
		if _, err := p.Conn(t.Context(), ln.Addr().String()); cfs.KindOf(err) != cfs.Denied || !strings.Contains(err.Error(), "it was revoked") {
			t.Errorf("the server that was revoked: %v", err)
		}
	}
	if c.wary(nil) != nil {
		t.Error("without certificates there is nothing to look at")
	}
}
