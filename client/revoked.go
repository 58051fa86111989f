package client

import (
	"crypto/x509"
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// wary is how connections are made to servers that the map does not say to be revoked.
func (c *Client) wary(security *wire.TLS) *wire.TLS {
	if security == nil {
		return nil
	}
	return &wire.TLS{Config: security.Config, Judge: func(certs []*x509.Certificate) (cfs.Principal, error) {
		who, err := security.Judge(certs)
		if err == nil {
			err = c.checkRevoked(who.Key)
		}
		return who, err
	}}
}

func (c *Client) checkRevoked(key string) error {
	if revoked := c.revoked.Load(); key != "" && revoked != nil && (*revoked)[key] {
		return cfs.Errorf("certificate", cfs.Denied, "it was revoked (key %s)", key)
	}
	return nil
}

// revoke refuses what a new map does, and ends the connections that there are to it. The caller holds c.mapping.
func (c *Client) revoke(old, now []string) {
	if slices.Equal(old, now) {
		return
	}
	keys := make(map[string]bool, len(now))
	for _, key := range now {
		keys[key] = true
	}
	c.revoked.Store(&keys)
	gone := func(p *wire.Peer) error { return c.checkRevoked(p.Key) }
	c.meta.Cut(gone)
	c.data.Cut(gone)
}
