package client

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// listenAs is a server of the cluster "lab", encrypted with a store if there is one.
func listenAs(t *testing.T, store *pki.Store, serve serveFunc) string {
	t.Helper()
	ln, err := wire.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := wire.ServerConfig{Hello: wire.Identity{ClusterID: "lab"}, Handler: serve}
	if store != nil {
		cfg.TLS = Secured(store, time.Now)
	}
	srv := wire.NewServer(cfg)
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().String()
}

// signed keeps in a store a certificate of an authority that is valid for a while.
func signed(t *testing.T, ca *cfs.CA, who cfs.Principal, at time.Time) *pki.Store {
	t.Helper()
	store, err := pki.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := store.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Sign(ca, pki.Request{Who: who, PublicKey: key, Lifetime: time.Hour}, at)
	if err == nil {
		err = store.Save(cert, ca.Cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// A token is used where the identity that is there is of no use, and only there.
func TestIdentify(t *testing.T) {
	now := time.Now()
	ca, err := pki.NewAuthority("lab", now)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := pki.NewAuthority("lab", now)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := pki.NewToken(&ca, cfs.RoleClient, now)
	if err != nil {
		t.Fatal(err)
	}
	who := cfs.Principal{ClusterID: "lab", Role: cfs.RoleClient}
	var asked atomic.Int32
	addr := listenAs(t, signed(t, &ca, cfs.Principal{ClusterID: "lab", Role: cfs.RoleStorage, Node: 1}, now), func(_ context.Context, r *wire.Request) (wire.Response, error) {
		var req wirepb.Enrol
		if err := r.Decode(&req); err != nil {
			return wire.Response{}, err
		}
		asked.Add(1)
		cert, err := pki.Sign(&ca, pki.Request{Who: who, PublicKey: req.PublicKey}, now)
		return wire.Response{Body: &wirepb.EnrolReply{Cert: cert, Ca: ca.Cert}}, err
	})
	plain := listenAs(t, nil, func(context.Context, *wire.Request) (wire.Response, error) {
		t.Error("a server that is not encrypted was asked")
		return wire.Response{}, cfs.E("", cfs.Denied, nil)
	})
	empty, err := pki.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		store *pki.Store
		used  int32
	}{
		"none":                 {empty, 1},
		"a good one":           {signed(t, &ca, who, now), 0},
		"an expired one":       {signed(t, &ca, who, now.Add(-2*time.Hour)), 1},
		"another authority's":  {signed(t, &foreign, who, now), 1},
		"that of another node": {signed(t, &ca, cfs.Principal{ClusterID: "lab", Role: cfs.RoleStorage, Node: 7}, now), 1},
	} {
		asked.Store(0)
		err := Identify(t.Context(), Enrolment{Store: c.store, Servers: []string{plain, addr}, Token: token.String()})
		if id := c.store.Identity(); err != nil || asked.Load() != c.used || id == nil || id.Expired(now) || id.Who.Node != 0 {
			t.Errorf("%s: %v, the token was used %d times", what, err, asked.Load())
		}
	}
}

// One server's Denied is not everybody's; that of all is.
func TestDeniedByOne(t *testing.T) {
	denied := cfs.Errorf("", cfs.Denied, "not you")
	var asked atomic.Int32
	refuse := serveFunc(func(context.Context, *wire.Request) (wire.Response, error) {
		asked.Add(1)
		return wire.Response{}, denied
	})
	var good atomic.Bool
	last := listenAs(t, nil, func(ctx context.Context, r *wire.Request) (wire.Response, error) {
		if !good.Load() {
			return refuse(ctx, r)
		}
		return wire.Response{Body: &wirepb.Answer{}}, nil
	})
	servers := []string{listenAs(t, nil, refuse), listenAs(t, nil, refuse), last}
	pool := wire.NewPool(wire.DialConfig{}, 1)
	defer pool.Close()
	c := &Client{cfg: Config{Servers: servers}, meta: pool, ctx: t.Context()}
	c.leader.Store(&servers[0])
	if _, err := c.toLeader(t.Context(), wire.OpQuery, &wirepb.Query{}, &wirepb.Answer{}); cfs.KindOf(err) != cfs.Denied || asked.Load() != 3 {
		t.Errorf("refused by all: %v after %d servers", err, asked.Load())
	}
	good.Store(true)
	if _, err := c.toLeader(t.Context(), wire.OpQuery, &wirepb.Query{}, &wirepb.Answer{}); err != nil {
		t.Errorf("refused by two of three: %v", err)
	}
}
