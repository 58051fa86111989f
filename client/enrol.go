package client

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
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
	NodeID     cfs.NodeID // of a server
	Name       string     // of the machine
	Now        func() time.Time
	Logger     *slog.Logger

	authority *x509.Certificate // that the server has shown
}

// Enrol asks the servers in turn for a certificate until one signs it, one says no for good, or ctx
// ends, and keeps it in the store.
func Enrol(ctx context.Context, e Enrolment) error {
	const op = "enrol"
	key, err := e.Store.PublicKey()
	if err != nil {
		return err
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
	req := &wirepb.Enrol{Token: e.Token, PublicKey: key, NodeId: uint32(e.NodeID), Name: e.Name}
	var last error
	hint := ""
	for i := 0; ; i++ {
		addr := e.Servers[i%len(e.Servers)]
		if hint != "" {
			addr, hint = hint, ""
		}
		reply, err := e.ask(ctx, addr, req)
		if err == nil {
			return e.keep(reply)
		}
		if ctx.Err() != nil {
			if last == nil {
				last = err
			}
			return cfs.E(op, cfs.KindOf(last), last)
		}
		var remote *wire.RemoteError
		if errors.As(err, &remote) {
			hint = remote.Leader
		}
		switch cfs.KindOf(err) {
		case cfs.NotLeader, cfs.Unavailable, cfs.Timeout, cfs.Canceled, cfs.Closed, cfs.Overloaded:
		default:
			return cfs.E(op, cfs.KindOf(err), err)
		}
		if last == nil {
			e.Logger.Info("waiting for a server to sign this machine's certificate", "err", err)
		}
		if last = err; hint != "" {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(enrolPause):
		}
	}
}

// ask asks one server.
func (e *Enrolment) ask(ctx context.Context, addr string, req *wirepb.Enrol) (*wirepb.EnrolReply, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	security := Secured(e.Store, e.Now)
	if e.Token != "" || e.Store.Identity() == nil {
		security = &wire.TLS{Config: pki.Anonymous, Judge: e.judge}
	}
	conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: e.Name}, TLS: security})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply := &wirepb.EnrolReply{}
	_, err = conn.Call(ctx, wire.OpEnrol, req, nil, reply, nil)
	return reply, err
}

// judge accepts the server whose authority the token names, or the first that there is.
func (e *Enrolment) judge(certs []*x509.Certificate) (cfs.Principal, error) {
	var authority *x509.Certificate
	if e.TrustFirst {
		for _, c := range certs {
			if c.IsCA {
				authority = c
			}
		}
		if authority == nil {
			return cfs.Principal{}, cfs.Errorf("server", cfs.Denied, "it shows no authority")
		}
	} else {
		t, err := pki.ParseToken(e.Token)
		if err == nil {
			authority, err = t.Trusts(certs)
		}
		if err != nil {
			return cfs.Principal{}, err
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
	if id := e.Store.Identity(); known == nil && e.Token == "" && id != nil {
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
	e.Logger.Info("enrolled", "serial", e.Store.Identity().Who.Serial, "until", e.Store.Identity().Cert.NotAfter, "authority", pki.Fingerprint(reply.Ca), "trusted on first use", e.TrustFirst)
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
			if err == nil {
				continue
			}
			if ctx.Err() == nil {
				e.Logger.Warn("the certificate is not renewed", "until", id.Cert.NotAfter, "err", err)
			}
			wait = min(max(id.Cert.NotAfter.Sub(e.Now())/10, enrolPause), renewRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
