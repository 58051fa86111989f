package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// enrolPause is the wait before the servers are asked again for a certificate.
	enrolPause = 200 * time.Millisecond
	// enrolTimeout bounds one attempt.
	enrolTimeout = 5 * time.Second
	// tryTimeout bounds the making of a connection that only shows whether a certificate is taken.
	tryTimeout = time.Second
	// renewLook is the longest sleep of KeepRenewed, and renewRetry the longest wait after a failure.
	renewLook  = time.Hour
	renewRetry = time.Minute
)

// Secured is how connections are made with the identity of a store.
func Secured(store *pki.Store, now func() time.Time) *wire.TLS {
	return &wire.TLS{Config: store.Config, Judge: func(certs []*x509.Certificate) (cfs.Principal, error) { return store.Judge(certs, now()) }}
}

// Enrolment is how to get a certificate.
type Enrolment struct {
	Store   *pki.Store
	Servers []string // HOST:PORT or unix:PATH
	// Token is what the cluster gave out. Without one, a store that has an identity renews it.
	Token string
	// TrustFirst takes whatever authority the server has, and says which: for a cluster that begins.
	TrustFirst bool
	// Secret is what the seed nodes of such a cluster share: both sides prove that they know it. Empty: nothing.
	Secret string
	NodeID cfs.NodeID // of a server
	Name   string     // of the machine
	Now    func() time.Time
	Logger *slog.Logger

	key       []byte            // DER, PKIX
	authority *x509.Certificate // that the server has shown
}

// lock completes the enrolment, and has the store's directory for itself until unlock is called.
func (e *Enrolment) lock(ctx context.Context) (unlock func(), err error) {
	if len(e.Servers) == 0 {
		return nil, cfs.Errorf("enrol", cfs.Usage, "no server is given to enrol at")
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
	return e.Store.Lock(ctx)
}

// Identify sees to it that the store has an identity that is of use: the one that is there, unless it has
// expired, is of another authority than the token names, is of another node, or is refused by the servers.
// Otherwise it enrols with the token.
func Identify(ctx context.Context, e Enrolment) error {
	token, err := pki.ParseToken(e.Token)
	if err != nil {
		return err
	}
	unlock, err := e.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if id := e.Store.Identity(); id != nil {
		why := e.useless(ctx, id, token)
		if why == "" {
			return nil
		}
		e.Logger.Info("enrolling anew", "dir", e.Store.Dir(), "why", why)
	}
	return e.enrol(ctx)
}

// useless says why the identity that is there is of no use; "" if it is.
func (e *Enrolment) useless(ctx context.Context, id *pki.Identity, token pki.Token) string {
	if _, err := token.Trusts([]*x509.Certificate{id.Authority}); err != nil {
		return "it is of another authority than the token"
	}
	switch {
	case id.Expired(e.Now()):
		return "it has expired"
	case id.Who.Node != e.NodeID:
		return fmt.Sprintf("it is of node %d", id.Who.Node)
	}
	refusal := ""
	for _, addr := range e.Servers {
		if strings.HasPrefix(addr, "unix:") {
			continue // nobody shows a certificate there
		}
		conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: e.Name}, DialTimeout: tryTimeout, TLS: Secured(e.Store, e.Now)})
		if err == nil {
			conn.Close()
			return ""
		}
		if cfs.KindOf(err) == cfs.Denied {
			refusal = err.Error()
		}
	}
	return refusal
}

// Enrol asks the servers in turn for a certificate until one signs it, one says no for good, or ctx
// ends, and keeps it in the store. Of several that enrol in one directory at once, one does after the other.
func Enrol(ctx context.Context, e Enrolment) error {
	before := e.Store.Identity()
	unlock, err := e.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if now := e.Store.Identity(); !e.stranger() && before != nil && now != nil && now.Who.Serial != before.Who.Serial {
		return nil // another process that uses the directory has renewed it
	}
	return e.enrol(ctx)
}

// stranger reports that the identity that is there, if any, does not count.
func (e *Enrolment) stranger() bool {
	return e.Token != "" || e.TrustFirst || e.Store.Identity() == nil
}

// enrol does it. The caller has the directory for itself.
func (e *Enrolment) enrol(ctx context.Context) (err error) {
	if e.key, err = e.Store.PublicKey(); err == nil && e.Token != "" && e.Store.Identity() != nil {
		e.key, err = e.Store.FreshKey() // the old one may be refused
	}
	if err != nil {
		return err
	}
	var last error
	refused, told := refusals{}, map[string]bool{}
	for i := 0; ; i++ {
		addr := e.Servers[i%len(e.Servers)]
		reply, err := e.askLeader(ctx, addr)
		if err == nil {
			return e.keep(reply)
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		switch cfs.KindOf(err) {
		case cfs.NotLeader, cfs.Unavailable, cfs.Timeout, cfs.Canceled, cfs.Closed, cfs.Overloaded:
			delete(refused, addr)
		case cfs.Denied: // by the cluster for good; what only this machine has against the server, another may mend
			var remote *wire.RemoteError
			if refused.note(addr); errors.As(err, &remote) || refused.all(e.Servers) {
				return cfs.E("enrol", cfs.Denied, err)
			}
		default:
			return cfs.E("enrol", cfs.KindOf(err), err)
		}
		if !told[addr] && ctx.Err() == nil {
			told[addr] = true
			e.Logger.Info("waiting for a server to sign this machine's certificate", "err", err)
		}
		select {
		case <-ctx.Done():
			return cfs.E("enrol", cfs.KindOf(last), last)
		case <-time.After(enrolPause):
		}
	}
}

// askLeader asks one server, and the leader that it names.
func (e *Enrolment) askLeader(ctx context.Context, addr string) (*wirepb.EnrolReply, error) {
	reply, err := e.ask(ctx, addr)
	var remote *wire.RemoteError
	if errors.As(err, &remote) && remote.Leader != "" && remote.Leader != addr {
		return e.ask(ctx, remote.Leader)
	}
	return reply, err
}

// ask asks one server.
func (e *Enrolment) ask(ctx context.Context, addr string) (*wirepb.EnrolReply, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	security := Secured(e.Store, e.Now)
	if e.stranger() {
		security = &wire.TLS{Config: pki.Anonymous, Judge: e.judge}
	}
	e.authority = nil
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: e.Name}, TLS: security})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	req := &wirepb.Enrol{Token: e.Token, PublicKey: e.key, NodeId: uint32(e.NodeID), Name: e.Name}
	if e.Secret != "" {
		if e.authority == nil {
			return nil, cfs.Errorf("server "+addr, cfs.Denied, "it shows no authority")
		}
		req.Proof = pki.SeedProof(e.Secret, e.authority.Raw, e.key, e.NodeID)
	}
	reply := &wirepb.EnrolReply{}
	if _, err = conn.Call(ctx, wire.OpEnrol, req, nil, reply, nil); err != nil {
		return nil, err
	}
	if e.Secret != "" && !pki.SameProof(reply.Proof, pki.AuthorityProof(e.Secret, e.authority.Raw, e.key)) {
		return nil, cfs.Errorf("server "+addr, cfs.Denied, "it does not know the bootstrap token: it is not node 1, or node 1 was started with another one")
	}
	return reply, nil
}

// judge accepts the server whose authority the token names, or the first that there is.
func (e *Enrolment) judge(certs []*x509.Certificate) (cfs.Principal, error) {
	var authority *x509.Certificate
	switch id := e.Store.Identity(); {
	case !e.TrustFirst:
		t, err := pki.ParseToken(e.Token)
		if err == nil {
			authority, err = t.Trusts(certs)
		}
		if err != nil {
			return cfs.Principal{}, err
		}
	case id != nil: // it has trusted one before
		authority = id.Authority
	default:
		for _, c := range certs {
			if c.IsCA {
				authority = c
			}
		}
		if authority == nil {
			return cfs.Principal{}, cfs.Errorf("server", cfs.Denied, "it shows no authority")
		}
	}
	e.authority = authority
	return pki.Judge(certs[0], authority, "", e.Now())
}

// keep keeps what a server has signed, if its authority is the one that was trusted.
func (e *Enrolment) keep(reply *wirepb.EnrolReply) error {
	const op = "enrol"
	ca, err := x509.ParseCertificate(reply.Ca)
	if err != nil {
		return cfs.E(op, cfs.BadRequest, err)
	}
	known := e.authority
	if id := e.Store.Identity(); known == nil && !e.stranger() {
		known = id.Authority
	}
	switch {
	case known != nil && !known.Equal(ca):
		return cfs.Errorf(op, cfs.Denied, "the server answers with another authority (%s) than it has shown", pki.Fingerprint(reply.Ca))
	case known == nil: // over a unix socket
		t, err := pki.ParseToken(e.Token)
		if err == nil {
			_, err = t.Trusts([]*x509.Certificate{ca})
		}
		if err != nil {
			return err
		}
	}
	if err := e.Store.Save(reply.Cert, reply.Ca); err != nil {
		return err
	}
	e.Logger.Info("enrolled", "key", e.Store.Identity().Who.Key, "until", e.Store.Identity().Cert.NotAfter, "authority", pki.Fingerprint(reply.Ca), "trusted on first use", e.TrustFirst)
	return nil
}

// KeepRenewed replaces the certificate of a store when two thirds of its life are over, until ctx
// ends. Connections that are there go on; those that are made afterwards use the new one.
func KeepRenewed(ctx context.Context, e Enrolment, servers func() []string) {
	for {
		id := e.Store.Identity()
		wait := min(id.RenewAt().Sub(e.Now()), renewLook)
		if wait <= 0 {
			e.Servers = servers()
			attempt, cancel := context.WithTimeout(ctx, 2*enrolTimeout)
			err := Enrol(attempt, e)
			cancel()
			if err != nil && ctx.Err() == nil {
				e.Logger.Warn("the certificate is not renewed", "until", id.Cert.NotAfter, "err", err)
			}
			// Also after a success: where the authority is about to end, the new one is due at once.
			wait = min(max(id.Cert.NotAfter.Sub(e.Now())/10, enrolPause), renewRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
